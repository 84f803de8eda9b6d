//! The modes that keep no flows: `dsr`, `ipip` and `gue`.

use lb_common::backend::BackendState;
use lb_tests::{Case, Flow, Kind};

use crate::run;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::all(|kind| !kind.translates()) {
        cases.extend([down(kind), replies(kind)]);
        if kind.tcp {
            cases.push(flags(kind));
        }
    }
    cases
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

#[test]
fn direct() {
    run("direct", &cases());
}
