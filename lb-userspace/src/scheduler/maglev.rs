//! Maglev hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI 2016, section 3.4) with weights.
//!
//! Every backend has a permutation of the slots, its order of preference, made from a
//! hash of its address. The backends take turns, each taking the slot that it prefers
//! most of those that are left, until none is. Weights decide how often a backend's turn
//! comes: turn `k` of a backend of weight `w` comes at the time `k / w`, from 0 on. So
//! each gets its share, rounded up: at least one slot, however small its weight beside the
//! others'. What is rounded up is taken from all alike: of `n` backends none gets less
//! than its share by more than one slot and, of a ring of `m`, the `n / m`th part of it. And since a
//! backend's preferences and times do not depend on the others, most slots stay when
//! another comes or goes.

use std::net::IpAddr;

use lb_common::ring::NO_BACKEND;

use super::{Member, RingSize};
use crate::{
    slots::SlotSet,
    state::{BackendAddress, BackendSpec},
};

/// Fills a ring, see [`super::ring`].
pub(super) fn ring(members: &[Member], size: RingSize) -> Vec<u32> {
    let size = size.get();
    let members = super::in_order(members);
    let mut slots = vec![NO_BACKEND; size as usize];
    // A bit for each slot stays in the nearest cache, where the search goes back and forth.
    let mut taken = SlotSet::new(size);
    let mut preferences: Vec<_> = members
        .iter()
        .map(|member| Preference::of(member.address, size))
        .collect();
    for index in Turns::new(&members).take(size as usize) {
        let slot = preferences[index].next(|slot| !taken.contains(slot));
        taken.insert(slot);
        slots[slot as usize] = members[index].id;
    }
    slots
}

/// Which backend's turn it is: their indexes in the order of the times `count / weight`; of
/// equal times in the order of indexes. Without end, unless there is no backend.
///
/// A slice of time after the other, in each of which all have about as many turns as there
/// are backends, is put in order. That takes a third of the time that a heap takes.
struct Turns {
    /// The next turn of each backend.
    next: Vec<Turn>,
    /// The turns of this slice, in their order.
    slice: Vec<(u64, u32)>,
    /// The first of these that was not taken.
    at: usize,
    /// Where the slice ends.
    end: u64,
    /// Length of a slice.
    step: u64,
}

/// Units of a time. Times that differ, differ by this fraction at least, since weights are
/// below its root: as numbers of this unit they are in the same order, rounded down or not.
const UNIT: u64 = 1 << 32;

const _: () = assert!((BackendSpec::MAX_WEIGHT as u64).pow(2) < UNIT);

/// A turn of a backend.
struct Turn {
    /// Its time, rounded down.
    time: u64,
    /// What was rounded away, in parts of the weight.
    rest: u64,
    weight: u64,
    /// From one turn to the next.
    step: u64,
    /// What is rounded away of that.
    step_rest: u64,
}

impl Turns {
    fn new(members: &[Member]) -> Self {
        let total: u64 = members.iter().map(|m| u64::from(m.weight)).sum();
        // Not so few that a slice of a handful of backends costs more than its turns.
        let turns = members.len().max(1_024) as u64;
        Self {
            next: members.iter().map(|m| Turn::first(m.weight)).collect(),
            slice: Vec::new(),
            at: 0,
            end: 0,
            step: (UNIT * turns).div_ceil(total.max(1)),
        }
    }
}

impl Iterator for Turns {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        while self.at == self.slice.len() {
            if self.next.is_empty() {
                return None;
            }
            self.slice.clear();
            self.at = 0;
            self.end += self.step;
            for (index, turn) in (0..).zip(&mut self.next) {
                while turn.time < self.end {
                    self.slice.push((turn.time, index));
                    turn.advance();
                }
            }
            self.slice.sort_unstable();
        }
        let (_, index) = self.slice[self.at];
        self.at += 1;
        Some(index as usize)
    }
}

impl Turn {
    /// The first turn of a backend of this weight, at the time 0.
    fn first(weight: u32) -> Self {
        let weight = u64::from(weight);
        Self {
            time: 0,
            rest: 0,
            weight,
            step: UNIT / weight,
            step_rest: UNIT % weight,
        }
    }

