//! The rings of the datapath: what they are made from, and the slots of them that are not
//! clean.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use lb_common::ring::Slot;

use super::Ring;
use crate::{
    flows::Report,
    slots::{Counts, SlotSet, Slots},
};

/// The rings, by service id.
#[derive(Debug, Default)]
pub struct Rings {
    kept: BTreeMap<u32, Kept>,
}

#[derive(Debug)]
struct Kept {
    recipe: Ring,
    slots: Slots,
}

/// A ring to be written.
pub struct Written {
    /// Id of the service.
    pub service: u32,
    /// The slots.
    pub slots: Arc<[Slot]>,
    /// Slots, from the first on, that turns go over.
    pub turns: u32,
}

impl Rings {
    /// A service's ring is made from another recipe; what to write is returned. It counts
    /// from [`Self::written`] on.
    pub fn set(&mut self, service: u32, recipe: &Ring) -> Written {
        let kept = self.kept.entry(service).or_insert_with(|| Kept {
            recipe: Ring::empty(recipe),
            slots: Slots::new(),
        });
        if recipe.has_origins && kept.recipe.size == recipe.size {
            let before = kept.recipe.fill().owners;
            let after = recipe.fill().owners;
            kept.slots.retarget(&before, &after);
            if kept.recipe.is_tracked && !recipe.is_tracked {
                // What has an entry may live elsewhere than its slot says.
                kept.slots.pin_clean(after.len() as u32);
            }
        } else {
            kept.slots = Slots::new();
        }
        kept.recipe = recipe.clone();
        kept.content(service)
    }

    /// The ring of a service is gone.
    pub fn remove(&mut self, service: u32) {
        self.kept.remove(&service);
    }

    /// A backend is no more.
    pub fn backend_removed(&mut self, id: u32) {
        for kept in self.kept.values_mut() {
            kept.slots.backend_removed(id);
        }
    }

    /// Time passes: slots that have been changing for longer than the flows of their service
    /// may be idle are pinned.
    pub fn tick(&mut self, now: Duration, idle: impl Fn(u32) -> Duration) {
        for (service, kept) in &mut self.kept {
            kept.slots.tick(now, idle(*service));
        }
    }

    /// Takes what a sweep found that began at `began`. `service_of` says which service a
    /// backend belongs to.
    pub fn swept(
        &mut self,
        began: Duration,
        report: &Report,
        service_of: impl Fn(u32) -> Option<u32>,
    ) {
        let mut used = HashMap::<u32, SlotSet>::new();
        for (backend, slots) in &report.slots {
            if let Some(service) = service_of(*backend) {
                used.entry(service).or_default().extend(slots);
            }
        }
        let none = SlotSet::default();
        for (service, kept) in &mut self.kept {
            kept.slots.swept(began, used.get(service).unwrap_or(&none));
        }
    }

    /// An entry of a flow of this service could not be written before `now`.
    pub fn table_was_full(&mut self, service: u32, now: Duration) {
        if let Some(kept) = self.kept.get_mut(&service) {
            kept.slots.table_was_full(now);
        }
    }

    /// Whether a service has slots that are not clean.
    #[must_use]
    pub fn is_unsettled(&self, service: u32) -> bool {
        self.kept
            .get(&service)
            .is_some_and(|kept| !kept.slots.is_clean())
    }

    /// The rings that the datapath has not as they are here.
    pub fn unwritten(&self) -> impl Iterator<Item = Written> {
        let unwritten = self
            .kept
            .iter()
            .filter(|(_, kept)| !kept.slots.is_written());
        unwritten.map(|(service, kept)| kept.content(*service))
    }

    /// The datapath has the rings of these services, and no packet is on its way that found
    /// others.
    pub fn written(&mut self, services: impl IntoIterator<Item = u32>, now: Duration) {
        for service in services {
            if let Some(kept) = self.kept.get_mut(&service) {
                kept.slots.written(now);
            }
        }
    }

