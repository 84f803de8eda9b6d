//! What becomes of a TCP packet, as `docs/selection.md` says it: in the modes without
//! replies, where flows have entries only if their slot is not clean.

use lb_common::ring::{NO_BACKEND, Slot};

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Id of the backend; [`NO_BACKEND`] if the packet is dropped.
    pub(crate) backend: u32,
    /// Whether the flow is to have an entry that says so, and has none.
    pub(crate) needs_entry: bool,
}

/// What becomes of a packet that begins a connection or not, of a flow with an entry for a
/// backend or without one, at a slot. `keeps_flows` says of a backend's id whether it is
/// there, be it up or not.
pub(crate) fn packet(
    slot: Slot,
    entry: Option<u32>,
    begins: bool,
    keeps_flows: impl Fn(u32) -> bool,
) -> Verdict {
    let owner = Some(slot.owner).filter(|id| keeps_flows(*id));
    let by_slot = Verdict {
        backend: owner.unwrap_or(NO_BACKEND),
        needs_entry: false,
    };
    if slot.is_clean() {
        return by_slot;
    }
    if let Some(backend) = entry.filter(|id| keeps_flows(*id)) {
        return Verdict {
            backend,
            needs_entry: false,
        };
    }
    if slot.is_pinned() {
        return by_slot;
    }
    let origin = Some(slot.origin).filter(|id| !begins && keeps_flows(*id));
    let backend = origin.or(owner);
    Verdict {
        backend: backend.unwrap_or(NO_BACKEND),
        needs_entry: backend.is_some(),
    }
}
