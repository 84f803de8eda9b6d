//! Which backends of a service take new flows: tiers, and what happens without any.

use std::collections::BTreeMap;

use super::Member;
use crate::state::{OnEmpty, Quorum, ServiceSpec};

/// Whether a backend could take new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// It can.
    Up,
    /// Its health check says that it cannot.
    Down,
    /// It must not, or packets do not reach it: no mistake of a check would change that.
    Out,
}

/// A backend that may become a member of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What it would be in the ring.
    pub member: Member,
    /// Its tier: the lowest serves first.
    pub priority: u32,
    /// Whether it could take flows.
    pub availability: Availability,
}

/// The members of the ring of a service: where fewer of its backends are up than its panic
/// threshold says, all that a mistake of a check may have taken out, whatever their tier; else
/// [`members`].
#[must_use]
pub fn members_or_all(candidates: &[Candidate], spec: &ServiceSpec) -> Vec<Member> {
    let can = candidates.iter().filter(|candidate| {
        candidate.availability != Availability::Out && candidate.member.weight != 0
    });
    let is_up = |candidate: &&Candidate| candidate.availability == Availability::Up;
    let (up, all) = (can.clone().filter(is_up).count(), can.clone().count());
    match spec.panic_threshold {
        Some(threshold) if !threshold.is_met(up, all) => {
            can.map(|candidate| candidate.member).collect()
        }
        _ => members(candidates, spec.quorum, spec.on_empty),
    }
}

/// The members of the ring, in the order of `candidates`: the available ones of the first
/// tier, and of each further one while those above are fewer than the quorum. Where none
/// is available, `on_empty` says whether all that are [`Availability::Down`] are taken as
/// up.
#[must_use]
pub fn members(candidates: &[Candidate], quorum: Quorum, on_empty: OnEmpty) -> Vec<Member> {
    let up = serving(candidates, quorum, |availability| {
        availability == Availability::Up
    });
    if !up.is_empty() || on_empty == OnEmpty::Drop {
        return up;
    }
    serving(candidates, quorum, |availability| {
        availability != Availability::Out
    })
}

