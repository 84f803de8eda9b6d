//! What is unwrapped, and what comes out.

use std::net::SocketAddr;

use lb_tests::{Extension, Form, Packet, Tag, Tunnel, edit_ipv4};

use crate::{
    bench::{Case, Outcome, run, run_at_port},
    client, family, request, vip_index,
};

/// A tunnel whose inner packet reaches the stack as it is.
fn delivered(name: impl Into<String>, tunnel: &Tunnel, vip: u32) -> Case {
    let outcome = Outcome::Unwrapped {
        frame: tunnel.unwrapped(&tunnel.inner),
        vip,
        bytes: tunnel.inner.len(),
    };
    Case::new(name, tunnel.build(), outcome)
}

/// Every form of tunnel, outer and inner family, transport and number of VLAN tags.
#[test]
fn every_combination() {
    let tags: [&[Tag]; 4] = [
        &[],
        &[Tag::new(100).priority(5, true)],
        &[Tag::provider(7).priority(3, false), Tag::new(8)],
        &[Tag::new(9), Tag::new(10).priority(1, true)],
    ];
    let mut cases = Vec::new();
    for form in Form::ALL {
        for outer in [false, true] {
            for inner in [false, true] {
                for tcp in [false, true] {
                    for tags in tags {
                        let tunnel = Tunnel::new(form, outer, &request(inner, tcp))
                            .with(|tunnel| tunnel.tags = tags.to_vec());
                        let name = format!(
                            "{form:?}: {} in {}, {}, {} tags",
                            family(inner),
                            family(outer),
                            if tcp { "TCP" } else { "UDP" },
                            tags.len()
                        );
                        cases.push(delivered(name, &tunnel, vip_index(inner)));
                    }
                }
            }
        }
    }
    run("combinations", &cases);
}

/// Headers of any length, inside and outside.
#[test]
fn options_and_extensions() {
    let mut cases = Vec::new();
    for form in Form::ALL {
        for words in 1..=10 {
            let options: Vec<u8> = (0..4 * words).map(|byte| byte as u8 ^ 0x5a).collect();
            let tunnel = Tunnel::new(form, false, &request(true, true))
                .with(|tunnel| tunnel.options = options);
            let name = format!("{form:?}: {words} words of outer options");
            cases.push(delivered(name, &tunnel, 1));
        }
        for outer in [false, true] {
            let inner = request(false, true)
                .with_ipv4(|ip| ip.options = [1; 12][..].try_into().expect("three words"));
            let tunnel = Tunnel::new(form, outer, &inner);
            cases.push(delivered(format!("{form:?}: inner options"), &tunnel, 0));
            let inner = request(true, false)
                .with_extensions(&[Extension::HopByHop(6), Extension::Destination(14)]);
            let tunnel = Tunnel::new(form, outer, &inner);
            cases.push(delivered(format!("{form:?}: inner extensions"), &tunnel, 1));
        }
        let atomic = Tunnel::new(form, true, &request(false, true))
            .with(|tunnel| tunnel.fragment = Some((0, false)));
        cases.push(delivered(
            format!("{form:?}: outer atomic fragment"),
            &atomic,
            0,
        ));
    }
    run("options and extensions", &cases);
}

/// Fragments of inner packets are packets.
#[test]
fn inner_fragments() {
    let mut cases = Vec::new();
    for form in Form::ALL {
        for (offset, more) in [(0, true), (185, true), (370, false)] {
            let v4 = request(false, false).with_ipv4(|ip| {
                ip.dont_fragment = false;
                ip.fragment_offset = offset.try_into().expect("13 bits");
                ip.more_fragments = more;
            });
            let v6 = request(true, false).with_extensions(&[Extension::Fragment(offset, more)]);
            for (index, inner) in [v4, v6].iter().enumerate() {
                let tunnel = Tunnel::new(form, false, inner);
                let name = format!("{form:?}: inner fragment at {offset}, VIP {index}");
                cases.push(delivered(name, &tunnel, index as u32));
            }
        }
    }
    run("inner fragments", &cases);
}

