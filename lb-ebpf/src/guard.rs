//! Whom a service takes packets from, and how many new flows. See `lb_common::guard`.
//!
//! A flag of the service says whether there is anything to look for. All the rest is in
//! global functions, like `ipv6_walk`: most services have neither lists nor limits.

use core::mem::transmute;

use aya_ebpf::{
    bindings::BPF_NOEXIST, btf_maps::lpm_trie::Key, helpers::generated::bpf_ktime_get_coarse_ns,
};
use lb_common::{
    drop_reason::DropReason,
    guard::{
        ANY_SOURCE, BucketKey, DENY, Guard, Rate, SourceKey4, SourceKey6, TICKS_PER_NANOSECOND,
    },
    service::Service,
};

use crate::{
    atomic::{add_u64, compare_exchange_u64},
    family::{Family, Ipv4, Ipv6},
    flow::EXISTS,
    maps::{GUARDS, SERVICE_BUCKETS, SOURCE_BUCKETS, SOURCES_V4, SOURCES_V6},
};

/// How often a token is tried for that other CPUs are after at the same time.
const ATTEMPTS: u32 = 16;

/// What [`limited`] says of a flow that may begin.
pub const FREE: u32 = 0;
/// Its source has begun too many.
const BY_SOURCE: u32 = DropReason::RateLimitedSource as u32;
/// All sources together have begun too many.
const BY_SERVICE: u32 = DropReason::RateLimitedService as u32;

/// Whether a service takes packets from a client.
#[inline(always)]
pub fn admit<F: Family>(client: F::Address, service: &Service) -> Result<(), DropReason> {
    if service.flags & Service::GUARDED != 0 && F::denied(service.id(), client) != 0 {
        return Err(DropReason::SourceDenied);
    }
    Ok(())
}

/// Takes what it costs a client to begin a flow: [`FREE`], or the number of the reason why it
/// may not.
#[inline(always)]
pub fn begin<F: Family>(client: F::Address, service: &Service) -> u32 {
    if service.flags & Service::GUARDED == 0 {
        return FREE;
    }
    limited(service.id(), F::source_word(client))
}

/// The reason of which [`begin`] has returned the number.
#[inline(always)]
pub fn reason(number: u32) -> DropReason {
    if number == BY_SOURCE {
        DropReason::RateLimitedSource
    } else {
        DropReason::RateLimitedService
    }
}

/// Whether a service has a list.
#[inline(always)]
fn is_listed(service: u32) -> bool {
    GUARDS
        .get(service)
        .is_some_and(|guard| guard.flags & Guard::LISTED != 0)
}

/// Whether a service takes no packets from this source (network byte order): 0 if it does.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn denied_v4(service: u32, address: u32) -> u32 {
    if !is_listed(service) {
        return 0;
    }
    let key = SourceKey4 { service, address };
    let key = Key::new(ANY_SOURCE + Ipv4::ADDRESS_BITS, key);
    u32::from(SOURCES_V4.get(&key) == Some(&DENY))
}

/// [`denied_v4`] for IPv6: the address in two words, as it lies in memory.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn denied_v6(service: u32, first: u64, last: u64) -> u32 {
    if !is_listed(service) {
        return 0;
    }
    // SAFETY: both are integers, of the same size.
    let address = unsafe { transmute::<[u64; 2], [u32; 4]>([first, last]) };
    let key = SourceKey6 { service, address };
    let key = Key::new(ANY_SOURCE + Ipv6::ADDRESS_BITS, key);
    u32::from(SOURCES_V6.get(&key) == Some(&DENY))
}

/// Takes a token from the bucket of a source, and one from that of the service, where these
/// have limits. [`FREE`], or the number of the reason why there is none.
///
/// The source's comes first, so that one that begins too many takes none from the others;
/// it is given back where the service has none.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn limited(service: u32, source: u64) -> u32 {
    let Some(guard) = GUARDS.get_ptr(service) else {
        return FREE;
    };
    // SAFETY: the pointer is a map value, and stays one.
    let (per_source, per_service) = unsafe {
        (
            &raw const (*guard).per_source,
            &raw const (*guard).per_service,
        )
    };
    if interval(per_source) == 0 && interval(per_service) == 0 {
        return FREE;
    }
    // The flow clock stands still while no daemon runs; limits go on.
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_coarse_ns() }.wrapping_mul(TICKS_PER_NANOSECOND);
    let key = BucketKey {
        service,
        // SAFETY: as above.
        generation: unsafe { (*guard).generation },
        source,
    };
    if interval(per_source) != 0 && !take_from_source(&key, per_source, now) {
        return BY_SOURCE;
    }
    if interval(per_service) != 0
        && let Some(bucket) = SERVICE_BUCKETS.get_ptr_mut(service)
        && !take(bucket, per_service, now)
    {
        if interval(per_source) != 0
            && let Some(bucket) = SOURCE_BUCKETS.get_ptr_mut(&key)
        {
            // SAFETY: the pointer is a map value.
            unsafe { add_u64(bucket, interval(per_source).wrapping_neg()) };
        }
        return BY_SERVICE;
    }
    FREE
}

/// The interval of a rate in a guard, read where it is used: kept from call to call it had a
/// place on the stack, of which there is too little below the choice of a backend.
#[inline(always)]
fn interval(rate: *const Rate) -> u64 {
    // SAFETY: `limited` passes parts of a map value.
    unsafe { (&raw const (*rate).interval).read_volatile() }
}

/// Takes a token from the bucket of a source, which is full if it has none.
#[inline(always)]
fn take_from_source(key: &BucketKey, rate: *const Rate, now: u64) -> bool {
    if let Some(bucket) = SOURCE_BUCKETS.get_ptr_mut(key) {
        return take(bucket, rate, now);
    }
    let full = now.wrapping_add(interval(rate));
    match SOURCE_BUCKETS.insert(key, full, u64::from(BPF_NOEXIST)) {
        // Another CPU was quicker with a packet of the same source.
        Err(EXISTS) => match SOURCE_BUCKETS.get_ptr_mut(key) {
            Some(bucket) => take(bucket, rate, now),
            None => true,
        },
        // Without a bucket, as with one that was forgotten, there is nothing to say no.
        Ok(()) | Err(_) => true,
    }
}

/// Takes a token from a bucket that all CPUs share. Should its place be given to another
/// source at the same time, that one has a token less.
#[inline(always)]
fn take(bucket: *mut u64, rate: *const Rate, now: u64) -> bool {
    let rate = Rate {
        interval: interval(rate),
        // SAFETY: as in `interval`.
        tolerance: unsafe { (&raw const (*rate).tolerance).read_volatile() },
    };
    // SAFETY: the pointer is a map value of a preallocated table.
    let mut full = unsafe { bucket.read_volatile() };
    for _ in 0..ATTEMPTS {
        let (next, is_taken) = match rate.take(full, now) {
            Ok(next) => (next, true),
            Err(left) if left == full => return false,
            Err(left) => (left, false),
        };
        // SAFETY: as above.
        let found = unsafe { compare_exchange_u64(bucket, full, next) };
        if found == full {
            return is_taken;
        }
        full = found;
    }
    // As many others have taken one meanwhile: never more than there are.
    false
}
