//! Devices that not every kernel has: VLAN interfaces and bonds that the balancer is on, and
//! the kernel's tunnel devices on backends. The kernel of `cargo xtask vm` has all of them;
//! where one is missing the tests fail.

#[path = "../e2e/programs.rs"]
mod programs;
mod site;

use anyhow::{Result, ensure};
use lb_lab::{End, Link};

use crate::site::{INNER_MTU, Open, Site, Uplink, received};

/// More packets than come without clients: neighbours and LACP.
const MANY: u64 = 1_000;

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

#[test]
fn next_hops_are_behind_vlan_interfaces_of_a_bond() -> Result<()> {
    carry("vlan-bond", Uplink::VlanOnBond)?.stop()
}

/// The backends unwrap as `docs/backends.md` says, in every test. Here, each device has its
/// share: a tunnel that another one unwraps would not be seen elsewhere.
#[test]
fn backends_unwrap_with_the_devices_of_their_kernel() -> Result<()> {
    let site = carry("tunnels", Uplink::Plain)?;
    for backend in &site.topology.backends {
        for device in ["ipip-lb", "sit-lb", "ip6-lb"] {
            let received = received(&backend.host, device)?;
            ensure!(received > 0, "nothing came by {device}");
        }
    }
    site.stop()
}

#[test]
fn clients_and_backends_are_behind_a_bond_that_balances() -> Result<()> {
    carry_by_both("bond-xor", "balance-xor")
}

#[test]
fn clients_and_backends_are_behind_a_bond_of_lacp() -> Result<()> {
    carry_by_both("bond-lacp", "802.3ad")
}

/// Traffic over a bond that uses both of its interfaces, in both directions.
fn carry_by_both(name: &str, mode: &'static str) -> Result<()> {
    let site = carry(name, Uplink::Bond(mode))?;
    let (lb, switch) = (&site.topology.lb, &site.topology.switch);
    for (host, interface) in [(lb, "eth0"), (lb, "eth1"), (switch, "lb1"), (switch, "lb2")] {
        let packets = received(host, interface)?;
        ensure!(packets > MANY, "{packets} packets came by {interface}");
    }
    site.stop()
}

/// What goes on meanwhile is not lost, on the way there and on the way back.
#[test]
fn a_bond_goes_over_to_its_other_interface() -> Result<()> {
    let site = carry("bond-backup", Uplink::Bond("active-backup"))?;
    let (lb, switch) = (&site.topology.lb, &site.topology.switch);
    site.wait_for_active("eth0")?;

    let open = site.connect()?;
    switch.ip("link set dev lb1 down")?;
    site.wait_for_active("eth1")?;
    open.into_iter().try_for_each(Open::finish)?;
    site.carry()?;

    let open = site.connect()?;
    switch.ip("link set dev lb1 up")?;
    lb.ip("link set dev eth1 down")?;
    site.wait_for_active("eth0")?;
    open.into_iter().try_for_each(Open::finish)?;
    site.carry()?;
    site.stop()
}

/// Flows use both interfaces, so that what comes in by one leaves by the other.
#[test]
fn interfaces_join_a_bond_and_leave_it() -> Result<()> {
    let site = Site::new("bond-members", Uplink::Bond("balance-xor"))?;
    let (lb, switch) = (&site.topology.lb, &site.topology.switch);
    let open = site.connect()?;
    // One that was not there when the balancer began, in place of one that was.
    Link::between(
        End::of(lb, "eth2"),
        End::of(switch, "lb3").takes_xdp_frames(),
    )
    .mtu(INNER_MTU)
    .up()?;
    site.exchange(["eth2", "lb3"], ["eth0", "lb1"])?;
    open.into_iter().try_for_each(Open::finish)?;
    site.carry()?;

    // One that was there, and comes back.
    let open = site.connect()?;
    site.exchange(["eth0", "lb1"], ["eth1", "lb2"])?;
    open.into_iter().try_for_each(Open::finish)?;
    site.carry()?;
    site.stop()
}
