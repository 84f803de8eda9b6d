//! The desired state: services and their backends, after every check has passed.

use std::{fmt, net::IpAddr, ops::RangeInclusive, str::FromStr, time::Duration};

use super::{Reason, words::words};

/// Source ports that full NAT uses unless the configuration says otherwise: all
/// that Linux leaves below its own default range for local sockets, 32768 to 60999
/// (`net.ipv4.ip_local_port_range`), without the privileged ones.
pub const FULL_NAT_PORTS: RangeInclusive<u16> = 1024..=32767;

words! {
    /// Transport protocol of a service.
    Protocol, "protocol", "`tcp` or `udp`" {
        /// TCP, IP protocol 6.
        Tcp = "tcp",
        /// UDP, IP protocol 17.
        Udp = "udp",
    }
}

words! {
    /// Forwarding mode of a service.
    Mode, "mode", "`full-nat` or `nat`; `dsr`, `ipip` and `gue` are not in this version" {
        /// Destination and source are translated; backends need no set-up.
        FullNat = "full-nat",
        /// The destination is translated; backends route replies through here.
        Nat = "nat",
    }
}

words! {
    /// How a new flow finds its backend.
    Scheduler, "scheduler", "`maglev`, the only one in this version" {
        /// Weighted Maglev hashing of the five-tuple.
        Maglev = "maglev",
    }
}

impl Protocol {
    /// IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// Where a service is reached: an address and a port, or every port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VirtualAddress {
    /// The service address.
    pub ip: IpAddr,
    /// The port; `None` for every port without a service of its own, written `*`.
    pub port: Option<u16>,
}

impl fmt::Display for VirtualAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            IpAddr::V4(ip) => write!(f, "{ip}:")?,
            IpAddr::V6(ip) => write!(f, "[{ip}]:")?,
        }
        match self.port {
            Some(port) => write!(f, "{port}"),
            None => f.write_str("*"),
        }
    }
}

impl FromStr for VirtualAddress {
    type Err = Reason;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORMS: &str = "write `192.0.2.10:443` or `[2001:db8::10]:443`, or `*` as the port \
                             for every port";
        if let Some(reason) = half_written(text) {
            return Err(reason);
        }
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| Reason::new(format!("`{text}` is no IP address with a port"), FORMS))?;
        let ip = match host.strip_prefix('[').and_then(|v6| v6.strip_suffix(']')) {
            Some(v6) => v6.parse().map(IpAddr::V6).ok(),
            None => host.parse().map(IpAddr::V4).ok(),
        };
        let ip = ip.ok_or_else(|| {
            Reason::new(
                format!("`{host}` is no IP address"),
                format!("{FORMS}; names are not resolved"),
            )
        })?;
        let port = match port {
            "*" => None,
            digits => Some(parse_port(digits)?),
        };
        Ok(Self { ip, port })
    }
}

/// What to say of an address that lacks its port or its brackets.
fn half_written(text: &str) -> Option<Reason> {
    let at = |ip, port| VirtualAddress {
        ip,
        port: Some(port),
    };
    if let Some((v6, port)) = text.rsplit_once(':')
        && let (Ok(v6), Ok(port)) = (v6.parse().map(IpAddr::V6), parse_port(port))
    {
        return Some(Reason::new(
            format!("`{text}` lacks the brackets between address and port"),
            format!("write `{}`", at(v6, port)),
        ));
    }
    let bare = text.strip_prefix('[').and_then(|v6| v6.strip_suffix(']'));
    let ip = bare.unwrap_or(text).parse().ok()?;
    Some(Reason::new(
        format!("`{text}` names no port"),
        format!("write `{}`, or `*` as the port for every port", at(ip, 443)),
    ))
}

/// Reads a port number.
///
/// # Errors
///
/// When it is no number from 1 to 65535 in plain digits.
pub fn parse_port(digits: &str) -> Result<u16, Reason> {
    // `u16::from_str` alone would take a sign.
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .parse()
        .ok()
        .filter(|port| plain && *port != 0)
        .ok_or_else(|| {
            Reason::new(
                format!("`{digits}` is no port"),
                "a port is a number from 1 to 65535",
            )
        })
}

/// Reads a range of ports, `1024-32767`. That it is the right way round is for
/// [`rules`](super::rules) to say.
///
/// # Errors
///
/// When it is not two ports joined by `-`.
pub fn parse_port_range(text: &str) -> Result<RangeInclusive<u16>, Reason> {
    let (first, last) = text.split_once('-').ok_or_else(|| {
        Reason::new(
            format!("`{text}` is no range of ports"),
            "write the first and the last port: `1024-32767`",
        )
    })?;
    Ok(parse_port(first.trim())?..=parse_port(last.trim())?)
}

