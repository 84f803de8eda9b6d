//! The demonstration: real traffic through the balancer, a backend that dies, and one
//! that comes back.

use std::{
    fmt::Display,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Background, Balancer, Health, Lab, Load, LoadReport, Mode, Paths, Process, Protocol, Service,
    Stop, Topology, TopologyOptions, interrupt::Interrupts, port, udp,
};

/// The hosts, and which of them are linked.
const PICTURE: &str = "
    client ---- lb ---- switch -+- b1     clients  198.51.100.2, 2001:db8:1::2
                                +- b2     VIPs     192.0.2.10, 2001:db8:2::10
                                +- b3     backends 10.0.0.11-13, 2001:db8:3::11-13";
/// Weights of the three backends.
const WEIGHTS: [u32; 3] = [100, 100, 50];
/// The port of the UDP services.
const WHO: u16 = 53;
/// Requests to each service, one after the other step by step.
const REQUESTS: u64 = 1_000;
/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Shows what the balancer does, on stdout. Leaves nothing behind, also when it is
/// interrupted.
///
/// # Errors
///
/// When the balancer does not do what it should.
pub fn run(paths: &Paths) -> Result<()> {
    let interrupts = Interrupts::block()?;
    let begin = Instant::now();
    step("A lab of network namespaces, joined by veth pairs")?;
    let topology = Topology::standard(Lab::new("demo")?, TopologyOptions::default())?;
    interrupts.guard(&topology.lab);
    let result = interrupts.unless_interrupted(|| show(paths, &topology));
    drop(topology);
    result?;
    step(format_args!(
        "Done in {}. Namespaces and processes are gone.",
        seconds(begin)
    ))
}

/// Everything between the making of the lab and its end.
fn show(paths: &Paths, topology: &Topology) -> Result<()> {
    let mut servers = topology.start_servers(&paths.server)?;
    say(PICTURE)?;

    let services = services(topology);
    let balancer = start(paths, topology, &services)?;

    step(format_args!(
        "{REQUESTS} requests to each service, each a connection or socket of its own"
    ))?;
    for service in &services {
        let report = ask(topology, service);
        say_report(service, &report)?;
        report.into_result()?;
    }

    step("$ lb status")?;
    say_indented(&balancer.lb("status")?)?;

    fail(topology, &balancer, &services, &mut servers[1])?;
    servers[1] = recover(paths, topology, &balancer, &services)?;
    balancer.stop()
}

/// Both protocols, both families and both modes in four services.
fn services(topology: &Topology) -> Vec<Service> {
    let (v4, v6) = (IpAddr::from(Topology::VIP4), IpAddr::from(Topology::VIP6));
    let http = |name, ip, mode| Service::http(name, topology, (ip, 80).into(), mode);
    let who = |name, ip, mode| Service::udp(name, topology, (ip, WHO).into(), mode, port::WHO);
    [
        http("web", v4, Mode::FullNat),
        http("web6", v6, Mode::Nat),
        who("who", v4, Mode::Nat),
        who("who6", v6, Mode::FullNat),
    ]
    .map(|service| service.weights(&WEIGHTS))
    .into()
}

fn start(paths: &Paths, topology: &Topology, services: &[Service]) -> Result<Balancer> {
    step("$ lb run --config lb.toml")?;
    let begin = Instant::now();
    let balancer = Balancer::start(topology, &paths.lb, services)?;
    let status = balancer.status()?;
    let interfaces: Vec<_> = status
        .interfaces
        .iter()
        .map(|interface| format!("{} ({} XDP)", interface.name, interface.mode))
        .collect();
    say(format_args!(
        "    {} services with {} backends each, of weights {WEIGHTS:?}\n    \
         attached to {}; all backends healthy after {}",
        services.len(),
        WEIGHTS.len(),
        interfaces.join(" and "),
        seconds(begin)
    ))?;
    Ok(balancer)
}

