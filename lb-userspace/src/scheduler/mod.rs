//! How new flows are spread over backends: fills the ring of a service.

mod maglev;
mod size;
pub mod tiers;
mod turns;

pub use self::size::{InvalidRingSize, RingSize};
use crate::state::{BackendAddress, Scheduler};

/// The slots of a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filled {
    /// Id of the backend of each slot, [`NO_BACKEND`](lb_common::ring::NO_BACKEND) in all
    /// where no backend takes flows.
    pub owners: Vec<u32>,
    /// How many of them, from the first on, new flows look at that have no slot by their
    /// hash; 0 where no backend takes flows. With [`Scheduler::RoundRobin`] each backend has
    /// its exact share of them, if the weights without their common divisor add up to no more
    /// than the ring has slots; else its share to one slot. With
    /// [`Scheduler::LeastConnections`] so it has, nearly, where there are more backends than
    /// [`LOOKS`](lb_common::service::LOOKS), and else one.
    pub turns: u32,
}

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

/// The ring of a service with these backends. It depends on nothing else, not on the order
/// of `members` either, so that two balancers with the same configuration send a flow to the
/// same backend.
#[must_use]
pub fn ring(scheduler: Scheduler, members: &[Member], size: RingSize) -> Filled {
    match scheduler {
        // A slot taken at random has a backend in proportion to its weight, too.
        Scheduler::Maglev | Scheduler::Random => Filled {
            owners: maglev::ring(members, size),
            turns: 1,
        },
        Scheduler::RoundRobin => turns::round_robin(members, size),
        Scheduler::LeastConnections => turns::least_connections(members, size),
    }
}

/// Those that take new flows, in the same order on every balancer.
fn in_order(members: &[Member]) -> Vec<Member> {
    let mut members: Vec<Member> = members.iter().copied().filter(|m| m.weight != 0).collect();
    members.sort_unstable_by_key(|member| member.address);
    members
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::state::BackendPort;

    /// A backend of this number, whose id is one more.
    pub(super) fn member(number: u32, weight: u32) -> Member {
        Member {
            address: BackendAddress {
                ip: Ipv4Addr::from_bits(0x0a00_0000 + number).into(),
                port: BackendPort::Number(8_080),
            },
            weight,
            id: number + 1,
        }
    }

    /// Backends of these weights, numbered from 0 on.
    pub(super) fn members(weights: impl IntoIterator<Item = u32>) -> Vec<Member> {
        (0..).zip(weights).map(|(n, w)| member(n, w)).collect()
    }
}
