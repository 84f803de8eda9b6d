//! IPv6 (RFC 8200).

use core::mem::offset_of;

use aya_ebpf::programs::XdpContext;
use lb_common::decap::{Address6, SourceKey6};
use network_types::{
    eth::EtherType,
    ip::{IpProto, Ipv6Hdr},
};

use super::{Family, Header};
use crate::{
    frame::{at, length},
    maps::{LOCALS_V6, Query, SOURCES_V6, VIPS_V6},
    words,
};

/// The fragment header (RFC 8200, section 4.5).
#[repr(C)]
struct Fragment {
    next: u8,
    reserved: u8,
    offset: u16,
    identification: [u16; 2],
}

/// The more-fragments flag of [`Fragment::offset`].
const MORE_FRAGMENTS: u16 = u16::from_be(1);
/// The offset itself.
const OFFSET: u16 = u16::from_be(0xfff8);
/// The ECN bits of the second byte, which has the lower half of the traffic class first.
const ECN: u8 = 0b0011_0000;

/// IPv6.
pub enum Ipv6 {}

impl Family for Ipv6 {
    type Address = Address6;

    const ETHER_TYPE: u16 = EtherType::Ipv6 as u16;
    const LEN: usize = Ipv6Hdr::LEN;

    #[inline(always)]
    fn read(ctx: &XdpContext, offset: usize) -> Option<Header<Self>> {
        let ip: *const Ipv6Hdr = at(ctx, offset)?;
        // SAFETY: `at` checked the bounds, and all fields are bytes.
        let header = unsafe { &*ip };
        if header.version() != 6 {
            return None;
        }
        // SAFETY: as above; addresses are four words each.
        let [source, destination] = unsafe {
            [offset_of!(Ipv6Hdr, src_addr), offset_of!(Ipv6Hdr, dst_addr)]
                .map(|field| Address6(words::load(ip.byte_add(field).cast::<u32>())))
        };
        Some(Header {
            source,
            destination,
            protocol: header.next_hdr,
            headers: Self::LEN,
            length: Self::LEN + usize::from(u16::from_be_bytes(header.payload_len)),
            ecn: (header.vcf[1] & ECN) >> ECN.trailing_zeros(),
            begins: true,
            ends: true,
        })
    }

    #[inline(always)]
    fn enter_fragment(ctx: &XdpContext, offset: usize, header: &mut Header<Self>) -> Option<()> {
        const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
        if header.protocol != FRAGMENT {
            return Some(());
        }
        let fragment: *const Fragment = at(ctx, offset + Self::LEN)?;
        // SAFETY: `at` checked the bounds.
        let fragment = unsafe { fragment.read_unaligned() };
        header.protocol = fragment.next;
        header.headers += size_of::<Fragment>();
        header.begins = fragment.offset & OFFSET == 0;
        header.ends = fragment.offset & MORE_FRAGMENTS == 0;
        Some(())
    }

    #[inline(always)]
    fn is_sound(ctx: &XdpContext, offset: usize, header: &Header<Self>) -> bool {
        header.length >= header.headers && offset + header.length <= length(ctx)
    }

    #[inline(always)]
    fn set_ecn(ctx: &XdpContext, offset: usize, ecn: u8) {
        let Some(ip) = at::<Ipv6Hdr>(ctx, offset) else {
            return;
        };
        // SAFETY: `at` checked the bounds.
        let byte = unsafe { &mut (*ip).vcf[1] };
        *byte = *byte & !ECN | ecn << ECN.trailing_zeros();
    }

    #[inline(always)]
    fn is_local(address: &Address6) -> bool {
        LOCALS_V6.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn is_allowed(ifindex: u32, address: &Address6) -> bool {
        let source = SourceKey6 {
            ifindex,
            reserved: 0,
            address: *address,
        };
        SOURCES_V6.get(Query::new(source).key()).is_some()
    }

    #[inline(always)]
    fn vip(address: &Address6) -> Option<u32> {
        VIPS_V6.get(Query::new(*address).key()).copied()
    }
}
