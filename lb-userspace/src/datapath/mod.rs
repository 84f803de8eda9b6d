//! The one place that knows of BPF: loads the program, attaches it, and gives its maps
//! typed methods.

mod attach;
mod bpf;
mod contents;
mod decap;
mod direct;
mod error;
mod ethtool;
mod flows;
mod guards;
mod key;
mod layout;
mod live;
mod log;
mod mapped;
mod of_maps;
mod outcomes;
mod passage;
mod peer;
mod pinned;
mod plain;
mod ports;
mod sums;
mod test_run;
#[cfg(test)]
mod tests;
mod twin;

use std::{
    collections::BTreeMap,
    hash::Hash,
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use attach::Attachment;
use aya::{
    Ebpf, EbpfLoader,
    maps::{
        Array, DevMapHash, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap,
        ProgramArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{ProgramFd, Xdp},
};
use aya_log::EbpfLogger;
use lb_common::{
    MAX_EMBRYONIC, Runtime,
    addr::LinkPath,
    backend::{Backend, BackendState, Interface},
    counters::{Counters, Direction, DropKey},
    direct::{DIRECT_WORDS_V4, DIRECT_WORDS_V6, DirectKey},
    drop_reason::DropReason,
    flow::MAX_FLOWS,
    fragment::{Fragment, FragmentKey4, FragmentKey6},
    map_name,
    outcome::{self, Outcomes},
    ports::PortPool,
    probe::{self, Probe},
    quic::ServerIdKey,
    ring::{RING_SIZE, Slot},
    service::{PortKey, Service, ServiceKey4, ServiceKey6, ServiceOptions, Vip},
    stage::{IcmpBudget, Stage},
};

pub use self::{
    attach::{AttachedMode, XdpMode, attached_mode},
    decap::Decap,
    error::{Error, Result, available_memory, flow_table_memory},
    ethtool::{Driver, driver},
    flows::{Family, FlowPair, FlowTable, FlowTables, Ipv4, Ipv6},
    guards::Source,
    key::{Frontend, Match, PortPrefix, matches, word, words, words6},
    live::LiveFlows,
    log::ProgramLog,
    passage::MTU as PASSAGE_MTU,
    peer::Peer,
    pinned::{BPF_FS_MAGIC, Pinned},
    plain::Stored,
    ports::PortPools,
    sums::Sum,
    test_run::{TestRun, Verdict},
    twin::{Entry, Kind, PinnedMaps, Trace, Tuple, Twin},
};
use self::{
    direct::{Direct, ReplySources},
    error::{gone, map_error},
    guards::Guards,
    key::{ServiceKey, VipKey},
    mapped::Mapping,
    of_maps::{Inner, OfMaps},
    outcomes::Counted,
    passage::Pair,
    plain::Plain,
    sums::Sums,
};
use crate::address::AddressPrefix;

/// The program and its maps as the compiler made them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb"));

/// Inner maps that are put in their outer map at a time: each holds a file descriptor
/// until then, of which a process has 1,024 by default.
const INNER_MAPS: usize = 256;

/// What is decided when the program is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Confirmed flows that each of the flow tables has room for. Their memory is taken at
    /// once: about 900 bytes for each of these entries.
    pub max_flows: u32,
    /// Flows that are not confirmed, of either family, a power of two: beyond that, a new
    /// one takes the place of the oldest.
    pub max_embryonic: u32,
    /// What the program itself logs. Everything above is removed by the verifier.
    pub log: LogLevel,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_flows: MAX_FLOWS,
            max_embryonic: MAX_EMBRYONIC,
            log: LogLevel::Off,
        }
    }
}

impl Options {
    /// Entries of each flow table.
    #[must_use]
    pub fn entries(&self) -> u32 {
        self.max_flows.saturating_add(self.max_embryonic)
    }
}

/// How much the XDP program logs about single packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum LogLevel {
    /// Nothing, at no cost.
    #[default]
    Off = 0,
    /// Errors.
    Error = aya_log::Level::Error as u8,
    /// Warnings.
    Warn = aya_log::Level::Warn as u8,
    /// What happens to flows.
    Info = aya_log::Level::Info as u8,
    /// What happens to packets.
    Debug = aya_log::Level::Debug as u8,
    /// Every step.
    Trace = aya_log::Level::Trace as u8,
}

/// How packets leave that are for an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlet {
    /// Index of the interface that transmits: itself, or the bond that it belongs to.
    pub ifindex: u32,
    /// Largest IP packet that this takes, in bytes.
    pub mtu: u32,
}

type Table<K, V> = HashMap<MapData, Plain<K>, Plain<V>>;
type Trie<K, V> = LpmTrie<MapData, Plain<K>, Plain<V>>;

