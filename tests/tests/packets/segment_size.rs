//! The maximum segment size option: lowered where it is larger, and nothing else changed.

use lb_common::service::Mode;
use lb_tests::{Case, Change, Flow, Kind, Outcome, Packet};

use crate::run;

/// What `service.max-segment-size` says here.
const MOST: u16 = 1_360;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::all(|kind| kind.tcp) {
        cases.extend([
            lowered(kind),
            kept(kind),
            not_asked(kind),
            of_the_backend(kind),
        ]);
    }
    cases
}

fn with_options(packet: Packet, options: &[u8]) -> Packet {
    packet.with_tcp(|tcp| tcp.set_options_raw(options).expect("they fit"))
}

/// A request reaches the backend with other options than it came with.
fn changed(
    case: Case,
    label: &str,
    flow: &Flow,
    request: &Packet,
    options: &[u8],
    wanted: &[u8],
) -> Case {
    let came = with_options(request.clone(), options);
    let goes = flow.delivered_frame(&with_options(request.clone(), wanted));
    let sent = Outcome::Sent(flow.backend_link.ifindex, goes);
    let change = Change::forwarded(flow, came.ip_length()).speaking(flow, &came);
    case.frame(label, flow.client_link.ifindex, came.build(), sent, change)
}

fn clamping(kind: Kind, name: &str) -> (Case, Flow) {
    let flow = Flow::first(kind);
    let backend = flow.backend;
    let case = Case::of(kind, name)
        .given(|world| world.edit(backend, |backend| backend.max_segment_size = MOST))
        .established(&flow);
    (case, flow)
}

/// Bytes of an option with this value.
fn option(value: u16) -> [u8; 4] {
    let [high, low] = value.to_be_bytes();
    [2, 4, high, low]
}

/// At even and odd places, with every kind of option around.
fn lowered(kind: Kind) -> Case {
    let (mut case, flow) = clamping(kind, "a segment size that is lowered");
    let timestamps = [8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    for (name, before, after) in [
        ("alone", &[][..], &[][..]),
        ("behind one byte", &[1], &[1, 1, 1]),
        ("behind two bytes", &[1, 1], &[1, 1]),
        ("behind three bytes", &[3, 3, 7], &[0]),
        ("behind an unknown option", &[254, 5, 9, 9, 9], &[1, 1, 1]),
        ("behind timestamps", &timestamps, &[1, 1]),
        ("as the last of forty bytes", &[1; 36], &[]),
        ("before the end of the options", &[4, 2], &[0, 0xff]),
    ] {
        let around = |value| [before, &option(value), after].concat();
        for value in [MOST + 1, 1_460, 8_960, 65_535] {
            let name = format!("{value}, {name}");
            let (came, goes) = (around(value), around(MOST));
            case = changed(case, &name, &flow, &flow.opening(), &came, &goes);
        }
    }
    case
}

/// What is small enough, broken, or no option of a SYN stays.
fn kept(kind: Kind) -> Case {
    let (mut case, flow) = clamping(kind, "a segment size that is kept");
    for (name, options) in [
        ("none", &[][..]),
        ("only others", &[1, 1, 4, 2]),
        ("smaller", &option(1_359)),
        ("as large", &option(MOST)),
        ("zero", &option(0)),
        ("too short a length", &[2, 3, 0xff, 1]),
        ("too long a length", &[2, 5, 0xff, 0xff, 1, 1, 1, 1]),
        ("a length of nothing", &[3, 0, 2, 4, 0xff, 0xff, 1, 1]),
        ("a length of one", &[3, 1, 2, 4, 0xff, 0xff, 1, 1]),
        ("behind the end", &[0, 2, 4, 0xff, 0xff, 0, 0, 0]),
        ("cut off", &[1, 1, 2, 4]),
        ("cut off in its value", &[1, 2, 4, 0xff]),
        (
            "behind one that is too long",
            &[3, 40, 2, 4, 0xff, 0xff, 1, 1],
        ),
    ] {
        case = changed(case, name, &flow, &flow.opening(), options, options);
    }
    // In a segment that opens nothing.
    let large = option(9_000);
    changed(case, "no SYN", &flow, &flow.request(), &large, &large)
}

/// Without `service.max-segment-size` every option passes.
fn not_asked(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let case = Case::of(kind, "a segment size that nobody wants lowered").established(&flow);
    let large = option(65_535);
    changed(case, "SYN", &flow, &flow.opening(), &large, &large)
}

/// SYN and ACK of the backend, where it comes by the balancer.
fn of_the_backend(kind: Kind) -> Case {
    let (mut case, flow) = clamping(kind, "the backend's segment size");
    for (name, value) in [("large", 8_960), ("small", 536)] {
        let came = with_options(flow.acceptance(), &option(value));
        if !matches!(kind.mode, Mode::FullNat | Mode::Nat) {
            case = case.pass(name, flow.backend_link.ifindex, came.build());
            continue;
        }
        let goes = with_options(flow.acceptance(), &option(value.min(MOST)));
        let sent = Outcome::Sent(flow.client_link.ifindex, flow.returned(&goes).build());
        let mut change = Change::replied(&flow, came.ip_length());
        change.spoken = Some(1);
        case = case.frame(name, flow.backend_link.ifindex, came.build(), sent, change);
    }
    let data = with_options(flow.reply(), &option(9_000));
    case.reply("data", &flow, &data)
}

#[test]
fn segment_size() {
    run("segment size", &cases());
}
