//! Which backend a new flow gets.

use lb_common::{
    backend::{Backend, BackendState},
    drop_reason::DropReason,
    flow::Tuple,
    ring::{self, NO_BACKEND, RING_SIZE},
    service::{Mode, Service},
};

use crate::{
    family::Family,
    maps::{BACKENDS, RINGS},
};

/// A backend and its id.
pub type Choice = (u32, &'static Backend);

/// The backend that the ring of a service has for a packet with `tuple`, with the way to
/// it known. An error comes with the id of the backend that can't be used, 0 for none.
#[inline(always)]
pub fn backend<F: Family>(
    tuple: &F::Tuple,
    service: &Service,
) -> Result<Choice, (DropReason, u32)> {
    let (src, dst) = F::addresses(tuple);
    if !F::is_client(src, dst) {
        return Err((DropReason::MartianSource, 0));
    }
    let (id, backend) = of_ring::<F>(tuple, service).ok_or((DropReason::NoBackend, 0))?;
    if backend.path.ifindex == 0 {
        return Err((DropReason::NextHopUnresolved, id));
    }
    if service.mode == Mode::Nat as u8 && F::same(src, F::address(&backend.address)) {
        return Err((DropReason::Hairpin, id));
    }
    Ok((id, backend))
}

/// The backend that stands in the ring.
#[inline(always)]
pub fn of_ring<F: Family>(tuple: &F::Tuple, service: &Service) -> Option<Choice> {
    let slot = ring::slot(tuple.hash(), RING_SIZE);
    let id = *RINGS.get_value(service.id, &slot)?;
    let backend = BACKENDS.get(id)?;
    let is_there = id != NO_BACKEND && backend.state != BackendState::Absent as u8;
    is_there.then_some((id, backend))
}