/// Of what is inside, only length and destination matter here: the stack looks at the
/// rest itself.
#[test]
fn the_rest_is_left_to_the_stack() {
    let mut cases = Vec::new();
    for form in Form::ALL {
        let mut tunnel = Tunnel::new(form, false, &request(false, true));
        tunnel.inner[10] ^= 0xff;
        cases.push(delivered(format!("{form:?}: inner checksum"), &tunnel, 0));
        let tunnel = Tunnel::new(form, false, &request(false, true).with_ttl(0));
        cases.push(delivered(format!("{form:?}: inner TTL 0"), &tunnel, 0));
        for (number, what) in [(1, "ICMP"), (4, "a tunnel"), (132, "SCTP"), (17, "nothing")] {
            let mut inner = request(false, true).with_payload([0; 0]).build()[14..34].to_vec();
            edit_ipv4(&mut inner, 0, |ip| {
                ip.protocol = number.into();
                ip.total_len = 20;
            });
            let tunnel =
                Tunnel::new(form, false, &request(false, true)).with(|tunnel| tunnel.inner = inner);
            cases.push(delivered(format!("{form:?}: inner {what}"), &tunnel, 0));
        }
        for outer in [false, true] {
            let inner = request(true, true).with_ipv6(|ip| {
                ip.traffic_class = 0b1011_1000;
                ip.hop_limit = 0;
            });
            let tunnel = Tunnel::new(form, outer, &inner);
            cases.push(delivered(format!("{form:?}: inner DSCP"), &tunnel, 1));
        }
        // Nothing says that there is a checksum, and nobody looks whether it is right.
        let mut tunnel = Tunnel::new(form, true, &request(false, true));
        tunnel.inner.push(0);
        let mut case = delivered(format!("{form:?}: UDP checksum"), &tunnel, 0);
        let udp = tunnel.payload_offset();
        if form != Form::Ipip {
            case.frame[udp + 6] ^= 0x55;
            case.outcome = Outcome::Unwrapped {
                frame: tunnel.unwrapped(&tunnel.inner[..tunnel.inner.len() - 1]),
                vip: 0,
                bytes: tunnel.inner.len() - 1,
            };
            cases.push(case);
        }
    }
    run("left to the stack", &cases);
}

/// A tunnel in a tunnel is unwrapped once: what comes out is for the stack.
#[test]
fn tunnels_in_tunnels() {
    let mut cases = Vec::new();
    for form in Form::ALL {
        for inner_form in Form::ALL {
            for ipv6 in [false, true] {
                let (src, dst) = (client(ipv6).ip(), crate::vip(ipv6).ip());
                let within = Tunnel::new(inner_form, ipv6, &request(!ipv6, true))
                    .with(|tunnel| (tunnel.src, tunnel.dst) = (src, dst));
                let tunnel = Tunnel::new(form, !ipv6, &request(false, true))
                    .with(|tunnel| tunnel.inner = within.build()[14..].to_vec());
                let name = format!("{inner_form:?} in {form:?}, {}", family(ipv6));
                cases.push(delivered(name, &tunnel, vip_index(ipv6)));
            }
        }
    }
    run("tunnels in tunnels", &cases);
}

