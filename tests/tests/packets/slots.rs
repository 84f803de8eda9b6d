//! Slots with two backends, and the entries of flows that are not translated.

use lb_common::{backend::BackendState, drop_reason::DropReason, service::Service};
use lb_tests::{Case, Flow, Kind, World};

use crate::run;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::all(|kind| !kind.translates()) {
        if kind.tcp {
            cases.extend([
                changing(kind),
                pinned(kind),
                changed_twice(kind),
                nobody(kind),
                origin_gone(kind),
                owner_down(kind),
                opened_again(kind),
                ends_unknown(kind),
                ends_unknown_and_tracked(kind),
                table_full(kind),
            ]);
        } else {
            cases.push(untracked(kind));
        }
        cases.extend([tracked(kind), evicted(kind)]);
    }
    cases
}

/// New flows go to the standard backend, those of before are at the spare one.
pub(crate) fn change(world: &mut World, kind: Kind) {
    world.set_slots(kind, kind.backend(), kind.spare_backend());
}

/// A flow of before, at the origin.
fn old(kind: Kind) -> Flow {
    Flow::first(kind).from_port(41_000).moved()
}

/// A packet whose flow gets an entry.
fn begin(case: Case, label: &str, flow: &Flow) -> Case {
    case.forward(label, flow, &flow.opening()).pinning(1)
}

/// A packet of a flow that began unseen, which gets an entry.
fn join(case: Case, label: &str, flow: &Flow) -> Case {
    case.forward(label, flow, &flow.request()).pinning(1)
}

fn next(case: Case, label: &str, flow: &Flow) -> Case {
    case.forward(label, flow, &flow.request())
}

fn changing(kind: Kind) -> Case {
    let (new, old) = (Flow::first(kind), old(kind));
    let case = Case::of(kind, "a changing slot").given(|world| change(world, kind));
    let case = begin(case, "a new flow", &new);
    let case = join(case, "an old flow", &old);
    let case = next(case, "the new flow", &new);
    let case = next(case, "the old flow", &old);
    let fin = |flow: &Flow| flow.segment(|tcp| tcp.fin = true);
    case.forward("the new flow ends", &new, &fin(&new))
        .forward("the old flow ends", &old, &fin(&old))
        .forward("the last of it", &old, &old.request())
}

fn pinned(kind: Kind) -> Case {
    let (new, old) = (Flow::first(kind), old(kind));
    let late = Flow::first(kind).from_port(42_000);
    let case = Case::of(kind, "a pinned slot").given(|world| change(world, kind));
    let case = begin(case, "a new flow", &new);
    let case = join(case, "an old flow", &old).then("pinned", move |world| {
        world.set_slots(kind, kind.backend(), kind.backend());
    });
    let case = next(case, "the new flow", &new);
    let case = next(case, "the old flow", &old);
    let case = case.forward("another flow", &late, &late.opening());
    let case = next(case, "the same", &late).then("clean", move |world| {
        world.set_ring(kind, kind.backend());
    });
    // The daemon says so only when there are no entries: none is looked at.
    next(case, "the old flow", &old.on(kind.backend()))
}

/// A further change moves the owner alone.
fn changed_twice(kind: Kind) -> Case {
    let (new, old) = (Flow::first(kind), old(kind));
    let quiet = old.clone().from_port(41_001);
    let late = Flow::first(kind).from_port(42_000).moved();
    let case = Case::of(kind, "a slot that changes back").given(|world| change(world, kind));
    let case = begin(case, "a new flow", &new);
    let case = join(case, "an old flow", &old).then("back", move |world| {
        world.set_slots(kind, kind.spare_backend(), kind.spare_backend());
    });
    let case = next(case, "the new flow", &new);
    let case = next(case, "the old flow", &old);
    let case = next(case, "a quiet flow", &quiet);
    case.forward("another flow", &late, &late.opening())
}

/// The slot has lost its owner, and its flows go on.
fn nobody(kind: Kind) -> Case {
    let (new, old) = (Flow::first(kind), old(kind));
    let case = Case::of(kind, "a slot without an owner")
        .given(|world| world.set_slots(kind, 0, kind.spare_backend()));
    let case = case.refuse("a new flow", &new, &new.opening(), DropReason::NoBackend);
    let case = join(case, "an old flow", &old);
    next(case, "the same", &old)
}

fn origin_gone(kind: Kind) -> Case {
    let (quiet, known) = (old(kind), old(kind).from_port(41_001));
    let case =
        Case::of(kind, "a changing slot whose origin is gone").given(|world| change(world, kind));
    let case = join(case, "an old flow", &known).then("gone", move |world| {
        world.set_state(kind.spare_backend(), BackendState::Absent);
    });
    let case = join(case, "a quiet flow", &quiet.on(kind.backend()));
    // Its entry is replaced.
    next(case, "the old flow", &known.on(kind.backend()))
}

