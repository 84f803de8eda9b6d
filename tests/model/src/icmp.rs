//! *ICMP*: echo requests, errors about flows, and packets that are too big.

use std::net::IpAddr;

use etherparse::{IpDscp, IpNumber, Ipv4Header, Ipv6Header, checksum::Sum16BitWords};

use crate::{
    bytes::{be16, get16, put16},
    checksum, nat,
    outcome::Reason,
    packet::{self, ICMP, ICMPV6, Ip, Read, TCP, Tuple, UDP},
};

/// Length of the header of every message that the balancer reads.
pub const HEADER: usize = 8;
/// TTL and hop limit of what the balancer says itself.
const TTL: u8 = 64;

/// "At most 100 of these are sent in a tenth of a second per CPU."
pub const ANSWERS_PER_TICK: u32 = 100;

/// "With the packet's first bytes: of IPv4 as many as make 576 bytes, of IPv6 1,280."
const MAX_ERROR_V4: usize = 576;
const MAX_ERROR_V6: usize = 1_280;

/// What kind of ICMP message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// An echo request.
    EchoRequest,
    /// An error: one that TCP and UDP react to. For "fragmentation needed" and "packet too
    /// big", the MTU.
    Error(Option<u32>),
    /// Anything else.
    Other,
}

/// Whether a packet is an ICMP message of its own family.
#[must_use]
pub fn is_icmp(ip: &Ip) -> bool {
    ip.protocol == if ip.src.is_ipv4() { ICMP } else { ICMPV6 }
}

/// The kind of an ICMP message; `None` where not even its header is there.
#[must_use]
pub fn message(ip: &Ip, packet: &[u8]) -> Option<Message> {
    let header = packet.get(ip.headers..ip.headers + HEADER)?;
    let message = match (ip.protocol, header[0], header[1]) {
        (ICMP, 8, 0) | (ICMPV6, 128, 0) => Message::EchoRequest,
        (ICMP, 3, 4) => Message::Error(Some(be16(header, 6).into())),
        (ICMP, 3 | 11 | 12, _) => Message::Error(None),
        (ICMPV6, 2, _) => Message::Error(Some(
            u32::from(be16(header, 4)) << 16 | u32::from(be16(header, 6)),
        )),
        (ICMPV6, 1 | 3 | 4, _) => Message::Error(None),
        _ => Message::Other,
    };
    Some(message)
}

/// The reply to an echo request: "TTL 64; the rest as they came".
#[must_use]
pub fn echo_reply(packet: &[u8], ip: &Ip) -> Vec<u8> {
    let mut reply = packet.to_vec();
    packet::edit_header(&mut reply, |header| {
        packet::set_addresses(header, ip.dst, ip.src);
        header[if ip.src.is_ipv4() { 8 } else { 7 }] = TTL;
    });
    let message = &mut reply[ip.headers..];
    let before = [message[0], message[1]];
    message[0] = if ip.protocol == ICMP { 0 } else { 129 };
    let after = [message[0], message[1]];
    let new = checksum::updated(be16(message, 2), &before, &after);
    put16(message, 2, new);
    reply
}

/// A packet that an error quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Its headers.
    pub ip: Ip,
    /// Its tuple, as it was sent.
    pub tuple: Tuple,
}

/// What is quoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quoted {
    /// A TCP or UDP packet of which "addresses, protocol and eight bytes of the transport
    /// header" are there.
    Packet(Quote),
    /// A packet of another protocol, or of another sender.
    Foreign,
    /// Less than that.
    Incomplete,
}

/// Reads what the error in `packet` quotes.
#[must_use]
pub fn quoted(ip: &Ip, packet: &[u8]) -> Quoted {
    let quote = &packet[ip.headers + HEADER..];
    read_quote(packet::ether_type(ip.src), quote, Some(ip.dst))
}

/// Whether a packet of whose header the addresses are there has this source.
fn was_sent_by(packet: &[u8], address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => packet[12..16] == address.octets(),
        IpAddr::V6(address) => packet[8..24] == address.octets(),
    }
}

