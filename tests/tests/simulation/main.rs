//! Simulations of `docs/selection.md`: whether flows keep their backends, and how evenly
//! they are spread. Of the project's code there are the slots' state machine and the rings
//! in it; what becomes of a packet is written again, from the text.
//!
//! `LB_SIMULATION_FLOWS` says how many flows there are at a time, `LB_SIMULATION_CHANGES`
//! how often the backends change, `LB_SIMULATION_SEED` which flows and changes they are.

mod changes;
mod least_connections;
mod rule;
mod spread;
mod world;

use lb_tests::soak::{number, say, seed};

/// Flows at a time, unless the environment says another number.
const FLOWS: u64 = 10_000;
/// Changes of the backends, unless the environment says another number.
const CHANGES: u64 = 40;

#[test]
fn no_flow_moves() {
    let flows = number("LB_SIMULATION_FLOWS").unwrap_or(FLOWS);
    let changes = number("LB_SIMULATION_CHANGES").unwrap_or(CHANGES);
    let seed = seed("LB_SIMULATION_SEED");
    say(format_args!(
        "simulation: {flows} flows at a time, {changes} changes, from seed {seed}"
    ));
    let figures = changes::run(seed, flows as usize, changes);
    say(&figures);
    assert!(figures.changing > 0 && figures.pinned > 0 && figures.clean > 0);
}
