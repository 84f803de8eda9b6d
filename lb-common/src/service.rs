//! Services, as the datapath sees them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{quic::ConnectionIds, ring::RING_SIZE};

/// Number of services unless the daemon sets another, which an id of 16 bits allows.
pub const MAX_SERVICES: u32 = 4_096;

/// Key of `SERVICES_V4`: services on one address and one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct ServiceKey4 {
    /// Service address, network byte order.
    pub address: u32,
    /// Port, network byte order.
    pub port: u16,
    /// IP protocol number: 6 or 17.
    pub protocol: u16,
}

/// Key of `SERVICES_V6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct ServiceKey6 {
    /// Service address, network byte order.
    pub address: [u32; 4],
    /// Port, network byte order.
    pub port: u16,
    /// IP protocol number: 6 or 17.
    pub protocol: u16,
    /// Reserved, zero.
    pub reserved: u32,
}

/// Forwarding mode: what the balancer changes in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    /// The destination address and port; the client's address is kept, so the
    /// backend must route its replies through the balancer.
    Nat = 1,
    /// Destination and source, ports too: backends need no set-up.
    FullNat = 2,
    /// The Ethernet addresses: backends have the service address themselves.
    Dsr = 3,
    /// Wrapped in an IP packet (RFC 2003, RFC 2473, RFC 4213).
    Ipip = 4,
    /// Wrapped in a UDP datagram (draft-ietf-intarea-gue).
    Gue = 5,
}

impl Mode {
    /// Whether packets are translated, so that every flow has entries and replies come
    /// back this way.
    #[inline(always)]
    #[must_use]
    pub const fn translates(mode: u8) -> bool {
        mode == Self::Nat as u8 || mode == Self::FullNat as u8
    }
}

/// Value of `SERVICES_V4`, `SERVICES_V6` and `PORTS`: a word, which calls take and return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Service {
    /// See [`Self::id`].
    pub id: u16,
    /// A [`Mode`].
    pub mode: u8,
    /// A [`Scheduler`].
    pub scheduler: u8,
    /// A set of the constants of this type.
    pub flags: u8,
    /// See [`Self::ring_size`]. The least significant byte first.
    pub ring_size: [u8; 3],
}

impl Service {
    /// Every flow has an entry.
    pub const TRACKED: u8 = 1;
    /// The client's address alone chooses the slot.
    pub const BY_CLIENT: u8 = 1 << 1;
    /// The client's address and port choose the slot.
    pub const BY_CLIENT_PORT: u8 = 1 << 2;
    /// Some backend takes no more than a number of flows.
    pub const BOUNDED: u8 = 1 << 3;
    /// It has an entry in `GUARDS`: lists of sources, or limits of new flows.
    pub const GUARDED: u8 = 1 << 4;
    /// Connection IDs of QUIC may name the backend.
    pub const QUIC: u8 = 1 << 6;
    /// A client gets the backend that it had last.
    pub const AFFINE: u8 = 1 << 5;
    /// What becomes of the connections that clients begin is counted: see
    /// [`outcome`](crate::outcome).
    pub const WATCHED: u8 = 1 << 7;

    /// Index of its ring in `RINGS` or `SIZED_RINGS`, and its name in counters. At least 1.
    #[inline(always)]
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id as u32
    }

    /// Slots of its ring, which is in `SIZED_RINGS` where they are not [`RING_SIZE`].
    #[inline(always)]
    #[must_use]
    pub fn ring_size(&self) -> u32 {
        // Of the whole word, which the program has in a register; single bytes would each
        // take a place of its own on the stack.
        let word: u64 = zerocopy::transmute!(*self);
        (u64::from_le(word) >> 40) as u32
    }

    /// With another number of slots, less than 2^24.
    #[must_use]
    pub const fn with_ring_size(self, slots: u32) -> Self {
        let [low, middle, high, _] = slots.to_le_bytes();
        Self {
            ring_size: [low, middle, high],
            ..self
        }
    }
}

impl Default for Service {
    /// One without an id, with as many slots as most rings have.
    fn default() -> Self {
        let nothing = Self {
            id: 0,
            mode: 0,
            scheduler: 0,
            flags: 0,
            ring_size: [0; 3],
        };
        nothing.with_ring_size(RING_SIZE)
    }
}

