//! Sequences of wanted states, applied to tables in memory.

use std::collections::BTreeSet;

use lb_common::{addr::LinkPath, guard::Guard, ring::RING_SIZE};
use proptest::{
    collection::{btree_map, vec},
    prelude::*,
    sample::{select, subsequence},
};

use super::*;
use crate::{
    address::{AddressPrefix, PortRange, PortSet},
    datapath::{Match, Source},
    neighbour::NextHopState,
    state::{
        BackendAddress, BackendPort, Protocol, QuicSpec, RateLimit, Scheduler, ServiceAddress,
    },
};

/// An interface that the balancer is attached to.
const ETH0: u32 = 2;
/// One that it is not attached to.
const ETH9: u32 = 9;

/// Tables in memory that check after every step that no packet would meet half a change,
/// and that refuse a step when told to.
#[derive(Default)]
struct Checked {
    image: Image,
    /// Backends that were removed, until their ids are released.
    removed: BTreeMap<u32, Backend>,
    /// Ids of services that have a ring in the table of those of the usual size, and in the
    /// other.
    rings: BTreeSet<(u32, bool)>,
    /// Steps until one is refused.
    patience: Option<usize>,
}

impl Checked {
    /// A daemon ends here. What the next one finds.
    fn found(&mut self) -> Found {
        let rings = std::mem::take(&mut self.image.rings).into_iter();
        let found = rings.map(|(id, ring)| (id, ring.size.get()));
        self.image.found_rings.extend(found);
        // The ports that are reserved are in use, as far as one can tell.
        for reserved in self.image.pools.values_mut() {
            *reserved = PortSet::default();
        }
        // Pools that no backend has are nowhere named.
        let backends = || self.image.backends.values().chain(self.removed.values());
        let named: BTreeSet<u32> = backends().map(|backend| backend.port_pool).collect();
        self.image.pools.retain(|id, _| named.contains(id));
        Found {
            image: self.image.clone(),
            removed: self.removed.clone(),
        }
    }
}

/// Tables that only remember the steps.
struct Steps(Vec<Op>);

impl Tables for Steps {
    type Error = std::convert::Infallible;

    fn apply(&mut self, op: &Op) -> Result<(), Self::Error> {
        self.0.push(op.clone());
        Ok(())
    }
}

#[derive(Debug, PartialEq)]
struct OutOfPatience;

impl Tables for Checked {
    type Error = OutOfPatience;

    fn apply(&mut self, op: &Op) -> Result<(), OutOfPatience> {
        if let Some(patience) = &mut self.patience {
            *patience = patience.checked_sub(1).ok_or(OutOfPatience)?;
        }
        match op {
            Op::SetBackend(id, _) => {
                assert!(!self.removed.contains_key(id), "{id} may be in use");
            }
            Op::SetRings(rings) => {
                let table = |(id, ring): &(u32, Ring)| (*id, ring.size == RingSize::DEFAULT);
                self.rings.extend(rings.iter().map(table));
            }
            Op::RemoveRings(rings) => {
                for (id, slots) in rings {
                    self.rings.remove(&(*id, *slots == RING_SIZE));
                }
            }
            Op::RemoveBackend(id) => {
                self.removed.insert(*id, self.image.backends[id]);
            }
            _ => {}
        }
        let begins = match op {
            Op::SetService(packets, _) => {
                Some(packets).filter(|packets| !self.image.services.contains_key(packets))
            }
            _ => None,
        };
        let Ok(()) = self.image.apply(op);
        assert_sound(&self.image);
        if let Some(packets) = begins {
            assert_reserved(&self.image, packets);
        }
        Ok(())
    }
}

/// Whatever is named is there.
fn assert_sound(image: &Image) {
    for (service, ring) in &image.rings {
        for member in &ring.members {
            let backend = image.backends.get(&member.id);
            let backend = backend.unwrap_or_else(|| panic!("{service} names {member:?}"));
            assert_eq!(backend.service, *service);
            assert_ne!(backend.state, BackendState::Resetting as u8);
        }
    }
    for (id, backend) in &image.server_ids {
        let named = image.backends.get(backend);
        let named = named.unwrap_or_else(|| panic!("{id:?} is of {backend}"));
        assert_eq!(named.service, id.service, "{id:?}");
    }
    for (packets, service) in &image.services {
        let is_quic = service.flags & Service::QUIC != 0;
        assert!(
            !is_quic || image.connection_ids.contains_key(&service.id()),
            "{packets:?}"
        );
        // A ring that was never made has no slot to look for.
        let ring = image.rings.get(&service.id());
        let size = ring.map_or(u32::MAX, |ring| ring.size.get());
        // One that has or gets the usual size finds its old ring in another table.
        let usual = [size, service.ring_size()].contains(&RING_SIZE);
        assert!(usual || service.ring_size() <= size, "{packets:?}");
        // Turns were counted for this ring.
        if takes_turns(service)
            && let Some(ring) = ring
        {
            let scheduler = service::Scheduler::from(ring.scheduler) as u8;
            let counts = Service {
                scheduler,
                ..*service
            };
            assert!(takes_turns(&counts), "{packets:?}");
            assert_eq!(service.ring_size(), size, "{packets:?}");
        }
        if service.flags & Service::GUARDED != 0 {
            let guard = image.guards[&service.id()];
            // What no prefix has is there as long as anything is looked for.
            let any = Source {
                service: service.id(),
                prefix: AddressPrefix::new([0; 4].into(), 0),
            };
            let is_listed = guard.flags & Guard::LISTED != 0;
            assert!(
                !is_listed || image.sources.contains_key(&any),
                "{packets:?}"
            );
        }
    }
    for (id, backend) in &image.backends {
        let ifindex = backend.path.ifindex;
        assert!(
            ifindex == 0 || image.interfaces.contains_key(&ifindex),
            "{id}: {backend:?}"
        );
        let pool = backend.port_pool;
        assert!(
            pool == 0 || image.pools.contains_key(&pool),
            "{id}: {backend:?}"
        );
    }
    for (address, vip) in &image.vips {
        let protocols = [(6, Vip::TCP), (17, Vip::UDP)];
        for (number, _) in protocols.iter().filter(|(_, flag)| vip.flags & flag != 0) {
            let has = |packets: &Match| match packets {
                Match::Port {
                    address: ip,
                    protocol,
                    ..
                } => AddressPrefix::from(*ip) == *address && protocol == number,
                Match::Ports {
                    vip: id, protocol, ..
                } => *id == vip.id && protocol == number,
            };
            assert!(image.services.keys().any(has), "{address}: {number}");
        }
    }
    for (address, vip) in &image.vips {
        let wide = vip.id != 0 || vip.flags & Vip::DROP_OTHER_PORTS != 0;
        assert!(!wide || image.flags & Runtime::WIDE != 0, "{address}");
        let prefix = !address.is_address();
        assert!(!prefix || image.flags & Runtime::PREFIXES != 0, "{address}");
    }
}