/// The program in the kernel. Detached and unloaded when it is dropped, unless it is
/// pinned.
pub struct Datapath {
    ebpf: Ebpf,
    runtime: Array<MapData, Plain<Runtime>>,
    written: Runtime,
    services_v4: Table<ServiceKey4, Service>,
    services_v6: Table<ServiceKey6, Service>,
    direct_v4: Direct<ServiceKey4, DIRECT_WORDS_V4>,
    direct_v6: Direct<ServiceKey6, DIRECT_WORDS_V6>,
    reply_sources: ReplySources,
    ports_of_vips: Trie<PortKey, Service>,
    vips_v4: Table<u32, Vip>,
    vips_v6: Table<[u32; 4], Vip>,
    prefixes_v4: Trie<u32, Vip>,
    prefixes_v6: Trie<[u32; 4], Vip>,
    /// Of [`RING_SIZE`].
    rings: OfMaps<Slot>,
    /// Of other sizes.
    sized_rings: OfMaps<Slot>,
    server_ids: Table<ServerIdKey, u32>,
    options: Array<MapData, Plain<ServiceOptions>>,
    guards: Guards,
    backends: Array<MapData, Plain<Backend>>,
    port_pools: OfMaps<PortPool>,
    ports: Arc<PortPools>,
    flows: [MapData; FLOW_TABLES.len()],
    clients: [MapData; CLIENT_TABLES.len()],
    live: Arc<LiveFlows>,
    outcomes: Counted,
    /// [`Runtime::embryonic_mask`].
    embryonic_mask: u32,
    counters: PerCpuArray<MapData, Plain<Counters>>,
    drops: PerCpuHashMap<MapData, Plain<DropKey>, u64>,
    sums: Sums,
    devices: DevMapHash<MapData>,
    interfaces: Table<u32, Interface>,
    log: Option<ProgramLog>,
    /// The programs that the main one calls, for as long as it is loaded.
    #[expect(
        dead_code,
        reason = "the kernel empties the array when nothing holds it"
    )]
    stages: ProgramArray<MapData>,
    attachments: Vec<Attachment>,
    probes: Table<u32, Probe>,
    passage: Option<Passage>,
    pinned: Option<Pinned>,
}

/// The way of health checks into the program that sends them off.
struct Passage {
    /// The links go before the interfaces.
    _links: [Attachment; 2],
    pair: Pair,
}

impl Datapath {
    /// Loads the program and its maps into the kernel. Nothing is attached yet.
    ///
    /// # Errors
    ///
    /// See [`Error`]: missing privileges, an old kernel, no memory.
    pub fn load(options: &Options) -> Result<Self> {
        Self::load_into(options, None)
    }

    /// Loads the program and takes over the maps that are kept in this place; those that
    /// are not there are made. Nothing is attached yet; what is goes on with the program
    /// that it has. The size of tables that are there stays what it is.
    ///
    /// # Errors
    ///
    /// As with [`Self::load`], and where the maps are of another layout.
    pub fn load_pinned(options: &Options, pinned: Pinned) -> Result<Self> {
        pinned.prepare()?;
        let is_sized = |name| FLOW_TABLES.contains(&name) || EMBRYONIC.contains(&name);
        layout::check(OBJECT, &pinned, is_sized)?;
        Self::load_into(options, Some(pinned))
    }

