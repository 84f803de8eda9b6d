//! A balancer on one link, with all modes.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lb_lab::{
    Backend, Balancer, End, Health, Host, Lab, Link, Load, Mode, Process, Service, Topology, http,
    port,
};

use crate::programs;

/// Longest wait for an answer, for an emulated processor. Only a test that fails waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Connections to each service, each of a flow of its own.
const CONNECTIONS: u64 = 24;
/// Bytes of a transfer each way.
const LENGTH: u64 = 200_000;
/// MTU of what is between client and balancer.
const OUTER_MTU: u32 = 1_500;
/// MTU of what is between balancer and backends: room for every tunnel.
const INNER_MTU: u32 = 1_600;
/// MTU of the link below: room for two tags.
const LINK_MTU: u32 = 1_700;

/// Checks that do not keep an emulated processor busy.
const HEALTH: Health = Health {
    interval_ms: 10_000,
    timeout_ms: 10_000,
    rise: 1,
    fall: 3,
};

/// What the balancer's only link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Uplink {
    /// A link with both networks on it.
    Plain,
    /// A VLAN for each network.
    Vlan,
    /// The same in a service VLAN (IEEE 802.1ad).
    QinQ,
    /// Two links, of a bond in this mode, with both networks on it.
    Bond(&'static str),
}

/// A client, a balancer and two backends at one switch:
///
/// ```text
///     client  198.51.100.2   2001:db8:1::2
///     lb      198.51.100.1   2001:db8:1::1
///             10.0.0.1       2001:db8:3::1
///     b1      10.0.0.11      2001:db8:3::11
///     b2      10.0.0.12      2001:db8:3::12
/// ```
///
/// Each mode has an address of each family, and so has each tunnel to backends of the other
/// family. All backends have all of these on `lo`, and filter reverse paths strictly.
pub(crate) struct Site {
    pub(crate) topology: Topology,
    balancer: Balancer,
    services: Vec<Service>,
    _servers: Vec<Process>,
}

/// The addresses of the balancer towards clients, and towards backends.
const NETWORKS: [[&str; 2]; 2] = [
    ["198.51.100.1/24", "2001:db8:1::1/64"],
    ["10.0.0.1/24", "2001:db8:3::1/64"],
];

/// The modes, and whether their tunnels are of the other family.
const WAYS: [(Mode, bool); 7] = [
    (Mode::FullNat, false),
    (Mode::Nat, false),
    (Mode::Dsr, false),
    (Mode::Ipip, false),
    (Mode::Gue, false),
    (Mode::Ipip, true),
    (Mode::Gue, true),
];

/// The service addresses of a way.
fn vips(way: usize) -> [IpAddr; 2] {
    let last = 10 + way as u8;
    [
        [192, 0, 2, last].into(),
        [0x2001, 0xdb8, 2, 0, 0, 0, 0, last.into()].into(),
    ]
}

impl Site {
    pub(crate) fn new(name: &str, uplink: Uplink) -> Result<Self> {
        let topology = topology(Lab::new(name)?, uplink)?;
        let paths = programs::paths();
        let servers = topology.start_servers(&paths.server)?;
        let mut services = Vec::new();
        for (way, (mode, crossed)) in WAYS.into_iter().enumerate() {
            for vip in vips(way) {
                let name = format!("{mode}-{way}-{}", if vip.is_ipv4() { "v4" } else { "v6" });
                let address = SocketAddr::new(vip, port::HTTP);
                let service = Service::http(&name, &topology, address, mode);
                services.push(Service {
                    crossed,
                    health: HEALTH,
                    ..service
                });
            }
        }
        let balancer = Balancer::start(&topology, &paths.lb, &services)?;
        Ok(Self {
            topology,
            balancer,
            services,
            _servers: servers,
        })
    }

    /// Where clients reach the services.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let addresses = self.services.iter().map(|service| service.address);
        addresses.collect()
    }

    /// Sends requests and files by every service; all must come, to both backends, and none
    /// be dropped.
    pub(crate) fn carry(&self) -> Result<()> {
        for service in &self.services {
            self.topology
                .client
                .enter(|| self.carry_by(service.address))
                .with_context(|| service.name.clone())?;
        }
        let drops = self.balancer.status()?.drops;
        ensure!(drops.values().all(|packets| *packets == 0), "{drops:?}");
        let backends = self.topology.backends.iter().map(|backend| &backend.host);
        for host in backends.chain([&self.topology.client]) {
            let wrong = host.snmp()?.checksum_errors();
            ensure!(wrong == 0, "{wrong} wrong checksums at {}", host.name());
        }
        Ok(())
    }

    fn carry_by(&self, server: SocketAddr) -> Result<()> {
        let load = Load {
            threads: 2,
            timeout: PATIENCE,
            ..Load::new(server, CONNECTIONS)
        };
        let report = load.run().into_result()?;
        let backends = report.connections.len();
        ensure!(backends == self.topology.backends.len(), "{report:?}");
        http::Transfer::begin(server, LENGTH, u64::MAX, PATIENCE)?.finish()?;
        http::Upload::begin(server, LENGTH, PATIENCE)?.finish()?;
        Ok(())
    }

    /// The interface that the balancer's bond uses.
    pub(crate) fn active_interface(&self) -> Result<String> {
        let json = self.topology.lb.ip("-json -details link show dev bond0")?;
        let links: serde_json::Value = serde_json::from_str(&json)?;
        let active = &links[0]["linkinfo"]["info_data"]["active_slave"];
        Ok(active.as_str().unwrap_or_default().to_owned())
    }

    pub(crate) fn stop(self) -> Result<()> {
        self.balancer.stop()
    }
}

