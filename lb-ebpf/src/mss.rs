//! The maximum segment size option of TCP (RFC 9293, section 3.7.1), lowered so that
//! full segments fit a narrow way.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_loop, bpf_xdp_load_bytes, bpf_xdp_store_bytes},
    programs::XdpContext,
};
use lb_common::{backend::Backend, checksum};
use network_types::tcp::TcpHdr;

use crate::{
    family::Family,
    packet::{Packet, Part, tcp},
};

/// Bytes of options that a header has at most.
const MAX_OPTIONS: u32 = 40;
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAX_SEGMENT_SIZE: u8 = 2;
/// Length of the option, its kind and length included.
const LENGTH: u8 = 4;

/// Lowers the option of a SYN to or from a backend to what its service says.
#[inline(always)]
pub fn clamp<F: Family>(ctx: &XdpContext, packet: &Packet<'_, F>, backend: &Backend) {
    let most = backend.max_segment_size;
    if packet.transport.flags & tcp::SYN == 0 || most == 0 || packet.part == Part::Later {
        return;
    }
    let segment = packet.link.payload + packet.headers;
    let options = packet.transport.header_length() - TcpHdr::LEN as u64;
    mss_clamp(ctx.ctx, segment as u64, options, u32::from(most));
}

/// Lowers the option among `length` bytes behind the TCP header that is `segment` bytes
/// into the frame. Returns nothing of use.
///
/// A global function, like `ipv6_walk`, that keeps to helpers: packet pointers of the
/// caller stay valid.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn mss_clamp(ctx: *mut xdp_md, segment: u64, length: u64, most: u32) -> u64 {
    let segment = segment as u32;
    let begin = segment + TcpHdr::LEN as u32;
    let mut search = Search {
        ctx,
        segment,
        at: begin,
        end: begin + (length as u32 & MAX_OPTIONS.next_power_of_two().wrapping_sub(1)),
        most,
    };
    // SAFETY: `step` has the signature that the helper calls, and `search` outlives the
    // call.
    unsafe {
        bpf_loop(
            MAX_OPTIONS,
            step as *mut c_void,
            (&raw mut search).cast::<c_void>(),
            0,
        );
    }
    0
}

/// A search for the option. Offsets are from the begin of the frame.
struct Search {
    ctx: *mut xdp_md,
    /// Where the TCP header begins.
    segment: u32,
    /// Where the next option begins.
    at: u32,
    /// Where the options end.
    end: u32,
    /// What the option is lowered to.
    most: u32,
}

/// Looks at one option. Returns 1 to end the loop, 0 to go on.
unsafe extern "C" fn step(_index: u32, search: *mut Search) -> i64 {
    // SAFETY: `mss_clamp` passes its own search.
    let search = unsafe { &mut *search };
    let mut option = [0_u8; LENGTH as usize];
    // An option of one byte may stand at the end; the others need not be there.
    let size = if search.at + u32::from(LENGTH) <= search.end {
        u32::from(LENGTH)
    } else {
        1
    };
    // SAFETY: the buffer holds `size` bytes, and the helper checks the frame's bounds.
    let error =
        unsafe { bpf_xdp_load_bytes(search.ctx, search.at, (&raw mut option).cast(), size) };
    if error != 0 || search.at >= search.end {
        return 1;
    }
    let [kind, length, high, low] = option;
    if kind == NO_OPERATION {
        search.at += 1;
        return 0;
    }
    if kind == MAX_SEGMENT_SIZE && length == LENGTH {
        let old = u16::from_be_bytes([high, low]);
        if u32::from(old) > search.most {
            replace(search, old);
        }
        return 1;
    }
    search.at += u32::from(length);
    i64::from(kind == END || length < 2)
}

/// Replaces the value of the option that has been found, and updates the checksum.
#[inline(always)]
fn replace(search: &Search, old: u16) {
    const CHECKSUM: u32 = core::mem::offset_of!(TcpHdr, check) as u32;
    const SIZE: u32 = size_of::<u16>() as u32;
    let Search { ctx, segment, .. } = *search;
    let new = search.most as u16;
    let field = search.at + 2;
    // An option may begin at an odd place, where its bytes belong to two words.
    let as_words = |value: u16| {
        if (field - segment).is_multiple_of(2) {
            value.to_be()
        } else {
            value.to_be().swap_bytes()
        }
    };
    let delta = checksum::fold(checksum::replace16(as_words(old), as_words(new)));
    let mut sum = 0_u16;
    let mut value = new.to_be();
    // SAFETY: the buffers hold two bytes each; the helpers check the frame's bounds.
    unsafe {
        if bpf_xdp_load_bytes(ctx, segment + CHECKSUM, (&raw mut sum).cast(), SIZE) != 0 {
            return;
        }
        sum = checksum::update(sum, delta);
        let _in_bounds = bpf_xdp_store_bytes(ctx, segment + CHECKSUM, (&raw mut sum).cast(), SIZE);
        let _in_bounds = bpf_xdp_store_bytes(ctx, field, (&raw mut value).cast(), SIZE);
    }
}
