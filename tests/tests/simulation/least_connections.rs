//! How evenly `least-connections` spreads a mix of long and short connections, beside
//! IPVS's `wlc` (ipvsadm(8)): of all backends the one with the fewest connections for its
//! weight, where one that is over counts 1/256 until its entry is forgotten.

use std::{cmp::Reverse, collections::BinaryHeap};

use lb_common::{ring::slot, service::LOOKS};
use lb_tests::{rng::Rng, soak::say};
use lb_userspace::{
    scheduler::{Member, RingSize, ring},
    state::Scheduler,
};

use crate::world::member;

/// A time in milliseconds.
type Time = u64;

const SECOND: Time = 1_000;
/// Connections begin for so long.
const END: Time = 900 * SECOND;
/// Figures are taken from then on, when as many connections end as begin.
const STEADY: Time = 400 * SECOND;
/// A backend comes.
const JOIN: Time = 650 * SECOND;
/// How long IPVS keeps the entry of a connection that is over.
const INACTIVE: Time = 120 * SECOND;

/// When a connection begins and when it ends.
type Connection = (Time, Time);

/// Nine of ten connections last half a second or so, the others some minutes.
fn trace(seed: u64, each_second: u64) -> Vec<Connection> {
    let mut rng = Rng::new(seed);
    let mut exponential = |mean: f64| {
        let uniform = (rng.word() >> 11) as f64 / (1_u64 << 53) as f64;
        -(1.0 - uniform).ln() * mean
    };
    let mut connections = Vec::new();
    let mut now = 0.0;
    while now < END as f64 {
        now += exponential(1_000.0 / each_second as f64);
        let is_long = exponential(1.0) < 0.105;
        let length = exponential(if is_long { 120_000.0 } else { 500.0 });
        connections.push((now as Time, (now + length) as Time + 1));
    }
    connections
}

/// Connections of a backend.
#[derive(Clone, Copy, Default)]
struct Load {
    active: u64,
    inactive: u64,
}

trait Choose {
    /// The index of the backend of a new connection.
    fn choose(&mut self, members: &[Member], loads: &[Load]) -> usize;
}

/// `least-connections`, as `docs/selection.md` has it.
#[derive(Default)]
struct LeastConnections {
    /// Who has the slots that are looked at.
    owners: Vec<usize>,
    members: usize,
    /// Grows with each slot.
    next: u64,
    remembered: [usize; 2],
}

impl LeastConnections {
    /// The slots that the next connection looks at.
    fn looks(&mut self) -> Vec<usize> {
        let (turns, looks) = (self.owners.len() as u64, u64::from(LOOKS));
        let next = self.next;
        let slots: Vec<u64> = if turns <= looks {
            self.next += 1;
            (0..turns).map(|look| (next + look) % turns).collect()
        } else {
            self.next += looks;
            let shuffled = (next / turns) as u32;
            let stride = 1 + slot(shuffled.wrapping_mul(0x9E37_79B1), turns as u32 - 1);
            let place = |look| (next % turns + look) * u64::from(stride) % turns;
            (0..looks).map(place).collect()
        };
        let slots = slots.into_iter().map(|slot| slot as usize);
        let remembered = self.remembered.map(|slot| slot % turns as usize);
        slots.chain(remembered).collect()
    }
}

impl Choose for LeastConnections {
    fn choose(&mut self, members: &[Member], loads: &[Load]) -> usize {
        if self.members != members.len() {
            self.members = members.len();
            let ring = ring(Scheduler::LeastConnections, members, RingSize::DEFAULT);
            let owners = ring.owners[..ring.turns as usize].iter();
            self.owners = owners.map(|id| *id as usize - 1).collect();
        }
        let is_better = |a: usize, b: usize| {
            let load = |index: usize| 2 * loads[index].active + 1;
            let weight = |index: usize| u64::from(members[index].weight);
            load(a) * weight(b) < load(b) * weight(a)
        };
        // The three best slots, the backends of which are three.
        let mut best: Vec<usize> = Vec::new();
        for slot in self.looks() {
            let owner = |slot: &usize| self.owners[*slot];
            if best.iter().any(|other| owner(other) == owner(&slot)) {
                continue;
            }
            let place = best.partition_point(|other| !is_better(owner(&slot), owner(other)));
            best.insert(place, slot);
            best.truncate(3);
        }
        for (remembered, slot) in self.remembered.iter_mut().zip(&best[1..]) {
            *remembered = *slot;
        }
        self.owners[best[0]]
    }
}

struct Wlc;

impl Choose for Wlc {
    fn choose(&mut self, members: &[Member], loads: &[Load]) -> usize {
        let load = |index: usize| loads[index].active * 256 + loads[index].inactive;
        let weight = |index: usize| u64::from(members[index].weight);
        (1..members.len()).fold(0, |least, index| {
            if load(index) * weight(least) < load(least) * weight(index) {
                index
            } else {
                least
            }
        })
    }
}

/// What a scheduler made of a trace.
#[derive(Debug, Default)]
struct Evenness {
    /// How many live connections the fullest backend had above its share, on average over
    /// time.
    excess: f64,
    /// Of the connections of the second after a backend joined, the part that it got.
    rush: f64,
}

