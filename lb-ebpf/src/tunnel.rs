//! Wrapping packets: IP in IP (RFC 2003, RFC 2473, RFC 4213) and GUE
//! (draft-ietf-intarea-gue).

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    backend::{Backend, Outer},
    checksum,
    drop_reason::DropReason,
    service::{Mode, Service},
};
use network_types::udp::UdpHdr;

use crate::{
    family::{Carried, Family, Ipv4, Ipv6},
    link::Link,
    maps::BACKENDS,
    packet::{Packet, Part, UDP, put},
    sum::sum_of,
};

/// A GUE header without options, in bytes.
const GUE: usize = 4;
/// UDP and GUE header.
const UDP_GUE: usize = UdpHdr::LEN + GUE;
/// TTL or hop limit of the outer header.
const TTL: u8 = 64;
/// GUE's source ports: 32768 and up, so that no well-known one is among them.
const SOURCE_PORTS: u16 = 0x8000;

/// A packet that is to be wrapped.
pub struct Inner {
    /// Length of the IP packet in bytes.
    length: u32,
    /// Its one's complement sum, or [`UNKNOWN`].
    sum: u64,
}

/// No sum of 16-bit words.
const UNKNOWN: u64 = u64::MAX;

impl Inner {
    /// A packet of TCP or UDP, as it will be sent.
    #[inline(always)]
    pub fn of_packet<F: Family>(packet: &Packet<'_, F>, length: u32) -> Self {
        let room = length - packet.headers as u32;
        let is_covered = packet.part == Part::Whole && packet.transport.covers(room);
        let sum = if is_covered {
            F::sum(packet, length).unwrap_or(UNKNOWN)
        } else {
            UNKNOWN
        };
        Self { length, sum }
    }

    /// Any IP packet.
    #[inline(always)]
    pub fn of_length(length: u32) -> Self {
        Self {
            length,
            sum: UNKNOWN,
        }
    }
}

/// Wraps a packet of a flow with this hash for a backend, and sends it there. The packet
/// pointers taken before are invalid afterwards.
#[inline(always)]
pub fn send<F: Family>(
    ctx: &XdpContext,
    inner: &Inner,
    hash: u32,
    service: &Service,
    backend: u32,
) -> Result<u32, DropReason> {
    wrap_for::<F>(ctx, inner, hash, service.mode, backend)
}

/// The same for a packet of no service, in this mode.
#[inline(always)]
pub fn wrap_for<F: Family>(
    ctx: &XdpContext,
    inner: &Inner,
    hash: u32,
    mode: u8,
    backend: u32,
) -> Result<u32, DropReason> {
    let is_gue = mode == Mode::Gue as u8;
    let length = inner.length | if is_gue { IS_GUE } else { 0 };
    let outcome = F::wrap(ctx.ctx, backend, hash, length, inner.sum);
    if outcome == NO_HEADROOM {
        return Err(DropReason::NoHeadroom);
    }
    if outcome == NO_INTERFACE {
        return Err(DropReason::NoInterface);
    }
    Ok(outcome as u32)
}

/// In the length that is passed: wrap in GUE. No IP packet is that long.
const IS_GUE: u32 = 1 << 31;
/// Instead of an XDP action: there is no room for the headers.
const NO_HEADROOM: u64 = 1 << 32;
/// Instead of an XDP action: the interface is not one to send by.
const NO_INTERFACE: u64 = 1 << 33;

/// Wraps an IPv4 packet and sends it. Returns an XDP action or one of the constants.
///
/// A global function, like `ipv6_walk`, which takes no more than it can look up again.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn wrap_ipv4(
    ctx: *mut xdp_md,
    backend: u32,
    hash: u32,
    length: u32,
    sum: u64,
) -> u64 {
    outcome(wrap::<Ipv4>(
        &XdpContext::new(ctx),
        backend,
        hash,
        length,
        sum,
    ))
}

/// The same for an IPv6 packet.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn wrap_ipv6(
    ctx: *mut xdp_md,
    backend: u32,
    hash: u32,
    length: u32,
    sum: u64,
) -> u64 {
    outcome(wrap::<Ipv6>(
        &XdpContext::new(ctx),
        backend,
        hash,
        length,
        sum,
    ))
}

#[inline(always)]
fn outcome(result: Result<u32, DropReason>) -> u64 {
    match result {
        Ok(action) => u64::from(action),
        Err(DropReason::NoInterface) => NO_INTERFACE,
        Err(_) => NO_HEADROOM,
    }
}