/// Reads the begin of a packet; of one that `by` has sent, since an error goes to who has
/// sent the packet.
#[must_use]
pub fn read_quote(ether_type: u16, quote: &[u8], by: Option<IpAddr>) -> Quoted {
    let complete = match ether_type {
        crate::link::IPV4 => quote.len() >= 20 && quote[0] >> 4 == 4,
        _ => quote.len() >= 40 && quote[0] >> 4 == 6,
    };
    match packet::read(ether_type, quote) {
        _ if !complete => Quoted::Incomplete,
        _ if !by.is_none_or(|by| was_sent_by(quote, by)) => Quoted::Foreign,
        Read::Packet(ip) if ![TCP, UDP].contains(&ip.protocol) => Quoted::Foreign,
        // What is a fragment has its ports nowhere, or is told of by its first.
        Read::Packet(ip) if ip.piece.is_some() => Quoted::Incomplete,
        Read::Packet(ip) if quote.len() < ip.headers + 8 => Quoted::Incomplete,
        Read::Packet(ip) => match ip.ports(quote) {
            Some(ports) => Quoted::Packet(Quote {
                tuple: ip.tuple(ports),
                ip,
            }),
            None => Quoted::Incomplete,
        },
        Read::Foreign => Quoted::Foreign,
        Read::Broken { .. } => Quoted::Incomplete,
    }
}

/// What an error about a flow is held to.
///
/// # Errors
///
/// The first that is wrong.
pub fn check(ip: &Ip, quote: &Quote, packet: &[u8]) -> Result<(), Reason> {
    ip.check_headers(packet)?;
    ip.check_ttl()?;
    // What stands behind the message in the frame is no part of it.
    if ip.headers + HEADER + quote.ip.headers + 8 > ip.length {
        return Err(Reason::IcmpHeader);
    }
    Ok(())
}

/// Gives an error other addresses, and what it quotes another tuple. "The IP header
/// checksum in the quote is updated, the transport checksum too if it is quoted, unless it
/// is the zero of UDP."
pub fn translate(packet: &mut [u8], ip: &Ip, src: IpAddr, dst: IpAddr, quote: &Quote, to: Tuple) {
    let mut before = packet[ip.headers + HEADER..ip.length].to_vec();
    packet::edit_header(packet, |header| {
        packet::set_addresses(header, src, dst);
    });
    let message = &mut packet[ip.headers..ip.length];
    nat::translate(&mut message[HEADER..], &quote.ip, to);
    let mut after = message[HEADER..].to_vec();
    // The checksum pads an odd byte; it stays the same, and so does the padding.
    for bytes in [&mut before, &mut after] {
        bytes.resize(bytes.len().next_multiple_of(2), 0);
    }
    // ICMPv6 covers the addresses too (RFC 4443, section 2.3).
    if ip.protocol == ICMPV6 {
        before.extend(packet::octets([ip.src, ip.dst]));
        after.extend(packet::octets([src, dst]));
    }
    let new = checksum::updated(be16(message, 2), &before, &after);
    put16(message, 2, new);
}

