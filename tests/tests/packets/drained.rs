//! Backends whose drain is over: what is left of their connections is reset.

use etherparse::{TcpHeader, TcpOptionElement};
use lb_common::{backend::BackendState, drop_reason::DropReason};
use lb_tests::{Case, Extension, Flow, Kind, Packet, Tag, Transport, World};

use crate::{
    errors, jumbo, run,
    slots::{self, track},
};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        cases.extend([still_named(kind), errors_of_it(kind)]);
        if kind.tcp {
            cases.extend([
                client_first(kind),
                backend_first(kind),
                acknowledgement_first(kind),
                fin_first(kind),
                flags(kind),
                ended_by_itself(kind),
                unanswered(kind),
                opened_again(kind),
                half_closed(kind),
                tagged(kind),
                options(kind),
                large(kind),
                fragments(kind),
                whatever_the_way(kind),
                other_faults(kind),
                taken_back(kind),
                removed(kind),
            ]);
            if kind.translates() {
                cases.push(onward(kind));
            } else {
                cases.extend([tracked(kind), with_entry(kind), table_full(kind)]);
            }
        } else {
            cases.push(datagrams(kind));
        }
    }
    cases
}

/// The drain of the standard backend is over; new flows go to the spare one.
fn over(world: &mut World, kind: Kind) {
    world.set_slots(kind, kind.spare_backend(), kind.backend());
    world.set_state(kind.backend(), BackendState::Resetting);
}

fn drain(case: Case, kind: Kind) -> Case {
    case.then("drained", move |world| over(world, kind))
}

/// An established flow to a backend whose drain is over.
fn drained(kind: Kind, name: &str) -> (Case, Flow) {
    let flow = Flow::first(kind);
    let case = Case::of(kind, name).established(&flow);
    (drain(case, kind), flow)
}

/// The first packet of a client that is more than an acknowledgement: of a translated flow the
/// backend is told. So far a clean slot was all that was known of others.
fn first(case: Case, label: &str, flow: &Flow, request: &Packet) -> Case {
    if flow.kind.translates() {
        case.reset_onward(label, flow, request)
            .ending_by_reset(flow)
    } else {
        case.reset(label, flow, request)
            .ending_by_reset(flow)
            .pinning(1)
    }
}

fn client_first(kind: Kind) -> Case {
    let (case, flow) = drained(kind, "drained, the client speaks first");
    first(case, "request", &flow, &flow.request())
        .reset("again", &flow, &flow.request())
        .reset_back("reply", &flow, &flow.reply())
        .reset_back("again", &flow, &flow.reply())
        .reset("an acknowledgement", &flow, &flow.confirmation())
}

fn backend_first(kind: Kind) -> Case {
    let (case, flow) = drained(kind, "drained, the backend speaks first");
    if !kind.translates() {
        let case = case.reset_back("reply", &flow, &flow.reply());
        return first(case, "request", &flow, &flow.request());
    }
    case.reset_back_onward("reply", &flow, &flow.reply())
        .ending_by_reset(&flow)
        .reset_back("reply, again", &flow, &flow.reply())
        .reset("request", &flow, &flow.request())
        .reset_back("reply", &flow, &flow.reply())
}

/// What nobody sends again is answered: the other end would be told alone.
fn acknowledgement_first(kind: Kind) -> Case {
    let quiet = Flow::first(kind).from_port(40_002);
    let quiet = match kind.is_full_nat() {
        true => quiet.through_port(Flow::first(kind).source.port() + 1),
        false => quiet,
    };
    let flow = Flow::first(kind);
    let case = Case::of(kind, "drained, an acknowledgement comes first")
        .established(&flow)
        .established(&quiet);
    let case = drain(case, kind)
        .reset("of the client", &flow, &flow.confirmation())
        .ending_by_reset(&flow);
    let case = if kind.translates() {
        case.reset_back(
            "of the backend",
            &quiet,
            &quiet.answer(|_| {}).with_payload([]),
        )
        .ending_by_reset(&quiet)
    } else {
        case.pinning(1)
    };
    case.reset("request", &flow, &flow.request())
        .reset_back("reply", &flow, &flow.reply())
}

