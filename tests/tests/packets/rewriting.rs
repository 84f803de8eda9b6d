//! What a forwarded packet keeps and what it gets: TTL, checksums, options, sizes.

use etherparse::{IpDscp, IpEcn, Ipv4Options, TcpOptionElement};
use lb_common::drop_reason::DropReason;
use lb_tests::{Case, Extension, Flow, Kind, Packet};

use crate::run;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        cases.extend([1, 2, 64, 255].map(|ttl| forwarded_with_ttl(kind, ttl)));
        cases.push(expired(kind));
        cases.extend(sizes(kind));
        cases.extend([
            traffic_class(kind),
            padding(kind),
            random_looking_checksums(kind),
        ]);
        if !kind.tcp {
            cases.push(checksum_that_becomes_zero(kind));
            cases.push(unchecked(kind));
        } else {
            cases.push(tcp_options(kind));
        }
        if kind.ipv6 {
            cases.extend(extensions(kind));
        } else {
            cases.extend((1..=10).map(|words| ipv4_options(kind, words)));
        }
    }
    cases
}

/// A request and its reply, both made by `make` of a plain packet, pass.
fn both_ways(name: impl Into<String>, kind: Kind, make: impl Fn(Packet) -> Packet) -> Case {
    let flow = Flow::first(kind);
    Case::of(kind, name)
        .begin("opening", &flow, &make(flow.opening()))
        .reply("acceptance", &flow, &make(flow.acceptance()))
        .forward("request", &flow, &make(flow.request()))
        .reply("reply", &flow, &make(flow.reply()))
}

fn forwarded_with_ttl(kind: Kind, ttl: u8) -> Case {
    if ttl > 1 {
        return both_ways(format!("TTL {ttl}"), kind, |packet| packet.with_ttl(ttl));
    }
    let flow = Flow::first(kind);
    Case::of(kind, format!("TTL {ttl} begins no flow")).refuse(
        "opening",
        &flow,
        &flow.opening().with_ttl(ttl),
        DropReason::TtlExpired,
    )
}

fn expired(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let mut case = Case::of(kind, "TTL that ends here").established(&flow);
    for ttl in [1, 0] {
        let reply = flow.reply().with_ttl(ttl).build();
        case = case
            .refuse(
                format!("request, {ttl}"),
                &flow,
                &flow.request().with_ttl(ttl),
                DropReason::TtlExpired,
            )
            .refuse_reply(
                format!("reply, {ttl}"),
                &flow,
                reply,
                DropReason::TtlExpired,
            );
    }
    case
}

/// Payload sizes, the largest filling the MTU.
fn sizes(kind: Kind) -> [Case; 5] {
    let headers = if kind.ipv6 { 40 } else { 20 } + if kind.tcp { 20 } else { 8 };
    let most = 1_500 - kind.overhead() - headers;
    [
        ("no payload", 0),
        ("one byte of payload", 1),
        ("an odd payload", 777),
        ("an even payload", 778),
        ("as much as fits the way", most),
    ]
    .map(|(name, size)| {
        let payload: Vec<u8> = (0..size).map(|index| (index * 7 + 3) as u8).collect();
        both_ways(name, kind, |packet| packet.with_payload(payload.clone()))
    })
}

fn traffic_class(kind: Kind) -> Case {
    let name = "DSCP, ECN and the other IP fields are kept";
    both_ways(name, kind, |packet| {
        if kind.ipv6 {
            packet.with_ipv6(|ip| {
                ip.traffic_class = 0b1011_1011;
                ip.flow_label = 0xa_bcde.try_into().unwrap();
            })
        } else {
            packet.with_ipv4(|ip| {
                ip.dscp = IpDscp::try_new(0b10_1110).unwrap();
                ip.ecn = IpEcn::try_new(0b11).unwrap();
                ip.dont_fragment = false;
                ip.identification = 0xffff;
            })
        }
    })
}

fn padding(kind: Kind) -> Case {
    let name = "bytes behind the packet are kept and not counted";
    both_ways(name, kind, |mut packet| {
        packet.payload.clear();
        packet.padding = vec![0xa5; 17];
        packet
    })
}

/// Many payloads, so that many checksums, among them such with long carries.
fn random_looking_checksums(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let mut case = Case::of(kind, "checksums of many values").established(&flow);
    for step in 0_u32..16 {
        let payload = (step.wrapping_mul(0x9e37_79b9)).to_be_bytes();
        let request = flow.request().with_payload(payload);
        let reply = flow.reply().with_payload(payload);
        case = case
            .forward(format!("request {step}"), &flow, &request)
            .reply(format!("reply {step}"), &flow, &reply);
    }
    for checksum in [0x0000, 0x0001, 0xfffe] {
        let request = with_checksum(flow.request(), checksum, Clone::clone);
        let reply = with_checksum(flow.reply(), checksum, Clone::clone);
        case = case
            .forward(format!("request with {checksum:#06x}"), &flow, &request)
            .reply(format!("reply with {checksum:#06x}"), &flow, &reply);
    }
    case
}