/// "Its sender gets ICMP fragmentation needed or ICMPv6 packet too big, from the address
/// that the packet was sent to." `packet` has no Ethernet padding.
#[must_use]
pub fn too_big(packet: &[u8], ip: &Ip, mtu: u32) -> Vec<u8> {
    match (ip.dst, ip.src) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let most = MAX_ERROR_V4 - 20 - HEADER;
            let mtu = mtu.max(68);
            let quote = &packet[..packet.len().min(most)];
            let mut message = vec![3, 4, 0, 0, 0, 0, 0, 0];
            put16(&mut message, 6, mtu.min(0xffff) as u16);
            message.extend(quote);
            let sum = Sum16BitWords::new().add_slice(&message).ones_complement();
            put16(&mut message, 2, u16::from_be(sum));
            let mut header = Ipv4Header {
                // Internetwork control (RFC 1812, section 4.3.2.5).
                dscp: IpDscp::try_new(0b11_0000).expect("six bits"),
                dont_fragment: true,
                time_to_live: TTL,
                protocol: IpNumber(ICMP),
                source: src.octets(),
                destination: dst.octets(),
                ..Ipv4Header::default()
            };
            header.set_payload_len(message.len()).expect("576 bytes");
            header.header_checksum = header.calc_header_checksum();
            [header.to_bytes().as_slice(), &message].concat()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let most = MAX_ERROR_V6 - 40 - HEADER;
            let mtu = mtu.max(1_280);
            let quote = &packet[..packet.len().min(most)];
            let mut message = vec![2, 0, 0, 0];
            message.extend(mtu.to_be_bytes());
            message.extend(quote);
            let sum = Sum16BitWords::new()
                .add_16bytes(src.octets())
                .add_16bytes(dst.octets())
                .add_4bytes((message.len() as u32).to_be_bytes())
                .add_2bytes([0, ICMPV6])
                .add_slice(&message)
                .ones_complement();
            put16(&mut message, 2, u16::from_be(sum));
            let mut header = Ipv6Header {
                next_header: IpNumber(ICMPV6),
                hop_limit: TTL,
                source: src.octets(),
                destination: dst.octets(),
                ..Ipv6Header::default()
            };
            header
                .set_payload_length(message.len())
                .expect("1,280 bytes");
            [header.to_bytes().as_slice(), &message].concat()
        }
        (src, dst) => panic!("{src} and {dst} are of different families"),
    }
}

/// The packet inside the quote of a tunnel's packet, and the family of its addresses:
/// *Errors*, "it was wrapped by `ipip` or `gue`".
#[must_use]
pub fn wrapped(outer: &Outer, quote: &[u8]) -> Option<(u16, Vec<u8>)> {
    let inner = quote.get(outer.headers..)?;
    let (protocol, packet) = if outer.protocol == UDP {
        let gue = inner.get(8..12)?;
        if gue[0] != 0 || gue[2..] != [0, 0] || get16(inner, 2)? != outer.port? {
            return None;
        }
        (gue[1], &inner[12..])
    } else {
        (outer.protocol, inner)
    };
    match protocol {
        4 => Some((crate::link::IPV4, packet.to_vec())),
        41 => Some((crate::link::IPV6, packet.to_vec())),
        _ => None,
    }
}

/// The outer headers that an error quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Source.
    pub src: IpAddr,
    /// Destination: the backend.
    pub dst: IpAddr,
    /// 4, 41 or 17.
    pub protocol: u8,
    /// Length of the IP header.
    pub headers: usize,
    /// UDP destination port, where the protocol is 17.
    pub port: Option<u16>,
}

/// Reads the outer header in a quote, if it may be a tunnel's.
#[must_use]
pub fn outer(family: IpAddr, quote: &[u8]) -> Option<Outer> {
    let (headers, protocol) = if family.is_ipv4() {
        // The balancer sets no options.
        quote.first().filter(|byte| **byte == 0x45)?;
        (20, *quote.get(9)?)
    } else {
        quote.first().filter(|byte| **byte >> 4 == 6)?;
        (40, *quote.get(6)?)
    };
    let address = |at: usize| -> Option<IpAddr> {
        Some(if family.is_ipv4() {
            <[u8; 4]>::try_from(quote.get(at..at + 4)?).ok()?.into()
        } else {
            <[u8; 16]>::try_from(quote.get(at..at + 16)?).ok()?.into()
        })
    };
    let (src, dst) = if family.is_ipv4() { (12, 16) } else { (8, 24) };
    [4, 41, UDP].contains(&protocol).then_some(())?;
    Some(Outer {
        src: address(src)?,
        dst: address(dst)?,
        protocol,
        headers,
        port: (protocol == UDP)
            .then(|| get16(quote, headers + 2))
            .flatten(),
    })
}
