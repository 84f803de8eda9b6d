//! ICMP errors: they find whom they concern, and what they quote is that one's packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::Ipv4Options;
use lb_common::{counters::Direction, drop_reason::DropReason, service::Mode};
use lb_tests::{
    Case, Change, Extension, Flow, IcmpError, Kind, Outcome, Packet, Transport, edit_ipv4,
};

use crate::run;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        cases.extend([
            every_type(kind),
            every_type_from_inside(kind),
            quotes(kind),
            quotes_with_options(kind),
            truncated(kind),
            unknown_flow(kind),
            not_for_us(kind),
            refused(kind),
            no_way(kind),
            denied(kind),
            too_big_itself(kind),
            tagged(kind),
        ]);
        if !kind.tcp {
            cases.push(unchecked(kind));
        }
        if kind.mode == Mode::Gue && kind.ipv6 && !kind.tcp {
            cases.push(odd_lengths(kind));
        }
    }
    cases
}

/// Type, code and the last four bytes of an ICMP header.
pub(crate) type Type = ((u8, u8), [u8; 4]);

/// Errors that TCP and UDP react to.
const TYPES_V4: [Type; 10] = [
    ((3, 0), [0; 4]),
    ((3, 1), [0; 4]),
    ((3, 2), [0; 4]),
    ((3, 3), [0; 4]),
    (IcmpError::NEEDS_FRAGMENTATION, [0, 0, 0x05, 0x14]),
    ((3, 13), [0; 4]),
    ((11, 0), [0; 4]),
    ((11, 1), [0; 4]),
    ((12, 0), [9, 0, 0, 0]),
    ((12, 2), [0; 4]),
];
const TYPES_V6: [Type; 10] = [
    ((1, 0), [0; 4]),
    ((1, 1), [0; 4]),
    ((1, 3), [0; 4]),
    ((1, 4), [0; 4]),
    (IcmpError::PACKET_TOO_BIG, [0, 0, 0x05, 0x14]),
    ((3, 0), [0; 4]),
    ((3, 1), [0; 4]),
    ((4, 0), [0, 0, 0, 6]),
    ((4, 1), [0, 0, 0, 40]),
    ((4, 2), [0, 0, 0, 41]),
];

pub(crate) fn types(kind: Kind) -> [Type; 10] {
    if kind.ipv6 { TYPES_V6 } else { TYPES_V4 }
}

/// A router on the way, of either family.
pub(crate) fn router(ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 1).into()
    } else {
        Ipv4Addr::new(203, 0, 113, 1).into()
    }
}

fn label((kind, code): (u8, u8)) -> String {
    format!("type {kind} code {code}")
}

/// An error about a packet from the backend, as it comes and as the backend should get it.
struct Outside {
    frame: Vec<u8>,
    delivered: Vec<u8>,
    length: usize,
}

/// The first `length` bytes of a packet as it was seen, and as who sent it should find it.
fn quoted(seen: &Packet, said: &Packet, length: usize) -> (Vec<u8>, Vec<u8>) {
    const CHECKSUM_OF_TCP: usize = 16;
    let headers = said.transport_offset() - said.ip_offset();
    let is_tcp = matches!(said.transport, Transport::Tcp(_));
    let (mut seen, mut said) = (seen.ip(), said.ip());
    seen.truncate(length);
    said.truncate(length);
    // Half a checksum is none.
    if is_tcp && length == headers + CHECKSUM_OF_TCP + 1 {
        said[length - 1] = seen[length - 1];
    }
    (seen, said)
}

/// A router on the client's side tells the service of `reply`, quoting `quote` bytes.
fn outside(flow: &Flow, reply: &Packet, (kind, rest): Type, quote: usize) -> Outside {
    let seen = if flow.kind.translates() {
        flow.returned(reply)
    } else {
        reply.clone()
    };
    let said = reply.clone().with_ttl(seen.ttl());
    let (seen, said) = quoted(&seen, &said, quote);
    let came = IcmpError::new(router(flow.kind.ipv6), flow.vip.ip(), kind, rest);
    let mut goes = IcmpError {
        ttl: came.ttl - 1,
        ..came.clone()
    };
    if flow.kind.translates() {
        goes.dst = flow.server.ip();
    }
    if flow.kind.is_full_nat() {
        goes.src = flow.source.ip();
    }
    let request = flow.request();
    let ethernet = flow.backend_link.outgoing(request.clone()).ethernet();
    let delivered = [&ethernet[..], &goes.quoting(&said)].concat();
    let error = came.quoting(&seen);
    Outside {
        frame: [request.ethernet(), error.clone()].concat(),
        delivered: flow.wrapped(delivered, ethernet.len()),
        length: error.len(),
    }
}