/// Reads the source address of full NAT.
///
/// # Errors
///
/// When it is no IP address.
pub fn parse_source(text: &str) -> Result<IpAddr, Reason> {
    text.parse().map_err(|_| {
        Reason::new(
            format!("`{}` is no IP address", text.escape_debug()),
            "write an address of this host without a port: `10.0.0.1`",
        )
    })
}

/// What a health check asks of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A TCP connection is accepted.
    Tcp,
    /// `GET path` over HTTP/1.1 is answered with a status from 200 to 399.
    Http {
        /// Path and query, beginning with `/`.
        path: String,
        /// Value of the `Host` header; the backend's address where `None`.
        host: Option<String>,
    },
}

/// How the health of a service's backends is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthSpec {
    /// What is asked.
    pub probe: Probe,
    /// From the begin of one check to the begin of the next.
    pub interval: Duration,
    /// How long an answer may take, at most `interval`; `None` where it was not given,
    /// see [`Self::timeout`].
    pub timeout: Option<Duration>,
    /// Successes in a row that bring a backend up. At least 1.
    pub rise: u32,
    /// Failures in a row that take a backend down. At least 1.
    pub fall: u32,
    /// Port that is checked; the backend's own where `None`. Needed where the
    /// backend has none.
    pub port: Option<u16>,
}

impl HealthSpec {
    /// The interval where none is given.
    pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(2);
    /// The timeout where none is given and the interval is not shorter.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
    /// `rise` where none is given.
    pub const DEFAULT_RISE: u32 = 2;
    /// `fall` where none is given.
    pub const DEFAULT_FALL: u32 = 3;

    /// How long an answer may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
            .unwrap_or_else(|| Self::default_timeout(self.interval))
    }

    /// The timeout where none is given.
    #[must_use]
    pub fn default_timeout(interval: Duration) -> Duration {
        Self::DEFAULT_TIMEOUT.min(interval)
    }
}

/// How long a flow may be silent before it is forgotten, by the state it is in.
/// Both directions count as speaking. Whole numbers of [`lb_common::CLOCK_TICK_MS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, before the backend has answered. Also UDP without an answer.
    pub unreplied: Duration,
    /// TCP, established.
    pub tcp_established: Duration,
    /// TCP, after a FIN from either side or an RST.
    pub tcp_closing: Duration,
    /// UDP, after an answer.
    pub udp: Duration,
}

impl Default for Timeouts {
    /// Established TCP: 2 hours 4 minutes, the least that RFC 5382 REQ-5 allows a
    /// NAT. UDP: 5 minutes, as RFC 4787 REQ-5 recommends; unanswered UDP and
    /// handshakes 30 seconds. Closing: 60 seconds, how long Linux keeps TIME-WAIT,
    /// so that a source port is not used again towards a backend that still does.
    fn default() -> Self {
        Self {
            unreplied: Duration::from_secs(30),
            tcp_established: Duration::from_secs(7_440),
            tcp_closing: Duration::from_secs(60),
            udp: Duration::from_secs(300),
        }
    }
}

/// A service and its backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Unique name: ASCII letters, digits, `-`, `_` and `.`, 1 to 63 of them, the
    /// first a letter or a digit.
    pub name: String,
    /// Where clients reach it.
    pub address: VirtualAddress,
    /// What they speak.
    pub protocol: Protocol,
    /// How packets are forwarded.
    pub mode: Mode,
    /// How new flows are spread.
    pub scheduler: Scheduler,
    /// Source address of full NAT; `None` for the one that the kernel would use
    /// towards the backend. Of the same family as `address`.
    pub source: Option<IpAddr>,
    /// Source ports of full NAT.
    pub source_ports: RangeInclusive<u16>,
    /// When silent flows are forgotten.
    pub timeouts: Timeouts,
    /// Health checks; `None` takes every backend as up.
    pub health: Option<HealthSpec>,
    /// Backends, in the order of the file.
    pub backends: Vec<BackendSpec>,
}

/// A backend of a service, named by its address within the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendSpec {
    /// Address and port; port `None` (written `*`) keeps the port that the client
    /// asked for, and only a service on every port may use it.
    pub address: VirtualAddress,
    /// Share of new flows in proportion to the sum of weights; 0 for none.
    pub weight: u32,
}

impl BackendSpec {
    /// The weight of a backend that names none.
    pub const DEFAULT_WEIGHT: u32 = 100;
    /// The largest weight.
    pub const MAX_WEIGHT: u32 = 65_535;
}
