//! The sum of bytes that no header tells: a checksum made anew, for packets that few hosts
//! see many of.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_loop, bpf_xdp_load_bytes},
};

use crate::bounds;

/// Bytes that are summed at a time.
const CHUNK: u32 = 32;
/// The same in words.
const WORDS: usize = CHUNK as usize / size_of::<u64>();
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
    let rest = job.rest as usize;
    let Some(size) = bounds::within(rest.min(CHUNK as usize), CHUNK as usize) else {
        return 1;
    };
    let size = size as u32;
    let mut chunk = MaybeUninit::<[u64; WORDS]>::uninit();
    let words: *mut u64 = chunk.as_mut_ptr().cast();
    for index in 0..WORDS {
        // One by one: at once it would be a call, for whose frame the stack has no room.
        // SAFETY: there are as many words.
        unsafe { words.add(index).write_volatile(0) };
    }
    // SAFETY: the buffer holds `size` bytes.
    let error = unsafe { bpf_xdp_load_bytes(job.ctx, job.offset, words.cast(), size) };
    if error != 0 {
        return 1;
    }
    for index in 0..WORDS {
        // SAFETY: there are as many, and all have been written.
        let word = unsafe { words.add(index).read() };
        job.sum += (word & 0xffff_ffff) + (word >> 32);
    }
    job.offset += size;
    job.rest -= size;
    0
}
