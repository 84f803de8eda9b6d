//! The arrays in front of the hash maps: what packets ask first. See [`lb_common::direct`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    io,
    os::fd::BorrowedFd,
    sync::atomic::{AtomicU64, Ordering},
};

use lb_common::{
    backend::Backend,
    direct::{
        ADDRESS, DIRECT_ENTRIES, DirectKey, MORE, REPLY_SOURCE_WORDS, SERVICE, TAG, reply_source,
    },
    service::Service,
};

use super::{bpf, mapped::Mapping};

#[cfg(test)]
mod tests;

/// The array in front of a hash map of services, with entries of `WORDS` words.
pub(super) struct Direct<K, const WORDS: usize> {
    memory: Mapping<AtomicU64>,
    /// All services by the index of their entry.
    services: HashMap<u32, Vec<(K, Service)>>,
    /// Entries whose service has gone: a packet may be reading them still.
    vacated: BTreeSet<u32>,
}

impl<K: DirectKey + Hash, const WORDS: usize> Direct<K, WORDS> {
    /// Takes the array `map` over, and brings it in line with the `services` of the hash map:
    /// what has written it before may have ended in the middle.
    pub(super) fn new(
        map: BorrowedFd<'_>,
        services: impl IntoIterator<Item = (K, Service)>,
    ) -> io::Result<Self> {
        let mut direct = Self {
            memory: Mapping::new(map, DIRECT_ENTRIES as usize * WORDS)?,
            services: HashMap::new(),
            vacated: BTreeSet::new(),
        };
        for (key, service) in services {
            let others = direct.services.entry(key.index()).or_default();
            others.push((key, service));
        }
        for index in 0..DIRECT_ENTRIES {
            let holders = direct.services.get(&index).map_or(&[][..], Vec::as_slice);
            let tag = direct.word(index, TAG).load(Ordering::Relaxed);
            if tag == 0 && holders.is_empty() {
                continue;
            }
            match holders.iter().find(|(key, _)| direct.holds(index, key)) {
                Some((_, service)) => {
                    direct.set_word(index, SERVICE, zerocopy::transmute!(*service));
                    let more = if holders.len() > 1 { MORE } else { 0 };
                    direct.set_word(index, TAG, tag & !MORE | more);
                }
                None => direct.vacate(index),
            }
        }
        direct.settle();
        Ok(direct)
    }

    /// A service that the hash map has.
    pub(super) fn set(&mut self, key: K, service: Service) {
        let index = key.index();
        let services = self.services.entry(index).or_default();
        match services.iter_mut().find(|(other, _)| *other == key) {
            Some((_, old)) => *old = service,
            None => services.push((key, service)),
        }
        if self.holds(index, &key) {
            self.set_word(index, SERVICE, zerocopy::transmute!(service));
            return;
        }
        // In any case the hash map is asked meanwhile.
        let tag = self.word(index, TAG).fetch_or(MORE, Ordering::Release);
        if tag == 0 {
            self.fill(index);
        } else if self.vacated.contains(&index) {
            self.settle();
        }
    }

    /// A service that the hash map will not have any more.
    pub(super) fn remove(&mut self, key: &K) {
        let index = key.index();
        let Some(services) = self.services.get_mut(&index) else {
            return;
        };
        services.retain(|(other, _)| other != key);
        let are_more = services.len() > 1;
        if self.holds(index, key) {
            self.vacate(index);
        } else if !are_more && !self.vacated.contains(&index) {
            self.word(index, TAG).fetch_and(!MORE, Ordering::Release);
        }
    }

    /// From now on the hash map is asked for all that this entry could say.
    fn vacate(&mut self, index: u32) {
        self.set_word(index, TAG, MORE);
        self.vacated.insert(index);
    }

    /// Uses entries again whose service has gone, once no packet is reading them. Where the
    /// kernel cannot wait for that they stay as they are, and the hash map is asked.
    fn settle(&mut self) {
        if self.vacated.is_empty() || bpf::wait_for_programs().is_err() {
            return;
        }
        for index in std::mem::take(&mut self.vacated) {
            self.fill(index);
        }
    }

