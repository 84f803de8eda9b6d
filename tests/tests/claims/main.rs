//! What `docs/selection.md` claims, shown on the real program by packets, with the daemon's
//! own code beside it, in a time of the tests' own. Each is run here in part, and whole by
//! `cargo xtask soak`, which says by the environment how much there is of everything:
//!
//! - `LB_CLAIMS_SEED`: the seed of all that is random, another one each time if none
//! - `LB_CLAIMS_FLOWS`, `LB_CLAIMS_CHANGES`: flows at a time, and changes of the backends
//! - `LB_CLAIMS_SYNS`: SYNs of a flood
//! - `LB_CLAIMS_CONNECTIONS`: connections that are counted

mod counts;
mod flood;
mod spread;
mod world;

use lb_tests::{
    in_network_namespace,
    soak::{number, say, seed},
    with_bpf_file_system,
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

/// All is as large as it is by default where the flood is as long as it is claimed; else in
/// proportion.
fn flood(against: flood::Against, edit: impl FnOnce(&mut flood::Size)) {
    let syns = size("LB_CLAIMS_SYNS", 500_000);
    let mut size = if syns >= 20_000_000 {
        flood::Size {
            syns,
            each_second: 1_000_000,
            live: 50_000,
            new: 1_000,
            flows: 1_048_576,
            embryonic: 131_072,
            backends: 8,
        }
    } else {
        flood::Size {
            syns,
            each_second: 100_000,
            live: 5_000,
            new: 400,
            flows: 65_536,
            embryonic: 16_384,
            backends: 8,
        }
    };
    edit(&mut size);
    let figures = in_network_namespace(|| flood::run(against, size));
    say(&figures);
    assert_eq!(figures.lost, 0);
    assert!(figures.failed * 1_000 < figures.made, "{figures}");
}

#[test]
fn a_flood_at_clean_slots_takes_no_connection() {
    flood(flood::Against::Clean, |_| {});
}

#[test]
fn a_flood_at_changing_slots_takes_no_connection() {
    flood(flood::Against::Changing, |_| {});
}

#[test]
fn a_flood_at_full_nat_takes_no_connection() {
    flood(flood::Against::FullNat, |_| {});
}

#[test]
fn a_flood_at_nat_takes_no_connection() {
    flood(flood::Against::Nat, |_| {});
}

/// The flood has every source port that a live connection has not.
#[test]
fn a_flood_that_has_all_source_ports_takes_no_connection() {
    flood(flood::Against::FullNat, |size| {
        size.backends = 1 + size.live.div_ceil(16_384);
        size.embryonic = 131_072;
        size.each_second /= 2;
    });
}

/// With hardly more room than for the connections that are there, and those that have closed
/// in the last minute.
#[test]
fn a_flood_at_small_tables_takes_no_connection() {
    for against in [flood::Against::Changing, flood::Against::FullNat] {
        flood(against, |size| {
            size.each_second = 100_000;
            size.syns /= 4;
            let seconds = (size.syns / u64::from(size.each_second)).min(60) as u32;
            let known = size.live + size.new * seconds;
            (size.flows, size.embryonic) = (known + known / 10, 16_384);
        });
    }
}

#[test]
fn live_counts_are_exact() {
    let seed = said_seed("counts");
    let connections = size("LB_CLAIMS_CONNECTIONS", 20_000);
    let each_second = if connections >= 1_000_000 { 5_000 } else { 500 };
    let figures = in_network_namespace(|| {
        with_bpf_file_system(|pins| counts::run(seed, pins, connections, each_second))
    });
    say(&figures);
    assert!(figures.expired > 0);
}
