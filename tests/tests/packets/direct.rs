//! The modes that keep no flows: `dsr`, `ipip` and `gue`.

use lb_common::{backend::BackendState, drop_reason::DropReason};
use lb_tests::{Case, Flow, Kind};

use crate::run;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::all(|kind| !kind.translates()) {
        cases.extend([
            no_backend(kind),
            down(kind),
            replies(kind),
            without_a_limit(kind),
        ]);
        if kind.tcp {
            cases.extend([flags(kind), nonsense(kind)]);
        }
    }
    cases
}

fn no_backend(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let refused =
        |case: Case, name: &str| case.refuse(name, &flow, &flow.request(), DropReason::NoBackend);
    let case = Case::of(kind, "a ring without a backend").given(|world| world.set_ring(kind, 0));
    let case = refused(case, "empty").then("without a ring", move |world| {
        world.rings.remove(&kind.service().id());
    });
    let case = refused(case, "none").then("an id beyond all", move |world| {
        world.set_ring(kind, u32::MAX);
    });
    let case = refused(case, "unknown").then("a backend that is gone", move |world| {
        world.set_ring(kind, kind.backend());
        world.set_state(kind.backend(), BackendState::Absent);
    });
    refused(case, "gone")
        .then("it comes", move |world| {
            world.set_state(kind.backend(), BackendState::Up);
        })
        .forward("request", &flow, &flow.request())
}

/// The ring alone decides, and the daemon takes a backend that is down out of it.
fn down(kind: Kind) -> Case {
    let (old, new) = (Flow::first(kind), Flow::first(kind).moved());
    Case::of(kind, "another ring, other backends")
        .forward("request", &old, &old.request())
        .then("down", move |world| {
            world.set_ring(kind, kind.spare_backend());
            world.set_state(kind.backend(), BackendState::Down);
        })
        .forward("request", &new, &new.request())
}

/// Replies go past the balancer; one that does not is the host's.
fn replies(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let (inside, outside) = (flow.backend_link.ifindex, flow.client_link.ifindex);
    Case::of(kind, "packets of the backend")
        .forward("request", &flow, &flow.request())
        .pass("reply", inside, flow.reply().build())
        .pass("from outside", outside, flow.reply().build())
}

/// An MTU of 0 says that there is none.
fn without_a_limit(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let large = flow.request().with_payload(vec![0x11; 1_700]);
    Case::of(kind, "a way whose MTU is not known")
        .given(|world| world.edit(flow.backend, |backend| backend.mtu = 0))
        .forward("request", &flow, &large)
}

/// What is counted of a connection follows from its flags.
fn flags(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    Case::of(kind, "segments with every flag")
        .forward("SYN", &flow, &flow.opening())
        .forward("SYN again", &flow, &flow.opening())
        .forward("SYN and ACK", &flow, &flow.segment(|tcp| tcp.syn = true))
        .forward("ACK", &flow, &flow.segment(|_| {}))
        .forward("data", &flow, &flow.request())
        .forward("URG", &flow, &flow.segment(|tcp| tcp.urg = true))
        .forward("FIN", &flow, &flow.segment(|tcp| tcp.fin = true))
        .forward("RST", &flow, &flow.segment(|tcp| tcp.rst = true))
        .forward(
            "RST alone",
            &flow,
            &flow.segment(|tcp| (tcp.rst, tcp.ack) = (true, false)),
        )
}

fn nonsense(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let mut case = Case::of(kind, "contradictory flags");
    for (name, packet) in [
        ("none", flow.segment(|tcp| tcp.ack = false)),
        (
            "SYN and FIN",
            flow.segment(|tcp| (tcp.syn, tcp.fin) = (true, true)),
        ),
        (
            "SYN and RST",
            flow.segment(|tcp| (tcp.syn, tcp.rst) = (true, true)),
        ),
    ] {
        case = case.refuse(name, &flow, &packet, DropReason::TcpFlags);
    }
    case
}

#[test]
fn direct() {
    run("direct", &cases());
}
