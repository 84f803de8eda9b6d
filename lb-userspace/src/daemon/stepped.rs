//! The daemon without a clock, and without sources of events: whoever has it brings both. So
//! it runs hours in seconds, and the same hours again, on the tables in the kernel.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    balancer::{Attached, Attachment, Balancer},
    plane::Wired,
    sweeping::Swept,
};
use crate::{
    datapath::{self, AttachedMode, Datapath, XdpMode},
    flows::Sweeper,
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
    sweeper: Sweeper,
    /// The owner's time when this daemon began.
    zero: Duration,
    /// The time since then.
    now: Arc<Time>,
    /// A sweep that has walked over the tables, and of which nothing has followed yet.
    swept: Option<Swept>,
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
            sweeper,
            zero: now,
            now: time,
            swept: None,
        })
    }

    /// The daemon ends. The datapath goes on, for another to begin with.
    #[must_use]
    pub fn end(self) -> Datapath {
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
        let event = neighbour::Event::NextHop { address, hop };
        self.balancer.neighbour(event);
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
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to read or write a table.
    pub fn begin_sweep(&mut self) -> datapath::Result<()> {
        let order = self.balancer.sweep(self.now.get());
        let report = self
            .sweeper
            .sweep(order.tick, &order.lifetimes, &order.gone)?;
        self.swept = Some(Swept {
            began: order.now,
            result: Ok(report),
        });
        Ok(())
    }

    /// Takes what the sweep found that has begun, if any has.
    pub fn end_sweep(&mut self) {
        if let Some(swept) = self.swept.take() {
            self.balancer.swept(swept);
            self.bring_in_line();
        }
    }

    /// Both at once.
    ///
    /// # Errors
    ///
    /// As with [`Self::begin_sweep`].
    pub fn sweep(&mut self) -> datapath::Result<()> {
        self.begin_sweep()?;
        self.end_sweep();
        Ok(())
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