    fn load_into(options: &Options, pinned: Option<Pinned>) -> Result<Self> {
        let entries = options.entries();
        // Tables that are there have their memory already.
        let is_new = !pinned.as_ref().is_some_and(Pinned::has_maps);
        if is_new {
            error::check_memory(entries)?;
        }
        let failed = |error| error::loading(error, Some(entries));
        let log = options.log as u8;
        let mut loader = EbpfLoader::new();
        loader.override_global(aya_log::LEVEL, &log, false);
        for name in FLOW_TABLES {
            loader.map_max_entries(name, entries);
        }
        for name in EMBRYONIC {
            loader.map_max_entries(name, options.max_embryonic);
        }
        for (name, path) in pinned.iter().flat_map(Pinned::map_paths) {
            loader.map_pin_path(name, path);
        }
        let mut ebpf = loader.load(OBJECT).map_err(failed)?;

        let stages = load_programs(&mut ebpf, failed)?;

        let services_v4 = take(&mut ebpf, map_name::SERVICES_V4)?;
        let services_v6 = take(&mut ebpf, map_name::SERVICES_V6)?;
        let backends = take(&mut ebpf, map_name::BACKENDS)?;
        let mut datapath = Self {
            stages,
            direct_v4: take_direct(&mut ebpf, map_name::DIRECT_V4, &services_v4)?,
            direct_v6: take_direct(&mut ebpf, map_name::DIRECT_V6, &services_v6)?,
            reply_sources: take_reply_sources(&mut ebpf, (!is_new).then_some(&backends))?,
            runtime: take(&mut ebpf, map_name::RUNTIME)?,
            written: Runtime::default(),
            services_v4,
            services_v6,
            ports_of_vips: take(&mut ebpf, map_name::PORTS)?,
            vips_v4: take(&mut ebpf, map_name::VIPS_V4)?,
            vips_v6: take(&mut ebpf, map_name::VIPS_V6)?,
            prefixes_v4: take(&mut ebpf, map_name::PREFIXES_V4)?,
            prefixes_v6: take(&mut ebpf, map_name::PREFIXES_V6)?,
            rings: take_of_maps(&mut ebpf, map_name::RINGS, Inner::new(RING_SIZE))?,
            sized_rings: take_of_maps(&mut ebpf, map_name::SIZED_RINGS, Inner::of_any_length(1))?,
            backends,
            port_pools: take_of_maps(&mut ebpf, map_name::PORT_POOLS, Inner::new(1))?,
            ports: Arc::default(),
            server_ids: take(&mut ebpf, map_name::SERVER_IDS)?,
            options: take(&mut ebpf, map_name::OPTIONS)?,
            guards: Guards::take(&mut ebpf)?,
            flows: take_flow_tables(&mut ebpf)?,
            clients: take_client_tables(&mut ebpf)?,
            live: take_live(&mut ebpf)?,
            outcomes: take_outcomes(&mut ebpf)?,
            embryonic_mask: entries_of(&ebpf, map_name::EMBRYONIC_V4)? - 1,
            counters: take(&mut ebpf, map_name::COUNTERS)?,
            drops: take(&mut ebpf, map_name::DROPS)?,
            sums: Sums::open(pinned.as_ref())?,
            devices: take(&mut ebpf, map_name::DEVICES)?,
            interfaces: take(&mut ebpf, map_name::INTERFACES)?,
            log: EbpfLogger::init(&mut ebpf).ok().map(ProgramLog),
            attachments: Vec::new(),
            probes: take(&mut ebpf, probe::PROBES)?,
            passage: None,
            pinned,
            ebpf,
        };
        // What a daemon before this one wrote goes on.
        let Plain(runtime) = datapath
            .runtime
            .get(&0, 0)
            .map_err(map_error("reading", map_name::RUNTIME))?;
        datapath.set_runtime(runtime)?;
        // So that a drop is counted also when the table has no room for its key.
        for reason in DropReason::ALL {
            for direction in Direction::ALL {
                let key = DropKey::overflow(*reason as u16, direction as u16);
                match datapath.drops.get(&Plain(key), 0) {
                    Ok(_) => {}
                    Err(MapError::KeyNotFound) => datapath.insert_drop_key(key)?,
                    Err(error) => return Err(map_error("reading", map_name::DROPS)(error)),
                }
            }
        }
        Ok(datapath)
    }

    /// What the program logs, if it was loaded to log anything. Can be taken once.
    pub fn take_log(&mut self) -> Option<ProgramLog> {
        self.log.take()
    }

    /// Attaches the program to an interface.
    ///
    /// # Errors
    ///
    /// Where there is no such interface, another program is attached to it, or its driver
    /// does not take the program.
    pub fn attach(&mut self, interface: &str, mode: XdpMode) -> Result<AttachedMode> {
        let ifindex = attach::index_of(interface)?;
        self.attach_at(interface, ifindex, mode)
    }

    /// Attaches the program to the interface of this index, which messages call by the
    /// name `interface`.
    ///
    /// # Errors
    ///
    /// As with [`Self::attach`].
    pub fn attach_at(
        &mut self,
        interface: &str,
        ifindex: u32,
        mode: XdpMode,
    ) -> Result<AttachedMode> {
        let program = program(&mut self.ebpf, map_name::PROGRAM)?;
        let (attachment, attached) =
            attach::attach(program, interface, ifindex, mode, self.pinned.as_ref())?;
        self.attachments.push(attachment);
        Ok(attached)
    }

    /// Opens the way by which health checks go as clients' packets do, see
    /// [`lb_common::probe`], unless it is open. Returns the index of the interface by which
    /// answers come back: packets must be let leave by it ([`Self::set_interface`]), of up
    /// to [`PASSAGE_MTU`] bytes.
    ///
    /// # Errors
    ///
    /// Where the kernel makes no such interfaces, or does not take the program.
    pub fn open_passage(&mut self) -> Result<u32> {
        if let Some(passage) = &self.passage {
            return Ok(passage.pair.far);
        }
        let program = self.load_probe()?;
        let pair = Pair::new().map_err(|source| Error::Passage { source })?;
        // The near end needs a program, too, to take what is sent to it.
        let mut attach = |name, ifindex| {
            let attached = attach::attach(program, name, ifindex, XdpMode::Native, None);
            attached.map(|(attachment, _)| attachment)
        };
        let links = [
            attach(passage::NEAR, pair.near)?,
            attach(passage::FAR, pair.far)?,
        ];
        let far = pair.far;
        self.passage = Some(Passage {
            _links: links,
            pair,
        });
        Ok(far)
    }

    /// Says how health checks reach a service address on a backend.
    pub fn set_probe(&mut self, backend: u32, probe: Probe) -> Result<()> {
        // Answers are known before anything is asked.
        self.reply_sources.set_checked(backend, Some(probe.service));
        insert(&mut self.probes, probe::PROBES, backend, probe)
    }

