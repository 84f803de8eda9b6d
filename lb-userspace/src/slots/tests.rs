use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;

use super::*;

/// Slots of the rings here.
const SIZE: u32 = 5;
/// Backends have the ids from 1 to this.
const BACKENDS: u32 = 5;
/// The idle timeout.
const IDLE: Duration = Duration::from_secs(100);

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn slot(owner: u32, origin: u32) -> Slot {
    Slot { owner, origin }
}

/// The ring of these owners, written at `now`.
fn write(slots: &mut Slots, owners: &[u32], now: u64) -> Vec<Slot> {
    let ring = slots.ring(owners).collect();
    slots.written(seconds(now));
    ring
}

/// Retargets a ring of one slot and writes it.
fn retarget(slots: &mut Slots, before: u32, after: u32, now: u64) -> Slot {
    slots.retarget(&[before], &[after]);
    write(slots, &[after], now)[0]
}

#[test]
fn a_slot_changes_is_pinned_and_is_clean_again() {
    let mut slots = Slots::new();
    assert!(slots.is_written());
    assert_eq!(retarget(&mut slots, 1, 2, 0), slot(2, 1));
    slots.tick(seconds(100), IDLE);
    assert!(slots.is_written(), "no longer than the timeout");
    slots.tick(seconds(101), IDLE);
    assert!(!slots.is_written());
    assert_eq!(write(&mut slots, &[2], 102), [slot(2, 2)]);
    slots.swept(seconds(102), &SlotSet::default());
    assert!(slots.is_written(), "the sweep did not begin after that");
    let mut used = SlotSet::default();
    used.insert(0);
    slots.swept(seconds(103), &used);
    assert!(slots.is_written(), "there is an entry");
    slots.swept(seconds(103), &SlotSet::default());
    assert!(!slots.is_written());
    assert_eq!(write(&mut slots, &[2], 104), [Slot::clean(2)]);
}

#[test]
fn time_counts_from_the_write_on() {
    let mut slots = Slots::new();
    slots.retarget(&[1], &[2]);
    slots.tick(seconds(1_000), IDLE);
    assert_eq!(write(&mut slots, &[2], 1_000), [slot(2, 1)]);
    slots.tick(seconds(1_101), IDLE);
    slots.swept(seconds(1_200), &SlotSet::default());
    assert_eq!(write(&mut slots, &[2], 1_200), [slot(2, 2)]);
}

#[test]
fn an_owner_that_comes_back_is_pinned() {
    let mut slots = Slots::new();
    retarget(&mut slots, 1, 2, 0);
    assert_eq!(retarget(&mut slots, 2, 3, 1), slot(3, 1));
    assert_eq!(retarget(&mut slots, 3, 1, 2), slot(1, 1));
    assert_eq!(retarget(&mut slots, 1, 2, 3), slot(2, 1));
}

#[test]
fn each_change_of_the_owner_begins_the_timeout_anew() {
    let mut slots = Slots::new();
    retarget(&mut slots, 1, 2, 0);
    retarget(&mut slots, 2, 3, 60);
    slots.tick(seconds(160), IDLE);
    assert!(slots.is_written());
    slots.tick(seconds(161), IDLE);
    assert!(!slots.is_written());
}

#[test]
fn a_full_table_begins_the_timeout_anew() {
    let mut slots = Slots::new();
    retarget(&mut slots, 1, 2, 0);
    slots.table_was_full(seconds(60));
    slots.tick(seconds(160), IDLE);
    assert!(slots.is_written());
    slots.tick(seconds(161), IDLE);
    assert!(!slots.is_written());
}

#[test]
fn a_removed_origin_pins() {
    let mut slots = Slots::new();
    slots.retarget(&[1, 2], &[3, 3]);
    slots.backend_removed(1);
    assert_eq!(write(&mut slots, &[3, 3], 0), [slot(3, 3), slot(3, 2)]);
}

