//! Malformed and truncated packets: none is forwarded, whichever layer is broken.
//!
//! What can't be read as far as the ports is dropped where the address is a service's,
//! and passes where it is not, as replies are; what can, and belongs to a flow, is held
//! to its own lengths and checksums.

use etherparse::Ipv4Options;
use lb_common::drop_reason::DropReason;
use lb_tests::{Case, Extension, Flow, Kind, Net, Packet, Tag, Transport, edit_ipv4};

use crate::run;

/// Length of an Ethernet header: the kernel runs XDP on nothing shorter.
const ETHERNET: usize = 14;
/// What is read of an extension header at once.
const EXTENSION: usize = 8;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        cases.extend(truncated(kind));
        if kind.ipv6 {
            cases.extend(ipv6(kind));
        } else {
            cases.extend(ipv4(kind));
        }
        if kind.tcp {
            cases.push(data_offset(kind));
        } else {
            cases.push(udp_length(kind));
        }
    }
    cases
}

/// A frame that is broken, and what is expected of it.
#[derive(Clone, Copy)]
enum Broken {
    /// Not even the addresses could be read.
    Unreadable,
    /// The addresses could be read, the ports could not.
    Portless(DropReason),
    /// It belongs to the flow.
    Known(DropReason),
}

/// The same fault in a request and in a reply of an established flow.
fn fault(
    case: Case,
    flow: &Flow,
    name: &str,
    broken: Broken,
    make: impl Fn(Packet) -> Vec<u8>,
) -> Case {
    let (outside, inside) = (flow.client_link.ifindex, flow.backend_link.ifindex);
    let (request, reply) = (make(flow.request()), make(flow.reply()));
    let back = format!("{name}, from the backend");
    match broken {
        Broken::Unreadable => case.pass(name, outside, request).pass(back, inside, reply),
        Broken::Portless(reason) => case
            .discard(name, request, reason)
            .pass(back, inside, reply),
        Broken::Known(reason) => case
            .refuse_frame(name, flow, request, reason)
            .refuse_reply(back, flow, reply, reason),
    }
}

/// Frames that end too early, at every byte.
fn truncated(kind: Kind) -> Vec<Case> {
    let shapes = [
        ("no tag", Vec::new()),
        ("a tag", vec![Tag::new(5)]),
        ("two tags", vec![Tag::provider(5), Tag::new(6)]),
    ];
    let mut cases: Vec<_> = shapes
        .into_iter()
        .map(|(name, tags)| {
            let name = format!("truncated at every byte, {name}");
            truncated_at_every_byte(name, kind, |packet| packet.with_tags(&tags))
        })
        .collect();
    if kind.ipv6 {
        let extensions = [Extension::HopByHop(6), Extension::Destination(14)];
        let name = "truncated at every byte, extension headers".to_owned();
        cases.push(truncated_at_every_byte(name, kind, |packet| {
            packet.with_extensions(&extensions)
        }));
    } else {
        let name = "truncated at every byte, IPv4 options".to_owned();
        cases.push(truncated_at_every_byte(name, kind, |packet| {
            packet.with_ipv4(|ip| ip.options = Ipv4Options::try_from([1; 40].as_slice()).unwrap())
        }));
    }
    cases
}

fn truncated_at_every_byte(name: String, kind: Kind, make: impl Fn(Packet) -> Packet) -> Case {
    let flow = Flow::first(kind);
    let mut case = Case::of(kind, name).established(&flow);
    let whole = make(flow.request());
    for length in ETHERNET..whole.build().len() {
        case = fault(
            case,
            &flow,
            &format!("{length} bytes"),
            truncation(&whole, length),
            |packet| make(packet).build()[..length].to_vec(),
        );
    }
    case
}

/// What is expected of the first `length` bytes of a packet.
fn truncation(packet: &Packet, length: usize) -> Broken {
    let ip = packet.ip_offset();
    let fixed_header = match packet.net {
        Net::V4(_) => 20,
        Net::V6(..) => 40,
    };
    if length < ip + fixed_header {
        return Broken::Unreadable;
    }
    if let Net::V6(_, extensions) = &packet.net {
        let mut offset = ip + fixed_header;
        for extension in extensions {
            if length < offset + EXTENSION {
                return Broken::Portless(DropReason::Ipv6Extension);
            }
            offset += extension.length();
        }
    }
    let transport_header = match packet.transport {
        Transport::Tcp(_) => 20,
        Transport::Udp { .. } => 8,
    };
    if length < packet.transport_offset() + transport_header {
        return Broken::Portless(DropReason::TransportHeader);
    }
    Broken::Known(DropReason::IpLength)
}

