//! The datapath as the daemon drives it: the tables in the kernel, and the state of the
//! rings that are among them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_common::{
    Runtime,
    backend::{Backend, BackendState},
    counters::{Counters, DropKey},
    outcome::Outcomes,
    probe::Probe,
    quic::ConnectionIds,
    ring::RING_SIZE,
    service::ServiceOptions,
};

use super::{chain, ledger::Meters};
use crate::{
    address::PortSet,
    datapath::{self, AttachedMode, Datapath, Sum, XdpMode},
    flows::Report,
    reconcile::{Found, Image, Op, Ring, Rings, Tables, Written},
};

/// What the daemon needs of the datapath while it runs.
pub(super) trait Plane: Tables<Error = datapath::Error> + Meters {
    /// Attaches the program to the interface of this name and index.
    fn attach(&mut self, name: &str, ifindex: u32, mode: XdpMode)
    -> datapath::Result<AttachedMode>;
    /// Detaches the program from the interface of this index, if it is there.
    fn detach(&mut self, ifindex: u32);
    /// Opens the way by which health checks go as clients' packets do. Returns the index of
    /// the interface that answers leave by.
    fn open_passage(&mut self) -> datapath::Result<u32>;
    /// Says by which backends, and how, checks go that way: these and no others.
    fn set_probes(&mut self, probes: BTreeMap<u32, Probe>) -> datapath::Result<()>;
    /// What became of connections to a backend, where they are watched. Costs no system call.
    fn outcomes(&self, backend: u32) -> Outcomes;
    /// The flow clock.
    fn clock(&self) -> u32;
    /// Writes the flow clock.
    fn set_clock(&mut self, tick: u32) -> datapath::Result<()>;
    /// Whether a port of this pool is in use.
    fn is_pool_in_use(&self, pool: u32) -> bool;
    /// Lets time pass for the slots of rings, and writes the rings that are not as they
    /// should be. `idle` is the longest silence of a live flow of a service.
    fn settle(&mut self, now: Duration, idle: &dyn Fn(u32) -> Duration) -> datapath::Result<()>;
    /// Takes what a sweep found that began at `began`, with what is wanted of the backends
    /// that there are.
    fn swept(
        &mut self,
        began: Duration,
        report: &Report,
        backends: &BTreeMap<u32, Backend>,
    ) -> datapath::Result<()>;
}

/// Slots of rings that are filled and written together, if there is more than one ring. Each
/// takes eight bytes until then, and each write waits for the packets that are on their way.
const SLOTS_AT_A_TIME: u32 = 64 * RING_SIZE;

/// Tells the time since the daemon began.
pub(super) type Clock = Box<dyn Fn() -> Duration + Send>;

/// The datapath and its rings.
pub(super) struct Wired {
    datapath: Datapath,
    rings: Rings,
    clock: Clock,
    /// What has been counted as untracked before, by backend.
    untracked: BTreeMap<u32, u64>,
    /// How health checks reach backends, by id.
    probes: BTreeMap<u32, Probe>,
}

impl Wired {
    /// A datapath, with what is in its tables.
    pub(super) fn new(mut datapath: Datapath, clock: Clock) -> datapath::Result<(Self, Found)> {
        let is_removed =
            |_: &u32, backend: &mut Backend| backend.state == BackendState::Absent as u8;
        let mut backends = datapath.backends()?;
        let removed: BTreeMap<u32, Backend> = backends.extract_if(.., is_removed).collect();
        let services = datapath.services()?;
        let mut rings = Rings::default();
        let mut found_rings = BTreeMap::new();
        for service in services.values() {
            if found_rings.contains_key(&service.id()) {
                continue;
            }
            if let Some(ring) = datapath.ring(service.id(), service.ring_size())? {
                let is_there = |id: u32| backends.contains_key(&id);
                rings.adopt(service, &ring, is_there, clock());
                found_rings.insert(service.id(), ring.len() as u32);
            }
        }
        let mut connection_ids = BTreeMap::new();
        for service in services.values() {
            let ids = datapath.options(service.id())?.connection_ids;
            if ids != ConnectionIds::default() {
                connection_ids.insert(service.id(), ids);
            }
        }
        let pools: BTreeSet<u32> = backends
            .values()
            .chain(removed.values())
            .map(|backend| backend.port_pool)
            .filter(|pool| *pool != 0)
            .collect();
        let pools = datapath.adopt_port_pools(pools)?;
        let image = Image {
            interfaces: datapath.interfaces()?,
            flags: datapath.runtime().flags,
            pools: pools
                .into_iter()
                .map(|id| (id, PortSet::default()))
                .collect(),
            backends,
            server_ids: datapath.server_ids()?,
            connection_ids,
            rings: BTreeMap::new(),
            found_rings,
            guards: datapath.guards()?,
            sources: datapath.sources()?,
            services,
            vips: datapath.vips()?,
        };
        let wired = Self {
            datapath,
            rings,
            clock,
            untracked: BTreeMap::new(),
            probes: BTreeMap::new(),
        };
        Ok((wired, Found { image, removed }))
    }

