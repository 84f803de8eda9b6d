//! Fragments: the first goes where its flow goes, and later ones follow.

use etherparse::Ipv4Options;
use lb_common::{drop_reason::DropReason, fragment::FRAGMENT_TICKS, service::Vip};
use lb_tests::{Case, Change, Extension, First, Flow, Kind, Outcome, Packet, edit_ipv4, split};

use crate::run;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        cases.extend([
            in_order(kind),
            whole(kind),
            out_of_order(kind),
            expired(kind),
            overlapping(kind),
            tiny(kind),
            too_long(kind),
            too_big(kind),
            other_port(kind),
            other_port_dropped(kind),
            with_options(kind),
        ]);
    }
    cases
}

/// `sent` as `delivered` should be, but without a transport header: what stands in its
/// place stays as it came.
fn without_header(sent: &Packet, delivered: &Packet) -> Vec<u8> {
    let (sent, from) = (sent.build(), sent.transport_offset());
    let (mut frame, to) = (delivered.build(), delivered.transport_offset());
    frame.truncate(to);
    frame.extend(&sent[from..]);
    frame
}

/// A later fragment of a request reaches the backend.
pub(crate) fn follows(case: Case, label: &str, flow: &Flow, later: &Packet) -> Case {
    let delivered = flow.delivered(later);
    let frame = flow.wrapped(without_header(later, &delivered), delivered.ip_offset());
    let sent = Outcome::Sent(flow.backend_link.ifindex, frame);
    let change = Change::forwarded(flow, later.ip_length()).speaking(flow, later);
    case.frame(label, flow.client_link.ifindex, later.build(), sent, change)
}

/// A later fragment of a reply reaches the client.
fn follows_back(case: Case, label: &str, flow: &Flow, later: &Packet) -> Case {
    if !flow.kind.translates() {
        return case.pass(label, flow.backend_link.ifindex, later.build());
    }
    let frame = without_header(later, &flow.returned(later));
    let sent = Outcome::Sent(flow.client_link.ifindex, frame);
    let mut change = Change::replied(flow, later.ip_length());
    change.spoken = Some(1);
    case.frame(
        label,
        flow.backend_link.ifindex,
        later.build(),
        sent,
        change,
    )
}

/// The first fragment of a reply reaches the client.
fn begins_back(case: Case, label: &str, flow: &Flow, first: &Packet) -> Case {
    let case = case.reply(label, flow, first);
    if flow.kind.translates() {
        return case.remembering(first);
    }
    case
}

/// What the first fragments here have of a packet, in bytes.
const LARGE: usize = 1_224;

/// A packet whose transport header and payload are that long.
fn large(packet: Packet) -> Packet {
    let header = packet.transport_length();
    packet.with_payload(vec![0x3c; LARGE - header])
}

fn in_order(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let first = large(flow.request()).as_fragment(0, true);
    let second = large(flow.request()).as_fragment(153, true);
    let third = flow.request().as_fragment(306, false);
    let back = large(flow.reply()).as_fragment(0, true);
    let last = flow.reply().as_fragment(153, false);
    let mut case = Case::of(kind, "fragments, both ways")
        .established(&flow)
        .forward("first", &flow, &first)
        .remembering(&first);
    case = follows(case, "second", &flow, &second);
    case = follows(case, "third", &flow, &third);
    case = follows(case, "second again", &flow, &second);
    case = begins_back(case, "first back", &flow, &back);
    follows_back(case, "last back", &flow, &last)
}