    /// No check goes there any more.
    pub fn remove_probe(&mut self, backend: u32) -> Result<()> {
        remove(&mut self.probes, probe::PROBES, backend)?;
        self.reply_sources.set_checked(backend, None);
        Ok(())
    }

    /// Detaches the program from an interface. Nothing happens where it is not attached.
    ///
    /// # Errors
    ///
    /// Where its link is pinned and can't be removed.
    pub fn detach(&mut self, ifindex: u32) -> Result<()> {
        self.attachments
            .retain(|attachment| attachment.ifindex != ifindex);
        match &self.pinned {
            Some(pinned) => pinned.remove_link(ifindex),
            None => Ok(()),
        }
    }

    /// The indices of the interfaces whose links are pinned.
    ///
    /// # Errors
    ///
    /// Where the directory cannot be read.
    pub fn pinned_links(&self) -> Result<Vec<u32>> {
        self.pinned.as_ref().map_or(Ok(Vec::new()), Pinned::links)
    }

    /// Detaches the program from all interfaces that a daemon before this one has attached
    /// it to, and that this one has not.
    ///
    /// # Errors
    ///
    /// As with [`Self::detach`].
    pub fn detach_others(&mut self) -> Result<()> {
        let Some(pinned) = &self.pinned else {
            return Ok(());
        };
        for ifindex in pinned.links()? {
            if !self.attachments.iter().any(|own| own.ifindex == ifindex) {
                pinned.remove_link(ifindex)?;
            }
        }
        Ok(())
    }

    /// Entries that each of the flow tables has room for: what [`Options::entries`] said
    /// when they were made.
    ///
    /// # Errors
    ///
    /// Where the kernel does not tell.
    pub fn flow_entries(&self) -> Result<u32> {
        let [table, ..] = &self.flows;
        let info = table
            .info()
            .map_err(map_error("asking for", map_name::FLOWS_V4))?;
        Ok(info.max_entries())
    }

    /// The loaded program, for another program to call.
    ///
    /// # Errors
    ///
    /// Where the program is missing, which [`Self::load`] rules out.
    pub fn program_fd(&self) -> Result<&ProgramFd> {
        let program = self.ebpf.program(map_name::PROGRAM);
        program
            .and_then(|program| program.fd().ok())
            .ok_or_else(|| missing_program(map_name::PROGRAM))
    }

    /// What [`Self::set_runtime`] last wrote.
    #[must_use]
    pub fn runtime(&self) -> Runtime {
        self.written
    }

    /// Writes the flow clock and the switches. The rest follows from [`Options`].
    ///
    /// # Errors
    ///
    /// Where the kernel refuses. So with all methods that write.
    pub fn set_runtime(&mut self, runtime: Runtime) -> Result<()> {
        let runtime = Runtime {
            embryonic_mask: self.embryonic_mask,
            ..runtime
        };
        self.runtime
            .set(0, Plain(runtime), 0)
            .map_err(map_error("writing", map_name::RUNTIME))?;
        self.written = runtime;
        Ok(())
    }

    /// Directs what clients send to a service.
    pub fn set_service(&mut self, packets: Match, service: Service) -> Result<()> {
        match packets.key() {
            ServiceKey::V4(key) => {
                insert(&mut self.services_v4, map_name::SERVICES_V4, key, service)?;
                self.direct_v4.set(key, service);
                Ok(())
            }
            ServiceKey::V6(key) => {
                insert(&mut self.services_v6, map_name::SERVICES_V6, key, service)?;
                self.direct_v6.set(key, service);
                Ok(())
            }
            ServiceKey::Ports(key) => {
                insert_prefix(&mut self.ports_of_vips, map_name::PORTS, &key, service)
            }
        }
    }

    /// No service takes these any more.
    pub fn remove_service(&mut self, packets: Match) -> Result<()> {
        match packets.key() {
            ServiceKey::V4(key) => {
                self.direct_v4.remove(&key);
                remove(&mut self.services_v4, map_name::SERVICES_V4, key)
            }
            ServiceKey::V6(key) => {
                self.direct_v6.remove(&key);
                remove(&mut self.services_v6, map_name::SERVICES_V6, key)
            }
            ServiceKey::Ports(key) => remove_prefix(&mut self.ports_of_vips, map_name::PORTS, &key),
        }
    }

    /// Says what holds for an address, or several, whatever the port.
    pub fn set_vip(&mut self, address: AddressPrefix, vip: Vip) -> Result<()> {
        match VipKey::of(address) {
            VipKey::V4(key) => insert(&mut self.vips_v4, map_name::VIPS_V4, key, vip),
            VipKey::V6(key) => insert(&mut self.vips_v6, map_name::VIPS_V6, key, vip),
            VipKey::Prefix4(key) => {
                insert_prefix(&mut self.prefixes_v4, map_name::PREFIXES_V4, &key, vip)
            }
            VipKey::Prefix6(key) => {
                insert_prefix(&mut self.prefixes_v6, map_name::PREFIXES_V6, &key, vip)
            }
        }
    }

