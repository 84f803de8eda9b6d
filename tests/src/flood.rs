//! SYNs from clients that there are not, a million a second and more: the driver program of
//! the benchmark makes them in the kernel and calls the balancer's program with each.

use std::time::Duration;

use lb_driver::{Callee, Driver, Order, Plan, ProgramFd, Vary};

use crate::{
    packet::Packet,
    site::{self, Front, Site},
    world::CLIENT_IF,
};

/// A flood of SYNs to an IPv4 service.
pub struct Flood {
    driver: Driver,
    program: ProgramFd,
    plan: Plan,
    /// CPU time that all packets have taken.
    time: Duration,
    sent: u64,
}

/// Tuples that spoofed SYNs have, one after the other.
const TUPLES: u32 = 1 << 25;

impl Flood {
    /// A flood to this service that has not begun. It lasts as long as the program that is
    /// loaded now.
    ///
    /// # Panics
    ///
    /// Where the driver cannot be loaded: these tests need root and BPF.
    #[must_use]
    pub fn new(site: &mut Site, front: Front) -> Self {
        let datapath = site.daemon().datapath();
        let program = datapath.program_fd().expect("the program");
        // The driver puts the rest of the client's address and its port into these fields.
        let nobody = ([198, 18, 0, 0], 0).into();
        let mut syn = Packet::tcp(nobody, front.vip, |tcp| tcp.syn = true)
            .with_ipv4(|ip| ip.identification = 0);
        let headers = syn.build().len();
        syn.payload = vec![0; lb_driver::FRAME - headers];
        site::address(&mut syn);
        let frame = syn.build().try_into().expect("a frame of the driver's");
        Self {
            driver: Driver::load(1, CLIENT_IF).expect("the driver"),
            program: program.try_clone().expect("another handle"),
            plan: Plan {
                frame,
                vary: Vary::Client4 as u16,
                unwraps: u16::from(front.mode.tunnels()),
                order: Order::scattered(TUPLES),
                base: 0,
                next: 0,
            },
            time: Duration::ZERO,
            sent: 0,
        }
    }

    /// Sends so many.
    ///
    /// # Panics
    ///
    /// Where the kernel does not run the driver, or not as often.
    pub fn send(&mut self, syns: u32) {
        let callee = Callee::UnderTest;
        let outcome = self
            .driver
            .run(callee, &self.program, &mut self.plan, syns)
            .expect("runs of the driver");
        self.time += outcome.time;
        self.sent += u64::from(syns);
    }

    /// How many were sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Nanoseconds of CPU time that each took, the driver's part included.
    #[must_use]
    pub fn nanoseconds(&self) -> f64 {
        self.time.as_nanos() as f64 / self.sent.max(1) as f64
    }
}
