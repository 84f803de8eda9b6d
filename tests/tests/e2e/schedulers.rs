//! Which backend a connection gets, and which keeps it.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_lab::{
    Balancer, Host, Lab, Load, LoadReport, Mode, Process, Routed, RoutedOptions, Service, Topology,
    TopologyOptions, http::Connection, port,
};

use crate::{PATIENCE, programs, standard};

const BACKENDS: u8 = 4;

/// A lab with a balancer of these services, which are made of names, addresses and modes.
struct Scene {
    topology: Topology,
    /// Other hosts of the lab.
    _routers: Vec<Host>,
    servers: Vec<Process>,
    services: Vec<Service>,
    balancer: Balancer,
}

impl Scene {
    /// One with a service on IPv4 by NAT and one on IPv6 by full NAT, with these keys.
    fn new(name: &str, keys: &[&str], weights: &[u32]) -> Result<Self> {
        let options = TopologyOptions {
            backends: BACKENDS,
            ..TopologyOptions::default()
        };
        let (topology, servers) = standard(name, options)?;
        let modes = [Mode::Nat, Mode::FullNat];
        Self::start(topology, Vec::new(), servers, (modes, 80), keys, weights)
    }

    /// One whose services have slots with two backends in place of entries.
    fn direct(name: &str, keys: &[&str], weights: &[u32]) -> Result<Self> {
        let options = RoutedOptions {
            backends: BACKENDS,
            ..RoutedOptions::new(Mode::Dsr, 1_500)
        };
        let routed = Routed::new(Lab::new(name)?, options)?;
        let topology = routed.topology;
        let servers = topology.start_servers(&programs::paths().server)?;
        let routers = vec![routed.r1, routed.r2];
        let modes = ([Mode::Dsr; 2], port::HTTP);
        Self::start(topology, routers, servers, modes, keys, weights)
    }

    fn start(
        topology: Topology,
        routers: Vec<Host>,
        servers: Vec<Process>,
        (modes, port): ([Mode; 2], u16),
        keys: &[&str],
        weights: &[u32],
    ) -> Result<Self> {
        let vips = [("v4", Topology::VIP4.into()), ("v6", Topology::VIP6.into())];
        let services: Vec<Service> = vips
            .into_iter()
            .zip(modes)
            .map(|((name, ip), mode)| {
                let service = Service::http(name, &topology, SocketAddr::new(ip, port), mode);
                let mut service = service.weights(weights);
                service.health.fall = 100;
                keys.iter().fold(service, |service, key| service.key(key))
            })
            .collect();
        let balancer = Balancer::start(&topology, &programs::paths().lb, &services)?;
        Ok(Self {
            topology,
            _routers: routers,
            servers,
            services,
            balancer,
        })
    }

    /// Connections to a service, of which each asks once.
    fn load(&self, service: &Service, connections: u64) -> Result<LoadReport> {
        let load = Load::new(service.address, connections);
        self.topology.client.enter(|| load.run()).into_result()
    }

    /// Connections that stay open, and how many each backend has of them.
    fn hold(
        &self,
        service: &Service,
        connections: usize,
    ) -> Result<(Vec<Connection>, BTreeMap<String, usize>)> {
        let mut held = Vec::new();
        let mut count = BTreeMap::new();
        for _ in 0..connections {
            let open = || Connection::open(service.address, PATIENCE);
            let mut connection = self.topology.client.enter(open)?;
            let (head, _) = connection.get("/", false)?;
            *count.entry(head.backend).or_default() += 1;
            held.push(connection);
        }
        Ok((held, count))
    }

    /// The address of a backend as a service has it.
    fn backend(&self, service: &Service, number: usize) -> SocketAddr {
        let backend = &self.topology.backends[number - 1];
        backend.address(service.address.ip(), service.backend_port)
    }

    /// Calls `lb` once for each service with the words that `words` makes.
    fn lb(&self, words: impl Fn(&Service) -> String) -> Result<()> {
        self.services
            .iter()
            .try_for_each(|service| self.balancer.lb(&words(service)).map(drop))
    }
}

/// The connections of backends b1, b2, ...
fn counts(report: &BTreeMap<String, usize>) -> Vec<usize> {
    (1..=BACKENDS)
        .map(|number| report.get(&format!("b{number}")).copied().unwrap_or(0))
        .collect()
}

#[test]
fn turns_are_exact() -> Result<()> {
    let scene = Scene::new(
        "turns",
        &["scheduler = \"round-robin\""],
        &[100, 50, 50, 200],
    )?;
    for service in &scene.services {
        let (held, count) = scene.hold(service, 80)?;
        assert_eq!(counts(&count), [20, 10, 10, 40], "{}", service.name);
        drop(held);
    }
    scene.balancer.stop()
}