    /// Takes back what [`Self::set_vip`] said.
    pub fn remove_vip(&mut self, address: AddressPrefix) -> Result<()> {
        match VipKey::of(address) {
            VipKey::V4(key) => remove(&mut self.vips_v4, map_name::VIPS_V4, key),
            VipKey::V6(key) => remove(&mut self.vips_v6, map_name::VIPS_V6, key),
            VipKey::Prefix4(key) => {
                remove_prefix(&mut self.prefixes_v4, map_name::PREFIXES_V4, &key)
            }
            VipKey::Prefix6(key) => {
                remove_prefix(&mut self.prefixes_v6, map_name::PREFIXES_V6, &key)
            }
        }
    }

    /// Writes the entry of a backend.
    pub fn set_backend(&mut self, id: u32, backend: Backend) -> Result<()> {
        self.reply_sources.set(id, &backend);
        self.backends
            .set(id, Plain(backend), 0)
            .map_err(map_error("writing", map_name::BACKENDS))
    }

    /// Makes a backend absent. Its entry says what it was, for the next daemon, which must
    /// not give its id to another while flows have it.
    pub fn remove_backend(&mut self, id: u32) -> Result<()> {
        let Plain(entry) = self
            .backends
            .get(&id, 0)
            .map_err(map_error("reading", map_name::BACKENDS))?;
        let absent = Backend {
            path: LinkPath::default(),
            state: BackendState::Absent as u8,
            ..entry
        };
        self.set_backend(id, absent)
    }

    /// Replaces the rings of services, each as a whole.
    pub fn set_rings(&mut self, rings: &[(u32, Arc<[Slot]>)]) -> Result<()> {
        let make = |(service, slots): &(u32, Arc<[Slot]>)| {
            let length = slots.len() as u32;
            let ring = if length == RING_SIZE {
                Inner::<Slot>::new(length)
            } else {
                Inner::of_any_length(length)
            }
            .map_err(map_error("making a ring", map_name::RINGS))?;
            let memory = Mapping::<AtomicU64>::new(ring.fd(), slots.len())
                .map_err(map_error("mapping a ring", map_name::RINGS))?;
            for (element, slot) in memory.get().iter().zip(slots.iter()) {
                element.store(zerocopy::transmute!(*slot), Ordering::Relaxed);
            }
            Ok((*service, ring))
        };
        for rings in rings.chunks(INNER_MAPS) {
            let rings: Vec<_> = rings.iter().map(make).collect::<Result<_>>()?;
            let (usual, sized): (Vec<_>, Vec<_>) = rings
                .into_iter()
                .partition(|(_, ring)| ring.len() == RING_SIZE);
            self.rings
                .set(&usual)
                .map_err(map_error("writing", map_name::RINGS))?;
            self.sized_rings
                .set(&sized)
                .map_err(map_error("writing", map_name::SIZED_RINGS))?;
        }
        Ok(())
    }

    /// Writes what few packets need of a service.
    pub fn set_options(&mut self, service: u32, options: ServiceOptions) -> Result<()> {
        self.options
            .set(service, Plain(options), 0)
            .map_err(map_error("writing", map_name::OPTIONS))
    }

    /// What few packets need of a service, as it was last written.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to read.
    pub fn options(&self, service: u32) -> Result<ServiceOptions> {
        let options = self.options.get(&service, 0);
        let Plain(options) = options.map_err(map_error("reading", map_name::OPTIONS))?;
        Ok(options)
    }

    /// Says which backend has a server ID in connection IDs of QUIC.
    pub fn set_server_id(&mut self, id: ServerIdKey, backend: u32) -> Result<()> {
        insert(&mut self.server_ids, map_name::SERVER_IDS, id, backend)
    }

    /// No backend has this server ID any more.
    pub fn remove_server_id(&mut self, id: ServerIdKey) -> Result<()> {
        remove(&mut self.server_ids, map_name::SERVER_IDS, id)
    }

    /// Flows of a backend that are confirmed and not closed.
    #[must_use]
    pub fn live_flows(&self, backend: u32) -> u32 {
        self.live.of(backend)
    }

    /// Empties rings of services, so that they take no memory. Each is named by the service's
    /// id and its number of slots: a service may have one of [`RING_SIZE`] and another beside
    /// it.
    pub fn remove_rings(&mut self, rings: &[(u32, u32)]) -> Result<()> {
        let of = |is_usual: bool| -> Vec<u32> {
            let rings = rings.iter();
            let rings = rings.filter(|(_, slots)| (*slots == RING_SIZE) == is_usual);
            rings.map(|(service, _)| *service).collect()
        };
        self.rings
            .remove(&of(true))
            .map_err(map_error("removing", map_name::RINGS))?;
        self.sized_rings
            .remove(&of(false))
            .map_err(map_error("removing", map_name::SIZED_RINGS))
    }

