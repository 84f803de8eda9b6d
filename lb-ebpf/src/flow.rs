//! Which flow, and so which backend: known flows, and how they end.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    Runtime,
    addr::LinkPath,
    backend::{Backend, BackendState},
    drop_reason::DropReason,
    flow::{FlowEntry, FlowValue, Tuple, state},
    ring::NO_BACKEND,
    service::{Mode, Scheduler, Service},
};

use crate::{
    atomic::fetch_or_u32,
    count,
    family::Family,
    maps::{BACKENDS, INTERFACES, clock, switches},
    open, outcome,
    packet::{Packet, Part, Transport, at, tcp},
    ports,
};

/// `EEXIST`, as `bpf_map_update_elem` returns it.
pub const EXISTS: i32 = -17;

/// An entry of a flow table.
pub struct Flow<F: Family>(*mut F::Flow);

impl<F: Family> Clone for Flow<F> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: Family> Copy for Flow<F> {}

impl<F: Family> Flow<F> {
    /// All but the tuple. It stands first in the value.
    #[inline(always)]
    fn entry(self) -> *mut FlowEntry {
        self.0.cast()
    }

    /// The tuple that packets are rewritten to.
    #[inline(always)]
    pub fn to(&self) -> &F::Tuple {
        // SAFETY: the pointer is a map value of a preallocated table; should the
        // entry be deleted meanwhile, it still reads as some flow's.
        unsafe { (*self.0).to() }
    }

    /// Id of the backend.
    #[inline(always)]
    pub fn backend(self) -> u32 {
        // SAFETY: as in `to`.
        unsafe { (*self.entry()).backend }
    }

    /// How replies leave.
    #[inline(always)]
    pub fn path(&self) -> &LinkPath {
        // SAFETY: as in `to`.
        unsafe { &(*self.entry()).path }
    }

    /// Id of the port pool that the source port is of, 0 for none.
    #[inline(always)]
    pub fn port_pool(self) -> u32 {
        // SAFETY: as in `to`.
        unsafe { (*self.entry()).port_pool }
    }

    /// Of replies: largest IP packet that leaves by the path, 0 for no limit.
    #[inline(always)]
    pub fn mtu(self) -> u32 {
        // SAFETY: as in `to`.
        unsafe { (*self.entry()).mtu_or_sequence }
    }

    /// Of the client's packets, TCP: the sequence number that confirms the flow.
    #[inline(always)]
    fn sequence(self) -> u32 {
        // SAFETY: as in `to`.
        unsafe { (*self.entry()).mtu_or_sequence }
    }

    /// Sets [`Self::sequence`].
    #[inline(always)]
    fn set_sequence(self, sequence: u32) {
        // SAFETY: as in `to`; the word is stored whole.
        unsafe { (*self.entry()).mtu_or_sequence = sequence };
    }

    /// What rewriting adds to checksums over the addresses, and over the ports too.
    #[inline(always)]
    pub fn deltas(self) -> (u16, u16) {
        // SAFETY: as in `to`.
        unsafe { ((*self.entry()).address_delta, (*self.entry()).tuple_delta) }
    }

    /// Notes that the flow has spoken. Written only when the clock has moved, so
    /// that CPUs that share a flow do not fight for its cache line.
    #[inline(always)]
    pub fn touch(self) {
        let now = clock();
        // SAFETY: as in `to`; every writer stores the same value.
        unsafe {
            if (*self.entry()).last_seen != now {
                (*self.entry()).last_seen = now;
            }
        }
    }

    /// Bits of [`state`].
    #[inline(always)]
    pub fn state(self) -> u32 {
        // SAFETY: as in `to`.
        unsafe { (&raw const (*self.entry()).state).read_volatile() }
    }

    /// Adds bits to the state of this entry alone, and returns what it was.
    #[inline(always)]
    fn set(self, bits: u32) -> u32 {
        // SAFETY: as in `to`.
        unsafe { fetch_or_u32(&raw mut (*self.entry()).state, bits) }
    }

    /// Adds bits to the state of the entry in `FLOWS_*`. Whoever closes the flow counts
    /// its end. Returns what the state was.
    #[inline(always)]
    fn advance(self, bits: u32) -> u32 {
        advance(self.entry(), bits)
    }

    /// Adds bits to the state of the entry in `FLOWS_*`, and counts what they make of an open
    /// flow. Returns what the state was.
    #[inline(always)]
    fn change(self, bits: u32) -> u32 {
        change(self.entry(), bits)
    }
}

