//! Clients with connections to services of all modes, whose backends come and go, on the real
//! program with the daemon's own code. Time is the test's.

use std::{cmp::Reverse, collections::BinaryHeap, fmt, time::Duration};

use lb_common::ring::Slot;
use lb_tests::{Connection, Front, Site, rng::Rng, slot_of};
use lb_userspace::{
    datapath::{LogLevel, Options},
    state::{DrainSpec, Mode, OnDeadline, ServiceSpec, Timeouts},
};

/// A time or a length of time in seconds.
pub(crate) type Seconds = u64;

/// The idle timeout, `timeouts.tcp-established`.
pub(crate) const IDLE: Seconds = 300;
/// Backends that there are at least.
const FEWEST: usize = 3;
/// Backends that there are at most.
const MOST: usize = 30;

/// The services: each mode, both families, the usual ring and others.
pub(crate) fn fronts() -> [(Front, u32); 5] {
    [
        (Front::new("dsr", Mode::Dsr, false), 65_537),
        (Front::new("ipip", Mode::Ipip, true), 4_093),
        (Front::new("gue", Mode::Gue, false), 1_021),
        (Front::new("nat", Mode::Nat, true), 1_021),
        (Front::new("full-nat", Mode::FullNat, false), 4_093),
    ]
}

/// Those where flows need no entries.
pub(crate) fn slot_fronts() -> Vec<(Front, u32)> {
    let fronts = fronts().into_iter();
    fronts
        .filter(|(front, _)| !front.mode.translates())
        .collect()
}

fn service(front: Front, ring_size: u32, backends: &[u32]) -> ServiceSpec {
    ServiceSpec {
        ring_size,
        timeouts: Timeouts {
            tcp_established: Duration::from_secs(IDLE),
            tcp_closing: Duration::from_secs(10),
            ..Timeouts::default()
        },
        ..front.spec(backends)
    }
}

/// A backend, the same of every service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backend {
    pub(crate) number: u32,
    pub(crate) is_up: bool,
    drains: bool,
    weight: u32,
}

impl Backend {
    fn takes_flows(self) -> bool {
        self.is_up && !self.drains && self.weight != 0
    }
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing of it has been sent.
    Fresh,
    /// The backend has the SYN.
    Opened,
    /// The handshake is over.
    Established,
}

/// A connection of a client.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) connection: Connection,
    /// The backend that it began at, as long as that is there.
    pub(crate) home: Option<u32>,
    spoke: Seconds,
    /// The longest that it is silent.
    silence: Seconds,
    stage: Stage,
}

/// What was counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) changes: u64,
    pub(crate) restarts: u64,
    pub(crate) packets: u64,
    pub(crate) flows: u64,
    /// Packets whose backend was known beforehand.
    pub(crate) claims: u64,
    /// Slots that were seen clean, changing and pinned after changes.
    pub(crate) slots: [u64; 3],
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            changes,
            restarts,
            packets,
            flows,
            claims,
            slots: [clean, changing, pinned],
        } = self;
        let all = (clean + changing + pinned).max(1) as f64;
        let percent = |part: &u64| 100.0 * *part as f64 / all;
        write!(
            f,
            "stability: {packets} packets of {flows} flows, {changes} changes, {restarts} \
             restarts; {claims} packets had a backend to go to, and went there; slots after \
             changes {:.1}% clean, {:.1}% changing, {:.1}% pinned",
            percent(clean),
            percent(changing),
            percent(pinned)
        )
    }
}

/// Which of clean, changing and pinned a slot is.
pub(crate) fn state(slot: Slot) -> usize {
    if slot.is_clean() {
        0
    } else if slot.is_changing() {
        1
    } else {
        2
    }
}

/// The balancer, its backends and its clients.
pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) site: Site,
    pub(crate) fronts: Vec<Front>,
    pub(crate) backends: Vec<Backend>,
    /// Numbers of backends that were removed.
    removed: Vec<u32>,
    pub(crate) flows: Vec<Flow>,
    /// When which flow speaks next.
    due: BinaryHeap<Reverse<(Seconds, usize)>>,
    clients: u32,
    pub(crate) figures: Figures,
}

impl World {
    /// So many flows to these services with so many backends, which begin within the idle
    /// timeout.
    pub(crate) fn new(seed: u64, fronts: &[(Front, u32)], backends: u32, flows: usize) -> Self {
        let backends: Vec<Backend> = (1..=backends)
            .map(|number| Backend {
                number,
                is_up: true,
                drains: false,
                weight: 100,
            })
            .collect();
        let numbers: Vec<u32> = backends.iter().map(|backend| backend.number).collect();
        let services = fronts
            .iter()
            .map(|(front, ring_size)| service(*front, *ring_size, &numbers));
        let mut world = Self {
            rng: Rng::new(seed),
            site: Site::new(options(flows), services),
            fronts: fronts.iter().map(|(front, _)| *front).collect(),
            backends,
            removed: Vec::new(),
            flows: Vec::new(),
            due: BinaryHeap::new(),
            clients: 0,
            figures: Figures::default(),
        };
        for index in 0..flows {
            let flow = world.new_flow();
            world.flows.push(flow);
            let begin = world.rng.below(IDLE as usize) as Seconds;
            world.due.push(Reverse((begin, index)));
        }
        world
    }

