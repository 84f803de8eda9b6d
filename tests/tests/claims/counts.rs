//! Live counts beside an independent count, of connections that end in every way: closed by
//! one side or both, reset, half open, or without a word, while backends come and go, the
//! scheduler is exchanged, and the daemon begins anew with another program.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    fmt,
    path::Path,
    time::Duration,
};

use lb_tests::{Connection, Front, Site, rng::Rng};
use lb_userspace::{
    datapath::{LogLevel, Options},
    state::{Change, Mode, Scheduler, ServiceSpec, Timeouts, Track},
};

/// A time or a length of time, in ticks of the flow clock.
type Ticks = u64;

const SECOND: Ticks = 10;
/// `timeouts.unreplied`, `.tcp-established` and `.tcp-closing`.
const UNREPLIED: Ticks = 5 * SECOND;
const ESTABLISHED: Ticks = 40 * SECOND;
const CLOSING: Ticks = 10 * SECOND;

const SCHEDULERS: [Scheduler; 4] = [
    Scheduler::Maglev,
    Scheduler::LeastConnections,
    Scheduler::RoundRobin,
    Scheduler::Random,
];

/// What becomes of a connection next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Accept,
    Speak,
    Reply,
    FinOfClient,
    FinOfBackend,
    RstOfClient,
    RstOfBackend,
}

/// What has been sent of a connection, as `docs/selection.md` counts it.
struct Flow {
    connection: Connection,
    home: u32,
    /// When the balancer saw a packet of it last.
    seen: Ticks,
    is_accepted: bool,
    is_confirmed: bool,
    fin_of_client: bool,
    fin_of_backend: bool,
    is_reset: bool,
    /// Its backend was removed.
    is_gone: bool,
    steps: VecDeque<Step>,
}

impl Flow {
    fn translates(&self) -> bool {
        self.connection.front.mode.translates()
    }

    fn is_closed(&self) -> bool {
        let both = self.fin_of_client && self.fin_of_backend;
        // The balancer hears nothing of what the backend sends in the other modes.
        self.is_reset || both || (self.fin_of_client && !self.translates())
    }

    fn is_live(&self) -> bool {
        self.is_confirmed && !self.is_closed()
    }

    fn timeout(&self) -> Ticks {
        if self.is_reset || self.fin_of_client || self.fin_of_backend {
            CLOSING
        } else if self.is_confirmed {
            ESTABLISHED
        } else {
            UNREPLIED
        }
    }
}

/// What was counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) opened: u64,
    packets: u64,
    comparisons: u64,
    most: u64,
    sweeps: u64,
    pub(crate) expired: u64,
    restarts: u64,
    exchanges: u64,
    removals: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            opened,
            packets,
            comparisons,
            most,
            sweeps,
            expired,
            restarts,
            exchanges,
            removals,
        } = self;
        write!(
            f,
            "counts: {opened} connections in {packets} packets, {most} live ones at a time; \
             {sweeps} sweeps ended {expired} of them, {removals} backends were removed, \
             schedulers exchanged {exchanges} times, the daemon {restarts} times; all counts \
             exact in {comparisons} comparisons, and 0 at the end"
        )
    }
}

struct World {
    rng: Rng,
    site: Site,
    fronts: [Front; 3],
    backends: Vec<u32>,
    flows: BTreeMap<u64, Flow>,
    due: BinaryHeap<Reverse<(Ticks, u64)>>,
    is_sweeping: bool,
    figures: Figures,
}

/// So many connections, some of them each second.
pub(crate) fn run(seed: u64, pins: &Path, connections: u64, each_second: u64) -> Figures {
    let mut world = World::new(seed, pins, connections);
    while world.figures.opened < connections {
        for _ in 0..each_second.div_ceil(SECOND) {
            world.open();
        }
        world.pass();
    }
    let end = world.now() + ESTABLISHED + CLOSING + 5 * SECOND;
    while world.now() < end {
        world.pass();
    }
    world.end_sweep();
    world.site.daemon().sweep();
    world.expire();
    world.compare();
    assert!(world.flows.is_empty(), "the test itself forgets all flows");
    world.figures
}

