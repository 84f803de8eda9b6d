//! How new flows are spread over backends: fills the ring of a service.

mod maglev;
mod size;
pub mod tiers;
mod turns;

pub use self::{
    size::{InvalidRingSize, RingSize},
    turns::RoundRobin,
};
use crate::state::BackendAddress;

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

/// The ring of a service with these backends: as many ids as it has slots, all
/// [`NO_BACKEND`](lb_common::ring::NO_BACKEND) where no backend takes flows. It
/// depends on nothing else, not on the order of `members` either, so that two balancers
/// with the same configuration send a flow to the same backend.
#[must_use]
pub fn ring(members: &[Member], size: RingSize) -> Vec<u32> {
    maglev::ring(members, size)
}

/// The ring of a service whose new flows take its slots one after the other. Of the order
/// of `members` it depends no more than [`ring`].
#[must_use]
pub fn round_robin(members: &[Member], size: RingSize) -> RoundRobin {
    turns::round_robin(members, size)
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
