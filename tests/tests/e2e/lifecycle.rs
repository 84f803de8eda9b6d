//! From the start of the daemon to its end.

use anyhow::Result;
use lb_lab::{Balancer, TopologyOptions, http, port};

use crate::{PATIENCE, http_of_each_kind, programs, standard};

/// Traffic that is for no service passes through the host as if nothing were there.
#[test]
fn other_traffic_passes_and_nothing_is_attached_afterwards() -> Result<()> {
    let (topology, _servers) = standard("lifecycle", TopologyOptions::default())?;
    let services = http_of_each_kind(&topology);
    let balancer = Balancer::start(&topology, &programs::paths().lb, &services)?;
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
    balancer.stop()?;
    for interface in ["eth0", "eth1"] {
        let link = topology.lb.ip(&format!("link show dev {interface}"))?;
        assert!(!link.contains("xdp"), "{link}");
    }
    direct()
}