/// A FIN is sent again like data.
fn fin_first(kind: Kind) -> Case {
    let (case, flow) = drained(kind, "drained, a FIN comes first");
    let fin = flow.segment(|tcp| tcp.fin = true).with_payload([]);
    first(case, "FIN", &flow, &fin)
        .reset("again", &flow, &fin)
        .reset_back("reply", &flow, &flow.reply())
}

/// The other end is told by its own way.
fn onward(kind: Kind) -> Case {
    let mut flow = Flow::first(kind);
    flow.backend_link = flow.backend_link.with_tags(&[Tag::new(7)]);
    flow.client_link = flow.client_link.with_tags(&[Tag::provider(5), Tag::new(6)]);
    let other = flow.clone().from_port(40_002);
    let other = match kind.is_full_nat() {
        true => other.through_port(flow.source.port() + 1),
        false => other,
    };
    let (backend, path) = (flow.backend, flow.backend_link.path());
    let case = Case::of(kind, "drained, the ends in VLANs")
        .given(|world| world.edit(backend, |backend| backend.path = path))
        .established(&flow)
        .established(&other);
    let tags = [
        Tag::provider(5).priority(1, true),
        Tag::new(6).priority(2, false),
    ];
    let marked = flow.request().with_tags(&tags);
    let case = drain(case, kind)
        .reset_onward("request", &flow, &marked)
        .ending_by_reset(&flow)
        .reset("again", &flow, &marked)
        .reset_back_onward("reply", &other, &jumbo::sized(other.reply(), 1_400))
        .ending_by_reset(&other)
        .reset_back("again", &other, &other.reply());
    let third = Flow::first(kind);
    case.then("unresolved", move |world| {
        world.edit(backend, |backend| backend.path = Default::default());
    })
    .reset("nothing more to tell", &third, &third.request())
}

/// With an acknowledgement its number is that of the RST; without one the RST acknowledges
/// all that was sent. Numbers wrap around.
fn flags(kind: Kind) -> Case {
    type Set = fn(&mut TcpHeader);
    const FLAGS: [(&str, Set); 8] = [
        ("data", |tcp| tcp.psh = true),
        ("FIN", |tcp| tcp.fin = true),
        ("SYN, ACK", |tcp| tcp.syn = true),
        ("urgent", |tcp| tcp.urg = true),
        ("FIN without ACK", |tcp| (tcp.fin, tcp.ack) = (true, false)),
        ("FIN without ACK, at the end of numbers", |tcp| {
            (tcp.fin, tcp.ack) = (true, false);
            tcp.sequence_number = u32::MAX - 3;
        }),
        ("the last number", |tcp| {
            tcp.acknowledgment_number = u32::MAX;
        }),
        ("number 0", |tcp| tcp.acknowledgment_number = 0),
    ];
    let (case, flow) = drained(kind, "drained, every flag");
    let mut case = first(case, "request", &flow, &flow.request());
    for (label, set) in FLAGS {
        for payload in ["", "odd", "even"] {
            let packet = |packet: Packet| packet.with_payload(payload);
            case = case
                .reset(label, &flow, &packet(flow.segment(set)))
                .reset_back(label, &flow, &packet(flow.answer(set)));
        }
    }
    // It does not connect to its client.
    let syn = flow.answer(|tcp| (tcp.syn, tcp.ack) = (true, false));
    case.reset_back("a SYN of the backend", &flow, &syn)
}

/// No RST answers another one, and the other side hears of the end.
fn ended_by_itself(kind: Kind) -> Case {
    let rst = |tcp: &mut TcpHeader| tcp.rst = true;
    let other = Flow::first(kind).from_port(40_002);
    let other = match kind.is_full_nat() {
        true => other.through_port(Flow::first(kind).source.port() + 1),
        false => other,
    };
    let flow = Flow::first(kind);
    let case = Case::of(kind, "drained, RST of either side")
        .established(&flow)
        .established(&other);
    let mut case = drain(case, kind).forward("RST", &flow, &flow.segment(rst));
    if kind.translates() {
        case = case.ending_by_reset(&flow);
    }
    case = case.reply("RST of the backend", &other, &other.answer(rst));
    if kind.translates() {
        case = case
            .ending_by_reset(&other)
            .reset("data, late", &other, &other.request())
            .reset_back("data of the backend, late", &flow, &flow.reply());
    }
    case.forward("RST, again", &flow, &flow.segment(rst))
}

