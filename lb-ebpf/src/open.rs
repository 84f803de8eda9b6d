//! How a translated flow begins: its source port, and its two entries.

use core::ffi::c_void;

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_loop};
use lb_common::{
    addr::LinkPath,
    backend::Backend,
    drop_reason::DropReason,
    flow::{FlowEntry, FlowKey4, FlowKey6, FlowValue as _, Tuple as _, state},
    service::{Mode, Service},
};

use crate::{
    count, embryonic,
    family::{Draft, Family, Ipv4, Ipv6},
    flow::{self, EXISTS, Flow},
    maps::{BACKENDS, clock},
    outcome,
    packet::Packet,
    ports, select, service,
};

/// Source ports tried for one flow before it is refused. Only a tuple that is
/// taken costs a try.
const ATTEMPTS: u32 = 4;
/// Flows that are looked at for one that gives up its source port.
const CANDIDATES: u32 = 44;
/// So many of them stand side by side. Connections that began together do too, and are there
/// for long: behind these the next ones are twice as far each time, up to [`FARTHEST`], and
/// back by halves from the first that would give up its port to where those begin. Flows
/// that were passed over would be the youngest when it is their turn again.
const NEIGHBOURS: u32 = 8;
/// See [`NEIGHBOURS`].
const FARTHEST: u32 = 12;

/// Begins the flow of a packet from a client: chooses a backend, unless one is `named`, and
/// writes both entries.
#[inline(always)]
pub fn flow<F: Family>(
    packet: &Packet<'_, F>,
    service: &Service,
    named: u32,
) -> Result<(Flow<F>, &'static Backend), (DropReason, u32)> {
    const EXHAUSTED: u32 = DropReason::SourcePortsExhausted as u32;
    let (id, backend) = select::of_new::<F>(&packet.tuple, service, named)?;
    let path = packet.link.way_back();
    let service = service::word(service);
    let flags = packet.transport.flags as u32;
    let mut refused = F::write_entries(&packet.tuple, &path, service, id, flags);
    if refused == EXHAUSTED && (F::take_over(id) != 0 || ports::look_again(backend)) {
        refused = F::write_entries(&packet.tuple, &path, service, id, flags);
    }
    match refused {
        0 => {}
        EXHAUSTED => return Err((DropReason::SourcePortsExhausted, id)),
        TAKEN => return Err((DropReason::ReplyTupleTaken, id)),
        _ => return Err((DropReason::FlowTableFull, id)),
    }
    let flow = flow::of_tuple::<F>(&packet.tuple).ok_or((DropReason::FlowTableFull, id))?;
    Ok((flow, backend))
}

const TAKEN: u32 = DropReason::ReplyTupleTaken as u32;

/// [`write_entries`] for IPv4: 0, or the number of the reason why not.
///
/// A global function, like `ipv6_walk`, which may read what its pointers point to, unless
/// they are null.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn write_entries_v4(
    tuple: *const FlowKey4,
    path: *const LinkPath,
    service: u64,
    backend: u32,
    flags: u32,
) -> u32 {
    // SAFETY: the verifier checks what callers pass.
    let (Some(tuple), Some(path)) = (unsafe { tuple.as_ref() }, unsafe { path.as_ref() }) else {
        return DropReason::FlowTableFull as u32;
    };
    number(write_entries::<Ipv4>(tuple, path, service, backend, flags))
}

/// [`write_entries`] for IPv6, like [`write_entries_v4`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn write_entries_v6(
    tuple: *const FlowKey6,
    path: *const LinkPath,
    service: u64,
    backend: u32,
    flags: u32,
) -> u32 {
    // SAFETY: as in `write_entries_v4`.
    let (Some(tuple), Some(path)) = (unsafe { tuple.as_ref() }, unsafe { path.as_ref() }) else {
        return DropReason::FlowTableFull as u32;
    };
    number(write_entries::<Ipv6>(tuple, path, service, backend, flags))
}

#[inline(always)]
fn number(result: Result<(), DropReason>) -> u32 {
    match result {
        Ok(()) => 0,
        Err(reason) => reason as u32,
    }
}

