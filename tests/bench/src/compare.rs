//! This benchmark and that of another revision in turns, each with the program that it was
//! built with.

use std::{
    collections::BTreeMap,
    env,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

/// A line of `packet --json`, as far as rows are told apart by it. Revisions may have more
/// fields.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Name {
    scenario: String,
    mode: String,
    family: String,
    protocol: String,
    flows: u32,
    #[serde(default = "nothing")]
    feature: String,
}

fn nothing() -> String {
    "-".to_owned()
}

#[derive(Deserialize)]
struct Line {
    #[serde(flatten)]
    name: Name,
    net_ns_min: f64,
}

/// What a row came to: the least of all rounds, in nanoseconds above the floor.
#[derive(Clone, Debug, Default)]
struct Pair {
    before: Option<f64>,
    after: Option<f64>,
}

impl Pair {
    /// After, as a part of before.
    fn ratio(&self) -> Option<f64> {
        Some(self.after? / self.before?)
    }
}

/// The rows of both, in the order of their names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Comparison {
    rows: BTreeMap<Name, Pair>,
}

/// One line of `--json`.
#[derive(Serialize)]
struct Compared<'a> {
    #[serde(flatten)]
    name: &'a Name,
    before_ns: Option<f64>,
    after_ns: Option<f64>,
    ratio: Option<f64>,
}

impl Comparison {
    /// Runs both with these arguments, in so many rounds.
    ///
    /// # Errors
    ///
    /// Where either fails.
    pub(crate) fn run(other: &Path, arguments: &[&str], rounds: u32) -> Result<Self> {
        let own = env::current_exe().context("cannot find the path of this program")?;
        let mut comparison = Self::default();
        for round in 0..rounds {
            eprintln!("round {} of {rounds}", round + 1);
            // Whoever is the first in one round is the second in the next.
            let mut turns = [(other, false), (own.as_path(), true)];
            if round % 2 == 1 {
                turns.reverse();
            }
            for (binary, is_after) in turns {
                comparison.take(&lines(binary, arguments)?, is_after)?;
            }
        }
        ensure!(!comparison.rows.is_empty(), "no row has such a name");
        Ok(comparison)
    }

    /// Takes what one run has printed.
    fn take(&mut self, output: &str, is_after: bool) -> Result<()> {
        for line in output.lines() {
            let line: Line = serde_json::from_str(line)
                .with_context(|| format!("`{line}` is no line of the benchmark"))?;
            let pair = self.rows.entry(line.name).or_default();
            let least = if is_after {
                &mut pair.after
            } else {
                &mut pair.before
            };
            *least = Some(least.map_or(line.net_ns_min, |least| least.min(line.net_ns_min)));
        }
        Ok(())
    }

    /// The lines of `--json`.
    ///
    /// # Errors
    ///
    /// Where nobody reads them.
    pub(crate) fn write_json(&self, mut output: impl std::io::Write) -> Result<()> {
        for (name, pair) in &self.rows {
            let line = serde_json::to_string(&Compared {
                name,
                before_ns: pair.before,
                after_ns: pair.after,
                ratio: pair.ratio(),
            })?;
            writeln!(output, "{line}")?;
        }
        Ok(())
    }

    /// The table.
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header([
            "SCENARIO", "MODE", "FAMILY", "PROTOCOL", "FEATURE", "FLOWS", "BEFORE", "AFTER",
            "RATIO",
        ]);
        let figure = |digits, figure: Option<f64>| match figure {
            Some(figure) => format!("{figure:.digits$}"),
            None => "-".to_owned(),
        };
        for (name, pair) in &self.rows {
            table.add_row([
                name.scenario.clone(),
                name.mode.clone(),
                name.family.clone(),
                name.protocol.clone(),
                name.feature.clone(),
                name.flows.to_string(),
                figure(1, pair.before),
                figure(1, pair.after),
                figure(2, pair.ratio()),
            ]);
        }
        for column in table.column_iter_mut().skip(5) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

/// What a benchmark prints with these arguments. Its progress is shown.
fn lines(binary: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(binary)
        .args(["packet", "--json"])
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    if !output.status.success() {
        bail!("{} has failed: see above", binary.display());
    }
    String::from_utf8(output.stdout).context("a benchmark prints no text")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = r#"{"scenario":"clean","mode":"dsr","family":"ipv4","protocol":"tcp","flows":1,"feature":"-","floor_ns":10.0,"net_ns_min":20.0,"net_ns_median":21.0}"#;

    #[test]
    fn the_least_of_all_rounds_counts() {
        let mut comparison = Comparison::default();
        comparison.take(ONE, false).unwrap();
        comparison
            .take(&ONE.replace("20.0", "25.0"), false)
            .unwrap();
        comparison.take(&ONE.replace("20.0", "16.0"), true).unwrap();
        comparison.take(&ONE.replace("20.0", "15.0"), true).unwrap();
        let mut json = Vec::new();
        comparison.write_json(&mut json).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["scenario"], "clean");
        assert_eq!(json["before_ns"], 20.0);
        assert_eq!(json["after_ns"], 15.0);
        assert_eq!(json["ratio"], 0.75);
    }

    /// Revisions from before there were features, and rows that only one of them has.
    #[test]
    fn rows_of_one_revision_alone_have_no_ratio() {
        let mut comparison = Comparison::default();
        let old = ONE.replace(r#""feature":"-","#, "");
        comparison.take(&old, false).unwrap();
        comparison
            .take(&ONE.replace("clean", "pinned"), true)
            .unwrap();
        let ratios: Vec<_> = comparison.rows.values().map(Pair::ratio).collect();
        assert_eq!(ratios, [None, None]);
        comparison.take(ONE, true).unwrap();
        let ratios: Vec<_> = comparison.rows.values().map(Pair::ratio).collect();
        assert_eq!(ratios, [Some(1.0), None]);
        assert!(comparison.take("none", true).is_err());
    }
}