/// Packets that came in by an interface.
pub(crate) fn received(host: &Host, interface: &str) -> Result<u64> {
    let json = host.ip(&format!("-json -statistics link show dev {interface}"))?;
    let links: serde_json::Value = serde_json::from_str(&json)?;
    let packets = links[0]["stats64"]["rx"]["packets"].as_u64();
    packets.with_context(|| format!("{interface} has no statistics"))
}

/// Runs several commands of `ip`, one a line.
fn ip(host: &Host, lines: &str) -> Result<()> {
    for line in lines.lines() {
        host.ip(line)?;
    }
    Ok(())
}

fn topology(lab: Lab, uplink: Uplink) -> Result<Topology> {
    let [client, lb, switch] = ["client", "lb", "switch"].map(|name| lab.host(name));
    let (client, lb, switch) = (client?, lb?, switch?);
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        lb.sysctl(key, "1")?;
    }
    for key in [
        "net/ipv4/conf/all/send_redirects",
        "net/ipv4/conf/default/send_redirects",
    ] {
        lb.sysctl(key, "0")?;
    }
    for bridge in ["outer", "inner"] {
        switch.ip(&format!(
            "link add {bridge} type bridge stp_state 0 mcast_snooping 0"
        ))?;
        switch.ip(&format!("link set dev {bridge} mtu {INNER_MTU} up"))?;
    }
    let interfaces = match uplink {
        Uplink::Plain => plain(&lb, &switch)?,
        Uplink::Vlan | Uplink::QinQ => vlans(&lb, &switch, uplink)?,
        Uplink::Bond(mode) => bond(&lb, &switch, mode)?,
    };
    // Where both networks are on one link they are on one bridge, too.
    let is_split = matches!(uplink, Uplink::Vlan | Uplink::QinQ);
    Link::between(
        End::of(&client, "eth0")
            .address("198.51.100.2/24")
            .address("2001:db8:1::2/64"),
        End::of(&switch, "client").port_of(if is_split { "outer" } else { "inner" }),
    )
    .mtu(OUTER_MTU)
    .up()?;
    ip(
        &client,
        "route add default via 198.51.100.1\nroute add default via 2001:db8:1::1",
    )?;
    let backends = [11, 12]
        .map(|last| backend(&lab, &switch, last))
        .into_iter()
        .collect::<Result<_>>()?;
    Ok(Topology {
        lab,
        client,
        lb,
        switch,
        backends,
        interfaces,
    })
}

/// Gives an interface of the balancer its addresses in a network, or in both.
fn number(lb: &Host, interface: &str, networks: &[[&str; 2]]) -> Result<()> {
    for [v4, v6] in networks {
        lb.ip(&format!("address add {v4} dev {interface}"))?;
        lb.ip(&format!("address add {v6} dev {interface} nodad"))?;
    }
    Ok(())
}

fn plain(lb: &Host, switch: &Host) -> Result<&'static [&'static str]> {
    Link::between(
        End::of(lb, "eth0"),
        End::of(switch, "lb").port_of("inner").takes_xdp_frames(),
    )
    .mtu(INNER_MTU)
    .up()?;
    number(lb, "eth0", &NETWORKS)?;
    Ok(&["eth0"])
}

