//! The daemon without a clock, and without sources of events: whoever has it brings both. So
//! it runs hours in seconds, and the same hours again, on the tables in the kernel.

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    balancer::{Attached, Attachment, Balancer},
    plane::Wired,
    sweeping::Swept,
};
use crate::{
    datapath::{self, AttachedMode, Datapath, XdpMode},
    flows::{Report, Sweeper},
    health,
    neighbour::{self, Interface, NextHop},
    state::{BackendAddress, Change, Desired, HealthStatus, Refusal, Status},
};

/// A daemon that stands still between the calls of its methods.
///
/// Times are those of its owner, and never go back. The flow clock ticks with them, also from
/// one daemon to the next.
pub struct Stepped {
    balancer: Balancer<Wired>,
    sweep: Sweep,
    /// The owner's time when this daemon began.
    zero: Duration,
    /// The time since then.
    now: Arc<Time>,
}

/// A sweep, or who is to make one.
enum Sweep {
    /// There is none.
    Idle(Sweeper),
    /// It has walked over the tables, and nothing has followed from it yet.
    Walked(Sweeper, Swept),
    /// It walks on another thread since then.
    Walks(JoinHandle<(Sweeper, datapath::Result<Report>)>, Duration),
    /// It is being exchanged for another of these.
    Between,
}

impl Sweep {
    /// Waits for the sweep, if there is one, and takes what came of it.
    ///
    /// # Panics
    ///
    /// Where its thread has panicked.
    fn take(&mut self) -> Option<Swept> {
        let (sweeper, swept) = match std::mem::replace(self, Self::Between) {
            Self::Between => return None,
            Self::Idle(sweeper) => (sweeper, None),
            Self::Walked(sweeper, swept) => (sweeper, Some(swept)),
            Self::Walks(thread, began) => {
                let ended = thread.join();
                let (sweeper, result) =
                    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                (sweeper, Some(Swept { began, result }))
            }
        };
        *self = Self::Idle(sweeper);
        swept
    }

    /// Forgets the sweep that there may be, and takes who is to make the next.
    fn sweeper(&mut self) -> Option<Sweeper> {
        let _forgotten = self.take();
        match std::mem::replace(self, Self::Between) {
            Self::Idle(sweeper) => Some(sweeper),
            _ => None,
        }
    }
}

/// A time that the daemon and its tables share.
#[derive(Default)]
struct Time(AtomicU64);

impl Time {
    fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    fn set(&self, now: Duration) {
        self.0.store(now.as_nanos() as u64, Ordering::Relaxed);
    }
}

impl Stepped {
    /// A daemon that begins at `now`, with whatever is in the tables of the datapath. Packets
    /// come in by `interfaces`, to which nothing is attached: they are brought by
    /// [`Datapath::test_run`].
    ///
    /// Where the datapath had backends, nothing is changed until the ways to all of them
    /// are [known](Self::next_hop).
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to read the tables.
    pub fn begin(
        datapath: Datapath,
        interfaces: &[Interface],
        desired: Desired,
        now: Duration,
    ) -> datapath::Result<Self> {
        let time = Arc::new(Time::default());
        let sweeper = Sweeper::new(datapath.flow_tables()?);
        let clock = Arc::clone(&time);
        let (plane, found) = Wired::new(datapath, Box::new(move || clock.get()))?;
        let attached = interfaces.iter().map(|interface| Attached {
            name: interface.name.clone(),
            wanted: XdpMode::Auto,
            state: Attachment::On {
                ifindex: interface.ifindex,
                mode: AttachedMode::Native,
            },
        });
        let attached = attached.collect();
        let mut balancer = Balancer::new(plane, attached, desired, found, Duration::ZERO);
        for interface in interfaces {
            balancer.neighbour(neighbour::Event::Interface(interface.clone()));
        }
        Ok(Self {
            balancer,
            sweep: Sweep::Idle(sweeper),
            zero: now,
            now: time,
        })
    }

    /// The daemon ends. The datapath goes on, for another to begin with.
    #[must_use]
    pub fn end(mut self) -> Datapath {
        // A sweep that is under way has the tables for itself until then.
        let _forgotten = self.sweep.take();
        self.balancer.plane.into_datapath()
    }

