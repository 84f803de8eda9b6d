//! The balancer between real hosts: a daemon with a configuration file, native XDP,
//! real servers and clients in network namespaces.

mod api;
mod backends;
mod counters;
mod decap;
mod doctor;
mod drained;
mod explain;
mod flood;
mod guards;
mod health;
mod lifecycle;
mod modes;
mod next_hops;
mod passive;
mod path_mtu;
mod privileges;
mod programs;
mod quic;
mod restarts;
mod schedulers;
mod steady;
mod traffic;
mod udp;
mod upgrade;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use lb_lab::{Lab, Load, LoadReport, Mode, Process, Service, Topology, TopologyOptions};

/// Longest wait for an answer. Long enough for a loaded machine: only a test that
/// fails waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The standard topology with a server on every backend.
fn standard(name: &str, options: TopologyOptions) -> Result<(Topology, Vec<Process>)> {
    let topology = Topology::standard(Lab::new(name)?, options)?;
    let servers = topology.start_servers(&programs::paths().server)?;
    Ok((topology, servers))
}

/// A service for each mode and family, made by `service` of its name, address and mode.
fn of_each_kind(port: u16, service: impl Fn(&str, SocketAddr, Mode) -> Service) -> Vec<Service> {
    let mut services = Vec::new();
    // A port for each mode, as there is one address for each family.
    for (mode, port) in Mode::NAT.into_iter().zip(port..) {
        for ip in [IpAddr::from(Topology::VIP4), Topology::VIP6.into()] {
            let family = if ip.is_ipv4() { "v4" } else { "v6" };
            services.push(service(
                &format!("{mode}-{family}"),
                (ip, port).into(),
                mode,
            ));
        }
    }
    services
}

/// An HTTP service for each mode and family.
fn http_of_each_kind(topology: &Topology) -> Vec<Service> {
    of_each_kind(80, |name, address, mode| {
        Service::http(name, topology, address, mode)
    })
}

/// Sends one request on each of `connections` connections to each service.
fn load(topology: &Topology, services: &[Service], connections: u64) -> Result<Vec<LoadReport>> {
    services
        .iter()
        .map(|service| {
            let load = Load::new(service.address, connections);
            topology.client.enter(|| load.run()).into_result()
        })
        .collect()
}
