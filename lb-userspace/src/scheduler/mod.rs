//! How new flows are spread over backends: fills the ring of a service.

mod maglev;
pub mod tiers;

use crate::state::{BackendAddress, Scheduler};

/// A backend as a scheduler sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// What names it on every balancer alike.
    pub address: BackendAddress,
    /// Share of new flows in proportion to the sum of weights; 0 for none.
    pub weight: u32,
    /// Id that this balancer's datapath knows it by.
    pub id: u32,
}

/// The ring of a service with these backends: [`RING_SIZE`](lb_common::ring::RING_SIZE)
/// ids, all [`NO_BACKEND`](lb_common::ring::NO_BACKEND) where no backend takes flows. It
/// depends on nothing else, not on the order of `members` either, so that two balancers
/// with the same configuration send a flow to the same backend.
#[must_use]
pub fn ring(scheduler: Scheduler, members: &[Member]) -> Vec<u32> {
    match scheduler {
        // A slot taken at random has a backend in proportion to its weight.
        Scheduler::Maglev
        | Scheduler::RoundRobin
        | Scheduler::LeastConnections
        | Scheduler::Random => maglev::ring(members),
    }
}
