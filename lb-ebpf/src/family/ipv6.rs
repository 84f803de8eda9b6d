//! IPv6 (RFC 8200).

use core::mem::{offset_of, transmute};

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    drop_reason::DropReason,
    flow::{Flow6, FlowKey6},
    service::ServiceKey6,
};
use network_types::ip::{IpProto, Ipv6Hdr};

use super::{Draft, Family, Flows, Prefixes, Services, Vips};
use crate::{
    link::Link,
    maps::{DRAFT_V6, FLOWS_V6, PREFIXES_V6, REPLIES_V6, SERVICES_V6, VIPS_V6},
    packet::{Packet, Payload, Protocol, TCP, UDP, Unparsed, at, copy},
    words,
};

/// Extension headers that are followed; a real packet has one or two.
const MAX_EXTENSIONS: usize = 6;

const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
const ROUTING: u8 = IpProto::Ipv6Route as u8;
const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
const DESTINATION: u8 = IpProto::Ipv6Opts as u8;

/// Offset and more-fragments flag of a fragment header. Both are zero in an atomic
/// fragment, which is a whole packet (RFC 8200, section 4.5; RFC 6946).
const FRAGMENTED: u16 = u16::from_be(0xfff9);

/// The first eight bytes of an extension header.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
struct Extension {
    next: u8,
    /// In units of eight bytes, the first eight not counted.
    length: u8,
    /// Fragment header: offset and flags.
    fragment: [u8; 2],
    rest: [u8; 4],
}

impl Extension {
    /// Routing header: how many more nodes the packet has to visit.
    #[inline(always)]
    const fn segments_left(&self) -> u8 {
        self.fragment[1]
    }
}

/// IPv6.
pub enum Ipv6 {}

impl Family for Ipv6 {
    type Address = [u32; 4];
    type Header = Ipv6Hdr;
    type Tuple = FlowKey6;
    type Flow = Flow6;
    type ServiceKey = ServiceKey6;

    const ADDRESS_BITS: u32 = u128::BITS;

    #[inline(always)]
    fn header(ctx: &XdpContext, link: &Link) -> Option<*mut Ipv6Hdr> {
        let ip: *mut Ipv6Hdr = at(ctx, link.payload)?;
        // SAFETY: `at` checked the bounds.
        let version = unsafe { (*ip).version() };
        (version == 6).then_some(ip)
    }

    #[inline(always)]
    fn destination(ip: *mut Ipv6Hdr) -> Self::Address {
        // SAFETY: the bounds were checked when the header was parsed.
        unsafe { words::load((&raw const (*ip).dst_addr).cast()) }
    }

    #[inline(always)]
    fn payload(ctx: &XdpContext, link: &Link, ip: *mut Ipv6Hdr) -> Result<Payload, Unparsed> {
        // SAFETY: the bounds were checked when the header was parsed.
        let protocol = unsafe { (*ip).next_hdr };
        if protocol == TCP || protocol == UDP {
            return Ok(Payload {
                protocol,
                headers: Ipv6Hdr::LEN,
            });
        }
        Outcome(ipv6_walk(ctx.ctx, link.payload as u64, u32::from(protocol))).unpack()
    }

    #[inline(always)]
    fn tuple(ip: *mut Ipv6Hdr, protocol: u8, ports: u32) -> FlowKey6 {
        // SAFETY: the bounds were checked when the header was parsed, of which the
        // addresses are the last 32 bytes; a key is five words of plain integers, the
        // addresses and then ports and protocol.
        unsafe {
            let [a, b, c, d] = words::load(addresses(ip));
            let transport: u64 = transmute([ports, u32::from(protocol)]);
            transmute([a, b, c, d, transport])
        }
    }

    #[inline(always)]
    fn check(ctx: &XdpContext, packet: &Packet<'_, Self>) -> Result<usize, DropReason> {
        // SAFETY: the bounds were checked when the header was parsed.
        let payload = usize::from(u16::from_be_bytes(unsafe { (*packet.ip).payload_len }));
        let length = Ipv6Hdr::LEN + payload;
        if packet.ip as usize + length > ctx.data_end() {
            return Err(DropReason::IpLength);
        }
        Ok(length)
    }

    #[inline(always)]
    fn ttl(packet: &Packet<'_, Self>) -> u8 {
        // SAFETY: the bounds were checked when the header was parsed.
        unsafe { (*packet.ip).hop_limit }
    }

    #[inline(always)]
    fn rewrite(packet: &Packet<'_, Self>, to: &FlowKey6, _address_delta: u16) {
        // SAFETY: the bounds were checked when the header was parsed; keys and headers
        // have both addresses in this order.
        unsafe {
            (*packet.ip).hop_limit -= 1;
            let to: [u64; ADDRESS_WORDS] = words::load((&raw const *to).cast());
            words::store(addresses(packet.ip), to);
        }
    }

    #[inline(always)]
    fn set_src(tuple: &mut FlowKey6, address: &[u32; 4]) {
        tuple.src = *address;
    }

    #[inline(always)]
    fn set_dst(tuple: &mut FlowKey6, address: &[u32; 4], port: u16) {
        tuple.dst = *address;
        tuple.dst_port = port;
    }

    #[inline(always)]
    fn set_src_port(tuple: &mut FlowKey6, port: u16) {
        tuple.src_port = port;
    }

    #[inline(always)]
    fn ports(tuple: &FlowKey6) -> (u16, u16) {
        (tuple.src_port, tuple.dst_port)
    }

