//! The driver program: puts a frame into its first state, for the next flow, and
//! calls the program under test.
//!
//! Fields are stored as wide as they lie together in the headers: a load that spans
//! two stores waits for both to reach the cache, which no packet from a network card
//! would make it do.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the macro `xdp` makes functions without")]

#[cfg(target_endian = "big")]
compile_error!("the driver puts fields of headers together for little-endian machines");

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX},
    btf_maps::{Array, ProgramArray},
    helpers::bpf_xdp_adjust_head,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_bench_driver::{BALANCE, FRAME, MAX_REPLIES, Plan, Reply4, Reply6, Vary, client};

/// What to do.
#[btf_map]
pub static PLAN: Array<Plan, 1> = Array::new();

/// IPv4 packets from backends.
#[btf_map]
pub static REPLIES_V4: Array<Reply4, { MAX_REPLIES as usize }> = Array::new();

/// IPv6 packets from backends.
#[btf_map]
pub static REPLIES_V6: Array<Reply6, { MAX_REPLIES as usize }> = Array::new();

/// The program to call.
#[btf_map]
pub static CALLEE: ProgramArray<1> = ProgramArray::new();

/// Prepares the frame and calls the program under test.
#[xdp(frags)]
pub fn driver(ctx: XdpContext) -> u32 {
    if prepare(&ctx).is_some() {
        // SAFETY: nothing here has anything to drop.
        unsafe { CALLEE.tail_call(&ctx, 0) };
    }
    XDP_ABORTED
}

/// Does nothing: the floor.
#[xdp(frags)]
pub fn empty(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

/// Sends the frame out of the interface that it is said to have come in by.
#[xdp(frags)]
pub fn transmit(_ctx: XdpContext) -> u32 {
    XDP_TX
}

/// Drops the frame.
#[xdp(frags)]
pub fn swallow(_ctx: XdpContext) -> u32 {
    XDP_DROP
}

/// Sends the frame back to who has sent it, Ethernet addresses exchanged: the least that any
/// balancer does.
#[xdp(frags)]
pub fn reflect(ctx: XdpContext) -> u32 {
    let start = ctx.data() as *mut u8;
    if start.wrapping_add(14) as usize > ctx.data_end() {
        return XDP_DROP;
    }
    let words = start.cast::<u32>();
    // SAFETY: the bounds were checked; three words are both addresses.
    let [a, b, c] = [0, 1, 2].map(|index| unsafe { words.add(index).read_unaligned() });
    let reversed = [b >> 16 | c << 16, c >> 16 | a << 16, a >> 16 | b << 16];
    for (index, word) in reversed.into_iter().enumerate() {
        // SAFETY: as above.
        unsafe { words.add(index).write_unaligned(word) };
    }
    XDP_TX
}

#[inline(always)]
fn prepare(ctx: &XdpContext) -> Option<()> {
    let plan = PLAN.get_ptr_mut(0)?;
    // SAFETY: a map value that nothing else writes while the program runs.
    let plan = unsafe { &mut *plan };
    if plan.unwraps != 0 {
        let beyond = (ctx.data_end() - ctx.data()).wrapping_sub(FRAME);
        // SAFETY: the context is the caller's.
        if unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), beyond as i32) } != 0 {
            return None;
        }
    }
    let start = ctx.data() as *mut u8;
    if start.wrapping_add(FRAME) as usize > ctx.data_end() {
        return None;
    }
    let frame = Frame {
        template: (&raw const plan.frame).cast(),
        start,
    };
    let flow = plan.base + plan.order.nth(plan.next);
    plan.next += 1;

    const CLIENT4: u16 = Vary::Client4 as u16;
    const CLIENT6: u16 = Vary::Client6 as u16;
    const REPLY4: u16 = Vary::Reply4 as u16;
    const REPLY6: u16 = Vary::Reply6 as u16;
    match plan.vary {
        CLIENT4 => {
            let (address, port) = client(flow);
            let balance = u32::from(!address) | u32::from(!port) << 16;
            let addresses = frame.template::<u64>(26) | u64::from(address) << 16;
            let ports = frame.template::<u32>(34) | u32::from(port);
            frame.write_ipv4(!address, addresses, ports, balance);
        }
        CLIENT6 => {
            let (address, port) = client(flow);
            let balance = u32::from(!address) | u32::from(!port) << 16;
            let mut addresses = frame.template::<[u64; 4]>(22);
            addresses[1] |= u64::from(address) << 48;
            let ports = frame.template::<u32>(54) | u32::from(port);
            frame.write_ipv6(addresses, ports, balance);
        }
        REPLY4 => {
            let reply = REPLIES_V4.get(flow)?;
            let [src, dst] = reply.addresses;
            let addresses = u64::from(src) | u64::from(dst) << 32;
            let balance = u32::from(reply.balance);
            frame.write_ipv4(reply.identification, addresses, reply.ports, balance);
        }
        REPLY6 => {
            let reply = REPLIES_V6.get(flow)?;
            frame.write_ipv6(reply.addresses, reply.ports, reply.balance);
        }
        _ => {
            let addresses = frame.template::<u64>(26);
            let balance = frame.template::<u32>(BALANCE);
            frame.write_ipv4(0, addresses, frame.template::<u32>(34), balance);
            // As far as the header of ICMPv6.
            frame.copy::<u64>(54);
        }
    }
    Some(())
}

/// The frame and what it is written from: both [`FRAME`] bytes.
struct Frame {
    template: *const u8,
    start: *mut u8,
}

impl Frame {
    /// A field of the template.
    #[inline(always)]
    fn template<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: the template is as long as a frame; callers stay in it.
        unsafe { self.template.add(offset).cast::<T>().read_unaligned() }
    }

    /// Writes a field of the frame.
    #[inline(always)]
    fn write<T: Copy>(&self, offset: usize, value: T) {
        // SAFETY: the bounds of the frame were checked; callers stay in it.
        unsafe { self.start.add(offset).cast::<T>().write_unaligned(value) };
    }

    /// Copies a field.
    #[inline(always)]
    fn copy<T: Copy>(&self, offset: usize) {
        self.write(offset, self.template::<T>(offset));
    }

    #[inline(always)]
    fn copy_ethernet(&self) {
        self.copy::<u64>(0);
        self.copy::<u32>(8);
        self.copy::<u16>(12);
    }

    /// Writes an IPv4 packet up to the end of the TCP header.
    #[inline(always)]
    fn write_ipv4(&self, identification: u16, addresses: u64, ports: u32, balance: u32) {
        self.copy_ethernet();
        let first = self.template::<u64>(14) | u64::from(identification) << 32;
        self.write(14, first);
        self.copy::<u32>(22);
        self.write(26, addresses);
        self.write(34, ports);
        self.copy::<u64>(38);
        self.copy::<u64>(46);
        self.write(BALANCE, balance);
    }

    /// Writes an IPv6 packet up to the end of the TCP header.
    #[inline(always)]
    fn write_ipv6(&self, addresses: [u64; 4], ports: u32, balance: u32) {
        self.copy_ethernet();
        self.copy::<u64>(14);
        self.write(22, addresses[0]);
        self.write(30, addresses[1]);
        self.write(38, addresses[2]);
        self.write(46, addresses[3]);
        self.write(54, ports);
        self.copy::<u64>(58);
        self.copy::<u64>(66);
        self.write(BALANCE, balance);
    }
}

/// Nothing here panics.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence, as of the program under test.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
