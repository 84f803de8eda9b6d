//! What the daemon knows, and what follows from events. Time is an argument; the
//! datapath may be any [`Tables`] with [`Meters`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lb_common::{CLOCK_TICK_MS, backend::BackendState};

mod checking;

use self::checking::Passage;
use super::{
    chain,
    ledger::Ledger,
    plane::Plane,
    status,
    sweeping::{Order, Swept},
};
use crate::{
    datapath::{self, AttachedMode, Outlet, XdpMode},
    drain::Drain,
    explain::{Names, ServiceName},
    flows::{Lifetimes, Query},
    health::{
        self,
        passive::{Watch, Watched},
    },
    intent::KeptDrain,
    neighbour::{self, Interface, NextHop, NextHopState},
    reconcile::{self, Found, Reconciler, World},
    slow_start::{self, Seen, Warmth},
    state::{
        BackendAddress, BackendSpec, Change, Desired, DrainPhase, Events, FlowFilter, Happening,
        HealthStatus, OnDeadline, Refusal, ServiceSpec, Status, rules, shortened,
    },
};

/// How long the kernel takes to give a neighbour up that does not answer: three requests,
/// a second apart (`mcast_solicit`, `retrans_time_ms`).
const RESOLUTION: Duration = Duration::from_secs(3);
/// How long the kernel's first news of next hops may take on a busy host.
const FIRST_NEWS: Duration = Duration::from_secs(30);
/// How long after the datapath refused something it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// An interface that the program is to be attached to.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    /// Its name.
    pub(super) name: String,
    /// How the program is to be attached.
    pub(super) wanted: XdpMode,
    /// Whether it is.
    pub(super) state: Attachment,
}

/// Whether the program is attached to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attachment {
    /// It is.
    On {
        /// Index of the interface.
        ifindex: u32,
        /// How.
        mode: AttachedMode,
    },
    /// There is no interface of the name any more.
    Gone,
    /// There is one again, but the program is not attached to it (yet).
    Back {
        /// Its index.
        ifindex: u32,
        /// Its MTU.
        mtu: u32,
        /// Why the program could not be attached when it was tried.
        error: Option<String>,
    },
}

impl Attached {
    /// Index of the interface, while the program is attached to it.
    fn ifindex(&self) -> Option<u32> {
        match self.state {
            Attachment::On { ifindex, .. } => Some(ifindex),
            Attachment::Gone | Attachment::Back { .. } => None,
        }
    }
}

/// The health of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Health {
    /// Whether it takes new flows.
    pub(super) is_up: bool,
    /// What the last check found.
    pub(super) status: HealthStatus,
}

/// Whether a backend of the service has health checks.
fn is_checked(service: &ServiceSpec, backend: BackendAddress) -> bool {
    let mut backends = service.backends.iter();
    let backend = backends.find(|known| known.address == backend);
    backend.is_some_and(|backend| service.health_of(backend).is_some())
}

/// What was wanted before something else was.
pub(super) struct Before {
    desired: Desired,
    drains: HashMap<Name, Drain>,
}

/// A backend by its service's name and its address.
type Name = (String, BackendAddress);

/// The balancer without its sources of events.
pub(super) struct Balancer<P> {
    pub(super) plane: P,
    pub(super) attached: Vec<Attached>,
    pub(super) desired: Desired,
    /// Whom to tell of what happens.
    pub(super) events: Events,
    health: HashMap<Name, Health>,
    hops: HashMap<IpAddr, NextHop>,
    /// New addresses that have not been resolved yet, and until when that is nothing to
    /// speak of; `None` before the clock has ticked.
    fresh: HashMap<IpAddr, Option<Duration>>,
    /// The interfaces that the program is attached to, and their MTU.
    interfaces: BTreeMap<u32, u32>,
    /// The interfaces that belong to bonds, and these.
    bonded: BTreeMap<u32, u32>,
    pub(super) reconciler: Reconciler,
    pub(super) ledger: Ledger,
    drains: HashMap<Name, Drain>,
    warmth: HashMap<Name, Warmth>,
    /// When the datapath is to be brought in line with the rest, if it is not.
    overdue: Option<Duration>,
    /// What the flow clock was when the daemon began.
    epoch: u32,
    /// Services without a ring, and until when they wait for what is to be known of all their
    /// backends. A ring that was made of one after the other would have an origin in nearly
    /// every slot, though no flow lives there.
    waiting: HashMap<String, Duration>,
    /// Addresses that the datapath has the way to from a daemon before this one, while
    /// this one does not know it yet.
    awaited: BTreeSet<IpAddr>,
    /// When the daemon began to wait for these.
    begin: Duration,
    /// By which health checks go as clients' packets do.
    passage: Passage,
    /// Whether what is to be checked, or how, may be something else than before.
    checks_changed: bool,
    /// What clients' connections tell of backends.
    watch: Watch,
    /// The backends that they are watched of, and their names by id.
    watched: Vec<Watched>,
    watched_names: HashMap<u32, Name>,
    /// Backends that the datapath had from a daemon before this one, with their state.
    adopted: HashSet<Name>,
}

