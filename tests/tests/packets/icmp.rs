//! ICMP echo to service addresses.

use std::mem;

use etherparse::IpNumber;
use lb_common::{
    backend::Outer,
    drop_reason::DropReason,
    service::{Mode, Vip},
};
use lb_tests::{CLIENT_IF, Case, Change, Flow, Kind, Outcome, echo, edit_ipv4};
use lb_userspace::address::AddressPrefix;

use crate::run;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        for length in [0, 1, 56, 57, 1_400] {
            cases.push(answered(kind, length));
        }
        cases.extend([
            checksums(kind),
            denied(kind),
            silent(kind),
            of_nobody(kind),
            to_nobody(kind),
            in_fragments(kind),
        ]);
    }
    cases
}

/// A world whose service addresses answer.
fn answering(name: impl Into<String>, kind: Kind) -> Case {
    let vip = AddressPrefix::from(kind.vip().ip());
    Case::of(kind, name).given(|world| {
        world.vip_flags.insert(vip, Vip::ECHO);
    })
}

fn answered(kind: Kind, length: usize) -> Case {
    let request = Flow::first(kind).request();
    let (ping, pong) = echo(&request, &vec![0xa5; length]);
    answering(format!("echo of {length} bytes"), kind).frame(
        "ping",
        CLIENT_IF,
        ping,
        Outcome::Sent(CLIENT_IF, pong),
        Change::default(),
    )
}

/// Through every carry: the type is a part of the sum.
fn checksums(kind: Kind) -> Case {
    let request = Flow::first(kind).request();
    (0..=u16::MAX).step_by(2_047).fold(
        answering("echo with checksums of many values", kind),
        |case, word| {
            let (ping, pong) = echo(&request, &word.to_be_bytes());
            let sent = Outcome::Sent(CLIENT_IF, pong);
            case.frame(
                format!("{word:#06x}"),
                CLIENT_IF,
                ping,
                sent,
                Change::default(),
            )
        },
    )
}

/// Whom a service takes packets from says nothing of its address.
fn denied(kind: Kind) -> Case {
    let request = Flow::first(kind).request();
    let (ping, pong) = echo(&request, b"a denied source");
    let client = kind.client().ip();
    answering("echo of a denied source", kind)
        .given(|world| world.list(kind, &[(client.into(), false)]))
        .frame(
            "ping",
            CLIENT_IF,
            ping,
            Outcome::Sent(CLIENT_IF, pong),
            Change::default(),
        )
}

fn silent(kind: Kind) -> Case {
    let (ping, _) = echo(&Flow::first(kind).request(), b"anybody?");
    Case::of(kind, "echo to an address that does not answer").pass("ping", CLIENT_IF, ping)
}

fn of_nobody(kind: Kind) -> Case {
    let mut request = Flow::first(kind).request();
    request.set_tuple(kind.vip(), kind.vip());
    let (ping, _) = echo(&request, b"land");
    answering("echo from the address itself", kind).discard("ping", ping, DropReason::MartianSource)
}

fn to_nobody(kind: Kind) -> Case {
    let mut request = Flow::first(kind).request();
    // Of the family of clients, where the backends may be of another.
    let translated = Kind {
        mode: Mode::FullNat,
        outer: Outer::None,
        ..kind
    };
    let host = (translated.balancer_address(), 1).into();
    request.set_tuple(kind.client(), host);
    let (ping, _) = echo(&request, b"host?");
    answering("echo to another address", kind).pass("ping", CLIENT_IF, ping)
}

/// The host may put it together; the balancer can't.
fn in_fragments(kind: Kind) -> Case {
    const ETHERNET: usize = 14;
    let (mut ping, _) = echo(&Flow::first(kind).request(), &[0x5a; 64]);
    if kind.ipv6 {
        const NEXT_HEADER: usize = ETHERNET + 6;
        const PAYLOAD: usize = ETHERNET + 40;
        // The low byte of the payload length, which has room for a header more.
        ping[ETHERNET + 5] += 8;
        let protocol = mem::replace(
            &mut ping[NEXT_HEADER],
            IpNumber::IPV6_FRAGMENTATION_HEADER.0,
        );
        // More fragments follow.
        let header = [protocol, 0, 0, 1, 0, 0, 0, 42];
        ping.splice(PAYLOAD..PAYLOAD, header);
    } else {
        edit_ipv4(&mut ping, ETHERNET, |ip| ip.more_fragments = true);
    }
    answering("echo in fragments", kind).pass("the first", CLIENT_IF, ping)
}

#[test]
fn icmp() {
    run("icmp", &cases());
}
