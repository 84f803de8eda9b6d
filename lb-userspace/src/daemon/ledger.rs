//! Who caused what: keeps the figures of the datapath, which are by id, for the services
//! and backends that had the ids, and does not lose those of what is gone. What it adds up is kept
//! beside the counters, so that a daemon after this one goes on with it. A sum is kept before
//! that which went into it is forgotten: a daemon that is killed between these counts something
//! twice, and never backwards.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lb_common::{
    backend::Backend,
    counters::{Counters, DropKey},
};

use crate::{
    datapath::{self, Sum},
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
    /// The sums that are kept.
    fn sums(&self) -> datapath::Result<Vec<Sum>>;
    /// Keeps a sum, in place of the one that was kept; one of nothing is forgotten.
    fn keep_sum(&mut self, sum: Sum) -> datapath::Result<()>;
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
    /// Packets that were dropped for services that are gone.
    drops: Drops,
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

    /// Goes on with the sums of a daemon before this one, after all notice is taken of the
    /// backends that there are.
    pub(super) fn resume(
        &mut self,
        image: &Image,
        meters: &mut impl Meters,
    ) -> datapath::Result<()> {
        let mut services: BTreeSet<u32> = image
            .services
            .values()
            .map(|service| service.id.into())
            .collect();
        services.extend(self.accounts.values().map(|account| account.service));
        for sum in meters.sums()? {
            match sum {
                Sum::Ended(backend, flows) => match self.accounts.get_mut(&backend) {
                    Some(account) => account.expired = flows,
                    None => meters.keep_sum(Sum::Ended(backend, 0))?,
                },
                Sum::Former(service, counters) if services.contains(&service) => {
                    self.former.entry(service).or_default().counters = counters;
                }
                Sum::Former(service, _) => {
                    meters.keep_sum(Sum::Former(service, Counters::default()))?;
                }
                Sum::Drops(key, packets) => {
                    let drops = match key.service {
                        0 => &mut self.drops,
                        service if services.contains(&service) => {
                            &mut self.former.entry(service).or_default().drops
                        }
                        _ => {
                            self.drop_for_nobody(key, packets, meters)?;
                            continue;
                        }
                    };
                    *drops.entry((key.reason, key.direction)).or_default() += packets;
                }
            }
        }
        Ok(())
    }

    /// Adds packets that were dropped for a service that is gone to those for all such.
    fn drop_for_nobody(
        &mut self,
        key: DropKey,
        packets: u64,
        meters: &mut impl Meters,
    ) -> datapath::Result<()> {
        let sum = self.drops.entry((key.reason, key.direction)).or_default();
        *sum += packets;
        let of_all = DropKey::overflow(key.reason, key.direction);
        meters.keep_sum(Sum::Drops(of_all, *sum))?;
        meters.keep_sum(Sum::Drops(key, 0))
    }

    /// Whether any backend of a service still has an account.
    pub(super) fn counts_for(&self, service: u32) -> bool {
        self.accounts
            .values()
            .any(|account| account.service == service)
    }

    /// Takes the flows that a sweep ended.
    pub(super) fn expired(
        &mut self,
        report: &Report,
        meters: &mut impl Meters,
    ) -> datapath::Result<()> {
        for (backend, flows) in &report.ended {
            if let Some(account) = self.accounts.get_mut(backend) {
                account.expired += flows;
                meters.keep_sum(Sum::Ended(*backend, account.expired))?;
            }
        }
        Ok(())
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
            let counters = meters.counters(*id)?;
            let counters = Counters {
                ended_flows: counters.ended_flows + account.expired,
                ..counters
            };
            let former = self.former.entry(account.service).or_default();
            former.counters = former.counters.plus(counters);
            meters.keep_sum(Sum::Former(account.service, former.counters))?;
            meters.keep_sum(Sum::Ended(*id, 0))?;
            meters.forget_backend(*id)?;
        }
        for (key, packets) in drops {
            let of_backend = key.backend != 0 && released.backends.contains(&key.backend);
            let of_service = key.service != 0 && released.services.contains(&key.service);
            if of_backend || of_service {
                let former = self.former.entry(key.service).or_default();
                let sum = former.drops.entry((key.reason, key.direction)).or_default();
                *sum += packets;
                let of_former = DropKey { backend: 0, ..key };
                meters.keep_sum(Sum::Drops(of_former, *sum))?;
                meters.clear_drops(key)?;
            }
        }
        for id in &released.services {
            let Some(former) = self.former.remove(id) else {
                continue;
            };
            meters.keep_sum(Sum::Former(*id, Counters::default()))?;
            for ((reason, direction), packets) in former.drops {
                let key = DropKey {
                    service: *id,
                    ..DropKey::overflow(reason, direction)
                };
                self.drop_for_nobody(key, packets, meters)?;
            }
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
            ..Reading::default()
        };
        let gone = self.former.values().map(|figures| &figures.drops);
        for ((reason, _), packets) in gone.chain([&self.drops]).flatten() {
            *reading.drops.entry(*reason).or_default() += packets;
        }
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
