//! The rings of the datapath: what they are made from, and the slots of them that are not
//! clean.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use lb_common::{
    ring::Slot,
    service::{Mode, Service},
};

use super::Ring;
use crate::{
    flows::Report,
    scheduler::Filled,
    slots::{SlotSet, Slots},
};

/// The rings, by service id.
#[derive(Debug, Default)]
pub struct Rings {
    kept: BTreeMap<u32, Kept>,
}

#[derive(Debug)]
struct Kept {
    owners: Owners,
    slots: Slots,
}

/// Who owns the slots of a ring.
#[derive(Debug)]
enum Owners {
    /// Whoever follows from this.
    Made(Ring),
    /// Those that the datapath had from a daemon before.
    Found {
        /// Who owns which slot.
        owners: Vec<u32>,
        /// See [`Ring::is_tracked`].
        is_tracked: bool,
    },
}

impl Owners {
    fn of_slots(&self) -> Cow<'_, [u32]> {
        match self {
            Self::Made(recipe) => recipe.fill().owners.into(),
            Self::Found { owners, .. } => owners.into(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Made(recipe) => recipe.size.get() as usize,
            Self::Found { owners, .. } => owners.len(),
        }
    }

    fn is_tracked(&self) -> bool {
        match self {
            Self::Made(recipe) => recipe.is_tracked,
            Self::Found { is_tracked, .. } => *is_tracked,
        }
    }
}

/// A ring to be written.
pub struct Written {
    /// Id of the service.
    pub service: u32,
    /// The slots.
    pub slots: Arc<[Slot]>,
    /// Slots, from the first on, that turns go over.
    pub turns: u32,
    /// See [`Ring::affinity`].
    pub affinity: u32,
}

impl Rings {
    /// The datapath has this ring of a service from a daemon before. `is_there` tells the
    /// backends that there are.
    pub fn adopt(
        &mut self,
        service: &Service,
        ring: &[Slot],
        is_there: impl Fn(u32) -> bool,
        now: Duration,
    ) {
        let mut slots = Slots::restored(ring, now);
        let origins: BTreeSet<u32> = ring.iter().map(|slot| slot.origin).collect();
        for origin in origins.into_iter().filter(|origin| !is_there(*origin)) {
            slots.backend_removed(origin);
        }
        let owners = Owners::Found {
            owners: ring.iter().map(|slot| slot.owner).collect(),
            is_tracked: service.flags & Service::TRACKED != 0 || Mode::translates(service.mode),
        };
        self.kept.insert(service.id(), Kept { owners, slots });
    }

    /// A service's ring is made from another recipe; what to write is returned. It counts
    /// from [`Self::written`] on.
    pub fn set(&mut self, service: u32, recipe: &Ring) -> Written {
        let kept = self.kept.entry(service).or_insert_with(|| Kept {
            owners: Owners::Made(Ring::empty(recipe)),
            slots: Slots::new(),
        });
        let filled = recipe.fill();
        // Nobody knows where a slot of a ring of another size was before.
        if recipe.has_origins && kept.owners.len() == filled.owners.len() {
            kept.slots.retarget(&kept.owners.of_slots(), &filled.owners);
            if kept.owners.is_tracked() && !recipe.is_tracked {
                // What has an entry may live elsewhere than its slot says.
                kept.slots.pin_clean(filled.owners.len() as u32);
            }
        } else {
            kept.slots = Slots::new();
        }
        kept.owners = Owners::Made(recipe.clone());
        kept.content(service, recipe, &filled)
    }

    /// The ring of a service with so many slots is gone. It may have another now.
    pub fn remove(&mut self, service: u32, slots: u32) {
        if let Entry::Occupied(kept) = self.kept.entry(service)
            && kept.get().owners.len() == slots as usize
        {
            kept.remove();
        }
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

    /// The rings that the datapath has not as they are here. Those that were found are as
    /// they were until they are [set](Self::set).
    pub fn unwritten(&self) -> impl Iterator<Item = Written> {
        let unwritten = self
            .kept
            .iter()
            .filter(|(_, kept)| !kept.slots.is_written());
        unwritten.filter_map(|(service, kept)| match &kept.owners {
            Owners::Made(recipe) => Some(kept.content(*service, recipe, &recipe.fill())),
            Owners::Found { .. } => None,
        })
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
}

impl Kept {
    fn content(&self, service: u32, recipe: &Ring, filled: &Filled) -> Written {
        Written {
            service,
            slots: self.slots.ring(&filled.owners).collect(),
            turns: filled.turns,
            affinity: recipe.affinity,
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_common::ring::RING_SIZE;

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
            affinity: 0,
        }
    }

    /// Sets the ring of a service, and has it written.
    fn set(rings: &mut Rings, recipe: &Ring, seconds: u64) -> Arc<[Slot]> {
        let written = rings.set(WEB, recipe);
        rings.written([WEB], Duration::from_secs(seconds));
        written.slots
    }

    fn pinned(rings: &Rings) -> u32 {
        rings.kept[&WEB].slots.counts(RING_SIZE).pinned
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
        assert_eq!(pinned(&rings), 1);
        // A change back and forth is nothing to whom has no entry.
        set(&mut rings, &recipe(Scheduler::Random, &[1, 2]), 3);
        assert_eq!(pinned(&rings), 1);
    }

    /// A daemon before had the ring of `service` as it is after `recipe`.
    fn adopted(service: Service, recipe: &Ring) -> Rings {
        let ring = set(&mut Rings::default(), recipe, 0);
        let mut rings = Rings::default();
        rings.adopt(&service, &ring, |_| true, Duration::ZERO);
        rings
    }

    fn service(mode: Mode, flags: u8) -> Service {
        Service {
            id: WEB as u16,
            mode: mode as u8,
            flags,
            ..Service::default()
        }
    }

    #[test]
    fn entries_of_a_daemon_before_are_read_on_until_they_are_gone() {
        let maglev = recipe(Scheduler::Maglev, &[1, 2]);
        for (mode, flags, expected) in [
            (Mode::Dsr, 0, 0),
            (Mode::Dsr, Service::TRACKED, RING_SIZE),
            (Mode::FullNat, 0, RING_SIZE),
        ] {
            let mut rings = adopted(service(mode, flags), &maglev);
            set(&mut rings, &maglev, 1);
            assert_eq!(pinned(&rings), expected);
        }
    }

    #[test]
    fn a_ring_of_another_size_than_a_daemon_before_had_begins_anew() {
        let before = recipe(Scheduler::Maglev, &[1, 2]);
        let mut rings = adopted(service(Mode::Dsr, 0), &before);
        let after = Ring {
            size: RingSize::new(251).unwrap(),
            ..recipe(Scheduler::Maglev, &[2, 3])
        };
        let slots = set(&mut rings, &after, 1);
        assert_eq!(slots.len(), 251);
        assert!(slots.iter().all(|slot| slot.is_clean()));
    }
}
