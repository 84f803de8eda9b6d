//! Whom a service takes packets from, and how many new flows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::{drop_reason::DropReason, service::Mode};
use lb_tests::{Case, Flow, Kind, World, at_once};
use lb_userspace::address::AddressPrefix;

use crate::{
    run,
    slots::{change, track},
    sources::from,
};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        cases.extend([
            denied(kind),
            denied_later(kind),
            longest(kind),
            allowed_alone(kind),
            fragments(kind),
            per_source(kind),
            per_service(kind),
            both(kind),
            martian(kind),
        ]);
        if kind.ipv6 {
            cases.push(same_network(kind));
        }
        match (kind.translates(), kind.tcp) {
            (false, true) => cases.extend([guarded_slots(kind), tracked(kind)]),
            (false, false) => cases.push(without_entries(kind)),
            (true, true) if kind.mode == Mode::Nat => cases.push(lost_entries(kind)),
            (true, _) => {}
        }
    }
    cases
}

/// A client's address, in one network with the others.
fn client(kind: Kind, host: u16) -> IpAddr {
    if kind.ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, host).into()
    } else {
        Ipv4Addr::new(198, 51, 100, host as u8).into()
    }
}

/// An address with a bucket of its own.
fn source(kind: Kind, number: u16) -> IpAddr {
    if kind.ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xc, number, 0, 0, 0, 7).into()
    } else {
        client(kind, number)
    }
}

/// The flow of an address that begins after `earlier` others.
fn flow(kind: Kind, address: IpAddr, earlier: u16) -> Flow {
    let flow = from(kind, (address, 40_000 + earlier).into());
    if kind.is_full_nat() {
        let port = flow.source.port() + earlier;
        return flow.through_port(port);
    }
    flow
}

/// All addresses.
fn others(kind: Kind) -> AddressPrefix {
    AddressPrefix::new(kind.vip().ip(), 0)
}

/// The address alone is denied.
fn deny(world: &mut World, kind: Kind, address: IpAddr) {
    world.list(kind, &[(others(kind), true), (address.into(), false)]);
}

/// Datagrams begin flows only where these have entries.
fn needs_tracking(kind: Kind) -> bool {
    !kind.translates() && !kind.tcp
}

/// A packet that begins a flow and takes tokens of its source and of the service.
fn begin(case: Case, label: &str, flow: &Flow, (source, service): (i64, i64)) -> Case {
    let case = if needs_tracking(flow.kind) {
        case.forward(label, flow, &flow.opening())
            .pinning(1)
            .counting(|counters| counters.new_flows = 1, flow.backend)
    } else {
        case.begin(label, flow, &flow.opening())
    };
    case.taking(source, service)
}

/// A service of the kind with limits, that has entries of all flows where it needs them.
fn limited(kind: Kind, what: &str, per_source: u32, per_service: u32) -> Case {
    Case::of(kind, what).given(|world| {
        let guard = world.guard(kind);
        if per_source != 0 {
            guard.per_source = at_once(per_source);
        }
        if per_service != 0 {
            guard.per_service = at_once(per_service);
        }
        if needs_tracking(kind) {
            track(world, kind);
        }
    })
}

fn denied(kind: Kind) -> Case {
    let (bad, good) = (client(kind, 7), client(kind, 8));
    let (refused, other) = (flow(kind, bad, 0), flow(kind, good, 0));
    Case::of(kind, "a source that is denied")
        .given(|world| deny(world, kind, bad))
        .refuse(
            "opening",
            &refused,
            &refused.opening(),
            DropReason::SourceDenied,
        )
        .refuse(
            "data",
            &refused,
            &refused.request(),
            DropReason::SourceDenied,
        )
        .begin("another source", &other, &other.opening())
}

/// Established flows are no exception; what backends send goes on.
fn denied_later(kind: Kind) -> Case {
    let address = client(kind, 7);
    let flow = flow(kind, address, 0);
    Case::of(kind, "a source that is denied while it has flows")
        .established(&flow)
        .then("denied", move |world| deny(world, kind, address))
        .refuse("data", &flow, &flow.request(), DropReason::SourceDenied)
        .reply("the backend's", &flow, &flow.reply())
        .then("allowed", move |world| {
            world.list(kind, &[(others(kind), false), (address.into(), true)]);
        })
        .forward("data", &flow, &flow.request())
}

