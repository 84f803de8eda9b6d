//! Ten thousand connections: no errors, the spread of the weights, and counters that
//! agree with both ends.

use std::net::IpAddr;

use anyhow::Result;
use lb_lab::{Balancer, Mode, Service, Snmp, TopologyOptions};

use crate::{http_of_each_kind, load, programs, standard};

const CONNECTIONS: u64 = 10_000;
const WEIGHTS: [u32; 3] = [100, 70, 30];

/// Packets and bytes that the client's kernel has sent and received since `before`,
/// without those of neighbour discovery.
fn client_sent_and_received(before: &Snmp, after: &Snmp, family: IpAddr) -> [u64; 4] {
    let names = match family {
        IpAddr::V4(_) => [
            "Ip.OutRequests",
            "IpExt.OutOctets",
            "Ip.InReceives",
            "IpExt.InOctets",
        ],
        IpAddr::V6(_) => [
            "Ip6.OutRequests",
            "Ip6.OutOctets",
            "Ip6.InReceives",
            "Ip6.InOctets",
        ],
    };
    names.map(|name| after.since(before, name).try_into().unwrap())
}

fn check(mode: Mode, family: &str) -> Result<()> {
    let (topology, _servers) = standard("counters", TopologyOptions::default())?;
    // The client's kernel is to count no other packets.
    let client = &topology.client;
    let router = topology.lb.mac("eth0")?;
    for gateway in ["198.51.100.1", "2001:db8:1::1"] {
        client.ip(&format!(
            "neighbour replace {gateway} lladdr {router} dev eth0 nud permanent"
        ))?;
    }

    let services: Vec<_> = http_of_each_kind(&topology)
        .into_iter()
        .filter(|service| service.name == format!("{mode}-{family}"))
        .map(|service| service.weights(&WEIGHTS))
        .collect();
    let service: &Service = &services[0];
    let balancer = Balancer::start(&topology, &programs::paths().lb, &services)?;
    let before = client.snmp()?;
    let report = load(&topology, &services, CONNECTIONS)?.remove(0);

    // When the last flow has ended, no packet of it is on its way any more.
    let status = balancer.wait_until("all flows have ended", |status| {
        status.services[0].counters.ended_flows == CONNECTIONS
    })?;
    let after = client.snmp()?;
    let counted = status.service(&service.name)?;

    assert_eq!(report.requests, CONNECTIONS);
    assert_eq!(counted.counters.new_flows, CONNECTIONS);
    assert_eq!(counted.counters.active_flows, 0);
    assert!(
        status.drops.values().all(|drops| *drops == 0),
        "{:?}",
        status.drops
    );

    // Backends see the client's address in mode nat, and the balancer's in full-nat.
    let source = match (mode, service.address.ip()) {
        (Mode::Nat, IpAddr::V4(_)) => "198.51.100.2",
        (Mode::Nat, IpAddr::V6(_)) => "2001:db8:1::2",
        (Mode::FullNat, IpAddr::V4(_)) => "10.0.0.1",
        (Mode::FullNat, IpAddr::V6(_)) => "2001:db8:3::1",
        (mode, _) => unreachable!("backends of the standard topology are not set up for {mode}"),
    };
    assert_eq!(report.sources, [source.parse()?].into());

    let total: u32 = WEIGHTS.iter().sum();
    let mut sums = lb_lab::Counters::default();
    for (backend, weight) in topology.backends.iter().zip(WEIGHTS) {
        let name = backend.host.name();
        let wanted = f64::from(weight) / f64::from(total);
        let share = report.share(name);
        assert!(
            (share - wanted).abs() <= 0.02,
            "{name} has weight {weight} of {total} and served {:.1} % of the connections",
            100.0 * share
        );
        let address = backend.address(service.address.ip(), service.backend_port);
        let counters = counted.backend(address)?.counters;
        assert_eq!(counters.new_flows, report.connections[name], "{name}");
        assert_eq!(counters.ended_flows, report.connections[name], "{name}");
        sums = sums.plus(counters);
    }
    assert_eq!(sums, counted.counters);

    let [packets, bytes, reply_packets, reply_bytes] =
        client_sent_and_received(&before, &after, service.address.ip());
    let counters = counted.counters;
    assert_eq!((counters.packets, counters.bytes), (packets, bytes));
    assert_eq!(
        (counters.reply_packets, counters.reply_bytes),
        (reply_packets, reply_bytes)
    );
    assert_eq!(after.checksum_errors(), before.checksum_errors());
    balancer.stop()
}

#[test]
fn ten_thousand_requests_by_full_nat_over_ipv4() -> Result<()> {
    check(Mode::FullNat, "v4")
}

#[test]
fn ten_thousand_requests_by_full_nat_over_ipv6() -> Result<()> {
    check(Mode::FullNat, "v6")
}

#[test]
fn ten_thousand_requests_by_nat_over_ipv4() -> Result<()> {
    check(Mode::Nat, "v4")
}

#[test]
fn ten_thousand_requests_by_nat_over_ipv6() -> Result<()> {
    check(Mode::Nat, "v6")
}