/// Whether new flows take slots that are counted.
fn takes_turns(service: &Service) -> bool {
    use service::Scheduler::{LeastConnections, RoundRobin};
    [RoundRobin, LeastConnections]
        .map(|s| s as u8)
        .contains(&service.scheduler)
}

/// The last source port of services of UDP, one less than that of TCP: an entry does not say
/// of which protocol it is, and may outlive its service.
const LAST_UDP_SOURCE_PORT: u16 = 32_766;

/// The port of a TCP service on a source address is never a source port.
fn assert_reserved(image: &Image, packets: &Match) {
    if let Match::Port {
        address,
        port,
        protocol: 6,
    } = packets
    {
        let is_tcp = |backend: &&Backend| backend.last_port != LAST_UDP_SOURCE_PORT;
        let backends = image.backends.values().filter(is_tcp);
        for backend in backends.filter(|backend| backend.port_pool != 0) {
            let is_source = backend.source == words(*address);
            let reserved = &image.pools[&backend.port_pool];
            assert!(!is_source || reserved.covers((*port).into()), "{packets:?}");
        }
    }
}

/// Everything that an image follows from.
#[derive(Clone, Debug)]
struct Inputs {
    desired: Desired,
    /// Backends whose health check fails, by the last byte of their address.
    down: BTreeSet<u8>,
    /// Backends whose neighbour is resolved.
    resolved: BTreeSet<u8>,
    /// Backends behind an interface that the balancer is not attached to.
    unattached: BTreeSet<u8>,
    /// Backends behind a gateway.
    routed: BTreeSet<u8>,
    /// Backends whose flows are reset, if they take no new ones.
    reset: BTreeSet<u8>,
    /// Whether the kernel has another source address towards backends than before.
    renumbered: bool,
}

impl Inputs {
    fn reconcile<T: Tables>(
        &self,
        reconciler: &mut Reconciler,
        tables: &mut T,
        now: Duration,
    ) -> Result<usize, Error<T::Error>> {
        let hops: BTreeMap<u8, NextHop> =
            (0..=255).map(|byte| (byte, self.next_hop(byte))).collect();
        let world = World {
            desired: &self.desired,
            is_up: &|_, backend| !self.down.contains(&last_byte(backend.address.ip)),
            share: &|_, _| slow_start::WHOLE,
            resets: &|_, backend| {
                !backend.takes_flows() && self.reset.contains(&last_byte(backend.address.ip))
            },
            waits: &|_| false,
            next_hop: &|address| hops.get(&last_byte(address)),
            interfaces: &BTreeMap::from([(
                ETH0,
                Outlet {
                    ifindex: ETH0,
                    mtu: 1_500,
                },
            )]),
        };
        reconciler.reconcile(tables, &world, now)
    }

    fn next_hop(&self, byte: u8) -> NextHop {
        let resolved = self.resolved.contains(&byte);
        let ifindex = if self.unattached.contains(&byte) {
            ETH9
        } else {
            ETH0
        };
        NextHop {
            state: if resolved {
                NextHopState::Resolved
            } else {
                NextHopState::NoNeighbour
            },
            address: self.routed.contains(&byte).then(|| [10, 0, 0, 254].into()),
            ifindex,
            interface: None,
            path: resolved.then(|| LinkPath::new(ifindex, [2, 0, 0, 0, 0, byte], [2; 6])),
            mtu: 1_500,
            source: Some([10, 0, 0, if self.renumbered { 2 } else { 1 }].into()),
        }
    }
}

fn last_byte(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    }
}

fn backend_spec(byte: u8, port: Option<u16>, weight: u32) -> BackendSpec {
    BackendSpec {
        weight,
        ..BackendSpec::new(BackendAddress {
            ip: [10, 0, 0, byte].into(),
            port: port.map_or(BackendPort::Unnamed, BackendPort::Number),
        })
    }
}

fn service(number: u8, mode: Mode, port: Option<u16>, backends: Vec<BackendSpec>) -> ServiceSpec {
    let address = ServiceAddress {
        prefix: IpAddr::from([192, 0, 2, number]).into(),
        ports: port.map_or(PortRange::ALL, PortRange::from),
    };
    ServiceSpec {
        backends,
        ..ServiceSpec::new(format!("service-{number}"), address, mode)
    }
}

fn inputs(services: impl IntoIterator<Item = ServiceSpec>) -> Inputs {
    Inputs {
        desired: Desired::new(services).unwrap(),
        down: BTreeSet::new(),
        resolved: (0..=255).collect(),
        unattached: BTreeSet::new(),
        routed: BTreeSet::new(),
        reset: BTreeSet::new(),
        renumbered: false,
    }
}