/// Kills b2 while clients go on asking.
fn fail(
    topology: &Topology,
    balancer: &Balancer,
    services: &[Service],
    server: &mut Process,
) -> Result<()> {
    let Health {
        interval_ms,
        timeout_ms,
        fall,
        ..
    } = Health::default();
    step(format_args!(
        "b2 is killed, under load (health check every {interval_ms} ms, down after {fall} failures)"
    ))?;
    let background: Vec<_> = services
        .iter()
        .map(|s| in_background(topology, s))
        .collect();
    let begin = Instant::now();
    server.kill()?;
    let b2 = topology.backend("b2")?;
    balancer.wait_until("b2 is out of every service", |status| {
        services.iter().all(|service| {
            let address = b2.address(service.address.ip(), service.backend_port);
            status
                .service(&service.name)
                .and_then(|service| service.backend(address))
                .is_ok_and(|backend| backend.state == "down")
        })
    })?;
    let taken_out = seconds(begin);
    let reports: Vec<_> = background.into_iter().map(Background::finish).collect();
    let answered: u64 = reports.iter().map(|report| report.requests).sum();
    let failed: usize = reports.iter().map(|report| report.errors.len()).sum();
    say(format_args!(
        "    taken out after {} (at most {} s by its settings); until then {failed} of {} \
         requests met the dead server",
        taken_out,
        (interval_ms * u64::from(fall) + timeout_ms) as f64 / 1_000.0,
        answered + failed as u64,
    ))?;
    step("Without b2")?;
    for service in services {
        let report = ask(topology, service);
        say_report(service, &report)?;
        ensure!(
            !report.connections.contains_key("b2"),
            "b2 was killed and still answers"
        );
        report.into_result()?;
    }
    step("$ lb status web")?;
    say_indented(&balancer.lb("status web")?)
}

/// Starts b2 again.
fn recover(
    paths: &Paths,
    topology: &Topology,
    balancer: &Balancer,
    services: &[Service],
) -> Result<Process> {
    step("b2 comes back")?;
    let begin = Instant::now();
    let server = topology.backend("b2")?.start_server(&paths.server)?;
    balancer.wait_until("all backends are well", crate::Status::is_all_well)?;
    say(format_args!("    serving again after {}", seconds(begin)))?;
    for service in services {
        let report = ask(topology, service);
        say_report(service, &report)?;
        ensure!(
            report.connections.contains_key("b2"),
            "b2 is back and gets no requests"
        );
        report.into_result()?;
    }
    Ok(server)
}

/// Sends the requests to one service.
fn ask(topology: &Topology, service: &Service) -> LoadReport {
    let service = service.clone();
    topology
        .client
        .enter(|| ask_until(&service, REQUESTS, &Stop::default()))
}

/// Sends requests to one service until it is told to stop.
fn in_background(topology: &Topology, service: &Service) -> Background<LoadReport> {
    let service = service.clone();
    topology
        .client
        .background(move |stop| ask_until(&service, u64::MAX, stop))
}

fn ask_until(service: &Service, requests: u64, stop: &Stop) -> LoadReport {
    match service.protocol {
        Protocol::Tcp => Load {
            timeout: TIMEOUT,
            ..Load::new(service.address, requests)
        }
        .run_until(stop),
        Protocol::Udp => ask_udp(service.address, requests, stop),
    }
}

/// The same over UDP: a source port for each request.
fn ask_udp(server: SocketAddr, requests: u64, stop: &Stop) -> LoadReport {
    let mut report = LoadReport::default();
    for _ in 0..requests {
        if stop.is_requested() {
            break;
        }
        report.record(|| udp::who(server, TIMEOUT));
    }
    report
}

fn say_report(service: &Service, report: &LoadReport) -> Result<()> {
    let Service {
        name,
        address,
        protocol,
        mode,
        ..
    } = service;
    let shares: String = (1..=WEIGHTS.len())
        .map(|number| format!("b{number}"))
        .map(|backend| format!("{backend} {:4.1} %  ", 100.0 * report.share(&backend)))
        .collect();
    let sources: Vec<_> = report.sources.iter().map(IpAddr::to_string).collect();
    say(format_args!(
        "    {name:5} {protocol} {:20} {mode:9} {shares}{} errors; servers see {}",
        address.to_string(),
        report.errors.len(),
        sources.join(", ")
    ))
}

fn say_indented(text: &str) -> Result<()> {
    text.lines()
        .try_for_each(|line| say(format_args!("    {line}")))
}

/// Begins a step with an empty line and its title.
fn step(title: impl Display) -> Result<()> {
    say(format_args!("\n{title}"))
}

/// Prints a line, at once: what is printed so far is seen while it works.
fn say(line: impl Display) -> Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .context("cannot write to stdout")
}

fn seconds(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f64())
}
