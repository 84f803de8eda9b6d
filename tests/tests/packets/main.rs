//! Packets through the real program, as tables of cases.

mod backends;
mod direct;
mod errors;
mod foreign;
mod forms;
mod fragments;
mod icmp;
mod jumbo;
mod lifecycle;
mod link;
mod malformed;
mod many_flows;
mod ports;
mod rewriting;
mod segment_size;
mod sources;
mod too_big;
mod tunnels;

use std::{collections::BTreeSet, io::Write as _};

use lb_tests::{Bench, Case, in_network_namespace};

/// Runs a table.
fn run(table: &str, cases: &[Case]) {
    in_network_namespace(|| Bench::new().run_all(table, cases));
}

/// As many as the project promises, and no name twice but of foreign packets, which are
/// named for what they are.
#[test]
fn there_are_enough_cases() {
    let foreign = foreign::cases();
    let kinds: BTreeSet<_> = foreign.iter().map(|case| &case.name).collect();
    assert!(kinds.len() >= 20, "{} kinds of foreign packet", kinds.len());

    let tables = [
        backends::cases(),
        fragments::cases(),
        icmp::cases(),
        lifecycle::cases(),
        link::cases(),
        malformed::cases(),
        ports::cases(),
        ports::table_full(),
        rewriting::cases(),
    ];
    let names: Vec<_> = tables.iter().flatten().map(|case| &case.name).collect();
    let unique: BTreeSet<_> = names.iter().collect();
    assert_eq!(unique.len(), names.len(), "two cases have the same name");
    assert!(unique.len() >= 100, "{} cases", unique.len());
    // Past the test runner, which shows the output of failed tests alone.
    let _unseen = writeln!(
        std::io::stderr(),
        "{} cases and {} of foreign packets in all",
        unique.len(),
        foreign.len()
    );
}
