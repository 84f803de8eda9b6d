//! A balancer, its backends and its clients, in simulated time.

use std::{fmt, time::Duration};

use lb_common::ring::{NO_BACKEND, Slot, slot};
use lb_tests::rng::Rng;
use lb_userspace::{
    scheduler::{self, Member, RingSize},
    slots::{SlotSet, Slots},
    state::{BackendAddress, BackendPort, Scheduler},
};

use crate::rule;

/// A time or a length of time, in units of a tenth of a second.
pub(crate) type Time = u32;

/// The idle timeout, `timeouts.tcp-established`.
pub(crate) const IDLE: Time = 3_000;
/// How long the entry of a flow stays that has ended, `timeouts.tcp-closing`.
const CLOSING: Time = 100;
/// Backends that there are at least.
const FEWEST: usize = 3;
/// Backends that there are at most.
const MOST: usize = 40;

pub(crate) fn duration(time: Time) -> Duration {
    Duration::from_millis(u64::from(time) * 100)
}

/// A member of the ring; its number stands for its address.
pub(crate) fn member(number: u32, weight: u32, id: u32) -> Member {
    let ip = std::net::Ipv4Addr::from_bits(0x0a00_0000 + number);
    let port = BackendPort::Number(80);
    Member {
        address: BackendAddress {
            ip: ip.into(),
            port,
        },
        weight,
        id,
    }
}

/// The owners of slots.
pub(crate) fn owners(members: &[Member]) -> Vec<u32> {
    scheduler::ring(Scheduler::Maglev, members, RingSize::DEFAULT).owners
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Backend {
    pub(crate) member: Member,
    pub(crate) is_up: bool,
    pub(crate) drains: bool,
}

/// A connection of a client.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flow {
    pub(crate) slot: u32,
    /// Id of the backend that it began at; [`NO_BACKEND`] if nothing is known of it, since
    /// it began while the table had no room for it.
    pub(crate) home: u32,
    /// Id of the backend in its entry, [`NO_BACKEND`] without one.
    pub(crate) entry: u32,
    /// When it spoke last.
    spoke: Time,
    /// When it speaks next.
    next: Time,
    /// The longest that it is silent.
    silence: Time,
    has_begun: bool,
    had_entry: bool,
}

/// What a simulation counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) changes: u64,
    pub(crate) packets: u64,
    pub(crate) flows: u64,
    pub(crate) with_entry: u64,
    pub(crate) most_entries: usize,
    pub(crate) not_written: u64,
    pub(crate) clean: u64,
    pub(crate) changing: u64,
    pub(crate) pinned: u64,
    pub(crate) restarts: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        let Self {
            changes,
            packets,
            flows,
            ..
        } = self;
        writeln!(
            f,
            "simulation: {packets} packets of {flows} flows, {changes} changes, {} restarts; none moved",
            self.restarts
        )?;
        writeln!(
            f,
            "simulation: {:.2}% of the flows needed an entry, {} at a time; {} were not written",
            percent(self.with_entry, *flows),
            self.most_entries,
            self.not_written
        )?;
        write!(
            f,
            "simulation: packets at clean slots {:.2}%, changing {:.2}%, pinned {:.2}%",
            percent(self.clean, *packets),
            percent(self.changing, *packets),
            percent(self.pinned, *packets)
        )
    }
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) now: Time,
    pub(crate) backends: Vec<Backend>,
    /// By id, whether such a backend is there.
    pub(crate) is_there: Vec<bool>,
    pub(crate) slots: Slots,
    pub(crate) owners: Vec<u32>,
    /// The ring that packets see.
    pub(crate) ring: Vec<Slot>,
    pub(crate) flows: Vec<Flow>,
    /// Entries of flows that have ended: their slots, and until when.
    closing: Vec<(u32, Time)>,
    /// A sweep that has not ended: when it began, and what it found.
    sweep: Option<(Time, SlotSet)>,
    entries: usize,
    /// Entries that the table has room for.
    room: usize,
    /// Until when the table is full.
    full_until: Time,
    /// An entry could not be written since the daemon looked last.
    was_full: bool,
    pub(crate) figures: Figures,
}

impl World {
    pub(crate) fn new(seed: u64, backends: u32, flows: usize) -> Self {
        let mut world = Self {
            rng: Rng::new(seed),
            now: 0,
            backends: Vec::new(),
            is_there: vec![false],
            slots: Slots::new(),
            owners: vec![NO_BACKEND; RingSize::DEFAULT.get() as usize],
            ring: vec![Slot::default(); RingSize::DEFAULT.get() as usize],
            flows: vec![Flow::default(); flows],
            closing: Vec::new(),
            sweep: None,
            entries: 0,
            room: usize::MAX,
            full_until: 0,
            was_full: false,
            figures: Figures::default(),
        };
        for _ in 0..backends {
            world.add();
        }
        world.retarget();
        world.write();
        for index in 0..flows {
            let begins = world.rng.below(IDLE as usize) as Time;
            world.flows[index] = world.new_flow(begins);
        }
        world
    }

    /// A flow that is to begin.
    fn new_flow(&mut self, begins: Time) -> Flow {
        let hash = self.rng.word() as u32;
        let silence = self.rng.weighted(&[
            (60, IDLE / 4),
            (30, IDLE),
            // It may have no claim any more.
            (10, 2 * IDLE),
        ]);
        Flow {
            slot: slot(hash, RingSize::DEFAULT.get()),
            next: begins,
            silence,
            ..Flow::default()
        }
    }

