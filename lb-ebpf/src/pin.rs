//! Flows that are not translated, where the slot does not say which backend they have.

use aya_ebpf::bindings::BPF_NOEXIST;
use lb_common::{
    backend::{Backend, BackendState},
    flow::{FlowKey4, FlowKey6, state},
    pin::Pin,
    ring::NO_BACKEND,
    service::Service,
};

use crate::{
    atomic::fetch_or_u32,
    count, embryonic,
    family::{Family, Ipv4, Ipv6},
    flow::EXISTS,
    guard,
    maps::{BACKENDS, clock},
    outcome,
    packet::tcp,
    select, service,
};

/// Beside the control bits of TCP: the packet is one of TCP.
pub const TCP: u32 = 1 << 8;
/// Beside the control bits of TCP: the packet is a later fragment.
pub const LATER: u32 = 1 << 9;
/// Beside the control bits of TCP: the slot is none of the ring, but stands for the backend
/// that a connection ID names.
pub const NAMED: u32 = 1 << 10;

/// The entry of a flow.
#[derive(Clone, Copy)]
pub struct Entry(*mut Pin);

impl Entry {
    /// The entry of the flow with this tuple.
    #[inline(always)]
    pub fn of<F: Family>(tuple: &F::Tuple) -> Option<Self> {
        F::pins().get_ptr_mut(tuple).map(Self)
    }

    /// Id of the backend.
    #[inline(always)]
    fn backend(self) -> u32 {
        // SAFETY: the pointer is a map value of a preallocated table; should the entry be
        // deleted meanwhile, it still reads as some flow's.
        unsafe { (*self.0).backend }
    }

    /// Bits of [`state`].
    #[inline(always)]
    fn state(self) -> u32 {
        // SAFETY: as in `backend`.
        unsafe { (&raw const (*self.0).state).read_volatile() }
    }

    /// Adds bits to the state and returns what it was.
    #[inline(always)]
    fn set(self, bits: u32) -> u32 {
        // SAFETY: as in `backend`.
        unsafe { fetch_or_u32(&raw mut (*self.0).state, bits) }
    }

    /// Notes that the flow has spoken.
    #[inline(always)]
    fn touch(self) {
        let now = clock();
        // SAFETY: as in `backend`; every writer stores the same value.
        unsafe {
            if (*self.0).last_seen != now {
                (*self.0).last_seen = now;
            }
        }
    }

    /// Notes what the flags of a packet tell. Whoever closes the flow counts its end, and
    /// whoever confirms it that it lives. Returns whether this packet confirms it.
    #[inline(always)]
    fn observe(self, signs: u32) -> bool {
        let mut bits = ends(signs);
        if signs & TCP == 0 || signs & tcp::SYN as u32 == 0 {
            bits |= state::CONFIRMED;
        }
        self.state() & bits != bits
            && self.advance(bits) & state::CONFIRMED == 0
            && bits & state::CONFIRMED != 0
    }

    /// Adds bits to the state and counts what they mean. Returns what it was.
    #[inline(always)]
    fn advance(self, bits: u32) -> u32 {
        let old = self.set(bits);
        let new = old | bits;
        let closed = state::is_closed_by_client;
        count::moved(self.backend(), (old, closed(old)), (new, closed(new)));
        if old & state::COUNTED != 0 && !closed(old) && closed(new) {
            count::ended(self.backend());
        }
        old
    }

    /// The flow is reset. Its end counts also where that of others is told by the flags of
    /// their packets.
    #[inline(always)]
    fn reset(self) {
        if self.state() & state::RST != 0 {
            return;
        }
        let old = self.advance(state::RST);
        if old & state::COUNTED == 0 && !state::is_closed_by_client(old) {
            count::ended(self.backend());
        }
    }

