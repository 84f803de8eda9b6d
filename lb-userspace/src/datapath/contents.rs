//! What the maps hold, as a daemon before this one has left it.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::{Array, MapData, MapError};
use lb_common::{
    backend::Backend,
    map_name,
    quic::ServerIdKey,
    ring::{RING_SIZE, Slot},
    service::{Service, Vip},
};

use super::{
    Datapath, Match, Outlet, Plain, Result,
    error::map_error,
    key::{address, address6},
    mapped::Mapping,
};
use crate::address::AddressPrefix;

impl Datapath {
    /// The services that packets are directed to.
    pub fn services(&self) -> Result<BTreeMap<Match, Service>> {
        let mut services = BTreeMap::new();
        for entry in self.services_v4.iter() {
            let (Plain(key), Plain(service)) =
                entry.map_err(map_error("reading", map_name::SERVICES_V4))?;
            services.insert(Match::of_v4(key), service);
        }
        for entry in self.services_v6.iter() {
            let (Plain(key), Plain(service)) =
                entry.map_err(map_error("reading", map_name::SERVICES_V6))?;
            services.insert(Match::of_v6(key), service);
        }
        for entry in self.ports_of_vips.iter() {
            let (key, Plain(service)) = entry.map_err(map_error("reading", map_name::PORTS))?;
            services.insert(Match::of_ports(&key), service);
        }
        Ok(services)
    }

    /// What holds for addresses whatever the port.
    pub fn vips(&self) -> Result<BTreeMap<AddressPrefix, Vip>> {
        let mut vips = BTreeMap::new();
        for entry in self.vips_v4.iter() {
            let (Plain(key), Plain(vip)) =
                entry.map_err(map_error("reading", map_name::VIPS_V4))?;
            vips.insert(IpAddr::from(address(key)).into(), vip);
        }
        for entry in self.vips_v6.iter() {
            let (Plain(key), Plain(vip)) =
                entry.map_err(map_error("reading", map_name::VIPS_V6))?;
            vips.insert(IpAddr::from(address6(key)).into(), vip);
        }
        for entry in self.prefixes_v4.iter() {
            let (key, Plain(vip)) = entry.map_err(map_error("reading", map_name::PREFIXES_V4))?;
            let Plain(first) = key.data();
            let prefix = AddressPrefix::new(address(first).into(), key.prefix_len() as u8);
            vips.insert(prefix, vip);
        }
        for entry in self.prefixes_v6.iter() {
            let (key, Plain(vip)) = entry.map_err(map_error("reading", map_name::PREFIXES_V6))?;
            let Plain(first) = key.data();
            let prefix = AddressPrefix::new(address6(first).into(), key.prefix_len() as u8);
            vips.insert(prefix, vip);
        }
        Ok(vips)
    }

    /// The backends by id, and those that have been removed, as they were, until they are
    /// forgotten.
    pub fn backends(&self) -> Result<BTreeMap<u32, Backend>> {
        backends(&self.backends)
    }

    /// Backends by the server IDs that they have in connection IDs of QUIC.
    pub fn server_ids(&self) -> Result<BTreeMap<ServerIdKey, u32>> {
        self.server_ids
            .iter()
            .map(|entry| entry.map(|(Plain(id), Plain(backend))| (id, backend)))
            .collect::<Result<_, MapError>>()
            .map_err(map_error("reading", map_name::SERVER_IDS))
    }

    /// The interfaces that packets may leave for, by index.
    pub fn interfaces(&self) -> Result<BTreeMap<u32, Outlet>> {
        let mut interfaces = BTreeMap::new();
        for entry in self.interfaces.iter() {
            let (Plain(ifindex), Plain(interface)) =
                entry.map_err(map_error("reading", map_name::INTERFACES))?;
            let device = match self.devices.get(ifindex, 0) {
                Ok(device) => device,
                // The kernel forgets devices that are gone.
                Err(MapError::KeyNotFound) => continue,
                Err(error) => return Err(map_error("reading", map_name::DEVICES)(error)),
            };
            let outlet = Outlet {
                ifindex: device.if_index,
                mtu: interface.mtu,
            };
            interfaces.insert(ifindex, outlet);
        }
        Ok(interfaces)
    }

    /// The ring of a service of so many slots; `None` where none was made.
    pub fn ring(&self, service: u32, slots: u32) -> Result<Option<Vec<Slot>>> {
        let rings = if slots == RING_SIZE {
            &self.rings
        } else {
            &self.sized_rings
        };
        let ring = rings
            .get(service)
            .map_err(map_error("reading", map_name::RINGS))?;
        let Some(ring) = ring else {
            return Ok(None);
        };
        let memory = Mapping::<AtomicU64>::new(ring.fd(), ring.len() as usize)
            .map_err(map_error("mapping a ring of", map_name::RINGS))?;
        let slots = memory.get().iter();
        let slots = slots.map(|slot| zerocopy::transmute!(slot.load(Ordering::Relaxed)));
        Ok(Some(slots.collect()))
    }

    /// Takes the port pools of these ids over, and returns those that there are.
    pub fn adopt_port_pools(&mut self, ids: impl IntoIterator<Item = u32>) -> Result<Vec<u32>> {
        let mut adopted = Vec::new();
        for id in ids {
            let pool = self
                .port_pools
                .get(id)
                .map_err(map_error("reading", map_name::PORT_POOLS))?;
            if let Some(pool) = pool {
                self.ports
                    .insert(id, pool.fd())
                    .map_err(map_error("mapping a port pool of", map_name::PORT_POOLS))?;
                adopted.push(id);
            }
        }
        Ok(adopted)
    }
}

/// [`Datapath::backends`] of this table.
pub(super) fn backends(table: &Array<MapData, Plain<Backend>>) -> Result<BTreeMap<u32, Backend>> {
    let mut backends = BTreeMap::new();
    for (id, backend) in (0..).zip(table.iter()) {
        let Plain(backend) = backend.map_err(map_error("reading", map_name::BACKENDS))?;
        if backend != Backend::default() {
            backends.insert(id, backend);
        }
    }
    Ok(backends)
}
