//! Live flows by backend: counted by the datapath, and by the sweep for what it ends.

use std::{
    io,
    os::fd::BorrowedFd,
    sync::atomic::{AtomicU64, Ordering},
};

use lb_common::{backend::MAX_BACKENDS, flow::load};

use super::mapped::Mapping;

/// Open flows of each backend.
pub struct LiveFlows(Mapping<AtomicU64>);

impl LiveFlows {
    pub(super) fn new(map: BorrowedFd<'_>) -> io::Result<Self> {
        Mapping::new(map, MAX_BACKENDS as usize).map(Self)
    }

    /// Becomes what another is, as far as the ids below `ids` go.
    pub(super) fn copy(&self, from: &Self, ids: u32) {
        let words = from.0.get().iter().zip(self.0.get());
        for (from, to) in words.take(ids as usize) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn word(&self, backend: u32) -> Option<&AtomicU64> {
        self.0.get().get(backend as usize)
    }

    fn load(&self, backend: u32) -> u64 {
        self.word(backend)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// The flows of a backend that are confirmed and not closed.
    #[must_use]
    pub fn of(&self, backend: u32) -> u32 {
        load::live(self.load(backend))
    }

    /// Those that are not confirmed yet, nor closed.
    #[must_use]
    pub fn pending(&self, backend: u32) -> u32 {
        load::pending(self.load(backend))
    }

    /// The entry of a flow in this state is taken away.
    pub fn forget(&self, backend: u32, state: u32, is_closed: bool) {
        if let Some(word) = self.word(backend) {
            word.fetch_sub(load::of(state, is_closed), Ordering::Relaxed);
        }
    }
}