    /// Makes port pools with all ports free.
    pub fn create_port_pools(&mut self, ids: &[u32]) -> Result<()> {
        let make = |id: &u32| {
            let pool = Inner::<PortPool>::new(1)
                .map_err(map_error("making a port pool", map_name::PORT_POOLS))?;
            self.ports
                .insert(*id, pool.fd())
                .map_err(map_error("mapping a port pool", map_name::PORT_POOLS))?;
            Ok((*id, pool))
        };
        for ids in ids.chunks(INNER_MAPS) {
            let pools: Vec<_> = ids.iter().map(make).collect::<Result<_>>()?;
            self.port_pools
                .set(&pools)
                .map_err(map_error("writing", map_name::PORT_POOLS))?;
        }
        Ok(())
    }

    /// Takes port pools away. No flow may have a port of them.
    pub fn remove_port_pools(&mut self, ids: &[u32]) -> Result<()> {
        for id in ids {
            self.ports.remove(*id);
        }
        self.port_pools
            .remove(ids)
            .map_err(map_error("removing", map_name::PORT_POOLS))
    }

    /// The port pools.
    #[must_use]
    pub fn ports(&self) -> &Arc<PortPools> {
        &self.ports
    }

    /// Lets packets leave that are for an interface. Clients behind it may be answered.
    pub fn set_interface(&mut self, ifindex: u32, outlet: Outlet) -> Result<()> {
        self.devices.insert(ifindex, outlet.ifindex, None, 0)?;
        insert(
            &mut self.interfaces,
            map_name::INTERFACES,
            ifindex,
            Interface { mtu: outlet.mtu },
        )
    }

    /// No packet leaves by this interface any more.
    pub fn remove_interface(&mut self, ifindex: u32) -> Result<()> {
        remove(&mut self.interfaces, map_name::INTERFACES, ifindex)?;
        // The kernel has done so itself where the interface is gone.
        gone(self.devices.remove(ifindex)).map_err(map_error("removing", map_name::DEVICES))
    }

    /// What passed for a backend.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to read. So with all methods that read.
    pub fn counters(&self, backend: u32) -> Result<Counters> {
        let values = self
            .counters
            .get(&backend, 0)
            .map_err(map_error("reading", map_name::COUNTERS))?;
        Ok(values
            .iter()
            .fold(Counters::default(), |sum, Plain(value)| sum.plus(*value)))
    }

    /// Sets the counters of a backend to zero and forgets what it was, so that its id can
    /// be used again.
    pub fn forget_backend(&mut self, id: u32) -> Result<()> {
        let zeros = per_cpu(Plain(Counters::default()))
            .map_err(map_error("counting the CPUs for", map_name::COUNTERS))?;
        self.counters
            .set(id, zeros, 0)
            .map_err(map_error("writing", map_name::COUNTERS))?;
        self.outcomes.forget(id);
        self.set_backend(id, Backend::default())
    }

    /// What became of the connections to a backend that clients have begun, as far as its
    /// service is [watched](Service::WATCHED), since the program was loaded.
    #[must_use]
    pub fn outcomes(&self, backend: u32) -> Outcomes {
        self.outcomes.of(backend)
    }

    /// Dropped packets by service, backend, reason and direction.
    pub fn drops(&self) -> Result<BTreeMap<DropKey, u64>> {
        self.drops
            .iter()
            .map(|entry| entry.map(|(Plain(key), values)| (key, values.iter().sum())))
            .collect::<Result<_, MapError>>()
            .map_err(map_error("reading", map_name::DROPS))
    }

    /// Forgets what was dropped under this key. An overflow key stays, at zero.
    pub fn clear_drops(&mut self, key: DropKey) -> Result<()> {
        if key == DropKey::overflow(key.reason, key.direction) {
            return self.insert_drop_key(key);
        }
        gone(self.drops.remove(&Plain(key))).map_err(map_error("removing", map_name::DROPS))
    }

    fn insert_drop_key(&mut self, key: DropKey) -> Result<()> {
        let zeros = per_cpu(0_u64).map_err(map_error("counting the CPUs for", map_name::DROPS))?;
        self.drops
            .insert(Plain(key), zeros, 0)
            .map_err(map_error("writing", map_name::DROPS))
    }

    /// Handles to the flow tables and port pools, for another thread to sweep.
    pub fn flow_tables(&self) -> Result<FlowTables> {
        FlowTables::new(
            self.flows.each_ref(),
            self.clients.each_ref(),
            Arc::clone(&self.ports),
            Arc::clone(&self.live),
        )
    }

    /// The first fragments of IPv4 packets that are remembered.
    pub fn fragments_v4(&self) -> Result<Vec<(FragmentKey4, Fragment)>> {
        self.entries(map_name::FRAGMENTS_V4)
    }

