//! Which backend: the slot of a packet, and how new flows are spread. See
//! `docs/selection.md`.

use core::mem::transmute;

use aya_ebpf::helpers::bpf_get_prandom_u32;
use lb_common::{
    backend::{Backend, BackendState},
    drop_reason::DropReason,
    flow::{Tuple, load},
    ring::{self, NO_BACKEND, RING_SIZE, Slot},
    service::{LOOKS, Mode, Scheduler, Service, Turns},
};

use crate::{
    atomic::fetch_add_u64,
    count,
    family::Family,
    guard,
    maps::{BACKENDS, OPTIONS, RINGS, SEARCH, SIZED_RINGS, TURNS},
    packet::{Packet, Part, tcp},
    pin, service,
};

/// A backend and its id.
pub type Choice = (u32, &'static Backend);

/// In place of a backend's id: all that were tried have as many flows as they take.
pub const FULL: u32 = u32::MAX - 1;
/// In place of a backend's id: too many flows have begun. With the number of the reason, as
/// [`guard::begin`] returns it, in the last bits.
const LIMITED: u32 = 0xffff_0000;

/// Slots that are tried for a new flow until a backend takes it.
const ATTEMPTS: u32 = 8;

/// The backend of a packet of a flow that is not translated, with the way to it known: the
/// one that is `named` unless that is [`NO_BACKEND`]. An error comes with the id of the backend
/// that can't be used, 0 for none.
#[inline(always)]
pub fn of_packet<F: Family>(
    packet: &Packet<'_, F>,
    service: &Service,
    named: u32,
) -> Result<Choice, (DropReason, u32)> {
    admit::<F>(&packet.tuple)?;
    let index = index(&packet.tuple, service);
    let slot = if named == NO_BACKEND {
        slot(service, index)
    } else {
        Slot::clean(named)
    };
    let is_tcp = packet.transport.is_tcp;
    let looks_on = Service::TRACKED | Service::GUARDED;
    let id = if service.flags & looks_on == 0 && (slot.is_clean() || !is_tcp) {
        slot.owner
    } else {
        let mut signs = packet.transport.flags as u32;
        signs |= if is_tcp { pin::TCP } else { 0 };
        signs |= if packet.part == Part::Later {
            pin::LATER
        } else {
            0
        };
        signs |= if named == NO_BACKEND { 0 } else { pin::NAMED };
        let word = service::word(service);
        F::pinned(&packet.tuple, word, word_of(slot), index, signs)
    };
    reachable(id, packet.transport.flags)
}

/// Whether the client of `tuple` may begin a flow that is translated; it costs what the limits
/// of the service say.
#[inline(always)]
pub fn admit_flow<F: Family>(tuple: &F::Tuple, service: &Service) -> Result<(), (DropReason, u32)> {
    admit::<F>(tuple)?;
    let (client, _) = F::addresses(tuple);
    let limited = guard::begin::<F>(client, service);
    if limited != guard::FREE {
        return Err((guard::reason(limited), 0));
    }
    Ok(())
}

/// The backend for a flow that begins and is translated, like [`of_packet`].
#[inline(always)]
pub fn of_new<F: Family>(
    tuple: &F::Tuple,
    service: &Service,
    named: u32,
) -> Result<Choice, (DropReason, u32)> {
    let chosen = if named == NO_BACKEND {
        let index = index(tuple, service);
        let slot = slot(service, index);
        for_new_flow::<F>(tuple, service, index, slot.owner)
    } else {
        named
    };
    let (id, backend) = reachable(chosen, 0)?;
    let (client, _) = F::addresses(tuple);
    if service.mode == Mode::Nat as u8 && F::same(client, F::address(&backend.address)) {
        return Err((DropReason::Hairpin, id));
    }
    Ok((id, backend))
}

/// The backend that a flow that is not translated has, if it is known. Nothing is written.
#[inline(always)]
pub fn known<F: Family>(tuple: &F::Tuple, service: &Service) -> Option<Choice> {
    let slot = slot(service, index(tuple, service));
    let is_tracked = service.flags & Service::TRACKED != 0;
    let has_slot = is_tracked || F::protocol(tuple) == crate::packet::TCP;
    let mut id = slot.owner;
    if has_slot && (is_tracked || !slot.is_clean()) {
        let pinned = pin::known::<F>(tuple);
        id = if pinned != NO_BACKEND {
            pinned
        } else {
            of_slot(slot)
        };
    }
    let backend = BACKENDS.get(id)?;
    is_there(id, backend).then_some((id, backend))
}

/// Whether a packet can come from a client.
#[inline(always)]
fn admit<F: Family>(tuple: &F::Tuple) -> Result<(), (DropReason, u32)> {
    let (src, dst) = F::addresses(tuple);
    if F::is_client(src, dst) {
        Ok(())
    } else {
        Err((DropReason::MartianSource, 0))
    }
}

/// The slot that packets with `tuple` have in the ring.
#[inline(always)]
fn index<T: Tuple>(tuple: &T, service: &Service) -> u32 {
    let by_port = service.flags & Service::BY_CLIENT_PORT != 0;
    let hash = if by_port || service.flags & Service::BY_CLIENT != 0 {
        tuple.hash_of_client(by_port)
    } else {
        tuple.hash()
    };
    ring::slot(hash, service.ring_size())
}

/// A slot of a service's ring; one without a backend where there is no ring.
#[inline(always)]
fn slot(service: &Service, index: u32) -> Slot {
    let word = if service.ring_size() == RING_SIZE {
        RINGS.get_value(service.id(), &index).copied()
    } else {
        SIZED_RINGS.get_value(service.id(), &index).copied()
    };
    slot_of_word(word.unwrap_or(0))
}

/// A slot in a word, as a call takes it.
#[inline(always)]
fn word_of(slot: Slot) -> u64 {
    // SAFETY: a slot is made of integers alone, and as large as a word.
    unsafe { transmute::<Slot, u64>(slot) }
}

/// A slot of which this is the word.
#[inline(always)]
pub fn slot_of_word(word: u64) -> Slot {
    // SAFETY: as in `word_of`.
    unsafe { transmute::<u64, Slot>(word) }
}

/// The backend of a flow that began before the slot was as it is.
#[inline(always)]
pub fn of_slot(slot: Slot) -> u32 {
    match BACKENDS.get(slot.origin) {
        Some(backend) if is_there(slot.origin, backend) => slot.origin,
        _ => slot.owner,
    }
}

#[inline(always)]
fn is_there(id: u32, backend: &Backend) -> bool {
    id != NO_BACKEND && backend.state != BackendState::Absent as u8
}

/// The backend of this id, if it takes packets with these TCP flags, and there is a way to it.
#[inline(always)]
fn reachable(id: u32, flags: u64) -> Result<Choice, (DropReason, u32)> {
    const UP: u8 = BackendState::Up as u8;
    const DOWN: u8 = BackendState::Down as u8;
    const RESETTING: u8 = BackendState::Resetting as u8;
    let Some(backend) = BACKENDS.get(id) else {
        return Err((refusal(id), 0));
    };
    match backend.state {
        _ if id == NO_BACKEND => return Err((DropReason::NoBackend, 0)),
        UP | DOWN => {}
        // The other side is to hear of the end, too.
        RESETTING if flags & tcp::RST != 0 => {}
        RESETTING => return Err((DropReason::Drained, id)),
        _ => return Err((DropReason::NoBackend, 0)),
    }
    if backend.path.ifindex == 0 {
        return Err((DropReason::NextHopUnresolved, id));
    }
    Ok((id, backend))
}

/// What stands in the place of a backend's id for a flow that may not begin, `number` being the
/// reason that [`guard::begin`] has returned.
#[inline(always)]
pub const fn limited(number: u32) -> u32 {
    LIMITED | number
}

/// Why there is no backend of this id.
#[inline(always)]
fn refusal(id: u32) -> DropReason {
    const LAST_LIMITED: u32 = LIMITED | 0xff;
    match id {
        FULL => DropReason::BackendsFull,
        LIMITED..=LAST_LIMITED => guard::reason(id & 0xff),
        _ => DropReason::NoBackend,
    }
}

/// The backend that a new flow gets, whose slot has this owner; [`NO_BACKEND`] or [`FULL`]
/// where none takes it.
#[inline(always)]
pub fn for_new_flow<F: Family>(tuple: &F::Tuple, service: &Service, index: u32, owner: u32) -> u32 {
    let is_plain =
        service.scheduler == Scheduler::Hash as u8 && service.flags & Service::BOUNDED == 0;
    if is_plain {
        return owner;
    }
    let word = service::word(service);
    let is_affine = service.flags & Service::AFFINE != 0;
    if is_affine {
        let known = F::remembered(tuple, word);
        if known != NO_BACKEND {
            return known;
        }
    }
    let chosen = if service.scheduler == Scheduler::LeastConnections as u8 {
        least_loaded(word)
    } else {
        schedule(word, index)
    };
    if is_affine && chosen != NO_BACKEND && chosen != FULL {
        F::note_client(tuple, service.id(), chosen, false);
    }
    chosen
}

/// The backend that the scheduler of a service, given as a word, has for a new flow whose
/// hash names the slot `index`: all schedulers but the one of [`least_loaded`].
///
/// A global function, like `ipv6_walk`: few services have another scheduler, and the
/// verifier need not follow it for each way that leads here.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn schedule(service: u64, index: u32) -> u32 {
    const RANDOM: u8 = Scheduler::Random as u8;
    const ROUND_ROBIN: u8 = Scheduler::RoundRobin as u8;
    let service = service::of_word(service);
    let mut index = index;
    let mut chosen = NO_BACKEND;
    for attempt in 0..ATTEMPTS {
        chosen = match service.scheduler {
            ROUND_ROBIN => slot(&service, turn(service.id())).owner,
            RANDOM => slot(&service, any_slot(&service)).owner,
            // Another slot for each attempt, the same on every balancer.
            _ => {
                if attempt != 0 {
                    index = ring::slot(
                        index.wrapping_add(attempt).wrapping_mul(SPREAD),
                        service.ring_size(),
                    );
                }
                slot(&service, index).owner
            }
        };
        if chosen == NO_BACKEND || service.flags & Service::BOUNDED == 0 || has_room(chosen) {
            return chosen;
        }
    }
    if chosen == NO_BACKEND { chosen } else { FULL }
}

