//! What is to be checked, and by which way.
//!
//! In `dsr`, `ipip` and `gue` a check goes to the service address on the backend, by the way
//! that clients' packets take: so a backend that lacks the address, or does not unwrap, is
//! down. See [`lb_common::probe`].

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use lb_common::{
    probe::{self, Probe},
    service,
};

use super::Balancer;
use crate::{
    address::AddressPrefix,
    daemon::{chain, plane::Plane},
    datapath::words,
    flows::Lifetimes,
    health::{self, Target, passive::Watched},
    state::{BackendAddress, BackendSpec, HealthSpec, Protocol, ServiceSpec, Timeouts},
};

/// The way by which checks go as clients' packets do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// Nobody has needed it yet.
    Closed,
    /// Answers leave by the interface of this index.
    Open(u32),
    /// The kernel does not make it. Checks go to the backends' own addresses.
    Refused,
}

impl Passage {
    /// The interface that answers leave by.
    pub(super) const fn ifindex(self) -> Option<u32> {
        match self {
            Self::Open(ifindex) => Some(ifindex),
            Self::Closed | Self::Refused => None,
        }
    }
}

/// Whether checks of a backend go to the service address on it.
fn goes_to_service(spec: &ServiceSpec, health: &HealthSpec) -> bool {
    !spec.mode.translates() && health.probe.needs_port()
}

/// Whether connections of our own go there.
fn connects_to_service(spec: &ServiceSpec, health: &HealthSpec) -> bool {
    !spec.mode.translates() && is_watched(spec, health)
}

/// Whether the connections that clients make to a backend are watched.
fn is_watched(spec: &ServiceSpec, health: &HealthSpec) -> bool {
    health.passive && spec.protocol == Protocol::Tcp
}

impl<P: Plane> Balancer<P> {
    /// What is to be checked, if that may have changed since the last call.
    pub(in crate::daemon) fn new_targets(&mut self) -> Option<Vec<Target>> {
        if !std::mem::take(&mut self.checks_changed) {
            return None;
        }
        if self.passage == Passage::Closed && self.needs_passage() {
            self.open_passage();
        }
        let (targets, probes) = self.targets();
        self.follow_watched(&targets);
        if let Err(error) = self.plane.set_probes(probes) {
            tracing::error!(error = chain(&error), "health checks do not reach backends");
        }
        Some(targets)
    }

    fn needs_passage(&self) -> bool {
        self.desired.services().any(|spec| {
            let mut checks = spec.backends.iter().filter_map(|b| spec.health_of(b));
            checks.any(|health| goes_to_service(spec, health) || connects_to_service(spec, health))
        })
    }

    fn open_passage(&mut self) {
        self.passage = match self.plane.open_passage() {
            Ok(ifindex) => Passage::Open(ifindex),
            Err(error) => {
                tracing::error!(
                    error = chain(&error),
                    "health checks of modes `dsr`, `ipip` and `gue` go to the backends' own \
                     addresses: a backend without the service address is not noticed"
                );
                Passage::Refused
            }
        };
        // Answers may leave by it from now on.
        self.overdue = Some(Duration::ZERO);
    }

    /// What is to be checked, and how the datapath sends that off which goes to service
    /// addresses.
    pub(in crate::daemon) fn targets(&self) -> (Vec<Target>, BTreeMap<u32, Probe>) {
        let mut targets = Vec::new();
        let mut probes = BTreeMap::new();
        for spec in self.desired.services() {
            for backend in &spec.backends {
                let Some(health) = spec.health_of(backend) else {
                    continue;
                };
                let port = spec.checked_port(backend);
                if port.is_none() && health.probe.needs_port() {
                    continue;
                }
                let port = port.unwrap_or(0);
                let clients_port = spec
                    .clients_port(backend)
                    .filter(|_| is_watched(spec, health));
                let mut target = Target {
                    service: spec.name.clone(),
                    backend: backend.address,
                    address: SocketAddr::new(backend.address.ip, port),
                    service_address: None,
                    clients: clients_port
                        .filter(|_| spec.mode.translates())
                        .map(|port| SocketAddr::new(backend.address.ip, port)),
                    spec: health.clone(),
                };
                let (checks, connects) = (
                    goes_to_service(spec, health),
                    connects_to_service(spec, health),
                );
                if (checks || connects) && self.passage.ifindex().is_some() {
                    // Before it has an id, or a way leads to it, there is nothing to check.
                    let Some((id, probe)) = self.probe(spec, backend) else {
                        continue;
                    };
                    let service = first_host(spec.address.prefix);
                    let address = probe::address(id, service.is_ipv4());
                    if checks {
                        target.address = SocketAddr::new(address, port);
                        target.service_address = Some(SocketAddr::new(service, port));
                    }
                    target.clients = clients_port.map(|port| SocketAddr::new(address, port));
                    probes.insert(id, probe);
                }
                targets.push(target);
            }
        }
        (targets, probes)
    }