/// A handshake that is not over is tried with another backend.
fn unanswered(kind: Kind) -> Case {
    let old = Flow::first(kind);
    let new = old.clone().moved();
    let case = Case::of(kind, "drained during the handshake").begin("SYN", &old, &old.opening());
    let case = drain(case, kind);
    let case = if kind.translates() {
        case.reset_back("SYN, ACK", &old, &old.acceptance())
            .ending_by_reset(&old)
            .begin("SYN again", &new, &new.opening())
            .removing(&old)
    } else {
        case.forward("SYN again", &new, &new.opening()).pinning(1)
    };
    case.reply("SYN, ACK of the other backend", &new, &new.acceptance())
        .forward("confirmation", &new, &new.confirmation())
}

/// The client uses the ports of its connection again, after its end or before.
fn opened_again(kind: Kind) -> Case {
    let old = Flow::first(kind);
    let early = old.clone().from_port(40_002);
    let early = match kind.is_full_nat() {
        true => early.through_port(old.source.port() + 1),
        false => early,
    };
    let new = old.clone().moved();
    let other = early.clone().moved();
    let case = Case::of(kind, "drained and opened again")
        .established(&old)
        .established(&early);
    let case = first(drain(case, kind), "request", &old, &old.request());
    if kind.translates() {
        case.begin("SYN", &new, &new.opening())
            .removing(&old)
            .reply("SYN, ACK", &new, &new.acceptance())
            .forward("confirmation", &new, &new.confirmation())
            .begin(
                "SYN of another that was not reset",
                &other,
                &other.opening(),
            )
            .removing(&early)
            .ending_by_reset(&early)
    } else {
        case.forward("SYN", &new, &new.opening())
            .forward("confirmation", &new, &new.confirmation())
            .forward(
                "SYN of another that was not reset",
                &other,
                &other.opening(),
            )
            .pinning(1)
    }
}

/// A connection that one side has closed is left like others, and ends once.
fn half_closed(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let fin = |tcp: &mut TcpHeader| tcp.fin = true;
    let case = Case::of(kind, "drained after a FIN")
        .established(&flow)
        .forward("FIN", &flow, &flow.segment(fin));
    let case = drain(case, kind);
    let case = case
        .reset("an acknowledgement", &flow, &flow.confirmation())
        .ending_by_reset(&flow);
    let case = if kind.translates() {
        case
    } else {
        // Nothing is remembered of the FIN.
        case.pinning(1)
    };
    case.reset_back("FIN of the backend", &flow, &flow.answer(fin))
}

/// Tags stay as they are, with their priorities.
fn tagged(kind: Kind) -> Case {
    let mut flow = Flow::first(kind);
    let tags = [Tag::provider(5), Tag::new(6)];
    flow.client_link = flow.client_link.with_tags(&tags);
    flow.backend_link = flow.backend_link.with_tags(&[Tag::new(7)]);
    let (backend, path) = (flow.backend, flow.backend_link.path());
    let case = Case::of(kind, "drained, in VLANs")
        .given(|world| world.edit(backend, |backend| backend.path = path))
        .established(&flow);
    let marked = flow
        .request()
        .with_tags(&tags.map(|tag| tag.priority(5, true)));
    let single = flow.request().with_tags(&[Tag::new(6).priority(3, false)]);
    let none = flow.request().with_tags(&[]);
    first(drain(case, kind), "request", &flow, &marked)
        .reset("by another VLAN", &flow, &single)
        .reset("without", &flow, &none)
        .reset_back("reply", &flow, &flow.reply())
}

