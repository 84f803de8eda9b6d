//! Errors about our packets go to whom the packet came from: to the backend that owns
//! the flow, or to the client. What counts is the packet that the error quotes.

use aya_ebpf::{bindings::xdp_action::XDP_PASS, programs::XdpContext};
use lb_common::{
    addr::LinkPath,
    backend::{Backend, BackendState},
    checksum,
    drop_reason::DropReason,
    flow::Tuple,
    service::{Mode, Service},
    stage::Stage,
};
use network_types::{tcp::TcpHdr, udp::UdpHdr};

use super::{Icmp, Quoted, Version, malformed};
use crate::{
    count,
    family::Family,
    flow::{self, Flow},
    forward::is_too_big,
    guard,
    link::Link,
    maps::BACKENDS,
    packet::{Payload, TCP, UDP, Unparsed, at, check_ip},
    select, service, stage, tunnel,
    verdict::{Refused, Verdict, conclude},
};

/// An error and the packet that it quotes.
struct Error<'a, F: Family> {
    link: &'a Link,
    ip: *mut F::Header,
    /// Length of the IP headers of the error itself.
    headers: usize,
    /// Length of its IP packet, as its header says.
    length: u32,
    icmp: *mut Icmp,
    /// The quoted IP header.
    quote: *mut F::Header,
    /// The quoted ports and what follows them.
    transport: *mut Quoted,
    /// Offset of these in the frame.
    offset: usize,
    /// The quoted tuple.
    tuple: F::Tuple,
}

/// The path of an error.
#[inline(always)]
pub fn path<F: Version>(ctx: &XdpContext, link: &Link) -> u32 {
    let error = match Error::<F>::parse(ctx, link) {
        Ok(error) => error,
        Err(Unread::Foreign) => return XDP_PASS,
        Err(Unread::Wrapped) => return stage::enter(ctx, Stage::IcmpTunnel),
        Err(Unread::Malformed(ip)) => return malformed::<F>(ctx, ip),
    };
    let sent = error.tuple.reversed();
    let service = service::find::<F>(&sent);
    if service.id != 0 && !Mode::translates(service.mode) {
        conclude(ctx, to_backend(ctx, &error, &sent, &service))
    } else if service.id != 0 || flow::of_reply::<F>(&sent).is_some() {
        stage::enter(ctx, Stage::IcmpNat)
    } else if F::protocol(&sent) == UDP {
        stage::enter(ctx, Stage::IcmpTunnel)
    } else {
        XDP_PASS
    }
}

/// The path of an error about a packet that was translated.
#[inline(always)]
pub fn nat<F: Version>(ctx: &XdpContext, link: &Link) -> u32 {
    let Ok(error) = Error::<F>::parse(ctx, link) else {
        return XDP_PASS;
    };
    let sent = error.tuple.reversed();
    let service = service::find::<F>(&sent);
    let verdict = if service.id != 0 {
        to_nat_backend(ctx, &error, &sent, &service)
    } else if let Some(reply) = flow::of_reply::<F>(&sent) {
        to_client(ctx, &error, reply)
    } else {
        return XDP_PASS;
    };
    conclude(ctx, verdict)
}

/// Why an error has no quoted packet of TCP or UDP.
enum Unread<F: Family> {
    /// It is about something else.
    Foreign,
    /// It may be about a tunnel packet.
    Wrapped,
    /// It quotes too little, or what can't be followed. The IP header is its own.
    Malformed(*mut F::Header),
}

impl<'a, F: Version> Error<'a, F> {
    /// Reads an error and what it quotes.
    #[inline(always)]
    fn parse(ctx: &XdpContext, link: &'a Link) -> Result<Self, Unread<F>> {
        let ip = F::header(ctx, link).ok_or(Unread::Foreign)?;
        let Ok(Payload { headers, .. }) = F::payload(ctx, link.payload, ip) else {
            return Err(Unread::Foreign);
        };
        let malformed = Unread::Malformed(ip);
        let icmp: *mut Icmp = at(ctx, link.payload + headers).ok_or(Unread::Foreign)?;
        let quoted = link.payload + headers + size_of::<Icmp>();
        let Some(quote) = F::header_at(ctx, quoted) else {
            return Err(malformed);
        };
        // Whoever sent the packet is told of the error.
        if !F::same(F::source(quote), F::destination(ip)) {
            return Err(Unread::Foreign);
        }
        let payload = match F::payload(ctx, quoted, quote) {
            Ok(payload) => payload,
            Err(Unparsed::Foreign) => return Err(Unread::Wrapped),
            Err(_) => return Err(malformed),
        };
        if payload.protocol == F::ICMP {
            return Err(Unread::Foreign);
        }
        let offset = quoted + payload.headers;
        let Some(transport) = at::<Quoted>(ctx, offset) else {
            return Err(malformed);
        };
        // SAFETY: `at` checked the bounds.
        let ports = unsafe { transport.cast::<u32>().read_unaligned() };
        Ok(Self {
            link,
            ip,
            headers,
            length: F::length(ip) as u32,
            icmp,
            quote,
            transport,
            offset,
            tuple: F::tuple(quote, payload.protocol, ports),
        })
    }

