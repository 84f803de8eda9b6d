//! Random packets through the real program and through the reference model: whatever
//! comes, both must do the same to the bit, and count the same.
//!
//! The packets come in worlds of [`WORLD`]: each a random configuration and what happens
//! in it. `LB_MODEL_PACKETS` says how many packets there are in all, `LB_MODEL_SEED` from
//! which seed the first world is made; both are printed. A mismatch tells the seed of its
//! world and the command that repeats it.

mod configuration;
mod explain;
mod maps;
mod mutation;
mod state;
mod traffic;
mod world;

use std::time::Instant;

use lb_tests::{
    in_network_namespace,
    soak::{number, say, seed},
};
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

use crate::world::{Fuzzer, WORLD};

/// Packets unless the environment says another number.
const PACKETS: u64 = 300_000;

/// Keeps this thread where it is: what is limited per CPU is so for all packets together.
fn stay_on_this_cpu() {
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu().expect("the CPU"))
        .expect("its place");
    sched_setaffinity(Pid::from_raw(0), &cpus).expect("to stay there");
}

#[test]
fn program_and_model_agree() {
    let packets = number("LB_MODEL_PACKETS").unwrap_or(PACKETS);
    let seed = seed("LB_MODEL_SEED");
    say(format_args!("model: {packets} packets from seed {seed}"));
    in_network_namespace(|| {
        stay_on_this_cpu();
        let start = Instant::now();
        let mut fuzzer = Fuzzer::new();
        let mut left = packets;
        let mut next = seed;
        while left > 0 {
            let count = left.min(WORLD);
            if let Err(mismatch) = fuzzer.world(next, count) {
                panic!("{mismatch}");
            }
            left -= count;
            next = next.wrapping_add(1);
        }
        let seconds = start.elapsed().as_secs_f64();
        say(format_args!(
            "model: {packets} packets in {} worlds, {:.0} a second, no mismatch",
            packets.div_ceil(WORLD),
            packets as f64 / seconds
        ));
        say(fuzzer.figures);
    });
}
