//! What `lb` costs, measured on the program that the daemon loads.
//!
//! Figures are nanoseconds of CPU time per packet above those of an empty XDP program
//! that is called in the same way, the two measured in turns.

mod compare;
mod frame;
mod ip;
mod measure;
mod memory;
mod report;
mod row;
mod scale;
mod setup;
mod sweep;
mod wire;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use lb_common::flow::MAX_FLOWS;

use self::compare::Comparison;

pub use self::{
    measure::{Figures, Size},
    memory::{Memory, memory},
    row::{Feature, IpVersion, Row, Scenario},
    scale::{Scale, scale},
    sweep::{Sweep, sweeps},
    wire::{Traffic, Wire, wire},
};

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// Nanoseconds per packet.
    Packet,
    /// Bytes of the flow tables for each flow.
    Memory,
    /// CPU time of a sweep of full tables, and of packets meanwhile.
    Sweep,
    /// Time and memory that many services and backends take.
    Scale,
    /// Frames a second through virtual cables, beside nftables and the least program.
    Wire,
}

/// Measure what the balancer costs. Needs root.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
pub struct Arguments {
    /// What to measure.
    #[arg(default_value = "packet")]
    subject: Subject,
    /// Print one JSON object a line in place of a table.
    #[arg(long)]
    json: bool,
    /// Measure few flows in few rounds, in seconds: to try that it works. The figures
    /// mean little.
    #[arg(long)]
    quick: bool,
    /// Measure only the rows whose name contains these words, as in `full-nat/ipv4/tcp/1`
    /// of `tracked/full-nat/ipv4/tcp/1`. May be repeated.
    #[arg(long, value_name = "FILTER", allow_hyphen_values = true)]
    rows: Vec<String>,
    /// Nanoseconds per packet of this benchmark beside those of another, built of another
    /// revision: in turns, with the ratio of the least. `cargo xtask bench packet --compare
    /// REVISION` builds it.
    #[arg(long, value_name = "PROGRAM")]
    beside: Option<PathBuf>,
    /// Turns that both have.
    #[arg(long, default_value_t = 5, requires = "beside", value_parser = clap::value_parser!(u32).range(1..))]
    turns: u32,
}

impl Arguments {
    /// Measures and prints.
    ///
    /// # Errors
    ///
    /// Where BPF refuses, or a packet does not become what it should.
    pub fn run(&self) -> Result<()> {
        match self.subject {
            Subject::Packet => match &self.beside {
                Some(other) => self.compare(other),
                None => self.packet(),
            },
            Subject::Memory => self.memory(),
            Subject::Sweep => self.sweep(),
            Subject::Scale => self.scale(),
            Subject::Wire => self.wire(),
        }
    }

    fn compare(&self, other: &Path) -> Result<()> {
        let mut arguments = Vec::new();
        if self.quick {
            arguments.push("--quick");
        }
        for row in &self.rows {
            arguments.extend(["--rows", row]);
        }
        let comparison = Comparison::run(other, &arguments, self.turns)?;
        if self.json {
            return comparison.write_json(io::stdout());
        }
        writeln!(io::stdout(), "{}", comparison.table())?;
        Ok(())
    }

    fn wire(&self) -> Result<()> {
        let results = wire(if self.quick {
            &Traffic::QUICK
        } else {
            &Traffic::FULL
        })?;
        if !self.json {
            writeln!(io::stdout(), "{}", wire::table(&results))?;
            return Ok(());
        }
        for result in &results {
            writeln!(io::stdout(), "{}", serde_json::to_string(result)?)?;
        }
        Ok(())
    }

    fn scale(&self) -> Result<()> {
        let extents = if self.quick {
            scale::QUICK
        } else {
            scale::FULL
        };
        let mut results = Vec::new();
        scale(extents, |scale| {
            if self.json {
                writeln!(io::stdout(), "{}", serde_json::to_string(scale)?)?;
            }
            results.push(scale.clone());
            Ok(())
        })?;
        if !self.json {
            writeln!(io::stdout(), "{}", scale::table(&results))?;
        }
        Ok(())
    }

    fn memory(&self) -> Result<()> {
        let kinds = memory(MAX_FLOWS)?;
        if !self.json {
            writeln!(io::stdout(), "{}", memory::table(&kinds))?;
            return Ok(());
        }
        for kind in &kinds {
            writeln!(io::stdout(), "{}", serde_json::to_string(kind)?)?;
        }
        Ok(())
    }

    fn sweep(&self) -> Result<()> {
        let size = if self.quick { Size::QUICK } else { Size::FULL };
        let flows = size.flows.iter().max().copied().unwrap_or(1);
        let mut results = Vec::new();
        sweeps(flows, |sweep| {
            if self.json {
                writeln!(io::stdout(), "{}", serde_json::to_string(sweep)?)?;
            }
            results.push(sweep.clone());
            Ok(())
        })?;
        if !self.json {
            writeln!(io::stdout(), "{}", sweep::table(&results))?;
        }
        Ok(())
    }

    fn packet(&self) -> Result<()> {
        let size = if self.quick { Size::QUICK } else { Size::FULL };
        let mut results = Vec::new();
        packet(&size, &self.rows, |row, figures| {
            if self.json {
                writeln!(io::stdout(), "{}", report::json(row, figures)?)?;
            } else {
                eprintln!("{row}: {:.1} ns", figures.net_ns_median);
                results.push((*row, *figures));
            }
            Ok(())
        })?;
        if !self.json {
            writeln!(io::stdout(), "{}", report::table(&results))?;
        }
        Ok(())
    }
}

/// Measures the rows whose name contains any of `filters`, all if there is none, and
/// shows each to `visit` as soon as it is measured.
///
/// # Errors
///
/// Where BPF refuses, a packet does not become what it should, or `visit` fails.
pub fn packet(
    size: &Size,
    filters: &[String],
    mut visit: impl FnMut(&Row, &Figures) -> Result<()>,
) -> Result<()> {
    lb_driver::pin_thread()?;
    for group in row::groups(size.flows, filters) {
        measure::group(&group, size, &mut visit)?;
    }
    Ok(())
}
