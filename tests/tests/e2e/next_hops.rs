//! Next hops that change under traffic: a gateway, another interface, an IPv6 next hop of
//! IPv4 backends, another Ethernet address, and none at all.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_lab::{
    Balancer, Health, Host, Lab, Mode, NextHopStatus, Process, Routed, RoutedOptions, Service,
    Status, port, udp,
};

use crate::{PATIENCE, of_each_kind, programs};

/// How soon the balancer follows a change.
const SOON: Duration = Duration::from_secs(1);
/// Requests to each service, each a flow of its own.
const REQUESTS: usize = 20;

/// A balancer with a UDP service for each NAT mode and family, and a flow of each that lasts.
struct Site {
    balancer: Balancer,
    routed: Routed,
    _servers: Vec<Process>,
    services: Vec<Service>,
    flows: Vec<UdpSocket>,
}

impl Site {
    fn new(name: &str) -> Result<Self> {
        let routed = Routed::new(Lab::new(name)?, RoutedOptions::new(Mode::Nat, 1_500))?;
        let paths = programs::paths();
        let servers = routed.topology.start_servers(&paths.server)?;
        let services: Vec<_> = of_each_kind(1_009, |name, address, mode| {
            // Checked once: what follows is about packets that are not answered, too.
            let health = Health {
                interval_ms: 600_000,
                rise: 1,
                ..Health::default()
            };
            let service = Service::udp(name, &routed.topology, address, mode, port::WHO);
            Service { health, ..service }
        });
        let balancer = Balancer::start(&routed.topology, &paths.lb, &services)?;
        let flow = |service: &Service| udp::connect(service.address, PATIENCE);
        let flows = routed
            .topology
            .client
            .enter(|| services.iter().map(flow).collect::<Result<_>>())?;
        Ok(Self {
            balancer,
            routed,
            _servers: servers,
            services,
            flows,
        })
    }

    fn lb(&self) -> &Host {
        &self.routed.topology.lb
    }

    /// Whether the next hops of all backends of a family are like this.
    fn hops_are(status: &Status, v4: bool, like: &impl Fn(&NextHopStatus) -> bool) -> bool {
        status
            .services
            .iter()
            .filter(|service| service.name.ends_with("v4") == v4)
            .flat_map(|service| &service.backends)
            .all(|backend| like(&backend.next_hop))
    }

    /// Makes a change, after which the balancer must soon have other next hops: `address` of
    /// each family, at this interface and Ethernet address.
    fn follow(
        &self,
        change: impl FnOnce() -> Result<()>,
        [v4, v6]: [&str; 2],
        interface: &str,
        mac: &str,
    ) -> Result<()> {
        let hop = |address: &str| NextHopStatus {
            state: "resolved".to_owned(),
            address: Some(address.to_owned()),
            interface: Some(interface.to_owned()),
            mac: Some(mac.to_owned()),
        };
        let (v4, v6) = (hop(v4), hop(v6));
        change()?;
        let changed = Instant::now();
        loop {
            let asked = Instant::now();
            let status = self.balancer.status()?;
            if Self::hops_are(&status, true, &|hop| *hop == v4)
                && Self::hops_are(&status, false, &|hop| *hop == v6)
            {
                return Ok(());
            }
            ensure!(
                asked < changed + SOON,
                "after {SOON:?}, the next hops are not {v4:#?} and {v6:#?}: {status:#?}"
            );
        }
    }

    /// Sends requests on old and new flows, which must be answered, and must have come to
    /// `r2` by this interface of it and by no other.
    fn ask(&self, label: &str, interface: &str) -> Result<()> {
        let r2 = &self.routed.r2;
        let capture = |interface| r2.capture(interface, label, 10_000);
        let captures = [("eth0", capture("eth0")?), ("eth1", capture("eth1")?)];
        for flow in &self.flows {
            udp::exchange(flow, b"who?").with_context(|| format!("{label}: an old flow"))?;
        }
        self.routed.topology.client.enter(|| -> Result<()> {
            for service in &self.services {
                for _ in 0..REQUESTS {
                    udp::who(service.address, PATIENCE)
                        .with_context(|| format!("{label}: a new flow of {}", service.name))?;
                }
            }
            Ok(())
        })?;
        let all = self.services.len() * (REQUESTS + 1);
        for (own, capture) in captures {
            let packets = capture.finish()?;
            packets.check()?;
            let came = packets.count("udp.dstport == 9")?;
            assert_eq!(
                came,
                if own == interface { all } else { 0 },
                "{label}: {own}"
            );
        }
        Ok(())
    }