    /// Whether the error may be sent on.
    #[inline(always)]
    fn check(&self, ctx: &XdpContext) -> Result<(), DropReason> {
        check_ip::<F>(ctx, self.link, self.ip, self.headers)?;
        if F::ttl(self.ip) <= 1 {
            return Err(DropReason::TtlExpired);
        }
        if self.offset + size_of::<Quoted>() > self.end() {
            return Err(DropReason::IcmpHeader);
        }
        Ok(())
    }

    /// Where the message ends, which the frame may go beyond.
    #[inline(always)]
    fn end(&self) -> usize {
        self.link.payload + self.length as usize
    }

    /// Gives the error other addresses and makes it quote another packet, with one hop
    /// less to go.
    #[inline(always)]
    fn rewrite(&self, ctx: &XdpContext, addresses: &F::Tuple, quote: &F::Tuple) {
        let old = F::tuple(self.ip, F::ICMP, 0);
        let (outer_delta, _) = old.deltas(addresses);
        let (address_delta, tuple_delta) = self.tuple.deltas(quote);
        F::rewrite(self.ip, addresses, outer_delta);
        F::set_addresses(self.quote, quote, address_delta);
        let (src_port, dst_port) = F::ports(quote);
        let (old_src, old_dst) = F::ports(&self.tuple);
        let mut delta = checksum::replace16(old_src, src_port);
        delta += checksum::replace16(old_dst, dst_port);
        // What the header checksum of IPv4 makes up for, the checksum of ICMP does not see.
        if F::COVERS_ADDRESSES {
            delta += u64::from(outer_delta) + u64::from(address_delta);
        }
        // SAFETY: the bounds were checked when the quote was parsed.
        unsafe {
            self.transport
                .cast::<[u16; 2]>()
                .write_unaligned([src_port, dst_port]);
        }
        delta += self.update_quoted_checksum(ctx, tuple_delta);
        // SAFETY: as above.
        unsafe {
            let field = &raw mut (*self.icmp).checksum;
            let sum = field.read_unaligned();
            field.write_unaligned(checksum::update(sum, checksum::fold(delta)));
        }
    }

    /// Updates the checksum in the quoted transport header, if the quote reaches that
    /// far. Returns what that adds to the sum over it.
    #[inline(always)]
    fn update_quoted_checksum(&self, ctx: &XdpContext, delta: u16) -> u64 {
        const OF_TCP: usize = core::mem::offset_of!(TcpHdr, check);
        const OF_UDP: usize = core::mem::offset_of!(UdpHdr, check);
        let is_tcp = F::protocol(&self.tuple) == TCP;
        let offset = self.offset + if is_tcp { OF_TCP } else { OF_UDP };
        if offset + size_of::<u16>() > self.end() {
            return 0;
        }
        let Some(field) = at::<u16>(ctx, offset) else {
            return 0;
        };
        // SAFETY: `at` checked the bounds.
        unsafe {
            let old = field.read_unaligned();
            // Of a datagram, zero says that there is no checksum (RFC 768).
            if old == 0 && !is_tcp {
                return 0;
            }
            let mut new = checksum::update(old, delta);
            if new == 0 && !is_tcp {
                new = 0xffff;
            }
            field.write_unaligned(new);
            checksum::replace16(old, new)
        }
    }

    /// Sends the error by `path`.
    #[inline(always)]
    fn send(&self, ctx: &XdpContext, path: &LinkPath) -> Result<u32, DropReason> {
        self.link.rewrite(ctx, path, 0, self.link.ether_type)?;
        self.link.send(path)
    }
}

