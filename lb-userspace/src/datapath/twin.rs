//! A second instance of the program, for packets that are to have no effect.
//!
//! It is the very same object. What the program only reads (services, rings, backends, lists)
//! it shares with the one that is attached, by the pinned maps; what the program writes it has
//! of its own, and before each packet of a tuple gets a copy of what that may meet: the
//! entries of its flow, the client's memory, buckets, turns, counts of flows, port pools.
//! Which further entries a packet meets shows when it has been run: then these are copied, too,
//! and it is run again from the start.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{
        Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, ProgramArray,
        lpm_trie::Key,
    },
};
use lb_common::{
    Runtime,
    addr::LinkPath,
    backend::{Backend, MAX_BACKENDS},
    client::{ClientKey4, ClientKey6},
    counters::{Counters, DropKey},
    flow::{FlowKey4, FlowKey6, FlowValue as _, Tuple as _, state},
    fragment::{Fragment, FragmentKey4, FragmentKey6},
    guard::{ALLOW, ANY_SOURCE, BucketKey, Guard, SourceKey4, SourceKey6},
    map_name,
    ports::{PORT_WORDS, PortPool, TAKEN_OVER_LASTS},
    ring::{self, NO_BACKEND, RING_SIZE, Slot},
    service::{PortKey, Service, ServiceKey4, ServiceKey6, Turns, Vip},
    stage::IcmpBudget,
};

use super::{
    CLIENT_TABLES, Datapath, FLOW_TABLES, OBJECT, Result, Table, Trie,
    error::{self, Error, gone, map_error},
    flows::{Family, FlowPair, FlowTable, FlowTables},
    key::{word, words6},
    live::LiveFlows,
    load_programs,
    mapped::Mapping,
    of_maps::{Inner, OfMaps},
    per_cpu,
    plain::{Plain, Stored},
    program, take, take_map,
    test_run::{self, TestRun},
};

