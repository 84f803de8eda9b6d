//! The ring of a service: hash of a flow to slot, slot to backend ids.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Slots of a ring unless the service has another number: a prime, as Maglev needs, and large
/// enough that weights are kept within a percent (Eisenbud et al., "Maglev", NSDI 2016,
/// section 5.3).
pub const RING_SIZE: u32 = 65_537;

/// In place of a backend's id: there is none.
pub const NO_BACKEND: u32 = 0;

/// Origin of a slot without an owner whose flows may have entries: an id that no backend
/// has. Whatever has no entry there has no backend either.
pub const NOBODY: u32 = u32::MAX;

/// A slot of a ring: who serves new flows, and who served those of before (see
/// `docs/selection.md`). A word, so that a packet never sees half a change.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(8))]
pub struct Slot {
    /// Id of the backend that new flows go to, or [`NO_BACKEND`].
    pub owner: u32,
    /// Id of the backend that flows without an entry have, if that is not certain to be the
    /// owner; [`NO_BACKEND`] where no flow of this slot has an entry.
    pub origin: u32,
}

impl Slot {
    /// A clean slot.
    #[inline(always)]
    #[must_use]
    pub const fn clean(owner: u32) -> Self {
        Self {
            owner,
            origin: NO_BACKEND,
        }
    }

    /// No flow of the slot has an entry: all live at the owner.
    #[inline(always)]
    #[must_use]
    pub const fn is_clean(self) -> bool {
        self.origin == NO_BACKEND
    }

    /// Flows may have entries; those without live at the owner.
    #[inline(always)]
    #[must_use]
    pub const fn is_pinned(self) -> bool {
        self.origin != NO_BACKEND && self.origin == self.owner
    }

    /// Flows may have entries; those without live at the origin.
    #[inline(always)]
    #[must_use]
    pub const fn is_changing(self) -> bool {
        self.origin != NO_BACKEND && self.origin != self.owner
    }
}

const _: () = assert!(size_of::<Slot>() == 8);

/// The slot of a flow with this hash. Multiplication maps the hash evenly to
/// `0..size` without the cost of a division (Lemire, "Fast Random Integer
/// Generation in an Interval", 2019).
#[inline(always)]
#[must_use]
pub const fn slot(hash: u32, size: u32) -> u32 {
    ((hash as u64 * size as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_reach_from_first_to_last() {
        assert_eq!(slot(0, RING_SIZE), 0);
        assert_eq!(slot(u32::MAX, RING_SIZE), RING_SIZE - 1);
    }
}