    /// The time.
    pub(crate) fn now(&self) -> Seconds {
        self.site.now().as_secs()
    }

    /// A number up to another.
    pub(crate) fn up_to(&mut self, most: Seconds) -> Seconds {
        self.rng.below(most as usize + 1) as Seconds
    }

    /// A flow of which nothing has been sent.
    fn new_flow(&mut self) -> Flow {
        let front = *self.rng.pick(&self.fronts);
        self.clients += 1;
        let silence = self.rng.weighted(&[
            (60, IDLE / 4),
            (30, IDLE),
            // It may have no claim any more.
            (10, 2 * IDLE),
        ]);
        Flow {
            connection: Connection::new(front, front.client(self.clients)),
            home: None,
            spoke: 0,
            silence,
            stage: Stage::Fresh,
        }
    }

    /// Lets the flows speak until a time.
    pub(crate) fn run_until(&mut self, end: Seconds) {
        while self.now() < end {
            while let Some(Reverse((at, index))) = self.due.peek().copied()
                && at <= self.now()
            {
                self.due.pop();
                let pause = self.go_on(index);
                self.due.push(Reverse((self.now() + pause, index)));
            }
            self.site.pass(Duration::from_secs(1));
        }
    }

    /// What a flow does now, and how long it is silent then.
    fn go_on(&mut self, index: usize) -> Seconds {
        let mut flow = self.flows[index].clone();
        let pause = match flow.stage {
            Stage::Fresh => self.open(&mut flow),
            _ if !self.has_claim(&flow) => {
                flow = self.new_flow();
                0
            }
            Stage::Opened => {
                self.speak(&mut flow);
                flow.stage = Stage::Established;
                self.up_to(10)
            }
            Stage::Established => match self.rng.below(100) {
                0..3 => self.close(&mut flow),
                3..5 => {
                    // Its client is gone without a word.
                    flow = self.new_flow();
                    0
                }
                _ => {
                    self.speak(&mut flow);
                    self.up_to(flow.silence)
                }
            },
        };
        self.flows[index] = flow;
        pause
    }

    /// Whether there is a backend that the flow must go to.
    pub(crate) fn has_claim(&self, flow: &Flow) -> bool {
        flow.home.is_some() && self.now() - flow.spoke <= IDLE
    }

    fn open(&mut self, flow: &mut Flow) -> Seconds {
        let backend = flow.connection.open(&mut self.site);
        let number = backend.unwrap_or_else(|| panic!("{flow:?} has no backend"));
        let takes_flows = |b: &Backend| b.number == number && b.takes_flows();
        assert!(
            self.backends.iter().any(takes_flows),
            "{flow:?} to {number} of {:?}",
            self.backends
        );
        assert!(flow.connection.accept(&mut self.site), "{flow:?}");
        flow.home = backend;
        flow.spoke = self.now();
        flow.stage = Stage::Opened;
        self.figures.packets += 1;
        self.figures.flows += 1;
        self.up_to(3)
    }

    /// A packet of a flow, which must go where the flow lives.
    pub(crate) fn speak(&mut self, flow: &mut Flow) {
        let backend = flow.connection.speak(&mut self.site);
        assert_eq!(backend, flow.home, "at {}: {flow:?}", self.now());
        if self.rng.percent(20) {
            assert!(flow.connection.answer(&mut self.site, |_| {}), "{flow:?}");
        }
        flow.spoke = self.now();
        self.figures.packets += 1;
        self.figures.claims += 1;
    }

    /// The flow ends, and another begins, from the same port at times.
    fn close(&mut self, flow: &mut Flow) -> Seconds {
        let backend = flow.connection.send(&mut self.site, |tcp| tcp.fin = true);
        assert_eq!(backend, flow.home, "at {}: {flow:?}", self.now());
        let answered = flow.connection.answer(&mut self.site, |tcp| tcp.fin = true);
        assert!(answered, "{flow:?}");
        assert_eq!(flow.connection.speak(&mut self.site), flow.home, "{flow:?}");
        self.figures.packets += 3;
        self.figures.claims += 2;
        let new = self.new_flow();
        if self.rng.percent(20) {
            let Connection { front, client, .. } = flow.connection;
            flow.connection = Connection::new(front, client);
            (flow.home, flow.stage) = (None, Stage::Fresh);
        } else {
            *flow = new;
        }
        self.up_to(5)
    }

    /// The slots of a service's ring.
    pub(crate) fn slots(&mut self, front: Front) -> Vec<Slot> {
        self.site.slots(front)
    }

    /// Counts the slots of all services.
    pub(crate) fn count_slots(&mut self) {
        for front in self.fronts.clone() {
            if front.mode.translates() {
                continue;
            }
            for slot in self.slots(front) {
                self.figures.slots[state(slot)] += 1;
            }
        }
    }

    /// Adds a backend: a new one, or one that was there before.
    pub(crate) fn add(&mut self) {
        if self.backends.len() == MOST {
            return;
        }
        let weight = *self.rng.pick(&[50, 100, 100, 100, 200]);
        self.add_with_weight(weight);
    }

