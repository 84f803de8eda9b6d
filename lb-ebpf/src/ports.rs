//! Source ports of full NAT, from bitmaps that the daemon shares.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::helpers::bpf_loop;
use lb_common::{
    backend::Backend,
    ports::{PORT_WORDS, PortPool, TAKEN_OVER_LASTS},
};

use crate::{
    atomic::{and_u64, fetch_or_u64},
    maps::{PORT_POOLS, clock},
};

/// Words looked at before a pool counts as exhausted: every one, the first a
/// second time for its part before the cursor, and a few more for bits that
/// another CPU was quicker to take.
const STEPS: u32 = PORT_WORDS as u32 + 8;

/// A search for a free port.
struct Search {
    pool: *mut PortPool,
    /// The port to look from.
    port: u32,
    first: u32,
    last: u32,
    /// The port that was taken, 0 before.
    taken: u32,
}

/// Takes a free port of the backend's range (host byte order), or none if every
/// one is in use, or was when another looked in this tick of the clock. The search goes once round the range, from behind the port that
/// was taken last.
#[inline(never)]
pub fn take(backend: &Backend) -> Option<u16> {
    let pool = pool(backend.port_pool)?;
    let first = u32::from(backend.first_port);
    let last = u32::from(backend.last_port);
    // In a flood every packet would look at every port in vain. The tick is one more than the
    // clock, so that a new pool is not taken for exhausted.
    let tick = clock().wrapping_add(1);
    let range = first | last << 16;
    // SAFETY: the pointer is a map value, and the words are a hint.
    if unsafe { (*pool).exhausted == tick && (*pool).exhausted_range == range } {
        return None;
    }
    // SAFETY: the pointer is a map value. The cursor is a hint: two CPUs that read
    // the same one contend for a bit, and one of them looks on.
    let cursor = unsafe { (&raw const (*pool).cursor).read_volatile() };
    let mut search = Search {
        pool,
        port: if cursor < first || cursor > last {
            first
        } else {
            cursor
        },
        first,
        last,
        taken: 0,
    };
    // SAFETY: `step` has the signature that the helper calls, and `search` outlives
    // the call.
    unsafe {
        bpf_loop(
            STEPS,
            step as *mut c_void,
            (&raw mut search).cast::<c_void>(),
            0,
        );
    }
    if search.taken == 0 {
        // SAFETY: as above.
        unsafe {
            (*pool).exhausted_range = range;
            (*pool).exhausted = tick;
        }
        return None;
    }
    // SAFETY: as above.
    unsafe { (&raw mut (*pool).cursor).write_volatile(search.taken + 1) };
    Some(search.taken as u16)
}

/// The range of a backend's source ports, and where in it to look for the flow that gives up
/// its own.
pub struct Range {
    words: *mut PortPool,
    /// Id of the pool.
    pub pool: u32,
    first: u32,
    last: u32,
}

impl Range {
    /// That of a backend that has one.
    #[inline(always)]
    pub fn of(backend: &Backend) -> Option<Self> {
        Some(Self {
            words: pool(backend.port_pool)?,
            pool: backend.port_pool,
            first: u32::from(backend.first_port),
            last: u32::from(backend.last_port),
        })
    }

    /// The port (host byte order) that was taken first of those in use, while ports are taken
    /// over; before that the one at which a search would begin, since it took them in order.
    #[inline(always)]
    pub fn oldest(&self) -> u32 {
        // SAFETY: the pointer is a map value, and as with the cursor in `take` all that two
        // CPUs can do is to take over the next port both.
        let port = unsafe {
            let since = (clock() as u16).wrapping_sub((*self.words).taken_over);
            if since > TAKEN_OVER_LASTS {
                (&raw const (*self.words).cursor).read_volatile()
            } else {
                u32::from((&raw const (*self.words).oldest).read_volatile())
            }
        };
        self.behind(port, 0)
    }

    /// The next port to be taken over, see [`Self::oldest`].
    #[inline(always)]
    pub fn set_oldest(&self, port: u16) {
        // SAFETY: as in `oldest`.
        unsafe {
            (&raw mut (*self.words).oldest).write_volatile(port);
            (&raw mut (*self.words).taken_over).write_volatile(clock() as u16);
        }
    }

    /// A port so far behind another; the first one behind the last.
    #[inline(always)]
    pub fn behind(&self, port: u32, ahead: u32) -> u32 {
        let port = port + ahead;
        if port < self.first || port > self.last {
            self.first
        } else {
            port
        }
    }
}

/// Lets the next [`take`] look at every port, also where another has just found none. Returns
/// whether that is worth while: there is a pool.
#[inline(always)]
pub fn look_again(backend: &Backend) -> bool {
    let Some(pool) = pool(backend.port_pool) else {
        return false;
    };
    // SAFETY: as in `take`.
    unsafe { (*pool).exhausted = 0 };
    true
}

/// Looks at one word. Returns 1 to end the loop, 0 to go on.
unsafe extern "C" fn step(_index: u32, search: *mut Search) -> i64 {
    // SAFETY: `take` passes its own search.
    let search = unsafe { &mut *search };
    let index = (search.port as usize / 64) & (PORT_WORDS - 1);
    // SAFETY: the index is masked to the array.
    let word = unsafe { (&raw mut (*search.pool).used).cast::<u64>().add(index) };
    // SAFETY: in bounds, as above; a word that changes meanwhile shows below.
    let free = !unsafe { word.read_volatile() } & (u64::MAX << (search.port % 64));
    let port = index as u32 * 64 + free.trailing_zeros();
    if free != 0 && port <= search.last {
        let bit = 1 << (port % 64);
        // SAFETY: in bounds, as above.
        if unsafe { fetch_or_u64(word, bit) } & bit == 0 {
            search.taken = port;
            return 1;
        }
        return 0;
    }
    search.port = (index as u32 + 1) * 64;
    if search.port > search.last {
        search.port = search.first;
    }
    0
}

/// The pool of this id.
#[inline(always)]
fn pool(id: u32) -> Option<*mut PortPool> {
    PORT_POOLS
        .get_value_ptr_mut(id, &0)
        .map(|words| words.cast())
}

/// Gives a port (host byte order) back to a pool.
#[inline(always)]
pub fn give_back(pool: u32, port: u16) {
    let Some(pool) = self::pool(pool) else {
        return;
    };
    let index = masked(usize::from(port) / 64, PORT_WORDS - 1);
    // SAFETY: the pointer is a map value and the index is masked to the array.
    unsafe {
        let word = (&raw mut (*pool).used).cast::<u64>().add(index);
        and_u64(word, !(1u64 << (port % 64)));
        (*pool).exhausted = 0;
    }
}

/// The bits of `number` that `mask` has. Where the compiler knows that there are no others it
/// would leave the mask out, and the verifiers of before Linux 6.10 know no bound of a number
/// that has had its bytes swapped. On the stack, as with `black_box`, there may be no room.
#[inline(always)]
fn masked(number: usize, mask: usize) -> usize {
    let mut bits = number;
    // SAFETY: an AND of two registers.
    unsafe {
        asm!(
            "{bits} &= {mask}",
            bits = inout(reg) bits,
            mask = in(reg) mask,
            options(pure, nomem, nostack),
        );
    }
    bits
}
