//! The outer headers of `ipip` and `gue`, and errors about packets that have them.

use etherparse::{IpDscp, IpEcn};
use lb_common::{
    backend::Outer,
    counters::Direction,
    drop_reason::DropReason,
    ring::{RING_SIZE, slot},
    service::Mode,
};
use lb_tests::{Case, Change, Flow, IcmpError, Kind, Outcome, Packet, Tag, too_big_about};

use crate::{errors::router, run};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::all(|kind| kind.is_tunnel()) {
        cases.extend([
            traffic_class(kind),
            ttl(kind),
            varying_source(kind),
            many_flows(kind),
            told_of_mtu(kind),
            told_of_narrow_way(kind),
            told_by_vlan(kind),
            not_told(kind),
        ]);
        if !kind.ipv6 {
            cases.push(identification(kind));
        }
        if kind.mode == Mode::Gue {
            cases.push(other_port(kind));
        }
        if !kind.tcp {
            cases.push(shorter_than_its_packet(kind));
        }
    }
    cases
}

/// The outer header carries DSCP and ECN outward, each of their bits.
fn traffic_class(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let mut case = Case::of(kind, "DSCP and ECN in the outer header");
    for class in [0_u8, 1, 2, 3, 0b1011_1000, 0b0000_0110, 0xff] {
        let request = if kind.ipv6 {
            flow.request().with_ipv6(|ip| ip.traffic_class = class)
        } else {
            flow.request().with_ipv4(|ip| {
                ip.dscp = IpDscp::try_new(class >> 2).unwrap();
                ip.ecn = IpEcn::try_new(class & 3).unwrap();
            })
        };
        case = case.forward(format!("{class:#010b}"), &flow, &request);
    }
    case
}

/// Whatever the inner TTL, the outer one is new.
fn ttl(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let mut case = Case::of(kind, "the TTL of the outer header");
    for ttl in [2, 63, 64, 255] {
        case = case.forward(format!("{ttl}"), &flow, &flow.request().with_ttl(ttl));
    }
    case
}

/// Don't fragment is carried outward; without it the outer packet needs an identification.
fn identification(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let mut case = Case::of(
        kind,
        "don't fragment and identification of the outer header",
    );
    for dont_fragment in [false, true] {
        for identification in [0, 1, 0x1234, 0xffff] {
            let request = flow.request().with_ipv4(|ip| {
                ip.dont_fragment = dont_fragment;
                ip.identification = identification;
            });
            let name = format!("{dont_fragment}, {identification:#06x}");
            case = case.forward(name, &flow, &request);
        }
    }
    case
}

/// A prefix as the source: its host bits are the hash's.
fn varying_source(kind: Kind) -> Case {
    let mut case = Case::of(kind, "a prefix as the outer source");
    for bits in [1_u32, 5, 8, 16] {
        let mask = ((1_u32 << bits) - 1) as u16;
        let backend = kind.backend();
        case = case.then(format!("{bits} bits"), move |world| {
            world.edit(backend, |backend| {
                // The last two bytes of the address, without the host bits.
                let last = if kind.outer == Outer::Ipv4 { 0 } else { 3 };
                let word = u32::from_be(backend.source[last]) & !u32::from(mask);
                backend.source[last] = word.to_be();
                backend.source_mask = mask.to_be();
            });
        });
        for port in 40_100..40_106 {
            let mut flow = Flow::first(kind).from_port(port);
            flow.outer.as_mut().expect("a tunnel").source_bits = bits;
            case = case.forward(format!("client port {port}"), &flow, &flow.request());
        }
    }
    case
}

/// The source port of GUE, and the backend, follow from the hash of the flow.
fn many_flows(kind: Kind) -> Case {
    let backends = [kind.backend(), kind.spare_backend()];
    let mut case = Case::of(kind, "many flows to two backends")
        .given(|world| world.share_ring(kind, &backends));
    for port in 40_000..40_024 {
        let flow = Flow::first(kind).from_port(port);
        let slot = slot(flow.hash(), RING_SIZE) as usize;
        let flow = flow.on(backends[slot % backends.len()]);
        let name = format!("client port {port}");
        case = case.forward(name, &flow, &flow.request());
    }
    case
}

