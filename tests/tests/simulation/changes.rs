//! Random changes of the backends, and all that goes on meanwhile.

use lb_tests::rng::Rng;

use crate::world::{Figures, IDLE, Time, World};

#[derive(Clone, Copy)]
enum Change {
    Add,
    Remove,
    Weight,
    Drain,
    Flap,
    AllFlap,
}

/// Runs so many flows through so many changes. Panics where one moves.
pub(crate) fn run(seed: u64, flows: usize, changes: u64) -> Figures {
    let mut world = World::new(seed, 20, flows);
    world.run_until(IDLE);
    for _ in 0..changes {
        change(&mut world);
        world.figures.changes += 1;
        if world.rng.percent(5) {
            let until = world.now + up_to(&mut world.rng, 2 * IDLE);
            world.fill_table(until);
        }
        if world.rng.percent(5) {
            world.restart();
            write_late(&mut world);
        }
        // Changes come in bursts, or when the last one is forgotten.
        let most = world
            .rng
            .weighted(&[(40, 50), (30, IDLE / 2), (30, 3 * IDLE)]);
        let until = world.now + up_to(&mut world.rng, most);
        go_on(&mut world, until);
    }
    world.figures
}

fn up_to(rng: &mut Rng, most: Time) -> Time {
    rng.below(most as usize + 1) as Time
}

/// What the daemon does until a time.
fn go_on(world: &mut World, until: Time) {
    while world.now < until {
        let pause = 1 + up_to(&mut world.rng, IDLE / 3);
        world.run_until(until.min(world.now + pause));
        // In any order: a sweep may have begun before the last change.
        match world.rng.below(3) {
            0 => world.tick(),
            1 => world.begin_sweep(),
            _ => world.end_sweep(),
        }
        write_late(world);
    }
}

/// Writes the ring if there is something to write, a while after it was decided.
fn write_late(world: &mut World) {
    if !world.slots.is_written() {
        let until = world.now + up_to(&mut world.rng, 5);
        world.run_until(until);
        world.write();
    }
}

fn change(world: &mut World) {
    let change = world.rng.weighted(&[
        (20, Change::Add),
        (20, Change::Remove),
        (20, Change::Weight),
        (20, Change::Drain),
        (19, Change::Flap),
        (1, Change::AllFlap),
    ]);
    let index = world.rng.below(world.backends.len());
    match change {
        Change::Add => world.add(),
        Change::Remove => world.remove(index),
        Change::Weight => {
            let weight = world.rng.range(1, 300) as u32;
            world.backends[index].member.weight = weight;
        }
        Change::Drain => world.backends[index].drains ^= true,
        Change::Flap => flap(world, index..index + 1),
        Change::AllFlap => flap(world, 0..world.backends.len()),
    }
    world.retarget();
    write_late(world);
}

/// Backends go down, and come back a little later.
fn flap(world: &mut World, which: std::ops::Range<usize>) {
    for is_up in [false, true] {
        for backend in &mut world.backends[which.clone()] {
            backend.is_up = is_up;
        }
        world.retarget();
        write_late(world);
        let until = world.now + up_to(&mut world.rng, 300);
        world.run_until(until);
    }
}
