//! `lb doctor`: problems are planted on a host one by one, each is found, and gone when it has
//! been taken away.

use std::{
    collections::BTreeSet,
    fs,
    net::UdpSocket,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_lab::{Balancer, End, Host, Link, Topology, TopologyOptions};
use serde_json::Value;

use crate::{PATIENCE, http_of_each_kind, programs, standard};

/// A configuration; each part may be another one.
#[derive(Clone)]
struct Config {
    interfaces: &'static str,
    more: String,
    vip: &'static str,
    mode: &'static str,
    service: &'static str,
    backend: &'static str,
    pins: String,
}

struct Site<'a> {
    topology: &'a Topology,
    file: PathBuf,
    socket: PathBuf,
    usual: Config,
}

impl<'a> Site<'a> {
    fn new(topology: &'a Topology) -> Result<Self> {
        let directory = topology.lab.directory();
        let pins = topology.lab.bpf_file_system()?.join("lb");
        Ok(Self {
            topology,
            file: directory.join("doctor.toml"),
            socket: directory.join("lb.sock"),
            usual: Config {
                interfaces: "\"eth0\", \"eth1\"",
                more: String::new(),
                vip: "192.0.2.10:80",
                mode: "full-nat",
                service: "",
                backend: "10.0.0.11:8080",
                pins: pins.display().to_string(),
            },
        })
    }

    fn write(&self, config: &Config) -> Result<()> {
        let Config {
            interfaces,
            more,
            vip,
            mode,
            service,
            backend,
            pins,
        } = config;
        let socket = self.socket.display();
        let toml = format!(
            "interfaces = [{interfaces}]\nsocket = \"{socket}\"\npin-directory = \
             \"{pins}\"\n{more}\n[[service]]\nname = \"web\"\naddress = \"{vip}\"\nmode = \
             \"{mode}\"\n{service}\n[[service.backend]]\naddress = \"{backend}\"\n"
        );
        fs::write(&self.file, toml)?;
        Ok(())
    }

    /// The words of what is found, by a command that says the same in JSON and in its status.
    fn found_by(&self, command: &mut Command) -> Result<BTreeSet<String>> {
        let output = command.output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        let report: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("no JSON; it says: {stderr}"))?;
        let findings = report["findings"].as_array().context("findings")?;
        let is_ill = findings
            .iter()
            .any(|finding| finding["severity"] == "error");
        ensure!(output.status.code() == Some(i32::from(is_ill)), "{report}");
        let word = |finding: &Value| {
            let has_hint = finding["hint"]
                .as_str()
                .is_some_and(|hint| !hint.is_empty());
            ensure!(has_hint && finding["message"].is_string(), "{finding}");
            Ok(finding["id"].as_str().context("an id")?.to_owned())
        };
        findings.iter().map(word).collect()
    }

    fn found(&self, config: &Config) -> Result<BTreeSet<String>> {
        self.write(config)?;
        let mut command = self.topology.lb.command(&programs::paths().lb);
        command
            .args(["doctor", "--json", "--config"])
            .arg(&self.file);
        self.found_by(&mut command)
    }

    /// Plants a problem in the configuration, on the host, or in both. It must be found where it
    /// was not before, and not after `mend`.
    fn plant(
        &self,
        id: &str,
        change: impl Fn(&mut Config),
        plant: &Step,
        mend: &Step,
    ) -> Result<()> {
        let mut config = self.usual.clone();
        let host = &self.topology.lb;
        let before = self.found(&config)?;
        ensure!(
            !before.contains(id),
            "`{id}` is found before it is there: {before:?}"
        );
        change(&mut config);
        plant(host).with_context(|| format!("planting `{id}`"))?;
        let found = self.found(&config)?;
        ensure!(found.contains(id), "`{id}` is not found, but {found:?}");
        mend(host).with_context(|| format!("mending `{id}`"))?;
        let after = self.found(&self.usual)?;
        ensure!(after == before, "`{id}` has left {after:?} of {before:?}");
        Ok(())
    }
}

