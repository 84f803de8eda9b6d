//! Clients that keep their backends: the memory of `affinity`. It is read and written when a
//! flow begins, and written when one is confirmed.
//!
//! There are two tables, as there are two kinds of flows: what nobody has confirmed stands in a
//! small one, so that forged packets push out nothing but their like.

use lb_common::{
    backend::{Backend, BackendState},
    client::Client,
    flow::{FlowKey4, FlowKey6, load},
    ring::NO_BACKEND,
    service::Service,
};

use crate::{
    count,
    family::{Clients, Family, Ipv4, Ipv6, Newcomers},
    maps::{BACKENDS, OPTIONS, clock},
    service,
};

/// The backend that a client, which begins a flow, had last in this service, a word, if it is
/// remembered and takes new flows; else [`NO_BACKEND`].
#[inline(always)]
fn backend<F: Family>(tuple: &F::Tuple, service: u64) -> u32 {
    let service = service::of_word(service);
    let key = F::client_key(tuple, service.id());
    // What was told last of a client is among the newcomers, until it is confirmed.
    let newcomers: &Newcomers<F> = F::newcomers();
    let known = of_entry(newcomers.get_ptr_mut(&key), &service);
    if known != NO_BACKEND {
        return known;
    }
    let clients: &Clients<F> = F::clients();
    of_entry(clients.get_ptr_mut(&key), &service)
}

/// The backend of an entry, if it takes a flow of this client; else [`NO_BACKEND`].
#[inline(always)]
fn of_entry(entry: Option<*mut Client>, service: &Service) -> u32 {
    let Some(entry) = entry else {
        return NO_BACKEND;
    };
    // SAFETY: the pointer is a map value of a preallocated table; should the entry be pushed
    // out meanwhile, it reads as some client's, of a backend that is checked below.
    let Client { backend, last_seen } = unsafe { *entry };
    let lifetime = OPTIONS
        .get(service.id())
        .map_or(0, |options| options.affinity);
    let now = clock();
    if now.wrapping_sub(last_seen) > lifetime
        || !BACKENDS
            .get(backend)
            .is_some_and(|entry| takes(service, backend, entry))
    {
        return NO_BACKEND;
    }
    // SAFETY: as above; every writer stores the same value.
    unsafe {
        if last_seen != now {
            (*entry).last_seen = now;
        }
    }
    backend
}

/// Whether a backend of the service takes new flows.
#[inline(always)]
fn takes(service: &Service, id: u32, backend: &Backend) -> bool {
    backend.service == service.id()
        && backend.state == BackendState::Up as u8
        && backend.weight != 0
        && (backend.max_flows == 0 || load::live(count::load(id)) < backend.max_flows)
}

/// The client of a flow has this backend; `is_confirmed` says whether it gets answers.
#[inline(always)]
fn note<F: Family>(tuple: &F::Tuple, service: u32, backend: u32, is_confirmed: bool) {
    let key = F::client_key(tuple, service);
    let client = Client {
        backend,
        last_seen: clock(),
    };
    let newcomers: &Newcomers<F> = F::newcomers();
    // A client that there is no room for is a stranger the next time.
    if is_confirmed {
        let clients: &Clients<F> = F::clients();
        let _full = clients.insert(&key, &client, 0);
        let _absent = newcomers.remove(&key);
    } else {
        let _full = newcomers.insert(&key, &client, 0);
    }
}

/// [`backend`] for IPv4.
///
/// A global function, like [`crate::pin::pinned_v4`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn remembered_v4(tuple: *const FlowKey4, service: u64) -> u32 {
    // SAFETY: the verifier checks that callers pass a whole tuple.
    match unsafe { tuple.as_ref() } {
        Some(tuple) => backend::<Ipv4>(tuple, service),
        None => NO_BACKEND,
    }
}

/// [`backend`] for IPv6, like [`remembered_v4`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn remembered_v6(tuple: *const FlowKey6, service: u64) -> u32 {
    // SAFETY: as in `remembered_v4`.
    match unsafe { tuple.as_ref() } {
        Some(tuple) => backend::<Ipv6>(tuple, service),
        None => NO_BACKEND,
    }
}

/// [`note`] for IPv4, with a number in place of a truth value. Returns 0.
///
/// A global function, like [`remembered_v4`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn note_client_v4(
    tuple: *const FlowKey4,
    service: u32,
    backend: u32,
    is_confirmed: u32,
) -> u32 {
    // SAFETY: as in `remembered_v4`.
    if let Some(tuple) = unsafe { tuple.as_ref() } {
        note::<Ipv4>(tuple, service, backend, is_confirmed != 0);
    }
    0
}

/// [`note`] for IPv6, like [`note_client_v4`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn note_client_v6(
    tuple: *const FlowKey6,
    service: u32,
    backend: u32,
    is_confirmed: u32,
) -> u32 {
    // SAFETY: as in `remembered_v4`.
    if let Some(tuple) = unsafe { tuple.as_ref() } {
        note::<Ipv6>(tuple, service, backend, is_confirmed != 0);
    }
    0
}