    /// Gives an entry that no packet takes anything from to one of its services.
    fn fill(&self, index: u32) {
        let services = self.services.get(&index).map_or(&[][..], Vec::as_slice);
        let Some((key, service)) = services.first() else {
            self.set_word(index, TAG, 0);
            return;
        };
        self.set_word(index, SERVICE, zerocopy::transmute!(*service));
        for (word, part) in (ADDRESS..).zip(key.address().into_iter().flatten()) {
            self.set_word(index, word, part);
        }
        let more = if services.len() > 1 { MORE } else { 0 };
        self.set_word(index, TAG, key.tag() | more);
    }

    /// Whether an entry holds this key.
    fn holds(&self, index: u32, key: &K) -> bool {
        let is = |word, value| self.word(index, word).load(Ordering::Relaxed) == value;
        let address = key.address();
        let mut words = (ADDRESS..).zip(address.into_iter().flatten());
        self.word(index, TAG).load(Ordering::Relaxed) & !MORE == key.tag()
            && words.all(|(word, part)| is(word, part))
    }

    fn word(&self, index: u32, word: usize) -> &AtomicU64 {
        &self.memory.get()[index as usize * WORDS + word]
    }

    /// Stores a word behind all that was stored before.
    fn set_word(&self, index: u32, word: usize, value: u64) {
        self.word(index, word).store(value, Ordering::Release);
    }
}

/// The filter of addresses that replies may come from.
pub(super) struct ReplySources {
    memory: Mapping<AtomicU64>,
    /// How many have a bit.
    users: HashMap<u32, u32>,
    /// The bit of each.
    bits: HashMap<Replier, u32>,
}

/// Who sends replies.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Replier {
    /// The backend of this id.
    Backend(u32),
    /// The same, by its service's address, to health checks.
    Checked(u32),
}

impl ReplySources {
    /// Takes the filter `map` over, and brings it in line with the backends.
    pub(super) fn new(map: BorrowedFd<'_>, backends: &BTreeMap<u32, Backend>) -> io::Result<Self> {
        let mut sources = Self {
            memory: Mapping::new(map, REPLY_SOURCE_WORDS as usize)?,
            users: HashMap::new(),
            bits: HashMap::new(),
        };
        for (id, backend) in backends {
            sources.set(*id, backend);
        }
        for (index, word) in (0..).zip(sources.memory.get()) {
            let used = (0..u64::BITS)
                .filter(|bit| sources.users.contains_key(&(index * u64::BITS + bit)))
                .fold(0, |word, bit| word | 1_u64 << bit);
            word.fetch_and(used, Ordering::Relaxed);
        }
        Ok(sources)
    }

    /// A backend as its entry will be, [`Backend::default`] once no flow has it.
    pub(super) fn set(&mut self, id: u32, backend: &Backend) {
        let new = (*backend != Backend::default()).then_some(backend.address);
        self.hold(Replier::Backend(id), new);
    }

    /// The service address by which a backend answers health checks; `None` if it does no
    /// more.
    pub(super) fn set_checked(&mut self, id: u32, service: Option<[u32; 4]>) {
        self.hold(Replier::Checked(id), service);
    }

    fn hold(&mut self, replier: Replier, address: Option<[u32; 4]>) {
        let new = address.map(reply_source);
        if let Some(bit) = new {
            *self.users.entry(bit).or_default() += 1;
            let (word, mask) = self.place(bit);
            word.fetch_or(mask, Ordering::Release);
        }
        let old = match new {
            Some(bit) => self.bits.insert(replier, bit),
            None => self.bits.remove(&replier),
        };
        if let Some(bit) = old {
            let users = self.users.entry(bit).or_default();
            *users -= 1;
            if *users == 0 {
                self.users.remove(&bit);
                let (word, mask) = self.place(bit);
                word.fetch_and(!mask, Ordering::Release);
            }
        }
    }

    fn place(&self, bit: u32) -> (&AtomicU64, u64) {
        let word = &self.memory.get()[(bit / u64::BITS) as usize];
        (word, 1 << (bit % u64::BITS))
    }
}