/// The same reaches the backend.
pub(crate) fn reaches_backend(
    case: Case,
    label: impl Into<String>,
    flow: &Flow,
    reply: &Packet,
    what: Type,
    quote: usize,
) -> Case {
    let error = outside(flow, reply, what, quote);
    let sent = Outcome::Sent(flow.backend_link.ifindex, error.delivered);
    let change = Change::forwarded(flow, error.length);
    let ifindex = flow.client_link.ifindex;
    case.frame(label, ifindex, error.frame, sent, change)
}

/// A router on the backend's side tells of `request`, quoting `quote` bytes, and the client
/// gets it. Without translation it is sent to the client itself, and none of ours.
pub(crate) fn reaches_client(
    case: Case,
    label: impl Into<String>,
    flow: &Flow,
    request: &Packet,
    (kind, rest): Type,
    quote: usize,
) -> Case {
    let seen = flow.delivered(request);
    let said = request.clone().with_ttl(seen.ttl());
    let (seen, said) = quoted(&seen, &said, quote);
    let came = IcmpError::new(router(flow.kind.ipv6), flow.source.ip(), kind, rest);
    let goes = IcmpError {
        src: flow.vip.ip(),
        dst: flow.client.ip(),
        ttl: came.ttl - 1,
        ..came.clone()
    };
    let error = came.quoting(&seen);
    let reply = flow.backend_link.incoming(flow.reply());
    let frame = [reply.ethernet(), error.clone()].concat();
    let ifindex = flow.backend_link.ifindex;
    if !flow.kind.translates() {
        return case.pass(label, ifindex, frame);
    }
    let ethernet = flow.client_link.outgoing(reply).ethernet();
    let returned = [ethernet, goes.quoting(&said)].concat();
    let sent = Outcome::Sent(flow.client_link.ifindex, returned);
    let change = Change::replied(flow, error.len());
    case.frame(label, ifindex, frame, sent, change)
}

/// More than any packet has.
pub(crate) const ALL: usize = usize::MAX;

fn every_type(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let mut case = Case::of(kind, "errors about packets of the backend").established(&flow);
    for what in types(kind) {
        case = reaches_backend(case, label(what.0), &flow, &flow.reply(), what, ALL);
    }
    case
}

fn every_type_from_inside(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let mut case = Case::of(kind, "errors about packets of the client").established(&flow);
    for what in types(kind) {
        case = reaches_client(case, label(what.0), &flow, &flow.request(), what, ALL);
    }
    case
}

/// Eight bytes of the transport header, to the byte around each checksum, and more.
fn quotes(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let ip = if kind.ipv6 { 40 } else { 20 };
    let mut case = Case::of(kind, "errors with long and short quotes").established(&flow);
    for length in [8, 9, 15, 16, 17, 18, 19, 20, 21, 24, ALL - ip] {
        let name = format!("{length} bytes of the transport");
        let back = format!("{name}, from inside");
        let what = types(kind)[3];
        case = reaches_backend(case, name, &flow, &flow.reply(), what, ip + length);
        case = reaches_client(case, back, &flow, &flow.request(), what, ip + length);
    }
    case
}

fn quotes_with_options(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let with = |packet: Packet| {
        if kind.ipv6 {
            let extensions = [Extension::HopByHop(6), Extension::Destination(14)];
            return packet.with_extensions(&extensions);
        }
        packet.with_ipv4(|ip| {
            ip.options = Ipv4Options::try_from([0x94, 4, 0, 0, 1, 1, 1, 0].as_slice()).unwrap();
        })
    };
    let (request, reply) = (with(flow.request()), with(flow.reply()));
    let headers = reply.transport_offset() - reply.ip_offset();
    let mut case = Case::of(kind, "errors whose quotes have options").established(&flow);
    for length in [8, 20, 25] {
        let name = format!("{length} bytes of the transport");
        let back = format!("{name}, from inside");
        let what = types(kind)[4];
        case = reaches_backend(case, name, &flow, &reply, what, headers + length);
        case = reaches_client(case, back, &flow, &request, what, headers + length);
    }
    case
}

