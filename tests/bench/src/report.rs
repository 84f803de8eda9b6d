//! The results, for readers and for programs.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::{Figures, Row};

/// One line of `--json`. A stable form: keys are added, never renamed.
#[derive(Serialize)]
struct Line {
    scenario: &'static str,
    mode: &'static str,
    family: &'static str,
    protocol: &'static str,
    flows: u32,
    feature: &'static str,
    floor_ns: f64,
    net_ns_min: f64,
    net_ns_median: f64,
}

/// A row as a JSON object.
pub(crate) fn json(row: &Row, figures: &Figures) -> serde_json::Result<String> {
    let [mode, family, protocol, feature] = row.words();
    serde_json::to_string(&Line {
        scenario: row.scenario.as_str(),
        mode,
        family,
        protocol,
        flows: row.flows,
        feature,
        floor_ns: hundredths(figures.floor_ns),
        net_ns_min: hundredths(figures.net_ns_min),
        net_ns_median: hundredths(figures.net_ns_median),
    })
}

/// Further digits are noise.
fn hundredths(nanoseconds: f64) -> f64 {
    (nanoseconds * 100.0).round() / 100.0
}

/// The table.
pub(crate) fn table(rows: &[(Row, Figures)]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "SCENARIO",
        "MODE",
        "FAMILY",
        "PROTOCOL",
        "FEATURE",
        "FLOWS",
        "FLOOR",
        "NET MIN",
        "NET MEDIAN",
    ]);
    for (row, figures) in rows {
        let [mode, family, protocol, feature] = row.words();
        table.add_row([
            row.scenario.as_str().to_owned(),
            mode.to_owned(),
            family.to_owned(),
            protocol.to_owned(),
            feature.to_owned(),
            row.flows.to_string(),
            format!("{:.1}", figures.floor_ns),
            format!("{:.1}", figures.net_ns_min),
            format!("{:.1}", figures.net_ns_median),
        ]);
    }
    for column in table.column_iter_mut().skip(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
