//! IPv6 (RFC 8200).

use core::mem::{offset_of, transmute};

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    addr::LinkPath,
    checksum,
    client::ClientKey6,
    direct,
    drop_reason::DropReason,
    flow::{Flow6, FlowKey6},
    fragment::FragmentKey6,
    service::ServiceKey6,
};
use network_types::{
    eth::EtherType,
    ip::{IpProto, Ipv6Hdr},
};

use super::{
    Carried, Clients, DONT_FRAGMENT, Draft, Embryonic, Family, Flows, Fragments, Newcomers, Pins,
    Position, Prefixes, Services, Vips,
};
use crate::{
    client, embryonic, guard,
    link::Link,
    maps::{
        CLIENTS_V6, DIRECT_V6, DRAFT_V6, EMBRYONIC_V6, FLOWS_V6, FRAGMENTS_V6, NEWCOMERS_V6,
        PINS_V6, PREFIXES_V6, REPLIES_V6, SERVICES_V6, VIPS_V6,
    },
    open,
    packet::{Packet, Payload, Protocol, TCP, UDP, Unparsed, at, copy, put},
    pin, probe, tunnel, words,
};

/// The two halves of an address, as they lie in memory.
#[inline(always)]
fn halves(address: [u32; 4]) -> [u64; 2] {
    // SAFETY: both are integers, of the same size.
    unsafe { transmute::<[u32; 4], [u64; 2]>(address) }
}

/// Extension headers that are followed; a real packet has one or two.
const MAX_EXTENSIONS: usize = 6;

const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
const ROUTING: u8 = IpProto::Ipv6Route as u8;
const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
const DESTINATION: u8 = IpProto::Ipv6Opts as u8;
const ICMP: u8 = IpProto::Ipv6Icmp as u8;

/// Offset and more-fragments flag of a fragment header. Both are zero in an atomic
/// fragment, which is a whole packet (RFC 8200, section 4.5; RFC 6946).
const FRAGMENTED: u16 = u16::from_be(0xfff9);
/// The offset alone, in bytes.
const FRAGMENT_OFFSET: u16 = 0xfff8;

/// The first eight bytes of an extension header.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
struct Extension {
    next: u8,
    /// In units of eight bytes, the first eight not counted.
    length: u8,
    /// Fragment header: offset and flags.
    fragment: [u8; 2],
    /// Fragment header: identification.
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
    type ClientKey = ClientKey6;
    type Flow = Flow6;
    type ServiceKey = ServiceKey6;
    type FragmentKey = FragmentKey6;

    const ETHER_TYPE: u16 = EtherType::Ipv6 as u16;
    const PROTOCOL: u8 = IpProto::Ipv6 as u8;
    const ICMP: u8 = ICMP;
    const ADDRESS_BITS: u32 = u128::BITS;
    const HEADER: usize = Ipv6Hdr::LEN;
    const INDEX: u32 = 1;

    #[inline(always)]
    fn header_at(ctx: &XdpContext, offset: usize) -> Option<*mut Ipv6Hdr> {
        let ip: *mut Ipv6Hdr = at(ctx, offset)?;
        // SAFETY: `at` checked the bounds.
        let version = unsafe { (*ip).version() };
        (version == 6).then_some(ip)
    }

    #[inline(always)]
    fn source(ip: *mut Ipv6Hdr) -> Self::Address {
        // SAFETY: the bounds were checked when the header was parsed.
        unsafe { words::load((&raw const (*ip).src_addr).cast()) }
    }

    #[inline(always)]
    fn destination(ip: *mut Ipv6Hdr) -> Self::Address {
        // SAFETY: the bounds were checked when the header was parsed.
        unsafe { words::load((&raw const (*ip).dst_addr).cast()) }
    }

    #[inline(always)]
    fn payload(ctx: &XdpContext, offset: usize, ip: *mut Ipv6Hdr) -> Result<Payload, Unparsed> {
        // SAFETY: the bounds were checked when the header was parsed.
        let protocol = unsafe { (*ip).next_hdr };
        if protocol == TCP || protocol == UDP || protocol == ICMP {
            return Ok(Payload {
                protocol,
                headers: Ipv6Hdr::LEN,
            });
        }
        Outcome(ipv6_walk(ctx.ctx, offset as u64, u32::from(protocol))).unpack()
    }