/// Connections that stay are as even as can be, and a backend that joins gets all new ones until
/// it has as many as the others.
#[test]
fn fewer_connections_get_more() -> Result<()> {
    let keys = ["scheduler = \"least-connections\""];
    let scene = Scene::new("least", &keys, &[100, 100, 100, 100])?;
    for service in &scene.services {
        // All of these are at three backends.
        let drain = scene.backend(service, 4);
        let name = &service.name;
        scene
            .balancer
            .lb(&format!("backend set {name} {drain} --weight 0"))?;
        let (_first, count) = scene.hold(service, 60)?;
        assert_eq!(counts(&count), [20, 20, 20, 0], "{name}");
        // The fourth has nothing to do until it has as many as the others.
        scene
            .balancer
            .lb(&format!("backend set {name} {drain} --weight 100"))?;
        let (_second, count) = scene.hold(service, 20)?;
        assert_eq!(counts(&count), [0, 0, 0, 20], "{name}");
        let (_third, count) = scene.hold(service, 20)?;
        assert_eq!(counts(&count), [5; 4], "{name}");
    }
    scene.balancer.stop()
}

/// All connections of a client are at one backend, also after the daemon was started again, until
/// that one is drained; then at another, which it keeps.
#[test]
fn a_client_keeps_its_backend() -> Result<()> {
    let keys = ["scheduler = \"round-robin\"", "affinity = \"10m\""];
    let mut scene = Scene::new("affinity", &keys, &[100; 4])?;
    let mut at = Vec::new();
    for service in &scene.services {
        let report = scene.load(service, 30)?;
        ensure!(report.connections.len() == 1, "{report:?}");
        at.extend(report.connections.into_keys());
    }
    scene.balancer.end()?;
    scene.balancer.start_again()?;
    for (service, first) in scene.services.iter().zip(&at) {
        let report = scene.load(service, 30)?;
        ensure!(report.connections.keys().eq([first]), "{report:?}");
        let number: usize = first.trim_start_matches('b').parse()?;
        let backend = scene.backend(service, number);
        let name = &service.name;
        let drain = format!("backend drain {name} {backend} --deadline 1h");
        scene.balancer.lb(&drain)?;
        let other = scene.load(service, 30)?;
        ensure!(other.connections.len() == 1, "{other:?}");
        ensure!(!other.connections.contains_key(first), "{other:?}");
        scene
            .balancer
            .lb(&format!("backend undrain {name} {backend}"))?;
        let again = scene.load(service, 30)?;
        assert!(again.connections.keys().eq(other.connections.keys()));
    }
    scene.balancer.stop()
}

/// A drained backend keeps its connections, tells of each that speaks, and gets no others.
fn drain(scene: Scene) -> Result<()> {
    let mut held = Vec::new();
    for service in &scene.services {
        let (connections, count) = scene.hold(service, 40)?;
        ensure!(count.contains_key("b1"), "{count:?}");
        held.push((connections, count["b1"]));
    }
    scene.lb(|service| {
        let backend = scene.backend(service, 1);
        format!("backend drain {} {backend} --deadline 1h", service.name)
    })?;
    let status = scene.balancer.status()?;
    for (service, (connections, at_first)) in scene.services.iter().zip(&mut held) {
        let backend = status.service(&service.name)?;
        let backend = backend.backend(scene.backend(service, 1))?;
        assert_eq!(backend.state, "draining");
        let report = scene.load(service, 100)?;
        assert!(!report.connections.contains_key("b1"), "{report:?}");
        let mut still = 0;
        for connection in connections {
            let (head, _) = connection.get("/", false)?;
            still += usize::from(head.backend == "b1");
        }
        assert_eq!(still, *at_first, "{}", service.name);
        let name = &service.name;
        let flows = scene
            .balancer
            .lb(&format!("flows {name} --state established --json"))?;
        let flows: serde_json::Value = serde_json::from_str(&flows)?;
        let flows = flows["flows"].as_array().context("no list of flows")?;
        let of_first = scene.backend(service, 1).to_string();
        let left = flows.iter().filter(|flow| flow["backend"] == of_first);
        assert_eq!(left.count(), *at_first, "{flows:?}");
    }
    scene.lb(|service| {
        let backend = scene.backend(service, 1);
        format!("backend undrain {} {backend}", service.name)
    })?;
    for service in &scene.services {
        let report = scene.load(service, 200)?;
        assert!(report.connections.contains_key("b1"), "{report:?}");
    }
    scene.balancer.stop()
}

#[test]
fn a_drained_backend_keeps_its_translated_connections() -> Result<()> {
    drain(Scene::new("drain", &[], &[100; 4])?)
}

#[test]
fn a_drained_backend_keeps_the_connections_of_its_slots() -> Result<()> {
    drain(Scene::direct(
        "drain-dsr",
        &["ring-size = 1009"],
        &[100; 4],
    )?)
}

