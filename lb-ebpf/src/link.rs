//! Ethernet and VLAN tags: reading them, and sending a frame on.

use core::hint::black_box;

use aya_ebpf::{
    bindings::{xdp_action::XDP_TX, xdp_md},
    helpers::bpf_xdp_adjust_head,
    programs::XdpContext,
};
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
            // The verifier follows what comes once for any number of tags, not for each.
            link.payload = black_box(link.payload) & HEADER_MASK;
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

    /// Makes room for `outer` more bytes in front of the payload, or takes bytes away where
    /// it is negative, and gives the frame the
    /// Ethernet addresses and VLAN tags of `path` and the EtherType `ether_type`. Returns
    /// the offset of what follows the Ethernet header. The packet pointers taken before
    /// are invalid afterwards.
    #[inline(always)]
    pub fn rewrite(
        &self,
        ctx: &XdpContext,
        path: &LinkPath,
        outer: i32,
        ether_type: u16,
    ) -> Result<usize, DropReason> {
        let offset = if self.tags[0] | path.tags[0] != 0 {
            let length = retag(
                ctx.ctx,
                pair(self.tags),
                pair(path.tags),
                u32::from(ether_type),
                outer as u32,
            );
            // The verifier has to see the bound that the compiler knows.
            black_box(length) as usize & HEADER_MASK
        } else if outer != 0 {
            move_head(ctx, -outer)?;
            write_ether_type(ctx, EthHdr::LEN, ether_type)?;
            EthHdr::LEN
        } else {
            EthHdr::LEN
        };
        let macs: *mut [u32; 3] = at(ctx, 0).ok_or(DropReason::NoHeadroom)?;
        if offset == 0 {
            return Err(DropReason::NoHeadroom);
        }
        // SAFETY: `at` checked the bounds.
        unsafe { words::store(macs.cast(), path.macs) };
        Ok(offset)
    }

    /// Takes `cut` bytes away in front of the payload, which is then of type `ether_type`.
    #[inline(always)]
    pub fn strip(&self, ctx: &XdpContext, cut: i32, ether_type: u16) -> Result<(), DropReason> {
        let path = LinkPath {
            ifindex: self.ifindex,
            macs: self.macs,
            tags: [self.tags[0] & VLAN, self.tags[1] & VLAN],
        };
        self.rewrite(ctx, &path, -cut, ether_type).map(|_| ())
    }

    /// Sends the frame by the interface of `path`.
    #[inline(always)]
    pub fn send(&self, path: &LinkPath) -> Result<u32, DropReason> {
        if path.ifindex == self.ifindex {
            return Ok(XDP_TX);
        }
        DEVICES
            .redirect(path.ifindex, 0)
            .map_err(|_aborted| DropReason::NoInterface)
    }
}

/// An Ethernet header with two tags.
const MAX_HEADER: usize = EthHdr::LEN + MAX_VLAN_TAGS * VlanHdr::LEN;
/// The bits of the length of an Ethernet header.
const HEADER_MASK: usize = MAX_HEADER.next_power_of_two() - 1;
const TAG: usize = VlanHdr::LEN;

/// Moves the begin of the frame by `delta` bytes, to the front where it is negative.
#[inline(always)]
pub fn move_head(ctx: &XdpContext, delta: i32) -> Result<(), DropReason> {
    // SAFETY: the context is valid; every packet pointer is taken anew.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, delta) } != 0 {
        return Err(DropReason::NoHeadroom);
    }
    Ok(())
}

/// Writes the EtherType of an Ethernet header of `length` bytes.
#[inline(always)]
fn write_ether_type(ctx: &XdpContext, length: usize, ether_type: u16) -> Result<(), DropReason> {
    let field: *mut u16 = at(ctx, length - size_of::<u16>()).ok_or(DropReason::NoHeadroom)?;
    // SAFETY: `at` checked the bounds.
    unsafe { field.write_unaligned(ether_type) };
    Ok(())
}

/// Makes room for the VLAN tags `new` instead of `old` and for `outer` bytes behind them,
/// and writes the tags and the EtherType behind them. A tag keeps the priority that the
/// tag at its place had. Returns the length of the Ethernet header, 0 if there is no room.
///
/// A global function, like `ipv6_walk`: few frames have tags, and the verifier need not
/// follow what comes before with each number of them.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn retag(ctx: *mut xdp_md, old: u64, new: u64, ether_type: u32, outer: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    let (old, new) = (unpair(old), unpair(new));
    let length = EthHdr::LEN + count(&new) * TAG;
    let shift = (count(&old) * TAG) as i32 - (count(&new) * TAG) as i32;
    let shift = shift - outer as i32;
    let written = || {
        if shift != 0 {
            move_head(&ctx, shift)?;
        }
        const TAGS: usize = EthHdr::LEN - size_of::<u16>();
        if new[0] != 0 {
            write_tag(&ctx, TAGS, new[0], old[0])?;
        }
        if new[1] != 0 {
            write_tag(&ctx, TAGS + TAG, new[1], old[1])?;
        }
        write_ether_type(&ctx, length, ether_type as u16)
    };
    match written() {
        Ok(()) => length as u64,
        Err(_) => 0,
    }
}

#[inline(always)]
fn write_tag(ctx: &XdpContext, offset: usize, new: u32, old: u32) -> Result<(), DropReason> {
    let field: *mut u32 = at(ctx, offset).ok_or(DropReason::NoHeadroom)?;
    // SAFETY: `at` checked the bounds.
    unsafe { field.write_unaligned(new | old & PRIORITY) };
    Ok(())
}

/// Both tags in a word.
#[inline(always)]
const fn pair(tags: [u32; MAX_VLAN_TAGS]) -> u64 {
    tags[0] as u64 | (tags[1] as u64) << 32
}

/// Both tags out of it.
#[inline(always)]
const fn unpair(tags: u64) -> [u32; MAX_VLAN_TAGS] {
    [tags as u32, (tags >> 32) as u32]
}

#[inline(always)]
fn is_vlan(ether_type: u16) -> bool {
    const CUSTOMER: u16 = EtherType::Ieee8021q as u16;
    const SERVICE: u16 = EtherType::Ieee8021ad as u16;
    ether_type == CUSTOMER || ether_type == SERVICE
}

#[inline(always)]
fn count(tags: &[u32; MAX_VLAN_TAGS]) -> usize {
    usize::from(tags[0] != 0) + usize::from(tags[1] != 0)
}
