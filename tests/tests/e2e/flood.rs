//! Real clients are served while SYNs come from clients that there are not.

use std::net::{SocketAddr, SocketAddrV4};

use anyhow::{Result, ensure};
use lb_lab::{Balancer, Host, Load, Mode, TopologyOptions, syn_flood};

use crate::{http_of_each_kind, modes::Site, programs, restarts::hold, standard};

/// New connections to each service while the flood comes.
const CONNECTIONS: u64 = 100;

/// Holds connections and makes new ones, with `meanwhile` between them, while SYNs come.
/// Returns how many of these there were.
fn served(
    client: &Host,
    addresses: &[SocketAddr],
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<u64> {
    let held = hold(client, addresses)?;
    let of_v4 = |address: &SocketAddr| match address {
        SocketAddr::V4(address) => Some(*address),
        SocketAddr::V6(_) => None,
    };
    let flooded: Vec<SocketAddrV4> = addresses.iter().filter_map(of_v4).collect();
    let flood = client.background(move |stop| syn_flood(&flooded, stop));
    let load = |address: &SocketAddr| -> Result<()> {
        let load = Load {
            threads: 2,
            ..Load::new(*address, CONNECTIONS)
        };
        let report = client.enter(|| load.run()).into_result()?;
        ensure!(report.requests == CONNECTIONS, "{report:?}");
        Ok(())
    };
    addresses.iter().try_for_each(load)?;
    meanwhile()?;
    addresses.iter().try_for_each(load)?;
    let flooded = flood.finish()?;
    held.finish()?;
    ensure!(flooded > 0, "there was no flood");
    Ok(flooded)
}

#[test]
fn a_flood_of_syns_stops_nobody_where_packets_are_translated() -> Result<()> {
    let (topology, _servers) = standard("flood-nat", TopologyOptions::default())?;
    let services = http_of_each_kind(&topology);
    let services: Vec<_> = services
        .into_iter()
        .map(|mut service| {
            // Nothing here is about health.
            service.health.fall = 100;
            service
        })
        .collect();
    let balancer = Balancer::start(&topology, &programs::paths().lb, &services)?;
    let addresses: Vec<SocketAddr> = services.iter().map(|service| service.address).collect();
    served(&topology.client, &addresses, || Ok(()))?;
    balancer.stop()
}

/// At slots that are clean, and then at some that have changed hands.
#[test]
fn a_flood_of_syns_stops_nobody_in_dsr() -> Result<()> {
    let site = Site::new("flood-dsr", Mode::Dsr, 1_500)?;
    served(&site.routed.topology.client, &site.http(), || {
        for way in &site.ways {
            let name = format!("http-{way}");
            let status = site.balancer.status()?;
            let address = &status.service(&name)?.backends[0].address;
            site.balancer
                .lb(&format!("backend set {name} {address} --weight 0"))?;
        }
        Ok(())
    })?;
    site.balancer.stop()
}