/// Where the maps of a datapath are pinned.
#[derive(Clone, Debug)]
pub struct PinnedMaps(BTreeMap<&'static str, PathBuf>);

impl Datapath {
    /// Where the maps are pinned; `None` where they are not.
    #[must_use]
    pub fn pinned_maps(&self) -> Option<PinnedMaps> {
        let pinned = self.pinned.as_ref()?;
        Some(PinnedMaps(pinned.map_paths().collect()))
    }
}

/// The maps that the program reads and never writes.
const SHARED: [&str; 20] = [
    map_name::SERVICES_V4,
    map_name::SERVICES_V6,
    map_name::DIRECT_V4,
    map_name::DIRECT_V6,
    map_name::REPLY_SOURCES,
    map_name::VIPS_V4,
    map_name::VIPS_V6,
    map_name::PREFIXES_V4,
    map_name::PREFIXES_V6,
    map_name::PORTS,
    map_name::RINGS,
    map_name::SIZED_RINGS,
    map_name::SERVER_IDS,
    map_name::OPTIONS,
    map_name::GUARDS,
    map_name::SOURCES_V4,
    map_name::SOURCES_V6,
    map_name::BACKENDS,
    map_name::DEVICES,
    map_name::INTERFACES,
];

/// Entries of each table of its own, a power of two: a packet writes one or two, and may meet
/// [`CANDIDATES`].
const ENTRIES: u32 = 4_096;
/// Flows that are copied, at most, where source ports are used up and one of them gives its port
/// up. The first of them does, unless another CPU is quicker.
const CANDIDATES: usize = 2_000;
/// The same of tables with LRU, which the kernel hands out to CPUs in batches.
const LRU_ENTRIES: u32 = 4_096;
/// Keys of drops: a packet writes one.
const DROP_KEYS: u32 = 64;
/// How often a packet is run until all that it meets has been copied. It meets another
/// port pool, and another flow with its reply's tuple.
const ATTEMPTS: u32 = 16;

/// What the program writes, of one instance.
struct Written {
    runtime: Array<MapData, Plain<Runtime>>,
    tables: FlowTables,
    pools: OfMaps<PortPool>,
    turns: Array<MapData, Plain<Turns>>,
    service_buckets: Array<MapData, u64>,
    source_buckets: HashMap<MapData, Plain<BucketKey>, u64>,
    budgets: PerCpuArray<MapData, Plain<IcmpBudget>>,
}

impl Written {
    /// These maps, each as `map` has it.
    fn open(mut map: impl FnMut(&'static str) -> Result<Map>) -> Result<Self> {
        let mut data = |name| match map(name)? {
            Map::HashMap(map) | Map::LruHashMap(map) | Map::Array(map) => Ok(map),
            other => Err(unfit(name, &format!("{other:?}"))),
        };
        let [flows_v4, flows_v6, replies_v4, replies_v6, pins_v4, pins_v6] = FLOW_TABLES;
        let [clients_v4, newcomers_v4, clients_v6, newcomers_v6] = CLIENT_TABLES;
        let live = data(map_name::LIVE)?;
        let live =
            LiveFlows::new(live.fd().as_fd()).map_err(map_error("mapping", map_name::LIVE))?;
        let tables = FlowTables::new(
            [
                &data(flows_v4)?,
                &data(flows_v6)?,
                &data(replies_v4)?,
                &data(replies_v6)?,
                &data(pins_v4)?,
                &data(pins_v6)?,
            ],
            [
                &data(clients_v4)?,
                &data(newcomers_v4)?,
                &data(clients_v6)?,
                &data(newcomers_v6)?,
            ],
            Arc::default(),
            Arc::new(live),
        )?;
        let pools = map(map_name::PORT_POOLS)?;
        let pools = Inner::new(1)
            .and_then(|empty| OfMaps::new(pools, empty))
            .map_err(map_error("opening", map_name::PORT_POOLS))?;
        let mut of_type = |name| map(name).map(|map| (name, map));
        Ok(Self {
            runtime: typed(of_type(map_name::RUNTIME)?)?,
            tables,
            pools,
            turns: typed(of_type(map_name::TURNS)?)?,
            service_buckets: typed(of_type(map_name::SERVICE_BUCKETS)?)?,
            source_buckets: typed(of_type(map_name::SOURCE_BUCKETS)?)?,
            budgets: typed(of_type(map_name::ICMP_BUDGET)?)?,
        })
    }
}

/// A map with the types of its keys and values checked.
fn typed<M: TryFrom<Map, Error = MapError>>((name, map): (&'static str, Map)) -> Result<M> {
    map.try_into()
        .map_err(|error: MapError| unfit(name, &error.to_string()))
}

fn unfit(name: &'static str, what: &str) -> Error {
    Error::WrongObject {
        what: format!("map {name}: {what}"),
    }
}

/// Source, destination and protocol of a packet of TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tuple {
    /// Of IPv4.
    V4(FlowKey4),
    /// Of IPv6.
    V6(FlowKey6),
}

impl Tuple {
    /// That of a packet; `protocol` is an IP protocol number. `None` where source and
    /// destination are of different families.
    #[must_use]
    pub fn new(source: SocketAddr, destination: SocketAddr, protocol: u8) -> Option<Self> {
        let (src_port, dst_port) = (source.port().to_be(), destination.port().to_be());
        let protocol = protocol.into();
        Some(match (source.ip(), destination.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => Self::V4(FlowKey4 {
                src: word(src),
                dst: word(dst),
                src_port,
                dst_port,
                protocol,
            }),
            (IpAddr::V6(src), IpAddr::V6(dst)) => Self::V6(FlowKey6 {
                src: words6(src),
                dst: words6(dst),
                src_port,
                dst_port,
                protocol,
            }),
            _ => return None,
        })
    }
}

/// Which table an entry is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `FLOWS_*`: translated, client to service.
    Flow,
    /// `REPLIES_*`: translated, backend to client.
    Reply,
    /// `PINS_*`: not translated.
    Pin,
}

/// The entry of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which table it is in.
    pub kind: Kind,
    /// Id of the backend.
    pub backend: u32,
    /// Bits of [`state`](lb_common::flow::state).
    pub state: u32,
    /// How replies leave, where it is translated.
    pub path: LinkPath,
}

/// What the program did with a packet.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The verdict, and the frame afterwards.
    pub run: TestRun,
    /// The entry that the packet met.
    pub met: Option<Entry>,
    /// The entry that is there afterwards.
    pub left: Option<Entry>,
    /// What was dropped.
    pub drops: BTreeMap<DropKey, u64>,
    /// What was counted, by backend.
    pub counters: BTreeMap<u32, Counters>,
}

/// Entries that are copied besides those of the packet's tuple.
#[derive(Default)]
struct Copied {
    pools: BTreeSet<u32>,
    /// Tuples of replies.
    replies: Vec<Tuple>,
    /// Pools whose flows are copied that a source port may be taken over from.
    candidates: BTreeSet<u32>,
}