/// What comes with options is answered without.
fn options(kind: Kind) -> Case {
    let (case, flow) = drained(kind, "drained, with options");
    let with = |packet: Packet| {
        let packet = if kind.ipv6 {
            packet.with_extensions(&[Extension::HopByHop(6), Extension::Destination(62)])
        } else {
            packet.with_ipv4(|ip| ip.options = [1; 40].as_slice().try_into().unwrap())
        };
        packet.with_tcp(|tcp| {
            let timestamps = TcpOptionElement::Timestamp(7, 9);
            tcp.set_options(&[timestamps]).unwrap();
        })
    };
    let mut padded = flow.request().with_payload([]);
    padded.padding = vec![0xee; 20];
    first(case, "request", &flow, &with(flow.request()))
        .reset("an acknowledgement", &flow, &with(flow.confirmation()))
        .reset("padded", &flow, &padded)
        .reset_back("reply", &flow, &with(flow.reply()))
        .reset(
            "FIN without ACK",
            &flow,
            &with(flow.segment(|tcp| (tcp.fin, tcp.ack) = (true, false))),
        )
}

/// Frames in several buffers become small ones.
fn large(kind: Kind) -> Case {
    let (case, flow) = jumbo::wide(kind, "drained, jumbo frames");
    let mut case = first(drain(case, kind), "request", &flow, &flow.request());
    for length in [1_400, 3_500, 4_097, 8_900] {
        case = case
            .reset(
                format!("{length} bytes"),
                &flow,
                &jumbo::sized(flow.request(), length),
            )
            .reset_back(
                format!("{length} bytes back"),
                &flow,
                &jumbo::sized(flow.reply(), length),
            );
    }
    let fin = flow.segment(|tcp| (tcp.fin, tcp.ack) = (true, false));
    case.reset("without ACK", &flow, &jumbo::sized(fin, 7_001))
}

/// A first fragment is answered, which ends its packet; others can't be.
fn fragments(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let first_of = |packet: Packet| packet.with_payload([7; 60]).as_fragment(0, true);
    let known = first_of(flow.request());
    let later = flow.request().as_fragment(100, false);
    let back = first_of(flow.reply());
    let later_back = flow.reply().as_fragment(100, false);
    let case = Case::of(kind, "drained, fragments")
        .established(&flow)
        .forward("first, before", &flow, &known)
        .remembering(&known)
        .reply("first back, before", &flow, &back);
    let case = if kind.translates() {
        case.remembering(&back)
    } else {
        case
    };
    let case = drain(case, kind)
        .lose("later", &flow, &later, DropReason::Drained)
        .refuse_reply("later back", &flow, later_back.build(), DropReason::Drained);
    first(case, "first", &flow, &known)
        .reset_back("first back", &flow, &back)
        .wait(lb_common::fragment::FRAGMENT_TICKS)
        .reset("first, of another packet", &flow, &known)
        .discard(
            "later, whose first went nowhere",
            later.build(),
            DropReason::FragmentFirstMissing,
        )
}

/// The way to the backend is of no concern.
fn whatever_the_way(kind: Kind) -> Case {
    let (case, flow) = drained(kind, "drained, without a way to the backend");
    let backend = flow.backend;
    let wide = flow.request().with_payload(vec![1; 1_000]);
    let case = case.then("narrow", move |world| {
        world.edit(backend, |backend| backend.mtu = 300);
    });
    let case = case.then("unresolved", move |world| {
        world.edit(backend, |backend| backend.path = Default::default());
    });
    // Nobody else can be told.
    let case = case.reset("request", &flow, &wide).ending_by_reset(&flow);
    let case = match kind.translates() {
        true => case,
        false => case.pinning(1),
    };
    case.reset("again", &flow, &flow.request()).reset_back(
        "reply",
        &flow,
        &flow.reply().with_payload(vec![1; 1_500]),
    )
}

/// Each is dropped for the first thing that is wrong with it.
fn other_faults(kind: Kind) -> Case {
    let (case, flow) = drained(kind, "drained and otherwise wrong");
    let request = flow.request();
    let no_flags = flow.segment(|tcp| tcp.ack = false);
    let mut cut = request.build();
    cut.pop();
    case.refuse(
        "TTL",
        &flow,
        &request.clone().with_ttl(1),
        DropReason::TtlExpired,
    )
    .refuse("flags", &flow, &no_flags, DropReason::TcpFlags)
    .refuse_frame("length", &flow, cut, DropReason::IpLength)
    .refuse_reply(
        "TTL of a reply",
        &flow,
        flow.reply().with_ttl(1).build(),
        DropReason::TtlExpired,
    )
}

