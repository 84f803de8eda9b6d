//! Port pools: bitmaps that the datapath takes source ports from and the daemon frees
//! them in.

use std::{
    collections::HashMap,
    io,
    os::fd::BorrowedFd,
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use lb_common::ports::{PORT_WORDS, PortPool};

use super::mapped::Mapping;

/// [`PortPool::used`] in shared memory.
type Used = Mapping<AtomicU64>;

/// The port pools, by id. Shared between the daemon's main task, which makes and
/// removes them, and the sweep, which frees their ports.
#[derive(Default)]
pub struct PortPools(RwLock<HashMap<u32, Used>>);

impl PortPools {
    pub(super) fn insert(&self, id: u32, map: BorrowedFd<'_>) -> io::Result<()> {
        const { assert!(std::mem::offset_of!(PortPool, used) == 0) };
        let used = Mapping::new(map, PORT_WORDS)?;
        self.write().insert(id, used);
        Ok(())
    }

    pub(super) fn remove(&self, id: u32) {
        self.write().remove(&id);
    }

    /// Makes a port (host byte order) free. `false` where it was, or where there is no
    /// such pool.
    pub fn free(&self, id: u32, port: u16) -> bool {
        let (word, bit) = position(port);
        self.read().get(&id).is_some_and(|used| {
            let old = used.get()[word].fetch_and(!bit, Ordering::Relaxed);
            old & bit != 0
        })
    }

    /// The bits of the ports in use, as in [`PortPool::used`], of every pool.
    #[must_use]
    pub fn used(&self) -> HashMap<u32, Box<[u64]>> {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        self.read()
            .iter()
            .map(|(id, used)| (*id, used.get().iter().map(load).collect()))
            .collect()
    }

    /// Whether any port of a pool is in use.
    #[must_use]
    pub fn is_in_use(&self, id: u32) -> bool {
        let in_use = |word: &AtomicU64| word.load(Ordering::Relaxed) != 0;
        let pools = self.read();
        pools
            .get(&id)
            .is_some_and(|used| used.get().iter().any(in_use))
    }

    // The table is whole also when a thread has panicked while it held the lock.

    fn read(&self) -> RwLockReadGuard<'_, HashMap<u32, Used>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<u32, Used>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The word and the bit of a port.
fn position(port: u16) -> (usize, u64) {
    (usize::from(port / 64), 1 << (port % 64))
}
