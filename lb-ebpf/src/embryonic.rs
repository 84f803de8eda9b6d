//! Flows that are not confirmed: a queue of limited length, so that what forged packets
//! write pushes out nothing but its like.

use core::ptr::copy_nonoverlapping;

use lb_common::flow::{FlowKey4, FlowKey6};

use crate::{
    atomic::fetch_add_u64,
    family::{Family, Ipv4, Ipv6},
    flow,
    maps::{ENTERED, RUNTIME},
    pin,
};

/// The place for a flow that is about to get its entry, which has to say it.
#[inline(always)]
pub fn place<F: Family>() -> u32 {
    let (Some(runtime), Some(entered)) = (RUNTIME.get(0), ENTERED.get_ptr_mut(F::INDEX)) else {
        return 0;
    };
    // SAFETY: the pointer is a map value.
    let number = unsafe { fetch_add_u64(entered, 1) };
    number as u32 & runtime.embryonic_mask
}

/// A flow that is about to get its entry takes its place, which was that of the oldest: that
/// one is forgotten if it is still not confirmed. Before the entry is there, since the
/// oldest may have been a flow of the same tuple.
#[inline(always)]
fn enter<F: Family>(tuple: &F::Tuple, index: u32) {
    let (Some(place), Some(draft)) = (F::embryonic().get_ptr_mut(index), F::draft()) else {
        return;
    };
    // SAFETY: the draft belongs to this CPU, and a program does not migrate or re-enter
    // itself while it runs. Another CPU comes to this place only after all others: should it
    // be there at the same time, what it reads names no flow.
    let victim = unsafe {
        // The compiler would call `memmove` for an assignment, since both could be one.
        copy_nonoverlapping(place, &raw mut (*draft).victim, 1);
        *place = *tuple;
        &(*draft).victim
    };
    if F::protocol(victim) != 0 {
        flow::evict::<F>(victim, index);
        pin::evict::<F>(victim, index);
    }
}

/// [`enter`] for IPv4. Returns 0.
///
/// A global function, like [`pin::pinned_v4`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn enter_v4(tuple: *const FlowKey4, place: u32) -> u32 {
    // SAFETY: the verifier checks that callers pass a whole tuple.
    if let Some(tuple) = unsafe { tuple.as_ref() } {
        enter::<Ipv4>(tuple, place);
    }
    0
}

/// [`enter`] for IPv6, like [`enter_v4`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn enter_v6(tuple: *const FlowKey6, place: u32) -> u32 {
    // SAFETY: as in `enter_v4`.
    if let Some(tuple) = unsafe { tuple.as_ref() } {
        enter::<Ipv6>(tuple, place);
    }
    0
}
