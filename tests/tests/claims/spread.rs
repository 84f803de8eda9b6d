//! What a change moves, and what a balancer without state knows.

use lb_common::ring::RING_SIZE;
use lb_tests::{Front, Site, soak::say};
use lb_userspace::state::{BackendAddress, ServiceSpec};

use crate::world::{Backend, Flow, IDLE, World, fronts, options, slot_fronts, state};

/// The flows that must go to a backend, and which services they belong to.
fn claims(world: &World) -> Vec<Flow> {
    let flows = world.flows.iter();
    flows
        .filter(|flow| world.has_claim(flow))
        .cloned()
        .collect()
}

/// Removes a backend after a random history, and lets all flows of the others speak at once.
/// Returns how many of them had slots that were clean, changing and pinned.
pub(crate) fn removal_moves_nobody(seed: u64, flows: usize, changes: u64) -> [u64; 3] {
    let mut world = World::new(seed, &fronts(), 10, flows);
    world.run_until(IDLE);
    world.live_through(changes);
    let before: Vec<_> = world
        .fronts
        .clone()
        .into_iter()
        .map(|front| (front, world.slots(front)))
        .collect();
    let indices = 0..world.backends.len();
    let removed = indices.rev().any(|index| world.remove(index));
    assert!(removed, "some backend can go");
    let mut states = [0; 3];
    for mut flow in claims(&world) {
        world.speak(&mut flow);
        let front = flow.connection.front;
        if !front.mode.translates() {
            let slots = before.iter().find(|(other, _)| *other == front);
            let (_, slots) = slots.expect("a ring of each service");
            states[state(World::slot(&flow, slots))] += 1;
        }
    }
    states
}

/// A balancer with the same configuration as that of a world, in another order, and with the
/// same backends up.
fn other_balancer(world: &mut World) -> Site {
    let mut services = Vec::new();
    for front in world.fronts.clone() {
        let mut spec: ServiceSpec = world.site.service(front);
        spec.backends.reverse();
        services.push(spec);
    }
    services.reverse();
    let is_up = |spec: &ServiceSpec, address: BackendAddress| {
        let front = world.fronts.iter().find(|front| front.name == spec.name);
        let front = front.expect("a service of this name");
        let named = |backend: &&Backend| front.backend(backend.number) == address;
        world.backends.iter().find(named).is_some_and(|b| b.is_up)
    };
    Site::with_health(options(0), services, is_up)
}

/// Sends a packet of each live flow through both. Returns how many there were, how many of
/// them went to the same backend, and how many had clean slots, all of which did.
fn compare(world: &mut World, other: &mut Site) -> (u64, u64, u64) {
    let (mut alive, mut same, mut clean) = (0, 0, 0);
    for front in world.fronts.clone() {
        let slots = world.slots(front);
        for mut flow in claims(world) {
            if flow.connection.front != front {
                continue;
            }
            world.speak(&mut flow);
            let by_other = flow.connection.clone().speak(other);
            alive += 1;
            same += u64::from(by_other == flow.home);
            if World::slot(&flow, &slots).is_clean() {
                assert_eq!(by_other, flow.home, "{flow:?}");
                clean += 1;
            }
        }
    }
    (alive, same, clean)
}

/// The flows of clean slots go to the same backend whatever came before.
pub(crate) fn clean_slots_agree(seed: u64, flows: usize, changes: u64) -> (u64, u64, u64) {
    let mut world = World::new(seed, &slot_fronts(), 10, flows);
    world.run_until(IDLE);
    world.live_through(changes);
    let mut other = other_balancer(&mut world);
    compare(&mut world, &mut other)
}

/// A change of one of ten backends, and of the others nothing is left. Which part of the flows
/// goes to the same backend follows from the slots that have not changed hands, up to what
/// chance makes of so many flows.
pub(crate) fn nearly_all_agree_after_a_change(seed: u64, flows: usize) {
    type Step = fn(&mut World);
    let steps: [(&str, Step); 4] = [
        ("removed", |world| assert!(world.remove(4))),
        ("drained", |world| world.set_drain(4, true)),
        ("down", |world| world.set_up(4, false)),
        ("added", |world| world.add_with_weight(100)),
    ];
    let fronts: Vec<(Front, u32)> = slot_fronts()
        .into_iter()
        .map(|(front, _)| (front, RING_SIZE))
        .collect();
    const LEAST: f64 = 1.0 - 1.0 / 10.0 - 0.01;
    for (name, step) in steps {
        let mut world = World::new(seed, &fronts, 10, flows);
        world.run_until(IDLE);
        step(&mut world);
        let mut other = other_balancer(&mut world);
        for front in &world.fronts {
            let (here, there) = (world.site.slots(*front), other.slots(*front));
            assert!(there.iter().all(|slot| slot.is_clean()));
            let same = here.iter().filter(|slot| !slot.is_changing()).count();
            let share = same as f64 / here.len() as f64;
            assert!(share >= LEAST, "{name}: {share} of the slots");
        }
        let (alive, same, clean) = compare(&mut world, &mut other);
        let share = same as f64 / alive as f64;
        let chance = 4.0 * (LEAST * (1.0 - LEAST) / alive as f64).sqrt();
        say(format_args!(
            "spread: a backend of 10 {name}: a balancer without state sends {:.2}% of {alive} \
             flows to the same backend, {clean} of them by clean slots",
            100.0 * share
        ));
        assert!(share >= LEAST - chance, "{name}: {share}");
        assert!(clean > alive / 2, "{name}: {clean} of {alive}");
    }
}
