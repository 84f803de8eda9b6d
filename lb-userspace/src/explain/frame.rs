//! The frames of a packet that is asked about.

use std::net::{IpAddr, SocketAddr};

use crate::state::{Piece, Protocol, Question};

/// Who the frames say to come from: a local address that no vendor has given.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Length of a TCP header without options.
const TCP_HEADER: usize = 20;
/// Length of a UDP header.
const UDP_HEADER: usize = 8;
/// The identification of packets in fragments.
const IDENTIFICATION: u16 = 0x6c62;
/// Flags and offset of IPv4: there are more fragments.
const MORE_FRAGMENTS: u16 = 1 << 13;
/// Flags and offset of IPv4: no fragments.
const DONT_FRAGMENT: u16 = 1 << 14;
/// IP protocol number of the fragment header.
const FRAGMENT: u8 = 44;

/// The frames for a packet, as they come to an interface with the address `receiver`; more than
/// one where it is a later fragment, which comes behind the first.
pub(super) fn frames(question: &Question, receiver: [u8; 6]) -> Vec<Vec<u8>> {
    let segment = segment(question);
    let ip = |payload: &[u8], offset: usize, part: Option<bool>| {
        frame(question, receiver, payload, offset, part)
    };
    let Some(piece) = question.fragment else {
        return vec![ip(&segment, 0, None)];
    };
    // The first fragment has the transport header, and ends at a multiple of eight bytes.
    let cut = match question.protocol {
        Protocol::Tcp => TCP_HEADER + 4,
        Protocol::Udp => UDP_HEADER + 8,
    };
    let first = ip(&segment[..cut], 0, Some(true));
    match piece {
        Piece::First => vec![first],
        Piece::Later => vec![first, ip(&segment[cut..], cut, Some(false))],
    }
}

