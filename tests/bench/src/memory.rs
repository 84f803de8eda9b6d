//! Memory of the flow tables.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapInfo;
use comfy_table::{CellAlignment, Table, presets};
use lb_common::map_name;
use lb_userspace::datapath::{Datapath, LogLevel, Options};
use serde::Serialize;

/// What a flow takes, whether the tables are full or not: they are allocated at the start.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    /// What kind of flow.
    pub flow: &'static str,
    /// Its tables.
    pub tables: &'static [&'static str],
    /// Bytes of all these for each flow that they have room for, as the kernel accounts
    /// them.
    pub bytes_per_flow: u64,
}

/// Kinds of flows, with the tables in which each has an entry.
const KINDS: [(&str, &[&str]); 6] = [
    (
        "full-nat, nat: ipv4",
        &[map_name::FLOWS_V4, map_name::REPLIES_V4],
    ),
    (
        "full-nat, nat: ipv6",
        &[map_name::FLOWS_V6, map_name::REPLIES_V6],
    ),
    ("dsr, ipip, gue: ipv4", &[map_name::PINS_V4]),
    ("dsr, ipip, gue: ipv6", &[map_name::PINS_V6]),
    ("not confirmed, besides: ipv4", &[map_name::EMBRYONIC_V4]),
    ("not confirmed, besides: ipv6", &[map_name::EMBRYONIC_V6]),
];

/// Loads the program with tables of `flows` and tells what they take.
///
/// # Errors
///
/// Where BPF or `/proc` refuses.
pub fn memory(flows: u32) -> Result<Vec<Memory>> {
    let _datapath = Datapath::load(&Options {
        max_flows: flows,
        max_embryonic: flows.next_power_of_two(),
        log: LogLevel::Off,
    })
    .context("the benchmark loads BPF programs and must run as root")?;
    let maps = own_maps()?;
    let kind = |(flow, tables): (&'static str, &'static [&'static str])| {
        let mut bytes_per_flow = 0;
        for table in tables {
            let map = maps.iter().find(|map| map.name == *table);
            let map = map.with_context(|| format!("there is no map {table}"))?;
            bytes_per_flow += map.bytes.div_ceil(map.entries);
        }
        Ok(Memory {
            flow,
            tables,
            bytes_per_flow,
        })
    };
    KINDS.into_iter().map(kind).collect()
}

/// The tables that have room for flows.
pub(crate) const FLOW_TABLES: [&str; 8] = [
    map_name::FLOWS_V4,
    map_name::FLOWS_V6,
    map_name::REPLIES_V4,
    map_name::REPLIES_V6,
    map_name::PINS_V4,
    map_name::PINS_V6,
    map_name::EMBRYONIC_V4,
    map_name::EMBRYONIC_V6,
];

/// Bytes of all maps that this process has open, but of these. Those inside of other maps are
/// not among them.
pub(crate) fn of_maps_but(names: &[&str]) -> Result<u64> {
    let maps = own_maps()?.into_iter();
    let counted = maps.filter(|map| !names.contains(&map.name.as_str()));
    Ok(counted.map(|map| map.bytes).sum())
}

/// A map that this process has open.
struct Map {
    name: String,
    entries: u64,
    bytes: u64,
}

/// The maps that this process has open. Linux tells their memory in `/proc/PID/fdinfo`
/// alone.
fn own_maps() -> Result<Vec<Map>> {
    let mut maps = Vec::new();
    for file in fs::read_dir("/proc/self/fdinfo").context("cannot read /proc/self/fdinfo")? {
        // The directory's own descriptor is in it, and gone by now.
        let Ok(text) = fs::read_to_string(file?.path()) else {
            continue;
        };
        let field = |name| {
            text.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                (key == name).then(|| value.trim().parse::<u64>().ok())?
            })
        };
        let (Some(id), Some(entries), Some(bytes)) =
            (field("map_id"), field("max_entries"), field("memlock"))
        else {
            continue;
        };
        ensure!(entries != 0, "map {id} has no entries");
        let info = MapInfo::from_id(u32::try_from(id)?)?;
        let name = info.name_as_str().context("a map's name is no text")?;
        maps.push(Map {
            name: name.to_owned(),
            entries,
            bytes,
        });
    }
    Ok(maps)
}

/// The table.
pub(crate) fn table(kinds: &[Memory]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(["FLOW", "TABLES", "BYTES PER FLOW"]);
    for kind in kinds {
        table.add_row([
            kind.flow.to_owned(),
            kind.tables.join(" "),
            kind.bytes_per_flow.to_string(),
        ]);
    }
    if let Some(column) = table.column_mut(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
