//! Keys of the tables of services and their addresses, for either family.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use aya::maps::lpm_trie::Key;
use lb_common::service::{PortKey, Service, ServiceKey4, ServiceKey6};

use super::plain::Plain;
use crate::address::{AddressPrefix, PortRange};

/// An IPv4 address as the datapath keeps it.
#[must_use]
pub fn word(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// The address that the datapath keeps so.
pub(super) fn address(word: u32) -> Ipv4Addr {
    word.to_ne_bytes().into()
}

/// The address that the datapath keeps so.
pub(super) fn address6(words: [u32; 4]) -> Ipv6Addr {
    let octets: [u8; 16] = zerocopy::transmute!(words);
    octets.into()
}

/// An IPv6 address as the datapath keeps it.
#[must_use]
pub fn words6(address: Ipv6Addr) -> [u32; 4] {
    zerocopy::transmute!(address.octets())
}

/// An address of either family as backends keep it: IPv4 in the first word.
#[must_use]
pub fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => [word(address), 0, 0, 0],
        IpAddr::V6(address) => words6(address),
    }
}

/// What clients of a service send to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// The service's address, or addresses.
    pub address: AddressPrefix,
    /// Its ports.
    pub ports: PortRange,
    /// IP protocol number: 6 or 17.
    pub protocol: u8,
}

impl Frontend {
    /// Whether it has several addresses or ports: then it is found by way of the number
    /// of its address, [`Vip::id`](lb_common::service::Vip::id), which must not be 0.
    #[must_use]
    pub fn is_wide(self) -> bool {
        !self.address.is_address() || self.ports.single().is_none()
    }

    /// The entries of the service tables that say it; `vip` is the number of its address.
    fn matches(self, vip: u32) -> Vec<Match> {
        let protocol = self.protocol;
        match self.ports.single() {
            Some(port) if self.address.is_address() => vec![Match::Port {
                address: self.address.address(),
                port,
                protocol,
            }],
            _ => port_prefixes(self.ports)
                .into_iter()
                .map(|ports| Match::Ports {
                    vip,
                    protocol,
                    ports,
                })
                .collect(),
        }
    }
}

/// One entry of the service tables: which packets it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Match {
    /// Those to one port of one address.
    Port {
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
        /// IP protocol number.
        protocol: u8,
    },
    /// Those to some ports of a number of [`Vip`](lb_common::service::Vip).
    Ports {
        /// The number.
        vip: u32,
        /// IP protocol number.
        protocol: u8,
        /// The ports.
        ports: PortPrefix,
    },
}

/// The entries of the service tables for `services`. Of several on one address and
/// protocol the one with the fewest ports has a port that is common to them: so two of
/// these are apart, or one is part of the other. `vip` numbers their addresses.
pub fn matches(
    services: impl IntoIterator<Item = (Frontend, Service)>,
    vip: impl Fn(AddressPrefix) -> u32,
) -> BTreeMap<Match, Service> {
    let mut services: Vec<_> = services.into_iter().collect();
    // Two that are part of each other may have an entry in common, at a common end. It
    // becomes that of the one that comes last.
    services.sort_by_key(|(frontend, _)| Reverse(frontend.ports.count()));
    let entries = services.into_iter().flat_map(|(frontend, service)| {
        let matches = frontend.matches(vip(frontend.address));
        matches.into_iter().map(move |entry| (entry, service))
    });
    entries.collect()
}

/// The ports that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortPrefix {
    first: u16,
    length: u8,
}

/// The fewest prefixes that make up a range: at most 30.
fn port_prefixes(range: PortRange) -> Vec<PortPrefix> {
    let mut prefixes = Vec::new();
    let (mut first, end) = (u32::from(range.first()), u32::from(range.last()) + 1);
    while first < end {
        // As many as are aligned at the first and do not go beyond the end.
        let bits = first.trailing_zeros().min((end - first).ilog2());
        prefixes.push(PortPrefix {
            first: first as u16,
            length: (u16::BITS - bits.min(u16::BITS)) as u8,
        });
        first += 1 << bits;
    }
    prefixes
}

