//! ICMP echo to service addresses.

use lb_common::{drop_reason::DropReason, service::Vip};
use lb_tests::{CLIENT_IF, Case, Change, Flow, Kind, Outcome, echo};
use lb_userspace::address::AddressPrefix;

use crate::run;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::all(|kind| kind.is_full_nat() && kind.tcp) {
        for length in [0, 1, 56, 57, 1_400] {
            cases.push(answered(kind, length));
        }
        cases.extend([denied(kind), silent(kind), of_nobody(kind), to_nobody(kind)]);
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
    request.set_tuple(kind.client(), (kind.balancer_address(), 1).into());
    let (ping, _) = echo(&request, b"host?");
    answering("echo to another address", kind).pass("ping", CLIENT_IF, ping)
}

#[test]
fn icmp() {
    run("icmp", &cases());
}
