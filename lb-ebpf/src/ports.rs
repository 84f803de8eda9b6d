//! Source ports of full NAT, from bitmaps that the daemon shares.

use lb_common::{backend::Backend, ports::PORT_WORDS};

use crate::{
    atomic::{and_u64, fetch_or_u64},
    maps::PORT_POOLS,
};

/// Takes a free port of the backend's range (host byte order), or none if every
/// one is in use. The search goes once round the range, from behind the port that
/// was taken last.
#[inline(never)]
pub fn take(backend: &Backend) -> Option<u16> {
    let pool = PORT_POOLS.get_value_ptr_mut(backend.port_pool, &0)?;
    let first = u32::from(backend.first_port);
    let last = u32::from(backend.last_port);
    // SAFETY: the pointer is a map value. The cursor is a hint: two CPUs that read
    // the same one contend for a bit below, and one of them looks on.
    let cursor = unsafe { &raw mut (*pool).cursor };
    let mut port = unsafe { cursor.read_volatile() };
    if port < first || port > last {
        port = first;
    }
    // Every word, the first one twice for its part before the cursor, and a few
    // more for bits that another CPU was quicker to take.
    for _ in 0..PORT_WORDS + 8 {
        let index = (port as usize / 64) & (PORT_WORDS - 1);
        // SAFETY: the index is masked to the array; the daemon and other CPUs
        // access the word by atomic operations alone.
        let word = unsafe { &raw mut (*pool).used[index] };
        let free = !unsafe { word.read_volatile() } & (u64::MAX << (port % 64));
        let candidate = index as u32 * 64 + free.trailing_zeros();
        if free != 0 && candidate <= last {
            let bit = 1u64 << (candidate % 64);
            if unsafe { fetch_or_u64(word, bit) } & bit == 0 {
                // SAFETY: as above.
                unsafe { cursor.write_volatile(candidate + 1) };
                return Some(candidate as u16);
            }
        } else {
            port = (index as u32 + 1) * 64;
            if port > last {
                port = first;
            }
        }
    }
    None
}

/// Gives a port (host byte order) back to a pool.
#[inline(always)]
pub fn give_back(pool: u32, port: u16) {
    let Some(pool) = PORT_POOLS.get_value_ptr_mut(pool, &0) else {
        return;
    };
    let index = (usize::from(port) / 64) & (PORT_WORDS - 1);
    // SAFETY: as in `take`.
    unsafe { and_u64(&raw mut (*pool).used[index], !(1u64 << (port % 64))) };
}
