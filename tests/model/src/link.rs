//! Ethernet and VLAN tags (IEEE 802.1Q): how a frame came in, and how it leaves.
//! Architecture: *Next hops*.

use crate::{
    bytes::get16,
    outcome::{Action, Reason},
    world::{Path, Tag, World},
};

/// Length of the two addresses.
const ADDRESSES: usize = 12;
/// Most tags that are read.
const MAX_TAGS: usize = 2;
/// Types of a tag: 802.1Q and 802.1ad.
const TAG_TYPES: [u16; 2] = [0x8100, 0x88a8];

/// The link layer of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Ethernet destination.
    pub dst: [u8; 6],
    /// Ethernet source.
    pub src: [u8; 6],
    /// Tags: type and control information, the priority included.
    pub tags: Vec<(u16, u16)>,
    /// EtherType of what follows.
    pub ether_type: u16,
    /// Offset of what follows.
    pub payload: usize,
}

impl Link {
    /// Reads it. `None` for what is not the balancer's business: a frame to a group,
    /// one with more tags, one that ends in them.
    #[must_use]
    pub fn read(frame: &[u8]) -> Option<Self> {
        let dst: [u8; 6] = frame.get(..6)?.try_into().ok()?;
        let src: [u8; 6] = frame.get(6..ADDRESSES)?.try_into().ok()?;
        if dst[0] & 1 == 1 {
            return None;
        }
        let mut tags = Vec::new();
        let mut at = ADDRESSES;
        let mut ether_type = get16(frame, at)?;
        while TAG_TYPES.contains(&ether_type) && tags.len() < MAX_TAGS {
            tags.push((ether_type, get16(frame, at + 2)?));
            at += 4;
            ether_type = get16(frame, at)?;
        }
        Some(Self {
            dst,
            src,
            tags,
            ether_type,
            payload: at + 2,
        })
    }

    /// The way back to where the frame came from: "interface, addresses and VLAN tags
    /// are learned".
    #[must_use]
    pub fn way_back(&self, ifindex: u32) -> Path {
        let tag = |(kind, control): &(u16, u16)| Tag {
            kind: *kind,
            vlan: control & 0xfff,
        };
        Path {
            ifindex,
            dst: self.src,
            src: self.dst,
            tags: self.tags.iter().map(tag).collect(),
        }
    }

    /// A frame by `path`. A tag keeps the priority of the tag that was at its place.
    #[must_use]
    pub fn frame(&self, path: &Path, ether_type: u16, packet: &[u8]) -> Vec<u8> {
        let mut frame = [path.dst, path.src].concat();
        for (index, tag) in path.tags.iter().enumerate() {
            let priority = self
                .tags
                .get(index)
                .map_or(0, |(_, control)| control & !0xfff);
            frame.extend(tag.kind.to_be_bytes());
            frame.extend((priority | tag.vlan).to_be_bytes());
        }
        frame.extend(ether_type.to_be_bytes());
        frame.extend(packet);
        frame
    }

    /// A frame back to where this one came from, its tags as they are.
    #[must_use]
    pub fn answer(&self, frame: &[u8], packet: &[u8]) -> Vec<u8> {
        let mut answer = [self.src, self.dst].concat();
        answer.extend(&frame[ADDRESSES..self.payload]);
        answer.extend(packet);
        answer
    }
}

/// Which way a frame leaves: out of the interface that it came in by, or by another one
/// if the balancer uses it.
///
/// # Errors
///
/// Where it does not.
pub fn exit(world: &World, ingress: u32, path: &Path) -> Result<Action, Reason> {
    if path.ifindex == ingress {
        Ok(Action::Transmit)
    } else if world.interfaces.contains_key(&path.ifindex) {
        Ok(Action::Redirect(path.ifindex))
    } else {
        Err(Reason::NoInterface)
    }
}

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
