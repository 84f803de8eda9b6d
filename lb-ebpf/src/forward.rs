//! Sending a packet on: to the backend of its flow, or back to its client.

use aya_ebpf::programs::XdpContext;
use lb_common::{drop_reason::DropReason, service::Service};

use crate::{
    count,
    family::Family,
    flow::{self, Flow},
    maps::BACKENDS,
    packet::Packet,
    verdict::{Refused, Verdict},
};

/// A packet from a client to a service.
#[inline(always)]
pub fn to_backend<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<'_, F>,
    service: &Service,
) -> Verdict {
    let length = packet
        .check(ctx)
        .map_err(|reason| Refused::forward(reason, service.id, 0))?;
    let (flow, backend) = flow::of_client(packet, service)
        .map_err(|(reason, backend)| Refused::forward(reason, service.id, backend))?;
    let id = flow.backend();
    let refused = |reason| Refused::forward(reason, service.id, id);
    if backend.path.ifindex == 0 {
        return Err(refused(DropReason::NextHopUnresolved));
    }
    if too_big(length, backend.mtu) {
        return Err(refused(DropReason::TooBig));
    }
    rewrite(packet, flow);
    let action = packet.link.transmit(ctx, &backend.path).map_err(refused)?;
    count::forwarded(id, u64::from(length));
    Ok(action)
}

/// A packet from a backend to a client.
#[inline(always)]
pub fn to_client<F: Family>(ctx: &XdpContext, packet: &Packet<'_, F>, reply: Flow<F>) -> Verdict {
    let id = reply.backend();
    let refused = |reason| {
        let service = BACKENDS.get(id).map_or(0, |backend| backend.service);
        Refused::reply(reason, service, id)
    };
    let length = packet.check(ctx).map_err(refused)?;
    if too_big(length, reply.mtu()) {
        return Err(refused(DropReason::TooBig));
    }
    flow::replied(packet, reply);
    rewrite(packet, reply);
    let action = packet.link.transmit(ctx, reply.path()).map_err(refused)?;
    count::replied(id, u64::from(length));
    Ok(action)
}

#[inline(always)]
fn too_big(length: u32, mtu: u32) -> bool {
    mtu != 0 && length > mtu
}

/// Gives the packet the addresses and ports of its flow, with one hop less to go
/// and checksums that are as right or wrong as they were.
#[inline(always)]
fn rewrite<F: Family>(packet: &Packet<'_, F>, flow: Flow<F>) {
    let (address_delta, tuple_delta) = flow.deltas();
    F::rewrite(packet, flow.to(), address_delta);
    let (src_port, dst_port) = F::ports(flow.to());
    packet.transport.rewrite(src_port, dst_port, tuple_delta);
}
