//! Frames in several buffers, of which the first alone is reached by pointers.

use lb_tests::{Case, Extension, Flow, Kind, OTHER_IF, Packet};

use crate::run;

/// MTU of the interfaces.
const MTU: u32 = 9_000;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        cases.extend([sizes(kind), options(kind), too_big(kind), cut_off(kind)]);
        if !kind.tcp {
            cases.push(unchecked(kind));
        }
    }
    cases
}

/// An established flow with wide ways to the client and the backend.
pub(crate) fn wide(kind: Kind, name: &str) -> (Case, Flow) {
    let flow = Flow::first(kind);
    let mtu = MTU - kind.overhead() as u32;
    let case = Case::of(kind, name)
        .given(|world| {
            for mtu in world.interfaces.values_mut() {
                *mtu = MTU;
            }
            world.edit(flow.backend, |backend| backend.mtu = mtu);
        })
        .established(&flow);
    (case, flow)
}

/// The packet with a payload that makes it `length` bytes long.
pub(crate) fn sized(packet: Packet, length: usize) -> Packet {
    let headers = packet.clone().with_payload([]).ip_length();
    let payload = (0..length - headers).map(|index| (index % 253) as u8);
    packet.with_payload(payload.collect::<Vec<_>>())
}

fn sizes(kind: Kind) -> Case {
    let (mut case, flow) = wide(kind, "jumbo frames");
    for length in [
        3_500,
        3_507,
        4_096,
        4_097,
        7_777,
        8_900,
        9_000 - kind.overhead(),
    ] {
        case = case
            .forward(
                format!("{length} bytes"),
                &flow,
                &sized(flow.request(), length),
            )
            .reply(
                format!("{length} bytes back"),
                &flow,
                &sized(flow.reply(), length),
            );
    }
    case
}

/// Headers that are not all in one piece with the fixed ones.
fn options(kind: Kind) -> Case {
    let (case, flow) = wide(kind, "jumbo frames with options");
    let with = |packet: Packet| {
        let packet = if kind.ipv6 {
            packet.with_extensions(&[Extension::HopByHop(6), Extension::Destination(62)])
        } else {
            packet.with_ipv4(|ip| ip.options = [1; 40].as_slice().try_into().unwrap())
        };
        sized(packet, 8_001)
    };
    case.forward("request", &flow, &with(flow.request()))
        .reply("reply", &flow, &with(flow.reply()))
}

/// All of the datagram is summed for the outer UDP checksum.
fn unchecked(kind: Kind) -> Case {
    let (mut case, flow) = wide(kind, "jumbo datagrams without a checksum");
    for length in [3_501, 8_000, 8_900] {
        let request = sized(flow.request(), length).unchecked();
        case = case.forward(format!("{length} bytes"), &flow, &request);
    }
    case
}

/// The error is small again.
fn too_big(kind: Kind) -> Case {
    let (case, flow) = wide(kind, "jumbo frames that are too big");
    let backend = flow.backend;
    let mut other = flow.clone();
    other.client_link = lb_tests::Link::to_other();
    case.then("narrow ways", move |world| {
        world.edit(backend, |backend| backend.mtu = 1_500);
        world.interfaces.insert(OTHER_IF, 1_500);
    })
    .lose_too_big("request", &flow, &sized(flow.request(), 8_000), 1_500)
    .lose_too_big("a page", &flow, &sized(flow.request(), 3_600), 1_500)
    .forward("by another way", &other, &sized(other.request(), 1_400))
    .refuse_too_big_reply("reply", &other, &sized(other.reply(), 5_000), 1_500)
}

fn cut_off(kind: Kind) -> Case {
    use lb_common::drop_reason::DropReason;

    let (case, flow) = wide(kind, "jumbo frames that are cut off");
    let mut frame = sized(flow.request(), 8_000).build();
    let last = frame.len() - 1;
    frame.truncate(last);
    let mut back = sized(flow.reply(), 8_000).build();
    back.truncate(6_000);
    case.refuse_frame("request", &flow, frame, DropReason::IpLength)
        .refuse_reply("reply", &flow, back, DropReason::IpLength)
}

#[test]
fn jumbo() {
    run("jumbo", &cases());
}