/// Each connection goes on, and what is known of it is told, when entries for all of them are
/// begun and given up, which is when the ring does not say where they are.
#[test]
fn connections_outlive_the_scheduler_that_chose_their_backend() -> Result<()> {
    let scene = Scene::direct("exchange", &[], &[100; 4])?;
    let service = &scene.services[0];
    let mut held = Vec::new();
    for scheduler in ["round-robin", "maglev", "least-connections", "maglev"] {
        scene.lb(|service| format!("service set {} --scheduler {scheduler}", service.name))?;
        held.extend(scene.hold(service, 20)?.0);
        for connection in &mut held {
            connection.get("/", false)?;
        }
        let flows = scene.balancer.lb(&format!(
            "flows {} --state established --json",
            service.name
        ))?;
        let flows: serde_json::Value = serde_json::from_str(&flows)?;
        let flows = flows["flows"].as_array().context("no list of flows")?.len();
        let has_entries = scheduler != "maglev";
        ensure!(!has_entries || flows >= 20, "{scheduler}: {flows}");
    }
    scene.balancer.stop()
}

#[test]
fn a_service_whose_checks_all_fail_may_serve_on() -> Result<()> {
    let scene = Scene::new("empty", &["on-empty = \"fail-open\""], &[100; 4])?;
    // Nobody listens there.
    scene.lb(|service| {
        format!(
            "service set {} --health-fall 1 --health-port 81",
            service.name
        )
    })?;
    scene.balancer.wait_until("all checks fail", |status| {
        let backends = status.services.iter().flat_map(|service| &service.backends);
        backends.into_iter().all(|backend| backend.state == "down")
    })?;
    for service in &scene.services {
        let report = scene.load(service, 100)?;
        assert_eq!(
            report.connections.len(),
            usize::from(BACKENDS),
            "{report:?}"
        );
    }
    scene.lb(|service| format!("service set {} --on-empty drop", service.name))?;
    for service in &scene.services {
        let brief = std::time::Duration::from_millis(300);
        let open = || Connection::open(service.address, brief);
        assert!(scene.topology.client.enter(open).is_err(), "nobody serves");
    }
    let drops = scene.balancer.status()?.drops;
    ensure!(drops["no-backend"] > 0, "{drops:?}");
    scene.balancer.stop()
}

/// Two of each connection go on, the third is refused; and when one ends there is room.
#[test]
fn a_backend_takes_no_more_connections_than_it_may() -> Result<()> {
    let scene = Scene::new("bounded", &[], &[100, 100, 100, 100])?;
    for number in 2..=BACKENDS.into() {
        scene.lb(|service| {
            let backend = scene.backend(service, number);
            format!("backend set {} {backend} --weight 0", service.name)
        })?;
    }
    scene.lb(|service| {
        let backend = scene.backend(service, 1);
        format!("backend set {} {backend} --max-connections 2", service.name)
    })?;
    for service in &scene.services {
        let (mut held, count) = scene.hold(service, 2)?;
        assert_eq!(counts(&count), [2, 0, 0, 0]);
        let brief = std::time::Duration::from_millis(300);
        let open = || Connection::open(service.address, brief);
        assert!(scene.topology.client.enter(open).is_err(), "a third one");
        let drops = scene.balancer.status()?.drops;
        ensure!(drops["backends-full"] > 0, "{drops:?}");
        let last = held.pop().context("two are held")?;
        drop(last);
        scene.balancer.wait_until("there is room", |status| {
            let counted = status.service(&service.name);
            counted.is_ok_and(|service| service.counters.active_flows == 1)
        })?;
        scene.hold(service, 1)?;
        for connection in &mut held {
            connection.get("/", false)?;
        }
    }
    scene.balancer.stop()
}

#[test]
fn a_lower_tier_serves_while_the_one_above_does_not() -> Result<()> {
    let mut scene = Scene::new(
        "tiers",
        &["on-empty = \"fail-open\""],
        &[100, 100, 100, 100],
    )?;
    for number in [3, 4] {
        scene.lb(|service| {
            let backend = scene.backend(service, number);
            format!("backend set {} {backend} --priority 1", service.name)
        })?;
    }
    let served = |scene: &Scene, expected: &[&str]| -> Result<()> {
        for service in &scene.services {
            let report = scene.load(service, 60)?;
            let served: Vec<_> = report.connections.keys().map(String::as_str).collect();
            ensure!(served == expected, "{}: {report:?}", service.name);
        }
        Ok(())
    };
    served(&scene, &["b1", "b2"])?;
    scene.lb(|service| format!("service set {} --health-fall 2", service.name))?;
    for number in [1, 2] {
        scene.servers[number - 1].stop()?;
    }
    scene.balancer.wait_until("both are down", |status| {
        let services = status.services.iter();
        services
            .flat_map(|service| service.backends.iter().take(2))
            .all(|backend| backend.state == "down")
    })?;
    served(&scene, &["b3", "b4"])?;
    for number in [1, 2] {
        scene.servers[number - 1].resume()?;
    }
    scene.balancer.wait_until("both are up", |status| {
        let services = status.services.iter();
        services
            .flat_map(|service| service.backends.iter().take(2))
            .all(|backend| backend.state == "up")
    })?;
    served(&scene, &["b1", "b2"])?;
    scene.balancer.stop()
}
