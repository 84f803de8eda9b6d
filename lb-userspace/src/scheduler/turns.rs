//! Round-robin with weights, smoothly: however long a part of the sequence from its
//! beginning on is taken, each backend has its share of it, rounded up or down.
//!
//! Turn `k` of a backend whose share is `1 / p` belongs between the times `k * p` and
//! `(k + 1) * p`, from 0 on, where each turn of the sequence takes a unit of time. Of the
//! backends whose next turn may be taken, the one takes it whose turn would be over first.
//! As the shares add up to 1, none is ever late (Baruah et al., "Proportionate Progress: A
//! Notion of Fairness in Resource Allocation", Algorithmica 15, 1996).

use std::{cmp::Reverse, collections::BinaryHeap};

use lb_common::service::LOOKS;

use super::{Filled, Member, RingSize, size::is_prime};

/// The ring of a service whose new flows take its slots one after the other.
pub(super) fn round_robin(members: &[Member], size: RingSize) -> Filled {
    let size = size.get();
    let (owners, period) = in_turn(&super::in_order(members), size);
    Filled {
        owners,
        turns: size - size.checked_rem(period).unwrap_or(size),
    }
}

/// The ring of a service whose new flows look at [`LOOKS`] slots, and choose among their
/// backends by weight. Each has one where all can be looked at. Else they have slots in
/// proportion to their weights: one that is to get more than its part of all flows must be
/// seen as often.
pub(super) fn least_connections(members: &[Member], size: RingSize) -> Filled {
    let mut members = super::in_order(members);
    let sees_all = members.len() <= LOOKS as usize;
    if sees_all {
        for member in &mut members {
            member.weight = 1;
        }
    }
    let (owners, period) = in_turn(&members, size.get());
    let turns = if sees_all {
        period
    } else {
        // Those of the sequence, and some of its repetition, until they are a prime number,
        // as the slots of the ring are.
        let prime = (period..size.get()).find(|slots| is_prime(*slots));
        prime.unwrap_or(size.get())
    };
    Filled { owners, turns }
}

/// Who owns so many slots in smooth weighted order, and after how many of them it begins
/// again.
fn in_turn(members: &[Member], size: u32) -> (Vec<u32>, u32) {
    let divisor = members.iter().map(|m| m.weight).fold(0, greatest_divisor);
    let weights: Vec<u64> = members
        .iter()
        .map(|m| u64::from(m.weight / divisor))
        .collect();
    let total: u64 = weights.iter().sum();
    let period = total.min(size.into()) as usize;
    let once = sequence(&weights, period);
    let owners = match once.as_slice() {
        [] => vec![lb_common::ring::NO_BACKEND; size as usize],
        once => {
            let again = once.iter().cycle().take(size as usize);
            again.map(|index| members[*index as usize].id).collect()
        }
    };
    (owners, period as u32)
}

/// The first `length` turns: which backend has them.
fn sequence(weights: &[u64], length: usize) -> Vec<u32> {
    let total: u64 = weights.iter().sum();
    // By the turn from which on they may be taken: the backends that wait until then, each
    // with a link to the next.
    const NONE: u32 = u32::MAX;
    let mut first_waiting = vec![NONE; length];
    let mut next_waiting = vec![NONE; weights.len()];
    let mut turns_taken = vec![0_u64; weights.len()];
    // Turns that may be taken, by when they are over.
    let mut ready: BinaryHeap<_> = (0..)
        .zip(weights)
        .map(|(index, weight)| Reverse((total.div_ceil(*weight), index)))
        .collect();
    let mut sequence = Vec::with_capacity(length);
    for now in 0..length {
        let mut waiting = first_waiting[now];
        while waiting != NONE {
            let over = over(
                turns_taken[waiting as usize],
                weights[waiting as usize],
                total,
            );
            ready.push(Reverse((over, waiting)));
            waiting = next_waiting[waiting as usize];
        }
        let Some(Reverse((_, index))) = ready.pop() else {
            break;
        };
        sequence.push(index);
        let (taken, weight) = (&mut turns_taken[index as usize], weights[index as usize]);
        *taken += 1;
        // Not before the next turn: this one was taken in time.
        let from = (*taken * total / weight).max(now as u64 + 1) as usize;
        if let Some(first) = first_waiting.get_mut(from) {
            next_waiting[index as usize] = std::mem::replace(first, index);
        }
    }
    sequence
}

/// When the next turn of a backend is over that has taken so many of `total`.
fn over(taken: u64, weight: u64, total: u64) -> u64 {
    ((taken + 1) * total).div_ceil(weight)
}

