//! Which backend: the slot of a packet, and how new flows are spread. See
//! `docs/selection.md`.

use core::mem::transmute;

use aya_ebpf::helpers::bpf_get_prandom_u32;
use lb_common::{
    backend::{Backend, BackendState},
    drop_reason::DropReason,
    flow::Tuple,
    ring::{self, NO_BACKEND, RING_SIZE, Slot},
    service::{Mode, Scheduler, Service},
};

use crate::{
    atomic::fetch_add_u64,
    count,
    family::Family,
    maps::{BACKENDS, OPTIONS, RINGS, SIZED_RINGS, TURNS},
    packet::{Packet, Part, tcp},
    pin, service,
};

/// A backend and its id.
pub type Choice = (u32, &'static Backend);

/// In place of a backend's id: all that were tried have as many flows as they take.
pub const FULL: u32 = u32::MAX - 1;

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
    let id = if service.flags & Service::TRACKED == 0 && (slot.is_clean() || !is_tcp) {
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
    reachable(id)
}

/// The backend for a flow that begins and is translated, like [`of_packet`].
#[inline(always)]
pub fn of_new<F: Family>(
    tuple: &F::Tuple,
    service: &Service,
    named: u32,
) -> Result<Choice, (DropReason, u32)> {
    admit::<F>(tuple)?;
    let chosen = if named == NO_BACKEND {
        let index = index(tuple, service);
        let slot = slot(service, index);
        for_new_flow(service, index, slot.owner)
    } else {
        named
    };
    let (id, backend) = reachable(chosen)?;
    let (src, _) = F::addresses(tuple);
    if service.mode == Mode::Nat as u8 && F::same(src, F::address(&backend.address)) {
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

/// The backend of this id, if there is a way to it.
#[inline(always)]
fn reachable(id: u32) -> Result<Choice, (DropReason, u32)> {
    if id == FULL {
        return Err((DropReason::BackendsFull, 0));
    }
    let backend = BACKENDS.get(id).ok_or((DropReason::NoBackend, 0))?;
    if !is_there(id, backend) {
        return Err((DropReason::NoBackend, 0));
    }
    if backend.path.ifindex == 0 {
        return Err((DropReason::NextHopUnresolved, id));
    }
    Ok((id, backend))
}

/// The backend that a new flow gets, whose slot has this owner; [`NO_BACKEND`] or [`FULL`]
/// where none takes it.
#[inline(always)]
pub fn for_new_flow(service: &Service, index: u32, owner: u32) -> u32 {
    let is_plain =
        service.scheduler == Scheduler::Hash as u8 && service.flags & Service::BOUNDED == 0;
    if is_plain {
        return owner;
    }
    schedule(service::word(service), index)
}

/// The backend that the scheduler of a service, given as a word, has for a new flow whose
/// hash names the slot `index`.
///
/// A global function, like `ipv6_walk`: few services have another scheduler, and the
/// verifier need not follow it for each way that leads here.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn schedule(service: u64, index: u32) -> u32 {
    const RANDOM: u8 = Scheduler::Random as u8;
    const ROUND_ROBIN: u8 = Scheduler::RoundRobin as u8;
    const LEAST_CONNECTIONS: u8 = Scheduler::LeastConnections as u8;
    let service = service::of_word(service);
    let mut index = index;
    let mut chosen = NO_BACKEND;
    for attempt in 0..ATTEMPTS {
        chosen = match service.scheduler {
            ROUND_ROBIN => slot(&service, turn(service.id())).owner,
            RANDOM => slot(&service, any_slot(&service)).owner,
            LEAST_CONNECTIONS => better(
                slot(&service, any_slot(&service)).owner,
                slot(&service, any_slot(&service)).owner,
            ),
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
    let turns = OPTIONS.get(service).map_or(1, |options| options.turns);
    let Some(count) = TURNS.get_ptr_mut(service) else {
        return 0;
    };
    // SAFETY: the pointer is a map value.
    let turn = unsafe { fetch_add_u64(count, 1) };
    match turns {
        0 => 0,
        turns => (turn % u64::from(turns)) as u32,
    }
}

/// Of two backends the one that has fewer flows for its weight, the new one counted.
#[inline(always)]
fn better(one: u32, other: u32) -> u32 {
    let (Some(a), Some(b)) = (BACKENDS.get(one), BACKENDS.get(other)) else {
        return one;
    };
    let of_one = (u64::from(count::live(one)) + 1) * u64::from(b.weight);
    let of_other = (u64::from(count::live(other)) + 1) * u64::from(a.weight);
    if of_other < of_one { other } else { one }
}

/// Whether a backend takes another flow.
#[inline(always)]
fn has_room(id: u32) -> bool {
    BACKENDS
        .get(id)
        .is_some_and(|backend| backend.max_flows == 0 || count::live(id) < backend.max_flows)
}

/// Whether a packet begins a flow: TCP by a SYN, UDP by any datagram.
#[inline(always)]
pub fn begins(signs: u32) -> bool {
    signs & pin::LATER == 0 && (signs & pin::TCP == 0 || tcp::opens(u64::from(signs)))
}
