//! What the datapath's tables hold, and how to get from one content to another.

use std::collections::BTreeMap;

use lb_common::{
    backend::Backend,
    ring::RING_SIZE,
    service::{Service, Vip},
};

use crate::{
    address::{AddressPrefix, PortSet},
    datapath::{Match, Outlet},
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
    /// Rings by service id. To the datapath one that was never made is one without members.
    pub rings: BTreeMap<u32, Ring>,
    /// Numbers of slots of rings of which it is not known what they were made from, those of
    /// a daemon before this one, by service id.
    pub found_rings: BTreeMap<u32, u32>,
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
    /// Fills and replaces the rings of services.
    SetRings(Vec<(u32, Ring)>),
    /// Removes the rings of services with so many slots.
    RemoveRings(Vec<(u32, u32)>),
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
    ops.extend(changed(&old.backends, &new.backends).map(|(k, v)| Op::SetBackend(*k, *v)));
    // A packet must not look for a slot beyond the end of a ring. So a service knows of a
    // smaller one before it takes the place of a larger one, and of a larger one after.
    for (packets, service) in &old.services {
        if let Some(ring) = new.rings.get(&service.id())
            && ring.size.get() < service.ring_size()
            && is_usual(ring.size.get()) == is_usual(service.ring_size())
        {
            let service = service.with_ring_size(ring.size.get());
            ops.push(Op::SetService(*packets, service));
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
    ops.extend(gone(&old.backends, &new.backends).map(|k| Op::RemoveBackend(*k)));
    let pools: Vec<u32> = gone(&old.pools, &new.pools).copied().collect();
    ops.extend(some(pools).map(Op::RemovePools));
    ops.extend(gone(&old.interfaces, &new.interfaces).map(|k| Op::RemoveInterface(*k)));
    ops
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