    #[inline(always)]
    fn protocol(tuple: &FlowKey6) -> u8 {
        tuple.protocol as u8
    }

    #[inline(always)]
    fn service_address(tuple: &FlowKey6) -> [u32; 4] {
        tuple.dst
    }

    #[inline(always)]
    fn service_key(tuple: &FlowKey6) -> ServiceKey6 {
        ServiceKey6 {
            address: tuple.dst,
            port: tuple.dst_port,
            protocol: tuple.protocol as u16,
            reserved: 0,
        }
    }

    #[inline(always)]
    fn services() -> &'static Services<ServiceKey6> {
        &SERVICES_V6
    }

    #[inline(always)]
    fn vips() -> &'static Vips<[u32; 4]> {
        &VIPS_V6
    }

    #[inline(always)]
    fn prefixes() -> &'static Prefixes<[u32; 4]> {
        &PREFIXES_V6
    }

    #[inline(always)]
    fn flows() -> &'static Flows<Self> {
        &FLOWS_V6
    }

    #[inline(always)]
    fn replies() -> &'static Flows<Self> {
        &REPLIES_V6
    }

    #[inline(always)]
    fn draft() -> Option<*mut Draft<Flow6>> {
        DRAFT_V6.get_ptr_mut(0)
    }
}

/// Follows the extension headers that begin with one of type `next` behind the
/// fixed header, `ip` bytes into the frame. Returns an [`Outcome`].
///
/// A global function: the verifier checks it once, by itself, and goes on behind the
/// call with any outcome, where it would else follow each chain to the end.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ipv6_walk(ctx: *mut xdp_md, ip: u64, next: u32) -> u64 {
    let ip = ip as usize;
    let mut next = next as u8;
    let ctx = XdpContext::new(ctx);
    let mut headers = Ipv6Hdr::LEN;
    for _ in 0..=MAX_EXTENSIONS {
        if next == TCP || next == UDP {
            return Outcome::payload(next, headers).0;
        }
        if next != HOP_BY_HOP && next != ROUTING && next != FRAGMENT && next != DESTINATION {
            return Outcome::FOREIGN.0;
        }
        // Only as the first of all (RFC 8200, section 4.1).
        if next == HOP_BY_HOP && headers != Ipv6Hdr::LEN {
            break;
        }
        let mut buffer = Extension::default();
        let Some(extension) = copy(&ctx, ip + headers, &mut buffer, size_of::<Extension>()) else {
            break;
        };
        if next == FRAGMENT {
            if u16::from_ne_bytes(extension.fragment) & FRAGMENTED != 0 {
                return fragment(extension.next).0;
            }
            headers += size_of::<Extension>();
        } else {
            // A packet that still has nodes to visit is not at its destination
            // yet; type 0 headers must not be followed at all (RFC 5095).
            if next == ROUTING && extension.segments_left() != 0 {
                break;
            }
            headers += (usize::from(extension.length) + 1) * size_of::<Extension>();
        }
        next = extension.next;
    }
    Outcome::malformed(DropReason::Ipv6Extension, 0).0
}

/// A fragment whose own headers are followed by one of type `next`.
#[inline(always)]
const fn fragment(next: u8) -> Outcome {
    match next {
        TCP | UDP => Outcome::malformed(DropReason::FragmentFirstMissing, next),
        DESTINATION => Outcome::malformed(DropReason::FragmentFirstMissing, 0),
        _ => Outcome::FOREIGN,
    }
}

/// What a walk found, in a word: from the lowest, 8 bits of protocol (0 for
/// unknown), 16 of the length of the headers, 16 of the reason to drop.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Outcome(u64);

impl Outcome {
    const FOREIGN: Self = Self(0);

    #[inline(always)]
    const fn payload(protocol: u8, headers: usize) -> Self {
        Self(protocol as u64 | (headers as u64) << 8)
    }

    #[inline(always)]
    const fn malformed(reason: DropReason, protocol: u8) -> Self {
        Self(protocol as u64 | (reason as u64) << 24)
    }

    #[inline(always)]
    fn unpack(self) -> Result<Payload, Unparsed> {
        const IPV6_EXTENSION: u64 = DropReason::Ipv6Extension as u64;
        let protocol = self.0 as u8;
        // No chain that the walk follows is longer; the verifier has to see it.
        const LONGEST: usize = 0x3fff;
        let headers = (self.0 >> 8) as usize & LONGEST;
        if headers != 0 {
            return Ok(Payload { protocol, headers });
        }
        match (self.0 >> 24, protocol) {
            (0, _) => Err(Unparsed::Foreign),
            (IPV6_EXTENSION, _) => Err(Unparsed::Malformed(
                DropReason::Ipv6Extension,
                Protocol::Unknown,
            )),
            (_, 0) => Err(Unparsed::Malformed(
                DropReason::FragmentFirstMissing,
                Protocol::Unknown,
            )),
            (_, protocol) => Err(Unparsed::Malformed(
                DropReason::FragmentFirstMissing,
                Protocol::Known(protocol),
            )),
        }
    }
}

/// Words of both addresses.
const ADDRESS_WORDS: usize = 4;

/// Both addresses, the source first: the last [`ADDRESS_WORDS`] of the header.
#[inline(always)]
fn addresses(ip: *mut Ipv6Hdr) -> *mut u64 {
    ip.wrapping_byte_add(offset_of!(Ipv6Hdr, src_addr)).cast()
}