/// What weights of backends are called, and those, by number.
type Weights = (&'static str, fn(u32) -> u32);

/// A trace for so many backends, of which one joins.
fn run(
    choose: &mut dyn Choose,
    trace: &[Connection],
    backends: u32,
    weight: fn(u32) -> u32,
) -> Evenness {
    let last = backends as usize - 1;
    let mut members: Vec<Member> = (1..backends).map(|id| member(id, weight(id), id)).collect();
    let mut loads = vec![Load::default(); backends as usize];
    // When something becomes of a connection, of which backend, and whether it is forgotten.
    let mut ends = BinaryHeap::new();
    let mut evenness = Evenness::default();
    let (mut samples, mut rush, mut rushed) = (0_u32, 0_u32, 0_u32);
    let mut next_sample = STEADY;
    for (begin, end) in trace {
        while let Some(Reverse((at, index, is_forgotten))) = ends.peek().copied() {
            if at > *begin {
                break;
            }
            ends.pop();
            let load: &mut Load = &mut loads[index];
            if is_forgotten {
                load.inactive -= 1;
            } else {
                load.active -= 1;
                load.inactive += 1;
                ends.push(Reverse((at + INACTIVE, index, true)));
            }
        }
        if *begin >= JOIN && members.len() == last {
            members.push(member(backends, weight(backends), backends));
        }
        // Not while the backend that joined fills up.
        let is_steady = *begin < JOIN || *begin > JOIN + 150 * SECOND;
        if *begin >= next_sample && is_steady {
            next_sample += SECOND;
            samples += 1;
            evenness.excess += excess(&members, &loads);
        }
        let index = choose.choose(&members, &loads);
        if (JOIN..JOIN + SECOND).contains(begin) {
            rush += 1;
            rushed += u32::from(index == last);
        }
        loads[index].active += 1;
        ends.push(Reverse((*end, index, false)));
    }
    evenness.excess /= f64::from(samples);
    evenness.rush = f64::from(rushed) / f64::from(rush.max(1));
    evenness
}

/// How many connections the fullest backend has above its share.
fn excess(members: &[Member], loads: &[Load]) -> f64 {
    let live: u64 = loads.iter().map(|load| load.active).sum();
    let weights: u32 = members.iter().map(|m| m.weight).sum();
    let above = members.iter().zip(loads).map(|(member, load)| {
        let share = live as f64 * f64::from(member.weight) / f64::from(weights);
        load.active as f64 - share
    });
    above.fold(0.0, f64::max)
}

/// Both schedulers with the same traces, of so many connections a second for each backend:
/// `least-connections` first.
fn both(backends: u32, each_second: u64, (name, weight): &Weights, traces: u64) -> [f64; 2] {
    let mut of = [0.0; 2];
    let mut rush = [0.0; 2];
    for seed in 0..traces {
        let trace = trace(seed, each_second * u64::from(backends));
        let mut ours = LeastConnections::default();
        let schedulers: [&mut dyn Choose; 2] = [&mut ours, &mut Wlc];
        for (index, choose) in schedulers.into_iter().enumerate() {
            let evenness = run(choose, &trace, backends, *weight);
            of[index] += evenness.excess / traces as f64;
            rush[index] += 100.0 * evenness.rush / traces as f64;
        }
    }
    say(format_args!(
        "spread: {backends} backends of {name} weights, {each_second} connections a second for \
         each: the fullest has {:.2} above its share, with wlc {:.2}; one that joins gets {:.0}% \
         of those of the next second, with wlc {:.0}%",
        of[0], of[1], rush[0], rush[1],
    ));
    of
}

const EQUAL: Weights = ("equal", |_| 100);
const TWO_TO_ONE: Weights = ("single and double", |id| {
    if id.is_multiple_of(3) { 200 } else { 100 }
});
const MIXED: Weights = ("mixed", |id| [100, 37, 250, 91, 1_000, 63][id as usize % 6]);

/// By how much a few traces may be unlucky for one scheduler or the other, which give the same
/// connection to other backends: three times what the mean of these traces deviates.
const CHANCE: f64 = 0.1;

/// The fullest backend has no more above its share than `wlc` gives it, of few backends and of
/// many, though no new flow looks at more than a few of them.
#[test]
fn least_connections_is_as_even_as_wlc() {
    let mut sum = [0.0; 2];
    for (backends, each_second, traces, weights) in [
        (2, 5, 6, &[EQUAL, TWO_TO_ONE, MIXED][..]),
        (4, 1, 12, &[EQUAL, TWO_TO_ONE, MIXED]),
        (4, 20, 2, &[EQUAL, TWO_TO_ONE, MIXED]),
        (20, 1, 8, &[EQUAL, TWO_TO_ONE, MIXED]),
        (20, 5, 2, &[EQUAL, TWO_TO_ONE, MIXED]),
        (100, 1, 2, &[EQUAL, TWO_TO_ONE, MIXED]),
        (1_000, 1, 1, &[EQUAL]),
    ] {
        for weights in weights {
            let [ours, wlc] = both(backends, each_second, weights, traces);
            assert!(ours <= wlc + CHANCE, "{backends}: {ours} against {wlc}");
            sum[0] += ours;
            sum[1] += wlc;
        }
    }
    assert!(sum[0] <= sum[1], "{sum:?}");
}