/// What stands behind the inner packet does not reach the stack.
#[test]
fn padding() {
    let mut cases = Vec::new();
    for form in Form::ALL {
        for outer in [false, true] {
            for inner in [false, true] {
                let name = |what: &str| {
                    format!("{form:?}: {} in {}, {what}", family(inner), family(outer))
                };
                let plain = Tunnel::new(form, outer, &request(inner, false));
                let vip = vip_index(inner);
                let exact = Outcome::Unwrapped {
                    frame: plain.unwrapped(&plain.inner),
                    vip,
                    bytes: plain.inner.len(),
                };
                for length in [1, 17, 400] {
                    let padded = plain
                        .clone()
                        .with(|tunnel| tunnel.padding = vec![0xee; length]);
                    let what = format!("{length} bytes behind the outer packet");
                    cases.push(Case::new(name(&what), padded.build(), exact.clone()));
                    let padded = plain
                        .clone()
                        .with(|tunnel| tunnel.inner.extend(vec![0xee; length]));
                    let what = format!("{length} bytes behind the inner packet");
                    cases.push(Case::new(name(&what), padded.build(), exact.clone()));
                    if form != Form::Ipip {
                        let padded = padded.with(|tunnel| tunnel.udp_excess = -(length as i32));
                        let what = format!("{length} bytes behind the datagram");
                        cases.push(Case::new(name(&what), padded.build(), exact.clone()));
                    }
                }
            }
        }
    }
    run("padding", &cases);
}

/// Frames of several buffers: only the first is at hand, all count.
#[test]
fn jumbo_frames() {
    let mut cases = Vec::new();
    for form in Form::ALL {
        for outer in [false, true] {
            for inner in [false, true] {
                for size in [1_472, 3_000, 3_600, 4_096, 8_900, 40_000] {
                    let payload: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
                    let packet = request(inner, false).with_payload(payload);
                    let tunnel = Tunnel::new(form, outer, &packet);
                    let name = format!(
                        "{form:?}: {size} bytes, {} in {}",
                        family(inner),
                        family(outer)
                    );
                    let vip = vip_index(inner);
                    cases.push(delivered(&name, &tunnel, vip));
                    let tagged = tunnel
                        .clone()
                        .with(|tunnel| tunnel.tags = vec![Tag::provider(7), Tag::new(8)]);
                    cases.push(delivered(format!("{name}, tagged"), &tagged, vip));
                    let padded = tunnel.clone().with(|tunnel| tunnel.padding = vec![0; 33]);
                    let outcome = Outcome::Unwrapped {
                        frame: tunnel.unwrapped(&tunnel.inner),
                        vip,
                        bytes: tunnel.inner.len(),
                    };
                    cases.push(Case::new(
                        format!("{name}, padded"),
                        padded.build(),
                        outcome,
                    ));
                }
            }
        }
    }
    run("jumbo frames", &cases);
}

/// A VIP may be a prefix, and the most specific one counts.
#[test]
fn prefixes() {
    let mut cases = Vec::new();
    for (address, vip) in [
        ("203.0.113.0", 2),
        ("203.0.113.63", 2),
        ("203.0.113.64", 3),
        ("203.0.113.127", 3),
        ("203.0.113.128", 2),
        ("203.0.113.255", 2),
        ("2001:db8:9::", 4),
        ("2001:db8:9:7fff:ffff:ffff:ffff:ffff", 4),
        ("2001:db8:9:8000::", 5),
        ("2001:db8:9:ffff:ffff:ffff:ffff:ffff", 5),
    ] {
        let dst = SocketAddr::new(address.parse().expect("an address"), 53);
        let inner = Packet::udp(client(dst.is_ipv6()), dst);
        for form in Form::ALL {
            for outer in [false, true] {
                let tunnel = Tunnel::new(form, outer, &inner);
                cases.push(delivered(format!("{form:?}: to {address}"), &tunnel, vip));
            }
        }
    }
    run("prefixes", &cases);
}

/// GUE at a port of its own leaves the usual one alone.
#[test]
fn another_port() {
    let mut cases = Vec::new();
    for form in [Form::Gue0, Form::Gue1] {
        for outer in [false, true] {
            let usual = Tunnel::new(form, outer, &request(false, true));
            let chosen = usual.clone().with(|tunnel| tunnel.port = 7_777);
            cases.push(delivered(format!("{form:?}: chosen port"), &chosen, 0));
            cases.push(Case::new(
                format!("{form:?}: usual port"),
                usual.build(),
                Outcome::Foreign,
            ));
        }
    }
    run_at_port("another port", 7_777, &cases);
}
