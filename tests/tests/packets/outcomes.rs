//! What is counted of the connections that clients begin, where a service is watched; that
//! nothing is where it is not; and that packets go as if nobody watched.

use lb_common::{
    outcome::Outcomes,
    service::{Scheduler, Service},
};
use lb_tests::{Bench, Flow, Kind, Packet, World, in_network_namespace};
use lb_userspace::datapath::Verdict;

/// All services, watched or not.
fn world(is_watched: bool) -> World {
    let mut world = World::standard();
    for service in world.services.values_mut().filter(|_| is_watched) {
        service.flags |= Service::WATCHED;
    }
    world
}

/// A place where a flow goes by.
struct Scene {
    bench: Bench,
    flow: Flow,
    seen: Outcomes,
}

impl Scene {
    fn new(mut bench: Bench, flow: &Flow, world: &World) -> Self {
        bench.reset(world).unwrap();
        let seen = bench.datapath().outcomes(flow.backend);
        Self {
            bench,
            flow: flow.clone(),
            seen,
        }
    }

    /// What a packet counts: of SYNs, of answers, of refusals.
    fn sends(&mut self, packet: &Packet, is_reply: bool) -> (u64, u64, u64) {
        let link = if is_reply {
            &self.flow.backend_link
        } else {
            &self.flow.client_link
        };
        let run = self.bench.send(link.ifindex, &packet.build()).unwrap();
        assert_ne!(run.verdict, Verdict::Aborted);
        let counts = self.bench.datapath().outcomes(self.flow.backend);
        let new = counts.since(std::mem::replace(&mut self.seen, counts));
        (new.begun, new.answered, new.refused)
    }

    fn client(&mut self, packet: &Packet) -> (u64, u64, u64) {
        self.sends(packet, false)
    }

    fn backend(&mut self, packet: &Packet) -> (u64, u64, u64) {
        self.sends(packet, true)
    }
}

const NOTHING: (u64, u64, u64) = (0, 0, 0);
const BEGUN: (u64, u64, u64) = (1, 0, 0);
const ANSWERED: (u64, u64, u64) = (0, 1, 0);
const REFUSED: (u64, u64, u64) = (0, 0, 1);

/// An RST of the backend.
fn refusal(flow: &Flow) -> Packet {
    flow.answer(|tcp| tcp.rst = true).with_payload([])
}

/// Hands the table of programs on, since to load it takes time.
fn each(world: &World, kinds: impl Iterator<Item = Kind>, mut check: impl FnMut(&mut Scene, Kind)) {
    let mut bench = Bench::new();
    for kind in kinds {
        let mut scene = Scene::new(bench, &Flow::first(kind), world);
        check(&mut scene, kind);
        bench = scene.bench;
    }
}

#[test]
fn what_becomes_of_translated_connections_is_counted() {
    in_network_namespace(|| {
        let kinds = Kind::all(|kind| kind.tcp && kind.translates());
        each(&world(true), kinds, |scene, kind| {
            let flow = scene.flow.clone();
            assert_eq!(scene.client(&flow.opening()), BEGUN, "{kind:?}");
            // Sent again, it begins nothing.
            assert_eq!(scene.client(&flow.opening()), NOTHING, "{kind:?}");
            assert_eq!(scene.backend(&flow.acceptance()), ANSWERED, "{kind:?}");
            assert_eq!(scene.client(&flow.confirmation()), NOTHING, "{kind:?}");
            assert_eq!(scene.client(&flow.request()), NOTHING, "{kind:?}");
            assert_eq!(scene.backend(&flow.reply()), NOTHING, "{kind:?}");
            // The end of a connection is no refusal.
            assert_eq!(scene.backend(&refusal(&flow)), NOTHING, "{kind:?}");
        });
    });
}

#[test]
fn only_an_rst_that_answers_a_syn_is_a_refusal() {
    in_network_namespace(|| {
        let kinds = Kind::all(|kind| kind.tcp && kind.translates());
        each(&world(true), kinds, |scene, kind| {
            let flow = scene.flow.clone();
            assert_eq!(scene.client(&flow.opening()), BEGUN, "{kind:?}");
            assert_eq!(scene.backend(&refusal(&flow)), REFUSED, "{kind:?}");
            assert_eq!(scene.backend(&refusal(&flow)), NOTHING, "{kind:?}");
            // One that was forged does not hide the answer of the backend itself.
            assert_eq!(scene.backend(&flow.acceptance()), ANSWERED, "{kind:?}");
        });
        // A client that sends something else than a SYN makes healthy backends refuse it.
        let kinds = Kind::all(|kind| kind.tcp && kind.translates() && !kind.is_full_nat());
        each(&world(true), kinds, |scene, kind| {
            let flow = scene.flow.clone();
            assert_eq!(scene.client(&flow.request()), NOTHING, "{kind:?}");
            assert_eq!(scene.backend(&refusal(&flow)), NOTHING, "{kind:?}");
        });
    });
}

#[test]
fn where_answers_go_another_way_syns_are_counted() {
    in_network_namespace(|| {
        let direct = || Kind::all(|kind| kind.tcp && !kind.translates());
        let mut worlds = vec![world(true)];
        let mut tracked = world(true);
        for kind in direct() {
            tracked.schedule(kind, Scheduler::Hash, &[kind.backend()]);
        }
        worlds.push(tracked);
        for world in &worlds {
            each(world, direct(), |scene, kind| {
                let flow = scene.flow.clone();
                assert_eq!(scene.client(&flow.opening()), BEGUN, "{kind:?}");
                assert_eq!(scene.client(&flow.opening()), BEGUN, "{kind:?}");
                assert_eq!(scene.client(&flow.confirmation()), NOTHING, "{kind:?}");
                let reset = flow.segment(|tcp| tcp.rst = true);
                assert_eq!(scene.client(&reset), NOTHING, "{kind:?}");
            });
        }
    });
}

#[test]
fn without_watching_nothing_is_counted_and_datagrams_never_are() {
    in_network_namespace(|| {
        for (is_watched, kinds) in [
            (false, Kind::all(|_| true).collect::<Vec<_>>()),
            (true, Kind::all(|kind| !kind.tcp).collect()),
        ] {
            each(&world(is_watched), kinds.into_iter(), |scene, kind| {
                let flow = scene.flow.clone();
                assert_eq!(scene.client(&flow.opening()), NOTHING, "{kind:?}");
                assert_eq!(scene.client(&flow.opening()), NOTHING, "{kind:?}");
                if kind.translates() {
                    assert_eq!(scene.backend(&flow.acceptance()), NOTHING, "{kind:?}");
                }
            });
        }
    });
}

#[test]
fn who_is_forgotten_begins_at_zero() {
    in_network_namespace(|| {
        let kinds = Kind::all(|kind| kind.tcp);
        each(&world(true), kinds, |scene, kind| {
            let flow = scene.flow.clone();
            assert_eq!(scene.client(&flow.opening()), BEGUN, "{kind:?}");
            let datapath = scene.bench.datapath();
            datapath.forget_backend(flow.backend).unwrap();
            assert_eq!(datapath.outcomes(flow.backend), Outcomes::default());
        });
    });
}
