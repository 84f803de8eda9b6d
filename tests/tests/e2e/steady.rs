//! A steady load, and what operators do meanwhile: every packet arrives, every connection
//! stays, every packet is counted, once.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::loaded_maps,
    programs::{ProgramInfo, loaded_programs},
};
use lb_lab::{
    Background, Balancer, Counters, Mode, Service, Snmp, Status, Topology, TopologyOptions, port,
    udp,
};
use lb_tests::soak::say;
use nix::sys::signal::Signal;

use crate::{
    PATIENCE, http_of_each_kind, load,
    modes::Site,
    of_each_kind, programs,
    restarts::{assert_onwards, hold_many, number},
    standard, upgrade,
};

/// TCP connections that are held, unless `LB_STEADY_CONNECTIONS` says another number.
const CONNECTIONS: usize = 500;

/// How often each thing happens, unless these variables say another number.
const EVENTS: [(&str, usize, Event); 3] = [
    ("LB_STEADY_KILLS", 6, Event::Kill),
    ("LB_STEADY_RELOADS", 6, Event::Reload),
    ("LB_STEADY_UPGRADES", 2, Event::Upgrade),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// The daemon is killed, and started again.
    Kill,
    /// The file says something else, which a signal, a command, or nobody tells the daemon.
    Reload,
    /// Another version takes its place.
    Upgrade,
}

/// What is to happen, each kind spread over all of the time.
fn events() -> Vec<Event> {
    let mut events = Vec::new();
    for (variable, usual, event) in EVENTS {
        let count = number(variable, usual);
        for one in 0..count {
            events.push(((2 * one + 1) as f64 / (2 * count) as f64, event));
        }
    }
    events.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    events.into_iter().map(|(_, event)| event).collect()
}

/// The packets that the kernels of all hosts have seen.
struct Kernels {
    client: Snmp,
    balancer: Snmp,
    backends: Vec<Snmp>,
}

impl Kernels {
    fn read(topology: &Topology) -> Result<Self> {
        let backends = topology.backends.iter();
        Ok(Self {
            client: topology.client.snmp()?,
            balancer: topology.lb.snmp()?,
            backends: backends.map(|one| one.host.snmp()).collect::<Result<_>>()?,
        })
    }

    /// What the client has sent and received since `before`, in both families.
    fn client_since(&self, before: &Self) -> [u64; 2] {
        [
            ["Ip.OutRequests", "Ip6.OutRequests"],
            ["Ip.InReceives", "Ip6.InReceives"],
        ]
        .map(|names| {
            let packets = names.map(|name| self.client.since(&before.client, name));
            packets.iter().sum::<i64>() as u64
        })
    }

    /// What the backends have received and sent since `before` over IPv4, without what the
    /// balancer's own host has sent and received: its health checks, and what it sends to itself,
    /// by which both figures are too small.
    fn backends_since(&self, before: &Self) -> [i64; 2] {
        [
            ("Ip.InReceives", "Ip.OutRequests"),
            ("Ip.OutRequests", "Ip.InReceives"),
        ]
        .map(|(theirs, own)| {
            let backends = self.backends.iter().zip(&before.backends);
            let all: i64 = backends.map(|(now, then)| now.since(then, theirs)).sum();
            all - self.balancer.since(&before.balancer, own)
        })
    }
}

/// The sums of the services that `is_meant`.
fn sums(status: &Status, is_meant: impl Fn(&str) -> bool) -> Counters {
    let services = status.services.iter();
    services
        .filter(|service| is_meant(&service.name))
        .fold(Counters::default(), |sum, service| {
            sum.plus(service.counters)
        })
}

/// The balancer that things happen to.
struct Scene {
    topology: Topology,
    balancer: Balancer,
    services: Vec<Service>,
    /// Both versions, the one that runs first.
    versions: [std::path::PathBuf; 2],
    reloads: usize,
}

impl Scene {
    fn happen(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Kill => {
                self.balancer.process().kill()?;
                self.balancer.start_again()
            }
            Event::Reload => self.reload(),
            Event::Upgrade => {
                let (id, tag) = upgrade::attached(&self.topology.lb, "eth0")?;
                self.versions.swap(0, 1);
                self.balancer.upgrade(&self.versions[0])?;
                let (new_id, new_tag) = upgrade::attached(&self.topology.lb, "eth0")?;
                ensure!(id != new_id && tag != new_tag, "{tag} is attached still");
                Ok(())
            }
        }
    }

    /// Gives the backends other weights, and makes or removes a service.
    fn reload(&mut self) -> Result<()> {
        const WEIGHTS: [[u32; 4]; 3] = [[100, 0, 100, 300], [50, 100, 0, 100], [100; 4]];
        let weights = WEIGHTS[self.reloads % WEIGHTS.len()];
        let mut services: Vec<Service> = self.services.clone();
        if self.reloads.is_multiple_of(2) {
            let address = (Topology::VIP4, 90).into();
            services.push(Service::http("extra", &self.topology, address, Mode::Nat));
        }
        let services: Vec<Service> = services
            .into_iter()
            .map(|service| service.weights(&weights))
            .collect();
        self.balancer.configure(&self.topology, &services)?;
        match self.reloads % 3 {
            0 => self.balancer.process().signal(Signal::SIGHUP)?,
            1 => {
                let file = self.balancer.config().display().to_string();
                self.balancer.lb(&format!("apply {file}"))?;
            }
            _ => {}
        }
        self.reloads += 1;
        self.balancer.wait_until("the file is in force", |status| {
            let backends = status.services.iter().map(|service| &service.backends);
            status.services.len() == services.len()
                && backends.flatten().count() == services.len() * weights.len()
                && status.services.iter().all(|service| {
                    let is = service.backends.iter().map(|backend| backend.weight);
                    is.eq(weights)
                })
        })?;
        Ok(())
    }
}

