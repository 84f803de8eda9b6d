//! IPv4 (RFC 791).

use core::mem::{offset_of, transmute};

use aya_ebpf::programs::XdpContext;
use lb_common::{
    checksum,
    drop_reason::DropReason,
    flow::{Flow4, FlowKey4},
    service::ServiceKey4,
};
use network_types::ip::Ipv4Hdr;

use super::{Draft, Family, Flows, Prefixes, Services, Vips};
use crate::{
    link::Link,
    maps::{DRAFT_V4, FLOWS_V4, PREFIXES_V4, REPLIES_V4, SERVICES_V4, VIPS_V4},
    packet::{Packet, Payload, Protocol, TCP, UDP, Unparsed, at, copy},
};

/// The more-fragments flag and the fragment offset.
const FRAGMENT: u16 = u16::from_be(0x3fff);
/// Words of options that a header has at most.
const MAX_OPTION_WORDS: usize = 10;

/// IPv4.
pub enum Ipv4 {}

impl Family for Ipv4 {
    type Address = u32;
    type Header = Ipv4Hdr;
    type Tuple = FlowKey4;
    type Flow = Flow4;
    type ServiceKey = ServiceKey4;

    const ADDRESS_BITS: u32 = u32::BITS;

    #[inline(always)]
    fn header(ctx: &XdpContext, link: &Link) -> Option<*mut Ipv4Hdr> {
        let ip: *mut Ipv4Hdr = at(ctx, link.payload)?;
        // SAFETY: `at` checked the bounds.
        let version = unsafe { (*ip).version() };
        (version == 4).then_some(ip)
    }

    #[inline(always)]
    fn destination(ip: *mut Ipv4Hdr) -> Self::Address {
        // SAFETY: the bounds were checked when the header was parsed.
        u32::from_ne_bytes(unsafe { (*ip).dst_addr })
    }

    #[inline(always)]
    fn payload(_ctx: &XdpContext, _link: &Link, ip: *mut Ipv4Hdr) -> Result<Payload, Unparsed> {
        // SAFETY: the bounds were checked when the header was parsed.
        let header = unsafe { &*ip };
        let protocol = header.proto;
        if protocol != TCP && protocol != UDP {
            return Err(Unparsed::Foreign);
        }
        let malformed = |reason| Err(Unparsed::Malformed(reason, Protocol::Known(protocol)));
        let headers = usize::from(header.ihl());
        if headers < Ipv4Hdr::LEN {
            return malformed(DropReason::IpHeader);
        }
        if u16::from_ne_bytes(header.frags) & FRAGMENT != 0 {
            return malformed(DropReason::FragmentFirstMissing);
        }
        Ok(Payload { protocol, headers })
    }

    #[inline(always)]
    fn tuple(ip: *mut Ipv4Hdr, protocol: u8, ports: u32) -> FlowKey4 {
        // SAFETY: the bounds were checked when the header was parsed, of which the
        // addresses are the last eight bytes; a key is two words of plain integers,
        // the addresses and then ports and protocol.
        unsafe {
            let field = ip.byte_add(offset_of!(Ipv4Hdr, src_addr)).cast::<u64>();
            let addresses = field.read_unaligned();
            let transport: u64 = transmute([ports, u32::from(protocol)]);
            transmute([addresses, transport])
        }
    }

    #[inline(always)]
    fn check(ctx: &XdpContext, packet: &Packet<'_, Self>) -> Result<usize, DropReason> {
        // SAFETY: the bounds were checked when the header was parsed.
        let length = usize::from(u16::from_be_bytes(unsafe { (*packet.ip).tot_len }));
        if packet.ip as usize + length > ctx.data_end() {
            return Err(DropReason::IpLength);
        }
        if header_sum(ctx, packet) != 0xffff {
            return Err(DropReason::IpChecksum);
        }
        Ok(length)
    }

    #[inline(always)]
    fn ttl(packet: &Packet<'_, Self>) -> u8 {
        // SAFETY: the bounds were checked when the header was parsed.
        unsafe { (*packet.ip).ttl }
    }

