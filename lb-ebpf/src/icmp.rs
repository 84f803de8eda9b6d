//! ICMP (RFC 792, RFC 4443): echo is answered, and errors find whom they concern.

pub mod error;
mod too_big;
pub mod tunnel;

use aya_ebpf::{bindings::xdp_action::XDP_PASS, programs::XdpContext};
use lb_common::{checksum, drop_reason::DropReason, flow::Tuple, service::Vip};

pub use self::too_big::too_big;
use crate::{
    family::{Family, Ipv4, Ipv6},
    link::Link,
    packet::{at, check_ip},
    service,
    verdict::{Refused, Verdict, conclude},
};

/// TTL or hop limit of the packets that are made here.
const TTL: u8 = 64;

/// An ICMP header.
#[repr(C)]
struct Icmp {
    kind: u8,
    code: u8,
    checksum: u16,
    /// What it means depends on the type. Network byte order.
    rest: u32,
}

/// The begin of the quoted transport header, which every error has (RFC 792).
type Quoted = [u16; 4];

/// What differs between ICMP and ICMPv6.
pub trait Version: Family {
    /// Type of an echo request.
    const ECHO_REQUEST: u8;
    /// Type of an echo reply.
    const ECHO_REPLY: u8;
    /// Type and code that "fragmentation needed" and "packet too big" are sent with.
    const TOO_BIG: (u8, u8);
    /// Bytes that an error quotes at most (RFC 1812, section 4.3.2.3; RFC 4443, section
    /// 2.4 (c)).
    const QUOTE: usize;
    /// Traffic class of an error (RFC 1812, section 4.3.2.5).
    const TRAFFIC_CLASS: u8;
    /// The least size that every way has to take (RFC 791, RFC 8200).
    const LEAST_MTU: u32;
    /// The checksum covers the addresses of the IP header (RFC 4443, section 2.3).
    const COVERS_ADDRESSES: bool;

    /// Whether messages of this type are errors that TCP or UDP act on.
    fn is_error(kind: u8) -> bool;

    /// Whether a message of this type and code says that a packet was too big.
    fn is_too_big(kind: u8, code: u8) -> bool;

    /// The MTU in the second word of "too big", network byte order.
    fn mtu(rest: u32) -> u32;

    /// The second word for an MTU.
    fn rest(mtu: u32) -> u32;
}

impl Version for Ipv4 {
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;
    const TOO_BIG: (u8, u8) = (3, 4);
    const QUOTE: usize = 576 - 20 - size_of::<Icmp>();
    const TRAFFIC_CLASS: u8 = 0xc0;
    const LEAST_MTU: u32 = 68;
    const COVERS_ADDRESSES: bool = false;

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        // Destination unreachable, time exceeded, parameter problem. Source quench is
        // obsolete (RFC 6633), a redirect is for the next hop.
        matches!(kind, 3 | 11 | 12)
    }

    #[inline(always)]
    fn is_too_big(kind: u8, code: u8) -> bool {
        (kind, code) == Self::TOO_BIG
    }

    #[inline(always)]
    fn mtu(rest: u32) -> u32 {
        u32::from_be(rest) & 0xffff
    }

    #[inline(always)]
    fn rest(mtu: u32) -> u32 {
        // The field has half a word; what IPv6 told may be more.
        mtu.min(0xffff).to_be()
    }
}

impl Version for Ipv6 {
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;
    const TOO_BIG: (u8, u8) = (2, 0);
    const QUOTE: usize = 1_280 - 40 - size_of::<Icmp>();
    const TRAFFIC_CLASS: u8 = 0;
    const LEAST_MTU: u32 = 1_280;
    const COVERS_ADDRESSES: bool = true;

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        // Destination unreachable, packet too big, time exceeded, parameter problem.
        matches!(kind, 1..=4)
    }

    #[inline(always)]
    fn is_too_big(kind: u8, _code: u8) -> bool {
        // A receiver ignores the code (RFC 4443, section 3.2).
        kind == Self::TOO_BIG.0
    }

    #[inline(always)]
    fn mtu(rest: u32) -> u32 {
        u32::from_be(rest)
    }

    #[inline(always)]
    fn rest(mtu: u32) -> u32 {
        mtu.to_be()
    }
}

/// The path of a packet of ICMP.
#[inline(always)]
pub fn path<F: Version>(ctx: &XdpContext, link: &Link) -> u32 {
    let Some(ip) = F::header(ctx, link) else {
        return XDP_PASS;
    };
    let Ok(payload) = F::payload(ctx, link.payload, ip) else {
        return XDP_PASS;
    };
    let offset = link.payload + payload.headers;
    let Some(icmp) = at::<Icmp>(ctx, offset) else {
        return malformed::<F>(ctx, ip);
    };
    // SAFETY: `at` checked the bounds.
    let (kind, code) = unsafe { ((*icmp).kind, (*icmp).code) };
    if kind == F::ECHO_REQUEST && code == 0 {
        if service::vip::<F>(F::destination(ip)).flags & Vip::ECHO != 0 {
            return conclude(ctx, echo::<F>(ctx, link, ip, payload.headers, icmp));
        }
        return XDP_PASS;
    }
    if F::is_error(kind) {
        return error::path::<F>(ctx, link);
    }
    XDP_PASS
}

/// Drops a message to a service address that can't be read.
#[inline(always)]
fn malformed<F: Family>(ctx: &XdpContext, ip: *mut F::Header) -> u32 {
    if service::vip::<F>(F::destination(ip)).flags & (Vip::TCP | Vip::UDP) != 0 {
        Refused::unknown(DropReason::IcmpHeader).drop(ctx)
    } else {
        XDP_PASS
    }
}

/// Answers an echo request.
#[inline(always)]
fn echo<F: Version>(
    ctx: &XdpContext,
    link: &Link,
    ip: *mut F::Header,
    headers: usize,
    icmp: *mut Icmp,
) -> Verdict {
    check_ip::<F>(ctx, link, ip, headers).map_err(Refused::unknown)?;
    if !F::is_client(F::source(ip), F::destination(ip)) {
        return Err(Refused::unknown(DropReason::MartianSource));
    }
    let tuple = F::tuple(ip, F::ICMP, 0).reversed();
    // Exchanging the addresses changes no sum over them.
    F::set_addresses(ip, &tuple, 0);
    F::set_ttl(ip, TTL);
    let old = u16::from_ne_bytes([F::ECHO_REQUEST, 0]);
    let new = u16::from_ne_bytes([F::ECHO_REPLY, 0]);
    // SAFETY: the bounds were checked when the header was parsed.
    unsafe {
        (*icmp).kind = F::ECHO_REPLY;
        let delta = checksum::fold(checksum::replace16(old, new));
        let field = &raw mut (*icmp).checksum;
        field.write_unaligned(checksum::update(field.read_unaligned(), delta));
    }
    let path = link.way_back();
    link.rewrite(ctx, &path, 0, link.ether_type)
        .and_then(|_| link.send(&path))
        .map_err(Refused::unknown)
}