    /// On to the next turn of the same backend.
    fn advance(&mut self) {
        self.time += self.step;
        self.rest += self.step_rest;
        if self.rest >= self.weight {
            self.rest -= self.weight;
            self.time += 1;
        }
    }
}

/// Where a backend is in its permutation of the slots: `offset + j * skip` modulo the
/// size of the ring, for `j` from 0 on. The size being prime, every slot comes once.
struct Preference {
    slot: u32,
    skip: u32,
    size: u32,
}

impl Preference {
    fn of(address: BackendAddress, size: u32) -> Self {
        let hash = hash(address);
        Self {
            slot: (hash % u64::from(size)) as u32,
            skip: (mix(hash) % u64::from(size - 1)) as u32 + 1,
            size,
        }
    }

    /// The next slot that is free. There must be one.
    fn next(&mut self, is_free: impl Fn(u32) -> bool) -> u32 {
        loop {
            let slot = self.slot;
            self.slot += self.skip;
            if self.slot >= self.size {
                self.slot -= self.size;
            }
            if is_free(slot) {
                return slot;
            }
        }
    }
}

/// A hash of a backend's address: FNV-1a, whose bits are then mixed, because addresses of
/// backends differ in few of theirs. The same on every host and in every version.
fn hash(address: BackendAddress) -> u64 {
    let fnv = |bytes: &[u8]| {
        let port = address.port.number().unwrap_or_default().to_be_bytes();
        bytes
            .iter()
            .chain(&port)
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            })
    };
    mix(match address.ip {
        IpAddr::V4(ip) => fnv(&ip.octets()),
        IpAddr::V6(ip) => fnv(&ip.octets()),
    })
}

