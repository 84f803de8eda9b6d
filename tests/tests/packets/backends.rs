//! Which backend a packet goes to, and what becomes of flows whose backend changes.

use lb_common::{
    backend::BackendState,
    drop_reason::DropReason,
    flow::{FlowKey4, FlowKey6, Tuple as _},
    ring::{RING_SIZE, slot},
};
use lb_tests::{Case, Flow, Kind, Link};
use lb_userspace::datapath::{word, words6};

use crate::run;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        cases.extend([
            no_backend(kind),
            absent_in_ring(kind),
            service_removed(kind),
        ]);
    }
    for kind in Kind::TRANSLATED {
        cases.extend([
            taken_out_of_ring(kind),
            down_and_unanswered(kind),
            gone_and_opened_again(kind),
            reply_of_a_gone_backend(kind),
            reply_from_elsewhere(kind),
            port_kept(kind),
            any_port(kind),
            exact_port_before_any(kind),
        ]);
        if kind.tcp {
            cases.extend([
                down_and_established(kind),
                down_and_closed(kind),
                gone(kind),
                reset_of_a_gone_backend(kind),
            ]);
        } else {
            cases.extend([
                moves_on(kind, BackendState::Down),
                moves_on(kind, BackendState::Resetting),
                moves_on(kind, BackendState::Absent),
            ]);
        }
        if !kind.is_full_nat() {
            cases.push(shared_ring(kind));
        }
    }
    cases
}

/// The daemon gives the ring to the second backend and the first one another state.
fn replace(case: Case, kind: Kind, state: BackendState) -> Case {
    case.then(format!("{state:?}"), move |world| {
        world.set_ring(kind, kind.spare_backend());
        world.set_state(kind.backend(), state);
    })
}

fn no_backend(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    Case::of(kind, "an empty ring")
        .given(|world| world.set_ring(kind, 0))
        .refuse("opening", &flow, &flow.opening(), DropReason::NoBackend)
        .then("without a ring", move |world| {
            world.rings.remove(&kind.service().id());
        })
        .refuse("opening", &flow, &flow.opening(), DropReason::NoBackend)
        .then("a backend", move |world| {
            world.set_ring(kind, kind.backend());
        })
        .established(&flow)
}

fn absent_in_ring(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    Case::of(kind, "a ring with a backend that is gone")
        .given(|world| world.set_state(kind.backend(), BackendState::Absent))
        .refuse("opening", &flow, &flow.opening(), DropReason::NoBackend)
        .then("an id beyond all", move |world| {
            world.set_ring(kind, u32::MAX);
        })
        .refuse("opening", &flow, &flow.opening(), DropReason::NoBackend)
        .then("it comes", move |world| {
            world.set_ring(kind, kind.backend());
            world.set_state(kind.backend(), BackendState::Up);
        })
        .established(&flow)
}

/// As with weight 0: new flows go elsewhere, known ones go on.
fn taken_out_of_ring(kind: Kind) -> Case {
    let old = Flow::first(kind);
    let new = old.clone().from_port(40_001).moved();
    let unanswered = Flow::first(kind).from_port(40_002);
    let unanswered = if kind.is_full_nat() {
        unanswered.through_port(old.source.port() + 1)
    } else {
        unanswered
    };
    let case = Case::of(kind, "a backend that the ring no longer knows")
        .established(&old)
        .begin("opening, not answered", &unanswered, &unanswered.opening());
    replace(case, kind, BackendState::Up)
        .forward("known flow", &old, &old.request())
        .reply("known flow", &old, &old.reply())
        .forward("opening, sent again", &unanswered, &unanswered.opening())
        .established(&new)
}

fn down_and_established(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let case = Case::of(kind, "a failed check does not end a connection");
    replace(case.established(&flow), kind, BackendState::Down)
        .forward("request", &flow, &flow.request())
        .forward("SYN, sent again", &flow, &flow.opening())
        .reply("reply", &flow, &flow.reply())
}