#[test]
fn a_slot_without_an_owner_stays_clean_until_it_gets_one_and_after() {
    let mut slots = Slots::new();
    assert_eq!(retarget(&mut slots, NO_BACKEND, 1, 0), Slot::clean(1));
    let counts = Counts {
        clean: 1,
        ..Counts::default()
    };
    assert_eq!(slots.counts(1), counts);
}

#[test]
fn entries_are_read_while_a_slot_has_no_owner() {
    let mut slots = Slots::new();
    retarget(&mut slots, 1, 2, 0);
    assert_eq!(retarget(&mut slots, 2, NO_BACKEND, 1), slot(NO_BACKEND, 1));
    // Flows of 2 have entries.
    slots.backend_removed(1);
    assert_eq!(
        write(&mut slots, &[NO_BACKEND], 2),
        [slot(NO_BACKEND, NOBODY)]
    );
    assert_eq!(retarget(&mut slots, NO_BACKEND, 3, 3), slot(3, 3));
}

#[test]
fn the_same_owners_change_nothing() {
    let mut slots = Slots::new();
    retarget(&mut slots, 1, 2, 0);
    let before = slots.clone();
    slots.retarget(&[2], &[2]);
    assert_eq!(slots, before);
}

#[test]
fn a_restored_ring_is_the_same_and_begins_its_timeouts_anew() {
    let ring = [
        Slot::clean(1),
        slot(2, 1),
        slot(1, 1),
        slot(0, NOBODY),
        slot(0, 0),
    ];
    let owners = ring.map(|slot| slot.owner);
    let mut slots = Slots::restored(&ring, seconds(50));
    assert!(slots.is_written());
    let counts = Counts {
        clean: 2,
        changing: 1,
        pinned: 2,
    };
    assert_eq!(slots.counts(5), counts);
    assert_eq!(slots.ring(&owners).collect::<Vec<_>>(), ring);
    slots.swept(seconds(50), &SlotSet::default());
    slots.tick(seconds(150), IDLE);
    assert!(slots.is_written());
    slots.swept(seconds(51), &SlotSet::default());
    slots.tick(seconds(151), IDLE);
    let settled = [
        Slot::clean(1),
        slot(2, 2),
        Slot::clean(1),
        Slot::clean(0),
        Slot::clean(0),
    ];
    assert_eq!(slots.ring(&owners).collect::<Vec<_>>(), settled);
}

/// What happens to a balancer.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The ring names these owners, but for removed ones.
    Retarget([u32; SIZE as usize]),
    Write,
    Wait(Duration),
    /// The flow of this number begins, in a table of flows with or without room.
    Begin(usize, bool),
    /// It goes on.
    Speak(usize, bool),
    Tick,
    BeginSweep,
    EndSweep,
    Remove(u32),
}

fn event() -> impl Strategy<Value = Event> {
    let owners = prop_oneof![1 => Just(NO_BACKEND), 9 => 1..=BACKENDS];
    let flow = 0..FLOWS;
    let room = prop::bool::weighted(0.9);
    prop_oneof![
        3 => prop::array::uniform5(owners).prop_map(Event::Retarget),
        4 => Just(Event::Write),
        6 => (0_u64..120).prop_map(|time| Event::Wait(seconds(time))),
        4 => (flow.clone(), room).prop_map(|(flow, room)| Event::Begin(flow, room)),
        9 => (flow, room).prop_map(|(flow, room)| Event::Speak(flow, room)),
        5 => Just(Event::Tick),
        3 => Just(Event::BeginSweep),
        3 => Just(Event::EndSweep),
        1 => (1..=BACKENDS).prop_map(Event::Remove),
    ]
}

const FLOWS: usize = 12;

/// A flow. The one of number `n` has the slot `n % SIZE`.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    /// The backend that it began at. `None` if it did not begin, if that is no more, or if
    /// no entry says where it began because the table was full.
    home: Option<u32>,
    /// Its entry.
    pin: Option<u32>,
    /// When it spoke last.
    spoke: Duration,
}