/// The second instance. Its packets have no effect outside of it.
pub struct Twin {
    ebpf: Ebpf,
    #[expect(
        dead_code,
        reason = "the kernel empties the array when nothing holds it"
    )]
    stages: ProgramArray<MapData>,
    own: Written,
    live: Written,
    /// The memory of its own port pools.
    pools: BTreeMap<u32, Mapping<AtomicU64>>,
    fragments_v4: Table<FragmentKey4, Fragment>,
    fragments_v6: Table<FragmentKey6, Fragment>,
    counters: PerCpuArray<MapData, Plain<Counters>>,
    drops: PerCpuHashMap<MapData, Plain<DropKey>, u64>,
    services_v4: Table<ServiceKey4, Service>,
    services_v6: Table<ServiceKey6, Service>,
    vips_v4: Table<u32, Vip>,
    vips_v6: Table<[u32; 4], Vip>,
    prefixes_v4: Trie<u32, Vip>,
    prefixes_v6: Trie<[u32; 4], Vip>,
    ports: Trie<PortKey, Service>,
    rings: OfMaps<Slot>,
    sized_rings: OfMaps<Slot>,
    guards: Array<MapData, Plain<Guard>>,
    sources_v4: Trie<SourceKey4, u32>,
    sources_v6: Trie<SourceKey6, u32>,
    backends: Array<MapData, Plain<Backend>>,
    /// One more than the highest id of a backend.
    ids: u32,
    embryonic_mask: u32,
}

impl Twin {
    /// Loads it beside the datapath whose maps are pinned there. The ids of backends are below
    /// `ids`.
    ///
    /// # Errors
    ///
    /// As with [`Datapath::load`], and where a map is not there any more. So with all methods,
    /// where the kernel refuses to read or to write.
    pub fn load(maps: &PinnedMaps, ids: u32) -> Result<Self> {
        let ids = ids.clamp(1, MAX_BACKENDS);
        let failed = |error| error::loading(error, None);
        let mut loader = EbpfLoader::new();
        let log = super::LogLevel::Off as u8;
        loader.override_global(aya_log::LEVEL, &log, false);
        for name in FLOW_TABLES {
            loader.map_max_entries(name, ENTRIES);
        }
        for name in [map_name::EMBRYONIC_V4, map_name::EMBRYONIC_V6] {
            loader.map_max_entries(name, ENTRIES);
        }
        for name in CLIENT_TABLES.into_iter().chain([
            map_name::FRAGMENTS_V4,
            map_name::FRAGMENTS_V6,
            map_name::SOURCE_BUCKETS,
        ]) {
            loader.map_max_entries(name, LRU_ENTRIES);
        }
        loader.map_max_entries(map_name::COUNTERS, ids);
        loader.map_max_entries(map_name::DROPS, DROP_KEYS);
        let place = |name| maps.0.get(name).filter(|path| path.exists());
        for name in SHARED {
            // Where it is not, the loader would make another one, and pin it there.
            let path = place(name).ok_or_else(|| missing(name))?;
            loader.map_pin_path(name, path);
        }
        let mut ebpf = loader.load(OBJECT).map_err(failed)?;
        let stages = load_programs(&mut ebpf, failed)?;
        let live = Written::open(|name| {
            let path = place(name).ok_or_else(|| missing(name))?;
            MapData::from_pin(path)
                .and_then(Map::from_map_data)
                .map_err(map_error("opening", name))
        })?;
        let ring = |ebpf: &mut Ebpf, name, empty: std::result::Result<Inner<Slot>, MapError>| {
            let map = take_map(ebpf, name)?;
            empty
                .and_then(|empty| OfMaps::new(map, empty))
                .map_err(map_error("opening", name))
        };
        Ok(Self {
            stages,
            own: Written::open(|name| take_map(&mut ebpf, name))?,
            live,
            pools: BTreeMap::new(),
            fragments_v4: take(&mut ebpf, map_name::FRAGMENTS_V4)?,
            fragments_v6: take(&mut ebpf, map_name::FRAGMENTS_V6)?,
            counters: take(&mut ebpf, map_name::COUNTERS)?,
            drops: take(&mut ebpf, map_name::DROPS)?,
            services_v4: take(&mut ebpf, map_name::SERVICES_V4)?,
            services_v6: take(&mut ebpf, map_name::SERVICES_V6)?,
            vips_v4: take(&mut ebpf, map_name::VIPS_V4)?,
            vips_v6: take(&mut ebpf, map_name::VIPS_V6)?,
            prefixes_v4: take(&mut ebpf, map_name::PREFIXES_V4)?,
            prefixes_v6: take(&mut ebpf, map_name::PREFIXES_V6)?,
            ports: take(&mut ebpf, map_name::PORTS)?,
            rings: ring(&mut ebpf, map_name::RINGS, Inner::new(RING_SIZE))?,
            sized_rings: ring(&mut ebpf, map_name::SIZED_RINGS, Inner::of_any_length(1))?,
            guards: take(&mut ebpf, map_name::GUARDS)?,
            sources_v4: take(&mut ebpf, map_name::SOURCES_V4)?,
            sources_v6: take(&mut ebpf, map_name::SOURCES_V6)?,
            backends: take(&mut ebpf, map_name::BACKENDS)?,
            ebpf,
            ids,
            embryonic_mask: ENTRIES - 1,
        })
    }

