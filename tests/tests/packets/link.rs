//! Interfaces, Ethernet addresses and VLAN tags.

use lb_common::drop_reason::DropReason;
use lb_tests::{BACKEND_IF, CLIENT_IF, Case, Flow, Kind, Link, OTHER_IF, Tag};

use crate::run;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        cases.extend([
            one_interface(kind),
            client_moves(kind),
            another_client_interface(kind),
            no_way_to_backend(kind),
            no_way_to_client(kind),
            unresolved(kind),
            too_big(kind),
            without_a_limit(kind),
            priority(kind),
            client_changes_vlan(kind),
        ]);
        cases.extend(tags(kind));
    }
    cases
}

/// An MTU of 0 says that there is none.
fn without_a_limit(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let large = flow.request().with_payload(vec![0x11; 1_700]);
    Case::of(kind, "a way whose MTU is not known")
        .given(|world| world.edit(flow.backend, |backend| backend.mtu = 0))
        .established(&flow)
        .forward("request", &flow, &large)
}

/// Clients and backends behind the same interface.
fn one_interface(kind: Kind) -> Case {
    let mut flow = Flow::first(kind);
    flow.backend_link = Link {
        remote: flow.backend_link.remote,
        ..Link::to_client()
    };
    let path = flow.backend_link.path();
    Case::of(kind, "out of the interface that it came in by")
        .given(|world| {
            world.edit(flow.backend, |backend| backend.path = path);
            // XDP_TX needs no entry in the device map.
            world.interfaces.clear();
        })
        .established(&flow)
        .forward("request", &flow, &flow.request())
        .reply("reply", &flow, &flow.reply())
}

/// The client's packets come by another router: replies follow.
fn client_moves(kind: Kind) -> Case {
    let old = Flow::first(kind);
    let mut new = old.clone();
    new.client_link = Link::to_other();
    Case::of(kind, "replies follow the client's way")
        .established(&old)
        .forward("by another interface", &new, &new.request())
        .reply("to the new router", &new, &new.reply())
        .forward("by the old one again", &old, &old.request())
        .reply("to the old router", &old, &old.reply())
}

fn another_client_interface(kind: Kind) -> Case {
    let mut flow = Flow::first(kind);
    flow.client_link = Link::to_other();
    flow.client_link.remote = [0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54];
    flow.client_link.local = [0x00, 0x01, 0x02, 0x03, 0x04, 0x05];
    Case::of(kind, "from behind another interface")
        .established(&flow)
        .forward("request", &flow, &flow.request())
        .reply("reply", &flow, &flow.reply())
}

fn no_way_to_backend(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    Case::of(kind, "the backend's interface is not in use")
        .established(&flow)
        .then("without the interface", |world| {
            world.interfaces.remove(&BACKEND_IF);
        })
        .lose("request", &flow, &flow.request(), DropReason::NoInterface)
        .then("with it again", |world| {
            world.interfaces.insert(BACKEND_IF, 1_500);
        })
        .forward("request", &flow, &flow.request())
}

fn no_way_to_client(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    Case::of(kind, "the client's interface is not in use")
        .established(&flow)
        .then("without the interface", |world| {
            world.interfaces.remove(&CLIENT_IF);
        })
        .refuse_reply(
            "reply",
            &flow,
            flow.reply().build(),
            DropReason::NoInterface,
        )
}

fn unresolved(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let backend = flow.backend;
    let path = flow.backend_link.path();
    let lost = DropReason::NextHopUnresolved;
    Case::of(kind, "the backend's next hop is not resolved")
        .given(|world| world.edit(backend, |backend| backend.path.ifindex = 0))
        .lose("opening", &flow, &flow.opening(), lost)
        .then("resolved", move |world| {
            world.edit(backend, |backend| backend.path = path);
        })
        .established(&flow)
        .then("lost", move |world| {
            world.edit(backend, |backend| backend.path = Default::default());
        })
        .lose("request", &flow, &flow.request(), lost)
        .reply("reply", &flow, &flow.reply())
}

