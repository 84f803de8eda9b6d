//! Packets through the real program, as tables of cases.

mod backends;
mod checks;
mod direct;
mod drained;
mod errors;
mod foreign;
mod forms;
mod fragments;
mod guards;
mod icmp;
mod jumbo;
mod lifecycle;
mod link;
mod malformed;
mod many_flows;
mod outcomes;
mod ports;
mod quic;
mod rewriting;
mod schedulers;
mod segment_size;
mod slots;
mod sources;
mod too_big;
mod tunnels;

use std::{collections::BTreeSet, io::Write as _, path::Path};

use lb_tests::{Bench, Case, conformance, in_network_namespace};
use snapbox::{Assert, Data, data::DataFormat};

/// Runs a table.
fn run(table: &str, cases: &[Case]) {
    in_network_namespace(|| Bench::new().run_all(table, cases));
}

/// All tables about services.
fn tables() -> Vec<Case> {
    [
        lifecycle::cases,
        rewriting::cases,
        direct::cases,
        slots::cases,
        tunnels::cases,
        link::cases,
        jumbo::cases,
        segment_size::cases,
        forms::cases,
        backends::cases,
        drained::cases,
        ports::cases,
        ports::table_full,
        fragments::cases,
        errors::cases,
        too_big::cases,
        too_big::in_one_tick,
        icmp::cases,
        malformed::cases,
        sources::cases,
        quic::cases,
        schedulers::cases,
        guards::cases,
    ]
    .into_iter()
    .flat_map(|table| table())
    .collect()
}

/// As many as the project promises, and no name twice but of foreign packets, which are
/// named for what they are.
#[test]
fn there_are_enough_cases() {
    let foreign = foreign::cases();
    let kinds: BTreeSet<_> = foreign.iter().map(|case| &case.name).collect();
    assert!(kinds.len() >= 20, "{} kinds of foreign packet", kinds.len());

    let cases = tables();
    let unique: BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
    assert_eq!(unique.len(), cases.len(), "two cases have the same name");
    assert!(unique.len() >= 300, "{} cases", unique.len());
    // Past the test runner, which shows the output of failed tests alone.
    let _unseen = writeln!(
        std::io::stderr(),
        "{} cases and {} of foreign packets in all",
        unique.len(),
        foreign.len()
    );
}

/// `docs/conformance.md` says what the cases say.
#[test]
fn conformance() {
    let (cases, foreign) = (tables(), foreign::cases());
    let document = conformance::document(cases.iter().chain(&foreign));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance.md");
    let expected = Data::read_from(&file, Some(DataFormat::Text)).raw();
    Assert::new()
        .action_env(snapbox::assert::DEFAULT_ACTION_ENV)
        .eq(Data::text(document).raw(), expected);
}
