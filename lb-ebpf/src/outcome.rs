//! What becomes of the connections that clients begin, see [`lb_common::outcome`]. Services
//! that are not watched pay the test of a bit that is in a register, where a connection begins
//! and where the entries of a flow hear of something new.

use lb_common::{
    flow::state,
    outcome::{ANSWERED, BEGUN, REFUSED},
    service::Service,
};

use crate::{
    atomic::add_u64,
    maps::OUTCOMES,
    packet::tcp::{self, RST, SYN},
};

/// Counts a SYN that goes to a backend. A global function, like `ipv6_walk`: few services need
/// it, and the verifier need not follow it for each way that leads here.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn count_begun(backend: u32) -> u32 {
    add(backend, BEGUN)
}

#[inline(always)]
fn add(backend: u32, which: usize) -> u32 {
    let Some(words) = OUTCOMES.get_ptr_mut(backend) else {
        return 0;
    };
    // SAFETY: the pointer is a map value, which has a word for each of the counts.
    unsafe { add_u64(words.cast::<u64>().add(which), 1) };
    1
}

/// A packet with these TCP flags, 0 for one that is no TCP, goes to a backend that answers its
/// client directly. The flags of the service stand before.
#[inline(always)]
pub fn of_client(service_flags: u8, flags: u64, backend: u32) {
    if service_flags & Service::WATCHED != 0 && tcp::opens(flags) {
        count_begun(backend);
    }
}

/// The bits of the state of a translated flow that a packet with these TCP flags begins. Its
/// outcome counts only where that is a SYN: another packet may be refused by a healthy backend.
#[inline(always)]
pub const fn state_of_new(service: &Service, flags: u32) -> u32 {
    if service.flags & Service::WATCHED != 0 && tcp::opens(flags as u64) {
        state::WATCHED
    } else {
        0
    }
}

/// A translated flow began with these bits of its state.
#[inline(always)]
pub fn begun(bits: u32, backend: u32) {
    if bits & state::WATCHED != 0 {
        count_begun(backend);
    }
}

/// A packet with these TCP flags came from a backend, with news for a flow whose state was
/// `old`.
#[inline(always)]
pub fn replied(flags: u64, old: u32, backend: u32) {
    if old & state::WATCHED == 0 {
        return;
    }
    if flags & RST != 0 {
        if old & state::REPLIED == 0 {
            add(backend, REFUSED);
        }
    } else if flags & SYN != 0 {
        add(backend, ANSWERED);
    }
}
