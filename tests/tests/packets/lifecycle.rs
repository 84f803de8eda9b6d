//! Flows from their first packet to their last.

use lb_common::{drop_reason::DropReason, service::Mode};
use lb_tests::{Bench, Case, Flow, Kind, Packet, in_network_namespace};

use crate::run;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(Kind::ALL.map(goes_on));
    for kind in Kind::all(|kind| kind.tcp) {
        cases.extend(ends(kind));
        cases.push(begins_again(kind));
        cases.extend(flags(kind));
        cases.extend(unknown(kind));
        cases.extend(lost(kind));
    }
    cases
}

fn goes_on(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    Case::of(kind, "a flow begins, is answered and goes on")
        .begin("opening", &flow, &flow.opening())
        .forward("opening, sent again", &flow, &flow.opening())
        .reply("acceptance", &flow, &flow.acceptance())
        .reply("acceptance, sent again", &flow, &flow.acceptance())
        .forward("request", &flow, &flow.request())
        .reply("reply", &flow, &flow.reply())
        .forward("another request", &flow, &flow.request())
        .reply("another reply", &flow, &flow.reply())
}

/// Each way that a connection ends is counted once.
fn ends(kind: Kind) -> [Case; 6] {
    let flow = Flow::first(kind);
    let fin = flow.segment(|tcp| tcp.fin = true);
    let fin_back = flow.answer(|tcp| tcp.fin = true);
    let rst = flow.segment(|tcp| tcp.rst = true);
    let rst_back = flow.answer(|tcp| tcp.rst = true);
    [
        Case::of(kind, "FIN of the client, then of the backend")
            .established(&flow)
            .forward("client's FIN", &flow, &fin)
            .forward("client's FIN, sent again", &flow, &fin)
            .reply("data of the half-closed connection", &flow, &flow.reply())
            .reply("backend's FIN", &flow, &fin_back)
            .ending(&flow)
            .reply("backend's FIN, sent again", &flow, &fin_back)
            .forward("last ACK", &flow, &flow.segment(|_| {})),
        Case::of(kind, "FIN of the backend, then of the client")
            .established(&flow)
            .reply("backend's FIN", &flow, &fin_back)
            .reply("backend's FIN, sent again", &flow, &fin_back)
            .forward("data of the half-closed connection", &flow, &flow.request())
            .forward("client's FIN", &flow, &fin)
            .ending(&flow)
            .forward("client's FIN, sent again", &flow, &fin)
            .reply("last ACK", &flow, &flow.answer(|_| {})),
        Case::of(kind, "RST of the client")
            .established(&flow)
            .forward("client's RST", &flow, &rst)
            .ending(&flow)
            .forward("client's RST, sent again", &flow, &rst)
            .reply("data from before it", &flow, &flow.reply()),
        Case::of(kind, "RST of the backend")
            .established(&flow)
            .reply("backend's RST", &flow, &rst_back)
            .ending(&flow)
            .reply("backend's RST, sent again", &flow, &rst_back)
            .forward("data from before it", &flow, &flow.request()),
        Case::of(kind, "RST after both FINs")
            .established(&flow)
            .forward("client's FIN", &flow, &fin)
            .reply("backend's FIN", &flow, &fin_back)
            .ending(&flow)
            .forward("client's RST", &flow, &rst)
            .reply("backend's RST", &flow, &rst_back),
        Case::of(kind, "a backend that refuses the connection")
            .begin("SYN", &flow, &flow.opening())
            .reply("backend's RST", &flow, &rst_back)
            .ending(&flow),
    ]
}