/// How a new flow finds its slot in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Scheduler {
    /// By the hash of the packet.
    Hash = 0,
    /// By turns.
    RoundRobin = 1,
    /// By chance.
    Random = 2,
    /// Of [`LOOKS`] slots, and those that are remembered, the one whose backend has the fewest
    /// flows for its weight.
    LeastConnections = 3,
}

/// Slots that [`Scheduler::LeastConnections`] looks at for a new flow: so many that nearly
/// always one of them has a backend below its share (`docs/selection.md`, "Evenness").
pub const LOOKS: u32 = 32;

/// How far a service's new flows have come in its ring, by service id.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Turns {
    /// [`Scheduler::RoundRobin`]: turns that were taken. [`Scheduler::LeastConnections`]: slots
    /// that were looked at; where each flow looks at all, flows.
    pub taken: u64,
    /// [`Scheduler::LeastConnections`]: the slots of the next best backends of the last look.
    pub remembered: [u32; 2],
}

/// What of a service only few packets need, by its id.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ServiceOptions {
    /// [`Scheduler::RoundRobin`] and [`Scheduler::LeastConnections`]: slots of the ring that
    /// turns go over, from the first on. 0 where no backend takes flows. With the latter no
    /// more than [`LOOKS`], or a prime.
    pub turns: u32,
    /// [`Service::QUIC`]: how connection IDs name backends.
    pub connection_ids: ConnectionIds,
    /// [`Service::AFFINE`]: how long a client that begins no flow is remembered, in units of
    /// [`CLOCK_TICK_MS`](crate::CLOCK_TICK_MS).
    pub affinity: u32,
}

/// Value of `VIPS_V4`, `VIPS_V6`, `PREFIXES_V4` and `PREFIXES_V6`: what holds for an
/// address or a prefix whatever the port.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Vip {
    /// Names it in the keys of `PORTS`; 0 where all its services are in `SERVICES_*`.
    pub id: u32,
    /// A set of the constants of this type.
    pub flags: u32,
}

impl Vip {
    /// It has a TCP service.
    pub const TCP: u32 = 1;
    /// It has a UDP service.
    pub const UDP: u32 = 1 << 1;
    /// TCP and UDP packets to ports without a service are dropped.
    pub const DROP_OTHER_PORTS: u32 = 1 << 2;
    /// ICMP echo requests are answered.
    pub const ECHO: u32 = 1 << 3;
}

/// Key of `PORTS` (a longest-prefix match): the ports of services that have several, or
/// whose address is a prefix. A range of ports is the few prefixes of port numbers that
/// make it up; every port is the prefix of length 0.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C, align(8))]
pub struct PortKey {
    /// [`Vip::id`], as it lies in memory: matched whole.
    pub vip: u32,
    /// IP protocol number: 6 or 17. Matched whole.
    pub protocol: u16,
    /// Port, network byte order.
    pub port: u16,
}

impl PortKey {
    /// Bits of a key before the port: the length of the prefix that is every port.
    pub const ANY_PORT: u32 = 48;
    /// Bits of a whole key: the length of the prefix that is one port.
    pub const ONE_PORT: u32 = 64;
}

/// Entries of `PREFIXES_V4` and `PREFIXES_V6` unless the daemon sets another number.
pub const MAX_PREFIXES: u32 = 4_096;

/// Entries of `PORTS` unless the daemon sets another number. A range takes at most 30.
pub const MAX_PORT_PREFIXES: u32 = 131_072;

const _: () = assert!(size_of::<ServiceKey4>() == 8);
const _: () = assert!(size_of::<ServiceKey6>() == 24);
const _: () = assert!(size_of::<Service>() == 8);
const _: () = assert!(MAX_SERVICES <= 1 << 16);
const _: () = assert!(size_of::<ServiceOptions>() == 12);
const _: () = assert!(size_of::<Turns>() == 16);
const _: () = assert!(size_of::<Vip>() == 8);
const _: () = assert!(size_of::<PortKey>() == 8);
