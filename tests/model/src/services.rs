//! *Services*: which one a packet is for.

use std::net::{IpAddr, SocketAddr};

use crate::world::{Prefix, Service, World};

/// What the services of an address have in common.
#[derive(Clone, Debug)]
pub struct Vip<'a> {
    services: Vec<&'a Service>,
}

/// "The most specific address decides": the services whose address is the longest prefix
/// of this one, if there are any.
#[must_use]
pub fn vip(world: &World, address: IpAddr) -> Option<Vip<'_>> {
    let containing = || {
        let services = world.services.iter();
        services.filter(|service| service.address.contains(address))
    };
    let best: Prefix = containing()
        .map(|service| service.address)
        .max_by_key(|prefix| prefix.length)?;
    let services = containing()
        .filter(|service| service.address == best)
        .collect();
    Some(Vip { services })
}

impl<'a> Vip<'a> {
    /// "And of its services the one with the fewest ports."
    #[must_use]
    pub fn service(&self, protocol: u8, port: u16) -> Option<&'a Service> {
        self.of_protocol(protocol)
            .filter(|service| service.ports.contains(&port))
            .min_by_key(|service| service.ports.len())
    }

    /// Whether a service has this protocol, or any where it could not be read.
    #[must_use]
    pub fn has(&self, protocol: Option<u8>) -> bool {
        protocol.is_none_or(|protocol| self.of_protocol(protocol).next().is_some())
    }

    /// "A TCP or UDP packet to another port of a service address is dropped if a service
    /// of this address says `other-ports = "drop"`."
    #[must_use]
    pub fn drops_other_ports(&self) -> bool {
        self.services.iter().any(|service| service.drop_other_ports)
    }

    /// *ICMP*: "Echo requests are answered, unless a service of this address says
    /// `icmp-echo = false`."
    #[must_use]
    pub fn echoes(&self) -> bool {
        self.services.iter().all(|service| service.icmp_echo)
    }

    fn of_protocol(&self, protocol: u8) -> impl Iterator<Item = &'a Service> {
        let services = self.services.iter().copied();
        services.filter(move |service| service.protocol == protocol)
    }
}

/// The service of what is sent to this address and port.
#[must_use]
pub fn find(world: &World, dst: SocketAddr, protocol: u8) -> Option<&Service> {
    vip(world, dst.ip())?.service(protocol, dst.port())
}