    /// How many slots of a service's ring are in which state.
    #[must_use]
    pub fn counts(&self, service: u32) -> Option<Counts> {
        let kept = self.kept.get(&service)?;
        Some(kept.slots.counts(kept.recipe.size.get()))
    }
}

impl Kept {
    fn content(&self, service: u32) -> Written {
        let filled = self.recipe.fill();
        Written {
            service,
            slots: self.slots.ring(&filled.owners).collect(),
            turns: filled.turns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        scheduler::{Member, RingSize},
        state::{BackendAddress, BackendPort, Scheduler},
    };

    const WEB: u32 = 1;

    /// Of backends with these ids.
    fn recipe(scheduler: Scheduler, ids: &[u32]) -> Ring {
        let member = |id: &u32| Member {
            address: BackendAddress {
                ip: [10, 0, 0, *id as u8].into(),
                port: BackendPort::Unnamed,
            },
            weight: 100,
            id: *id,
        };
        Ring {
            scheduler,
            size: RingSize::DEFAULT,
            members: ids.iter().map(member).collect(),
            has_origins: true,
            is_tracked: scheduler != Scheduler::Maglev,
        }
    }

    /// Sets the ring of a service, and has it written.
    fn set(rings: &mut Rings, recipe: &Ring, seconds: u64) -> Arc<[Slot]> {
        let written = rings.set(WEB, recipe);
        rings.written([WEB], Duration::from_secs(seconds));
        written.slots
    }

    #[test]
    fn a_backend_that_leaves_the_ring_is_the_origin_of_its_slots_until_it_is_removed() {
        let mut rings = Rings::default();
        let before = set(&mut rings, &recipe(Scheduler::Maglev, &[1, 2]), 0);
        assert!(before.iter().all(|slot| slot.is_clean()));
        let after = set(&mut rings, &recipe(Scheduler::Maglev, &[2]), 1);
        for (before, after) in before.iter().zip(after.iter()) {
            assert_eq!(after.owner, 2);
            let origin = if before.owner == 1 { 1 } else { 0 };
            assert_eq!(after.origin, origin);
        }
        rings.backend_removed(1);
        let removed = rings.unwritten().next().unwrap();
        let is_settled = |slot: &Slot| slot.is_clean() || slot.is_pinned();
        assert!(removed.slots.iter().all(is_settled));
    }

    /// Of whatever has no entry the slot still tells where it lives.
    #[test]
    fn another_scheduler_leaves_origins_behind() {
        let mut rings = Rings::default();
        let before = set(&mut rings, &recipe(Scheduler::Maglev, &[1, 2]), 0);
        let after = set(&mut rings, &recipe(Scheduler::RoundRobin, &[1, 2]), 1);
        for (before, after) in before.iter().zip(after.iter()) {
            let origin = if after.owner == before.owner {
                0
            } else {
                before.owner
            };
            assert_eq!(after.origin, origin);
        }
    }

    #[test]
    fn entries_are_read_on_until_they_are_gone_where_new_flows_have_none() {
        let mut rings = Rings::default();
        set(&mut rings, &recipe(Scheduler::Random, &[1, 2]), 0);
        let slots = set(&mut rings, &recipe(Scheduler::Maglev, &[1, 2]), 1);
        assert!(slots.iter().all(|slot| slot.is_pinned()));
        let mut used = SlotSet::default();
        used.insert(77);
        let report = Report {
            slots: [(2, used)].into(),
            ..Report::default()
        };
        rings.swept(Duration::from_secs(2), &report, |_| Some(WEB));
        assert_eq!(rings.counts(WEB).unwrap().pinned, 1);
        // A change back and forth is nothing to whom has no entry.
        set(&mut rings, &recipe(Scheduler::Random, &[1, 2]), 3);
        assert_eq!(rings.counts(WEB).unwrap().pinned, 1);
    }
}