    /// The datapath alone.
    pub(super) fn into_datapath(self) -> Datapath {
        self.datapath
    }

    /// The datapath.
    pub(super) fn datapath_mut(&mut self) -> &mut Datapath {
        &mut self.datapath
    }

    fn write(&mut self, rings: &[Written]) -> datapath::Result<()> {
        for ring in rings {
            self.set_options(ring.service, |options| {
                options.turns = ring.turns;
                options.affinity = ring.affinity;
            })?;
        }
        let slots: Vec<_> = rings
            .iter()
            .map(|ring| (ring.service, ring.slots.clone()))
            .collect();
        self.datapath.set_rings(&slots)?;
        let services = rings.iter().map(|ring| ring.service);
        self.rings.written(services, (self.clock)());
        Ok(())
    }

    /// Changes what few packets need of a service.
    fn set_options(
        &mut self,
        service: u32,
        change: impl FnOnce(&mut ServiceOptions),
    ) -> datapath::Result<()> {
        let mut options = self.datapath.options(service)?;
        change(&mut options);
        self.datapath.set_options(service, options)
    }

    fn set_rings(&mut self, rings: &[(u32, Ring)]) -> datapath::Result<()> {
        let mut filled = Vec::new();
        let mut slots = 0;
        for (service, ring) in rings {
            if slots + ring.size.get() > SLOTS_AT_A_TIME {
                self.write(&filled)?;
                filled.clear();
                slots = 0;
            }
            slots += ring.size.get();
            filled.push(self.rings.set(*service, ring));
        }
        self.write(&filled)
    }
}

impl Tables for Wired {
    type Error = datapath::Error;

    fn apply(&mut self, op: &Op) -> datapath::Result<()> {
        match op {
            Op::SetInterface(ifindex, interface) => {
                self.datapath.set_interface(*ifindex, *interface)
            }
            Op::RemoveInterface(ifindex) => self.datapath.remove_interface(*ifindex),
            Op::SetFlags(flags) => self.datapath.set_runtime(Runtime {
                flags: *flags,
                ..self.datapath.runtime()
            }),
            Op::CreatePools(ids) => self.datapath.create_port_pools(ids),
            Op::ReservePorts(id, ports) => {
                self.datapath.ports().reserve(*id, ports.clone());
                Ok(())
            }
            Op::RemovePools(ids) => self.datapath.remove_port_pools(ids),
            Op::SetBackend(id, backend) => self.datapath.set_backend(*id, *backend),
            Op::RemoveBackend(id) => {
                self.rings.backend_removed(*id);
                self.datapath.remove_backend(*id)
            }
            Op::SetServerId(id, backend) => self.datapath.set_server_id(*id, *backend),
            Op::RemoveServerId(id) => self.datapath.remove_server_id(*id),
            Op::SetConnectionIds(service, ids) => {
                self.set_options(*service, |options| options.connection_ids = *ids)
            }
            Op::RemoveConnectionIds(service) => self.set_options(*service, |options| {
                options.connection_ids = ConnectionIds::default();
            }),
            Op::SetRings(rings) => self.set_rings(rings),
            Op::RemoveRings(rings) => {
                for (service, slots) in rings {
                    self.rings.remove(*service, *slots);
                }
                self.datapath.remove_rings(rings)
            }
            Op::SetGuard(id, guard) => self.datapath.set_guard(*id, *guard),
            Op::RemoveGuard(id) => self.datapath.remove_guard(*id),
            Op::SetSource(source, is_allowed) => self.datapath.set_source(*source, *is_allowed),
            Op::RemoveSource(source) => self.datapath.remove_source(*source),
            Op::SetService(packets, service) => self.datapath.set_service(*packets, *service),
            Op::RemoveService(packets) => self.datapath.remove_service(*packets),
            Op::SetVip(address, vip) => self.datapath.set_vip(*address, *vip),
            Op::RemoveVip(address) => self.datapath.remove_vip(*address),
        }
    }
}

