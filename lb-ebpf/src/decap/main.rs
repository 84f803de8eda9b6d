//! Unwraps tunnels on a backend host: one XDP program, without the balancer's.
//!
//! ```text
//! parse -> a tunnel to this host? -> for a VIP? -> from who may? -> unwrap -> count
//! ```
//!
//! What is no tunnel to this host, or carries nothing for a VIP, leaves by `XDP_PASS`
//! byte for byte as it came. The inner packet of what is unwrapped goes to the network
//! stack in the same Ethernet frame. It is looked at no further, so a tunnel inside a
//! tunnel stays one.
//!
//! Functions that touch packet pointers are `#[inline(always)]`: the verifier does not
//! carry packet bounds across calls.
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[path = "../bounds.rs"]
mod bounds;
mod count;
mod ecn;
mod frame;
mod gue;
mod ip;
mod maps;
#[path = "../words.rs"]
mod words;

use aya_ebpf::{bindings::xdp_action::XDP_PASS, macros::xdp, programs::XdpContext};
use frame::Frame;
use gue::Gue;
use ip::{Family, Header, Ipv4, Ipv6};
use lb_common::{decap::Passed, drop_reason::DropReason};
use network_types::{eth::EtherType, ip::IpProto};

/// An XDP action, or why there is none but to drop.
type Verdict = Result<u32, DropReason>;

/// The path of a packet. Takes frames of several buffers: what is read stands in the
/// first one, and lengths are held to the whole.
#[xdp(frags)]
pub fn decap(ctx: XdpContext) -> u32 {
    const IPV4: u16 = EtherType::Ipv4 as u16;
    const IPV6: u16 = EtherType::Ipv6 as u16;
    let Some(frame) = Frame::parse(&ctx) else {
        return XDP_PASS;
    };
    let verdict = match frame.ether_type {
        IPV4 => receive::<Ipv4>(&ctx, &frame),
        IPV6 => receive::<Ipv6>(&ctx, &frame),
        _ => Ok(XDP_PASS),
    };
    verdict.unwrap_or_else(count::dropped)
}

/// What the outer header and the one behind it say of where the inner packet is.
enum Tunnel {
    /// Behind the outer header, of this IP version (RFC 2003, RFC 2473, RFC 4213).
    Ipip(u8),
    /// Behind UDP.
    Gue,
}

/// The path of an IP packet.
#[inline(always)]
fn receive<Outer: Family>(ctx: &XdpContext, frame: &Frame) -> Verdict {
    const IPV4: u8 = IpProto::Ipv4 as u8;
    const IPV6: u8 = IpProto::Ipv6 as u8;
    const UDP: u8 = IpProto::Udp as u8;
    let Some(mut outer) = Outer::read(ctx, frame.payload) else {
        return Ok(XDP_PASS);
    };
    if Outer::enter_fragment(ctx, frame.payload, &mut outer).is_none() {
        return Ok(XDP_PASS);
    }
    let tunnel = match outer.protocol {
        IPV4 => Tunnel::Ipip(4),
        IPV6 => Tunnel::Ipip(6),
        UDP if outer.begins && gue::is_to_port(ctx, frame.payload + outer.headers) => Tunnel::Gue,
        _ => return Ok(XDP_PASS),
    };
    if !Outer::is_local(&outer.destination) {
        return Ok(XDP_PASS);
    }
    if !(outer.begins && outer.ends) {
        return Ok(count::passed(Passed::Fragment));
    }
    if !Outer::is_sound(ctx, frame.payload, &outer) {
        return Err(DropReason::TunnelHeader);
    }
    let start = frame.payload + outer.headers;
    let room = outer.length - outer.headers;
    let (version, start, room) = match tunnel {
        Tunnel::Ipip(version) => (version, start, room),
        Tunnel::Gue => {
            let gue = Gue::read(ctx, start, room).ok_or(DropReason::TunnelHeader)?;
            (gue.version, start + gue.headers, gue.room)
        }
    };
    if version == 4 {
        unwrap::<Outer, Ipv4>(ctx, frame, &outer, start, room)
    } else {
        unwrap::<Outer, Ipv6>(ctx, frame, &outer, start, room)
    }
}

/// Takes away what is before the inner packet, which begins at `start` in the frame and
/// has `room` bytes, if it is for a VIP.
#[inline(always)]
fn unwrap<Outer: Family, Inner: Family>(
    ctx: &XdpContext,
    frame: &Frame,
    outer: &Header<Outer>,
    start: usize,
    room: usize,
) -> Verdict {
    let inner = Inner::read(ctx, start).ok_or(DropReason::TunnelHeader)?;
    if inner.headers < Inner::LEN || inner.length < inner.headers || inner.length > room {
        return Err(DropReason::TunnelHeader);
    }
    let Some(vip) = Inner::vip(&inner.destination) else {
        return Ok(count::passed(Passed::NotVip));
    };
    if !Outer::is_allowed(frame.ifindex, &outer.source) {
        return Err(DropReason::TunnelSource);
    }
    let ecn = ecn::decapsulated(outer.ecn, inner.ecn).ok_or(DropReason::TunnelEcn)?;
    if ecn != inner.ecn {
        Inner::set_ecn(ctx, start, ecn);
    }
    frame
        .strip(ctx, start, inner.length, Inner::ETHER_TYPE)
        .ok_or(DropReason::TunnelHeader)?;
    count::unwrapped(vip, inner.length);
    Ok(XDP_PASS)
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