    /// Lets the flows speak until a time.
    pub(crate) fn run_until(&mut self, end: Time) {
        for index in 0..self.flows.len() {
            while self.flows[index].next < end {
                self.speak(index);
            }
        }
        self.now = end;
    }

    fn speak(&mut self, index: usize) {
        let mut flow = self.flows[index];
        let now = flow.next;
        let begins = !flow.has_begun;
        let lost_its_home = flow.home != NO_BACKEND && !self.is_there[flow.home as usize];
        if !begins && (lost_its_home || self.rng.percent(2)) {
            self.end(flow);
            self.flows[index] = self.new_flow(now);
            return;
        }
        let slot = self.ring[flow.slot as usize];
        let entry = Some(flow.entry).filter(|id| *id != NO_BACKEND);
        let is_there = |id: u32| self.is_there.get(id as usize).copied().unwrap_or_default();
        let verdict = rule::packet(slot, entry, begins, is_there);
        let figures = &mut self.figures;
        figures.packets += 1;
        figures.flows += u64::from(begins);
        figures.clean += u64::from(slot.is_clean());
        figures.changing += u64::from(slot.is_changing());
        figures.pinned += u64::from(slot.is_pinned());
        let mut is_known = true;
        if verdict.needs_entry {
            if self.entries < self.room {
                self.entries += usize::from(flow.entry == NO_BACKEND);
                flow.entry = verdict.backend;
                figures.with_entry += u64::from(!flow.had_entry);
                figures.most_entries = figures.most_entries.max(self.entries);
                flow.had_entry = true;
            } else {
                figures.not_written += 1;
                self.was_full = true;
                is_known = !begins;
            }
        }
        let has_claim = !begins && flow.home != NO_BACKEND && now - flow.spoke <= IDLE;
        assert!(
            !has_claim || verdict.backend == flow.home,
            "at {now} the flow {flow:?} went to backend {} by {slot:?}",
            verdict.backend
        );
        if begins && is_known {
            flow.home = verdict.backend;
        } else if !has_claim {
            flow.home = NO_BACKEND;
        }
        // Without a backend the client tries again.
        flow.has_begun = verdict.backend != NO_BACKEND || !begins;
        flow.spoke = now;
        let silence = if begins { 10 } else { flow.silence };
        flow.next = now + 1 + self.rng.below(silence as usize) as Time;
        self.flows[index] = flow;
    }

    fn end(&mut self, flow: Flow) {
        if flow.entry != NO_BACKEND {
            self.closing.push((flow.slot, flow.next + CLOSING));
        }
    }

    /// The backends that take new flows.
    pub(crate) fn members(&self) -> Vec<Member> {
        let takes_flows = |backend: &&Backend| backend.is_up && !backend.drains;
        let backends = self.backends.iter().filter(takes_flows);
        backends.map(|backend| backend.member).collect()
    }

    /// The ring follows the backends.
    pub(crate) fn retarget(&mut self) {
        let owners = owners(&self.members());
        self.slots.retarget(&self.owners, &owners);
        self.owners = owners;
    }

    pub(crate) fn write(&mut self) {
        self.ring = self.slots.ring(&self.owners).collect();
        self.slots.written(duration(self.now));
    }

    /// What the daemon does now and then.
    pub(crate) fn tick(&mut self) {
        if std::mem::take(&mut self.was_full) {
            self.slots.table_was_full(duration(self.now));
        }
        if self.now >= self.full_until {
            self.room = usize::MAX;
        }
        self.slots.tick(duration(self.now), duration(IDLE));
    }

    pub(crate) fn begin_sweep(&mut self) {
        let now = self.now;
        let mut used = SlotSet::new(RingSize::DEFAULT.get());
        for flow in &mut self.flows {
            if flow.entry != NO_BACKEND && now - flow.spoke > IDLE {
                flow.entry = NO_BACKEND;
                self.entries -= 1;
            }
            if flow.entry != NO_BACKEND {
                used.insert(flow.slot);
            }
        }
        let before = self.closing.len();
        self.closing.retain(|(_, until)| *until > now);
        self.entries -= before - self.closing.len();
        for (slot, _) in &self.closing {
            used.insert(*slot);
        }
        self.sweep = Some((now, used));
    }

    pub(crate) fn end_sweep(&mut self) {
        if let Some((began, used)) = self.sweep.take() {
            self.slots.swept(duration(began), &used);
        }
    }

    /// The table has no room for more entries than it has, for a while.
    pub(crate) fn fill_table(&mut self, until: Time) {
        self.room = self.entries;
        self.full_until = until;
    }

    /// Another daemon takes over what the datapath has.
    pub(crate) fn restart(&mut self) {
        self.figures.restarts += 1;
        self.slots = Slots::restored(&self.ring, duration(self.now));
        self.owners = self.ring.iter().map(|slot| slot.owner).collect();
        self.sweep = None;
        self.retarget();
    }

    pub(crate) fn add(&mut self) {
        if self.backends.len() == MOST {
            return;
        }
        let id = self.is_there.len() as u32;
        self.is_there.push(true);
        let weight = *self.rng.pick(&[50, 100, 100, 100, 200]);
        self.backends.push(Backend {
            member: member(id, weight, id),
            is_up: true,
            drains: false,
        });
    }

    /// Removes a backend. The ring is written without it before it is gone.
    pub(crate) fn remove(&mut self, index: usize) {
        if self.backends.len() == FEWEST {
            return;
        }
        let id = self.backends.swap_remove(index).member.id;
        self.retarget();
        self.slots.backend_removed(id);
        self.write();
        self.is_there[id as usize] = false;
    }
}