/// The frame of a packet with bytes changed, offsets from the IP header.
fn poke(packet: &Packet, offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = packet.build();
    let at = packet.ip_offset() + offset;
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// The frame of a packet with bytes changed, offsets from the transport header.
fn poke_transport(packet: &Packet, offset: usize, bytes: &[u8]) -> Vec<u8> {
    let headers = packet.transport_offset() - packet.ip_offset();
    poke(packet, headers + offset, bytes)
}

fn ipv4(kind: Kind) -> Vec<Case> {
    let flow = Flow::first(kind);
    let established = |name: &str| Case::of(kind, name).established(&flow);
    let transport = if kind.tcp { 20 } else { 8 };
    let whole = flow.request().ip_length() as u16;
    let mut cases = Vec::new();

    let mut lengths = established("IPv4 total length");
    for total in [
        0,
        1,
        19,
        20,
        21,
        20 + transport - 1,
        whole + 1,
        1_500,
        65_535,
    ] {
        let reason = if (20..whole).contains(&total) {
            DropReason::TransportHeader
        } else {
            DropReason::IpLength
        };
        lengths = fault(
            lengths,
            &flow,
            &format!("total length {total}"),
            Broken::Known(reason),
            |packet| {
                let mut frame = packet.build();
                edit_ipv4(&mut frame, packet.ip_offset(), |ip| ip.total_len = total);
                frame
            },
        );
    }
    cases.push(lengths);

    let mut checksums = established("IPv4 header checksum");
    let right = flow.request().build();
    for bit in 0..16 {
        checksums = fault(
            checksums,
            &flow,
            &format!("bit {bit} wrong"),
            Broken::Known(DropReason::IpChecksum),
            |packet| {
                let frame = packet.build();
                let at = packet.ip_offset() + 10;
                let checksum = u16::from_be_bytes([frame[at], frame[at + 1]]) ^ 1 << bit;
                poke(&packet, 10, &checksum.to_be_bytes())
            },
        );
    }
    assert_ne!(right[24..26], [0, 0], "zero must be wrong here");
    cases.push(fault(
        checksums,
        &flow,
        "zero",
        Broken::Known(DropReason::IpChecksum),
        |packet| poke(&packet, 10, &[0, 0]),
    ));

    let mut options = established("IPv4 options that the checksum does not fit");
    for words in 1..=10_usize {
        options = fault(
            options,
            &flow,
            &format!("{words} words"),
            Broken::Known(DropReason::IpChecksum),
            |packet| {
                let packet = packet.with_ipv4(|ip| {
                    ip.options = Ipv4Options::try_from(vec![1; words * 4].as_slice()).unwrap();
                });
                poke(&packet, 20 + words * 4 - 1, &[0])
            },
        );
    }
    cases.push(options);

    let mut version = established("IPv4 version");
    for wrong in (0..16_u8).filter(|version| *version != 4) {
        version = fault(
            version,
            &flow,
            &format!("version {wrong}"),
            Broken::Unreadable,
            |packet| poke(&packet, 0, &[wrong << 4 | 5]),
        );
    }
    cases.push(version);

    let mut header_length = established("IPv4 header length");
    for words in 0..5_u8 {
        header_length = fault(
            header_length,
            &flow,
            &format!("{words} words"),
            Broken::Portless(DropReason::IpHeader),
            |packet| poke(&packet, 0, &[0x40 | words]),
        );
    }
    for words in 13..16_u8 {
        header_length = fault(
            header_length,
            &flow,
            &format!("{words} words, beyond the frame"),
            Broken::Portless(DropReason::TransportHeader),
            |packet| poke(&packet.with_payload([]), 0, &[0x40 | words]),
        );
    }
    cases.push(header_length);

    let mut fragments = established("IPv4 fragments");
    for (name, offset, more) in [
        ("middle fragment", 185, true),
        ("last fragment", 370, false),
        ("smallest offset", 1, false),
        ("largest offset", 0x1fff, false),
    ] {
        for dont in [false, true] {
            fragments = fault(
                fragments,
                &flow,
                name,
                Broken::Portless(DropReason::FragmentFirstMissing),
                |packet| {
                    packet
                        .with_ipv4(|ip| {
                            ip.fragment_offset = offset.try_into().unwrap();
                            (ip.more_fragments, ip.dont_fragment) = (more, dont);
                        })
                        .build()
                },
            );
        }
    }
    cases.push(fragments);
    cases
}

fn ipv6(kind: Kind) -> Vec<Case> {
    use Extension::{Destination, Fragment, HopByHop, Routing};

    let flow = Flow::first(kind);
    let established = |name: &str| Case::of(kind, name).established(&flow);
    let transport = if kind.tcp { 20 } else { 8 };
    let payload = flow.request().ip_length() as u16 - 40;
    let mut cases = Vec::new();

    let mut lengths = established("IPv6 payload length");
    for length in [0, 1, transport - 1, payload + 1, 1_460, 65_535] {
        let reason = if length > payload {
            DropReason::IpLength
        } else {
            DropReason::TransportHeader
        };
        lengths = fault(
            lengths,
            &flow,
            &format!("payload length {length}"),
            Broken::Known(reason),
            |packet| poke(&packet, 4, &length.to_be_bytes()),
        );
    }
    for length in [0_u16, 7, 15] {
        lengths = fault(
            lengths,
            &flow,
            &format!("payload length {length}, within the extension headers"),
            Broken::Known(DropReason::IpLength),
            |packet| {
                let packet = packet.with_extensions(&[HopByHop(6), Destination(6)]);
                poke(&packet, 4, &length.to_be_bytes())
            },
        );
    }
    cases.push(lengths);

    let mut version = established("IPv6 version");
    for wrong in (0..16_u8).filter(|version| *version != 6) {
        version = fault(
            version,
            &flow,
            &format!("version {wrong}"),
            Broken::Unreadable,
            |packet| poke(&packet, 0, &[wrong << 4]),
        );
    }
    cases.push(version);

    let mut chain = established("IPv6 extension headers that lead beyond the packet");
    for length in [4_u8, 8, 255] {
        // Behind the options header the frame ends.
        chain = fault(
            chain,
            &flow,
            &format!("length {length}, then the transport header"),
            Broken::Portless(DropReason::TransportHeader),
            |packet| poke(&packet.with_extensions(&[Destination(6)]), 41, &[length]),
        );
        chain = fault(
            chain,
            &flow,
            &format!("length {length}, then another header"),
            Broken::Portless(DropReason::Ipv6Extension),
            |packet| {
                let packet = packet.with_extensions(&[Destination(6), Routing(0)]);
                poke(&packet, 41, &[length])
            },
        );
    }
    cases.push(chain);

    let mut fragments = established("IPv6 fragments");
    let shapes: [(&str, &[Extension]); 3] = [
        ("middle fragment", &[Fragment(181, true)]),
        ("last fragment", &[Fragment(362, false)]),
        ("largest offset", &[Fragment(0x1fff, false)]),
    ];
    for (name, extensions) in shapes {
        fragments = fault(
            fragments,
            &flow,
            name,
            Broken::Portless(DropReason::FragmentFirstMissing),
            |packet| packet.with_extensions(extensions).build(),
        );
    }
    for next in [HopByHop(6), Routing(0), Destination(6)] {
        for offset in [0, 362] {
            let extensions = [Fragment(offset, true), next.clone()];
            fragments = fault(
                fragments,
                &flow,
                &format!("fragment at {offset} that goes on with {next:?}"),
                Broken::Portless(DropReason::Ipv6Extension),
                |packet| packet.with_extensions(&extensions).build(),
            );
        }
    }
    cases.push(fragments);
    cases
}

fn data_offset(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let mut case = Case::of(kind, "TCP data offset").established(&flow);
    // Nine bytes of payload: eight words are too many.
    for words in [0, 1, 2, 3, 4, 8, 9, 15_u8] {
        case = fault(
            case,
            &flow,
            &format!("{words} words"),
            Broken::Known(DropReason::TransportHeader),
            |packet| poke_transport(&packet, 12, &[words << 4]),
        );
    }
    case
}

fn udp_length(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let mut case = Case::of(kind, "UDP length").established(&flow);
    for length in [0, 1, 7, 18, 19, 1_472, 65_535_u16] {
        case = fault(
            case,
            &flow,
            &format!("length {length}"),
            Broken::Known(DropReason::TransportHeader),
            |packet| poke_transport(&packet, 4, &length.to_be_bytes()),
        );
    }
    case
}

#[test]
fn malformed() {
    run("malformed", &cases());
}
