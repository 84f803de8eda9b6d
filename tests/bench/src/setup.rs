//! The balancer that is measured: 64 services and 200 backends, of which one service
//! gets the packets.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    Runtime,
    addr::LinkPath,
    backend::{Backend, BackendState, Outer as Family},
    counters::Counters,
    guard::{Guard, Rate},
    quic::{ConnectionIds, MAX_SERVER_ID, ServerIdKey},
    ring::{self, NO_BACKEND, RING_SIZE, Slot},
    service::{Mode as Translation, Service, ServiceOptions, Vip},
};
use lb_tests::Outer;
use lb_userspace::{
    address::{AddressPrefix, PortRange},
    datapath::{Datapath, Frontend, LogLevel, Options, Outlet, Source, matches, words},
    state::{GUE_PORT, Mode, Protocol},
};

use crate::{
    frame::Macs,
    ip::Ip,
    row::{Feature, Group, Slots},
};

/// The interface that frames come in by: the loopback interface, of the same index in
/// every network namespace.
pub(crate) const IFINDEX: u32 = 1;

/// Services.
const SERVICES: u32 = 64;
/// Backends of all services.
pub(crate) const BACKENDS: u32 = 200;
/// Backends of a service that gets no packets.
const IDLE_BACKENDS: u32 = 2;
/// Number and id of the service that gets the packets.
const MEASURED: u32 = 1;
/// Its backends have ids from 1 up to this: enough of them that a million flows find
/// source ports.
const MEASURED_BACKENDS: u32 = BACKENDS - (SERVICES - 1) * IDLE_BACKENDS;

pub(crate) const SERVICE_PORT: u16 = 443;
const BACKEND_PORT: u16 = 8_443;
/// Source ports of full NAT.
const FIRST_PORT: u16 = 1_024;
const LAST_PORT: u16 = 65_535;
const MTU: u32 = 1_500;
/// Of [`Feature::RingSize`].
const OTHER_RING_SIZE: u32 = 16_381;
/// Of [`Feature::SegmentSize`].
const SEGMENT_SIZE: u16 = 1_400;

/// The server ID that packets have.
const SERVER_ID: [u8; 4] = [0xc0, 0xff, 0xee, 0x01];
/// The begin of a QUIC packet with a short header and this server ID, behind the first octet
/// of the connection ID: configuration 0, seven more bytes.
pub(crate) const QUIC: [u8; 6] = {
    let [a, b, c, d] = SERVER_ID;
    [0x40, 0x07, a, b, c, d]
};

pub(crate) const BALANCER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Ethernet addresses of packets from clients.
pub(crate) const FROM_CLIENT: Macs = Macs {
    dst: BALANCER_MAC,
    src: CLIENT_MAC,
};

/// Ethernet addresses of packets from backends: the balancer does not look who sends
/// them.
pub(crate) const FROM_BACKEND: Macs = Macs {
    dst: BALANCER_MAC,
    src: [2, 0, 0, 1, 0, 1],
};

/// The balancer and the service that gets the packets.
pub(crate) struct Balancer {
    pub(crate) datapath: Datapath,
    pub(crate) mode: Mode,
    pub(crate) protocol: Protocol,
    pub(crate) address: SocketAddr,
    /// The backend that packets of the service that is measured name, if they do.
    pub(crate) named: Option<u32>,
    ring_size: u32,
}

/// Which backend, and how packets reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) macs: Macs,
}

impl Balancer {
    /// Loads the program and fills its maps; the flow tables hold `max_flows` each. Backends are
    /// behind the interface `ifindex`.
    pub(crate) fn load<V: Ip>(group: &Group, max_flows: u32, ifindex: u32) -> Result<Self> {
        let mut datapath = Datapath::load(&Options {
            max_flows,
            // More than are ever not confirmed.
            max_embryonic: max_flows.next_power_of_two(),
            log: LogLevel::Off,
        })
        .context("the benchmark loads BPF programs and must run as root")?;
        let flags = match group.feature {
            Some(Feature::Ranges) => Runtime::WIDE,
            Some(Feature::Prefixes) => Runtime::WIDE | Runtime::PREFIXES,
            Some(Feature::SegmentSize | Feature::Sources | Feature::Limits | Feature::RingSize)
            | None => 0,
        };
        datapath.set_runtime(Runtime {
            clock: 1,
            flags,
            ..Runtime::default()
        })?;
        datapath.set_interface(ifindex, Outlet { ifindex, mtu: MTU })?;
        let pools: Vec<u32> = (1..=BACKENDS).collect();
        datapath.create_port_pools(&pools)?;
        // In one step: each costs a wait for the programs that run.
        let rings: Vec<_> = (1..=SERVICES)
            .map(|number| (number, ring_of(number, group)))
            .collect();
        datapath.set_rings(&rings)?;
        for number in 1..=SERVICES {
            set_service::<V>(&mut datapath, number, group, ifindex)?;
        }
        let named = (group.slots == Slots::Named).then_some(MEASURED_BACKENDS);
        if let Some(backend) = named {
            name_backend(&mut datapath, backend)?;
        }
        Ok(Self {
            datapath,
            named,
            mode: group.mode,
            protocol: group.protocol,
            address: service::<V>(),
            ring_size: ring_size(group),
        })
    }

