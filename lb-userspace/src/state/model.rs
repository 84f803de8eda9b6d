//! The desired state: services and their backends, after every check has passed.

use std::{fmt, net::IpAddr, ops::RangeInclusive, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// Source ports that full NAT uses unless the configuration says otherwise: all
/// that Linux leaves below its own default range for local sockets, 32768 to 60999
/// (`net.ipv4.ip_local_port_range`), without the privileged ones.
pub const FULL_NAT_PORTS: RangeInclusive<u16> = 1024..=32767;

/// A word on the command line or in a file that means nothing here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{given}` is not known; use {expected}")]
pub struct ParseError {
    /// What kind of word was expected.
    pub what: &'static str,
    /// The word itself.
    pub given: String,
    /// What would have been understood.
    pub expected: &'static str,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal, $expected:literal {
        $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// Every value, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word used in configuration, JSON and tables.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = ParseError;

            fn from_str(word: &str) -> Result<Self, Self::Err> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(ParseError {
                        what: $what,
                        given: word.to_owned(),
                        expected: $expected,
                    }),
                }
            }
        }
    };
}

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
    Mode, "mode", "`full-nat` or `nat`" {
        /// Destination and source are translated; backends need no set-up.
        FullNat = "full-nat",
        /// The destination is translated; backends route replies through here.
        Nat = "nat",
    }
}

words! {
    /// How a new flow finds its backend.
    Scheduler, "scheduler", "`maglev`" {
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
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (host, port) = text.rsplit_once(':')?;
            let ip = match host.strip_prefix('[') {
                Some(rest) => IpAddr::V6(rest.strip_suffix(']')?.parse().ok()?),
                None => IpAddr::V4(host.parse().ok()?),
            };
            let port = match port {
                "*" => None,
                digits => Some(digits.parse().ok().filter(|port| *port != 0)?),
            };
            Some(Self { ip, port })
        };
        parse().ok_or_else(|| ParseError {
            what: "address",
            given: text.to_owned(),
            expected: "`192.0.2.10:443`, `[2001:db8::10]:443`, or `*` as the port for every port",
        })
    }
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
    /// How long an answer may take. At most `interval`.
    pub timeout: Duration,
    /// Successes in a row that bring a backend up. At least 1.
    pub rise: u32,
    /// Failures in a row that take a backend down. At least 1.
    pub fall: u32,
    /// Port that is checked; the backend's own where `None`. Needed where the
    /// backend has none.
    pub port: Option<u16>,
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
    /// Unique name: letters, digits, `-`, `_` and `.`, 1 to 63 of them.
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