/// The handshake, or the datagram, is tried with another backend.
fn down_and_unanswered(kind: Kind) -> Case {
    let old = Flow::first(kind);
    let new = old.clone().moved();
    let case = Case::of(kind, "an unanswered opening leaves a backend that is down").begin(
        "opening",
        &old,
        &old.opening(),
    );
    replace(case, kind, BackendState::Down)
        .begin("opening, sent again", &new, &new.opening())
        .removing(&old)
        .ending(&old)
        .reply("acceptance", &new, &new.acceptance())
        .pass(
            "late acceptance of the other backend",
            old.backend_link.ifindex,
            old.acceptance().build(),
        )
}

fn down_and_closed(kind: Kind) -> Case {
    let old = Flow::first(kind);
    let new = old.clone().moved();
    let case = Case::of(
        kind,
        "after its end a connection leaves a backend that is down",
    )
    .established(&old)
    .forward("RST", &old, &old.segment(|tcp| tcp.rst = true))
    .ending(&old);
    replace(case, kind, BackendState::Down)
        .begin("SYN", &new, &new.opening())
        .removing(&old)
        .reply("acceptance", &new, &new.acceptance())
}

/// Datagrams that were answered go elsewhere too.
fn moves_on(kind: Kind, state: BackendState) -> Case {
    let old = Flow::first(kind);
    let new = old.clone().moved();
    let case = Case::of(kind, format!("leaves a backend that is {state:?}")).established(&old);
    replace(case, kind, state)
        .begin("request", &new, &new.request())
        .removing(&old)
        .ending(&old)
        .reply("reply", &new, &new.reply())
        .forward("another request", &new, &new.request())
}

/// A connection to a backend that is gone: with full NAT no other could continue it;
/// with NAT another backend gets its packets, and resets it.
fn gone(kind: Kind) -> Case {
    let old = Flow::first(kind);
    let new = old.clone().moved();
    let case = Case::of(kind, "a connection whose backend is gone").established(&old);
    let case = replace(case, kind, BackendState::Absent);
    if kind.is_full_nat() {
        case.refuse("data", &old, &old.request(), DropReason::BackendGone)
            .removing(&old)
            .ending(&old)
            .refuse("more data", &old, &old.request(), DropReason::NoFlow)
            .established(&new)
    } else {
        case.begin("data", &new, &new.request())
            .removing(&old)
            .ending(&old)
            .reply("RST", &new, &new.answer(|tcp| tcp.rst = true))
            .ending(&new)
    }
}

fn reset_of_a_gone_backend(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let rst = flow.segment(|tcp| tcp.rst = true);
    let case = Case::of(kind, "RST to a backend that is gone").established(&flow);
    replace(case, kind, BackendState::Absent)
        .refuse("RST", &flow, &rst, DropReason::BackendGone)
        .removing(&flow)
        .ending(&flow)
        .refuse("RST, sent again", &flow, &rst, DropReason::NoFlow)
}

fn gone_and_opened_again(kind: Kind) -> Case {
    let old = Flow::first(kind);
    let new = old.clone().moved();
    let case = Case::of(kind, "opened again after its backend is gone").established(&old);
    replace(case, kind, BackendState::Absent)
        .begin("opening", &new, &new.opening())
        .removing(&old)
        .ending(&old)
        .reply("acceptance", &new, &new.acceptance())
}

/// What a removed backend still sends reaches its client until the flow is swept.
fn reply_of_a_gone_backend(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let case = Case::of(kind, "replies of a backend that is gone").established(&flow);
    replace(case, kind, BackendState::Absent)
        .reply("reply", &flow, &flow.reply())
        .sweep(&flow)
        .pass(
            "reply after the sweep",
            flow.backend_link.ifindex,
            flow.reply().build(),
        )
}

fn reply_from_elsewhere(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let mut case = Case::of(kind, "a reply whose tuple is no flow's").established(&flow);
    let mut other_port = flow.clone();
    other_port.server.set_port(8_081);
    let other_host = flow.clone().moved();
    let other_client = if kind.is_full_nat() {
        flow.clone().through_port(flow.source.port() + 1)
    } else {
        flow.clone().from_port(1)
    };
    for (name, other) in [
        ("from another port", other_port),
        ("from another host", other_host),
        ("to another port", other_client),
    ] {
        case = case.pass(name, other.backend_link.ifindex, other.reply().build());
    }
    case
}