/// The bits that a packet adds to the state of its flow.
#[inline(always)]
fn observed(transport: &Transport, fin: u32) -> u32 {
    let mut bits = 0;
    if transport.flags & tcp::FIN != 0 {
        bits |= fin;
    }
    if transport.flags & tcp::RST != 0 {
        bits |= state::RST;
    }
    bits
}

/// The flow of packets with `tuple` from a backend.
#[inline(always)]
pub fn of_reply<F: Family>(tuple: &F::Tuple) -> Option<Flow<F>> {
    F::replies().get_ptr_mut(tuple).map(Flow)
}

/// The flow of packets with `tuple` from a client.
#[inline(always)]
pub fn of_tuple<F: Family>(tuple: &F::Tuple) -> Option<Flow<F>> {
    F::flows().get_ptr_mut(tuple).map(Flow)
}

/// Notes what a packet from a backend tells of its flow. The entry in `FLOWS_*` is
/// looked up only when there is news, or the client has to acknowledge it yet.
#[inline(always)]
pub fn replied<F: Family>(ctx: &XdpContext, packet: &Packet<'_, F>, reply: Flow<F>) {
    reply.touch();
    let bits = state::REPLIED | observed(&packet.transport, state::FIN_BACKEND);
    let awaited = if packet.transport.is_tcp {
        state::CONFIRMED
    } else {
        0
    };
    if reply.state() & (bits | awaited) == bits | awaited {
        return;
    }
    reply.set(bits);
    if let Some(flow) = of_tuple::<F>(&reply.to().reversed()) {
        if packet.transport.is_tcp
            && packet.part != Part::Later
            && flow.state() & state::CONFIRMED == 0
        {
            let syn = u32::from(packet.transport.flags & tcp::SYN != 0);
            flow.set_sequence(sequence(ctx, packet, SEQUENCE).wrapping_add(syn));
        }
        tell(flow.entry(), bits, packet.transport.flags as u32);
    }
}

/// Adds what a packet tells to the state of its flow, and counts what follows. The TCP flags are
/// those of one from a backend, 0 for one from a client. A global function, like `ipv6_walk`: few
/// packets bring news, and there are many ways through this.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn tell(entry: *mut FlowEntry, bits: u32, flags: u32) -> u32 {
    if entry.is_null() {
        return 0;
    }
    let old = advance(entry, bits);
    // SAFETY: the verifier checks that callers pass a whole entry.
    outcome::replied(u64::from(flags), old, unsafe { (*entry).backend });
    old
}

/// Adds bits to the state of an entry in `FLOWS_*`, which must not be null. Whoever closes the
/// flow counts its end. Returns what the state was.
#[inline(always)]
fn advance(entry: *mut FlowEntry, bits: u32) -> u32 {
    let old = change(entry, bits);
    if !state::is_closed(old) && state::is_closed(old | bits) {
        // SAFETY: as in `Flow::to`.
        count::ended(unsafe { (*entry).backend });
    }
    old
}

/// Adds bits to the state of an entry in `FLOWS_*`, which must not be null, and counts what they
/// make of an open flow. Returns what the state was.
#[inline(always)]
fn change(entry: *mut FlowEntry, bits: u32) -> u32 {
    // SAFETY: as in `Flow::to`.
    let (old, backend) = unsafe {
        (
            fetch_or_u32(&raw mut (*entry).state, bits),
            (*entry).backend,
        )
    };
    let new = old | bits;
    let (before, after) = (state::is_closed(old), state::is_closed(new));
    count::moved(backend, (old, before), (new, after));
    old
}

/// Offset of the sequence number in a TCP header.
const SEQUENCE: usize = 4;
/// Offset of the acknowledgement number.
const ACKNOWLEDGEMENT: usize = 8;
/// How far the acknowledgement of a client may be behind what its backend sent first:
/// a packet that confirms a flow without having seen an answer would have to guess 16 bits.
const CONFIRMING: u32 = 1 << 16;

/// A field of a TCP header, host byte order.
#[inline(always)]
fn sequence<F: Family>(ctx: &XdpContext, packet: &Packet<'_, F>, field: usize) -> u32 {
    match at::<u32>(ctx, packet.link.payload + packet.headers + field) {
        // SAFETY: `at` checked the bounds.
        Some(word) => u32::from_be(unsafe { word.read_unaligned() }),
        None => 0,
    }
}

