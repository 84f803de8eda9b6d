//! From what is wanted to what the datapath holds: computes the [`Image`] of the tables,
//! and brings the datapath there by the steps that differ.
//!
//! Pure but for [`Tables::apply`]: the same inputs give the same image. Computing it takes
//! a few milliseconds for ten thousand backends; system calls, and rings, which are what
//! costs, are made only for what has changed.

mod adopt;
mod guards;
mod ids;
mod image;
mod rings;
#[cfg(test)]
mod tests;
mod way;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lb_common::{
    Runtime,
    backend::{Backend, BackendState, Outer},
    quic::{self, ConnectionIds, ServerIdKey},
    service::{self, Service, Vip},
};

pub use self::{
    adopt::Found,
    ids::{BackendName, Exhausted, Ids, Numbers, PoolName},
    image::{Image, Op, Ring, Tables, diff},
    rings::{Rings, Written},
    way::{Obstacle, TakenPorts, obstacle},
};
use crate::{
    address::PortSet,
    datapath::{Frontend, Outlet, matches, words},
    flows::ticks,
    neighbour::NextHop,
    scheduler::{
        Member, RingSize,
        tiers::{self, Availability, Candidate},
    },
    slow_start,
    state::{
        BackendSpec, Desired, Hash, Mode, OtherPorts, Protocol, QuicSpec, Scheduler, ServerId,
        ServiceSpec,
    },
};

/// All that the content of the tables follows from.
pub struct World<'a> {
    /// What is wanted.
    pub desired: &'a Desired,
    /// Whether a backend's health allows new flows.
    pub is_up: &'a dyn Fn(&ServiceSpec, &BackendSpec) -> bool,
    /// The part of its weight that a backend has at the moment, of [`slow_start::WHOLE`].
    pub share: &'a dyn Fn(&ServiceSpec, &BackendSpec) -> u32,
    /// Whether the flows that a backend has are reset.
    pub resets: &'a dyn Fn(&ServiceSpec, &BackendSpec) -> bool,
    /// Whether the service waits for the first news of its backends.
    pub waits: &'a dyn Fn(&ServiceSpec) -> bool,
    /// How packets to an address leave; `None` where that is not known yet.
    pub next_hop: &'a dyn Fn(IpAddr) -> Option<&'a NextHop>,
    /// The interfaces that packets come in by, by index.
    pub interfaces: &'a BTreeMap<u32, Outlet>,
}

/// Why the datapath is not as it was wanted.
#[derive(Debug, thiserror::Error)]
pub enum Error<E> {
    /// There are no more ids.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The tables refused a step.
    #[error(transparent)]
    Tables(E),
}

/// What the datapath holds, and under which ids.
#[derive(Clone, Debug, Default)]
pub struct Reconciler {
    ids: Ids,
    image: Image,
}

impl Reconciler {
    /// Ids of what is wanted, and of what was.
    #[must_use]
    pub fn ids(&self) -> &Ids {
        &self.ids
    }

    /// What the tables hold.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Brings `tables` to what follows from `world`. Returns how many steps it took.
    ///
    /// # Errors
    ///
    /// Where an id is missing, nothing has been done. Where the tables refuse a step,
    /// those before it have been, and another call begins from there; everything that was
    /// known before has the id that it had.
    pub fn reconcile<T: Tables>(
        &mut self,
        tables: &mut T,
        world: &World<'_>,
        now: Duration,
    ) -> Result<usize, Error<T::Error>> {
        let before = self.ids.clone();
        let result = self.bring(tables, world, now);
        match result {
            Ok(_) => self.ids.recycle(),
            Err(_) => self.ids.restore(before, now),
        }
        result
    }

    fn bring<T: Tables>(
        &mut self,
        tables: &mut T,
        world: &World<'_>,
        now: Duration,
    ) -> Result<usize, Error<T::Error>> {
        let wanted = wanted(world, &mut self.ids, now)?;
        let ops = diff(&self.image, &wanted);
        for op in &ops {
            tables.apply(op).map_err(Error::Tables)?;
            let Ok(()) = self.image.apply(op);
        }
        Ok(ops.len())
    }

