//! *The outer headers of `ipip` and `gue`*.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    IpDscp, IpEcn, IpNumber, Ipv4Header, Ipv6Header, UdpHeader, checksum::Sum16BitWords,
};

use crate::{
    bytes::be16,
    checksum,
    nat::checksum_offset,
    packet::{Ip, TCP, UDP, ether_type, octets},
    world::{Backend, Mode},
};

/// "TTL, hop limit: 64."
const TTL: u8 = 64;
/// Length of a GUE header without options.
pub const GUE_HEADER: usize = 4;
/// Length of a UDP header.
pub const UDP_HEADER: usize = 8;

/// The outer source: "a prefix whose host bits are the lowest bits of the flow's hash".
///
/// # Panics
///
/// Where the backend has none, which the configuration rules out.
#[must_use]
pub fn source(backend: &Backend, hash: u32) -> IpAddr {
    let mask = (1_u32 << backend.source_bits) - 1;
    match backend.source.expect("a tunnel has a source") {
        IpAddr::V4(address) => Ipv4Addr::from(u32::from(address) & !mask | hash & mask).into(),
        IpAddr::V6(address) => {
            let (mask, hash) = (u128::from(mask), u128::from(hash));
            Ipv6Addr::from(u128::from(address) & !mask | hash & mask).into()
        }
    }
}

/// "UDP source port: the lowest 15 bits of the flow's hash with the highest bit set."
#[must_use]
pub fn source_port(hash: u32) -> u16 {
    hash as u16 | 0x8000
}

/// What the outer headers add to a packet, in bytes.
#[must_use]
pub fn overhead(mode: Mode, backend: IpAddr) -> usize {
    let ip = if backend.is_ipv4() { 20 } else { 40 };
    match mode {
        Mode::Gue => ip + UDP_HEADER + GUE_HEADER,
        _ => ip,
    }
}

/// Wraps the packet of a flow with this hash. `packet` is without what stands behind it in
/// the frame.
///
/// # Panics
///
/// Where the packet is too long for an outer header; it would not fit an interface.
#[must_use]
pub fn wrap(packet: &[u8], ip: &Ip, mode: Mode, backend: &Backend, hash: u32) -> Vec<u8> {
    let inner = IpNumber(if ip.src.is_ipv4() { 4 } else { 41 });
    let src = source(backend, hash);
    let (protocol, payload) = if mode == Mode::Gue {
        // Version 0, no control message, no options; then the protocol; no flags.
        let gue = [0, inner.0, 0, 0];
        let mut payload = UdpHeader {
            source_port: source_port(hash),
            destination_port: backend.port.unwrap_or(6_080),
            length: (UDP_HEADER + GUE_HEADER + packet.len()) as u16,
            checksum: 0,
        };
        if let IpAddr::V6(dst) = backend.address {
            // "Where the headers alone don't tell, all of the packet is summed."
            let inner = sum_of(packet, ip).unwrap_or_else(|| checksum::sum(packet));
            let IpAddr::V6(src) = src else {
                panic!("source and backend are of one family")
            };
            let sum = Sum16BitWords::new()
                .add_16bytes(src.octets())
                .add_16bytes(dst.octets())
                .add_2bytes([0, UDP])
                .add_2bytes(payload.length.to_be_bytes())
                .add_slice(&payload.to_bytes())
                .add_slice(&gue)
                .add_2bytes(inner.to_be_bytes())
                .ones_complement();
            payload.checksum = checksum::of_udp(u16::from_be(sum));
        }
        let payload = [payload.to_bytes().as_slice(), &gue, packet].concat();
        (IpNumber::UDP, payload)
    } else {
        (inner, packet.to_vec())
    };
    [
        outer(packet, src, backend, protocol, payload.len()),
        payload,
    ]
    .concat()
}

/// The outer IP header.
fn outer(
    packet: &[u8],
    src: IpAddr,
    backend: &Backend,
    protocol: IpNumber,
    length: usize,
) -> Vec<u8> {
    let is_v4 = packet[0] >> 4 == 4;
    // DSCP and ECN: RFC 2983, RFC 6040 normal mode.
    let traffic_class = if is_v4 {
        packet[1]
    } else {
        (be16(packet, 0) >> 4) as u8
    };
    match (src, backend.address) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let fragment_field = be16(packet, 6);
            let dont_fragment = !is_v4 || fragment_field & 0x4000 != 0;
            let mut header = Ipv4Header {
                dscp: IpDscp::try_new(traffic_class >> 2).expect("six bits"),
                ecn: IpEcn::try_new(traffic_class & 3).expect("two bits"),
                dont_fragment,
                identification: if dont_fragment {
                    0
                } else {
                    be16(packet, 4).wrapping_add(fragment_field)
                },
                time_to_live: TTL,
                protocol,
                source: src.octets(),
                destination: dst.octets(),
                ..Ipv4Header::default()
            };
            header.set_payload_len(length).expect("it fits a packet");
            header.header_checksum = header.calc_header_checksum();
            header.to_bytes().to_vec()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut header = Ipv6Header {
                traffic_class,
                next_header: protocol,
                hop_limit: TTL,
                source: src.octets(),
                destination: dst.octets(),
                ..Ipv6Header::default()
            };
            header.set_payload_length(length).expect("it fits a packet");
            header.to_bytes().to_vec()
        }
        (src, dst) => panic!("{src} and {dst} are of different families"),
    }
}

/// The one's complement sum of a packet whose transport checksum is right, or `None` where
/// "the headers alone don't tell: UDP without a checksum or shorter than its packet, IPv6
/// extension headers, a fragment, ICMP".
fn sum_of(packet: &[u8], ip: &Ip) -> Option<u16> {
    let has_extensions = !ip.src.is_ipv4() && ip.headers != 40;
    if ip.piece.is_some() || has_extensions || ![TCP, UDP].contains(&ip.protocol) {
        return None;
    }
    let segment = packet.get(ip.headers..ip.length)?;
    let given = be16(segment, checksum_offset(ip.protocol));
    let is_udp = ip.protocol != TCP;
    if is_udp && (given == 0 || usize::from(be16(segment, 4)) != segment.len()) {
        return None;
    }
    // With the pseudo-header it would be nothing, so it is what the pseudo-header lacks.
    let pseudo = [
        octets([ip.src, ip.dst]),
        vec![0, ip.protocol],
        (segment.len() as u16).to_be_bytes().to_vec(),
    ]
    .concat();
    let headers = checksum::sum(&packet[..ip.headers]);
    let segment = !checksum::sum(&pseudo);
    Some(checksum::residue(u64::from(headers) + u64::from(segment)))
}

/// EtherType of the outer header.
#[must_use]
pub fn outer_type(backend: &Backend) -> u16 {
    ether_type(backend.address)
}