impl Meters for Wired {
    fn counters(&self, backend: u32) -> datapath::Result<Counters> {
        self.datapath.counters(backend)
    }

    fn live_flows(&self, backend: u32) -> u32 {
        self.datapath.live_flows(backend)
    }

    fn drops(&self) -> datapath::Result<BTreeMap<DropKey, u64>> {
        self.datapath.drops()
    }

    fn forget_backend(&mut self, id: u32) -> datapath::Result<()> {
        self.untracked.remove(&id);
        self.datapath.forget_backend(id)
    }

    fn clear_drops(&mut self, key: DropKey) -> datapath::Result<()> {
        self.datapath.clear_drops(key)
    }

    fn sums(&self) -> datapath::Result<Vec<Sum>> {
        self.datapath.sums()
    }

    fn keep_sum(&mut self, sum: Sum) -> datapath::Result<()> {
        self.datapath.keep_sum(sum)
    }
}

impl Plane for Wired {
    fn attach(
        &mut self,
        name: &str,
        ifindex: u32,
        mode: XdpMode,
    ) -> datapath::Result<AttachedMode> {
        self.datapath.attach_at(name, ifindex, mode)
    }

    fn detach(&mut self, ifindex: u32) {
        if let Err(error) = self.datapath.detach(ifindex) {
            tracing::error!(
                error = chain(&error),
                ifindex,
                "the program cannot be detached"
            );
        }
    }

    fn open_passage(&mut self) -> datapath::Result<u32> {
        self.datapath.open_passage()
    }

    fn set_probes(&mut self, probes: BTreeMap<u32, Probe>) -> datapath::Result<()> {
        for id in self.probes.keys().filter(|id| !probes.contains_key(id)) {
            self.datapath.remove_probe(*id)?;
        }
        for (id, probe) in &probes {
            if self.probes.get(id) != Some(probe) {
                self.datapath.set_probe(*id, *probe)?;
            }
        }
        self.probes = probes;
        Ok(())
    }

    fn outcomes(&self, backend: u32) -> Outcomes {
        self.datapath.outcomes(backend)
    }

    fn clock(&self) -> u32 {
        self.datapath.runtime().clock
    }

    fn set_clock(&mut self, tick: u32) -> datapath::Result<()> {
        let mut runtime = self.datapath.runtime();
        runtime.clock = tick;
        self.datapath.set_runtime(runtime)
    }

    fn is_pool_in_use(&self, pool: u32) -> bool {
        self.datapath.ports().is_in_use(pool)
    }

    fn settle(&mut self, now: Duration, idle: &dyn Fn(u32) -> Duration) -> datapath::Result<()> {
        self.rings.tick(now, idle);
        let mut slots = 0;
        let rings: Vec<_> = self
            .rings
            .unwritten()
            .take_while(|ring| {
                let fits = slots < SLOTS_AT_A_TIME;
                slots += ring.slots.len() as u32;
                fits
            })
            .collect();
        self.write(&rings)
    }

    fn swept(
        &mut self,
        began: Duration,
        report: &Report,
        backends: &BTreeMap<u32, Backend>,
    ) -> datapath::Result<()> {
        let service_of = |id: u32| backends.get(&id).map(|backend| backend.service);
        // Before anything is settled: a flow may have gone without the entry that it needs.
        let now = (self.clock)();
        for (id, backend) in backends {
            if !self.rings.is_unsettled(backend.service) {
                continue;
            }
            let untracked = self.datapath.counters(*id)?.untracked;
            if self.untracked.insert(*id, untracked).unwrap_or(0) < untracked {
                self.rings.table_was_full(backend.service, now);
            }
        }
        self.rings.swept(began, report, service_of);
        Ok(())
    }
}
