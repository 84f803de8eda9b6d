//! Which flow, and so which backend: known flows, and how a flow begins and ends.

use aya_ebpf::bindings::BPF_NOEXIST;
use lb_common::{
    addr::LinkPath,
    backend::{Backend, BackendState},
    drop_reason::DropReason,
    flow::{FlowEntry, FlowValue, Tuple, state},
    service::{Mode, Service},
};

use crate::{
    atomic::fetch_or_u32,
    count,
    family::{Draft, Family},
    link::Link,
    maps::{BACKENDS, INTERFACES, clock},
    packet::{Packet, Part, Transport, tcp},
    ports, select,
};

/// Source ports tried for one flow before it is refused. Only a tuple that is
/// taken costs a try.
const ATTEMPTS: u32 = 4;

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

    /// Largest IP packet that leaves by the path, 0 for no limit.
    #[inline(always)]
    pub fn mtu(self) -> u32 {
        // SAFETY: as in `to`.
        unsafe { (*self.entry()).mtu }
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
    fn state(self) -> u32 {
        // SAFETY: as in `to`.
        unsafe { (&raw const (*self.entry()).state).read_volatile() }
    }

    /// Adds bits to the state of this entry alone, and returns what it was.
    #[inline(always)]
    fn set(self, bits: u32) -> u32 {
        // SAFETY: as in `to`.
        unsafe { fetch_or_u32(&raw mut (*self.entry()).state, bits) }
    }

    /// Adds bits to the state of the entry in `FLOWS_*`. Whoever closes the flow
    /// counts its end.
    #[inline(always)]
    fn advance(self, bits: u32) {
        let old = self.set(bits);
        if !state::is_closed(old) && state::is_closed(old | bits) {
            count::ended(self.backend());
        }
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
/// looked up only when there is news.
#[inline(always)]
pub fn replied<F: Family>(packet: &Packet<'_, F>, reply: Flow<F>) {
    reply.touch();
    let bits = state::REPLIED | observed(&packet.transport, state::FIN_BACKEND);
    if reply.state() & bits == bits {
        return;
    }
    reply.set(bits);
    if let Some(flow) = of_tuple::<F>(&reply.to().reversed()) {
        flow.advance(bits);
    }
}

/// The flow of a packet from a client and its backend. A packet that begins a flow
/// gets one; of a flow that can't go on, the entries are taken away.
#[inline(always)]
pub fn of_client<F: Family>(
    packet: &Packet<'_, F>,
    service: &Service,
) -> Result<(Flow<F>, &'static Backend), (DropReason, u32)> {
    let mut refusal = DropReason::NoFlow;
    if let Some(flow) = of_tuple::<F>(&packet.tuple) {
        if let Some(backend) = BACKENDS.get(flow.backend())
            && goes_on(packet, flow, backend)
        {
            flow.touch();
            spoke(packet, flow);
            if !packet.link.came_from(flow.path()) {
                turn(packet, flow);
            }
            return Ok((flow, backend));
        }
        close(packet, flow);
        refusal = DropReason::BackendGone;
    }
    if !may_begin(packet, service) {
        return Err((refusal, 0));
    }
    let (flow, backend) = open::<F>(packet, service)?;
    // The FIN of a connection whose entry was lost begins a flow.
    spoke(packet, flow);
    Ok((flow, backend))
}

/// Notes what a packet from a client tells of its flow.
#[inline(always)]
fn spoke<F: Family>(packet: &Packet<'_, F>, flow: Flow<F>) {
    let bits = observed(&packet.transport, state::FIN_CLIENT);
    if bits != 0 {
        flow.advance(bits);
    }
}

/// Whether a known flow stays with its backend.
#[inline(always)]
fn goes_on<F: Family>(packet: &Packet<'_, F>, flow: Flow<F>, backend: &Backend) -> bool {
    const UP: u8 = BackendState::Up as u8;
    const DOWN: u8 = BackendState::Down as u8;
    let state = flow.state();
    // The client uses the ports of a connection that has ended again.
    let again = tcp::opens(packet.transport.flags) && state::is_closed(state);
    let unanswered = tcp::opens(packet.transport.flags) && state & state::REPLIED == 0;
    match backend.state {
        UP => !again,
        DOWN => packet.transport.is_tcp && !again && !unanswered,
        _ => false,
    }
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
            || (service.mode == Mode::Nat as u8 && flags & (tcp::SYN | tcp::RST) == 0))
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
            (*reply.entry()).mtu = mtu;
        }
        (*flow.entry()).path = path;
    }
}