fn begins_again(kind: Kind) -> Case {
    let old = Flow::first(kind);
    // The port of the connection before rests as long as it can.
    let new = if kind.is_full_nat() {
        old.clone().through_port(old.source.port() + 1)
    } else {
        old.clone()
    };
    Case::of(kind, "the client uses its port again after the end")
        .established(&old)
        .forward("client's FIN", &old, &old.segment(|tcp| tcp.fin = true))
        .reply("backend's FIN", &old, &old.answer(|tcp| tcp.fin = true))
        .ending(&old)
        .begin("SYN", &new, &new.opening())
        .removing(&old)
        .reply("acceptance", &new, &new.acceptance())
        .forward("request", &new, &new.request())
}

/// Flags that no TCP sends are dropped, other odd ones are the hosts' business.
fn flags(kind: Kind) -> Vec<Case> {
    let flow = Flow::first(kind);
    let mut refused = Case::of(kind, "contradictory flags").established(&flow);
    type Set = fn(&mut etherparse::TcpHeader);
    let nonsense: [(&str, Set); 6] = [
        ("none", |tcp| tcp.ack = false),
        ("PSH and URG alone", |tcp| {
            (tcp.ack, tcp.psh, tcp.urg) = (false, true, true);
        }),
        ("SYN and FIN", |tcp| {
            (tcp.ack, tcp.syn, tcp.fin) = (false, true, true);
        }),
        ("SYN and RST", |tcp| {
            (tcp.ack, tcp.syn, tcp.rst) = (false, true, true);
        }),
        ("SYN, FIN and ACK", |tcp| (tcp.syn, tcp.fin) = (true, true)),
        ("all", |tcp| {
            (tcp.fin, tcp.syn, tcp.rst, tcp.psh) = (true, true, true, true);
            (tcp.urg, tcp.ece, tcp.cwr, tcp.ns) = (true, true, true, true);
        }),
    ];
    for (name, set) in nonsense {
        refused = refused
            .refuse(name, &flow, &flow.segment(set), DropReason::TcpFlags)
            .refuse_reply(
                format!("{name}, from the backend"),
                &flow,
                flow.answer(set).build(),
                DropReason::TcpFlags,
            );
    }
    let fresh = Flow::first(kind).from_port(50_000);
    for (name, set) in nonsense {
        refused = refused.refuse(
            format!("{name}, of no flow"),
            &fresh,
            &fresh.segment(set),
            DropReason::TcpFlags,
        );
    }

    let explicit_congestion = flow.opening().with_tcp(|tcp| {
        (tcp.ece, tcp.cwr) = (true, true);
    });
    let christmas = flow.segment(|tcp| {
        (tcp.ack, tcp.fin, tcp.psh, tcp.urg) = (false, true, true, true);
    });
    let forwarded = Case::of(kind, "odd flags of a known flow are kept")
        .begin("SYN with ECE and CWR", &flow, &explicit_congestion)
        .reply("acceptance", &flow, &flow.acceptance())
        .forward("FIN, PSH and URG without ACK", &flow, &christmas)
        .reply(
            "all of the harmless ones",
            &flow,
            &flow.answer(|tcp| {
                (tcp.psh, tcp.urg, tcp.ece, tcp.cwr) = (true, true, true, true);
                (tcp.ns, tcp.urgent_pointer) = (true, 7);
            }),
        );
    vec![refused, forwarded]
}

/// With full NAT only a SYN begins a flow. With NAT the ring still knows the backend of a
/// connection, so that whatever one has begins a flow but an RST or a SYN with ACK. In the
/// other modes the ring knows it always.
fn unknown(kind: Kind) -> Vec<Case> {
    let flow = Flow::first(kind);
    let segments = [
        ("ACK", flow.segment(|_| {})),
        ("FIN", flow.segment(|tcp| tcp.fin = true)),
        (
            "FIN without ACK",
            flow.segment(|tcp| (tcp.fin, tcp.ack) = (true, false)),
        ),
        ("RST", flow.segment(|tcp| tcp.rst = true)),
        ("SYN and ACK", flow.segment(|tcp| tcp.syn = true)),
        (
            "FIN, PSH and URG",
            flow.segment(|tcp| (tcp.ack, tcp.fin, tcp.psh, tcp.urg) = (false, true, true, true)),
        ),
    ];
    let case = |(name, packet): &(&str, Packet)| {
        let case = Case::of(kind, format!("{name} of no known flow"));
        let begins = match kind.mode {
            Mode::FullNat => false,
            Mode::Nat => !["RST", "SYN and ACK"].contains(name),
            Mode::Dsr | Mode::Ipip | Mode::Gue => true,
        };
        if begins {
            case.begin(*name, &flow, packet)
        } else {
            case.refuse(*name, &flow, packet, DropReason::NoFlow)
        }
    };
    segments.iter().map(case).collect()
}