/// The fragments are those of the packet that would have been delivered in one piece.
fn whole(kind: Kind) -> Case {
    const SIZE: usize = 1_208;
    let flow = Flow::first(kind);
    let payload: Vec<u8> = (0..3_001_u16).map(|index| (index % 251) as u8).collect();
    let packet = |packet: Packet| {
        let packet = packet.with_payload(payload.clone());
        match kind.ipv6 {
            true => packet,
            false => packet.with_ipv4(|ip| ip.dont_fragment = false),
        }
    };
    let request = packet(flow.request());
    let delivered = flow.delivered(&request);
    let mut case = Case::of(kind, "a large packet in fragments arrives whole").established(&flow);
    let pairs = split(&request, SIZE)
        .into_iter()
        .zip(split(&delivered, SIZE));
    for (index, (sent, got)) in pairs.enumerate() {
        let bytes = sent.len() - request.ip_offset();
        let change = Change::forwarded(&flow, bytes).speaking(&flow, &request);
        let frame = flow.wrapped(got, delivered.ip_offset());
        let outcome = Outcome::Sent(flow.backend_link.ifindex, frame);
        let ifindex = flow.client_link.ifindex;
        case = case.frame(format!("part {index}"), ifindex, sent, outcome, change);
        if index == 0 {
            case = case.changing(|change| {
                change
                    .fragments
                    .insert(First::of(&request).with_length(SIZE));
            });
        }
    }
    if !kind.translates() {
        return case;
    }
    let reply = packet(flow.reply());
    let pairs = split(&reply, SIZE)
        .into_iter()
        .zip(split(&flow.returned(&reply), SIZE));
    for (index, (sent, got)) in pairs.enumerate() {
        let mut change = Change::replied(&flow, sent.len() - reply.ip_offset());
        change.spoken = Some(1);
        if index == 0 {
            change.fragments.insert(First::of(&reply).with_length(SIZE));
        }
        let outcome = Outcome::Sent(flow.client_link.ifindex, got);
        let ifindex = flow.backend_link.ifindex;
        case = case.frame(format!("part {index} back"), ifindex, sent, outcome, change);
    }
    case
}

fn out_of_order(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let missing = DropReason::FragmentFirstMissing;
    let later = flow.request().as_fragment(153, false);
    let back = flow.reply().as_fragment(153, false);
    Case::of(kind, "a later fragment without its first")
        .established(&flow)
        .discard("request", later.build(), missing)
        // Nobody can know that it is ours.
        .pass("reply", flow.backend_link.ifindex, back.build())
}

fn expired(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let first = large(flow.request()).as_fragment(0, true);
    let later = flow.request().as_fragment(153, false);
    let case = Case::of(
        kind,
        "a later fragment 30 seconds after its first, and later",
    )
    .established(&flow)
    .forward("first", &flow, &first)
    .remembering(&first)
    // The packet itself comes a tick later.
    .wait(FRAGMENT_TICKS - 1);
    follows(case, "in time", &flow, &later).discard(
        "a tick later",
        later.build(),
        DropReason::FragmentFirstMissing,
    )
}

fn overlapping(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let other = flow.clone().from_port(40_001);
    let first = large(flow.request()).as_fragment(0, true);
    let inside = flow.request().as_fragment(1, false);
    let edge = LARGE as u16 / 8;
    let last_inside = flow.request().as_fragment(edge - 1, false);
    let behind = flow.request().as_fragment(edge, false);
    let again = large(other.request()).as_fragment(0, true);
    let overlap = DropReason::FragmentOverlap;
    let case = Case::of(kind, "fragments that overlap the first")
        .established(&flow)
        .forward("first", &flow, &first)
        .remembering(&first)
        .forward("the same again", &flow, &first)
        .remembering(&first)
        .discard("one within it", inside.build(), overlap)
        .discard("its last eight bytes", last_inside.build(), overlap)
        .discard("a first with other ports", again.build(), overlap);
    follows(case, "right behind it", &flow, &behind)
}

/// At every length that is too short.
fn tiny(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let first = flow.request().with_payload([]).as_fragment(0, true);
    let header = if kind.tcp { 20 } else { 8 };
    let mut case =
        Case::of(kind, "a first fragment without the whole transport header").established(&flow);
    for length in 0..header {
        let mut frame = first.build();
        frame.truncate(first.transport_offset() + length);
        let name = format!("{length} bytes of it");
        case = case.discard(name, frame, DropReason::FragmentTiny);
    }
    if kind.tcp {
        // The header is there, its options are not.
        let mut frame = first.build();
        frame[first.transport_offset() + 12] = 0x60;
        case = case.refuse_frame("options missing", &flow, frame, DropReason::FragmentTiny);
    }
    case
}

