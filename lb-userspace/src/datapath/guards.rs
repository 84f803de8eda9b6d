//! Lists of sources and limits of new flows, as the tables hold them.

use std::{collections::BTreeMap, net::IpAddr};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, MapError, lpm_trie::Key},
};
use lb_common::{
    guard::{ALLOW, ANY_SOURCE, BucketKey, DENY, Guard, SourceKey4, SourceKey6},
    map_name,
};

use super::{
    Datapath, Plain, Result, Trie,
    error::{gone, map_error},
    insert_prefix,
    key::{address, address6, word, words6},
    remove_prefix, take,
};
use crate::address::AddressPrefix;

/// A prefix in the list of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// Id of the service.
    pub service: u32,
    /// The prefix. That of no bits is for all that no other has.
    pub prefix: AddressPrefix,
}

/// A [`Source`] as the table has it that it is for.
enum SourceKey {
    V4(Key<Plain<SourceKey4>>),
    V6(Key<Plain<SourceKey6>>),
}

impl Source {
    fn key(self) -> SourceKey {
        let Self { service, prefix } = self;
        let length = ANY_SOURCE + u32::from(prefix.length());
        match prefix.address() {
            IpAddr::V4(first) => {
                let address = word(first);
                SourceKey::V4(Key::new(length, Plain(SourceKey4 { service, address })))
            }
            IpAddr::V6(first) => {
                let address = words6(first);
                SourceKey::V6(Key::new(length, Plain(SourceKey6 { service, address })))
            }
        }
    }

    fn of(service: u32, first: IpAddr, length: u32) -> Self {
        let length = length.saturating_sub(ANY_SOURCE) as u8;
        let prefix = AddressPrefix::new(first, length);
        Self { service, prefix }
    }
}

/// The tables.
pub(super) struct Guards {
    guards: Array<MapData, Plain<Guard>>,
    sources_v4: Trie<SourceKey4, u32>,
    sources_v6: Trie<SourceKey6, u32>,
    service_buckets: Array<MapData, u64>,
    source_buckets: HashMap<MapData, Plain<BucketKey>, u64>,
}

impl Guards {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            guards: take(ebpf, map_name::GUARDS)?,
            sources_v4: take(ebpf, map_name::SOURCES_V4)?,
            sources_v6: take(ebpf, map_name::SOURCES_V6)?,
            service_buckets: take(ebpf, map_name::SERVICE_BUCKETS)?,
            source_buckets: take(ebpf, map_name::SOURCE_BUCKETS)?,
        })
    }

    fn guard(&self, service: u32) -> Result<Guard> {
        let Plain(guard) = self
            .guards
            .get(&service, 0)
            .map_err(map_error("reading", map_name::GUARDS))?;
        Ok(guard)
    }

    fn write(&mut self, service: u32, guard: Guard) -> Result<()> {
        self.guards
            .set(service, Plain(guard), 0)
            .map_err(map_error("writing", map_name::GUARDS))
    }
}

/// A guard without the number that only the tables know.
fn without_generation(guard: Guard) -> Guard {
    Guard {
        generation: 0,
        ..guard
    }
}

impl Datapath {
    /// Writes what guards a service. Of one that had nothing that did, all buckets are full:
    /// those of a service that had its id before are nobody's. What the guard says of
    /// generations does not count.
    pub fn set_guard(&mut self, service: u32, guard: Guard) -> Result<()> {
        let before = self.guards.guard(service)?;
        let mut generation = before.generation;
        if without_generation(before) == Guard::default() {
            generation = generation.wrapping_add(1);
            self.set_service_bucket(service, 0)?;
        }
        self.guards.write(
            service,
            Guard {
                generation,
                ..guard
            },
        )
    }

    /// Nothing guards a service any more.
    pub fn remove_guard(&mut self, service: u32) -> Result<()> {
        let Guard { generation, .. } = self.guards.guard(service)?;
        self.guards.write(
            service,
            Guard {
                generation,
                ..Guard::default()
            },
        )
    }