/// Puts together the entries of a new flow, all but the source port and what depends on
/// it. A call of its own, whose frame is gone when ports are taken.
#[inline(never)]
fn draft_entries<F: Family>(
    tuple: &F::Tuple,
    path: &LinkPath,
    full_nat: bool,
    id: u32,
    backend: &Backend,
) {
    let Some(draft) = F::draft() else {
        return;
    };
    // SAFETY: the draft belongs to this CPU, and a program does not migrate or
    // re-enter itself while it runs.
    let Draft {
        flow,
        reply,
        reply_key,
        ..
    } = unsafe { &mut *draft };
    let (flow_entry, to) = flow.parts_mut();
    let (reply_entry, from) = reply.parts_mut();
    from.reverse_of(tuple);
    *to = *tuple;
    let (_, dst_port) = F::ports(tuple);
    let keeps_port = backend.port == 0;
    let port = if keeps_port { dst_port } else { backend.port };
    F::set_dst(to, &backend.address, port);
    if full_nat {
        F::set_src(to, &backend.source);
    }
    reply_key.reverse_of(to);
    let mtu = flow::mtu(path);
    let fill = |entry: &mut FlowEntry| {
        entry.backend = id;
        entry.last_seen = clock();
        entry.state = 0;
        entry.path = *path;
        entry.mtu_or_sequence = mtu;
        entry.port_pool = if full_nat { backend.port_pool } else { 0 };
    };
    fill(flow_entry);
    fill(reply_entry);
}

/// Writes the entry for replies, which leave by `path`, and then the one for the client's
/// packets, so that a reply never comes before its entry. The service is given as a word; the flags are
/// those of TCP, 0 for UDP.
#[inline(always)]
fn write_entries<F: Family>(
    tuple: &F::Tuple,
    path: &LinkPath,
    service: u64,
    id: u32,
    flags: u32,
) -> Result<(), DropReason> {
    let service = service::of_word(service);
    let full_nat = service.mode == Mode::FullNat as u8;
    let (Some(draft), Some(backend)) = (F::draft(), BACKENDS.get(id)) else {
        return Err(DropReason::FlowTableFull);
    };
    draft_entries::<F>(tuple, path, full_nat, id, backend);
    // SAFETY: as in `draft_entries`.
    let Draft {
        flow,
        reply,
        reply_key,
        key,
        taken_over,
        ..
    } = unsafe { &mut *draft };
    *key = *tuple;
    let (flow_entry, to) = flow.parts_mut();
    let (src_port, _) = F::ports(tuple);
    let mut taken = src_port;
    if full_nat && *taken_over != 0 {
        taken = core::mem::take(taken_over).to_be();
    } else if full_nat {
        taken = ports::take(backend)
            .ok_or(DropReason::SourcePortsExhausted)?
            .to_be();
    }
    // A flow that gets no port takes no place from another.
    let place = embryonic::place::<F>();
    let watched = outcome::state_of_new(&service, flags);
    flow_entry.state = watched | place << state::PLACE;
    F::enter_embryonic(tuple, place);
    let mut inserted = Err(EXISTS);
    for attempt in 0..ATTEMPTS {
        if full_nat && attempt != 0 {
            taken = ports::take(backend)
                .ok_or(DropReason::SourcePortsExhausted)?
                .to_be();
        } else if attempt != 0 {
            // The client uses one port towards two services that share this
            // backend. Another source port keeps the two apart, as Linux's own
            // NAT does it.
            taken = other_port(tuple.hash(), attempt);
        }
        F::set_src_port(to, taken);
        F::set_dst_port(reply_key, taken);
        let (entry, from) = reply.parts_mut();
        (entry.address_delta, entry.tuple_delta) = reply_key.deltas(from);
        inserted = F::replies().insert(&*reply_key, &*reply, u64::from(BPF_NOEXIST));
        // The bit of a port whose tuple another pool has taken stays set until the
        // daemon's sweep finds it without a flow.
        if inserted != Err(EXISTS) {
            break;
        }
    }
    match inserted {
        Ok(()) => {}
        Err(EXISTS) => return Err(DropReason::ReplyTupleTaken),
        Err(_full) => {
            if full_nat {
                ports::give_back(backend.port_pool, u16::from_be(taken));
            }
            return Err(DropReason::FlowTableFull);
        }
    }
    (flow_entry.address_delta, flow_entry.tuple_delta) = tuple.deltas(to);
    let pool = flow_entry.port_pool;
    match F::flows().insert(&*key, &*flow, u64::from(BPF_NOEXIST)) {
        Ok(()) => {
            count::began(id);
            count::opened(id, 0, false);
            outcome::begun(watched, id);
            Ok(())
        }
        Err(error) => {
            flow::release::<F>(reply_key, pool, taken);
            // Another CPU was quicker with a packet of the same flow: theirs it is.
            if error == EXISTS {
                Ok(())
            } else {
                Err(DropReason::FlowTableFull)
            }
        }
    }
}

