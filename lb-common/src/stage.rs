//! The programs that the main one calls by tail call, and what it tells them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A place in `STAGES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stage {
    /// Fragments of TCP and UDP packets.
    Fragment = 0,
    /// ICMP.
    Icmp = 1,
    /// ICMP errors about packets that were translated.
    IcmpNat = 2,
    /// ICMP errors about packets that were wrapped.
    IcmpTunnel = 3,
    /// Tells the sender of a packet that it is too big.
    TooBig = 4,
    /// Tells the ends of a TCP connection that it is over.
    Reset = 5,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Self; 6] = [
        Self::Fragment,
        Self::Icmp,
        Self::IcmpNat,
        Self::IcmpTunnel,
        Self::TooBig,
        Self::Reset,
    ];

    /// The name of its program.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Fragment => "lb_fragment",
            Self::Icmp => "lb_icmp",
            Self::IcmpNat => "lb_icmp_nat",
            Self::IcmpTunnel => "lb_icmp_tunnel",
            Self::TooBig => "lb_too_big",
            Self::Reset => "lb_reset",
        }
    }
}

/// Value of `HANDOVER`, per CPU: what one program leaves to the next.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Handover {
    /// To [`Stage::TooBig`]: largest IP packet that would have passed, in bytes. To
    /// [`Stage::Reset`]: length of the IP headers of the packet, in bytes, and
    /// [`Self::REPLY`].
    pub word: u32,
}

impl Handover {
    /// To [`Stage::Reset`]: the packet is from a backend.
    pub const REPLY: u32 = 1 << 31;
}

/// Value of `ICMP_BUDGET`, per CPU: the errors sent in one tick of the clock.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct IcmpBudget {
    /// [`Runtime::clock`](crate::Runtime::clock) of the tick.
    pub tick: u32,
    /// Errors sent in it.
    pub sent: u32,
}

/// Errors that a CPU sends in one tick: a thousand in a second, as Linux allows a host
/// (`net.ipv4.icmp_msgs_per_sec`).
pub const ICMP_ERRORS_PER_TICK: u32 = 100;

const _: () = assert!(size_of::<Handover>() == 4);
const _: () = assert!(size_of::<IcmpBudget>() == 8);
