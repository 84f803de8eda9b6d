//! A lab for each forwarding mode, which its tests share.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result};
use lb_lab::{
    Balancer, Capture, Lab, Mode, Packets, Process, Protocol, Routed, RoutedOptions, Service,
    Topology, port,
};

use crate::programs;

/// What a client's packets are, and what they are wrapped in, if they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    /// Whether the client's packets are IPv4.
    pub(crate) v4: bool,
    /// Whether the tunnel is of the other family.
    pub(crate) crossed: bool,
}

impl Way {
    /// Those that need no tunnel.
    pub(crate) const STRAIGHT: [Self; 2] = [
        Self {
            v4: true,
            crossed: false,
        },
        Self {
            v4: false,
            crossed: false,
        },
    ];

    /// All that a mode has.
    pub(crate) fn of(mode: Mode) -> Vec<Self> {
        let crossed = Self::STRAIGHT.map(|way| Self {
            crossed: true,
            ..way
        });
        let mut ways = Self::STRAIGHT.to_vec();
        ways.extend(crossed.into_iter().filter(|_| mode.is_tunnel()));
        ways
    }

    /// The service address for it.
    pub(crate) fn vip(self) -> IpAddr {
        let straight = [Topology::VIP4.into(), Topology::VIP6.into()];
        let vips = if self.crossed {
            Routed::CROSSED
        } else {
            straight
        };
        self.of_family(vips)
    }

    /// That of its family.
    pub(crate) fn of_family<T>(self, [v4, v6]: [T; 2]) -> T {
        if self.v4 { v4 } else { v6 }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = match self.crossed {
            false => ["v4", "v6"],
            true => ["v4-in-v6", "v6-in-v4"],
        };
        f.pad(self.of_family(names))
    }
}

/// What the services on prefixes lower the MSS to.
pub(crate) const SEGMENT: u16 = 1_200;

/// A lab for one mode, with a balancer that has for each way two services, HTTP over TCP and
/// UDP echo, and for each family two on a prefix: one on a range of TCP ports, and one on all
/// UDP ports.
pub(crate) struct Site {
    pub(crate) balancer: Balancer,
    pub(crate) routed: Routed,
    pub(crate) ways: Vec<Way>,
    _servers: Vec<Process>,
    services: Vec<Service>,
}

impl Site {
    /// Makes it.
    pub(crate) fn new(name: &str, mode: Mode, mtu: u32) -> Result<Self> {
        let options = RoutedOptions::new(mode, mtu);
        let routed = Routed::new(Lab::new(name)?, options)?;
        let paths = programs::paths();
        let mut servers = routed.topology.start_servers(&paths.server)?;
        servers.extend(routed.unwrap_tunnels(&paths.lb)?);

        // Where backends have the service address, they have its port, too.
        let port = |own: u16, other: u16| match mode.replies_direct() {
            true => own,
            false => other,
        };
        let ways = Way::of(mode);
        let mut services = Vec::new();
        for way in &ways {
            let on = |port| SocketAddr::new(way.vip(), port);
            let topology = &routed.topology;
            let http = Service::http(
                &format!("http-{way}"),
                topology,
                on(port(port::HTTP, 80)),
                mode,
            );
            let echo = Service::udp(
                &format!("echo-{way}"),
                topology,
                on(port(port::ECHO, 1_007)),
                mode,
                port::ECHO,
            );
            for service in [http, echo] {
                services.push(Service {
                    crossed: way.crossed,
                    ..service
                });
            }
        }
        for way in Way::STRAIGHT {
            let ip = way.of_family(Routed::OF_PREFIXES);
            let prefix = way.of_family([
                Routed::PREFIXES[0].to_owned(),
                format!("[{}]", Routed::PREFIXES[1]),
            ]);
            let topology = &routed.topology;
            let address = SocketAddr::new(ip, port(port::HTTP, 8_000));
            let ports = Service::http(&format!("range-{way}"), topology, address, mode)
                .on(&format!("{prefix}:8000-8099"))
                .key(&format!("max-segment-size = {SEGMENT}"))
                .key("icmp-echo = false");
            let ports = Service {
                backend_port: port(0, port::HTTP),
                ..ports
            };
            let address = SocketAddr::new(ip, port::WHO);
            let any = Service::udp(&format!("any-{way}"), topology, address, mode, 0)
                .on(&format!("{prefix}:*"));
            services.extend([ports, any]);
        }
        // Nothing here is about health: a machine that is slow for a while loses no backend.
        for service in &mut services {
            service.health.fall = 100;
        }
        let balancer = Balancer::start(&routed.topology, &paths.lb, &services)?;
        Ok(Self {
            balancer,
            routed,
            ways,
            _servers: servers,
            services,
        })
    }

    /// Its mode.
    pub(crate) fn mode(&self) -> Mode {
        self.routed.options.mode
    }

    /// Where clients reach the service of this name.
    pub(crate) fn address(&self, name: &str) -> Result<SocketAddr> {
        let service = self.services.iter().find(|service| service.name == name);
        Ok(service
            .with_context(|| format!("no service {name}"))?
            .address)
    }

    /// Where clients reach HTTP by all ways.
    pub(crate) fn http(&self) -> Vec<SocketAddr> {
        self.services
            .iter()
            .filter(|service| service.protocol == Protocol::Tcp && service.on.is_none())
            .map(|service| service.address)
            .collect()
    }

    /// Captures at all vantage points, at most `limit` packets each.
    pub(crate) fn capture(&self, label: &str, limit: u32) -> Result<Vec<Capture>> {
        self.routed
            .vantage_points()
            .into_iter()
            .map(|(host, interface)| host.capture(interface, label, limit))
            .collect()
    }

    /// What all hosts have refused for a wrong checksum so far.
    pub(crate) fn checksum_errors(&self) -> Result<i64> {
        let Topology {
            client,
            lb,
            backends,
            ..
        } = &self.routed.topology;
        let ends = backends.iter().map(|backend| &backend.host);
        [client, lb, &self.routed.r1, &self.routed.r2]
            .into_iter()
            .chain(ends)
            .map(|host| Ok(host.snmp()?.checksum_errors()))
            .sum()
    }
}

/// Ends the captures and checks every packet in them. Returns what was captured, in the
/// order of [`Routed::vantage_points`]: the client's first.
pub(crate) fn finish(captures: Vec<Capture>) -> Result<Vec<Packets>> {
    let captures: Vec<_> = captures
        .into_iter()
        .map(Capture::finish)
        .collect::<Result<_>>()?;
    captures.iter().try_for_each(Packets::check)?;
    Ok(captures)
}
