//! Services, as the datapath sees them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Number of services unless the daemon sets another.
pub const MAX_SERVICES: u32 = 4_096;

/// Key of `SERVICES_V4`. A lookup tries the exact port, then port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct ServiceKey4 {
    /// Service address, network byte order.
    pub address: u32,
    /// Port, network byte order; 0 for any.
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
    /// Port, network byte order; 0 for any.
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
}

/// Value of `SERVICES_V4` and `SERVICES_V6`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Service {
    /// Index of its ring in `RINGS`, and its name in counters. At least 1.
    pub id: u32,
    /// A [`Mode`].
    pub mode: u8,
    /// Reserved, zero.
    pub reserved: [u8; 3],
}

const _: () = assert!(size_of::<ServiceKey4>() == 8);
const _: () = assert!(size_of::<ServiceKey6>() == 24);
const _: () = assert!(size_of::<Service>() == 8);