fn too_long(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let first = large(flow.request()).as_fragment(0, true);
    // 65,528 bytes before it, and 8 fit no more.
    let beyond = flow.request().as_fragment(0x1fff, false);
    Case::of(kind, "a fragment that reaches beyond 65,535 bytes")
        .established(&flow)
        .forward("first", &flow, &first)
        .remembering(&first)
        .discard("beyond", beyond.build(), DropReason::IpLength)
}

fn too_big(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let (mtu, backend) = (1_280, flow.backend);
    let first = large(flow.request()).as_fragment(0, true);
    let wide = flow
        .request()
        .with_payload(vec![0x3c; 1_300])
        .as_fragment(0, true);
    let later = flow
        .request()
        .with_payload(vec![0x3c; 1_300])
        .as_fragment(153, false);
    Case::of(kind, "fragments too big for the way")
        .given(|world| world.edit(backend, |backend| backend.mtu = mtu))
        .established(&flow)
        .lose_too_big("first", &flow, &wide, mtu as u16)
        .discard(
            "a later one of it",
            later.build(),
            DropReason::FragmentFirstMissing,
        )
        .forward("a smaller first", &flow, &first)
        .remembering(&first)
        // No word is sent about a later one.
        .lose("a later one", &flow, &later, DropReason::TooBig)
}

/// Later fragments follow their first to the host too.
fn other_port(kind: Kind) -> Case {
    let mut flow = Flow::first(kind);
    flow.vip.set_port(9);
    let first = large(flow.request()).as_fragment(0, true);
    let later = flow.request().as_fragment(153, false);
    let ifindex = flow.client_link.ifindex;
    Case::of(kind, "fragments to another port of the address")
        .pass("first", ifindex, first.build())
        .remembering(&first)
        .pass("later", ifindex, later.build())
}

fn other_port_dropped(kind: Kind) -> Case {
    let mut flow = Flow::first(kind);
    let vip = flow.vip.ip();
    flow.vip.set_port(9);
    let first = large(flow.request()).as_fragment(0, true);
    let later = flow.request().as_fragment(153, false);
    Case::of(kind, "fragments to another port that is to be dropped")
        .given(|world| {
            world.vip_flags.insert(vip.into(), Vip::DROP_OTHER_PORTS);
        })
        .discard("first", first.build(), DropReason::NoService)
        .discard("later", later.build(), DropReason::FragmentFirstMissing)
}

/// IPv4 options, or extension headers before the fragment header.
fn with_options(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let with = |packet: Packet, offset, more| {
        if kind.ipv6 {
            let extensions = [
                Extension::HopByHop(6),
                Extension::Destination(14),
                Extension::Fragment(offset, more),
            ];
            return packet.with_extensions(&extensions);
        }
        packet.as_fragment(offset, more).with_ipv4(|ip| {
            ip.options = Ipv4Options::try_from([0x94, 4, 0, 0, 1, 1, 1, 0].as_slice()).unwrap();
        })
    };
    let first = with(large(flow.request()), 0, true);
    let later = with(flow.request(), 153, false);
    let case = Case::of(kind, "fragments with options in front")
        .established(&flow)
        .forward("first", &flow, &first)
        .remembering(&first);
    let case = follows(case, "later", &flow, &later);
    if kind.ipv6 {
        return case;
    }
    let mut frame = later.build();
    edit_ipv4(&mut frame, later.ip_offset(), |ip| ip.total_len += 1);
    case.refuse_frame("longer than the frame", &flow, frame, DropReason::IpLength)
}

#[test]
fn fragments() {
    run("fragments", &cases());
}
