//! The IP and transport headers of a packet, and what they are held to. Architecture:
//! *What is ours* and *What is checked*.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{
    bytes::{be16, get16, put16},
    checksum,
    link::{IPV4, IPV6},
    outcome::Reason,
};

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// Most IPv6 extension headers that are walked over.
const MAX_EXTENSIONS: usize = 6;
/// Extension headers (RFC 8200, section 4) by number.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
const EXTENSIONS: [u8; 4] = [HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION];

/// Source, destination and protocol of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// Source.
    pub src: SocketAddr,
    /// Destination.
    pub dst: SocketAddr,
    /// IP protocol number: 6 or 17.
    pub protocol: u8,
}

impl Tuple {
    /// Of a packet the other way.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            ..self
        }
    }
}

/// A fragment's place in its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Piece {
    /// Where it begins, in bytes.
    pub offset: usize,
    /// Whether others follow.
    pub more: bool,
    /// What the fragments of a packet have in common.
    pub identification: u32,
}

/// The headers of an IP packet, as far as they tell where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Protocol of what is behind the headers.
    pub protocol: u8,
    /// Length of the headers in bytes, options and extension headers included.
    pub headers: usize,
    /// Length of the packet in bytes, as its header says.
    pub length: usize,
    /// TTL or hop limit.
    pub ttl: u8,
    /// For a fragment, its place. An atomic fragment is a whole packet.
    pub piece: Option<Piece>,
}

/// What reading the IP headers came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// A packet of a protocol that the balancer knows.
    Packet(Ip),
    /// Of no concern, whatever its addresses.
    Foreign,
    /// Broken: dropped if it is to a service address with this protocol, or with any
    /// where the protocol could not be read.
    Broken {
        /// Destination address.
        dst: IpAddr,
        /// IP protocol number.
        protocol: Option<u8>,
        /// What it is dropped for.
        reason: Reason,
    },
}

/// Reads the headers of a packet that the link layer says is of a family.
#[must_use]
pub fn read(ether_type: u16, packet: &[u8]) -> Read {
    match ether_type {
        IPV4 => read_v4(packet),
        IPV6 => read_v6(packet),
        _ => Read::Foreign,
    }
}

fn read_v4(packet: &[u8]) -> Read {
    if packet.len() < 20 || packet[0] >> 4 != 4 {
        return Read::Foreign;
    }
    let address = |at: usize| -> IpAddr {
        let octets: [u8; 4] = packet[at..at + 4].try_into().expect("four bytes");
        Ipv4Addr::from(octets).into()
    };
    let protocol = packet[9];
    if ![TCP, UDP, ICMP].contains(&protocol) {
        return Read::Foreign;
    }
    let headers = usize::from(packet[0] & 0xf) * 4;
    if headers < 20 {
        return Read::Broken {
            dst: address(16),
            protocol: Some(protocol),
            reason: Reason::IpHeader,
        };
    }
    let field = be16(packet, 6);
    let piece = Piece {
        offset: usize::from(field & 0x1fff) * 8,
        more: field & 0x2000 != 0,
        identification: be16(packet, 4).into(),
    };
    Read::Packet(Ip {
        src: address(12),
        dst: address(16),
        protocol,
        headers,
        length: be16(packet, 2).into(),
        ttl: packet[8],
        piece: (piece.more || piece.offset != 0).then_some(piece),
    })
}

