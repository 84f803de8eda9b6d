//! Which backend a new flow gets where its hash does not say it.

use std::collections::BTreeMap;

use lb_common::{
    drop_reason::DropReason,
    service::{Scheduler, Service},
};
use lb_tests::{Case, Flow, Kind, World};

use crate::run;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        cases.extend([
            least_connections(kind),
            least_connections_without_backend(kind),
            full(kind),
        ]);
        if kind.tcp {
            cases.push(fewer_after_the_end(kind));
        }
    }
    cases
}

/// New flows, each with a client port of its own, and with full NAT the next source port of
/// its backend.
struct Openings {
    kind: Kind,
    number: u16,
    ports: BTreeMap<u32, u16>,
}

impl Openings {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            number: 0,
            ports: BTreeMap::new(),
        }
    }

    /// A new flow to a backend.
    fn next(&mut self, case: Case, backend: u32) -> (Case, Flow) {
        let port = 41_000 + self.number;
        let mut flow = Flow::first(self.kind).from_port(port).on(backend);
        self.number += 1;
        if self.kind.is_full_nat() {
            let used = self.ports.entry(backend).or_default();
            let port = flow.source.port() + *used;
            *used += 1;
            flow = flow.through_port(port);
        }
        let label = format!("opening {}", self.number);
        let opening = flow.opening();
        let case = if self.kind.translates() {
            case.begin(label, &flow, &opening)
        } else {
            case.forward(label, &flow, &opening)
                .pinning(1)
                .counting(|counters| counters.new_flows = 1, backend)
        };
        (case, flow)
    }

    fn all(&mut self, mut case: Case, backends: &[u32]) -> Case {
        for backend in backends {
            (case, _) = self.next(case, *backend);
        }
        case
    }
}

/// The service's first backend and the other one with these weights.
fn weigh(world: &mut World, kind: Kind, weights: [u32; 2]) {
    world.edit(kind.backend(), |backend| backend.weight = weights[0]);
    world.edit(kind.spare_backend(), |backend| backend.weight = weights[1]);
}

/// Weights of two and three: no two counts of flows are even.
fn least_connections(kind: Kind) -> Case {
    let (a, b) = (kind.backend(), kind.spare_backend());
    let case = Case::of(kind, "new flows go where there are the fewest").given(|world| {
        world.schedule(kind, Scheduler::LeastConnections, &[a, b]);
        weigh(world, kind, [100, 150]);
    });
    Openings::new(kind).all(case, &[b, a, b, a, b, b, a, b, a, b])
}

fn least_connections_without_backend(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    Case::of(kind, "the fewest flows of no backend")
        .given(|world| {
            world.schedule(kind, Scheduler::LeastConnections, &[0]);
            world.turns.insert(kind.service().id(), 0);
        })
        .refuse("opening", &flow, &flow.opening(), DropReason::NoBackend)
}

/// A backend that is full gets no flow, however few it has.
fn full(kind: Kind) -> Case {
    let (a, b) = (kind.backend(), kind.spare_backend());
    let case = Case::of(kind, "the fewest flows of those that are not full").given(|world| {
        world.schedule(kind, Scheduler::LeastConnections, &[a, b]);
        weigh(world, kind, [1, 1_000]);
        world.edit(b, |backend| backend.max_flows = 1);
        for service in world.services.values_mut() {
            if service.id() == kind.service().id() {
                service.flags |= Service::BOUNDED;
            }
        }
    });
    let mut openings = Openings::new(kind);
    // What is not confirmed fills nothing.
    let (case, _) = openings.next(case, b);
    let (case, flow) = openings.next(case, b);
    let case = confirm(case, &flow);
    openings.all(case, &[a, a])
}

fn confirm(case: Case, flow: &Flow) -> Case {
    case.reply("acceptance", flow, &flow.acceptance()).forward(
        "confirmation",
        flow,
        &flow.confirmation(),
    )
}

/// A flow counts from its first packet on and no more once it has ended.
fn fewer_after_the_end(kind: Kind) -> Case {
    let (a, b) = (kind.backend(), kind.spare_backend());
    let case = Case::of(kind, "flows that ended count no more").given(|world| {
        world.schedule(kind, Scheduler::LeastConnections, &[a, b]);
        weigh(world, kind, [100, 150]);
    });
    let mut openings = Openings::new(kind);
    let (case, _) = openings.next(case, b);
    let (case, first) = openings.next(case, a);
    let case = confirm(case, &first);
    let case = openings.all(case, &[b]);
    let case = case.forward("RST", &first, &first.segment(|tcp| tcp.rst = true));
    // Of others a packet of the client alone tells the end, which is counted there.
    let case = if kind.translates() {
        case.ending(&first)
    } else {
        case
    };
    openings.all(case, &[a, a])
}

#[test]
fn schedulers() {
    run("schedulers", &cases());
}
