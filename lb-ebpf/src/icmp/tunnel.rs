//! An error about a packet that was wrapped comes to the balancer, since the outer source
//! is its address. If the packet was too big, the client that sent it is told so.

use aya_ebpf::{bindings::xdp_action::XDP_PASS, programs::XdpContext};
use lb_common::{backend::Outer, drop_reason::DropReason, service::Mode};
use network_types::ip::IpProto;

use super::{Icmp, Quoted, Version};
use crate::{
    family::{Family, Ipv4, Ipv6},
    link::Link,
    packet::{Part, Payload, UDP, at, check_ip},
    select, service,
    verdict::Refused,
};

/// Half-words of a UDP header and a GUE header without options.
const UDP_GUE_WORDS: usize = 6;

/// The path of an error about a packet that may have been wrapped here.
#[inline(always)]
pub fn path<F: Version>(ctx: &XdpContext, link: &Link) -> u32 {
    const IPIP: u8 = IpProto::Ipv4 as u8;
    const IPV6_IN_IP: u8 = IpProto::Ipv6 as u8;
    let Some(ip) = F::header(ctx, link) else {
        return XDP_PASS;
    };
    let Ok(Payload { headers, .. }) = F::payload(ctx, link.payload, ip) else {
        return XDP_PASS;
    };
    let Some(icmp) = at::<Icmp>(ctx, link.payload + headers) else {
        return XDP_PASS;
    };
    // SAFETY: `at` checked the bounds.
    let (kind, code, rest) = unsafe { ((*icmp).kind, (*icmp).code, (*icmp).rest) };
    if !F::is_too_big(kind, code) {
        return XDP_PASS;
    }
    let quoted = link.payload + headers + size_of::<Icmp>();
    let Some(outer) = F::header_at(ctx, quoted) else {
        return XDP_PASS;
    };
    // A header that was made here has no options.
    if F::header_length(outer) != F::HEADER {
        return XDP_PASS;
    }
    let mut overhead = F::HEADER;
    let mut protocol = F::next(outer);
    let mut mode = Mode::Ipip;
    let mut port = 0;
    if protocol == UDP {
        let Some(gue) = at::<[u16; UDP_GUE_WORDS]>(ctx, quoted + overhead) else {
            return XDP_PASS;
        };
        // SAFETY: `at` checked the bounds.
        let [_, dst_port, _, _, kind, flags] = unsafe { gue.read_unaligned() };
        let [version, inner] = kind.to_ne_bytes();
        if version != 0 || flags != 0 {
            return XDP_PASS;
        }
        (mode, port, protocol) = (Mode::Gue, dst_port, inner);
        overhead += UDP_GUE_WORDS * size_of::<u16>();
    }
    let report = Report {
        link,
        headers,
        quoted,
        overhead,
        mode,
        port,
        mtu: F::mtu(rest).saturating_sub(overhead as u32),
    };
    match protocol {
        IPIP => report.pass_on::<F, Ipv4>(ctx, ip, outer),
        IPV6_IN_IP => report.pass_on::<F, Ipv6>(ctx, ip, outer),
        _ => XDP_PASS,
    }
}

/// An error that says that a wrapped packet was too big.
struct Report<'a> {
    link: &'a Link,
    /// Length of the IP headers of the error.
    headers: usize,
    /// Offset of the quote in the frame.
    quoted: usize,
    /// Length of the outer headers in the quote.
    overhead: usize,
    /// How packets of this kind are wrapped.
    mode: Mode,
    /// GUE: the destination port, network byte order. Else 0.
    port: u16,
    /// The size of packets that would have passed, without outer headers.
    mtu: u32,
}

impl Report<'_> {
    /// Tells the sender of the wrapped packet, of family `G` in `F`, if the packet is
    /// one that a service wraps for this very backend.
    #[inline(always)]
    fn pass_on<F: Version, G: Version>(
        &self,
        ctx: &XdpContext,
        ip: *mut F::Header,
        outer: *mut F::Header,
    ) -> u32 {
        let begin = self.quoted + self.overhead;
        let Some(inner) = G::header_at(ctx, begin) else {
            return XDP_PASS;
        };
        let Ok(payload) = G::payload(ctx, begin, inner) else {
            return XDP_PASS;
        };
        let Some(transport) = at::<Quoted>(ctx, begin + payload.headers) else {
            return XDP_PASS;
        };
        // SAFETY: `at` checked the bounds.
        let ports = unsafe { transport.cast::<u32>().read_unaligned() };
        let tuple = G::tuple(inner, payload.protocol, ports);
        let service = service::find::<G>(&tuple);
        if service.id == 0 {
            return XDP_PASS;
        }
        let Some((id, backend)) = select::known::<G>(&tuple, &service) else {
            return XDP_PASS;
        };
        let family = if F::HEADER == Ipv4::HEADER {
            Outer::Ipv4
        } else {
            Outer::Ipv6
        };
        if service.mode != self.mode as u8
            || backend.outer != family as u8
            || backend.port != self.port
            || !F::same(F::address(&backend.address), F::destination(outer))
        {
            return XDP_PASS;
        }
        let refused = |reason| Refused::reply(reason, service.id(), id);
        if let Err(reason) = check_ip::<F>(ctx, self.link, ip, self.headers) {
            return refused(reason).drop(ctx);
        }
        // What remains of the frame is the wrapped packet, as far as it was quoted.
        let cut = (begin - self.link.payload) as i32;
        if let Err(reason) = self.link.strip(ctx, cut, G::ETHER_TYPE) {
            return refused(reason).drop(ctx);
        }
        refused(DropReason::TooBig)
            .with_mtu(Part::Whole, self.mtu.max(1))
            .drop(ctx)
    }
}
