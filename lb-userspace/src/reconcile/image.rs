//! What the datapath's tables hold, and how to get from one content to another.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    backend::{Backend, Interface},
    service::Service,
};

use crate::{datapath::Frontend, scheduler::Member, state::Scheduler};

/// What a ring is made from. Two rings of the same recipe are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    /// How it is filled.
    pub scheduler: Scheduler,
    /// The backends that take new flows.
    pub members: Vec<Member>,
}

/// The content of the tables that the daemon writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Interfaces that packets may leave by, by index.
    pub interfaces: BTreeMap<u32, Interface>,
    /// Flags of [`lb_common::Runtime`].
    pub flags: u32,
    /// Ids of the port pools.
    pub pools: BTreeSet<u32>,
    /// Backends by id; those that are absent are not in it.
    pub backends: BTreeMap<u32, Backend>,
    /// Rings by service id. To the datapath one that was never made is one without members.
    pub rings: BTreeMap<u32, Ring>,
    /// Addresses and protocols of services.
    pub vips: BTreeSet<Frontend>,
    /// Services by what clients send to.
    pub services: BTreeMap<Frontend, Service>,
}

/// A step from one content to another. Any step may be done twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Lets packets leave by an interface.
    SetInterface(u32, Interface),
    /// No more packets leave by it.
    RemoveInterface(u32),
    /// Writes the flags.
    SetFlags(u32),
    /// Makes port pools.
    CreatePools(Vec<u32>),
    /// Removes them.
    RemovePools(Vec<u32>),
    /// Writes a backend.
    SetBackend(u32, Backend),
    /// Makes it absent.
    RemoveBackend(u32),
    /// Fills and replaces the rings of services.
    SetRings(Vec<(u32, Ring)>),
    /// Removes them.
    RemoveRings(Vec<u32>),
    /// Adds the address of a service.
    SetVip(Frontend),
    /// Removes it.
    RemoveVip(Frontend),
    /// Writes a service.
    SetService(Frontend, Service),
    /// Removes it.
    RemoveService(Frontend),
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
            Op::CreatePools(ids) => self.pools.extend(ids),
            Op::RemovePools(ids) => self.pools.retain(|id| !ids.contains(id)),
            Op::SetBackend(id, backend) => {
                self.backends.insert(*id, *backend);
            }
            Op::RemoveBackend(id) => {
                self.backends.remove(id);
            }
            Op::SetRings(rings) => self.rings.extend(rings.iter().cloned()),
            Op::RemoveRings(services) => self.rings.retain(|id, _| !services.contains(id)),
            Op::SetVip(frontend) => {
                self.vips.insert(frontend.vip());
            }
            Op::RemoveVip(frontend) => {
                self.vips.remove(&frontend.vip());
            }
            Op::SetService(frontend, service) => {
                self.services.insert(*frontend, *service);
            }
            Op::RemoveService(frontend) => {
                self.services.remove(frontend);
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
    let pools: Vec<u32> = new.pools.difference(&old.pools).copied().collect();
    ops.extend(some(pools).map(Op::CreatePools));
    ops.extend(changed(&old.backends, &new.backends).map(|(k, v)| Op::SetBackend(*k, *v)));
    // Each ring costs a wait for the packets that are on their way. A new service begins
    // without members, so that it would have to wait for nothing but zeros.
    let rings = changed(&old.rings, &new.rings)
        .filter(|(id, ring)| !ring.members.is_empty() || old.rings.contains_key(id))
        .map(|(k, v)| (*k, v.clone()));
    ops.extend(some(rings.collect()).map(Op::SetRings));
    ops.extend(new.vips.difference(&old.vips).copied().map(Op::SetVip));
    // A flag is set before the first service that needs it, and goes after the last.
    if old.flags | new.flags != old.flags {
        ops.push(Op::SetFlags(old.flags | new.flags));
    }
    ops.extend(changed(&old.services, &new.services).map(|(k, v)| Op::SetService(*k, *v)));

    ops.extend(gone(&old.services, &new.services).map(|k| Op::RemoveService(*k)));
    if old.flags | new.flags != new.flags {
        ops.push(Op::SetFlags(new.flags));
    }
    ops.extend(old.vips.difference(&new.vips).copied().map(Op::RemoveVip));
    let rings: Vec<u32> = gone(&old.rings, &new.rings).copied().collect();
    ops.extend(some(rings).map(Op::RemoveRings));
    ops.extend(gone(&old.backends, &new.backends).map(|k| Op::RemoveBackend(*k)));
    let pools: Vec<u32> = old.pools.difference(&new.pools).copied().collect();
    ops.extend(some(pools).map(Op::RemovePools));
    ops.extend(gone(&old.interfaces, &new.interfaces).map(|k| Op::RemoveInterface(*k)));
    ops
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