    /// Runs frames that come in by the interface `ifindex` one after the other, all of the
    /// tuple `tuple`, and says what became of the last one. What those before it have left is
    /// all that is different.
    pub fn run(&mut self, frames: &[Vec<u8>], ifindex: u32, tuple: Tuple) -> Result<Trace> {
        let mut copied = Copied::default();
        let mut attempt = 0;
        loop {
            self.forget()?;
            self.copy(tuple, &mut copied)?;
            let met = self.entry(tuple)?;
            let mut last = None;
            // Of all frames: a first fragment that finds no port is the end of the later one.
            let mut dropped = Vec::new();
            for frame in frames {
                if last.is_some() {
                    self.forget_counts()?;
                }
                let program = program(&mut self.ebpf, map_name::PROGRAM)?;
                last = Some(test_run::test_run(program, frame, ifindex)?);
                dropped.extend(self.drops()?.into_keys());
            }
            let run = last.ok_or_else(|| Error::WrongObject {
                what: "no frame was given".into(),
            })?;
            attempt += 1;
            if attempt == ATTEMPTS || !self.lacks(tuple, &dropped, &mut copied)? {
                return Ok(Trace {
                    run,
                    met,
                    left: self.entry(tuple)?,
                    drops: self.drops()?,
                    counters: self.counters()?,
                });
            }
        }
    }

    /// The service that packets of this tuple are sent to, and whether it is found by its one
    /// address and port, rather than by a prefix or a range.
    pub fn service(&self, tuple: Tuple) -> Result<Option<(Service, bool)>> {
        let exact = match tuple {
            Tuple::V4(key) => {
                let key = ServiceKey4 {
                    address: key.dst,
                    port: key.dst_port,
                    protocol: key.protocol as u16,
                };
                found(self.services_v4.get(&Plain(key), 0), map_name::SERVICES_V4)?
            }
            Tuple::V6(key) => {
                let key = ServiceKey6 {
                    address: key.dst,
                    port: key.dst_port,
                    protocol: key.protocol as u16,
                    reserved: 0,
                };
                found(self.services_v6.get(&Plain(key), 0), map_name::SERVICES_V6)?
            }
        };
        if let Some(service) = exact {
            return Ok(Some((service, true)));
        }
        let (vip, protocol, port) = match tuple {
            Tuple::V4(key) => {
                let exact = found(self.vips_v4.get(&Plain(key.dst), 0), map_name::VIPS_V4)?;
                let prefix = || {
                    let key = Key::new(32, Plain(key.dst));
                    found(self.prefixes_v4.get(&key, 0), map_name::PREFIXES_V4)
                };
                (
                    exact.map_or_else(prefix, |vip| Ok(Some(vip)))?,
                    key.protocol,
                    key.dst_port,
                )
            }
            Tuple::V6(key) => {
                let exact = found(self.vips_v6.get(&Plain(key.dst), 0), map_name::VIPS_V6)?;
                let prefix = || {
                    let key = Key::new(128, Plain(key.dst));
                    found(self.prefixes_v6.get(&key, 0), map_name::PREFIXES_V6)
                };
                (
                    exact.map_or_else(prefix, |vip| Ok(Some(vip)))?,
                    key.protocol,
                    key.dst_port,
                )
            }
        };
        let Some(vip) = vip.filter(|vip| vip.id != 0) else {
            return Ok(None);
        };
        let key = PortKey {
            vip: vip.id,
            protocol: protocol as u16,
            port,
        };
        let key = Key::new(PortKey::ONE_PORT, Plain(key));
        let service = found(self.ports.get(&key, 0), map_name::PORTS)?;
        Ok(service.map(|service| (service, false)))
    }

    /// The slot that packets of this tuple have in the ring of a service, and its number.
    pub fn slot(&self, service: Service, tuple: Tuple) -> Result<Option<(u32, Slot)>> {
        let by_port = service.flags & Service::BY_CLIENT_PORT != 0;
        let by_client = by_port || service.flags & Service::BY_CLIENT != 0;
        let hash = match tuple {
            Tuple::V4(key) if by_client => key.hash_of_client(by_port),
            Tuple::V4(key) => key.hash(),
            Tuple::V6(key) if by_client => key.hash_of_client(by_port),
            Tuple::V6(key) => key.hash(),
        };
        let index = ring::slot(hash, service.ring_size());
        let rings = if service.ring_size() == RING_SIZE {
            &self.rings
        } else {
            &self.sized_rings
        };
        let ring = rings
            .get(service.id())
            .map_err(map_error("reading", map_name::RINGS))?;
        let Some(ring) = ring else {
            return Ok(None);
        };
        let slot = found(ring.at(index), map_name::RINGS)?;
        Ok(slot.map(|slot| (index, slot)))
    }

