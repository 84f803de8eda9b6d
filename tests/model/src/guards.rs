//! *Sources and limits*: whom a service takes packets from, and how many new flows.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
};

use crate::{
    outcome::Reason,
    world::{Prefix, Service},
};

/// "Of the prefixes in both lists the longest that has the source decides."
#[must_use]
pub fn takes(service: &Service, source: IpAddr) -> bool {
    let longest = |list: &[Prefix]| {
        let having = list.iter().filter(|prefix| prefix.contains(source));
        having.map(|prefix| prefix.length).max()
    };
    match (longest(&service.allow), longest(&service.deny)) {
        (Some(allowed), Some(denied)) => allowed > denied,
        (Some(_), None) => true,
        (None, Some(_)) => false,
        // "A source that none has is taken if `allow` is empty."
        (None, None) => service.allow.is_empty(),
    }
}

/// Tokens that are missing in the buckets of sources and services.
#[derive(Clone, Debug, Default)]
pub struct Buckets {
    of_sources: HashMap<(u32, IpAddr), u32>,
    of_services: HashMap<u32, u32>,
}

impl Buckets {
    /// What a flow that begins costs its source and the service.
    ///
    /// # Errors
    ///
    /// Why it may not begin.
    pub fn begin(&mut self, service: &Service, source: IpAddr) -> Result<(), Reason> {
        let key = (service.id, network(source));
        if let Some(burst) = service.new_per_source
            && !take(self.of_sources.entry(key).or_default(), burst)
        {
            return Err(Reason::RateLimitedSource);
        }
        if let Some(burst) = service.new_per_service
            && !take(self.of_services.entry(service.id).or_default(), burst)
        {
            // "What the service refuses costs the source nothing."
            if service.new_per_source.is_some() {
                *self.of_sources.entry(key).or_default() -= 1;
            }
            return Err(Reason::RateLimitedService);
        }
        Ok(())
    }

    /// So much time has passed that this many tokens have come to each bucket.
    pub fn fill(&mut self, tokens: u32) {
        let missing = self.of_sources.values_mut();
        for missing in missing.chain(self.of_services.values_mut()) {
            *missing = missing.saturating_sub(tokens);
        }
    }
}

fn take(missing: &mut u32, burst: u32) -> bool {
    if *missing < burst {
        *missing += 1;
        return true;
    }
    // A larger burst of before leaves no debts.
    *missing = burst;
    false
}

/// "Addresses of IPv6 with the same first 64 bits count as one source."
fn network(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => source,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}
