//! From the start of the daemon to its end.

use anyhow::Result;
use lb_lab::{Balancer, End, Link, TopologyOptions, http, port};

use crate::{PATIENCE, http_of_each_kind, load, programs, standard};

/// Traffic that is for no service passes through the host as if nothing were there.
#[test]
fn other_traffic_passes_and_nothing_is_left_when_it_is_detached() -> Result<()> {
    let (topology, _servers) = standard("lifecycle", TopologyOptions::default())?;
    let services = http_of_each_kind(&topology);
    let mut balancer = Balancer::start(&topology, &programs::paths().lb, &services)?;
    let status = balancer.status()?;
    let interfaces: Vec<_> = status
        .interfaces
        .iter()
        .map(|interface| (&*interface.name, &*interface.mode))
        .collect();
    assert_eq!(interfaces, [("eth0", "native"), ("eth1", "native")]);

    let direct = || -> Result<()> {
        let backend = &topology.backends[0];
        for like in [services[0].address.ip(), services[1].address.ip()] {
            let server = backend.address(like, port::HTTP);
            let (head, _) = topology.client.enter(|| http::get(server, "/", PATIENCE))?;
            assert_eq!(head.backend, "b1");
        }
        Ok(())
    };
    direct()?;
    assert!(topology.lb.ip("link show dev eth0")?.contains("xdp"));
    balancer.end()?;
    // Both go on without the daemon: what is for services, and what is not.
    load(&topology, &services, 3)?;
    direct()?;
    assert_eq!(balancer.detach()?, "detached from eth0, eth1\n");
    assert_eq!(balancer.detach()?, "nothing was attached\n");
    for interface in ["eth0", "eth1"] {
        let link = topology.lb.ip(&format!("link show dev {interface}"))?;
        assert!(!link.contains("xdp"), "{link}");
    }
    direct()
}

/// The interface that clients come by goes, and another of its name takes its place.
#[test]
fn traffic_goes_on_when_an_interface_comes_back() -> Result<()> {
    let (topology, _servers) = standard("replaced", TopologyOptions::default())?;
    let services = http_of_each_kind(&topology);
    let balancer = Balancer::start(&topology, &programs::paths().lb, &services)?;
    load(&topology, &services, 3)?;

    topology.lb.ip("link delete dev eth0")?;
    balancer.wait_until("eth0 is shown as gone", |status| {
        status.interfaces[0].state == "gone"
    })?;
    balancer.lb("backend set full-nat-v4 10.0.0.11:8080 --weight 50")?;

    Link::between(
        End::of(&topology.client, "eth0")
            .address("198.51.100.2/24")
            .address("2001:db8:1::2/64")
            .takes_xdp_frames(),
        End::of(&topology.lb, "eth0")
            .address("198.51.100.1/24")
            .address("2001:db8:1::1/64"),
    )
    .up()?;
    topology.client.ip("route add default via 198.51.100.1")?;
    topology.client.ip("route add default via 2001:db8:1::1")?;
    balancer.wait_until("eth0 is attached again", |status| {
        status.interfaces[0].state == "attached"
    })?;
    load(&topology, &services, 3)?;
    balancer.stop()
}
