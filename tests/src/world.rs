//! What the daemon would have written to the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, LazyLock},
};

use lb_common::{
    Runtime,
    addr::LinkPath,
    backend::{Backend, BackendState, Outer},
    guard::{Guard, Rate, TICKS_PER_NANOSECOND},
    quic::{ConnectionIds, ServerIdKey},
    ring::RING_SIZE,
    service::{Mode, Scheduler, Service, ServiceOptions, Vip},
};
use lb_userspace::{
    address::{AddressPrefix, PortRange},
    datapath::{Frontend, Match, Source, matches, words},
};

use crate::{
    flow::{Flow, Kind},
    packet::{Packet, Tag},
};

/// Index of the interface that clients are behind.
pub const CLIENT_IF: u32 = 10;
/// Index of the interface that backends are behind.
pub const BACKEND_IF: u32 = 20;
/// Index of another interface that clients may be behind.
pub const OTHER_IF: u32 = 30;

/// The interfaces of the namespace, by name.
pub(crate) const INTERFACES: [(&str, u32); 3] = [
    ("client", CLIENT_IF),
    ("backend", BACKEND_IF),
    ("other", OTHER_IF),
];

/// MTU of the interfaces.
const MTU: u32 = 1_500;

/// Backends of each service of [`World::standard`].
const BACKENDS: u32 = 2;

/// A link-layer path between the balancer and a neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface of the balancer.
    pub ifindex: u32,
    /// Ethernet address of that interface.
    pub local: [u8; 6],
    /// Ethernet address of the neighbour.
    pub remote: [u8; 6],
    /// VLAN tags, without priority.
    pub tags: Vec<Tag>,
}

impl Link {
    /// The path to the clients.
    #[must_use]
    pub fn to_client() -> Self {
        Self::untagged(CLIENT_IF, 0xc1)
    }

    /// The path to another router that clients may be behind.
    #[must_use]
    pub fn to_other() -> Self {
        Self::untagged(OTHER_IF, 0xc2)
    }

    /// The path to a backend.
    #[must_use]
    pub fn to_backend(id: u32) -> Self {
        Self::untagged(BACKEND_IF, id as u8)
    }

    fn untagged(ifindex: u32, neighbour: u8) -> Self {
        Self {
            ifindex,
            local: [2, 0, 0, 0, 1, ifindex as u8],
            remote: [2, 0, 0, 0, 2, neighbour],
            tags: Vec::new(),
        }
    }

    /// The same path with these VLAN tags.
    #[must_use]
    pub fn with_tags(mut self, tags: &[Tag]) -> Self {
        self.tags = tags.to_vec();
        self
    }

    /// As the neighbour sends this packet to the balancer.
    #[must_use]
    pub fn incoming(&self, mut packet: Packet) -> Packet {
        (packet.src_mac, packet.dst_mac) = (self.remote, self.local);
        packet.tags.clone_from(&self.tags);
        packet
    }

    /// As the balancer should send this packet to the neighbour: a tag has the
    /// priority that the tag at its place had.
    #[must_use]
    pub fn outgoing(&self, mut packet: Packet) -> Packet {
        (packet.src_mac, packet.dst_mac) = (self.local, self.remote);
        let tag = |(index, tag): (usize, &Tag)| {
            let old = packet.tags.get(index);
            old.map_or(*tag, |old| tag.priority(old.pcp, old.dei))
        };
        packet.tags = self.tags.iter().enumerate().map(tag).collect();
        packet
    }

    /// The path as the maps hold it.
    #[must_use]
    pub fn path(&self) -> LinkPath {
        let mut path = LinkPath::new(self.ifindex, self.remote, self.local);
        for (word, tag) in path.tags.iter_mut().zip(&self.tags) {
            let [a, b] = tag.tpid.to_be_bytes();
            let [c, d] = tag.vlan.to_be_bytes();
            *word = u32::from_ne_bytes([a, b, c, d]);
        }
        path
    }
}

