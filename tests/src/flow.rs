//! Flows through a service, as both sides of the balancer should see them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use etherparse::{IpNumber, TcpHeader};
use lb_common::{backend::Outer, service::Mode};
use lb_model::hash::five_tuple;

use crate::{
    packet::Packet,
    tunnel,
    world::{BACKEND_PORT, FIRST_PORT, GUE_PORT, Link},
};

/// What makes one service different from another: mode, family and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Forwarding mode.
    pub mode: Mode,
    /// Family of the outer header of a tunnel; [`Outer::None`] in the other modes.
    pub outer: Outer,
    /// IPv6, else IPv4: the family of clients.
    pub ipv6: bool,
    /// TCP, else UDP.
    pub tcp: bool,
}

/// Modes, with the families that their outer headers can have.
const MODES: [(Mode, Outer); 7] = [
    (Mode::FullNat, Outer::None),
    (Mode::Nat, Outer::None),
    (Mode::Dsr, Outer::None),
    (Mode::Ipip, Outer::Ipv4),
    (Mode::Ipip, Outer::Ipv6),
    (Mode::Gue, Outer::Ipv4),
    (Mode::Gue, Outer::Ipv6),
];

/// Kinds of one mode: both families and both protocols.
const KINDS_OF_A_MODE: usize = 4;

impl Kind {
    /// Every kind.
    pub const ALL: [Self; MODES.len() * KINDS_OF_A_MODE] = Self::of_modes();
    /// The kinds of the modes that translate packets and keep flows.
    pub const TRANSLATED: [Self; 2 * KINDS_OF_A_MODE] = Self::of_modes();

    /// The kinds of the first modes.
    const fn of_modes<const N: usize>() -> [Self; N] {
        let mut kinds = [Self::new(0); N];
        let mut index = 1;
        while index < N {
            kinds[index] = Self::new(index);
            index += 1;
        }
        kinds
    }

    const fn new(index: usize) -> Self {
        let (mode, outer) = MODES[index / KINDS_OF_A_MODE];
        Self {
            mode,
            outer,
            ipv6: index / 2 % 2 == 1,
            tcp: index.is_multiple_of(2),
        }
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

    /// Whether packets are translated, so that flows are kept and replies come back by the
    /// balancer.
    #[must_use]
    pub fn translates(self) -> bool {
        matches!(self.mode, Mode::FullNat | Mode::Nat)
    }

    /// Whether packets are wrapped.
    #[must_use]
    pub fn is_tunnel(self) -> bool {
        self.outer != Outer::None
    }

    /// Bytes that the outer headers take.
    #[must_use]
    pub fn overhead(self) -> usize {
        let ip = match self.outer {
            Outer::None => return 0,
            Outer::Ipv4 => 20,
            Outer::Ipv6 => 40,
        };
        ip + if self.mode == Mode::Gue { 12 } else { 0 }
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
        let index = MODES
            .iter()
            .position(|mode| *mode == (self.mode, self.outer));
        let index = index.expect("every mode is there") as u16;
        (address, 80 + index).into()
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
        let mode = match self.mode {
            Mode::FullNat => "full-nat",
            Mode::Nat => "nat",
            Mode::Dsr => "dsr",
            Mode::Ipip => "ipip",
            Mode::Gue => "gue",
        };
        let family = if self.ipv6 { "v6" } else { "v4" };
        let protocol = if self.tcp { "tcp" } else { "udp" };
        let outer = match self.outer {
            Outer::None => "",
            Outer::Ipv4 => " in v4",
            Outer::Ipv6 => " in v6",
        };
        write!(formatter, "{mode} {family} {protocol}{outer}")
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
    /// The outer header of a tunnel.
    pub outer: Option<tunnel::Outer>,
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
        let backend = kind.backend_address(kind.backend());
        let server = if kind.translates() {
            (backend, BACKEND_PORT).into()
        } else {
            kind.vip()
        };
        let outer = kind.is_tunnel().then(|| tunnel::Outer {
            src: kind.balancer_address(),
            source_bits: 0,
            dst: backend,
            gue: (kind.mode == Mode::Gue).then_some(GUE_PORT),
        });
        Self {
            kind,
            service: kind.service().id(),
            client: kind.client(),
            vip: kind.vip(),
            backend: kind.backend(),
            source,
            server,
            client_link: Link::to_client(),
            backend_link: Link::to_backend(kind.backend()),
            outer,
        }
    }

    /// What the choice of a backend and the outer headers follow from.
    #[must_use]
    pub fn hash(&self) -> u32 {
        five_tuple(self.client, self.vip, self.kind.protocol())
    }

    /// The same flow on another backend.
    #[must_use]
    pub fn on(mut self, backend: u32) -> Self {
        let address = self.kind.backend_address(backend);
        if self.kind.translates() {
            self.server.set_ip(address);
        }
        if let Some(outer) = &mut self.outer {
            outer.dst = address;
        }
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

    /// What the client sends when it has the backend's answer: the flow is confirmed.
    #[must_use]
    pub fn confirmation(&self) -> Packet {
        if self.kind.tcp {
            self.segment(|_| {}).with_payload([])
        } else {
            self.request()
        }
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
            // The client acknowledges what follows a SYN with this number.
            tcp.sequence_number = tcp.acknowledgment_number - 1;
            set(tcp);
        });
        self.backend_link.incoming(packet.with_payload("the reply"))
    }

    /// The frame that the backend should get of a packet from the client.
    #[must_use]
    pub fn delivered_frame(&self, request: &Packet) -> Vec<u8> {
        let delivered = self.delivered(request);
        self.wrapped(delivered.build(), delivered.ip_offset())
    }

    /// The same frame in the flow's tunnel, if it has one. The IP header is at `offset`.
    #[must_use]
    pub fn wrapped(&self, frame: Vec<u8>, offset: usize) -> Vec<u8> {
        match &self.outer {
            Some(outer) => outer.wrap(&frame, offset, self.hash()),
            None => frame,
        }
    }

    /// What the backend should get of a packet from the client, unwrapped.
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
