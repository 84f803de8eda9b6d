//! Maglev hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI 2016, section 3.4) with weights.
//!
//! Every backend has a permutation of the slots, its order of preference, made from a
//! hash of its address. The backends take turns, each taking the slot that it prefers
//! most of those that are left, until none is. Weights decide how often a backend's turn
//! comes: turn `k` of a backend of weight `w` comes at the time `k / w`, from 0 on. So
//! each gets its share, rounded up: at least one slot, however small its weight beside the
//! others'. What is rounded up is taken from all alike: of `n` backends none gets less
//! than its share by more than one slot and the `n / RING_SIZE`th part of it. And since a
//! backend's preferences and times do not depend on the others, most slots stay when
//! another comes or goes.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, binary_heap::PeekMut},
    net::IpAddr,
};

use lb_common::ring::{NO_BACKEND, RING_SIZE};

use super::Member;
use crate::state::BackendAddress;

/// Fills a ring, see [`super::ring`].
pub(super) fn ring(members: &[Member]) -> Vec<u32> {
    let mut members: Vec<&Member> = members.iter().filter(|m| m.weight != 0).collect();
    members.sort_unstable_by_key(|member| member.address);

    let mut slots = vec![NO_BACKEND; RING_SIZE as usize];
    let mut preferences: Vec<_> = members.iter().map(|m| Preference::of(m.address)).collect();
    let mut turns: BinaryHeap<_> = (0..)
        .zip(&members)
        .map(|(index, member)| {
            Reverse(Turn {
                count: 0,
                weight: member.weight,
                index,
            })
        })
        .collect();
    for _ in 0..RING_SIZE {
        let Some(mut turn) = turns.peek_mut() else {
            break;
        };
        let index = turn.0.index;
        let slot = preferences[index].next(|slot| slots[slot] == NO_BACKEND);
        slots[slot] = members[index].id;
        turn.0.count += 1;
        // The backend goes back among the others, by the time of its next turn.
        drop::<PeekMut<'_, _>>(turn);
    }
    slots
}

/// The next turn of a backend.
struct Turn {
    /// Turns that it has taken.
    count: u32,
    /// Its weight, at least 1.
    weight: u32,
    /// Which backend.
    index: usize,
}

impl Ord for Turn {
    /// By time, `count / weight`, without a division; of equal times in the order of
    /// addresses.
    fn cmp(&self, other: &Self) -> Ordering {
        let this = u64::from(self.count) * u64::from(other.weight);
        let that = u64::from(other.count) * u64::from(self.weight);
        this.cmp(&that).then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Turn {}

/// Where a backend is in its permutation of the slots: `offset + j * skip` modulo the
/// size of the ring, for `j` from 0 on. The size being prime, every slot comes once.
struct Preference {
    slot: u32,
    skip: u32,
}

impl Preference {
    fn of(address: BackendAddress) -> Self {
        let hash = hash(address);
        Self {
            slot: (hash % u64::from(RING_SIZE)) as u32,
            skip: (mix(hash) % u64::from(RING_SIZE - 1)) as u32 + 1,
        }
    }

    /// The next slot that is free. There must be one.
    fn next(&mut self, free: impl Fn(usize) -> bool) -> usize {
        loop {
            let slot = self.slot;
            self.slot += self.skip;
            if self.slot >= RING_SIZE {
                self.slot -= RING_SIZE;
            }
            if free(slot as usize) {
                return slot as usize;
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
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::state::BackendPort;

    fn member(number: u32, weight: u32) -> Member {
        Member {
            address: BackendAddress {
                ip: Ipv4Addr::from_bits(0x0a00_0000 + number).into(),
                port: BackendPort::Number(8_080),
            },
            weight,
            id: number + 1,
        }
    }

    fn members(weights: impl IntoIterator<Item = u32>) -> Vec<Member> {
        (0..).zip(weights).map(|(n, w)| member(n, w)).collect()
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

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
