//! Source ports of full NAT.
//!
//! One bitmap for each tuple of balancer address, backend address, backend port
//! and protocol: a set bit is a port in use. A flow takes its bit atomically, so
//! that two CPUs never hand out the same port, and the search for a free one goes
//! on from where the last ended, so that a port rests as long as it can before it
//! is used again (the backend may still hold the old connection in TIME-WAIT).

use crate::CLOCK_TICK_MS;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Words of 64 ports that cover all 65,536.
pub const PORT_WORDS: usize = 1_024;

/// Number of port pools unless the daemon sets another. Pool 0 is not used.
pub const MAX_PORT_POOLS: u32 = 65_536;

/// Ticks of the clock, a second of them, after [`PortPool::taken_over`] in which
/// [`PortPool::oldest`] says which port has been in use for the longest.
pub const TAKEN_OVER_LASTS: u16 = (1_000 / CLOCK_TICK_MS) as u16;

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
    /// The port (host byte order) after the one that was taken over last from a flow that is
    /// not confirmed: the next to be taken over. A port that was freed and is found far from
    /// here does not move it, or flows that have just begun would be the next to lose theirs.
    pub oldest: u16,
    /// The lower half of the [`clock`](crate::Runtime::clock) when that was.
    pub taken_over: u16,
}

const _: () = assert!(size_of::<PortPool>() == 8_208);
