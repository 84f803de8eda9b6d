//! Ethernet and VLAN tags: reading them, and bringing them before the inner packet.

use aya_ebpf::{
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use lb_common::addr::MAX_VLAN_TAGS;
use network_types::{
    eth::{EthHdr, EtherType},
    vlan::VlanHdr,
};

use crate::words;

/// A pointer to a `T` at `offset` in the frame, if the first buffer of it reaches that
/// far.
#[inline(always)]
pub fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    // Pointer arithmetic, since the verifier would lose the packet behind integers
    // that the compiler may choose to add in 32 bits.
    let start = (ctx.data() as *mut u8).wrapping_add(offset);
    if start.wrapping_add(size_of::<T>()) as usize > ctx.data_end() {
        return None;
    }
    Some(start.cast())
}

/// Length of the frame in bytes, all buffers of it.
#[inline(always)]
pub fn length(ctx: &XdpContext) -> usize {
    // SAFETY: the context is valid while the program runs.
    unsafe { bpf_xdp_get_buff_len(ctx.ctx) as usize }
}

/// The link layer of a frame.
pub struct Frame {
    /// EtherType of the payload, network byte order.
    pub ether_type: u16,
    /// Offset of the payload.
    pub payload: usize,
    /// Index of the interface that the frame came in by.
    pub ifindex: u32,
    /// VLAN tags as on the wire, the outer first; 0 for none.
    tags: [u32; MAX_VLAN_TAGS],
    /// Ethernet destination and source address as they lie in the frame.
    macs: [u32; 3],
}

impl Frame {
    /// Reads the Ethernet header and up to two VLAN tags (IEEE 802.1Q, 802.1ad).
    /// `None` for a frame that is too short, or sent to a group: a tunnel has one end.
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
        let mut frame = Self {
            ether_type,
            payload: EthHdr::LEN,
            // SAFETY: the context is valid while the program runs.
            ifindex: unsafe { (*ctx.ctx).ingress_ifindex },
            tags: [0; MAX_VLAN_TAGS],
            macs,
        };
        if is_vlan(frame.ether_type) {
            frame.tags[0] = frame.pop_tag(ctx)?;
            if is_vlan(frame.ether_type) {
                frame.tags[1] = frame.pop_tag(ctx)?;
            }
        }
        Some(frame)
    }

    /// Reads the tag that begins with the EtherType before the payload.
    #[inline(always)]
    fn pop_tag(&mut self, ctx: &XdpContext) -> Option<u32> {
        let tag: *const u32 = at(ctx, self.payload - size_of::<u16>())?;
        let ether_type: *const u16 = at(ctx, self.payload + size_of::<u16>())?;
        self.payload += size_of::<VlanHdr>();
        // SAFETY: `at` checked the bounds.
        unsafe {
            self.ether_type = ether_type.read_unaligned();
            Some(tag.read_unaligned())
        }
    }

    /// Cuts the frame to the `length` bytes from `start` on, with the same Ethernet
    /// addresses and tags before them and this EtherType (network byte order). The
    /// packet pointers taken before are invalid afterwards.
    #[inline(always)]
    pub fn strip(
        &self,
        ctx: &XdpContext,
        start: usize,
        length: usize,
        ether_type: u16,
    ) -> Option<()> {
        let rest = self::length(ctx).checked_sub(start + length)?;
        // SAFETY: the context is valid; every packet pointer is taken anew.
        if unsafe { bpf_xdp_adjust_head(ctx.ctx, (start - self.payload) as i32) } != 0 {
            return None;
        }
        let macs: *mut u32 = at::<[u32; 3]>(ctx, 0)?.cast();
        // SAFETY: `at` checked the bounds.
        unsafe { words::store(macs, self.macs) };
        let mut end = size_of::<[u32; 3]>();
        for tag in self.tags {
            if tag != 0 {
                let field: *mut u32 = at(ctx, end)?;
                // SAFETY: `at` checked the bounds.
                unsafe { field.write_unaligned(tag) };
                end += size_of::<u32>();
            }
        }
        let field: *mut u16 = at(ctx, end)?;
        // SAFETY: `at` checked the bounds.
        unsafe { field.write_unaligned(ether_type) };
        if rest > 0 {
            // Padding of the frame or of a tunnel header. The stack goes by the inner
            // length, so it does no harm where the kernel refuses.
            // SAFETY: the context is valid; no packet pointer is used any more.
            unsafe { bpf_xdp_adjust_tail(ctx.ctx, -(rest as i32)) };
        }
        Some(())
    }
}

#[inline(always)]
fn is_vlan(ether_type: u16) -> bool {
    const CUSTOMER: u16 = EtherType::Ieee8021q as u16;
    const SERVICE: u16 = EtherType::Ieee8021ad as u16;
    ether_type == CUSTOMER || ether_type == SERVICE
}
