//! What the tests of the forwarding modes cover. A mode, a frame size, or a kind of packet
//! that the balancer learns to forward is put into a list here.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use lb_lab::{
    Balancer, Capture, Lab, Mode, Packets, Process, Protocol, Routed, RoutedOptions, Service,
    Topology, port,
};

use crate::programs;

/// The modes that carry traffic.
pub(crate) const MODES: &[Mode] = &[Mode::FullNat, Mode::Nat, Mode::Dsr, Mode::Ipip, Mode::Gue];

/// MTUs of the links, in bytes of an IP packet.
pub(crate) const MTUS: &[u32] = &[1_500, 9_000];

/// Payloads of datagrams that only fragments carry. Without fragments there are none.
pub(crate) const FRAGMENTED: &[usize] = &[1_473, 2_000, 9_001, 30_000, 60_000];

/// The modes in which a sender learns what a path takes. In the others it does not, and
/// that is tested, too.
pub(crate) const PATH_MTU: &[Mode] = MODES;

/// A family, for the tests that are made once for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// The service address of this family.
    pub(crate) const fn vip(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Topology::VIP4),
            Self::V6 => IpAddr::V6(Topology::VIP6),
        }
    }

    /// Bytes of the IP header.
    pub(crate) const fn header(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }
}

/// A lab for one mode, with a balancer that has two services: HTTP over TCP, and UDP echo.
pub(crate) struct Site {
    pub(crate) balancer: Balancer,
    pub(crate) routed: Routed,
    _servers: Vec<Process>,
    services: Vec<Service>,
}

impl Site {
    /// Makes it.
    pub(crate) fn new(name: &str, mode: Mode, family: Family, mtu: u32) -> Result<Self> {
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
        let http = SocketAddr::from((family.vip(), port(port::HTTP, 80)));
        let echo = SocketAddr::from((family.vip(), port(port::ECHO, 1_007)));
        let services = vec![
            Service::http("http", &routed.topology, http, mode),
            Service::udp("echo", &routed.topology, echo, mode, port::ECHO),
        ];
        let balancer = Balancer::start(&routed.topology, &paths.lb, &services)?;
        Ok(Self {
            balancer,
            routed,
            _servers: servers,
            services,
        })
    }

    /// Where clients reach the service of this protocol.
    pub(crate) fn address(&self, protocol: Protocol) -> SocketAddr {
        let service = self.services.iter().find(|s| s.protocol == protocol);
        service.expect("a service of each protocol").address
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
