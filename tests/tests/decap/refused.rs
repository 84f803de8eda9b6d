//! Whose tunnels are taken, and for whom.

use std::net::{IpAddr, SocketAddr};

use lb_common::{decap::Passed, drop_reason::DropReason};
use lb_tests::{BACKEND_IF, CLIENT_IF, Form, Packet, Tag, Tunnel};

use crate::{
    bench::{Case, Outcome, run},
    client, family, request, vip_index,
};

#[test]
fn sources() {
    let mut cases = Vec::new();
    for (source, allowed) in [
        ("10.0.0.0", true),
        ("10.0.0.255", true),
        ("10.0.1.0", false),
        ("9.255.255.255", false),
        ("172.16.0.9", true),
        ("172.16.0.8", false),
        ("198.51.100.7", false),
        ("10.0.0.11", true),
        ("2001:db8:3::", true),
        ("2001:db8:3:0:ffff:ffff:ffff:ffff", true),
        ("2001:db8:3:1::", false),
        ("2001:db8:2:ffff:ffff:ffff:ffff:ffff", false),
        ("::ffff:10.0.0.1", false),
    ] {
        let source: IpAddr = source.parse().expect("an address");
        for form in Form::ALL {
            for inner in [false, true] {
                for ifindex in [CLIENT_IF, BACKEND_IF] {
                    let tunnel = Tunnel::new(form, source.is_ipv6(), &request(inner, true))
                        .with(|tunnel| tunnel.src = source);
                    let outcome = if allowed && ifindex == CLIENT_IF {
                        Outcome::Unwrapped {
                            frame: tunnel.unwrapped(&tunnel.inner),
                            vip: vip_index(inner),
                            bytes: tunnel.inner.len(),
                        }
                    } else {
                        Outcome::Dropped(DropReason::TunnelSource)
                    };
                    let name = format!(
                        "{form:?}: {} from {source} by interface {ifindex}",
                        family(inner)
                    );
                    let mut case = Case::new(name, tunnel.build(), outcome);
                    case.ifindex = ifindex;
                    cases.push(case);
                }
            }
        }
    }
    run("sources", &cases);
}

/// What is for no VIP may be for a tunnel device of the host, whoever it comes from.
#[test]
fn other_destinations() {
    let mut cases = Vec::new();
    for destination in [
        "192.0.2.9",
        "192.0.2.11",
        "203.0.112.255",
        "203.0.114.0",
        "10.0.0.11",
        "2001:db8:2::11",
        "2001:db8:2::",
        "2001:db8:8:ffff::",
        "2001:db8:a::",
    ] {
        let destination: IpAddr = destination.parse().expect("an address");
        let ipv6 = destination.is_ipv6();
        let inner = Packet::udp(client(ipv6), SocketAddr::new(destination, 443));
        for form in Form::ALL {
            for outer in [false, true] {
                let tunnel =
                    Tunnel::new(form, outer, &inner).with(|tunnel| tunnel.tags = vec![Tag::new(3)]);
                let name = format!("{form:?}: to {destination} in {}", family(outer));
                let outcome = Outcome::Left(Passed::NotVip);
                cases.push(Case::new(&name, tunnel.build(), outcome.clone()));
                let mut elsewhere =
                    Case::new(format!("{name}, from a stranger"), tunnel.build(), outcome);
                elsewhere.ifindex = BACKEND_IF;
                cases.push(elsewhere);
            }
        }
    }
    run("other destinations", &cases);
}

/// Fragments of tunnel packets are for the stack to put together. Of those of UDP, only
/// the first says what it is.
#[test]
fn outer_fragments() {
    let mut cases = Vec::new();
    for form in Form::ALL {
        for outer in [false, true] {
            for inner in [false, true] {
                for (offset, more) in [(0, true), (100, true), (8_191, false), (1, false)] {
                    let tunnel = Tunnel::new(form, outer, &request(inner, false))
                        .with(|tunnel| tunnel.fragment = Some((offset, more)));
                    let outcome = match form {
                        Form::Gue0 | Form::Gue1 if offset > 0 => Outcome::Foreign,
                        _ => Outcome::Left(Passed::Fragment),
                    };
                    let name = format!(
                        "{form:?}: {} in {}, fragment at {offset}, more {more}",
                        family(inner),
                        family(outer)
                    );
                    cases.push(Case::new(&name, tunnel.build(), outcome.clone()));
                    // The stack sees what is wrong with it itself.
                    let lie = tunnel.with(|tunnel| tunnel.ip_excess = 1);
                    cases.push(Case::new(format!("{name}, too long"), lie.build(), outcome));
                }
            }
        }
    }
    run("outer fragments", &cases);
}