    /// What guards services, by id.
    pub fn guards(&self) -> Result<BTreeMap<u32, Guard>> {
        let mut guards = BTreeMap::new();
        for (id, guard) in (0..).zip(self.guards.guards.iter()) {
            let Plain(guard) = guard.map_err(map_error("reading", map_name::GUARDS))?;
            let guard = without_generation(guard);
            if guard != Guard::default() {
                guards.insert(id, guard);
            }
        }
        Ok(guards)
    }

    /// Writes a prefix of a list: whether its packets are taken.
    pub fn set_source(&mut self, source: Source, is_allowed: bool) -> Result<()> {
        let verdict = if is_allowed { ALLOW } else { DENY };
        let guards = &mut self.guards;
        match source.key() {
            SourceKey::V4(key) => {
                insert_prefix(&mut guards.sources_v4, map_name::SOURCES_V4, &key, verdict)
            }
            SourceKey::V6(key) => {
                insert_prefix(&mut guards.sources_v6, map_name::SOURCES_V6, &key, verdict)
            }
        }
    }

    /// Takes a prefix out of a list.
    pub fn remove_source(&mut self, source: Source) -> Result<()> {
        let guards = &mut self.guards;
        match source.key() {
            SourceKey::V4(key) => remove_prefix(&mut guards.sources_v4, map_name::SOURCES_V4, &key),
            SourceKey::V6(key) => remove_prefix(&mut guards.sources_v6, map_name::SOURCES_V6, &key),
        }
    }

    /// The lists: whether packets are taken, by prefix.
    pub fn sources(&self) -> Result<BTreeMap<Source, bool>> {
        let mut sources = BTreeMap::new();
        for entry in self.guards.sources_v4.iter() {
            let (key, Plain(verdict)) =
                entry.map_err(map_error("reading", map_name::SOURCES_V4))?;
            let Plain(SourceKey4 {
                service,
                address: first,
            }) = key.data();
            let source = Source::of(service, address(first).into(), key.prefix_len());
            sources.insert(source, verdict == ALLOW);
        }
        for entry in self.guards.sources_v6.iter() {
            let (key, Plain(verdict)) =
                entry.map_err(map_error("reading", map_name::SOURCES_V6))?;
            let Plain(SourceKey6 {
                service,
                address: first,
            }) = key.data();
            let source = Source::of(service, address6(first).into(), key.prefix_len());
            sources.insert(source, verdict == ALLOW);
        }
        Ok(sources)
    }

    /// The bucket of a service.
    pub fn service_bucket(&self, service: u32) -> Result<u64> {
        self.guards
            .service_buckets
            .get(&service, 0)
            .map_err(map_error("reading", map_name::SERVICE_BUCKETS))
    }

    /// Writes the bucket of a service.
    pub fn set_service_bucket(&mut self, service: u32, bucket: u64) -> Result<()> {
        self.guards
            .service_buckets
            .set(service, bucket, 0)
            .map_err(map_error("writing", map_name::SERVICE_BUCKETS))
    }

    /// The buckets of sources, those of services that are gone too.
    pub fn source_buckets(&self) -> Result<BTreeMap<BucketKey, u64>> {
        self.guards
            .source_buckets
            .iter()
            .map(|entry| entry.map(|(Plain(key), bucket)| (key, bucket)))
            .collect::<Result<_, MapError>>()
            .map_err(map_error("reading", map_name::SOURCE_BUCKETS))
    }

    /// Writes the bucket of a source.
    pub fn set_source_bucket(&mut self, key: BucketKey, bucket: u64) -> Result<()> {
        self.guards
            .source_buckets
            .insert(Plain(key), bucket, 0)
            .map_err(map_error("writing", map_name::SOURCE_BUCKETS))
    }

    /// Forgets the bucket of a source: it is full.
    pub fn remove_source_bucket(&mut self, key: BucketKey) -> Result<()> {
        gone(self.guards.source_buckets.remove(&Plain(key)))
            .map_err(map_error("removing", map_name::SOURCE_BUCKETS))
    }
}
