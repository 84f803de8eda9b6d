//! Counters, per CPU, written by the datapath alone.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Value of `COUNTERS`: what passed for one backend. A service's figures are the
/// sums over its backends, so that a packet costs one counter update. Bytes are
/// those of the IP packet as it arrived, its header included.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Counters {
    /// Packets from clients, forwarded to the backend.
    pub packets: u64,
    /// Bytes of those packets.
    pub bytes: u64,
    /// Packets from the backend, forwarded to clients.
    pub reply_packets: u64,
    /// Bytes of those packets.
    pub reply_bytes: u64,
    /// Flows that began.
    pub new_flows: u64,
    /// Flows whose end the datapath saw (FIN both ways, or RST), or that it took
    /// away because they moved to another backend.
    pub ended_flows: u64,
    /// Packets that were forwarded without the entry that their flow should have: the
    /// table was full, or the entry of a flow that had begun earlier was given to another.
    pub untracked: u64,
    /// Reserved, zero: fills a cache line.
    pub reserved: u64,
}

impl Counters {
    /// The sum of two sets of counters.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets.wrapping_add(other.packets),
            bytes: self.bytes.wrapping_add(other.bytes),
            reply_packets: self.reply_packets.wrapping_add(other.reply_packets),
            reply_bytes: self.reply_bytes.wrapping_add(other.reply_bytes),
            new_flows: self.new_flows.wrapping_add(other.new_flows),
            ended_flows: self.ended_flows.wrapping_add(other.ended_flows),
            untracked: self.untracked.wrapping_add(other.untracked),
            reserved: 0,
        }
    }
}

/// Entries of `DROPS`. When it is full, drops are counted under
/// [`DropKey::overflow`].
pub const MAX_DROP_KEYS: u32 = 65_536;

/// Key of `DROPS`.
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
pub struct DropKey {
    /// Id of the service, 0 where none was found.
    pub service: u32,
    /// Id of the backend, 0 where none was chosen.
    pub backend: u32,
    /// A [`DropReason`](crate::drop_reason::DropReason).
    pub reason: u16,
    /// A [`Direction`].
    pub direction: u16,
    /// Reserved, zero.
    pub reserved: u32,
}

impl DropKey {
    /// The key that takes the drops of one reason when the table is full. The
    /// daemon inserts it for every reason and direction before traffic comes.
    #[must_use]
    pub const fn overflow(reason: u16, direction: u16) -> Self {
        Self {
            service: 0,
            backend: 0,
            reason,
            direction,
            reserved: 0,
        }
    }
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
pub enum Direction {
    /// From a client to a service.
    Forward = 0,
    /// From a backend to a client.
    Reply = 1,
}

impl Direction {
    /// Both directions.
    pub const ALL: [Self; 2] = [Self::Forward, Self::Reply];
}

const _: () = assert!(size_of::<Counters>() == 64);
const _: () = assert!(size_of::<DropKey>() == 16);
