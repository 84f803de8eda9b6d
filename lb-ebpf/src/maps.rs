//! The maps. Their layout is the ABI in `lb-common`; sizes given here are
//! defaults that the daemon overrides when it loads the program.

use aya_ebpf::{
    bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{
        Array, ArrayOfMaps, DevMapHash, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap,
        ProgramArray,
    },
    macros::btf_map,
};
use lb_common::{
    MAX_EMBRYONIC, Runtime,
    backend::{Backend, Interface, MAX_BACKENDS},
    client::{Client, ClientKey4, ClientKey6, MAX_CLIENTS, MAX_NEWCOMERS},
    counters::{Counters, DropKey, MAX_DROP_KEYS},
    direct::{DIRECT_ENTRIES, DIRECT_WORDS_V4, DIRECT_WORDS_V6, REPLY_SOURCE_WORDS},
    flow::{Flow4, Flow6, FlowKey4, FlowKey6, MAX_FLOWS},
    fragment::{Fragment, FragmentKey4, FragmentKey6, MAX_FRAGMENTS},
    guard::{BucketKey, Guard, MAX_SOURCE_BUCKETS, MAX_SOURCE_PREFIXES, SourceKey4, SourceKey6},
    outcome::WORDS as OUTCOME_WORDS,
    pin::Pin,
    ports::{MAX_PORT_POOLS, PortPool},
    probe::Probe,
    quic::{MAX_SERVER_IDS, ServerIdKey},
    ring::RING_SIZE,
    service::{
        MAX_PORT_PREFIXES, MAX_PREFIXES, MAX_SERVICES, PortKey, Service, ServiceKey4, ServiceKey6,
        ServiceOptions, Turns, Vip,
    },
    stage::{Handover, IcmpBudget, Stage},
};

use crate::{family::Draft, select::Search};

const SERVICES: usize = MAX_SERVICES as usize;
const DIRECT: usize = DIRECT_ENTRIES as usize;
const FILTER_WORDS: usize = REPLY_SOURCE_WORDS as usize;
const PREFIXES: usize = MAX_PREFIXES as usize;
const PORT_PREFIXES: usize = MAX_PORT_PREFIXES as usize;
const SOURCE_PREFIXES: usize = MAX_SOURCE_PREFIXES as usize;
const SOURCE_BUCKETS_KEPT: usize = MAX_SOURCE_BUCKETS as usize;
const FIRST_FRAGMENTS: usize = MAX_FRAGMENTS as usize;
const BACKEND_IDS: usize = MAX_BACKENDS as usize;
const FLOWS: usize = MAX_FLOWS as usize;
const EMBRYONIC: usize = MAX_EMBRYONIC as usize;
const CLIENTS: usize = MAX_CLIENTS as usize;
const NEWCOMERS: usize = MAX_NEWCOMERS as usize;
const POOLS: usize = MAX_PORT_POOLS as usize;
const SERVER_ID_KEYS: usize = MAX_SERVER_IDS as usize;
const POOL_WORDS: usize = size_of::<PortPool>() / size_of::<u64>();
const DROP_KEYS: usize = MAX_DROP_KEYS as usize;
const INTERFACE_INDEXES: usize = 1_024;

/// Flow clock and switches.
#[btf_map]
pub static RUNTIME: Array<Runtime, 1> = Array::new();

/// IPv4 services by address, port and protocol.
#[btf_map]
pub static SERVICES_V4: HashMap<ServiceKey4, Service, SERVICES> = HashMap::new();

/// IPv6 services by address, port and protocol.
#[btf_map]
pub static SERVICES_V6: HashMap<ServiceKey6, Service, SERVICES> = HashMap::new();

/// In front of [`SERVICES_V4`]: an array under a hash of our own, in memory that the daemon
/// writes.
#[btf_map]
pub static DIRECT_V4: Array<[u64; DIRECT_WORDS_V4], DIRECT, { BPF_F_MMAPABLE as usize }> =
    Array::new();

/// In front of [`SERVICES_V6`].
#[btf_map]
pub static DIRECT_V6: Array<[u64; DIRECT_WORDS_V6], DIRECT, { BPF_F_MMAPABLE as usize }> =
    Array::new();

/// Bits of the addresses that replies may come from: those of backends.
#[btf_map]
pub static REPLY_SOURCES: Array<u64, FILTER_WORDS, { BPF_F_MMAPABLE as usize }> = Array::new();

/// IPv4 addresses of services.
#[btf_map]
pub static VIPS_V4: HashMap<u32, Vip, SERVICES> = HashMap::new();

