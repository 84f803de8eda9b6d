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
use crate::address::PortSet;

/// A port pool.
struct Pool {
    /// [`PortPool::used`] in shared memory, and behind it a word that ends with
    /// [`PortPool::exhausted`].
    words: Mapping<AtomicU64>,
    /// Ports that are never handed out: their bits stay set.
    reserved: PortSet,
}

impl Pool {
    /// [`PortPool::used`].
    fn used(&self) -> &[AtomicU64] {
        &self.words.get()[..PORT_WORDS]
    }

    /// Lets the next search look at every port.
    fn look_again(&self) {
        // The cursor, which stands before it, stays.
        const OTHERS: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        self.words.get()[PORT_WORDS].fetch_and(OTHERS, Ordering::Relaxed);
    }

    /// The bits of the ports in use by flows.
    fn used_by_flows(&self) -> Box<[u64]> {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let mut used: Box<[u64]> = self.used().iter().map(load).collect();
        for (word, bits) in masks(&self.reserved) {
            used[word] &= !bits;
        }
        used
    }
}

/// The port pools, by id. Shared between the daemon's main task, which makes and
/// removes them, and the sweep, which frees their ports.
#[derive(Default)]
pub struct PortPools(RwLock<HashMap<u32, Pool>>);

impl PortPools {
    pub(super) fn insert(&self, id: u32, map: BorrowedFd<'_>) -> io::Result<()> {
        const { assert!(std::mem::offset_of!(PortPool, used) == 0) };
        const { assert!(std::mem::offset_of!(PortPool, exhausted) == PORT_WORDS * 8 + 4) };
        let pool = Pool {
            words: Mapping::new(map, PORT_WORDS + 1)?,
            reserved: PortSet::default(),
        };
        self.write().insert(id, pool);
        Ok(())
    }

    pub(super) fn remove(&self, id: u32) {
        self.write().remove(&id);
    }

    /// Keeps these ports of a pool, and no others, from being handed out. A flow that has
    /// one keeps it. One that was reserved before is handed out again when a sweep has
    /// found that no flow has it, and freed it.
    pub fn reserve(&self, id: u32, ports: PortSet) {
        // Under the same lock as `free`, so that no port is freed that is being reserved.
        if let Some(pool) = self.write().get_mut(&id) {
            for (word, bits) in masks(&ports) {
                pool.used()[word].fetch_or(bits, Ordering::Relaxed);
            }
            pool.reserved = ports;
        }
    }

    /// Makes a port (host byte order) free. `false` where it was, or is reserved, or where
    /// there is no such pool.
    pub fn free(&self, id: u32, port: u16) -> bool {
        let (word, bit) = position(port);
        let pools = self.read();
        let pool = pools.get(&id);
        pool.filter(|pool| !pool.reserved.covers(port.into()))
            .is_some_and(|pool| {
                let old = pool.used()[word].fetch_and(!bit, Ordering::Relaxed);
                pool.look_again();
                old & bit != 0
            })
    }

    /// The bits of the ports in use, as in [`PortPool::used`], of every pool. Reserved
    /// ports are not among them.
    #[must_use]
    pub fn used(&self) -> HashMap<u32, Box<[u64]>> {
        self.read()
            .iter()
            .map(|(id, pool)| (*id, pool.used_by_flows()))
            .collect()
    }

    /// Whether any port of a pool is in use, those that are reserved apart.
    #[must_use]
    pub fn is_in_use(&self, id: u32) -> bool {
        let pools = self.read();
        pools
            .get(&id)
            .is_some_and(|pool| pool.used_by_flows().iter().any(|word| *word != 0))
    }

    /// The bits of a pool as the datapath sees them.
    #[cfg(test)]
    pub(crate) fn bits(&self, id: u32) -> Option<Vec<u64>> {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let pools = self.read();
        Some(pools.get(&id)?.used().iter().map(load).collect())
    }

    // The table is whole also when a thread has panicked while it held the lock.

    fn read(&self) -> RwLockReadGuard<'_, HashMap<u32, Pool>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<u32, Pool>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The word and the bit of a port.
fn position(port: u16) -> (usize, u64) {
    (usize::from(port / 64), 1 << (port % 64))
}

/// The words and bits of some ports. A word may come twice, with other bits.
fn masks(ports: &PortSet) -> impl Iterator<Item = (usize, u64)> {
    ports.ranges().flat_map(|range| {
        let (first, last) = (position(range.first()), position(range.last()));
        (first.0..=last.0).map(move |word| {
            // The bits from one on are all but those below it.
            let from = if word == first.0 { first.1 } else { 1 };
            let to = if word == last.0 { last.1 } else { 1 << 63 };
            (word, to | ((to - 1) & !(from - 1)))
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::address::PortRange;

    proptest! {
        #[test]
        fn masks_have_the_bits_of_the_ports(
            pairs in vec(prop_oneof![(0..200_u16, 0..200_u16), any::<(u16, u16)>()], 0..5),
        ) {
            let range = |(a, b): (u16, u16)| PortRange::new(a.min(b), a.max(b)).unwrap();
            let ports: PortSet = pairs.into_iter().map(range).collect();
            let mut bits = vec![0_u64; PORT_WORDS];
            for (word, mask) in masks(&ports) {
                bits[word] |= mask;
            }
            for port in 0..=u16::MAX {
                let (word, bit) = position(port);
                prop_assert_eq!(bits[word] & bit != 0, ports.covers(port.into()), "{}", port);
            }
        }
    }
}