/// Of both numbers; the other, if one is 0.
fn greatest_divisor(a: u32, b: u32) -> u32 {
    if b == 0 {
        a
    } else {
        greatest_divisor(b, a % b)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scheduler::tests::{member, members};

    /// The backends whose turns come, by number.
    fn sequence_of(weights: &[u32], size: u32) -> Vec<u32> {
        let size = RingSize::new(size).unwrap();
        let ring = round_robin(&members(weights.iter().copied()), size);
        assert_eq!(ring.owners.len(), size.get() as usize);
        ring.owners[..ring.turns as usize]
            .iter()
            .map(|id| id - 1)
            .collect()
    }

    /// Checks that of every part from the beginning on each backend has its share, rounded
    /// up or down.
    fn assert_smooth(weights: &[u32], sequence: &[u32]) {
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        let mut counts = vec![0_u64; weights.len()];
        for (turns, index) in (1..).zip(sequence) {
            counts[*index as usize] += 1;
            for (count, weight) in counts.iter().zip(weights) {
                let share = turns * u64::from(*weight);
                let bounds = share / total..=share.div_ceil(total);
                assert!(
                    bounds.contains(count),
                    "{count} of {turns} turns: {bounds:?}"
                );
            }
        }
    }

    #[test]
    fn turns_are_taken_smoothly() {
        assert_eq!(sequence_of(&[1, 1, 1], 3), [0, 1, 2]);
        assert_eq!(sequence_of(&[5, 1, 1], 7), [0, 0, 0, 1, 0, 0, 2]);
        assert_eq!(sequence_of(&[300, 100], 5), [0, 0, 0, 1]);
        assert_eq!(sequence_of(&[0, 7, 0], 5), [1; 5]);
    }

    #[test]
    fn the_sequence_is_repeated_as_often_as_it_fits() {
        let ring = round_robin(&members([2, 1]), RingSize::new(11).unwrap());
        assert_eq!(ring.owners, [1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1]);
        assert_eq!(ring.turns, 9);
    }

    #[test]
    fn without_backends_there_are_no_turns() {
        let ring = round_robin(&members([0, 0]), RingSize::DEFAULT);
        assert!(ring.owners.iter().all(|id| *id == 0));
        assert_eq!(ring.turns, 0);
    }

    #[test]
    fn the_order_of_backends_does_not_matter() {
        let members = [member(1, 3), member(2, 5), member(3, 7)];
        let mut other = members;
        other.reverse();
        let size = RingSize::DEFAULT;
        for ring in [round_robin, least_connections] {
            assert_eq!(ring(&other, size), ring(&members, size));
        }
    }

    #[test]
    fn few_backends_are_all_looked_at() {
        let size = RingSize::new(11).unwrap();
        let ring = least_connections(&members([500, 1, 0, 20]), size);
        assert_eq!(ring.owners, [1, 2, 4, 1, 2, 4, 1, 2, 4, 1, 2]);
        assert_eq!(ring.turns, 3);
        assert_eq!(least_connections(&members([0]), size).turns, 0);
        let all = least_connections(&members(vec![7; LOOKS as usize]), RingSize::DEFAULT);
        assert_eq!(all.turns, LOOKS);
        let more_than_slots = least_connections(&members(vec![7; 20]), size);
        assert_eq!(more_than_slots.turns, 11);
    }

    /// A stride through a prime number of slots meets none twice.
    #[test]
    fn many_backends_are_looked_at_in_proportion() {
        let weights = |n: u32| if n == 0 { 60 } else { 2 };
        let ring = least_connections(&members((0..40).map(weights)), RingSize::DEFAULT);
        // 30 and 39 slots, and two until 71.
        assert_eq!(ring.turns, 71);
        let owners = &ring.owners[..ring.turns as usize];
        let slots = |id| owners.iter().filter(|owner| **owner == id).count();
        assert!((30..=31).contains(&slots(1)));
        assert!((2..=40).all(|id| (1..=2).contains(&slots(id))));
        let size = RingSize::new(251).unwrap();
        assert_eq!(least_connections(&members(vec![1; 300]), size).turns, 251);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn shares_are_exact(weights in prop::collection::vec(1_u32..=40, 1..25)) {
            let sequence = sequence_of(&weights, 1_009);
            let total: u32 = weights.iter().sum();
            for (index, weight) in (0..).zip(&weights) {
                let turns = sequence.iter().filter(|turn| **turn == index).count();
                prop_assert_eq!(turns * total as usize, sequence.len() * *weight as usize);
            }
            assert_smooth(&weights, &sequence);
        }

        #[test]
        fn what_does_not_fit_is_near(weights in prop::collection::vec(1_u32..=65_535, 1..25)) {
            assert_smooth(&weights, &sequence_of(&weights, 1_009));
        }
    }
}
