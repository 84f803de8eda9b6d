//! Which backend gets a connection, and which keeps it.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use lb_lab::{
    Balancer, Lab, Load, LoadReport, Mode, Routed, RoutedOptions, Service, Status, Topology,
    TopologyOptions,
    http::{Connection, Transfer},
    port,
};
use serde_json::Value;

use crate::{PATIENCE, load, programs, standard};

/// Bytes a second of a long-lived transfer.
const RATE: u64 = 100_000;

/// A service over IPv4 with these lines in its configuration, and the balancer.
fn serve(topology: &Topology, mode: Mode, keys: &[&str]) -> Result<(Balancer, Service)> {
    let port = if mode.replies_direct() {
        port::HTTP
    } else {
        80
    };
    let address = SocketAddr::new(Topology::VIP4.into(), port);
    let service = Service::http("web", topology, address, mode);
    let service = keys.iter().fold(service, |service, line| service.key(line));
    let services = [service.clone()];
    let balancer = Balancer::start(topology, &programs::paths().lb, &services)?;
    Ok((balancer, service))
}

/// Sends requests, each on a connection of its own.
fn requests(topology: &Topology, service: &Service, count: u64) -> Result<LoadReport> {
    Ok(load(topology, std::slice::from_ref(service), count)?.remove(0))
}

/// Opens connections and leaves them open.
fn connections(topology: &Topology, service: &Service, count: usize) -> Result<Vec<Connection>> {
    let open = || Connection::open(service.address, PATIENCE);
    (0..count).map(|_| topology.client.enter(open)).collect()
}

fn transfers(
    topology: &Topology,
    service: &Service,
    count: usize,
    seconds: u64,
) -> Result<Vec<Transfer>> {
    let begin = || Transfer::begin(service.address, seconds * RATE, RATE, PATIENCE);
    (0..count).map(|_| topology.client.enter(begin)).collect()
}

/// The address of a backend as the service knows it.
fn backend(topology: &Topology, service: &Service, index: usize) -> SocketAddr {
    topology.backends[index].address(service.address.ip(), service.backend_port)
}

fn served(report: &LoadReport) -> Vec<&str> {
    report.connections.keys().map(String::as_str).collect()
}

/// Live flows of the backends of the only service.
fn live(status: &Status) -> Vec<u64> {
    let backends = status.services[0].backends.iter();
    backends
        .map(|backend| backend.counters.active_flows)
        .collect()
}

fn states(status: &Status) -> Vec<&str> {
    let backends = status.services[0].backends.iter();
    backends.map(|backend| backend.state.as_str()).collect()
}

#[test]
fn round_robin_is_exact_over_connections() -> Result<()> {
    let (topology, _servers) = standard("turns", TopologyOptions::default())?;
    let keys = ["scheduler = \"round-robin\"", "ring-size = 1009"];
    let (balancer, service) = serve(&topology, Mode::FullNat, &keys)?;
    let report = requests(&topology, &service, 300)?;
    assert!(report.connections.values().all(|count| *count == 100));
    let weight = |index, weight: u32| {
        let backend = backend(&topology, &service, index);
        balancer.lb(&format!("backend set web {backend} --weight {weight}"))
    };
    weight(0, 200)?;
    let report = requests(&topology, &service, 1_000)?;
    // The counter does not begin anew, and may stand amid a round of four turns.
    for (name, turns) in [("b1", 500_u64), ("b2", 250), ("b3", 250)] {
        let count = report.connections[name];
        assert!(count.abs_diff(turns) <= 1, "{report:?}");
    }
    balancer.stop()
}

/// Two backends have connections when a third comes: it gets most of those that follow.
#[test]
fn least_connections_evens_out() -> Result<()> {
    let (topology, _servers) = standard("least", TopologyOptions::default())?;
    let keys = ["scheduler = \"least-connections\""];
    let (balancer, service) = serve(&topology, Mode::FullNat, &keys)?;
    let third = backend(&topology, &service, 2);
    balancer.lb(&format!("backend set web {third} --weight 0"))?;
    let mut open = connections(&topology, &service, 60)?;
    let before = balancer.wait_until("all are counted", |status| {
        live(status).iter().sum::<u64>() == 60
    })?;
    assert_eq!(live(&before)[2], 0);
    assert!(live(&before)[0].abs_diff(live(&before)[1]) <= 6);

    balancer.lb(&format!("backend set web {third} --weight 100"))?;
    open.extend(connections(&topology, &service, 180)?);
    let after = balancer.wait_until("all are counted", |status| {
        live(status).iter().sum::<u64>() == 240
    })?;
    // By chance alone the third would have some 30 fewer than the others.
    let live = live(&after);
    let spread = live.iter().max().unwrap() - live.iter().min().unwrap();
    assert!(spread <= 14, "{live:?}");
    drop(open);
    balancer.wait_until("none is left", |status| {
        self::live(status).iter().all(|flows| *flows == 0)
    })?;
    balancer.stop()
}

