//! Random configurations: services of every mode, family, protocol and form.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    sync::Arc,
};

use lb_model::{
    hash::RING_SIZE,
    packet::{TCP, UDP},
    world::{Backend, Health, Mode, Path, Prefix, Quic, Service, Tag, World},
};
use lb_tests::{BACKEND_IF, CLIENT_IF, OTHER_IF};

use lb_tests::rng::Rng;

/// The interfaces of the namespace.
pub(crate) const INTERFACES: [u32; 3] = [CLIENT_IF, BACKEND_IF, OTHER_IF];

/// Service addresses of a family.
const VIPS: u8 = 3;
/// Clients of a family.
const CLIENTS: u8 = 12;

/// Ids that backends have.
pub(crate) const BACKEND_IDS: RangeInclusive<u32> = 1..=40;

/// A service address.
pub(crate) fn vip(ipv6: bool, index: u8) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10 + u16::from(index)).into()
    } else {
        Ipv4Addr::new(192, 0, 2, 10 + index).into()
    }
}

/// A client's address: now and then one that is none, or a backend's.
pub(crate) fn client(rng: &mut Rng, ipv6: bool) -> IpAddr {
    if rng.percent(2) {
        return odd_client(rng, ipv6);
    }
    let index = rng.below(CLIENTS.into()) as u8;
    if ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 1 + u16::from(index)).into()
    } else {
        Ipv4Addr::new(198, 51, 100, 1 + index).into()
    }
}

fn odd_client(rng: &mut Rng, ipv6: bool) -> IpAddr {
    if ipv6 {
        let mapped = Ipv4Addr::new(198, 51, 100, 1).to_ipv6_mapped();
        (*rng.pick(&[
            Ipv6Addr::UNSPECIFIED,
            Ipv6Addr::LOCALHOST,
            mapped,
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
        ]))
        .into()
    } else {
        (*rng.pick(&[
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::new(0, 1, 2, 3),
            Ipv4Addr::LOCALHOST,
            Ipv4Addr::new(127, 255, 0, 1),
            Ipv4Addr::new(224, 0, 0, 1),
            Ipv4Addr::BROADCAST,
            Ipv4Addr::new(223, 255, 255, 255),
            Ipv4Addr::new(1, 0, 0, 0),
        ]))
        .into()
    }
}

/// The balancer's own address.
fn balancer(ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 1).into()
    } else {
        Ipv4Addr::new(10, 0, 0, 1).into()
    }
}

/// The outer source address of tunnels, its host bits zero.
fn tunnel_source(ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 0).into()
    } else {
        Ipv4Addr::new(10, 9, 0, 0).into()
    }
}

fn backend_address(ipv6: bool, id: u32) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 0x10 + id as u16).into()
    } else {
        Ipv4Addr::new(10, 0, 0, 10 + id as u8).into()
    }
}

/// A configuration.
pub(crate) fn random(rng: &mut Rng) -> World {
    let mut world = World::default();
    for ifindex in INTERFACES {
        if rng.percent(93) {
            world.interfaces.insert(ifindex, mtu(rng).unwrap_or(1_500));
        }
    }
    let mut next_backend = *BACKEND_IDS.start();
    for index in 0..rng.range(6, 10) {
        let Some((address, protocol, ports)) = frontend(rng, &world.services) else {
            continue;
        };
        let service = Service {
            id: index as u32 + 1,
            address,
            ports,
            protocol,
            mode: *rng.pick(&Mode::ALL),
            max_segment_size: rng.percent(40).then(|| *rng.pick(&[536, 1_220, 1_400, 1])),
            drop_other_ports: rng.percent(20),
            icmp_echo: !rng.percent(15),
            allow: Vec::new(),
            deny: Vec::new(),
            new_per_source: None,
            new_per_service: None,
            ring: Arc::new([]),
            quic: None,
        };
        let service = guarded(rng, service);
        let ids: Vec<u32> = (0..rng.range(1, 4) as u32)
            .map(|id| next_backend + id)
            .filter(|id| BACKEND_IDS.contains(id))
            .collect();
        next_backend += ids.len() as u32;
        for id in &ids {
            let backend = backend(rng, &service, *id, &world.backends);
            world.backends.insert(*id, backend);
        }
        let ring = ring(rng, &ids);
        let quic = (protocol == UDP && rng.percent(60)).then(|| quic(rng, &ids));
        world.services.push(Service {
            ring,
            quic,
            ..service
        });
    }
    world
}

/// The same service, now and then with lists of sources and limits of new flows.
fn guarded(rng: &mut Rng, mut service: Service) -> Service {
    if rng.percent(30) {
        list(rng, &mut service);
    }
    // "Without entries nobody knows which datagrams begin a flow."
    let knows_flows = service.protocol == TCP || service.mode.translates();
    if knows_flows && rng.percent(25) {
        service.new_per_source = Some(*rng.pick(&BURSTS));
    }
    if knows_flows && rng.percent(25) {
        service.new_per_service = Some(*rng.pick(&BURSTS));
    }
    service
}