/// See [`send`].
#[inline(always)]
fn wrap<F: Family>(
    ctx: &XdpContext,
    backend: u32,
    hash: u32,
    length: u32,
    sum: u64,
) -> Result<u32, DropReason> {
    const IPV4: u8 = Outer::Ipv4 as u8;
    let backend = BACKENDS.get(backend).ok_or(DropReason::NoHeadroom)?;
    let link = Link::parse(ctx).ok_or(DropReason::NoHeadroom)?;
    let ip = F::header(ctx, &link).ok_or(DropReason::NoHeadroom)?;
    let wrap = Wrap {
        carried: F::carried(ip),
        inner: F::PROTOCOL,
        length: (length & !IS_GUE) as usize,
        is_gue: length & IS_GUE != 0,
        hash,
    };
    let mut source = backend.source;
    let [high, low] = (hash as u16 & u16::from_be(backend.source_mask)).to_be_bytes();
    let vary = u32::from_ne_bytes([0, 0, high, low]);
    if backend.outer == IPV4 {
        source[0] |= vary;
        let addresses = (source[0], backend.address[0]);
        let offset = wrap.outer::<Ipv4>(ctx, &link, backend, addresses)?;
        if wrap.is_gue {
            // Over IPv4 zero says that there is no checksum (RFC 768).
            put(ctx, offset, wrap.gue(backend.port, 0))?;
        }
    } else {
        source[3] |= vary;
        let addresses = (source, backend.address);
        let offset = wrap.outer::<Ipv6>(ctx, &link, backend, addresses)?;
        if wrap.is_gue {
            let inner = (offset + UDP_GUE) as u64;
            let sum = if sum == UNKNOWN {
                sum_of(ctx.ctx, inner, wrap.length as u64)
            } else {
                sum
            };
            let checksum = wrap.udp_checksum(backend, &source, sum);
            put(ctx, offset, wrap.gue(backend.port, checksum))?;
        }
    }
    link.send(&backend.path)
}

/// What the outer headers are made from.
struct Wrap {
    carried: Carried,
    /// Protocol number of the family of the inner packet.
    inner: u8,
    /// Length of the inner packet in bytes.
    length: usize,
    is_gue: bool,
    /// Hash of the flow.
    hash: u32,
}

impl Wrap {
    /// Puts the outer IP header, of family `O`, in front of the packet, and room for those
    /// of GUE. Returns the offset of that room.
    #[inline(always)]
    fn outer<O: Family>(
        &self,
        ctx: &XdpContext,
        link: &Link,
        backend: &Backend,
        addresses: (O::Address, O::Address),
    ) -> Result<usize, DropReason> {
        let extra = if self.is_gue { UDP_GUE } else { 0 };
        let size = (O::HEADER + extra) as i32;
        let offset = link.rewrite(ctx, &backend.path, size, O::ETHER_TYPE)?;
        let payload = self.length + extra;
        let protocol = if self.is_gue { UDP } else { self.inner };
        O::write(
            ctx,
            offset,
            &self.carried,
            payload,
            protocol,
            TTL,
            addresses,
        )?;
        Ok(offset + O::HEADER)
    }

    /// A UDP and a GUE header: version 0, data, without options; `port` in network byte
    /// order.
    #[inline(always)]
    fn gue(&self, port: u16, checksum: u16) -> [u32; 3] {
        let [src_high, src_low] = (self.hash as u16 | SOURCE_PORTS).to_be_bytes();
        let [dst_high, dst_low] = port.to_ne_bytes();
        let [length_high, length_low] = ((self.length + UDP_GUE) as u16).to_be_bytes();
        let [check_high, check_low] = checksum.to_ne_bytes();
        [
            u32::from_ne_bytes([src_high, src_low, dst_high, dst_low]),
            u32::from_ne_bytes([length_high, length_low, check_high, check_low]),
            u32::from_ne_bytes([0, self.inner, 0, 0]),
        ]
    }

    /// The UDP checksum over IPv6 (RFC 8200, section 8.1) around a packet with this sum.
    #[inline(always)]
    fn udp_checksum(&self, backend: &Backend, source: &[u32; 4], packet: u64) -> u16 {
        let length = (self.length + UDP_GUE) as u16;
        let mut sum = packet + u64::from(length.to_be()) + u64::from(u16::from(UDP).to_be());
        for word in source {
            sum += u64::from(*word);
        }
        for word in backend.address {
            sum += u64::from(word);
        }
        for word in self.gue(backend.port, 0) {
            sum += u64::from(word);
        }
        match !checksum::fold(sum) {
            0 => 0xffff,
            checksum => checksum,
        }
    }
}
