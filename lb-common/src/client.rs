//! Clients and the backends that they had: the memory of `affinity`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Entries of `CLIENTS_V4` and of `CLIENTS_V6`: clients that have shown that they get answers.
pub const MAX_CLIENTS: u32 = 65_536;

/// Entries of `NEWCOMERS_V4` and of `NEWCOMERS_V6`: clients that have not yet.
pub const MAX_NEWCOMERS: u32 = 16_384;

/// Key of `CLIENTS_V4` and `NEWCOMERS_V4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct ClientKey4 {
    /// The client's address, network byte order.
    pub address: u32,
    /// Id of the service.
    pub service: u32,
}

/// Key of `CLIENTS_V6` and `NEWCOMERS_V6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct ClientKey6 {
    /// The client's address, network byte order.
    pub address: [u32; 4],
    /// Id of the service.
    pub service: u32,
    /// Reserved, zero.
    pub reserved: u32,
}

/// Value of these tables.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(8))]
pub struct Client {
    /// Id of the backend that the client had last.
    pub backend: u32,
    /// [`Runtime::clock`](crate::Runtime::clock) when its last flow began or was confirmed.
    pub last_seen: u32,
}

const _: () = assert!(size_of::<ClientKey4>() == 8);
const _: () = assert!(size_of::<ClientKey6>() == 24);
const _: () = assert!(size_of::<Client>() == 8);