    /// Takes notice of the backends whose clients' connections are watched.
    fn follow_watched(&mut self, targets: &[Target]) {
        let ids = &self.reconciler.ids().backends;
        self.watched.clear();
        self.watched_names.clear();
        for target in targets.iter().filter(|target| target.clients.is_some()) {
            let name = (target.service.as_str().into(), target.backend);
            let Some(id) = ids.get(&name) else {
                continue;
            };
            let Some(service) = self.reconciler.ids().services.get(&name.0) else {
                continue;
            };
            let spec = self.desired.service(&target.service);
            self.watched.push(Watched {
                backend: id,
                service,
                is_answer_seen: spec.is_some_and(|spec| spec.mode.translates()),
            });
            let name = (target.service.clone(), target.backend);
            self.watched_names.insert(id, name);
        }
    }

    /// Whether the connections of any clients are watched.
    pub(in crate::daemon) fn is_watching(&self) -> bool {
        !self.watched.is_empty()
    }

    /// The backends that are doubted, by what became of clients' connections, and that are to
    /// be asked at once.
    pub(in crate::daemon) fn doubted(&mut self, now: Duration) -> Vec<(String, BackendAddress)> {
        let plane = &self.plane;
        let going_on = |id: u32| {
            // Packets first: so no SYN is taken for another packet.
            let counters = plane.counters(id).ok()?;
            let begun = plane.outcomes(id).begun;
            let others = begun.saturating_add(counters.ended_flows);
            Some(counters.packets.saturating_sub(others))
        };
        let doubted = self
            .watch
            .look(now, &self.watched, |id| plane.outcomes(id), going_on);
        let names = doubted
            .iter()
            .filter_map(|id| self.watched_names.get(id).cloned());
        let names: Vec<_> = names
            .filter(|name| self.health.get(name).is_some_and(|health| health.is_up))
            .collect();
        for (service, backend) in &names {
            tracing::debug!(%service, %backend, "clients seem to get no connection");
        }
        names
    }

    /// Whether a backend that is to be checked was up when this daemon began, if it was there.
    pub(in crate::daemon) fn was_up(&self, target: &Target) -> Option<bool> {
        let name = (target.service.clone(), target.backend);
        let health = self.health.get(&name)?;
        (self.adopted.contains(&name) && health.status == health::unknown()).then_some(health.is_up)
    }

    /// How checks reach the service address on a backend, whose id stands before it.
    fn probe(&self, spec: &ServiceSpec, backend: &BackendSpec) -> Option<(u32, Probe)> {
        let name = (spec.name.as_str().into(), backend.address);
        let id = self.reconciler.ids().backends.get(&name)?;
        let service = first_host(spec.address.prefix);
        let of_family = |source: &IpAddr| source.is_ipv4() == service.is_ipv4();
        let hop = self.hop(backend.address.ip)?;
        let source = hop.source.filter(of_family);
        let source = source.or_else(|| self.source_of_family(service))?;
        let probe = Probe {
            service: words(service),
            source: words(source),
            mode: service::Mode::from(spec.mode) as u8,
            reserved: [0; 3],
        };
        Some((id, probe))
    }

    /// An address of this host of the same family as a service address, where the backend is
    /// of the other.
    fn source_of_family(&self, service: IpAddr) -> Option<IpAddr> {
        let known = self.hops.values().filter_map(|hop| hop.source);
        let known = known.filter(|source| source.is_ipv4() == service.is_ipv4());
        known.min().or_else(|| source_towards(service))
    }

    /// How long the datapath knows the answers to checks: longer than any check waits.
    pub(super) fn lifetimes_of_checks(&self) -> Lifetimes {
        let specs = self.desired.services().flat_map(|spec| {
            let backends = spec.backends.iter();
            backends.filter_map(move |backend| spec.health_of(backend))
        });
        let longest = specs.map(HealthSpec::timeout).max().unwrap_or_default();
        let silence = longest + Duration::from_secs(10);
        let timeouts = Timeouts {
            unreplied: silence,
            tcp_established: silence,
            tcp_closing: silence,
            udp: silence,
        };
        Lifetimes::new(Protocol::Tcp, &timeouts, None)
    }
}

/// The address of a service that is checked: the first of a prefix that a host can have.
fn first_host(prefix: AddressPrefix) -> IpAddr {
    match prefix.address() {
        address if prefix.is_address() => address,
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() | 1).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() | 1).into(),
    }
}

/// The address that the kernel would send from to hosts out there. Nothing is sent.
fn source_towards(service: IpAddr) -> Option<IpAddr> {
    // The second is any address of the network at large, if the first is this host's own.
    let (any, far): (IpAddr, IpAddr) = match service {
        IpAddr::V4(_) => (
            Ipv4Addr::UNSPECIFIED.into(),
            Ipv4Addr::new(198, 41, 0, 4).into(),
        ),
        IpAddr::V6(_) => {
            let far = Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30);
            (Ipv6Addr::UNSPECIFIED.into(), far.into())
        }
    };
    [service, far].into_iter().find_map(|towards| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((towards, 9)).ok()?;
        let source = socket.local_addr().ok()?.ip();
        (source != service && !source.is_loopback() && !source.is_unspecified()).then_some(source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_prefix_its_first_host_is_checked() {
        let first = |text: &str, length| {
            first_host(AddressPrefix::new(text.parse().unwrap(), length)).to_string()
        };
        assert_eq!(first("192.0.2.10", 32), "192.0.2.10");
        assert_eq!(first("192.0.2.0", 24), "192.0.2.1");
        assert_eq!(first("2001:db8::", 64), "2001:db8::1");
    }
}
