//! Which service: ranges of ports, every port, prefixes, and what is left.

use std::net::{IpAddr, SocketAddr};

use lb_common::{drop_reason::DropReason, service::Vip};
use lb_tests::{Case, Flow, Kind, World};
use lb_userspace::{
    address::{AddressPrefix, PortRange},
    datapath::Frontend,
};

use crate::run;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        cases.extend([
            range(kind),
            every_port(kind),
            prefix(kind),
            whole_family(kind),
            most_specific(kind),
            fewest_ports(kind),
            other_ports(kind),
            other_ports_of_a_prefix(kind),
            other_protocol(kind),
        ]);
    }
    cases
}

/// Ids of services and backends of these cases.
const FIRST_ID: u32 = 57;

/// A service of `kind` at `address` and `ports`, the `index`th of these cases, with a
/// backend that keeps the port.
fn add(world: &mut World, kind: Kind, index: u32, address: AddressPrefix, ports: PortRange) {
    let flow = flow(kind, index, (address.address(), 0).into());
    world.add_backend(&flow);
    let frontend = Frontend {
        address,
        ports,
        protocol: kind.protocol(),
    };
    world.add_service_at(&flow, frontend);
}

/// A flow to that service.
fn flow(kind: Kind, index: u32, to: SocketAddr) -> Flow {
    let mut flow = Flow::first(kind);
    flow.service = FIRST_ID + index;
    flow.vip = to;
    flow = flow.on(FIRST_ID + index);
    if kind.translates() {
        flow.server.set_port(to.port());
    } else {
        flow.server = to;
    }
    flow
}

fn ports(first: u16, last: u16) -> PortRange {
    PortRange::new(first, last).expect("a range")
}

fn address(kind: Kind, v4: &str, v6: &str) -> IpAddr {
    let text = if kind.ipv6 { v6 } else { v4 };
    text.parse().expect("an address")
}

/// An address without services in the standard world.
fn free(kind: Kind) -> IpAddr {
    address(kind, "203.0.113.80", "2001:db8:5::50")
}

/// A prefix of 64 addresses.
fn net(kind: Kind) -> AddressPrefix {
    let first = address(kind, "203.0.113.64", "2001:db8:5::40");
    AddressPrefix::new(first, if kind.ipv6 { 122 } else { 26 })
}

/// The opening of the `nth` flow of a service reaches it.
fn reaches(case: Case, kind: Kind, index: u32, to: impl Into<SocketAddr>, nth: u16) -> Case {
    let to = to.into();
    let mut flow = flow(kind, index, to).from_port(41_000 + nth);
    if kind.is_full_nat() {
        let port = flow.source.port() + nth;
        flow = flow.through_port(port);
    }
    case.begin(format!("{to}"), &flow, &flow.opening()).reply(
        format!("{to}, reply"),
        &flow,
        &flow.acceptance(),
    )
}

fn passes(case: Case, kind: Kind, to: impl Into<SocketAddr>) -> Case {
    let to = to.into();
    let flow = flow(kind, 0, to);
    let ifindex = flow.client_link.ifindex;
    case.pass(format!("{to}"), ifindex, flow.opening().build())
}

fn refused(case: Case, kind: Kind, to: impl Into<SocketAddr>) -> Case {
    let to = to.into();
    let opening = flow(kind, 0, to).opening().build();
    case.discard(format!("{to}"), opening, DropReason::NoService)
}

fn range(kind: Kind) -> Case {
    let address = free(kind);
    let mut case = Case::of(kind, "a range of ports")
        .given(|world| add(world, kind, 0, address.into(), ports(8_000, 8_099)));
    for (nth, port) in [8_000, 8_001, 8_063, 8_064, 8_099].into_iter().enumerate() {
        case = reaches(case, kind, 0, (address, port), nth as u16);
    }
    for port in [7_999, 8_100, 80, 1, 65_535] {
        case = passes(case, kind, (address, port));
    }
    case
}

fn every_port(kind: Kind) -> Case {
    let address = free(kind);
    let mut case = Case::of(kind, "every port")
        .given(|world| add(world, kind, 0, address.into(), PortRange::ALL));
    for (nth, port) in [1, 80, 32_768, 65_535].into_iter().enumerate() {
        case = reaches(case, kind, 0, (address, port), nth as u16);
    }
    case
}

