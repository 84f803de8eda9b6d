//! As many flows as there are source ports: no two share one, every reply finds its
//! client, and a port that is given back is used again.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use lb_common::drop_reason::DropReason;
use lb_tests::{Bench, Case, Flow, Kind, World, in_network_namespace};
use lb_userspace::datapath::Verdict;

/// Flows that are there at the same time.
const FLOWS: usize = 65_000;
/// The range of source ports.
const PORTS: std::ops::RangeInclusive<u16> = 1_024..=65_535;
/// Entries of the flow tables.
const MAX_FLOWS: u32 = 131_072;

/// The kinds of the tests here, each on a thread and a program of its own.
fn kind(ipv6: bool, tcp: bool) -> Kind {
    let wanted = |kind: &Kind| kind.is_full_nat() && (kind.ipv6, kind.tcp) == (ipv6, tcp);
    Kind::all(wanted).next().expect("every kind is there")
}

/// A flow from a client of its own.
fn flow(kind: Kind, index: usize) -> Flow {
    let mut flow = Flow::first(kind);
    let host = (index / 50_000) as u16 + 1;
    flow.client.set_ip(if kind.ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 1, host).into()
    } else {
        Ipv4Addr::new(203, 0, 113, host as u8).into()
    });
    flow.client.set_port((index % 50_000) as u16 + 10_000);
    flow
}

/// Where a frame comes from and goes to.
fn addresses(frame: &[u8]) -> (u16, IpAddr) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a whole packet");
    let destination = match packet.net.expect("an IP header") {
        NetSlice::Ipv4(ip) => IpAddr::from(ip.header().destination()),
        NetSlice::Ipv6(ip) => IpAddr::from(ip.header().destination()),
        other => panic!("{other:?}"),
    };
    let source_port = match packet.transport.expect("a transport header") {
        TransportSlice::Tcp(tcp) => tcp.source_port(),
        TransportSlice::Udp(udp) => udp.source_port(),
        other => panic!("{other:?}"),
    };
    (source_port, destination)
}

/// Opens a flow. It gets the backend and port that the program chose; `None` where the
/// program drops it.
fn open(bench: &mut Bench, flow: Flow) -> Option<Flow> {
    let opening = flow.opening();
    let run = bench
        .send(flow.client_link.ifindex, &opening.build())
        .unwrap();
    if run.verdict == Verdict::Drop {
        return None;
    }
    assert_eq!(run.verdict, Verdict::Redirect, "{flow:?}");
    let (port, address) = addresses(&run.frame);
    let backends = [flow.kind.backend(), flow.kind.spare_backend()];
    let backend = backends
        .into_iter()
        .find(|id| flow.kind.backend_address(*id) == address)
        .expect("a packet to a backend");
    let flow = flow.on(backend).through_port(port);
    assert_eq!(run.frame, flow.delivered(&opening).build(), "{flow:?}");
    Some(flow)
}

fn answer(bench: &mut Bench, flow: &Flow) {
    let acceptance = flow.acceptance();
    let run = bench
        .send(flow.backend_link.ifindex, &acceptance.build())
        .unwrap();
    assert_eq!(run.verdict, Verdict::Redirect, "{flow:?}");
    assert_eq!(run.frame, flow.returned(&acceptance).build(), "{flow:?}");
}

fn confirm(bench: &mut Bench, flow: &Flow) {
    let confirmation = flow.confirmation();
    let run = bench
        .send(flow.client_link.ifindex, &confirmation.build())
        .unwrap();
    assert_eq!(run.frame, flow.delivered(&confirmation).build(), "{flow:?}");
}

fn test(kind: Kind) {
    in_network_namespace(|| {
        let mut bench = Bench::with_max_flows(MAX_FLOWS, MAX_FLOWS);
        let mut world = World::standard();
        let backends = [kind.backend(), kind.spare_backend()];
        world.share_ring(kind, &backends);
        for backend in backends {
            world.set_ports(backend, *PORTS.start(), *PORTS.end());
        }
        bench.reset(&world).unwrap();

        let mut flows = HashMap::new();
        for index in 0..FLOWS {
            let flow = open(&mut bench, flow(kind, index)).expect("ports enough");
            assert!(PORTS.contains(&flow.source.port()), "{flow:?}");
            let old = flows.insert((flow.backend, flow.source.port()), flow);
            assert!(old.is_none(), "two flows share a port: {old:?}");
        }
        // When all are there, so that a flow that took the place of another shows.
        for flow in flows.values() {
            answer(&mut bench, flow);
            confirm(&mut bench, flow);
        }

        use_up(&mut bench, world, kind, flows);
    });
}

/// Takes the rest of one backend's ports, and gives one back.
fn use_up(bench: &mut Bench, mut world: World, kind: Kind, mut flows: HashMap<(u32, u16), Flow>) {
    let backend = kind.backend();
    world.set_ring(kind, backend);
    bench.enter(&world).unwrap();
    let mut index = FLOWS;
    while let Some(flow) = open(bench, flow(kind, index)) {
        answer(bench, &flow);
        confirm(bench, &flow);
        let old = flows.insert((flow.backend, flow.source.port()), flow);
        assert!(old.is_none(), "two flows share a port: {old:?}");
        index += 1;
    }
    let of_backend = flows.keys().filter(|(id, _)| *id == backend).count();
    assert_eq!(of_backend, PORTS.count(), "every port was to be had");

    let exhausted = DropReason::SourcePortsExhausted;
    let refused = flow(kind, index);
    let old = &flows[&(backend, 40_000)];
    let new = refused.clone().through_port(40_000);
    let late = flow(kind, index + 1);
    let case = Case::of(kind, "the ports are used up")
        .lose("one too many", &refused, &refused.opening(), exhausted)
        .sweep(old)
        .established(&new)
        .lose("one too many", &late, &late.opening(), exhausted);
    bench.resume(&case).unwrap();
}

#[test]
fn sixty_five_thousand_flows_v4_tcp() {
    test(kind(false, true));
}

#[test]
fn sixty_five_thousand_flows_v4_udp() {
    test(kind(false, false));
}

#[test]
fn sixty_five_thousand_flows_v6_tcp() {
    test(kind(true, true));
}

#[test]
fn sixty_five_thousand_flows_v6_udp() {
    test(kind(true, false));
}