/// Largest IP packet that an interface takes; 0 where that is not known.
#[inline(always)]
fn mtu(path: &LinkPath) -> u32 {
    // SAFETY: the program never writes the table (RCU, as for services).
    unsafe { INTERFACES.get(path.ifindex) }.map_or(0, |interface| interface.mtu)
}

/// Takes the entries of a flow away and gives its source port back.
#[inline(always)]
fn close<F: Family>(packet: &Packet<'_, F>, flow: Flow<F>) {
    // Ended flows are counted before the entry goes, and whoever deletes it first
    // cleans up behind it.
    flow.advance(state::RST);
    // SAFETY: as in `Flow::to`.
    let pool = unsafe { (*flow.entry()).port_pool };
    let reply = flow.to().reversed();
    let (port, _) = F::ports(flow.to());
    if F::flows().remove(&packet.tuple).is_ok() {
        release::<F>(&reply, pool, port);
    }
}

/// Takes the entry for replies away and gives the source port (network byte
/// order) back.
#[inline(always)]
fn release<F: Family>(reply: &F::Tuple, pool: u32, port: u16) {
    let _absent = F::replies().remove(reply);
    if pool != 0 {
        ports::give_back(pool, u16::from_be(port));
    }
}

/// Begins a flow: chooses a backend and writes both entries.
#[inline(always)]
fn open<F: Family>(
    packet: &Packet<'_, F>,
    service: &Service,
) -> Result<(Flow<F>, &'static Backend), (DropReason, u32)> {
    let (id, backend) = select::backend::<F>(&packet.tuple, service)?;
    draft_entries::<F>(&packet.tuple, service, id, backend, packet.link)
        .and_then(|()| write_entries::<F>(&packet.tuple, service, id, backend))
        .map_err(|reason| (reason, id))?;
    let flow = of_tuple::<F>(&packet.tuple).ok_or((DropReason::FlowTableFull, id))?;
    Ok((flow, backend))
}

/// Puts together the entries of a new flow, all but the source port and what depends on
/// it. A call of its own, whose frame is gone when ports are taken.
#[inline(never)]
fn draft_entries<F: Family>(
    tuple: &F::Tuple,
    service: &Service,
    id: u32,
    backend: &Backend,
    link: &Link,
) -> Result<(), DropReason> {
    let draft = F::draft().ok_or(DropReason::FlowTableFull)?;
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
    let full_nat = service.mode == Mode::FullNat as u8;
    let (_, dst_port) = F::ports(tuple);
    let keeps_port = backend.port == 0;
    let port = if keeps_port { dst_port } else { backend.port };
    F::set_dst(to, &backend.address, port);
    if full_nat {
        F::set_src(to, &backend.source);
    }
    reply_key.reverse_of(to);
    let path = link.way_back();
    let fill = |entry: &mut FlowEntry| {
        entry.backend = id;
        entry.last_seen = clock();
        entry.state = 0;
        entry.path = path;
        entry.mtu = mtu(&path);
        entry.port_pool = if full_nat { backend.port_pool } else { 0 };
    };
    fill(flow_entry);
    fill(reply_entry);
    Ok(())
}

/// Writes the entry for replies and then the one for the client's packets, so that
/// a reply never comes before its entry. They have been drafted.
#[inline(never)]
fn write_entries<F: Family>(
    tuple: &F::Tuple,
    service: &Service,
    id: u32,
    backend: &Backend,
) -> Result<(), DropReason> {
    let draft = F::draft().ok_or(DropReason::FlowTableFull)?;
    // SAFETY: as in `draft_entries`.
    let Draft {
        flow,
        reply,
        reply_key,
        ..
    } = unsafe { &mut *draft };
    let (flow_entry, to) = flow.parts_mut();
    let full_nat = service.mode == Mode::FullNat as u8;
    let (src_port, _) = F::ports(tuple);
    let mut taken = src_port;
    let mut inserted = Err(EXISTS);
    for attempt in 0..ATTEMPTS {
        if full_nat {
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
    match F::flows().insert(tuple, &*flow, u64::from(BPF_NOEXIST)) {
        Ok(()) => {
            count::began(id);
            Ok(())
        }
        Err(error) => {
            release::<F>(reply_key, pool, taken);
            // Another CPU was quicker with a packet of the same flow: theirs it is.
            if error == EXISTS {
                Ok(())
            } else {
                Err(DropReason::FlowTableFull)
            }
        }
    }
}

/// `EEXIST`, as `bpf_map_update_elem` returns it.
const EXISTS: i32 = -17;

/// A port (network byte order) from 32768 on, another one for each attempt.
#[inline(always)]
fn other_port(hash: u32, attempt: u32) -> u16 {
    (0x8000 | (hash >> attempt) as u16).to_be()
}
