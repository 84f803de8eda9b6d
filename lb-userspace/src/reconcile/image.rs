//! What the datapath's tables hold, and how to get from one content to another.

use std::{cmp::Reverse, collections::BTreeMap};

use lb_common::{
    backend::{Backend, BackendState},
    guard::Guard,
    quic::{ConnectionIds, ServerIdKey},
    ring::RING_SIZE,
    service::{self, Service, Vip},
};

use crate::{
    address::{AddressPrefix, PortSet},
    datapath::{Match, Outlet, Source},
    scheduler::{self, Filled, Member, RingSize},
    state::Scheduler,
};

/// What a ring is made from. Two rings of the same recipe are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    /// How it is filled.
    pub scheduler: Scheduler,
    /// How many slots it has.
    pub size: RingSize,
    /// The backends that take new flows.
    pub members: Vec<Member>,
    /// Whether slots remember who served them before: flows of the service live where their
    /// slot says, and a SYN tells which of them are new.
    pub has_origins: bool,
    /// Whether every flow of the service has an entry.
    pub is_tracked: bool,
    /// How long clients are remembered, in ticks of the flow clock.
    pub affinity: u32,
}

impl Ring {
    /// The one without members that another begins as.
    #[must_use]
    pub fn empty(other: &Self) -> Self {
        Self {
            members: Vec::new(),
            ..other.clone()
        }
    }

    /// Who owns which slot, and over how many of them turns go.
    #[must_use]
    pub fn fill(&self) -> Filled {
        scheduler::ring(self.scheduler, &self.members, self.size)
    }
}

/// The content of the tables that the daemon writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Interfaces that packets may leave for, by index.
    pub interfaces: BTreeMap<u32, Outlet>,
    /// Flags of [`lb_common::Runtime`].
    pub flags: u32,
    /// Port pools by id: ports that they never hand out.
    pub pools: BTreeMap<u32, PortSet>,
    /// Backends by id; those that are absent are not in it.
    pub backends: BTreeMap<u32, Backend>,
    /// Backends by the server IDs that connection IDs of QUIC may have.
    pub server_ids: BTreeMap<ServerIdKey, u32>,
    /// Where connection IDs have these, by service id; those that have none are not in it.
    pub connection_ids: BTreeMap<u32, ConnectionIds>,
    /// Rings by service id. To the datapath one that was never made is one without members.
    pub rings: BTreeMap<u32, Ring>,
    /// Numbers of slots of rings of which it is not known what they were made from, those of
    /// a daemon before this one, by service id.
    pub found_rings: BTreeMap<u32, u32>,
    /// What guards services, by id. Its generation is 0: only the tables know it.
    pub guards: BTreeMap<u32, Guard>,
    /// Lists of sources: whether packets of them are taken.
    pub sources: BTreeMap<Source, bool>,
    /// Services by the packets that they take.
    pub services: BTreeMap<Match, Service>,
    /// Addresses of services.
    pub vips: BTreeMap<AddressPrefix, Vip>,
}

/// A step from one content to another. Any step may be done twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Lets packets leave by an interface.
    SetInterface(u32, Outlet),
    /// No more packets leave by it.
    RemoveInterface(u32),
    /// Writes the flags.
    SetFlags(u32),
    /// Makes port pools.
    CreatePools(Vec<u32>),
    /// Sets which ports a pool never hands out.
    ReservePorts(u32, PortSet),
    /// Removes port pools.
    RemovePools(Vec<u32>),
    /// Writes a backend.
    SetBackend(u32, Backend),
    /// Makes it absent.
    RemoveBackend(u32),
    /// Writes which backend has a server ID.
    SetServerId(ServerIdKey, u32),
    /// None has it.
    RemoveServerId(ServerIdKey),
    /// Writes where connection IDs of a service have server IDs.
    SetConnectionIds(u32, ConnectionIds),
    /// They have none.
    RemoveConnectionIds(u32),
    /// Fills and replaces the rings of services.
    SetRings(Vec<(u32, Ring)>),
    /// Removes the rings of services with so many slots.
    RemoveRings(Vec<(u32, u32)>),
    /// Writes what guards a service.
    SetGuard(u32, Guard),
    /// Nothing guards it any more.
    RemoveGuard(u32),
    /// Writes a prefix of a list.
    SetSource(Source, bool),
    /// Removes it.
    RemoveSource(Source),
    /// Writes an entry of a service.
    SetService(Match, Service),
    /// Removes it.
    RemoveService(Match),
    /// Writes an address of services.
    SetVip(AddressPrefix, Vip),
    /// Removes it.
    RemoveVip(AddressPrefix),
}

/// Tables that steps can be done on.
pub trait Tables {
    /// Why a step was not done.
    type Error;

    /// Does a step.
    ///
    /// # Errors
    ///
    /// Where the tables refuse; of a step on several entries some may then be done.
    fn apply(&mut self, op: &Op) -> Result<(), Self::Error>;
}