/// To the byte, in both directions.
fn too_big(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let mut other = Flow::first(kind);
    other.client_link = Link::to_other();
    let headers = flow.request().with_payload([]).ip_length();
    let sized =
        |packet: lb_tests::Packet, length: usize| packet.with_payload(vec![0x5a; length - headers]);
    Case::of(kind, "as large as the MTU, and larger")
        .given(|world| {
            world.edit(flow.backend, |backend| backend.mtu = 1_400);
            world.interfaces.insert(CLIENT_IF, 1_300);
            world.interfaces.insert(OTHER_IF, 1_200);
        })
        .established(&flow)
        .forward("request as large", &flow, &sized(flow.request(), 1_400))
        .lose_too_big(
            "request too large",
            &flow,
            &sized(flow.request(), 1_401),
            1_400,
        )
        .reply("reply as large", &flow, &sized(flow.reply(), 1_300))
        .refuse_too_big_reply("reply too large", &flow, &sized(flow.reply(), 1_301), 1_300)
        .forward("from elsewhere", &other, &other.request())
        .reply("reply as large there", &other, &sized(other.reply(), 1_200))
        // No IPv6 sender is told of less than 1,280.
        .refuse_too_big_reply(
            "reply too large there",
            &other,
            &sized(other.reply(), 1_201),
            if kind.ipv6 { 1_280 } else { 1_200 },
        )
}

/// Every number of tags to every number of tags, and back.
fn tags(kind: Kind) -> Vec<Case> {
    let client: [&[Tag]; 3] = [&[], &[Tag::new(101)], &[Tag::provider(201), Tag::new(202)]];
    let backend: [&[Tag]; 3] = [&[], &[Tag::new(4_094)], &[Tag::provider(301), Tag::new(1)]];
    let mut cases = Vec::new();
    for outside in client {
        for inside in backend {
            let mut flow = Flow::first(kind);
            flow.client_link = flow.client_link.with_tags(outside);
            flow.backend_link = flow.backend_link.with_tags(inside);
            let path = flow.backend_link.path();
            let name = format!(
                "{} VLAN tags outside, {} inside",
                outside.len(),
                inside.len()
            );
            cases.push(
                Case::of(kind, name)
                    .given(|world| world.edit(flow.backend, |backend| backend.path = path))
                    .established(&flow)
                    .forward("request", &flow, &flow.request())
                    .reply("reply", &flow, &flow.reply()),
            );
        }
    }
    cases
}

/// Priority and drop eligibility stay with the packet, and make no other flow of it.
fn priority(kind: Kind) -> Case {
    let mut flow = Flow::first(kind);
    flow.client_link = flow.client_link.with_tags(&[Tag::provider(7), Tag::new(8)]);
    flow.backend_link = flow
        .backend_link
        .with_tags(&[Tag::new(9), Tag::provider(10)]);
    let path = flow.backend_link.path();
    let outside = [
        Tag::provider(7).priority(5, true),
        Tag::new(8).priority(2, false),
    ];
    let inside = [
        Tag::new(9).priority(7, false),
        Tag::provider(10).priority(0, true),
    ];
    let case = Case::of(kind, "priorities of VLAN tags")
        .given(|world| world.edit(flow.backend, |backend| backend.path = path))
        .established(&flow)
        .forward("request", &flow, &flow.request().with_tags(&outside))
        .reply("reply", &flow, &flow.reply().with_tags(&inside));

    // To one tag, the outer one's.
    let mut single = flow.clone();
    single.backend_link = single.backend_link.with_tags(&[Tag::new(9)]);
    let path = single.backend_link.path();
    case.then("one tag inside", move |world| {
        world.edit(single.backend, |backend| backend.path = path);
    })
    .forward("request", &single, &single.request().with_tags(&outside))
    .reply(
        "reply",
        &single,
        &single.reply().with_tags(&[Tag::new(9).priority(6, true)]),
    )
}

fn client_changes_vlan(kind: Kind) -> Case {
    let on = |vlan| {
        let mut flow = Flow::first(kind);
        flow.client_link = flow.client_link.with_tags(&[Tag::new(vlan)]);
        flow
    };
    let (old, new) = (on(11), on(12));
    Case::of(kind, "the client's packets come by another VLAN")
        .established(&old)
        .forward("request", &new, &new.request())
        .reply("reply", &new, &new.reply())
}

#[test]
fn link() {
    run("link", &cases());
}