    /// Whether a service takes packets from the source of this tuple; `None` where it has no
    /// list.
    pub fn admits(&self, service: u32, tuple: Tuple) -> Result<Option<bool>> {
        let guard: Option<Guard> = found(self.guards.get(&service, 0), map_name::GUARDS)?;
        if guard.is_none_or(|guard| guard.flags & Guard::LISTED == 0) {
            return Ok(None);
        }
        let verdict = match tuple {
            Tuple::V4(key) => {
                let address = key.src;
                let key = Key::new(ANY_SOURCE + 32, Plain(SourceKey4 { service, address }));
                found(self.sources_v4.get(&key, 0), map_name::SOURCES_V4)?
            }
            Tuple::V6(key) => {
                let address = key.src;
                let key = Key::new(ANY_SOURCE + 128, Plain(SourceKey6 { service, address }));
                found(self.sources_v6.get(&key, 0), map_name::SOURCES_V6)?
            }
        };
        Ok(Some(verdict.is_none_or(|verdict| verdict == ALLOW)))
    }

    /// The entry of a backend; that of no backend where there is none of this id.
    pub fn backend(&self, id: u32) -> Result<Backend> {
        let backend = found(self.backends.get(&id, 0), map_name::BACKENDS)?;
        Ok(backend.unwrap_or_default())
    }

    /// Forgets all that packets before have left.
    fn forget(&mut self) -> Result<()> {
        clear_pair(&mut self.own.tables.v4)?;
        clear_pair(&mut self.own.tables.v6)?;
        clear(&mut self.fragments_v4, map_name::FRAGMENTS_V4)?;
        clear(&mut self.fragments_v6, map_name::FRAGMENTS_V6)?;
        let buckets: Vec<_> = self
            .own
            .source_buckets
            .keys()
            .filter_map(std::result::Result::ok)
            .collect();
        for key in buckets {
            gone(self.own.source_buckets.remove(&key))
                .map_err(map_error("removing", map_name::SOURCE_BUCKETS))?;
        }
        self.forget_counts()
    }

    /// Forgets what packets before have counted.
    fn forget_counts(&mut self) -> Result<()> {
        let drops: Vec<_> = self
            .drops
            .keys()
            .filter_map(std::result::Result::ok)
            .collect();
        for key in drops {
            gone(self.drops.remove(&key)).map_err(map_error("removing", map_name::DROPS))?;
        }
        for id in self.counters()?.into_keys() {
            let zeros = per_cpu(Plain(Counters::default()))
                .map_err(map_error("counting the CPUs for", map_name::COUNTERS))?;
            self.counters
                .set(id, zeros, 0)
                .map_err(map_error("writing", map_name::COUNTERS))?;
        }
        Ok(())
    }

    /// Copies what packets of a tuple may meet, and what is known by now that they do.
    fn copy(&mut self, tuple: Tuple, copied: &mut Copied) -> Result<()> {
        let Plain(runtime) = self
            .live
            .runtime
            .get(&0, 0)
            .map_err(map_error("reading", map_name::RUNTIME))?;
        let runtime = Runtime {
            embryonic_mask: self.embryonic_mask,
            ..runtime
        };
        self.own
            .runtime
            .set(0, Plain(runtime), 0)
            .map_err(map_error("writing", map_name::RUNTIME))?;
        let budgets = self
            .live
            .budgets
            .get(&0, 0)
            .map_err(map_error("reading", map_name::ICMP_BUDGET))?;
        self.own
            .budgets
            .set(0, budgets, 0)
            .map_err(map_error("writing", map_name::ICMP_BUDGET))?;
        self.own.tables.live.copy(&self.live.tables.live, self.ids);
        if let Some((service, _)) = self.service(tuple)? {
            self.copy_of_service(service, tuple)?;
        }
        let replies = copied.replies.iter().copied();
        for tuple in replies.chain([tuple]) {
            let pool = match tuple {
                Tuple::V4(key) => {
                    copy_entries(&mut self.live.tables.v4, &mut self.own.tables.v4, &key)?
                }
                Tuple::V6(key) => {
                    copy_entries(&mut self.live.tables.v6, &mut self.own.tables.v6, &key)?
                }
            };
            copied.pools.extend(pool);
        }
        for pool in &copied.pools {
            self.copy_pool(*pool)?;
        }
        Ok(())
    }