/// IPv6 addresses of services.
#[btf_map]
pub static VIPS_V6: HashMap<[u32; 4], Vip, SERVICES> = HashMap::new();

/// IPv4 prefixes that are addresses of services.
#[btf_map]
pub static PREFIXES_V4: LpmTrie<u32, Vip, PREFIXES> = LpmTrie::new();

/// IPv6 prefixes that are addresses of services.
#[btf_map]
pub static PREFIXES_V6: LpmTrie<[u32; 4], Vip, PREFIXES> = LpmTrie::new();

/// Services on several ports or on prefixes, by address, protocol and port.
#[btf_map]
pub static PORTS: LpmTrie<PortKey, Service, PORT_PREFIXES> = LpmTrie::new();

/// A ring, in memory that the daemon writes without a system call for each slot. Each
/// [`Slot`](lb_common::ring::Slot) is a word, for the same reason as with [`Pool`].
pub type Ring = Array<u64, { RING_SIZE as usize }, { BPF_F_MMAPABLE as usize }>;

/// Rings of the usual size, by service id.
#[btf_map]
pub static RINGS: ArrayOfMaps<Ring, SERVICES> = ArrayOfMaps::new();

/// A ring of any size. The verifier writes the look at a slot into the program where it knows
/// the size, and a call where it does not: so these have a table of their own.
pub type SizedRing =
    Array<u64, { RING_SIZE as usize }, { (BPF_F_MMAPABLE | BPF_F_INNER_MAP) as usize }>;

/// Rings of other sizes, by service id.
#[btf_map]
pub static SIZED_RINGS: ArrayOfMaps<SizedRing, SERVICES> = ArrayOfMaps::new();

/// What few packets need of a service, by its id.
#[btf_map]
pub static OPTIONS: Array<ServiceOptions, SERVICES> = Array::new();

/// Backends by the server IDs that they have in connection IDs of QUIC. Memory is taken as
/// it is needed: the daemon alone writes, and most have none.
#[btf_map]
pub static SERVER_IDS: HashMap<ServerIdKey, u32, SERVER_ID_KEYS, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Whose turn it is, by service id.
#[btf_map]
pub static TURNS: Array<Turns, SERVICES> = Array::new();

/// The search for a backend of few flows.
#[btf_map]
pub static SEARCH: PerCpuArray<Search, 1> = PerCpuArray::new();

/// Lists and limits of services that have any, by service id.
#[btf_map]
pub static GUARDS: Array<Guard, SERVICES> = Array::new();

/// IPv4 sources that packets are taken from or not, by service.
#[btf_map]
pub static SOURCES_V4: LpmTrie<SourceKey4, u32, SOURCE_PREFIXES> = LpmTrie::new();

/// IPv6 sources that packets are taken from or not, by service.
#[btf_map]
pub static SOURCES_V6: LpmTrie<SourceKey6, u32, SOURCE_PREFIXES> = LpmTrie::new();

/// Buckets of services, by id.
#[btf_map]
pub static SERVICE_BUCKETS: Array<u64, SERVICES> = Array::new();

/// Buckets of sources.
#[btf_map]
pub static SOURCE_BUCKETS: LruHashMap<BucketKey, u64, SOURCE_BUCKETS_KEPT> = LruHashMap::new();

/// Flows of a backend, by its id, in memory that the daemon maps too: both sides count
/// with atomic operations. See [`load`](lb_common::flow::load).
#[btf_map]
pub static LIVE: Array<u64, BACKEND_IDS, { BPF_F_MMAPABLE as usize }> = Array::new();

/// What became of connections to a backend, by its id, in memory that the daemon maps too.
#[btf_map]
pub static OUTCOMES: Array<[u64; OUTCOME_WORDS], BACKEND_IDS, { BPF_F_MMAPABLE as usize }> =
    Array::new();

/// Backends by id.
#[btf_map]
pub static BACKENDS: Array<Backend, BACKEND_IDS> = Array::new();

/// A [`PortPool`] in memory that the daemon maps too, so that both sides take and free
/// ports with atomic operations. Words in place of the structure: before Linux 6.2, a map
/// whose BTF tells of a structure is another one than that of the daemon, which has no BTF.
pub type Pool = Array<[u64; POOL_WORDS], 1, { BPF_F_MMAPABLE as usize }>;

/// Port pools by id.
#[btf_map]
pub static PORT_POOLS: ArrayOfMaps<Pool, POOLS> = ArrayOfMaps::new();

/// IPv4 flows, client to service.
#[btf_map]
pub static FLOWS_V4: HashMap<FlowKey4, Flow4, FLOWS> = HashMap::new();

