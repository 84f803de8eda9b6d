//! What the eBPF programs and the daemon must agree on: the layout of the maps
//! and the names and numbers that both sides use.
//!
//! Every type that is stored in a map is `#[repr(C)]`, has no implicit padding
//! (zerocopy's `IntoBytes` refuses it at compile time) and its size is asserted.
//! What the datapath builds on its stack is aligned to eight bytes: the kernel
//! refuses the wide stores of the compiler to a stack slot that is not.
//! [`SCHEMA_VERSION`] changes with every change to one of them.
//!
//! Addresses, ports and VLAN tags are kept as they are on the wire (network byte
//! order) so that the datapath copies them without swapping; the field's doc
//! comment says so. Everything else is in host byte order.
#![no_std]
#![forbid(unsafe_code)]

pub mod addr;
pub mod backend;
pub mod checksum;
pub mod client;
pub mod counters;
pub mod decap;
pub mod direct;
pub mod drop_reason;
pub mod flow;
pub mod fragment;
pub mod guard;
pub mod hash;
pub mod outcome;
pub mod pin;
pub mod ports;
pub mod probe;
pub mod quic;
pub mod ring;
pub mod service;
pub mod stage;

/// Version of the map layout. A daemon refuses maps of another version.
pub const SCHEMA_VERSION: u32 = 5;

/// Names of the maps, as the loader sees them.
pub mod map_name {
    /// [`Runtime`](crate::Runtime), one element.
    pub const RUNTIME: &str = "RUNTIME";
    /// [`ServiceKey4`](crate::service::ServiceKey4) to [`Service`](crate::service::Service).
    pub const SERVICES_V4: &str = "SERVICES_V4";
    /// [`ServiceKey6`](crate::service::ServiceKey6) to [`Service`](crate::service::Service).
    pub const SERVICES_V6: &str = "SERVICES_V6";
    /// What stands in front of `SERVICES_V4`: see [`direct`](crate::direct).
    pub const DIRECT_V4: &str = "DIRECT_V4";
    /// What stands in front of `SERVICES_V6`: see [`direct`](crate::direct).
    pub const DIRECT_V6: &str = "DIRECT_V6";
    /// Bits of the addresses of backends: see [`direct`](crate::direct).
    pub const REPLY_SOURCES: &str = "REPLY_SOURCES";
    /// IPv4 address (`u32`, network byte order) to [`Vip`](crate::service::Vip).
    pub const VIPS_V4: &str = "VIPS_V4";
    /// IPv6 address (`[u32; 4]`, network byte order) to [`Vip`](crate::service::Vip).
    pub const VIPS_V6: &str = "VIPS_V6";
    /// IPv4 prefix to [`Vip`](crate::service::Vip), longest match.
    pub const PREFIXES_V4: &str = "PREFIXES_V4";
    /// IPv6 prefix to [`Vip`](crate::service::Vip), longest match.
    pub const PREFIXES_V6: &str = "PREFIXES_V6";
    /// [`PortKey`](crate::service::PortKey) to [`Service`](crate::service::Service), longest
    /// match.
    pub const PORTS: &str = "PORTS";
    /// [`FragmentKey4`](crate::fragment::FragmentKey4) to
    /// [`Fragment`](crate::fragment::Fragment).
    pub const FRAGMENTS_V4: &str = "FRAGMENTS_V4";
    /// [`FragmentKey6`](crate::fragment::FragmentKey6) to
    /// [`Fragment`](crate::fragment::Fragment).
    pub const FRAGMENTS_V6: &str = "FRAGMENTS_V6";
    /// Service id to its ring, an array of [`Slot`](crate::ring::Slot)s.
    pub const RINGS: &str = "RINGS";
    /// The same for rings that have not [`RING_SIZE`](crate::ring::RING_SIZE) slots.
    pub const SIZED_RINGS: &str = "SIZED_RINGS";
    /// Service id to [`ServiceOptions`](crate::service::ServiceOptions).
    pub const OPTIONS: &str = "OPTIONS";
    /// [`ServerIdKey`](crate::quic::ServerIdKey) to the id of a backend, a `u32`.
    pub const SERVER_IDS: &str = "SERVER_IDS";
    /// Service id to [`Turns`](crate::service::Turns).
    pub const TURNS: &str = "TURNS";
    /// Service id to [`Guard`](crate::guard::Guard).
    pub const GUARDS: &str = "GUARDS";
    /// [`SourceKey4`](crate::guard::SourceKey4) to a verdict of [`crate::guard`], longest match.
    pub const SOURCES_V4: &str = "SOURCES_V4";
    /// [`SourceKey6`](crate::guard::SourceKey6) to a verdict of [`crate::guard`], longest match.
    pub const SOURCES_V6: &str = "SOURCES_V6";
    /// Service id to the bucket of its new flows, a `u64`: see [`crate::guard`].
    pub const SERVICE_BUCKETS: &str = "SERVICE_BUCKETS";
    /// [`BucketKey`](crate::guard::BucketKey) to the bucket of a source's new flows, a `u64`.
    pub const SOURCE_BUCKETS: &str = "SOURCE_BUCKETS";
    /// Backend id to the number of its flows, a [`load`](crate::flow::load).
    pub const LIVE: &str = "LIVE";
    /// Client to service, IPv4: [`FlowKey4`](crate::flow::FlowKey4) to [`Pin`](crate::pin::Pin).
    pub const PINS_V4: &str = "PINS_V4";
    /// Client to service, IPv6: [`FlowKey6`](crate::flow::FlowKey6) to [`Pin`](crate::pin::Pin).
    pub const PINS_V6: &str = "PINS_V6";
    /// Queue of [`FlowKey4`](crate::flow::FlowKey4): flows that are not confirmed.
    pub const EMBRYONIC_V4: &str = "EMBRYONIC_V4";
    /// Queue of [`FlowKey6`](crate::flow::FlowKey6): flows that are not confirmed.
    pub const EMBRYONIC_V6: &str = "EMBRYONIC_V6";
    /// Numbers of flows that have entered the queues of IPv4 and IPv6, `u64`s.
    pub const ENTERED: &str = "ENTERED";
    /// [`ClientKey4`](crate::client::ClientKey4) to [`Client`](crate::client::Client).
    pub const CLIENTS_V4: &str = "CLIENTS_V4";
    /// [`ClientKey6`](crate::client::ClientKey6) to [`Client`](crate::client::Client).
    pub const CLIENTS_V6: &str = "CLIENTS_V6";
    /// The same as in [`CLIENTS_V4`], of clients that are not confirmed.
    pub const NEWCOMERS_V4: &str = "NEWCOMERS_V4";
    /// The same as in [`CLIENTS_V6`], of clients that are not confirmed.
    pub const NEWCOMERS_V6: &str = "NEWCOMERS_V6";
    /// Backend id to [`Backend`](crate::backend::Backend).
    pub const BACKENDS: &str = "BACKENDS";
    /// Port pool id to its [`PortPool`](crate::ports::PortPool), an array of one.
    pub const PORT_POOLS: &str = "PORT_POOLS";
    /// Client to service, IPv4: [`FlowKey4`](crate::flow::FlowKey4) to [`Flow4`](crate::flow::Flow4).
    pub const FLOWS_V4: &str = "FLOWS_V4";
    /// Client to service, IPv6: [`FlowKey6`](crate::flow::FlowKey6) to [`Flow6`](crate::flow::Flow6).
    pub const FLOWS_V6: &str = "FLOWS_V6";
    /// Backend to client, IPv4: [`FlowKey4`](crate::flow::FlowKey4) to [`Flow4`](crate::flow::Flow4).
    pub const REPLIES_V4: &str = "REPLIES_V4";
    /// Backend to client, IPv6: [`FlowKey6`](crate::flow::FlowKey6) to [`Flow6`](crate::flow::Flow6).
    pub const REPLIES_V6: &str = "REPLIES_V6";
    /// Backend id to [`Counters`](crate::counters::Counters), per CPU.
    pub const COUNTERS: &str = "COUNTERS";
    /// [`DropKey`](crate::counters::DropKey) to a `u64`, per CPU.
    pub const DROPS: &str = "DROPS";
    /// Interface index to the interface that packets may be redirected to.
    pub const DEVICES: &str = "DEVICES";
    /// Interface index (`u32`) to [`Interface`](crate::backend::Interface).
    pub const INTERFACES: &str = "INTERFACES";
    /// [`Stage`](crate::stage::Stage) to its program.
    pub const STAGES: &str = "STAGES";
    /// One [`Handover`](crate::stage::Handover), per CPU.
    pub const HANDOVER: &str = "HANDOVER";
    /// One [`IcmpBudget`](crate::stage::IcmpBudget), per CPU.
    pub const ICMP_BUDGET: &str = "ICMP_BUDGET";
    /// The XDP program.
    pub const PROGRAM: &str = "lb";
}