    /// The same of IPv6.
    pub fn fragments_v6(&self) -> Result<Vec<(FragmentKey6, Fragment)>> {
        self.entries(map_name::FRAGMENTS_V6)
    }

    /// The entries of a table that the program alone writes.
    fn entries<K: Stored, V: Stored>(&self, name: &'static str) -> Result<Vec<(K, V)>> {
        let read = || -> Result<_, MapError> {
            let map = self.ebpf.map(name).ok_or(MapError::KeyNotFound)?;
            let table = HashMap::<_, Plain<K>, Plain<V>>::try_from(map)?;
            let entries = table.iter();
            entries
                .map(|entry| entry.map(|(Plain(key), Plain(value))| (key, value)))
                .collect()
        };
        read().map_err(map_error("reading", name))
    }

    /// The ICMP errors that were sent in the last tick that had any, for each CPU.
    pub fn icmp_budgets(&self) -> Result<Vec<IcmpBudget>> {
        let read = || -> Result<_, MapError> {
            let name = map_name::ICMP_BUDGET;
            let map = self.ebpf.map(name).ok_or(MapError::KeyNotFound)?;
            let budgets = PerCpuArray::<_, Plain<IcmpBudget>>::try_from(map)?;
            let values = budgets.get(&0, 0)?;
            Ok(values.iter().map(|Plain(budget)| *budget).collect())
        };
        read().map_err(map_error("reading", map_name::ICMP_BUDGET))
    }

    /// Runs the program on a frame that came in by interface `ifindex`, of which
    /// nothing leaves. The maps are the real ones.
    pub fn test_run(&mut self, frame: &[u8], ifindex: u32) -> Result<TestRun> {
        let program = program(&mut self.ebpf, map_name::PROGRAM)?;
        test_run::test_run(program, frame, ifindex)
    }

    /// Runs the program that sends health checks off, in the same way.
    pub fn test_run_probe(&mut self, frame: &[u8], ifindex: u32) -> Result<TestRun> {
        test_run::test_run(self.load_probe()?, frame, ifindex)
    }

    /// The program that sends health checks off. It is loaded by those alone who need it.
    fn load_probe(&mut self) -> Result<&mut Xdp> {
        let program = program(&mut self.ebpf, probe::PROGRAM)?;
        if program.fd().is_err() {
            let failed = |error: aya::programs::ProgramError| error::loading(error.into(), None);
            program.load().map_err(failed)?;
        }
        Ok(program)
    }
}

/// The tables of clients.
const CLIENT_TABLES: [&str; 4] = [
    map_name::CLIENTS_V4,
    map_name::NEWCOMERS_V4,
    map_name::CLIENTS_V6,
    map_name::NEWCOMERS_V6,
];

/// The queues of flows that are not confirmed, which options give a size.
const EMBRYONIC: [&str; 2] = [map_name::EMBRYONIC_V4, map_name::EMBRYONIC_V6];

/// The flow tables, in the order of `FlowTables::new`.
const FLOW_TABLES: [&str; 6] = [
    map_name::FLOWS_V4,
    map_name::FLOWS_V6,
    map_name::REPLIES_V4,
    map_name::REPLIES_V6,
    map_name::PINS_V4,
    map_name::PINS_V6,
];

/// Loads the programs of an object, and says which ones the main one calls.
fn load_programs(
    ebpf: &mut Ebpf,
    failed: impl Fn(aya::EbpfError) -> Error,
) -> Result<ProgramArray<MapData>> {
    program(ebpf, map_name::PROGRAM)?
        .load()
        .map_err(|error| failed(error.into()))?;
    let mut stages: ProgramArray<MapData> = take(ebpf, map_name::STAGES)?;
    for stage in Stage::ALL {
        let program = program(ebpf, stage.program())?;
        program.load().map_err(|error| failed(error.into()))?;
        let fd = program.fd().map_err(|error| failed(error.into()))?;
        stages
            .set(stage as u32, fd, 0)
            .map_err(map_error("writing", map_name::STAGES))?;
    }
    Ok(stages)
}

/// The XDP program of this name.
fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| missing_program(name))
}

fn missing_program(name: &str) -> Error {
    Error::WrongObject {
        what: format!("there is no XDP program `{name}`"),
    }
}

/// Takes a map out of the object, with the types of its keys and values checked.
fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<M> {
    take_map(ebpf, name)?
        .try_into()
        .map_err(|error| Error::WrongObject {
            what: format!("map {name}: {error}"),
        })
}

fn take_of_maps<V: Stored>(
    ebpf: &mut Ebpf,
    name: &'static str,
    empty: std::result::Result<Inner<V>, MapError>,
) -> Result<OfMaps<V>> {
    let map = take_map(ebpf, name)?;
    empty
        .and_then(|empty| OfMaps::new(map, empty))
        .map_err(|error| Error::WrongObject {
            what: format!("map {name}: {error}"),
        })
}

