//! *Drained backends*: what is left of the connections of a backend whose drain is over.

use std::net::IpAddr;

use etherparse::{IpNumber, Ipv4Header, Ipv6Header, TcpHeader};

use crate::{
    Packet,
    bytes::be16,
    link,
    nat::Flow,
    outcome::{Action, Drop, Outcome},
    packet::{Flags, TCP, Tuple},
    world::{Backend, Health, Path, World},
};

/// "TTL 64."
const TTL: u8 = 64;

/// Whether a packet with these flags, to or from a backend, goes no further: none but one that
/// ends a connection itself.
pub(crate) fn refuses(backend: &Backend, flags: Flags) -> bool {
    backend.health == Health::Resetting && !flags.rst()
}

/// Whether an RST may come of a packet: "none of a later fragment, of a datagram, or of an RST".
pub(crate) fn is_answered(packet: &Packet<'_>) -> bool {
    let ip = &packet.ip;
    ip.protocol == TCP && !ip.is_later_fragment() && !ip.flags(packet.bytes).rst()
}

/// Where an RST goes in place of the first packet of a flow that comes again if nobody
/// acknowledges it: "the other end is told first", if it knows of the flow, and there is a way.
/// What it has as source and destination.
pub(crate) fn onward(
    world: &World,
    before: &Flow,
    packet: &Packet<'_>,
    side: usize,
) -> Option<(Tuple, Path)> {
    let is_first = before.seen.confirmed && !before.seen.rst;
    let comes_again = length(packet) != 0 && !packet.ip.flags(packet.bytes).syn();
    if !is_first || !comes_again {
        return None;
    }
    if side == 1 {
        return Some((before.client.reversed(), before.path.clone()));
    }
    let path = world.backends.get(&before.backend)?.path.clone()?;
    Some((before.server, path))
}

/// "Its sender is answered": the RST of RFC 9293, section 3.10.7.1.
pub(crate) fn answered(drop: Drop, packet: &Packet<'_>) -> Outcome {
    let Packet { frame, ip, bytes } = packet;
    if !is_answered(packet) {
        return drop.into();
    }
    let segment = &bytes[ip.headers..];
    let ports = [be16(segment, 0), be16(segment, 2)];
    let numbers = ip.numbers(bytes).expect("a header of TCP");
    let answer = rst(ip.tuple(ports).reversed(), |tcp| {
        if ip.flags(bytes).ack() {
            tcp.sequence_number = numbers.acknowledgement;
        } else {
            tcp.ack = true;
            tcp.acknowledgment_number = numbers.sequence.wrapping_add(length(packet));
        }
    });
    Outcome {
        drop: Some(drop),
        ..Outcome::sent(Action::Transmit, frame.link.answer(frame.bytes, &answer))
    }
}

/// The other end gets an RST with the number of the packet.
pub(crate) fn passed_on(
    world: &World,
    drop: Drop,
    packet: &Packet<'_>,
    to: Tuple,
    path: &Path,
) -> Outcome {
    let Packet { frame, ip, bytes } = packet;
    let Ok(action) = link::exit(world, frame.ifindex, path) else {
        return drop.into();
    };
    let numbers = ip.numbers(bytes).expect("a header of TCP");
    let reset = rst(to, |tcp| tcp.sequence_number = numbers.sequence);
    let sent = frame.link.frame(path, frame.link.ether_type, &reset);
    Outcome {
        drop: Some(drop),
        ..Outcome::sent(action, sent)
    }
}

/// What a segment takes of the sequence space (RFC 9293, section 3.4).
fn length(packet: &Packet<'_>) -> u32 {
    let Packet { ip, bytes, .. } = packet;
    let flags = ip.flags(bytes);
    let header = usize::from(bytes[ip.headers + 12] >> 4) * 4;
    let length = ip.payload() - header + usize::from(flags.syn()) + usize::from(flags.fin());
    length as u32
}

/// The IP packet of an RST.
fn rst(tuple: Tuple, set: impl FnOnce(&mut TcpHeader)) -> Vec<u8> {
    let mut tcp = TcpHeader::new(tuple.src.port(), tuple.dst.port(), 0, 0);
    tcp.rst = true;
    set(&mut tcp);
    let length = tcp.header_len();
    match (tuple.src.ip(), tuple.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = Ipv4Header {
                dont_fragment: true,
                time_to_live: TTL,
                protocol: IpNumber::TCP,
                source: src.octets(),
                destination: dst.octets(),
                ..Ipv4Header::default()
            };
            header.set_payload_len(length).expect("it fits a packet");
            header.header_checksum = header.calc_header_checksum();
            tcp.checksum = tcp.calc_checksum_ipv4(&header, &[]).expect("it is short");
            [&header.to_bytes()[..], &tcp.to_bytes()].concat()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut header = Ipv6Header {
                next_header: IpNumber::TCP,
                hop_limit: TTL,
                source: src.octets(),
                destination: dst.octets(),
                ..Ipv6Header::default()
            };
            header.set_payload_length(length).expect("it fits a packet");
            tcp.checksum = tcp.calc_checksum_ipv6(&header, &[]).expect("it is short");
            [&header.to_bytes()[..], &tcp.to_bytes()].concat()
        }
        (src, dst) => panic!("{src} and {dst} are of different families"),
    }
}
