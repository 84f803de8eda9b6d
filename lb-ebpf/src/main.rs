//! The datapath of `lb`: one XDP program.
//!
//! ```text
//! parse -> is it ours? -> guard -> which flow, which backend -> forward -> count
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
mod bounds;
mod client;
mod count;
mod embryonic;
mod family;
mod flow;
mod forward;
mod fragment;
mod guard;
mod icmp;
mod link;
mod maps;
mod mss;
mod open;
mod outcome;
mod packet;
mod pin;
mod ports;
mod probe;
mod quic;
mod reset;
mod select;
mod service;
mod stage;
mod sum;
mod tunnel;
mod verdict;
mod words;

use aya_ebpf::{bindings::xdp_action::XDP_PASS, macros::xdp, programs::XdpContext};
use family::{Family, Ipv4, Ipv6};
use lb_common::{drop_reason::DropReason, stage::Stage};
use link::Link;
use packet::{Packet, Protocol, Transport, Unparsed};
use verdict::malformed;

/// The path of a frame: each family's own, everything else passes.
macro_rules! by_family {
    ($ctx:expr, $($path:ident)::+) => {
        match Link::parse($ctx) {
            Some(link) if link.ether_type == Ipv4::ETHER_TYPE => $($path)::+::<Ipv4>($ctx, &link),
            Some(link) if link.ether_type == Ipv6::ETHER_TYPE => $($path)::+::<Ipv6>($ctx, &link),
            _ => XDP_PASS,
        }
    };
}

/// The path of a packet.
#[xdp(frags)]
#[inline(always)]
pub fn lb(ctx: XdpContext) -> u32 {
    by_family!(&ctx, ip)
}

/// The path of a fragment, and what follows of it.
#[xdp(frags)]
#[inline(always)]
pub fn lb_fragment(ctx: XdpContext) -> u32 {
    by_family!(&ctx, fragment::path)
}

/// The path of ICMP.
#[xdp(frags)]
#[inline(always)]
pub fn lb_icmp(ctx: XdpContext) -> u32 {
    by_family!(&ctx, icmp::path)
}

/// The path of ICMP errors about packets that were translated.
#[xdp(frags)]
#[inline(always)]
pub fn lb_icmp_nat(ctx: XdpContext) -> u32 {
    by_family!(&ctx, icmp::error::nat)
}

/// The path of ICMP errors about packets that were wrapped.
#[xdp(frags)]
#[inline(always)]
pub fn lb_icmp_tunnel(ctx: XdpContext) -> u32 {
    by_family!(&ctx, icmp::tunnel::path)
}

/// Tells the sender of a packet that it is too big.
#[xdp(frags)]
#[inline(always)]
pub fn lb_too_big(ctx: XdpContext) -> u32 {
    by_family!(&ctx, icmp::too_big)
}

/// Tells the ends of a TCP connection that it is over.
#[xdp(frags)]
#[inline(always)]
pub fn lb_reset(ctx: XdpContext) -> u32 {
    by_family!(&ctx, reset::path)
}

/// The path of health checks that go the way of clients' packets.
#[xdp(frags)]
#[inline(always)]
pub fn lb_probe(ctx: XdpContext) -> u32 {
    by_family!(&ctx, probe::path)
}

/// The path of an IP packet.
#[inline(always)]
fn ip<F: Family>(ctx: &XdpContext, link: &Link) -> u32 {
    let Some(ip) = F::header(ctx, link) else {
        return XDP_PASS;
    };
    let destination = F::destination(ip);
    let payload = match F::payload(ctx, link.payload, ip) {
        Ok(payload) => payload,
        Err(Unparsed::Foreign) => return XDP_PASS,
        Err(Unparsed::Fragment) => return stage::enter(ctx, Stage::Fragment),
        Err(Unparsed::Malformed(reason, protocol)) => {
            return malformed::<F>(ctx, destination, protocol, reason);
        }
    };
    if payload.protocol == F::ICMP {
        return stage::enter(ctx, Stage::Icmp);
    }
    let Some(transport) = Transport::parse(ctx, link, &payload) else {
        let protocol = Protocol::Known(payload.protocol);
        return malformed::<F>(ctx, destination, protocol, DropReason::TransportHeader);
    };
    let packet = Packet::<F>::new(link, ip, &payload, transport);
    forward::packet(ctx, &packet)
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