fn other_port(kind: Kind) -> Case {
    let mut flow = Flow::first(kind);
    flow.outer.as_mut().expect("a tunnel").gue = Some(6_666);
    let backend = flow.backend;
    Case::of(kind, "another port of GUE")
        .given(|world| world.edit(backend, |backend| backend.port = 6_666_u16.to_be()))
        .forward("opening", &flow, &flow.opening())
        .forward("request", &flow, &flow.request())
}

/// Bytes behind the datagram in its packet: the checksum does not cover them.
fn shorter_than_its_packet(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let mut case = Case::of(kind, "a datagram that is shorter than its packet");
    for more in [1_u8, 2, 5] {
        let longer = |packet: &Packet| {
            let mut frame = packet.build();
            frame.extend((0..more).map(|byte| 0xf0 | byte));
            let at = packet.ip_offset();
            if kind.ipv6 {
                frame[at + 5] += more;
            } else {
                let more = u16::from(more);
                lb_tests::edit_ipv4(&mut frame, at, |ip| ip.total_len += more);
            }
            frame
        };
        let (request, delivered) = (flow.request(), flow.delivered(&flow.request()));
        let frame = flow.wrapped(longer(&delivered), delivered.ip_offset());
        let sent = Outcome::Sent(flow.backend_link.ifindex, frame);
        let change = Change::forwarded(&flow, request.ip_length() + usize::from(more));
        let ifindex = flow.client_link.ifindex;
        case = case.frame(
            format!("{more} bytes"),
            ifindex,
            longer(&request),
            sent,
            change,
        );
    }
    case
}

/// "Too big" about a wrapped packet, of the family of the outer header.
fn report(flow: &Flow, request: &Packet, what: ((u8, u8), [u8; 4]), quote: usize) -> Vec<u8> {
    let outer = flow.outer.as_ref().expect("a tunnel");
    let frame = flow.delivered_frame(request);
    let (link, wrapped) = frame.split_at(flow.delivered(request).ip_offset());
    let source = outer.source(flow.hash());
    let error = IcmpError::new(router(source.is_ipv6()), source, what.0, what.1);
    let quote = quote.min(wrapped.len());
    // Comes as a reply does, but of the family of the outer header.
    let mut ethernet = flow.reply().ethernet();
    let ether_type = ethernet.len() - 2;
    ethernet[ether_type..].copy_from_slice(&link[link.len() - 2..]);
    [ethernet, error.quoting(&wrapped[..quote])].concat()
}

/// Type and code of "too big" from the tunnel's way, and how it tells the MTU.
fn too_big(kind: Kind, mtu: u16) -> ((u8, u8), [u8; 4]) {
    let rest = u32::from(mtu).to_be_bytes();
    match kind.outer {
        Outer::Ipv6 => (IcmpError::PACKET_TOO_BIG, rest),
        _ => (IcmpError::NEEDS_FRAGMENTATION, rest),
    }
}

/// The client is told that `told` bytes pass when the way of the tunnel takes `mtu`.
fn relayed(
    case: Case,
    label: impl Into<String>,
    flow: &Flow,
    request: &Packet,
    (mtu, told): (u16, u16),
    quote: usize,
) -> Case {
    let kind = flow.kind;
    let frame = report(flow, request, too_big(kind, mtu), quote);
    let delivered = flow.delivered(request).ip();
    let inner = quote.saturating_sub(kind.overhead()).min(delivered.len());
    let mut back = flow.reply();
    std::mem::swap(&mut back.src_mac, &mut back.dst_mac);
    let answer = [back.ethernet(), too_big_about(&delivered[..inner], told)].concat();
    let sent = Outcome::Sent(flow.backend_link.ifindex, answer);
    let reason = DropReason::TooBig;
    let mut change = Change::dropped(reason, Direction::Reply, flow.service, flow.backend);
    change.errors = 1;
    case.frame(label, flow.backend_link.ifindex, frame, sent, change)
}