    /// Whether the flow stays with its backend.
    #[inline(always)]
    fn goes_on(self, signs: u32, backend: &Backend) -> bool {
        const UP: u8 = BackendState::Up as u8;
        const DOWN: u8 = BackendState::Down as u8;
        const RESETTING: u8 = BackendState::Resetting as u8;
        let (opens, state) = (tcp::opens(u64::from(signs)), self.state());
        let again = opens && state::is_closed_by_client(state);
        let unanswered = opens && state & state::CONFIRMED == 0;
        match backend.state {
            UP => !again,
            DOWN => signs & TCP != 0 && !again && !unanswered,
            // Its client is told that it has ended, unless it says so itself, or knows.
            RESETTING => signs & TCP != 0 && !opens,
            _ => false,
        }
    }
}

/// The bits of [`state`] that say how a packet with these signs ends its flow, 0 if it does not.
#[inline(always)]
fn ends(signs: u32) -> u32 {
    let sign = |sign: u64, bit| if signs & sign as u32 != 0 { bit } else { 0 };
    sign(tcp::FIN, state::FIN_CLIENT) | sign(tcp::RST, state::RST)
}

/// The backend of the flow with this tuple, [`NO_BACKEND`] if it has no entry.
#[inline(always)]
pub fn known<F: Family>(tuple: &F::Tuple) -> u32 {
    Entry::of::<F>(tuple).map_or(NO_BACKEND, Entry::backend)
}

/// The backend of a packet with this tuple and these signs, whose slot `index` alone does
/// not say it; [`NO_BACKEND`] or [`select::FULL`] if it gets none. `service` and `slot`
/// are words.
#[inline(always)]
fn backend<F: Family>(tuple: &F::Tuple, service: u64, slot: u64, index: u32, signs: u32) -> u32 {
    let service = service::of_word(service);
    let slot = select::slot_of_word(slot);
    let Some(draft) = F::draft() else {
        return NO_BACKEND;
    };
    // SAFETY: the draft belongs to this CPU, and a program does not migrate or re-enter
    // itself while it runs.
    let tuple = unsafe {
        (*draft).key = *tuple;
        &(*draft).key
    };
    let is_tracked = service.flags & Service::TRACKED != 0;
    let is_tcp = signs & TCP != 0;
    // A guarded service comes here with all that it gets.
    let has_entries = is_tracked || is_tcp && !slot.is_clean();
    // A later fragment is told of the name, but follows its first one.
    let is_named = signs & (NAMED | LATER) == NAMED;
    if has_entries && let Some(entry) = Entry::of::<F>(tuple) {
        let id = entry.backend();
        if (!is_named || id == slot.owner)
            && let Some(backend) = BACKENDS.get(id)
            && entry.goes_on(signs, backend)
        {
            entry.touch();
            if is_resetting(backend) && signs & tcp::RST as u32 == 0 {
                if signs & LATER == 0 {
                    entry.reset();
                }
            } else if entry.observe(signs) && service.flags & Service::AFFINE != 0 {
                F::note_client(tuple, service.id(), id, true);
            }
            return id;
        }
        entry.advance(state::RST);
        let _taken = F::pins().remove(tuple);
    }
    let begins = select::begins(signs);
    if begins {
        let (client, _) = F::addresses(tuple);
        let limited = guard::begin::<F>(client, &service);
        if limited != guard::FREE {
            return select::limited(limited);
        }
    }
    let id = if begins && !is_named {
        select::for_new_flow::<F>(tuple, &service, index, slot.owner)
    } else if has_entries {
        select::of_slot(slot)
    } else {
        slot.owner
    };
    let is_reset = BACKENDS.get(id).is_some_and(is_resetting);
    // What its client has ended itself needs none.
    let is_over = is_reset && signs & tcp::RST as u32 != 0;
    let needs_entry = (is_tracked || is_tcp && slot.is_changing()) && !is_over;
    if id != NO_BACKEND && id != select::FULL && needs_entry && signs & LATER == 0 {
        let mut state = if begins {
            0
        } else {
            state::JOINED | ends(signs)
        };
        if is_reset {
            state |= state::RST;
        }
        if is_tracked {
            state |= state::COUNTED;
        }
        // The end of a flow that is not counted is told by the flags of its packets, but for
        // one that is reset.
        let is_end = is_reset || is_tracked && state::is_closed_by_client(state);
        let is_known = write::<F>(tuple, id, index, state, is_end);
        // Its next packets will have no entry either.
        if !is_known && begins && slot.is_changing() && takes_new_flows(slot.origin) {
            return slot.origin;
        }
    }
    id
}