fn read_v6(packet: &[u8]) -> Read {
    if packet.len() < 40 || packet[0] >> 4 != 6 {
        return Read::Foreign;
    }
    let address = |at: usize| -> IpAddr {
        let octets: [u8; 16] = packet[at..at + 16].try_into().expect("sixteen bytes");
        Ipv6Addr::from(octets).into()
    };
    let broken = Read::Broken {
        dst: address(24),
        protocol: None,
        reason: Reason::Ipv6Extension,
    };
    let mut next = packet[6];
    let mut at = 40;
    let mut piece = None;
    for count in 0.. {
        if !EXTENSIONS.contains(&next) {
            break;
        }
        // "Truncated, too many, misplaced, or route the packet onward."
        if count == MAX_EXTENSIONS || next == HOP_BY_HOP && count != 0 {
            return broken;
        }
        let Some(header) = packet.get(at..at + 8) else {
            return broken;
        };
        if next == ROUTING && header[3] != 0 {
            return broken;
        }
        if next == FRAGMENT {
            let field = be16(header, 2);
            let here = Piece {
                offset: usize::from(field >> 3) * 8,
                more: field & 1 != 0,
                identification: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            };
            at += 8;
            next = header[0];
            if here.more || here.offset != 0 {
                // "IPv6 fragments whose fragmentable part begins with another extension
                // header are dropped."
                if EXTENSIONS.contains(&next) {
                    return broken;
                }
                piece = Some(here);
                break;
            }
        } else {
            at += (usize::from(header[1]) + 1) * 8;
            next = header[0];
        }
    }
    if ![TCP, UDP, ICMPV6].contains(&next) {
        return Read::Foreign;
    }
    Read::Packet(Ip {
        src: address(8),
        dst: address(24),
        protocol: next,
        headers: at,
        length: 40 + usize::from(be16(packet, 4)),
        ttl: packet[7],
        piece,
    })
}

/// Where TCP's two ends are (RFC 9293, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// Of the first byte that is sent.
    pub sequence: u32,
    /// Of the next byte that is expected.
    pub acknowledgement: u32,
}

/// TCP's control bits (RFC 9293, section 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(pub u8);

impl Flags {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;

    fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    /// FIN.
    #[must_use]
    pub fn fin(self) -> bool {
        self.has(Self::FIN)
    }

    /// RST.
    #[must_use]
    pub fn rst(self) -> bool {
        self.has(Self::RST)
    }

    /// SYN, with ACK or without.
    #[must_use]
    pub fn syn(self) -> bool {
        self.has(Self::SYN)
    }

    /// ACK.
    #[must_use]
    pub fn ack(self) -> bool {
        self.has(Self::ACK)
    }

    /// SYN without ACK: a connection begins.
    #[must_use]
    pub fn opens(self) -> bool {
        self.syn() && !self.has(Self::ACK)
    }

    /// SYN and ACK: a connection is accepted.
    #[must_use]
    pub fn accepts(self) -> bool {
        self.syn() && self.has(Self::ACK)
    }

    /// Whether a TCP may have sent them: one of the four at least, and SYN neither with
    /// FIN nor with RST.
    #[must_use]
    pub fn plausible(self) -> bool {
        self.has(Self::SYN | Self::FIN | Self::RST | Self::ACK)
            && !(self.syn() && (self.fin() || self.rst()))
    }
}

/// Length of the transport header without options.
#[must_use]
pub fn transport_header(protocol: u8) -> usize {
    if protocol == TCP { 20 } else { 8 }
}

impl Ip {
    /// Whether this is a fragment that has no transport header.
    #[must_use]
    pub fn is_later_fragment(&self) -> bool {
        self.piece.is_some_and(|piece| piece.offset != 0)
    }

    /// The tuple with these ports.
    #[must_use]
    pub fn tuple(&self, [src, dst]: [u16; 2]) -> Tuple {
        Tuple {
            src: (self.src, src).into(),
            dst: (self.dst, dst).into(),
            protocol: self.protocol,
        }
    }

    /// The ports, if the packet reaches that far.
    #[must_use]
    pub fn ports(&self, packet: &[u8]) -> Option<[u16; 2]> {
        Some([
            get16(packet, self.headers)?,
            get16(packet, self.headers + 2)?,
        ])
    }

    /// TCP's flags; none for a packet that has none.
    #[must_use]
    pub fn flags(&self, packet: &[u8]) -> Flags {
        if self.protocol == TCP && !self.is_later_fragment() {
            Flags(packet.get(self.headers + 13).copied().unwrap_or(0))
        } else {
            Flags::default()
        }
    }

    /// TCP's sequence and acknowledgement number; none for a packet that has none.
    #[must_use]
    pub fn numbers(&self, packet: &[u8]) -> Option<Numbers> {
        if self.protocol != TCP || self.is_later_fragment() {
            return None;
        }
        let word = |at: usize| -> Option<u32> {
            let bytes = packet.get(self.headers + at..self.headers + at + 4)?;
            Some(u32::from_be_bytes(bytes.try_into().ok()?))
        };
        Some(Numbers {
            sequence: word(4)?,
            acknowledgement: word(8)?,
        })
    }

