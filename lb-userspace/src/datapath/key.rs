//! Keys of the service tables, for either family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::service::{ServiceKey4, ServiceKey6};

/// An IPv4 address as the datapath keeps it.
#[must_use]
pub fn word(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// An IPv6 address as the datapath keeps it.
#[must_use]
pub fn words6(address: Ipv6Addr) -> [u32; 4] {
    zerocopy::transmute!(address.octets())
}

/// An address of either family as backends keep it: IPv4 in the first word.
#[must_use]
pub fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => [word(address), 0, 0, 0],
        IpAddr::V6(address) => words6(address),
    }
}

/// What clients of a service send to: the key of the service tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// The service address.
    pub address: IpAddr,
    /// The port; `None` for every port without a service of its own.
    pub port: Option<u16>,
    /// IP protocol number: 6 or 17.
    pub protocol: u8,
}

/// A [`Frontend`] in the form of the table of its family.
pub(super) enum ServiceKey {
    V4(ServiceKey4),
    V6(ServiceKey6),
}

impl Frontend {
    /// The address and protocol alone: the key of the tables of service addresses.
    #[must_use]
    pub fn vip(self) -> Self {
        Self { port: None, ..self }
    }

    pub(super) fn key(self) -> ServiceKey {
        let port = self.port.unwrap_or_default().to_be();
        match self.address {
            IpAddr::V4(address) => ServiceKey::V4(ServiceKey4 {
                address: word(address),
                port,
                protocol: self.protocol.into(),
            }),
            IpAddr::V6(address) => ServiceKey::V6(ServiceKey6 {
                address: words6(address),
                port,
                protocol: self.protocol.into(),
                reserved: 0,
            }),
        }
    }
}
