//! Counters: per CPU, so that plain additions are exact.

use aya_ebpf::bindings::BPF_NOEXIST;
use lb_common::{
    counters::{Counters, DropKey},
    flow::load,
};

use crate::{
    atomic::add_u64,
    maps::{COUNTERS, DROPS, LIVE},
};

/// The counters of a backend on this CPU.
#[inline(always)]
fn of(backend: u32, add: impl FnOnce(&mut Counters)) {
    if let Some(counters) = COUNTERS.get_ptr_mut(backend) {
        // SAFETY: the element belongs to this CPU, and a program does not migrate
        // or re-enter itself while it runs.
        add(unsafe { &mut *counters });
    }
}

/// A packet of `bytes` went to the backend.
#[inline(always)]
pub fn forwarded(backend: u32, bytes: u64) {
    of(backend, |counters| {
        counters.packets += 1;
        counters.bytes += bytes;
    });
}

/// A packet of `bytes` went from the backend to a client.
#[inline(always)]
pub fn replied(backend: u32, bytes: u64) {
    of(backend, |counters| {
        counters.reply_packets += 1;
        counters.reply_bytes += bytes;
    });
}

/// A flow to the backend began.
#[inline(always)]
pub fn began(backend: u32) {
    of(backend, |counters| counters.new_flows += 1);
}

/// A flow to the backend ended.
#[inline(always)]
pub fn ended(backend: u32) {
    of(backend, |counters| counters.ended_flows += 1);
}

/// A packet went to the backend without the entry that its flow should have.
#[inline(always)]
pub fn untracked(backend: u32) {
    of(backend, |counters| counters.untracked += 1);
}

/// An entry of a flow to the backend is there, in this state, which may be closed already.
#[inline(always)]
pub fn opened(backend: u32, state: u32, is_closed: bool) {
    let load = load::of(state, is_closed);
    if load != 0 {
        add_load(backend, load);
    }
}

/// The state of an entry of a flow to the backend, and whether that is closed, went from `old`
/// to `new`.
#[inline(always)]
pub fn moved(backend: u32, old: (u32, bool), new: (u32, bool)) {
    let change = load::change(old, new);
    if change != 0 {
        add_load(backend, change);
    }
}

/// Adds to the flows of a backend.
#[inline(always)]
fn add_load(backend: u32, change: u64) {
    if let Some(load) = LIVE.get_ptr_mut(backend) {
        // SAFETY: the pointer is a map value.
        unsafe { add_u64(load, change) };
    }
}

/// Open flows of a backend: a [`load`].
#[inline(always)]
pub fn load(backend: u32) -> u64 {
    LIVE.get(backend).copied().unwrap_or(0)
}

/// A packet was dropped. When the table has no room for another key, the drop is
/// counted under its reason alone, so that none is lost.
#[inline(never)]
pub fn dropped(key: DropKey) {
    if add(&key) || DROPS.insert(&key, 1u64, u64::from(BPF_NOEXIST)).is_ok() {
        return;
    }
    add(&DropKey::overflow(key.reason, key.direction));
}

#[inline(always)]
fn add(key: &DropKey) -> bool {
    let Some(count) = DROPS.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: the value belongs to this CPU, and keys are never removed while the
    // program runs.
    unsafe { *count += 1 };
    true
}