/// An odd number with well-spread bits (of the golden ratio).
const SPREAD: u32 = 0x9E37_79B1;

/// A slot of a service's ring, by chance.
#[inline(always)]
fn any_slot(service: &Service) -> u32 {
    // SAFETY: the helper takes nothing.
    ring::slot(unsafe { bpf_get_prandom_u32() }, service.ring_size())
}

/// The slot whose turn it is.
#[inline(always)]
fn turn(service: u32) -> u32 {
    let Some(turns) = TURNS.get_ptr_mut(service) else {
        return 0;
    };
    match in_turn(service) {
        0 => 0,
        slots => (take_turns(turns, 1) % u64::from(slots)) as u32,
    }
}

/// The slots of a service's ring that turns go over.
#[inline(always)]
fn in_turn(service: u32) -> u32 {
    OPTIONS.get(service).map_or(0, |options| options.turns)
}

/// Takes so many turns, and returns how many were taken before.
#[inline(always)]
fn take_turns(turns: *mut Turns, count: u32) -> u64 {
    // SAFETY: callers pass a map value.
    unsafe { fetch_add_u64(&raw mut (*turns).taken, u64::from(count)) }
}

/// A backend that may get a new flow.
#[derive(Clone, Copy)]
#[repr(C)]
struct Candidate {
    id: u32,
    /// Its slot.
    slot: u32,
    /// Twice its open flows and the new one half: between those before and those after.
    flows: u64,
    weight: u64,
}