    /// The backend of new flows with this hash.
    pub(crate) fn target<V: Ip>(&self, hash: u32) -> Target {
        let slot = ring::slot(hash, self.ring_size);
        let id = self.named.unwrap_or(backend_of_slot(MEASURED, slot));
        Target {
            address: (V::backend(id), BACKEND_PORT).into(),
            macs: backend_macs(id),
        }
    }

    /// The headers of a tunnel to this address, if there is one.
    pub(crate) fn outer<V: Ip>(&self, backend: IpAddr) -> Option<Outer> {
        let gue = match self.mode {
            Mode::FullNat | Mode::Nat | Mode::Dsr => return None,
            Mode::Ipip => None,
            Mode::Gue => Some(GUE_PORT),
        };
        Some(Outer {
            src: V::SOURCE,
            source_bits: 0,
            dst: backend,
            gue,
        })
    }

    /// What passed for all backends.
    pub(crate) fn counters(&self) -> Result<Counters> {
        (1..=BACKENDS).try_fold(Counters::default(), |sum, id| {
            Ok(sum.plus(self.datapath.counters(id)?))
        })
    }

    /// That nothing has been dropped.
    pub(crate) fn check_drops(&self) -> Result<()> {
        let drops = self.datapath.drops()?;
        let (key, packets) = drops
            .iter()
            .max_by_key(|(_, packets)| **packets)
            .context("the drop table has lost its keys")?;
        ensure!(*packets == 0, "{packets} packets were dropped: {key:?}");
        Ok(())
    }
}

/// What clients send to.
pub(crate) fn service<V: Ip>() -> SocketAddr {
    (V::service(MEASURED), SERVICE_PORT).into()
}

/// Server IDs of all backends of the service that is measured, of which packets have that of
/// this one.
fn name_backend(datapath: &mut Datapath, backend: u32) -> Result<()> {
    let options = ServiceOptions {
        connection_ids: ConnectionIds {
            offset: 1,
            length: SERVER_ID.len() as u8,
            configurations: 1,
            reserved: 0,
        },
        ..ServiceOptions::default()
    };
    datapath.set_options(MEASURED, options)?;
    for other in backends_of(MEASURED) {
        let mut id = [0; MAX_SERVER_ID];
        id[..SERVER_ID.len()].copy_from_slice(&SERVER_ID);
        id[0] ^= (other ^ backend) as u8;
        let key = ServerIdKey {
            id,
            length: SERVER_ID.len() as u8,
            service: MEASURED,
            reserved: 0,
        };
        datapath.set_server_id(key, other)?;
    }
    Ok(())
}

fn set_service<V: Ip>(
    datapath: &mut Datapath,
    number: u32,
    group: &Group,
    ifindex: u32,
) -> Result<()> {
    for id in backends_of(number) {
        datapath.set_backend(id, backend::<V>(id, number, group, ifindex))?;
    }
    let is_guarded = guard::<V>(datapath, number, group)?;
    let service = Service {
        id: number as u16,
        mode: Translation::from(group.mode) as u8,
        flags: match group.slots {
            Slots::Tracked => Service::TRACKED,
            Slots::Named if number == MEASURED => Service::QUIC,
            Slots::Named => 0,
            Slots::Clean | Slots::Changing | Slots::Pinned => 0,
        } | if is_guarded { Service::GUARDED } else { 0 },
        ..Service::default()
    }
    .with_ring_size(ring_size(group));
    let frontend = frontend::<V>(number, group);
    let id = if frontend.is_wide() { number } else { 0 };
    for (packets, service) in matches([(frontend, service)], |_| id) {
        datapath.set_service(packets, service)?;
    }
    let flags = match group.protocol {
        Protocol::Tcp => Vip::TCP,
        Protocol::Udp => Vip::UDP,
    };
    let flags = flags | Vip::ECHO;
    datapath.set_vip(frontend.address, Vip { id, flags })?;
    Ok(())
}

