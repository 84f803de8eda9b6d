//! How evenly `least-connections` spreads a mix of long and short connections, beside
//! IPVS's `wlc` (ipvsadm(8)): of all backends the one with the fewest connections for its
//! weight, where one that is over counts 1/256 until its entry is forgotten.

use std::{cmp::Reverse, collections::BinaryHeap};

use lb_common::ring::slot;
use lb_tests::{rng::Rng, soak::say};
use lb_userspace::scheduler::Member;

use crate::world::{member, owners};

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
struct LeastConnections {
    rng: Rng,
    owners: Vec<u32>,
    members: usize,
}

impl Choose for LeastConnections {
    fn choose(&mut self, members: &[Member], loads: &[Load]) -> usize {
        if self.members != members.len() {
            self.members = members.len();
            self.owners = owners(members);
        }
        let mut any = || {
            let slot = slot(self.rng.word() as u32, self.owners.len() as u32);
            self.owners[slot as usize] as usize - 1
        };
        let (one, other) = (any(), any());
        let load = |index: usize, against: usize| {
            (loads[index].active + 1) * u64::from(members[against].weight)
        };
        if load(other, one) < load(one, other) {
            other
        } else {
            one
        }
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
    /// In parts of the share.
    relative: f64,
    /// Of the connections of the second after a backend joined, the part that it got.
    rush: f64,
}

fn run(choose: &mut dyn Choose, trace: &[Connection]) -> Evenness {
    let weight = |id: u32| if id.is_multiple_of(3) { 200 } else { 100 };
    let mut members: Vec<Member> = (1..20).map(|id| member(id, weight(id), id)).collect();
    let mut loads = vec![Load::default(); 20];
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
        if *begin >= JOIN && members.len() == 19 {
            members.push(member(20, weight(20), 20));
        }
        // Not while the backend that joined fills up.
        let is_steady = *begin < JOIN || *begin > JOIN + 150 * SECOND;
        if *begin >= next_sample && is_steady {
            next_sample += SECOND;
            samples += 1;
            let (excess, relative) = excess(&members, &loads);
            evenness.excess += excess;
            evenness.relative += relative;
        }
        let index = choose.choose(&members, &loads);
        if (JOIN..JOIN + SECOND).contains(begin) {
            rush += 1;
            rushed += u32::from(index == 19);
        }
        loads[index].active += 1;
        ends.push(Reverse((*end, index, false)));
    }
    evenness.excess /= f64::from(samples);
    evenness.relative /= f64::from(samples);
    evenness.rush = f64::from(rushed) / f64::from(rush);
    evenness
}

/// What the fullest backend has above its share: connections, and parts of the share.
fn excess(members: &[Member], loads: &[Load]) -> (f64, f64) {
    let live: u64 = loads.iter().map(|load| load.active).sum();
    let weights: u32 = members.iter().map(|m| m.weight).sum();
    let above = members.iter().zip(loads).map(|(member, load)| {
        let share = live as f64 * f64::from(member.weight) / f64::from(weights);
        let excess = load.active as f64 - share;
        (excess, excess / share)
    });
    let more = |(a, b): (f64, f64), (c, d): (f64, f64)| (a.max(c), b.max(d));
    above.fold((0.0, 0.0), more)
}

/// Two choices cannot be as even as a look at all backends, but nearly so: with `n` of them
/// the fullest one is about `log2 log2 n` above the others, however many connections there
/// are (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001). In
/// return a backend that joins is not run over.
#[test]
fn least_connections_is_nearly_as_even_as_wlc_and_does_not_rush() {
    for each_second in [20, 100] {
        let trace = trace(11, each_second);
        let mut ours = LeastConnections {
            rng: Rng::new(12),
            owners: Vec::new(),
            members: 0,
        };
        let ours = run(&mut ours, &trace);
        let wlc = run(&mut Wlc, &trace);
        for (name, of) in [("least-connections", &ours), ("wlc", &wlc)] {
            say(format_args!(
                "spread: {each_second} connections a second, {name}: the fullest backend has \
                 {:.2} ({:.2}%) above its share; one that joins gets {:.1}% of those of the \
                 next second",
                of.excess,
                100.0 * of.relative,
                100.0 * of.rush,
            ));
        }
        assert!(ours.excess <= wlc.excess + 20_f64.log2().log2());
        assert!(ours.rush < wlc.rush / 5.0);
    }
}