/// A VLAN interface for each network on both ends of the link, on the service VLAN if there
/// is one.
fn vlans(lb: &Host, switch: &Host, uplink: Uplink) -> Result<&'static [&'static str]> {
    const NAMES: [(&str, u16); 2] = [("outer", 10), ("inner", 20)];
    Link::between(
        End::of(lb, "eth0"),
        End::of(switch, "lb").takes_xdp_frames(),
    )
    .mtu(LINK_MTU)
    .up()?;
    for (host, link) in [(lb, "eth0"), (switch, "lb")] {
        // Tags are to be in the frame where XDP sees it.
        let mut offload = host.command("ethtool");
        offload.args(["-K", link, "txvlan", "off", "rxvlan", "off"]);
        offload.args([
            "tx-vlan-stag-hw-insert",
            "off",
            "rx-vlan-stag-hw-parse",
            "off",
        ]);
        ensure!(offload.status()?.success(), "ethtool failed");
        let below = if uplink == Uplink::QinQ {
            ip(
                host,
                &format!(
                    "link add link {link} name service type vlan proto 802.1ad id 100\nlink set dev service up"
                ),
            )?;
            "service"
        } else {
            link
        };
        for (name, id) in NAMES {
            ip(
                host,
                &format!(
                    "link add link {below} name vlan{id} mtu {INNER_MTU} type vlan id {id}\n\
                     link set dev vlan{id} up"
                ),
            )?;
            if link == "lb" {
                host.ip(&format!("link set dev vlan{id} master {name}"))?;
            }
        }
    }
    for ((_, id), network) in NAMES.into_iter().zip(NETWORKS) {
        number(lb, &format!("vlan{id}"), &[network])?;
    }
    Ok(&["eth0"])
}

/// A bond of two links, with the same at the switch unless only one end chooses.
fn bond(lb: &Host, switch: &Host, mode: &str) -> Result<&'static [&'static str]> {
    for (ours, theirs) in [("eth0", "lb1"), ("eth1", "lb2")] {
        Link::between(
            End::of(lb, ours),
            End::of(switch, theirs).takes_xdp_frames(),
        )
        .mtu(INNER_MTU)
        .up()?;
    }
    let hash = match mode {
        "active-backup" => "",
        "802.3ad" => "xmit_hash_policy layer3+4 lacp_rate fast",
        _ => "xmit_hash_policy layer3+4",
    };
    let join = |host: &Host, ports: [&str; 2]| -> Result<()> {
        host.ip(&format!(
            "link add bond0 type bond mode {mode} miimon 100 {hash}"
        ))?;
        for port in ports {
            host.ip(&format!("link set dev {port} down"))?;
            host.ip(&format!("link set dev {port} master bond0"))?;
        }
        host.ip(&format!("link set dev bond0 mtu {INNER_MTU} up"))?;
        Ok(())
    };
    join(lb, ["eth0", "eth1"])?;
    if mode == "active-backup" {
        for port in ["lb1", "lb2"] {
            switch.ip(&format!("link set dev {port} master inner"))?;
        }
    } else {
        join(switch, ["lb1", "lb2"])?;
        switch.ip("link set dev bond0 master inner")?;
    }
    number(lb, "bond0", &NETWORKS)?;
    Ok(&["bond0"])
}

fn backend(lab: &Lab, switch: &Host, last: u8) -> Result<Backend> {
    let name = format!("b{}", last - 10);
    let host = lab.host(&name)?;
    host.sysctl("net/ipv4/conf/all/rp_filter", "1")?;
    let (v4, v6) = (format!("10.0.0.{last}"), format!("2001:db8:3::{last}"));
    for (key, value) in [("arp_ignore", "1"), ("arp_announce", "2")] {
        host.sysctl(&format!("net/ipv4/conf/all/{key}"), value)?;
    }
    Link::between(
        End::of(&host, "eth0")
            .address(&format!("{v4}/24"))
            .address(&format!("{v6}/64")),
        End::of(switch, &name).port_of("inner"),
    )
    .mtu(INNER_MTU)
    .up()?;
    ip(
        &host,
        "route add default via 10.0.0.1\nroute add default via 2001:db8:3::1",
    )?;
    let service_addresses: Vec<_> = (0..WAYS.len()).flat_map(vips).collect();
    for address in &service_addresses {
        let nodad = if address.is_ipv6() { "nodad" } else { "" };
        host.ip(&format!("address add {address} dev lo {nodad}"))?;
    }
    for line in documented_commands()? {
        let line = line
            .replace("2001:db8:3::11", &v6)
            .replace("10.0.0.11", &v4);
        let output = host.command("sh").args(["-c", &line]).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`{line}`: {error}");
    }
    Ok(Backend {
        host,
        v4: v4.parse()?,
        v6: v6.parse()?,
        service_addresses,
    })
}

/// What `docs/backends.md` says that one is to do to unwrap with the kernel's devices: on the
/// backend 10.0.0.11, 2001:db8:3::11.
fn documented_commands() -> Result<Vec<String>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/backends.md");
    let text = fs::read_to_string(&file)?;
    let section = text
        .split_once("### With the kernel's tunnel devices")
        .and_then(|(_, rest)| rest.split("\n## ").next())
        .with_context(|| format!("{} has no section about it", file.display()))?;
    let code = section.lines().filter_map(|line| line.strip_prefix("    "));
    let commands: Vec<_> = code
        .map(|line| line.split('#').next().unwrap_or_default().trim().to_owned())
        .collect();
    ensure!(!commands.is_empty(), "{} has no commands", file.display());
    Ok(commands)
}
