//! IPv6 (RFC 8200).

use core::mem::transmute;

use aya_ebpf::programs::XdpContext;
use lb_common::{
    drop_reason::DropReason,
    flow::{Flow6, FlowKey6},
    service::ServiceKey6,
};
use network_types::ip::{IpProto, Ipv6Hdr};

use super::{Draft, Family, Flows, Services, Vips};
use crate::{
    link::Link,
    maps::{DRAFT_V6, FLOWS_V6, REPLIES_V6, SERVICES_V6, VIPS_V6},
    packet::{Packet, Protocol, TCP, Transport, UDP, Unparsed, at},
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
#[repr(C)]
#[derive(Clone, Copy)]
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

    #[inline(always)]
    fn parse<'a>(ctx: &XdpContext, link: &'a Link) -> Result<Packet<'a, Self>, Unparsed<Self>> {
        let ip: *mut Ipv6Hdr = at(ctx, link.payload).ok_or(Unparsed::Foreign)?;
        // SAFETY: `at` checked the bounds.
        let header = unsafe { &*ip };
        if header.version() != 6 {
            return Err(Unparsed::Foreign);
        }
        let dst = words(header.dst_addr);
        let mut protocol = header.next_hdr;
        let mut headers = Ipv6Hdr::LEN;
        if protocol != TCP && protocol != UDP {
            (protocol, headers) = walk(ctx, link.payload, protocol).map_err(|end| match end {
                End::Foreign => Unparsed::Foreign,
                End::Malformed(reason, protocol) => Unparsed::Malformed(reason, dst, protocol),
            })?;
        }
        let transport = Transport::parse(ctx, link.payload + headers, protocol).ok_or(
            Unparsed::Malformed(DropReason::TransportHeader, dst, Protocol::Known(protocol)),
        )?;
        let (src_port, dst_port) = transport.ports();
        Ok(Packet {
            link,
            ip,
            headers,
            transport,
            tuple: FlowKey6 {
                src: words(header.src_addr),
                dst,
                src_port,
                dst_port,
                protocol,
                reserved: [0; 3],
            },
        })
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
        // SAFETY: the bounds were checked when the header was parsed, and no
        // other reference to the header lives.
        let ip = unsafe { &mut *packet.ip };
        ip.hop_limit -= 1;
        ip.src_addr = bytes(to.src);
        ip.dst_addr = bytes(to.dst);
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
    fn transport(tuple: &FlowKey6) -> (u16, u16, u8) {
        (tuple.src_port, tuple.dst_port, tuple.protocol)
    }

    #[inline(always)]
    fn service_key(tuple: &FlowKey6, port: u16) -> ServiceKey6 {
        ServiceKey6 {
            port,
            ..Self::vip_key(tuple.dst, tuple.protocol)
        }
    }

    #[inline(always)]
    fn vip_key(address: [u32; 4], protocol: u8) -> ServiceKey6 {
        ServiceKey6 {
            address,
            port: 0,
            protocol,
            reserved: 0,
        }
    }

    #[inline(always)]
    fn services() -> &'static Services<ServiceKey6> {
        &SERVICES_V6
    }

    #[inline(always)]
    fn vips() -> &'static Vips<ServiceKey6> {
        &VIPS_V6
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

/// Why a chain of extension headers does not end in TCP or UDP.
enum End {
    Foreign,
    Malformed(DropReason, Protocol),
}

/// Follows the extension headers that begin with one of type `next` behind the
/// fixed header. Returns the transport protocol and the length of all headers.
#[inline(always)]
fn walk(ctx: &XdpContext, ip: usize, mut next: u8) -> Result<(u8, usize), End> {
    let mut headers = Ipv6Hdr::LEN;
    for _ in 0..MAX_EXTENSIONS {
        if next == TCP || next == UDP {
            return Ok((next, headers));
        }
        if next != HOP_BY_HOP && next != ROUTING && next != FRAGMENT && next != DESTINATION {
            return Err(End::Foreign);
        }
        let Some(extension) = at::<Extension>(ctx, ip + headers) else {
            return Err(End::Malformed(DropReason::Ipv6Extension, Protocol::Unknown));
        };
        // SAFETY: `at` checked the bounds.
        let extension = unsafe { &*extension };
        if next == FRAGMENT {
            if u16::from_ne_bytes(extension.fragment) & FRAGMENTED != 0 {
                return Err(fragment(extension.next));
            }
            headers += size_of::<Extension>();
        } else {
            // A packet that still has nodes to visit is not at its destination
            // yet; type 0 headers must not be followed at all (RFC 5095).
            if next == ROUTING && extension.segments_left() != 0 {
                return Err(End::Malformed(DropReason::Ipv6Extension, Protocol::Unknown));
            }
            headers += (usize::from(extension.length) + 1) * size_of::<Extension>();
        }
        next = extension.next;
    }
    if next == TCP || next == UDP {
        return Ok((next, headers));
    }
    Err(End::Malformed(DropReason::Ipv6Extension, Protocol::Unknown))
}

/// A fragment whose own headers are followed by one of type `next`.
#[inline(always)]
const fn fragment(next: u8) -> End {
    match next {
        TCP | UDP => End::Malformed(DropReason::Fragment, Protocol::Known(next)),
        DESTINATION => End::Malformed(DropReason::Fragment, Protocol::Unknown),
        _ => End::Foreign,
    }
}

/// An address as words.
#[inline(always)]
const fn words(address: [u8; 16]) -> [u32; 4] {
    // SAFETY: both are 16 bytes of plain integers.
    unsafe { transmute(address) }
}

/// The bytes of an address.
#[inline(always)]
const fn bytes(address: [u32; 4]) -> [u8; 16] {
    // SAFETY: both are 16 bytes of plain integers.
    unsafe { transmute(address) }
}
