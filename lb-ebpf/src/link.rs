//! Ethernet and VLAN tags: reading them, and sending a frame on.

use aya_ebpf::{bindings::xdp_action::XDP_TX, helpers::bpf_xdp_adjust_head, programs::XdpContext};
use lb_common::{
    addr::{LinkPath, MAX_VLAN_TAGS, reverse_macs},
    drop_reason::DropReason,
};
use network_types::{
    eth::{EthHdr, EtherType},
    vlan::VlanHdr,
};

use crate::{maps::DEVICES, packet::at, words};

/// The TPID and the VLAN identifier of a tag: what makes the VLAN.
const VLAN: u32 = u32::from_be(0xffff_0fff);
/// Priority and drop eligibility of a tag, which stay with the packet.
const PRIORITY: u32 = !VLAN;

/// The link layer of a frame.
pub struct Link {
    /// EtherType of the payload, network byte order.
    pub ether_type: u16,
    /// Offset of the payload.
    pub payload: usize,
    /// VLAN tags as on the wire, the outer first; 0 for none.
    tags: [u32; MAX_VLAN_TAGS],
    /// Index of the interface that the frame came in by.
    ifindex: u32,
    /// Ethernet destination and source address, as in [`LinkPath`].
    macs: [u32; 3],
}

impl Link {
    /// Reads the Ethernet header and up to two VLAN tags (IEEE 802.1Q, 802.1ad).
    /// `None` for a frame that can't be for a service: too short, or sent to a
    /// group, whose copies must not be multiplied.
    #[inline(always)]
    pub fn parse(ctx: &XdpContext) -> Option<Self> {
        let eth: *const EthHdr = at(ctx, 0)?;
        // SAFETY: `at` checked the bounds.
        let (macs, ether_type) = unsafe { (words::load(eth.cast::<u32>()), (*eth).ether_type) };
        // The first bit on the wire, which is the lowest of the first byte.
        const GROUP: u32 = u32::from_be(1 << 24);
        if macs[0] & GROUP != 0 {
            return None;
        }
        let mut link = Self {
            ether_type,
            payload: EthHdr::LEN,
            tags: [0; MAX_VLAN_TAGS],
            // SAFETY: the context is valid while the program runs.
            ifindex: unsafe { (*ctx.ctx).ingress_ifindex },
            macs,
        };
        if is_vlan(link.ether_type) {
            link.pop_tag(ctx, 0)?;
            if is_vlan(link.ether_type) {
                link.pop_tag(ctx, 1)?;
            }
        }
        Some(link)
    }

    #[inline(always)]
    fn pop_tag(&mut self, ctx: &XdpContext, index: usize) -> Option<()> {
        let vlan: *const VlanHdr = at(ctx, self.payload)?;
        // SAFETY: `at` checked the bounds.
        let vlan = unsafe { &*vlan };
        let tci = u16::from_ne_bytes(vlan.tci);
        // The four bytes as they lie in the frame, of which the host's byte order
        // takes the first as the lowest or as the highest.
        let tag = if cfg!(target_endian = "little") {
            u32::from(self.ether_type) | u32::from(tci) << 16
        } else {
            u32::from(self.ether_type) << 16 | u32::from(tci)
        };
        *self.tags.get_mut(index)? = tag;
        self.ether_type = vlan.ether_type;
        self.payload += size_of::<VlanHdr>();
        Some(())
    }

    /// The way back to where the frame came from.
    #[inline(always)]
    pub fn way_back(&self) -> LinkPath {
        LinkPath {
            ifindex: self.ifindex,
            macs: reverse_macs(self.macs),
            tags: [self.tags[0] & VLAN, self.tags[1] & VLAN],
        }
    }

    /// Whether `path` is the way back to where the frame came from.
    #[inline(always)]
    pub fn came_from(&self, path: &LinkPath) -> bool {
        let macs = reverse_macs(self.macs);
        path.ifindex == self.ifindex
            && path.macs[0] == macs[0]
            && path.macs[1] == macs[1]
            && path.macs[2] == macs[2]
            && path.tags[0] == self.tags[0] & VLAN
            && path.tags[1] == self.tags[1] & VLAN
    }

    /// Gives the frame the Ethernet addresses and VLAN tags of `path` and sends it
    /// there. The packet pointers taken before are invalid afterwards.
    #[inline(always)]
    pub fn transmit(&self, ctx: &XdpContext, path: &LinkPath) -> Result<u32, DropReason> {
        let tagged = self.tags[0] | path.tags[0] != 0;
        if tagged {
            self.retag(ctx, path)?;
        }
        let macs: *mut [u32; 3] = at(ctx, 0).ok_or(DropReason::NoHeadroom)?;
        // SAFETY: `at` checked the bounds.
        unsafe { words::store(macs.cast(), path.macs) };
        if path.ifindex == self.ifindex {
            return Ok(XDP_TX);
        }
        DEVICES
            .redirect(path.ifindex, 0)
            .map_err(|_aborted| DropReason::NoInterface)
    }

    /// Makes room for the tags of `path` and writes them with the payload's
    /// EtherType. A tag keeps the priority that the tag at its place had.
    #[inline(always)]
    fn retag(&self, ctx: &XdpContext, path: &LinkPath) -> Result<(), DropReason> {
        let had = count(&self.tags);
        let has = count(&path.tags);
        if had != has {
            let delta = (had - has) * size_of::<VlanHdr>() as i32;
            // SAFETY: the context is valid; every packet pointer is taken anew.
            if unsafe { bpf_xdp_adjust_head(ctx.ctx, delta) } != 0 {
                return Err(DropReason::NoHeadroom);
            }
        }
        const TAGS: usize = EthHdr::LEN - size_of::<u16>();
        const TAG: usize = size_of::<VlanHdr>();
        let ether_type = match has {
            0 => TAGS,
            1 => {
                self.write_tag(ctx, TAGS, path, 0)?;
                TAGS + TAG
            }
            _ => {
                self.write_tag(ctx, TAGS, path, 0)?;
                self.write_tag(ctx, TAGS + TAG, path, 1)?;
                TAGS + 2 * TAG
            }
        };
        let field: *mut u16 = at(ctx, ether_type).ok_or(DropReason::NoHeadroom)?;
        // SAFETY: `at` checked the bounds.
        unsafe { field.write_unaligned(self.ether_type) };
        Ok(())
    }

    #[inline(always)]
    fn write_tag(
        &self,
        ctx: &XdpContext,
        offset: usize,
        path: &LinkPath,
        index: usize,
    ) -> Result<(), DropReason> {
        let field: *mut u32 = at(ctx, offset).ok_or(DropReason::NoHeadroom)?;
        let (Some(new), Some(old)) = (path.tags.get(index), self.tags.get(index)) else {
            return Ok(());
        };
        // SAFETY: `at` checked the bounds.
        unsafe { field.write_unaligned(new | old & PRIORITY) };
        Ok(())
    }
}

#[inline(always)]
fn is_vlan(ether_type: u16) -> bool {
    const CUSTOMER: u16 = EtherType::Ieee8021q as u16;
    const SERVICE: u16 = EtherType::Ieee8021ad as u16;
    ether_type == CUSTOMER || ether_type == SERVICE
}

#[inline(always)]
fn count(tags: &[u32; MAX_VLAN_TAGS]) -> i32 {
    i32::from(tags[0] != 0) + i32::from(tags[1] != 0)
}
