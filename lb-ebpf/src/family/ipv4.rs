//! IPv4 (RFC 791).

use core::mem::{offset_of, transmute};

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    addr::LinkPath,
    checksum,
    client::ClientKey4,
    direct,
    drop_reason::DropReason,
    flow::{Flow4, FlowKey4},
    fragment::FragmentKey4,
    service::ServiceKey4,
};
use network_types::{
    eth::EtherType,
    ip::{IpProto, Ipv4Hdr},
};

use super::{
    Carried, Clients, DONT_FRAGMENT, Draft, Embryonic, Family, Flows, Fragments, Newcomers, Pins,
    Position, Prefixes, Services, Vips,
};
use crate::{
    client, embryonic, guard,
    link::Link,
    maps::{
        CLIENTS_V4, DIRECT_V4, DRAFT_V4, EMBRYONIC_V4, FLOWS_V4, FRAGMENTS_V4, NEWCOMERS_V4,
        PINS_V4, PREFIXES_V4, REPLIES_V4, SERVICES_V4, VIPS_V4,
    },
    open,
    packet::{Packet, Payload, Protocol, TCP, UDP, Unparsed, at, copy, put},
    pin, probe, tunnel,
};

/// The more-fragments flag and the fragment offset.
const FRAGMENT: u16 = u16::from_be(0x3fff);
/// The fragment offset, in units of eight bytes.
const FRAGMENT_OFFSET: u16 = 0x1fff;
/// Words of options that a header has at most.
const MAX_OPTION_WORDS: usize = 10;

/// IPv4.
pub enum Ipv4 {}

impl Family for Ipv4 {
    type Address = u32;
    type Header = Ipv4Hdr;
    type Tuple = FlowKey4;
    type ClientKey = ClientKey4;
    type Flow = Flow4;
    type ServiceKey = ServiceKey4;
    type FragmentKey = FragmentKey4;

    const ETHER_TYPE: u16 = EtherType::Ipv4 as u16;
    const PROTOCOL: u8 = IpProto::Ipv4 as u8;
    const ICMP: u8 = IpProto::Icmp as u8;
    const ADDRESS_BITS: u32 = u32::BITS;
    const HEADER: usize = Ipv4Hdr::LEN;
    const INDEX: u32 = 0;

    #[inline(always)]
    fn header_at(ctx: &XdpContext, offset: usize) -> Option<*mut Ipv4Hdr> {
        let ip: *mut Ipv4Hdr = at(ctx, offset)?;
        // SAFETY: `at` checked the bounds.
        let version = unsafe { (*ip).version() };
        (version == 4).then_some(ip)
    }

    #[inline(always)]
    fn source(ip: *mut Ipv4Hdr) -> u32 {
        // SAFETY: the bounds were checked when the header was parsed.
        u32::from_ne_bytes(unsafe { (*ip).src_addr })
    }

    #[inline(always)]
    fn destination(ip: *mut Ipv4Hdr) -> u32 {
        // SAFETY: the bounds were checked when the header was parsed.
        u32::from_ne_bytes(unsafe { (*ip).dst_addr })
    }

    #[inline(always)]
    fn payload(_ctx: &XdpContext, _offset: usize, ip: *mut Ipv4Hdr) -> Result<Payload, Unparsed> {
        // SAFETY: the bounds were checked when the header was parsed.
        let header = unsafe { &*ip };
        let protocol = header.proto;
        if protocol != TCP && protocol != UDP && protocol != Self::ICMP {
            return Err(Unparsed::Foreign);
        }
        let headers = usize::from(header.ihl());
        if headers < Ipv4Hdr::LEN {
            let protocol = Protocol::Known(protocol);
            return Err(Unparsed::Malformed(DropReason::IpHeader, protocol));
        }
        if u16::from_ne_bytes(header.frags) & FRAGMENT != 0 {
            return Err(if protocol == Self::ICMP {
                Unparsed::Foreign
            } else {
                Unparsed::Fragment
            });
        }
        Ok(Payload { protocol, headers })
    }

