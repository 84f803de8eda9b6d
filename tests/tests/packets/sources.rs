//! What no client sends: martian sources, packets from the address itself, hairpins.

use std::net::{IpAddr, SocketAddr};

use lb_common::{drop_reason::DropReason, service::Mode};
use lb_tests::{Case, Flow, Kind};

use crate::run;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        cases.extend([martian(kind), odd(kind), land(kind)]);
        cases.extend(hairpin(kind));
    }
    cases
}

pub(crate) fn from(kind: Kind, client: SocketAddr) -> Flow {
    let mut flow = Flow::first(kind);
    flow.client = client;
    if !kind.is_full_nat() {
        flow.source = client;
    }
    flow
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    let parse = |text: &&str| text.parse().expect("an address");
    texts.iter().map(parse).collect()
}

/// The borders of every prefix.
fn martian(kind: Kind) -> Case {
    let sources = if kind.ipv6 {
        addresses(&[
            "::",
            "::1",
            "::ffff:0:0",
            "::ffff:198.51.100.7",
            "::ffff:ffff:ffff",
            "ff00::",
            "ff02::1",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ])
    } else {
        addresses(&[
            "0.0.0.0",
            "0.255.255.255",
            "127.0.0.0",
            "127.0.0.1",
            "127.255.255.255",
            "224.0.0.0",
            "239.1.2.3",
            "240.0.0.1",
            "255.255.255.255",
        ])
    };
    let mut case = Case::of(kind, "martian sources");
    for source in sources {
        let flow = from(kind, (source, 40_000).into());
        let reason = DropReason::MartianSource;
        case = case.refuse(source.to_string(), &flow, &flow.opening(), reason);
        if kind.mode != Mode::FullNat || !kind.tcp {
            let name = format!("{source}, data");
            case = case.refuse(name, &flow, &flow.request(), reason);
        }
    }
    case
}

/// Right outside the prefixes.
fn odd(kind: Kind) -> Case {
    let sources = if kind.ipv6 {
        addresses(&[
            "::2",
            "::1:0:0:1",
            "::fffe:ffff:ffff",
            "::1:0:0",
            "1::ffff:0:0",
            "0:0:0:1::1",
            "fe80::1",
            "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ])
    } else {
        addresses(&[
            "1.0.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "223.255.255.255",
            "169.254.0.1",
            "10.9.8.7",
        ])
    };
    let mut case = Case::of(kind, "odd sources that are none");
    for (index, source) in sources.into_iter().enumerate() {
        let mut flow = from(kind, (source, 40_000).into());
        if kind.is_full_nat() {
            let port = flow.source.port() + index as u16;
            flow = flow.through_port(port);
        }
        case = case.begin(source.to_string(), &flow, &flow.opening());
    }
    case
}

/// From the address itself, also from the very port.
fn land(kind: Kind) -> Case {
    let mut case = Case::of(kind, "from the address itself");
    for port in [kind.vip().port(), 40_000] {
        let flow = from(kind, (kind.vip().ip(), port).into());
        case = case.refuse(
            format!("port {port}"),
            &flow,
            &flow.opening(),
            DropReason::MartianSource,
        );
    }
    case
}

/// The backend is its own client. Tunnels to the other family have no such thing.
fn hairpin(kind: Kind) -> Option<Case> {
    let address = kind.backend_address(kind.backend());
    if address.is_ipv6() != kind.ipv6 {
        return None;
    }
    let case = Case::of(kind, "a backend that is its own client");
    let mut flow = from(kind, (address, 40_000).into());
    // It comes by the way that it goes back.
    flow.client_link = flow.backend_link.clone();
    if kind.mode == Mode::Nat {
        return Some(case.lose("opening", &flow, &flow.opening(), DropReason::Hairpin));
    }
    Some(
        case.begin("opening", &flow, &flow.opening())
            .reply("acceptance", &flow, &flow.acceptance())
            .forward("request", &flow, &flow.request()),
    )
}

#[test]
fn sources() {
    run("sources", &cases());
}