    /// Lets the routes to the backends lead to these next hops.
    fn route(&self, v4: &str, v6: &str) -> Result<()> {
        self.lb()
            .ip(&format!("route replace 10.0.1.0/24 via {v4}"))?;
        self.lb()
            .ip(&format!("route replace 2001:db8:5::/64 via {v6}"))?;
        Ok(())
    }
}

/// The link-local IPv6 address of an interface.
fn link_local(host: &Host, interface: &str) -> Result<String> {
    let text = host.ip(&format!(
        "-6 -brief address show dev {interface} scope link"
    ))?;
    let address = text
        .split_whitespace()
        .find_map(|word| word.strip_suffix("/64"))
        .with_context(|| format!("no link-local address in `{text}`"))?;
    Ok(address.to_owned())
}

#[test]
fn traffic_follows_routes_and_neighbours() -> Result<()> {
    let site = Site::new("hops")?;
    let (lb, r2) = (site.lb(), &site.routed.r2);
    let [mac0, mac1] = [r2.mac("eth0")?, r2.mac("eth1")?];
    let gateway = ["10.0.0.2", "2001:db8:3::2"];

    site.follow(|| Ok(()), gateway, "eth1", &mac0)?;
    site.ask("gateway", "eth0")?;

    let other = ["10.0.3.2", "2001:db8:7::2"];
    let change = || site.route(other[0], other[1]);
    site.follow(change, other, "eth2", &mac1)?;
    site.ask("interface", "eth1")?;

    let local = link_local(r2, "eth0")?;
    let change = || {
        site.route(
            &format!("inet6 {local} dev eth1"),
            &format!("{local} dev eth1"),
        )
    };
    site.follow(change, [&local, &local], "eth1", &mac0)?;
    site.ask("inet6", "eth0")?;

    let change = || site.route("10.0.0.2 dev eth1", &format!("{local} dev eth1"));
    site.follow(change, ["10.0.0.2", &local], "eth1", &mac0)?;
    // The router tells that it has another address, and is believed at once.
    r2.sysctl("net/ipv4/conf/eth0/arp_notify", "1")?;
    r2.sysctl("net/ipv6/conf/eth0/ndisc_notify", "1")?;
    lb.sysctl("net/ipv4/neigh/eth1/locktime", "0")?;
    let mac = "02:00:00:00:aa:bb";
    let change = || r2.set_mac("eth0", mac);
    site.follow(change, ["10.0.0.2", &local], "eth1", mac)?;
    site.ask("mac", "eth0")?;

    let drops = site.balancer.status()?.drops;
    assert_eq!(drops.values().sum::<u64>(), 0, "{drops:?}");
    site.balancer.stop()
}

#[test]
fn a_neighbour_that_is_missing_is_shown_and_counted_and_asked_for_until_it_is_there() -> Result<()>
{
    const REASON: &str = "next-hop-unresolved";

    let site = Site::new("missing")?;
    let switch = &site.routed.topology.switch;
    site.ask("before", "eth0")?;
    switch.link_down("r2")?;
    site.lb().flush_neighbours("eth1")?;
    site.balancer
        .wait_until("the neighbour is missing", |status| {
            let missing = |hop: &NextHopStatus| hop.state == "no-neighbour" && hop.mac.is_none();
            [true, false]
                .into_iter()
                .all(|v4| Site::hops_are(status, v4, &missing))
        })?;

    for flow in &site.flows {
        for _ in 0..REQUESTS {
            flow.send(b"who?")?;
        }
    }
    let all = (site.flows.len() * REQUESTS) as u64;
    let status = site
        .balancer
        .wait_until("all packets are counted", |status| {
            status.drops.get(REASON).is_some_and(|drops| *drops >= all)
        })?;
    assert_eq!(status.drops[REASON], all);
    for service in &status.services {
        let of_backends: u64 = service
            .backends
            .iter()
            .flat_map(|backend| &backend.drops)
            .filter(|drops| drops.reason == REASON)
            .map(|drops| drops.packets)
            .sum();
        assert_eq!(of_backends, REQUESTS as u64, "{}", service.name);
    }
    assert_eq!(
        status.drops.values().sum::<u64>(),
        all,
        "{:?}",
        status.drops
    );

    switch.link_up("r2")?;
    site.balancer
        .wait_until("the neighbour is there", |status| {
            let there = |hop: &NextHopStatus| hop.state == "resolved";
            [true, false]
                .into_iter()
                .all(|v4| Site::hops_are(status, v4, &there))
        })?;
    site.ask("after", "eth0")?;
    assert_eq!(site.balancer.status()?.drops[REASON], all);
    site.balancer.stop()
}