fn prefix(kind: Kind) -> Case {
    let net = net(kind);
    let mut case = Case::of(kind, "a prefix").given(|world| add(world, kind, 0, net, 443.into()));
    for (nth, to) in [net.address(), free(kind), net.last()]
        .into_iter()
        .enumerate()
    {
        case = reaches(case, kind, 0, (to, 443), nth as u16);
        case = passes(case, kind, (to, 444));
    }
    let before = address(kind, "203.0.113.63", "2001:db8:5::3f");
    let behind = address(kind, "203.0.113.128", "2001:db8:5::80");
    passes(passes(case, kind, (before, 443)), kind, (behind, 443))
}

/// The shortest prefix, and with it every address: replies still find their flows.
fn whole_family(kind: Kind) -> Case {
    let all = AddressPrefix::new(free(kind), 0);
    let case =
        Case::of(kind, "every address").given(|world| add(world, kind, 0, all, 7_777.into()));
    let case = reaches(case, kind, 0, (free(kind), 7_777), 0);
    let far = address(kind, "8.8.8.8", "2600::1");
    reaches(case, kind, 0, (far, 7_777), 1)
}

/// The most specific address decides, whatever ports it has.
fn most_specific(kind: Kind) -> Case {
    let exact = free(kind);
    let inner = AddressPrefix::new(exact, if kind.ipv6 { 124 } else { 28 });
    let beside = address(kind, "203.0.113.81", "2001:db8:5::51");
    let outside = address(kind, "203.0.113.64", "2001:db8:5::40");
    let case = Case::of(kind, "an address in a prefix in a prefix").given(|world| {
        add(world, kind, 0, net(kind), PortRange::ALL);
        add(world, kind, 1, inner, 443.into());
        add(world, kind, 2, exact.into(), 80.into());
    });
    let case = reaches(case, kind, 0, (outside, 443), 0);
    let case = reaches(case, kind, 1, (beside, 443), 0);
    let case = reaches(case, kind, 2, (exact, 80), 0);
    let case = passes(case, kind, (exact, 443));
    passes(case, kind, (beside, 80))
}

fn fewest_ports(kind: Kind) -> Case {
    let address = free(kind);
    let case = Case::of(kind, "one port in a range in every port").given(|world| {
        add(world, kind, 0, address.into(), PortRange::ALL);
        add(world, kind, 1, address.into(), ports(8_000, 8_099));
        add(world, kind, 2, address.into(), 8_080.into());
    });
    let case = reaches(case, kind, 2, (address, 8_080), 0);
    let case = reaches(case, kind, 1, (address, 8_079), 0);
    let case = reaches(case, kind, 1, (address, 8_099), 1);
    reaches(case, kind, 0, (address, 8_100), 0)
}

fn other_ports(kind: Kind) -> Case {
    let address = free(kind);
    let case = Case::of(kind, "other ports of an address that are to be dropped").given(|world| {
        add(world, kind, 0, address.into(), 80.into());
        world
            .vip_flags
            .insert(address.into(), Vip::DROP_OTHER_PORTS);
    });
    let case = reaches(case, kind, 0, (address, 80), 0);
    let case = refused(case, kind, (address, 81));
    let case = refused(case, kind, (address, 65_535));
    // Another address does not say so.
    passes(case, kind, (kind.vip().ip(), 9))
}

fn other_ports_of_a_prefix(kind: Kind) -> Case {
    let net = net(kind);
    let exact = free(kind);
    let case = Case::of(kind, "other ports of a prefix that are to be dropped").given(|world| {
        add(world, kind, 0, net, 80.into());
        add(world, kind, 1, exact.into(), 80.into());
        world.vip_flags.insert(net, Vip::DROP_OTHER_PORTS);
    });
    let case = reaches(case, kind, 0, (net.last(), 80), 0);
    let case = refused(case, kind, (net.last(), 81));
    let case = refused(case, kind, (net.address(), 81));
    // The address in it has a say of its own.
    passes(case, kind, (exact, 81))
}

/// Other ports of the other protocol too, which has no service there.
fn other_protocol(kind: Kind) -> Case {
    let address = free(kind);
    let other = Kind {
        tcp: !kind.tcp,
        ..kind
    };
    let case = Case::of(kind, "the other protocol").given(|world| {
        add(world, kind, 0, address.into(), ports(80, 90));
    });
    let case = passes(case, other, (address, 80)).then("dropped", move |world| {
        world
            .vip_flags
            .insert(address.into(), Vip::DROP_OTHER_PORTS);
    });
    refused(case, other, (address, 80))
}

#[test]
fn forms() {
    run("forms", &cases());
}
