//! Who caused what: keeps the figures of the datapath, which are by id, for the services
//! and backends that had the ids, and does not lose those of what is gone.

use std::collections::{BTreeMap, HashMap};

use lb_common::{
    backend::Backend,
    counters::{Counters, DropKey},
};

use crate::{
    datapath,
    flows::Report,
    reconcile::{Image, Released},
};

/// The counters of the datapath.
pub(super) trait Meters {
    /// What passed for a backend.
    fn counters(&self, backend: u32) -> datapath::Result<Counters>;
    /// Flows of a backend that are confirmed and have not ended.
    fn live_flows(&self, backend: u32) -> u32;
    /// Dropped packets.
    fn drops(&self) -> datapath::Result<BTreeMap<DropKey, u64>>;
    /// Forgets a backend: its counters are zero.
    fn forget_backend(&mut self, id: u32) -> datapath::Result<()>;
    /// Forgets dropped packets.
    fn clear_drops(&mut self, key: DropKey) -> datapath::Result<()>;
}

/// Dropped packets by number of the reason and of the direction.
pub(super) type Drops = BTreeMap<(u16, u16), u64>;

/// Figures of a backend or a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    /// What the datapath counted.
    pub(super) counters: Counters,
    /// Flows that the sweep ended.
    pub(super) expired: u64,
    /// Flows with entries that are confirmed and have not ended.
    pub(super) live: u64,
    /// Dropped packets.
    pub(super) drops: Drops,
}

impl Figures {
    fn add(&mut self, other: &Self) {
        self.counters = self.counters.plus(other.counters);
        self.expired += other.expired;
        self.live += other.live;
        add(&mut self.drops, &other.drops);
    }
}

/// All figures, as they are now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reading {
    /// Of backends, by id.
    pub(super) backends: HashMap<u32, Figures>,
    /// Of services, by id: the sums over all backends that they ever had.
    pub(super) services: HashMap<u32, Figures>,
    /// Of everything, by number of the reason.
    pub(super) drops: BTreeMap<u16, u64>,
}

/// A backend id that is in use or rests.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    service: u32,
    expired: u64,
}

/// Remembers what the counters of the datapath do not.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// By backend id.
    accounts: HashMap<u32, Account>,
    /// Figures of backends that services have lost, by service id.
    former: HashMap<u32, Figures>,
    /// Packets that were dropped for what is gone, by number of the reason.
    drops: BTreeMap<u16, u64>,
}

impl Ledger {
    /// Takes notice of the backends that there are.
    pub(super) fn open(&mut self, image: &Image) {
        for (id, backend) in &image.backends {
            self.accounts.entry(*id).or_default().service = backend.service;
        }
    }

    /// Takes notice of backends that were removed before the daemon began, and that belonged
    /// to these services.
    pub(super) fn adopt(&mut self, removed: &BTreeMap<u32, Backend>) {
        for (id, backend) in removed {
            self.accounts.entry(*id).or_default().service = backend.service;
        }
    }

    /// Whether any backend of a service still has an account.
    pub(super) fn counts_for(&self, service: u32) -> bool {
        self.accounts
            .values()
            .any(|account| account.service == service)
    }

    /// Takes the flows that a sweep ended.
    pub(super) fn expired(&mut self, report: &Report) {
        for (backend, flows) in &report.ended {
            if let Some(account) = self.accounts.get_mut(backend) {
                account.expired += flows;
            }
        }
    }

    /// Closes the accounts of ids that are free again: their figures go to the service,
    /// as long as that is there.
    pub(super) fn close(
        &mut self,
        released: &Released,
        meters: &mut impl Meters,
    ) -> datapath::Result<()> {
        if released.backends.is_empty() && released.services.is_empty() {
            return Ok(());
        }
        let drops = meters.drops()?;
        for id in &released.backends {
            let Some(account) = self.accounts.remove(id) else {
                continue;
            };
            let figures = Figures {
                counters: meters.counters(*id)?,
                expired: account.expired,
                ..Figures::default()
            };
            self.former
                .entry(account.service)
                .or_default()
                .add(&figures);
            meters.forget_backend(*id)?;
        }
        for (key, packets) in drops {
            let of_backend = key.backend != 0 && released.backends.contains(&key.backend);
            let of_service = key.service != 0 && released.services.contains(&key.service);
            if of_backend || of_service {
                *self.drops.entry(key.reason).or_default() += packets;
                let former = self.former.entry(key.service).or_default();
                *former.drops.entry((key.reason, key.direction)).or_default() += packets;
                meters.clear_drops(key)?;
            }
        }
        for id in &released.services {
            self.former.remove(id);
        }
        Ok(())
    }

    /// Reads the figures of one backend, without its drops.
    pub(super) fn backend(&self, id: u32, meters: &impl Meters) -> datapath::Result<Figures> {
        let account = self.accounts.get(&id).copied().unwrap_or_default();
        Ok(Figures {
            counters: meters.counters(id)?,
            expired: account.expired,
            live: meters.live_flows(id).into(),
            drops: Drops::new(),
        })
    }

    /// Reads all figures.
    pub(super) fn read(&self, meters: &impl Meters) -> datapath::Result<Reading> {
        let mut reading = Reading {
            services: self.former.clone(),
            drops: self.drops.clone(),
            ..Reading::default()
        };
        for (id, account) in &self.accounts {
            let figures = self.backend(*id, meters)?;
            let service = reading.services.entry(account.service).or_default();
            service.add(&figures);
            reading.backends.insert(*id, figures);
        }
        for (key, packets) in meters.drops()? {
            if packets == 0 {
                continue;
            }
            let drops = Drops::from([((key.reason, key.direction), packets)]);
            *reading.drops.entry(key.reason).or_default() += packets;
            if key.service != 0 {
                add(
                    &mut reading.services.entry(key.service).or_default().drops,
                    &drops,
                );
            }
            if key.backend != 0 {
                add(
                    &mut reading.backends.entry(key.backend).or_default().drops,
                    &drops,
                );
            }
        }
        Ok(reading)
    }
}

fn add(sum: &mut Drops, drops: &Drops) {
    for (key, packets) in drops {
        *sum.entry(*key).or_default() += packets;
    }
}
