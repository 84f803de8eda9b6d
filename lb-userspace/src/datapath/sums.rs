//! What the daemon has added up, for the one after it: figures that the counters of the datapath
//! do not have, or that their ids are not there for any more. No program uses these tables.

use std::path::PathBuf;

use aya::maps::{HashMap, Map, MapData, MapInfo, MapType};
use lb_common::{
    backend::MAX_BACKENDS,
    counters::{Counters, DropKey, MAX_DROP_KEYS},
    service::MAX_SERVICES,
};

use super::{
    Datapath, Plain, Result, Stored, Table,
    error::{Error, gone, map_error},
    pinned::Pinned,
};

/// Memory is taken for what is in a table alone: `BPF_F_NO_PREALLOC` of linux/bpf.h.
const NO_PREALLOC: u32 = 1;

/// Names of the tables.
const ENDED: &str = "ENDED";
const FORMER: &str = "FORMER";
const FORMER_DROPS: &str = "FORMER_DROPS";

/// A sum. One of nothing is the same as none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// Flows of a backend that the sweep ended, by its id.
    Ended(u32, u64),
    /// What passed for backends that a service has lost, by its id. Flows that the sweep ended
    /// are among those that ended.
    Former(u32, Counters),
    /// Packets that were dropped for backends that a service has lost. The backend of the key is
    /// 0, and for services that are gone the service, too.
    Drops(DropKey, u64),
}

/// The tables.
pub(super) struct Sums {
    ended: Table<u32, u64>,
    former: Table<u32, Counters>,
    drops: Table<DropKey, u64>,
}

impl Sums {
    /// Takes the tables over that are kept, or makes them.
    pub(super) fn open(pinned: Option<&Pinned>) -> Result<Self> {
        Ok(Self {
            ended: open(pinned, ENDED, MAX_BACKENDS)?,
            former: open(pinned, FORMER, MAX_SERVICES)?,
            drops: open(pinned, FORMER_DROPS, MAX_DROP_KEYS)?,
        })
    }
}

impl Datapath {
    /// The sums that are kept.
    pub fn sums(&self) -> Result<Vec<Sum>> {
        let Sums {
            ended,
            former,
            drops,
        } = &self.sums;
        let mut sums = Vec::new();
        for entry in ended.iter() {
            let (Plain(backend), Plain(flows)) = entry.map_err(map_error("reading", ENDED))?;
            sums.push(Sum::Ended(backend, flows));
        }
        for entry in former.iter() {
            let (Plain(service), Plain(counters)) = entry.map_err(map_error("reading", FORMER))?;
            sums.push(Sum::Former(service, counters));
        }
        for entry in drops.iter() {
            let (Plain(key), Plain(packets)) = entry.map_err(map_error("reading", FORMER_DROPS))?;
            sums.push(Sum::Drops(key, packets));
        }
        Ok(sums)
    }

    /// Keeps a sum, in place of the one that was kept.
    pub fn keep_sum(&mut self, sum: Sum) -> Result<()> {
        let Sums {
            ended,
            former,
            drops,
        } = &mut self.sums;
        match sum {
            Sum::Ended(backend, flows) => keep(ended, ENDED, backend, flows),
            Sum::Former(service, counters) => keep(former, FORMER, service, counters),
            Sum::Drops(key, packets) => keep(drops, FORMER_DROPS, key, packets),
        }
    }
}

/// Keeps a value, or none where it is that of nothing.
fn keep<K: Stored, V: Stored + Default + PartialEq>(
    table: &mut Table<K, V>,
    name: &'static str,
    key: K,
    value: V,
) -> Result<()> {
    if value == V::default() {
        return gone(table.remove(&Plain(key))).map_err(map_error("removing", name));
    }
    table
        .insert(Plain(key), Plain(value), 0)
        .map_err(map_error("writing", name))
}

/// Opens a table where it is kept, or makes it, with memory for what is in it alone.
fn open<K: Stored, V: Stored>(
    pinned: Option<&Pinned>,
    name: &'static str,
    entries: u32,
) -> Result<Table<K, V>> {
    let path: Option<PathBuf> = pinned.map(|pinned| pinned.map_path(name));
    let element = (size_of::<K>() as u32, size_of::<V>() as u32);
    let is_kept = path.as_deref().is_some_and(std::path::Path::exists);
    if let (Some(pinned), Some(path), true) = (pinned, &path, is_kept) {
        let kept = MapInfo::from_pin(path).map_err(map_error("looking at", name))?;
        if (kept.key_size(), kept.value_size()) != element {
            return Err(Error::OtherMap {
                path: pinned.directory().to_owned(),
                map: name,
            });
        }
    }
    let data = match &path {
        Some(path) if is_kept => MapData::from_pin(path),
        _ => {
            let (key, value) = element;
            let kind = MapType::Hash as u32;
            let map = aya_obj::Map::new_from_params(kind, key, value, entries, NO_PREALLOC);
            MapData::create(map, name, None)
        }
    };
    let data = data.map_err(map_error("opening", name))?;
    if let (Some(path), false) = (path, is_kept) {
        data.pin(path).map_err(map_error("keeping", name))?;
    }
    HashMap::try_from(Map::HashMap(data)).map_err(map_error("opening", name))
}