impl Tables for Image {
    type Error = std::convert::Infallible;

    fn apply(&mut self, op: &Op) -> Result<(), Self::Error> {
        match op {
            Op::SetInterface(ifindex, interface) => {
                self.interfaces.insert(*ifindex, *interface);
            }
            Op::RemoveInterface(ifindex) => {
                self.interfaces.remove(ifindex);
            }
            Op::SetFlags(flags) => self.flags = *flags,
            Op::CreatePools(ids) => {
                self.pools
                    .extend(ids.iter().map(|id| (*id, PortSet::default())));
            }
            Op::ReservePorts(id, ports) => {
                self.pools.insert(*id, ports.clone());
            }
            Op::RemovePools(ids) => self.pools.retain(|id, _| !ids.contains(id)),
            Op::SetBackend(id, backend) => {
                self.backends.insert(*id, *backend);
            }
            Op::RemoveBackend(id) => {
                self.backends.remove(id);
            }
            Op::SetServerId(id, backend) => {
                self.server_ids.insert(*id, *backend);
            }
            Op::RemoveServerId(id) => {
                self.server_ids.remove(id);
            }
            Op::SetConnectionIds(service, ids) => {
                self.connection_ids.insert(*service, *ids);
            }
            Op::RemoveConnectionIds(service) => {
                self.connection_ids.remove(service);
            }
            Op::SetRings(rings) => {
                self.rings.extend(rings.iter().cloned());
                self.found_rings
                    .retain(|id, _| !self.rings.contains_key(id));
            }
            Op::RemoveRings(rings) => {
                let is_left = |id: &u32, slots| !rings.contains(&(*id, slots));
                self.rings.retain(|id, ring| is_left(id, ring.size.get()));
                self.found_rings.retain(|id, slots| is_left(id, *slots));
            }
            Op::SetGuard(id, guard) => {
                self.guards.insert(*id, *guard);
            }
            Op::RemoveGuard(id) => {
                self.guards.remove(id);
            }
            Op::SetSource(source, is_allowed) => {
                self.sources.insert(*source, *is_allowed);
            }
            Op::RemoveSource(source) => {
                self.sources.remove(source);
            }
            Op::SetService(packets, service) => {
                self.services.insert(*packets, *service);
            }
            Op::RemoveService(packets) => {
                self.services.remove(packets);
            }
            Op::SetVip(address, vip) => {
                self.vips.insert(*address, *vip);
            }
            Op::RemoveVip(address) => {
                self.vips.remove(address);
            }
        }
        Ok(())
    }
}

