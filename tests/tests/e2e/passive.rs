//! Passive checks: what becomes of clients' connections takes a backend out long before its
//! next check.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_lab::{
    Balancer, Health, Lab, Load, Mode, Process, Routed, RoutedOptions, Service, Topology,
    TopologyOptions, port,
};

use crate::{PATIENCE, programs, standard};

/// Checks so far apart that none can have taken a backend out when a test is over.
const CHECKS: Health = Health {
    interval_ms: 60_000,
    timeout_ms: 2_000,
    rise: 1,
    fall: 100,
};

/// A service that is watched.
fn watched(
    name: &str,
    topology: &Topology,
    address: (std::net::IpAddr, u16),
    mode: Mode,
) -> Service {
    let check = format!("type = \"tcp\"\nport = {}\npassive = true", port::HTTP);
    Service {
        health: CHECKS,
        ..Service::http(name, topology, address.into(), mode)
    }
    // A ring that is soon filled, by a program that is not optimized either.
    .key("ring-size = 1009")
    .checked_by(&check)
}

/// Has clients connect all the time, and the second backend's server killed. Returns how long
/// after that the last connection began that it refused.
fn kill_under_load(
    topology: &Topology,
    service: &Service,
    balancer: &Balancer,
    server: &mut Process,
) -> Result<Duration> {
    let mut load = Load::new(service.address, u64::MAX);
    load.timeout = PATIENCE;
    load.threads = 4;
    let clients = topology.client.background(move |stop| load.run_until(stop));
    thread::sleep(Duration::from_millis(300));
    let killed = Instant::now();
    server.kill()?;
    let status = balancer.wait_until("the dead backend is down", |status| {
        let backends = status.service(&service.name).map(|found| &found.backends);
        backends.is_ok_and(|backends| backends[0].state == "up" && backends[1].state == "down")
    })?;
    let error = &status.service(&service.name)?.backends[1].health.error;
    let error = error.as_deref().context("it says why")?;
    ensure!(
        error == "clients get no connection: connection refused",
        "{error}"
    );
    // None of those who come now meets it.
    let out = Instant::now();
    thread::sleep(Duration::from_millis(300));
    let report = clients.finish();
    let refused: Vec<_> = report.errors.iter().map(|error| error.began).collect();
    // The state is there before the ring is: the daemon answers between two events.
    let late = refused.iter().filter(|began| **began > out).count();
    ensure!(late == 0, "{late} connections after it was out: {report:?}");
    let last = refused.iter().max().map_or(Duration::ZERO, |last| {
        last.saturating_duration_since(killed)
    });
    println!(
        "{}: {} connections answered, {} refused, the last begun {last:?} after the kill",
        service.mode,
        report.answered(),
        refused.len()
    );
    Ok(last)
}

#[test]
fn a_dead_backend_is_out_by_its_clients_where_it_is_translated() -> Result<()> {
    let options = TopologyOptions {
        backends: 2,
        ..TopologyOptions::default()
    };
    for (name, mode) in [("passive-full", Mode::FullNat), ("passive-nat", Mode::Nat)] {
        let (topology, mut servers) = standard(name, options)?;
        let service = watched("web", &topology, (Topology::VIP4.into(), 80), mode);
        let balancer = Balancer::start(
            &topology,
            &programs::paths().lb,
            std::slice::from_ref(&service),
        )?;
        kill_under_load(&topology, &service, &balancer, &mut servers[1])?;
        balancer.stop()?;
    }
    Ok(())
}

#[test]
fn a_dead_backend_is_out_by_its_clients_where_it_answers_directly() -> Result<()> {
    let options = RoutedOptions {
        backends: 2,
        ..RoutedOptions::new(Mode::Dsr, 1_500)
    };
    let routed = Routed::new(Lab::new("passive-dsr")?, options)?;
    let paths = programs::paths();
    let topology = &routed.topology;
    let mut servers = topology.start_servers(&paths.server)?;
    let address = (Topology::VIP4.into(), port::HTTP);
    let service = watched("web", topology, address, Mode::Dsr);
    let balancer = Balancer::start(topology, &paths.lb, std::slice::from_ref(&service))?;
    kill_under_load(topology, &service, &balancer, &mut servers[1])?;
    balancer.stop()
}
