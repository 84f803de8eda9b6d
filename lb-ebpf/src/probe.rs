//! Health checks of services whose backends have the service address: from the daemon's
//! sockets, by an interface that nothing else uses, to the service address on one backend.
//!
//! ```text
//! socket ──> lbprobe0 ══ lbprobe1 ──> here: source and destination ──> as in production
//! socket <── lbprobe0 ══ lbprobe1 <── REPLIES <── the main program <── backend
//! ```

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS},
    programs::XdpContext,
};
use lb_common::{
    addr::LinkPath,
    flow::{FlowKey4, FlowKey6, FlowValue as _, Tuple as _, state},
    probe::{LOCAL, Probe},
    service::Mode,
};

use crate::{
    family::{Draft, Family, Ipv4, Ipv6},
    forward::is_too_big,
    link::Link,
    maps::{BACKENDS, PROBES, clock},
    packet::{Packet, Transport},
    tunnel,
};

/// The path of a packet that a socket of the daemon has sent. What else comes by the
/// interface, of the kernel's own making, goes to the host.
#[inline(always)]
pub fn path<F: Family>(ctx: &XdpContext, link: &Link) -> u32 {
    let Some(ip) = F::header(ctx, link) else {
        return XDP_PASS;
    };
    let Ok(payload) = F::payload(ctx, link.payload, ip) else {
        return XDP_PASS;
    };
    if payload.protocol == F::ICMP {
        return XDP_PASS;
    }
    let Some(transport) = Transport::parse(ctx, link, &payload) else {
        return XDP_PASS;
    };
    let packet = Packet::<F>::new(link, ip, &payload, transport);
    let (_, destination) = F::addresses(&packet.tuple);
    let backend = F::last_bits(destination);
    // The other way round: for the socket.
    if backend == LOCAL {
        return XDP_PASS;
    }
    // SAFETY: the program never writes the table.
    match unsafe { PROBES.get(backend) } {
        Some(probe) => send(ctx, &packet, backend, probe).unwrap_or(XDP_DROP),
        // A check that has just been taken away.
        None => XDP_DROP,
    }
}

#[inline(always)]
fn send<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<'_, F>,
    id: u32,
    probe: &Probe,
) -> Option<u32> {
    let length = packet.check(ctx).ok()?;
    let backend = BACKENDS.get(id)?;
    if backend.path.ifindex == 0 || is_too_big(length, backend.mtu) {
        return None;
    }
    let deltas = F::expect_answer(&packet.tuple, &packet.link.way_back(), id);
    if deltas & DONE == 0 {
        return None;
    }
    // SAFETY: as in `expect_answer`, which has just written it.
    let Draft { flow, .. } = unsafe { &*F::draft()? };
    let to = flow.to();
    F::rewrite(packet.ip, to, deltas as u16);
    let (src_port, dst_port) = F::ports(to);
    packet
        .transport
        .rewrite(src_port, dst_port, (deltas >> 16) as u16);
    if probe.mode == Mode::Dsr as u8 {
        packet
            .link
            .rewrite(ctx, &backend.path, 0, packet.link.ether_type)
            .ok()?;
        return packet.link.send(&backend.path).ok();
    }
    let inner = tunnel::Inner::of_length(length);
    tunnel::wrap_for::<F>(ctx, &inner, to.hash(), probe.mode, id).ok()
}

/// In what [`expect_answer`] returns: it has been done.
const DONE: u64 = 1 << 32;

/// Puts the tuple that a packet of a check gets into the draft, and writes the entry by which
/// the main program knows the answer, and sends it back by `path`. The entry belongs to no
/// backend: no figure has it in it, and the sweep takes it away soon. Returns what rewriting
/// adds to checksums over the addresses, above it the same over the ports too, and [`DONE`].
#[inline(always)]
fn expect_answer<F: Family>(tuple: &F::Tuple, path: &LinkPath, backend: u32) -> Option<u64> {
    // SAFETY: the program never writes the table.
    let probe = unsafe { PROBES.get(backend) }?;
    let draft = F::draft()?;
    // SAFETY: the draft belongs to this CPU, and a program does not migrate or re-enter
    // itself while it runs.
    let Draft {
        flow,
        reply,
        reply_key,
        ..
    } = unsafe { &mut *draft };
    let (entry, from) = reply.parts_mut();
    from.reverse_of(tuple);
    let (_, to) = flow.parts_mut();
    *to = *tuple;
    let (_, port) = F::ports(tuple);
    F::set_dst(to, &probe.service, port);
    F::set_src(to, &probe.source);
    let (address_delta, tuple_delta) = tuple.deltas(to);
    reply_key.reverse_of(to);
    (entry.address_delta, entry.tuple_delta) = reply_key.deltas(from);
    entry.backend = LOCAL;
    entry.last_seen = clock();
    // No partner has to hear of anything.
    entry.state = state::REPLIED | state::CONFIRMED;
    entry.path = *path;
    entry.mtu_or_sequence = 0;
    entry.port_pool = 0;
    F::replies().insert(&*reply_key, &*reply, 0).ok()?;
    Some(u64::from(address_delta) | u64::from(tuple_delta) << 16 | DONE)
}

/// [`expect_answer`] for IPv4; 0 where it is not done.
///
/// A global function, like `ipv6_walk`, which may read what its pointers point to, unless
/// they are null. Its frame is gone when the packet is wrapped.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn expect_answer_v4(
    tuple: *const FlowKey4,
    path: *const LinkPath,
    backend: u32,
) -> u64 {
    // SAFETY: the verifier checks what callers pass.
    let (Some(tuple), Some(path)) = (unsafe { tuple.as_ref() }, unsafe { path.as_ref() }) else {
        return 0;
    };
    expect_answer::<Ipv4>(tuple, path, backend).unwrap_or(0)
}

/// [`expect_answer`] for IPv6, like [`expect_answer_v4`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn expect_answer_v6(
    tuple: *const FlowKey6,
    path: *const LinkPath,
    backend: u32,
) -> u64 {
    // SAFETY: as in `expect_answer_v4`.
    let (Some(tuple), Some(path)) = (unsafe { tuple.as_ref() }, unsafe { path.as_ref() }) else {
        return 0;
    };
    expect_answer::<Ipv6>(tuple, path, backend).unwrap_or(0)
}