    /// Copies what a service remembers of its turns, limits and this client.
    fn copy_of_service(&mut self, service: Service, tuple: Tuple) -> Result<()> {
        let id = service.id();
        let (live, own) = (&mut self.live, &mut self.own);
        let turns = live
            .turns
            .get(&id, 0)
            .map_err(map_error("reading", map_name::TURNS))?;
        own.turns
            .set(id, turns, 0)
            .map_err(map_error("writing", map_name::TURNS))?;
        let bucket = live
            .service_buckets
            .get(&id, 0)
            .map_err(map_error("reading", map_name::SERVICE_BUCKETS))?;
        own.service_buckets
            .set(id, bucket, 0)
            .map_err(map_error("writing", map_name::SERVICE_BUCKETS))?;
        let Plain(guard) = self
            .guards
            .get(&id, 0)
            .map_err(map_error("reading", map_name::GUARDS))?;
        let key = BucketKey {
            service: id,
            generation: guard.generation,
            source: match tuple {
                Tuple::V4(key) => key.src.into(),
                // Its network of 64 bits, as it lies in memory.
                Tuple::V6(key) => {
                    let [a, b, _, _] = key.src;
                    zerocopy::transmute!([a, b])
                }
            },
        };
        match live.source_buckets.get(&Plain(key), 0) {
            Ok(bucket) => own
                .source_buckets
                .insert(Plain(key), bucket, 0)
                .map_err(map_error("writing", map_name::SOURCE_BUCKETS))?,
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(map_error("reading", map_name::SOURCE_BUCKETS)(error)),
        }
        match tuple {
            Tuple::V4(key) => {
                let key = ClientKey4 {
                    address: key.src,
                    service: id,
                };
                copy_client(&live.tables.v4, &mut own.tables.v4, &key)
            }
            Tuple::V6(key) => {
                let key = ClientKey6 {
                    address: key.src,
                    service: id,
                    reserved: 0,
                };
                copy_client(&live.tables.v6, &mut own.tables.v6, &key)
            }
        }
    }