/// A [`Match`] as the table has it that it is for.
pub(super) enum ServiceKey {
    V4(ServiceKey4),
    V6(ServiceKey6),
    Ports(Key<Plain<PortKey>>),
}

impl Match {
    pub(super) fn of_v4(key: ServiceKey4) -> Self {
        Self::Port {
            address: address(key.address).into(),
            port: u16::from_be(key.port),
            protocol: key.protocol as u8,
        }
    }

    pub(super) fn of_v6(key: ServiceKey6) -> Self {
        Self::Port {
            address: address6(key.address).into(),
            port: u16::from_be(key.port),
            protocol: key.protocol as u8,
        }
    }

    pub(super) fn of_ports(key: &Key<Plain<PortKey>>) -> Self {
        let Plain(ports) = key.data();
        Self::Ports {
            vip: ports.vip,
            protocol: ports.protocol as u8,
            ports: PortPrefix {
                first: u16::from_be(ports.port),
                length: key.prefix_len().saturating_sub(PortKey::ANY_PORT) as u8,
            },
        }
    }

    pub(super) fn key(self) -> ServiceKey {
        match self {
            Self::Port {
                address: IpAddr::V4(address),
                port,
                protocol,
            } => ServiceKey::V4(ServiceKey4 {
                address: word(address),
                port: port.to_be(),
                protocol: protocol.into(),
            }),
            Self::Port {
                address: IpAddr::V6(address),
                port,
                protocol,
            } => ServiceKey::V6(ServiceKey6 {
                address: words6(address),
                port: port.to_be(),
                protocol: protocol.into(),
                reserved: 0,
            }),
            Self::Ports {
                vip,
                protocol,
                ports,
            } => {
                let key = PortKey {
                    vip,
                    protocol: protocol.into(),
                    port: ports.first.to_be(),
                };
                let length = PortKey::ANY_PORT + u32::from(ports.length);
                ServiceKey::Ports(Key::new(length, Plain(key)))
            }
        }
    }
}

/// An address of services as the table has it that it is for.
pub(super) enum VipKey {
    V4(u32),
    V6([u32; 4]),
    Prefix4(Key<Plain<u32>>),
    Prefix6(Key<Plain<[u32; 4]>>),
}

