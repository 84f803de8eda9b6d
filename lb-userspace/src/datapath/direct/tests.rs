//! Through the real program: packets find the service that they are for.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use lb_common::{backend::BackendState, service::Mode};

use super::*;
use crate::{
    datapath::{
        Datapath, LogLevel, Match, Options, Pinned, Verdict, XdpMode, key::ServiceKey, words,
    },
    testing::{in_network_namespace, with_bpf_file_system},
};

const OPTIONS: Options = Options {
    max_flows: 64,
    max_embryonic: 64,
    log: LogLevel::Off,
};
/// The loopback interface's index in every namespace.
const LO: u32 = 1;
const CLIENT_PORT: u16 = 40_000;

fn addresses() -> [IpAddr; 2] {
    [
        Ipv4Addr::new(192, 0, 2, 10).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10).into(),
    ]
}

fn port(address: IpAddr, port: u16) -> Match {
    Match::Port {
        address,
        port,
        protocol: 17,
    }
}

fn index(service: Match) -> u32 {
    match service.key() {
        ServiceKey::V4(key) => key.index(),
        ServiceKey::V6(key) => key.index(),
        ServiceKey::Ports(_) => panic!("{service:?}"),
    }
}

/// Ports of an address whose services have one entry.
fn colliding(address: IpAddr) -> Vec<u16> {
    let of = |number| index(port(address, number));
    (1..=u16::MAX)
        .filter(|p| of(*p) == of(53))
        .take(4)
        .collect()
}

/// A datagram from a client to a port of an address.
fn datagram(to: IpAddr, port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let ethernet = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 7], [2, 0, 0, 0, 0, 1]);
    let ip = match to {
        IpAddr::V4(to) => ethernet.ipv4([198, 51, 100, 7], to.octets(), 64),
        IpAddr::V6(to) => {
            let from = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 7);
            ethernet.ipv6(from.octets(), to.octets(), 64)
        }
    };
    ip.udp(CLIENT_PORT, port).write(&mut frame, b"?").unwrap();
    frame
}

/// Whether a datagram finds a service: one without a backend drops it.
fn is_ours(datapath: &mut Datapath, address: IpAddr, port: u16) -> bool {
    let frame = datagram(address, port);
    let run = datapath.test_run(&frame, LO).unwrap();
    match run.verdict {
        Verdict::Drop => true,
        Verdict::Pass => {
            assert_eq!(run.frame, frame);
            false
        }
        other => panic!("{other:?}"),
    }
}

fn service(id: u16) -> Service {
    Service {
        id,
        mode: Mode::Dsr as u8,
        ..Service::default()
    }
}

#[test]
fn services_that_share_an_entry_are_all_found_until_they_are_removed() {
    let mut datapath =
        Datapath::load(&OPTIONS).expect("this test loads BPF programs and must run as root");
    for address in addresses() {
        let ports = colliding(address);
        assert_eq!(ports.len(), 4);
        let mut there = [false; 4];
        // Every way from one set of them to another by one step, several times.
        let mut step = 1_usize;
        for round in 0..64 {
            step = step.wrapping_mul(5) + round;
            let which = (step >> 2) % 4;
            there[which] = !there[which];
            let one = port(address, ports[which]);
            if there[which] {
                datapath
                    .set_service(one, service(which as u16 + 1))
                    .unwrap();
            } else {
                datapath.remove_service(one).unwrap();
            }
            for (port, there) in ports.iter().zip(there) {
                assert_eq!(
                    is_ours(&mut datapath, address, *port),
                    there,
                    "{round}: {port}"
                );
            }
            assert!(!is_ours(&mut datapath, address, ports[0] ^ 1));
        }
    }
}

#[test]
fn an_entry_is_its_only_service_again_once_the_others_have_gone() {
    let mut datapath =
        Datapath::load(&OPTIONS).expect("this test loads BPF programs and must run as root");
    for address in addresses() {
        let ports = colliding(address);
        for (id, number) in (1..).zip(&ports) {
            datapath
                .set_service(port(address, *number), service(id))
                .unwrap();
        }
        for number in &ports[..3] {
            datapath.remove_service(port(address, *number)).unwrap();
        }
        datapath.direct_v4.settle();
        datapath.direct_v6.settle();
        let last = port(address, ports[3]);
        let tag = match last.key() {
            ServiceKey::V4(key) => {
                let tag = datapath.direct_v4.word(key.index(), TAG);
                (tag.load(Ordering::Relaxed), key.tag())
            }
            ServiceKey::V6(key) => {
                let tag = datapath.direct_v6.word(key.index(), TAG);
                (tag.load(Ordering::Relaxed), key.tag())
            }
            ServiceKey::Ports(_) => panic!("{last:?}"),
        };
        assert_eq!(tag.0, tag.1);
        assert!(is_ours(&mut datapath, address, ports[3]));
    }
}

/// What a daemon has left that was killed at any of the steps of a change is mended by the
/// next.
#[test]
fn half_a_change_is_mended() {
    let mend = |directory: &Path| {
        let open = || Pinned::open(directory).unwrap();
        let load = || Datapath::load_pinned(&OPTIONS, open()).unwrap();
        let [address, _] = addresses();
        let ports = colliding(address);
        let index = index(port(address, ports[0]));
        for tag in [0, MORE, MORE | 1, u64::MAX] {
            let mut datapath = load();
            for (id, number) in (1..).zip(&ports[..2]) {
                datapath
                    .set_service(port(address, *number), service(id))
                    .unwrap();
            }
            // As if the entry had never been written, or was another's.
            datapath.direct_v4.set_word(index, TAG, tag);
            datapath.attach("lo", XdpMode::Generic).unwrap();
            drop(datapath);
            let mut datapath = load();
            for (number, there) in ports.iter().zip([true, true, false, false]) {
                assert_eq!(is_ours(&mut datapath, address, *number), there, "{tag:x}");
            }
        }
    };
    with_bpf_file_system(|directory| in_network_namespace(|| mend(directory)));
}

#[test]
fn replies_are_looked_for_where_a_backend_has_their_source() {
    let [v4, v6] = addresses();
    let backend = |address| Backend {
        state: BackendState::Up as u8,
        address: words(address),
        ..Backend::default()
    };
    let datapath =
        Datapath::load(&OPTIONS).expect("this test loads BPF programs and must run as root");
    let bits = |sources: &ReplySources| -> u32 {
        let words = sources.memory.get().iter();
        words
            .map(|word| word.load(Ordering::Relaxed).count_ones())
            .sum()
    };
    let mut sources = datapath.reply_sources;
    assert_eq!(bits(&sources), 0);
    sources.set(1, &backend(v4));
    sources.set(2, &backend(v4));
    assert_eq!(bits(&sources), 1);
    sources.set(3, &backend(v6));
    assert_eq!(bits(&sources), 2);
    // Written again, as with every change of its health.
    sources.set(3, &backend(v6));
    sources.set(1, &Backend::default());
    assert_eq!(bits(&sources), 2, "the other one has the bit still");
    sources.set(2, &Backend::default());
    assert_eq!(bits(&sources), 1);
    sources.set(3, &Backend::default());
    assert_eq!(bits(&sources), 0);
    // An address of a service whose backends are checked by it.
    sources.set_checked(1, Some(words(v4)));
    sources.set(1, &backend(v4));
    sources.set(1, &Backend::default());
    assert_eq!(bits(&sources), 1);
    sources.set_checked(1, None);
    assert_eq!(bits(&sources), 0);
}
