//! A balancer on one link, with all modes.

use std::{
    collections::BTreeSet,
    fmt, fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_lab::{
    Backend, Balancer, End, Health, Host, Lab, Link, Load, Mode, Process, Service, Topology,
    http::{self, Connection, Upload},
    pattern, port, udp,
};

use crate::programs;

/// Longest wait for an answer, for an emulated processor. Only a test that fails waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked whether a bond has another active interface.
const POLL: Duration = Duration::from_millis(100);

/// Connections to each service, and flows of UDP.
const FLOWS: u64 = 24;
/// Bytes of a transfer each way.
const LENGTH: u64 = 200_000;
/// Payload that fits into a packet of clients, in bytes.
const UNFRAGMENTED: usize = 1_452;
/// Payload that does not.
const FRAGMENTED: usize = 4_000;
/// Stands for the port that the client asked for, in the description of a [`Service`].
const CLIENTS_PORT: u16 = 0;
/// MTU of the clients' routes: what they send is to have room in a tunnel.
const OUTER_MTU: u32 = 1_500;
/// MTU of the networks: room for every tunnel.
pub(crate) const INNER_MTU: u32 = 1_600;
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
    /// A VLAN for each network on a bond.
    VlanOnBond,
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

/// A service address, and how packets to it are forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Vip {
    address: IpAddr,
    mode: Mode,
    crossed: bool,
}

impl Vip {
    /// One of each family, for each way.
    fn all() -> impl Iterator<Item = Self> {
        WAYS.into_iter()
            .zip(10_u8..)
            .flat_map(|((mode, crossed), last)| {
                let addresses: [IpAddr; 2] = [
                    [192, 0, 2, last].into(),
                    [0x2001, 0xdb8, 2, 0, 0, 0, 0, last.into()].into(),
                ];
                addresses.map(|address| Self {
                    address,
                    mode,
                    crossed,
                })
            })
    }

    fn at(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    /// HTTP, and the two services over UDP on a range of ports.
    fn services(self, topology: &Topology) -> [Service; 2] {
        let Self { mode, crossed, .. } = self;
        let http = self.at(port::HTTP);
        let echo = self.at(port::ECHO);
        let http = Service::http(&format!("{self}-http"), topology, http, mode);
        let udp = Service::udp(&format!("{self}-udp"), topology, echo, mode, CLIENTS_PORT)
            .on(&format!("{echo}-{}", port::WHO));
        [http, udp].map(|service| Service {
            crossed,
            health: HEALTH,
            ..service
        })
    }
}

/// `gue-4in6`.
impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            mode,
            crossed,
        } = self;
        let families = match (address.is_ipv4(), crossed) {
            (true, false) => "4",
            (false, false) => "6",
            (true, true) => "4in6",
            (false, true) => "6in4",
        };
        write!(f, "{mode}-{families}")
    }
}

impl Site {
    pub(crate) fn new(name: &str, uplink: Uplink) -> Result<Self> {
        let topology = topology(Lab::new(name)?, uplink)?;
        let paths = programs::paths();
        let servers = topology.start_servers(&paths.server)?;
        let services: Vec<_> = Vip::all().flat_map(|vip| vip.services(&topology)).collect();
        let balancer = Balancer::start(&topology, &paths.lb, &services)?;
        Ok(Self {
            topology,
            balancer,
            _servers: servers,
        })
    }

    /// Connections to every service over TCP.
    pub(crate) fn connect(&self) -> Result<Vec<Open>> {
        let open = |vip: Vip| Open::to(vip.at(port::HTTP)).with_context(|| vip.to_string());
        self.topology
            .client
            .enter(|| Vip::all().map(open).collect())
    }

    /// Sends requests, files and datagrams by every service; all must come, to both backends,
    /// and none be dropped.
    pub(crate) fn carry(&self) -> Result<()> {
        let before = self.balancer.status()?.drops;
        for vip in Vip::all() {
            let carry = || {
                self.carry_tcp(vip.at(port::HTTP))?;
                self.carry_udp(vip)
            };
            self.topology
                .client
                .enter(carry)
                .with_context(|| vip.to_string())?;
        }
        let drops = self.balancer.status()?.drops;
        ensure!(drops == before, "before {before:?}, now {drops:?}");
        let backends = self.topology.backends.iter().map(|backend| &backend.host);
        for host in backends.chain([&self.topology.client]) {
            let wrong = host.snmp()?.checksum_errors();
            ensure!(wrong == 0, "{wrong} wrong checksums at {}", host.name());
        }
        Ok(())
    }

