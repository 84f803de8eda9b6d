//! The sum of bytes that no header tells: a checksum made anew, for packets that few hosts
//! see many of.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_loop, bpf_xdp_load_bytes},
};

/// Bytes that are summed at a time.
const CHUNK: u32 = 32;
/// Chunks of the longest IP packet.
const CHUNKS: u32 = (1 << 16) / CHUNK;

/// The one's complement sum of `length` bytes at `offset` in the frame (RFC 1071), as far
/// as they are there.
///
/// A global function, like `ipv6_walk`.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn sum_of(ctx: *mut xdp_md, offset: u64, length: u64) -> u64 {
    let mut job = Job {
        ctx,
        sum: 0,
        offset: offset as u32,
        rest: length as u32,
    };
    // SAFETY: `step` has the signature that the helper calls, and `job` outlives the call.
    unsafe {
        bpf_loop(
            CHUNKS,
            step as *mut c_void,
            (&raw mut job).cast::<c_void>(),
            0,
        );
    }
    job.sum
}

/// What is summed, and the sum so far.
struct Job {
    ctx: *mut xdp_md,
    sum: u64,
    /// Where the next chunk begins in the frame.
    offset: u32,
    /// Bytes that are left.
    rest: u32,
}

/// Sums one chunk. Returns 1 to end the loop, 0 to go on.
unsafe extern "C" fn step(_index: u32, job: *mut Job) -> i64 {
    // SAFETY: `sum_of` passes its own job.
    let job = unsafe { &mut *job };
    // The verifier has to see the bounds, also where the compiler knows them.
    let rest = black_box(job.rest);
    if rest == 0 {
        return 1;
    }
    let size = if rest < CHUNK { rest } else { CHUNK };
    let mut words = [0_u64; CHUNK as usize / size_of::<u64>()];
    // SAFETY: the buffer holds `size` bytes.
    let error = unsafe { bpf_xdp_load_bytes(job.ctx, job.offset, (&raw mut words).cast(), size) };
    if error != 0 {
        return 1;
    }
    for word in words {
        job.sum += (word & 0xffff_ffff) + (word >> 32);
    }
    job.offset += size;
    job.rest = rest - size;
    0
}
