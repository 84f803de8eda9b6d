//! IPv4 (RFC 791).

use aya_ebpf::{helpers::bpf_xdp_load_bytes, programs::XdpContext};
use lb_common::{checksum, decap::SourceKey4};
use network_types::{eth::EtherType, ip::Ipv4Hdr};

use super::{Family, Header};
use crate::{
    bounds,
    frame::{at, length},
    maps::{LOCALS_V4, Query, SOURCES_V4, VIPS_V4},
};

/// The more-fragments flag.
const MORE_FRAGMENTS: u16 = u16::from_be(0x2000);
/// The fragment offset.
const OFFSET: u16 = u16::from_be(0x1fff);
/// Words of options that a header has at most.
const MAX_OPTION_WORDS: usize = 10;
/// The ECN bits of the type of service.
const ECN: u8 = 0b11;

/// IPv4.
pub enum Ipv4 {}

impl Family for Ipv4 {
    type Address = u32;

    const ETHER_TYPE: u16 = EtherType::Ipv4 as u16;
    const LEN: usize = Ipv4Hdr::LEN;

    #[inline(always)]
    fn read(ctx: &XdpContext, offset: usize) -> Option<Header<Self>> {
        let ip: *const Ipv4Hdr = at(ctx, offset)?;
        // SAFETY: `at` checked the bounds, and all fields are bytes.
        let ip = unsafe { &*ip };
        if ip.version() != 4 {
            return None;
        }
        let fragment = u16::from_ne_bytes(ip.frags);
        Some(Header {
            source: u32::from_ne_bytes(ip.src_addr),
            destination: u32::from_ne_bytes(ip.dst_addr),
            protocol: ip.proto,
            headers: usize::from(ip.ihl()),
            length: usize::from(u16::from_be_bytes(ip.tot_len)),
            ecn: ip.tos & ECN,
            begins: fragment & OFFSET == 0,
            ends: fragment & MORE_FRAGMENTS == 0,
        })
    }

    #[inline(always)]
    fn enter_fragment(_: &XdpContext, _: usize, _: &mut Header<Self>) -> Option<()> {
        Some(())
    }

    #[inline(always)]
    fn is_sound(ctx: &XdpContext, offset: usize, header: &Header<Self>) -> bool {
        header.headers >= Self::LEN
            && header.length >= header.headers
            && offset + header.length <= length(ctx)
            && header_sum(ctx, offset, header.headers) == Some(0xffff)
    }

    #[inline(always)]
    fn set_ecn(ctx: &XdpContext, offset: usize, ecn: u8) {
        let Some(ip) = at::<Ipv4Hdr>(ctx, offset) else {
            return;
        };
        // SAFETY: `at` checked the bounds, and no other reference to the header lives.
        let ip = unsafe { &mut *ip };
        let old = u16::from_ne_bytes([ip.vihl, ip.tos]);
        ip.tos = ip.tos & !ECN | ecn;
        let new = u16::from_ne_bytes([ip.vihl, ip.tos]);
        let delta = checksum::fold(checksum::replace16(old, new));
        ip.check = checksum::update(u16::from_ne_bytes(ip.check), delta).to_ne_bytes();
    }

    #[inline(always)]
    fn is_local(address: &u32) -> bool {
        LOCALS_V4.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn is_allowed(ifindex: u32, address: &u32) -> bool {
        let source = SourceKey4 {
            ifindex,
            address: *address,
        };
        SOURCES_V4.get(Query::new(source).key()).is_some()
    }

    #[inline(always)]
    fn vip(address: &u32) -> Option<u32> {
        VIPS_V4.get(Query::new(*address).key()).copied()
    }
}

/// The one's complement sum of the header, 0xffff if its checksum is right (RFC 1071).
/// `None` if the frame ends before the header does.
#[inline(always)]
fn header_sum(ctx: &XdpContext, offset: usize, headers: usize) -> Option<u16> {
    let words = at::<[u32; 5]>(ctx, offset)?;
    // SAFETY: `at` checked the bounds.
    let words = unsafe { words.read_unaligned() };
    let mut sum = 0;
    for word in words {
        sum += u64::from(word);
    }
    if headers > Ipv4Hdr::LEN {
        sum += options_sum(ctx, offset + Ipv4Hdr::LEN, headers - Ipv4Hdr::LEN)?;
    }
    Some(checksum::fold(sum))
}

/// The sum of `length` bytes of options. Copied by a helper, which the verifier follows
/// once, whatever the length.
#[inline(always)]
fn options_sum(ctx: &XdpContext, offset: usize, length: usize) -> Option<u64> {
    let mut options = [0_u32; MAX_OPTION_WORDS];
    let length = bounds::within(length, size_of_val(&options))?;
    // SAFETY: the buffer holds `length` bytes.
    let error = unsafe {
        bpf_xdp_load_bytes(
            ctx.ctx,
            offset as u32,
            options.as_mut_ptr().cast(),
            length as u32,
        )
    };
    if error != 0 {
        return None;
    }
    let mut sum = 0;
    for word in options {
        sum += u64::from(word);
    }
    Some(sum)
}