    #[inline(always)]
    fn position(ctx: &XdpContext, offset: usize, ip: *mut Ipv6Hdr) -> Position {
        // SAFETY: the bounds were checked when the header was parsed.
        let next = unsafe { (*ip).next_hdr };
        let outcome = Outcome(ipv6_walk(ctx.ctx, offset as u64, u32::from(next)));
        let headers = outcome.headers();
        let mut header = Extension::default();
        // The walk has read it.
        let _there = copy(ctx, offset + headers, &mut header, size_of::<Extension>());
        Position {
            protocol: outcome.protocol(),
            identification: u32::from_ne_bytes(header.rest),
            offset: u32::from(u16::from_be_bytes(header.fragment) & FRAGMENT_OFFSET),
            headers: headers + size_of::<Extension>(),
        }
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
    fn length(ip: *mut Ipv6Hdr) -> usize {
        // SAFETY: the bounds were checked when the header was parsed.
        Ipv6Hdr::LEN + usize::from(u16::from_be_bytes(unsafe { (*ip).payload_len }))
    }

    #[inline(always)]
    fn checksum_is_right(
        _ctx: &XdpContext,
        _link: &Link,
        _ip: *mut Ipv6Hdr,
        _headers: usize,
    ) -> bool {
        true
    }

    #[inline(always)]
    fn ttl(ip: *mut Ipv6Hdr) -> u8 {
        // SAFETY: the bounds were checked when the header was parsed.
        unsafe { (*ip).hop_limit }
    }

    #[inline(always)]
    fn set_ttl(ip: *mut Ipv6Hdr, ttl: u8) {
        // SAFETY: the bounds were checked when the header was parsed.
        unsafe { (*ip).hop_limit = ttl };
    }

    #[inline(always)]
    fn set_addresses(ip: *mut Ipv6Hdr, to: &FlowKey6, _address_delta: u16) {
        // SAFETY: the bounds were checked when the header was parsed; keys and headers
        // have both addresses in this order.
        unsafe {
            let to: [u64; ADDRESS_WORDS] = words::load((&raw const *to).cast());
            words::store(addresses(ip), to);
        }
    }

    #[inline(always)]
    fn rewrite(ip: *mut Ipv6Hdr, to: &FlowKey6, address_delta: u16) {
        Self::decrement_ttl(ip);
        Self::set_addresses(ip, to, address_delta);
    }

    #[inline(always)]
    fn carried(ip: *mut Ipv6Hdr) -> Carried {
        // SAFETY: the bounds were checked when the header was parsed.
        let [first, second] = unsafe { ip.cast::<[u8; 2]>().read_unaligned() };
        Carried {
            traffic_class: first << 4 | second >> 4,
            // A router on the way may not fragment IPv6.
            flags: DONT_FRAGMENT,
            identification: 0,
        }
    }

    #[inline(always)]
    fn sum(packet: &Packet<'_, Self>, length: u32) -> Option<u64> {
        if packet.headers != Ipv6Hdr::LEN {
            return None;
        }
        // The segment with its pseudo-header sums up to zero; what the pseudo-header has
        // and the header has not, or the other way round, remains.
        // SAFETY: the bounds were checked when the header was parsed.
        let first: [u32; 2] = unsafe { words::load(packet.ip.cast()) };
        let segment = (length - Ipv6Hdr::LEN as u32) as u16;
        let protocol = packet.tuple.protocol as u16;
        let pseudo = checksum::fold(u64::from(segment.to_be()) + u64::from(protocol.to_be()));
        Some(u64::from(first[0]) + u64::from(first[1]) + u64::from(!pseudo))
    }

    #[inline(always)]
    fn header_length(_ip: *mut Ipv6Hdr) -> usize {
        Ipv6Hdr::LEN
    }

    #[inline(always)]
    fn next(ip: *mut Ipv6Hdr) -> u8 {
        // SAFETY: the bounds were checked when the header was parsed.
        unsafe { (*ip).next_hdr }
    }

    #[inline(always)]
    fn address_sum(tuple: &FlowKey6) -> u64 {
        let mut sum = 0;
        for word in tuple.src {
            sum += u64::from(word);
        }
        for word in tuple.dst {
            sum += u64::from(word);
        }
        sum
    }

    #[inline(always)]
    fn write(
        ctx: &XdpContext,
        offset: usize,
        carried: &Carried,
        payload: usize,
        protocol: u8,
        ttl: u8,
        (src, dst): (Self::Address, Self::Address),
    ) -> Result<(), DropReason> {
        let class = carried.traffic_class;
        let [length_high, length_low] = (payload as u16).to_be_bytes();
        let first = u32::from_ne_bytes([0x60 | class >> 4, class << 4, 0, 0]);
        let second = u32::from_ne_bytes([length_high, length_low, protocol, ttl]);
        let ([a, b, c, d], [e, f, g, h]) = (src, dst);
        put(ctx, offset, [first, second, a, b, c, d, e, f, g, h])
    }

    #[inline(always)]
    fn wrap(ctx: *mut xdp_md, backend: u32, hash: u32, length: u32, sum: u64) -> u64 {
        tunnel::wrap_ipv6(ctx, backend, hash, length, sum)
    }

    #[inline(always)]
    fn pinned(tuple: &FlowKey6, service: u64, slot: u64, index: u32, signs: u32) -> u32 {
        pin::pinned_v6(tuple, service, slot, index, signs)
    }

    #[inline(always)]
    fn expect_answer(tuple: &FlowKey6, path: &LinkPath, backend: u32) -> u64 {
        probe::expect_answer_v6(tuple, path, backend)
    }

    #[inline(always)]
    fn write_entries(
        tuple: &FlowKey6,
        path: &LinkPath,
        service: u64,
        backend: u32,
        flags: u32,
    ) -> u32 {
        open::write_entries_v6(tuple, path, service, backend, flags)
    }

    #[inline(always)]
    fn take_over(backend: u32) -> u32 {
        open::take_over_v6(backend)
    }

    #[inline(always)]
    fn enter_embryonic(tuple: &FlowKey6, place: u32) {
        embryonic::enter_v6(tuple, place);
    }

    #[inline(always)]
    fn remembered(tuple: &FlowKey6, service: u64) -> u32 {
        client::remembered_v6(tuple, service)
    }

    #[inline(always)]
    fn note_client(tuple: &FlowKey6, service: u32, backend: u32, is_confirmed: bool) {
        client::note_client_v6(tuple, service, backend, u32::from(is_confirmed));
    }

    #[inline(always)]
    fn client_key(tuple: &FlowKey6, service: u32) -> ClientKey6 {
        ClientKey6 {
            address: tuple.src,
            service,
            reserved: 0,
        }
    }

    #[inline(always)]
    fn denied(service: u32, source: Self::Address) -> u32 {
        let [first, last] = halves(source);
        guard::denied_v6(service, first, last)
    }

    #[inline(always)]
    fn source_word(source: Self::Address) -> u64 {
        let [prefix, _] = halves(source);
        prefix
    }

    #[inline(always)]
    fn is_client(src: Self::Address, dst: Self::Address) -> bool {
        const MULTICAST: u32 = u32::from_be(0xff00_0000);
        const ONE: u32 = u32::from_be(1);
        const MAPPED: u32 = u32::from_be(0xffff);
        let [a, b, c, d] = src;
        // `::`, `::1`, `::ffff:0:0/96`.
        let special = a | b == 0 && (c == MAPPED || c == 0 && (d == 0 || d == ONE));
        !Self::same(src, dst) && !special && a & MULTICAST != MULTICAST
    }

    #[inline(always)]
    fn same(a: Self::Address, b: Self::Address) -> bool {
        a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
    }

    #[inline(always)]
    fn last_bits(address: [u32; 4]) -> u32 {
        u32::from_be(address[3]) & 0xffff
    }

    #[inline(always)]
    fn address(words: &[u32; 4]) -> Self::Address {
        *words
    }

    #[inline(always)]
    fn addresses(tuple: &FlowKey6) -> (Self::Address, Self::Address) {
        (tuple.src, tuple.dst)
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
    fn set_dst_port(tuple: &mut FlowKey6, port: u16) {
        tuple.dst_port = port;
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
    fn service_key(tuple: &FlowKey6) -> ServiceKey6 {
        ServiceKey6 {
            address: tuple.dst,
            port: tuple.dst_port,
            protocol: tuple.protocol as u16,
            reserved: 0,
        }
    }

    #[inline(always)]
    fn fragment_key(ip: *mut Ipv6Hdr, protocol: u8, identification: u32) -> FragmentKey6 {
        FragmentKey6 {
            src: Self::source(ip),
            dst: Self::destination(ip),
            identification,
            protocol: u32::from(protocol),
        }
    }

    #[inline(always)]
    fn fragment_owner(key: &FragmentKey6) -> (Self::Address, u8) {
        (key.dst, key.protocol as u8)
    }

    #[inline(always)]
    fn direct(index: u32) -> Option<*const u64> {
        DIRECT_V6.get_ptr(index).map(<*const _>::cast)
    }

    #[inline(always)]
    fn reply_source(address: [u32; 4]) -> u32 {
        direct::reply_source(address)
    }

    #[inline(always)]
    fn services() -> &'static Services<ServiceKey6> {
        &SERVICES_V6
    }

    #[inline(always)]
    fn vips() -> &'static Vips<Self::Address> {
        &VIPS_V6
    }

    #[inline(always)]
    fn prefixes() -> &'static Prefixes<Self::Address> {
        &PREFIXES_V6
    }

