//! From the interface of a route down to the device that transmits.

use std::collections::BTreeMap;

use lb_common::addr::{LinkPath, MAX_VLAN_TAGS};

use super::facts::Link;

/// How frames leave by an interface.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Egress<'a> {
    /// The interface itself: its Ethernet address is the source, its MTU counts.
    pub(super) route: &'a Link,
    /// The device that transmits, below the VLAN interfaces.
    pub(super) device: &'a Link,
    /// The tags that the VLAN interfaces would add, the outer first.
    tags: [u32; MAX_VLAN_TAGS],
    /// Everything from the interface down to the device is up.
    pub(super) up: bool,
}

impl<'a> Egress<'a> {
    /// Follows VLAN interfaces down. What the datapath could not do in their stead
    /// (more tags than a frame may carry, a device elsewhere) stays with the
    /// interface itself, as do bonds, bridges and other stacked devices, whose
    /// choice among the devices below only the kernel knows.
    pub(super) fn new(links: &'a BTreeMap<u32, Link>, ifindex: u32) -> Option<Self> {
        let route = links.get(&ifindex)?;
        let itself = Self {
            route,
            device: route,
            tags: [0; MAX_VLAN_TAGS],
            up: route.interface.up,
        };
        let mut egress = Self { ..itself };
        for _ in 0..MAX_VLAN_TAGS {
            let Some(vlan) = egress.device.vlan else {
                return Some(egress);
            };
            let Some(lower) = links.get(&vlan.lower) else {
                return Some(itself);
            };
            // The tag of a lower device goes around those of the devices above.
            egress.tags.rotate_right(1);
            egress.tags[0] = vlan.tag();
            egress.device = lower;
            egress.up &= lower.interface.up;
        }
        let complete = egress.device.vlan.is_none();
        Some(if complete { egress } else { itself })
    }

    /// The path to a neighbour of the interface; `None` where it is not Ethernet.
    pub(super) fn path(&self, neighbour: [u8; 6]) -> Option<LinkPath> {
        let source = self.route.interface.mac?;
        let ifindex = self.device.interface.ifindex;
        let mut path = LinkPath::new(ifindex, neighbour, source);
        path.tags = self.tags;
        Some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::neighbour::{Interface, facts::Vlan};

    const NEIGHBOUR: [u8; 6] = [2, 0, 0, 0, 0, 99];

    fn link(ifindex: u32, vlan: Option<(u32, u16, u16)>) -> (u32, Link) {
        let link = Link {
            interface: Interface {
                ifindex,
                name: format!("if{ifindex}"),
                mac: Some([2, 0, 0, 0, 0, u8::try_from(ifindex).unwrap()]),
                mtu: 1500,
                up: true,
                bond: None,
            },
            vlan: vlan.map(|(lower, ethertype, id)| Vlan {
                lower,
                ethertype,
                id,
            }),
        };
        (ifindex, link)
    }

    fn path(links: &BTreeMap<u32, Link>, ifindex: u32) -> LinkPath {
        Egress::new(links, ifindex)
            .unwrap()
            .path(NEIGHBOUR)
            .unwrap()
    }

    /// The bytes of the tags as they go on the wire.
    fn wire(path: LinkPath) -> [[u8; 4]; MAX_VLAN_TAGS] {
        path.tags.map(u32::to_ne_bytes)
    }

    #[test]
    fn a_plain_interface_transmits_without_tags() {
        let links = BTreeMap::from([link(1, None)]);
        let path = path(&links, 1);
        assert_eq!((path.ifindex, wire(path)), (1, [[0; 4]; 2]));
        assert_eq!(path.src_mac(), [2, 0, 0, 0, 0, 1]);
        assert_eq!(path.dst_mac(), NEIGHBOUR);
    }

    #[test]
    fn a_vlan_interface_transmits_on_the_device_below_with_its_own_address() {
        let links = BTreeMap::from([link(1, None), link(2, Some((1, 0x8100, 0x123)))]);
        let path = path(&links, 2);
        assert_eq!(path.ifindex, 1);
        assert_eq!(wire(path), [[0x81, 0, 0x01, 0x23], [0; 4]]);
        assert_eq!(path.src_mac(), [2, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn of_two_tags_that_of_the_lower_device_is_the_outer() {
        let links = BTreeMap::from([
            link(1, None),
            link(2, Some((1, 0x88a8, 10))),
            link(3, Some((2, 0x8100, 20))),
        ]);
        let path = path(&links, 3);
        assert_eq!(path.ifindex, 1);
        assert_eq!(wire(path), [[0x88, 0xa8, 0, 10], [0x81, 0, 0, 20]]);
    }

    #[test]
    fn three_vlans_or_one_on_an_unknown_device_stay_with_the_interface() {
        let links = BTreeMap::from([
            link(1, None),
            link(2, Some((1, 0x8100, 10))),
            link(3, Some((2, 0x8100, 20))),
            link(4, Some((3, 0x8100, 30))),
            link(5, Some((77, 0x8100, 40))),
        ]);
        for ifindex in [4, 5] {
            let path = path(&links, ifindex);
            assert_eq!((path.ifindex, wire(path)), (ifindex, [[0; 4]; 2]));
        }
    }

    #[test]
    fn a_vlan_interface_is_only_up_with_the_device_below() {
        let mut links = BTreeMap::from([link(1, None), link(2, Some((1, 0x8100, 10)))]);
        assert!(Egress::new(&links, 2).unwrap().up);
        links.get_mut(&1).unwrap().interface.up = false;
        assert!(!Egress::new(&links, 2).unwrap().up);
    }

    #[test]
    fn an_interface_that_is_not_ethernet_has_no_path() {
        let mut links = BTreeMap::from([link(1, None)]);
        links.get_mut(&1).unwrap().interface.mac = None;
        assert_eq!(Egress::new(&links, 1).unwrap().path(NEIGHBOUR), None);
    }
}
