//! The real program in the real kernel.

mod programs;

use std::{
    fs,
    net::{IpAddr, Ipv6Addr},
    path::Path,
};

use lb_common::{
    addr::LinkPath,
    backend::BackendState,
    flow::{Flow4, FlowKey4, FlowValue as _, state},
    quic::ConnectionIds,
    ring::NO_BACKEND,
    service::Mode,
};

use super::*;
use crate::address::PortRange;
use crate::testing::{in_network_namespace, ip, with_bpf_file_system};

const OPTIONS: Options = Options {
    max_flows: 1_024,
    max_embryonic: 1_024,
    log: LogLevel::Off,
};

/// The loopback interface's index in every namespace.
const LO: u32 = 1;

fn load() -> Datapath {
    Datapath::load(&OPTIONS).expect("this test loads BPF programs and must run as root")
}

fn vip_address() -> IpAddr {
    [192, 0, 2, 10].into()
}

fn port_80() -> Match {
    Match::Port {
        address: vip_address(),
        port: 80,
        protocol: 6,
    }
}

fn outlet(ifindex: u32) -> Outlet {
    let mtu = 1_500;
    Outlet { ifindex, mtu }
}

fn backend() -> Backend {
    Backend {
        path: LinkPath::new(LO, [2, 0, 0, 0, 0, 11], [2, 0, 0, 0, 0, 1]),
        mtu: 1_500,
        service: 1,
        state: BackendState::Up as u8,
        port: 8_080_u16.to_be(),
        address: words([10, 0, 0, 11].into()),
        source: words([10, 0, 0, 1].into()),
        port_pool: 1,
        first_port: 20_000,
        last_port: 20_001,
        ..Backend::default()
    }
}

fn ring_of(backend: u32) -> Arc<[Slot]> {
    vec![Slot::clean(backend); RING_SIZE as usize].into()
}

fn service() -> Service {
    Service {
        id: 1,
        mode: Mode::FullNat as u8,
        ..Service::default()
    }
}

fn vip(id: u32) -> Vip {
    Vip {
        id,
        flags: Vip::TCP,
    }
}

/// A datapath with one service on one full-NAT backend.
fn with_service() -> Datapath {
    let mut datapath = load();
    set_service(&mut datapath);
    datapath
}

fn set_service(datapath: &mut Datapath) {
    datapath.create_port_pools(&[1]).unwrap();
    datapath.set_backend(1, backend()).unwrap();
    datapath.set_rings(&[(1, ring_of(1))]).unwrap();
    datapath.set_service(port_80(), service()).unwrap();
    datapath.set_vip(vip_address().into(), vip(0)).unwrap();
    datapath.set_interface(LO, outlet(LO)).unwrap();
}

