//! What a change moves, what a balancer without state knows, and how even rings are.

use std::{collections::BTreeMap, time::Instant};

use lb_common::ring::{NO_BACKEND, Slot};
use lb_tests::soak::say;
use lb_userspace::{
    scheduler::{self, Member, RingSize},
    state::Scheduler,
};

use crate::{
    rule,
    world::{IDLE, World, member, owners},
};

/// Flows of the worlds here.
const FLOWS: usize = 20_000;

/// A world of ten backends with slots of every state, in which every flow has spoken
/// a short while ago.
fn unsettled(seed: u64) -> World {
    let mut world = World::new(seed, 10, FLOWS);
    world.run_until(IDLE);
    let drain = |world: &mut World, index: usize, drains: bool| {
        world.backends[index].drains = drains;
        world.retarget();
        world.write();
        let until = world.now + 100;
        world.run_until(until);
    };
    drain(&mut world, 0, true);
    drain(&mut world, 0, false);
    drain(&mut world, 1, true);
    world
}

/// Flows that have a backend by now: where a packet of them would go.
fn places(world: &World, ring: &[Slot], with_entries: bool) -> Vec<(u32, u32, Slot)> {
    let is_there = |id: u32| world.is_there.get(id as usize).copied().unwrap_or_default();
    let known = world.flows.iter().filter(|flow| flow.home != NO_BACKEND);
    let place = |flow: &crate::world::Flow| {
        let slot = ring[flow.slot as usize];
        let entry = Some(flow.entry).filter(|id| with_entries && *id != NO_BACKEND);
        let verdict = rule::packet(slot, entry, false, is_there);
        (flow.home, verdict.backend, slot)
    };
    known.map(place).collect()
}

#[test]
fn a_backend_that_is_removed_takes_no_other_flow_with_it() {
    for removed in [2, 5, 9] {
        let mut world = unsettled(removed);
        let id = world.backends[removed as usize].member.id;
        let before = world.ring.clone();
        let slots = world.flows.iter().filter(|flow| flow.home != NO_BACKEND);
        let states: Vec<Slot> = slots.map(|flow| before[flow.slot as usize]).collect();
        world.remove(removed as usize);
        let after = places(&world, &world.ring, true);
        let others = after
            .iter()
            .zip(&states)
            .filter(|((home, ..), _)| *home != id);
        let mut kept = [0_u32; 3];
        for ((home, now, _), state) in others {
            assert_eq!(home, now, "a flow at {state:?}");
            kept[if state.is_clean() {
                0
            } else if state.is_changing() {
                1
            } else {
                2
            }] += 1;
        }
        assert!(kept.iter().all(|kept| *kept > 500), "{kept:?}");
    }
}

#[test]
fn a_balancer_without_state_sends_nearly_all_to_the_same() {
    type Step = fn(&mut World);
    let steps: [(&str, Step); 4] = [
        ("removed", |world| world.remove(4)),
        ("drained", |world| world.backends[4].drains = true),
        ("down", |world| world.backends[4].is_up = false),
        ("added", |world| {
            let id = world.is_there.len() as u32;
            world.is_there.push(true);
            let mut backend = world.backends[0];
            backend.member = member(id, 100, id);
            world.backends.push(backend);
        }),
    ];
    for (name, step) in steps {
        let mut world = World::new(7, 10, FLOWS);
        for backend in &mut world.backends {
            backend.member.weight = 100;
        }
        world.retarget();
        world.write();
        // A generation of flows later nothing tells of the weights that were.
        let mut fresh = World::new(8, 0, FLOWS);
        fresh.backends = world.backends.clone();
        fresh.is_there = world.is_there.clone();
        fresh.retarget();
        fresh.write();
        fresh.run_until(IDLE);
        let mut world = fresh;
        step(&mut world);
        world.retarget();
        world.write();
        // It may know its backends in another order.
        let mut members = world.members();
        members.reverse();
        let other: Vec<Slot> = owners(&members).into_iter().map(Slot::clean).collect();
        let (mut alive, mut same, mut clean) = (0_u32, 0_u32, 0_u32);
        let first = places(&world, &world.ring, true);
        let second = places(&world, &other, false);
        for ((home, by_first, slot), (_, by_second, _)) in first.iter().zip(&second) {
            if !world.is_there[*home as usize] {
                continue;
            }
            assert_eq!(home, by_first);
            alive += 1;
            same += u32::from(by_first == by_second);
            if slot.is_clean() {
                assert_eq!(by_first, by_second);
                clean += 1;
            }
        }
        let share = f64::from(same) / f64::from(alive);
        say(format_args!(
            "spread: a backend of 10 {name}: the other balancer sends {:.2}% of {alive} flows \
             to the same backend, {clean} of them by clean slots",
            100.0 * share
        ));
        let backends = world.backends.len().max(10) as f64;
        assert!(share >= 1.0 - 1.0 / backends - 0.01, "{name}: {share}");
        assert!(clean > alive / 2);
    }
}

fn counts(owners: &[u32]) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    for id in owners {
        *counts.entry(*id).or_default() += 1;
    }
    counts
}

#[test]
fn a_thousand_backends_have_their_shares_within_a_percent() {
    let members: Vec<Member> = (1..=1_000).map(|id| member(id, 100, id)).collect();
    let start = Instant::now();
    let owners = owners(&members);
    let took = start.elapsed();
    let share = owners.len() as f64 / members.len() as f64;
    let counts = counts(&owners);
    assert_eq!(counts.len(), members.len());
    let far = counts
        .values()
        .map(|slots| (*slots as f64 / share - 1.0).abs());
    let furthest = far.fold(0.0, f64::max);
    say(format_args!(
        "spread: maglev, 1,000 backends: {:.2}% from its share at most, made in {took:.1?}",
        100.0 * furthest
    ));
    assert!(furthest <= 0.01, "{furthest}");
}

#[test]
fn round_robin_is_exact() {
    // They add up to 60,380: of the ring's slots the counter goes through so many.
    let weight = |id: u32| 1 + id * 31 % 120;
    let members: Vec<Member> = (1..=1_000).map(|id| member(id, weight(id), id)).collect();
    let start = Instant::now();
    let ring = scheduler::ring(Scheduler::RoundRobin, &members, RingSize::DEFAULT);
    say(format_args!(
        "spread: round-robin, 1,000 backends: {} turns, made in {:.1?}",
        ring.turns,
        start.elapsed()
    ));
    let turns = counts(&ring.owners[..ring.turns as usize]);
    let total: u64 = members.iter().map(|m| u64::from(m.weight)).sum();
    for member in &members {
        let part = u64::from(ring.turns) * u64::from(member.weight);
        assert_eq!(turns[&member.id] as u64 * total, part);
    }
}