type Step = dyn Fn(&Host) -> Result<()>;

fn nothing(_: &Host) -> Result<()> {
    Ok(())
}

fn ip(words: &'static str) -> impl Fn(&Host) -> Result<()> {
    move |host| host.ip(words).map(drop)
}

fn sysctl(key: &'static str, value: &'static str) -> impl Fn(&Host) -> Result<()> {
    move |host| host.sysctl(key, value)
}

fn run(words: &'static str) -> impl Fn(&Host) -> Result<()> {
    move |host| {
        let mut words = words.split_whitespace();
        let mut command = host.command(words.next().context("a command")?);
        let output = command.args(words).output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

/// Has the kernel look for the host that has 198.51.100.77.
fn find_neighbour(host: &Host) -> Result<()> {
    const NEIGHBOUR: &str = "198.51.100.77";
    host.enter(|| -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        // The discard port.
        socket.send_to(&[0], (NEIGHBOUR, 9))?;
        Ok(())
    })?;
    let deadline = Instant::now() + PATIENCE;
    while !host
        .ip(&format!("neigh show {NEIGHBOUR}"))?
        .contains("lladdr")
    {
        ensure!(Instant::now() < deadline, "nobody answers");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
fn planted_problems_are_found() -> Result<()> {
    let (topology, _servers) = standard("doctor", TopologyOptions::default())?;
    let site = Site::new(&topology)?;
    let host = &topology.lb;

    // Of the configuration.
    let same = |_: &mut Config| {};
    site.plant("config", |c| c.mode = "magic", &nothing, &nothing)?;
    site.plant(
        "memory",
        |c| c.more = "limits.flows = 67108864\nlimits.embryonic = 16777216".into(),
        &nothing,
        &nothing,
    )?;
    site.plant(
        "bpf-file-system",
        |c| c.pins = "/run/lb-doctor".into(),
        &nothing,
        &nothing,
    )?;
    site.plant(
        "interface-missing",
        |c| c.interfaces = "\"eth0\", \"eth7\"",
        &nothing,
        &nothing,
    )?;
    site.plant(
        "tunnel-mtu",
        |c| (c.mode, c.backend) = ("ipip", "10.0.0.11"),
        &nothing,
        &nothing,
    )?;
    site.plant(
        "source-ports",
        |c| c.service = "source-ports = \"1024-40000\"",
        &nothing,
        &nothing,
    )?;
    site.plant(
        "no-route",
        |c| c.backend = "203.0.113.77:80",
        &nothing,
        &nothing,
    )?;
    site.plant(
        "backend-local",
        |c| c.backend = "10.0.0.1:80",
        &nothing,
        &nothing,
    )?;

    // Of interfaces.
    site.plant(
        "interface-down",
        |c| c.interfaces = "\"eth0\", \"spare\"",
        &ip("link add spare type veth peer name spare-peer"),
        &ip("link del spare"),
    )?;
    let other = topology.lab.host("other")?;
    site.plant(
        "xdp-occupied",
        |c| c.interfaces = "\"eth0\", \"taken\"",
        &move |host| {
            Link::between(
                End::of(host, "taken").takes_xdp_frames(),
                End::of(&other, "eth0"),
            )
            .up()
        },
        &ip("link del taken"),
    )?;
    // Of the network stack.
    site.plant(
        "rp-filter",
        same,
        &sysctl("net/ipv4/conf/eth0/rp_filter", "1"),
        &sysctl("net/ipv4/conf/eth0/rp_filter", "0"),
    )?;
    let nat = |c: &mut Config| c.mode = "nat";
    site.plant(
        "ip-forwarding",
        nat,
        &sysctl("net/ipv4/ip_forward", "0"),
        &sysctl("net/ipv4/ip_forward", "1"),
    )?;
    site.plant(
        "send-redirects",
        nat,
        &sysctl("net/ipv4/conf/all/send_redirects", "1"),
        &sysctl("net/ipv4/conf/all/send_redirects", "1"),
    )?;
    site.plant(
        "packet-filter",
        same,
        &run("nft add table inet doctor"),
        &run("nft delete table inet doctor"),
    )?;
    site.plant(
        "service-address-local",
        same,
        &ip("address add 192.0.2.10/32 dev lo"),
        &ip("address del 192.0.2.10/32 dev lo"),
    )?;
    // Another host answers where the balancer's network looks for a service address.
    topology
        .client
        .ip("address add 198.51.100.77/32 dev eth0")?;
    site.plant(
        "duplicate-address",
        |c| c.vip = "198.51.100.77:80",
        &find_neighbour,
        &ip("neigh flush dev eth0"),
    )?;
    site.plant(
        "ipv6-disabled",
        |c| (c.vip, c.backend) = ("[2001:db8:2::10]:80", "[2001:db8:3::11]:8080"),
        &sysctl("net/ipv6/conf/all/disable_ipv6", "1"),
        &sysctl("net/ipv6/conf/all/disable_ipv6", "0"),
    )?;

    // Of the process.
    site.write(&site.usual)?;
    let checked = Config {
        service: "[service.health]\ntype = \"tcp\"",
        ..site.usual.clone()
    };
    site.write(&checked)?;
    let mut command = host.command("prlimit");
    command
        .arg("--nofile=100:100")
        .arg(&programs::paths().lb)
        .args(["doctor", "--json", "--config"])
        .arg(&site.file);
    let found = site.found_by(&mut command)?;
    ensure!(found.contains("open-files"), "{found:?}");
    Ok(())
}

#[test]
fn problems_of_a_balancer_are_found() -> Result<()> {
    let (topology, _servers) = standard("doctor-running", TopologyOptions::default())?;
    let site = Site::new(&topology)?;
    let host = &topology.lb;
    let services = http_of_each_kind(&topology);
    let mut balancer = Balancer::start(&topology, &programs::paths().lb, &services)?;
    let mut usual = site.found(&site.usual)?;
    usual.retain(|id| id != "receive-queues" && id != "packet-filter");
    ensure!(usual.is_empty(), "nothing hurts here, but {usual:?}");

    balancer.lb("backend add full-nat-v4 10.0.0.99:8080")?;
    balancer.wait_until("the kernel has given up", |status| {
        let mut backends = status.services.iter().flat_map(|service| &service.backends);
        backends.any(|backend| backend.next_hop.state == "no-neighbour")
    })?;
    let found = site.found(&site.usual)?;
    ensure!(found.contains("next-hop"), "{found:?}");

    host.ip("link delete dev eth0")?;
    balancer.wait_until("eth0 is shown as gone", |status| {
        status.interfaces[0].state == "gone"
    })?;
    let found = site.found(&site.usual)?;
    ensure!(found.contains("not-attached"), "{found:?}");

    balancer.process().kill()?;
    let found = site.found(&site.usual)?;
    ensure!(found.contains("no-daemon"), "{found:?}");
    Ok(())
}

#[test]
fn the_slow_mode_is_found() -> Result<()> {
    let (topology, _servers) = standard("doctor-generic", TopologyOptions::default())?;
    let mut site = Site::new(&topology)?;
    site.usual.more = "limits.flows = 65536".into();
    site.write(&site.usual)?;
    let mut command = topology.lb.command(&programs::paths().lb);
    command
        .args(["run", "--xdp-mode", "generic", "--config"])
        .arg(&site.file);
    let mut process = topology.lb.spawn("lb", command)?;
    process.wait_for_log("listening")?;
    process.wait_for_log("attached interface=eth1")?;
    let found = site.found(&site.usual)?;
    ensure!(
        found.contains("xdp-generic"),
        "{found:?}; {}",
        process.log()
    );
    process.kill()
}
