//! Sequences of wanted states, applied to tables in memory.

use std::collections::BTreeSet;

use lb_common::addr::LinkPath;
use proptest::{
    collection::{btree_map, vec},
    prelude::*,
    sample::subsequence,
};

use super::*;
use crate::neighbour::NextHopState;
use crate::state::{Protocol, Scheduler, Timeouts, VirtualAddress};

/// An interface that the balancer is attached to.
const ETH0: u32 = 2;
/// One that it is not attached to.
const ETH9: u32 = 9;

/// Tables in memory that check after every step that no packet would meet half a change,
/// and that refuse a step when told to.
#[derive(Default)]
struct Checked {
    image: Image,
    /// Steps until one is refused.
    patience: Option<usize>,
}

#[derive(Debug, PartialEq)]
struct OutOfPatience;

impl Tables for Checked {
    type Error = OutOfPatience;

    fn apply(&mut self, op: &Op) -> Result<(), OutOfPatience> {
        if let Some(patience) = &mut self.patience {
            *patience = patience.checked_sub(1).ok_or(OutOfPatience)?;
        }
        let Ok(()) = self.image.apply(op);
        assert_sound(&self.image);
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
            pool == 0 || image.pools.contains(&pool),
            "{id}: {backend:?}"
        );
    }
    for frontend in image.services.keys() {
        assert!(image.vips.contains(&frontend.vip()), "{frontend:?}");
        assert!(
            frontend.port.is_some() || image.flags & Runtime::ANY_PORT != 0,
            "{frontend:?}"
        );
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
            next_hop: &|address| hops.get(&last_byte(address)),
            interfaces: &BTreeMap::from([(ETH0, Interface { mtu: 1_500 })]),
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
            address: None,
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
        address: VirtualAddress {
            ip: [10, 0, 0, byte].into(),
            port,
        },
        weight,
    }
}

fn service(number: u8, mode: Mode, port: Option<u16>, backends: Vec<BackendSpec>) -> ServiceSpec {
    ServiceSpec {
        name: format!("service-{number}"),
        address: VirtualAddress {
            ip: [192, 0, 2, number].into(),
            port,
        },
        protocol: Protocol::Tcp,
        mode,
        scheduler: Scheduler::Maglev,
        source: None,
        source_ports: 1_024..=32_767,
        timeouts: Timeouts::default(),
        health: None,
        backends,
    }
}

