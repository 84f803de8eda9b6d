//! The watcher against the kernel: next hops over virtual Ethernet links, with a
//! peer in a network namespace of its own.

use std::{
    collections::BTreeMap,
    process::Command,
    sync::mpsc as std_mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Pid, gettid},
};

use super::*;
use crate::testing::{in_network_namespace, ip};

/// How long anything may take that is no promise about time.
const PATIENCE: Duration = Duration::from_secs(20);

const HERE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const THERE: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// The other network namespace.
struct Peer(Pid);

impl Peer {
    /// Runs `ip` in it.
    fn ip(&self, words: &str) {
        self.run("ip", words);
    }

    /// Runs a program in it.
    fn run(&self, program: &str, words: &str) {
        let netns = format!("--net=/proc/{}/task/{}/ns/net", Pid::this(), self.0);
        let output = Command::new("nsenter")
            .arg(netns)
            .arg(program)
            .args(words.split_whitespace())
            .output()
            .expect("this test needs nsenter");
        assert!(
            output.status.success(),
            "{program} {words}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Makes a link `out<n>` - `in<n>` to it, with addresses `192.0.<n>.1` and `.2`,
    /// `2001:db8:<n>::1` and `::2`, `fe80::1` and `fe80::2`.
    fn link(&self, n: u8) {
        let Self(tid) = self;
        ip(&format!(
            "link add out{n} address 02:00:00:00:0{n}:01 type veth \
             peer name in{n} address 02:00:00:00:0{n}:02 netns {tid}"
        ));
        for (device, host, ip) in [
            ("out", 1, &ip as &dyn Fn(&str)),
            ("in", 2, &|words| self.ip(words)),
        ] {
            ip(&format!("link set {device}{n} addrgenmode none up"));
            ip(&format!("address add 192.0.{n}.{host}/24 dev {device}{n}"));
            ip(&format!(
                "address add 2001:db8:{n}::{host}/64 dev {device}{n} nodad"
            ));
            ip(&format!(
                "address add fe80::{host}/64 dev {device}{n} nodad"
            ));
        }
        // The kernel notes that a link runs some time after it does.
        let out = format!("out{n}");
        let deadline = Instant::now() + PATIENCE;
        while !interfaces().unwrap().iter().any(|i| i.name == out && i.up) {
            assert!(Instant::now() < deadline, "{out} does not run");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Runs a test in a namespace with the link 0 to a peer.
fn with_peer(test: impl FnOnce(&Peer) + Send) {
    in_network_namespace(|| {
        thread::scope(|scope| {
            // The peer ends when this end goes, also by a panic.
            let (_running, ended) = std_mpsc::channel::<()>();
            let (started, starting) = std_mpsc::channel();
            scope.spawn(move || {
                unshare(CloneFlags::CLONE_NEWNET).expect("this test must run as root");
                started.send(gettid()).unwrap();
                let _ = ended.recv();
            });
            let peer = Peer(starting.recv().unwrap());
            peer.ip("link set lo up");
            peer.link(0);
            test(&peer);
        });
    });
}

/// A running watcher and what it has told.
struct Watch {
    neighbours: Neighbours,
    events: mpsc::Receiver<Event>,
    hops: BTreeMap<IpAddr, NextHop>,
    interfaces: BTreeMap<u32, Interface>,
    runtime: tokio::runtime::Runtime,
}

impl Watch {
    fn start(addresses: &[&str]) -> Self {
        let (sender, events) = mpsc::channel(16);
        let watch = Self {
            neighbours: Neighbours::start(sender).unwrap(),
            events,
            hops: BTreeMap::new(),
            interfaces: BTreeMap::new(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap(),
        };
        watch.set(addresses);
        watch
    }

    fn set(&self, addresses: &[&str]) {
        self.neighbours
            .watch(addresses.iter().map(|a| a.parse().unwrap()).collect());
    }

    /// Takes in events until one makes `found` true.
    fn until<T>(&mut self, within: Duration, mut found: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + within;
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            let next = async { tokio::time::timeout_at(deadline.into(), self.events.recv()).await };
            match self.runtime.block_on(next) {
                Ok(Some(Event::NextHop { address, hop })) => {
                    self.hops.insert(address, hop);
                }
                Ok(Some(Event::Interface(interface))) => {
                    self.interfaces.insert(interface.ifindex, interface);
                }
                Ok(Some(Event::InterfaceGone(ifindex))) => {
                    self.interfaces.remove(&ifindex);
                }
                Ok(None) => panic!("the watcher has ended; last {:?}", self.hops),
                Err(_) => panic!("not within {within:?}; last {:?}", self.hops),
            }
        }
    }

    fn hop(&mut self, address: &str, found: impl Fn(&NextHop) -> bool) -> NextHop {
        self.hop_within(PATIENCE, address, found)
    }

    fn hop_within(
        &mut self,
        within: Duration,
        address: &str,
        found: impl Fn(&NextHop) -> bool,
    ) -> NextHop {
        let address: IpAddr = address.parse().unwrap();
        self.until(within, |watch| {
            watch.hops.get(&address).filter(|hop| found(hop)).cloned()
        })
    }

    fn state(&mut self, address: &str, state: NextHopState) -> NextHop {
        self.hop(address, |hop| hop.state == state)
    }

    fn resolved(&mut self, address: &str) -> NextHop {
        self.state(address, NextHopState::Resolved)
    }
}

fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

fn parsed(address: &str) -> Option<IpAddr> {
    Some(address.parse().unwrap())
}

fn macs(hop: &NextHop) -> ([u8; 6], [u8; 6]) {
    let path = hop.path.unwrap();
    (path.src_mac(), path.dst_mac())
}

/// Makes the kernel give a neighbour up, or forget that it is there, in a moment.
fn hurry_neighbours(family: &str) {
    for (name, value) in [
        ("base_reachable_time_ms", 1_000),
        ("delay_first_probe_time", 1),
        ("retrans_time_ms", 100),
        ("ucast_solicit", 1),
        ("mcast_solicit", 1),
    ] {
        let path = format!("/proc/sys/net/{family}/neigh/out0/{name}");
        std::fs::write(&path, value.to_string()).unwrap();
    }
}

#[test]
fn addresses_on_the_link_resolve_in_both_families() {
    with_peer(|_| {
        let mut watch = Watch::start(&["192.0.0.2", "2001:db8::2"]);
        for (address, source) in [("192.0.0.2", "192.0.0.1"), ("2001:db8::2", "2001:db8::1")] {
            let hop = watch.resolved(address);
            assert_eq!(hop.address, parsed(address));
            assert_eq!(hop.source, parsed(source));
            assert_eq!((hop.ifindex, hop.mtu), (index("out0"), 1500));
            assert_eq!(hop.interface.as_deref(), Some("out0"));
            assert_eq!(hop.path.unwrap().ifindex, index("out0"));
            assert_eq!(hop.path.unwrap().tags, [0; 2]);
            assert_eq!(macs(&hop), (HERE, THERE));
        }
    });
}

#[test]
fn a_gateway_resolves_also_one_of_the_other_family() {
    with_peer(|_| {
        ip("route add 198.51.100.0/24 via 192.0.0.2");
        ip("route add 203.0.113.0/24 via inet6 fe80::2 dev out0");
        ip("route add 2001:db8:ff::/48 via 2001:db8::2");
        let routes = [
            ("198.51.100.9", "192.0.0.2"),
            ("203.0.113.9", "fe80::2"),
            ("2001:db8:ff::9", "2001:db8::2"),
        ];
        let mut watch = Watch::start(&routes.map(|(address, _)| address));
        for (address, gateway) in routes {
            let hop = watch.resolved(address);
            assert_eq!(hop.address, parsed(gateway));
            assert_eq!(macs(&hop), (HERE, THERE));
        }
    });
}

#[test]
fn what_cannot_be_forwarded_says_why() {
    with_peer(|_| {
        ip("route add unreachable 198.51.100.0/25");
        ip("route add blackhole 198.51.100.128/25");
        ip("route add unreachable 2001:db8:ff::/48");
        let states = [
            ("203.0.113.9", NextHopState::NoRoute),
            ("198.51.100.9", NextHopState::NoRoute),
            ("198.51.100.200", NextHopState::NoRoute),
            ("2001:db8:ff::9", NextHopState::NoRoute),
            ("2001:db8:fe::9", NextHopState::NoRoute),
            ("192.0.0.1", NextHopState::Local),
            ("2001:db8::1", NextHopState::Local),
        ];
        let mut watch = Watch::start(&states.map(|(address, _)| address));
        for (address, state) in states {
            let hop = watch.state(address, state);
            assert_eq!((hop.path, hop.ifindex), (None, 0));
        }
    });
}

#[test]
fn a_peer_that_announces_another_mac_is_followed_within_a_second() {
    with_peer(|peer| {
        let mut watch = Watch::start(&["192.0.0.2"]);
        watch.resolved("192.0.0.2");
        peer.run("sysctl", "-q -w net.ipv4.conf.in0.arp_notify=1");
        peer.ip("link set in0 address 02:00:00:00:00:22");
        watch.hop_within(Duration::from_secs(1), "192.0.0.2", |hop| {
            hop.state == NextHopState::Resolved && macs(hop).1 == [2, 0, 0, 0, 0, 0x22]
        });
    });
}

#[test]
fn a_peer_that_silently_takes_another_mac_is_found_out() {
    with_peer(|peer| {
        hurry_neighbours("ipv4");
        let mut watch = Watch::start(&["192.0.0.2"]);
        watch.resolved("192.0.0.2");
        peer.ip("link set in0 address 02:00:00:00:00:22");
        watch.hop("192.0.0.2", |hop| {
            hop.state == NextHopState::Resolved && macs(hop).1 == [2, 0, 0, 0, 0, 0x22]
        });
    });
}

#[test]
fn a_neighbour_that_did_not_answer_is_asked_again_until_it_does() {
    for (family, address, prefix) in [("ipv4", "192.0.0.9", 24), ("ipv6", "2001:db8::9", 64)] {
        with_peer(|peer| {
            hurry_neighbours(family);
            let mut watch = Watch::start(&[address]);
            let hop = watch.state(address, NextHopState::NoNeighbour);
            assert_eq!((hop.ifindex, hop.path), (index("out0"), None));
            // Until the kernel has given up, it might find the peer by itself.
            let deadline = Instant::now() + PATIENCE;
            while !neighbours_shown(address).contains("FAILED") {
                assert!(Instant::now() < deadline, "{}", neighbours_shown(address));
                thread::sleep(Duration::from_millis(10));
            }
            let nodad = if family == "ipv6" { "nodad" } else { "" };
            peer.ip(&format!("address add {address}/{prefix} dev in0 {nodad}"));
            assert_eq!(macs(&watch.resolved(address)), (HERE, THERE));
        });
    }
}

fn neighbours_shown(address: &str) -> String {
    let output = Command::new("ip")
        .args(["neighbour", "show", address])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_deleted_neighbour_entry_is_resolved_again() {
    with_peer(|_| {
        let mut watch = Watch::start(&["192.0.0.2"]);
        watch.resolved("192.0.0.2");
        ip("neighbour del 192.0.0.2 dev out0");
        watch.state("192.0.0.2", NextHopState::NoNeighbour);
        watch.resolved("192.0.0.2");
    });
}

#[test]
fn a_route_that_moves_takes_the_next_hop_with_it() {
    with_peer(|peer| {
        peer.link(1);
        ip("route add 198.51.100.0/24 via 192.0.0.2");
        let mut watch = Watch::start(&["198.51.100.9"]);
        assert_eq!(watch.resolved("198.51.100.9").ifindex, index("out0"));

        ip("route replace 198.51.100.0/24 via 192.0.1.2");
        let hop = watch.hop("198.51.100.9", |hop| {
            hop.state == NextHopState::Resolved && hop.ifindex == index("out1")
        });
        assert_eq!(macs(&hop), ([2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]));

        ip("route del 198.51.100.0/24");
        watch.state("198.51.100.9", NextHopState::NoRoute);
    });
}

#[test]
fn a_next_hop_object_that_changes_is_followed() {
    with_peer(|peer| {
        peer.link(1);
        // Else the kernel repeats every route that uses a changed object.
        std::fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", "0").unwrap();
        ip("nexthop add id 5 via 192.0.0.2 dev out0");
        ip("route add 198.51.100.0/24 nhid 5");
        let mut watch = Watch::start(&["198.51.100.9"]);
        watch.resolved("198.51.100.9");
        flip(
            &mut watch,
            "nexthop replace id 5 via 192.0.1.2 dev out1",
            "nexthop replace id 5 via 192.0.0.2 dev out0",
        );
    });
}

#[test]
fn a_rule_that_comes_and_goes_is_followed() {
    with_peer(|peer| {
        peer.link(1);
        ip("route add 198.51.100.0/24 via 192.0.0.2");
        ip("route add 198.51.100.0/24 via 192.0.1.2 table 7");
        let mut watch = Watch::start(&["198.51.100.9"]);
        watch.resolved("198.51.100.9");
        flip(
            &mut watch,
            "rule add to 198.51.100.9 table 7",
            "rule del to 198.51.100.9 table 7",
        );
    });
}

/// Changes the way to `198.51.100.9` from `out0` to `out1` and back, so often that what
/// the making of the links still has the watcher ask again cannot hide a change missed.
fn flip(watch: &mut Watch, there: &str, back: &str) {
    for _ in 0..5 {
        for (words, device) in [(there, "out1"), (back, "out0")] {
            ip(words);
            watch.hop("198.51.100.9", |hop| {
                hop.state == NextHopState::Resolved && hop.ifindex == index(device)
            });
        }
    }
}

#[test]
fn links_that_go_down_and_come_back_take_next_hops_along() {
    with_peer(|peer| {
        let mut watch = Watch::start(&["192.0.0.2"]);
        watch.resolved("192.0.0.2");

        peer.ip("link set in0 down");
        let hop = watch.state("192.0.0.2", NextHopState::LinkDown);
        assert_eq!((hop.path, hop.ifindex), (None, index("out0")));
        peer.ip("link set in0 up");
        watch.resolved("192.0.0.2");

        ip("link set out0 down");
        watch.state("192.0.0.2", NextHopState::NoRoute);
        ip("link set out0 up");
        watch.resolved("192.0.0.2");

        ip("link del out0");
        watch.state("192.0.0.2", NextHopState::NoRoute);
    });
}

#[test]
fn a_stacked_device_that_is_no_vlan_transmits_itself() {
    with_peer(|_| {
        ip("link add over0 link out0 address 02:00:00:00:00:33 type macvlan mode bridge");
        ip("link set over0 up");
        ip("route add 192.0.0.2/32 dev over0 src 192.0.0.1");
        let mut watch = Watch::start(&["192.0.0.2"]);
        let hop = watch.resolved("192.0.0.2");
        assert_eq!(hop.path.unwrap().ifindex, index("over0"));
        assert_eq!(macs(&hop), ([2, 0, 0, 0, 0, 0x33], THERE));
    });
}

#[test]
fn interfaces_are_listed_and_their_changes_told() {
    with_peer(|peer| {
        let listed = interfaces().unwrap();
        let out0 = Interface {
            ifindex: index("out0"),
            name: "out0".to_owned(),
            mac: Some(HERE),
            mtu: 1500,
            up: true,
            bond: None,
        };
        assert_eq!(
            listed.iter().find(|interface| interface.name == "out0"),
            Some(&out0)
        );
        let lo = listed.iter().find(|interface| interface.name == "lo");
        assert_eq!(lo.map(|lo| lo.mac), Some(None));

        let mut watch = Watch::start(&["192.0.0.2"]);
        let told = |watch: &Watch| watch.interfaces.get(&out0.ifindex).cloned();
        watch.until(PATIENCE, |watch| told(watch).filter(|now| *now == out0));

        ip("link set out0 mtu 1400 address 02:00:00:00:00:11");
        let hop = watch.hop("192.0.0.2", |hop| {
            hop.state == NextHopState::Resolved && hop.mtu == 1400
        });
        assert_eq!(macs(&hop), ([2, 0, 0, 0, 0, 0x11], THERE));
        assert_eq!(told(&watch).unwrap().mtu, 1400);

        peer.link(1);
        let out1 = index("out1");
        watch.until(PATIENCE, |watch| watch.interfaces.get(&out1).cloned());
        ip("link del out1");
        watch.until(PATIENCE, |watch| {
            (!watch.interfaces.contains_key(&out1)).then_some(())
        });
    });
}

#[test]
fn an_address_that_is_watched_again_is_told_again() {
    with_peer(|_| {
        let mut watch = Watch::start(&["192.0.0.2"]);
        watch.resolved("192.0.0.2");
        watch.hops.clear();
        watch.set(&[]);
        watch.set(&["192.0.0.2"]);
        watch.resolved("192.0.0.2");
    });
}

#[test]
fn the_watcher_ends_when_it_is_dropped() {
    with_peer(|_| {
        let mut watch = Watch::start(&["192.0.0.2"]);
        watch.resolved("192.0.0.2");
        let Watch {
            neighbours,
            mut events,
            runtime,
            ..
        } = watch;
        drop(neighbours);
        let ended = async { while events.recv().await.is_some() {} };
        runtime
            .block_on(async { tokio::time::timeout(PATIENCE, ended).await })
            .expect("the watcher still holds its end of the channel");
    });
}

#[test]
fn addresses_tell_their_interface_and_network() {
    with_peer(|_| {
        ip("address add 10.8.0.1 peer 10.8.0.2/32 dev out0");
        let interfaces = interfaces().unwrap();
        let index = |name: &str| {
            let interface = interfaces.iter().find(|interface| interface.name == name);
            interface.unwrap().ifindex
        };
        let addresses = addresses().unwrap();
        for (address, interface, network, length) in [
            ("192.0.0.1", "out0", "192.0.0.1", 24),
            ("2001:db8:0::1", "out0", "2001:db8:0::1", 64),
            ("fe80::1", "out0", "fe80::1", 64),
            ("10.8.0.1", "out0", "10.8.0.2", 32),
            ("127.0.0.1", "lo", "127.0.0.1", 8),
        ] {
            let expected = HostAddress {
                ifindex: index(interface),
                device: index(interface),
                address: address.parse().unwrap(),
                network: (network.parse().unwrap(), length),
            };
            assert!(addresses.contains(&expected), "{expected:?}: {addresses:?}");
        }
    });
}

#[test]
fn addresses_and_local_routes_are_the_hosts() {
    with_peer(|_| {
        ip("address add 203.0.113.10/32 dev lo");
        ip("address add 2001:db8:a::10/128 dev lo nodad");
        ip("route add local 198.51.100.0/24 dev lo");
        for (address, local) in [
            ("192.0.0.1", true),
            ("192.0.0.2", false),
            ("203.0.113.10", true),
            ("203.0.113.11", false),
            ("198.51.100.0", true),
            ("198.51.100.99", true),
            ("2001:db8:a::10", true),
            ("2001:db8:a::11", false),
        ] {
            let address: IpAddr = address.parse().unwrap();
            let expected = if local { Locality::All } else { Locality::None };
            assert_eq!(locality(address.into()).unwrap(), expected, "{address}");
        }
    });
}

#[test]
fn a_prefix_is_the_hosts_or_a_part_of_it_is() {
    with_peer(|_| {
        ip("address add 203.0.113.10/32 dev lo");
        ip("address add 2001:db8:a::10/128 dev lo nodad");
        ip("route add local 198.51.100.0/24 dev lo");
        ip("route add local 2001:db8:b::/64 dev lo");
        // For marked packets, as transparent proxies have it.
        ip("route add local default dev lo table 100");
        for (address, length, expected) in [
            ("203.0.113.0", 24, Locality::Part),
            ("203.0.114.0", 24, Locality::None),
            ("198.51.100.0", 24, Locality::All),
            ("198.51.100.0", 23, Locality::Part),
            ("198.51.100.64", 26, Locality::All),
            ("2001:db8:a::", 64, Locality::Part),
            ("2001:db8:b::", 64, Locality::All),
            ("2001:db8:c::", 64, Locality::None),
        ] {
            let prefix = AddressPrefix::new(address.parse().unwrap(), length);
            assert_eq!(locality(prefix).unwrap(), expected, "{prefix}");
        }
    });
}