/// A connection whose entry was lost goes on where its slot says, but with full NAT, where
/// nobody knows its source port any more.
fn lost(kind: Kind) -> [Case; 2] {
    let flow = Flow::first(kind);
    let fin = flow.segment(|tcp| tcp.fin = true);
    let data = Case::of(kind, "data of a connection whose entry was lost");
    let end = Case::of(kind, "the end of a connection whose entry was lost");
    if kind.is_full_nat() {
        return [
            data.refuse("data", &flow, &flow.request(), DropReason::NoFlow),
            end.refuse("FIN", &flow, &fin, DropReason::NoFlow),
        ];
    }
    [
        data.begin("data", &flow, &flow.request())
            .reply("reply", &flow, &flow.reply()),
        end.begin("FIN", &flow, &fin)
            .reply("backend's FIN", &flow, &flow.answer(|tcp| tcp.fin = true))
            .ending(&flow),
    ]
}

#[test]
fn lifecycle() {
    run("lifecycle", &cases());
}

/// Two services share a backend, and one client port talks to both: to the backend
/// the flows must differ, and each reply must come from the service that was asked.
#[test]
fn one_client_port_towards_two_services_of_one_backend() {
    in_network_namespace(|| {
        let mut bench = Bench::new();
        for kind in Kind::all(|kind| kind.mode == Mode::Nat) {
            share_backend(&mut bench, kind);
        }
    });
}

fn share_backend(bench: &mut Bench, kind: Kind) {
    let first = Flow::first(kind);
    // The same service once more on another port, with an entry of its own for the
    // same backend.
    let mut second = first.clone();
    second.vip.set_port(9_000);
    second.service = 60;
    second.backend = 60;
    let mut world = lb_tests::World::standard();
    let backend = lb_common::backend::Backend {
        service: second.service,
        ..world.backends[&first.backend]
    };
    world.backends.insert(second.backend, backend);
    world.add_service(&second);
    bench.reset(&world).unwrap();

    let expect = |bench: &mut Bench, case: Case| bench.resume(&case).unwrap();
    expect(bench, Case::new("first").established(&first));

    // Which port the second one gets is the program's choice.
    let opening = second.opening();
    let run = bench
        .send(second.client_link.ifindex, &opening.build())
        .unwrap();
    let port = etherparse::PacketHeaders::from_ethernet_slice(&run.frame)
        .unwrap()
        .transport
        .map(|header| match header {
            etherparse::TransportHeader::Tcp(tcp) => tcp.source_port,
            etherparse::TransportHeader::Udp(udp) => udp.source_port,
            other => panic!("{other:?}"),
        })
        .unwrap();
    assert_ne!(port, second.client.port(), "{kind}: the flows must differ");
    assert!(port >= 1_024, "{kind}: port {port} is a privileged one");
    second.source.set_port(port);
    assert_eq!(
        lb_tests::difference(&second.delivered(&opening).build(), &run.frame),
        [""; 0],
        "{kind}"
    );
    expect(
        bench,
        Case::of(kind, "both flows go on")
            .reply("second", &second, &second.acceptance())
            .reply("first", &first, &first.reply())
            .forward("second", &second, &second.request())
            .forward("first", &first, &first.request())
            .reply("second", &second, &second.reply()),
    );
}
