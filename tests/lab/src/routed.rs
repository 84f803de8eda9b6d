//! The lab of the forwarding modes: routers on both sides of the balancer, and for
//! modes whose replies do not come back through it a way around it.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{Backend, End, Host, Lab, Link, Mode, Process, Topology};

/// How long `lb decap` may take to attach.
const PATIENCE: Duration = Duration::from_secs(20);

/// What may differ between routed topologies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutedOptions {
    /// The mode that the backends are set up for.
    pub mode: Mode,
    /// Number of backends, 1 to 80.
    pub backends: u8,
    /// MTU of the links between client and balancer and of the way around it, in bytes of
    /// an IP packet.
    pub mtu: u32,
    /// MTU of the links between balancer and backends.
    pub inner_mtu: u32,
}

impl RoutedOptions {
    /// Two backends, and links of this MTU; between balancer and backends they are as much
    /// wider as the tunnels of the mode need.
    #[must_use]
    pub fn new(mode: Mode, mtu: u32) -> Self {
        Self {
            mode,
            backends: 2,
            mtu,
            inner_mtu: mtu + mode.overhead(),
        }
    }
}

/// A client, a balancer, and backends, with routers between them:
///
/// ```text
///                        +-------------------------- (back) -------------------------+
///                        |                                                           |
///     client eth0 --- eth0 r1 eth1 --- eth0 lb eth1 -- switch -- eth0 r2 (lan) --- eth0 b1 eth1
///                                           eth2 ---------------- eth1              eth0 b2 eth1
///
///     client  198.51.100.2   2001:db8:1::2
///     r1      198.51.100.1   2001:db8:1::1     eth0
///             203.0.113.1    2001:db8:4::1     eth1
///             10.0.2.1       2001:db8:6::1     back, a bridge
///     lb      203.0.113.2    2001:db8:4::2     eth0
///             10.0.0.1       2001:db8:3::1     eth1
///             10.0.3.1       2001:db8:7::1     eth2
///     r2      10.0.0.2       2001:db8:3::2     eth0
///             10.0.3.2       2001:db8:7::2     eth1
///             10.0.1.1       2001:db8:5::1     lan, a bridge
///     b1      10.0.1.11      2001:db8:5::11    eth0
///             10.0.2.11      2001:db8:6::11    eth1, only for `dsr`, `ipip` and `gue`
/// ```
///
/// For `dsr`, `eth0` of the backends is at the switch: 10.0.0.11, 2001:db8:3::11.
///
/// `r1` routes service addresses to `lb`, whose kernel drops what no XDP program takes of
/// them, as it would only go back to `r1`. Everybody's default route leads to the
/// client: from backends by `r2` and `lb`, or in the modes whose replies go direct by
/// `back`. There, the backends have the service addresses on `lo`, and answer no ARP for
/// them. Receivers merge no segments, and nobody probes for black holes of path MTU
/// discovery (RFC 4821).
#[derive(Debug)]
pub struct Routed {
    /// Client, balancer, switch and backends.
    pub topology: Topology,
    /// The router between client and balancer.
    pub r1: Host,
    /// The router between balancer and backends.
    pub r2: Host,
    /// What it was made with.
    pub options: RoutedOptions,
}

