//! What is configured: services, their rings, backends and interfaces, as the daemon has
//! told the datapath.

use std::{collections::BTreeMap, net::IpAddr, ops::RangeInclusive, sync::Arc};

/// Everything that is configured.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Services.
    pub services: Vec<Service>,
    /// Backends by id.
    pub backends: BTreeMap<u32, Backend>,
    /// Interfaces that packets may leave by, and the largest IP packet that each takes.
    pub interfaces: BTreeMap<u32, u32>,
}

/// *Modes*: what the balancer changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Both addresses, both ports.
    FullNat,
    /// The destination.
    Nat,
    /// Ethernet addresses.
    Dsr,
    /// Wraps in IPv4 or IPv6.
    Ipip,
    /// Wraps in UDP.
    Gue,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 5] = [Self::FullNat, Self::Nat, Self::Dsr, Self::Ipip, Self::Gue];

    /// Whether replies go through the balancer.
    #[must_use]
    pub fn translates(self) -> bool {
        matches!(self, Self::FullNat | Self::Nat)
    }
}

/// An address, or all with the same first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// The lowest address.
    pub address: IpAddr,
    /// Bits that count.
    pub length: u8,
}

impl Prefix {
    /// One address.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        let length = if address.is_ipv4() { 32 } else { 128 };
        Self { address, length }
    }

    /// Whether it has this address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => (32, u128::from(u32::from(address))),
            IpAddr::V6(address) => (128, u128::from(address)),
        };
        let ((width, own), (other_width, other)) = (bits(self.address), bits(address));
        let rest = width - u32::from(self.length);
        let cut = |bits: u128| bits.checked_shr(rest).unwrap_or(0);
        width == other_width && cut(own) == cut(other)
    }
}

/// A service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Names it in counters. At least 1.
    pub id: u32,
    /// Where clients send to.
    pub address: Prefix,
    /// Ports; all for `*`.
    pub ports: RangeInclusive<u16>,
    /// IP protocol number: 6 or 17.
    pub protocol: u8,
    /// What the balancer changes.
    pub mode: Mode,
    /// `service.max-segment-size`.
    pub max_segment_size: Option<u16>,
    /// `other-ports = "drop"`.
    pub drop_other_ports: bool,
    /// `icmp-echo`.
    pub icmp_echo: bool,
    /// `allow`.
    pub allow: Vec<Prefix>,
    /// `deny`.
    pub deny: Vec<Prefix>,
    /// The burst of `limits.new-per-source`; how fast tokens come is said to the model.
    pub new_per_source: Option<u32>,
    /// The burst of `limits.new-per-service`.
    pub new_per_service: Option<u32>,
    /// Id of the backend of each slot, 0 for none.
    pub ring: Arc<[u32]>,
    /// `service.quic`.
    pub quic: Option<Quic>,
}

/// How connection IDs of QUIC name backends.
#[derive(Clone, Debug, Default)]
pub struct Quic {
    /// Bytes before the server ID.
    pub offset: usize,
    /// Bytes of the server ID.
    pub length: usize,
    /// Numbers of the configurations that are read.
    pub configurations: Vec<u8>,
    /// Ids of backends by server ID.
    pub server_ids: BTreeMap<Vec<u8>, u32>,
}

/// Whether a backend takes packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// It does.
    Up,
    /// It failed its checks.
    Down,
    /// Its drain is over, and what is left of its connections is reset.
    Resetting,
    /// It was removed.
    Removed,
}

/// A backend.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Id of the service that it belongs to.
    pub service: u32,
    /// Whether it takes packets.
    pub health: Health,
    /// The way to it; `None` while its neighbour is not resolved.
    pub path: Option<Path>,
    /// Largest IP packet from a client that fits the way to it, the outer headers
    /// taken off; `None` for no limit.
    pub mtu: Option<u32>,
    /// Its address: of a tunnel, the outer destination.
    pub address: IpAddr,
    /// Its port, `None` to keep the packet's. `gue`: the port of the tunnel.
    pub port: Option<u16>,
    /// `full-nat`: the balancer's address. Tunnels: the outer source.
    pub source: Option<IpAddr>,
    /// Tunnels: how many of the lowest bits of `source` are the flow's hash's.
    pub source_bits: u32,
    /// `full-nat`: source ports.
    pub source_ports: RangeInclusive<u16>,
    /// `full-nat`: names what its source ports are unique in.
    pub pool: u32,
}

/// How a frame reaches its next hop.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    /// The interface that it leaves by.
    pub ifindex: u32,
    /// Ethernet destination.
    pub dst: [u8; 6],
    /// Ethernet source.
    pub src: [u8; 6],
    /// VLAN tags, the outer first.
    pub tags: Vec<Tag>,
}

/// A VLAN tag without its priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag {
    /// Its type: 0x8100 or 0x88a8.
    pub kind: u16,
    /// VLAN identifier.
    pub vlan: u16,
}