    /// Takes what a sweep of the flow tables, begun at `seen_at`, found of ids that rest,
    /// and returns those whose rest has ended: they are used again after the next
    /// [`Self::reconcile`]. No entry names a service, but figures may still be kept under
    /// its id.
    pub fn release(
        &mut self,
        seen_at: Duration,
        backend_in_use: impl Fn(u32) -> bool,
        pool_in_use: impl Fn(u32) -> bool,
        service_in_use: impl Fn(u32) -> bool,
    ) -> Released {
        // Only tables that are written with the addresses name their numbers.
        self.ids.vips.release(seen_at, |_| false);
        Released {
            backends: self.ids.backends.release(seen_at, backend_in_use),
            services: self.ids.services.release(seen_at, service_in_use),
            pools: self.ids.pools.release(seen_at, pool_in_use),
        }
    }
}

/// Ids that nothing uses any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Of services.
    pub services: Vec<u32>,
    /// Of backends.
    pub backends: Vec<u32>,
    /// Of port pools.
    pub pools: Vec<u32>,
}

/// The content of the tables that follows from `world`, with new ids for what is new. The
/// ids of what is gone rest from `now` on.
fn wanted(world: &World<'_>, ids: &mut Ids, now: Duration) -> Result<Image, Exhausted> {
    let mut image = Image {
        interfaces: world.interfaces.clone(),
        ..Image::default()
    };
    let mut services = Vec::new();
    let mut silent = BTreeSet::new();
    let mut taken = TakenPorts::new(world.desired);
    let every_port = way::on_every_port(world.desired);
    for spec in world.desired.services() {
        let name: Arc<str> = spec.name.as_str().into();
        let service = ids.services.get_or_new(&name)?;
        let mut candidates = Vec::with_capacity(spec.backends.len());
        for backend_spec in &spec.backends {
            let backend_name = (Arc::clone(&name), backend_spec.address);
            let id = ids.backends.get_or_new(&backend_name)?;
            let is_up = (world.is_up)(spec, backend_spec);
            let (mut entry, pool) = backend(world, spec, backend_spec, &mut taken);
            let pool = pool.map(|pool| pool.shared(&every_port));
            entry.service = service;
            entry.state = if (world.resets)(spec, backend_spec) {
                image.flags |= Runtime::RESETTING;
                BackendState::Resetting
            } else if is_up {
                BackendState::Up
            } else {
                BackendState::Down
            } as u8;
            if let Some(pool) = pool {
                entry.port_pool = ids.pools.get_or_revive(&pool)?;
                let ports = taken.of(pool.source, pool.protocol).clone();
                image.pools.insert(entry.port_pool, ports);
            }
            image.backends.insert(id, entry);
            let keys = backend_spec.server_ids.iter();
            let keys = keys.map(|server_id| server_id_key(service, server_id));
            image.server_ids.extend(keys.map(|key| (key, id)));
            candidates.push(Candidate {
                member: Member {
                    address: backend_spec.address,
                    weight: backend_spec.weight,
                    id,
                },
                priority: backend_spec.priority,
                // A backend whose next hop is not resolved would take flows and drop them.
                availability: if entry.path.ifindex == 0 || !backend_spec.takes_flows() {
                    Availability::Out
                } else if is_up {
                    Availability::Up
                } else {
                    Availability::Down
                },
            });
        }
        scale(world, spec, &mut candidates);
        // Of what nobody knows yet it does not follow that checks are wrong.
        let members = if (world.waits)(spec) {
            tiers::members(&candidates, spec.quorum, spec.on_empty)
        } else {
            tiers::members_or_all(&candidates, spec)
        };
        for member in &members {
            image.backends.entry(member.id).and_modify(|entry| {
                // Also one that is taken as up, though its check says otherwise.
                entry.state = BackendState::Up as u8;
                if spec.scheduler == Scheduler::LeastConnections {
                    entry.weight = member.weight;
                } else if spec.affinity.is_some() {
                    // It takes new flows, whatever its share of those of strangers.
                    entry.weight = 1;
                }
            });
        }
        image.rings.insert(
            service,
            Ring {
                scheduler: spec.scheduler,
                size: ring_size(spec),
                members,
                has_origins: spec.has_origins(),
                is_tracked: spec.has_entries(),
                affinity: spec.affinity.map_or(0, ticks),
            },
        );
        if let Some(quic) = &spec.quic {
            image.connection_ids.insert(service, connection_ids(quic));
        }
        guards::add(&mut image, service, spec);
        let entry = Service {
            id: service as u16,
            mode: service::Mode::from(spec.mode) as u8,
            scheduler: service::Scheduler::from(spec.scheduler) as u8,
            flags: flags(spec),
            ..Service::default()
        }
        .with_ring_size(spec.ring_size);
        let frontend = frontend(spec);
        services.push((frontend, entry));
        let vip = image.vips.entry(frontend.address).or_default();
        vip.flags |= vip_flags(spec);
        if !spec.icmp_echo {
            silent.insert(frontend.address);
        }
        if frontend.is_wide() {
            vip.id = ids.vips.get_or_new(&frontend.address)?;
        }
    }
    for (address, vip) in &mut image.vips {
        if !silent.contains(address) {
            vip.flags |= Vip::ECHO;
        }
        if vip.id != 0 || vip.flags & Vip::DROP_OTHER_PORTS != 0 {
            image.flags |= Runtime::WIDE;
        }
        if !address.is_address() {
            image.flags |= Runtime::PREFIXES;
        }
    }
    image.services = matches(services, |address| image.vips[&address].id);
    ids.services.retire(now, |id| image.rings.contains_key(&id));
    ids.backends
        .retire(now, |id| image.backends.contains_key(&id));
    ids.pools.retire(now, |id| image.pools.contains_key(&id));
    let numbers: BTreeSet<u32> = image.vips.values().map(|vip| vip.id).collect();
    ids.vips.retire(now, |id| numbers.contains(&id));
    // Flows still have ports of these.
    for (pool, id) in ids.pools.resting() {
        let ports = taken.of(pool.source, pool.protocol).clone();
        image.pools.insert(id, ports);
    }
    for id in ids.pools.strays() {
        image.pools.insert(id, PortSet::default());
    }
    Ok(image)
}