/// What was reset stays so to its client, whatever becomes of its packets.
fn taken_back(kind: Kind) -> Case {
    let (case, flow) = drained(kind, "drained and taken back");
    let quiet = Flow::first(kind).from_port(40_002);
    let case = first(case, "request", &flow, &flow.request()).then("back", move |world| {
        world.set_state(kind.backend(), BackendState::Up);
        world.set_slots(kind, kind.backend(), kind.backend());
    });
    let case = case
        .forward("request", &flow, &flow.request())
        .reply("reply", &flow, &flow.reply());
    if kind.translates() {
        let again = match kind.is_full_nat() {
            true => flow.clone().through_port(flow.source.port() + 1),
            false => flow.clone(),
        };
        return case.begin("SYN", &again, &again.opening()).removing(&flow);
    }
    case.forward("SYN", &flow, &flow.opening())
        .pinning(-1)
        .forward("another that kept silent", &quiet, &quiet.request())
}

/// Its connections are what those of any removed backend are.
fn removed(kind: Kind) -> Case {
    let (case, flow) = drained(kind, "drained and removed");
    let case = first(case, "request", &flow, &flow.request()).then("removed", move |world| {
        world.set_state(kind.backend(), BackendState::Absent);
    });
    let new = flow.clone().moved();
    if kind.is_full_nat() {
        return case
            .refuse("request", &flow, &flow.request(), DropReason::BackendGone)
            .removing(&flow);
    }
    if kind.translates() {
        return case.begin("request", &new, &new.request()).removing(&flow);
    }
    // The slot is still a changing one: a packet of a flow without an entry gets one.
    case.forward("request", &new, &new.request())
}

/// Should a ring name it all the same, nothing gets to it.
fn still_named(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let case = Case::of(kind, "drained, but named by the ring").given(|world| {
        world.set_state(kind.backend(), BackendState::Resetting);
    });
    if !kind.tcp {
        return case.lose("datagram", &flow, &flow.request(), DropReason::Drained);
    }
    let silent = |case: Case| case.changing(|change| change.spoken = Some(0));
    let case = silent(case.reset("SYN", &flow, &flow.opening()));
    match kind.mode {
        lb_common::service::Mode::FullNat => {
            case.refuse("request", &flow, &flow.request(), DropReason::NoFlow)
        }
        _ => silent(case.reset("request", &flow, &flow.request())),
    }
}

/// ICMP errors find whom they concern: each side may still have something to learn.
fn errors_of_it(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let case = Case::of(kind, "drained, ICMP errors");
    let case = if !kind.tcp && !kind.translates() {
        case.given(|world| track(world, kind))
            .forward("opening", &flow, &flow.opening())
            .pinning(1)
            .counting(|counters| counters.new_flows = 1, flow.backend)
    } else {
        case.established(&flow)
    };
    let mut case = drain(case, kind);
    for what in errors::types(kind) {
        let label = format!("type {:?}", what.0);
        let (reply, request) = (flow.reply(), flow.request());
        case = errors::reaches_backend(case, label.clone(), &flow, &reply, what, errors::ALL);
        case = errors::reaches_client(case, label, &flow, &request, what, errors::ALL);
    }
    case
}

/// Every flow has an entry, which counts its end.
fn tracked(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let quiet = Flow::first(kind).from_port(40_002);
    let rst = |flow: &Flow| flow.segment(|tcp| tcp.rst = true);
    let ended =
        |case: Case, flow: &Flow| case.counting(|counters| counters.ended_flows = 1, flow.backend);
    let case = Case::of(kind, "drained, every flow has an entry").given(|world| track(world, kind));
    let open = |case: Case, flow: &Flow| {
        case.forward("SYN", flow, &flow.opening())
            .pinning(1)
            .counting(|counters| counters.new_flows = 1, flow.backend)
            .forward("confirmation", flow, &flow.confirmation())
    };
    let case = drain(open(open(case, &flow), &quiet), kind);
    let case = ended(case.reset("request", &flow, &flow.request()), &flow);
    let case = case.reset("again", &flow, &flow.request());
    let case = ended(case.forward("RST", &quiet, &rst(&quiet)), &quiet);
    // Flows that were tracked nowhere begin and end with their first packet.
    let unknown = Flow::first(kind).from_port(40_003);
    let case = case
        .reset("of another balancer", &unknown, &unknown.request())
        .pinning(1)
        .counting(
            |counters| (counters.new_flows, counters.ended_flows) = (1, 1),
            unknown.backend,
        )
        .reset("the same", &unknown, &unknown.request());
    let new = flow.moved();
    case.forward("SYN", &new, &new.opening())
        .counting(|counters| counters.new_flows = 1, new.backend)
        .forward("confirmation", &new, &new.confirmation())
        .counting(|_| {}, new.backend)
}