/// IPv6 flows, client to service.
#[btf_map]
pub static FLOWS_V6: HashMap<FlowKey6, Flow6, FLOWS> = HashMap::new();

/// IPv4 flows, backend to client.
#[btf_map]
pub static REPLIES_V4: HashMap<FlowKey4, Flow4, FLOWS> = HashMap::new();

/// IPv6 flows, backend to client.
#[btf_map]
pub static REPLIES_V6: HashMap<FlowKey6, Flow6, FLOWS> = HashMap::new();

/// IPv4 flows without translation, client to service.
#[btf_map]
pub static PINS_V4: HashMap<FlowKey4, Pin, FLOWS> = HashMap::new();

/// IPv6 flows without translation, client to service.
#[btf_map]
pub static PINS_V6: HashMap<FlowKey6, Pin, FLOWS> = HashMap::new();

/// IPv4 flows that are not confirmed, in the order in which they began.
#[btf_map]
pub static EMBRYONIC_V4: Array<FlowKey4, EMBRYONIC> = Array::new();

/// IPv6 flows that are not confirmed, in the order in which they began.
#[btf_map]
pub static EMBRYONIC_V6: Array<FlowKey6, EMBRYONIC> = Array::new();

/// How many flows have entered the queue of IPv4, and that of IPv6.
#[btf_map]
pub static ENTERED: Array<u64, 2> = Array::new();

/// IPv4 clients and the backends that they had.
#[btf_map]
pub static CLIENTS_V4: LruHashMap<ClientKey4, Client, CLIENTS> = LruHashMap::new();

/// IPv6 clients and the backends that they had.
#[btf_map]
pub static CLIENTS_V6: LruHashMap<ClientKey6, Client, CLIENTS> = LruHashMap::new();

/// The same of IPv4 clients that are not confirmed.
#[btf_map]
pub static NEWCOMERS_V4: LruHashMap<ClientKey4, Client, NEWCOMERS> = LruHashMap::new();

/// The same of IPv6 clients that are not confirmed.
#[btf_map]
pub static NEWCOMERS_V6: LruHashMap<ClientKey6, Client, NEWCOMERS> = LruHashMap::new();

/// First fragments of IPv4 packets.
#[btf_map]
pub static FRAGMENTS_V4: LruHashMap<FragmentKey4, Fragment, FIRST_FRAGMENTS> = LruHashMap::new();

/// First fragments of IPv6 packets.
#[btf_map]
pub static FRAGMENTS_V6: LruHashMap<FragmentKey6, Fragment, FIRST_FRAGMENTS> = LruHashMap::new();

/// Where IPv4 entries are put together.
#[btf_map]
pub static DRAFT_V4: PerCpuArray<Draft<Flow4, FragmentKey4>, 1> = PerCpuArray::new();

/// Where IPv6 entries are put together.
#[btf_map]
pub static DRAFT_V6: PerCpuArray<Draft<Flow6, FragmentKey6>, 1> = PerCpuArray::new();

/// Counters by backend id.
#[btf_map]
pub static COUNTERS: PerCpuArray<Counters, BACKEND_IDS> = PerCpuArray::new();

/// Dropped packets by service, backend, reason and direction.
#[btf_map]
pub static DROPS: PerCpuHashMap<DropKey, u64, DROP_KEYS> = PerCpuHashMap::new();

/// Interfaces to redirect to, by index.
#[btf_map]
pub static DEVICES: DevMapHash<INTERFACE_INDEXES> = DevMapHash::new();

/// Interfaces that clients may be behind, by index.
#[btf_map]
pub static INTERFACES: HashMap<u32, Interface, INTERFACE_INDEXES> = HashMap::new();

/// The programs that the main one calls.
#[btf_map]
pub static STAGES: ProgramArray<{ Stage::ALL.len() }> = ProgramArray::new();

/// What one program leaves to the next.
#[btf_map]
pub static HANDOVER: PerCpuArray<Handover, 1> = PerCpuArray::new();

/// How health checks reach backends that have the service address, by backend id.
#[btf_map]
pub static PROBES: HashMap<u32, Probe, BACKEND_IDS, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// How many ICMP errors may still be sent.
#[btf_map]
pub static ICMP_BUDGET: PerCpuArray<IcmpBudget, 1> = PerCpuArray::new();

/// The flow clock.
#[inline(always)]
pub fn clock() -> u32 {
    RUNTIME.get(0).map_or(0, |runtime| runtime.clock)
}

/// The flags of [`Runtime`].
#[inline(always)]
pub fn switches() -> u32 {
    RUNTIME.get(0).map_or(0, |runtime| runtime.flags)
}