    /// Bytes behind the IP headers, as the length field says.
    #[must_use]
    pub fn payload(&self) -> usize {
        self.length.saturating_sub(self.headers)
    }

    /// The packet without what stands behind it in the frame.
    #[must_use]
    pub fn trimmed<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        &packet[..self.length]
    }

    /// The lengths and the checksum of the IP headers.
    ///
    /// # Errors
    ///
    /// The first that is wrong.
    pub fn check_headers(&self, packet: &[u8]) -> Result<(), Reason> {
        if self.length > packet.len() || self.length < self.headers {
            return Err(Reason::IpLength);
        }
        let header = packet.get(..self.headers);
        if self.src.is_ipv4() && header.is_none_or(|header| checksum::sum(header) != 0xffff) {
            return Err(Reason::IpChecksum);
        }
        Ok(())
    }

    /// All that a TCP or UDP packet of a service is held to.
    ///
    /// # Errors
    ///
    /// The first that is wrong.
    pub fn check(&self, packet: &[u8]) -> Result<(), Reason> {
        self.check_headers(packet)?;
        if !self.is_later_fragment() {
            self.check_transport(packet)?;
        }
        self.check_ttl()
    }

    fn check_transport(&self, packet: &[u8]) -> Result<(), Reason> {
        let room = self.length - self.headers;
        let header = &packet[self.headers..];
        let own = if self.protocol == TCP {
            usize::from(header[12] >> 4) * 4
        } else {
            usize::from(be16(header, 4))
        };
        let least = transport_header(self.protocol);
        if self.piece.is_some() && (room < least || self.protocol == TCP && own > room) {
            return Err(Reason::FragmentTiny);
        }
        if own < least {
            return Err(Reason::TransportHeader);
        }
        if own > room {
            // Of a fragment, the datagram goes on in the next ones.
            if self.piece.is_none() {
                return Err(Reason::TransportHeader);
            }
        }
        if self.protocol == TCP && !self.flags(packet).plausible() {
            return Err(Reason::TcpFlags);
        }
        Ok(())
    }

    /// *Modes*: "the TTL or hop limit goes down by one; at 1 it expires".
    ///
    /// # Errors
    ///
    /// There.
    pub fn check_ttl(&self) -> Result<(), Reason> {
        if self.ttl <= 1 {
            Err(Reason::TtlExpired)
        } else {
            Ok(())
        }
    }
}

/// EtherType of an address's family.
#[must_use]
pub fn ether_type(address: IpAddr) -> u16 {
    if address.is_ipv4() { IPV4 } else { IPV6 }
}

/// Changes the header of an IP packet, and updates the checksum that an IPv4 header has.
pub fn edit_header(packet: &mut [u8], edit: impl FnOnce(&mut [u8])) {
    const CHECKSUM: std::ops::Range<usize> = 10..12;
    if packet[0] >> 4 == 6 {
        edit(packet);
        return;
    }
    let words = |packet: &[u8]| [&packet[..CHECKSUM.start], &packet[CHECKSUM.end..20]].concat();
    let old = be16(packet, CHECKSUM.start);
    let before = words(packet);
    edit(packet);
    let new = checksum::updated(old, &before, &words(packet));
    put16(packet, CHECKSUM.start, new);
}

/// One hop less to go.
pub fn decrement_ttl(packet: &mut [u8]) {
    edit_header(packet, |header| {
        let ttl = if header[0] >> 4 == 4 { 8 } else { 7 };
        header[ttl] -= 1;
    });
}

/// Writes source and destination address into an IP header.
pub fn set_addresses(header: &mut [u8], src: IpAddr, dst: IpAddr) {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            header[12..16].copy_from_slice(&src.octets());
            header[16..20].copy_from_slice(&dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            header[8..24].copy_from_slice(&src.octets());
            header[24..40].copy_from_slice(&dst.octets());
        }
        _ => panic!("{src} and {dst} are of different families"),
    }
}

/// The bytes of addresses.
#[must_use]
pub fn octets(addresses: [IpAddr; 2]) -> Vec<u8> {
    addresses
        .iter()
        .flat_map(|address| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        })
        .collect()
}
