//! Connection IDs of QUIC that say which backend they belong to
//! (draft-ietf-quic-load-balancers, section 3), in plaintext.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most bytes of a server ID.
pub const MAX_SERVER_ID: usize = 15;

/// Entries of `SERVER_IDS` unless the daemon sets another number: twice as many as are wanted
/// at a time at most, so that all of them may be replaced.
pub const MAX_SERVER_IDS: u32 = 131_072;

/// Bits of the first octet of a connection ID below the number of its configuration.
pub const CONFIGURATION_SHIFT: u32 = 5;

/// Where connection IDs of a service have the server ID; zeros where they have none.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ConnectionIds {
    /// Bytes before the server ID, at least 1: the first octet has the configuration.
    pub offset: u8,
    /// Bytes of the server ID, from 1 to [`MAX_SERVER_ID`].
    pub length: u8,
    /// The configurations that are read, a bit for each number.
    pub configurations: u8,
    /// Reserved, zero.
    pub reserved: u8,
}

/// Key of `SERVER_IDS`. The value is the id of the backend.
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
pub struct ServerIdKey {
    /// The server ID, and zeros behind it.
    pub id: [u8; MAX_SERVER_ID],
    /// Bytes of it, at least 1: while a service changes their number, it has IDs of both.
    pub length: u8,
    /// Id of the service.
    pub service: u32,
    /// Reserved, zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<ConnectionIds>() == 4);
const _: () = assert!(size_of::<ServerIdKey>() == 24);
