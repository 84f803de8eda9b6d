//! What the daemon would have written to the maps for the model's configuration.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use lb_common::{
    addr::LinkPath,
    backend::{Backend, BackendState, Outer},
    guard::{Guard, Rate},
    quic::{ConnectionIds, MAX_SERVER_ID, ServerIdKey},
    service::{Mode, Service, Vip},
};
use lb_model::world;
use lb_tests::{World, at_once};
use lb_userspace::{
    address::{AddressPrefix, PortRange},
    datapath::{Frontend, Source, words},
};

/// The maps of a configuration.
pub(crate) fn maps(world: &world::World) -> World {
    let services = world.services.iter().map(|s| (frontend(s), service(s)));
    let rings = world.services.iter().map(|s| (s.id, Arc::clone(&s.ring)));
    let owners: BTreeMap<u32, &world::Service> = world.services.iter().map(|s| (s.id, s)).collect();
    let backends = world.backends.iter().map(|(id, value)| {
        let owner = owners.get(&value.service).copied();
        (*id, backend(value, owner))
    });
    World {
        services: services.collect(),
        backends: backends.collect(),
        options: BTreeMap::new(),
        rings: rings.collect(),
        origins: BTreeMap::new(),
        guards: world.services.iter().filter_map(guard).collect(),
        sources: world.services.iter().flat_map(sources).collect(),
        connection_ids: of_quic(world).map(connection_ids).collect(),
        server_ids: of_quic(world).flat_map(server_ids).collect(),
        vip_flags: vip_flags(world),
        interfaces: world.interfaces.clone(),
    }
}

/// The services that read connection IDs, by id.
fn of_quic(world: &world::World) -> impl Iterator<Item = (u32, &world::Quic)> {
    let services = world.services.iter();
    services.filter_map(|service| Some((service.id, service.quic.as_ref()?)))
}

fn connection_ids((service, quic): (u32, &world::Quic)) -> (u32, ConnectionIds) {
    let configurations = quic.configurations.iter();
    let ids = ConnectionIds {
        offset: quic.offset as u8,
        length: quic.length as u8,
        configurations: configurations.fold(0, |bits, number| bits | 1 << number),
        reserved: 0,
    };
    (service, ids)
}

fn server_ids((service, quic): (u32, &world::Quic)) -> Vec<(ServerIdKey, u32)> {
    let entry = |(server_id, backend): (&Vec<u8>, &u32)| {
        let mut id = [0; MAX_SERVER_ID];
        id[..server_id.len()].copy_from_slice(server_id);
        let key = ServerIdKey {
            id,
            length: server_id.len() as u8,
            service,
            reserved: 0,
        };
        (key, *backend)
    };
    quic.server_ids.iter().map(entry).collect()
}

/// "A service of this address says": the union over its services.
fn vip_flags(world: &world::World) -> BTreeMap<AddressPrefix, u32> {
    let mut flags = BTreeMap::new();
    for service in &world.services {
        let address = frontend(service).address;
        let flags = flags.entry(address).or_insert(Vip::ECHO);
        if service.drop_other_ports {
            *flags |= Vip::DROP_OTHER_PORTS;
        }
    }
    for service in world.services.iter().filter(|service| !service.icmp_echo) {
        let flags = flags.entry(frontend(service).address).or_default();
        *flags &= !Vip::ECHO;
    }
    flags
}

fn frontend(service: &world::Service) -> Frontend {
    let (first, last) = (*service.ports.start(), *service.ports.end());
    Frontend {
        address: AddressPrefix::new(service.address.address, service.address.length),
        ports: PortRange::new(first, last).expect("a range"),
        protocol: service.protocol,
    }
}

fn service(service: &world::Service) -> Service {
    Service {
        id: service.id as u16,
        mode: mode(service.mode) as u8,
        flags: guard(service).map_or(0, |_| Service::GUARDED)
            | service.quic.as_ref().map_or(0, |_| Service::QUIC),
        ..Service::default()
    }
}

/// What guards a service, if anything does.
fn guard(service: &world::Service) -> Option<(u32, Guard)> {
    let rate = |burst: Option<u32>| burst.map_or(Rate::default(), at_once);
    let guard = Guard {
        flags: if is_listed(service) { Guard::LISTED } else { 0 },
        generation: 0,
        per_source: rate(service.new_per_source),
        per_service: rate(service.new_per_service),
    };
    (guard != Guard::default()).then_some((service.id, guard))
}

fn is_listed(service: &world::Service) -> bool {
    !service.allow.is_empty() || !service.deny.is_empty()
}

/// The list of a service, with what holds for all others.
fn sources(service: &world::Service) -> BTreeMap<Source, bool> {
    let prefix = |prefix: &world::Prefix| AddressPrefix::new(prefix.address, prefix.length);
    let all = AddressPrefix::new(service.address.address, 0);
    let others = is_listed(service).then_some((all, service.allow.is_empty()));
    let allowed = service.allow.iter().map(|allowed| (prefix(allowed), true));
    let denied = service.deny.iter().map(|denied| (prefix(denied), false));
    let source = |(prefix, is_allowed)| {
        let service = service.id;
        (Source { service, prefix }, is_allowed)
    };
    let entries = others.into_iter().chain(allowed).chain(denied);
    entries.map(source).collect()
}

fn mode(mode: world::Mode) -> Mode {
    match mode {
        world::Mode::FullNat => Mode::FullNat,
        world::Mode::Nat => Mode::Nat,
        world::Mode::Dsr => Mode::Dsr,
        world::Mode::Ipip => Mode::Ipip,
        world::Mode::Gue => Mode::Gue,
    }
}

fn backend(backend: &world::Backend, service: Option<&world::Service>) -> Backend {
    let outer = match (service.map(|service| service.mode), backend.address) {
        (Some(world::Mode::Ipip | world::Mode::Gue), IpAddr::V4(_)) => Outer::Ipv4,
        (Some(world::Mode::Ipip | world::Mode::Gue), IpAddr::V6(_)) => Outer::Ipv6,
        _ => Outer::None,
    };
    let state = match backend.health {
        world::Health::Up => BackendState::Up,
        world::Health::Down => BackendState::Down,
        world::Health::Resetting => BackendState::Resetting,
        world::Health::Removed => BackendState::Absent,
    };
    let way = backend.path.as_ref();
    let way = way.filter(|_| state != BackendState::Absent);
    Backend {
        path: way.map_or(LinkPath::default(), path),
        mtu: backend.mtu.unwrap_or(0),
        service: backend.service,
        state: state as u8,
        port: backend.port.unwrap_or(0).to_be(),
        address: words(backend.address),
        source: backend.source.map_or([0; 4], words),
        port_pool: backend.pool,
        first_port: *backend.source_ports.start(),
        last_port: *backend.source_ports.end(),
        outer: outer as u8,
        max_segment_size: service
            .and_then(|service| service.max_segment_size)
            .unwrap_or(0),
        source_mask: (((1_u32 << backend.source_bits) - 1) as u16).to_be(),
        ..Backend::default()
    }
}

/// A path as the maps hold it.
pub(crate) fn path(path: &world::Path) -> LinkPath {
    let mut link = LinkPath::new(path.ifindex, path.dst, path.src);
    for (word, tag) in link.tags.iter_mut().zip(&path.tags) {
        let [a, b] = tag.kind.to_be_bytes();
        let [c, d] = tag.vlan.to_be_bytes();
        *word = u32::from_ne_bytes([a, b, c, d]);
    }
    link
}