/// A failed check does not end a connection, but a SYN without an answer moves on.
fn owner_down(kind: Kind) -> Case {
    let (new, fresh) = (Flow::first(kind), Flow::first(kind).from_port(42_000));
    let case = Case::of(kind, "a changing slot whose backends are down")
        .given(|world| change(world, kind));
    let case = begin(case, "a new flow", &new);
    let case = next(case, "the same", &new);
    let case = begin(case, "another", &fresh).then("down", move |world| {
        world.set_state(kind.backend(), BackendState::Down);
        world.set_slots(kind, kind.spare_backend(), kind.backend());
    });
    let case = next(case, "the known flow", &new);
    let moved = fresh.moved();
    case.forward("its SYN again", &moved, &moved.opening())
}

/// The client uses the port of an ended connection again.
fn opened_again(kind: Kind) -> Case {
    let (flow, again) = (old(kind), old(kind).on(kind.backend()));
    let case = Case::of(kind, "a tuple that is used again at a changing slot")
        .given(|world| change(world, kind));
    let case = join(case, "an old flow", &flow);
    let rst = flow.segment(|tcp| tcp.rst = true);
    case.forward("RST", &flow, &rst)
        .forward("SYN", &again, &again.opening())
}

/// The first packet of a flow that is seen at the slot is its last: the entry says so, and
/// does not keep the tuple from being used again.
fn ends_unknown(kind: Kind) -> Case {
    let (flow, again) = (old(kind), old(kind).on(kind.backend()));
    let fin = flow.segment(|tcp| tcp.fin = true);
    let case = Case::of(kind, "a changing slot and the end of an old flow")
        .given(|world| change(world, kind))
        .forward("FIN", &flow, &fin)
        .pinning(1);
    next(case, "the last of it", &flow).forward("SYN", &again, &again.opening())
}

/// Such a flow has begun and ended where every flow is counted.
fn ends_unknown_and_tracked(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let rst = flow.segment(|tcp| tcp.rst = true);
    let case = Case::of(kind, "every flow has an entry, also at its end")
        .given(|world| track(world, kind))
        .forward("RST", &flow, &rst)
        .pinning(1)
        .counting(
            |counters| (counters.new_flows, counters.ended_flows) = (1, 1),
            flow.backend,
        );
    next(case, "the last of it", &flow)
}

/// The entries of a full table stay, and others do without.
fn table_full(kind: Kind) -> Case {
    let mut case =
        Case::of(kind, "a changing slot and a full table").given(|world| change(world, kind));
    let flow = |index: u16| old(kind).from_port(41_000 + index);
    for index in 0..ROOM {
        case = join(case, "an old flow", &flow(index));
        case = next(case, "the same", &flow(index));
    }
    let late = flow(ROOM);
    let untracked = |case: Case, label: &str, packet| {
        case.forward(label, &late, packet)
            .changing(|change| change.untracked(late.backend))
    };
    let case = untracked(case, "one more", &late.request());
    // Its next packets will go to the origin.
    let case = case
        .forward("a new one", &late, &late.opening())
        .changing(|change| change.untracked(kind.backend()));
    next(case, "an old flow", &flow(0))
}

/// Entries that the tables have room for.
pub(crate) const ROOM: u16 = 64 + 64;

/// Datagrams do not say whether they begin a flow.
fn untracked(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let case = Case::of(kind, "a changing slot without entries").given(|world| change(world, kind));
    next(case, "a datagram", &flow)
}

/// Every flow of the service has an entry.
pub(crate) fn track(world: &mut World, kind: Kind) {
    for service in world.services.values_mut() {
        if service.id() == kind.service().id() {
            service.flags |= Service::TRACKED;
        }
    }
}

/// Every flow has an entry, and keeps its backend when the ring changes.
fn tracked(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let other = Flow::first(kind).from_port(42_000).moved();
    let case = Case::of(kind, "every flow has an entry").given(|world| track(world, kind));
    let case = case
        .forward("opening", &flow, &flow.opening())
        .pinning(1)
        .counting(|counters| counters.new_flows = 1, flow.backend);
    let case = next(case, "request", &flow).then("another ring", move |world| {
        world.set_ring(kind, kind.spare_backend());
    });
    let case = next(case, "request", &flow);
    case.forward("another flow", &other, &other.opening())
        .pinning(1)
        .counting(|counters| counters.new_flows = 1, other.backend)
}

/// Flows that are not confirmed give way to others like them, confirmed ones do not.
fn evicted(kind: Kind) -> Case {
    let mut case = Case::of(kind, "more flows than may be unconfirmed").given(|world| {
        track(world, kind);
    });
    let flow = |index: u16| Flow::first(kind).from_port(41_000 + index);
    let begin = |case: Case, index: u16| {
        let flow = flow(index);
        case.forward("opening", &flow, &flow.opening())
            .pinning(1)
            .counting(|counters| counters.new_flows = 1, flow.backend)
    };
    case = begin(case, 0);
    case = next(case, "confirmation", &flow(0));
    for index in 1..=64 {
        case = begin(case, index);
    }
    // The place of the first one: it stays.
    case = next(case, "the confirmed flow", &flow(0));
    let last = flow(65);
    case.forward("one too many", &last, &last.opening())
        .counting(
            |counters| (counters.new_flows, counters.ended_flows) = (1, 1),
            last.backend,
        )
}

#[test]
fn slots() {
    run("slots", &cases());
}
