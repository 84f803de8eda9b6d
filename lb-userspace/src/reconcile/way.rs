//! Whether packets of a service reach a backend by its next hop.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    address::{PortRange, PortSet},
    neighbour::NextHop,
    state::{BackendPort, BackendSpec, Desired, Mode, ServiceSpec},
};

/// Why a mode cannot use a next hop that others could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// DSR: only the Ethernet address says which backend a packet is for, and the next
    /// hop is a gateway.
    Gateway(IpAddr),
    /// The kernel has no source address towards the backend, and none is configured.
    NoSource,
    /// Full NAT: every source port of the source address is a service's own.
    ServicePorts(IpAddr),
}

impl Obstacle {
    /// The word that stands in the place of `resolved` in the status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gateway(_) => "gateway",
            Self::NoSource => "no-source",
            Self::ServicePorts(_) => "service-ports",
        }
    }

    /// What is in the way, and how to mend it.
    #[must_use]
    pub fn reason(self) -> String {
        match self {
            Self::Gateway(gateway) => format!(
                "mode `dsr` needs the backend on an Ethernet of this host, but the way leads by \
                 the gateway {gateway}; use mode `ipip` or `gue`"
            ),
            Self::NoSource => "this host has no address of its own to send from; give it one, or \
                               the service a `source`"
                .to_owned(),
            Self::ServicePorts(source) => format!(
                "every source port of {source} is a service's own, so replies would be taken for \
                 requests; give the service another `source`"
            ),
        }
    }
}

/// Where packets to a backend come from: the balancer's address, and how many of its last
/// bits vary with the flow. `None` in modes that keep the client's, or where there is none.
pub(super) fn source(
    spec: &ServiceSpec,
    backend: &BackendSpec,
    hop: Option<&NextHop>,
) -> Option<(IpAddr, u8)> {
    match spec.mode {
        Mode::Nat | Mode::Dsr => None,
        Mode::FullNat | Mode::Ipip | Mode::Gue => match spec.source_towards(backend.address.ip) {
            Some(source) => Some((source.address(), source.host_bits())),
            None => Some((hop?.source?, 0)),
        },
    }
}

/// What keeps a service from using the next hop of a backend, if it is resolved.
pub fn obstacle(
    spec: &ServiceSpec,
    backend: &BackendSpec,
    hop: &NextHop,
    taken: &mut TakenPorts<'_>,
) -> Option<Obstacle> {
    match spec.mode {
        Mode::Nat => None,
        Mode::Dsr => hop
            .address
            .filter(|address| *address != backend.address.ip)
            .map(Obstacle::Gateway),
        Mode::FullNat | Mode::Ipip | Mode::Gue => {
            let Some((source, _)) = source(spec, backend, Some(hop)) else {
                return Some(Obstacle::NoSource);
            };
            if spec.mode != Mode::FullNat {
                return None;
            }
            let wanted = PortRange::new(*spec.source_ports.start(), *spec.source_ports.end())?;
            let taken = taken.of(source, spec.protocol.number());
            taken
                .covers(wanted)
                .then_some(Obstacle::ServicePorts(source))
        }
    }
}

/// The addresses, with the IP protocol number, where full NAT reaches backends at whichever
/// port the client asked for.
pub(super) fn on_every_port(desired: &Desired) -> BTreeSet<(IpAddr, u8)> {
    let mut every_port = BTreeSet::new();
    for spec in desired.services() {
        let backends = spec.backends.iter().filter(|backend| {
            spec.mode == Mode::FullNat && backend.address.port == BackendPort::Every
        });
        every_port.extend(backends.map(|backend| (backend.address.ip, spec.protocol.number())));
    }
    every_port
}

/// The ports of services on the balancer's own addresses: a reply to one would be taken
/// for a request, so full NAT must not use them as source ports.
pub struct TakenPorts<'a> {
    desired: &'a Desired,
    known: BTreeMap<(IpAddr, u8), PortSet>,
}

impl<'a> TakenPorts<'a> {
    /// Those of the services in `desired`.
    #[must_use]
    pub fn new(desired: &'a Desired) -> Self {
        Self {
            desired,
            known: BTreeMap::new(),
        }
    }

    /// Those of services on `source` with this IP protocol number.
    pub(super) fn of(&mut self, source: IpAddr, protocol: u8) -> &PortSet {
        self.known.entry((source, protocol)).or_insert_with(|| {
            let here = self.desired.services().filter(|spec| {
                spec.protocol.number() == protocol && spec.address.prefix.contains(source)
            });
            here.map(|spec| spec.address.ports).collect()
        })
    }
}