/// Spreads every bit of a word over all of them (the finalizer of MurmurHash3).
const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let word = (word ^ (word >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ (word >> 33)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use lb_common::ring::RING_SIZE;

    use super::*;
    use crate::scheduler::tests::members;

    /// A ring of the usual size.
    fn ring(members: &[Member]) -> Vec<u32> {
        super::ring(members, RingSize::DEFAULT)
    }

    fn slots_by_id(ring: &[u32]) -> BTreeMap<u32, u32> {
        let mut slots = BTreeMap::new();
        for id in ring {
            *slots.entry(*id).or_default() += 1;
        }
        slots
    }

    /// Checks that every member has its share of a full ring, within the bounds that the
    /// module promises.
    fn assert_shares(members: &[Member]) {
        let slots = slots_by_id(&ring(members));
        let total: u64 = members.iter().map(|m| u64::from(m.weight)).sum();
        for member in members {
            let got = f64::from(slots.get(&member.id).copied().unwrap_or_default());
            let share = f64::from(member.weight) / total as f64 * f64::from(RING_SIZE);
            let least = share * (1.0 - members.len() as f64 / f64::from(RING_SIZE)) - 1.0;
            let bounds = least.max(1.0)..=share.ceil();
            assert!(bounds.contains(&got), "{member:?}: {got} of {share}");
        }
        assert_eq!(slots.get(&NO_BACKEND), None);
    }

    /// Of the slots that backends keep which are there before and after, how many moved
    /// to another.
    fn moved(before: &[Member], after: &[Member]) -> f64 {
        let stays = |id: u32| after.iter().any(|m| m.id == id && m.weight != 0);
        let (old, new) = (ring(before), ring(after));
        let kept: Vec<_> = old
            .iter()
            .zip(new)
            .filter(|(old, _)| stays(**old))
            .collect();
        let moved = kept.iter().filter(|(old, new)| **old != *new).count();
        moved as f64 / kept.len() as f64
    }

    #[test]
    fn nobody_gets_nothing() {
        let empty = vec![NO_BACKEND; RING_SIZE as usize];
        assert_eq!(ring(&[]), empty);
        assert_eq!(ring(&members([0, 0])), empty);
    }

    #[test]
    fn the_smallest_weight_among_the_largest_gets_a_slot() {
        let mut members = members([65_535; 100]);
        members[42].weight = 1;
        assert_shares(&members);
    }

    #[test]
    fn a_thousand_equal_backends_differ_by_one_slot_at_most() {
        assert_shares(&members([100; 1_000]));
    }

    #[test]
    fn a_backend_that_goes_leaves_the_others_where_they_were() {
        for size in [2, 3, 10, 100, 1_000] {
            let before = members(std::iter::repeat_n(100, size));
            for gone in [0, size / 2, size - 1] {
                let mut after = before.clone();
                after.remove(gone);
                let moved = moved(&before, &after);
                assert!(moved < 0.02, "{gone} of {size}: {moved}");
            }
        }
    }

    #[test]
    fn a_changed_weight_moves_little_more_than_it_must() {
        let before = members([100; 10]);
        let mut after = before.clone();
        after[3].weight = 50;
        // Half of a tenth must move.
        let moved = moved(&before, &after);
        assert!((0.04..0.1).contains(&moved), "{moved}");
    }

    #[test]
    fn the_ring_of_today_is_the_ring_of_tomorrow() {
        // Balancers of different versions serve side by side: this never changes.
        let ring = ring(&members([1, 2, 3]));
        assert_eq!(ring[..16], [3, 1, 3, 3, 1, 1, 3, 3, 2, 1, 2, 2, 1, 3, 3, 3]);
    }

    /// The definition at the top, in so many words.
    fn by_definition(members: &[Member], size: u32) -> Vec<u32> {
        let members = crate::scheduler::in_order(members);
        let mut slots = vec![NO_BACKEND; size as usize];
        let mut counts = vec![0_u64; members.len()];
        let mut preferences: Vec<_> = members
            .iter()
            .map(|member| Preference::of(member.address, size))
            .collect();
        for _ in 0..size {
            let next = (0..members.len()).min_by(|a, b| {
                let weight = |index: usize| u64::from(members[index].weight);
                (counts[*a] * weight(*b)).cmp(&(counts[*b] * weight(*a)))
            });
            let Some(index) = next else { break };
            counts[index] += 1;
            let slot = preferences[index].next(|slot| slots[slot as usize] == NO_BACKEND);
            slots[slot as usize] = members[index].id;
        }
        slots
    }

    #[test]
    fn times_that_differ_least_are_told_apart() {
        let largest = BackendSpec::MAX_WEIGHT;
        let members = members([largest - 1, largest, largest - 2, largest]);
        assert_eq!(ring(&members), by_definition(&members, RING_SIZE));
    }

    #[test]
    fn equal_times_are_equal_however_they_are_rounded() {
        let members = members([3, 6, 7, 9, 14, 18, 28]);
        assert_eq!(ring(&members), by_definition(&members, RING_SIZE));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_ring_is_what_is_defined(
            weights in prop::collection::vec(0_u32..=BackendSpec::MAX_WEIGHT, 0..40),
            size in prop::sample::select(vec![2, 3, 31, 1_009, 4_099]),
        ) {
            let members = members(weights);
            let ring = super::ring(&members, RingSize::new(size).unwrap());
            prop_assert_eq!(ring, by_definition(&members, size));
        }

        #[test]
        fn every_backend_has_its_share(weights in prop::collection::vec(1_u32..=65_535, 1..200)) {
            assert_shares(&members(weights));
        }

        #[test]
        fn the_order_and_the_ids_do_not_matter(
            weights in prop::collection::vec(0_u32..=200, 1..50),
            seed in any::<u64>(),
        ) {
            let members = members(weights);
            let mut other = members.clone();
            other.sort_by_key(|member| mix(seed ^ u64::from(member.id)));
            for member in &mut other {
                member.id += 1_000;
            }
            let renamed: Vec<u32> = ring(&members)
                .into_iter()
                .map(|id| if id == NO_BACKEND { id } else { id + 1_000 })
                .collect();
            prop_assert_eq!(ring(&other), renamed);
        }

        #[test]
        fn without_weight_is_without_slots(
            weights in prop::collection::vec(prop_oneof![Just(0), 1_u32..=1_000], 1..50),
        ) {
            let members = members(weights);
            let weighty: Vec<Member> = members.iter().copied().filter(|m| m.weight != 0).collect();
            prop_assert_eq!(ring(&members), ring(&weighty));
        }
    }
}