/// Of five prefixes within each other the longest decides.
fn longest(kind: Kind) -> Case {
    let within = |long: u8, short: u8| {
        let length = if kind.ipv6 { long } else { short };
        AddressPrefix::new(client(kind, 7), length)
    };
    let prefixes = [
        (within(0, 0), false),
        (within(48, 16), true),
        (within(120, 24), false),
        (within(124, 28), true),
        (within(128, 32), false),
    ];
    let far = |near: [u8; 4], third: u16, last: u16| -> IpAddr {
        if kind.ipv6 {
            Ipv6Addr::new(0x2001, 0xdb8, third, 0, 0, 0, last, 1).into()
        } else {
            near.into()
        }
    };
    let mut case =
        Case::of(kind, "prefixes within each other").given(|world| world.list(kind, &prefixes));
    let mut begun = 0;
    for (label, address, is_allowed) in [
        ("the address", client(kind, 7), false),
        ("the 16 around it", client(kind, 8), true),
        ("the last of them", client(kind, 15), true),
        ("the next", client(kind, 16), false),
        ("the last of 256", client(kind, 255), false),
        ("the network around", far([198, 51, 101, 1], 0xc, 1), true),
        ("any other", far([198, 52, 0, 1], 0xd, 0), false),
    ] {
        let flow = flow(kind, address, begun);
        case = if is_allowed {
            begun += 1;
            case.begin(label, &flow, &flow.opening())
        } else {
            case.refuse(label, &flow, &flow.opening(), DropReason::SourceDenied)
        };
    }
    case
}

fn allowed_alone(kind: Kind) -> Case {
    let (good, bad) = (client(kind, 7), client(kind, 8));
    let (flow, other) = (flow(kind, good, 0), flow(kind, bad, 0));
    Case::of(kind, "a source that alone is allowed")
        .given(|world| world.list(kind, &[(others(kind), false), (good.into(), true)]))
        .begin("opening", &flow, &flow.opening())
        .refuse(
            "another source",
            &other,
            &other.opening(),
            DropReason::SourceDenied,
        )
}

/// A first fragment that is dropped counts as not seen; of one that was not, later ones are
/// dropped all the same.
fn fragments(kind: Kind) -> Case {
    let address = client(kind, 7);
    let flow = flow(kind, address, 0);
    let large = |id: u8| {
        let packet = flow.request();
        let header = packet.transport_length();
        packet.with_payload(vec![id; 1_224 - header])
    };
    let first = large(1).as_fragment(0, true);
    let later = large(2).as_fragment(153, false);
    Case::of(kind, "fragments of a denied source")
        .established(&flow)
        .then("denied", move |world| deny(world, kind, address))
        .refuse("first", &flow, &first, DropReason::SourceDenied)
        .discard("later", later.build(), DropReason::FragmentFirstMissing)
        .then("allowed", move |world| {
            world.list(kind, &[(others(kind), true)]);
        })
        .forward("first", &flow, &first)
        .remembering(&first)
        .then("denied", move |world| deny(world, kind, address))
        .refuse("later", &flow, &later, DropReason::SourceDenied)
}

fn per_source(kind: Kind) -> Case {
    const LIMITED: DropReason = DropReason::RateLimitedSource;
    let (busy, quiet) = (source(kind, 7), source(kind, 8));
    let mut case = limited(kind, "more flows than a source may begin", 3, 0);
    for begun in 0..3 {
        case = begin(case, "opening", &flow(kind, busy, begun), (1, 0));
    }
    let (late, known) = (flow(kind, busy, 3), flow(kind, busy, 0));
    case = case.refuse("one too many", &late, &late.opening(), LIMITED);
    case = begin(case, "another source", &flow(kind, quiet, 3), (1, 0));
    case = if kind.tcp && !kind.translates() {
        // Nothing is known of flows: a SYN is one more.
        case.refuse("a SYN again", &known, &known.opening(), LIMITED)
    } else {
        case.forward("a known one", &known, &known.opening())
    };
    case = case.forward("data of a known one", &known, &known.request());
    case = case.fill(1);
    case = begin(case, "a token later", &flow(kind, busy, 4), (1, 0));
    let late = flow(kind, busy, 5);
    case = case.refuse("one too many", &late, &late.opening(), LIMITED);
    case = case.fill(1_000);
    for begun in 5..8 {
        case = begin(case, "much later", &flow(kind, busy, begun), (1, 0));
    }
    let late = flow(kind, busy, 8);
    case.refuse("one too many", &late, &late.opening(), LIMITED)
}

fn per_service(kind: Kind) -> Case {
    const LIMITED: DropReason = DropReason::RateLimitedService;
    let mut case = limited(kind, "more flows than may begin together", 0, 3);
    for begun in 0..3 {
        let flow = flow(kind, source(kind, 7 + begun), begun);
        case = begin(case, "opening", &flow, (0, 1));
    }
    let (late, known) = (
        flow(kind, source(kind, 20), 3),
        flow(kind, source(kind, 7), 0),
    );
    case = case
        .refuse("one too many", &late, &late.opening(), LIMITED)
        .forward("data of a known one", &known, &known.request())
        .fill(1);
    case = begin(case, "a token later", &late, (0, 1));
    let late = flow(kind, source(kind, 21), 4);
    case.refuse("one too many", &late, &late.opening(), LIMITED)
}

