//! What follows from the addresses of the interfaces.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Config, Prefix};
use crate::neighbour::{HostAddress, Interface};

/// What the program is told of the ends of tunnels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Addresses that tunnels may end at.
    pub(super) locals: BTreeSet<IpAddr>,
    /// Where tunnels may begin.
    pub(super) sources: BTreeSet<Source>,
}

/// Where tunnels may begin that come in by an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source {
    /// Index of the interface.
    pub(super) ifindex: u32,
    /// Addresses.
    pub(super) prefix: Prefix,
}

impl Wanted {
    /// What `config` asks for on interfaces of these indices, while the host has these
    /// interfaces and addresses.
    pub(super) fn new(
        config: &Config,
        indices: &[u32],
        interfaces: &[Interface],
        addresses: &[HostAddress],
    ) -> Self {
        // Frames to the address of a VLAN interface show at the device below, too.
        let on = |ifindex| {
            addresses
                .iter()
                .filter(move |address| [address.ifindex, address.device].contains(&ifindex))
                .map(move |address| (ifindex, address))
        };
        let on_interfaces = || indices.iter().copied().flat_map(on);
        let locals = if config.locals.is_empty() {
            on_interfaces().map(|(_, on)| on.address).collect()
        } else {
            config.locals.iter().copied().collect()
        };
        let mut sources: BTreeSet<_> = if config.sources.is_empty() {
            on_interfaces()
                .map(|(ifindex, on)| Source {
                    ifindex,
                    prefix: Prefix::around(on.network.0, on.network.1),
                })
                .collect()
        } else {
            let on = |ifindex| {
                config.sources.iter().map(move |prefix| Source {
                    ifindex,
                    prefix: *prefix,
                })
            };
            indices.iter().copied().flat_map(on).collect()
        };
        // Of a bond, the program sees the interface that belongs to it.
        for interface in interfaces {
            let of_bond = sources
                .iter()
                .filter(|on| Some(on.ifindex) == interface.bond);
            let ifindex = interface.ifindex;
            let of_port: Vec<_> = of_bond.map(|on| Source { ifindex, ..*on }).collect();
            sources.extend(of_port);
        }
        Self { locals, sources }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::XdpMode;

    fn config(sources: &[&str], locals: &[&str]) -> Config {
        Config {
            interfaces: Vec::new(),
            vips: Vec::new(),
            sources: sources.iter().map(|text| text.parse().unwrap()).collect(),
            locals: locals.iter().map(|text| text.parse().unwrap()).collect(),
            gue_port: 6080,
            xdp_mode: XdpMode::Auto,
            socket: "/".into(),
        }
    }

    fn address(ifindex: u32, address: &str, network: &str, length: u8) -> HostAddress {
        HostAddress {
            ifindex,
            device: ifindex,
            address: address.parse().unwrap(),
            network: (network.parse().unwrap(), length),
        }
    }

    fn sources(wanted: &Wanted) -> Vec<String> {
        let show = |source: &Source| format!("{} {}", source.ifindex, source.prefix);
        wanted.sources.iter().map(show).collect()
    }

    /// Two interfaces, one of them point to point, and one that is not ours.
    fn host() -> [HostAddress; 4] {
        [
            address(2, "10.0.0.11", "10.0.0.11", 24),
            address(2, "2001:db8::11", "2001:db8::11", 64),
            address(3, "172.16.0.1", "172.16.0.2", 32),
            address(4, "192.168.0.1", "192.168.0.1", 16),
        ]
    }

    #[test]
    fn without_a_word_it_is_what_the_interfaces_have() {
        let wanted = Wanted::new(&config(&[], &[]), &[2, 3], &[], &host());
        let locals: Vec<_> = wanted.locals.iter().map(ToString::to_string).collect();
        assert_eq!(locals, ["10.0.0.11", "172.16.0.1", "2001:db8::11"]);
        assert_eq!(
            sources(&wanted),
            ["2 10.0.0.0/24", "2 2001:db8::/64", "3 172.16.0.2"]
        );
    }

    /// Tagged frames show at the device, and without their tag at the VLAN interface.
    #[test]
    fn addresses_of_vlan_interfaces_are_the_devices_too() {
        let vlan = HostAddress {
            device: 2,
            ..address(7, "10.7.0.1", "10.7.0.1", 24)
        };
        for (indices, expected) in [
            (&[2][..], &["2 10.7.0.0/24"][..]),
            (&[7], &["7 10.7.0.0/24"]),
            (&[2, 7], &["2 10.7.0.0/24", "7 10.7.0.0/24"]),
            (&[3], &[]),
        ] {
            let wanted = Wanted::new(&config(&[], &[]), indices, &[], &[vlan]);
            assert_eq!(sources(&wanted), expected);
            assert_eq!(wanted.locals.is_empty(), expected.is_empty());
        }
    }

    #[test]
    fn what_holds_for_a_bond_holds_for_its_interfaces() {
        let interface = |ifindex, bond| Interface {
            ifindex,
            name: String::new(),
            mac: None,
            mtu: 1_500,
            up: true,
            bond,
        };
        let interfaces = [
            interface(3, None),
            interface(8, Some(3)),
            interface(9, Some(4)),
        ];
        for sources_given in [&[][..], &["172.16.0.2/32"]] {
            let config = config(sources_given, &[]);
            let wanted = Wanted::new(&config, &[3], &interfaces, &host());
            assert_eq!(sources(&wanted), ["3 172.16.0.2", "8 172.16.0.2"]);
        }
    }

    #[test]
    fn what_is_given_holds_for_every_interface() {
        let config = config(&["10.1.0.0/16"], &["10.0.0.99"]);
        let wanted = Wanted::new(&config, &[2, 3], &[], &host());
        assert_eq!(sources(&wanted), ["2 10.1.0.0/16", "3 10.1.0.0/16"]);
        assert_eq!(wanted.locals, ["10.0.0.99".parse().unwrap()].into());
    }
}