/// The transport header and what is behind it.
fn segment(question: &Question) -> Vec<u8> {
    let mut length = usize::from(question.length);
    if question.fragment.is_some() {
        // Enough for two.
        length = length.max(24);
    }
    let (source, destination) = (question.source.port(), question.destination.port());
    let mut segment = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    let checksum_at = match question.protocol {
        Protocol::Tcp => {
            let acknowledged: u32 = if question.tcp_flags.0 & 1 << 4 == 0 {
                0
            } else {
                1
            };
            segment.extend(1_u32.to_be_bytes());
            segment.extend(acknowledged.to_be_bytes());
            segment.extend([5 << 4, question.tcp_flags.0, 0xff, 0xff, 0, 0, 0, 0]);
            16
        }
        Protocol::Udp => {
            segment.extend(((UDP_HEADER + length) as u16).to_be_bytes());
            segment.extend([0, 0]);
            6
        }
    };
    segment.resize(segment.len() + length, 0);
    let mut pseudo = Vec::new();
    pseudo.extend(octets(question.source));
    pseudo.extend(octets(question.destination));
    pseudo.extend((segment.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, question.protocol.number()]);
    pseudo.extend(&segment);
    let sum = match checksum(&pseudo) {
        // RFC 768: zero says that there is none.
        0 => 0xffff,
        sum => sum,
    };
    segment[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// A frame with a part of the segment. `more` says whether others follow, where it is in
/// fragments.
fn frame(
    question: &Question,
    receiver: [u8; 6],
    payload: &[u8],
    offset: usize,
    more: Option<bool>,
) -> Vec<u8> {
    let mut frame = [receiver, SENDER].concat();
    if question.source.is_ipv4() {
        frame.extend([8, 0]);
        let flags = match more {
            None => DONT_FRAGMENT,
            Some(true) => MORE_FRAGMENTS,
            Some(false) => 0,
        };
        let mut header = vec![0x45, 0];
        header.extend((20 + payload.len() as u16).to_be_bytes());
        header.extend(IDENTIFICATION.to_be_bytes());
        header.extend((flags | (offset / 8) as u16).to_be_bytes());
        header.extend([question.ttl, question.protocol.number(), 0, 0]);
        header.extend(octets(question.source));
        header.extend(octets(question.destination));
        let sum = checksum(&header).to_be_bytes();
        header[10..12].copy_from_slice(&sum);
        frame.extend(header);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        let extension = if more.is_some() { 8 } else { 0 };
        frame.extend((extension + payload.len() as u16).to_be_bytes());
        let next = match more {
            Some(_) => FRAGMENT,
            None => question.protocol.number(),
        };
        frame.extend([next, question.ttl]);
        frame.extend(octets(question.source));
        frame.extend(octets(question.destination));
        if let Some(more) = more {
            frame.extend([question.protocol.number(), 0]);
            frame.extend((offset as u16 | u16::from(more)).to_be_bytes());
            frame.extend(u32::from(IDENTIFICATION).to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}

fn octets(address: SocketAddr) -> Vec<u8> {
    match address.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;
    use crate::state::TcpFlags;

    fn questions() -> Vec<Question> {
        let mut questions = Vec::new();
        for (source, destination) in [
            ("198.51.100.7:40000", "192.0.2.10:443"),
            ("[2001:db8::7]:40000", "[2001:db8::10]:443"),
        ] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let question = Question::new(
                    protocol,
                    source.parse().unwrap(),
                    destination.parse().unwrap(),
                );
                questions.push(Question {
                    length: 33,
                    ..question.clone()
                });
                questions.push(question);
            }
        }
        questions
    }

    #[test]
    fn frames_are_what_another_library_reads() {
        for question in questions() {
            let [frame] = &frames(&question, [2, 3, 4, 5, 6, 7])[..] else {
                panic!("one frame");
            };
            let packet = SlicedPacket::from_ethernet(frame).unwrap();
            let (Some(net), Some(transport)) = (packet.net, packet.transport) else {
                panic!("{question:?}");
            };
            let payload = match transport {
                TransportSlice::Tcp(tcp) => {
                    assert_eq!(tcp.source_port(), question.source.port());
                    assert_eq!(tcp.destination_port(), question.destination.port());
                    assert!(tcp.syn() && !tcp.ack());
                    let expected = match &net {
                        NetSlice::Ipv4(ip) => {
                            assert_eq!(
                                ip.header().header_checksum(),
                                ip.header().to_header().calc_header_checksum()
                            );
                            tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination())
                        }
                        NetSlice::Ipv6(ip) => {
                            tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())
                        }
                        NetSlice::Arp(_) => panic!("ARP"),
                    };
                    assert_eq!(tcp.checksum(), expected.unwrap());
                    tcp.payload().len()
                }
                TransportSlice::Udp(udp) => {
                    let header = udp.to_header();
                    assert_eq!(header.destination_port, question.destination.port());
                    let expected = match &net {
                        NetSlice::Ipv4(ip) => {
                            header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload())
                        }
                        NetSlice::Ipv6(ip) => {
                            header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload())
                        }
                        NetSlice::Arp(_) => panic!("ARP"),
                    };
                    assert_eq!(header.checksum, expected.unwrap());
                    udp.payload().len()
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(payload, usize::from(question.length));
        }
    }

    #[test]
    fn later_fragments_come_behind_the_first() {
        for question in questions() {
            let question = Question {
                fragment: Some(Piece::Later),
                tcp_flags: TcpFlags(0),
                ..question
            };
            let [first, later] = &frames(&question, [2, 3, 4, 5, 6, 7])[..] else {
                panic!("two frames");
            };
            for (frame, is_first) in [(first, true), (later, false)] {
                let packet = SlicedPacket::from_ethernet(frame).unwrap();
                assert!(packet.is_ip_payload_fragmented());
                assert!(packet.transport.is_none());
                let Some(NetSlice::Ipv4(ip)) = packet.net else {
                    continue;
                };
                assert_eq!(ip.header().more_fragments(), is_first);
                assert_eq!(ip.header().fragments_offset().value() == 0, is_first);
            }
        }
    }
}