/// The maps' content. Service addresses and port pools follow from the services and
/// backends.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Services by what clients send to.
    pub services: BTreeMap<Frontend, Service>,
    /// What holds for an address whatever the port: [`Vip::ECHO`] and
    /// [`Vip::DROP_OTHER_PORTS`]. The rest follows from the services.
    pub vip_flags: BTreeMap<AddressPrefix, u32>,
    /// Backends by id.
    pub backends: BTreeMap<u32, Backend>,
    /// Owners of the slots of rings, by service id.
    pub rings: BTreeMap<u32, Arc<[u32]>>,
    /// Origins of all slots of a ring, by service id; where there is none they are clean.
    pub origins: BTreeMap<u32, u32>,
    /// What few packets need of a service, by its id.
    pub options: BTreeMap<u32, ServiceOptions>,
    /// What guards services, by id.
    pub guards: BTreeMap<u32, Guard>,
    /// Lists of sources: whether packets of them are taken.
    pub sources: BTreeMap<Source, bool>,
    /// Where connection IDs of QUIC have server IDs, by service id.
    pub connection_ids: BTreeMap<u32, ConnectionIds>,
    /// Ids of backends by these.
    pub server_ids: BTreeMap<ServerIdKey, u32>,
    /// MTUs of the interfaces that packets may leave by, by index.
    pub interfaces: BTreeMap<u32, u32>,
}

impl World {
    /// A service of every [`Kind`] with two backends, of which the ring knows the first.
    #[must_use]
    pub fn standard() -> Self {
        // Made once: a ring has many slots.
        static STANDARD: LazyLock<World> = LazyLock::new(World::make_standard);
        STANDARD.clone()
    }

    fn make_standard() -> Self {
        let mut world = Self {
            interfaces: INTERFACES.map(|(_, ifindex)| (ifindex, MTU)).into(),
            ..Self::default()
        };
        for kind in Kind::ALL {
            let frontend = Frontend {
                address: kind.vip().ip().into(),
                ports: kind.vip().port().into(),
                protocol: kind.protocol(),
            };
            world.services.insert(frontend, kind.service());
            for id in kind.backends() {
                world.backends.insert(id, standard_backend(kind, id));
            }
            world.set_ring(kind, kind.backend());
        }
        world
    }

    /// Adds a service like that of the flow's kind where the flow is sent to; port 0
    /// stands for every port. Its ring knows the flow's backend alone.
    pub fn add_service(&mut self, flow: &Flow) {
        let frontend = Frontend {
            address: flow.vip.ip().into(),
            ports: match flow.vip.port() {
                0 => PortRange::ALL,
                port => port.into(),
            },
            protocol: flow.kind.protocol(),
        };
        self.add_service_at(flow, frontend);
    }

    /// The same for what clients send to `frontend`.
    pub fn add_service_at(&mut self, flow: &Flow, frontend: Frontend) {
        let service = Service {
            id: flow.service as u16,
            ..flow.kind.service()
        };
        self.services.insert(frontend, service);
        self.rings.insert(flow.service, ring_of(&[flow.backend]));
    }

    /// Removes the standard services that `wanted` says no to.
    pub fn keep_services(&mut self, wanted: impl Fn(Kind) -> bool) {
        for kind in Kind::all(|kind| !wanted(*kind)) {
            let id = kind.service().id();
            self.services.retain(|_, service| service.id() != id);
        }
    }

    /// Adds the backend of a flow, with the port of the flow's server.
    pub fn add_backend(&mut self, flow: &Flow) {
        let standard = standard_backend(flow.kind, flow.backend);
        let backend = Backend {
            path: flow.backend_link.path(),
            service: flow.service,
            port: if flow.kind.translates() {
                flow.server.port().to_be()
            } else {
                standard.port
            },
            ..standard
        };
        self.backends.insert(flow.backend, backend);
    }

    /// Gives the slots of a service's ring to backends by turns.
    pub fn share_ring(&mut self, kind: Kind, backends: &[u32]) {
        self.rings.insert(kind.service().id(), ring_of(backends));
    }

    /// Gives the slots of a service's ring to backends by turns, and has its new flows look
    /// at as many.
    pub fn schedule(&mut self, kind: Kind, scheduler: Scheduler, backends: &[u32]) {
        let id = kind.service().id();
        self.share_ring(kind, backends);
        self.options.entry(id).or_default().turns = backends.len() as u32;
        for service in self.services.values_mut().filter(|s| s.id() == id) {
            service.scheduler = scheduler as u8;
            service.flags |= Service::TRACKED;
        }
    }