/// A drained backend keeps what it has, gets nothing new, and says how much is left.
fn drain(topology: &Topology, mode: Mode) -> Result<()> {
    let (balancer, service) = serve(topology, mode, &[])?;
    let transfers = transfers(topology, &service, 24, 5)?;
    let at_first = transfers.iter().filter(|t| t.backend() == "b1").count() as u64;
    assert!(at_first > 0, "none of 24 connections is at b1");
    let load = Load {
        threads: 2,
        ..Load::new(service.address, u64::MAX)
    };
    let load = topology.client.background(move |stop| load.run_until(stop));

    let first = backend(topology, &service, 0);
    balancer.lb(&format!("backend drain web {first} --deadline 10m"))?;
    let draining = balancer.wait_until("only transfers are left", |status| {
        let drain = status.services[0].backends[0].drain.as_ref();
        drain.is_some_and(|drain| drain.flows_left == at_first)
    })?;
    assert_eq!(states(&draining)[0], "draining");
    let report = requests(topology, &service, 100)?;
    assert!(!served(&report).contains(&"b1"), "{report:?}");

    for transfer in transfers {
        transfer.finish()?;
    }
    balancer.wait_until("the backend is drained", |status| {
        let drain = status.services[0].backends[0].drain.as_ref();
        drain.is_some_and(|drain| drain.phase == "drained" && drain.flows_left == 0)
    })?;
    balancer.lb(&format!("backend undrain web {first}"))?;
    let report = requests(topology, &service, 100)?;
    assert!(served(&report).contains(&"b1"), "{report:?}");
    let report = load.finish().into_result()?;
    ensure!(report.requests > 0, "there was no load");
    balancer.stop()
}

#[test]
fn a_drained_backend_keeps_its_translated_connections() -> Result<()> {
    let (topology, _servers) = standard("drain-nat", TopologyOptions::default())?;
    drain(&topology, Mode::Nat)
}

/// Here it is slots with two backends that keep them.
#[test]
fn a_drained_backend_keeps_its_connections_by_dsr() -> Result<()> {
    let options = RoutedOptions::new(Mode::Dsr, 1_500);
    let routed = Routed::new(Lab::new("drain-dsr")?, options)?;
    let _servers = routed.topology.start_servers(&programs::paths().server)?;
    drain(&routed.topology, Mode::Dsr)
}

#[test]
fn a_lower_tier_takes_over_and_gives_back() -> Result<()> {
    let (topology, mut servers) = standard("tiers", TopologyOptions::default())?;
    let (balancer, service) = serve(&topology, Mode::FullNat, &["quorum = 1"])?;
    let last = backend(&topology, &service, 2);
    balancer.lb(&format!("backend set web {last} --priority 1"))?;
    let wait_for = |wanted: [&str; 3]| {
        balancer.wait_until(&format!("backends are {wanted:?}"), |status| {
            states(status) == wanted
        })
    };
    assert_eq!(served(&requests(&topology, &service, 100)?), ["b1", "b2"]);
    servers[0].kill()?;
    wait_for(["down", "up", "up"])?;
    assert_eq!(served(&requests(&topology, &service, 100)?), ["b2"]);
    servers[1].kill()?;
    wait_for(["down", "down", "up"])?;
    let transfers = transfers(&topology, &service, 2, 3)?;
    assert_eq!(served(&requests(&topology, &service, 100)?), ["b3"]);

    servers[0] = topology.backends[0].start_server(&programs::paths().server)?;
    wait_for(["up", "down", "up"])?;
    assert_eq!(served(&requests(&topology, &service, 100)?), ["b1"]);
    for transfer in transfers {
        assert_eq!(transfer.backend(), "b3");
        transfer.finish().context("who began at b3 ends there")?;
    }
    balancer.stop()
}