    #[inline(always)]
    fn fragments() -> &'static Fragments<FragmentKey6> {
        &FRAGMENTS_V6
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
    fn pins() -> &'static Pins<Self> {
        &PINS_V6
    }

    #[inline(always)]
    fn clients() -> &'static Clients<Self> {
        &CLIENTS_V6
    }

    #[inline(always)]
    fn newcomers() -> &'static Newcomers<Self> {
        &NEWCOMERS_V6
    }

    #[inline(always)]
    fn embryonic() -> &'static Embryonic<Self> {
        &EMBRYONIC_V6
    }

    #[inline(always)]
    fn draft() -> Option<*mut Draft<Flow6, FragmentKey6>> {
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
    for followed in 0..=MAX_EXTENSIONS {
        if next == TCP || next == UDP || next == ICMP {
            return Outcome::payload(next, headers).0;
        }
        if next != HOP_BY_HOP && next != ROUTING && next != FRAGMENT && next != DESTINATION {
            return Outcome::FOREIGN.0;
        }
        // The one only as the first of all (RFC 8200, section 4.1).
        if followed == MAX_EXTENSIONS || next == HOP_BY_HOP && headers != Ipv6Hdr::LEN {
            break;
        }
        let mut buffer = Extension::default();
        let Some(extension) = copy(&ctx, ip + headers, &mut buffer, size_of::<Extension>()) else {
            break;
        };
        if next == FRAGMENT {
            if u16::from_ne_bytes(extension.fragment) & FRAGMENTED != 0 {
                return fragment(extension.next, headers).0;
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
    Outcome::MALFORMED.0
}

/// A fragment whose own headers, `headers` bytes, are followed by one of type `next`.
#[inline(always)]
const fn fragment(next: u8, headers: usize) -> Outcome {
    match next {
        TCP | UDP => Outcome::fragment(next, headers),
        HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION => Outcome::MALFORMED,
        _ => Outcome::FOREIGN,
    }
}

/// What a walk found, in a word: from the lowest, 8 bits of protocol, 16 of the length
/// of the headers (of a fragment those before the fragment header), 8 of kind.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Outcome(u64);

impl Outcome {
    const FOREIGN: Self = Self(0);
    const PAYLOAD: u64 = 1;
    const FRAGMENT: u64 = 2;
    const MALFORMED: Self = Self(3 << 24);

    #[inline(always)]
    const fn payload(protocol: u8, headers: usize) -> Self {
        Self(protocol as u64 | (headers as u64) << 8 | Self::PAYLOAD << 24)
    }

    #[inline(always)]
    const fn fragment(protocol: u8, headers: usize) -> Self {
        Self(protocol as u64 | (headers as u64) << 8 | Self::FRAGMENT << 24)
    }

    #[inline(always)]
    const fn protocol(self) -> u8 {
        self.0 as u8
    }

    #[inline(always)]
    const fn headers(self) -> usize {
        // No chain that the walk follows is longer; the verifier has to see it.
        const LONGEST: usize = 0x3fff;
        (self.0 >> 8) as usize & LONGEST
    }

    #[inline(always)]
    const fn unpack(self) -> Result<Payload, Unparsed> {
        match self.0 >> 24 {
            Self::PAYLOAD => Ok(Payload {
                protocol: self.protocol(),
                headers: self.headers(),
            }),
            Self::FRAGMENT => Err(Unparsed::Fragment),
            0 => Err(Unparsed::Foreign),
            _ => Err(Unparsed::Malformed(
                DropReason::Ipv6Extension,
                Protocol::Unknown,
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
