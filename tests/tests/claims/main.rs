//! What `docs/selection.md` claims, shown on the real program by packets, with the daemon's
//! own code beside it, in a time of the tests' own. Each is run here in part, and whole by
//! `cargo xtask soak`, which says by the environment how much there is of everything:
//!
//! - `LB_CLAIMS_SEED`: the seed of all that is random, another one each time if none
//! - `LB_CLAIMS_FLOWS`, `LB_CLAIMS_CHANGES`: flows at a time, and changes of the backends

mod spread;
mod world;

use lb_tests::{
    in_network_namespace,
    soak::{number, say, seed},
};

/// A number from the environment, or what is enough for every day.
fn size(name: &str, usual: u64) -> u64 {
    number(name).unwrap_or(usual)
}

/// The seed, which is said.
fn said_seed(claim: &str) -> u64 {
    let seed = seed("LB_CLAIMS_SEED");
    say(format_args!("{claim}: LB_CLAIMS_SEED={seed}"));
    seed
}

#[test]
fn no_flow_moves() {
    let seed = said_seed("stability");
    let flows = size("LB_CLAIMS_FLOWS", 10_000) as usize;
    let changes = size("LB_CLAIMS_CHANGES", 20);
    let figures = in_network_namespace(|| {
        let mut world = world::World::new(seed, &world::fronts(), 10, flows);
        world.run_until(world::IDLE);
        world.live_through(changes);
        world.figures
    });
    say(&figures);
    assert!(figures.slots.iter().all(|slots| *slots > 0), "{figures:?}");
}

#[test]
fn a_backend_that_goes_takes_no_other_flow_with_it() {
    let seed = said_seed("removal");
    let flows = size("LB_CLAIMS_FLOWS", 5_000) as usize / 5;
    let mut states = [0; 3];
    for seed in seed..seed + 5 {
        let seen = in_network_namespace(|| spread::removal_moves_nobody(seed, flows, 4));
        for (sum, seen) in states.iter_mut().zip(seen) {
            *sum += seen;
        }
    }
    say(format_args!(
        "removal: after 5 histories the flows of other backends stayed: {} of clean slots, {} of \
         changing, {} of pinned ones",
        states[0], states[1], states[2]
    ));
    assert!(states.iter().sum::<u64>() > 0);
}

#[test]
fn a_balancer_without_state_sends_flows_of_clean_slots_to_the_same_backends() {
    let seed = said_seed("takeover");
    let flows = size("LB_CLAIMS_FLOWS", 5_000) as usize / 5;
    for seed in seed..seed + 3 {
        let (alive, same, clean) =
            in_network_namespace(|| spread::clean_slots_agree(seed, flows, 4));
        say(format_args!(
            "takeover: after 4 changes a balancer without state sends {same} of {alive} flows to \
             the same backend, all {clean} of clean slots among them"
        ));
    }
}

#[test]
fn a_balancer_without_state_sends_nearly_all_flows_to_the_same_backends_after_a_change() {
    let seed = said_seed("takeover");
    let flows = size("LB_CLAIMS_FLOWS", 20_000) as usize / 4;
    in_network_namespace(|| spread::nearly_all_agree_after_a_change(seed, flows));
}
