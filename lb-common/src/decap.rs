//! The maps of the program that unwraps tunnels on a backend host (`lb decap`).
//!
//! It is an object of its own and shares no map with the balancer.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::drop_reason::DropReason;

/// Names of the maps, the program and its variable, as the loader sees them.
pub mod name {
    /// The host's IPv4 addresses: `u32`, network byte order, to a `u32` of no meaning.
    pub const LOCALS_V4: &str = "LOCALS_V4";
    /// The host's IPv6 addresses: [`Address6`](super::Address6) to a `u32` of no meaning.
    pub const LOCALS_V6: &str = "LOCALS_V6";
    /// [`SourceKey4`](super::SourceKey4) to a `u32` of no meaning, longest match.
    pub const SOURCES_V4: &str = "SOURCES_V4";
    /// [`SourceKey6`](super::SourceKey6) to a `u32` of no meaning, longest match.
    pub const SOURCES_V6: &str = "SOURCES_V6";
    /// IPv4 prefix (`u32`, network byte order) to its index in `COUNTERS`, longest match.
    pub const VIPS_V4: &str = "VIPS_V4";
    /// IPv6 prefix ([`Address6`](super::Address6)) to its index in `COUNTERS`, longest
    /// match.
    pub const VIPS_V6: &str = "VIPS_V6";
    /// Index of a VIP to [`VipCounters`](super::VipCounters), per CPU.
    pub const COUNTERS: &str = "COUNTERS";
    /// Number of a drop reason to a `u64`, per CPU.
    pub const DROPS: &str = "DROPS";
    /// [`Passed`](super::Passed) to a `u64`, per CPU.
    pub const PASSED: &str = "PASSED";
    /// The XDP program.
    pub const PROGRAM: &str = "decap";
    /// The UDP port of GUE, a `u16` in network byte order, set when it is loaded.
    pub const GUE_PORT: &str = "GUE_PORT";
}

/// The port of GUE (draft-ietf-intarea-gue, section 8.1).
pub const GUE_PORT: u16 = 6080;

/// Entries of `LOCALS_V4` and `LOCALS_V6`.
pub const MAX_LOCALS: u32 = 4_096;
/// Entries of `SOURCES_V4` and `SOURCES_V6`.
pub const MAX_SOURCES: u32 = 4_096;
/// Elements of `COUNTERS`, and so prefixes of both families together.
pub const MAX_VIPS: u32 = 1_024;
/// Elements of `DROPS`: more than the highest number of a reason.
pub const DROP_SLOTS: u32 = 64;

/// Why the program drops a packet.
pub const REASONS: [DropReason; 3] = [
    DropReason::TunnelHeader,
    DropReason::TunnelSource,
    DropReason::TunnelEcn,
];

/// An IPv6 address, network byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Address6(pub [u32; 4]);

/// Key of `SOURCES_V4`: whose tunnel packets are taken. The interface is matched whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct SourceKey4 {
    /// Index of the interface that the packet comes in by.
    pub ifindex: u32,
    /// Source address of the outer header, network byte order.
    pub address: u32,
}

/// Key of `SOURCES_V6`, like [`SourceKey4`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct SourceKey6 {
    /// Index of the interface that the packet comes in by.
    pub ifindex: u32,
    /// Reserved, zero: aligns the address.
    pub reserved: u32,
    /// Source address of the outer header.
    pub address: Address6,
}

impl SourceKey4 {
    /// Bits before the address, which every prefix comprises.
    pub const INTERFACE_BITS: u32 = 32;
}

impl SourceKey6 {
    /// Bits before the address, which every prefix comprises.
    pub const INTERFACE_BITS: u32 = 64;
}

/// What was unwrapped for one VIP. Bytes are those of inner packets, their IP headers
/// included.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VipCounters {
    /// Packets.
    pub packets: u64,
    /// Bytes of those packets.
    pub bytes: u64,
}

/// Why a tunnel packet to this host is left to the network stack as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Passed {
    /// The outer packet is a fragment, which the stack can reassemble.
    Fragment = 0,
    /// The inner destination is no VIP: a tunnel device of the host may take it.
    NotVip = 1,
}

impl Passed {
    /// All of them; the elements of `PASSED`.
    pub const ALL: [Self; 2] = [Self::Fragment, Self::NotVip];

    /// The name in JSON and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fragment => "fragment",
            Self::NotVip => "not-vip",
        }
    }
}

const _: () = {
    assert!(size_of::<Address6>() == 16);
    assert!(size_of::<SourceKey4>() == 8);
    assert!(size_of::<SourceKey6>() == 24);
    assert!(size_of::<VipCounters>() == 16);
    let mut index = 0;
    while index < REASONS.len() {
        assert!((REASONS[index] as u32) < DROP_SLOTS);
        index += 1;
    }
};