fn serving(
    candidates: &[Candidate],
    quorum: Quorum,
    serves: impl Fn(Availability) -> bool,
) -> Vec<Member> {
    let serves =
        |candidate: &Candidate| serves(candidate.availability) && candidate.member.weight != 0;
    let mut tiers = BTreeMap::<u32, (usize, usize)>::new();
    for candidate in candidates {
        let (available, all) = tiers.entry(candidate.priority).or_default();
        *available += usize::from(serves(candidate));
        *all += 1;
    }
    let mut above = (0, 0);
    let mut last = None;
    for (priority, (available, all)) in tiers {
        if last.is_some() && quorum.is_met(above.0, above.1) {
            break;
        }
        above = (above.0 + available, above.1 + all);
        last = Some(priority);
    }
    candidates
        .iter()
        .filter(|candidate| Some(candidate.priority) <= last && serves(candidate))
        .map(|candidate| candidate.member)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::{collection::vec, prelude::*, sample::select};

    use super::{Availability::*, *};
    use crate::state::{BackendAddress, BackendPort};

    fn candidate(
        (number, (priority, availability, weight)): (u32, (u32, Availability, u32)),
    ) -> Candidate {
        let address = BackendAddress {
            ip: Ipv4Addr::from_bits(0x0a00_0000 + number).into(),
            port: BackendPort::Unnamed,
        };
        Candidate {
            member: Member {
                address,
                weight,
                id: number,
            },
            priority,
            availability,
        }
    }

    /// Ids of the members among backends of these priorities and states, from 0 on.
    fn ids(backends: &[(u32, Availability)], quorum: Quorum, on_empty: OnEmpty) -> Vec<u32> {
        let weighted = backends.iter().map(|(tier, state)| (*tier, *state, 1));
        let candidates: Vec<_> = (0..).zip(weighted).map(candidate).collect();
        let members = members(&candidates, quorum, on_empty);
        members.into_iter().map(|member| member.id).collect()
    }

    #[test]
    fn a_lower_tier_serves_beside_what_is_left_above() {
        let drop = |backends: &[_], quorum| ids(backends, quorum, OnEmpty::Drop);
        let two = Quorum::Count(2);
        assert_eq!(drop(&[(5, Up), (0, Up), (0, Up)], two), [1, 2]);
        assert_eq!(drop(&[(5, Up), (0, Down), (0, Up)], two), [0, 2]);
        assert_eq!(drop(&[(9, Up), (5, Up), (0, Out), (0, Up)], two), [1, 3]);
        assert_eq!(drop(&[(9, Up), (5, Out), (0, Out), (0, Up)], two), [0, 3]);
        let half = Quorum::Percent(50);
        assert_eq!(drop(&[(0, Up), (0, Down), (1, Up)], half), [0]);
        assert_eq!(drop(&[(0, Up), (0, Down), (0, Out), (1, Up)], half), [0, 3]);
    }

    #[test]
    fn with_fail_open_those_that_are_down_serve_in_their_tiers() {
        let open = |backends: &[_]| ids(backends, Quorum::Count(1), OnEmpty::FailOpen);
        assert_eq!(open(&[(0, Down), (0, Down), (1, Down)]), [0, 1]);
        assert_eq!(open(&[(0, Out), (1, Down), (1, Out)]), [1]);
        assert_eq!(open(&[(0, Down), (1, Up)]), [1]);
        assert_eq!(open(&[(0, Out)]), [] as [u32; 0]);
    }

    #[test]
    fn with_too_few_that_are_up_all_are_used() {
        let address = "192.0.2.1:80".parse().unwrap();
        let mut spec = ServiceSpec::new("web", address, crate::state::Mode::Nat);
        let mut ids = |threshold: Option<Quorum>, states: &[(u32, Availability)]| {
            spec.panic_threshold = threshold;
            let all = (0..).zip(states);
            let all: Vec<_> = all
                .map(|(number, (tier, state))| candidate((number, (*tier, *state, 1))))
                .collect();
            let members = members_or_all(&all, &spec);
            members.iter().map(|member| member.id).collect::<Vec<_>>()
        };
        let half = Some(Quorum::Percent(50));
        assert_eq!(ids(half, &[(0, Up), (0, Up), (0, Down), (0, Down)]), [0, 1]);
        let all = [0, 1, 2, 3];
        assert_eq!(ids(half, &[(0, Up), (0, Down), (0, Down), (0, Down)]), all);
        assert_eq!(ids(half, &[(0, Down); 4]), all, "also where none is up");
        assert_eq!(ids(None, &[(0, Up), (0, Down), (0, Down), (0, Down)]), [0]);
        let two = Some(Quorum::Count(2));
        assert_eq!(ids(two, &[(0, Up), (0, Down), (0, Out)]), [0, 1]);
        // What was taken out by hand, or cannot be reached, does not count.
        assert_eq!(ids(half, &[(0, Up), (0, Out), (0, Out), (0, Out)]), [0]);
        // Every tier helps.
        assert_eq!(ids(half, &[(0, Down), (0, Down), (1, Up)]), [0, 1, 2]);
    }

    fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0..4_u32, select(vec![Up, Down, Out]), 0..3_u32);
        vec(one, 0..12).prop_map(|all| (0..).zip(all).map(candidate).collect())
    }

    fn any_quorum() -> impl Strategy<Value = Quorum> {
        prop_oneof![
            (1..5_u32).prop_map(Quorum::Count),
            (1..=100_u32).prop_map(Quorum::Percent),
        ]
    }

    proptest! {
        #[test]
        fn somebody_serves_if_anybody_can(
            candidates in any_candidates(),
            quorum in any_quorum(),
            on_empty in select(vec![OnEmpty::Drop, OnEmpty::FailOpen]),
        ) {
            let members = members(&candidates, quorum, on_empty);
            let with = |state| {
                candidates.iter().any(|c| c.availability == state && c.member.weight != 0)
            };
            let fails_open = on_empty == OnEmpty::FailOpen && with(Down);
            prop_assert_eq!(members.is_empty(), !with(Up) && !fails_open);
        }

        /// A member's whole tier serves, and a tier is left out only because those above
        /// are enough.
        #[test]
        fn tiers_serve_whole_and_only_when_they_must(
            candidates in any_candidates(),
            quorum in any_quorum(),
        ) {
            let members = members(&candidates, quorum, OnEmpty::Drop);
            let serves = |c: &Candidate| c.availability == Up && c.member.weight != 0;
            for one in candidates.iter().filter(|c| serves(c)) {
                let enough_above = |priority| {
                    let above: Vec<_> =
                        candidates.iter().filter(|c| c.priority < priority).collect();
                    let up = above.iter().filter(|c| serves(c)).count();
                    !above.is_empty() && quorum.is_met(up, above.len())
                };
                let needed = !(0..=one.priority).any(enough_above);
                prop_assert_eq!(members.contains(&one.member), needed, "{:?}", one);
            }
            let can = |m: &Member| candidates.iter().any(|c| c.member == *m && serves(c));
            prop_assert!(members.iter().all(can));
        }

        #[test]
        fn who_comes_up_drives_nobody_of_its_tier_or_above_out(
            candidates in any_candidates(),
            quorum in any_quorum(),
            which: prop::sample::Index,
        ) {
            prop_assume!(!candidates.is_empty());
            let mut after = candidates.clone();
            let risen = which.index(after.len());
            after[risen].availability = Up;
            let priority = after[risen].priority;
            let before = members(&candidates, quorum, OnEmpty::Drop);
            let now = members(&after, quorum, OnEmpty::Drop);
            for one in candidates.iter().filter(|c| c.priority <= priority) {
                prop_assert!(!before.contains(&one.member) || now.contains(&one.member));
            }
        }
    }
}