/// A flow has an entry where its slot was changing, also when that is pinned since.
fn with_entry(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let quiet = Flow::first(kind).from_port(40_002);
    let case = Case::of(kind, "drained, a flow with an entry").given(|world| {
        world.set_slots(kind, kind.spare_backend(), kind.backend());
    });
    let case = case
        .forward("request", &flow, &flow.request())
        .pinning(1)
        .forward("again", &flow, &flow.request());
    let case = drain(case, kind).then("pinned", move |world| {
        world.set_slots(kind, kind.spare_backend(), kind.spare_backend());
    });
    let case = case
        .reset("request", &flow, &flow.request())
        .ending_by_reset(&flow)
        .reset("again", &flow, &flow.request());
    // It had its time to speak.
    let quiet = quiet.moved();
    case.forward("a flow without one", &quiet, &quiet.request())
}

/// A flow that is reset needs no entry.
fn table_full(kind: Kind) -> Case {
    let mut case = Case::of(kind, "drained, and a full table").given(|world| {
        world.set_slots(kind, kind.spare_backend(), kind.backend());
    });
    let flow = |index: u16| Flow::first(kind).from_port(41_000 + index);
    for index in 0..slots::ROOM {
        let flow = flow(index);
        case = case
            .forward("request", &flow, &flow.request())
            .pinning(1)
            .forward("again", &flow, &flow.request());
    }
    let late = flow(slots::ROOM);
    drain(case, kind)
        .reset("a quiet flow", &late, &late.request())
        .reset("the same", &late, &late.request())
        .reset("a known flow", &flow(3), &flow(3).request())
        .ending_by_reset(&flow(3))
}

/// There is no reset of datagrams: they go elsewhere, as from any backend that takes none.
fn datagrams(kind: Kind) -> Case {
    let old = Flow::first(kind);
    let new = old.clone().moved();
    let case = Case::of(kind, "drained datagrams");
    if kind.translates() {
        return drain(case.established(&old), kind)
            .reply("reply", &old, &old.reply())
            .begin("request", &new, &new.request())
            .removing(&old)
            .ending_by_reset(&old)
            .reply("reply", &new, &new.reply());
    }
    let case = case
        .given(|world| track(world, kind))
        .forward("opening", &old, &old.opening())
        .pinning(1)
        .counting(|counters| counters.new_flows = 1, old.backend);
    drain(case, kind)
        .forward("request", &new, &new.request())
        .counting(|counters| counters.new_flows = 1, new.backend)
        .counting(|counters| counters.ended_flows = 1, old.backend)
        .forward("another", &new, &new.request())
}

#[test]
fn drained_backends() {
    run("drained backends", &cases());
}

/// The RST is what RFC 9293 asks for.
#[test]
fn the_answer_has_the_number_that_is_expected_next() {
    let flow = Flow::first(Kind::ALL[0]);
    let header = |packet: &Packet| {
        let Transport::Tcp(header) = lb_tests::reset_for(packet).transport else {
            panic!("an answer of TCP");
        };
        header
    };
    let answer = header(&flow.request());
    assert!(answer.rst && !answer.ack);
    assert_eq!(answer.sequence_number, 0x8765_4321);
    let answer = header(&flow.opening());
    assert!(answer.rst && answer.ack);
    assert_eq!(answer.sequence_number, 0);
    assert_eq!(answer.acknowledgment_number, 0x1234_5679);
}