impl Candidate {
    /// Whether this one has fewer flows for its weight.
    #[inline(always)]
    fn is_better_than(&self, other: &Self) -> bool {
        other.id == NO_BACKEND || self.flows * other.weight < other.flows * self.weight
    }
}

/// A search for the backend of the fewest flows for its weight. In per-CPU memory: the stack
/// has no room for it, and the verifier follows no values there. In registers, every order in
/// which backends may be better than each other would be a case of its own.
#[repr(C)]
pub struct Search {
    best: Candidate,
    second: Candidate,
    third: Candidate,
    /// The service, as a word.
    service: u64,
    /// Slots that are looked at.
    slots: u32,
    /// How far each is from the one before.
    stride: u32,
    /// The next one.
    at: u32,
    /// How many are still to be looked at.
    left: u32,
    /// What is chosen where none of them takes a flow.
    none: u32,
}

impl Search {
    /// Begins, among so many slots. Of those that are found the ids alone say that there are
    /// none.
    #[inline(always)]
    fn begin(&mut self, service: u64, slots: u32, turns: *mut Turns) {
        self.best.id = NO_BACKEND;
        self.second.id = NO_BACKEND;
        self.third.id = NO_BACKEND;
        self.none = NO_BACKEND;
        self.service = service;
        self.slots = slots;
        if slots > LOOKS {
            // Each round comes to all slots, whose number is prime, in another order: what
            // slots are looked at together is never the same for long.
            let taken = take_turns(turns, LOOKS);
            let (round, place) = (taken / u64::from(slots), taken % u64::from(slots));
            self.stride = ring::slot((round as u32).wrapping_mul(SPREAD), slots - 1) + 1;
            self.at = (place * u64::from(self.stride) % u64::from(slots)) as u32;
            self.left = LOOKS;
        } else {
            // Each begins one further, so that each backend is the first among equals in turn.
            self.at = (take_turns(turns, 1) % u64::from(slots)) as u32;
            self.stride = 1;
            self.left = slots;
        }
    }