/// New flows at once.
const BURSTS: [u32; 5] = [1, 2, 5, 20, 100];

/// Gives a service other lists, of which one has a prefix at least.
fn list(rng: &mut Rng, service: &mut Service) {
    service.allow.clear();
    service.deny.clear();
    let ipv6 = service.address.address.is_ipv6();
    for _ in 0..rng.range(1, 8) {
        let length = if ipv6 {
            *rng.pick(&[0, 3, 48, 64, 96, 124, 126, 127, 128, 128])
        } else {
            *rng.pick(&[0, 1, 8, 16, 24, 28, 30, 31, 32, 32])
        };
        let prefix = prefix(client(rng, ipv6), length);
        if [&service.allow, &service.deny]
            .iter()
            .any(|list| list.contains(&prefix))
        {
            continue;
        }
        if rng.percent(50) {
            service.allow.push(prefix);
        } else {
            service.deny.push(prefix);
        }
    }
}

/// Ranges of ports, some within others.
const RANGES: [RangeInclusive<u16>; 7] = [
    0..=u16::MAX,
    40..=9_000,
    8_000..=8_099,
    8_000..=8_007,
    8_003..=8_006,
    8_064..=8_099,
    443..=444,
];

/// What clients send to: nothing that is taken.
fn frontend(rng: &mut Rng, taken: &[Service]) -> Option<(Prefix, u8, RangeInclusive<u16>)> {
    let ipv6 = rng.percent(50);
    let host = vip(ipv6, rng.below(VIPS.into()) as u8);
    let length = if ipv6 {
        rng.weighted(&[(75, 128), (15, 126), (7, 112), (3, 48)])
    } else {
        rng.weighted(&[(75, 32), (15, 30), (7, 24), (3, 16)])
    };
    let address = prefix(host, length);
    let protocol = *rng.pick(&[TCP, UDP]);
    let ports = if rng.percent(40) {
        rng.pick(&RANGES).clone()
    } else {
        let port = *rng.pick(&[53, 80, 443, 8_000, 8_005, 8_099]);
        port..=port
    };
    // "Two of these are apart, or one is part of the other."
    let free = taken.iter().all(|other| {
        let (a, b) = (&ports, &other.ports);
        let apart = a.end() < b.start() || b.end() < a.start();
        let within = |a: &RangeInclusive<u16>, b: &RangeInclusive<u16>| {
            a != b && a.start() >= b.start() && a.end() <= b.end()
        };
        (other.address, other.protocol) != (address, protocol)
            || apart
            || within(a, b)
            || within(b, a)
    });
    free.then_some((address, protocol, ports))
}

/// The prefix of this length that has an address.
fn prefix(host: IpAddr, length: u8) -> Prefix {
    let address = match host {
        IpAddr::V4(host) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            Ipv4Addr::from(u32::from(host) & mask).into()
        }
        IpAddr::V6(host) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            Ipv6Addr::from(u128::from(host) & mask).into()
        }
    };
    Prefix { address, length }
}

/// An address of a service.
pub(crate) fn address_of(rng: &mut Rng, service: &Service) -> IpAddr {
    let base = service.address.address;
    let other = vip(base.is_ipv6(), rng.below(5) as u8);
    if service.address.contains(other) {
        other
    } else {
        base
    }
}

/// A ring of these backends, with a few slots that lead nowhere.
pub(crate) fn ring(rng: &mut Rng, ids: &[u32]) -> Arc<[u32]> {
    let pattern: Vec<u32> = (0..257)
        .map(|_| match rng.below(100) {
            0 => 0,
            1 => *BACKEND_IDS.end() + 3,
            _ => *rng.pick(ids),
        })
        .collect();
    let slots = pattern.into_iter().cycle();
    slots.take(RING_SIZE as usize).collect()
}

/// Connection IDs that name these backends, some twice, and now and then one that is none of
/// them.
fn quic(rng: &mut Rng, ids: &[u32]) -> Quic {
    let length = rng.weighted(&[(30, 1), (30, 4), (30, 8), (10, 15)]);
    let offset = rng.weighted(&[(60, 1), (20, 3), (20, 20 - length)]);
    let mut server_ids = BTreeMap::new();
    for id in ids.iter().chain(ids) {
        let backend = if rng.percent(4) {
            *rng.pick(&[0, BACKEND_IDS.end() + 3, *BACKEND_IDS.start()])
        } else {
            *id
        };
        server_ids.insert(rng.bytes(length), backend);
    }
    let configurations = (0..7).filter(|_| rng.percent(40)).collect();
    Quic {
        offset,
        length,
        configurations,
        server_ids,
    }
}