/// Whether flows of a backend are reset.
#[inline(always)]
fn is_resetting(backend: &Backend) -> bool {
    backend.state == BackendState::Resetting as u8
}

/// Whether a backend takes new flows.
#[inline(always)]
fn takes_new_flows(id: u32) -> bool {
    BACKENDS
        .get(id)
        .is_some_and(|backend| backend.state == BackendState::Up as u8)
}

/// Counts a SYN to this backend, if there is one. Those of flows without entries are counted
/// where their begins are.
#[inline(always)]
fn watched(service: u64, signs: u32, backend: u32) -> u32 {
    let service = service::of_word(service);
    if service.flags & Service::TRACKED != 0 && backend != NO_BACKEND {
        outcome::of_client(service.flags, u64::from(signs), backend);
    }
    backend
}

/// [`backend`] for IPv4.
///
/// A global function, like `ipv6_walk`, which may read what `tuple` points to, unless that
/// is null.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn pinned_v4(
    tuple: *const FlowKey4,
    service: u64,
    slot: u64,
    index: u32,
    signs: u32,
) -> u32 {
    // SAFETY: the verifier checks that callers pass a whole tuple.
    match unsafe { tuple.as_ref() } {
        Some(tuple) => watched(
            service,
            signs,
            backend::<Ipv4>(tuple, service, slot, index, signs),
        ),
        None => NO_BACKEND,
    }
}

/// [`backend`] for IPv6, like [`pinned_v4`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn pinned_v6(
    tuple: *const FlowKey6,
    service: u64,
    slot: u64,
    index: u32,
    signs: u32,
) -> u32 {
    // SAFETY: as in `pinned_v4`.
    match unsafe { tuple.as_ref() } {
        Some(tuple) => watched(
            service,
            signs,
            backend::<Ipv6>(tuple, service, slot, index, signs),
        ),
        None => NO_BACKEND,
    }
}

/// Writes the entry of a flow, with these bits of its state, and counts its end if that
/// `is_end`. Returns whether it has one.
#[inline(always)]
fn write<F: Family>(tuple: &F::Tuple, backend: u32, slot: u32, bits: u32, is_end: bool) -> bool {
    let place = embryonic::place::<F>();
    F::enter_embryonic(tuple, place);
    let pin = Pin {
        backend,
        last_seen: clock(),
        state: bits | place << state::PLACE,
        slot,
    };
    match F::pins().insert(tuple, &pin, u64::from(BPF_NOEXIST)) {
        Ok(()) => {
            count::opened(backend, bits, state::is_closed_by_client(bits));
            if bits & state::COUNTED != 0 {
                count::began(backend);
            }
            if is_end {
                count::ended(backend);
            }
            true
        }
        // Another CPU was quicker with a packet of the same flow.
        Err(EXISTS) => true,
        Err(_full) => {
            // One that is over needs none.
            if bits & state::RST == 0 {
                count::untracked(backend);
            }
            false
        }
    }
}

/// Takes the entry of the flow that has this place among those that are not confirmed away,
/// unless it is confirmed.
#[inline(always)]
pub fn evict<F: Family>(tuple: &F::Tuple, place: u32) {
    let Some(entry) = Entry::of::<F>(tuple) else {
        return;
    };
    if entry.state() >> state::PLACE != place {
        return;
    }
    if entry.state() & state::CONFIRMED != 0 {
        return;
    }
    // It may have been confirmed just now.
    let old = entry.set(state::EVICTED);
    let is_closed = state::is_closed_by_client(old);
    count::moved(
        entry.backend(),
        (old, is_closed),
        (old | state::EVICTED, is_closed),
    );
    if old & state::CONFIRMED != 0 || F::pins().remove(tuple).is_err() {
        return;
    }
    if old & state::JOINED != 0 {
        count::untracked(entry.backend());
    }
    if old & state::COUNTED != 0 && !is_closed {
        count::ended(entry.backend());
    }
}