impl<P: Plane> Balancer<P> {
    /// A balancer that begins at `now` and whose datapath holds what was `found`.
    pub(super) fn new(
        mut plane: P,
        attached: Vec<Attached>,
        desired: Desired,
        found: Found,
        now: Duration,
    ) -> Self {
        let mut ledger = Ledger::default();
        ledger.open(&found.image);
        ledger.adopt(&found.removed);
        if let Err(error) = ledger.resume(&found.image, &mut plane) {
            tracing::error!(error = chain(&error), "counters of before are lost");
        }
        let mut balancer = Self {
            epoch: plane.clock(),
            plane,
            attached,
            health: HashMap::new(),
            hops: HashMap::new(),
            fresh: HashMap::new(),
            interfaces: BTreeMap::new(),
            bonded: BTreeMap::new(),
            reconciler: Reconciler::adopt(found, &desired, now),
            desired,
            events: Events::default(),
            ledger,
            drains: HashMap::new(),
            warmth: HashMap::new(),
            overdue: Some(Duration::ZERO),
            waiting: HashMap::new(),
            awaited: BTreeSet::new(),
            begin: now,
            passage: Passage::Closed,
            checks_changed: true,
            watch: Watch::default(),
            watched: Vec::new(),
            watched_names: HashMap::new(),
            adopted: HashSet::new(),
        };
        balancer.health = balancer.expected_health(&Desired::default());
        balancer.follow_drains(now);
        balancer.adopt_drains(now);
        balancer.adopt_health();
        balancer.await_news(&Desired::default(), now);
        balancer
    }

    /// Where the datapath resets the flows of a backend, the deadline has passed.
    fn adopt_drains(&mut self, now: Duration) {
        for spec in self.desired.services() {
            let name: Arc<str> = spec.name.as_str().into();
            for backend in &spec.backends {
                let id = self
                    .reconciler
                    .ids()
                    .backends
                    .get(&(Arc::clone(&name), backend.address));
                let entry = id.and_then(|id| self.reconciler.image().backends.get(&id));
                if let Some(wanted) = backend.drain
                    && wanted.on_deadline == OnDeadline::Reset
                    && entry.is_some_and(|entry| entry.state == BackendState::Resetting as u8)
                {
                    let flows = self.live_flows(spec, backend.address);
                    let drain = Drain::over(wanted, now, flows);
                    self.drains
                        .insert((spec.name.clone(), backend.address), drain);
                }
            }
        }
    }

    /// Lets services wait that were not there `before`, and that the datapath has no ring of
    /// either.
    fn await_news(&mut self, before: &Desired, now: Duration) {
        let ids = &self.reconciler.ids().services;
        let rings = &self.reconciler.image().found_rings;
        for spec in self.desired.services() {
            let id = ids.get(&spec.name.as_str().into());
            let has_ring = id.is_some_and(|id| rings.contains_key(&id));
            if before.service(&spec.name).is_none() && !has_ring {
                self.waiting.insert(spec.name.clone(), now + RESOLUTION);
            }
        }
    }

