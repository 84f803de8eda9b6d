//! The datapath of `lb`: one XDP program.
//!
//! ```text
//! parse -> is it ours? -> which flow, which backend -> forward -> count
//! ```
//!
//! What is not ours leaves by `XDP_PASS` byte for byte as it came. What is ours is
//! forwarded, or dropped and counted under a [`DropReason`].
//!
//! Functions that touch packet pointers are `#[inline(always)]`: the verifier
//! does not carry packet bounds across calls.
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod atomic;
mod count;
mod family;
mod flow;
mod forward;
mod link;
mod maps;
mod packet;
mod ports;
mod service;
mod verdict;
mod words;

use aya_ebpf::{bindings::xdp_action::XDP_PASS, macros::xdp, programs::XdpContext};
use family::{Family, Ipv4, Ipv6};
use lb_common::drop_reason::DropReason;
use link::Link;
use network_types::eth::EtherType;
use packet::{Packet, Protocol, Transport, Unparsed};
use verdict::Refused;

/// The path of a packet.
#[xdp]
pub fn lb(ctx: XdpContext) -> u32 {
    let Some(link) = Link::parse(&ctx) else {
        return XDP_PASS;
    };
    const IPV4: u16 = EtherType::Ipv4 as u16;
    const IPV6: u16 = EtherType::Ipv6 as u16;
    match link.ether_type {
        IPV4 => ip::<Ipv4>(&ctx, &link),
        IPV6 => ip::<Ipv6>(&ctx, &link),
        _ => XDP_PASS,
    }
}

/// The path of an IP packet.
#[inline(always)]
fn ip<F: Family>(ctx: &XdpContext, link: &Link) -> u32 {
    let Some(ip) = F::header(ctx, link) else {
        return XDP_PASS;
    };
    let malformed = |reason, protocol| {
        if service::owns::<F>(F::destination(ip), protocol) {
            Refused::unknown(reason).drop(ctx)
        } else {
            XDP_PASS
        }
    };
    let payload = match F::payload(ctx, link, ip) {
        Ok(payload) => payload,
        Err(Unparsed::Foreign) => return XDP_PASS,
        Err(Unparsed::Malformed(reason, protocol)) => return malformed(reason, protocol),
    };
    let Some(transport) = Transport::parse(ctx, link, &payload) else {
        let protocol = Protocol::Known(payload.protocol);
        return malformed(DropReason::TransportHeader, protocol);
    };
    let packet = Packet::<F>::new(link, ip, &payload, transport);
    let verdict = if let Some(service) = service::find(&packet) {
        forward::to_backend(ctx, &packet, service)
    } else if let Some(reply) = flow::of_backend(&packet) {
        forward::to_client(ctx, &packet, reply)
    } else {
        return XDP_PASS;
    };
    match verdict {
        Ok(action) => action,
        Err(refused) => refused.drop(ctx),
    }
}

/// Nothing here panics: a panic that the compiler could not rule out would be a
/// loop without an end, which the verifier refuses.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence that the kernel checks before it allows GPL-only helpers.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