/// Confirms a flow if its client's packet shows that it gets answers. Returns whether the
/// flow is still there.
#[inline(always)]
fn confirm<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<'_, F>,
    service: &Service,
    flow: Flow<F>,
) -> bool {
    let state = flow.state();
    if state & (state::REPLIED | state::CONFIRMED) != state::REPLIED || packet.part == Part::Later {
        return state & state::EVICTED == 0 || state & state::CONFIRMED != 0;
    }
    if packet.transport.is_tcp {
        let behind = sequence(ctx, packet, ACKNOWLEDGEMENT).wrapping_sub(flow.sequence());
        if packet.transport.flags & tcp::ACK == 0 || behind >= CONFIRMING {
            return true;
        }
    }
    let old = flow.change(state::CONFIRMED);
    if old & state::EVICTED != 0 {
        return false;
    }
    if old & state::CONFIRMED == 0 {
        if let Some(reply) = of_reply::<F>(&flow.to().reversed()) {
            reply.set(state::CONFIRMED);
        }
        if service.flags & Service::AFFINE != 0 {
            F::note_client(&packet.tuple, service.id(), flow.backend(), true);
        }
    }
    true
}

/// The flow of a packet from a client and its backend, which is the one that is `named` unless
/// that is [`NO_BACKEND`]. A packet that begins a flow gets one; of a flow that can't go on,
/// the entries are taken away.
#[inline(always)]
pub fn of_client<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<'_, F>,
    service: &Service,
    named: u32,
) -> Result<(Flow<F>, &'static Backend), (DropReason, u32)> {
    let mut refusal = DropReason::NoFlow;
    if let Some(flow) = of_tuple::<F>(&packet.tuple) {
        if (named == NO_BACKEND || named == flow.backend())
            && let Some(backend) = BACKENDS.get(flow.backend())
            && goes_on(packet, flow, backend)
        {
            if flow.state() & state::CONFIRMED == 0 && !confirm(ctx, packet, service, flow) {
                return Err((DropReason::NoFlow, 0));
            }
            flow.touch();
            spoke(packet, flow);
            if !packet.link.came_from(flow.path()) {
                turn(packet, flow);
            }
            return Ok((flow, backend));
        }
        if is_reset(packet, flow.backend()) && !tcp::opens(packet.transport.flags) {
            return Err((DropReason::Drained, flow.backend()));
        }
        close(packet, flow);
        refusal = DropReason::BackendGone;
    }
    if !may_begin(packet, service) {
        return Err((refusal, 0));
    }
    let (flow, backend) = open::flow(packet, service, named)?;
    // The FIN of a connection whose entry was lost begins a flow.
    spoke(packet, flow);
    Ok((flow, backend))
}

/// Notes what a packet from a client tells of its flow.
#[inline(always)]
fn spoke<F: Family>(packet: &Packet<'_, F>, flow: Flow<F>) {
    let bits = observed(&packet.transport, state::FIN_CLIENT);
    if bits != 0 {
        tell(flow.entry(), bits, 0);
    }
}

/// Whether a known flow stays with its backend.
#[inline(always)]
fn goes_on<F: Family>(packet: &Packet<'_, F>, flow: Flow<F>, backend: &Backend) -> bool {
    const UP: u8 = BackendState::Up as u8;
    const DOWN: u8 = BackendState::Down as u8;
    const RESETTING: u8 = BackendState::Resetting as u8;
    let state = flow.state();
    // The client uses the ports of a connection that has ended again.
    let again = tcp::opens(packet.transport.flags) && state::is_closed(state);
    let unanswered = tcp::opens(packet.transport.flags) && state & state::REPLIED == 0;
    match backend.state {
        UP => !again,
        DOWN => packet.transport.is_tcp && !again && !unanswered,
        // The other side is to hear of the end, too.
        RESETTING => packet.transport.flags & tcp::RST != 0,
        _ => false,
    }
}

/// Whether the flow of a packet, to or from this backend, has no more than an RST to expect.
#[inline(always)]
fn is_reset<F: Family>(packet: &Packet<'_, F>, backend: u32) -> bool {
    packet.transport.is_tcp
        && BACKENDS
            .get(backend)
            .is_some_and(|backend| backend.state == BackendState::Resetting as u8)
}

/// Whether the flow of a packet from a backend is reset. The other side is to hear of an RST,
/// too.
#[inline(always)]
pub fn resets_reply<F: Family>(packet: &Packet<'_, F>, reply: Flow<F>) -> bool {
    switches() & Runtime::RESETTING != 0
        && packet.transport.flags & tcp::RST == 0
        && is_reset(packet, reply.backend())
}