    fn carry_tcp(&self, server: SocketAddr) -> Result<()> {
        // Where nothing comes through, one that waits is enough.
        http::get(server, "/", PATIENCE)?;
        let load = Load {
            threads: 2,
            timeout: PATIENCE,
            ..Load::new(server, FLOWS)
        };
        let report = load.run().into_result()?;
        let backends = report.connections.len();
        ensure!(backends == self.topology.backends.len(), "{report:?}");
        http::Transfer::begin(server, LENGTH, u64::MAX, PATIENCE)?.finish()?;
        Upload::begin(server, LENGTH, PATIENCE)?.finish()?;
        Ok(())
    }

    fn carry_udp(&self, vip: Vip) -> Result<()> {
        let who = |_| Ok(udp::who(vip.at(port::WHO), PATIENCE)?.0);
        let backends = (0..FLOWS).map(who).collect::<Result<BTreeSet<_>>>()?;
        ensure!(
            backends.len() == self.topology.backends.len(),
            "{backends:?}"
        );
        let payload = pattern::bytes(FRAGMENTED);
        for length in [0, 1, UNFRAGMENTED, FRAGMENTED] {
            let socket = udp::connect(vip.at(port::ECHO), PATIENCE)?;
            udp::echo(&socket, &payload[..length])?;
        }
        Ok(())
    }

    /// Waits until the balancer's bond uses this interface, and what comes there is forwarded.
    pub(crate) fn wait_for_active(&self, interface: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.active_interface()? != interface {
            ensure!(
                Instant::now() < deadline,
                "the bond does not use {interface}"
            );
            thread::sleep(POLL);
        }
        self.settle().with_context(|| format!("by {interface}"))
    }

    /// Takes a link into the bonds of the balancer and the switch, in place of another one.
    pub(crate) fn exchange(&self, comes: [&str; 2], goes: [&str; 2]) -> Result<()> {
        let hosts = [&self.topology.lb, &self.topology.switch];
        for (host, [comes, goes]) in hosts
            .into_iter()
            .zip([[comes[0], goes[0]], [comes[1], goes[1]]])
        {
            join_bond(host, comes)?;
            host.ip(&format!("link set dev {goes} nomaster"))?;
        }
        for (host, interface) in hosts.into_iter().zip(comes) {
            let deadline = Instant::now() + PATIENCE;
            while !is_used_by_bond(host, interface)? {
                ensure!(
                    Instant::now() < deadline,
                    "the bond does not use {interface}"
                );
                thread::sleep(POLL);
            }
        }
        self.settle()
    }

    /// Returns when the balancer has heard of changes, which netlink tells it after they
    /// happened: TCP repeats itself until then.
    fn settle(&self) -> Result<()> {
        let vip = Vip::all().next().context("there are services")?;
        self.topology
            .client
            .enter(|| self.carry_tcp(vip.at(port::HTTP)))
    }

    fn active_interface(&self) -> Result<String> {
        let json = self.topology.lb.ip("-json -details link show dev bond0")?;
        let links: serde_json::Value = serde_json::from_str(&json)?;
        let active = &links[0]["linkinfo"]["info_data"]["active_slave"];
        Ok(active.as_str().unwrap_or_default().to_owned())
    }

    pub(crate) fn stop(self) -> Result<()> {
        self.balancer.stop()
    }
}

/// What goes on while the network changes.
pub(crate) struct Open {
    connection: Connection,
    upload: Upload,
}

impl Open {
    fn to(server: SocketAddr) -> Result<Self> {
        let mut connection = Connection::open(server, PATIENCE)?;
        connection.get("/", false)?;
        let mut upload = Upload::begin(server, LENGTH, PATIENCE)?;
        upload.advance(LENGTH / 2)?;
        Ok(Self { connection, upload })
    }

    /// Every byte must come, and the answers.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.connection.get("/", true)?;
        self.upload.finish()?;
        Ok(())
    }
}

