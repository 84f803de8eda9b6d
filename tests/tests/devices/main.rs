//! Devices that not every kernel has: VLAN interfaces and bonds that the balancer is on, and
//! the kernel's tunnel devices on backends. The kernel of `cargo xtask vm` has all of them;
//! where one is missing the tests fail.

#[path = "../e2e/programs.rs"]
mod programs;
mod site;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_lab::http::Connection;

use crate::site::{PATIENCE, Site, Uplink};

/// Traffic by all modes, over a link of this kind.
fn carry(name: &str, uplink: Uplink) -> Result<Site> {
    let site = Site::new(name, uplink)?;
    site.carry()?;
    Ok(site)
}

#[test]
fn next_hops_are_behind_vlan_interfaces() -> Result<()> {
    carry("vlan", Uplink::Vlan)?.stop()
}

#[test]
fn next_hops_are_behind_two_tags() -> Result<()> {
    carry("qinq", Uplink::QinQ)?.stop()
}

/// The backends unwrap as `docs/backends.md` says, in every test. Here, each device has its
/// share: a tunnel that another one unwraps would not be seen elsewhere.
#[test]
fn backends_unwrap_with_the_devices_of_their_kernel() -> Result<()> {
    let site = carry("tunnels", Uplink::Plain)?;
    for backend in &site.topology.backends {
        for device in ["ipip-lb", "sit-lb", "ip6-lb"] {
            let received = site::received(&backend.host, device)?;
            ensure!(received > 0, "nothing came by {device}");
        }
    }
    site.stop()
}

#[test]
fn clients_and_backends_are_behind_a_bond_that_balances() -> Result<()> {
    let site = carry("bond-xor", Uplink::Bond("balance-xor"))?;
    // Both in both directions, or the flows chose one of them by chance.
    for device in ["eth0", "eth1"] {
        ensure!(site::received(&site.topology.lb, device)? > 0, "{device}");
        let peer = if device == "eth0" { "lb1" } else { "lb2" };
        ensure!(site::received(&site.topology.switch, peer)? > 0, "{peer}");
    }
    site.stop()
}

#[test]
fn clients_and_backends_are_behind_a_bond_of_lacp() -> Result<()> {
    carry("bond-lacp", Uplink::Bond("802.3ad"))?.stop()
}

/// The connections that there are go on by the other interface.
#[test]
fn a_bond_goes_over_to_its_other_interface() -> Result<()> {
    let site = carry("bond-backup", Uplink::Bond("active-backup"))?;
    let client = &site.topology.client;
    let open = || -> Result<Vec<Connection>> {
        let connect = |address: &_| Connection::open(*address, PATIENCE);
        site.addresses().iter().map(connect).collect()
    };
    let mut connections = client.enter(open)?;
    for connection in &mut connections {
        connection.get("/", false)?;
    }
    site.topology.switch.ip("link set dev lb1 down")?;
    let deadline = Instant::now() + PATIENCE;
    while site.active_interface()? != "eth1" {
        ensure!(Instant::now() < deadline, "the bond stays with eth0");
        std::thread::sleep(Duration::from_millis(100));
    }
    for (connection, address) in connections.iter_mut().zip(site.addresses()) {
        connection
            .get("/", true)
            .with_context(|| format!("an old connection to {address}"))?;
    }
    site.carry()?;
    site.stop()
}