/// Zero says that there is no checksum, also in a quote.
fn unchecked(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let mut case = Case::of(kind, "errors about datagrams without a checksum").established(&flow);
    for quote in [48, ALL] {
        let (request, reply) = (flow.request().unchecked(), flow.reply().unchecked());
        let what = types(kind)[3];
        case = reaches_backend(case, "outside", &flow, &reply, what, quote);
        case = reaches_client(case, "inside", &flow, &request, what, quote);
    }
    case
}

/// The whole error is summed for the outer UDP checksum.
fn odd_lengths(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let mut case = Case::of(kind, "errors of many lengths").established(&flow);
    for size in [0, 1, 2, 3, 501, 1_000, 1_023, 1_100] {
        let reply = flow.reply().with_payload(vec![0xb5; size]);
        let what = types(kind)[4];
        case = reaches_backend(case, format!("{size} bytes"), &flow, &reply, what, ALL);
    }
    case
}

fn truncated(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let ip = if kind.ipv6 { 40 } else { 20 };
    let what = types(kind)[3];
    let mut case = Case::of(kind, "errors that quote too little").established(&flow);
    for length in [0, 1, ip - 1, ip, ip + 3, ip + 4, ip + 7] {
        let name = format!("{length} bytes");
        let error = outside(&flow, &flow.reply(), what, length);
        case = case.discard(name, error.frame, DropReason::IcmpHeader);
    }
    // A whole header, of another version.
    let mut error = outside(&flow, &flow.reply(), what, ALL);
    error.frame[flow.request().ip_offset() + ip + 8] = 0xf5;
    case = case.discard("of no version", error.frame, DropReason::IcmpHeader);
    // The frame has the ports, the packet has not.
    let error = outside(&flow, &flow.reply(), what, ip + 7);
    let mut padded = error.frame;
    padded.extend([0; 20]);
    let change = Change::dropped(DropReason::IcmpHeader, Direction::Forward, flow.service, 0);
    let ifindex = flow.client_link.ifindex;
    case.frame("padded", ifindex, padded, Outcome::Dropped, change)
}

fn unknown_flow(kind: Kind) -> Case {
    let known = Flow::first(kind);
    let unknown = Flow::first(kind).from_port(50_123);
    let what = types(kind)[3];
    let case = Case::of(kind, "errors about unknown flows").established(&known);
    if !kind.translates() {
        // No flows are kept: the ring knows.
        return reaches_backend(case, "outside", &unknown, &unknown.reply(), what, ALL);
    }
    let error = outside(&unknown, &unknown.reply(), what, ALL);
    let case = case.refuse_frame("outside", &unknown, error.frame, DropReason::NoFlow);
    let mut inside = unknown;
    if kind.is_full_nat() {
        inside = inside.through_port(20_777);
    }
    let came = IcmpError::new(router(kind.ipv6), inside.source.ip(), what.0, what.1);
    let error = came.quoting(&inside.delivered(&inside.request()).ip());
    let frame = [inside.reply().ethernet(), error].concat();
    case.pass("inside", inside.backend_link.ifindex, frame)
}

/// Errors about packets that the address did not send, and other messages.
fn not_for_us(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let ifindex = flow.client_link.ifindex;
    let what = types(kind)[3];
    let ethernet = flow.request().ethernet();
    let mut case = Case::of(kind, "other ICMP to the address").established(&flow);
    let error = |src, quote: &Packet, (kind, rest)| {
        let error = IcmpError::new(src, flow.vip.ip(), kind, rest).quoting(&quote.ip());
        [&ethernet[..], &error].concat()
    };
    let router = router(kind.ipv6);
    case = case.pass(
        "about a packet of the client",
        ifindex,
        error(router, &flow.request(), what),
    );
    let mut other = flow.clone();
    other.vip.set_port(9);
    let mut strange = flow.reply();
    strange.set_tuple(other.vip, flow.client);
    case = case.pass("of another port", ifindex, error(router, &strange, what));
    let others: &[(u8, u8)] = if kind.ipv6 {
        &[
            (0, 0),
            (5, 0),
            (100, 0),
            (129, 0),
            (130, 0),
            (135, 0),
            (137, 0),
        ]
    } else {
        &[(0, 0), (4, 0), (5, 1), (9, 0), (10, 0), (13, 0), (17, 0)]
    };
    let mut reply = flow.reply();
    reply.set_tuple(flow.vip, flow.client);
    for kind in others {
        let frame = error(router, &reply, (*kind, [0; 4]));
        case = case.pass(label(*kind), ifindex, frame);
    }
    case
}

