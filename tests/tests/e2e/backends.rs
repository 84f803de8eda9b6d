//! Backends that die, come, go and get other weights while clients are served.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lb_lab::{
    Background, Balancer, Health, Load, LoadReport, Service, Topology, TopologyOptions,
    http::Transfer, port, udp,
};

use crate::{PATIENCE, http_of_each_kind, load, of_each_kind, programs, standard};

/// Bytes a second of a long-lived transfer.
const RATE: u64 = 200_000;

/// Begins transfers that take about `seconds`, until each backend has `each` of them
/// or more.
fn begin_transfers(
    topology: &Topology,
    service: &Service,
    each: usize,
    seconds: u64,
) -> Result<Vec<Transfer>> {
    let mut transfers: Vec<Transfer> = Vec::new();
    let served = |transfers: &[Transfer], backend: &str| {
        transfers.iter().filter(|t| t.backend() == backend).count()
    };
    // The chance that one of three is missed that often is one in many millions.
    for _ in 0..100 {
        let begin = || Transfer::begin(service.address, seconds * RATE, RATE, PATIENCE);
        transfers.push(topology.client.enter(begin)?);
        let enough = |name| served(&transfers, name) >= each;
        if topology.backends.iter().all(|b| enough(b.host.name())) {
            return Ok(transfers);
        }
    }
    anyhow::bail!("a backend of {} gets no connections", service.name)
}

/// Reads all transfers at once, as clients do.
fn finish(transfers: Vec<Transfer>) -> Vec<(String, Result<()>)> {
    let threads: Vec<_> = transfers
        .into_iter()
        .map(|transfer| {
            let backend = transfer.backend().to_owned();
            (backend, std::thread::spawn(move || transfer.finish()))
        })
        .collect();
    threads
        .into_iter()
        .map(|(backend, thread)| (backend, thread.join().expect("a transfer panicked")))
        .collect()
}

/// Requests without an end to a service.
fn load_in_background(topology: &Topology, service: &Service) -> Background<LoadReport> {
    let load = Load {
        threads: 2,
        ..Load::new(service.address, u64::MAX)
    };
    topology.client.background(move |stop| load.run_until(stop))
}

/// Waits until `balancer` has the backend of this name in this state in all services.
fn wait_for_state(
    balancer: &Balancer,
    topology: &Topology,
    services: &[Service],
    backend: &str,
    state: &str,
) -> Result<()> {
    let backend = topology.backend(backend)?;
    balancer.wait_until(&format!("the backend is {state}"), |status| {
        services.iter().all(|service| {
            let address = backend.address(service.address.ip(), service.backend_port);
            status
                .service(&service.name)
                .and_then(|service| service.backend(address))
                .is_ok_and(|backend| backend.state == state)
        })
    })?;
    Ok(())
}

#[test]
fn a_killed_backend_gets_no_connection_after_its_time_and_others_go_on() -> Result<()> {
    let (topology, mut servers) = standard("killed", TopologyOptions::default())?;
    let health = Health {
        interval_ms: 500,
        timeout_ms: 500,
        ..Health::default()
    };
    let services: Vec<_> = http_of_each_kind(&topology)
        .into_iter()
        .map(|service| Service { health, ..service })
        .collect();
    let balancer = Balancer::start(&topology, &programs::paths().lb, &services)?;

    let mut transfers = Vec::new();
    for service in &services {
        transfers.extend(begin_transfers(&topology, service, 1, 5)?);
    }
    let loads: Vec<_> = services
        .iter()
        .map(|service| load_in_background(&topology, service))
        .collect();

    let killed = Instant::now();
    servers[1].kill()?;
    wait_for_state(&balancer, &topology, &services, "b2", "down")?;
    let limit = health.interval_ms * u64::from(health.fall) + health.timeout_ms;
    let limit = killed + Duration::from_millis(limit);

    for (backend, result) in finish(transfers) {
        match &*backend {
            "b2" => assert!(result.is_err(), "b2 is dead and its transfer ended well"),
            _ => result.with_context(|| format!("a transfer of {backend} was disturbed"))?,
        }
    }
    // The transfers have outlasted the limit, so the load has run beyond it, too.
    assert!(Instant::now() > limit);
    for load in loads {
        let report = load.finish();
        assert!(report.requests > 0);
        let late: Vec<_> = report.errors.iter().filter(|e| e.began > limit).collect();
        assert!(late.is_empty(), "{late:#?}");
    }
    for report in load_all(&topology, &services)? {
        assert!(!report.connections.contains_key("b2"));
    }

    servers[1] = topology.backends[1].start_server(&programs::paths().server)?;
    wait_for_state(&balancer, &topology, &services, "b2", "up")?;
    for report in load_all(&topology, &services)? {
        assert!(report.connections.contains_key("b2"));
    }
    balancer.stop()
}

/// Enough connections that each of some backends gets one.
fn load_all(topology: &Topology, services: &[Service]) -> Result<Vec<LoadReport>> {
    load(topology, services, 200)
}

