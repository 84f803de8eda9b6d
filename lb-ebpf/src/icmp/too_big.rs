//! Tells the sender of a packet that it is too big (RFC 1191, RFC 8201), in its place.

use aya_ebpf::{
    bindings::xdp_action::XDP_DROP, helpers::bpf_xdp_adjust_tail, programs::XdpContext,
};
use lb_common::{
    checksum,
    drop_reason::DropReason,
    flow::Tuple,
    stage::{ICMP_ERRORS_PER_TICK, IcmpBudget},
};

use super::{Icmp, TTL, Version};
use crate::{
    family::{Carried, DONT_FRAGMENT},
    link::Link,
    maps::{ICMP_BUDGET, clock},
    packet::{at, frame_length},
    stage,
    sum::sum_of,
};

/// Turns a packet that has been counted as dropped into the error about it, as long as
/// the budget lasts.
#[inline(always)]
pub fn too_big<F: Version>(ctx: &XdpContext, link: &Link) -> u32 {
    let Some(mtu) = stage::handed_over() else {
        return XDP_DROP;
    };
    let Some(ip) = F::header(ctx, link) else {
        return XDP_DROP;
    };
    if !F::is_client(F::source(ip), F::destination(ip)) || !may_send() {
        return XDP_DROP;
    }
    let length = F::length(ip);
    let answer = F::tuple(ip, F::ICMP, 0).reversed();
    let mtu = mtu.max(F::LEAST_MTU);
    make::<F>(ctx, link, length, &answer, mtu).unwrap_or(XDP_DROP)
}

/// Takes one error from the budget of this tick.
#[inline(always)]
fn may_send() -> bool {
    let Some(budget) = ICMP_BUDGET.get_ptr_mut(0) else {
        return false;
    };
    let tick = clock();
    // SAFETY: the element belongs to this CPU, and a program does not migrate or
    // re-enter itself while it runs.
    let budget = unsafe { &mut *budget };
    if budget.tick != tick {
        *budget = IcmpBudget { tick, sent: 0 };
    }
    if budget.sent >= ICMP_ERRORS_PER_TICK {
        return false;
    }
    budget.sent += 1;
    true
}

/// Makes the error, with the addresses of `answer`, out of a packet whose header says
/// that it has `length` bytes.
#[inline(always)]
fn make<F: Version>(
    ctx: &XdpContext,
    link: &Link,
    length: usize,
    answer: &F::Tuple,
    mtu: u32,
) -> Result<u32, DropReason> {
    let frame = frame_length(ctx);
    let quote = frame.saturating_sub(link.payload).min(length).min(F::QUOTE);
    let excess = frame.saturating_sub(link.payload + quote) as i32;
    if excess != 0 {
        // SAFETY: the context is valid; every packet pointer is taken anew.
        if unsafe { bpf_xdp_adjust_tail(ctx.ctx, -excess) } != 0 {
            return Err(DropReason::NoHeadroom);
        }
    }
    let path = link.way_back();
    let headers = F::HEADER + size_of::<Icmp>();
    let offset = link.rewrite(ctx, &path, headers as i32, link.ether_type)?;
    let carried = Carried {
        traffic_class: F::TRAFFIC_CLASS,
        flags: DONT_FRAGMENT,
        identification: 0,
    };
    let payload = size_of::<Icmp>() + quote;
    let (src, dst) = F::addresses(answer);
    F::write(ctx, offset, &carried, payload, F::ICMP, TTL, (src, dst))?;
    let (kind, code) = F::TOO_BIG;
    let rest = F::rest(mtu);
    let mut sum = sum_of(ctx.ctx, (offset + headers) as u64, quote as u64);
    sum += u64::from(u16::from_ne_bytes([kind, code])) + u64::from(rest);
    if F::COVERS_ADDRESSES {
        sum += F::address_sum(answer);
        sum += u64::from((payload as u16).to_be()) + u64::from(u16::from(F::ICMP).to_be());
    }
    let icmp: *mut Icmp = at(ctx, offset + F::HEADER).ok_or(DropReason::NoHeadroom)?;
    // SAFETY: `at` checked the bounds.
    unsafe {
        icmp.write_unaligned(Icmp {
            kind,
            code,
            checksum: !checksum::fold(sum),
            rest,
        });
    }
    link.send(&path)
}
