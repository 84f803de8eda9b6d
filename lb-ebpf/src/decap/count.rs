//! Counters: per CPU, so that plain additions are exact.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use lb_common::{decap::Passed, drop_reason::DropReason};

use crate::maps::{COUNTERS, DROPS, PASSED};

/// An inner packet of `bytes` was handed on for the VIP of this index.
#[inline(always)]
pub fn unwrapped(vip: u32, bytes: usize) {
    if let Some(counters) = COUNTERS.get_ptr_mut(vip) {
        // SAFETY: the element belongs to this CPU, and a program does not migrate or
        // re-enter itself while it runs.
        unsafe {
            (*counters).packets += 1;
            (*counters).bytes += bytes as u64;
        }
    }
}

/// A tunnel packet to this host is left to the network stack.
#[inline(always)]
pub fn passed(why: Passed) -> u32 {
    if let Some(count) = PASSED.get_ptr_mut(why as u32) {
        // SAFETY: as in `unwrapped`.
        unsafe { *count += 1 };
    }
    XDP_PASS
}

/// A tunnel packet to this host is dropped.
#[inline(always)]
pub fn dropped(reason: DropReason) -> u32 {
    if let Some(count) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: as in `unwrapped`.
        unsafe { *count += 1 };
    }
    XDP_DROP
}
