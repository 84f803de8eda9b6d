//! What the balancer says itself, in ICMP.

use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpDscp, IpNumber,
    Ipv4Header, Ipv6Header, icmpv4::DestUnreachableHeader,
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
    let quote = &frame[begin..begin + packet.ip_length()];
    let (header, message) = match &packet.net {
        Net::V4(ip) => {
            let quote = &quote[..quote.len().min(MOST_V4 - Ipv4Header::MIN_LEN - 8)];
            let kind = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
            let icmp = Icmpv4Header::with_checksum(Icmpv4Type::DestinationUnreachable(kind), quote);
            let message = [&icmp.to_bytes()[..], quote].concat();
            let mut header = Ipv4Header {
                source: ip.destination,
                destination: ip.source,
                // Internetwork control.
                dscp: IpDscp::try_new(48).expect("six bits"),
                dont_fragment: true,
                time_to_live: TTL,
                protocol: IpNumber::ICMP,
                ..Ipv4Header::default()
            };
            header.set_payload_len(message.len()).expect("it fits");
            header.header_checksum = header.calc_header_checksum();
            (header.to_bytes().to_vec(), message)
        }
        Net::V6(ip, _) => {
            let quote = &quote[..quote.len().min(MOST_V6 - Ipv6Header::LEN - 8)];
            let kind = Icmpv6Type::PacketTooBig { mtu: mtu.into() };
            let icmp = Icmpv6Header::with_checksum(kind, ip.destination, ip.source, quote)
                .expect("it fits");
            let message = [&icmp.to_bytes()[..], quote].concat();
            let header = icmpv6(ip.destination, ip.source, message.len());
            (header.to_bytes().to_vec(), message)
        }
    };
    let ethernet = answered(packet, &frame[..begin]);
    [ethernet, header, message].concat()
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
