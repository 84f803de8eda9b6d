//! Health checks that go the way of clients' packets: the program that sends them off, and
//! the main one, which takes their answers.
//!
//! What reaches the backend is what a client with the balancer's own address would have
//! sent there: that is held to the same independent rewriting as the packets of clients.

use std::net::SocketAddr;

use lb_common::{
    counters::Counters,
    probe::{self, LOCAL, Probe},
};
use lb_tests::{
    Bench, Change, Flow, Kind, Link, Outcome, Packet, World, difference, in_network_namespace,
};
use lb_userspace::datapath::{Verdict, words};

/// The modes that leave the destination as it is.
fn kinds() -> impl Iterator<Item = Kind> {
    Kind::all(|kind| !kind.translates())
}

/// How checks reach the backend of this kind, from the address of the flow's client.
fn probe_of(flow: &Flow) -> Probe {
    Probe {
        service: words(flow.vip.ip()),
        source: words(flow.client.ip()),
        mode: flow.kind.service().mode,
        reserved: [0; 3],
    }
}

/// The ends of a connection of the daemon that stands for this flow.
fn ends(flow: &Flow) -> (SocketAddr, SocketAddr) {
    let is_ipv4 = flow.vip.is_ipv4();
    let local = SocketAddr::new(probe::address(LOCAL, is_ipv4), flow.client.port());
    let backend = probe::address(flow.backend, is_ipv4);
    (local, SocketAddr::new(backend, flow.vip.port()))
}

/// A packet as a socket sends it, in place of the flow's client.
fn asked(flow: &Flow, mut packet: Packet) -> Packet {
    let (local, backend) = ends(flow);
    packet.set_tuple(local, backend);
    packet
}

/// A world with the checks of this flow's backend.
fn bench_of(bench: &mut Bench, flow: &Flow) {
    bench.reset(&World::standard()).unwrap();
    let probe = probe_of(flow);
    bench.datapath().set_probe(flow.backend, probe).unwrap();
}

#[test]
fn a_check_reaches_the_backend_as_packets_of_clients_do() {
    in_network_namespace(|| {
        let mut bench = Bench::new();
        for kind in kinds() {
            let flow = Flow::first(kind);
            bench_of(&mut bench, &flow);
            for request in [flow.opening(), flow.request()] {
                let frame = asked(&flow, request.clone()).build();
                let ifindex = Link::to_client().ifindex;
                let run = bench.datapath().test_run_probe(&frame, ifindex).unwrap();
                assert_eq!(run.verdict, Verdict::Redirect, "{kind:?}");
                let expected = flow.delivered_frame(&request);
                let lines = difference(&expected, &run.frame);
                assert!(lines.is_empty(), "{kind:?}\n{}", lines.join("\n"));
            }
        }
    });
}

#[test]
fn an_answer_comes_back_to_the_socket_and_is_counted_for_nobody() {
    in_network_namespace(|| {
        let mut bench = Bench::new();
        for kind in kinds() {
            let flow = Flow::first(kind);
            bench_of(&mut bench, &flow);
            let (local, backend) = ends(&flow);
            let reply = Link::to_backend(flow.backend).incoming(flow.reply());
            let ifindex = Link::to_backend(flow.backend).ifindex;

            // Before anything was asked it is the host's.
            let nothing = Change::default();
            let passed = Outcome::Passed;
            bench
                .check(ifindex, &reply.build(), &passed, &nothing)
                .unwrap();

            let frame = asked(&flow, flow.opening()).build();
            let far = Link::to_client().ifindex;
            bench.datapath().test_run_probe(&frame, far).unwrap();
            let run = bench.send(ifindex, &reply.build()).unwrap();
            assert_eq!(run.verdict, Verdict::Redirect, "{kind:?}");
            let mut expected = Link::to_client().outgoing(reply.clone());
            expected.set_tuple(backend, local);
            expected.set_ttl(reply.ttl() - 1);
            let lines = difference(&expected.build(), &run.frame);
            assert!(lines.is_empty(), "{kind:?}\n{}", lines.join("\n"));
            let counters = bench.datapath().counters(flow.backend).unwrap();
            assert_eq!(counters, Counters::default());
        }
    });
}

#[test]
fn what_is_no_check_is_left_alone_or_dropped() {
    in_network_namespace(|| {
        let mut bench = Bench::new();
        for kind in kinds() {
            let flow = Flow::first(kind);
            bench_of(&mut bench, &flow);
            let far = Link::to_client().ifindex;
            let mut run = |packet: &Packet| {
                let frame = packet.build();
                let run = bench.datapath().test_run_probe(&frame, far).unwrap();
                (run.verdict, run.frame == frame)
            };
            // To the socket.
            let (local, backend) = ends(&flow);
            let mut back = flow.reply();
            back.set_tuple(backend, local);
            assert_eq!(run(&back), (Verdict::Pass, true), "{kind:?}");
            // To a backend that is not checked so.
            let mut other = asked(&flow, flow.request());
            let unknown = probe::address(0xfffe, flow.vip.is_ipv4());
            other.set_tuple(local, SocketAddr::new(unknown, 80));
            assert_eq!(run(&other).0, Verdict::Drop, "{kind:?}");
            // At its end.
            let dying = asked(&flow, flow.request()).with_ttl(1);
            assert_eq!(run(&dying).0, Verdict::Drop, "{kind:?}");
            // Nobody knows the way.
            let request = asked(&flow, flow.request());
            assert_eq!(run(&request).0, Verdict::Redirect, "{kind:?}");
            let mut world = World::standard();
            world.edit(flow.backend, |backend| backend.path.ifindex = 0);
            bench.reset(&world).unwrap();
            let run = bench.datapath().test_run_probe(&request.build(), far);
            assert_eq!(run.unwrap().verdict, Verdict::Drop, "{kind:?}");
        }
    });
}