/// Lowers the weights of backends in their slow start. Weights are whole numbers, so those
/// of the others grow instead.
fn scale(world: &World<'_>, spec: &ServiceSpec, candidates: &mut [Candidate]) {
    let share = |backend| (world.share)(spec, backend);
    if spec.backends.iter().all(|b| share(b) == slow_start::WHOLE) {
        return;
    }
    for (candidate, backend) in candidates.iter_mut().zip(&spec.backends) {
        candidate.member.weight *= share(backend);
    }
}

/// The flags of a service.
fn flags(spec: &ServiceSpec) -> u8 {
    let is_tracked = spec.has_entries() && !spec.mode.translates();
    let is_bounded = |backend: &BackendSpec| backend.max_connections.is_some();
    let mut checks = spec.backends.iter().filter_map(|b| spec.health_of(b));
    let is_watched = spec.protocol == Protocol::Tcp && checks.any(|health| health.passive);
    [
        (is_tracked, Service::TRACKED),
        (spec.hash == Hash::Client, Service::BY_CLIENT),
        (spec.hash == Hash::ClientPort, Service::BY_CLIENT_PORT),
        (spec.backends.iter().any(is_bounded), Service::BOUNDED),
        (guards::has_any(spec), Service::GUARDED),
        (spec.quic.is_some(), Service::QUIC),
        (spec.affinity.is_some(), Service::AFFINE),
        (is_watched, Service::WATCHED),
    ]
    .into_iter()
    .filter(|(is_set, _)| *is_set)
    .fold(0, |flags, (_, flag)| flags | flag)
}