/// A TCP SYN from a port of 198.51.100.7 to the service.
fn syn(port: u16) -> Vec<u8> {
    let mut frame = vec![
        2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 7, 8, 0, // Ethernet
        0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 198, 51, 100, 7, 192, 0, 2, 10, // IPv4
        0, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0, // TCP
    ];
    frame[34..36].copy_from_slice(&port.to_be_bytes());
    let sum: u32 = frame[14..34]
        .chunks_exact(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame
}

fn syn_key(port: u16) -> FlowKey4 {
    FlowKey4 {
        src: word([198, 51, 100, 7].into()),
        dst: word([192, 0, 2, 10].into()),
        src_port: port.to_be(),
        dst_port: 80_u16.to_be(),
        protocol: 6,
    }
}

/// The client of the flow from this port has shown that it gets answers.
fn confirm(datapath: &Datapath, port: u16) {
    let mut tables = datapath.flow_tables().unwrap();
    let flows = &mut tables.v4.flows;
    let mut flow = flows.get(&syn_key(port)).unwrap().unwrap();
    flow.entry.state |= state::CONFIRMED;
    flows.insert(&syn_key(port), &flow).unwrap();
}

/// Verifiers differ, so that of this kernel leaves room for that of another.
#[test]
fn the_verifier_looks_at_half_of_what_it_may() {
    const LIMIT: u32 = 1_000_000;
    let mut datapath = load();
    datapath.load_probe().unwrap();
    for (name, program) in datapath.ebpf.programs() {
        let info = program.info().unwrap();
        let verified = info.verified_instruction_count().unwrap();
        println!("{name}: {verified} instructions verified");
        assert!(verified < LIMIT / 2, "{name}: {verified}");
    }
}

#[test]
fn foreign_packets_pass_unchanged() {
    let frame = syn(40_000);
    let run = load().test_run(&frame, LO).unwrap();
    assert_eq!(run.verdict, Verdict::Pass);
    assert_eq!(run.frame, frame);
}

#[test]
fn a_flow_takes_a_port_that_the_daemon_sees_and_frees() {
    let mut datapath = with_service();
    for port in [40_000, 40_001] {
        let run = datapath.test_run(&syn(port), LO).unwrap();
        assert_eq!(run.verdict, Verdict::Tx, "{port}");
        confirm(&datapath, port);
    }
    assert!(datapath.ports().is_in_use(1));
    let used = datapath.ports().used().remove(&1).unwrap();
    assert_eq!(used[20_000 / 64] >> (20_000 % 64), 0b11);
    let run = datapath.test_run(&syn(40_002), LO).unwrap();
    assert_eq!(run.verdict, Verdict::Drop);
    let exhausted = DropKey {
        service: 1,
        backend: 1,
        reason: DropReason::SourcePortsExhausted as u16,
        direction: Direction::Forward as u16,
        reserved: 0,
    };
    assert_eq!(datapath.drops().unwrap()[&exhausted], 1);

    // A freed port is used again.
    let mut tables = datapath.flow_tables().unwrap();
    let flow = tables.v4.flows.get(&syn_key(40_001)).unwrap().unwrap();
    assert_eq!(tables.v4.flows.take(&syn_key(40_001)).unwrap(), Some(flow));
    assert_eq!(tables.v4.flows.take(&syn_key(40_001)).unwrap(), None);
    assert!(tables.v4.replies.take(&flow.partner()).unwrap().is_some());
    assert!(tables.ports.free(1, u16::from_be(flow.to.src_port)));
    assert!(!tables.ports.free(1, u16::from_be(flow.to.src_port)));
    let run = datapath.test_run(&syn(40_002), LO).unwrap();
    assert_eq!(run.verdict, Verdict::Tx);

    let counters = datapath.counters(1).unwrap();
    assert_eq!((counters.packets, counters.new_flows), (3, 3));
    datapath.forget_backend(1).unwrap();
    assert_eq!(datapath.counters(1).unwrap(), Counters::default());
    datapath.clear_drops(exhausted).unwrap();
    assert!(!datapath.drops().unwrap().contains_key(&exhausted));
}

#[test]
fn a_reserved_port_is_never_handed_out() {
    let mut datapath = with_service();
    datapath
        .ports()
        .reserve(1, [PortRange::from(20_000)].into_iter().collect());
    let run = datapath.test_run(&syn(40_000), LO).unwrap();
    assert_eq!(run.verdict, Verdict::Tx);
    let used = datapath.ports().used().remove(&1).unwrap();
    assert_eq!(used[20_000 / 64] >> (20_000 % 64), 0b10, "the other one");
    confirm(&datapath, 40_000);
    let run = datapath.test_run(&syn(40_001), LO).unwrap();
    assert_eq!(run.verdict, Verdict::Drop);
}

#[test]
fn a_flow_that_is_not_confirmed_gives_its_port_to_another() {
    let mut datapath = with_service();
    for port in [40_000, 40_001, 40_002] {
        let run = datapath.test_run(&syn(port), LO).unwrap();
        assert_eq!(run.verdict, Verdict::Tx, "{port}");
    }
    let tables = datapath.flow_tables().unwrap();
    let entry = |port| tables.v4.flows.get(&syn_key(port)).unwrap();
    let gone = [40_000, 40_001].map(|port| entry(port).is_none());
    assert_eq!(gone.iter().filter(|gone| **gone).count(), 1, "{gone:?}");
    let flow = entry(40_002).unwrap();
    let reply = tables.v4.replies.get(&flow.partner()).unwrap().unwrap();
    assert_eq!(reply.partner(), syn_key(40_002));
    let counters = datapath.counters(1).unwrap();
    assert_eq!((counters.new_flows, counters.ended_flows), (3, 1));
}

#[test]
fn every_reason_has_its_overflow_key() {
    let drops = load().drops().unwrap();
    assert_eq!(drops.len(), DropReason::ALL.len() * Direction::ALL.len());
    assert!(drops.values().all(|packets| *packets == 0));
}

/// Packets that find a backend, of a hundred, by a ring of `slots` for a service that says
/// `size`.
fn forwarded(datapath: &mut Datapath, slots: usize, size: u32) -> usize {
    let ring = vec![Slot::clean(1); slots].into();
    datapath.set_rings(&[(1, ring)]).unwrap();
    let service = service().with_ring_size(size);
    datapath.set_service(port_80(), service).unwrap();
    let ports = 40_000 + size as u16 % 1_000..;
    let is_sent = |port| {
        let run = datapath.test_run(&syn(port), LO).unwrap();
        run.verdict != Verdict::Drop
    };
    ports.take(100).map(is_sent).filter(|sent| *sent).count()
}

#[test]
fn a_ring_has_any_size() {
    let mut datapath = with_service();
    for size in [251, 65_537, 1_000_003] {
        assert_eq!(forwarded(&mut datapath, size as usize, size), 100, "{size}");
    }
    let beyond = forwarded(&mut datapath, 251, 503);
    assert!((30..70).contains(&beyond), "{beyond} of a hundred");
}

#[test]
fn rings_are_replaced_whole_and_removed() {
    let mut datapath = with_service();
    let slots: Vec<Slot> = (0..RING_SIZE)
        .map(|slot| Slot {
            owner: slot % 7 + 1,
            origin: slot % 5,
        })
        .collect();
    let rings = [(1, slots.as_slice().into()), (2, ring_of(8))];
    datapath.set_rings(&rings).unwrap();
    assert_eq!(datapath.ring(1, RING_SIZE).unwrap().unwrap(), slots);
    assert_eq!(datapath.ring(2, RING_SIZE).unwrap().unwrap(), *ring_of(8));
    assert_eq!(datapath.ring(3, RING_SIZE).unwrap(), None);

    datapath.set_rings(&[(1, ring_of(NO_BACKEND))]).unwrap();
    let run = datapath.test_run(&syn(40_000), LO).unwrap();
    assert_eq!(run.verdict, Verdict::Drop);
    datapath
        .remove_rings(&[1, 2, 3].map(|service| (service, RING_SIZE)))
        .unwrap();
    for service in 1..=3 {
        let ring = datapath.ring(service, RING_SIZE).unwrap().unwrap();
        assert_eq!(ring, *ring_of(NO_BACKEND));
    }
    let run = datapath.test_run(&syn(40_000), LO).unwrap();
    assert_eq!(run.verdict, Verdict::Drop);
    datapath.remove_service(port_80()).unwrap();
    let run = datapath.test_run(&syn(40_000), LO).unwrap();
    assert_eq!(run.verdict, Verdict::Pass);

    // A packet whose ports can't be read is judged by its address and protocol.
    let truncated = &syn(40_000)[..36];
    let run = datapath.test_run(truncated, LO).unwrap();
    assert_eq!(run.verdict, Verdict::Drop);
    datapath.remove_vip(vip_address().into()).unwrap();
    let run = datapath.test_run(truncated, LO).unwrap();
    assert_eq!(run.verdict, Verdict::Pass);
}

#[test]
fn ports_and_prefixes_are_found_until_they_are_removed() {
    let net = AddressPrefix::new(vip_address(), 24);
    let host = AddressPrefix::from(vip_address());
    for address in [host, net] {
        let mut datapath = with_service();
        datapath.remove_service(port_80()).unwrap();
        datapath.remove_vip(host).unwrap();
        let flags = Runtime::WIDE | Runtime::PREFIXES;
        datapath
            .set_runtime(Runtime {
                flags,
                ..Runtime::default()
            })
            .unwrap();
        let verdict = |datapath: &mut Datapath| {
            let run = datapath.test_run(&syn(40_000), LO).unwrap();
            run.verdict
        };
        for ports in [PortRange::ALL, PortRange::new(79, 80).unwrap(), 80.into()] {
            let frontend = Frontend {
                address,
                ports,
                protocol: 6,
            };
            if !frontend.is_wide() {
                continue;
            }
            let entries = matches([(frontend, service())], |_| 7);
            for (packets, service) in &entries {
                datapath.set_service(*packets, *service).unwrap();
            }
            assert_eq!(verdict(&mut datapath), Verdict::Pass, "no address yet");
            datapath.set_vip(address, vip(7)).unwrap();
            assert_eq!(verdict(&mut datapath), Verdict::Tx, "{frontend:?}");
            for packets in entries.keys() {
                datapath.remove_service(*packets).unwrap();
            }
            assert_eq!(verdict(&mut datapath), Verdict::Pass, "no ports any more");
            datapath.remove_vip(address).unwrap();
        }
    }
}

#[test]
fn an_ipv6_address_is_found_under_its_longest_prefix() {
    let mut datapath = load();
    let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
    let key = Key::new(128, Plain(words6(address)));
    let lookup = |datapath: &Datapath| datapath.prefixes_v6.get(&key, 0).ok().map(|vip| vip.0.id);
    for length in [32, 127, 64] {
        let prefix = AddressPrefix::new(address.into(), length);
        datapath.set_vip(prefix, vip(length.into())).unwrap();
    }
    assert_eq!(lookup(&datapath), Some(127));
    let remove = |datapath: &mut Datapath, length| {
        let prefix = AddressPrefix::new(address.into(), length);
        datapath.remove_vip(prefix).unwrap();
    };
    remove(&mut datapath, 127);
    assert_eq!(lookup(&datapath), Some(64));
    remove(&mut datapath, 64);
    remove(&mut datapath, 32);
    assert_eq!(lookup(&datapath), None);
    // An address is no prefix: it is looked for first, in a table of its own.
    datapath
        .set_vip(IpAddr::from(address).into(), vip(1))
        .unwrap();
    assert_eq!(lookup(&datapath), None);
    let exact = datapath.vips_v6.get(&Plain(words6(address)), 0).unwrap();
    assert_eq!(exact.0.id, 1);
}

#[test]
fn batches_show_every_entry_once() {
    let datapath = load();
    let mut tables = datapath.flow_tables().unwrap();
    for port in 0..1_000 {
        tables
            .v4
            .flows
            .insert(&syn_key(port), &Flow4::default())
            .unwrap();
    }
    let mut seen = Vec::new();
    tables
        .v4
        .flows
        .for_each_batch(|entries| seen.extend(entries.map(|(key, _)| u16::from_be(key.src_port))))
        .unwrap();
    seen.sort_unstable();
    assert_eq!(seen, (0..1_000).collect::<Vec<u16>>());
}

#[test]
fn attaches_in_the_driver_and_detaches_when_dropped() {
    in_network_namespace(|| {
        ip("link add name veth0 type veth peer name veth1");
        let mut first = load();
        assert_eq!(
            first.attach("veth0", XdpMode::Auto).unwrap(),
            AttachedMode::Native
        );
        let Err(Error::Occupied {
            program_name,
            remedy,
            ..
        }) = load().attach("veth0", XdpMode::Generic)
        else {
            panic!("the interface is taken");
        };
        assert_eq!(program_name.as_deref(), Some(map_name::PROGRAM));
        assert!(remedy.starts_with("bpftool link detach id"), "{remedy}");
        drop(first);
        load().attach("veth0", XdpMode::Native).unwrap();
    });
}

#[test]
fn falls_back_to_generic_mode_only_when_allowed() {
    in_network_namespace(|| {
        let mut datapath = load();
        assert!(matches!(
            datapath.attach("lo", XdpMode::Native),
            Err(Error::Attach {
                mode: AttachedMode::Native,
                ..
            })
        ));
        assert_eq!(
            datapath.attach("lo", XdpMode::Auto).unwrap(),
            AttachedMode::Generic
        );
        datapath.detach(LO).unwrap();
        assert_eq!(
            datapath.attach("lo", XdpMode::Generic).unwrap(),
            AttachedMode::Generic
        );
    });
}

/// The kernel removes an interface that goes from the map of devices by itself.
#[test]
fn an_interface_can_be_removed_after_it_has_gone() {
    in_network_namespace(|| {
        ip("link add name veth0 index 77 type veth peer name veth1");
        let mut datapath = load();
        let interface = outlet(77);
        datapath.set_interface(77, interface).unwrap();
        datapath.attach("veth0", XdpMode::Native).unwrap();
        ip("link delete veth0");
        datapath.detach(77).unwrap();
        datapath.remove_interface(77).unwrap();
        // And so again, and with all that can be removed.
        datapath.remove_interface(77).unwrap();
        datapath.remove_service(port_80()).unwrap();
        datapath.remove_vip(vip_address().into()).unwrap();
        datapath.remove_rings(&[(1, RING_SIZE)]).unwrap();
        datapath.remove_port_pools(&[1]).unwrap();
        let key = DropKey {
            service: 1,
            ..DropKey::overflow(1, 0)
        };
        datapath.clear_drops(key).unwrap();

        ip("link add name veth0 index 77 type veth peer name veth1");
        datapath.attach_at("veth0", 77, XdpMode::Native).unwrap();
        datapath.set_interface(77, interface).unwrap();
    });
}

#[test]
fn an_unknown_interface_is_named() {
    let error = load().attach("nowhere", XdpMode::Auto).unwrap_err();
    assert!(error.to_string().contains("`nowhere`"), "{error}");
}

#[test]
fn a_table_beyond_all_memory_is_refused_with_its_size() {
    let options = Options {
        max_flows: 1 << 31,
        max_embryonic: 1_024,
        ..OPTIONS
    };
    let Err(error) = Datapath::load(&options) else {
        panic!("a terabyte of flows fits");
    };
    assert!(matches!(error, Error::Memory { .. }), "{error:?}");
}

/// Loads the datapath that is kept in `directory`, or a new one.
fn counters_of(flows: u64) -> Counters {
    Counters {
        new_flows: flows,
        ..Counters::default()
    }
}

fn load_pinned(directory: &Path) -> Datapath {
    let pinned = Pinned::open(directory).unwrap();
    Datapath::load_pinned(&OPTIONS, pinned).unwrap()
}

#[test]
fn what_is_pinned_outlives_the_daemon() {
    in_network_namespace(|| {
        with_bpf_file_system(|bpffs| {
            let directory = bpffs.join("lb/one");
            let mut first = load_pinned(&directory);
            set_service(&mut first);
            let net = AddressPrefix::new([198, 51, 100, 0].into(), 24);
            first.set_vip(net, vip(7)).unwrap();
            first.set_backend(3, backend()).unwrap();
            let server_id = ServerIdKey {
                id: [0xc0; 15],
                length: 15,
                service: 1,
                reserved: 0,
            };
            first.set_server_id(server_id, 3).unwrap();
            let options = ServiceOptions {
                turns: 5,
                connection_ids: ConnectionIds {
                    offset: 1,
                    length: 15,
                    configurations: 1,
                    reserved: 0,
                },
                ..ServiceOptions::default()
            };
            first.set_options(1, options).unwrap();
            let clock = 77;
            let runtime = Runtime {
                clock,
                ..first.runtime()
            };
            first.set_runtime(runtime).unwrap();
            let key = DropKey::overflow(1, 0);
            let sums = [
                Sum::Ended(3, 4),
                Sum::Former(1, counters_of(5)),
                Sum::Drops(key, 6),
            ];
            for sum in sums.into_iter().chain([Sum::Ended(7, 1), Sum::Ended(7, 0)]) {
                first.keep_sum(sum).unwrap();
            }
            first.attach("lo", XdpMode::Generic).unwrap();
            let run = first.test_run(&syn(40_000), LO).unwrap();
            assert_eq!(run.verdict, Verdict::Tx);
            let counters = first.counters(1).unwrap();
            assert_eq!(counters.new_flows, 1);
            assert!(matches!(
                Pinned::open(&directory),
                Err(Error::PinnedInUse { .. })
            ));
            let program = attach::attached_program_of(LO);
            drop(first);
            assert_eq!(attach::attached_program_of(LO), program);

            let mut second = load_pinned(&directory);
            assert_eq!(
                attach::attached_program_of(LO),
                program,
                "replaced too early"
            );
            assert_eq!(second.services().unwrap(), [(port_80(), service())].into());
            let vips = [(vip_address().into(), vip(0)), (net, vip(7))];
            assert_eq!(second.vips().unwrap(), vips.into());
            let backends = [(1, backend()), (3, backend())];
            assert_eq!(second.backends().unwrap(), backends.into());
            assert_eq!(second.server_ids().unwrap(), [(server_id, 3)].into());
            assert_eq!(second.options(1).unwrap(), options);
            assert_eq!(second.interfaces().unwrap(), [(LO, outlet(LO))].into());
            assert_eq!(second.ring(1, RING_SIZE).unwrap().unwrap(), *ring_of(1));
            assert_eq!(second.counters(1).unwrap(), counters);
            assert_eq!(second.sums().unwrap(), sums);
            assert_eq!(second.runtime(), runtime);
            assert_eq!(second.adopt_port_pools([1, 2]).unwrap(), [1]);
            assert!(second.ports().is_in_use(1));
            // The same interface in another mode is attached anew, in the same one updated.
            assert_eq!(
                second.attach("lo", XdpMode::Auto).unwrap(),
                AttachedMode::Generic
            );
            assert_ne!(attach::attached_program_of(LO), program);
            // The flow goes on: the same source port, and no new flow.
            let again = second.test_run(&syn(40_000), LO).unwrap();
            assert_eq!(again.frame, run.frame);
            assert_eq!(second.counters(1).unwrap().new_flows, 1);
            drop(second);

            let removed = Pinned::open(&directory).unwrap().remove_all().unwrap();
            assert_eq!(removed, [LO]);
            assert_eq!(attach::attached_program_of(LO), None);
            assert!(!directory.exists());
        });
    });
}

#[test]
fn interfaces_that_are_not_wanted_any_more_are_detached() {
    in_network_namespace(|| {
        with_bpf_file_system(|bpffs| {
            ip("link add name veth0 index 77 type veth peer name veth1");
            let directory = bpffs.join("lb");
            let mut first = load_pinned(&directory);
            first.attach("lo", XdpMode::Generic).unwrap();
            first.attach("veth0", XdpMode::Native).unwrap();
            drop(first);
            let mut second = load_pinned(&directory);
            second.attach("lo", XdpMode::Generic).unwrap();
            assert!(attach::attached_program_of(77).is_some());
            second.detach_others().unwrap();
            assert_eq!(attach::attached_program_of(77), None);
            assert!(attach::attached_program_of(LO).is_some());
        });
    });
}

/// The index of an interface that is gone may be given again.
#[test]
fn a_link_to_an_interface_that_is_gone_is_made_anew() {
    in_network_namespace(|| {
        with_bpf_file_system(|bpffs| {
            ip("link add name veth0 index 77 type veth peer name veth1");
            let directory = bpffs.join("lb");
            let mut first = load_pinned(&directory);
            first.attach("veth0", XdpMode::Native).unwrap();
            drop(first);
            ip("link delete veth0");
            ip("link add name veth0 index 77 type veth peer name veth1");
            let mut second = load_pinned(&directory);
            second.attach("veth0", XdpMode::Native).unwrap();
            assert!(attach::attached_program_of(77).is_some());
        });
    });
}

#[test]
fn maps_that_no_link_needs_are_made_anew() {
    with_bpf_file_system(|bpffs| {
        let mut first = load_pinned(bpffs);
        set_service(&mut first);
        drop(first);
        assert_eq!(load_pinned(bpffs).services().unwrap(), BTreeMap::new());
    });
}

#[test]
fn maps_of_another_layout_are_left_alone() {
    in_network_namespace(|| {
        with_bpf_file_system(|bpffs| {
            let mut first = load_pinned(bpffs);
            first.attach("lo", XdpMode::Generic).unwrap();
            drop(first);
            fs::rename(
                bpffs.join(format!("v{}", lb_common::SCHEMA_VERSION)),
                bpffs.join("v1"),
            )
            .unwrap();
            let pinned = Pinned::open(bpffs).unwrap();
            let Err(error) = Datapath::load_pinned(&OPTIONS, pinned) else {
                panic!("it was loaded");
            };
            assert!(
                matches!(error, Error::OtherLayout { found: 1, .. }),
                "{error:?}"
            );
            let removed = Pinned::open(bpffs).unwrap().remove_all().unwrap();
            assert_eq!(removed, [LO]);
            assert_eq!(attach::attached_program_of(LO), None);
        });
    });
}

/// As a version would leave them that changed a map and not the version of the layout.
#[test]
fn a_map_of_another_form_is_left_alone() {
    in_network_namespace(|| {
        with_bpf_file_system(|bpffs| {
            let mut first = load_pinned(bpffs);
            first.attach("lo", XdpMode::Generic).unwrap();
            drop(first);
            let maps = bpffs.join(format!("v{}", lb_common::SCHEMA_VERSION));
            let [own, aside, other] =
                [map_name::COUNTERS, "aside", map_name::DROPS].map(|name| maps.join(name));
            fs::rename(&own, &aside).unwrap();
            fs::hard_link(&other, &own).unwrap();
            let Err(error) = Datapath::load_pinned(&OPTIONS, Pinned::open(bpffs).unwrap()) else {
                panic!("it was loaded");
            };
            let map = map_name::COUNTERS;
            assert!(
                matches!(error, Error::OtherMap { map: found, .. } if found == map),
                "{error:?}"
            );
            fs::rename(&aside, &own).unwrap();
            // Flow tables have the size that they have.
            let options = Options {
                max_flows: OPTIONS.max_flows * 2,
                ..OPTIONS
            };
            Datapath::load_pinned(&options, Pinned::open(bpffs).unwrap()).unwrap();
        });
    });
}

#[test]
fn a_directory_elsewhere_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let result = Pinned::open(directory.path()).map(|_| ());
    assert!(
        matches!(result, Err(Error::NoBpfFileSystem { .. })),
        "{result:?}"
    );
}