/// The steps from `old` to `new`, in an order in which packets never meet half a change:
/// what is named is there before what names it, and goes after it.
#[must_use]
pub fn diff(old: &Image, new: &Image) -> Vec<Op> {
    let mut ops = Vec::new();
    ops.extend(changed(&old.interfaces, &new.interfaces).map(|(k, v)| Op::SetInterface(*k, *v)));
    let pools: Vec<u32> = gone(&new.pools, &old.pools).copied().collect();
    ops.extend(some(pools).map(Op::CreatePools));
    // A port is reserved before the service is there whose it is, and as long as that is.
    let reserved = |id| old.pools.get(id).cloned().unwrap_or_default();
    let both = |id, ports: &PortSet| reserved(id).union(ports);
    for (id, ports) in &new.pools {
        let both = both(id, ports);
        if both != reserved(id) {
            ops.push(Op::ReservePorts(*id, both));
        }
    }
    // A backend whose flows are reset takes no new ones: the ring must not name it any more.
    let is_reset = |backend: &Backend| backend.state == BackendState::Resetting as u8;
    let (resetting, serving): (Vec<_>, Vec<_>) =
        changed(&old.backends, &new.backends).partition(|(_, backend)| is_reset(backend));
    let set_backend = |(id, backend): (&u32, &Backend)| Op::SetBackend(*id, *backend);
    ops.extend(serving.into_iter().map(set_backend));
    for (packets, service) in &old.services {
        let ring = new.rings.get(&service.id());
        let between = ring.map_or(*service, |ring| between_rings(service, ring));
        if between != *service {
            ops.push(Op::SetService(*packets, between));
        }
    }
    // Each ring costs a wait for the packets that are on their way. A new service begins
    // without members, so that it would have to wait for nothing but zeros.
    let rings = changed(&old.rings, &new.rings)
        .filter(|(id, ring)| {
            let is_there = old.rings.contains_key(id) || old.found_rings.contains_key(id);
            !ring.members.is_empty() || is_there
        })
        .map(|(k, v)| (*k, v.clone()));
    ops.extend(some(rings.collect()).map(Op::SetRings));
    // The longest prefix comes first, and goes last: at any time each source meets what the old
    // list says of it, or what the new one does.
    let mut sources: Vec<_> = changed(&old.sources, &new.sources).collect();
    sources.sort_by_key(|(source, _)| Reverse(source.prefix.length()));
    ops.extend(sources.into_iter().map(|(k, v)| Op::SetSource(*k, *v)));
    ops.extend(changed(&old.guards, &new.guards).map(|(k, v)| Op::SetGuard(*k, *v)));
    ops.extend(resetting.into_iter().map(set_backend));
    // Where server IDs stand changes when the new ones are there, and before the old ones go.
    ops.extend(changed(&old.server_ids, &new.server_ids).map(|(k, v)| Op::SetServerId(*k, *v)));
    ops.extend(
        changed(&old.connection_ids, &new.connection_ids)
            .map(|(k, v)| Op::SetConnectionIds(*k, *v)),
    );
    ops.extend(changed(&old.services, &new.services).map(|(k, v)| Op::SetService(*k, *v)));
    // A flag is set before the first address that needs it, and goes after the last.
    if old.flags | new.flags != old.flags {
        ops.push(Op::SetFlags(old.flags | new.flags));
    }
    ops.extend(changed(&old.vips, &new.vips).map(|(k, v)| Op::SetVip(*k, *v)));

    ops.extend(gone(&old.vips, &new.vips).map(|k| Op::RemoveVip(*k)));
    if old.flags | new.flags != new.flags {
        ops.push(Op::SetFlags(new.flags));
    }
    ops.extend(gone(&old.services, &new.services).map(|k| Op::RemoveService(*k)));
    ops.extend(gone(&old.guards, &new.guards).map(|k| Op::RemoveGuard(*k)));
    let mut sources: Vec<_> = gone(&old.sources, &new.sources).copied().collect();
    sources.sort_by_key(|source| source.prefix.length());
    ops.extend(sources.into_iter().map(Op::RemoveSource));
    for (id, ports) in &new.pools {
        if both(id, ports) != *ports {
            ops.push(Op::ReservePorts(*id, ports.clone()));
        }
    }
    let known = old.rings.iter().map(|(id, ring)| (*id, ring.size.get()));
    let found = old.found_rings.iter().map(|(id, slots)| (*id, *slots));
    let is_replaced = |id, slots| {
        let ring = new.rings.get(&id);
        ring.is_some_and(|ring| is_usual(ring.size.get()) == is_usual(slots))
    };
    let rings = known.chain(found);
    let rings = rings.filter(|(id, slots)| !is_replaced(*id, *slots));
    ops.extend(some(rings.collect()).map(Op::RemoveRings));
    ops.extend(gone(&old.connection_ids, &new.connection_ids).map(|k| Op::RemoveConnectionIds(*k)));
    ops.extend(gone(&old.server_ids, &new.server_ids).map(|k| Op::RemoveServerId(*k)));
    ops.extend(gone(&old.backends, &new.backends).map(|k| Op::RemoveBackend(*k)));
    let pools: Vec<u32> = gone(&old.pools, &new.pools).copied().collect();
    ops.extend(some(pools).map(Op::RemovePools));
    ops.extend(gone(&old.interfaces, &new.interfaces).map(|k| Op::RemoveInterface(*k)));
    ops
}

/// What a service is while the ring that it has is replaced by this one.
///
/// A packet must not look for a slot beyond the end of a ring. So a service knows of a smaller
/// one before it takes the place of a larger one, and of a larger one after. Nor must turns go
/// over slots of one ring that were counted for another: that may have fewer, or no turns at
/// all, so that new flows would take the same slot, or none. Until the service knows of the new
/// ring they take any slot.
fn between_rings(service: &Service, ring: &Ring) -> Service {
    let size = ring.size.get();
    let mut between = *service;
    if size < service.ring_size() && is_usual(size) == is_usual(service.ring_size()) {
        between = between.with_ring_size(size);
    }
    let keeps_turns = matches!(
        ring.scheduler,
        Scheduler::RoundRobin | Scheduler::LeastConnections
    );
    let has_turns = [
        service::Scheduler::RoundRobin as u8,
        service::Scheduler::LeastConnections as u8,
    ]
    .contains(&service.scheduler);
    if has_turns && !(keeps_turns && size == service.ring_size()) {
        between.scheduler = service::Scheduler::Random as u8;
    }
    between
}

/// Whether rings with so many slots are in the one table of rings or in the other, where those
/// of a service may be at the same time.
const fn is_usual(slots: u32) -> bool {
    slots == RING_SIZE
}

/// What is in `new` and not the same in `old`.
fn changed<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    new.iter()
        .filter(|(key, value)| old.get(key) != Some(value))
}

/// What is in `old` and not in `new`.
fn gone<'a, K: Ord, V>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    old.keys().filter(|key| !new.contains_key(key))
}

/// Nothing where there is nothing to do.
fn some<T>(items: Vec<T>) -> Option<Vec<T>> {
    (!items.is_empty()).then_some(items)
}