impl VipKey {
    pub(super) fn of(address: AddressPrefix) -> Self {
        let length = u32::from(address.length());
        match (address.address(), address.is_address()) {
            (IpAddr::V4(address), true) => Self::V4(word(address)),
            (IpAddr::V6(address), true) => Self::V6(words6(address)),
            (IpAddr::V4(address), false) => Self::Prefix4(Key::new(length, Plain(word(address)))),
            (IpAddr::V6(address), false) => Self::Prefix6(Key::new(length, Plain(words6(address)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange::new(first, last).unwrap()
    }

    fn has(prefix: PortPrefix, port: u16) -> bool {
        let (port, first) = (u32::from(port), u32::from(prefix.first));
        port >> (16 - prefix.length) == first >> (16 - prefix.length)
    }

    /// Ranges that are apart or part of each other.
    fn nested() -> impl Strategy<Value = Vec<PortRange>> {
        let near = (0..300_u16, 0..300_u16);
        let any = (any::<u16>(), any::<u16>());
        vec(prop_oneof![near, any], 1..12).prop_map(|pairs| {
            let mut nested: Vec<PortRange> = Vec::new();
            for (a, b) in pairs {
                let range = range(a.min(b), a.max(b));
                let fits = |other: &PortRange| {
                    *other != range
                        && (!other.overlaps(range)
                            || other.contains(range)
                            || range.contains(*other))
                };
                if nested.iter().all(fits) {
                    nested.push(range);
                }
            }
            nested
        })
    }

    #[test]
    fn every_port_is_one_prefix_and_the_worst_range_thirty() {
        let all = PortPrefix {
            first: 0,
            length: 0,
        };
        assert_eq!(port_prefixes(PortRange::ALL), [all]);
        assert_eq!(port_prefixes(range(1, 65_534)).len(), 30);
        let one = PortPrefix {
            first: 443,
            length: 16,
        };
        assert_eq!(port_prefixes(443.into()), [one]);
    }

    #[test]
    fn only_one_port_of_one_address_is_matched_as_such() {
        let address: IpAddr = [192, 0, 2, 10].into();
        let frontend = |address: AddressPrefix, ports| Frontend {
            address,
            ports,
            protocol: 6,
        };
        let exact = frontend(address.into(), 443.into());
        assert!(!exact.is_wide());
        assert!(matches!(exact.matches(7)[..], [Match::Port { .. }]));
        for wide in [
            frontend(AddressPrefix::new(address, 24), 443.into()),
            frontend(address.into(), range(443, 444)),
            frontend(address.into(), PortRange::ALL),
        ] {
            assert!(wide.is_wide(), "{wide:?}");
            assert!(
                matches!(wide.matches(7)[..], [Match::Ports { vip: 7, .. }, ..]),
                "{wide:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn keys_lead_back_to_what_they_are_for(
            address: IpAddr, length in 0..=128_u8, port: u16, protocol in any::<bool>(), range in any::<(u16, u16)>(),
        ) {
            let protocol = if protocol { 6 } else { 17 };
            let one = Match::Port { address, port, protocol };
            let back = |key| match key {
                ServiceKey::V4(key) => Match::of_v4(key),
                ServiceKey::V6(key) => Match::of_v6(key),
                ServiceKey::Ports(key) => Match::of_ports(&key),
            };
            prop_assert_eq!(back(one.key()), one);
            for ports in port_prefixes(self::range(range.0.min(range.1), range.0.max(range.1))) {
                let ports = Match::Ports { vip: 7, protocol, ports };
                prop_assert_eq!(back(ports.key()), ports);
            }
            let prefix = AddressPrefix::new(address, length);
            let back = match VipKey::of(prefix) {
                VipKey::V4(word) => IpAddr::from(super::address(word)).into(),
                VipKey::V6(words) => IpAddr::from(address6(words)).into(),
                VipKey::Prefix4(key) => {
                    let Plain(word) = key.data();
                    AddressPrefix::new(super::address(word).into(), key.prefix_len() as u8)
                }
                VipKey::Prefix6(key) => {
                    let Plain(words) = key.data();
                    AddressPrefix::new(address6(words).into(), key.prefix_len() as u8)
                }
            };
            prop_assert_eq!(back, prefix);
        }

        #[test]
        fn prefixes_make_up_the_range(a: u16, b: u16) {
            let range = range(a.min(b), a.max(b));
            let prefixes = port_prefixes(range);
            prop_assert!(prefixes.len() <= 30);
            for port in 0..=u16::MAX {
                let holding = prefixes.iter().filter(|prefix| has(**prefix, port)).count();
                prop_assert_eq!(holding, usize::from(range.contains(port.into())), "{}", port);
            }
        }

        #[test]
        fn the_longest_match_is_the_range_with_the_fewest_ports(ranges in nested()) {
            let address = AddressPrefix::new([192, 0, 2, 0].into(), 24);
            let services = ranges.iter().zip(1..).map(|(ports, id)| {
                let frontend = Frontend { address, ports: *ports, protocol: 6 };
                (frontend, Service { id, ..Service::default() })
            });
            let entries = matches(services, |_| 1);
            let lookup = |port| {
                let prefix = |entry: &Match| match entry {
                    Match::Ports { ports, .. } => *ports,
                    Match::Port { .. } => panic!("{entry:?}"),
                };
                let of_port = entries.iter().filter(|(entry, _)| has(prefix(entry), port));
                of_port.max_by_key(|(entry, _)| prefix(entry).length).map(|(_, service)| service.id)
            };
            for port in (0..=u16::MAX).filter(|port| *port < 400 || port % 97 == 0) {
                let holding = ranges.iter().zip(1..).filter(|(range, _)| range.contains(port.into()));
                let expected = holding.min_by_key(|(range, _)| range.count()).map(|(_, id)| id);
                prop_assert_eq!(lookup(port), expected, "{}", port);
            }
        }
    }
}