    /// Looks at the next slot. Returns whether there was one.
    #[inline(always)]
    fn step(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        let at = self.at;
        let next = at + self.stride;
        self.at = if next >= self.slots {
            next - self.slots
        } else {
            next
        };
        self.look(at);
        true
    }

    /// Looks at a slot.
    #[inline(always)]
    fn look(&mut self, index: u32) {
        let id = slot(&service::of_word(self.service), index).owner;
        let Some(backend) = BACKENDS.get(id) else {
            return;
        };
        if id == NO_BACKEND {
            return;
        }
        let load = count::load(id);
        if service::of_word(self.service).flags & Service::BOUNDED != 0
            && backend.max_flows != 0
            && load::live(load) >= backend.max_flows
        {
            self.none = FULL;
            return;
        }
        let candidate = Candidate {
            id,
            slot: index,
            flows: 2 * load::total(load) + 1,
            weight: u64::from(backend.weight),
        };
        if candidate.is_better_than(&self.best) {
            self.third = self.second;
            self.second = self.best;
            self.best = candidate;
        } else if id == self.best.id {
            // Again.
        } else if candidate.is_better_than(&self.second) {
            self.third = self.second;
            self.second = candidate;
        } else if id != self.second.id && candidate.is_better_than(&self.third) {
            self.third = candidate;
        }
    }
}

/// The backend of the fewest flows for its weight, of those that are looked at: the next
/// [`LOOKS`], which are all where there are no more, and those that were the next best the
/// last time. [`NO_BACKEND`] or [`FULL`] where none takes a flow. A global function, like
/// [`schedule`].
///
/// What CPUs remember for each other is a hint: of those that choose at once several may take
/// the same backend, and the next looks find what came of it.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn least_loaded(service: u64) -> u32 {
    let id = service::of_word(service).id();
    let slots = in_turn(id);
    let (Some(turns), Some(search)) = (TURNS.get_ptr_mut(id), SEARCH.get_ptr_mut(0)) else {
        return NO_BACKEND;
    };
    if slots == 0 {
        return NO_BACKEND;
    }
    // SAFETY: the element belongs to this CPU, and a program does not migrate or re-enter
    // itself while it runs.
    let search = unsafe { &mut *search };
    search.begin(service, slots, turns);
    for _ in 0..LOOKS {
        if !search.step() {
            break;
        }
    }
    // SAFETY: the pointer is a map value; other CPUs store whole words.
    let remembered = unsafe { &raw mut (*turns).remembered }.cast::<u32>();
    for index in 0..2 {
        // SAFETY: as above; there are two words.
        let word = unsafe { remembered.add(index) };
        // SAFETY: as above.
        search.look(unsafe { word.read_volatile() } % slots);
    }
    if search.third.id != NO_BACKEND {
        // SAFETY: as above.
        unsafe {
            remembered.write_volatile(search.second.slot);
            remembered.add(1).write_volatile(search.third.slot);
        }
    }
    if search.best.id == NO_BACKEND {
        search.none
    } else {
        search.best.id
    }
}

/// Whether a backend takes another flow.
#[inline(always)]
fn has_room(id: u32) -> bool {
    BACKENDS.get(id).is_some_and(|backend| {
        backend.max_flows == 0 || load::live(count::load(id)) < backend.max_flows
    })
}

/// Whether a packet begins a flow: TCP by a SYN, UDP by any datagram.
#[inline(always)]
pub fn begins(signs: u32) -> bool {
    signs & pin::LATER == 0 && (signs & pin::TCP == 0 || tcp::opens(u64::from(signs)))
}
