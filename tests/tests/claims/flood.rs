//! Floods of spoofed SYNs, with live connections that speak once a second and new ones that
//! take their time for the handshake.

use std::{collections::VecDeque, fmt, time::Duration};

use lb_tests::{Connection, Flood, Front, Site};
use lb_userspace::{
    datapath::{LogLevel, Options},
    state::{Mode, ServiceSpec},
};

/// Steps of a second. In each come a part of the flood, the live connections whose turn it is,
/// and a step of every handshake that is under way.
const STEPS: u32 = 100;
/// Steps that a backend takes for its answer, and that a client takes for its own then.
const ANSWER: u64 = 1;
const ROUND_TRIP: u64 = 5;
/// Steps after its handshake at which a new connection closes.
const LIFE: u64 = 100;

/// What the flood comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Against {
    /// A service without state, whose slots are clean.
    Clean,
    /// The same, where each slot has changed hands a moment ago.
    Changing,
    /// A service in full NAT.
    FullNat,
    /// A service in NAT.
    Nat,
}

/// How much there is of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Spoofed SYNs.
    pub(crate) syns: u64,
    /// Of them in a second.
    pub(crate) each_second: u32,
    /// Connections that are there all the time.
    pub(crate) live: u32,
    /// New ones in a second.
    pub(crate) new: u32,
    /// `limits.flows`.
    pub(crate) flows: u32,
    /// `limits.embryonic`.
    pub(crate) embryonic: u32,
    /// Backends.
    pub(crate) backends: u32,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    against: Against,
    size: Size,
    /// Packets of live connections.
    packets: u64,
    /// Live connections of which a packet went elsewhere or nowhere.
    pub(crate) lost: u64,
    /// New connections that got through.
    pub(crate) made: u64,
    /// Those that did not.
    pub(crate) failed: u64,
    sweeps: u64,
    nanoseconds: f64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, .. } = self;
        let all = (self.made + self.failed).max(1) as f64;
        write!(
            f,
            "flood: {:?}: {} SYNs, {} a second, limits.flows {}, limits.embryonic {}, {} backends: \
             {} of {} connections lost in {} packets, {} of {} new ones failed ({:.3}% made), {} \
             sweeps; {:.0} ns for a SYN",
            self.against,
            size.syns,
            size.each_second,
            size.flows,
            size.embryonic,
            size.backends,
            self.lost,
            size.live,
            self.packets,
            self.failed,
            self.made + self.failed,
            100.0 * self.made as f64 / all,
            self.sweeps,
            self.nanoseconds
        )
    }
}

/// A connection that is there all the time.
struct Live {
    connection: Connection,
    home: u32,
    is_lost: bool,
}

/// A new connection, and the step at which something becomes of it.
struct New {
    connection: Connection,
    home: u32,
    at: u64,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    Answer,
    Confirm,
    Close,
}

struct World {
    front: Front,
    site: Site,
    clients: u32,
    live: Vec<Live>,
    new: VecDeque<New>,
    figures: Figures,
    step: u64,
}

/// Lets the flood come.
pub(crate) fn run(against: Against, size: Size) -> Figures {
    let mut world = World::new(against, size);
    let mut flood = Flood::new(&mut world.site, world.front);
    let steps = size.syns * u64::from(STEPS) / u64::from(size.each_second);
    for step in 0..steps {
        world.step = step;
        // The flood has filled the queue when the first new connection comes.
        flood.send(size.each_second / STEPS);
        world.speak();
        world.meet();
        world.site.pass(Duration::from_secs(1) / STEPS);
        world.sweep();
    }
    world.finish();
    world.figures.nanoseconds = flood.nanoseconds();
    assert!(flood.sent() >= size.syns * 99 / 100);
    world.figures
}

