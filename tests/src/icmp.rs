//! What the balancer says itself, in ICMP.

use std::net::IpAddr;

use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpDscp, IpNumber,
    Ipv4Header, Ipv6Header,
};

use crate::packet::{Net, Packet};

/// Bytes of an error at most, by family (RFC 1812, section 4.3.2.3; RFC 4443, section
/// 2.4 (c)).
const MOST_V4: usize = 576;
const MOST_V6: usize = 1_280;
/// TTL and hop limit of what the balancer says.
const TTL: u8 = 64;

/// The frame that tells the sender of `packet` that at most `mtu` bytes pass.
pub(crate) fn too_big(packet: &Packet, mtu: u16) -> Vec<u8> {
    let frame = packet.build();
    let begin = packet.ip_offset();
    let ip = &frame[begin..begin + packet.ip_length()];
    let ethernet = answered(packet, &frame[..begin]);
    [ethernet, too_big_about(ip, mtu)].concat()
}

/// The IP packet that tells the sender of the packet that begins with `ip` that at most
/// `mtu` bytes pass.
#[must_use]
pub fn too_big_about(ip: &[u8], mtu: u16) -> Vec<u8> {
    let (kind, most, offset, length) = if ip[0] >> 4 == 4 {
        (IcmpError::NEEDS_FRAGMENTATION, MOST_V4 - 28, 12, 4)
    } else {
        (IcmpError::PACKET_TOO_BIG, MOST_V6 - 48, 8, 16)
    };
    let (source, destination) = ip[offset..].split_at(length);
    let address = |bytes: &[u8]| -> IpAddr {
        match <[u8; 4]>::try_from(bytes) {
            Ok(bytes) => bytes.into(),
            Err(_) => <[u8; 16]>::try_from(bytes).expect("an address").into(),
        }
    };
    let error = IcmpError {
        src: address(&destination[..length]),
        dst: address(source),
        kind,
        rest: u32::from(mtu).to_be_bytes(),
        ttl: TTL,
        // Internetwork control (RFC 1812, section 4.3.2.5).
        dscp: if length == 4 { 48 } else { 0 },
        identification: 0,
    };
    error.quoting(&ip[..ip.len().min(most)])
}

/// An ICMP error.
#[derive(Clone, Debug)]
pub struct IcmpError {
    /// Who sends it.
    pub src: IpAddr,
    /// Who is told.
    pub dst: IpAddr,
    /// Type and code.
    pub kind: (u8, u8),
    /// The four bytes behind the checksum.
    pub rest: [u8; 4],
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP of IPv4.
    pub dscp: u8,
    /// Identification of IPv4.
    pub identification: u16,
}

impl IcmpError {
    /// Destination unreachable, fragmentation needed (RFC 792, RFC 1191).
    pub const NEEDS_FRAGMENTATION: (u8, u8) = (3, 4);
    /// Packet too big (RFC 4443, section 3.2).
    pub const PACKET_TOO_BIG: (u8, u8) = (2, 0);

    /// An error that a router sends.
    #[must_use]
    pub fn new(src: IpAddr, dst: IpAddr, kind: (u8, u8), rest: [u8; 4]) -> Self {
        Self {
            src,
            dst,
            kind,
            rest,
            ttl: 61,
            dscp: 0,
            identification: 0x4242,
        }
    }

    /// The IP packet of the error about the packet that begins with `quote`.
    #[must_use]
    pub fn quoting(&self, quote: &[u8]) -> Vec<u8> {
        let (kind, code) = self.kind;
        match (self.src, self.dst) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let kind = Icmpv4Type::Unknown {
                    type_u8: kind,
                    code_u8: code,
                    bytes5to8: self.rest,
                };
                let icmp = Icmpv4Header::with_checksum(kind, quote);
                let message = [&icmp.to_bytes()[..], quote].concat();
                let mut header = Ipv4Header {
                    source: source.octets(),
                    destination: destination.octets(),
                    dscp: IpDscp::try_new(self.dscp).expect("six bits"),
                    dont_fragment: true,
                    identification: self.identification,
                    time_to_live: self.ttl,
                    protocol: IpNumber::ICMP,
                    ..Ipv4Header::default()
                };
                header.set_payload_len(message.len()).expect("it fits");
                header.header_checksum = header.calc_header_checksum();
                [&header.to_bytes()[..], &message].concat()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let (source, destination) = (source.octets(), destination.octets());
                let kind = Icmpv6Type::Unknown {
                    type_u8: kind,
                    code_u8: code,
                    bytes5to8: self.rest,
                };
                let icmp =
                    Icmpv6Header::with_checksum(kind, source, destination, quote).expect("it fits");
                let message = [&icmp.to_bytes()[..], quote].concat();
                let header = Ipv6Header {
                    hop_limit: self.ttl,
                    ..icmpv6(source, destination, message.len())
                };
                [&header.to_bytes()[..], &message].concat()
            }
            (src, dst) => panic!("{src} and {dst} are of different families"),
        }
    }
}

/// An echo request to the address that `packet` goes to, and the answer.
#[must_use]
pub fn echo(packet: &Packet, payload: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let frame = packet.build();
    let ethernet = &frame[..packet.ip_offset()];
    let echo = IcmpEchoHeader { id: 7, seq: 1 };
    let (request, answer) = match &packet.net {
        Net::V4(ip) => {
            let message = |kind| {
                let icmp = Icmpv4Header::with_checksum(kind, payload);
                [&icmp.to_bytes()[..], payload].concat()
            };
            let packet = |source, destination, ttl, message: Vec<u8>| {
                let mut header = Ipv4Header {
                    source,
                    destination,
                    time_to_live: ttl,
                    identification: 0x1234,
                    protocol: IpNumber::ICMP,
                    ..Ipv4Header::default()
                };
                header.set_payload_len(message.len()).expect("it fits");
                header.header_checksum = header.calc_header_checksum();
                [&header.to_bytes()[..], &message].concat()
            };
            let (client, vip) = (ip.source, ip.destination);
            (
                packet(client, vip, 9, message(Icmpv4Type::EchoRequest(echo))),
                packet(vip, client, TTL, message(Icmpv4Type::EchoReply(echo))),
            )
        }
        Net::V6(ip, _) => {
            let packet = |kind, source, destination, ttl| {
                let icmp = Icmpv6Header::with_checksum(kind, source, destination, payload)
                    .expect("it fits");
                let message = [&icmp.to_bytes()[..], payload].concat();
                let header = Ipv6Header {
                    hop_limit: ttl,
                    ..icmpv6(source, destination, message.len())
                };
                [&header.to_bytes()[..], &message].concat()
            };
            let (client, vip) = (ip.source, ip.destination);
            (
                packet(Icmpv6Type::EchoRequest(echo), client, vip, 9),
                packet(Icmpv6Type::EchoReply(echo), vip, client, TTL),
            )
        }
    };
    (
        [ethernet, &request].concat(),
        [answered(packet, ethernet), answer].concat(),
    )
}

fn icmpv6(source: [u8; 16], destination: [u8; 16], length: usize) -> Ipv6Header {
    let mut header = Ipv6Header {
        source,
        destination,
        next_header: IpNumber::IPV6_ICMP,
        hop_limit: TTL,
        ..Ipv6Header::default()
    };
    header.set_payload_length(length).expect("it fits");
    header
}

/// The link layer of an answer: the addresses exchanged.
fn answered(packet: &Packet, ethernet: &[u8]) -> Vec<u8> {
    [&packet.src_mac[..], &packet.dst_mac, &ethernet[12..]].concat()
}