    /// The datapath.
    pub fn datapath(&mut self) -> &mut Datapath {
        self.balancer.plane.datapath_mut()
    }

    /// It becomes `now`: what is due is done, and the flow clock is written.
    pub fn pass_to(&mut self, now: Duration) {
        self.now.set(now - self.zero);
        self.bring_in_line();
        self.balancer.tick(self.now.get());
    }

    /// Brings the datapath in line with what is wanted and known.
    fn bring_in_line(&mut self) {
        self.balancer.reconcile_if_needed(self.now.get());
    }

    /// The addresses whose next hops are wanted.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.balancer.addresses().into_iter()
    }

    /// Takes the way to an address.
    pub fn next_hop(&mut self, address: IpAddr, hop: NextHop) {
        self.next_hops([(address, hop)]);
    }

    /// Takes the ways to several addresses together, as the running daemon takes what has come
    /// meanwhile.
    pub fn next_hops(&mut self, hops: impl IntoIterator<Item = (IpAddr, NextHop)>) {
        for (address, hop) in hops {
            let event = neighbour::Event::NextHop { address, hop };
            self.balancer.neighbour(event);
        }
        self.bring_in_line();
    }

    /// Takes what a check has made of the health of a backend.
    pub fn set_health(&mut self, service: &str, backend: BackendAddress, up: bool) {
        let status = HealthStatus {
            last: if up { "ok" } else { "failing" }.to_owned(),
            ..health::unknown()
        };
        self.balancer.health(health::Event {
            service: service.to_owned(),
            backend,
            up,
            changed: true,
            status,
        });
        self.bring_in_line();
    }

    /// The backends that are doubted at this time, by what became of clients' connections. To
    /// be asked every [`SAMPLING`](health::passive::SAMPLING).
    pub fn doubted(&mut self) -> Vec<(String, BackendAddress)> {
        let _targets = self.balancer.new_targets();
        self.balancer.doubted(self.now.get())
    }

    /// Changes what is wanted.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] says why nothing was changed.
    pub fn change(&mut self, change: Change) -> Result<(), Refusal> {
        self.balancer.change(change, self.now.get())
    }

    /// Walks over the flow tables. What follows from it comes with [`Self::end_sweep`],
    /// before which packets may come and time may pass.
    pub fn begin_sweep(&mut self) {
        let order = self.balancer.sweep(self.now.get());
        if let Some(mut sweeper) = self.sweep.sweeper() {
            let result = sweeper.sweep(order.tick, &order.lifetimes, &order.gone);
            let began = order.now;
            self.sweep = Sweep::Walked(sweeper, Swept { began, result });
        }
    }

    /// Walks over the flow tables on another thread, as it is when the daemon runs: packets
    /// come meanwhile. [`Self::end_sweep`] waits for it.
    ///
    /// # Errors
    ///
    /// Where no thread can be started.
    pub fn begin_sweep_beside(&mut self) -> io::Result<()> {
        let order = self.balancer.sweep(self.now.get());
        if let Some(mut sweeper) = self.sweep.sweeper() {
            let began = order.now;
            let thread = thread::Builder::new().name("sweep".into()).spawn(move || {
                let result = sweeper.sweep(order.tick, &order.lifetimes, &order.gone);
                (sweeper, result)
            })?;
            self.sweep = Sweep::Walks(thread, began);
        }
        Ok(())
    }

    /// Takes what the sweep found that has begun, if any has.
    ///
    /// # Panics
    ///
    /// Where it has panicked on a thread of its own.
    pub fn end_sweep(&mut self) {
        if let Some(swept) = self.sweep.take() {
            self.balancer.swept(swept);
            self.bring_in_line();
        }
    }

    /// Both at once.
    pub fn sweep(&mut self) {
        self.begin_sweep();
        self.end_sweep();
    }

    /// What is wanted.
    #[must_use]
    pub fn desired(&self) -> &Desired {
        &self.balancer.desired
    }

    /// What is.
    #[must_use]
    pub fn status(&self) -> Status {
        self.balancer.status(self.now.get())
    }
}