#[test]
fn under_steady_load_nothing_is_lost_by_restarts_reloads_and_upgrades() -> Result<()> {
    let options = TopologyOptions {
        backends: 4,
        ..TopologyOptions::default()
    };
    let (topology, _servers) = standard("steady", options)?;
    // The client's kernel is to count no packets but those to services.
    let router = topology.lb.mac("eth0")?;
    for gateway in ["198.51.100.1", "2001:db8:1::1"] {
        topology.client.ip(&format!(
            "neighbour replace {gateway} lladdr {router} dev eth0 nud permanent"
        ))?;
    }
    let https = http_of_each_kind(&topology);
    let echos = of_each_kind(1_007, |name, address, mode| {
        let name = format!("echo-{name}");
        Service::udp(&name, &topology, address, mode, port::ECHO)
    });
    let services: Vec<Service> = https.iter().chain(&echos).cloned().collect();
    let services: Vec<Service> = services
        .into_iter()
        .map(|mut service| {
            // Nothing here is about health: a slow machine loses no backend.
            service.health.fall = 100;
            service
        })
        .collect();
    let own = programs::paths().lb.clone();
    let versions = [own.clone(), upgrade::other(topology.lab.directory())?];
    let balancer = Balancer::start(&topology, &own, &services)?;
    let mut scene = Scene {
        topology,
        balancer,
        services,
        versions,
        reloads: 0,
    };

    let client = scene.topology.client.clone();
    let kernels = Kernels::read(&scene.topology)?;
    let addresses = |services: &[Service]| -> Vec<SocketAddr> {
        services.iter().map(|service| service.address).collect()
    };
    let connections = number("LB_STEADY_CONNECTIONS", CONNECTIONS);
    let held = hold_many(&client, &addresses(&https), connections)?;
    let echoed = {
        let addresses = addresses(&echos);
        client.background(move |stop| udp::stream(&addresses, PATIENCE, stop))
    };

    let began = Instant::now();
    let mut happened: BTreeMap<String, usize> = BTreeMap::new();
    let mut before = scene.balancer.status()?;
    for event in events() {
        let result = scene.happen(event);
        *happened.entry(format!("{event:?}")).or_default() += 1;
        result.with_context(|| format!("{event:?} after {happened:?}"))?;
        // New connections find their way, too.
        load(&scene.topology, &https, 2)?;
        let after = scene.balancer.status()?;
        assert_onwards(&before, &after).with_context(|| format!("{event:?}"))?;
        before = after;
        for (work, is_finished) in [
            ("connections", held.is_finished()),
            ("datagrams", echoed.is_finished()),
        ] {
            ensure!(!is_finished, "{work} have ended: {}", failure(held, echoed));
        }
    }
    let took = began.elapsed();
    let rounds = held.finish()?;
    let echoed = echoed.finish()?;
    ensure!(rounds > 1 && echoed > 0, "the changes were too quick");
    account(&mut scene, &kernels, echoed)?;

    let packets = sums(&scene.balancer.status()?, |_| true);
    let all = packets.packets + packets.reply_packets;
    say(format!(
        "{happened:?} in {took:.0?}: {all} packets, {:.0} a second, {echoed} datagrams answered, \
         {connections} connections spoke {rounds} times",
        all as f64 / took.as_secs_f64()
    ));
    scene.balancer.stop()
}

/// What became of work that ended too early.
fn failure(held: Background<Result<u64>>, echoed: Background<Result<u64>>) -> String {
    format!("{:?}, {:?}", held.finish(), echoed.finish())
}