/// A server ID of a service as the datapath has it.
fn server_id_key(service: u32, server_id: &ServerId) -> ServerIdKey {
    let bytes = server_id.bytes();
    let mut id = [0; quic::MAX_SERVER_ID];
    id[..bytes.len()].copy_from_slice(bytes);
    ServerIdKey {
        id,
        length: bytes.len() as u8,
        service,
        reserved: 0,
    }
}

/// Where connection IDs have server IDs, as the datapath has it.
fn connection_ids(spec: &QuicSpec) -> ConnectionIds {
    let rotation = spec.config_rotation.iter();
    ConnectionIds {
        offset: spec.server_id_offset,
        length: spec.server_id_length,
        configurations: rotation.fold(0, |bits, number| bits | 1 << number),
        reserved: 0,
    }
}

/// What clients of a service send to.
fn frontend(spec: &ServiceSpec) -> Frontend {
    Frontend {
        address: spec.address.prefix,
        ports: spec.address.ports,
        protocol: spec.protocol.number(),
    }
}

/// How many slots the ring of a service has.
fn ring_size(spec: &ServiceSpec) -> RingSize {
    RingSize::new(spec.ring_size).expect("the rules of services allow no others")
}

/// What a service adds to what holds for its address.
fn vip_flags(spec: &ServiceSpec) -> u32 {
    let protocol = match spec.protocol {
        Protocol::Tcp => Vip::TCP,
        Protocol::Udp => Vip::UDP,
    };
    match spec.other_ports {
        OtherPorts::Pass => protocol,
        OtherPorts::Drop => protocol | Vip::DROP_OTHER_PORTS,
    }
}

/// The entry of a backend, without ids and state, and the pool that it takes its source
/// ports from.
fn backend(
    world: &World<'_>,
    spec: &ServiceSpec,
    backend: &BackendSpec,
    taken: &mut TakenPorts<'_>,
) -> (Backend, Option<PoolName>) {
    let address = backend.address;
    let hop = (world.next_hop)(address.ip);
    let usable = hop.filter(|hop| obstacle(spec, backend, hop, taken).is_none());
    let path = usable
        .and_then(|hop| hop.path)
        .filter(|path| world.interfaces.contains_key(&path.ifindex));
    let source = way::source(spec, backend, hop);
    let mut entry = Backend {
        path: path.unwrap_or_default(),
        mtu: path.and(hop).map_or(0, |hop| {
            hop.mtu.saturating_sub(outer_headers(spec.mode, address.ip))
        }),
        address: words(address.ip),
        source: source.map(|(source, _)| words(source)).unwrap_or_default(),
        max_segment_size: spec.max_segment_size.unwrap_or_default(),
        max_flows: backend.max_connections.unwrap_or_default(),
        ..Backend::default()
    };
    if spec.mode.tunnels() {
        entry.outer = match address.ip {
            IpAddr::V4(_) => Outer::Ipv4,
            IpAddr::V6(_) => Outer::Ipv6,
        } as u8;
        let open = source.map_or(0, |(_, open)| open);
        entry.source_mask = (((1_u32 << open) - 1) as u16).to_be();
    }
    if spec.mode.translates() {
        entry.port = address.port.number().unwrap_or_default().to_be();
    }
    if spec.mode == Mode::Gue {
        entry.port = spec.gue_port.to_be();
    }
    if spec.mode != Mode::FullNat {
        return (entry, None);
    }
    entry.first_port = *spec.source_ports.start();
    entry.last_port = *spec.source_ports.end();
    let pool = source.map(|(source, _)| PoolName {
        source,
        backend: address,
        protocol: spec.protocol.number(),
    });
    (entry, pool)
}

/// Bytes that a mode adds to a packet for a backend of this family.
fn outer_headers(mode: Mode, backend: IpAddr) -> u32 {
    const UDP: u32 = 8;
    const GUE: u32 = 4;
    let ip = match backend {
        IpAddr::V4(_) => 20,
        IpAddr::V6(_) => 40,
    };
    match mode {
        Mode::FullNat | Mode::Nat | Mode::Dsr => 0,
        Mode::Ipip => ip,
        Mode::Gue => ip + UDP + GUE,
    }
}
