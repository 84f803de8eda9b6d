//! Source ports of full NAT.
//!
//! One bitmap for each tuple of balancer address, backend address, backend port
//! and protocol: a set bit is a port in use. A flow takes its bit atomically, so
//! that two CPUs never hand out the same port, and the search for a free one goes
//! on from where the last ended, so that a port rests as long as it can before it
//! is used again (the backend may still hold the old connection in TIME-WAIT).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Words of 64 ports that cover all 65,536.
pub const PORT_WORDS: usize = 1_024;

/// Number of port pools unless the daemon sets another. Pool 0 is not used.
pub const MAX_PORT_POOLS: u32 = 65_536;

/// Flows that are looked at for one that gives up its source port, where none is free.
pub const CANDIDATES: u32 = 32;
/// So many of them stand side by side. Connections that began together do too, and are there
/// for long: behind these the next ones are twice as far each time, up to [`FARTHEST`].
const NEIGHBOURS: u32 = 8;
/// See [`NEIGHBOURS`].
const FARTHEST: u32 = 12;

/// How far behind the candidate of this index the next one stands, in ports.
#[inline(always)]
#[must_use]
pub const fn ahead(index: u32) -> u32 {
    let far = index.saturating_sub(NEIGHBOURS);
    1 << if far < FARTHEST { far } else { FARTHEST }
}

/// Value of the array of one that a port pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PortPool {
    /// Bit `port % 64` of word `port / 64` is set while `port` is in use.
    pub used: [u64; PORT_WORDS],
    /// The port (host byte order) that the next search begins at.
    pub cursor: u32,
    /// One more than the [`clock`](crate::Runtime::clock) was when a search found every port
    /// of [`Self::exhausted_range`] in use; 0 since one was freed.
    pub exhausted: u32,
    /// First and, in the upper half, last port of that search.
    pub exhausted_range: u32,
    /// Reserved, zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<PortPool>() == 8_208);
