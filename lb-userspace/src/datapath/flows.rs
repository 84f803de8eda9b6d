//! The flow tables, as the sweep reads them.

use std::{os::fd::AsFd as _, sync::Arc};

use aya::maps::{HashMap, IterableMap as _, MapData, MapError};
use lb_common::{
    client::{Client, ClientKey4, ClientKey6},
    flow::{Flow4, Flow6, FlowKey4, FlowKey6, FlowValue},
    map_name,
    pin::Pin,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    bpf::{self, Batch, Cursor},
    error::{Result, map_error},
    live::LiveFlows,
    plain::{Plain, Stored},
    ports::PortPools,
};

/// Key and value of a flow table.
pub trait Family: 'static {
    /// Key of the tables.
    type Key: FromBytes + IntoBytes + Immutable + Copy + PartialEq + Send + 'static;
    /// Key of the tables of clients.
    type ClientKey: FromBytes + IntoBytes + Immutable + Copy + Send + 'static;
    /// Value of the tables.
    type Flow: FlowValue<Key = Self::Key> + FromBytes + IntoBytes + Immutable + Send + 'static;
}

/// IPv4 flows.
#[derive(Debug)]
pub enum Ipv4 {}

/// IPv6 flows.
#[derive(Debug)]
pub enum Ipv6 {}

impl Family for Ipv4 {
    type Key = FlowKey4;
    type ClientKey = ClientKey4;
    type Flow = Flow4;
}

impl Family for Ipv6 {
    type Key = FlowKey6;
    type ClientKey = ClientKey6;
    type Flow = Flow6;
}

/// Handles to the flow tables, the port pools and the counts of live flows. Independent of the
/// [`Datapath`](super::Datapath) that they come from, so that another thread may sweep.
pub struct FlowTables {
    /// IPv4, client to service and back.
    pub v4: FlowPair<Ipv4>,
    /// IPv6, client to service and back.
    pub v6: FlowPair<Ipv6>,
    /// The port pools.
    pub ports: Arc<PortPools>,
    /// Live flows by backend.
    pub live: Arc<LiveFlows>,
}

/// The tables of one family.
pub struct FlowPair<F: Family> {
    /// Translated flows, client to service.
    pub flows: FlowTable<F::Key, F::Flow>,
    /// Translated flows, backend to client.
    pub replies: FlowTable<F::Key, F::Flow>,
    /// Other flows, client to service.
    pub pins: FlowTable<F::Key, Pin>,
    /// Clients and the backends that they had: those that are confirmed, and the others.
    pub clients: [FlowTable<F::ClientKey, Client>; 2],
}

/// A flow table, or one of clients.
pub struct FlowTable<K: Copy, V: Copy> {
    map: HashMap<MapData, Plain<K>, Plain<V>>,
    name: &'static str,
    batch: Batch<K, V>,
}

/// Entries that are read at a time. More cost memory, fewer cost system calls.
const BATCH: usize = 4_096;

impl FlowTables {
    pub(super) fn new(
        [flows_v4, flows_v6, replies_v4, replies_v6, pins_v4, pins_v6]: [&MapData; 6],
        [clients_v4, newcomers_v4, clients_v6, newcomers_v6]: [&MapData; 4],
        ports: Arc<PortPools>,
        live: Arc<LiveFlows>,
    ) -> Result<Self> {
        Ok(Self {
            v4: FlowPair {
                flows: FlowTable::new(flows_v4, map_name::FLOWS_V4)?,
                replies: FlowTable::new(replies_v4, map_name::REPLIES_V4)?,
                pins: FlowTable::new(pins_v4, map_name::PINS_V4)?,
                clients: [
                    FlowTable::new(clients_v4, map_name::CLIENTS_V4)?,
                    FlowTable::new(newcomers_v4, map_name::NEWCOMERS_V4)?,
                ],
            },
            v6: FlowPair {
                flows: FlowTable::new(flows_v6, map_name::FLOWS_V6)?,
                replies: FlowTable::new(replies_v6, map_name::REPLIES_V6)?,
                pins: FlowTable::new(pins_v6, map_name::PINS_V6)?,
                clients: [
                    FlowTable::new(clients_v6, map_name::CLIENTS_V6)?,
                    FlowTable::new(newcomers_v6, map_name::NEWCOMERS_V6)?,
                ],
            },
            ports,
            live,
        })
    }
}

impl<K: Stored, V: Stored> FlowTable<K, V> {
    fn new(map: &MapData, name: &'static str) -> Result<Self> {
        let open = || -> Result<_, MapError> {
            let handle = MapData::from_fd(map.fd().as_fd().try_clone_to_owned()?)?;
            HashMap::try_from(aya::maps::Map::from_map_data(handle)?)
        };
        Ok(Self {
            map: open().map_err(map_error("opening", name))?,
            name,
            batch: Batch::new(BATCH),
        })
    }

    /// The entry under `key`.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to look.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        match self.map.get(&Plain(*key), 0) {
            Ok(Plain(value)) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(map_error("reading", self.name)(error)),
        }
    }

    /// Writes an entry.
    ///
    /// # Errors
    ///
    /// Where the table is full.
    pub fn insert(&mut self, key: &K, value: &V) -> Result<()> {
        self.map
            .insert(Plain(*key), Plain(*value), 0)
            .map_err(map_error("writing", self.name))
    }

    /// Removes the entry under `key` and returns it as it was at that moment. `None`
    /// where there was none, so that of several that try to remove an entry exactly one
    /// knows that it did.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses.
    pub fn take(&mut self, key: &K) -> Result<Option<V>> {
        bpf::take(self.map.map().fd().as_fd(), key).map_err(map_error("removing", self.name))
    }

    /// Removes the entry under `key` if it `is_over`, and returns it, like [`Self::take`].
    ///
    /// The kernel cannot compare and remove in one: what took the entry's place in between (a
    /// client that uses its port again) is put back, unless packets were quicker to begin yet
    /// another.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses, or `is_over` fails.
    pub fn take_if(&mut self, key: &K, is_over: impl Fn(&V) -> Result<bool>) -> Result<Option<V>> {
        let Some(seen) = self.get(key)? else {
            return Ok(None);
        };
        if !is_over(&seen)? {
            return Ok(None);
        }
        let Some(taken) = self.take(key)? else {
            return Ok(None);
        };
        if is_over(&taken)? {
            return Ok(Some(taken));
        }
        match self.map.insert(Plain(*key), Plain(taken), bpf::NO_EXIST) {
            Ok(()) => Ok(None),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                Ok(None)
            }
            Err(error) => Err(map_error("writing", self.name)(error)),
        }
    }

    /// Walks over the table in batches and shows each to `visit`. An entry that is
    /// there all the time is shown once; one that comes or goes meanwhile may be. Packets
    /// are stopped for no longer than copying one bucket takes.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to read.
    pub fn for_each_batch(
        &mut self,
        mut visit: impl FnMut(&mut dyn Iterator<Item = (&K, &V)>),
    ) -> Result<()> {
        let mut cursor = Cursor::Start;
        while cursor != Cursor::End {
            cursor = self
                .batch
                .read(self.map.map().fd().as_fd(), cursor)
                .map_err(map_error("reading", self.name))?;
            visit(&mut self.batch.entries());
        }
        Ok(())
    }
}
