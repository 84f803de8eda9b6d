//! Which backend a new flow gets where its hash does not say it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use lb_common::{
    backend::BackendState,
    client::{MAX_CLIENTS, MAX_NEWCOMERS},
    drop_reason::DropReason,
    service::{Mode, Scheduler, Service},
};
use lb_tests::{Bench, Case, Flow, Kind, Link, Packet, World, in_network_namespace};
use lb_userspace::datapath::Verdict;

use crate::run;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        cases.extend([
            least_connections(kind),
            least_connections_without_backend(kind),
            full(kind),
            kept(kind),
            kept_no_longer(kind),
            kept_while_it_takes_flows(kind),
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
    /// Which of two clients they are of.
    host: u8,
    ports: BTreeMap<u32, u16>,
}

impl Openings {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            number: 0,
            host: 0,
            ports: BTreeMap::new(),
        }
    }

    /// A new flow to a backend.
    fn next(&mut self, case: Case, backend: u32) -> (Case, Flow) {
        let port = 41_000 + self.number;
        let mut flow = Flow::first(self.kind).from_port(port).on(backend);
        self.number += 1;
        if self.host != 0 {
            let other = match flow.client.ip() {
                IpAddr::V4(ip) => IpAddr::from(Ipv4Addr::from_bits(ip.to_bits() + 1)),
                IpAddr::V6(ip) => IpAddr::from(Ipv6Addr::from_bits(ip.to_bits() + 1)),
            };
            flow.client.set_ip(other);
            if !self.kind.is_full_nat() {
                flow.source.set_ip(other);
            }
        }
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
            world.options.clear();
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

/// Clients are remembered for a second; by its load, each new flow would go to the other
/// backend than the one before.
fn affine(kind: Kind, what: &str) -> Case {
    let (a, b) = (kind.backend(), kind.spare_backend());
    Case::of(kind, what).given(|world| {
        world.schedule(kind, Scheduler::LeastConnections, &[a, b]);
        weigh(world, kind, [100, 150]);
        world.remember(kind, 10);
    })
}

/// So it does, from its very first packet on, and to each client its own.
fn kept(kind: Kind) -> Case {
    let (a, b) = (kind.backend(), kind.spare_backend());
    let mut openings = Openings::new(kind);
    let case = openings.all(affine(kind, "a client keeps its backend"), &[b, b]);
    let (case, flow) = openings.next(case, b);
    let case = confirm(case, &flow);
    openings.host = 1;
    let case = openings.all(case, &[a, a]);
    openings.host = 0;
    openings.all(case, &[b, b])
}

/// The time is that since its last flow began or was confirmed.
fn kept_no_longer(kind: Kind) -> Case {
    let (a, b) = (kind.backend(), kind.spare_backend());
    let mut openings = Openings::new(kind);
    let case = openings.all(affine(kind, "a client keeps its backend for a time"), &[b]);
    let case = openings.all(case.wait(9), &[b]).wait(9);
    let (case, flow) = openings.next(case, b);
    let case = confirm(case.wait(5), &flow);
    let case = openings.all(case.wait(9), &[b]);
    openings.all(case.wait(11), &[a, a])
}

/// One that is down, drained or full is left, and not come back to.
fn kept_while_it_takes_flows(kind: Kind) -> Case {
    let (a, b) = (kind.backend(), kind.spare_backend());
    let mut openings = Openings::new(kind);
    let case = affine(kind, "a client leaves a backend that takes no flows");
    let (case, flow) = openings.next(case, b);
    let case = confirm(case, &flow);
    let case = case.then("down", move |world| {
        world.share_ring(kind, &[a]);
        world.set_state(b, BackendState::Down);
    });
    let case = openings.all(case, &[a]).then("up again", move |world| {
        world.share_ring(kind, &[a, b]);
        world.set_state(b, BackendState::Up);
    });
    let case = openings.all(case, &[a]).then("drained", move |world| {
        world.share_ring(kind, &[b]);
        world.edit(a, |backend| backend.weight = 0);
    });
    let (case, flow) = openings.next(case, b);
    let case = confirm(case, &flow).then("full", move |world| {
        world.share_ring(kind, &[a, b]);
        weigh(world, kind, [100, 1_000]);
        world.edit(b, |backend| backend.max_flows = 1);
        for service in world.services.values_mut() {
            if service.id() == kind.service().id() {
                service.flags |= Service::BOUNDED;
            }
        }
    });
    openings.all(case, &[a, a])
}

/// As many clients as are remembered in either table, whose addresses are forged, push out
/// nothing of one that was answered.
#[test]
fn forged_packets_push_out_no_client() {
    in_network_namespace(|| {
        for kind in Kind::all(|kind| kind.tcp && (kind.is_full_nat() || kind.mode == Mode::Dsr)) {
            let (a, b) = (kind.backend(), kind.spare_backend());
            let mut world = World::standard();
            world.schedule(kind, Scheduler::LeastConnections, &[a, b]);
            weigh(&mut world, kind, [1, 1_000]);
            world.remember(kind, 10);
            let mut bench = Bench::new();
            bench.enter(&world).unwrap();
            let client = Flow::first(kind).on(b);
            let mut send = |link: &Link, packet: &Packet| {
                let run = bench.send(link.ifindex, &packet.build()).unwrap();
                assert_eq!(run.verdict, Verdict::Redirect);
                run.frame
            };
            send(&client.client_link, &client.opening());
            if kind.translates() {
                send(&client.backend_link, &client.acceptance());
            }
            send(&client.client_link, &client.confirmation());
            for number in 0..MAX_CLIENTS + MAX_NEWCOMERS {
                let mut forged = client.clone();
                forged.client.set_ip(if kind.ipv6 {
                    Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(number)).into()
                } else {
                    Ipv4Addr::from_bits(0x0b00_0000 + number).into()
                });
                send(&forged.client_link, &forged.opening());
            }
            world.schedule(kind, Scheduler::LeastConnections, &[a]);
            world.remember(kind, 10);
            bench.enter(&world).unwrap();
            let again = client.clone().from_port(50_000);
            let run = bench.send(again.client_link.ifindex, &again.opening().build());
            assert_eq!(run.unwrap().frame[..6], again.backend_link.remote);
        }
    });
}

#[test]
fn schedulers() {
    run("schedulers", &cases());
}
