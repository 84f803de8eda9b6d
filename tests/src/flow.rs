//! Flows through a service, as both sides of the balancer should see them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use etherparse::{IpNumber, TcpHeader};
use lb_common::service::Mode;

use crate::{
    packet::Packet,
    world::{BACKEND_PORT, FIRST_PORT, Link},
};

/// What makes one service different from another: mode, family and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Forwarding mode.
    pub mode: Mode,
    /// IPv6, else IPv4.
    pub ipv6: bool,
    /// TCP, else UDP.
    pub tcp: bool,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::new(Mode::FullNat, false, true),
        Self::new(Mode::FullNat, false, false),
        Self::new(Mode::FullNat, true, true),
        Self::new(Mode::FullNat, true, false),
        Self::new(Mode::Nat, false, true),
        Self::new(Mode::Nat, false, false),
        Self::new(Mode::Nat, true, true),
        Self::new(Mode::Nat, true, false),
    ];

    const fn new(mode: Mode, ipv6: bool, tcp: bool) -> Self {
        Self { mode, ipv6, tcp }
    }

    /// The kinds that `wanted` says yes to.
    pub fn all(wanted: impl Fn(&Self) -> bool) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(wanted)
    }

    /// Whether the balancer's address takes the place of the client's.
    #[must_use]
    pub fn is_full_nat(self) -> bool {
        self.mode == Mode::FullNat
    }

    /// IP protocol number.
    #[must_use]
    pub fn protocol(self) -> u8 {
        if self.tcp {
            IpNumber::TCP.0
        } else {
            IpNumber::UDP.0
        }
    }

    /// The service address and port in [`World::standard`](crate::World::standard).
    #[must_use]
    pub fn vip(self) -> SocketAddr {
        let address: IpAddr = if self.ipv6 {
            Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10).into()
        } else {
            Ipv4Addr::new(192, 0, 2, 10).into()
        };
        let port = if self.is_full_nat() { 80 } else { 81 };
        (address, port).into()
    }

    /// A client.
    #[must_use]
    pub fn client(self) -> SocketAddr {
        let address: IpAddr = if self.ipv6 {
            Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 7).into()
        } else {
            Ipv4Addr::new(198, 51, 100, 7).into()
        };
        (address, 40_000).into()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.is_full_nat() {
            "full-nat"
        } else {
            "nat"
        };
        let family = if self.ipv6 { "v6" } else { "v4" };
        let protocol = if self.tcp { "tcp" } else { "udp" };
        write!(formatter, "{mode} {family} {protocol}")
    }
}

/// A flow from a client to a backend.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The kind of service.
    pub kind: Kind,
    /// Id of the service.
    pub service: u32,
    /// Where the client sends from.
    pub client: SocketAddr,
    /// Where the client sends to.
    pub vip: SocketAddr,
    /// Id of the backend.
    pub backend: u32,
    /// Where the backend is sent packets from.
    pub source: SocketAddr,
    /// Where the backend receives packets.
    pub server: SocketAddr,
    /// The way to the client.
    pub client_link: Link,
    /// The way to the backend.
    pub backend_link: Link,
}

impl Flow {
    /// The first flow to the service of this kind in
    /// [`World::standard`](crate::World::standard).
    #[must_use]
    pub fn first(kind: Kind) -> Self {
        let source = if kind.is_full_nat() {
            (kind.balancer_address(), FIRST_PORT).into()
        } else {
            kind.client()
        };
        Self {
            kind,
            service: kind.service().id,
            client: kind.client(),
            vip: kind.vip(),
            backend: kind.backend(),
            source,
            server: (kind.backend_address(kind.backend()), BACKEND_PORT).into(),
            client_link: Link::to_client(),
            backend_link: Link::to_backend(kind.backend()),
        }
    }

    /// The same flow on another backend.
    #[must_use]
    pub fn on(mut self, backend: u32) -> Self {
        self.server.set_ip(self.kind.backend_address(backend));
        self.backend_link = Link::to_backend(backend);
        self.backend = backend;
        self
    }

    /// The same flow on the backend that the ring does not know.
    #[must_use]
    pub fn moved(self) -> Self {
        let spare = self.kind.spare_backend();
        self.on(spare)
    }

    /// The same flow from another port of the client. With NAT the backend sees it.
    #[must_use]
    pub fn from_port(mut self, port: u16) -> Self {
        self.client.set_port(port);
        if !self.kind.is_full_nat() {
            self.source.set_port(port);
        }
        self
    }

    /// The same flow with this source port of full NAT.
    #[must_use]
    pub fn through_port(mut self, port: u16) -> Self {
        assert!(self.kind.is_full_nat(), "NAT keeps the client's port");
        self.source.set_port(port);
        self
    }

    /// Which port of which pool the flow has.
    #[must_use]
    pub fn pool_port(&self) -> Option<(u32, u16)> {
        let full_nat = self.kind.is_full_nat();
        full_nat.then(|| (self.backend, self.source.port()))
    }

    /// The packet that begins the flow: a SYN, or a datagram.
    #[must_use]
    pub fn opening(&self) -> Packet {
        if self.kind.tcp {
            self.segment(|tcp| (tcp.syn, tcp.ack) = (true, false))
                .with_payload([])
        } else {
            self.request()
        }
    }

    /// A packet with data from the client.
    #[must_use]
    pub fn request(&self) -> Packet {
        if self.kind.tcp {
            return self.segment(|tcp| tcp.psh = true);
        }
        let packet = Packet::udp(self.client, self.vip);
        self.client_link.incoming(packet.with_payload("a request"))
    }

    /// A TCP segment with data from the client: ACK, and what `set` sets.
    #[must_use]
    pub fn segment(&self, set: impl FnOnce(&mut TcpHeader)) -> Packet {
        let packet = Packet::tcp(self.client, self.vip, |tcp| {
            tcp.ack = true;
            set(tcp);
        });
        self.client_link.incoming(packet.with_payload("a request"))
    }

    /// The backend's answer to the opening: a SYN with ACK, or a datagram.
    #[must_use]
    pub fn acceptance(&self) -> Packet {
        if self.kind.tcp {
            self.answer(|tcp| tcp.syn = true).with_payload([])
        } else {
            self.reply()
        }
    }

    /// A packet with data from the backend.
    #[must_use]
    pub fn reply(&self) -> Packet {
        if self.kind.tcp {
            return self.answer(|tcp| tcp.psh = true);
        }
        let packet = Packet::udp(self.server, self.source);
        self.backend_link.incoming(packet.with_payload("the reply"))
    }

    /// A TCP segment with data from the backend: ACK, and what `set` sets.
    #[must_use]
    pub fn answer(&self, set: impl FnOnce(&mut TcpHeader)) -> Packet {
        let packet = Packet::tcp(self.server, self.source, |tcp| {
            tcp.ack = true;
            set(tcp);
        });
        self.backend_link.incoming(packet.with_payload("the reply"))
    }

    /// What the backend should get of a packet from the client.
    #[must_use]
    pub fn delivered(&self, request: &Packet) -> Packet {
        let mut packet = self.backend_link.outgoing(request.clone());
        packet.set_tuple(self.source, self.server);
        packet.set_ttl(request.ttl() - 1);
        packet
    }

    /// What the client should get of a packet from the backend.
    #[must_use]
    pub fn returned(&self, reply: &Packet) -> Packet {
        let mut packet = self.client_link.outgoing(reply.clone());
        packet.set_tuple(self.vip, self.client);
        packet.set_ttl(reply.ttl() - 1);
        packet
    }
}