    /// Has a service remember clients for so many ticks.
    pub fn remember(&mut self, kind: Kind, affinity: u32) {
        let id = kind.service().id();
        self.options.entry(id).or_default().affinity = affinity;
        for service in self.services.values_mut().filter(|s| s.id() == id) {
            service.flags |= Service::AFFINE;
        }
    }

    /// Gives the whole ring of a service to one backend, 0 for none.
    pub fn set_ring(&mut self, kind: Kind, backend: u32) {
        self.origins.remove(&kind.service().id());
        self.rings.insert(kind.service().id(), ring_of(&[backend]));
    }

    /// Gives the whole ring of a service to one backend, and lets another be the one of
    /// before.
    pub fn set_slots(&mut self, kind: Kind, owner: u32, origin: u32) {
        self.rings.insert(kind.service().id(), ring_of(&[owner]));
        self.origins.insert(kind.service().id(), origin);
    }

    /// What guards a service, which has the flag for it from then on.
    pub fn guard(&mut self, kind: Kind) -> &mut Guard {
        let id = kind.service().id();
        for service in self.services.values_mut() {
            if service.id() == id {
                service.flags |= Service::GUARDED;
            }
        }
        self.guards.entry(id).or_default()
    }

    /// Gives a service a list: of each prefix, whether packets are taken. One of no bits is
    /// for all others.
    pub fn list(&mut self, kind: Kind, prefixes: &[(AddressPrefix, bool)]) {
        self.guard(kind).flags |= Guard::LISTED;
        let service = kind.service().id();
        self.sources.retain(|source, _| source.service != service);
        for (prefix, is_allowed) in prefixes {
            let prefix = *prefix;
            self.sources.insert(Source { service, prefix }, *is_allowed);
        }
    }

    /// Rings by service id, with the origins of their slots.
    pub(crate) fn slots(&self) -> BTreeMap<u32, (Arc<[u32]>, u32)> {
        let origin = |id| self.origins.get(id).copied().unwrap_or(0);
        let rings = self.rings.iter();
        rings
            .map(|(id, ring)| (*id, (Arc::clone(ring), origin(id))))
            .collect()
    }

    /// Changes a backend.
    ///
    /// # Panics
    ///
    /// Where there is none.
    pub fn edit(&mut self, backend: u32, change: impl FnOnce(&mut Backend)) {
        change(self.backends.get_mut(&backend).expect("a backend"));
    }

    /// Changes the state of a backend.
    pub fn set_state(&mut self, backend: u32, state: BackendState) {
        self.edit(backend, |backend| backend.state = state as u8);
    }

    /// Sets the source ports of full NAT to a backend.
    pub fn set_ports(&mut self, backend: u32, first: u16, last: u16) {
        self.edit(backend, |backend| {
            (backend.first_port, backend.last_port) = (first, last);
        });
    }

    /// Ids of the port pools that backends name.
    pub(crate) fn pools(&self) -> BTreeSet<u32> {
        let pools = self.backends.values().map(|backend| backend.port_pool);
        pools.filter(|pool| *pool != 0).collect()
    }

    /// What holds for the addresses of the services.
    pub(crate) fn vips(&self) -> BTreeMap<AddressPrefix, Vip> {
        let mut vips = BTreeMap::<AddressPrefix, Vip>::new();
        for frontend in self.services.keys() {
            let vip = vips.entry(frontend.address).or_default();
            vip.flags |= self.vip_flags.get(&frontend.address).copied().unwrap_or(0);
            vip.flags |= match frontend.protocol {
                6 => Vip::TCP,
                _ => Vip::UDP,
            };
            if frontend.is_wide() {
                vip.id = self.vip_id(frontend.address);
            }
        }
        vips
    }

    /// The entries of the service tables.
    pub(crate) fn matches(&self) -> BTreeMap<Match, Service> {
        let services = self
            .services
            .iter()
            .map(|(frontend, service)| (*frontend, *service));
        matches(services, |address| self.vip_id(address))
    }

    /// A number for an address that has services.
    fn vip_id(&self, address: AddressPrefix) -> u32 {
        let mut addresses = self.services.keys().map(|frontend| frontend.address);
        let position = addresses.position(|other| other == address);
        position.expect("an address of a service") as u32 + 1
    }