impl World {
    fn new(seed: u64, pins: &Path, connections: u64) -> Self {
        let fronts = [
            Front::new("full-nat", Mode::FullNat, false),
            Front::new("nat", Mode::Nat, true),
            Front::new("dsr", Mode::Dsr, false),
        ];
        let backends: Vec<u32> = (1..=8).collect();
        let options = Options {
            max_flows: 131_072.min(connections.max(8_192) as u32),
            max_embryonic: 65_536,
            log: LogLevel::Off,
        };
        let services = fronts.map(|front| ServiceSpec {
            track: Some(Track::All),
            ring_size: 1_021,
            timeouts: Timeouts {
                unreplied: Duration::from_millis(100 * UNREPLIED),
                tcp_established: Duration::from_millis(100 * ESTABLISHED),
                tcp_closing: Duration::from_millis(100 * CLOSING),
                ..Timeouts::default()
            },
            ..front.spec(&backends)
        });
        Self {
            rng: Rng::new(seed),
            site: Site::pinned(pins, options, services),
            fronts,
            backends,
            flows: BTreeMap::new(),
            due: BinaryHeap::new(),
            is_sweeping: false,
            figures: Figures::default(),
        }
    }

    fn now(&self) -> Ticks {
        (self.site.now().as_millis() / 100) as Ticks
    }

    /// A connection begins, and what becomes of it is decided.
    fn open(&mut self) {
        let number = self.figures.opened;
        self.figures.opened += 1;
        let front = *self.rng.pick(&self.fronts);
        let mut connection = Connection::new(front, front.client(number as u32));
        let home = connection.open(&mut self.site);
        let home = home.unwrap_or_else(|| panic!("{connection:?}: {}", self.site.drops()));
        self.figures.packets += 1;
        let flow = Flow {
            connection,
            home,
            seen: self.now(),
            is_accepted: false,
            is_confirmed: false,
            fin_of_client: false,
            fin_of_backend: false,
            is_reset: false,
            is_gone: false,
            steps: self.fate(),
        };
        self.flows.insert(number, flow);
        let pause = self.pause();
        self.due.push(Reverse((self.now() + pause, number)));
    }

    /// Less than any timeout.
    fn pause(&mut self) -> Ticks {
        self.rng.below(2 * SECOND as usize) as Ticks
    }

    fn fate(&mut self) -> VecDeque<Step> {
        use Step::{Accept, FinOfBackend, FinOfClient, Reply, RstOfBackend, RstOfClient, Speak};
        let begin: &[Step] = self.rng.weighted(&[
            // The client is not there; it is gone before the answer; it gives up.
            (3, &[] as &[Step]),
            (3, &[Accept]),
            (2, &[Accept, RstOfClient]),
            (2, &[RstOfBackend]),
            (90, &[Accept, Speak]),
        ]);
        let mut steps: VecDeque<Step> = begin.iter().copied().collect();
        if steps.back() != Some(&Speak) {
            return steps;
        }
        for _ in 0..self.rng.below(3) {
            steps.extend([Speak, Reply]);
        }
        let end: &[Step] = self.rng.weighted(&[
            (50, &[FinOfClient, FinOfBackend, Speak] as &[Step]),
            (15, &[FinOfBackend, FinOfClient, Reply]),
            // One FIN is lost, or both are.
            (7, &[FinOfClient]),
            (7, &[FinOfBackend]),
            (7, &[]),
            (5, &[RstOfClient]),
            (5, &[RstOfBackend]),
            (2, &[FinOfClient, RstOfBackend, Speak]),
            // The same more than once.
            (
                2,
                &[
                    FinOfClient,
                    FinOfClient,
                    FinOfBackend,
                    FinOfBackend,
                    RstOfClient,
                    RstOfClient,
                ],
            ),
        ]);
        steps.extend(end);
        steps
    }

    /// A tenth of a second passes, with all that happens in it.
    fn pass(&mut self) {
        while let Some(Reverse((at, number))) = self.due.peek().copied()
            && at <= self.now()
        {
            self.due.pop();
            self.go_on(number);
        }
        match self.now() % (2 * SECOND) {
            3 => {
                self.expire();
                let daemon = self.site.daemon();
                daemon.begin_sweep_beside().expect("a thread");
                self.is_sweeping = true;
                self.figures.sweeps += 1;
            }
            9 => self.end_sweep(),
            10 => self.compare(),
            11 if self.rng.percent(10) => self.restart(),
            12 if self.rng.percent(10) => self.exchange_scheduler(),
            13 if self.rng.percent(5) => self.replace_backend(),
            _ => {}
        }
        self.site.pass(Duration::from_millis(100));
        let live = self.flows.values().filter(|flow| flow.is_live()).count();
        self.figures.most = self.figures.most.max(live as u64);
    }

