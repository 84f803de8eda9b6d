//! Packets through the real program, as tables of cases.

mod backends;
mod lifecycle;
mod link;
mod ports;
mod rewriting;

use lb_tests::{Bench, Case, in_network_namespace};

/// Runs a table.
fn run(table: &str, cases: &[Case]) {
    in_network_namespace(|| Bench::new().run_all(table, cases));
}
