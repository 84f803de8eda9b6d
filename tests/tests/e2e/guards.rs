//! Whom services take packets from, and how many new flows.

use std::{net::IpAddr, time::Duration};

use anyhow::{Result, ensure};
use lb_lab::{
    Balancer, Load, LoadReport, Mode, Service, Status, Topology, TopologyOptions, http::Connection,
};

use crate::{PATIENCE, load, of_each_kind, programs, standard};

/// How long a connection that is to be refused is waited for.
const REFUSAL: Duration = Duration::from_millis(300);

/// Another address of the client, of the family of `like`.
fn other_address(like: IpAddr) -> &'static str {
    match like {
        IpAddr::V4(_) => "198.51.100.3",
        IpAddr::V6(_) => "2001:db8:1::3",
    }
}

/// The client speaks from its other addresses from now on, or from those that it has.
fn use_other_addresses(topology: &Topology, other: bool) -> Result<()> {
    for (router, own, others) in [
        ("198.51.100.1", "198.51.100.2", "198.51.100.3"),
        ("2001:db8:1::1", "2001:db8:1::2", "2001:db8:1::3"),
    ] {
        let source = if other { others } else { own };
        topology
            .client
            .ip(&format!("route replace default via {router} src {source}"))?;
    }
    Ok(())
}

/// Connections to a service that nobody may have.
fn refused(topology: &Topology, services: &[Service]) -> Result<()> {
    for service in services {
        let load = Load {
            threads: 4,
            timeout: REFUSAL,
            ..Load::new(service.address, 4)
        };
        let report = topology.client.enter(|| load.run());
        ensure!(
            report.requests == 0 && report.errors.len() == 4,
            "{}: {report:?}",
            service.name
        );
    }
    Ok(())
}

/// Packets that a service has dropped for this reason.
fn drops(status: &Status, service: &str, reason: &str) -> Result<u64> {
    let drops = &status.service(service)?.drops;
    let of_reason = drops.iter().filter(|drop| drop.reason == reason);
    Ok(of_reason.map(|drop| drop.packets).sum())
}

/// In every NAT mode and family one client is served and another is not, whether the daemon
/// runs or not, and a connection ends when its client is denied.
#[test]
fn a_denied_client_is_not_served_and_others_are() -> Result<()> {
    let (topology, _servers) = standard("sources", TopologyOptions::default())?;
    topology.client.ip("address add 198.51.100.3/24 dev eth0")?;
    topology
        .client
        .ip("address add 2001:db8:1::3/64 dev eth0 nodad")?;
    let services = of_each_kind(80, |name, address, mode| {
        let denied = other_address(address.ip());
        Service::http(name, &topology, address, mode).key(&format!("deny = [\"{denied}\"]"))
    });
    let mut balancer = Balancer::start(&topology, &programs::paths().lb, &services)?;
    use_other_addresses(&topology, false)?;
    load(&topology, &services, 3)?;
    use_other_addresses(&topology, true)?;
    refused(&topology, &services)?;
    let status = balancer.status()?;
    for service in &services {
        let dropped = drops(&status, &service.name, "source-denied")?;
        ensure!(dropped >= 4, "{}: {dropped} dropped", service.name);
    }

    // Lists outlive the daemon, and the next one finds them.
    balancer.end()?;
    refused(&topology, &services)?;
    balancer.start_again()?;
    refused(&topology, &services)?;
    use_other_addresses(&topology, false)?;
    load(&topology, &services, 3)?;

    // A connection that is open ends, and goes on when its client is allowed again.
    let service = &services[0];
    let name = &service.name;
    let open = || Connection::open(service.address, PATIENCE);
    let mut connection = topology.client.enter(open)?;
    connection.get("/", false)?;
    balancer.lb(&format!("service set {name} --deny 198.51.100.0/24"))?;
    refused(&topology, std::slice::from_ref(service))?;
    let shown = balancer.lb(&format!("service show {name}"))?;
    ensure!(shown.contains("198.51.100.0/24"), "{shown}");
    balancer.lb(&format!(
        "service set {name} --deny 198.51.100.0/24 --allow 198.51.100.2"
    ))?;
    connection.get("/", true)?;
    load(&topology, &services, 3)?;
    balancer.stop()
}

/// Connections of a load that is more than a service allows.
fn attempt(topology: &Topology, service: &Service, connections: u64) -> LoadReport {
    let load = Load {
        timeout: REFUSAL,
        ..Load::new(service.address, connections)
    };
    topology.client.enter(|| load.run())
}

/// A burst is what it is, and no more comes than the clock brings; a restart brings nothing.
#[test]
fn a_limit_holds_under_a_burst_and_through_a_restart() -> Result<()> {
    const BURST: u64 = 40;
    let (topology, _servers) = standard("limits", TopologyOptions::default())?;
    let services = of_each_kind(80, |name, address, mode| {
        // One of the two limits for each mode.
        let key = match mode {
            Mode::Nat => "limits.new-per-source",
            _ => "limits.new-per-service",
        };
        let limit = format!("{key} = {{ rate = 1, burst = {BURST} }}");
        Service::http(name, &topology, address, mode).key(&limit)
    });
    let mut balancer = Balancer::start(&topology, &programs::paths().lb, &services)?;
    for service in &services {
        let start = std::time::Instant::now();
        let began = |status: &Status| -> Result<u64> {
            Ok(status.service(&service.name)?.counters.new_flows)
        };
        // Each of them gets so many, and one a second.
        let expect = |count: u64| {
            let most = BURST + start.elapsed().as_secs() + 1;
            ensure!((BURST..=most).contains(&count), "{count} of {most} began");
            Ok(())
        };
        attempt(&topology, service, BURST + 20);
        let status = balancer.status()?;
        expect(began(&status)?)?;
        let reason = match service.mode {
            Mode::Nat => "rate-limited-source",
            _ => "rate-limited-service",
        };
        let dropped = drops(&status, &service.name, reason)?;
        ensure!(dropped > 0, "{}: nothing was dropped", service.name);

        balancer.end()?;
        balancer.start_again()?;
        attempt(&topology, service, 20);
        expect(began(&balancer.status()?)?)?;
    }
    balancer.stop()
}