/// A port (network byte order) from 32768 on, another one for each attempt.
#[inline(always)]
fn other_port(hash: u32, attempt: u32) -> u16 {
    (0x8000 | (hash >> attempt) as u16).to_be()
}

/// A search for a flow that gives up its source port. In the order of C: the compiler sets two
/// words to zero by one store, which the verifier refuses across a multiple of eight bytes.
#[repr(C)]
struct Candidates<F: Family> {
    draft: *mut Draft<F::Flow, F::FragmentKey>,
    range: ports::Range,
    /// The port that was taken over, 0 before.
    taken: u16,
    /// The port whose flow is looked at next.
    port: u16,
    /// Ports between that and the last one that was looked at, which was of no use.
    stride: u16,
    /// A port further on whose flow would give it up, 0 before there is one.
    found: u16,
}

/// Takes a source port over from a flow to the same backend that is not confirmed, for the
/// flow in the draft, where it is kept. Returns 0 if all that were looked at are confirmed.
#[inline(always)]
fn take_over<F: Family>(backend: u32) -> u32 {
    let (Some(draft), Some(backend)) = (F::draft(), BACKENDS.get(backend)) else {
        return 0;
    };
    let Some(range) = ports::Range::of(backend) else {
        return 0;
    };
    let mut candidates = Candidates::<F> {
        draft,
        port: range.oldest() as u16,
        range,
        stride: 0,
        found: 0,
        taken: 0,
    };
    // SAFETY: `look_at` has the signature that the helper calls, and `candidates` outlives
    // the call.
    unsafe {
        bpf_loop(
            CANDIDATES,
            look_at::<F> as *mut c_void,
            (&raw mut candidates).cast::<c_void>(),
            0,
        );
    }
    let next = if candidates.taken == 0 {
        candidates.port
    } else {
        candidates.taken.wrapping_add(1)
    };
    candidates.range.set_oldest(next);
    // SAFETY: as in `write_entries`.
    unsafe { (*draft).taken_over = candidates.taken };
    candidates.taken.into()
}

/// Looks at one flow. Returns 1 to end the loop, 0 to go on.
unsafe extern "C" fn look_at<F: Family>(index: u32, candidates: *mut Candidates<F>) -> i64 {
    // SAFETY: `take_over` passes its own.
    let candidates = unsafe { &mut *candidates };
    // SAFETY: as in `write_entries`.
    let Draft {
        flow,
        reply_key,
        victim,
        ..
    } = unsafe { &mut *candidates.draft };
    let port = candidates.port;
    let (_, to) = flow.parts_mut();
    F::set_src_port(to, port.to_be());
    F::set_dst_port(reply_key, port.to_be());
    let mut is_candidate = false;
    if let Some(reply) = flow::of_reply::<F>(reply_key)
        && reply.port_pool() == candidates.range.pool
    {
        victim.reverse_of(reply.to());
        if let Some(flow) = flow::of_tuple::<F>(victim)
            && flow.state() & state::CONFIRMED == 0
        {
            is_candidate = true;
            if candidates.stride == 0 && flow::seize(&*victim, flow).is_some() {
                candidates.taken = port;
                return 1;
            }
        }
    }
    if is_candidate && candidates.stride != 0 {
        candidates.found = port;
    }
    if candidates.found != 0 && candidates.stride != 0 {
        candidates.stride /= 2;
        candidates.port = candidates.found - candidates.stride;
        return 0;
    }
    candidates.found = 0;
    let ahead = index.saturating_sub(NEIGHBOURS).min(FARTHEST);
    let next = candidates.range.behind(port.into(), 1 << ahead);
    candidates.port = next as u16;
    // Behind the last port comes the first, and nothing between them.
    candidates.stride = next.saturating_sub(u32::from(port) + 1) as u16;
    0
}

/// [`take_over`] for IPv4.
///
/// A global function, like `ipv6_walk`.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn take_over_v4(backend: u32) -> u32 {
    take_over::<Ipv4>(backend)
}

/// [`take_over`] for IPv6, like [`take_over_v4`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn take_over_v6(backend: u32) -> u32 {
    take_over::<Ipv6>(backend)
}
