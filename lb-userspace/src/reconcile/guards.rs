//! Lists of sources and limits of new flows: from what is wanted to what the tables hold.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::guard::{Guard, Rate};

use super::Image;
use crate::{
    address::AddressPrefix,
    datapath::Source,
    state::{RateLimit, ServiceSpec},
};

/// Whether anything guards a service.
pub(super) fn has_any(spec: &ServiceSpec) -> bool {
    is_listed(spec)
        || spec.limits.new_per_source.is_some()
        || spec.limits.new_per_service.is_some()
}

fn is_listed(spec: &ServiceSpec) -> bool {
    !spec.allow.is_empty() || !spec.deny.is_empty()
}

/// Adds what guards the service of this id.
pub(super) fn add(image: &mut Image, service: u32, spec: &ServiceSpec) {
    if !has_any(spec) {
        return;
    }
    let rate = |limit: Option<RateLimit>| {
        limit.map_or(Rate::default(), |limit| Rate::new(limit.rate, limit.burst))
    };
    let guard = Guard {
        flags: if is_listed(spec) { Guard::LISTED } else { 0 },
        generation: 0,
        per_source: rate(spec.limits.new_per_source),
        per_service: rate(spec.limits.new_per_service),
    };
    image.guards.insert(service, guard);
    if !is_listed(spec) {
        return;
    }
    let all: IpAddr = if spec.address.prefix.address().is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let source = |prefix| Source { service, prefix };
    // What no prefix has; a list may have a prefix of all addresses, which comes after.
    let others = (source(AddressPrefix::new(all, 0)), spec.allow.is_empty());
    let allowed = spec.allow.iter().map(|prefix| (source(*prefix), true));
    let denied = spec.deny.iter().map(|prefix| (source(*prefix), false));
    image.sources.extend([others]);
    image.sources.extend(allowed.chain(denied));
}