fn port_kept(kind: Kind) -> Case {
    let mut flow = Flow::first(kind);
    flow.server.set_port(flow.vip.port());
    Case::of(kind, "a backend without a port of its own")
        .given(|world| world.edit(flow.backend, |backend| backend.port = 0))
        .established(&flow)
        .forward("request", &flow, &flow.request())
}

/// A service on every port of an address, and a backend that keeps the port.
fn any_port_flow(kind: Kind, port: u16) -> Flow {
    let mut flow = Flow::first(kind);
    flow.service = 60;
    flow.backend = 60;
    flow.vip.set_port(port);
    flow.server = (kind.backend_address(60), port).into();
    flow.backend_link = Link::to_backend(60);
    flow
}

fn add_any_port(world: &mut lb_tests::World, kind: Kind) {
    let flow = any_port_flow(kind, 0);
    world.add_backend(&flow);
    world.add_service(&flow);
}

fn any_port(kind: Kind) -> Case {
    let mut case =
        Case::of(kind, "a service on every port").given(|world| add_any_port(world, kind));
    for (index, port) in [1, 9_999, 65_535].into_iter().enumerate() {
        let flow = any_port_flow(kind, port).from_port(41_000 + index as u16);
        let flow = if kind.is_full_nat() {
            let port = flow.source.port() + index as u16;
            flow.through_port(port)
        } else {
            flow
        };
        case = case
            .established(&flow)
            .forward("request", &flow, &flow.request());
    }
    case
}

fn exact_port_before_any(kind: Kind) -> Case {
    let exact = Flow::first(kind);
    let any = any_port_flow(kind, 8_200);
    let other = Kind {
        tcp: !kind.tcp,
        ..kind
    };
    let foreign = Flow {
        vip: any.vip,
        ..Flow::first(other)
    };
    Case::of(kind, "the exact port comes before every port")
        .given(|world| add_any_port(world, kind))
        .established(&exact)
        .established(&any)
        .pass(
            "the other protocol has no such service",
            foreign.client_link.ifindex,
            foreign.opening().build(),
        )
}

fn service_removed(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let service = kind.service();
    Case::of(kind, "a service that was removed")
        .established(&flow)
        .then("removed", move |world| {
            world.services.retain(|_, other| other.id != service.id);
        })
        .pass("request", flow.client_link.ifindex, flow.request().build())
        .reply("reply", &flow, &flow.reply())
}

/// The slot follows from the hash that both sides know.
fn shared_ring(kind: Kind) -> Case {
    let backends = [kind.backend(), kind.backend(), kind.spare_backend()];
    let mut case =
        Case::of(kind, "a ring of two backends").given(|world| world.share_ring(kind, &backends));
    for port in 40_000..40_024 {
        let flow = Flow::first(kind).from_port(port);
        let slot = slot(hash(&flow), RING_SIZE);
        let flow = flow.on(backends[slot as usize % backends.len()]);
        case = case.begin(format!("client port {port}"), &flow, &flow.opening());
    }
    case
}

fn hash(flow: &Flow) -> u32 {
    use std::net::IpAddr::{V4, V6};

    let src_port = flow.client.port().to_be();
    let dst_port = flow.vip.port().to_be();
    let protocol = flow.kind.protocol().into();
    match (flow.client.ip(), flow.vip.ip()) {
        (V4(src), V4(dst)) => FlowKey4 {
            src: word(src),
            dst: word(dst),
            src_port,
            dst_port,
            protocol,
        }
        .hash(),
        (V6(src), V6(dst)) => FlowKey6 {
            src: words6(src),
            dst: words6(dst),
            src_port,
            dst_port,
            protocol,
        }
        .hash(),
        _ => unreachable!("a flow is of one family"),
    }
}

#[test]
fn backends() {
    run("backends", &cases());
}
