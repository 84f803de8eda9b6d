//! What the kernel tells, as far as the way of a packet depends on it.

use std::net::IpAddr;

use super::Interface;

/// Answer to "which way to this address?".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// None, or one that refuses (unreachable, blackhole, prohibit).
    None,
    /// The address is this host's own.
    Local {
        /// Address that the kernel would send from.
        source: Option<IpAddr>,
    },
    /// Out of an interface.
    Out {
        /// Index of the interface.
        ifindex: u32,
        /// The gateway; `None` where the address is on the link.
        gateway: Option<IpAddr>,
        /// Address that the kernel would send from.
        source: Option<IpAddr>,
    },
}

/// Name of a neighbour entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NeighbourKey {
    /// Interface that the neighbour is on.
    pub(super) ifindex: u32,
    /// Its address.
    pub(super) address: IpAddr,
}

/// A neighbour entry, with the states of the kernel (`NUD_*` in
/// `linux/neighbour.h`) reduced to what follows from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Neighbour {
    /// No entry, or no valid one.
    Unresolved,
    /// Valid, but not confirmed for a while, and the kernel will not ask until
    /// somebody uses it.
    Stale([u8; 6]),
    /// Valid; the kernel confirms it by itself, or need not.
    Valid([u8; 6]),
}

impl Neighbour {
    pub(super) fn mac(self) -> Option<[u8; 6]> {
        match self {
            Self::Unresolved => None,
            Self::Stale(mac) | Self::Valid(mac) => Some(mac),
        }
    }
}

/// An interface and what lies below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// The interface.
    pub(super) interface: Interface,
    /// Set where it is a VLAN interface on a device of the same namespace.
    pub(super) vlan: Option<Vlan>,
}

/// What makes a VLAN interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vlan {
    /// Index of the device below.
    pub(super) lower: u32,
    /// EtherType of the tag: 0x8100 (IEEE 802.1Q) or 0x88a8 (802.1ad).
    pub(super) ethertype: u16,
    /// VLAN identifier, 12 bits.
    pub(super) id: u16,
}

impl Vlan {
    /// The tag on the wire, as [`lb_common::addr::LinkPath::tags`] holds it.
    pub(super) fn tag(self) -> u32 {
        let [a, b] = self.ethertype.to_be_bytes();
        let [c, d] = self.id.to_be_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }
}
