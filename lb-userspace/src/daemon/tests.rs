//! The balancer on tables in memory, by a clock of its own.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    net::IpAddr,
    time::Duration,
};

use lb_common::{
    Runtime,
    addr::LinkPath,
    backend::{Backend, BackendState as Entry},
    counters::{Counters, Direction, DropKey},
    drop_reason::DropReason,
    outcome::Outcomes,
    service::Service,
};

use super::{
    balancer::{Attached, Attachment, Balancer},
    ledger::Meters,
    plane::Plane,
    sweeping::Swept,
};
use crate::{
    datapath::{self, AttachedMode, Outlet, Sum, XdpMode, words},
    flows::Report,
    health::{self, Target},
    neighbour::{self, Interface, NextHop, NextHopState},
    reconcile::{Found, Image, Op, Tables},
    state::{
        After, BackendAddress, BackendPort, BackendSpec, BackendState, Change, Desired, DrainPhase,
        DrainSpec, FlowFilter, Happening, HealthSpec, HealthStatus, Listener, Mode, OnDeadline,
        OnEmpty, Probe, Quorum, Refusal, Scheduler, ServiceSpec, Status,
    },
};

const ETH0: u32 = 2;
/// Index of the interface of health checks.
const PASSAGE: u32 = 77;

/// A datapath in memory.
#[derive(Default)]
struct Memory {
    image: Image,
    /// Backends that were removed.
    removed: BTreeMap<u32, Backend>,
    clock: u32,
    counters: HashMap<u32, Counters>,
    live: HashMap<u32, u32>,
    drops: BTreeMap<DropKey, u64>,
    sums: Vec<Sum>,
    pools_in_use: HashSet<u32>,
    /// Refuses every step.
    refuses: bool,
    /// Refuses to attach the program.
    refuses_to_attach: bool,
    /// What was attached and detached since the start, by index.
    attached: Vec<u32>,
    detached: Vec<u32>,
    probes: BTreeMap<u32, lb_common::probe::Probe>,
    outcomes: HashMap<u32, Outcomes>,
}

impl Tables for Memory {
    type Error = datapath::Error;

    fn apply(&mut self, op: &Op) -> datapath::Result<()> {
        if self.refuses {
            return Err(datapath::Error::Query {
                interface: "eth0".into(),
                source: io::Error::other("out of order"),
            });
        }
        if let Op::RemoveBackend(id) = op {
            self.removed.insert(*id, self.image.backends[id]);
        }
        let Ok(()) = self.image.apply(op);
        Ok(())
    }
}

impl Meters for Memory {
    fn counters(&self, backend: u32) -> datapath::Result<Counters> {
        Ok(self.counters.get(&backend).copied().unwrap_or_default())
    }

    fn live_flows(&self, backend: u32) -> u32 {
        self.live.get(&backend).copied().unwrap_or_default()
    }

    fn drops(&self) -> datapath::Result<BTreeMap<DropKey, u64>> {
        Ok(self.drops.clone())
    }

    fn forget_backend(&mut self, id: u32) -> datapath::Result<()> {
        self.counters.remove(&id);
        self.removed.remove(&id);
        Ok(())
    }

    fn clear_drops(&mut self, key: DropKey) -> datapath::Result<()> {
        self.drops.remove(&key);
        Ok(())
    }

    fn sums(&self) -> datapath::Result<Vec<Sum>> {
        Ok(self.sums.clone())
    }

    fn keep_sum(&mut self, sum: Sum) -> datapath::Result<()> {
        let is_of_another = |kept: &Sum| match (kept, sum) {
            (Sum::Ended(kept, _), Sum::Ended(id, _)) => *kept != id,
            (Sum::Former(kept, _), Sum::Former(id, _)) => *kept != id,
            (Sum::Drops(kept, _), Sum::Drops(key, _)) => *kept != key,
            _ => true,
        };
        self.sums.retain(is_of_another);
        let is_nothing = match sum {
            Sum::Ended(_, flows) => flows == 0,
            Sum::Former(_, counters) => counters == Counters::default(),
            Sum::Drops(_, packets) => packets == 0,
        };
        self.sums.extend((!is_nothing).then_some(sum));
        Ok(())
    }
}

impl Plane for Memory {
    fn attach(
        &mut self,
        name: &str,
        ifindex: u32,
        _mode: XdpMode,
    ) -> datapath::Result<AttachedMode> {
        if self.refuses_to_attach {
            return Err(datapath::Error::NoInterface { name: name.into() });
        }
        self.attached.push(ifindex);
        Ok(AttachedMode::Generic)
    }

    fn detach(&mut self, ifindex: u32) {
        self.detached.push(ifindex);
    }

    fn open_passage(&mut self) -> datapath::Result<u32> {
        if self.refuses_to_attach {
            return Err(datapath::Error::Passage {
                source: io::Error::other("out of order"),
            });
        }
        Ok(PASSAGE)
    }

    fn set_probes(
        &mut self,
        probes: BTreeMap<u32, lb_common::probe::Probe>,
    ) -> datapath::Result<()> {
        self.probes = probes;
        Ok(())
    }

    fn outcomes(&self, backend: u32) -> Outcomes {
        self.outcomes.get(&backend).copied().unwrap_or_default()
    }

    fn clock(&self) -> u32 {
        self.clock
    }

    fn set_clock(&mut self, tick: u32) -> datapath::Result<()> {
        self.clock = tick;
        Ok(())
    }

    fn is_pool_in_use(&self, pool: u32) -> bool {
        self.pools_in_use.contains(&pool)
    }

    fn settle(&mut self, _now: Duration, _idle: &dyn Fn(u32) -> Duration) -> datapath::Result<()> {
        Ok(())
    }