/// Writes the list or the limits of a service that has them: all clients are taken, by the
/// longest of a thousand prefixes, and no limit is ever reached.
fn guard<V: Ip>(datapath: &mut Datapath, service: u32, group: &Group) -> Result<bool> {
    match group.feature {
        Some(Feature::Sources) => {
            let all = AddressPrefix::new(V::CLIENTS, 0);
            let clients = AddressPrefix::new(V::CLIENTS, 16);
            for (prefix, is_allowed) in [(all, false), (clients, true)] {
                datapath.set_source(Source { service, prefix }, is_allowed)?;
            }
            for number in 0..LISTED {
                let address: IpAddr = match V::CLIENTS {
                    IpAddr::V4(_) => Ipv4Addr::from_bits(0x0a00_0000 | number << 8).into(),
                    IpAddr::V6(_) => Ipv6Addr::from_bits(0xfd << 120 | u128::from(number)).into(),
                };
                let prefix = address.into();
                datapath.set_source(Source { service, prefix }, false)?;
            }
            let guard = Guard {
                flags: Guard::LISTED,
                ..Guard::default()
            };
            datapath.set_guard(service, guard)?;
        }
        Some(Feature::Limits) => {
            let rate = Rate::new(1_000_000_000, 1_000_000_000);
            let guard = Guard {
                per_source: rate,
                per_service: rate,
                ..Guard::default()
            };
            datapath.set_guard(service, guard)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Other prefixes in a list.
const LISTED: u32 = 1_000;

/// What clients send to a service. The last one has the feature that makes it wide.
fn frontend<V: Ip>(number: u32, group: &Group) -> Frontend {
    let address = AddressPrefix::from(V::service(number));
    let ports = PortRange::from(SERVICE_PORT);
    let wide = group.feature.filter(|_| number == SERVICES);
    Frontend {
        address: match wide {
            Some(Feature::Prefixes) => AddressPrefix::new(address.address(), address.length() - 1),
            _ => address,
        },
        ports: match wide {
            Some(Feature::Ranges) => PortRange::ALL,
            _ => ports,
        },
        protocol: number_of(group.protocol),
    }
}

fn backend<V: Ip>(id: u32, service: u32, group: &Group, ifindex: u32) -> Backend {
    let macs = backend_macs(id);
    let mut backend = Backend {
        path: LinkPath::new(ifindex, macs.dst, macs.src),
        mtu: MTU,
        service,
        state: BackendState::Up as u8,
        ..Backend::default()
    };
    if group.feature == Some(Feature::SegmentSize) {
        backend.max_segment_size = SEGMENT_SIZE;
    }
    if group.mode != Mode::Dsr {
        backend.address = words(V::backend(id));
    }
    if group.mode != Mode::Nat && group.mode != Mode::Dsr {
        backend.source = words(V::SOURCE);
    }
    match group.mode {
        Mode::FullNat => {
            backend.port = BACKEND_PORT.to_be();
            backend.port_pool = id;
            (backend.first_port, backend.last_port) = (FIRST_PORT, LAST_PORT);
        }
        Mode::Nat => backend.port = BACKEND_PORT.to_be(),
        Mode::Dsr => {}
        Mode::Ipip | Mode::Gue => {
            backend.outer = match V::SOURCE {
                IpAddr::V4(_) => Family::Ipv4,
                IpAddr::V6(_) => Family::Ipv6,
            } as u8;
            if group.mode == Mode::Gue {
                backend.port = GUE_PORT.to_be();
            }
        }
    }
    backend
}

/// Ids of the backends of a service.
fn backends_of(service: u32) -> std::ops::Range<u32> {
    if service == MEASURED {
        return 1..MEASURED_BACKENDS + 1;
    }
    let first = MEASURED_BACKENDS + 1 + (service - 2) * IDLE_BACKENDS;
    first..first + IDLE_BACKENDS
}

/// The ring of a service. Where its slots changed hands, they were the next backend's.
fn ring_of(service: u32, group: &Group) -> Arc<[Slot]> {
    let slot = |index| {
        let owner = backend_of_slot(service, index);
        let origin = match group.slots {
            Slots::Clean | Slots::Tracked | Slots::Named => NO_BACKEND,
            Slots::Changing => backend_of_slot(service, index + 1),
            Slots::Pinned => owner,
        };
        Slot { owner, origin }
    };
    (0..ring_size(group)).map(slot).collect()
}

/// Slots of a ring.
fn ring_size(group: &Group) -> u32 {
    match group.feature {
        Some(Feature::RingSize) => OTHER_RING_SIZE,
        _ => RING_SIZE,
    }
}

/// The slots of a ring have the backends in turn.
fn backend_of_slot(service: u32, slot: u32) -> u32 {
    let ids = backends_of(service);
    ids.start + slot % (ids.end - ids.start)
}

/// Ethernet addresses of packets to a backend.
fn backend_macs(id: u32) -> Macs {
    let [_, _, high, low] = id.to_be_bytes();
    Macs {
        dst: [2, 0, 0, 1, high, low],
        src: BALANCER_MAC,
    }
}

/// IP protocol number.
pub(crate) fn number_of(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

/// The address of a client of a flow.
pub(crate) fn client<V: Ip>(flow: u32) -> SocketAddr {
    let (low, port) = lb_bench_driver::client(flow);
    let low = u16::from_be(low);
    let address: IpAddr = match V::CLIENTS {
        IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() | u32::from(low)).into(),
        IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() | u128::from(low)).into(),
    };
    (address, u16::from_be(port)).into()
}
