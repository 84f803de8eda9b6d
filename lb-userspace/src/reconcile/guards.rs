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
    is_listed(spec) || spec.limits.new_per_source.is_some() || spec.limits.new_per_service.is_some()
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

#[cfg(test)]
mod tests {
    use lb_common::{guard::TICKS_PER_NANOSECOND, service::Service};
    use proptest::{collection::btree_map, prelude::*, sample::select};

    use super::{
        super::{Op, Tables as _, diff},
        *,
    };
    use crate::{
        datapath::Match,
        state::{Mode, NewFlowLimits},
    };

    const ID: u32 = 1;

    fn spec(allow: &[AddressPrefix], deny: &[AddressPrefix]) -> ServiceSpec {
        ServiceSpec {
            allow: allow.to_vec(),
            deny: deny.to_vec(),
            ..ServiceSpec::new("web", "192.0.2.1:80".parse().unwrap(), Mode::Dsr)
        }
    }

    fn image(spec: &ServiceSpec) -> Image {
        let mut image = Image::default();
        add(&mut image, ID, spec);
        let entry = Match::Port {
            address: [192, 0, 2, 1].into(),
            port: 80,
            protocol: 6,
        };
        let service = Service {
            id: ID as u16,
            flags: if has_any(spec) { Service::GUARDED } else { 0 },
            ..Service::default()
        };
        image.services.insert(entry, service);
        image
    }

    /// What the datapath makes of a packet of this source.
    fn takes(image: &Image, source: IpAddr) -> bool {
        let is_guarded = |service: &Service| service.flags & Service::GUARDED != 0;
        let guard = image.guards.get(&ID).copied().unwrap_or_default();
        if !image.services.values().any(is_guarded) || guard.flags & Guard::LISTED == 0 {
            return true;
        }
        let entries = image.sources.iter();
        let having = entries.filter(|(entry, _)| entry.prefix.contains(source));
        let longest = having.max_by_key(|(entry, _)| entry.prefix.length());
        longest.is_none_or(|(_, is_allowed)| *is_allowed)
    }

    #[test]
    fn limits_are_intervals_and_tolerances() {
        let mut spec = spec(&[], &[]);
        assert!(!has_any(&spec));
        spec.limits = NewFlowLimits {
            new_per_source: Some(RateLimit { rate: 10, burst: 5 }),
            new_per_service: None,
        };
        assert!(has_any(&spec));
        let image = image(&spec);
        let tenth = 100_000_000 * TICKS_PER_NANOSECOND;
        let expected = Guard {
            per_source: Rate {
                interval: tenth,
                tolerance: 4 * tenth,
            },
            ..Guard::default()
        };
        assert_eq!(image.guards[&ID], expected);
        assert!(image.sources.is_empty());
    }

    #[test]
    fn a_prefix_of_all_addresses_is_what_it_says() {
        let all = AddressPrefix::new([0; 4].into(), 0);
        let entries = |allow: &[AddressPrefix], deny: &[AddressPrefix]| {
            let image = image(&spec(allow, deny));
            let entries = image.sources.into_iter();
            entries
                .map(|(source, is_allowed)| (source.prefix, is_allowed))
                .collect::<Vec<_>>()
        };
        let one = AddressPrefix::new([198, 51, 100, 7].into(), 32);
        assert_eq!(entries(&[one], &[]), [(all, false), (one, true)]);
        assert_eq!(entries(&[], &[one]), [(all, true), (one, false)]);
        assert_eq!(entries(&[all], &[one]), [(all, true), (one, false)]);
        assert_eq!(entries(&[one], &[all]), [(all, false), (one, true)]);
        assert_eq!(entries(&[one, all], &[]), [(all, true), (one, true)]);
    }

    /// Prefixes within each other, allowed or denied; none for a service without a list.
    fn any_list() -> impl Strategy<Value = ServiceSpec> {
        let lengths = select(vec![0, 1, 8, 24, 28, 30, 31, 32]);
        let prefix = (0..16_u8, lengths)
            .prop_map(|(last, length)| AddressPrefix::new([198, 51, 100, last].into(), length));
        btree_map(prefix, any::<bool>(), 0..8).prop_map(|list| {
            let of = |wanted: bool| -> Vec<AddressPrefix> {
                let entries = list.iter().filter(|(_, is_allowed)| **is_allowed == wanted);
                entries.map(|(prefix, _)| *prefix).collect()
            };
            spec(&of(true), &of(false))
        })
    }

    proptest! {
        #[test]
        fn each_source_meets_the_old_list_or_the_new_one(
            old in any_list(), new in any_list(), limited: bool, gone: bool,
        ) {
            let (old, mut new) = (image(&old), new);
            if limited {
                new.limits.new_per_source = Some(RateLimit::new(1));
            }
            let mut new = image(&new);
            if gone {
                new = Image::default();
            }
            let sources = || {
                let near = (0..32_u8).map(|last| [198, 51, 100, last]);
                near.chain([[198, 51, 99, 1], [100, 0, 0, 1], [10, 0, 0, 1]])
            };
            let mut image = old.clone();
            for op in diff(&old, &new) {
                let is_last = matches!(op, Op::RemoveService(_));
                let Ok(()) = image.apply(&op);
                for source in sources().map(IpAddr::from) {
                    let verdict = takes(&image, source);
                    prop_assert!(
                        [takes(&old, source), takes(&new, source)].contains(&verdict) || is_last,
                        "{source} after {op:?}"
                    );
                }
            }
            prop_assert_eq!(image, new);
        }
    }
}