/// What the daemon tells the datapath while it runs. Element 0 of `RUNTIME`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
)]
#[repr(C)]
pub struct Runtime {
    /// The flow clock, in units of [`CLOCK_TICK_MS`]. It runs only while a daemon
    /// does, so that no flow grows old while nobody could have seen it speak.
    pub clock: u32,
    /// A set of the constants of this type.
    pub flags: u32,
    /// Places of the embryonic queues, less one.
    pub embryonic_mask: u32,
    /// Reserved, zero.
    pub reserved: u32,
}

impl Runtime {
    /// At least one service has several ports, or an address whose other ports are
    /// dropped, so a lookup that missed the exact port is worth a second one.
    pub const WIDE: u32 = 1;
    /// At least one service has a prefix as its address. Comes with [`Self::WIDE`].
    pub const PREFIXES: u32 = 1 << 1;
    /// At least one backend is [`Resetting`](backend::BackendState::Resetting), so a packet
    /// from a backend is worth a look at it.
    pub const RESETTING: u32 = 1 << 4;
}

/// Length of one tick of [`Runtime::clock`], in milliseconds.
pub const CLOCK_TICK_MS: u32 = 100;

/// Places of each queue of flows that are not confirmed, a power of two, unless the daemon
/// sets another number.
pub const MAX_EMBRYONIC: u32 = 131_072;

const _: () = assert!(size_of::<Runtime>() == 16);
