//! Packets that do not fit their way, and what their senders are told.

use lb_common::{drop_reason::DropReason, service::Mode, stage::ICMP_ERRORS_PER_TICK};
use lb_tests::{Bench, CLIENT_IF, Case, Flow, Kind, Packet, Tag, in_network_namespace, on_one_cpu};

use crate::run;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        cases.extend([
            quotes(kind),
            narrow(kind),
            tagged(kind),
            before_other_checks(kind),
        ]);
        if !kind.ipv6 {
            cases.push(may_be_fragmented(kind));
        }
    }
    cases
}

/// Those whose packets all come in one tick, on one CPU.
pub(crate) fn in_one_tick() -> Vec<Case> {
    Kind::ALL.map(rate_limit).into()
}

fn sized(packet: Packet, length: usize) -> Packet {
    let headers = packet.clone().with_payload([]).ip_length();
    packet.with_payload(vec![0x42; length - headers])
}

/// A world with ways of `mtu` bytes to the backend and to the client.
fn narrowed(kind: Kind, name: &str, mtu: u32) -> (Case, Flow) {
    let flow = Flow::first(kind);
    let backend = flow.backend;
    let case = Case::of(kind, name)
        .given(|world| {
            world.edit(backend, |backend| backend.mtu = mtu);
            world.interfaces.insert(CLIENT_IF, mtu);
        })
        .established(&flow);
    (case, flow)
}

/// Quoted is what fits the error: around the limits of both families, odd lengths too.
fn quotes(kind: Kind) -> Case {
    let (mut case, flow) = narrowed(kind, "too big, quoted as far as it may be", 300);
    let told = if kind.ipv6 { 1_280 } else { 300 };
    for length in [301, 302, 547, 548, 549, 1_231, 1_232, 1_233, 1_400] {
        let request = sized(flow.request(), length);
        let reply = sized(flow.reply(), length);
        case = case
            .lose_too_big(format!("{length} bytes"), &flow, &request, told)
            .refuse_too_big_reply(format!("{length} bytes back"), &flow, &reply, told);
    }
    case
}

/// No way is narrower than what every way must take.
fn narrow(kind: Kind) -> Case {
    let mtu = if kind.ipv6 { 100 } else { 60 };
    let flow = Flow::first(kind);
    let backend = flow.backend;
    let told = if kind.ipv6 { 1_280 } else { 68 };
    let mut request = sized(flow.request(), 120);
    request.padding = vec![0xee; 9];
    Case::of(kind, "too big for a way that is too narrow")
        .established(&flow)
        .then("narrow", move |world| {
            world.edit(backend, |backend| backend.mtu = mtu);
        })
        .lose_too_big("request", &flow, &request, told)
}

fn tagged(kind: Kind) -> Case {
    let mut flow = Flow::first(kind);
    flow.client_link = flow.client_link.with_tags(&[Tag::provider(5), Tag::new(6)]);
    let backend = flow.backend;
    Case::of(kind, "too big, from a VLAN")
        .given(|world| world.edit(backend, |backend| backend.mtu = 1_300))
        .established(&flow)
        .lose_too_big("request", &flow, &sized(flow.request(), 1_301), 1_300)
}

/// Most senders then send less, also if they did not forbid fragmentation.
fn may_be_fragmented(kind: Kind) -> Case {
    let (case, flow) = narrowed(kind, "too big, without don't fragment", 1_000);
    let packet = |packet| sized(packet, 1_001).with_ipv4(|ip| ip.dont_fragment = false);
    case.lose_too_big("request", &flow, &packet(flow.request()), 1_000)
        .refuse_too_big_reply("reply", &flow, &packet(flow.reply()), 1_000)
}

/// Each is dropped for the first thing that is wrong with it.
fn before_other_checks(kind: Kind) -> Case {
    let (case, flow) = narrowed(kind, "too big and otherwise wrong", 1_000);
    let large = sized(flow.request(), 1_001);
    let backend = flow.backend;
    case.refuse(
        "TTL",
        &flow,
        &large.clone().with_ttl(1),
        DropReason::TtlExpired,
    )
    .then("no way", move |world| {
        world.edit(backend, |backend| backend.path = Default::default());
    })
    .lose("next hop", &flow, &large, DropReason::NextHopUnresolved)
}

fn rate_limit(kind: Kind) -> Case {
    let (mut case, flow) = narrowed(kind, "more that are too big than are answered", 1_000);
    let told = if kind.ipv6 { 1_280 } else { 1_000 };
    let large = sized(flow.request(), 1_001);
    for number in 1..=ICMP_ERRORS_PER_TICK {
        case = case.lose_too_big(format!("number {number}"), &flow, &large, told);
    }
    case = case
        .lose("one more", &flow, &large, DropReason::TooBig)
        .lose("and another", &flow, &large, DropReason::TooBig);
    if matches!(kind.mode, Mode::FullNat | Mode::Nat) {
        let reply = sized(flow.reply(), 1_001).build();
        case = case.refuse_reply("a reply", &flow, reply, DropReason::TooBig);
    }
    case.wait(1)
        .lose_too_big("in the next tick", &flow, &large, told)
        .in_one_tick()
}

#[test]
fn too_big() {
    run("too big", &cases());
}

#[test]
fn too_big_in_one_tick() {
    in_network_namespace(|| {
        on_one_cpu();
        Bench::new().run_all("too big in one tick", &in_one_tick());
    });
}