fn inputs(services: impl IntoIterator<Item = ServiceSpec>) -> Inputs {
    Inputs {
        desired: Desired::new(services).unwrap(),
        down: BTreeSet::new(),
        resolved: (0..=255).collect(),
        unattached: BTreeSet::new(),
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
    assert_eq!(image.pools, BTreeSet::from([1]));
}

#[test]
fn the_source_that_is_wanted_goes_before_that_of_the_route() {
    let mut spec = service(
        10,
        Mode::FullNat,
        Some(80),
        vec![backend_spec(11, Some(1), 1)],
    );
    spec.source = Some([10, 0, 0, 99].into());
    let image = image_of(&inputs([spec]));
    assert_eq!(image.backends[&1].source, words([10, 0, 0, 99].into()));
}

#[test]
fn nat_needs_neither_source_nor_ports() {
    let backends = vec![backend_spec(11, Some(8_080), 1)];
    let image = image_of(&inputs([service(10, Mode::Nat, Some(80), backends)]));
    assert_eq!(image.backends[&1].source, [0; 4]);
    assert_eq!(image.backends[&1].port_pool, 0);
    assert_eq!(image.pools, BTreeSet::new());
}

#[test]
fn the_way_out_must_be_an_attached_interface() {
    let mut inputs = web(&[100]);
    inputs.unattached.insert(11);
    let image = image_of(&inputs);
    assert_eq!(image.backends[&1].path, LinkPath::default());
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
    assert_eq!(image.pools, BTreeSet::from([1]), "flows have ports of it");

    // It comes back while its flows are still there: another id, the same ports.
    let image = reconcile(&mut reconciler, &web(&[1]), at(11));
    assert_eq!(image.backends[&2].port_pool, 1);
    let image = reconcile(&mut reconciler, &web(&[]), at(12));
    assert_eq!(image.pools, BTreeSet::from([1]));

    let released = reconciler.release(at(20), |id| id == 2, |_| false, |_| false);
    assert_eq!(released.backends, [1]);
    assert_eq!(released.pools, [1]);
    let image = reconcile(&mut reconciler, &web(&[1]), at(21));
    // Its pool is made anew, with all ports free; that of id 1 is still in the tables.
    assert_eq!(image.backends[&3].port_pool, 2);
    assert_eq!(image.pools, BTreeSet::from([2]));
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
    let any_service = (any::<bool>(), any::<bool>(), any::<bool>(), backends);
    let services = btree_map(1..=4_u8, any_service, 0..4).prop_map(|services| {
        // Those that swap have each other's address.
        services
            .into_iter()
            .map(|(number, (nat, any_port, swap, backends))| {
                let mode = if nat { Mode::Nat } else { Mode::FullNat };
                let port = if any_port { None } else { Some(80) };
                let mut spec = service(number, mode, port, backends);
                let host = if swap { 100 + number } else { number };
                spec.address.ip = [192, 0, 2, host].into();
                spec
            })
            .collect::<Vec<_>>()
    });
    let bytes: Vec<u8> = (1..=6).collect();
    (
        services,
        subsequence(bytes.clone(), 0..=6),
        subsequence(bytes.clone(), 0..=6),
        subsequence(bytes, 0..=2),
        any::<bool>(),
    )
        .prop_map(
            |(services, down, resolved, unattached, renumbered)| Inputs {
                desired: Desired::new(services).unwrap(),
                down: down.into_iter().collect(),
                resolved: resolved.into_iter().collect(),
                unattached: unattached.into_iter().collect(),
                renumbered,
            },
        )
}

/// What an image says apart from ids, so that those of reconcilers with different pasts
/// can be compared: all entries in words, and how many pools are in use.
fn without_ids(image: &Image) -> (Vec<String>, usize) {
    let mut lines = vec![format!("{} {:?}", image.flags, image.vips)];
    let mut pools = BTreeSet::new();
    for (frontend, service) in &image.services {
        let mode = service.mode;
        lines.push(format!("{frontend:?} mode {mode}"));
        let ring = image.rings.get(&service.id);
        for member in ring.into_iter().flat_map(|ring| &ring.members) {
            let (address, weight) = (member.address, member.weight);
            lines.push(format!("{frontend:?} member {address} {weight}"));
        }
        for backend in image.backends.values() {
            if backend.service == service.id {
                pools.extend(Some(backend.port_pool).filter(|pool| *pool != 0));
                let backend = Backend {
                    service: 0,
                    port_pool: 0,
                    ..*backend
                };
                lines.push(format!("{frontend:?} backend {backend:?}"));
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
        sequence in vec((any_inputs(), 0..40_usize, any::<bool>()), 1..8),
    ) {
        let (mut reconciler, mut tables) = (Reconciler::default(), Checked::default());
        let mut now = at(0);
        for (inputs, patience, sweep) in sequence {
            now += at(1);
            // Every other time something refuses a step in between.
            tables.patience = Some(patience);
            let _refused = inputs.reconcile(&mut reconciler, &mut tables, now);
            prop_assert_eq!(reconciler.image(), &tables.image);
            tables.patience = None;
            inputs.reconcile(&mut reconciler, &mut tables, now).unwrap();
            prop_assert_eq!(reconciler.image(), &tables.image);
            if sweep {
                now += at(1);
                // Flows use every third id.
                let in_use = |id: u32| id.is_multiple_of(3);
                for id in reconciler.release(now, in_use, in_use, in_use).backends {
                    prop_assert!(!in_use(id));
                    prop_assert!(!tables.image.backends.contains_key(&id));
                }
            }
            prop_assert_eq!(without_ids(&tables.image), without_ids(&image_of(&inputs)));
        }
    }
}