/// Ends the flow of a packet with `tuple`, from its client or from its backend. Returns the
/// entry of its packets if the other side has not been told, and knows of the flow.
#[inline(always)]
pub fn reset<F: Family>(tuple: &F::Tuple, is_reply: bool) -> Option<Flow<F>> {
    const TOLD: u32 = state::RST | state::CONFIRMED;
    let (entry, flow) = if is_reply {
        let reply = of_reply::<F>(tuple)?;
        reply.set(state::RST);
        (reply, of_tuple::<F>(&reply.to().reversed())?)
    } else {
        let flow = of_tuple::<F>(tuple)?;
        (flow, flow)
    };
    entry.touch();
    let old = flow.advance(state::RST);
    (old & TOLD == state::CONFIRMED).then_some(entry)
}

/// Whether a packet without a flow may begin one. With full NAT only a SYN does: a
/// connection from before could not be continued from another source port. With
/// NAT the ring still knows the backend of a connection whose entry was lost.
#[inline(always)]
fn may_begin<F: Family>(packet: &Packet<'_, F>, service: &Service) -> bool {
    let flags = packet.transport.flags;
    packet.part != Part::Later
        && (!packet.transport.is_tcp
            || tcp::opens(flags)
            || (service.mode == Mode::Nat as u8
                && service.scheduler == Scheduler::Hash as u8
                && flags & (tcp::SYN | tcp::RST) == 0))
}

/// The client's packets come by another way than before: replies take it too.
#[inline(always)]
fn turn<F: Family>(packet: &Packet<'_, F>, flow: Flow<F>) {
    let path = packet.link.way_back();
    let mtu = mtu(&path);
    // SAFETY: map values, as in `Flow::to`. A reply that passes meanwhile may
    // leave by a mixture of both ways, like one that passes a moment earlier
    // leaves by the old one.
    unsafe {
        if let Some(reply) = of_reply::<F>(&flow.to().reversed()) {
            (*reply.entry()).path = path;
            (*reply.entry()).mtu_or_sequence = mtu;
        }
        (*flow.entry()).path = path;
    }
}

/// Largest IP packet that an interface takes; 0 where that is not known.
#[inline(always)]
pub fn mtu(path: &LinkPath) -> u32 {
    // SAFETY: the program never writes the table (RCU, as for services).
    unsafe { INTERFACES.get(path.ifindex) }.map_or(0, |interface| interface.mtu)
}

/// Takes the entries of a flow away and gives its source port back.
#[inline(always)]
fn close<F: Family>(packet: &Packet<'_, F>, flow: Flow<F>) {
    // Ended flows are counted before the entry goes, and whoever deletes it first
    // cleans up behind it.
    flow.advance(state::RST);
    let pool = flow.port_pool();
    let reply = flow.to().reversed();
    let (port, _) = F::ports(flow.to());
    if F::flows().remove(&packet.tuple).is_ok() {
        release::<F>(&reply, pool, port);
    }
}

/// Takes the entries of the flow that has this place among those that are not confirmed
/// away, and gives its source port back, unless it is confirmed.
#[inline(always)]
pub fn evict<F: Family>(tuple: &F::Tuple, place: u32) {
    if let Some(flow) = of_tuple::<F>(tuple)
        && flow.state() >> state::PLACE == place
        && let Some(pool) = seize(tuple, flow)
    {
        let (port, _) = F::ports(flow.to());
        if pool != 0 {
            ports::give_back(pool, u16::from_be(port));
        }
    }
}

/// Takes the entries of a flow away, unless it is confirmed. Returns the pool that its source
/// port is of, which stays taken.
#[inline(always)]
pub fn seize<F: Family>(tuple: &F::Tuple, flow: Flow<F>) -> Option<u32> {
    if flow.state() & state::CONFIRMED != 0 {
        return None;
    }
    // It may have been confirmed just now.
    let old = flow.change(state::EVICTED);
    if old & state::CONFIRMED != 0 {
        return None;
    }
    let pool = flow.port_pool();
    let reply = flow.to().reversed();
    if F::flows().remove(tuple).is_err() {
        return None;
    }
    if !state::is_closed(old) {
        count::ended(flow.backend());
    }
    let _absent = F::replies().remove(&reply);
    Some(pool)
}

/// Takes the entry for replies away and gives the source port (network byte
/// order) back.
#[inline(always)]
pub fn release<F: Family>(reply: &F::Tuple, pool: u32, port: u16) {
    let _absent = F::replies().remove(reply);
    if pool != 0 {
        ports::give_back(pool, u16::from_be(port));
    }
}