fn take_map(ebpf: &mut Ebpf, name: &'static str) -> Result<Map> {
    ebpf.take_map(name).ok_or_else(|| Error::WrongObject {
        what: format!("there is no map {name}"),
    })
}

/// Entries that a map has room for.
fn entries_of(ebpf: &Ebpf, name: &'static str) -> Result<u32> {
    let info = match ebpf.map(name) {
        Some(Map::Array(map)) => map.info(),
        _ => {
            return Err(Error::WrongObject {
                what: format!("there is no array {name}"),
            });
        }
    };
    let info = info.map_err(map_error("asking for", name))?;
    Ok(info.max_entries())
}

fn take_flow_tables(ebpf: &mut Ebpf) -> Result<[MapData; FLOW_TABLES.len()]> {
    let mut take = |name| match take_map(ebpf, name)? {
        Map::HashMap(map) => Ok(map),
        other => Err(Error::WrongObject {
            what: format!("map {name} is no hash map: {other:?}"),
        }),
    };
    let [a, b, c, d, e, f] = FLOW_TABLES;
    Ok([take(a)?, take(b)?, take(c)?, take(d)?, take(e)?, take(f)?])
}

fn take_array(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData> {
    match take_map(ebpf, name)? {
        Map::Array(map) => Ok(map),
        other => Err(Error::WrongObject {
            what: format!("map {name} is no array: {other:?}"),
        }),
    }
}

/// The array of this name in front of a table of services.
fn take_direct<K: DirectKey + Hash + Stored, const WORDS: usize>(
    ebpf: &mut Ebpf,
    name: &'static str,
    services: &Table<K, Service>,
) -> Result<Direct<K, WORDS>> {
    let services: Vec<_> = services
        .iter()
        .map(|entry| entry.map(|(Plain(key), Plain(service))| (key, service)))
        .collect::<Result<_, MapError>>()
        .map_err(map_error("reading what is behind", name))?;
    let map = take_array(ebpf, name)?;
    Direct::new(map.fd().as_fd(), services).map_err(map_error("mapping", name))
}

/// The filter of addresses that replies come from, for these backends; `None` for none.
fn take_reply_sources(
    ebpf: &mut Ebpf,
    backends: Option<&Array<MapData, Plain<Backend>>>,
) -> Result<ReplySources> {
    let backends = backends.map_or(Ok(BTreeMap::new()), contents::backends)?;
    let map = take_array(ebpf, map_name::REPLY_SOURCES)?;
    ReplySources::new(map.fd().as_fd(), &backends)
        .map_err(map_error("mapping", map_name::REPLY_SOURCES))
}

fn take_client_tables(ebpf: &mut Ebpf) -> Result<[MapData; CLIENT_TABLES.len()]> {
    let mut take = |name| match take_map(ebpf, name)? {
        Map::LruHashMap(map) => Ok(map),
        other => Err(Error::WrongObject {
            what: format!("map {name} is no LRU hash map: {other:?}"),
        }),
    };
    let [a, b, c, d] = CLIENT_TABLES;
    Ok([take(a)?, take(b)?, take(c)?, take(d)?])
}

fn take_live(ebpf: &mut Ebpf) -> Result<Arc<LiveFlows>> {
    let map = take_array(ebpf, map_name::LIVE)?;
    let live = LiveFlows::new(map.fd().as_fd()).map_err(map_error("mapping", map_name::LIVE))?;
    Ok(Arc::new(live))
}

fn take_outcomes(ebpf: &mut Ebpf) -> Result<Counted> {
    let map = take_array(ebpf, outcome::OUTCOMES)?;
    Counted::new(map.fd().as_fd()).map_err(map_error("mapping", outcome::OUTCOMES))
}

fn insert<K: Stored, V: Stored>(
    table: &mut Table<K, V>,
    name: &'static str,
    key: K,
    value: V,
) -> Result<()> {
    table
        .insert(Plain(key), Plain(value), 0)
        .map_err(map_error("writing", name))
}

/// Removes an entry; it is fine where there is none.
fn remove<K: Stored, V: Stored>(table: &mut Table<K, V>, name: &'static str, key: K) -> Result<()> {
    gone(table.remove(&Plain(key))).map_err(map_error("removing", name))
}

fn insert_prefix<K: Stored, V: Stored>(
    trie: &mut Trie<K, V>,
    name: &'static str,
    key: &Key<Plain<K>>,
    value: V,
) -> Result<()> {
    trie.insert(key, Plain(value), 0)
        .map_err(map_error("writing", name))
}

/// Removes an entry; it is fine where there is none.
fn remove_prefix<K: Stored, V: Stored>(
    trie: &mut Trie<K, V>,
    name: &'static str,
    key: &Key<Plain<K>>,
) -> Result<()> {
    gone(trie.remove(key)).map_err(map_error("removing", name))
}

/// A value for every CPU that there could be.
fn per_cpu<V: aya::Pod>(value: V) -> std::io::Result<aya::maps::PerCpuValues<V>> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
    vec![value; cpus].try_into()
}