/// Whether the bond that an interface belongs to has found its link up.
fn is_used_by_bond(host: &Host, interface: &str) -> Result<bool> {
    let json = host.ip(&format!("-json -details link show dev {interface}"))?;
    let links: serde_json::Value = serde_json::from_str(&json)?;
    let state = &links[0]["linkinfo"]["info_slave_data"];
    Ok(state["mii_status"] == "UP" && state["state"] == "ACTIVE")
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
        Uplink::Vlan | Uplink::QinQ | Uplink::VlanOnBond => vlans(&lb, &switch, uplink)?,
        Uplink::Bond(mode) => {
            bond(&lb, &switch, mode, INNER_MTU)?;
            number(&lb, "bond0", &NETWORKS)?;
            match mode {
                "active-backup" => ip(
                    &switch,
                    "link set dev lb1 master inner\nlink set dev lb2 master inner",
                )?,
                _ => ip(&switch, "link set dev bond0 master inner")?,
            }
            &["bond0"]
        }
    };
    // Where both networks are on one link they are on one bridge, too.
    let is_split = !matches!(uplink, Uplink::Plain | Uplink::Bond(_));
    Link::between(
        End::of(&client, "eth0")
            .address("198.51.100.2/24")
            .address("2001:db8:1::2/64"),
        End::of(&switch, "client").port_of(if is_split { "outer" } else { "inner" }),
    )
    .mtu(INNER_MTU)
    .up()?;
    for gateway in ["198.51.100.1", "2001:db8:1::1"] {
        client.ip(&format!("route add default via {gateway} mtu {OUTER_MTU}"))?;
    }
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
    let on_bond = uplink == Uplink::VlanOnBond;
    if on_bond {
        bond(lb, switch, "balance-xor", LINK_MTU)?;
    } else {
        Link::between(
            End::of(lb, "eth0"),
            End::of(switch, "lb").takes_xdp_frames(),
        )
        .mtu(LINK_MTU)
        .up()?;
    }
    let interfaces: [(&Host, &str, &[&str]); 2] = if on_bond {
        [
            (lb, "bond0", &["eth0", "eth1"]),
            (switch, "bond0", &["lb1", "lb2"]),
        ]
    } else {
        [(lb, "eth0", &["eth0"]), (switch, "lb", &["lb"])]
    };
    for (host, link, cards) in interfaces {
        for card in cards {
            keep_tags_in_frames(host, card)?;
        }
        let below = if uplink == Uplink::QinQ {
            ip(
                host,
                &format!(
                    "link add link {link} name service type vlan proto 802.1ad id 100\n\
                     link set dev service up"
                ),
            )?;
            "service"
        } else {
            link
        };
        for (_, id) in NAMES {
            ip(
                host,
                &format!(
                    "link add link {below} name vlan{id} mtu {INNER_MTU} type vlan id {id}\n\
                     link set dev vlan{id} up"
                ),
            )?;
        }
    }
    for ((bridge, id), network) in NAMES.into_iter().zip(NETWORKS) {
        switch.ip(&format!("link set dev vlan{id} master {bridge}"))?;
        number(lb, &format!("vlan{id}"), &[network])?;
    }
    Ok(if on_bond { &["bond0"] } else { &["eth0"] })
}

/// As `README.md` says: tags are to be in the frame where XDP sees it.
fn keep_tags_in_frames(host: &Host, interface: &str) -> Result<()> {
    let mut offload = host.command("ethtool");
    offload.args(["-K", interface]);
    for feature in [
        "rxvlan",
        "txvlan",
        "rx-vlan-stag-hw-parse",
        "tx-vlan-stag-hw-insert",
    ] {
        offload.args([feature, "off"]);
    }
    ensure!(offload.status()?.success(), "ethtool failed");
    Ok(())
}

/// A bond of two links, with the same at the switch unless only one end chooses.
fn bond(lb: &Host, switch: &Host, mode: &str, mtu: u32) -> Result<()> {
    for (ours, theirs) in [("eth0", "lb1"), ("eth1", "lb2")] {
        Link::between(
            End::of(lb, ours),
            End::of(switch, theirs).takes_xdp_frames(),
        )
        .mtu(mtu)
        .up()?;
    }
    let options = match mode {
        "active-backup" => "",
        "802.3ad" => "xmit_hash_policy layer3+4 lacp_rate fast",
        _ => "xmit_hash_policy layer3+4",
    };
    let ends = [(lb, ["eth0", "eth1"]), (switch, ["lb1", "lb2"])];
    let ends = if mode == "active-backup" {
        &ends[..1]
    } else {
        &ends
    };
    for (host, ports) in ends {
        host.ip(&format!(
            "link add bond0 type bond mode {mode} miimon 100 {options}"
        ))?;
        for port in ports {
            join_bond(host, port)?;
        }
        host.ip(&format!("link set dev bond0 mtu {mtu} up"))?;
    }
    Ok(())
}

/// Makes an interface one of `bond0`.
fn join_bond(host: &Host, interface: &str) -> Result<()> {
    ip(
        host,
        &format!("link set dev {interface} down\nlink set dev {interface} master bond0"),
    )
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
    let service_addresses: Vec<_> = Vip::all().map(|vip| vip.address).collect();
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
