//! A TCP connection through a [`Site`], and what both of its ends send.

use std::net::{IpAddr, SocketAddr};

use etherparse::{NetSlice, SlicedPacket, TcpHeader, TransportSlice};

use crate::{
    packet::Packet,
    site::{Fate, Front, Site},
};

/// The number that backends begin with.
const BACKENDS_FIRST: u32 = 0x8765_4320;

/// A connection. What is sent is checked to arrive with the right addresses.
#[derive(Clone, Debug)]
pub struct Connection {
    /// What it was made to.
    pub front: Front,
    /// Who made it.
    pub client: SocketAddr,
    /// Where it is translated: what its backend, of this number, takes for the client, and
    /// the address of the backend.
    seen: Option<(u32, SocketAddr, SocketAddr)>,
}

impl Connection {
    /// A connection that nothing has been sent of yet.
    #[must_use]
    pub fn new(front: Front, client: SocketAddr) -> Self {
        Self {
            front,
            client,
            seen: None,
        }
    }

    /// The client sends a SYN. The number of the backend that gets it, `None` where none does.
    pub fn open(&mut self, site: &mut Site) -> Option<u32> {
        self.send(site, |tcp| {
            (tcp.syn, tcp.ack) = (true, false);
            tcp.acknowledgment_number = 0;
        })
    }

    /// The backend answers a SYN. Whether the client gets that; where the balancer sees no
    /// answers it does.
    pub fn accept(&self, site: &mut Site) -> bool {
        self.answer(site, |tcp| tcp.syn = true)
    }

    /// The client sends an ACK, which ends the handshake or says that it is there.
    pub fn speak(&mut self, site: &mut Site) -> Option<u32> {
        self.send(site, |_| {})
    }

    /// The whole handshake. The number of the backend; `None` where something is lost, or
    /// goes to two of them.
    pub fn establish(&mut self, site: &mut Site) -> Option<u32> {
        let backend = self.open(site)?;
        self.accept(site).then_some(())?;
        (self.speak(site)? == backend).then_some(backend)
    }

    /// The client sends a segment with what `set` sets, and an ACK if it does not take that
    /// away.
    ///
    /// # Panics
    ///
    /// Where the segment is forwarded to nobody who waits for it.
    pub fn send(&mut self, site: &mut Site, set: impl FnOnce(&mut TcpHeader)) -> Option<u32> {
        let packet = Packet::tcp(self.client, self.front.vip, |tcp| {
            tcp.ack = true;
            tcp.acknowledgment_number = BACKENDS_FIRST + 1;
            set(tcp);
        });
        match site.from_client(packet) {
            Fate::Backend(number, frame) => {
                if self.front.mode.translates() {
                    let (source, server) = ends(&frame);
                    assert_eq!(server.ip(), self.front.backend(number).ip);
                    self.seen = Some((number, source, server));
                }
                Some(number)
            }
            Fate::Dropped => None,
            fate @ (Fate::Client(_) | Fate::Passed) => panic!("{self:?}: {fate:?}"),
        }
    }

    /// The backend sends a segment, like [`Self::send`]. Whether this client gets it, and nobody
    /// else: a flow that is not confirmed may have lost its source port to another one.
    pub fn answer(&self, site: &mut Site, set: impl FnOnce(&mut TcpHeader)) -> bool {
        if !self.front.mode.translates() {
            return true;
        }
        let Some((number, source, server)) = self.seen else {
            return false;
        };
        let packet = Packet::tcp(server, source, |tcp| {
            tcp.ack = true;
            tcp.sequence_number = BACKENDS_FIRST;
            set(tcp);
        });
        match site.from_backend(number, packet) {
            Fate::Client(frame) => {
                let expected = (self.front.vip, self.client);
                ends(&frame) == expected
            }
            Fate::Passed | Fate::Dropped => false,
            fate @ Fate::Backend(..) => panic!("{self:?}: {fate:?}"),
        }
    }
}

/// Where a frame comes from and goes to.
fn ends(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a whole packet");
    let (source, destination) = match packet.net.expect("an IP header") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let ends = (header.source_addr(), header.destination_addr());
            (IpAddr::from(ends.0), IpAddr::from(ends.1))
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let ends = (header.source_addr(), header.destination_addr());
            (IpAddr::from(ends.0), IpAddr::from(ends.1))
        }
        other => panic!("{other:?}"),
    };
    match packet.transport.expect("a transport header") {
        TransportSlice::Tcp(tcp) => (
            (source, tcp.source_port()).into(),
            (destination, tcp.destination_port()).into(),
        ),
        other => panic!("{other:?}"),
    }
}
