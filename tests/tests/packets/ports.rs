//! Source ports of full NAT, and what happens when they or the table run out.

use lb_common::drop_reason::DropReason;
use lb_tests::{Bench, Case, Flow, Kind, in_network_namespace};

use crate::run;

/// Entries of the flow tables in the cases that fill them.
const FEW_FLOWS: u16 = 4;

fn full_nat() -> impl Iterator<Item = Kind> {
    Kind::all(|kind| kind.is_full_nat())
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in full_nat() {
        // A word of the bitmap holds 64 ports: 20032 begins one.
        for (name, first, last) in [
            ("one port", 20_000, 20_000),
            ("the last bit of a word", 20_031, 20_031),
            ("the first bit of a word", 20_032, 20_032),
            ("ports of one word", 20_001, 20_004),
            ("ports of two words", 20_030, 20_034),
            ("the highest ports", 65_532, 65_535),
            ("the lowest ports", 1, 3),
        ] {
            cases.push(used_up(kind, name, first, last));
        }
        cases.push(taken_in_turn(kind));
        cases.push(range_changes(kind));
    }
    cases
}

/// The flow from the client's port 40000 + `index` that gets `port`.
fn flow(kind: Kind, index: u16, port: u16) -> Flow {
    Flow::first(kind)
        .from_port(40_000 + index)
        .through_port(port)
}

/// Every port of a range is given away once; then none, until one is free.
fn used_up(kind: Kind, name: &str, first: u16, last: u16) -> Case {
    let exhausted = DropReason::SourcePortsExhausted;
    let backend = kind.backend();
    let mut case = Case::of(kind, name).given(|world| world.set_ports(backend, first, last));
    for (index, port) in (first..=last).enumerate() {
        let flow = flow(kind, index as u16, port);
        case = case.established(&flow);
    }
    let length = last - first + 1;
    let next = flow(kind, length, first);
    case = case.lose("one too many", &next, &next.opening(), exhausted);
    // Each of them can be the one that is free again.
    for (index, port) in (first..=last).enumerate() {
        let old = flow(kind, index as u16, port);
        let new = flow(kind, length + index as u16, port);
        let next = flow(kind, length + index as u16 + 1, port);
        case = case.sweep(&old).established(&new).lose(
            "one too many",
            &next,
            &next.opening(),
            exhausted,
        );
    }
    case
}

/// A port rests until the others have been used, whichever is free.
fn taken_in_turn(kind: Kind) -> Case {
    let backend = kind.backend();
    let at = |index, port| flow(kind, index, port);
    let begin = |case: Case, flow: &Flow| case.established(flow);
    let mut case = Case::of(kind, "a port rests before it is used again")
        .given(|world| world.set_ports(backend, 30_000, 30_003));
    case = begin(case, &at(0, 30_000));
    case = begin(case.sweep(&at(0, 30_000)), &at(1, 30_001));
    case = begin(case, &at(2, 30_002));
    case = begin(case.sweep(&at(1, 30_001)), &at(3, 30_003));
    // The rest is free from the start of the range again.
    case = begin(case, &at(4, 30_000));
    case = begin(case, &at(5, 30_001));
    case.lose(
        "one too many",
        &at(6, 30_000),
        &at(6, 30_000).opening(),
        DropReason::SourcePortsExhausted,
    )
}

/// Flows keep ports that are outside the new range.
fn range_changes(kind: Kind) -> Case {
    let backend = kind.backend();
    let old = flow(kind, 0, 30_000);
    let new = flow(kind, 1, 25_000);
    Case::of(kind, "another range")
        .given(|world| world.set_ports(backend, 30_000, 30_003))
        .established(&old)
        .then("another range", move |world| {
            world.set_ports(backend, 25_000, 25_000);
        })
        .established(&new)
        .forward("known flow", &old, &old.request())
        .reply("known flow", &old, &old.reply())
}

/// The table holds no more: known flows go on, and an entry that is swept makes room.
pub(crate) fn table_full() -> Vec<Case> {
    Kind::TRANSLATED
        .map(|kind| {
            let at = |index: u16, port: u16| {
                let flow = Flow::first(kind).from_port(40_000 + index);
                if kind.is_full_nat() {
                    flow.through_port(20_000 + port)
                } else {
                    flow
                }
            };
            let full = DropReason::FlowTableFull;
            let mut case = Case::of(kind, "the flow table is full");
            for index in 0..FEW_FLOWS {
                case = case.established(&at(index, index));
            }
            let (known, next) = (at(0, 0), at(FEW_FLOWS, FEW_FLOWS));
            // A port that was taken in vain is given back, and rests.
            let after = at(FEW_FLOWS, FEW_FLOWS + 2);
            case.lose("one too many", &next, &next.opening(), full)
                .lose("and again", &next, &next.opening(), full)
                .forward("known flow", &known, &known.request())
                .reply("known flow", &known, &known.reply())
                .sweep(&at(1, 1))
                .established(&after)
        })
        .into()
}

#[test]
fn ports() {
    run("ports", &cases());
}

#[test]
fn flow_table_full() {
    in_network_namespace(|| {
        // Room for all but one, and for one that is not confirmed.
        let max_flows = u32::from(FEW_FLOWS) - 1;
        Bench::with_max_flows(max_flows, 1).run_all("flow table full", &table_full());
    });
}