/// A datapath, the daemon's part that feeds [`Slots`], and what each flow knows itself.
struct Balancer {
    now: Duration,
    slots: Slots,
    owners: Vec<u32>,
    /// The ring that packets see.
    ring: Vec<Slot>,
    flows: [Flow; FLOWS],
    removed: BTreeSet<u32>,
    sweep: Option<(Duration, SlotSet)>,
    /// An entry could not be written since the last tick.
    was_full: bool,
    /// The same slots by the table in `docs/selection.md`, and since when they are so.
    table: Vec<(Slot, Duration)>,
}

impl Balancer {
    fn new() -> Self {
        Self {
            now: Duration::ZERO,
            slots: Slots::new(),
            owners: vec![NO_BACKEND; SIZE as usize],
            ring: vec![Slot::default(); SIZE as usize],
            flows: [Flow::default(); FLOWS],
            removed: BTreeSet::new(),
            sweep: None,
            was_full: false,
            table: vec![(Slot::default(), Duration::ZERO); SIZE as usize],
        }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Retarget(owners) => self.retarget(&owners),
            Event::Write => self.write(),
            Event::Wait(time) => self.now += time,
            Event::Begin(flow, room) => self.packet(flow, true, room),
            Event::Speak(flow, room) => self.packet(flow, false, room),
            Event::Tick => self.tick(),
            Event::BeginSweep => self.begin_sweep(),
            Event::EndSweep => self.end_sweep(),
            Event::Remove(id) => self.remove(id),
        }
        let decided: Vec<Slot> = self.slots.ring(&self.owners).collect();
        let by_table: Vec<Slot> = self.table.iter().map(|(slot, _)| *slot).collect();
        assert_eq!(decided, by_table, "after {event:?}");
        for (slot, state) in self.ring.iter().enumerate() {
            let has_entries = self.flows.iter().skip(slot).step_by(SIZE as usize);
            let has_entries = has_entries.map(|flow| flow.pin).any(|pin| pin.is_some());
            assert!(!state.is_clean() || !has_entries, "{slot} after {event:?}");
        }
    }

    fn retarget(&mut self, owners: &[u32]) {
        let known = |id: &u32| !self.removed.contains(id);
        let owners: Vec<u32> = owners
            .iter()
            .map(|id| Some(*id).filter(known).unwrap_or(NO_BACKEND))
            .collect();
        self.slots.retarget(&self.owners, &owners);
        self.owners = owners;
        for ((slot, since), owner) in self.table.iter_mut().zip(&self.owners) {
            let before = *slot;
            if before.owner == *owner {
                continue;
            }
            *since = NOT_YET;
            slot.owner = *owner;
            slot.origin = match before.origin {
                NO_BACKEND => before.owner,
                NOBODY => *owner,
                origin if origin == before.owner => before.owner,
                origin => origin,
            };
        }
    }

    fn write(&mut self) {
        self.ring = self.slots.ring(&self.owners).collect();
        self.slots.written(self.now);
        for (_, since) in &mut self.table {
            if *since == NOT_YET {
                *since = self.now;
            }
        }
    }

    /// Pins slots of the table that are changing and meet a condition.
    fn pin(&mut self, is_meant: impl Fn(Slot, Duration) -> bool) {
        for (slot, since) in &mut self.table {
            if slot.is_changing() && slot.origin != NOBODY && is_meant(*slot, *since) {
                *since = NOT_YET;
                slot.origin = match slot.owner {
                    NO_BACKEND => NOBODY,
                    owner => owner,
                };
            }
        }
    }

    fn tick(&mut self) {
        let now = self.now;
        if std::mem::take(&mut self.was_full) {
            self.slots.table_was_full(now);
            for (slot, since) in &mut self.table {
                if slot.is_changing() && slot.origin != NOBODY && *since != NOT_YET {
                    *since = now;
                }
            }
        }
        self.slots.tick(now, IDLE);
        self.pin(|_, since| since != NOT_YET && now > since + IDLE);
    }

    fn begin_sweep(&mut self) {
        let mut used = SlotSet::default();
        for (number, flow) in self.flows.iter_mut().enumerate() {
            if self.now - flow.spoke > IDLE {
                flow.pin = None;
            }
            if flow.pin.is_some() {
                used.insert(number as u32 % SIZE);
            }
        }
        self.sweep = Some((self.now, used));
    }

    fn end_sweep(&mut self) {
        let Some((began, used)) = self.sweep.take() else {
            return;
        };
        self.slots.swept(began, &used);
        for (number, (slot, since)) in (0..).zip(&mut self.table) {
            let is_pinned = slot.is_pinned() || slot.origin == NOBODY;
            if is_pinned && *since != NOT_YET && *since < began && !used.contains(number) {
                *slot = Slot::clean(slot.owner);
            }
        }
    }

    fn remove(&mut self, id: u32) {
        self.removed.insert(id);
        let owners = self.owners.clone();
        self.retarget(&owners);
        self.slots.backend_removed(id);
        self.pin(|slot, _| slot.origin == id);
        for flow in &mut self.flows {
            flow.home = flow.home.filter(|home| *home != id);
        }
    }

    fn is_there(&self, id: u32) -> bool {
        id != NO_BACKEND && id != NOBODY && !self.removed.contains(&id)
    }

    /// What `docs/selection.md` says of a packet. Where it goes must be where its flow lives.
    fn packet(&mut self, number: usize, begins: bool, has_room: bool) {
        let slot = self.ring[number % SIZE as usize];
        let mut flow = self.flows[number];
        let has_claim = !begins && self.now - flow.spoke <= IDLE;
        let pin = flow.pin.filter(|id| self.is_there(*id));
        let mut is_lost = false;
        let backend = if slot.is_clean() {
            slot.owner
        } else if let Some(pin) = pin {
            pin
        } else if slot.is_changing() {
            let by_origin = !begins && self.is_there(slot.origin);
            let backend = if by_origin { slot.origin } else { slot.owner };
            if !self.is_there(backend) {
            } else if has_room {
                flow.pin = Some(backend);
            } else {
                self.was_full = true;
                is_lost = begins;
            }
            backend
        } else {
            slot.owner
        };
        if let Some(home) = flow.home.filter(|_| has_claim) {
            assert_eq!(backend, home, "flow {number} at {slot:?}");
        }
        flow.home = Some(backend).filter(|id| {
            let lives = begins || has_claim && flow.home.is_some();
            lives && self.is_there(*id) && !is_lost
        });
        flow.spoke = self.now;
        self.flows[number] = flow;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_flow_moves(events in prop::collection::vec(event(), 1..120)) {
        let mut balancer = Balancer::new();
        for event in events {
            balancer.happens(event);
        }
        // What is left alone is clean in the end.
        for _ in 0..2 {
            for event in [
                Event::Write,
                Event::Wait(IDLE + seconds(1)),
                Event::Tick,
                Event::Write,
                Event::Wait(seconds(1)),
                Event::BeginSweep,
                Event::EndSweep,
            ] {
                balancer.happens(event);
            }
        }
        let counts = Counts { clean: SIZE, ..Counts::default() };
        prop_assert_eq!(balancer.slots.counts(SIZE), counts);
    }
}

#[test]
fn clean_slots_are_pinned_beside_those_that_are_not() {
    let mut slots = Slots::new();
    slots.retarget(&[1, 1, 2, NO_BACKEND], &[1, 2, 2, NO_BACKEND]);
    slots.written(seconds(1));
    slots.pin_clean(4);
    assert!(!slots.is_written());
    let ring: Vec<Slot> = slots.ring(&[1, 2, 2, NO_BACKEND]).collect();
    let expected = [slot(1, 1), slot(2, 1), slot(2, 2), slot(NO_BACKEND, NOBODY)];
    assert_eq!(ring, expected);
    slots.written(seconds(2));
    slots.pin_clean(4);
    assert!(slots.is_written(), "nothing was clean");
    slots.swept(seconds(3), &SlotSet::default());
    assert_eq!(slots.counts(4).clean, 3);
}
