//! The rings of the datapath: what they are made from, and the slots of them that are not
//! clean.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use lb_common::ring::Slot;

use super::Ring;
use crate::{
    flows::Report,
    scheduler::RingSize,
    slots::{Counts, SlotSet, Slots},
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
    Found(Vec<u32>),
}

impl Owners {
    fn of_slots(&self) -> Cow<'_, [u32]> {
        match self {
            Self::Made(recipe) => recipe.fill().owners.into(),
            Self::Found(owners) => owners.into(),
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
}

impl Rings {
    /// The datapath has this ring of a service from a daemon before. `is_there` tells the
    /// backends that there are.
    pub fn adopt(
        &mut self,
        service: u32,
        ring: &[Slot],
        is_there: impl Fn(u32) -> bool,
        now: Duration,
    ) {
        let mut slots = Slots::restored(ring, now);
        let origins: BTreeSet<u32> = ring.iter().map(|slot| slot.origin).collect();
        for origin in origins.into_iter().filter(|origin| !is_there(*origin)) {
            slots.backend_removed(origin);
        }
        let owners = Owners::Found(ring.iter().map(|slot| slot.owner).collect());
        self.kept.insert(service, Kept { owners, slots });
    }

    /// A service's ring is made from another recipe; what to write is returned. It counts
    /// from [`Self::written`] on.
    pub fn set(&mut self, service: u32, recipe: &Ring) -> Written {
        let kept = self.kept.entry(service).or_insert_with(|| Kept {
            owners: Owners::Made(Ring::empty(recipe)),
            slots: Slots::new(),
        });
        if recipe.has_origins {
            let before = kept.owners.of_slots();
            let after = recipe.fill().owners;
            kept.slots.retarget(&before, &after);
        } else {
            kept.slots = Slots::new();
        }
        kept.owners = Owners::Made(recipe.clone());
        kept.content(service, recipe)
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

    /// The rings that the datapath has not as they are here. Those that were found are as
    /// they were until they are [set](Self::set).
    pub fn unwritten(&self) -> impl Iterator<Item = Written> {
        let unwritten = self
            .kept
            .iter()
            .filter(|(_, kept)| !kept.slots.is_written());
        unwritten.filter_map(|(service, kept)| match &kept.owners {
            Owners::Made(recipe) => Some(kept.content(*service, recipe)),
            Owners::Found(_) => None,
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

    /// How many slots of a service's ring are in which state.
    #[must_use]
    pub fn counts(&self, service: u32) -> Option<Counts> {
        let kept = self.kept.get(&service)?;
        Some(kept.slots.counts(RingSize::DEFAULT.get()))
    }
}

impl Kept {
    fn content(&self, service: u32, recipe: &Ring) -> Written {
        let filled = recipe.fill();
        Written {
            service,
            slots: self.slots.ring(&filled.owners).collect(),
            turns: filled.turns,
        }
    }
}
