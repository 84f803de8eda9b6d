//! What a sweep of full tables takes, and whether packets wait for it.

use std::{
    collections::{HashMap, HashSet},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use lb_bench_driver::Plan;
use lb_userspace::{
    datapath::{FlowTables, Ipv4, Ipv6},
    flows::{Lifetimes, Report, Sweeper},
    state::{Mode, Protocol, Timeouts},
};
use serde::Serialize;

use crate::{
    Size,
    ip::Ip,
    measure::Bench,
    row::{Group, IpVersion, Slots},
    setup::BACKENDS,
};

/// Packets that are timed together: some microseconds, so that a wait shows.
const PACKETS: u32 = 64;
/// Timings without a sweep. For each the kernel waits some ten milliseconds before it runs the
/// program, as it does beside a sweep.
const ALONE: u32 = 200;

/// A sweep. Times are CPU time: neither counts what other processes take.
#[derive(Clone, Debug, Serialize)]
pub struct Sweep {
    /// What the entries are of.
    pub mode: &'static str,
    /// IP version.
    pub family: &'static str,
    /// Flows in the tables.
    pub flows: u32,
    /// What becomes of them: `kept` or `ended`.
    pub flows_are: &'static str,
    /// The sweep, in milliseconds.
    pub cpu_ms: f64,
    /// The most that a packet took on another CPU while nothing was swept, on average over
    /// those that were timed together, in nanoseconds.
    pub longest_alone_ns: f64,
    /// The same during the sweep.
    pub longest_beside_ns: f64,
    /// The middle one during the sweep.
    pub median_beside_ns: f64,
}

/// Sweeps tables with so many flows.
///
/// # Errors
///
/// Where BPF refuses, or the sweep does not find what is there.
pub fn sweeps(flows: u32, mut visit: impl FnMut(&Sweep) -> Result<()>) -> Result<()> {
    for (mode, slots) in [(Mode::Dsr, Slots::Tracked), (Mode::FullNat, Slots::Clean)] {
        for family in [IpVersion::Ipv4, IpVersion::Ipv6] {
            let group = Group {
                mode,
                family,
                protocol: Protocol::Tcp,
                flows,
                slots,
                feature: None,
                rows: Vec::new(),
            };
            match family {
                IpVersion::Ipv4 => measure::<Ipv4>(&group, &mut visit)?,
                IpVersion::Ipv6 => measure::<Ipv6>(&group, &mut visit)?,
            }
        }
    }
    Ok(())
}

fn measure<V: Ip>(group: &Group, visit: &mut impl FnMut(&Sweep) -> Result<()>) -> Result<()> {
    let size = Size {
        room: group.flows,
        ..Size::FULL
    };
    let mut bench = Bench::<V>::new(group, &size)?;
    let mut plan = bench.known()?;
    // All flows have spoken.
    bench.forward(&mut plan, group.flows)?;
    let mut alone = Vec::new();
    for _ in 0..ALONE {
        alone.push(timed(&mut bench, &mut plan)?);
    }
    for (flows_are, after) in [("kept", 1), ("ended", u32::MAX / 4)] {
        let tables = bench.balancer.datapath.flow_tables()?;
        let sweeping = thread::spawn(move || sweep(tables, after));
        let mut beside = Vec::new();
        while !sweeping.is_finished() {
            beside.push(timed(&mut bench, &mut plan)?);
        }
        let (time, report) = sweeping.join().ok().context("the sweep has panicked")??;
        let ended: u64 = report.ended.values().sum();
        let is_right = match flows_are {
            "kept" => ended == 0 && !report.named.is_empty(),
            // Those that spoke during the sweep are there again, or still.
            _ => ended > 0 && ended <= 2 * u64::from(group.flows),
        };
        ensure!(is_right, "{ended} of {} flows were ended", group.flows);
        let nanoseconds = |times: &mut [Duration], part: usize| {
            times.sort_unstable();
            let time = times.get((times.len() * part / 100).min(times.len().saturating_sub(1)));
            time.map_or(0.0, |time| time.as_nanos() as f64 / f64::from(PACKETS))
        };
        visit(&Sweep {
            mode: lb_userspace::state::Word::as_str(group.mode),
            family: group.family.as_str(),
            flows: group.flows,
            flows_are,
            cpu_ms: time.as_secs_f64() * 1_000.0,
            longest_alone_ns: nanoseconds(&mut alone, 100),
            longest_beside_ns: nanoseconds(&mut beside, 100),
            median_beside_ns: nanoseconds(&mut beside, 50),
        })?;
    }
    Ok(())
}

fn timed<V: Ip>(bench: &mut Bench<V>, plan: &mut Plan) -> Result<Duration> {
    bench.forward(plan, PACKETS)
}

/// Sweeps the tables at a tick of the clock, and tells the CPU time that it took.
fn sweep(tables: FlowTables, tick: u32) -> Result<(Duration, Report)> {
    let of_all = Lifetimes::new(Protocol::Tcp, &Timeouts::default(), None);
    let lifetimes: HashMap<u32, Lifetimes> = (1..=BACKENDS).map(|id| (id, of_all)).collect();
    let mut sweeper = Sweeper::new(tables);
    let start = lb_driver::thread_time()?;
    let report = sweeper.sweep(tick, &lifetimes, &HashSet::new())?;
    Ok((lb_driver::thread_time()? - start, report))
}

/// The table.
pub(crate) fn table(sweeps: &[Sweep]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "MODE",
        "FAMILY",
        "FLOWS",
        "WHICH ARE",
        "SWEEP, CPU MS",
        "PACKET ALONE, LONGEST NS",
        "DURING IT, LONGEST",
        "MEDIAN",
    ]);
    for sweep in sweeps {
        table.add_row([
            sweep.mode.to_owned(),
            sweep.family.to_owned(),
            sweep.flows.to_string(),
            sweep.flows_are.to_owned(),
            format!("{:.0}", sweep.cpu_ms),
            format!("{:.0}", sweep.longest_alone_ns),
            format!("{:.0}", sweep.longest_beside_ns),
            format!("{:.0}", sweep.median_beside_ns),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