    #[inline(always)]
    fn rewrite(packet: &Packet<'_, Self>, to: &FlowKey4, address_delta: u16) {
        // SAFETY: the bounds were checked when the header was parsed, and no
        // other reference to the header lives.
        let ip = unsafe { &mut *packet.ip };
        let old = u16::from_ne_bytes([ip.ttl, ip.proto]);
        ip.ttl -= 1;
        let new = u16::from_ne_bytes([ip.ttl, ip.proto]);
        let delta = checksum::fold(u64::from(address_delta) + checksum::replace16(old, new));
        ip.check = checksum::update(u16::from_ne_bytes(ip.check), delta).to_ne_bytes();
        // SAFETY: as above; keys and headers have both addresses in this order.
        unsafe {
            let addresses = (&raw const *to).cast::<u64>().read();
            let field = packet.ip.byte_add(offset_of!(Ipv4Hdr, src_addr));
            field.cast::<u64>().write_unaligned(addresses);
        }
    }

    #[inline(always)]
    fn set_src(tuple: &mut FlowKey4, address: &[u32; 4]) {
        tuple.src = address[0];
    }

    #[inline(always)]
    fn set_dst(tuple: &mut FlowKey4, address: &[u32; 4], port: u16) {
        tuple.dst = address[0];
        tuple.dst_port = port;
    }

    #[inline(always)]
    fn set_src_port(tuple: &mut FlowKey4, port: u16) {
        tuple.src_port = port;
    }

    #[inline(always)]
    fn ports(tuple: &FlowKey4) -> (u16, u16) {
        (tuple.src_port, tuple.dst_port)
    }

    #[inline(always)]
    fn protocol(tuple: &FlowKey4) -> u8 {
        tuple.protocol as u8
    }

    #[inline(always)]
    fn service_address(tuple: &FlowKey4) -> u32 {
        tuple.dst
    }

    #[inline(always)]
    fn service_key(tuple: &FlowKey4) -> ServiceKey4 {
        ServiceKey4 {
            address: tuple.dst,
            port: tuple.dst_port,
            protocol: tuple.protocol as u16,
        }
    }

    #[inline(always)]
    fn services() -> &'static Services<ServiceKey4> {
        &SERVICES_V4
    }

    #[inline(always)]
    fn vips() -> &'static Vips<u32> {
        &VIPS_V4
    }

    #[inline(always)]
    fn prefixes() -> &'static Prefixes<u32> {
        &PREFIXES_V4
    }

    #[inline(always)]
    fn flows() -> &'static Flows<Self> {
        &FLOWS_V4
    }

    #[inline(always)]
    fn replies() -> &'static Flows<Self> {
        &REPLIES_V4
    }

    #[inline(always)]
    fn draft() -> Option<*mut Draft<Flow4>> {
        DRAFT_V4.get_ptr_mut(0)
    }
}

/// The one's complement sum of the header, 0xffff if its checksum is right
/// (RFC 1071).
#[inline(always)]
fn header_sum(ctx: &XdpContext, packet: &Packet<'_, Ipv4>) -> u16 {
    // SAFETY: the bounds were checked when the header was parsed; a header is
    // five words of any alignment.
    let words = unsafe { packet.ip.cast::<[u32; 5]>().read_unaligned() };
    let mut sum = 0;
    for word in words {
        sum += u64::from(word);
    }
    if packet.headers > Ipv4Hdr::LEN {
        let offset = packet.link.payload + Ipv4Hdr::LEN;
        sum += options_sum(ctx, offset, packet.headers - Ipv4Hdr::LEN);
    }
    checksum::fold(sum)
}

/// The sum of `length` bytes of options.
#[inline(always)]
fn options_sum(ctx: &XdpContext, offset: usize, length: usize) -> u64 {
    let mut options = [0u32; MAX_OPTION_WORDS];
    let Some(bytes) = copy(ctx, offset, &mut options, length) else {
        return 0;
    };
    let mut sum = 0;
    for word in bytes {
        sum += u64::from(*word);
    }
    sum
}
