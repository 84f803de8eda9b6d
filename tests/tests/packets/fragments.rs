//! Fragments: the first goes where its flow goes, and later ones follow.

use lb_common::drop_reason::DropReason;
use lb_tests::{Case, Change, Extension, Flow, Kind, Outcome, Packet};

use crate::run;

pub(crate) fn cases() -> Vec<Case> {
    Kind::ALL
        .into_iter()
        .flat_map(|kind| {
            [
                in_order(kind),
                out_of_order(kind),
                overlapping(kind),
                tiny(kind),
            ]
        })
        .collect()
}

/// The fragment of `packet` at an offset in units of eight bytes.
fn fragment(kind: Kind, packet: Packet, offset: u16, more: bool) -> Packet {
    if kind.ipv6 {
        return packet.with_extensions(&[Extension::Fragment(offset, more)]);
    }
    packet.with_ipv4(|ip| {
        ip.fragment_offset = offset.try_into().expect("13 bits");
        (ip.more_fragments, ip.dont_fragment) = (more, false);
    })
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

/// What a packet of `length` bytes adds to the counters of the flow's backend.
fn counted(flow: &Flow, packet: &Packet, is_reply: bool) -> Change {
    let mut change = Change::default();
    let counters = change.counters.entry(flow.backend).or_default();
    let bytes = packet.ip_length() as u64;
    if is_reply {
        (counters.reply_packets, counters.reply_bytes) = (1, bytes);
    } else {
        (counters.packets, counters.bytes) = (1, bytes);
    }
    change
}

/// Adds a later fragment of a request that reaches the backend.
fn follows(case: Case, label: &str, flow: &Flow, later: &Packet) -> Case {
    let frame = without_header(later, &flow.delivered(later));
    let sent = Outcome::Sent(flow.backend_link.ifindex, frame);
    let change = counted(flow, later, false);
    case.frame(label, flow.client_link.ifindex, later.build(), sent, change)
}

fn in_order(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let large = |packet: Packet| packet.with_payload(vec![0x3c; 1_204]);
    let first = fragment(kind, large(flow.request()), 0, true);
    let second = fragment(kind, large(flow.request()), 153, true);
    let third = fragment(kind, flow.request(), 306, false);
    let back = fragment(kind, large(flow.reply()), 0, true);
    let last = fragment(kind, flow.reply(), 153, false);
    let returned = without_header(&last, &flow.returned(&last));
    let mut case = Case::new(format!("{kind}: fragments, both ways"))
        .established(&flow)
        .forward("first", &flow, &first);
    case = follows(case, "second", &flow, &second);
    case = follows(case, "third", &flow, &third);
    case.reply("first back", &flow, &back).frame(
        "last back",
        flow.backend_link.ifindex,
        last.build(),
        Outcome::Sent(flow.client_link.ifindex, returned),
        counted(&flow, &last, true),
    )
}

fn out_of_order(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let missing = DropReason::FragmentFirstMissing;
    let later = fragment(kind, flow.request(), 153, false);
    let back = fragment(kind, flow.reply(), 153, false);
    Case::new(format!("{kind}: a later fragment without its first"))
        .established(&flow)
        .discard("request", later.build(), missing)
        // Nobody can know that it is ours.
        .pass("reply", flow.backend_link.ifindex, back.build())
}

fn overlapping(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let other = flow.clone().from_port(40_001);
    let large = |packet: Packet| packet.with_payload(vec![0x3c; 1_204]);
    let first = fragment(kind, large(flow.request()), 0, true);
    let inside = fragment(kind, flow.request(), 1, false);
    let again = fragment(kind, large(other.request()), 0, true);
    let overlap = DropReason::FragmentOverlap;
    Case::new(format!("{kind}: fragments that overlap"))
        .established(&flow)
        .forward("first", &flow, &first)
        .forward("the same again", &flow, &first)
        .discard("one within it", inside.build(), overlap)
        .discard("a first with other ports", again.build(), overlap)
}

fn tiny(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let first = fragment(kind, flow.request().with_payload([]), 0, true);
    let mut frame = first.build();
    let end = first.transport_offset() + 4;
    frame.truncate(end);
    Case::new(format!("{kind}: a first fragment that ends in the ports"))
        .established(&flow)
        .discard("tiny", frame, DropReason::FragmentTiny)
}

#[test]
fn fragments() {
    run("fragments", &cases());
}