    /// Adds a backend, perhaps one that was removed, with this weight.
    pub(crate) fn add_with_weight(&mut self, weight: u32) {
        let number = if self.rng.percent(30) && !self.removed.is_empty() {
            let index = self.rng.below(self.removed.len());
            self.removed.swap_remove(index)
        } else {
            (self.backends.len() + self.removed.len()) as u32 + 1
        };
        for front in self.fronts.clone() {
            self.site.add_backend(front, number, weight);
        }
        self.backends.push(Backend {
            number,
            is_up: true,
            drains: false,
            weight,
        });
    }

    /// Whether another backend than this takes new flows.
    fn others_take_flows(&self, index: usize) -> bool {
        let mut others = self.backends.iter().enumerate();
        others.any(|(other, backend)| other != index && backend.takes_flows())
    }

    /// Removes a backend. `false` where it is needed.
    pub(crate) fn remove(&mut self, index: usize) -> bool {
        if self.backends.len() == FEWEST || !self.others_take_flows(index) {
            return false;
        }
        let number = self.backends.swap_remove(index).number;
        self.removed.push(number);
        for front in self.fronts.clone() {
            self.site.remove_backend(front, number);
        }
        for flow in &mut self.flows {
            flow.home = flow.home.filter(|home| *home != number);
        }
        true
    }

    pub(crate) fn set_weight(&mut self, index: usize, weight: u32) {
        if weight == 0 && !self.others_take_flows(index) {
            return;
        }
        self.backends[index].weight = weight;
        let number = self.backends[index].number;
        for front in self.fronts.clone() {
            let edit = |backend: &mut lb_userspace::state::BackendSpec| backend.weight = weight;
            self.site.edit_backend(front, number, edit);
        }
    }

    pub(crate) fn set_drain(&mut self, index: usize, drains: bool) {
        if drains && !self.others_take_flows(index) {
            return;
        }
        self.backends[index].drains = drains;
        let number = self.backends[index].number;
        let drain = drains.then_some(DrainSpec {
            deadline: Some(Duration::from_secs(60)),
            on_deadline: OnDeadline::Keep,
        });
        for front in self.fronts.clone() {
            let edit = |backend: &mut lb_userspace::state::BackendSpec| backend.drain = drain;
            self.site.edit_backend(front, number, edit);
        }
    }

    pub(crate) fn set_up(&mut self, index: usize, is_up: bool) {
        if !is_up && !self.others_take_flows(index) {
            return;
        }
        self.backends[index].is_up = is_up;
        let number = self.backends[index].number;
        for front in self.fronts.clone() {
            self.site.set_health(front, number, is_up);
        }
    }

    /// A random change.
    pub(crate) fn change(&mut self) {
        self.figures.changes += 1;
        let index = self.rng.below(self.backends.len());
        let Backend { is_up, drains, .. } = self.backends[index];
        match self.rng.below(6) {
            0 => self.add(),
            1 => {
                self.remove(index);
            }
            2 => {
                let weight = self.rng.weighted(&[(9, 300), (1, 0)]);
                let weight = self.up_to(weight) as u32;
                self.set_weight(index, weight);
            }
            3 => self.set_drain(index, !drains),
            4 => self.set_up(index, !is_up),
            _ => {
                // It flaps.
                self.set_up(index, !is_up);
                let until = self.now() + self.up_to(20);
                self.run_until(until);
                self.set_up(index, is_up);
            }
        }
        self.count_slots();
    }

    /// Lets time pass, with what the daemon does meanwhile in any order: a sweep may have
    /// begun before the last change.
    pub(crate) fn pass(&mut self, length: Seconds) {
        let end = self.now() + length;
        while self.now() < end {
            let pause = 1 + self.up_to(IDLE / 3);
            let until = end.min(self.now() + pause);
            self.run_until(until);
            let daemon = self.site.daemon();
            match self.rng.below(3) {
                0 => daemon.end_sweep(),
                1 => daemon.begin_sweep(),
                _ => daemon.sweep(),
            }
        }
    }

    /// Random changes, in bursts or when the last one is forgotten.
    pub(crate) fn live_through(&mut self, changes: u64) {
        for _ in 0..changes {
            self.change();
            if self.rng.percent(10) {
                self.site.restart();
                self.figures.restarts += 1;
            }
            let most = self
                .rng
                .weighted(&[(40, 5), (30, IDLE / 2), (30, 3 * IDLE)]);
            let length = self.up_to(most);
            self.pass(length);
        }
    }

    /// The slot of a flow in the ring of its service.
    pub(crate) fn slot(flow: &Flow, slots: &[Slot]) -> Slot {
        let Connection { front, client, .. } = flow.connection;
        slots[slot_of(front, client, slots.len())]
    }
}

/// Tables with room for flows that have ended and are not swept yet.
pub(crate) fn options(flows: usize) -> Options {
    Options {
        max_flows: (4 * flows as u32).max(65_536),
        max_embryonic: 131_072,
        log: LogLevel::Off,
    }
}