fn backend(rng: &mut Rng, service: &Service, id: u32, others: &BTreeMap<u32, Backend>) -> Backend {
    let tunnel = matches!(service.mode, Mode::Ipip | Mode::Gue);
    // Any family in any tunnel.
    let ipv6 = service.address.address.is_ipv6() != (tunnel && rng.percent(50));
    // Now and then the same host serves two services.
    let shared = others.values().find(|other| {
        other.address.is_ipv6() == ipv6 && other.service != service.id && other.pool == 0
    });
    let address = match shared {
        Some(other) if service.mode == Mode::Nat && rng.percent(30) => other.address,
        _ => backend_address(ipv6, id),
    };
    let full_nat = service.mode == Mode::FullNat;
    let first = rng.range(20_000, 20_100) as u16;
    let ports = *rng.pick(&[1, 3, 40, 2_000, 20_000]);
    Backend {
        service: service.id,
        health: rng.weighted(&[
            (85, Health::Up),
            (7, Health::Down),
            (5, Health::Resetting),
            (3, Health::Removed),
        ]),
        path: (!rng.percent(4)).then(|| path(rng, 0x40 + id as u8)),
        mtu: mtu(rng),
        address,
        port: match service.mode {
            Mode::FullNat | Mode::Nat => (!rng.percent(20)).then_some(8_080),
            Mode::Gue => Some(*rng.pick(&[6_080, 6_080, 5_555])),
            Mode::Dsr | Mode::Ipip => None,
        },
        source: match service.mode {
            Mode::FullNat => Some(balancer(ipv6)),
            _ => tunnel.then(|| tunnel_source(ipv6)),
        },
        source_bits: if tunnel {
            *rng.pick(&[0, 0, 1, 8, 15, 16])
        } else {
            0
        },
        source_ports: if full_nat {
            first..=first + ports
        } else {
            0..=0
        },
        pool: if full_nat { id } else { 0 },
    }
}

fn mtu(rng: &mut Rng) -> Option<u32> {
    rng.weighted(&[
        (10, None),
        (50, Some(1_500)),
        (10, Some(9_000)),
        (10, Some(1_400)),
        (10, Some(1_280)),
        (10, Some(600)),
    ])
}

/// A way to a neighbour. Its addresses tell the interface, so that a frame does.
pub(crate) fn path(rng: &mut Rng, neighbour: u8) -> Path {
    let ifindex = *rng.pick(&INTERFACES);
    let tag = |rng: &mut Rng| Tag {
        kind: *rng.pick(&[0x8100, 0x88a8]),
        vlan: rng.range(1, 4_094) as u16,
    };
    let tags = rng.weighted(&[(70, 0), (20, 1), (10, 2)]);
    Path {
        ifindex,
        dst: [2, 0, 0, 0, 2, neighbour],
        src: [2, 0, 0, 0, 1, ifindex as u8],
        tags: (0..tags).map(|_| tag(rng)).collect(),
    }
}

/// The daemon changes something: a backend's health, a next hop, a ring, a list, a limit.
pub(crate) fn change(rng: &mut Rng, world: &mut World) {
    if rng.percent(30) && !world.services.is_empty() {
        let index = rng.below(world.services.len());
        let service = &mut world.services[index];
        if !service.allow.is_empty() || !service.deny.is_empty() {
            list(rng, service);
        }
        for burst in [&mut service.new_per_source, &mut service.new_per_service] {
            *burst = burst.map(|_| *rng.pick(&BURSTS));
        }
        return;
    }
    let Some(id) = world
        .backends
        .keys()
        .copied()
        .nth(rng.below(world.backends.len()))
    else {
        return;
    };
    let way = path(rng, 0x40 + id as u8);
    let backend = world.backends.get_mut(&id).expect("one of its keys");
    match rng.below(7) {
        0 => backend.health = Health::Down,
        1 => backend.health = Health::Removed,
        5 => backend.health = Health::Resetting,
        2 => backend.path = (!rng.percent(30)).then_some(way),
        3 => {
            let service = rng.below(world.services.len());
            let service = &mut world.services[service];
            let ids: Vec<u32> = world
                .backends
                .iter()
                .filter(|(_, backend)| backend.service == service.id)
                .map(|(id, _)| *id)
                .collect();
            if !ids.is_empty() {
                service.ring = ring(rng, &ids);
            }
        }
        4 => {
            let of_quic = world.services.iter_mut().filter(|s| s.quic.is_some());
            let mut of_quic: Vec<_> = of_quic.collect();
            if of_quic.is_empty() {
                return;
            }
            let at = rng.below(of_quic.len());
            let service = &mut of_quic[at];
            let ids = world.backends.iter();
            let ids = ids.filter(|(_, backend)| backend.service == service.id);
            let ids: Vec<u32> = ids.map(|(id, _)| *id).collect();
            service.quic = Some(quic(rng, &ids));
        }
        _ => backend.health = Health::Up,
    }
}
