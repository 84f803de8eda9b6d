//! Link-layer paths: where a frame leaves and which addresses it carries.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most VLAN tags that a frame may carry (IEEE 802.1Q, 802.1ad).
pub const MAX_VLAN_TAGS: usize = 2;

/// How a frame reaches its next hop: the interface, the Ethernet addresses and
/// the VLAN tags that it leaves with.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct LinkPath {
    /// Interface that the XDP program transmits on: for a next hop behind a VLAN
    /// interface, the device below it. 0 where there is none.
    pub ifindex: u32,
    /// Ethernet destination address.
    pub dst_mac: [u8; 6],
    /// Ethernet source address.
    pub src_mac: [u8; 6],
    /// VLAN tags, the outer first, each the four bytes on the wire in network
    /// byte order with only the VLAN identifier of the TCI set; 0 for no tag.
    pub tags: [u32; MAX_VLAN_TAGS],
}

const _: () = assert!(size_of::<LinkPath>() == 24);