#[test]
fn a_service_whose_checks_all_fail_may_serve_on() -> Result<()> {
    let (topology, _servers) = standard("fail-open", TopologyOptions::default())?;
    let (balancer, service) = serve(&topology, Mode::FullNat, &["on-empty = \"fail-open\""])?;
    // Nobody listens there.
    balancer.lb("service set web --health-port 81")?;
    balancer.wait_until("all checks fail", |status| states(status) == ["down"; 3])?;
    let report = requests(&topology, &service, 100)?;
    assert_eq!(served(&report), ["b1", "b2", "b3"]);
    balancer.lb("service set web --on-empty drop")?;
    let report = topology.client.enter(|| {
        Load {
            threads: 1,
            timeout: std::time::Duration::from_millis(200),
            ..Load::new(service.address, 1)
        }
        .run()
    });
    assert_eq!((report.requests, report.errors.len()), (0, 1));
    assert!(balancer.status()?.drops["no-backend"] > 0);
    balancer.stop()
}

#[test]
fn a_backend_has_no_more_connections_than_it_may() -> Result<()> {
    let (topology, _servers) = standard("bounded", TopologyOptions::default())?;
    let (balancer, service) = serve(&topology, Mode::FullNat, &[])?;
    let bound = |index, count: u32| {
        let backend = backend(&topology, &service, index);
        balancer.lb(&format!(
            "backend set web {backend} --max-connections {count}"
        ))
    };
    bound(0, 5)?;
    // Each is confirmed before the next begins: a request has been answered on it.
    let mut open = Vec::new();
    let mut open_until = |count: usize| -> Result<()> {
        while open.len() < count {
            let mut connection = connections(&topology, &service, 1)?.remove(0);
            topology.client.enter(|| connection.get("/", false))?;
            open.push(connection);
        }
        Ok(())
    };
    open_until(60)?;
    let all = live(&balancer.status()?);
    assert_eq!((all[0], all[1] + all[2]), (5, 55));
    bound(1, 1)?;
    bound(2, 1)?;
    let timeout = std::time::Duration::from_millis(200);
    let refused = topology
        .client
        .enter(|| Connection::open(service.address, timeout));
    assert!(refused.is_err(), "all backends are full");
    assert!(balancer.status()?.drops["backends-full"] > 0);
    bound(2, 1_000)?;
    open_until(80)?;
    let all = live(&balancer.status()?);
    assert_eq!((all[0], all.iter().sum()), (5, 80));
    balancer.stop()
}

/// What `lb flows` lists with these words after it.
fn flows(balancer: &Balancer, words: &str) -> Result<Vec<Value>> {
    let list: Value = serde_json::from_str(&balancer.lb(&format!("flows {words} --json"))?)?;
    let flows = list["flows"].as_array().context("a list of flows")?;
    Ok(flows.clone())
}

fn list_flows(topology: &Topology, mode: Mode, keys: &[&str]) -> Result<()> {
    let (balancer, service) = serve(topology, mode, keys)?;
    let transfers = transfers(topology, &service, 12, 2)?;
    let established = flows(&balancer, "web --state established")?;
    assert_eq!(established.len(), 12);
    for index in 0..topology.backends.len() {
        let address = backend(topology, &service, index);
        let name = topology.backends[index].host.name();
        let at = transfers.iter().filter(|t| t.backend() == name).count();
        let listed = flows(&balancer, &format!("web --backend {address}"))?;
        assert_eq!(listed.len(), at, "{name}: {listed:?}");
        assert!(
            listed
                .iter()
                .all(|flow| flow["backend"] == address.to_string())
        );
    }
    assert_eq!(flows(&balancer, "web --client 198.51.100.2")?.len(), 12);
    assert_eq!(flows(&balancer, "web --client 198.51.100.3")?.len(), 0);
    for transfer in transfers {
        transfer.finish()?;
    }
    balancer.wait_until("all have ended", |status| {
        live(status).iter().all(|flows| *flows == 0)
    })?;
    assert_eq!(flows(&balancer, "web --state closing")?.len(), 12);
    balancer.stop()
}

#[test]
fn translated_flows_are_listed() -> Result<()> {
    let (topology, _servers) = standard("flows-nat", TopologyOptions::default())?;
    list_flows(&topology, Mode::FullNat, &[])
}

#[test]
fn flows_by_dsr_are_listed_where_they_have_entries() -> Result<()> {
    let options = RoutedOptions::new(Mode::Dsr, 1_500);
    let routed = Routed::new(Lab::new("flows-dsr")?, options)?;
    let _servers = routed.topology.start_servers(&programs::paths().server)?;
    list_flows(&routed.topology, Mode::Dsr, &["track = \"all\""])
}
