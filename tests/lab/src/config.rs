//! Configuration files of the balancer for a [`Topology`].

use std::{
    fmt::{self, Write},
    net::{IpAddr, SocketAddr},
};

use crate::{Topology, port};

/// Transport protocol of a [`Service`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Forwarding mode of a [`Service`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Source and destination are translated.
    FullNat,
    /// The destination is translated.
    Nat,
    /// Only Ethernet addresses change (direct server return).
    Dsr,
    /// Wrapped in IPv4 or IPv6.
    Ipip,
    /// Wrapped in UDP (draft-ietf-intarea-gue).
    Gue,
}

impl Mode {
    /// The modes that work in every topology: backends need no service address.
    pub const NAT: [Self; 2] = [Self::FullNat, Self::Nat];

    /// Whether backends have the service address and answer clients without the balancer;
    /// then their port is the service's.
    #[must_use]
    pub const fn replies_direct(self) -> bool {
        matches!(self, Self::Dsr | Self::Ipip | Self::Gue)
    }

    /// Whether backends have packets to unwrap.
    #[must_use]
    pub const fn is_tunnel(self) -> bool {
        self.overhead() > 0
    }

    /// Bytes that packets grow by at most on their way to a backend: an IPv6 header, and
    /// with `gue` the headers of UDP and GUE.
    #[must_use]
    pub const fn overhead(self) -> u32 {
        match self {
            Self::FullNat | Self::Nat | Self::Dsr => 0,
            Self::Ipip => 40,
            Self::Gue => 40 + 8 + 4,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::FullNat => "full-nat",
            Self::Nat => "nat",
            Self::Dsr => "dsr",
            Self::Ipip => "ipip",
            Self::Gue => "gue",
        })
    }
}

/// A service whose backends are those of the [`Topology`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Where clients reach it.
    pub address: SocketAddr,
    /// What they speak.
    pub protocol: Protocol,
    /// How packets are forwarded.
    pub mode: Mode,
    /// The port of the backends; 0 for the one that the client asked for.
    pub backend_port: u16,
    /// The weights of the backends, the first one's first. Backends beyond its
    /// length are not part of the service.
    pub weights: Vec<u32>,
    /// How backends are checked.
    pub health: Health,
    /// Whether backends are known by their addresses of the other family, which only
    /// tunnels allow.
    pub crossed: bool,
    /// What stands in place of `address` in the file, if the service is on more than that:
    /// `192.0.2.32/28:8000-8099`.
    pub on: Option<String>,
    /// Other keys of the service with their values: lines of TOML.
    pub keys: String,
    /// What is asked in place of the usual: keys of the health check, lines of TOML.
    pub check: Option<String>,
    /// The same of the backends, the first one's first. Those beyond its length have none.
    pub backend_keys: Vec<String>,
}

/// An HTTP health check of [`port::HTTP`]; for every service, as one server answers
/// for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// From the begin of one check to the begin of the next, in milliseconds.
    pub interval_ms: u64,
    /// How long an answer may take, in milliseconds.
    pub timeout_ms: u64,
    /// Successes in a row that bring a backend up.
    pub rise: u32,
    /// Failures in a row that take a backend down.
    pub fall: u32,
}

impl Default for Health {
    /// Fast enough for a test, and patient enough for a loaded machine.
    fn default() -> Self {
        Self {
            interval_ms: 300,
            timeout_ms: 300,
            rise: 2,
            fall: 3,
        }
    }
}

impl Service {
    /// A TCP service over the HTTP port of all backends of `topology`, with equal
    /// weights.
    #[must_use]
    pub fn http(name: &str, topology: &Topology, address: SocketAddr, mode: Mode) -> Self {
        Self {
            name: name.to_owned(),
            address,
            protocol: Protocol::Tcp,
            mode,
            backend_port: port::HTTP,
            weights: vec![100; topology.backends.len()],
            health: Health::default(),
            crossed: false,
            on: None,
            keys: String::new(),
            check: None,
            backend_keys: Vec::new(),
        }
    }

    /// A UDP service over a port of all backends of `topology`, with equal weights.
    #[must_use]
    pub fn udp(
        name: &str,
        topology: &Topology,
        address: SocketAddr,
        mode: Mode,
        backend_port: u16,
    ) -> Self {
        Self {
            protocol: Protocol::Udp,
            backend_port,
            ..Self::http(name, topology, address, mode)
        }
    }

    /// With other weights, the first backend's first.
    #[must_use]
    pub fn weights(self, weights: &[u32]) -> Self {
        Self {
            weights: weights.to_vec(),
            ..self
        }
    }

    /// On an address or prefix with a port, a range of ports or `*`, in place of a single
    /// address and port.
    #[must_use]
    pub fn on(self, address: &str) -> Self {
        Self {
            on: Some(address.to_owned()),
            ..self
        }
    }

    /// With this line of TOML, too.
    #[must_use]
    pub fn key(self, line: &str) -> Self {
        Self {
            keys: self.keys + line + "\n",
            ..self
        }
    }

    /// Checked by other means than a request over HTTP: keys of the health check but for
    /// its times and counts.
    #[must_use]
    pub fn checked_by(self, keys: &str) -> Self {
        Self {
            check: Some(keys.to_owned()),
            ..self
        }
    }

    /// The part of a configuration file that describes it.
    pub(crate) fn to_toml(&self, topology: &Topology) -> String {
        let Self {
            name,
            address,
            protocol,
            mode,
            keys,
            check,
            ..
        } = self;
        let address = match &self.on {
            Some(on) => on.clone(),
            None => address.to_string(),
        };
        let Health {
            interval_ms,
            timeout_ms,
            rise,
            fall,
        } = self.health;
        let usual = || {
            format!(
                "type = \"http\"\npath = \"/healthz\"\nport = {}",
                port::HTTP
            )
        };
        let check = check.clone().unwrap_or_else(usual);
        let mut toml = format!(
            r#"
[[service]]
name = "{name}"
address = "{address}"
protocol = "{protocol}"
mode = "{mode}"
{keys}
[service.health]
{check}
interval = "{interval_ms}ms"
timeout = "{timeout_ms}ms"
rise = {rise}
fall = {fall}
"#
        );
        let keys = self.backend_keys.iter().map(String::as_str);
        let keys = keys.chain(std::iter::repeat(""));
        for ((backend, weight), keys) in topology.backends.iter().zip(&self.weights).zip(keys) {
            let ip = backend.ip(self.address.is_ipv4() != self.crossed);
            let address = match (self.backend_port, ip) {
                (0, ip) if mode.replies_direct() => ip.to_string(),
                (0, IpAddr::V4(ip)) => format!("{ip}:*"),
                (0, IpAddr::V6(ip)) => format!("[{ip}]:*"),
                (port, ip) => SocketAddr::new(ip, port).to_string(),
            };
            write!(
                toml,
                "\n[[service.backend]]\naddress = \"{address}\"\nweight = {weight}\n{keys}\n"
            )
            .unwrap_or_else(|_| unreachable!("a string takes everything"));
        }
        toml
    }
}