    fn end_sweep(&mut self) {
        if std::mem::take(&mut self.is_sweeping) {
            self.site.daemon().end_sweep();
        }
    }

    fn restart(&mut self) {
        self.end_sweep();
        self.site.restart();
        self.figures.restarts += 1;
    }

    fn exchange_scheduler(&mut self) {
        let front = *self.rng.pick(&self.fronts);
        let mut service = self.site.service(front);
        service.scheduler = *self.rng.pick(&SCHEDULERS);
        self.site.change(Change::SetService(Box::new(service)));
        self.figures.exchanges += 1;
    }

    /// A backend goes with its flows, and comes back at once.
    fn replace_backend(&mut self) {
        let front = *self.rng.pick(&self.fronts);
        let number = *self.rng.pick(&self.backends);
        self.site.remove_backend(front, number);
        for flow in self.flows.values_mut() {
            flow.is_gone |= flow.connection.front == front && flow.home == number;
        }
        self.site.add_backend(front, number, 100);
        self.figures.removals += 1;
    }

    /// The next that becomes of a connection.
    fn go_on(&mut self, number: u64) {
        let now = self.now();
        let pause = self.pause();
        let Some(flow) = self.flows.get_mut(&number).filter(|flow| !flow.is_gone) else {
            return;
        };
        let Some(step) = flow.steps.pop_front() else {
            return;
        };
        let site = &mut self.site;
        let line = &mut flow.connection;
        let home = Some(flow.home);
        match step {
            Step::Speak => assert_eq!(line.speak(site), home),
            Step::FinOfClient => assert_eq!(line.send(site, |tcp| tcp.fin = true), home),
            Step::RstOfClient => assert_eq!(line.send(site, |tcp| tcp.rst = true), home),
            Step::Accept => assert!(line.accept(site)),
            Step::Reply => assert!(line.answer(site, |_| {})),
            Step::FinOfBackend => assert!(line.answer(site, |tcp| tcp.fin = true)),
            Step::RstOfBackend => assert!(line.answer(site, |tcp| tcp.rst = true)),
        }
        let is_of_client = matches!(step, Step::Speak | Step::FinOfClient | Step::RstOfClient);
        if flow.translates() || is_of_client {
            flow.seen = now;
            flow.is_accepted |= step == Step::Accept;
            // Without an answer there is nothing to acknowledge.
            flow.is_confirmed |= is_of_client && (flow.is_accepted || !flow.translates());
            flow.fin_of_client |= step == Step::FinOfClient;
            flow.fin_of_backend |= step == Step::FinOfBackend;
            flow.is_reset |= matches!(step, Step::RstOfClient | Step::RstOfBackend);
            self.figures.packets += 1;
        }
        self.due.push(Reverse((now + pause, number)));
    }

    /// What a sweep that begins now takes away.
    fn expire(&mut self) {
        let now = self.now();
        let before = self.flows.len();
        self.flows
            .retain(|_, flow| !flow.is_gone && now - flow.seen <= flow.timeout());
        self.figures.expired += (before - self.flows.len()) as u64;
    }

    /// Compares all counts with those of the test.
    fn compare(&mut self) {
        let status = self.site.daemon().status();
        for front in self.fronts {
            let mut named = status.services.iter();
            let service = named.find(|service| service.name == front.name);
            let service = service.expect("a service of this name");
            assert!(service.active_is_exact);
            let of_front = || {
                let flows = self.flows.values();
                flows.filter(move |flow| flow.connection.front == front && flow.is_live())
            };
            let now = self.now();
            assert_eq!(
                service.active_flows,
                of_front().count() as u64,
                "{front:?} at {now}"
            );
            for number in &self.backends {
                let address = front.backend(*number).to_string();
                let mut named = service.backends.iter();
                let backend = named.find(|backend| backend.address == address);
                let backend = backend.expect("a backend of this address");
                let own = of_front().filter(|flow| flow.home == *number && !flow.is_gone);
                let live = own.count() as u64;
                assert_eq!(backend.active_flows, live, "{front:?} {address} at {now}");
            }
        }
        self.figures.comparisons += 1;
    }
}