/// The packet with a payload that makes the checksum of what `then` makes of it
/// `wanted`, or what stands for that.
fn with_checksum(packet: Packet, wanted: u16, then: impl Fn(&Packet) -> Packet) -> Packet {
    let packet = packet.with_payload([0, 0]);
    let now = then(&packet).transport_checksum();
    // The checksum is the complement of the sum, so it falls by what the sum rises.
    let sum = u32::from(now) + u32::from(!wanted);
    let word = (sum & 0xffff) as u16 + (sum >> 16) as u16;
    packet.with_payload(word.to_be_bytes())
}

/// Zero says that a datagram has no checksum, so 0xffff stands for it (RFC 768).
fn checksum_that_becomes_zero(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let request = with_checksum(flow.request(), 0, |packet| flow.delivered(packet));
    let reply = with_checksum(flow.reply(), 0, |packet| flow.returned(packet));
    assert_eq!(flow.delivered(&request).transport_checksum(), 0xffff);
    assert_eq!(flow.returned(&reply).transport_checksum(), 0xffff);
    let was_zero = with_checksum(flow.request(), 0, Clone::clone);
    assert_eq!(was_zero.transport_checksum(), 0xffff);
    Case::of(kind, "a checksum that becomes zero")
        .begin("request", &flow, &request)
        .reply("reply", &flow, &reply)
        .forward("request whose checksum stands for zero", &flow, &was_zero)
}

/// Without a checksum stays without: over IPv6 that is not allowed but for tunnels
/// (RFC 6935), and none of the balancer's business.
fn unchecked(kind: Kind) -> Case {
    both_ways("no checksum", kind, Packet::unchecked)
}

fn tcp_options(kind: Kind) -> Case {
    both_ways("TCP options", kind, |packet| {
        packet.with_tcp(|tcp| {
            tcp.set_options(&[
                TcpOptionElement::MaximumSegmentSize(1_460),
                TcpOptionElement::SelectiveAcknowledgementPermitted,
                TcpOptionElement::Timestamp(0x0102_0304, 0xa0b0_c0d0),
                TcpOptionElement::WindowScale(7),
            ])
            .unwrap();
        })
    })
}

fn ipv4_options(kind: Kind, words: usize) -> Case {
    // Router alert, then no-operations, each byte different to the sum.
    let mut options = vec![1; words * 4];
    options[..4].copy_from_slice(&[0x94, 4, 0, 0]);
    let name = format!("IPv4 options of {words} words");
    both_ways(name, kind, |packet| {
        packet.with_ipv4(|ip| {
            ip.options = Ipv4Options::try_from(options.as_slice()).unwrap();
        })
    })
}

fn extensions(kind: Kind) -> Vec<Case> {
    use Extension::{Destination, Fragment, HopByHop, Routing};

    let forwarded: [(&str, &[Extension]); 9] = [
        ("hop-by-hop options", &[HopByHop(6)]),
        ("destination options", &[Destination(6)]),
        (
            "a long destination options header",
            &[Destination(14 + 8 * 60)],
        ),
        ("a routing header at its end", &[Routing(0)]),
        ("an atomic fragment", &[Fragment(0, false)]),
        (
            "an atomic fragment behind options",
            &[HopByHop(14), Fragment(0, false), Destination(6)],
        ),
        (
            "every header",
            &[
                HopByHop(6),
                Destination(6),
                Routing(0),
                Fragment(0, false),
                Destination(22),
            ],
        ),
        (
            "six extension headers",
            &[
                HopByHop(6),
                Destination(6),
                Destination(6),
                Destination(6),
                Destination(6),
                Destination(6),
            ],
        ),
        (
            "six extension headers, an atomic fragment last",
            &[
                HopByHop(6),
                Destination(6),
                Destination(6),
                Routing(0),
                Destination(6),
                Fragment(0, false),
            ],
        ),
    ];
    let mut cases: Vec<_> = forwarded
        .into_iter()
        .map(|(name, extensions)| {
            both_ways(name, kind, |packet| packet.with_extensions(extensions))
        })
        .collect();

    let seven = vec![Destination(6); 7];
    let refused: [(&str, &[Extension]); 5] = [
        (
            "hop-by-hop options that do not come first",
            &[Destination(6), HopByHop(6)],
        ),
        ("seven extension headers", &seven),
        ("a routing header that leads on", &[Routing(1)]),
        (
            "a routing header that leads far on",
            &[HopByHop(6), Routing(255)],
        ),
        (
            "a routing header behind a fragment",
            &[Fragment(0, false), Routing(2)],
        ),
    ];
    let flow = Flow::first(kind);
    for (name, extensions) in refused {
        let request = flow.request().with_extensions(extensions);
        let reply = flow.reply().with_extensions(extensions);
        cases.push(
            Case::of(kind, name)
                .established(&flow)
                .discard("request", request.build(), DropReason::Ipv6Extension)
                // To the balancer's own address or a client's: the kernel's business.
                .pass("reply", flow.backend_link.ifindex, reply.build()),
        );
    }
    cases
}

#[test]
fn rewriting() {
    run("rewriting", &cases());
}