/// With the quotes that routers make, from the shortest to all of the packet.
fn told_of_mtu(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let request = flow.request().with_payload(vec![0x77; 1_300]);
    let inner = if kind.ipv6 { 40 } else { 20 } + 8;
    let told = 1_400 - kind.overhead() as u16;
    let mut case = Case::of(kind, "too big for the way of the tunnel");
    for quote in [
        kind.overhead() + inner,
        kind.overhead() + inner + 33,
        548,
        1_232,
        usize::MAX,
    ] {
        let name = format!("{quote} bytes quoted");
        case = relayed(case, name, &flow, &request, (1_400, told), quote);
    }
    case
}

/// The least that every way takes.
fn told_of_narrow_way(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let request = flow.request().with_payload(vec![0x77; 400]);
    let least = if kind.ipv6 { 1_280 } else { 68 };
    let overhead = kind.overhead() as u16;
    let mut case = Case::of(kind, "a way of the tunnel that is too narrow");
    for mtu in [
        0,
        1,
        overhead,
        overhead + 1,
        overhead + least,
        overhead + least + 1,
    ] {
        let told = mtu.saturating_sub(overhead).max(least);
        let name = format!("MTU {mtu}");
        case = relayed(case, name, &flow, &request, (mtu, told), usize::MAX);
    }
    case
}

fn told_by_vlan(kind: Kind) -> Case {
    let mut flow = Flow::first(kind);
    flow.backend_link = flow
        .backend_link
        .with_tags(&[Tag::provider(8), Tag::new(9)]);
    let path = flow.backend_link.path();
    let told = 1_400 - kind.overhead() as u16;
    let case = Case::of(kind, "too big for the way of the tunnel, in VLANs")
        .given(|world| world.edit(flow.backend, |backend| backend.path = path));
    relayed(case, "error", &flow, &flow.request(), (1_400, told), 200)
}

/// Other errors, and such about packets that were not wrapped here, are the host's.
fn not_told(kind: Kind) -> Case {
    let flow = Flow::first(kind);
    let request = flow.request();
    let ifindex = flow.backend_link.ifindex;
    let short = kind.overhead() + if kind.ipv6 { 40 } else { 20 };
    let what = too_big(kind, 1_400);
    let mut case = Case::of(kind, "other errors about tunnels");
    for (name, what) in [
        (
            "unreachable",
            if kind.outer == Outer::Ipv6 {
                (1, 0)
            } else {
                (3, 1)
            },
        ),
        (
            "time exceeded",
            if kind.outer == Outer::Ipv6 {
                (3, 0)
            } else {
                (11, 0)
            },
        ),
    ] {
        let frame = report(&flow, &request, (what, [0; 4]), usize::MAX);
        case = case.pass(name, ifindex, frame);
    }
    for quote in [short, short + 4, short + 7] {
        let frame = report(&flow, &request, what, quote);
        case = case.pass(format!("{quote} bytes quoted"), ifindex, frame);
    }
    let moved = flow.clone().moved();
    let frame = report(&moved, &request, what, usize::MAX);
    case = case.pass("to another backend", ifindex, frame);
    let mut other = flow.clone();
    other.vip.set_port(9);
    other.server = other.vip;
    let frame = report(&other, &other.request(), what, usize::MAX);
    case = case.pass("to no service", ifindex, frame);
    if kind.mode == Mode::Gue {
        let mut other = flow.clone();
        other.outer.as_mut().expect("a tunnel").gue = Some(6_081);
        let frame = report(&other, &request, what, usize::MAX);
        case = case.pass("to another port", ifindex, frame);
    }
    // It was not sent to who had sent the packet.
    let mut other = flow.clone();
    other.outer.as_mut().expect("a tunnel").src = match kind.outer {
        Outer::Ipv6 => "2001:db8:b::9".parse().expect("an address"),
        _ => "10.0.0.9".parse().expect("an address"),
    };
    let mut frame = report(&flow, &request, what, usize::MAX);
    let quoted = report(&other, &request, what, usize::MAX);
    let headers = flow.reply().ip_offset() + if kind.outer == Outer::Ipv6 { 48 } else { 28 };
    frame.truncate(headers);
    frame.extend(&quoted[headers..]);
    case.pass("sent to another", ifindex, frame)
}

#[test]
fn tunnels() {
    run("tunnels", &cases());
}
