//! Fragments: parts of packets, and what is remembered of the first.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header};
use lb_common::fragment::{Fragment, FragmentKey4, FragmentKey6};

use crate::packet::{Extension, Net, Packet, Transport};

/// What is remembered of a first fragment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct First {
    src: SocketAddr,
    dst: SocketAddr,
    protocol: u32,
    identification: u32,
    /// Bytes of the fragmentable part.
    length: u32,
}

impl First {
    /// What should be remembered of this packet, a first fragment.
    #[must_use]
    pub fn of(packet: &Packet) -> Self {
        let (src_port, dst_port, protocol) = match &packet.transport {
            Transport::Tcp(tcp) => (tcp.source_port, tcp.destination_port, 6),
            Transport::Udp { header, .. } => (header.source_port, header.destination_port, 17),
        };
        let (src, dst, identification) = match &packet.net {
            Net::V4(ip) => (
                IpAddr::from(ip.source),
                IpAddr::from(ip.destination),
                ip.identification.into(),
            ),
            Net::V6(ip, _) => (
                IpAddr::from(ip.source),
                IpAddr::from(ip.destination),
                Extension::IDENTIFICATION,
            ),
        };
        let headers = packet.transport_offset() - packet.ip_offset();
        Self {
            src: (src, src_port).into(),
            dst: (dst, dst_port).into(),
            protocol,
            identification,
            length: (packet.ip_length() - headers) as u32,
        }
    }

    /// The same, but the first fragment has this many bytes of the packet.
    #[must_use]
    pub fn with_length(self, length: usize) -> Self {
        let length = length as u32;
        Self { length, ..self }
    }

    pub(crate) fn from_v4(key: FragmentKey4, fragment: Fragment) -> Self {
        let [src, dst] = [key.src, key.dst].map(|word| IpAddr::from(word.to_ne_bytes()));
        Self::new((src, dst), key.protocol, key.identification, fragment)
    }

    pub(crate) fn from_v6(key: FragmentKey6, fragment: Fragment) -> Self {
        let [src, dst] = [key.src, key.dst].map(|words| {
            let mut bytes = [0; 16];
            for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
                chunk.copy_from_slice(&word.to_ne_bytes());
            }
            IpAddr::from(bytes)
        });
        let identification = u32::from_be(key.identification);
        Self::new((src, dst), key.protocol, identification, fragment)
    }

    fn new(
        (src, dst): (IpAddr, IpAddr),
        protocol: u32,
        identification: u32,
        fragment: Fragment,
    ) -> Self {
        let [a, b, c, d] = fragment.ports.to_ne_bytes();
        Self {
            src: (src, u16::from_be_bytes([a, b])).into(),
            dst: (dst, u16::from_be_bytes([c, d])).into(),
            protocol,
            identification,
            length: fragment.length,
        }
    }
}

/// The frames of the fragments of a packet, each with `size` bytes of it, a multiple of
/// eight.
#[must_use]
pub fn split(packet: &Packet, size: usize) -> Vec<Vec<u8>> {
    let frame = packet.build();
    let (ethernet, ip) = frame.split_at(packet.ip_offset());
    let fragment = |header: &[u8], part: &[u8]| [ethernet, header, part].concat();
    let mut frames = Vec::new();
    match &packet.net {
        Net::V4(_) => {
            let (header, payload) = Ipv4Header::from_slice(ip).expect("an IPv4 header");
            for (index, part) in payload.chunks(size).enumerate() {
                let mut header = header.clone();
                let offset = (index * size / 8) as u16;
                header.fragment_offset = offset.try_into().expect("13 bits");
                header.more_fragments = index * size + part.len() < payload.len();
                header.set_payload_len(part.len()).expect("it fits");
                header.header_checksum = header.calc_header_checksum();
                frames.push(fragment(&header.to_bytes(), part));
            }
        }
        Net::V6(..) => {
            let (header, payload) = Ipv6Header::from_slice(ip).expect("an IPv6 header");
            for (index, part) in payload.chunks(size).enumerate() {
                let extension = Ipv6FragmentHeader {
                    next_header: header.next_header,
                    fragment_offset: ((index * size / 8) as u16).try_into().expect("13 bits"),
                    more_fragments: index * size + part.len() < payload.len(),
                    identification: Extension::IDENTIFICATION,
                };
                let mut header = header.clone();
                header.next_header = IpNumber::IPV6_FRAGMENTATION_HEADER;
                let length = Ipv6FragmentHeader::LEN + part.len();
                header.set_payload_length(length).expect("it fits");
                let headers = [&header.to_bytes()[..], &extension.to_bytes()].concat();
                frames.push(fragment(&headers, part));
            }
        }
    }
    frames
}