    #[inline(always)]
    fn position(_ctx: &XdpContext, _offset: usize, ip: *mut Ipv4Hdr) -> Position {
        // SAFETY: the bounds were checked when the header was parsed.
        let header = unsafe { &*ip };
        Position {
            protocol: header.proto,
            identification: u32::from(u16::from_be_bytes(header.id)),
            offset: u32::from(u16::from_be_bytes(header.frags) & FRAGMENT_OFFSET) * 8,
            headers: usize::from(header.ihl()),
        }
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
    fn length(ip: *mut Ipv4Hdr) -> usize {
        // SAFETY: the bounds were checked when the header was parsed.
        usize::from(u16::from_be_bytes(unsafe { (*ip).tot_len }))
    }

    #[inline(always)]
    fn checksum_is_right(ctx: &XdpContext, link: &Link, ip: *mut Ipv4Hdr, headers: usize) -> bool {
        // SAFETY: the bounds were checked when the header was parsed; a header is
        // five words of any alignment.
        let words = unsafe { ip.cast::<[u32; 5]>().read_unaligned() };
        let mut sum = 0;
        for word in words {
            sum += u64::from(word);
        }
        if headers > Ipv4Hdr::LEN {
            let offset = link.payload + Ipv4Hdr::LEN;
            sum += options_sum(ctx, offset, headers - Ipv4Hdr::LEN);
        }
        checksum::fold(sum) == 0xffff
    }

    #[inline(always)]
    fn ttl(ip: *mut Ipv4Hdr) -> u8 {
        // SAFETY: the bounds were checked when the header was parsed.
        unsafe { (*ip).ttl }
    }

    #[inline(always)]
    fn set_ttl(ip: *mut Ipv4Hdr, ttl: u8) {
        // SAFETY: the bounds were checked when the header was parsed, and no
        // other reference to the header lives.
        let header = unsafe { &mut *ip };
        let delta = replace_ttl(header, ttl);
        update(header, checksum::fold(delta));
    }

    #[inline(always)]
    fn set_addresses(ip: *mut Ipv4Hdr, to: &FlowKey4, address_delta: u16) {
        // SAFETY: as in `set_ttl`.
        update(unsafe { &mut *ip }, address_delta);
        write_addresses(ip, to);
    }

    #[inline(always)]
    fn rewrite(ip: *mut Ipv4Hdr, to: &FlowKey4, address_delta: u16) {
        // SAFETY: as in `set_ttl`.
        let header = unsafe { &mut *ip };
        let ttl = header.ttl - 1;
        let delta = checksum::fold(u64::from(address_delta) + replace_ttl(header, ttl));
        update(header, delta);
        write_addresses(ip, to);
    }

    #[inline(always)]
    fn carried(ip: *mut Ipv4Hdr) -> Carried {
        // SAFETY: the bounds were checked when the header was parsed.
        let header = unsafe { &*ip };
        let fragment = u16::from_ne_bytes(header.frags);
        let flags = fragment & DONT_FRAGMENT;
        // Fragments of one packet have one identification, but their outer packets must
        // not.
        let own = u16::from_be_bytes(header.id).wrapping_add(u16::from_be(fragment));
        Carried {
            traffic_class: header.tos,
            flags,
            identification: if flags == 0 { own.to_be() } else { 0 },
        }
    }

    #[inline(always)]
    fn sum(packet: &Packet<'_, Self>, length: u32) -> Option<u64> {
        // The header sums up to zero, and so does the segment with its pseudo-header.
        let protocol = packet.tuple.protocol as u16;
        let segment = (length - packet.headers as u32) as u16;
        let mut pseudo = Self::address_sum(&packet.tuple);
        pseudo += u64::from(protocol.to_be()) + u64::from(segment.to_be());
        Some(u64::from(!checksum::fold(pseudo)))
    }

    #[inline(always)]
    fn header_length(ip: *mut Ipv4Hdr) -> usize {
        // SAFETY: the bounds were checked when the header was parsed.
        usize::from(unsafe { (*ip).ihl() })
    }

    #[inline(always)]
    fn next(ip: *mut Ipv4Hdr) -> u8 {
        // SAFETY: the bounds were checked when the header was parsed.
        unsafe { (*ip).proto }
    }

    #[inline(always)]
    fn address_sum(tuple: &FlowKey4) -> u64 {
        u64::from(tuple.src) + u64::from(tuple.dst)
    }

    #[inline(always)]
    fn write(
        ctx: &XdpContext,
        offset: usize,
        carried: &Carried,
        payload: usize,
        protocol: u8,
        ttl: u8,
        (src, dst): (u32, u32),
    ) -> Result<(), DropReason> {
        let length = (Ipv4Hdr::LEN + payload) as u16;
        let [length_high, length_low] = length.to_be_bytes();
        let [id_high, id_low] = carried.identification.to_ne_bytes();
        let [flags_high, flags_low] = carried.flags.to_ne_bytes();
        let first = u32::from_ne_bytes([0x45, carried.traffic_class, length_high, length_low]);
        let second = u32::from_ne_bytes([id_high, id_low, flags_high, flags_low]);
        let third = u32::from_ne_bytes([ttl, protocol, 0, 0]);
        let mut sum = 0;
        for word in [first, second, third, src, dst] {
            sum += u64::from(word);
        }
        let [check_high, check_low] = (!checksum::fold(sum)).to_ne_bytes();
        let third = u32::from_ne_bytes([ttl, protocol, check_high, check_low]);
        put(ctx, offset, [first, second, third, src, dst])
    }

    #[inline(always)]
    fn wrap(ctx: *mut xdp_md, backend: u32, hash: u32, length: u32, sum: u64) -> u64 {
        tunnel::wrap_ipv4(ctx, backend, hash, length, sum)
    }

    #[inline(always)]
    fn pinned(tuple: &FlowKey4, service: u64, slot: u64, index: u32, signs: u32) -> u32 {
        pin::pinned_v4(tuple, service, slot, index, signs)
    }

    #[inline(always)]
    fn expect_answer(tuple: &FlowKey4, path: &LinkPath, backend: u32) -> u64 {
        probe::expect_answer_v4(tuple, path, backend)
    }

    #[inline(always)]
    fn write_entries(
        tuple: &FlowKey4,
        path: &LinkPath,
        service: u64,
        backend: u32,
        flags: u32,
    ) -> u32 {
        open::write_entries_v4(tuple, path, service, backend, flags)
    }

    #[inline(always)]
    fn take_over(backend: u32) -> u32 {
        open::take_over_v4(backend)
    }

    #[inline(always)]
    fn enter_embryonic(tuple: &FlowKey4, place: u32) {
        embryonic::enter_v4(tuple, place);
    }

    #[inline(always)]
    fn remembered(tuple: &FlowKey4, service: u64) -> u32 {
        client::remembered_v4(tuple, service)
    }

    #[inline(always)]
    fn note_client(tuple: &FlowKey4, service: u32, backend: u32, is_confirmed: bool) {
        client::note_client_v4(tuple, service, backend, u32::from(is_confirmed));
    }

    #[inline(always)]
    fn client_key(tuple: &FlowKey4, service: u32) -> ClientKey4 {
        ClientKey4 {
            address: tuple.src,
            service,
        }
    }

    #[inline(always)]
    fn denied(service: u32, source: u32) -> u32 {
        guard::denied_v4(service, source)
    }

    #[inline(always)]
    fn source_word(source: u32) -> u64 {
        u64::from(source)
    }

    #[inline(always)]
    fn is_client(src: u32, dst: u32) -> bool {
        let [first, ..] = src.to_ne_bytes();
        src != dst && first != 0 && first != 127 && first < 224
    }

    #[inline(always)]
    fn same(a: u32, b: u32) -> bool {
        a == b
    }

    #[inline(always)]
    fn last_bits(address: u32) -> u32 {
        u32::from_be(address) & 0xffff
    }

    #[inline(always)]
    fn address(words: &[u32; 4]) -> u32 {
        words[0]
    }

    #[inline(always)]
    fn addresses(tuple: &FlowKey4) -> (u32, u32) {
        (tuple.src, tuple.dst)
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
    fn set_dst_port(tuple: &mut FlowKey4, port: u16) {
        tuple.dst_port = port;
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
    fn service_key(tuple: &FlowKey4) -> ServiceKey4 {
        ServiceKey4 {
            address: tuple.dst,
            port: tuple.dst_port,
            protocol: tuple.protocol as u16,
        }
    }

    #[inline(always)]
    fn fragment_key(ip: *mut Ipv4Hdr, protocol: u8, identification: u32) -> FragmentKey4 {
        FragmentKey4 {
            src: Self::source(ip),
            dst: Self::destination(ip),
            identification,
            protocol: u32::from(protocol),
        }
    }

    #[inline(always)]
    fn fragment_owner(key: &FragmentKey4) -> (u32, u8) {
        (key.dst, key.protocol as u8)
    }

    #[inline(always)]
    fn direct(index: u32) -> Option<*const u64> {
        DIRECT_V4.get_ptr(index).map(<*const _>::cast)
    }

    #[inline(always)]
    fn reply_source(address: u32) -> u32 {
        direct::reply_source([address, 0, 0, 0])
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
    fn fragments() -> &'static Fragments<FragmentKey4> {
        &FRAGMENTS_V4
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
    fn pins() -> &'static Pins<Self> {
        &PINS_V4
    }

    #[inline(always)]
    fn clients() -> &'static Clients<Self> {
        &CLIENTS_V4
    }

    #[inline(always)]
    fn newcomers() -> &'static Newcomers<Self> {
        &NEWCOMERS_V4
    }

    #[inline(always)]
    fn embryonic() -> &'static Embryonic<Self> {
        &EMBRYONIC_V4
    }

    #[inline(always)]
    fn draft() -> Option<*mut Draft<Flow4, FragmentKey4>> {
        DRAFT_V4.get_ptr_mut(0)
    }
}

/// Replaces the TTL. Returns what that adds to the sum.
#[inline(always)]
fn replace_ttl(header: &mut Ipv4Hdr, ttl: u8) -> u64 {
    let old = u16::from_ne_bytes([header.ttl, header.proto]);
    header.ttl = ttl;
    checksum::replace16(old, u16::from_ne_bytes([ttl, header.proto]))
}

/// Updates the header checksum, what it covers having changed by `delta`.
#[inline(always)]
fn update(header: &mut Ipv4Hdr, delta: u16) {
    header.check = checksum::update(u16::from_ne_bytes(header.check), delta).to_ne_bytes();
}

/// Writes both addresses, which keys and headers have in this order.
#[inline(always)]
fn write_addresses(ip: *mut Ipv4Hdr, to: &FlowKey4) {
    // SAFETY: the bounds were checked when the header was parsed.
    unsafe {
        let addresses = (&raw const *to).cast::<u64>().read();
        let field = ip.byte_add(offset_of!(Ipv4Hdr, src_addr));
        field.cast::<u64>().write_unaligned(addresses);
    }
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
