//! Fragments: what later fragments of a packet need from the first.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Entries of each fragment table unless the daemon sets another number. The least
/// recently used makes room.
pub const MAX_FRAGMENTS: u32 = 16_384;

/// Ticks of [`Runtime::clock`](crate::Runtime::clock) after which a first fragment is
/// forgotten: 30 seconds, as Linux keeps an incomplete packet (`net.ipv4.ipfrag_time`).
pub const FRAGMENT_TICKS: u32 = 30_000 / crate::CLOCK_TICK_MS;

macro_rules! fragment_key {
    ($family:literal, $rfc:literal, $key:ident, $address:ty, $size:literal) => {
        #[doc = concat!("What the fragments of an ", $family, " packet have in common (", $rfc, ").")]
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
        )]
        #[repr(C, align(8))]
        pub struct $key {
            /// Source address, network byte order.
            pub src: $address,
            /// Destination address, network byte order.
            pub dst: $address,
            /// Identification, network byte order; of IPv4 the sixteen bits as a number.
            pub identification: u32,
            /// IP protocol number: 6 or 17.
            pub protocol: u32,
        }

        const _: () = assert!(size_of::<$key>() == $size);
    };
}

fragment_key!("IPv4", "RFC 791, section 3.2", FragmentKey4, u32, 16);
fragment_key!("IPv6", "RFC 8200, section 4.5", FragmentKey6, [u32; 4], 40);

/// What is remembered of a first fragment.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(8))]
pub struct Fragment {
    /// Source and destination port, as they lie in the packet.
    pub ports: u32,
    /// [`Runtime::clock`](crate::Runtime::clock) when it passed.
    pub seen: u32,
    /// Bytes of the packet's fragmentable part that the first fragment held: where the
    /// next may begin.
    pub length: u32,
    /// Id of the backend that its connection ID named; 0 for none.
    pub backend: u32,
}

const _: () = assert!(size_of::<Fragment>() == 16);