/// One source takes no more of the service's tokens than its own, and what the service
/// refuses costs it none.
fn both(kind: Kind) -> Case {
    let (busy, quiet) = (source(kind, 7), source(kind, 8));
    let mut case = limited(kind, "limits of sources and of the service", 2, 3);
    for begun in 0..2 {
        case = begin(case, "opening", &flow(kind, busy, begun), (1, 1));
    }
    let late = flow(kind, busy, 2);
    let case = case.refuse(
        "too many of a source",
        &late,
        &late.opening(),
        DropReason::RateLimitedSource,
    );
    let case = begin(case, "another source", &flow(kind, quiet, 2), (1, 1));
    let late = flow(kind, quiet, 3);
    let by_service = |case: Case, flow: &Flow| {
        let reason = DropReason::RateLimitedService;
        case.refuse("too many together", flow, &flow.opening(), reason)
    };
    let case = by_service(case, &late);
    let case = by_service(case, &flow(kind, source(kind, 9), 3));
    let case = begin(case.fill(1), "a token later", &late, (1, 1));
    by_service(case, &flow(kind, quiet, 4))
}

/// What no client sends takes no token.
fn martian(kind: Kind) -> Case {
    let flow = flow(kind, kind.vip().ip(), 0);
    limited(kind, "martian sources and limits", 1, 1).refuse(
        "from the address itself",
        &flow,
        &flow.opening(),
        DropReason::MartianSource,
    )
}

/// Whoever has one address of a network of 64 bits has them all.
fn same_network(kind: Kind) -> Case {
    let address =
        |network: u16, host: u16| Ipv6Addr::new(0x2001, 0xdb8, 0xc, network, host, 0, 0, 1).into();
    let mut case = limited(kind, "flows of neighbours", 2, 0);
    case = begin(case, "opening", &flow(kind, address(1, 0), 0), (1, 0));
    case = begin(
        case,
        "a neighbour",
        &flow(kind, address(1, 0xffff), 1),
        (1, 0),
    );
    let late = flow(kind, address(1, 7), 2);
    let reason = DropReason::RateLimitedSource;
    case = case.refuse("another", &late, &late.opening(), reason);
    begin(
        case,
        "of another network",
        &flow(kind, address(2, 0), 2),
        (1, 0),
    )
}

/// A SYN takes a token where its flow has no entry.
fn guarded_slots(kind: Kind) -> Case {
    const LIMITED: DropReason = DropReason::RateLimitedSource;
    let (new, second) = (Flow::first(kind), Flow::first(kind).from_port(41_000));
    let old = Flow::first(kind).from_port(42_000).moved();
    let late = Flow::first(kind).from_port(43_000);
    limited(kind, "a limit and a changing slot", 2, 0)
        .given(|world| change(world, kind))
        .forward("a new flow", &new, &new.opening())
        .pinning(1)
        .taking(1, 0)
        .forward("its SYN again", &new, &new.opening())
        .forward("an old flow", &old, &old.request())
        .pinning(1)
        .forward("another", &second, &second.opening())
        .pinning(1)
        .taking(1, 0)
        .refuse("one too many", &late, &late.opening(), LIMITED)
        .then("pinned", move |world| {
            world.set_slots(kind, kind.backend(), kind.backend());
        })
        .refuse("one too many", &late, &late.opening(), LIMITED)
        .forward("a known one", &second, &second.opening())
        .forward("the old flow", &old, &old.request())
        .fill(1)
        .forward("a token later", &late, &late.opening())
        .taking(1, 0)
        .then("clean", move |world| world.set_ring(kind, kind.backend()))
        .refuse("once more", &late, &late.opening(), LIMITED)
        .forward("data", &late, &late.request())
}

/// Where flows have entries, a SYN that comes again is known.
fn tracked(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let late = Flow::first(kind).from_port(41_000);
    limited(kind, "a limit and entries of all flows", 1, 1)
        .given(|world| track(world, kind))
        .forward("opening", &flow, &flow.opening())
        .pinning(1)
        .counting(|counters| counters.new_flows = 1, flow.backend)
        .taking(1, 1)
        .forward("the same", &flow, &flow.opening())
        .counting(|_| {}, flow.backend)
        .refuse(
            "another",
            &late,
            &late.opening(),
            DropReason::RateLimitedSource,
        )
}

/// Without entries the slot alone says where a datagram goes, whatever the list says more.
fn without_entries(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    Case::of(kind, "a list and a changing slot without entries")
        .given(|world| {
            change(world, kind);
            world.list(kind, &[(others(kind), true)]);
        })
        .forward("a datagram", &flow, &flow.request())
}

/// With NAT other packets than a SYN begin a flow, too.
fn lost_entries(kind: Kind) -> Case {
    let known = flow(kind, client(kind, 7), 0);
    let late = flow(kind, client(kind, 7), 1);
    limited(kind, "a limit and flows whose entries were lost", 1, 0)
        .begin("data", &known, &known.request())
        .taking(1, 0)
        .forward("data", &known, &known.request())
        .refuse(
            "data of another",
            &late,
            &late.request(),
            DropReason::RateLimitedSource,
        )
}

#[test]
fn guards() {
    run("guards", &cases());
}