fn web(weights: &[u32]) -> Inputs {
    let backends = (11..)
        .zip(weights)
        .map(|(byte, weight)| backend_spec(byte, Some(8_080), *weight));
    inputs([service(10, Mode::FullNat, Some(80), backends.collect())])
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn pool_ids(image: &Image) -> Vec<u32> {
    image.pools.keys().copied().collect()
}

/// What a reconciler without a past makes of these inputs.
fn image_of(inputs: &Inputs) -> Image {
    let (mut reconciler, mut tables) = (Reconciler::default(), Image::default());
    inputs
        .reconcile(&mut reconciler, &mut tables, at(0))
        .unwrap();
    tables
}

#[test]
fn a_backend_has_what_forwarding_to_it_needs() {
    let image = image_of(&web(&[100]));
    let expected = Backend {
        path: LinkPath::new(ETH0, [2, 0, 0, 0, 0, 11], [2; 6]),
        mtu: 1_500,
        service: 1,
        state: BackendState::Up as u8,
        port: 8_080_u16.to_be(),
        address: words([10, 0, 0, 11].into()),
        source: words([10, 0, 0, 1].into()),
        port_pool: 1,
        first_port: 1_024,
        last_port: 32_767,
        ..Backend::default()
    };
    assert_eq!(image.backends, BTreeMap::from([(1, expected)]));
    assert_eq!(pool_ids(&image), [1]);
}

#[test]
fn the_source_that_is_wanted_goes_before_that_of_the_route() {
    let mut spec = service(
        10,
        Mode::FullNat,
        Some(80),
        vec![backend_spec(11, Some(1), 1)],
    );
    spec.source = Some(IpAddr::from([10, 0, 0, 99]).into());
    let image = image_of(&inputs([spec]));
    assert_eq!(image.backends[&1].source, words([10, 0, 0, 99].into()));
}

#[test]
fn nat_needs_neither_source_nor_ports() {
    let backends = vec![backend_spec(11, Some(8_080), 1)];
    let image = image_of(&inputs([service(10, Mode::Nat, Some(80), backends)]));
    assert_eq!(image.backends[&1].source, [0; 4]);
    assert_eq!(image.backends[&1].port_pool, 0);
    assert_eq!(pool_ids(&image), [0; 0]);
}

#[test]
fn the_way_out_must_be_an_attached_interface() {
    let mut inputs = web(&[100]);
    inputs.unattached.insert(11);
    let image = image_of(&inputs);
    assert_eq!(image.backends[&1].path, LinkPath::default());
}

/// A tunnel to one backend, of which the kernel's source address is 10.0.0.1.
fn tunnel(mode: Mode, backend: &str) -> ServiceSpec {
    let address = backend.parse().unwrap();
    let weight = 100;
    service(
        10,
        mode,
        Some(443),
        vec![BackendSpec {
            weight,
            ..BackendSpec::new(address)
        }],
    )
}

#[test]
fn tunnels_have_what_their_outer_header_needs() {
    for (mode, address, source, expected) in [
        (
            Mode::Ipip,
            "10.0.0.11",
            None,
            (Outer::Ipv4, 1_480, 0, "10.0.0.1", 0),
        ),
        (
            Mode::Ipip,
            "[2001:db8::11]",
            Some(("2001:db8:f::", 112)),
            (Outer::Ipv6, 1_460, 0, "2001:db8:f::", 0xffff),
        ),
        (
            Mode::Gue,
            "10.0.0.11",
            Some(("10.9.0.0", 24)),
            (Outer::Ipv4, 1_468, 6_080, "10.9.0.0", 0xff),
        ),
        (
            Mode::Gue,
            "[2001:db8::11]",
            Some(("2001:db8:f::9", 128)),
            (Outer::Ipv6, 1_448, 6_080, "2001:db8:f::9", 0),
        ),
        // The source is for backends of its family.
        (
            Mode::Gue,
            "10.0.0.11",
            Some(("2001:db8:f::", 112)),
            (Outer::Ipv4, 1_468, 6_080, "10.0.0.1", 0),
        ),
    ] {
        let mut spec = tunnel(mode, address);
        spec.source =
            source.map(|(source, length)| AddressPrefix::new(source.parse().unwrap(), length));
        let (outer, mtu, port, source, mask): (_, _, u16, &str, u16) = expected;
        let expected = Backend {
            path: LinkPath::new(ETH0, [2, 0, 0, 0, 0, 0x11], [2; 6]),
            mtu,
            service: 1,
            state: BackendState::Up as u8,
            outer: outer as u8,
            port: port.to_be(),
            address: words(spec.backends[0].address.ip),
            source: words(source.parse().unwrap()),
            source_mask: mask.to_be(),
            ..Backend::default()
        };
        let backend = image_of(&inputs([spec])).backends[&1];
        let expected = match expected.outer {
            1 => Backend {
                path: LinkPath::new(ETH0, [2, 0, 0, 0, 0, 11], [2; 6]),
                ..expected
            },
            _ => expected,
        };
        assert_eq!(backend, expected, "{mode} {address}");
    }
}

/// A TCP service by DSR with two backends.
fn dsr() -> ServiceSpec {
    let backends = [11, 12].map(|byte| backend_spec(byte, None, 100));
    service(10, Mode::Dsr, Some(80), backends.into())
}

#[test]
fn a_ring_has_the_size_that_its_service_says() {
    let (mut reconciler, mut tables) = (Reconciler::default(), Checked::default());
    for (now, size) in (0..).zip([65_537, 251, 1_009, 1_009]) {
        let mut spec = web(&[1, 1]).desired.services().next().unwrap().clone();
        spec.ring_size = size;
        inputs([spec])
            .reconcile(&mut reconciler, &mut tables, at(now))
            .unwrap();
        let image = &tables.image;
        assert_eq!(image.services.values().next().unwrap().ring_size(), size);
        assert_eq!(image.rings[&1].fill().owners.len(), size as usize);
    }
}

/// While one ring takes the place of another, new flows take no turns that were counted for
/// the other: that has fewer slots, or the turns are over one alone.
#[test]
fn no_turn_of_one_ring_is_taken_in_another() {
    use service::Scheduler::{Hash, Random, RoundRobin};
    let (mut reconciler, mut tables) = (Reconciler::default(), Checked::default());
    let mut bring = |now, scheduler, size| {
        let mut spec = web(&[1, 1]).desired.services().next().unwrap().clone();
        spec.scheduler = scheduler;
        spec.ring_size = size;
        let mut steps = Steps(Vec::new());
        let wanted = inputs([spec]);
        wanted
            .reconcile(&mut reconciler.clone(), &mut steps, at(now))
            .unwrap();
        wanted
            .reconcile(&mut reconciler, &mut tables, at(now))
            .unwrap();
        let seen = steps.0.into_iter().filter_map(|op| match op {
            Op::SetService(_, service) => Some((service.scheduler, service.ring_size())),
            Op::SetRings(_) => Some((u8::MAX, 0)),
            _ => None,
        });
        seen.collect::<Vec<_>>()
    };
    let ring = (u8::MAX, 0);
    let is = |scheduler, size| (scheduler as u8, size);
    assert_eq!(
        bring(0, Scheduler::RoundRobin, 65_537),
        [ring, is(RoundRobin, 65_537)]
    );
    let to_less = [is(Random, 65_537), ring, is(RoundRobin, 251)];
    assert_eq!(bring(1, Scheduler::RoundRobin, 251), to_less);
    let to_more = [is(Random, 251), ring, is(RoundRobin, 1_009)];
    assert_eq!(bring(2, Scheduler::RoundRobin, 1_009), to_more);
    let to_hash = [is(Random, 1_009), ring, is(Hash, 1_009)];
    assert_eq!(bring(3, Scheduler::Maglev, 1_009), to_hash);
    assert_eq!(
        bring(4, Scheduler::RoundRobin, 1_009),
        [ring, is(RoundRobin, 1_009)]
    );
}

#[test]
fn round_robin_has_a_ring_of_its_own() {
    let mut spec = dsr();
    spec.backends[0].weight = 50;
    let fill = |spec: &ServiceSpec| image_of(&inputs([spec.clone()])).rings[&1].fill();
    assert_eq!(fill(&spec).turns, 1);
    spec.scheduler = Scheduler::RoundRobin;
    let filled = fill(&spec);
    assert_eq!(filled.turns, 65_535, "a multiple of three");
    assert_eq!(filled.owners[..6], [2, 1, 2, 2, 1, 2]);
}

#[test]
fn the_port_of_the_tunnel_is_the_services_to_say() {
    let mut spec = tunnel(Mode::Gue, "10.0.0.11");
    spec.gue_port = 6_081;
    let image = image_of(&inputs([spec]));
    assert_eq!(image.backends[&1].port, 6_081_u16.to_be());
}

#[test]
fn only_dsr_cannot_go_by_a_gateway() {
    for (mode, members) in [(Mode::Dsr, 0), (Mode::Ipip, 1), (Mode::Gue, 1)] {
        let mut inputs = inputs([tunnel(mode, "10.0.0.11")]);
        let in_ring = |image: &Image| image.rings.get(&1).map_or(0, |ring| ring.members.len());
        assert_eq!(in_ring(&image_of(&inputs)), 1, "{mode}");
        inputs.routed.insert(11);
        let image = image_of(&inputs);
        assert_eq!(in_ring(&image), members, "{mode}");
        let has_path = image.backends[&1].path.ifindex != 0;
        assert_eq!(has_path, members == 1, "{mode}");
    }
}

#[test]
fn one_service_speaks_for_all_on_its_address() {
    let on = |number, protocol, ports: &str| {
        let mut spec = service(number, Mode::Dsr, None, Vec::new());
        spec.address = format!("192.0.2.0/24:{ports}").parse().unwrap();
        spec.protocol = protocol;
        spec
    };
    let vip = |specs: Vec<ServiceSpec>| {
        let image = image_of(&inputs(specs));
        let address = AddressPrefix::new([192, 0, 2, 0].into(), 24);
        assert_eq!(image.vips.keys().copied().collect::<Vec<_>>(), [address]);
        (image.vips[&address].flags, image.flags)
    };
    let both = [
        on(1, Protocol::Tcp, "443"),
        on(2, Protocol::Udp, "8000-8099"),
    ];
    let flags = Runtime::WIDE | Runtime::PREFIXES;
    assert_eq!(vip(both.to_vec()), (Vip::TCP | Vip::UDP | Vip::ECHO, flags));
    let mut dropping = both.to_vec();
    dropping[1].other_ports = OtherPorts::Drop;
    let expected = Vip::TCP | Vip::UDP | Vip::ECHO | Vip::DROP_OTHER_PORTS;
    assert_eq!(vip(dropping), (expected, flags));
    let mut silent = both.to_vec();
    silent[0].icmp_echo = false;
    assert_eq!(vip(silent), (Vip::TCP | Vip::UDP, flags));
}

#[test]
fn other_ports_are_looked_for_only_where_somebody_wants_it() {
    let mut spec = service(10, Mode::Nat, Some(80), Vec::new());
    assert_eq!(image_of(&inputs([spec.clone()])).flags, 0);
    spec.other_ports = OtherPorts::Drop;
    assert_eq!(image_of(&inputs([spec])).flags, Runtime::WIDE);
}

#[test]
fn the_datapath_is_told_how_flows_find_their_backends() {
    use crate::state::{Hash, Scheduler, Track};
    let entry = |change: &dyn Fn(&mut ServiceSpec)| {
        let backends = vec![backend_spec(11, None, 100), backend_spec(12, None, 50)];
        let mut spec = service(10, Mode::Dsr, Some(80), backends);
        change(&mut spec);
        let image = image_of(&inputs([spec]));
        let service = *image.services.values().next().unwrap();
        let backends: Vec<(u32, u32)> = image
            .backends
            .values()
            .map(|backend| (backend.weight, backend.max_flows))
            .collect();
        (service.scheduler, service.flags, backends)
    };
    let plain = vec![(0, 0), (0, 0)];
    let hashed = service::Scheduler::Hash as u8;
    assert_eq!(entry(&|_| {}), (hashed, 0, plain.clone()));
    let tracked = Service::TRACKED;
    for (scheduler, expected, backends) in [
        (
            Scheduler::RoundRobin,
            service::Scheduler::RoundRobin,
            &plain,
        ),
        (Scheduler::Random, service::Scheduler::Random, &plain),
        (
            Scheduler::LeastConnections,
            service::Scheduler::LeastConnections,
            &vec![(100, 0), (50, 0)],
        ),
    ] {
        let expected = (expected as u8, tracked, backends.clone());
        assert_eq!(entry(&|spec| spec.scheduler = scheduler), expected);
    }
    // A backend of weight 0 gets no client that remembers it.
    let affine = |spec: &mut ServiceSpec| {
        spec.scheduler = Scheduler::RoundRobin;
        spec.affinity = Some(Duration::from_secs(2));
        spec.backends[1].weight = 0;
    };
    let (scheduler, flags, backends) = entry(&affine);
    assert_eq!(scheduler, service::Scheduler::RoundRobin as u8);
    assert_eq!(flags, tracked | Service::AFFINE);
    assert_eq!(backends, [(1, 0), (0, 0)]);
    for (hash, flag) in [
        (Hash::Client, Service::BY_CLIENT),
        (Hash::ClientPort, Service::BY_CLIENT_PORT),
    ] {
        assert_eq!(
            entry(&|spec| spec.hash = hash),
            (hashed, flag, plain.clone())
        );
    }
    let track = |track| entry(&|spec| spec.track = Some(track));
    assert_eq!(track(Track::All), (hashed, tracked, plain.clone()));
    let udp = |track: Option<Track>| {
        entry(&|spec| {
            spec.protocol = Protocol::Udp;
            spec.track = track;
        })
    };
    assert_eq!(udp(None), (hashed, tracked, plain.clone()));
    assert_eq!(udp(Some(Track::None)), (hashed, 0, plain.clone()));
    let bounded = entry(&|spec| spec.backends[1].max_connections = Some(7));
    let flags = tracked | Service::BOUNDED;
    assert_eq!(bounded, (hashed, flags, vec![(0, 0), (0, 7)]));
    // Translated flows have entries anyway.
    let nat = entry(&|spec| {
        spec.mode = Mode::Nat;
        for backend in &mut spec.backends {
            backend.address.port = BackendPort::Number(80);
        }
    });
    assert_eq!(nat, (hashed, 0, plain));
}

#[test]
fn the_segment_size_goes_with_every_backend() {
    let backends = vec![backend_spec(11, Some(8_080), 100)];
    let mut spec = service(10, Mode::Nat, Some(80), backends);
    spec.max_segment_size = Some(1_400);
    let image = image_of(&inputs([spec]));
    let sizes: Vec<u16> = image
        .backends
        .values()
        .map(|backend| backend.max_segment_size)
        .collect();
    assert_eq!(sizes, [1_400]);
}

/// A service on the balancer's own address.
fn on_source(number: u8, ports: &str) -> ServiceSpec {
    let mut spec = service(number, Mode::Dsr, None, Vec::new());
    spec.address = format!("10.0.0.1:{ports}").parse().unwrap();
    spec
}

#[test]
fn ports_of_services_on_the_source_address_are_no_source_ports() {
    let full_nat = web(&[100]).desired.service("service-10").unwrap().clone();
    let mut reconciler = Reconciler::default();
    let mut tables = Checked::default();
    let mut reserved = |specs: &[ServiceSpec], seconds| {
        let inputs = inputs(specs.to_vec());
        inputs
            .reconcile(&mut reconciler, &mut tables, at(seconds))
            .unwrap();
        tables.image.pools[&1].clone()
    };
    let set = |ranges: &[(u16, u16)]| -> PortSet {
        let range = |(first, last): &(u16, u16)| PortRange::new(*first, *last).unwrap();
        ranges.iter().map(range).collect()
    };
    assert_eq!(reserved(std::slice::from_ref(&full_nat), 0), set(&[]));
    let mut udp = on_source(1, "53");
    udp.protocol = Protocol::Udp;
    let mut elsewhere = on_source(2, "54");
    elsewhere.address.prefix = IpAddr::from([10, 0, 0, 2]).into();
    let others = [full_nat.clone(), udp, elsewhere];
    assert_eq!(reserved(&others, 1), set(&[]));
    let one = on_source(3, "2000-2009");
    let mut wide = on_source(4, "443");
    wide.address.prefix = AddressPrefix::new([10, 0, 0, 0].into(), 8);
    wide.mode = Mode::Ipip;
    let two = [full_nat.clone(), one.clone(), wide];
    assert_eq!(reserved(&two, 2), set(&[(443, 443), (2_000, 2_009)]));
    assert_eq!(reserved(&[full_nat], 3), set(&[]));
    // Flows of a removed backend have ports of its pool still.
    assert_eq!(reserved(&[one], 4), set(&[(2_000, 2_009)]));
}

#[test]
fn full_nat_cannot_do_with_a_source_whose_every_port_is_a_services() {
    let full_nat = web(&[100]).desired.service("service-10").unwrap().clone();
    let members = |services: &[ServiceSpec]| {
        let image = image_of(&inputs(services.to_vec()));
        let ring = image.rings.values().find(|ring| !ring.members.is_empty());
        ring.map_or(0, |ring| ring.members.len())
    };
    assert_eq!(members(&[full_nat.clone(), on_source(1, "1024-32766")]), 1);
    assert_eq!(members(&[full_nat.clone(), on_source(1, "*")]), 0);
    let (a, b) = (on_source(1, "1-20000"), on_source(2, "20001-40000"));
    assert_eq!(members(&[full_nat, a, b]), 0);
}

#[test]
fn services_that_share_a_backend_share_its_ports() {
    let backends = vec![backend_spec(11, Some(8_080), 1)];
    let image = image_of(&inputs([
        service(10, Mode::FullNat, Some(80), backends.clone()),
        service(20, Mode::FullNat, Some(80), backends),
    ]));
    assert_eq!(image.backends.len(), 2);
    assert_eq!(image.pools.len(), 1);
}

#[test]
fn a_backend_on_every_port_shares_the_ports_of_its_address() {
    let every = BackendAddress {
        port: BackendPort::Every,
        ..backend_spec(11, Some(1), 1).address
    };
    let every = BackendSpec {
        weight: 1,
        ..BackendSpec::new(every)
    };
    let both = vec![
        backend_spec(11, Some(8_080), 1),
        backend_spec(12, Some(8_080), 1),
    ];
    let mut wide = service(20, Mode::FullNat, Some(80), vec![every]);
    wide.address.ports = PortRange::ALL;
    let pools = |specs: Vec<ServiceSpec>| -> Vec<u32> {
        let image = image_of(&inputs(specs));
        let backends = image.backends.values();
        backends.map(|backend| backend.port_pool).collect()
    };
    let web = service(10, Mode::FullNat, Some(80), both);
    assert_eq!(pools(vec![web.clone(), wide.clone()]), [1, 2, 1]);
    wide.protocol = Protocol::Udp;
    assert_eq!(pools(vec![web, wide]), [1, 2, 3]);
}

#[test]
fn a_backend_leaves_the_ring_by_health_by_weight_and_without_a_next_hop() {
    let mut inputs = web(&[100, 0, 100, 100]);
    inputs.down.insert(13);
    inputs.resolved.remove(&14);
    let image = image_of(&inputs);
    let members: Vec<u32> = image.rings[&1].members.iter().map(|m| m.id).collect();
    assert_eq!(members, [1]);
    let state = |id| image.backends[&id].state;
    assert_eq!(
        state(2),
        BackendState::Up as u8,
        "flows go on while it drains"
    );
    assert_eq!(state(3), BackendState::Down as u8);
}

/// Whatever its check says; and new flows never find it in between.
#[test]
fn flows_of_a_backend_are_reset_when_the_ring_no_longer_names_it() {
    let (mut reconciler, mut tables) = (Reconciler::default(), Checked::default());
    let mut inputs = web(&[100, 100]);
    let mut enter = |inputs: &Inputs, seconds| {
        let entered = inputs.reconcile(&mut reconciler, &mut tables, at(seconds));
        entered.unwrap();
        let image = &tables.image;
        (image.backends[&1].state, image.flags & Runtime::RESETTING)
    };
    let up = (BackendState::Up as u8, 0);
    let resetting = (BackendState::Resetting as u8, Runtime::RESETTING);
    inputs.reset.insert(11);
    assert_eq!(enter(&inputs, 1), up, "it takes flows");
    inputs.desired = web(&[0, 100]).desired;
    assert_eq!(enter(&inputs, 2), resetting);
    inputs.down.insert(11);
    assert_eq!(enter(&inputs, 3), resetting);
    inputs.down.clear();
    inputs.desired = web(&[100, 100]).desired;
    assert_eq!(enter(&inputs, 4), up);
}

#[test]
fn only_what_changed_is_written() {
    let mut reconciler = Reconciler::default();
    let mut tables = Image::default();
    let mut inputs = inputs((1..=50).map(|number| {
        let backends = (1..=20).map(|byte| backend_spec(byte, Some(8_080), 100));
        service(number, Mode::FullNat, Some(80), backends.collect())
    }));
    inputs
        .reconcile(&mut reconciler, &mut tables, at(0))
        .unwrap();
    let mut steps = |inputs: &Inputs| {
        inputs
            .reconcile(&mut reconciler, &mut tables, at(1))
            .unwrap()
    };
    assert_eq!(steps(&inputs), 0);
    inputs
        .desired
        .apply(crate::state::Change::SetBackend {
            service: "service-7".into(),
            backend: backend_spec(3, Some(8_080), 50),
        })
        .unwrap();
    assert_eq!(steps(&inputs), 1, "one ring");
    inputs.resolved.remove(&3);
    assert_eq!(
        steps(&inputs),
        51,
        "an entry of 50 services, and their rings"
    );
}

#[test]
fn server_ids_are_there_before_they_are_read_and_go_before_their_backend() {
    let named = |ids: [&str; 2], length| {
        let backends = (11..).zip(ids).filter(|(_, id)| !id.is_empty());
        let backends = backends.map(|(byte, id)| BackendSpec {
            server_ids: vec![id.parse().unwrap()],
            ..backend_spec(byte, Some(443), 1)
        });
        let mut spec = service(10, Mode::FullNat, Some(443), backends.collect());
        spec.protocol = Protocol::Udp;
        spec.quic = Some(QuicSpec {
            config_rotation: vec![0, 2],
            ..QuicSpec::new(length)
        });
        inputs([spec])
    };
    let (mut reconciler, mut tables) = (Reconciler::default(), Checked::default());
    let mut quic = |inputs: &Inputs| {
        let before = tables.image.clone();
        inputs
            .reconcile(&mut reconciler, &mut tables, at(0))
            .unwrap();
        let ops = diff(&before, &tables.image);
        let ops = ops.into_iter().filter(|op| {
            matches!(
                op,
                Op::SetServerId(..)
                    | Op::RemoveServerId(_)
                    | Op::SetConnectionIds(..)
                    | Op::RemoveConnectionIds(_)
                    | Op::RemoveBackend(_)
            )
        });
        ops.collect::<Vec<_>>()
    };
    let key = |bytes: &str| server_id_key(1, &bytes.parse().unwrap());
    let ids = |length| ConnectionIds {
        offset: 1,
        length,
        configurations: 0b101,
        reserved: 0,
    };
    let ops = quic(&named(["0a", "0b"], 1));
    let expected = [
        Op::SetServerId(key("0a"), 1),
        Op::SetServerId(key("0b"), 2),
        Op::SetConnectionIds(1, ids(1)),
    ];
    assert_eq!(ops, expected);
    // All are exchanged for longer ones, and a backend goes.
    let ops = quic(&named(["0a0a", ""], 2));
    let expected = [
        Op::SetServerId(key("0a0a"), 1),
        Op::SetConnectionIds(1, ids(2)),
        Op::RemoveServerId(key("0a")),
        Op::RemoveServerId(key("0b")),
        Op::RemoveBackend(2),
    ];
    assert_eq!(ops, expected);
    let mut without = named(["0a0a", ""], 2);
    let mut spec = without.desired.services().next().unwrap().clone();
    spec.quic = None;
    spec.backends[0].server_ids.clear();
    without.desired = Desired::new([spec]).unwrap();
    let expected = [Op::RemoveConnectionIds(1), Op::RemoveServerId(key("0a0a"))];
    assert_eq!(quic(&without), expected);
}

#[test]
fn a_ring_is_made_when_a_backend_takes_flows() {
    let mut reconciler = Reconciler::default();
    let mut tables = Checked::default();
    let mut inputs = web(&[100]);
    let mut rings = |inputs: &Inputs| {
        inputs
            .reconcile(&mut reconciler, &mut tables, at(0))
            .unwrap();
        let rings = tables.image.rings.values();
        rings.map(|ring| ring.members.len()).collect::<Vec<_>>()
    };
    inputs.down.insert(11);
    assert_eq!(rings(&inputs), [0; 0], "the service is there without one");
    inputs.down.clear();
    assert_eq!(rings(&inputs), [1]);
    inputs.down.insert(11);
    assert_eq!(rings(&inputs), [0], "what has members loses them");
}

#[test]
fn a_removed_backend_rests_until_no_flow_names_it() {
    let mut reconciler = Reconciler::default();
    let mut tables = Image::default();
    let mut reconcile = |reconciler: &mut Reconciler, inputs: &Inputs, now| {
        inputs.reconcile(reconciler, &mut tables, now).unwrap();
        tables.clone()
    };
    reconcile(&mut reconciler, &web(&[1]), at(0));
    let image = reconcile(&mut reconciler, &web(&[]), at(10));
    assert_eq!(image.backends, BTreeMap::new());
    assert_eq!(pool_ids(&image), [1], "flows have ports of it");

    // It comes back while its flows are still there: another id, the same ports.
    let image = reconcile(&mut reconciler, &web(&[1]), at(11));
    assert_eq!(image.backends[&2].port_pool, 1);
    let image = reconcile(&mut reconciler, &web(&[]), at(12));
    assert_eq!(pool_ids(&image), [1]);

    let released = reconciler.release(at(20), |id| id == 2, |_| false, |_| false);
    assert_eq!(released.backends, [1]);
    assert_eq!(released.pools, [1]);
    let image = reconcile(&mut reconciler, &web(&[1]), at(21));
    // Its pool is made anew, with all ports free; that of id 1 is still in the tables.
    assert_eq!(image.backends[&3].port_pool, 2);
    assert_eq!(pool_ids(&image), [2]);
    let image = reconcile(&mut reconciler, &web(&[1, 1]), at(22));
    assert_eq!(image.backends[&1].port_pool, 1);
}

#[test]
fn a_refused_change_can_be_taken_back() {
    let (before, after) = (web(&[1, 2, 3]), web(&[3, 2, 1, 4]));
    for patience in 0..10 {
        let (mut reconciler, mut tables) = (Reconciler::default(), Checked::default());
        before
            .reconcile(&mut reconciler, &mut tables, at(0))
            .unwrap();
        let wanted = tables.image.clone();
        tables.patience = Some(patience);
        let result = after.reconcile(&mut reconciler, &mut tables, at(1));
        assert_eq!(result.is_err(), patience < 3, "{patience}");
        assert_eq!(*reconciler.image(), tables.image);
        if result.is_err() {
            tables.patience = None;
            before
                .reconcile(&mut reconciler, &mut tables, at(2))
                .unwrap();
            assert_eq!(tables.image.backends, wanted.backends);
            assert_eq!(tables.image.rings, wanted.rings);
            // Flows may name the id that the new backend had for a moment.
            after
                .reconcile(&mut reconciler, &mut tables, at(3))
                .unwrap();
            let ids: Vec<u32> = tables.image.backends.keys().copied().collect();
            assert_eq!(ids, [1, 2, 3, 5]);
        }
    }
}

/// Those of the services that can be together.
fn desired(services: Vec<ServiceSpec>) -> Desired {
    let mut desired = Desired::default();
    for service in services {
        let _refused = desired.apply(crate::state::Change::AddService(Box::new(service)));
    }
    desired
}

fn any_inputs() -> impl Strategy<Value = Inputs> {
    let backends = vec((1..=6_u8, any::<bool>(), 0..=2_u32), 0..6).prop_map(|backends| {
        let unique: BTreeMap<_, _> = backends.into_iter().map(|(b, p, w)| ((b, p), w)).collect();
        unique
            .into_iter()
            .map(|((byte, port), weight)| {
                backend_spec(byte, Some(if port { 8_080 } else { 8_081 }), weight)
            })
            .collect::<Vec<_>>()
    });
    let modes = select(&[
        Mode::FullNat,
        Mode::FullNat,
        Mode::Nat,
        Mode::Dsr,
        Mode::Ipip,
        Mode::Gue,
    ]);
    let hosts = select(&[&[192, 0, 2], &[10, 0, 0]]);
    let ports = (0..4_usize, any::<bool>());
    let any_service = (modes, hosts, ports, any::<bool>(), any::<bool>(), backends);
    let services = btree_map(1..=4_u8, any_service, 0..4).prop_map(|services| {
        services
            .into_iter()
            .map(
                |(number, (mode, [a, b, c], (ports, wide), swap, drops, backends))| {
                    // Services on addresses of the balancer itself, and those that swap theirs.
                    let host = if swap { 100 + number } else { 1 };
                    let host = IpAddr::from([*a, *b, *c, host]);
                    let mut spec = service(number, mode, Some(80), backends);
                    let length = if wide { 31 } else { 32 };
                    spec.address.prefix = AddressPrefix::new(host, length);
                    let ranges = [
                        (80, 80),
                        (0, 65_535),
                        (1_000, 1_100 + u16::from(number)),
                        (7, 7),
                    ];
                    let (first, last) = ranges[ports];
                    spec.address.ports = PortRange::new(first, last).unwrap();
                    if swap {
                        spec.ring_size = if drops { 251 } else { 1_009 };
                    }
                    // All there are, also with a ring of another size.
                    let all = [
                        Scheduler::Maglev,
                        Scheduler::RoundRobin,
                        Scheduler::LeastConnections,
                        Scheduler::Random,
                    ];
                    spec.scheduler = all[ports];
                    if drops {
                        spec.other_ports = OtherPorts::Drop;
                        spec.icmp_echo = false;
                    }
                    let prefix = |length| AddressPrefix::new([198, 51, 100, number].into(), length);
                    match (wide, swap) {
                        (true, true) => {
                            spec.allow = vec![prefix(24)];
                            spec.deny = vec![prefix(32)];
                        }
                        (true, false) => spec.deny = vec![prefix(16), prefix(24)],
                        (false, true) => {
                            spec.limits.new_per_source = Some(RateLimit::new(10));
                        }
                        (false, false) => {}
                    }
                    for backend in &mut spec.backends {
                        if !mode.translates() {
                            backend.address.port = BackendPort::Unnamed;
                        }
                    }
                    spec.backends.dedup_by_key(|backend| backend.address);
                    if drops {
                        give_server_ids(&mut spec, swap);
                    }
                    spec
                },
            )
            .collect::<Vec<_>>()
    });
    let bytes: Vec<u8> = (1..=6).collect();
    (
        services,
        subsequence(bytes.clone(), 0..=6),
        subsequence(bytes.clone(), 0..=6),
        subsequence(bytes.clone(), 0..=2),
        subsequence(bytes.clone(), 0..=2),
        subsequence(bytes, 0..=3),
        any::<bool>(),
    )
        .prop_map(
            |(services, down, resolved, unattached, routed, reset, renumbered)| Inputs {
                desired: desired(services),
                down: down.into_iter().collect(),
                resolved: resolved.into_iter().collect(),
                unattached: unattached.into_iter().collect(),
                routed: routed.into_iter().collect(),
                reset: reset.into_iter().collect(),
                renumbered,
            },
        )
}

/// A service of QUIC whose backends have server IDs, shorter ones or longer.
fn give_server_ids(spec: &mut ServiceSpec, is_long: bool) {
    spec.protocol = Protocol::Udp;
    spec.source_ports = *spec.source_ports.start()..=LAST_UDP_SOURCE_PORT;
    spec.quic = Some(QuicSpec::new(if is_long { 2 } else { 1 }));
    for (index, backend) in spec.backends.iter_mut().enumerate() {
        let byte = last_byte(backend.address.ip);
        let number = format!("{byte:x}{index:x}");
        let number = if is_long { number.repeat(2) } else { number };
        backend.server_ids = vec![number.parse().unwrap()];
    }
}

/// What an image says apart from ids, so that those of reconcilers with different pasts
/// can be compared: all entries in words, and how many pools are in use.
fn without_ids(image: &Image) -> (Vec<String>, usize) {
    let vips = image.vips.iter().map(|(address, vip)| {
        let wide = vip.id != 0;
        format!("{address} {} {wide}", vip.flags)
    });
    let mut lines: Vec<String> = vips.collect();
    lines.push(format!("{}", image.flags));
    let addresses: BTreeMap<u32, AddressPrefix> = image
        .vips
        .iter()
        .map(|(address, vip)| (vip.id, *address))
        .collect();
    let mut pools = BTreeSet::new();
    for (packets, service) in &image.services {
        let (mode, size) = (service.mode, service.ring_size());
        let frontend = match packets {
            Match::Port { .. } => format!("{packets:?}"),
            Match::Ports {
                vip,
                protocol,
                ports,
            } => format!("{} {protocol} {ports:?}", addresses[vip]),
        };
        lines.push(format!("{frontend} mode {mode} slots {size}"));
        let guard = image.guards.get(&service.id());
        lines.push(format!(
            "{frontend} flags {} guard {guard:?}",
            service.flags
        ));
        let sources = image.sources.iter();
        for (source, is_allowed) in sources.filter(|(source, _)| source.service == service.id()) {
            lines.push(format!("{frontend} source {} {is_allowed}", source.prefix));
        }
        let ring = image.rings.get(&service.id());
        for member in ring.into_iter().flat_map(|ring| &ring.members) {
            let (address, weight) = (member.address, member.weight);
            lines.push(format!("{frontend} member {address} {weight}"));
        }
        let ids = image.connection_ids.get(&service.id());
        lines.push(format!("{frontend} {ids:?}"));
        for (id, backend) in &image.backends {
            if backend.service == service.id() {
                let server_ids = image.server_ids.iter();
                let server_ids: Vec<_> = server_ids
                    .filter(|(_, named)| *named == id)
                    .map(|(server_id, _)| (server_id.id, server_id.length))
                    .collect();
                let pool = Some(backend.port_pool).filter(|pool| *pool != 0);
                pools.extend(pool);
                let reserved = pool.map(|pool| &image.pools[&pool]);
                let backend = Backend {
                    service: 0,
                    port_pool: 0,
                    ..*backend
                };
                lines.push(format!(
                    "{frontend} backend {backend:?} {reserved:?} {server_ids:?}"
                ));
            }
        }
    }
    lines.sort_unstable();
    (lines, pools.len())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_was_before_the_tables_end_as_wanted(
        sequence in vec(
            (any_inputs(), 0..40_usize, any::<bool>(), any::<bool>()),
            1..8,
        ),
    ) {
        let (mut reconciler, mut tables) = (Reconciler::default(), Checked::default());
        let mut now = at(0);
        for (inputs, patience, sweep, restart) in sequence {
            now += at(1);
            if restart {
                reconciler = Reconciler::adopt(tables.found(), &inputs.desired, now);
            }
            // Every other time something refuses a step in between.
            tables.patience = Some(patience);
            let _refused = inputs.reconcile(&mut reconciler, &mut tables, now);
            prop_assert_eq!(reconciler.image(), &tables.image);
            tables.patience = None;
            inputs.reconcile(&mut reconciler, &mut tables, now).unwrap();
            prop_assert_eq!(reconciler.image(), &tables.image);
            for packets in tables.image.services.keys() {
                assert_reserved(&tables.image, packets);
            }
            if sweep {
                now += at(1);
                // Flows use every third id.
                let in_use = |id: u32| id.is_multiple_of(3);
                for id in reconciler.release(now, in_use, in_use, in_use).backends {
                    prop_assert!(!in_use(id));
                    prop_assert!(!tables.image.backends.contains_key(&id));
                    tables.removed.remove(&id);
                }
            }
            prop_assert_eq!(without_ids(&tables.image), without_ids(&image_of(&inputs)));
        }
    }

    /// Every restart is one without a change to what packets meet.
    #[test]
    fn the_next_daemon_finds_everything_under_its_id(
        sequence in vec(any_inputs(), 1..4),
    ) {
        let (mut reconciler, mut tables) = (Reconciler::default(), Checked::default());
        for inputs in &sequence {
            inputs.reconcile(&mut reconciler, &mut tables, at(1)).unwrap();
        }
        let inputs = sequence.last().unwrap();
        let rings = tables.image.rings.iter();
        let rings = rings.map(|(id, ring)| (*id, ring.size == RingSize::DEFAULT));
        prop_assert_eq!(&tables.rings, &rings.collect());
        let before = tables.image.clone();
        let resting: BTreeSet<u32> = reconciler.ids().backends.at_rest().collect();
        let mut reconciler = Reconciler::adopt(tables.found(), &inputs.desired, at(2));
        prop_assert_eq!(reconciler.ids().backends.at_rest().collect::<BTreeSet<_>>(), resting);
        let mut steps = Steps(Vec::new());
        inputs.reconcile(&mut reconciler, &mut steps, at(2)).unwrap();
        let harmless = |op: &Op| matches!(op, Op::SetRings(_) | Op::ReservePorts(..));
        prop_assert!(steps.0.iter().all(harmless), "{:?}", steps.0);
        for op in &steps.0 {
            tables.apply(op).unwrap();
        }
        // Of a pool, its name may be known no more, and then it just rests.
        tables.image.pools.clear();
        prop_assert_eq!(tables.image, Image { pools: BTreeMap::new(), ..before });
    }
}
