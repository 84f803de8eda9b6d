//! Link-layer paths: where a frame leaves and which addresses it carries.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most VLAN tags that a frame may carry (IEEE 802.1Q, 802.1ad).
pub const MAX_VLAN_TAGS: usize = 2;

/// How a frame reaches its next hop: the interface, the Ethernet addresses and
/// the VLAN tags that it leaves with.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(8))]
pub struct LinkPath {
    /// Ethernet destination and source address: the first twelve bytes of the
    /// frame, as they lie in memory. Words, because the datapath copies and
    /// compares them as such.
    pub macs: [u32; 3],
    /// Interface that the XDP program transmits on: for a next hop behind a VLAN
    /// interface, the device below it. 0 where there is none.
    pub ifindex: u32,
    /// VLAN tags, the outer first, each the four bytes on the wire in network
    /// byte order with only the VLAN identifier of the TCI set; 0 for no tag.
    pub tags: [u32; MAX_VLAN_TAGS],
}

impl LinkPath {
    /// A path by the interface `ifindex` to `dst_mac`, without VLAN tags.
    #[must_use]
    pub const fn new(ifindex: u32, dst_mac: [u8; 6], src_mac: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = dst_mac;
        let [g, h, i, j, k, l] = src_mac;
        Self {
            ifindex,
            macs: [
                u32::from_ne_bytes([a, b, c, d]),
                u32::from_ne_bytes([e, f, g, h]),
                u32::from_ne_bytes([i, j, k, l]),
            ],
            tags: [0; MAX_VLAN_TAGS],
        }
    }

    /// Ethernet destination address.
    #[must_use]
    pub const fn dst_mac(&self) -> [u8; 6] {
        let [a, b, c, d] = self.macs[0].to_ne_bytes();
        let [e, f, _, _] = self.macs[1].to_ne_bytes();
        [a, b, c, d, e, f]
    }

    /// Ethernet source address.
    #[must_use]
    pub const fn src_mac(&self) -> [u8; 6] {
        let [_, _, g, h] = self.macs[1].to_ne_bytes();
        let [i, j, k, l] = self.macs[2].to_ne_bytes();
        [g, h, i, j, k, l]
    }
}

/// The first twelve bytes of a frame with source and destination exchanged.
#[inline(always)]
#[must_use]
pub const fn reverse_macs(macs: [u32; 3]) -> [u32; 3] {
    let [a, b, c] = macs;
    if cfg!(target_endian = "little") {
        [b >> 16 | c << 16, c >> 16 | a << 16, a >> 16 | b << 16]
    } else {
        [b << 16 | c >> 16, c << 16 | a >> 16, a << 16 | b >> 16]
    }
}

const _: () = assert!(size_of::<LinkPath>() == 24);

#[cfg(test)]
mod tests {
    use super::*;

    const DST: [u8; 6] = [2, 3, 5, 7, 11, 13];
    const SRC: [u8; 6] = [17, 19, 23, 29, 31, 37];

    #[test]
    fn addresses_come_out_as_they_went_in() {
        let path = LinkPath::new(1, DST, SRC);
        assert_eq!((path.dst_mac(), path.src_mac()), (DST, SRC));
    }

    #[test]
    fn reversing_exchanges_source_and_destination() {
        let there = LinkPath::new(1, DST, SRC);
        let back = LinkPath::new(1, SRC, DST);
        assert_eq!(reverse_macs(there.macs), back.macs);
    }
}