/// Whatever one side sent, the other received, and the balancer counted it once.
fn account(scene: &mut Scene, before: &Kernels, echoed: u64) -> Result<()> {
    let mut now = Kernels::read(&scene.topology)?;
    let status = scene.balancer.wait_until("all is counted", |status| {
        now = Kernels::read(&scene.topology).unwrap_or_else(|error| panic!("{error:#}"));
        let sums = sums(status, |_| true);
        now.client_since(before) == [sums.packets, sums.reply_packets]
    })?;
    let mut drops = status.drops.clone();
    drops.retain(|_, packets| *packets != 0);
    ensure!(drops.is_empty(), "{drops:?}");
    let echo = sums(&status, |name| name.starts_with("echo"));
    let counted = (echo.packets, echo.reply_packets);
    ensure!(counted == (echoed, echoed), "{counted:?} of {echoed}");

    // Without health checks, the other hosts are quiet.
    scene.balancer.end()?;
    let over_v4 = sums(&status, |name| name.ends_with("v4"));
    let wanted = [over_v4.packets as i64, over_v4.reply_packets as i64];
    let deadline = Instant::now() + PATIENCE;
    loop {
        let arrived = Kernels::read(&scene.topology)?.backends_since(before);
        // Of what is lost on the way to backends, less arrives than was counted; of what is lost
        // on the way back, more was sent. So what is lost is not equal.
        let short = [wanted[0] - arrived[0], wanted[1] - arrived[1]];
        if short[0] == short[1] && short[0] >= 0 {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "{arrived:?} in place of {wanted:?}"
        );
        thread::sleep(Duration::from_millis(50));
    }
    scene.balancer.start_again()
}

/// A daemon whose maps have another layout leaves alone what is there.
#[test]
fn a_daemon_of_another_layout_refuses_and_packets_go_on() -> Result<()> {
    let (topology, _servers) = standard("layout", TopologyOptions::default())?;
    let services = http_of_each_kind(&topology);
    let lb = programs::paths().lb.clone();
    let mut balancer = Balancer::start(&topology, &lb, &services)?;
    let addresses: Vec<SocketAddr> = services.iter().map(|one| one.address).collect();
    let held = hold_many(&topology.client, &addresses, 40)?;
    load(&topology, &services, 3)?;
    let before = balancer.status()?;
    let attached = upgrade::attached(&topology.lb, "eth0")?;
    balancer.process().kill()?;

    // What another version has kept there.
    let layout = lb_common::SCHEMA_VERSION;
    let own = balancer.pins().join(format!("v{layout}"));
    let other = balancer.pins().join(format!("v{}", layout + 1));
    fs::rename(&own, &other)?;
    let log = balancer.fail_to_start()?;
    ensure!(log.contains("another version of lb"), "{log}");
    ensure!(log.contains("lb detach"), "{log}");
    load(&topology, &services, 3)?;
    ensure!(upgrade::attached(&topology.lb, "eth0")? == attached);

    // A map that has the name of one of this layout, and is another one.
    fs::rename(&other, &own)?;
    let (counters, drops) = (own.join("COUNTERS"), own.join("DROPS"));
    fs::rename(&counters, own.join("aside"))?;
    fs::hard_link(&drops, &counters)?;
    let log = balancer.fail_to_start()?;
    ensure!(log.contains("COUNTERS"), "{log}");
    ensure!(log.contains("lb detach"), "{log}");
    load(&topology, &services, 3)?;
    ensure!(upgrade::attached(&topology.lb, "eth0")? == attached);
    fs::remove_file(&counters)?;
    fs::rename(own.join("aside"), &counters)?;

    balancer.start_again()?;
    assert_onwards(&before, &balancer.status()?)?;
    load(&topology, &services, 3)?;
    held.finish()?;
    balancer.stop()
}

/// Of a daemon that was killed, `lb detach` leaves nothing in the kernel.
#[test]
fn detaching_leaves_nothing_behind() -> Result<()> {
    let mut site = Site::new("detach", Mode::Gue, 1_500)?;
    let lb = site.routed.topology.lb.clone();
    let (attached, _) = upgrade::attached(&lb, "eth0")?;
    let maps_of = |program: &ProgramInfo| program.map_ids().ok().flatten().unwrap_or_default();
    let loaded = || loaded_programs().filter_map(Result::ok);
    let attached = loaded().find(|program| program.id() == attached);
    let maps = maps_of(&attached.context("the attached program")?);
    // Those that it calls, too.
    let programs: Vec<u32> = loaded()
        .filter(|program| maps_of(program).iter().any(|map| maps.contains(map)))
        .map(|program| program.id())
        .collect();
    ensure!(
        maps.len() > 20 && programs.len() > 5,
        "{maps:?}, {programs:?}"
    );
    site.balancer.process().kill()?;
    ensure!(lb.ip("link show")?.contains("lbprobe0"), "no health checks");

    site.balancer.detach()?;
    let links = lb.ip("-details link show")?;
    ensure!(
        !links.contains("lbprobe") && !links.contains("xdp"),
        "{links}"
    );
    ensure!(!site.balancer.pins().exists());
    // The kernel frees what nobody uses any more when no packet can. Programs come first: a map
    // of programs that is looked at while it is about to be emptied is never freed (Linux 6.18).
    wait_until_gone("programs", || {
        loaded()
            .map(|program| program.id())
            .filter(|id| programs.contains(id))
            .collect()
    })?;
    wait_until_gone("maps", || {
        loaded_maps()
            .filter_map(Result::ok)
            .map(|map| map.id())
            .filter(|id| maps.contains(id))
            .collect()
    })
}

/// Waits until `left` tells of nothing.
fn wait_until_gone(what: &str, left: impl Fn() -> Vec<u32>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = left();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{what} are left: {left:?}");
        thread::sleep(Duration::from_millis(200));
    }
}
