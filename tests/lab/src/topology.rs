//! The lab that most tests need.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use anyhow::{Context, Result, ensure};

use crate::{End, Host, Lab, Link, Process};

/// Ports that every server listens on.
pub mod port {
    /// HTTP over TCP.
    pub const HTTP: u16 = 8080;
    /// TCP and UDP: what comes is sent back (RFC 862).
    pub const ECHO: u16 = 7;
    /// UDP: answers `NAME CLIENT`, the server's name and the sender's address.
    pub const WHO: u16 = 9;
    /// UDP: answers every DNS query for an address with 192.0.2.53.
    pub const DNS: u16 = 53;
}

/// What may differ between standard topologies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopologyOptions {
    /// Number of backends, 1 to 200.
    pub backends: u8,
    /// MTU of every link, in bytes of an IP packet.
    pub mtu: u32,
}

impl Default for TopologyOptions {
    fn default() -> Self {
        Self {
            backends: 3,
            mtu: Link::DEFAULT_MTU,
        }
    }
}

/// A client, a balancer, and backends behind a switch:
///
/// ```text
///     client eth0 ------ eth0 lb eth1 ------ lb switch b1 ------ eth0 b1
///                                                      b2 ------ eth0 b2
///                                                      b3 ------ eth0 b3
///
///     client  198.51.100.2   2001:db8:1::2
///     lb      198.51.100.1   2001:db8:1::1     eth0
///             10.0.0.1       2001:db8:3::1     eth1
///     b1      10.0.0.11      2001:db8:3::11
///     b2      10.0.0.12      2001:db8:3::12    and so on
/// ```
///
/// Service addresses, 192.0.2.0/24 and 2001:db8:2::/64, are on no host: as at an edge
/// host, it is routing that brings them to `lb`, which is everybody's default route.
/// What no XDP program takes, `lb` forwards like a router, so the client reaches the
/// backends by their own addresses, too.
#[derive(Debug)]
pub struct Topology {
    /// The lab that it is made in.
    pub lab: Lab,
    /// Where clients run.
    pub client: Host,
    /// Where the balancer runs, on `eth0` and `eth1`.
    pub lb: Host,
    /// The switch; its ports have the names of the hosts behind them.
    pub switch: Host,
    /// The backends, `b1` first.
    pub backends: Vec<Backend>,
    /// The interfaces of `lb` that a balancer is to use.
    pub interfaces: &'static [&'static str],
}

/// A backend host.
#[derive(Clone, Debug)]
pub struct Backend {
    /// The host, named `b1`, `b2`, ...; its interface is `eth0`.
    pub host: Host,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// Service addresses that its servers listen on, for modes that leave the destination as
    /// it is. They are on `lo`.
    pub service_addresses: Vec<IpAddr>,
}

impl Topology {
    /// IPv4 service addresses: 192.0.2.10 and the rest of its network.
    pub const VIP4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
    /// IPv6 service addresses: 2001:db8:2::10 and the rest of its network.
    pub const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10);

    /// Makes the hosts and links in `lab`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a part of it.
    pub fn standard(lab: Lab, options: TopologyOptions) -> Result<Self> {
        ensure!(
            (1..=200).contains(&options.backends),
            "a topology has 1 to 200 backends"
        );
        let client = lab.host("client")?;
        let lb = lab.host("lb")?;
        let switch = lab.host("switch")?;
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            lb.sysctl(key, "1")?;
        }
        switch.ip("link add br0 type bridge stp_state 0 mcast_snooping 0")?;
        switch.ip(&format!("link set dev br0 mtu {} up", options.mtu))?;

        Link::between(
            End::of(&client, "eth0")
                .address("198.51.100.2/24")
                .address("2001:db8:1::2/64")
                .takes_xdp_frames(),
            End::of(&lb, "eth0")
                .address("198.51.100.1/24")
                .address("2001:db8:1::1/64"),
        )
        .mtu(options.mtu)
        .up()?;
        client.ip_batch(
            "route add default via 198.51.100.1\nroute add default via 2001:db8:1::1\n",
        )?;
        Link::between(
            End::of(&lb, "eth1")
                .address("10.0.0.1/24")
                .address("2001:db8:3::1/64"),
            End::of(&switch, "lb").port_of("br0").takes_xdp_frames(),
        )
        .mtu(options.mtu)
        .up()?;

        let backends = (1..=options.backends)
            .map(|number| Backend::create(&lab, &switch, number, options.mtu))
            .collect::<Result<_>>()?;
        Ok(Self {
            lab,
            client,
            lb,
            switch,
            backends,
            interfaces: &["eth0", "eth1"],
        })
    }

    /// Starts `lab-server`, the program at this path, on every backend.
    ///
    /// # Errors
    ///
    /// When one of them does not start.
    pub fn start_servers(&self, program: &Path) -> Result<Vec<Process>> {
        self.backends
            .iter()
            .map(|backend| backend.start_server(program))
            .collect()
    }

    /// The backend of this name.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn backend(&self, name: &str) -> Result<&Backend> {
        self.backends
            .iter()
            .find(|backend| backend.host.name() == name)
            .with_context(|| format!("there is no backend `{name}`"))
    }
}

impl Backend {
    fn create(lab: &Lab, switch: &Host, number: u8, mtu: u32) -> Result<Self> {
        let name = format!("b{number}");
        let host = lab.host(&name)?;
        let v4 = Ipv4Addr::new(10, 0, 0, 10 + number);
        // The same digits as in the IPv4 address, so that people find it.
        let digits = u16::from_str_radix(&(10 + u16::from(number)).to_string(), 16)?;
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, digits);
        Link::between(
            End::of(&host, "eth0")
                .address(&format!("{v4}/24"))
                .address(&format!("{v6}/64")),
            End::of(switch, &name).port_of("br0"),
        )
        .mtu(mtu)
        .up()?;
        host.ip_batch("route add default via 10.0.0.1\nroute add default via 2001:db8:3::1\n")?;
        Ok(Self {
            host,
            v4,
            v6,
            service_addresses: Vec::new(),
        })
    }

    /// Its IPv4 address, or the other.
    #[must_use]
    pub fn ip(&self, v4: bool) -> IpAddr {
        if v4 { self.v4.into() } else { self.v6.into() }
    }

    /// Its address of the same family as `like`, with a port.
    #[must_use]
    pub fn address(&self, like: IpAddr, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(like.is_ipv4()), port)
    }

    /// Starts `lab-server`, the program at this path, and waits until it listens.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start_server(&self, program: &Path) -> Result<Process> {
        let server = self.host.spawn("server", self.server_command(program))?;
        server.wait_for_log(SERVER_READY)?;
        Ok(server)
    }

    /// The command that starts `lab-server` here.
    fn server_command(&self, program: &Path) -> std::process::Command {
        let mut command = self.host.command(program);
        command.args(["--name", self.host.name()]);
        let own: [IpAddr; 2] = [self.v4.into(), self.v6.into()];
        for address in own.iter().chain(&self.service_addresses) {
            command.args(["--address", &address.to_string()]);
        }
        command
    }
}

/// What `lab-server` writes when it listens on all its addresses.
pub const SERVER_READY: &str = "listening";
