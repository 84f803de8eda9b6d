//! What the datapath counts of the connections that clients begin.

use std::{
    io,
    os::fd::BorrowedFd,
    sync::atomic::{AtomicU64, Ordering},
};

use lb_common::{
    backend::MAX_BACKENDS,
    outcome::{ANSWERED, BEGUN, Outcomes, REFUSED, WORDS},
};

use super::mapped::Mapping;

/// The counts of each backend, in memory that the datapath writes.
pub(super) struct Counted(Mapping<AtomicU64>);

impl Counted {
    pub(super) fn new(map: BorrowedFd<'_>) -> io::Result<Self> {
        Mapping::new(map, MAX_BACKENDS as usize * WORDS).map(Self)
    }

    /// Begins anew with a backend that nothing comes for any more.
    pub(super) fn forget(&self, backend: u32) {
        let first = backend as usize * WORDS;
        let words = self.0.get().get(first..first + WORDS).unwrap_or_default();
        for word in words {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Those of a backend. No system call is made.
    pub(super) fn of(&self, backend: u32) -> Outcomes {
        let first = backend as usize * WORDS;
        let words = self.0.get().get(first..first + WORDS).unwrap_or_default();
        let word = |which: usize| {
            let word = words.get(which);
            word.map_or(0, |word| word.load(Ordering::Relaxed))
        };
        Outcomes {
            // Read first, so that no answer is missing whose SYN is there.
            begun: word(BEGUN),
            answered: word(ANSWERED),
            refused: word(REFUSED),
        }
    }
}
