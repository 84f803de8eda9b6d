//! What a daemon before this one left in the tables, and which of it is what is wanted now.
//!
//! The tables say it themselves: a service is known by what clients send to it, a backend
//! by its service and address. So nothing else has to survive with them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lb_common::{backend::Backend, service::Service};

use super::{
    Ids, Image, Reconciler, frontend,
    ids::{BackendName, PoolName},
    way,
};
use crate::{
    datapath::{Match, matches, words},
    state::{BackendAddress, BackendPort, BackendSpec, Desired, ServiceSpec},
};

/// The content of tables that a daemon before this one wrote.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// What is in use.
    pub image: Image,
    /// Backends that have been removed, as they were, by id: flows may still have them.
    pub removed: BTreeMap<u32, Backend>,
}

impl Reconciler {
    /// One that goes on with what was found: what is wanted has the ids that it had, and
    /// all others rest.
    #[must_use]
    pub fn adopt(found: Found, desired: &Desired, now: Duration) -> Self {
        let Found { image, removed } = found;
        let mut ids = Ids::default();
        let services = services(&image, desired);
        let names: HashMap<u32, &ServiceSpec> = desired
            .services()
            .filter_map(|spec| Some((*services.get(&*spec.name)?, spec)))
            .collect();
        let protocols = protocols(&image);
        let every_port = way::on_every_port(desired);
        let pool = |entry: &Backend| {
            let pool = pool(entry, *protocols.get(&entry.service)?)?;
            Some((pool.shared(&every_port), entry.port_pool))
        };
        let mut backends = BTreeMap::<BackendName, u32>::new();
        let mut pools = BTreeMap::<PoolName, u32>::new();
        for (id, entry) in &image.backends {
            let Some(spec) = names.get(&entry.service) else {
                continue;
            };
            let mut wanted = spec.backends.iter();
            if let Some(backend) = wanted.find(|backend| is(entry, spec, backend)) {
                let name = (Arc::from(spec.name.as_str()), backend.address);
                backends.entry(name).or_insert(*id);
                if let Some((name, id)) = pool(entry) {
                    pools.entry(name).or_insert(id);
                }
            }
        }
        let all = || image.backends.iter().chain(&removed);
        let in_use = image.services.values().map(Service::id);
        let of_backends = all().map(|(_, entry)| entry.service);
        let services = services.into_iter();
        ids.services.adopt(
            services.map(|(name, id)| (name.into(), id)).collect(),
            [],
            in_use.chain(of_backends),
            now,
        );
        ids.backends
            .adopt(backends, [], all().map(|(id, _)| *id), now);
        ids.pools.adopt(
            pools,
            all().filter_map(|(_, entry)| pool(entry)),
            all().map(|(_, entry)| entry.port_pool),
            now,
        );
        let vips = image.vips.iter().filter(|(_, vip)| vip.id != 0);
        ids.vips.adopt(
            vips.map(|(address, vip)| (*address, vip.id)).collect(),
            [],
            [],
            now,
        );
        Self { ids, image }
    }
}

/// The ids of services that are wanted and there, by name.
fn services<'a>(image: &Image, desired: &'a Desired) -> BTreeMap<&'a str, u32> {
    let mut ids = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for spec in desired.services() {
        let vip = |address| image.vips.get(&address).map_or(0, |vip| vip.id);
        let entries = matches([(frontend(spec), Service::default())], vip);
        // A service within the range of another may have one of its entries.
        let mut found = BTreeMap::<u32, usize>::new();
        for service in entries.keys().filter_map(|entry| image.services.get(entry)) {
            *found.entry(service.id()).or_default() += 1;
        }
        let most = found.into_iter().filter(|(id, _)| !taken.contains(id));
        if let Some((id, _)) = most.max_by_key(|(_, entries)| *entries) {
            taken.insert(id);
            ids.insert(spec.name.as_str(), id);
        }
    }
    ids
}

/// Whether an entry is that of a backend of a service.
fn is(entry: &Backend, service: &ServiceSpec, backend: &BackendSpec) -> bool {
    let port = backend.address.port.number().unwrap_or_default().to_be();
    entry.address == words(backend.address.ip) && (!service.mode.translates() || entry.port == port)
}

/// The IP protocol numbers of services, by id.
fn protocols(image: &Image) -> HashMap<u32, u8> {
    let entries = image.services.iter();
    let protocol = |(packets, service): (&Match, &Service)| match packets {
        Match::Port { protocol, .. } | Match::Ports { protocol, .. } => (service.id(), *protocol),
    };
    entries.map(protocol).collect()
}

/// What the port pool of a backend is for, if it has one.
fn pool(entry: &Backend, protocol: u8) -> Option<PoolName> {
    let port = match entry.port {
        0 => BackendPort::Every,
        port => BackendPort::Number(u16::from_be(port)),
    };
    (entry.port_pool != 0).then(|| PoolName {
        source: address(entry.source),
        backend: BackendAddress {
            ip: address(entry.address),
            port,
        },
        protocol,
    })
}

/// An address that an entry has in words. No host has one of IPv6 of which all but the first
/// word is zero.
fn address(words: [u32; 4]) -> IpAddr {
    let octets: [u8; 16] = zerocopy::transmute!(words);
    match (words, octets) {
        ([_, 0, 0, 0], [a, b, c, d, ..]) => [a, b, c, d].into(),
        _ => octets.into(),
    }
}
