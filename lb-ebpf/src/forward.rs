//! Sending a packet on: to a backend, or back to its client.

use aya_ebpf::{bindings::xdp_action::XDP_PASS, programs::XdpContext};
use lb_common::{
    backend::Backend,
    drop_reason::DropReason,
    flow::Tuple,
    service::{Mode, Service},
};

use crate::{
    count,
    family::Family,
    flow::{self, Flow},
    guard,
    maps::BACKENDS,
    mss, outcome,
    packet::{Packet, Part, tcp},
    quic, select, service, tunnel,
    verdict::{Refused, Verdict, conclude},
};

/// What becomes of a packet of TCP or UDP.
#[inline(always)]
pub fn packet<F: Family>(ctx: &XdpContext, packet: &Packet<'_, F>) -> u32 {
    let service = service::find::<F>(&packet.tuple);
    let verdict = if service.id != 0 {
        to_backend(ctx, packet, &service)
    } else if service::may_be_reply::<F>(&packet.tuple)
        && let Some(reply) = flow::of_reply::<F>(&packet.tuple)
    {
        to_client(ctx, packet, reply)
    } else if service::refuses::<F>(&packet.tuple) {
        Err(Refused::unknown(DropReason::NoService))
    } else {
        return XDP_PASS;
    };
    conclude(ctx, verdict)
}

/// A packet from a client to a service.
#[inline(always)]
fn to_backend<F: Family>(ctx: &XdpContext, packet: &Packet<'_, F>, service: &Service) -> Verdict {
    let length = packet
        .check(ctx)
        .map_err(|reason| Refused::forward(reason, service.id(), 0))?;
    let (client, _) = F::addresses(&packet.tuple);
    guard::admit::<F>(client, service)
        .map_err(|reason| Refused::forward(reason, service.id(), 0))?;
    let named = quic::named(ctx, packet, service, length);
    let refused = |(reason, id)| Refused::forward(reason, service.id(), id).with_reset::<F>(packet);
    let (id, action) = if Mode::translates(service.mode) {
        let (flow, backend) = flow::of_client(ctx, packet, service, named).map_err(refused)?;
        let id = flow.backend();
        fits(packet, service, id, backend, length)?;
        mss::clamp(ctx, packet, backend);
        (id, translate(ctx, packet, flow, backend))
    } else {
        let (id, backend) = select::of_packet(packet, service, named).map_err(refused)?;
        fits(packet, service, id, backend, length)?;
        mss::clamp(ctx, packet, backend);
        if service.flags & Service::TRACKED == 0 {
            seen(packet, service, id);
        }
        (id, direct(ctx, packet, service, id, backend, length))
    };
    let action = action.map_err(|reason| Refused::forward(reason, service.id(), id))?;
    count::forwarded(id, u64::from(length));
    Ok(action)
}

/// Whether a packet can go to a backend: the way is known, and wide enough.
#[inline(always)]
fn fits<F: Family>(
    packet: &Packet<'_, F>,
    service: &Service,
    id: u32,
    backend: &Backend,
    length: u32,
) -> Result<(), Refused> {
    if backend.path.ifindex == 0 {
        return Err(Refused::forward(
            DropReason::NextHopUnresolved,
            service.id(),
            id,
        ));
    }
    if is_too_big(length, backend.mtu) {
        let refused = Refused::forward(DropReason::TooBig, service.id(), id);
        return Err(refused.with_mtu(packet.part, backend.mtu));
    }
    Ok(())
}

/// Gives a packet the tuple of its flow and sends it to the flow's backend.
#[inline(always)]
fn translate<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<'_, F>,
    flow: Flow<F>,
    backend: &Backend,
) -> Result<u32, DropReason> {
    rewrite(packet, flow);
    packet
        .link
        .rewrite(ctx, &backend.path, 0, packet.link.ether_type)?;
    packet.link.send(&backend.path)
}

/// Sends a packet to a backend that has the service address itself.
#[inline(always)]
fn direct<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<'_, F>,
    service: &Service,
    id: u32,
    backend: &Backend,
    length: u32,
) -> Result<u32, DropReason> {
    F::decrement_ttl(packet.ip);
    if service.mode != Mode::Dsr as u8 {
        let inner = tunnel::Inner::of_packet(packet, length);
        return tunnel::send::<F>(ctx, &inner, packet.tuple.hash(), service, id);
    }
    packet
        .link
        .rewrite(ctx, &backend.path, 0, packet.link.ether_type)?;
    packet.link.send(&backend.path)
}

/// Counts what a packet tells of its flow, of which nothing is kept.
#[inline(always)]
fn seen<F: Family>(packet: &Packet<'_, F>, service: &Service, backend: u32) {
    let flags = packet.transport.flags & (tcp::SYN | tcp::ACK | tcp::FIN | tcp::RST);
    if flags & !tcp::ACK != 0 {
        count_seen(backend, flags as u32, u32::from(service.flags));
    }
}

/// Counts what a packet with these TCP flags tells of a flow of a service with these flags. A
/// global function, like `ipv6_walk`: what is rare and has many ways through it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn count_seen(backend: u32, flags: u32, service_flags: u32) -> u32 {
    let flags = u64::from(flags);
    if tcp::opens(flags) {
        count::began(backend);
        outcome::of_client(service_flags as u8, flags, backend);
    }
    if flags & (tcp::FIN | tcp::RST) != 0 {
        count::ended(backend);
    }
    0
}

/// A packet from a backend to a client.
#[inline(always)]
fn to_client<F: Family>(ctx: &XdpContext, packet: &Packet<'_, F>, reply: Flow<F>) -> Verdict {
    let id = reply.backend();
    let refused = |reason| {
        let service = BACKENDS.get(id).map_or(0, |backend| backend.service);
        Refused::reply(reason, service, id)
    };
    let length = packet.check(ctx).map_err(refused)?;
    if flow::resets_reply(packet, reply) {
        return Err(refused(DropReason::Drained).with_reset(packet));
    }
    if is_too_big(length, reply.mtu()) {
        return Err(refused(DropReason::TooBig).with_mtu(packet.part, reply.mtu()));
    }
    flow::replied(ctx, packet, reply);
    if packet.transport.flags & tcp::SYN != 0
        && let Some(backend) = BACKENDS.get(id)
    {
        mss::clamp(ctx, packet, backend);
    }
    rewrite(packet, reply);
    let path = reply.path();
    let sent = packet
        .link
        .rewrite(ctx, path, 0, packet.link.ether_type)
        .and_then(|_| packet.link.send(path));
    let action = sent.map_err(refused)?;
    count::replied(id, u64::from(length));
    Ok(action)
}

/// Whether a packet is larger than a way takes; 0 for no limit.
#[inline(always)]
pub fn is_too_big(length: u32, mtu: u32) -> bool {
    mtu != 0 && length > mtu
}

/// Gives the packet the addresses and ports of its flow, with one hop less to go
/// and checksums that are as right or wrong as they were.
#[inline(always)]
fn rewrite<F: Family>(packet: &Packet<'_, F>, flow: Flow<F>) {
    let (address_delta, tuple_delta) = flow.deltas();
    F::rewrite(packet.ip, flow.to(), address_delta);
    if packet.part != Part::Later {
        let (src_port, dst_port) = F::ports(flow.to());
        packet.transport.rewrite(src_port, dst_port, tuple_delta);
    }
}