    /// Lets no service wait any more of which all is known, or that has waited long enough.
    /// Says when the next one has.
    fn end_waiting(&mut self, now: Duration) -> Option<Duration> {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|name, until| {
            let spec = self.desired.service(name);
            now < *until && spec.is_some_and(|spec| !self.is_known(spec))
        });
        self.waiting = waiting;
        self.waiting.values().min().copied()
    }

    /// Whether each backend of a service has been checked, if it is to be, and the way to it
    /// has been looked up.
    fn is_known(&self, spec: &ServiceSpec) -> bool {
        spec.backends.iter().all(|backend| {
            let health = self.health_of(&spec.name, backend.address);
            let is_checked = health.is_some_and(|health| health.status != health::unknown());
            let hop = self.hops.get(&backend.address.ip);
            is_checked && hop.is_some_and(|hop| hop.state != NextHopState::NoNeighbour)
        })
    }

    /// Backends that the datapath has are up as long as they were, and until a check says
    /// something else; the way to them is awaited.
    fn adopt_health(&mut self) {
        let ids = self.reconciler.ids();
        let image = self.reconciler.image();
        for ((service, address), health) in &mut self.health {
            let id = ids.backends.get(&(service.as_str().into(), *address));
            let Some(entry) = id.and_then(|id| image.backends.get(&id)) else {
                continue;
            };
            self.adopted.insert((service.clone(), *address));
            // Of one whose flows are reset nothing else is known.
            health.is_up |= entry.state == BackendState::Up as u8
                || entry.state == BackendState::Resetting as u8;
            if entry.path.ifindex != 0 {
                self.awaited.insert(address.ip);
            }
        }
    }

    /// Whether the ways that the datapath has are still better than what is known of them:
    /// at the start, until the kernel has said something about all of them, and has had the
    /// time to look for neighbours.
    pub(super) fn is_awaiting(&self, now: Duration) -> bool {
        let limit = match self
            .awaited
            .iter()
            .all(|address| self.hops.contains_key(address))
        {
            true => RESOLUTION,
            false => FIRST_NEWS,
        };
        !self.awaited.is_empty() && now < self.begin + limit
    }

    /// The addresses whose next hops are wanted.
    pub(super) fn addresses(&self) -> BTreeSet<IpAddr> {
        let backends = self.desired.services().flat_map(|spec| &spec.backends);
        backends.map(|backend| backend.address.ip).collect()
    }

    /// What is.
    pub(super) fn status(&self, now: Duration) -> Status {
        let reading = self.ledger.read(&self.plane).unwrap_or_else(|error| {
            tracing::error!(error = chain(&error), "the counters cannot be read");
            Default::default()
        });
        status::status(self, &reading, now)
    }

    /// Changes what is wanted, and brings the datapath there before it returns. Where
    /// that fails everything is as it was.
    pub(super) fn change(&mut self, change: Change, now: Duration) -> Result<(), Refusal> {
        let mut desired = self.desired.clone();
        desired.apply(change)?;
        self.want(desired, now).map(drop)
    }

    /// Wants something else, and brings the datapath there before it returns. Where that fails
    /// everything is as it was. What it returns takes it [back](Self::take_back).
    pub(super) fn want(&mut self, desired: Desired, now: Duration) -> Result<Before, Refusal> {
        let before = Before {
            desired: std::mem::replace(&mut self.desired, desired),
            drains: self.drains.clone(),
        };
        let health = self.expected_health(&before.desired);
        let health_before = std::mem::replace(&mut self.health, health);
        self.follow_drains(now);
        self.await_news(&before.desired, now);
        if let Err(error) = self.reconcile(now) {
            self.desired = before.desired;
            self.health = health_before;
            self.drains = before.drains;
            self.overdue = Some(now);
            self.reconcile_if_needed(now);
            return Err(Refusal::Failed(chain(&error)));
        }
        let addresses = self.addresses();
        self.hops.retain(|address, _| addresses.contains(address));
        self.checks_changed = true;
        Ok(before)
    }

    /// Wants again what was wanted before, with the drains as they were.
    pub(super) fn take_back(&mut self, before: Before, now: Duration) {
        let after = std::mem::replace(&mut self.desired, before.desired);
        self.health = self.expected_health(&after);
        self.drains = before.drains;
        self.checks_changed = true;
        self.await_news(&after, now);
        self.overdue = Some(now);
        self.reconcile_if_needed(now);
    }

    /// The drains that there are, for the daemon after this one.
    pub(super) fn kept_drains(&self, now: Duration) -> Vec<KeptDrain> {
        let mut kept: Vec<_> = self
            .drains
            .iter()
            .map(|((service, backend), drain)| {
                let backend = backend.to_string();
                KeptDrain::new(
                    service.clone(),
                    backend,
                    drain.age(now),
                    drain.flows_at_start(),
                )
            })
            .collect();
        kept.sort_by(|a, b| (&a.service, &a.backend).cmp(&(&b.service, &b.backend)));
        kept
    }

    /// Goes on with drains that a daemon before this one began.
    pub(super) fn resume_drains(&mut self, kept: &[KeptDrain], now: Duration) {
        for drain in kept {
            let Ok(backend) = drain.backend.parse() else {
                continue;
            };
            let spec = self.desired.service(&drain.service);
            let mut backends = spec.into_iter().flat_map(|spec| &spec.backends);
            let wanted = backends.find(|other| other.address == backend);
            if let Some(wanted) = wanted.and_then(|backend| backend.drain) {
                let resumed = Drain::resumed(wanted, now, drain.ago(), drain.flows_at_start);
                self.drains
                    .insert((drain.service.clone(), backend), resumed);
            }
        }
    }

    /// Begins and ends drains as they are wanted.
    fn follow_drains(&mut self, now: Duration) {
        let mut before = std::mem::take(&mut self.drains);
        for spec in self.desired.services() {
            for backend in &spec.backends {
                let Some(wanted) = backend.drain else {
                    continue;
                };
                let name = (spec.name.clone(), backend.address);
                let drain = match before.remove(&name) {
                    Some(mut drain) => {
                        drain.change(wanted);
                        drain
                    }
                    None => Drain::new(wanted, now, self.live_flows(spec, backend.address)),
                };
                self.drains.insert(name, drain);
            }
        }
    }

    /// Tells of drains that have come to an end.
    fn watch_drains(&mut self, now: Duration) {
        let mut drains = std::mem::take(&mut self.drains);
        for ((service, backend), drain) in &mut drains {
            let Some(spec) = self.desired.service(service) else {
                continue;
            };
            let flows = self.live_flows(spec, *backend);
            let phase = drain.step(now, flows);
            if let Some(phase) = phase {
                self.tell_of_drain(service, *backend, phase, flows);
            }
            match phase {
                Some(DrainPhase::Drained) => {
                    let is_exact = spec.has_entries();
                    tracing::info!(
                        %service,
                        %backend,
                        is_exact,
                        "the backend is drained: no flow is left"
                    );
                }
                Some(DrainPhase::Over) => {
                    tracing::warn!(%service, %backend, flows, "the deadline of the drain has passed");
                }
                Some(DrainPhase::Resetting) => {
                    tracing::warn!(
                        %service,
                        %backend,
                        flows,
                        "the deadline of the drain has passed: flows are reset"
                    );
                }
                Some(DrainPhase::Draining) | None => {}
            }
        }
        self.drains = drains;
    }

    /// Tells of drains that have begun, and of those that are no more.
    pub(super) fn tell_of_drains(&self, before: &Before, now: Duration) {
        let is_new = |name: &&Name| !before.drains.contains_key(*name);
        let mut begun: Vec<_> = self.drains.keys().filter(is_new).collect();
        begun.sort_unstable();
        for (service, backend) in begun {
            let spec = self.desired.service(service);
            let flows = spec.map_or(0, |spec| self.live_flows(spec, *backend));
            if let Some(drain) = self.drain(service, *backend) {
                self.tell_of_drain(service, *backend, drain.phase(now, flows), flows);
            }
        }
        let is_gone = |name: &&Name| !self.drains.contains_key(*name);
        let mut ended: Vec<_> = before.drains.keys().filter(is_gone).collect();
        ended.sort_unstable();
        for (service, backend) in ended {
            self.events.publish(Happening::DrainEnded {
                service: service.clone(),
                backend: backend.to_string(),
            });
        }
    }

    fn tell_of_drain(&self, service: &str, backend: BackendAddress, phase: DrainPhase, flows: u64) {
        self.events.publish(Happening::Drain {
            service: service.to_owned(),
            backend: backend.to_string(),
            phase,
            flows_left: flows,
        });
    }

    /// Live flows of a backend; 0 also where nobody knows.
    fn live_flows(&self, spec: &ServiceSpec, backend: BackendAddress) -> u64 {
        let name = (spec.name.as_str().into(), backend);
        let id = self.reconciler.ids().backends.get(&name);
        let figures = id.and_then(|id| self.ledger.backend(id, &self.plane).ok());
        figures.map_or(0, |figures| status::active(spec, &figures))
    }

    /// The drain of a backend.
    pub(super) fn drain(&self, service: &str, backend: BackendAddress) -> Option<&Drain> {
        self.drains.get(&(service.to_owned(), backend))
    }

    /// Takes news of interfaces and next hops.
    pub(super) fn neighbour(&mut self, event: neighbour::Event) {
        match event {
            neighbour::Event::NextHop { address, hop } => self.next_hop(address, hop),
            neighbour::Event::Interface(interface) => self.interface(&interface),
            neighbour::Event::InterfaceGone(ifindex) => self.interface_gone(ifindex),
        }
    }

    fn interface(&mut self, interface: &Interface) {
        let &Interface { ifindex, mtu, .. } = interface;
        self.set_bond(ifindex, interface.bond);
        if self.is_attached(ifindex) {
            if self.interfaces.insert(ifindex, mtu) != Some(mtu) {
                self.overdue = Some(Duration::ZERO);
            }
            return;
        }
        for attached in &mut self.attached {
            if attached.name == interface.name && attached.ifindex().is_none() {
                attached.state = Attachment::Back {
                    ifindex,
                    mtu,
                    error: None,
                };
                self.overdue = Some(Duration::ZERO);
            }
        }
    }

    /// Takes note of the bond that an interface belongs to.
    fn set_bond(&mut self, ifindex: u32, bond: Option<u32>) {
        let before = match bond {
            Some(bond) => self.bonded.insert(ifindex, bond),
            None => self.bonded.remove(&ifindex),
        };
        if before != bond {
            self.overdue = Some(Duration::ZERO);
        }
    }

    /// The interfaces that packets come in by, and how those for them leave: the ones that
    /// the program is attached to, and those of bonds among them.
    fn outlets(&self) -> BTreeMap<u32, Outlet> {
        let attached = self
            .interfaces
            .iter()
            .map(|(ifindex, mtu)| (ifindex, ifindex, mtu));
        let bonded = self.bonded.iter().filter_map(|(ifindex, bond)| {
            let mtu = self.interfaces.get(bond)?;
            Some((ifindex, bond, mtu))
        });
        let passage = self.passage.ifindex().map(|ifindex| {
            let mtu = datapath::PASSAGE_MTU;
            (ifindex, Outlet { ifindex, mtu })
        });
        bonded
            .chain(attached)
            .map(|(&of, &ifindex, &mtu)| (of, Outlet { ifindex, mtu }))
            .chain(passage)
            .collect()
    }

    fn interface_gone(&mut self, gone: u32) {
        self.set_bond(gone, None);
        for attached in &mut self.attached {
            match attached.state {
                Attachment::On { ifindex, .. } if ifindex == gone => {
                    tracing::error!(
                        interface = attached.name,
                        "the interface is gone; the program is attached again when one of its \
                         name comes"
                    );
                    self.plane.detach(gone);
                    self.interfaces.remove(&gone);
                    attached.state = Attachment::Gone;
                    self.overdue = Some(Duration::ZERO);
                }
                Attachment::Back { ifindex, .. } if ifindex == gone => {
                    attached.state = Attachment::Gone;
                }
                _ => {}
            }
        }
    }

    /// Attaches the program to interfaces that have come back. `false` where that is to
    /// be tried again.
    fn attach_what_is_back(&mut self) -> bool {
        let mut all = true;
        for attached in &mut self.attached {
            let Attachment::Back {
                ifindex,
                mtu,
                error,
            } = &mut attached.state
            else {
                continue;
            };
            let (interface, index) = (attached.name.as_str(), *ifindex);
            match self.plane.attach(interface, index, attached.wanted) {
                Ok(mode) => {
                    tracing::info!(interface, mode = mode.as_str(), "attached again");
                    self.interfaces.insert(index, *mtu);
                    attached.state = Attachment::On {
                        ifindex: index,
                        mode,
                    };
                }
                Err(new) => {
                    let new = chain(&new);
                    if error.as_ref() != Some(&new) {
                        tracing::error!(
                            interface,
                            error = new,
                            "the program cannot be attached again; trying on"
                        );
                    }
                    *error = Some(new);
                    all = false;
                }
            }
        }
        all
    }

    fn next_hop(&mut self, address: IpAddr, hop: NextHop) {
        // A neighbour that has not answered yet may still do.
        if hop.state != NextHopState::NoNeighbour {
            self.awaited.remove(&address);
        }
        let old = self.hops.get(&address);
        if old == Some(&hop) {
            return;
        }
        let old = old.map(|hop| self.usable(hop));
        let new = self.usable(&hop);
        let why = hop.status(&self.ifindexes()).state;
        let via = hop.interface.as_deref().unwrap_or_default();
        if new {
            self.fresh.remove(&address);
        }
        match (old, new) {
            (Some(true), true) => {}
            // The first answer of a neighbour is on its way.
            (None, false) if hop.state == NextHopState::NoNeighbour => {
                self.fresh.insert(address, None);
            }
            (_, true) => tracing::info!(backend = %address, via, "the next hop is resolved"),
            (None | Some(true), false) => {
                let hint = neighbour::remedy(&why);
                tracing::warn!(backend = %address, why, hint, "there is no way to the backend");
            }
            (Some(false), false) => {
                tracing::debug!(backend = %address, why, "there is still no way");
            }
        }
        self.hops.insert(address, hop);
        self.checks_changed = true;
        self.overdue = Some(Duration::ZERO);
    }

    /// Whether packets leave by this next hop.
    fn usable(&self, hop: &NextHop) -> bool {
        hop.state == NextHopState::Resolved && self.is_attached(hop.ifindex)
    }

    /// Takes the result of a health check.
    pub(super) fn health(&mut self, event: health::Event) {
        let (service, backend) = (event.service, event.backend);
        let is_checked = self
            .desired
            .service(&service)
            .is_some_and(|spec| is_checked(spec, backend));
        let name = (service, backend);
        // A result of a check that has been stopped since may still come.
        let Some(health) = self.health.get_mut(&name).filter(|_| is_checked) else {
            return;
        };
        let is_first = health.status == health::unknown();
        if health.is_up != event.up || is_first {
            let (service, _) = &name;
            let error = event.status.error.as_deref().unwrap_or_default();
            if event.up {
                tracing::info!(%service, %backend, "the backend is up");
            } else {
                tracing::warn!(%service, %backend, error, "the backend is down");
            }
        }
        if health.is_up != event.up || is_first {
            self.events.publish(Happening::Health {
                service: name.0.clone(),
                backend: backend.to_string(),
                up: event.up,
                error: event.status.error.as_deref().map(shortened),
            });
            self.overdue = Some(Duration::ZERO);
        }
        *health = Health {
            is_up: event.up,
            status: event.status,
        };
    }

    /// Takes what a sweep found.
    pub(super) fn swept(&mut self, swept: Swept) {
        let report = match swept.result {
            Ok(report) => report,
            Err(error) => {
                tracing::error!(error = chain(&error), "the flow tables cannot be swept");
                return;
            }
        };
        if let Err(error) = self.ledger.expired(&report, &mut self.plane) {
            tracing::error!(error = chain(&error), "flows that ended are not kept");
        }
        let backends = &self.reconciler.image().backends;
        if let Err(error) = self.plane.swept(swept.began, &report, backends) {
            tracing::error!(error = chain(&error), "the counters cannot be read");
        }
        self.watch_drains(swept.began);
        let released = self.reconciler.release(
            swept.began,
            |backend| report.named.contains(&backend),
            |pool| self.plane.is_pool_in_use(pool),
            |service| self.ledger.counts_for(service),
        );
        if let Err(error) = self.ledger.close(&released, &mut self.plane) {
            tracing::error!(error = chain(&error), "counters of what is gone are lost");
        }
        if released != reconcile::Released::default() {
            self.overdue = Some(Duration::ZERO);
        }
    }

    /// What the next sweep is to do.
    pub(super) fn sweep(&self, now: Duration) -> Order {
        let ids = self.reconciler.ids();
        let mut lifetimes = HashMap::new();
        for spec in self.desired.services() {
            let name: Arc<str> = spec.name.as_str().into();
            let of_service = Lifetimes::new(spec.protocol, &spec.timeouts, spec.affinity);
            for backend in &spec.backends {
                let id = ids.backends.get(&(Arc::clone(&name), backend.address));
                lifetimes.extend(id.map(|id| (id, of_service)));
            }
        }
        lifetimes.insert(lb_common::probe::LOCAL, self.lifetimes_of_checks());
        Order {
            now,
            tick: self.ticks(now),
            lifetimes,
            gone: ids.backends.at_rest().collect(),
        }
    }

    /// What is to be looked for where these flows are asked for.
    pub(super) fn flows(&self, filter: &FlowFilter, now: Duration) -> Result<Query, Refusal> {
        if let Some(reason) = rules::flow_limit(filter.limit) {
            return Err(Refusal::Invalid(reason));
        }
        if let Some(name) = &filter.service {
            let no_service = || Refusal::NotFound(rules::no_such_service(name));
            let service = self.desired.service(name).ok_or_else(no_service)?;
            let mut addresses = service.backends.iter().map(|backend| backend.address);
            if let Some(address) = filter.backend
                && !addresses.any(|known| address.names(known))
            {
                return Err(Refusal::NotFound(rules::no_such_backend(name, address)));
            }
        }
        let ids = self.reconciler.ids();
        let mut backends = HashMap::new();
        for spec in self.desired.services() {
            if filter
                .service
                .as_ref()
                .is_some_and(|name| *name != spec.name)
            {
                continue;
            }
            let name: Arc<str> = spec.name.as_str().into();
            for backend in &spec.backends {
                if filter
                    .backend
                    .is_some_and(|address| !address.names(backend.address))
                {
                    continue;
                }
                let id = ids.backends.get(&(Arc::clone(&name), backend.address));
                let address = backend.address.to_string().into();
                backends.extend(id.map(|id| (id, (Arc::clone(&name), address))));
            }
        }
        Ok(Query {
            now: self.ticks(now),
            backends,
            client: filter.client,
            state: filter.state,
            limit: filter.limit as usize,
        })
    }

    /// What the numbers of the datapath are called, and one more than the highest id of a
    /// backend. The interfaces of the host are not among it.
    pub(super) fn names(&self) -> (Names, u32) {
        let ids = self.reconciler.ids();
        let mut names = Names {
            attached: self.attached.iter().filter_map(Attached::ifindex).collect(),
            ..Names::default()
        };
        for spec in self.desired.services() {
            let name: Arc<str> = spec.name.as_str().into();
            let service = ServiceName {
                name: spec.name.clone(),
                address: spec.address.to_string(),
                mode: spec.mode,
                scheduler: spec.scheduler,
            };
            let id = ids.services.get(&name);
            names.services.extend(id.map(|id| (id, service)));
            for backend in &spec.backends {
                let id = ids.backends.get(&(Arc::clone(&name), backend.address));
                let address = backend.address.to_string();
                names.backends.extend(id.map(|id| (id, address)));
            }
        }
        (names, ids.backends.end())
    }

    /// Addresses that are still not resolved though they have had the time for it, each
    /// of them once.
    pub(super) fn unresolved(&mut self, now: Duration) -> Vec<IpAddr> {
        let overdue = |_: &IpAddr, until: &mut Option<Duration>| {
            *until.get_or_insert(now + RESOLUTION) <= now
        };
        let overdue = self.fresh.extract_if(overdue);
        overdue
            .map(|(address, _)| address)
            .filter(|address| self.hops.contains_key(address))
            .collect()
    }

    /// The flow clock at a time. It goes on from where it stood, so that no flow grows old
    /// while no daemon runs.
    fn ticks(&self, now: Duration) -> u32 {
        // It wraps after 13 years, and whoever compares ticks knows that.
        let ticks = (now.as_millis() / u128::from(CLOCK_TICK_MS)) as u32;
        self.epoch.wrapping_add(ticks)
    }

    /// Moves the flow clock on.
    pub(super) fn tick(&mut self, now: Duration) {
        for backend in self.unresolved(now) {
            let why = "no-neighbour";
            let hint = neighbour::remedy(why);
            tracing::warn!(%backend, why, hint, "there is no way to the backend");
        }
        if let Err(error) = self.plane.set_clock(self.ticks(now)) {
            tracing::error!(error = chain(&error), "the flow clock stands still");
        }
        let ids = &self.reconciler.ids().services;
        let idle: HashMap<u32, Duration> = self
            .desired
            .services()
            .filter_map(|spec| {
                let service = ids.get(&spec.name.as_str().into())?;
                Some((service, spec.timeouts.tcp_established))
            })
            .collect();
        let idle = |service: u32| idle.get(&service).copied().unwrap_or(Duration::MAX);
        if let Err(error) = self.plane.settle(now, &idle) {
            tracing::error!(
                error = chain(&error),
                "slots of rings are not as they should be"
            );
        }
    }

    /// When the datapath is to be brought in line with the rest next.
    #[cfg(test)]
    pub(super) fn overdue(&self) -> Option<Duration> {
        self.overdue
    }

    /// Brings the datapath in line with the rest, if it is not, and tries again later
    /// where it refuses.
    pub(super) fn reconcile_if_needed(&mut self, now: Duration) {
        if !self.is_awaiting(now)
            && self.overdue.is_some_and(|since| since <= now)
            && let Err(error) = self.reconcile(now)
        {
            tracing::error!(
                error = chain(&error),
                "the datapath is not as it should be; trying again"
            );
            self.overdue = Some(now + RETRY);
        }
    }

    fn reconcile(&mut self, now: Duration) -> Result<(), reconcile::Error<datapath::Error>> {
        let all_attached = self.attach_what_is_back();
        let interfaces = self.outlets();
        let next_step = self.follow_slow_starts(now);
        let next_end = self.end_waiting(now);
        let share = |spec: &ServiceSpec, backend: &BackendSpec| {
            if spec.slow_start.is_none() {
                return slow_start::WHOLE;
            }
            let warmth = self.warmth.get(&(spec.name.clone(), backend.address));
            warmth.map_or(slow_start::WHOLE, |warmth| {
                warmth.share(spec.slow_start(), now)
            })
        };
        let world = World {
            desired: &self.desired,
            is_up: &|spec, backend| {
                if self.waiting.contains_key(&spec.name) {
                    return false;
                }
                let name = (spec.name.clone(), backend.address);
                self.health.get(&name).is_some_and(|health| health.is_up)
            },
            share: &share,
            resets: &|spec, backend| {
                let drain = || self.drains.get(&(spec.name.clone(), backend.address));
                backend.drain.is_some() && drain().is_some_and(|drain| drain.resets(now))
            },
            waits: &|spec| self.waiting.contains_key(&spec.name),
            next_hop: &|address| self.hops.get(&address),
            interfaces: &interfaces,
        };
        let result = self.reconciler.reconcile(&mut self.plane, &world, now);
        // Also of a change that was made in part: packets may have been counted.
        self.ledger.open(self.reconciler.image());
        let steps = result?;
        if steps != 0 {
            self.checks_changed = true;
            tracing::debug!(steps, "the datapath is as it should be");
        }
        let retry = (!all_attached).then_some(now + RETRY);
        let deadlines = self.drains.values().filter_map(|drain| drain.next(now));
        let next_deadline = deadlines.min();
        self.overdue = [retry, next_step, next_end, next_deadline]
            .into_iter()
            .flatten()
            .min();
        Ok(())
    }

    /// Takes notice of backends that come and go, and says when the share of one grows
    /// next. Those that a service begins with have nobody to come after.
    fn follow_slow_starts(&mut self, now: Duration) -> Option<Duration> {
        let mut before = std::mem::take(&mut self.warmth);
        let known: BTreeSet<String> = before.keys().map(|(service, _)| service.clone()).collect();
        let mut next: Option<Duration> = None;
        for spec in self.desired.services() {
            let new = if known.contains(&spec.name) {
                Warmth::Cold
            } else {
                Warmth::Warm
            };
            for backend in &spec.backends {
                let name = (spec.name.clone(), backend.address);
                let seen = match self.health.get(&name) {
                    _ if !backend.takes_flows() => Seen::Out,
                    Some(health) if health.is_up => Seen::Serving,
                    Some(health) if health.status != health::unknown() => Seen::Out,
                    _ => Seen::Unknown,
                };
                let slow_start = spec.slow_start();
                let warmth = before.remove(&name).unwrap_or(new);
                let warmth = warmth.step(seen, slow_start, now);
                next = [next, warmth.next(slow_start, now)]
                    .into_iter()
                    .flatten()
                    .min();
                self.warmth.insert(name, warmth);
            }
        }
        next
    }

    /// The health of every wanted backend: as it is known, or as it is assumed until the
    /// first check. A backend that served without a check goes on until one fails.
    fn expected_health(&self, before: &Desired) -> HashMap<Name, Health> {
        let mut expected = HashMap::new();
        for spec in self.desired.services() {
            let before = before.service(&spec.name);
            for backend in &spec.backends {
                let was_checked = before.is_some_and(|before| is_checked(before, backend.address));
                let name = (spec.name.clone(), backend.address);
                let known = self.health.get(&name).cloned();
                let health = match (spec.health_of(backend), known) {
                    (None, _) => Health {
                        is_up: true,
                        status: HealthStatus {
                            last: "none".to_owned(),
                            error: None,
                            streak: 0,
                            held: None,
                        },
                    },
                    (Some(_), Some(known)) if was_checked => known,
                    (Some(_), known) => Health {
                        is_up: known.is_some_and(|known| known.is_up),
                        status: health::unknown(),
                    },
                };
                expected.insert(name, health);
            }
        }
        expected
    }

    /// The health of a wanted backend.
    pub(super) fn health_of(&self, service: &str, backend: BackendAddress) -> Option<&Health> {
        self.health.get(&(service.to_owned(), backend))
    }

    /// The next hop of an address.
    pub(super) fn hop(&self, address: IpAddr) -> Option<&NextHop> {
        self.hops.get(&address)
    }

    /// Indices of the attached interfaces.
    pub(super) fn ifindexes(&self) -> Vec<u32> {
        self.attached.iter().filter_map(Attached::ifindex).collect()
    }

    fn is_attached(&self, ifindex: u32) -> bool {
        let mut attached = self.attached.iter().filter_map(Attached::ifindex);
        attached.any(|index| index == ifindex)
    }
}