    /// Flags of [`Runtime`] that the services and backends need.
    pub(crate) fn flags(&self) -> u32 {
        let vips = self.vips();
        let drops = |vip: &Vip| vip.flags & Vip::DROP_OTHER_PORTS != 0;
        let wide =
            self.services.keys().any(|frontend| frontend.is_wide()) || vips.values().any(drops);
        let prefixes = vips.keys().any(|address| !address.is_address());
        let flag = |needed, flag| if needed { flag } else { 0 };
        let is_resetting = |backend: &Backend| backend.state == BackendState::Resetting as u8;
        let resetting = self.backends.values().any(is_resetting);
        flag(wide, Runtime::WIDE)
            | flag(prefixes, Runtime::PREFIXES)
            | flag(resetting, Runtime::RESETTING)
    }
}

impl Kind {
    /// Position in [`Kind::ALL`].
    fn index(self) -> u32 {
        let position = Self::ALL.iter().position(|kind| *kind == self);
        position.expect("all are there") as u32
    }

    /// The service in [`World::standard`].
    #[must_use]
    pub fn service(self) -> Service {
        Service {
            id: self.index() as u16 + 1,
            mode: self.mode as u8,
            ..Service::default()
        }
    }

    /// The backend that the ring of [`World::standard`] knows.
    #[must_use]
    pub fn backend(self) -> u32 {
        self.index() * BACKENDS + 1
    }

    /// The backend that it does not know.
    #[must_use]
    pub fn spare_backend(self) -> u32 {
        self.backend() + 1
    }

    fn backends(self) -> [u32; BACKENDS as usize] {
        [self.backend(), self.spare_backend()]
    }

    /// Address of a backend.
    #[must_use]
    pub fn backend_address(self, id: u32) -> IpAddr {
        if self.is_backend_ipv6() {
            Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 0x10 + id as u16).into()
        } else {
            Ipv4Addr::new(10, 0, 0, 10 + id as u8).into()
        }
    }

    /// Whether backends have IPv6 addresses.
    fn is_backend_ipv6(self) -> bool {
        match self.outer {
            Outer::None => self.ipv6,
            Outer::Ipv4 => false,
            Outer::Ipv6 => true,
        }
    }

    /// The balancer's own address, the source of full NAT and of tunnels.
    #[must_use]
    pub fn balancer_address(self) -> IpAddr {
        if self.is_backend_ipv6() {
            Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 1).into()
        } else {
            Ipv4Addr::new(10, 0, 0, 1).into()
        }
    }
}

/// Time from token to token of the limits in the tests, in units of the clock of buckets: an
/// hour. Only what a test says lets time pass for them.
pub const INTERVAL: u64 = 3_600 * 1_000_000_000 * TICKS_PER_NANOSECOND;

/// So many flows at once, and no more while a test runs.
#[must_use]
pub const fn at_once(burst: u32) -> Rate {
    Rate::every(INTERVAL, burst)
}

/// A ring whose slots belong to these backends by turns.
fn ring_of(backends: &[u32]) -> Arc<[u32]> {
    let slots = backends.iter().copied().cycle();
    slots.take(RING_SIZE as usize).collect()
}

/// Port of the backends.
pub(crate) const BACKEND_PORT: u16 = 8_080;
/// First source port of full NAT.
pub(crate) const FIRST_PORT: u16 = 20_000;
/// Port of GUE.
pub(crate) const GUE_PORT: u16 = 6_080;

fn standard_backend(kind: Kind, id: u32) -> Backend {
    let full_nat = kind.mode == Mode::FullNat;
    Backend {
        path: Link::to_backend(id).path(),
        mtu: MTU - kind.overhead() as u32,
        service: kind.service().id(),
        state: BackendState::Up as u8,
        outer: kind.outer as u8,
        port: match kind.mode {
            Mode::FullNat | Mode::Nat => BACKEND_PORT.to_be(),
            Mode::Gue => GUE_PORT.to_be(),
            Mode::Dsr | Mode::Ipip => 0,
        },
        address: words(kind.backend_address(id)),
        source: if full_nat || kind.is_tunnel() {
            words(kind.balancer_address())
        } else {
            [0; 4]
        },
        port_pool: if full_nat { id } else { 0 },
        first_port: if full_nat { FIRST_PORT } else { 0 },
        last_port: if full_nat { FIRST_PORT + 999 } else { 0 },
        ..Backend::default()
    }
}