    /// Copies a port pool.
    fn copy_pool(&mut self, id: u32) -> Result<()> {
        const WORDS: usize = size_of::<PortPool>() / size_of::<AtomicU64>();
        let live = self
            .live
            .pools
            .get(id)
            .map_err(map_error("reading", map_name::PORT_POOLS))?;
        let Some(live) = live else {
            return Ok(());
        };
        let mapped = |pool: &Inner<PortPool>| {
            Mapping::<AtomicU64>::new(pool.fd(), WORDS)
                .map_err(map_error("mapping a port pool of", map_name::PORT_POOLS))
        };
        let from = mapped(&live)?;
        let to = match self.pools.entry(id) {
            btree_map::Entry::Occupied(pool) => pool.into_mut(),
            btree_map::Entry::Vacant(place) => {
                let own =
                    Inner::new(1).map_err(map_error("making a port pool", map_name::PORT_POOLS))?;
                let memory = place.insert(mapped(&own)?);
                self.own
                    .pools
                    .set(&[(id, own)])
                    .map_err(map_error("writing", map_name::PORT_POOLS))?;
                memory
            }
        };
        for (from, to) in from.get().iter().zip(to.get()) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether a packet has met something that was not copied. It will be.
    fn lacks(&mut self, tuple: Tuple, dropped: &[DropKey], copied: &mut Copied) -> Result<bool> {
        let mut lacks = false;
        // What a pool holds that has not been copied is what a packet before this one left.
        let mut pools = pools(&mut self.own.tables.v4)?;
        pools.extend(self::pools(&mut self.own.tables.v6)?);
        let refused = dropped.iter().map(|key| key.backend);
        let begun = self.entry(tuple)?.map(|entry| entry.backend);
        for id in refused.filter(|id| *id != NO_BACKEND).chain(begun) {
            let backend = self.backend(id)?;
            pools.push(backend.port_pool);
            // It may have taken the port of a flow, and not of the one whose turn it is.
            if copied.pools.contains(&backend.port_pool)
                && self.is_used_up(&backend)
                && copied.candidates.insert(backend.port_pool)
            {
                copied.replies.extend(self.candidates(&backend, tuple)?);
                lacks = true;
            }
        }
        for pool in pools.into_iter().filter(|pool| *pool != 0) {
            lacks |= copied.pools.insert(pool);
        }
        for key in keys(&mut self.own.tables.v4.replies)? {
            let tuple = Tuple::V4(key);
            if !copied.replies.contains(&tuple) && self.live.tables.v4.replies.get(&key)?.is_some()
            {
                copied.replies.push(tuple);
                lacks = true;
            }
        }
        for key in keys(&mut self.own.tables.v6.replies)? {
            let tuple = Tuple::V6(key);
            if !copied.replies.contains(&tuple) && self.live.tables.v6.replies.get(&key)?.is_some()
            {
                copied.replies.push(tuple);
                lacks = true;
            }
        }
        Ok(lacks)
    }

    /// Whether each source port of a backend is taken.
    fn is_used_up(&self, backend: &Backend) -> bool {
        self.pools.get(&backend.port_pool).is_some_and(|pool| {
            let words = pool.get();
            (backend.first_port..=backend.last_port).all(|port| {
                let word = words[usize::from(port / 64)].load(Ordering::Relaxed);
                word & 1 << (port % 64) != 0
            })
        })
    }

    /// The tuples of replies of the flows that may give up their source port, where a flow of
    /// `tuple` to a backend finds none: those that are not confirmed, from the port on that
    /// stands next.
    fn candidates(&self, backend: &Backend, tuple: Tuple) -> Result<Vec<Tuple>> {
        let pool = self
            .live
            .pools
            .get(backend.port_pool)
            .map_err(map_error("reading", map_name::PORT_POOLS))?;
        let Some(pool) = pool else {
            return Ok(Vec::new());
        };
        const { assert!(std::mem::offset_of!(PortPool, cursor) == PORT_WORDS * 8) };
        const { assert!(std::mem::offset_of!(PortPool, oldest) == PORT_WORDS * 8 + 12) };
        let memory = Mapping::<AtomicU64>::new(pool.fd(), PORT_WORDS + 2)
            .map_err(map_error("mapping a port pool of", map_name::PORT_POOLS))?;
        let hints = |word: usize| memory.get()[PORT_WORDS + word].load(Ordering::Relaxed);
        let [cursor, _exhausted]: [u32; 2] = zerocopy::transmute!(hints(0));
        let [_range, last_taken]: [u32; 2] = zerocopy::transmute!(hints(1));
        let [oldest, taken_over]: [u16; 2] = zerocopy::transmute!(last_taken);
        let Plain(Runtime { clock, .. }) = self
            .own
            .runtime
            .get(&0, 0)
            .map_err(map_error("reading", map_name::RUNTIME))?;
        let is_known = (clock as u16).wrapping_sub(taken_over) <= TAKEN_OVER_LASTS;
        let next = if is_known { oldest } else { cursor as u16 };
        let (first, last) = (backend.first_port, backend.last_port);
        let next = if (first..=last).contains(&next) {
            next
        } else {
            first
        };
        let of = |own: u16| if backend.port == 0 { own } else { backend.port };
        let mut tuples = Vec::new();
        for port in (next..=last).chain(first..next) {
            let dst_port = port.to_be();
            let tuple = match tuple {
                Tuple::V4(key) => Tuple::V4(FlowKey4 {
                    src: backend.address[0],
                    dst: backend.source[0],
                    src_port: of(key.dst_port),
                    dst_port,
                    protocol: key.protocol,
                }),
                Tuple::V6(key) => Tuple::V6(FlowKey6 {
                    src: backend.address,
                    dst: backend.source,
                    src_port: of(key.dst_port),
                    dst_port,
                    protocol: key.protocol,
                }),
            };
            let is_pending = match &tuple {
                Tuple::V4(key) => is_pending(&self.live.tables.v4, key)?,
                Tuple::V6(key) => is_pending(&self.live.tables.v6, key)?,
            };
            if is_pending {
                tuples.push(tuple);
            }
            if tuples.len() == CANDIDATES {
                break;
            }
        }
        Ok(tuples)
    }

    /// The entry of a tuple.
    fn entry(&self, tuple: Tuple) -> Result<Option<Entry>> {
        match tuple {
            Tuple::V4(key) => entry(&self.own.tables.v4, &key),
            Tuple::V6(key) => entry(&self.own.tables.v6, &key),
        }
    }

    fn counters(&self) -> Result<BTreeMap<u32, Counters>> {
        let mut counters = BTreeMap::new();
        for id in 0..self.ids {
            let values = self
                .counters
                .get(&id, 0)
                .map_err(map_error("reading", map_name::COUNTERS))?;
            let sum = values
                .iter()
                .fold(Counters::default(), |sum, Plain(value)| sum.plus(*value));
            if sum != Counters::default() {
                counters.insert(id, sum);
            }
        }
        Ok(counters)
    }

    fn drops(&self) -> Result<BTreeMap<DropKey, u64>> {
        let mut drops = BTreeMap::new();
        for entry in self.drops.iter() {
            let (Plain(key), values) = entry.map_err(map_error("reading", map_name::DROPS))?;
            let packets = values.iter().sum();
            if packets > 0 {
                drops.insert(key, packets);
            }
        }
        Ok(drops)
    }
}

fn missing(map: &'static str) -> Error {
    Error::Map {
        action: "opening what is not pinned",
        map,
        source: Box::new(MapError::ElementNotFound),
    }
}

/// What a look into a map found.
fn found<V>(
    look: std::result::Result<impl Into<Found<V>>, MapError>,
    map: &'static str,
) -> Result<Option<V>> {
    match look {
        Ok(value) => Ok(Some(value.into().0)),
        Err(MapError::KeyNotFound | MapError::ElementNotFound | MapError::OutOfBounds { .. }) => {
            Ok(None)
        }
        Err(error) => Err(map_error("reading", map)(error)),
    }
}

/// The value of a map, out of its wrapping.
struct Found<V>(V);

impl<V> From<Plain<V>> for Found<V> {
    fn from(Plain(value): Plain<V>) -> Self {
        Self(value)
    }
}

fn keys<K: Stored, V: Stored>(table: &mut FlowTable<K, V>) -> Result<Vec<K>> {
    let mut keys = Vec::new();
    table.for_each_batch(|entries| keys.extend(entries.map(|(key, _)| *key)))?;
    Ok(keys)
}

/// The port pools of flows.
fn pools<F: Family>(pair: &mut FlowPair<F>) -> Result<Vec<u32>> {
    let mut pools = Vec::new();
    pair.flows
        .for_each_batch(|flows| pools.extend(flows.map(|(_, flow)| flow.entry().port_pool)))?;
    Ok(pools)
}

fn clear<K: Stored, V: Stored>(table: &mut Table<K, V>, name: &'static str) -> Result<()> {
    let keys: Vec<_> = table.keys().filter_map(std::result::Result::ok).collect();
    for key in keys {
        gone(table.remove(&key)).map_err(map_error("removing", name))?;
    }
    Ok(())
}

fn clear_pair<F: Family>(pair: &mut FlowPair<F>) -> Result<()> {
    fn clear<K: Stored, V: Stored>(table: &mut FlowTable<K, V>) -> Result<()> {
        for key in keys(table)? {
            table.take(&key)?;
        }
        Ok(())
    }
    clear(&mut pair.flows)?;
    clear(&mut pair.replies)?;
    clear(&mut pair.pins)?;
    pair.clients.iter_mut().try_for_each(clear)
}

/// Whether the reply's tuple `key` is that of a flow that is not confirmed.
fn is_pending<F: Family>(pair: &FlowPair<F>, key: &F::Key) -> Result<bool> {
    let Some(reply) = pair.replies.get(key)? else {
        return Ok(false);
    };
    let flow = pair.flows.get(&reply.partner())?;
    Ok(flow.is_some_and(|flow| flow.entry().state & state::CONFIRMED == 0))
}

/// Copies the entries of a tuple and their partners. Returns the port pool of their flow.
fn copy_entries<F: Family>(
    live: &mut FlowPair<F>,
    own: &mut FlowPair<F>,
    key: &F::Key,
) -> Result<Option<u32>> {
    let mut pool = None;
    if let Some(flow) = live.flows.get(key)? {
        pool = Some(flow.entry().port_pool);
        own.flows.insert(key, &flow)?;
        let partner = flow.partner();
        if let Some(reply) = live.replies.get(&partner)? {
            own.replies.insert(&partner, &reply)?;
        }
    }
    if let Some(reply) = live.replies.get(key)? {
        pool = Some(reply.entry().port_pool);
        own.replies.insert(key, &reply)?;
        let partner = reply.partner();
        if let Some(flow) = live.flows.get(&partner)? {
            own.flows.insert(&partner, &flow)?;
        }
    }
    if let Some(pin) = live.pins.get(key)? {
        own.pins.insert(key, &pin)?;
    }
    Ok(pool.filter(|pool| *pool != 0))
}

fn copy_client<F: Family>(
    live: &FlowPair<F>,
    own: &mut FlowPair<F>,
    key: &F::ClientKey,
) -> Result<()> {
    for (from, to) in live.clients.iter().zip(&mut own.clients) {
        if let Some(client) = from.get(key)? {
            to.insert(key, &client)?;
        }
    }
    Ok(())
}

fn entry<F: Family>(pair: &FlowPair<F>, key: &F::Key) -> Result<Option<Entry>> {
    let of = |kind, flow: &F::Flow| {
        let entry = flow.entry();
        Entry {
            kind,
            backend: entry.backend,
            state: entry.state,
            path: entry.path,
        }
    };
    if let Some(flow) = pair.flows.get(key)? {
        return Ok(Some(of(Kind::Flow, &flow)));
    }
    if let Some(flow) = pair.replies.get(key)? {
        return Ok(Some(of(Kind::Reply, &flow)));
    }
    let pin = pair.pins.get(key)?;
    Ok(pin.map(|pin| Entry {
        kind: Kind::Pin,
        backend: pin.backend,
        state: pin.state,
        path: LinkPath::default(),
    }))
}