    fn swept(
        &mut self,
        _began: Duration,
        _report: &Report,
        _backends: &BTreeMap<u32, Backend>,
    ) -> datapath::Result<()> {
        Ok(())
    }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn address(byte: u8) -> BackendAddress {
    BackendAddress {
        ip: [10, 0, 0, byte].into(),
        port: BackendPort::Number(8_080),
    }
}

fn backend(byte: u8) -> BackendSpec {
    BackendSpec::new(address(byte))
}

fn tcp_check() -> HealthSpec {
    HealthSpec::new(Probe::Tcp)
}

fn web(health: Option<HealthSpec>, backends: &[u8]) -> ServiceSpec {
    ServiceSpec {
        health,
        backends: backends.iter().copied().map(backend).collect(),
        ..ServiceSpec::new("web", "192.0.2.10:80".parse().unwrap(), Mode::FullNat)
    }
}

fn hop(byte: u8) -> NextHop {
    NextHop {
        state: NextHopState::Resolved,
        address: Some(address(byte).ip),
        ifindex: ETH0,
        interface: Some("eth0".into()),
        path: Some(LinkPath::new(ETH0, [2, 0, 0, 0, 0, byte], [2; 6])),
        mtu: 1_500,
        source: Some([10, 0, 0, 1].into()),
    }
}

/// A balancer of one service on eth0, whose next hops are all known.
fn balancer(spec: ServiceSpec) -> Balancer<Memory> {
    let mut balancer = started(spec, Memory::default());
    for byte in 1..=20 {
        resolve(&mut balancer, byte, hop(byte));
    }
    balancer.reconcile_if_needed(at(0));
    balancer
}

/// A balancer of one service on eth0 that has just been started with these tables.
fn started(spec: ServiceSpec, mut memory: Memory) -> Balancer<Memory> {
    let attached = Attached {
        name: "eth0".into(),
        wanted: XdpMode::Auto,
        state: Attachment::On {
            ifindex: ETH0,
            mode: AttachedMode::Native,
        },
    };
    let desired = Desired::new([spec]).unwrap();
    let image = &mut memory.image;
    let rings = std::mem::take(&mut image.rings).into_iter();
    let found = rings.map(|(id, ring)| (id, ring.size.get()));
    image.found_rings.extend(found);
    let found = Found {
        image: image.clone(),
        removed: memory.removed.clone(),
    };
    let mut balancer = Balancer::new(memory, vec![attached], desired, found, at(0));
    balancer.neighbour(neighbour::Event::Interface(Interface {
        ifindex: ETH0,
        name: "eth0".into(),
        mac: Some([2; 6]),
        mtu: 1_500,
        up: true,
        bond: None,
    }));
    balancer
}

fn resolve(balancer: &mut Balancer<Memory>, byte: u8, hop: NextHop) {
    balancer.neighbour(neighbour::Event::NextHop {
        address: address(byte).ip,
        hop,
    });
}

fn check(balancer: &mut Balancer<Memory>, byte: u8, up: bool) {
    balancer.health(health::Event {
        service: "web".into(),
        backend: address(byte),
        up,
        changed: true,
        status: HealthStatus {
            last: if up { "ok" } else { "failing" }.into(),
            error: None,
            streak: 1,
            held: None,
        },
    });
    balancer.reconcile_if_needed(at(0));
}

/// Ids of the backends that get new flows.
fn ring(balancer: &Balancer<Memory>) -> Vec<u32> {
    let rings = &balancer.plane.image.rings;
    assert!(rings.len() <= 1);
    let members = rings.values().flat_map(|ring| &ring.members);
    members.map(|member| member.id).collect()
}

fn state(balancer: &Balancer<Memory>, index: usize) -> BackendState {
    balancer.status(at(0)).services[0].backends[index].state
}

/// A sweep that begins at `began` and finds entries of these backends.
fn sweep(balancer: &mut Balancer<Memory>, began: Duration, named: &[u32], ended: &[(u32, u64)]) {
    balancer.swept(Swept {
        began,
        result: Ok(Report {
            named: named.iter().copied().collect(),
            ended: ended.iter().copied().collect(),
            ..Report::default()
        }),
    });
    balancer.reconcile_if_needed(began);
}

fn new_flows(count: u64) -> Counters {
    Counters {
        new_flows: count,
        packets: 10 * count,
        ..Counters::default()
    }
}

fn add(byte: u8) -> Change {
    Change::AddBackend {
        service: "web".into(),
        backend: backend(byte),
    }
}

fn remove(byte: u8) -> Change {
    Change::RemoveBackend {
        service: "web".into(),
        address: address(byte),
    }
}

#[test]
fn a_checked_backend_serves_after_its_first_good_check() {
    let mut balancer = balancer(web(Some(tcp_check()), &[11, 12]));
    assert_eq!(ring(&balancer), [0_u32; 0]);
    let status = &balancer.status(at(0)).services[0].backends[0];
    assert_eq!(status.state, BackendState::Down);
    assert_eq!(status.health, health::unknown());
    check(&mut balancer, 12, false);
    check(&mut balancer, 11, true);
    assert_eq!(ring(&balancer), [1]);
    check(&mut balancer, 11, false);
    assert_eq!(ring(&balancer), [0_u32; 0]);
    assert_eq!(balancer.plane.image.backends[&1].state, Entry::Down as u8);
    assert_eq!(balancer.targets().0.len(), 2);
}

/// Else slots would have origins that no flow of theirs ever lived at, and a balancer that
/// takes over from another would send its flows there.
/// What has been told of since the last call.
fn told(listener: &mut Listener) -> Vec<Happening> {
    let news = listener.news();
    news.iter().map(|event| event.what.clone()).collect()
}

#[test]
fn the_health_of_a_backend_is_told_when_it_changes() {
    let mut balancer = balancer(web(Some(tcp_check()), &[11]));
    let mut listener = balancer.events.listen(After::Start);
    let health = |up| Happening::Health {
        service: "web".into(),
        backend: address(11).to_string(),
        up,
        error: None,
    };
    for (up, expected) in [
        (true, vec![health(true)]),
        (true, vec![]),
        (false, vec![health(false)]),
        (false, vec![]),
        (true, vec![health(true)]),
    ] {
        check(&mut balancer, 11, up);
        assert_eq!(told(&mut listener), expected);
    }
    // Nobody is told of what is checked no more.
    balancer.change(remove(11), at(1)).unwrap();
    check(&mut balancer, 11, false);
    assert_eq!(told(&mut listener), []);
}

#[test]
fn a_drain_is_told_of_from_its_beginning_to_its_end() {
    let mut balancer = balancer(web(None, &[11, 12]));
    let mut listener = balancer.events.listen(After::Now);
    let change = |balancer: &mut Balancer<Memory>, change, seconds| {
        let mut desired = balancer.desired.clone();
        desired.apply(change).unwrap();
        let before = balancer.want(desired, at(seconds)).unwrap();
        balancer.tell_of_drains(&before, at(seconds));
    };
    let phase = |phase, flows_left| Happening::Drain {
        service: "web".into(),
        backend: address(11).to_string(),
        phase,
        flows_left,
    };
    let ended = Happening::DrainEnded {
        service: "web".into(),
        backend: address(11).to_string(),
    };
    balancer.plane.live.insert(1, 5);
    change(&mut balancer, drain(Some(60)), 100);
    assert_eq!(told(&mut listener), [phase(DrainPhase::Draining, 5)]);
    // Another deadline is no other drain.
    change(&mut balancer, drain(Some(50)), 110);
    assert_eq!(told(&mut listener), []);
    balancer.plane.live.insert(1, 3);
    sweep(&mut balancer, at(151), &[1], &[]);
    assert_eq!(told(&mut listener), [phase(DrainPhase::Over, 3)]);
    balancer.plane.live.insert(1, 0);
    sweep(&mut balancer, at(152), &[], &[]);
    assert_eq!(told(&mut listener), [phase(DrainPhase::Drained, 0)]);
    change(&mut balancer, set(backend(11)), 160);
    assert_eq!(told(&mut listener), std::slice::from_ref(&ended));
    change(&mut balancer, drain(None), 170);
    change(&mut balancer, remove(11), 180);
    assert_eq!(told(&mut listener), [phase(DrainPhase::Drained, 0), ended]);
}

#[test]
fn the_first_ring_waits_for_news_of_all_backends() {
    let mut balancer = balancer(web(Some(tcp_check()), &[11, 12, 30]));
    check(&mut balancer, 11, true);
    check(&mut balancer, 12, true);
    check(&mut balancer, 30, true);
    assert_eq!(ring(&balancer), [0_u32; 0], "the way to one is not known");
    resolve(&mut balancer, 30, hop(30));
    balancer.reconcile_if_needed(at(0));
    assert_eq!(ring(&balancer), [1, 2, 3]);
    balancer.change(remove(12), at(0)).unwrap();
    balancer.change(add(13), at(0)).unwrap();
    assert_eq!(ring(&balancer), [1, 3], "others do not wait for a new one");
}

#[test]
fn the_first_ring_does_not_wait_for_ever() {
    let mut balancer = balancer(web(Some(tcp_check()), &[11, 12]));
    check(&mut balancer, 11, true);
    balancer.reconcile_if_needed(at(2));
    assert_eq!(ring(&balancer), [0_u32; 0]);
    balancer.reconcile_if_needed(at(3));
    assert_eq!(ring(&balancer), [1]);
}

#[test]
fn a_restart_changes_nothing_until_it_is_known_better() {
    let spec = || web(Some(tcp_check()), &[11, 12, 13]);
    let mut first = balancer(spec());
    check(&mut first, 11, true);
    check(&mut first, 12, true);
    first.change(remove(13), at(1)).unwrap();
    first.tick(at(5));
    let mut memory = first.plane;
    memory.counters.insert(1, new_flows(5));
    memory.counters.insert(3, new_flows(7));
    let before = memory.image.backends.clone();

    let mut second = started(web(Some(tcp_check()), &[11, 12]), memory);
    assert!(second.is_awaiting(at(0)));
    second.reconcile_if_needed(at(29));
    assert_eq!(
        second.plane.image.backends, before,
        "the ways are still good"
    );
    // What was removed rests, and its figures are not lost.
    assert_eq!(second.sweep(at(0)).gone, [3].into());
    assert_eq!(second.status(at(0)).services[0].new_flows, 12);
    // The flow clock goes on.
    second.tick(at(1));
    assert_eq!(second.plane.clock, 60);
    // One way is known; the other neighbour has not answered.
    resolve(&mut second, 11, hop(11));
    let unresolved = NextHop {
        state: NextHopState::NoNeighbour,
        path: None,
        ..hop(12)
    };
    resolve(&mut second, 12, unresolved);
    assert!(second.is_awaiting(at(1)));
    second.reconcile_if_needed(at(1));
    assert_eq!(second.plane.image.backends, before);
    // In the end it is out.
    second.reconcile_if_needed(at(3));
    assert_eq!(ring(&second), [1]);
    assert_eq!(second.plane.image.backends[&1], before[&1]);
    resolve(&mut second, 12, hop(12));
    second.reconcile_if_needed(at(3));
    assert_eq!(ring(&second), [1, 2], "both were up");
    assert_eq!(second.plane.image.backends, before);
    second.change(add(14), at(4)).unwrap();
    assert!(second.plane.image.backends.contains_key(&4), "3 rests");
}

#[test]
fn without_a_check_a_backend_serves_at_once() {
    let balancer = balancer(web(None, &[11]));
    assert_eq!(ring(&balancer), [1]);
    assert_eq!(state(&balancer, 0), BackendState::Up);
    assert_eq!(balancer.targets().0, []);
}

#[test]
fn the_check_goes_to_its_own_port() {
    let mut spec = tcp_check();
    spec.port = Some(9_000);
    let balancer = balancer(web(Some(spec), &[11]));
    assert_eq!(
        balancer.targets().0[0].address,
        "10.0.0.11:9000".parse().unwrap()
    );
}

#[test]
fn a_backend_that_served_unchecked_goes_on_until_a_check_fails() {
    let mut balancer = balancer(web(None, &[11]));
    let checked = web(Some(tcp_check()), &[11, 12]);
    balancer
        .change(Change::SetService(Box::new(checked)), at(1))
        .unwrap();
    assert_eq!(ring(&balancer), [1], "but the new one waits");
    check(&mut balancer, 11, false);
    assert_eq!(ring(&balancer), [0_u32; 0]);
}

#[test]
fn late_results_of_checks_are_ignored() {
    let mut balancer = balancer(web(Some(tcp_check()), &[11]));
    check(&mut balancer, 11, true);
    let unchecked = web(None, &[11]);
    balancer
        .change(Change::SetService(Box::new(unchecked)), at(1))
        .unwrap();
    check(&mut balancer, 11, false);
    check(&mut balancer, 19, true);
    assert_eq!(ring(&balancer), [1]);
}

#[test]
fn a_backend_without_a_next_hop_waits() {
    let mut balancer = balancer(web(None, &[11, 12]));
    let lost = NextHop {
        state: NextHopState::NoNeighbour,
        path: None,
        ..hop(12)
    };
    resolve(&mut balancer, 12, lost);
    balancer.reconcile_if_needed(at(1));
    assert_eq!(ring(&balancer), [1]);
    let status = balancer.status(at(0));
    assert_eq!(
        status.services[0].backends[1].next_hop.state,
        "no-neighbour"
    );
    resolve(&mut balancer, 12, hop(12));
    balancer.reconcile_if_needed(at(2));
    assert_eq!(ring(&balancer), [1, 2]);
}

/// Every start has backends whose neighbours have not answered yet.
#[test]
fn only_a_backend_that_stays_unresolved_is_warned_of() {
    let unresolved = |byte| NextHop {
        state: NextHopState::NoNeighbour,
        path: None,
        ..hop(byte)
    };
    let mut balancer = balancer(web(None, &[31, 32]));
    resolve(&mut balancer, 31, unresolved(31));
    resolve(&mut balancer, 32, unresolved(32));
    assert_eq!(balancer.unresolved(at(10)), [] as [IpAddr; 0]);
    resolve(&mut balancer, 31, hop(31));
    assert_eq!(balancer.unresolved(at(12)), [] as [IpAddr; 0]);
    assert_eq!(balancer.unresolved(at(13)), [address(32).ip]);
    assert_eq!(balancer.unresolved(at(20)), [] as [IpAddr; 0], "once");
}

#[test]
fn weight_zero_drains() {
    let mut balancer = balancer(web(None, &[11, 12]));
    let change = Change::SetBackend {
        service: "web".into(),
        backend: BackendSpec {
            weight: 0,
            ..backend(11)
        },
    };
    balancer.change(change, at(1)).unwrap();
    assert_eq!(ring(&balancer), [2]);
    assert_eq!(state(&balancer, 0), BackendState::Draining);
    assert_eq!(balancer.plane.image.backends[&1].state, Entry::Up as u8);
}

fn drain(seconds: Option<u64>) -> Change {
    Change::SetBackend {
        service: "web".into(),
        backend: BackendSpec {
            drain: Some(DrainSpec {
                deadline: seconds.map(at),
                on_deadline: OnDeadline::Keep,
            }),
            ..backend(11)
        },
    }
}

#[test]
fn a_drain_shows_what_is_left_until_it_is_taken_back() {
    let mut balancer = balancer(web(None, &[11, 12]));
    balancer.plane.live.insert(1, 10);
    balancer.change(drain(Some(60)), at(100)).unwrap();
    assert_eq!(ring(&balancer), [2]);
    assert_eq!(state(&balancer, 0), BackendState::Draining);
    assert_eq!(balancer.plane.image.backends[&1].state, Entry::Up as u8);
    balancer.plane.live.insert(1, 6);
    sweep(&mut balancer, at(110), &[1], &[]);

    let status = |balancer: &Balancer<Memory>, seconds| {
        let status = balancer.status(at(seconds));
        status.services[0].backends[0].drain.clone()
    };
    let drain_status = status(&balancer, 110).unwrap();
    assert_eq!(drain_status.phase, DrainPhase::Draining);
    assert_eq!(
        (drain_status.flows_at_start, drain_status.flows_left),
        (10, 6)
    );
    assert_eq!(drain_status.seconds_left, Some(50));
    // Another deadline counts from the beginning, too.
    balancer.change(drain(Some(30)), at(120)).unwrap();
    let drain_status = status(&balancer, 120).unwrap();
    assert_eq!(
        (drain_status.flows_at_start, drain_status.seconds),
        (10, 20)
    );
    assert_eq!(drain_status.seconds_left, Some(10));
    assert_eq!(status(&balancer, 130).unwrap().phase, DrainPhase::Over);
    balancer.plane.live.insert(1, 0);
    sweep(&mut balancer, at(140), &[], &[]);
    assert_eq!(status(&balancer, 140).unwrap().phase, DrainPhase::Drained);

    let back = Change::SetBackend {
        service: "web".into(),
        backend: backend(11),
    };
    balancer.change(back, at(150)).unwrap();
    assert_eq!(ring(&balancer), [1, 2]);
    assert_eq!(status(&balancer, 150), None);
}

/// A backend whose flows are reset after so many seconds.
fn resetting(byte: u8, seconds: u64) -> BackendSpec {
    BackendSpec {
        drain: Some(DrainSpec {
            deadline: Some(at(seconds)),
            on_deadline: OnDeadline::Reset,
        }),
        ..backend(byte)
    }
}

fn set(backend: BackendSpec) -> Change {
    Change::SetBackend {
        service: "web".into(),
        backend,
    }
}

/// The state of the first backend in the datapath.
fn entry(balancer: &Balancer<Memory>) -> u8 {
    let image = &balancer.plane.image;
    let entry = image.backends[&1].state;
    let is_told = image.flags & Runtime::RESETTING != 0;
    assert_eq!(is_told, entry == Entry::Resetting as u8);
    entry
}

fn drain_of(balancer: &Balancer<Memory>, seconds: u64) -> Option<(DrainPhase, Option<u64>)> {
    let status = balancer.status(at(seconds));
    let drain = status.services[0].backends[0].drain.as_ref();
    drain.map(|drain| (drain.phase, drain.seconds_left))
}

#[test]
fn flows_are_reset_at_the_deadline_until_the_backend_is_taken_back() {
    let mut balancer = balancer(web(None, &[11, 12]));
    balancer.plane.live.insert(1, 10);
    balancer.change(set(resetting(11, 60)), at(100)).unwrap();
    assert_eq!(entry(&balancer), Entry::Up as u8);
    assert_eq!(balancer.overdue(), Some(at(160)));
    balancer.reconcile_if_needed(at(159));
    assert_eq!(entry(&balancer), Entry::Up as u8);
    assert_eq!(
        drain_of(&balancer, 159),
        Some((DrainPhase::Draining, Some(1)))
    );

    balancer.reconcile_if_needed(at(160));
    assert_eq!(entry(&balancer), Entry::Resetting as u8);
    assert_eq!(balancer.overdue(), None);
    assert_eq!(ring(&balancer), [2]);
    assert_eq!(state(&balancer, 0), BackendState::Draining);
    assert_eq!(
        drain_of(&balancer, 160),
        Some((DrainPhase::Resetting, Some(0)))
    );
    // Whatever else changes, and when no flow is left: others may still speak.
    balancer.change(remove(12), at(161)).unwrap();
    balancer.plane.live.insert(1, 0);
    sweep(&mut balancer, at(170), &[], &[]);
    assert_eq!(drain_of(&balancer, 170).unwrap().0, DrainPhase::Drained);
    assert_eq!(entry(&balancer), Entry::Resetting as u8);

    // A later deadline lets flows go on; so does another end.
    balancer.change(set(resetting(11, 90)), at(180)).unwrap();
    assert_eq!(entry(&balancer), Entry::Up as u8);
    balancer.reconcile_if_needed(at(190));
    assert_eq!(entry(&balancer), Entry::Resetting as u8);
    balancer.change(drain(Some(90)), at(200)).unwrap();
    assert_eq!(entry(&balancer), Entry::Up as u8);
    balancer.change(set(resetting(11, 0)), at(201)).unwrap();
    assert_eq!(entry(&balancer), Entry::Resetting as u8);

    balancer.change(set(backend(11)), at(202)).unwrap();
    assert_eq!(entry(&balancer), Entry::Up as u8);
    assert_eq!(ring(&balancer), [1]);
    assert_eq!(drain_of(&balancer, 202), None);
}

#[test]
fn flows_are_reset_also_of_a_backend_whose_check_fails() {
    let mut balancer = balancer(web(Some(tcp_check()), &[11, 12]));
    check(&mut balancer, 11, true);
    check(&mut balancer, 12, true);
    balancer.change(set(resetting(11, 10)), at(0)).unwrap();
    check(&mut balancer, 11, false);
    assert_eq!(entry(&balancer), Entry::Down as u8);
    balancer.reconcile_if_needed(at(10));
    assert_eq!(entry(&balancer), Entry::Resetting as u8);
    balancer.change(set(backend(11)), at(20)).unwrap();
    assert_eq!(entry(&balancer), Entry::Down as u8);
}

#[test]
fn a_change_that_fails_begins_and_ends_no_drain() {
    let mut balancer = balancer(web(None, &[11, 12]));
    balancer.plane.refuses = true;
    balancer.change(set(resetting(11, 0)), at(1)).unwrap_err();
    assert_eq!(drain_of(&balancer, 1), None);
    balancer.plane.refuses = false;
    balancer.change(set(resetting(11, 0)), at(2)).unwrap();
    balancer.plane.refuses = true;
    balancer.change(set(backend(11)), at(3)).unwrap_err();
    balancer.plane.refuses = false;
    balancer.reconcile_if_needed(at(10));
    assert_eq!(entry(&balancer), Entry::Resetting as u8);
}

/// Before the deadline, after it, and where the file of the next daemon says something else.
#[test]
fn a_drain_goes_on_after_a_restart() {
    let begun = |now| {
        let mut spec = web(None, &[11, 12]);
        spec.backends[0] = resetting(11, 60);
        let mut balancer = balancer(spec);
        balancer.reconcile_if_needed(at(now));
        balancer.plane
    };
    let restarted = |memory: Memory, first: BackendSpec| {
        let mut spec = web(None, &[11, 12]);
        spec.backends[0] = first;
        let mut balancer = started(spec, memory);
        for byte in [11, 12] {
            resolve(&mut balancer, byte, hop(byte));
        }
        balancer.reconcile_if_needed(at(3));
        balancer
    };
    let (up, resets) = (Entry::Up as u8, Entry::Resetting as u8);

    // How much time had passed is not known.
    let mut second = restarted(begun(59), resetting(11, 60));
    assert_eq!(entry(&second), up);
    assert_eq!(drain_of(&second, 3), Some((DrainPhase::Drained, Some(57))));
    second.reconcile_if_needed(at(60));
    assert_eq!(entry(&second), resets);

    let mut second = restarted(begun(60), resetting(11, 60));
    assert_eq!(entry(&second), resets);
    assert_eq!(drain_of(&second, 3), Some((DrainPhase::Drained, Some(0))));
    assert_eq!(ring(&second), [2]);
    second.change(set(resetting(11, 70)), at(10)).unwrap();
    assert_eq!(entry(&second), up);
    second.reconcile_if_needed(at(70));
    assert_eq!(entry(&second), resets);

    for first in [
        backend(11),
        BackendSpec {
            drain: Some(DrainSpec {
                deadline: Some(at(60)),
                on_deadline: OnDeadline::Keep,
            }),
            ..backend(11)
        },
    ] {
        assert_eq!(entry(&restarted(begun(60), first)), up);
    }
}

#[test]
fn live_flows_are_exact_where_flows_have_entries() {
    let active = |mode: Mode, scheduler: Scheduler| {
        let mut spec = web(None, &[11, 12]);
        (spec.mode, spec.scheduler) = (mode, scheduler);
        if !mode.translates() {
            for backend in &mut spec.backends {
                backend.address.port = BackendPort::Unnamed;
            }
        }
        let mut balancer = balancer(spec);
        balancer.plane.counters = HashMap::from([(1, new_flows(10)), (2, new_flows(3))]);
        balancer.plane.live = HashMap::from([(1, 4), (2, 1)]);
        sweep(&mut balancer, at(1), &[1, 2], &[(1, 2)]);
        let service = balancer.status(at(1)).services.remove(0);
        let of_backend = service.backends[0].active_flows;
        (service.active_is_exact, service.active_flows, of_backend)
    };
    let maglev = Scheduler::Maglev;
    assert_eq!(active(Mode::FullNat, maglev), (true, 5, 4));
    assert_eq!(active(Mode::Dsr, Scheduler::RoundRobin), (true, 5, 4));
    assert_eq!(active(Mode::Dsr, maglev), (false, 11, 8));
}

#[test]
fn fail_open_leaves_drained_backends_alone() {
    let mut spec = web(None, &[11]);
    spec.on_empty = OnEmpty::FailOpen;
    let mut balancer = balancer(spec);
    balancer.change(drain(None), at(1)).unwrap();
    assert_eq!(ring(&balancer), [0_u32; 0]);
}

/// Weights of the backends that get new flows.
fn weights(balancer: &Balancer<Memory>) -> Vec<u32> {
    let rings = &balancer.plane.image.rings;
    let members = rings.values().flat_map(|ring| &ring.members);
    members.map(|member| member.weight).collect()
}

#[test]
fn a_backend_that_comes_back_starts_slowly() {
    let mut spec = web(Some(tcp_check()), &[11, 12]);
    spec.slow_start = Some(at(16));
    let mut balancer = balancer(spec);
    check(&mut balancer, 11, true);
    check(&mut balancer, 12, true);
    assert_eq!(
        weights(&balancer),
        [100, 100],
        "both were there from the beginning"
    );
    check(&mut balancer, 11, false);
    check(&mut balancer, 11, true);
    assert_eq!(weights(&balancer), [1_600, 25_600]);
    balancer.reconcile_if_needed(at(1));
    assert_eq!(weights(&balancer), [3_200, 25_600]);
    balancer.reconcile_if_needed(at(14));
    assert_eq!(weights(&balancer), [24_000, 25_600]);
    balancer.reconcile_if_needed(at(15));
    assert_eq!(weights(&balancer), [100, 100]);
}

#[test]
fn a_backend_that_is_added_or_taken_back_starts_slowly() {
    let mut spec = web(None, &[11]);
    spec.slow_start = Some(at(16));
    let mut balancer = balancer(spec);
    balancer.change(add(12), at(100)).unwrap();
    assert_eq!(weights(&balancer), [25_600, 1_600]);
    balancer.reconcile_if_needed(at(200));
    assert_eq!(weights(&balancer), [100, 100]);
    balancer.change(drain(None), at(300)).unwrap();
    assert_eq!(weights(&balancer), [100]);
    let back = Change::SetBackend {
        service: "web".into(),
        backend: backend(11),
    };
    balancer.change(back, at(400)).unwrap();
    assert_eq!(weights(&balancer), [1_600, 25_600]);
    balancer.change(remove(12), at(401)).unwrap();
    assert_eq!(ring(&balancer), [1]);
}

#[test]
fn flows_are_looked_for_by_the_ids_of_their_backends() {
    let balancer = balancer(web(None, &[11, 12]));
    let ids = |filter: FlowFilter| {
        let query = balancer.flows(&filter, at(5))?;
        assert_eq!(query.now, 50);
        Ok::<_, Refusal>(query.backends.into_keys().collect::<BTreeSet<u32>>())
    };
    let of = |service: Option<&str>, byte: Option<u8>| FlowFilter {
        service: service.map(Into::into),
        backend: byte.map(address),
        ..FlowFilter::default()
    };
    assert_eq!(ids(of(None, None)), Ok([1, 2].into()));
    assert_eq!(ids(of(Some("web"), Some(12))), Ok([2].into()));
    assert_eq!(ids(of(None, Some(13))), Ok([].into()));
    // Without a port, of whichever.
    let mut unnamed = of(Some("web"), Some(12));
    let port = unnamed.backend.iter_mut().map(|address| &mut address.port);
    port.for_each(|port| *port = BackendPort::Unnamed);
    assert_eq!(ids(unnamed), Ok([2].into()));
    for missing in [of(Some("mail"), None), of(Some("web"), Some(13))] {
        assert!(matches!(ids(missing), Err(Refusal::NotFound(_))));
    }
    for limit in [0, FlowFilter::MAX_LIMIT + 1] {
        let filter = FlowFilter {
            limit,
            ..FlowFilter::default()
        };
        assert!(matches!(ids(filter), Err(Refusal::Invalid(_))), "{limit}");
    }
}

#[test]
fn a_lower_tier_stands_in() {
    let mut spec = web(Some(tcp_check()), &[11, 12, 13]);
    spec.backends[2].priority = 1;
    let mut balancer = balancer(spec);
    for byte in [11, 12, 13] {
        check(&mut balancer, byte, true);
    }
    assert_eq!(ring(&balancer), [1, 2]);
    check(&mut balancer, 11, false);
    assert_eq!(ring(&balancer), [2]);
    check(&mut balancer, 12, false);
    assert_eq!(ring(&balancer), [3]);
}

#[test]
fn a_service_without_a_backend_may_fail_open() {
    let mut spec = web(Some(tcp_check()), &[11, 12]);
    spec.on_empty = OnEmpty::FailOpen;
    let mut balancer = balancer(spec);
    assert_eq!(ring(&balancer), [1, 2], "nothing is known of them");
    check(&mut balancer, 11, true);
    check(&mut balancer, 12, false);
    assert_eq!(ring(&balancer), [1]);
    check(&mut balancer, 11, false);
    assert_eq!(ring(&balancer), [1, 2]);
    assert_eq!(state(&balancer, 0), BackendState::Down);
}

#[test]
fn a_change_that_the_datapath_refuses_is_not_made() {
    let mut balancer = balancer(web(None, &[11]));
    balancer.plane.refuses = true;
    let refusal = balancer.change(add(12), at(1)).unwrap_err();
    assert!(
        matches!(&refusal, Refusal::Failed(why) if why.contains("out of order")),
        "{refusal:?}"
    );
    assert_eq!(balancer.desired.service("web").unwrap().backends.len(), 1);

    // Later the datapath is brought to what is wanted, which is as before.
    balancer.plane.refuses = false;
    balancer.reconcile_if_needed(at(10));
    assert_eq!(ring(&balancer), [1]);
    balancer.change(add(12), at(11)).unwrap();
    assert_eq!(ring(&balancer).len(), 2);
}

#[test]
fn a_refused_change_leaves_the_health_as_it_was() {
    let mut balancer = balancer(web(Some(tcp_check()), &[11]));
    check(&mut balancer, 11, false);
    balancer.plane.refuses = true;
    let unchecked = Change::SetService(Box::new(web(None, &[11])));
    balancer.change(unchecked, at(1)).unwrap_err();
    assert_eq!(state(&balancer, 0), BackendState::Down);
}

#[test]
fn what_was_missed_is_made_up_for() {
    let mut balancer = balancer(web(None, &[11, 12]));
    balancer.plane.refuses = true;
    resolve(
        &mut balancer,
        12,
        NextHop {
            path: None,
            ..hop(12)
        },
    );
    balancer.reconcile_if_needed(at(1));
    balancer.plane.refuses = false;
    balancer.reconcile_if_needed(at(1));
    assert_eq!(ring(&balancer), [1, 2], "not at once");
    balancer.reconcile_if_needed(at(2));
    assert_eq!(ring(&balancer), [1]);
}

#[test]
fn a_service_keeps_the_figures_of_backends_that_it_lost() {
    let mut balancer = balancer(web(None, &[11, 12]));
    balancer.plane.counters = HashMap::from([(1, new_flows(5)), (2, new_flows(7))]);
    let key = |backend| DropKey {
        service: 1,
        backend,
        reason: DropReason::TooBig as u16,
        direction: Direction::Reply as u16,
        reserved: 0,
    };
    balancer.plane.drops = BTreeMap::from([(key(1), 3), (key(2), 4)]);
    let figures = |status: &Status| {
        let service = &status.services[0];
        let drops = service.drops.iter().map(|drop| drop.packets).sum::<u64>();
        let all_drops = status.drops["too-big"];
        (
            (
                service.packets,
                service.new_flows,
                service.new_flows - service.ended_flows,
            ),
            (drops, all_drops),
        )
    };
    assert_eq!(figures(&balancer.status(at(0))), ((120, 12, 12), (7, 7)));
    sweep(&mut balancer, at(1), &[1, 2], &[(1, 2)]);
    assert_eq!(figures(&balancer.status(at(0))), ((120, 12, 10), (7, 7)));

    balancer.change(remove(11), at(2)).unwrap();
    assert_eq!(balancer.sweep(at(2)).gone, HashSet::from([1]));
    assert_eq!(figures(&balancer.status(at(0))), ((120, 12, 10), (7, 7)));
    // The sweep takes its flows away; then the id rests no more.
    sweep(&mut balancer, at(3), &[1, 2], &[(1, 3)]);
    assert_eq!(figures(&balancer.status(at(0))), ((120, 12, 7), (7, 7)));
    sweep(&mut balancer, at(4), &[2], &[]);
    assert_eq!(figures(&balancer.status(at(0))), ((120, 12, 7), (7, 7)));
    assert_eq!(balancer.plane.counters.keys().collect::<Vec<_>>(), [&2]);
    assert_eq!(balancer.plane.drops.len(), 1);

    // Who has the id next begins at zero.
    balancer.change(add(13), at(5)).unwrap();
    resolve(&mut balancer, 13, hop(13));
    balancer.reconcile_if_needed(at(5));
    assert_eq!(ring(&balancer), [2, 1]);
    let status = balancer.status(at(0));
    assert_eq!(status.services[0].backends[1].new_flows, 0);
    assert_eq!(figures(&status), ((120, 12, 7), (7, 7)));

    // A daemon after this one goes on with all of them,
    sweep(&mut balancer, at(6), &[2], &[(2, 1)]);
    let mut second = started(web(None, &[12, 13]), balancer.plane);
    assert_eq!(figures(&second.status(at(0))), ((120, 12, 6), (7, 7)));
    assert_eq!(second.status(at(0)).services[0].backends[0].ended_flows, 1);
    // also when the service is gone.
    second
        .change(Change::RemoveService("web".into()), at(7))
        .unwrap();
    for seconds in 8..12 {
        sweep(&mut second, at(seconds), &[], &[]);
    }
    assert_eq!(second.status(at(0)).drops["too-big"], 7);
    let third = started(web(None, &[11]), second.plane);
    assert_eq!(figures(&third.status(at(0))), ((0, 0, 0), (0, 7)));
    let of_all = DropKey {
        service: 0,
        ..key(0)
    };
    assert_eq!(third.plane.sums, [Sum::Drops(of_all, 7)]);
}

/// Figures that a daemon left which was killed before it could forget them go to nobody else.
#[test]
fn sums_of_what_is_not_there_are_forgotten() {
    let key = DropKey {
        service: 9,
        ..DropKey::overflow(DropReason::TooBig as u16, Direction::Reply as u16)
    };
    let memory = Memory {
        sums: vec![
            Sum::Ended(4, 2),
            Sum::Former(9, new_flows(3)),
            Sum::Drops(key, 5),
        ],
        ..Memory::default()
    };
    let balancer = started(web(None, &[11]), memory);
    let of_all = DropKey { service: 0, ..key };
    assert_eq!(balancer.plane.sums, [Sum::Drops(of_all, 5)]);
    assert_eq!(balancer.status(at(0)).drops["too-big"], 5);
}

#[test]
fn another_service_of_the_same_name_begins_at_zero() {
    let mut balancer = balancer(web(None, &[11]));
    balancer.plane.counters = HashMap::from([(1, new_flows(5))]);
    balancer
        .change(Change::RemoveService("web".into()), at(1))
        .unwrap();
    balancer
        .change(Change::AddService(Box::new(web(None, &[11]))), at(2))
        .unwrap();
    assert_eq!(balancer.status(at(0)).services[0].new_flows, 0);

    // Nor does one that has its id: not before all its flows are gone,
    let add = |name: &str, byte| {
        let mut spec = web(None, &[]);
        spec.name = name.into();
        spec.address.prefix = IpAddr::from([192, 0, 2, byte]).into();
        Change::AddService(Box::new(spec))
    };
    sweep(&mut balancer, at(3), &[1], &[]);
    balancer.change(add("a", 20), at(3)).unwrap();
    // when its figures are forgotten.
    sweep(&mut balancer, at(4), &[], &[]);
    sweep(&mut balancer, at(5), &[], &[]);
    balancer.change(add("b", 21), at(5)).unwrap();
    let services = &balancer.plane.image.services;
    let ids: Vec<u32> = services.values().map(Service::id).collect();
    assert_eq!(ids, [2, 3, 1], "web, a, b");
    for service in balancer.status(at(0)).services {
        assert_eq!(service.new_flows, 0, "{}", service.name);
    }
}

#[test]
fn a_port_pool_stays_while_a_port_of_it_is_in_use() {
    let mut balancer = balancer(web(None, &[11]));
    balancer.plane.pools_in_use.insert(1);
    balancer.change(remove(11), at(1)).unwrap();
    sweep(&mut balancer, at(2), &[], &[]);
    assert!(balancer.plane.image.pools.contains_key(&1));
    balancer.plane.pools_in_use.clear();
    sweep(&mut balancer, at(3), &[], &[]);
    assert_eq!(balancer.plane.image.pools, BTreeMap::new());
}

#[test]
fn what_keeps_a_mode_from_using_a_next_hop_is_shown() {
    let mut dsr = web(None, &[11]);
    dsr.mode = Mode::Dsr;
    dsr.backends[0].address.port = BackendPort::Unnamed;
    let mut balancer = balancer(dsr);
    let next_hop = |balancer: &Balancer<Memory>| {
        balancer.status(at(0)).services[0].backends[0]
            .next_hop
            .clone()
    };
    assert_eq!(next_hop(&balancer).state, "resolved");
    assert_eq!(next_hop(&balancer).error, None);

    let routed = NextHop {
        address: Some([10, 0, 0, 254].into()),
        ..hop(11)
    };
    resolve(&mut balancer, 11, routed.clone());
    balancer.reconcile_if_needed(at(1));
    assert_eq!(ring(&balancer), [0_u32; 0]);
    assert_eq!(next_hop(&balancer).state, "gateway");
    let error = next_hop(&balancer).error.unwrap();
    assert!(error.contains("10.0.0.254"), "{error}");

    let change = |balancer: &mut Balancer<Memory>, mode| {
        let mut spec = web(None, &[11]);
        spec.mode = mode;
        spec.backends[0].address.port = match mode {
            Mode::FullNat => BackendPort::Number(80),
            _ => BackendPort::Unnamed,
        };
        let set = Change::SetService(Box::new(spec));
        balancer.change(set, at(2)).unwrap();
        next_hop(balancer).state
    };
    assert_eq!(change(&mut balancer, Mode::Ipip), "resolved");
    let homeless = NextHop {
        source: None,
        ..routed.clone()
    };
    resolve(&mut balancer, 11, homeless);
    assert_eq!(change(&mut balancer, Mode::Gue), "no-source");
    resolve(&mut balancer, 11, routed);
    assert_eq!(change(&mut balancer, Mode::FullNat), "resolved");
    let mut every_port = web(None, &[]);
    every_port.name = "every-port".into();
    every_port.address = "10.0.0.1:*".parse().unwrap();
    balancer
        .change(Change::AddService(Box::new(every_port)), at(3))
        .unwrap();
    let status = balancer.status(at(0));
    let web = status.services.iter().find(|service| service.name == "web");
    let next_hop = &web.unwrap().backends[0].next_hop;
    assert_eq!(next_hop.state, "service-ports");
}

#[test]
fn a_backend_without_a_port_is_checked_at_the_services() {
    let mut spec = web(Some(tcp_check()), &[11]);
    spec.mode = Mode::Gue;
    spec.backends[0].address.port = BackendPort::Unnamed;
    let targets = balancer(spec).targets().0;
    assert_eq!(targets[0].address.to_string(), "10.0.0.11:80");
}

/// A service whose backends have its address.
fn direct() -> ServiceSpec {
    let mut spec = web(Some(tcp_check()), &[11, 12]);
    spec.mode = Mode::Dsr;
    for backend in &mut spec.backends {
        backend.address.port = BackendPort::Unnamed;
    }
    spec
}

/// Where checks go, and what that stands for.
fn checked(balancer: &mut Balancer<Memory>) -> Vec<(String, Option<String>)> {
    let targets = balancer.new_targets().expect("something has changed");
    let words = |target: Target| {
        let service = target.service_address.map(|address| address.to_string());
        (target.address.to_string(), service)
    };
    targets.into_iter().map(words).collect()
}

#[test]
fn checks_go_to_the_service_address_where_backends_have_it() {
    let mut balancer = balancer(direct());
    // The ways to the backends are known by now; the service address is what clients use.
    let service = || Some("192.0.2.10:80".to_owned());
    let expected = [
        ("240.108.0.1:80".to_owned(), service()),
        ("240.108.0.2:80".to_owned(), service()),
    ];
    assert_eq!(checked(&mut balancer), expected);
    let probe = balancer.plane.probes[&2];
    assert_eq!(probe.service, words([192, 0, 2, 10].into()));
    assert_eq!(probe.source, words([10, 0, 0, 1].into()));
    assert_eq!(probe.mode, lb_common::service::Mode::Dsr as u8);
    // Answers leave by it.
    balancer.reconcile_if_needed(at(0));
    assert!(balancer.plane.image.interfaces.contains_key(&PASSAGE));
    assert_eq!(checked(&mut balancer), expected);
    assert!(balancer.new_targets().is_none());

    let gone = Change::RemoveBackend {
        service: "web".into(),
        address: BackendAddress {
            port: BackendPort::Unnamed,
            ..address(11)
        },
    };
    balancer.change(gone, at(1)).unwrap();
    assert_eq!(checked(&mut balancer), expected[1..]);
    assert!(!balancer.plane.probes.contains_key(&1));
}

#[test]
fn without_a_way_of_their_own_checks_go_to_the_backends_addresses() {
    let mut balancer = balancer(direct());
    balancer.plane.refuses_to_attach = true;
    let expected = ["10.0.0.11:80", "10.0.0.12:80"].map(|address| (address.to_owned(), None));
    assert_eq!(checked(&mut balancer), expected);
    assert!(balancer.plane.probes.is_empty());
}

#[test]
fn a_sweep_knows_every_backend_in_service() {
    let mut balancer = balancer(web(None, &[11, 12]));
    let order = balancer.sweep(at(60));
    let ids: BTreeSet<u32> = order.lifetimes.keys().copied().collect();
    // And the answers to health checks.
    assert_eq!(ids, BTreeSet::from([lb_common::probe::LOCAL, 1, 2]));
    assert_eq!((order.tick, order.gone), (600, HashSet::new()));
    balancer.change(remove(12), at(61)).unwrap();
    assert!(!balancer.sweep(at(62)).lifetimes.contains_key(&2));
}

#[test]
fn an_interface_that_goes_takes_its_paths_along() {
    let mut balancer = balancer(web(None, &[11]));
    balancer.neighbour(neighbour::Event::InterfaceGone(ETH0));
    balancer.reconcile_if_needed(at(1));
    assert_eq!(balancer.plane.image.interfaces, BTreeMap::new());
    assert_eq!(ring(&balancer), [0_u32; 0]);
    assert_eq!(balancer.plane.image.backends[&1].path, LinkPath::default());
    assert_eq!(balancer.plane.detached, [ETH0]);
    let interface = &balancer.status(at(0)).interfaces[0];
    assert_eq!((&*interface.state, &*interface.mode), ("gone", "none"));
}

#[test]
fn an_interface_that_comes_back_is_attached_again() {
    const NEW: u32 = ETH0 + 7;
    let came = |ifindex, name: &str| {
        neighbour::Event::Interface(Interface {
            ifindex,
            name: name.into(),
            mac: Some([2; 6]),
            mtu: 9_000,
            up: true,
            bond: None,
        })
    };
    let mut balancer = balancer(web(None, &[11]));
    balancer.neighbour(neighbour::Event::InterfaceGone(ETH0));
    balancer.reconcile_if_needed(at(1));
    balancer.neighbour(came(NEW + 1, "eth1"));
    balancer.reconcile_if_needed(at(2));
    assert_eq!(balancer.status(at(0)).interfaces[0].state, "gone");

    balancer.plane.refuses_to_attach = true;
    balancer.neighbour(came(NEW, "eth0"));
    balancer.reconcile_if_needed(at(3));
    let interface = balancer.status(at(0)).interfaces.remove(0);
    assert_eq!(interface.state, "not-attached");
    assert_eq!(interface.error.unwrap(), "no such interface: `eth0`");
    balancer.change(add(12), at(3)).unwrap();

    // It is tried again, whatever else happens meanwhile.
    balancer.plane.refuses_to_attach = false;
    balancer.reconcile_if_needed(at(4));
    assert_eq!(balancer.plane.attached, [NEW]);
    let interface = &balancer.status(at(0)).interfaces[0];
    assert_eq!(
        (&*interface.state, &*interface.mode),
        ("attached", "generic")
    );
    assert_eq!(balancer.plane.image.interfaces[&NEW].mtu, 9_000);
    resolve(
        &mut balancer,
        11,
        NextHop {
            ifindex: NEW,
            path: Some(LinkPath::new(NEW, [2, 0, 0, 0, 0, 11], [2; 6])),
            ..hop(11)
        },
    );
    balancer.reconcile_if_needed(at(5));
    assert_eq!(ring(&balancer), [1]);
}

/// What comes by an interface of a bond is answered by the bond.
#[test]
fn the_interfaces_of_an_attached_bond_lead_to_it() {
    const PORT: u32 = ETH0 + 7;
    const OTHER: u32 = ETH0 + 8;
    let told = |ifindex, bond| {
        neighbour::Event::Interface(Interface {
            ifindex,
            name: format!("port{ifindex}"),
            mac: Some([2; 6]),
            mtu: 9_000,
            up: true,
            bond,
        })
    };
    let of_bond = Outlet {
        ifindex: ETH0,
        mtu: 1_500,
    };
    let alone = BTreeMap::from([(ETH0, of_bond)]);
    let with_port = BTreeMap::from([(ETH0, of_bond), (PORT, of_bond)]);
    let mut balancer = balancer(web(None, &[11]));
    // That of another bond, which the program is not attached to, is nobody's.
    balancer.neighbour(told(OTHER, Some(ETH0 + 9)));
    for (event, expected) in [
        (told(PORT, Some(ETH0)), &with_port),
        (told(PORT, None), &alone),
        (told(PORT, Some(ETH0)), &with_port),
        (neighbour::Event::InterfaceGone(PORT), &alone),
    ] {
        balancer.neighbour(event);
        balancer.reconcile_if_needed(at(1));
        assert_eq!(balancer.plane.image.interfaces, *expected);
    }
}

#[test]
fn every_reason_is_shown_also_what_never_happened() {
    let balancer = balancer(web(None, &[11]));
    let status = balancer.status(at(0));
    assert_eq!(status.drops.len(), DropReason::ALL.len());
    assert!(status.drops.values().all(|packets| *packets == 0));
    assert_eq!(status.interfaces[0].name, "eth0");
    assert_eq!(status.interfaces[0].mode, "native");
}

/// A service whose clients' connections are watched, whose backends are up.
fn watched(mode: Mode) -> Balancer<Memory> {
    let check = HealthSpec {
        passive: true,
        ..tcp_check()
    };
    let mut spec = web(Some(check), &[11, 12]);
    spec.mode = mode;
    if !mode.translates() {
        for backend in &mut spec.backends {
            backend.address.port = BackendPort::Unnamed;
        }
    }
    let mut balancer = balancer(spec.clone());
    for backend in &spec.backends {
        balancer.health(health::Event {
            service: "web".into(),
            backend: backend.address,
            up: true,
            changed: true,
            status: HealthStatus {
                last: "ok".into(),
                streak: 1,
                ..health::unknown()
            },
        });
    }
    balancer.reconcile_if_needed(at(0));
    balancer.new_targets();
    balancer
}

#[test]
fn a_backend_that_refuses_clients_is_to_be_asked_at_the_port_that_they_use() {
    let mut balancer = watched(Mode::FullNat);
    let (targets, _) = balancer.targets();
    let clients: Vec<_> = targets.iter().map(|target| target.clients).collect();
    let own = |byte| Some((address(byte).ip, 8_080).into());
    assert_eq!(clients, [own(11), own(12)]);
    assert!(balancer.is_watching());
    let watches = |service: &Service| service.flags & Service::WATCHED != 0;
    assert!(balancer.plane.image.services.values().all(watches));

    let mut look = |number: u32, first: (u64, u64, u64), second: (u64, u64, u64)| {
        for (id, (begun, answered, refused)) in [(1, first), (2, second)] {
            let counts = balancer.plane.outcomes.entry(id).or_default();
            counts.begun += begun;
            counts.answered += answered;
            counts.refused += refused;
        }
        balancer.doubted(number * health::passive::SAMPLING)
    };
    assert!(look(1, (9, 9, 0), (9, 9, 0)).is_empty());
    assert!(look(2, (9, 9, 0), (9, 9, 0)).is_empty());
    let doubted = look(3, (9, 0, 9), (9, 9, 0));
    assert_eq!(doubted, [("web".to_owned(), address(11))]);
    // One that is down is asked by its checks.
    check(&mut balancer, 12, false);
    let counts = balancer.plane.outcomes.entry(2).or_default();
    counts.refused += 9;
    let counts = balancer.plane.outcomes.entry(1).or_default();
    counts.answered += 9;
    let doubted = balancer.doubted(4 * health::passive::SAMPLING);
    assert!(doubted.is_empty());
}

#[test]
fn where_answers_go_another_way_the_service_address_is_asked() {
    let mut balancer = watched(Mode::Dsr);
    let (targets, probes) = balancer.targets();
    let clients: Vec<_> = targets.iter().filter_map(|target| target.clients).collect();
    let address = |id| (lb_common::probe::address(id, true), 80).into();
    assert_eq!(clients, [address(1), address(2)]);
    assert_eq!(probes.len(), 2);

    let mut doubted = Vec::new();
    for look in 0..12 {
        for (id, serves) in [(1, look < 4), (2, true)] {
            balancer.plane.outcomes.entry(id).or_default().begun += 5;
            let counters = balancer.plane.counters.entry(id).or_default();
            counters.packets += if serves { 20 } else { 5 + 1 };
            // An RST, or the end of a connection.
            counters.ended_flows += 1;
        }
        doubted.extend(balancer.doubted(look * health::passive::SAMPLING));
    }
    let backend = BackendAddress {
        port: BackendPort::Unnamed,
        ..self::address(11)
    };
    assert_eq!(doubted, [("web".to_owned(), backend)]);
}

#[test]
fn who_does_not_watch_pays_nothing() {
    let mut balancer = balancer(web(Some(tcp_check()), &[11]));
    balancer.new_targets();
    assert!(!balancer.is_watching());
    let watches = |service: &Service| service.flags & Service::WATCHED != 0;
    assert!(!balancer.plane.image.services.values().any(watches));
}

#[test]
fn with_too_few_backends_up_all_are_used() {
    let mut spec = web(Some(tcp_check()), &[11, 12, 13, 14]);
    spec.panic_threshold = Some(Quorum::Percent(50));
    let mut balancer = balancer(spec);
    check(&mut balancer, 11, true);
    assert_eq!(
        ring(&balancer),
        [0_u32; 0],
        "nothing is known of the others"
    );
    for byte in 12..=14 {
        check(&mut balancer, byte, true);
    }
    assert_eq!(ring(&balancer), [1, 2, 3, 4]);
    check(&mut balancer, 11, false);
    check(&mut balancer, 12, false);
    assert_eq!(ring(&balancer), [3, 4]);
    check(&mut balancer, 13, false);
    assert_eq!(ring(&balancer), [1, 2, 3, 4]);
    assert_eq!(state(&balancer, 0), BackendState::Down);
    check(&mut balancer, 14, false);
    assert_eq!(ring(&balancer), [1, 2, 3, 4]);
    check(&mut balancer, 11, true);
    check(&mut balancer, 12, true);
    assert_eq!(ring(&balancer), [1, 2]);
}

#[test]
fn checks_go_on_from_what_was_before_a_restart() {
    let spec = || web(Some(tcp_check()), &[11, 12]);
    let mut first = balancer(spec());
    check(&mut first, 11, true);
    check(&mut first, 12, false);
    let targets = first.new_targets().unwrap_or_default();
    for target in &targets {
        assert_eq!(first.was_up(target), None, "checked already");
    }
    let mut second = started(web(Some(tcp_check()), &[11, 12, 13]), first.plane);
    let targets = second.new_targets().expect("there is something to check");
    let was_up: Vec<_> = targets.iter().map(|target| second.was_up(target)).collect();
    assert_eq!(was_up, [Some(true), Some(false), None]);
}
