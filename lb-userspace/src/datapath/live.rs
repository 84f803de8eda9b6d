//! Live flows by backend: counted by the datapath, and by the sweep for what it ends.

use std::{
    io,
    os::fd::BorrowedFd,
    sync::atomic::{AtomicU32, Ordering},
};

use lb_common::backend::MAX_BACKENDS;

use super::mapped::Mapping;

/// Words that an element of four bytes takes in an array.
const STRIDE: usize = 2;

/// Flows of each backend that are confirmed and not closed.
pub struct LiveFlows(Mapping<AtomicU32>);

impl LiveFlows {
    pub(super) fn new(map: BorrowedFd<'_>) -> io::Result<Self> {
        Mapping::new(map, MAX_BACKENDS as usize * STRIDE).map(Self)
    }

    fn word(&self, backend: u32) -> Option<&AtomicU32> {
        self.0.get().get(backend as usize * STRIDE)
    }

    /// The flows of a backend.
    #[must_use]
    pub fn of(&self, backend: u32) -> u32 {
        self.word(backend)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// One of them has ended.
    pub fn end(&self, backend: u32) {
        if let Some(word) = self.word(backend) {
            word.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