impl Routed {
    /// Service addresses for tunnels to the backends' addresses of the other family.
    pub const CROSSED: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 11)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x11)),
    ];
    /// Networks for services on prefixes.
    pub const PREFIXES: [&str; 2] = ["192.0.2.32/28", "2001:db8:2::20/124"];
    /// The addresses of [`Routed::PREFIXES`] that servers listen on.
    pub const OF_PREFIXES: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 45)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x2d)),
    ];
    /// The addresses of [`Routed::PREFIXES`] that are checked: their first.
    const CHECKED: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 33)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x21)),
    ];
    /// The networks of the service addresses.
    const VIPS: [&str; 2] = ["192.0.2.0/24", "2001:db8:2::/64"];

    /// Makes the hosts and links in `lab`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a part of it.
    pub fn new(lab: Lab, options: RoutedOptions) -> Result<Self> {
        ensure!(
            (1..=80).contains(&options.backends),
            "a routed topology has 1 to 80 backends"
        );
        let client = end_host(&lab, "client")?;
        let r1 = router(&lab, "r1")?;
        let lb = router(&lab, "lb")?;
        let switch = lab.host("switch")?;
        let r2 = router(&lab, "r2")?;
        bridge(&switch, "br0", options.inner_mtu)?;
        bridge(&r1, "back", options.mtu)?;
        bridge(&r2, "lan", options.inner_mtu)?;
        r1.ip_batch(
            "address add 10.0.2.1/24 dev back\naddress add 2001:db8:6::1/64 dev back nodad\n",
        )?;
        r2.ip_batch(
            "address add 10.0.1.1/24 dev lan\naddress add 2001:db8:5::1/64 dev lan nodad\n",
        )?;

        Link::between(
            End::of(&client, "eth0")
                .address("198.51.100.2/24")
                .address("2001:db8:1::2/64"),
            End::of(&r1, "eth0")
                .address("198.51.100.1/24")
                .address("2001:db8:1::1/64"),
        )
        .mtu(options.mtu)
        .up()?;
        Link::between(
            End::of(&r1, "eth1")
                .address("203.0.113.1/24")
                .address("2001:db8:4::1/64")
                .takes_xdp_frames(),
            End::of(&lb, "eth0")
                .address("203.0.113.2/24")
                .address("2001:db8:4::2/64"),
        )
        .mtu(options.mtu)
        .up()?;
        Link::between(
            End::of(&lb, "eth1")
                .address("10.0.0.1/24")
                .address("2001:db8:3::1/64"),
            End::of(&switch, "lb").port_of("br0").takes_xdp_frames(),
        )
        .mtu(options.inner_mtu)
        .up()?;
        Link::between(
            End::of(&r2, "eth0")
                .address("10.0.0.2/24")
                .address("2001:db8:3::2/64"),
            End::of(&switch, "r2").port_of("br0"),
        )
        .mtu(options.inner_mtu)
        .up()?;
        Link::between(
            End::of(&lb, "eth2")
                .address("10.0.3.1/24")
                .address("2001:db8:7::1/64"),
            End::of(&r2, "eth1")
                .address("10.0.3.2/24")
                .address("2001:db8:7::2/64")
                .takes_xdp_frames(),
        )
        .mtu(options.inner_mtu)
        .up()?;

        client.ip_batch(
            "route add default via 198.51.100.1\nroute add default via 2001:db8:1::1\n",
        )?;
        // Service addresses and backends; its own networks are more specific.
        r1.ip_batch(
            "route add 192.0.2.0/24 via 203.0.113.2\nroute add 10.0.0.0/16 via 203.0.113.2\n\
             route add 2001:db8::/32 via 2001:db8:4::2\n",
        )?;
        lb.ip_batch(
            "route add default via 203.0.113.1\nroute add default via 2001:db8:4::1\n\
             route add 10.0.1.0/24 via 10.0.0.2\nroute add 2001:db8:5::/64 via 2001:db8:3::2\n\
             route add blackhole 192.0.2.0/24\nroute add blackhole 2001:db8:2::/64\n",
        )?;
        r2.ip_batch("route add default via 10.0.0.1\nroute add default via 2001:db8:3::1\n")?;

        let mut routed = Self {
            topology: Topology {
                lab,
                client,
                lb,
                switch,
                backends: Vec::new(),
                interfaces: &["eth0", "eth1", "eth2"],
            },
            r1,
            r2,
            options,
        };
        for number in 1..=options.backends {
            let backend = routed.make_backend(number)?;
            routed.topology.backends.push(backend);
        }
        Ok(routed)
    }

    /// Makes a backend.
    fn make_backend(&self, number: u8) -> Result<Backend> {
        let options = self.options;
        let name = format!("b{number}");
        let host = end_host(&self.topology.lab, &name)?;
        let last = 10 + number;
        let (v4_net, v6_net) = match self.options.mode {
            Mode::Dsr => ("10.0.0", "2001:db8:3:"),
            _ => ("10.0.1", "2001:db8:5:"),
        };
        // The same digits in both, so that people find them.
        let (v4, v6) = (format!("{v4_net}.{last}"), format!("{v6_net}:{last}"));
        if self.options.mode.replies_direct() {
            // Before there is an interface: the service address is for `lo` alone.
            for (key, value) in [("arp_ignore", "1"), ("arp_announce", "2")] {
                host.sysctl(&format!("net/ipv4/conf/all/{key}"), value)?;
            }
            // A local route makes no IPv6 address that a server could listen on.
            host.sysctl("net/ipv6/ip_nonlocal_bind", "1")?;
        }
        let (port, bridge) = self.lan();
        Link::between(
            End::of(&host, "eth0")
                .address(&format!("{v4}/24"))
                .address(&format!("{v6}/64")),
            End::of(port, &name).port_of(bridge),
        )
        .mtu(options.inner_mtu)
        .up()?;

        let mut service_addresses: Vec<IpAddr> = Vec::new();
        let mut batch = String::new();
        if self.options.mode.replies_direct() {
            Link::between(
                End::of(&host, "eth1")
                    .address(&format!("10.0.2.{last}/24"))
                    .address(&format!("2001:db8:6::{last}/64")),
                End::of(&self.r1, &name).port_of("back"),
            )
            .mtu(options.mtu)
            .up()?;
            service_addresses = vec![Topology::VIP4.into(), Topology::VIP6.into()];
            service_addresses.extend(Self::CROSSED);
            for address in &service_addresses {
                let nodad = if address.is_ipv6() { "nodad" } else { "" };
                writeln!(batch, "address add {address} dev lo {nodad}")?;
            }
            service_addresses.extend(Self::OF_PREFIXES);
            service_addresses.extend(Self::CHECKED);
            for prefix in Self::PREFIXES {
                writeln!(batch, "route add local {prefix} dev lo")?;
            }
            batch.push_str("route add default via 10.0.2.1\nroute add default via 2001:db8:6::1\n");
            if self.options.mode != Mode::Dsr {
                // The answers to health checks go back as they came.
                batch.push_str(
                    "route add 10.0.0.0/24 via 10.0.1.1\nroute add 2001:db8:3::/64 via 2001:db8:5::1\n",
                );
            }
        } else {
            batch.push_str("route add default via 10.0.1.1\nroute add default via 2001:db8:5::1\n");
        }
        host.ip_batch(&batch)?;
        Ok(Backend {
            host,
            v4: v4.parse()?,
            v6: v6.parse()?,
            service_addresses,
        })
    }

    /// The host and the bridge of it that `eth0` of the backends is at.
    pub(crate) fn lan(&self) -> (&Host, &'static str) {
        match self.options.mode {
            Mode::Dsr => (&self.topology.switch, "br0"),
            _ => (&self.r2, "lan"),
        }
    }

    /// Lets the backends unwrap what comes through tunnels, by `lb decap` of the program at
    /// this path, if the mode has any.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn unwrap_tunnels(&self, program: &Path) -> Result<Vec<Process>> {
        if !self.options.mode.is_tunnel() {
            return Ok(Vec::new());
        }
        let unwrap = |backend: &Backend| {
            let socket = format!("{}-decap.sock", backend.host.name());
            let mut command = backend.host.command(program);
            command.args(["decap", "--interface", "eth0"]);
            for address in [Topology::VIP4.into(), Topology::VIP6.into()]
                .iter()
                .chain(&Self::CROSSED)
            {
                command.args(["--vip", &IpAddr::to_string(address)]);
            }
            for prefix in Self::PREFIXES {
                command.args(["--vip", prefix]);
            }
            command
                .args(["--from", "10.0.0.0/24", "--from", "2001:db8:3::/64"])
                .arg("--socket")
                .arg(self.topology.lab.directory().join(socket));
            let mut process = backend.host.spawn("decap", command)?;
            let deadline = Instant::now() + PATIENCE;
            while !backend.host.ip("link show dev eth0")?.contains("xdp") {
                ensure!(
                    process.is_running()? && Instant::now() < deadline,
                    "`lb decap` has ended or does not attach; its log:\n{}",
                    process.log()
                );
            }
            Ok(process)
        };
        self.topology.backends.iter().map(unwrap).collect()
    }

    /// The interfaces to capture on: the client's, the far ends of the balancer's (its own
    /// show nothing, as XDP comes before the capture), and those of the backends, seen from
    /// the router or switch for the same reason.
    #[must_use]
    pub fn vantage_points(&self) -> Vec<(&Host, &str)> {
        let Topology {
            client,
            switch,
            backends,
            ..
        } = &self.topology;
        let mut points = vec![(client, "eth0"), (&self.r1, "eth1"), (switch, "lb")];
        for backend in backends {
            points.push((self.lan().0, backend.host.name()));
            if self.options.mode.replies_direct() {
                points.push((&self.r1, backend.host.name()));
            }
        }
        points
    }

    /// Lets the balancer's kernel, without a balancer, route the service addresses to `b1`.
    /// That is what `dsr` does, and what is left of a tunnel after its end; so this lab
    /// can be tried by itself in those modes.
    ///
    /// # Errors
    ///
    /// When there are such routes already.
    pub fn route_to_first_backend(&self) -> Result<()> {
        let backend = &self.topology.backends[0];
        let own: [IpAddr; 2] = [backend.v4.into(), backend.v6.into()];
        for (vips, own) in Self::VIPS.iter().zip(own) {
            if self.options.mode != Mode::Dsr {
                self.r2.ip(&format!("route add {vips} via {own}"))?;
            }
            let next = match (self.options.mode, own) {
                (Mode::Dsr, own) => own.to_string(),
                (_, IpAddr::V4(_)) => "10.0.0.2".to_owned(),
                (_, IpAddr::V6(_)) => "2001:db8:3::2".to_owned(),
            };
            self.topology
                .lb
                .ip(&format!("route replace {vips} via {next}"))?;
        }
        Ok(())
    }
}

/// A host where transfers begin and end. It relies on ICMP to learn what a path takes, as
/// kernels do by default, and lets root ping by sockets of its own. Its sockets hold at most
/// a megabyte each way, so that what is not read is soon not sent either.
fn end_host(lab: &Lab, name: &str) -> Result<Host> {
    let host = lab.host(name)?;
    for (key, value) in [
        ("tcp_mtu_probing", "0"),
        ("tcp_rmem", "4096 131072 1048576"),
        ("tcp_wmem", "4096 65536 1048576"),
        ("ping_group_range", "0 0"),
    ] {
        host.sysctl(&format!("net/ipv4/{key}"), value)?;
    }
    Ok(host)
}

/// A host that forwards what is not for itself, and sends nobody elsewhere.
fn router(lab: &Lab, name: &str) -> Result<Host> {
    let host = lab.host(name)?;
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/default/send_redirects", "0"),
    ] {
        host.sysctl(key, value)?;
    }
    Ok(host)
}

/// A bridge, up.
fn bridge(host: &Host, name: &str, mtu: u32) -> Result<()> {
    host.ip_batch(&format!(
        "link add {name} type bridge stp_state 0 mcast_snooping 0\n\
         link set dev {name} mtu {mtu} up\n"
    ))
}