/// Sends an error about a packet that a backend sent to a client, translated, to that
/// backend. `sent` is the tuple of the client's packets.
#[inline(always)]
fn to_nat_backend<F: Version>(
    ctx: &XdpContext,
    error: &Error<'_, F>,
    sent: &F::Tuple,
    service: &Service,
) -> Verdict {
    let refused = |reason, backend| Refused::forward(reason, service.id(), backend);
    error.check(ctx).map_err(|reason| refused(reason, 0))?;
    admit::<F>(sent, service).map_err(|reason| refused(reason, 0))?;
    let flow = flow::of_tuple::<F>(sent).ok_or(refused(DropReason::NoFlow, 0))?;
    let id = flow.backend();
    let backend = BACKENDS
        .get(id)
        .ok_or(refused(DropReason::BackendGone, 0))?;
    if backend.state == BackendState::Absent as u8 {
        return Err(refused(DropReason::BackendGone, 0));
    }
    fits(error.length, backend).map_err(|reason| refused(reason, id))?;
    let mut addresses = F::tuple(error.ip, F::ICMP, 0);
    F::set_dst(&mut addresses, &backend.address, 0);
    if service.mode == Mode::FullNat as u8 {
        F::set_src(&mut addresses, &backend.source);
    }
    error.rewrite(ctx, &addresses, &flow.to().reversed());
    let action = error
        .send(ctx, &backend.path)
        .map_err(|reason| refused(reason, id))?;
    count::forwarded(id, u64::from(error.length));
    Ok(action)
}

/// Sends an error about a packet that a backend sent to a client to that backend, as it
/// is: the backend has the service address itself.
#[inline(always)]
fn to_backend<F: Version>(
    ctx: &XdpContext,
    error: &Error<'_, F>,
    sent: &F::Tuple,
    service: &Service,
) -> Verdict {
    let refused = |reason, backend| Refused::forward(reason, service.id(), backend);
    error.check(ctx).map_err(|reason| refused(reason, 0))?;
    admit::<F>(sent, service).map_err(|reason| refused(reason, 0))?;
    let (id, backend) =
        select::known::<F>(sent, service).ok_or(refused(DropReason::NoBackend, 0))?;
    fits(error.length, backend).map_err(|reason| refused(reason, id))?;
    F::decrement_ttl(error.ip);
    let action = if service.mode == Mode::Dsr as u8 {
        error.send(ctx, &backend.path)
    } else {
        let inner = tunnel::Inner::of_length(error.length);
        tunnel::send::<F>(ctx, &inner, sent.hash(), service, id)
    };
    let action = action.map_err(|reason| refused(reason, id))?;
    count::forwarded(id, u64::from(error.length));
    Ok(action)
}

/// Whether a service takes errors about packets to the client that sends it packets with the
/// tuple `sent`. The routers that send them have addresses of their own.
#[inline(always)]
fn admit<F: Version>(sent: &F::Tuple, service: &Service) -> Result<(), DropReason> {
    let (client, _) = F::addresses(sent);
    guard::admit::<F>(client, service)
}

/// Whether an error can go to a backend. Nobody is told of one that can't.
#[inline(always)]
fn fits(length: u32, backend: &Backend) -> Result<(), DropReason> {
    if backend.path.ifindex == 0 {
        return Err(DropReason::NextHopUnresolved);
    }
    if is_too_big(length, backend.mtu) {
        return Err(DropReason::TooBig);
    }
    Ok(())
}

/// Sends an error about a packet that a client sent to a backend, translated, to that
/// client.
#[inline(always)]
fn to_client<F: Version>(ctx: &XdpContext, error: &Error<'_, F>, reply: Flow<F>) -> Verdict {
    let id = reply.backend();
    let refused = |reason| {
        let service = BACKENDS.get(id).map_or(0, |backend| backend.service);
        Refused::reply(reason, service, id)
    };
    error.check(ctx).map_err(refused)?;
    if is_too_big(error.length, reply.mtu()) {
        return Err(refused(DropReason::TooBig));
    }
    let to = reply.to();
    error.rewrite(ctx, to, &to.reversed());
    let action = error.send(ctx, reply.path()).map_err(refused)?;
    count::replied(id, u64::from(error.length));
    Ok(action)
}