#[test]
fn a_backend_that_hangs_is_taken_out_and_keeps_its_connections() -> Result<()> {
    let (topology, mut servers) = standard("hangs", TopologyOptions::default())?;
    let services = http_of_each_kind(&topology);
    let balancer = Balancer::start(&topology, &programs::paths().lb, &services)?;
    let mut transfers = Vec::new();
    for service in &services {
        transfers.extend(begin_transfers(&topology, service, 1, 1)?);
    }

    servers[1].stop()?;
    wait_for_state(&balancer, &topology, &services, "b2", "down")?;
    for report in load_all(&topology, &services)? {
        assert!(!report.connections.contains_key("b2"));
    }
    // A failed check is no proof that a connection is dead: what it serves may go on.
    servers[1].resume()?;
    for (backend, result) in finish(transfers) {
        result.with_context(|| format!("a transfer of {backend} was disturbed"))?;
    }
    wait_for_state(&balancer, &topology, &services, "b2", "up")?;
    for report in load_all(&topology, &services)? {
        assert!(report.connections.contains_key("b2"));
    }
    balancer.stop()
}

#[test]
fn a_udp_flow_moves_away_from_a_dead_backend() -> Result<()> {
    let (topology, mut servers) = standard("udp-moves", TopologyOptions::default())?;
    let services = of_each_kind(53, |name, address, mode| {
        Service::udp(name, &topology, address, mode, port::WHO)
    });
    let balancer = Balancer::start(&topology, &programs::paths().lb, &services)?;
    let who = |socket: &UdpSocket| -> Result<String> {
        let answer = String::from_utf8(udp::exchange(socket, b"who?")?)?;
        Ok(answer.split(' ').next().unwrap_or_default().to_owned())
    };
    let mut sockets = Vec::new();
    for service in &services {
        for _ in 0..12 {
            let socket = topology
                .client
                .enter(|| udp::connect(service.address, PATIENCE))?;
            sockets.push((who(&socket)?, socket));
        }
    }
    assert!(sockets.iter().any(|(backend, _)| backend == "b2"));

    servers[1].kill()?;
    wait_for_state(&balancer, &topology, &services, "b2", "down")?;
    for (before, socket) in &sockets {
        let now = who(socket)?;
        match &**before {
            "b2" => assert_ne!(now, "b2"),
            other => assert_eq!(now, other, "a flow moved that had no reason to"),
        }
    }
    balancer.stop()
}

#[test]
fn backends_come_and_go_and_change_weight_under_load() -> Result<()> {
    let options = TopologyOptions {
        backends: 4,
        ..TopologyOptions::default()
    };
    let (topology, _servers) = standard("changes", options)?;
    // The fourth is there and not yet part of the services.
    let services: Vec<_> = http_of_each_kind(&topology)
        .into_iter()
        .map(|service| service.weights(&[100, 100, 100]))
        .collect();
    let balancer = Balancer::start(&topology, &programs::paths().lb, &services)?;
    let loads: Vec<_> = services
        .iter()
        .map(|service| load_in_background(&topology, service))
        .collect();
    let mut transfers = Vec::new();
    for service in &services {
        for _ in 0..12 {
            let begin = || Transfer::begin(service.address, 4 * RATE, RATE, PATIENCE);
            transfers.push(topology.client.enter(begin)?);
        }
    }

    let address = |service: &Service, backend: usize| -> SocketAddr {
        let ip: IpAddr = service.address.ip();
        topology.backends[backend].address(ip, service.backend_port)
    };
    let all = |words: &dyn Fn(&Service) -> String| -> Result<()> {
        services
            .iter()
            .try_for_each(|service| balancer.lb(&words(service)).map(drop))
    };

    all(&|s| format!("backend add {} {} --weight 200", s.name, address(s, 3)))?;
    wait_for_state(&balancer, &topology, &services, "b4", "up")?;
    for report in load(&topology, &services, 2_000)? {
        assert!((report.share("b4") - 0.4).abs() < 0.05, "{report:?}");
    }

    all(&|s| format!("backend set {} {} --weight 0", s.name, address(s, 0)))?;
    wait_for_state(&balancer, &topology, &services, "b1", "draining")?;
    for report in load(&topology, &services, 2_000)? {
        assert!(!report.connections.contains_key("b1"), "{report:?}");
        assert!((report.share("b4") - 0.5).abs() < 0.05, "{report:?}");
    }

    all(&|s| format!("backend remove {} {}", s.name, address(s, 1)))?;
    for report in load_all(&topology, &services)? {
        let served: Vec<_> = report.connections.keys().map(String::as_str).collect();
        assert_eq!(served, ["b3", "b4"]);
    }

    all(&|s| format!("backend set {} {} --weight 100", s.name, address(s, 0)))?;
    wait_for_state(&balancer, &topology, &services, "b1", "up")?;
    for report in load_all(&topology, &services)? {
        assert!(report.connections.contains_key("b1"));
    }

    // Weights, additions and the removal of another are nothing to a connection.
    let mut removed = 0;
    for (backend, result) in finish(transfers) {
        match &*backend {
            "b2" => removed += 1,
            _ => result.with_context(|| format!("a transfer of {backend} was disturbed"))?,
        }
    }
    assert!(removed > 0, "no transfer was ever at the removed backend");
    for (load, service) in loads.into_iter().zip(&services) {
        let report = load.finish();
        assert!(report.requests > 0);
        // A short request may have been at the backend while it was removed.
        assert!(
            report.errors.len() <= 4,
            "{}: {:#?}",
            service.name,
            report.errors
        );
    }
    let status = balancer.status()?;
    assert!(
        status
            .services
            .iter()
            .all(|service| service.backends.len() == 3)
    );
    balancer.stop()
}