/// Errors are held to their own header.
fn refused(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let what = types(kind)[0];
    let at = flow.request().ip_offset();
    let error = || outside(&flow, &flow.reply(), what, ALL).frame;
    let mut case = Case::of(kind, "errors with headers that are wrong").established(&flow);
    for ttl in [1, 0] {
        let mut frame = error();
        if kind.ipv6 {
            frame[at + 7] = ttl;
        } else {
            edit_ipv4(&mut frame, at, |ip| ip.time_to_live = ttl);
        }
        case = case.refuse_frame(format!("TTL {ttl}"), &flow, frame, DropReason::TtlExpired);
    }
    let mut frame = error();
    let last = frame.len() - 1;
    frame.truncate(last);
    case = case.refuse_frame("cut off", &flow, frame, DropReason::IpLength);
    if kind.ipv6 {
        return case;
    }
    let mut frame = error();
    frame[at + 10] ^= 1;
    case.refuse_frame("checksum", &flow, frame, DropReason::IpChecksum)
}

/// The client whose flow it is about counts, not the router that sends it.
fn denied(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let what = types(kind)[0];
    let error = outside(&flow, &flow.reply(), what, ALL).frame;
    let router = router(kind.ipv6);
    let client = flow.client.ip();
    let case = Case::of(kind, "errors about flows of a denied source")
        .established(&flow)
        .then("the client is denied", move |world| {
            world.list(kind, &[(router.into(), true), (client.into(), false)]);
        })
        .refuse_frame("error", &flow, error, DropReason::SourceDenied)
        .then("the router is", move |world| {
            world.list(kind, &[(router.into(), false), (client.into(), true)]);
        });
    reaches_backend(case, "error", &flow, &flow.reply(), what, ALL)
}

fn no_way(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let backend = flow.backend;
    let error = outside(&flow, &flow.reply(), types(kind)[0], ALL);
    let reason = DropReason::NextHopUnresolved;
    let change = Change::dropped(reason, Direction::Forward, flow.service, backend);
    let ifindex = flow.client_link.ifindex;
    Case::of(kind, "errors whose backend's next hop is not resolved")
        .established(&flow)
        .then("lost", move |world| {
            world.edit(backend, |backend| backend.path = Default::default());
        })
        .frame("error", ifindex, error.frame, Outcome::Dropped, change)
}

/// Nobody is told of an error that does not fit.
fn too_big_itself(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let backend = flow.backend;
    let what = types(kind)[0];
    let reply = flow.reply().with_payload(vec![0xcc; 700]);
    let error = outside(&flow, &reply, what, 560);
    let mtu = error.length as u32;
    let reason = DropReason::TooBig;
    let change = Change::dropped(reason, Direction::Forward, flow.service, backend);
    let ifindex = flow.client_link.ifindex;
    let case = Case::of(kind, "errors as large as the MTU, and larger")
        .established(&flow)
        .then("as large", move |world| {
            world.edit(backend, |backend| backend.mtu = mtu);
        });
    reaches_backend(case, "as large", &flow, &reply, what, 560)
        .then("a byte less", move |world| {
            world.edit(backend, |backend| backend.mtu = mtu - 1);
        })
        .frame("larger", ifindex, error.frame, Outcome::Dropped, change)
}

fn tagged(kind: Kind) -> Case {
    use lb_tests::Tag;

    let mut flow = Flow::first(kind);
    flow.client_link = flow.client_link.with_tags(&[Tag::new(7)]);
    flow.backend_link = flow
        .backend_link
        .with_tags(&[Tag::provider(8), Tag::new(9)]);
    let path = flow.backend_link.path();
    let case = Case::of(kind, "errors from VLAN to VLAN")
        .given(|world| world.edit(flow.backend, |backend| backend.path = path))
        .established(&flow);
    let what = types(kind)[2];
    let case = reaches_backend(case, "outside", &flow, &flow.reply(), what, ALL);
    reaches_client(case, "inside", &flow, &flow.request(), what, ALL)
}

#[test]
fn errors() {
    run("errors", &cases());
}