impl World {
    fn new(against: Against, size: Size) -> Self {
        let mode = match against {
            Against::Clean | Against::Changing => Mode::Dsr,
            Against::FullNat => Mode::FullNat,
            Against::Nat => Mode::Nat,
        };
        let front = Front::new("flooded", mode, false);
        let numbers: Vec<u32> = (1..=size.backends).collect();
        let options = Options {
            max_flows: size.flows,
            max_embryonic: size.embryonic,
            log: LogLevel::Off,
        };
        let spec: ServiceSpec = front.spec(&numbers);
        let mut world = Self {
            front,
            site: Site::new(options, [spec]),
            clients: 0,
            live: Vec::new(),
            new: VecDeque::new(),
            figures: Figures {
                against,
                size,
                packets: 0,
                lost: 0,
                made: 0,
                failed: 0,
                sweeps: 0,
                nanoseconds: 0.0,
            },
            step: 0,
        };
        for _ in 0..size.live {
            let mut connection = world.new_connection();
            let home = connection.establish(&mut world.site);
            let home = home.expect("a handshake without a flood");
            world.live.push(Live {
                connection,
                home,
                is_lost: false,
            });
        }
        if against == Against::Changing {
            for number in &numbers {
                world
                    .site
                    .add_backend(front, number + size.backends, BACKEND_WEIGHT);
            }
            for number in &numbers {
                world
                    .site
                    .edit_backend(front, *number, |backend| backend.weight = 0);
            }
            let slots = world.site.slots(front);
            assert!(slots.iter().all(|slot| slot.is_changing()));
        }
        world
    }

    fn new_connection(&mut self) -> Connection {
        self.clients += 1;
        Connection::new(self.front, self.front.client(self.clients))
    }

    /// The live connections whose turn it is speak, and their backends answer.
    fn speak(&mut self) {
        let turn = (self.step % u64::from(STEPS)) as usize;
        for live in self.live.iter_mut().skip(turn).step_by(STEPS as usize) {
            let arrived = live.connection.speak(&mut self.site) == Some(live.home);
            let answered = arrived && live.connection.answer(&mut self.site, |_| {});
            self.figures.packets += 1;
            if !answered && !live.is_lost {
                live.is_lost = true;
                self.figures.lost += 1;
            }
        }
    }

    /// New connections begin, and others go on.
    fn meet(&mut self) {
        let begin = self.figures.size.new / STEPS;
        for _ in 0..begin {
            let mut connection = self.new_connection();
            match connection.open(&mut self.site) {
                Some(home) => self.new.push_back(New {
                    connection,
                    home,
                    at: self.step + ANSWER,
                    stage: Stage::Answer,
                }),
                None => self.figures.failed += 1,
            }
        }
        for _ in 0..self.new.len() {
            if let Some(new) = self.new.pop_front()
                && let Some(new) = self.go_on(new)
            {
                self.new.push_back(new);
            }
        }
    }

    /// What becomes of a new connection.
    fn go_on(&mut self, mut new: New) -> Option<New> {
        if new.at > self.step {
            return Some(new);
        }
        let home = Some(new.home);
        let site = &mut self.site;
        let is_well = match new.stage {
            Stage::Answer => new.connection.accept(site),
            Stage::Confirm => new.connection.speak(site) == home,
            Stage::Close => {
                let end = new.connection.send(site, |tcp| tcp.fin = true) == home;
                end && new.connection.answer(site, |tcp| tcp.fin = true)
            }
        };
        if !is_well {
            self.figures.failed += 1;
            return None;
        }
        let (stage, pause) = match new.stage {
            Stage::Answer => (Stage::Confirm, ROUND_TRIP),
            Stage::Confirm => (Stage::Close, LIFE),
            Stage::Close => {
                self.figures.made += 1;
                return None;
            }
        };
        (new.stage, new.at) = (stage, self.step + pause);
        Some(new)
    }

    /// Once a second the daemon sweeps, on another CPU than packets come by.
    fn sweep(&mut self) {
        match self.step % u64::from(STEPS) {
            10 => self.site.daemon().begin_sweep_beside().expect("a thread"),
            60 => {
                self.site.daemon().end_sweep();
                self.figures.sweeps += 1;
            }
            _ => {}
        }
    }

    /// The flood is over; what has begun comes to its end, and the counts are right.
    fn finish(&mut self) {
        while !self.new.is_empty() {
            self.step += 1;
            for _ in 0..self.new.len() {
                if let Some(new) = self.new.pop_front()
                    && let Some(new) = self.go_on(new)
                {
                    self.new.push_back(new);
                }
            }
        }
        self.site.daemon().end_sweep();
        if self.front.mode.translates() {
            let status = self.site.daemon().status();
            let active = status.services[0].active_flows;
            let there = u64::from(self.figures.size.live);
            assert_eq!(active, there, "{}", self.figures);
        }
    }
}

const BACKEND_WEIGHT: u32 = 100;
