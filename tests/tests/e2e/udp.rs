//! Datagrams of every size, with checksums that kernels verify.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use lb_lab::{Balancer, Service, TopologyOptions, pattern, port, udp};

use crate::{PATIENCE, of_each_kind, programs, standard};

/// The largest payload that fits into an Ethernet frame over IPv4.
const LARGEST: usize = 1_472;

#[test]
fn datagrams_of_every_size_come_back_with_good_checksums() -> Result<()> {
    let options = TopologyOptions {
        // The same payload over IPv6 needs 20 bytes more than 1,500.
        mtu: 1_520,
        ..TopologyOptions::default()
    };
    let (topology, _servers) = standard("udp", options)?;
    let services = of_each_kind(7, |name, address, mode| {
        Service::udp(name, &topology, address, mode, port::ECHO)
    });
    let balancer = Balancer::start(&topology, &programs::paths().lb, &services)?;

    let hosts: Vec<_> = topology
        .backends
        .iter()
        .map(|backend| &backend.host)
        .collect();
    let payload = pattern::bytes(LARGEST);
    let mut flows = BTreeMap::new();
    for service in &services {
        let snmp = || {
            hosts
                .iter()
                .map(|host| host.snmp())
                .collect::<Result<Vec<_>>>()
        };
        let (before, client_before) = (snmp()?, topology.client.snmp()?);
        let ports = topology.client.enter(|| {
            // A socket for each size, so that every backend has its share. The kernel
            // may choose a port twice, and then it is the same flow.
            (0..=LARGEST)
                .map(|size| {
                    let socket = udp::connect(service.address, PATIENCE)?;
                    udp::echo(&socket, &payload[..size])?;
                    Ok(socket.local_addr()?.port())
                })
                .collect::<Result<BTreeSet<_>>>()
        })?;
        flows.insert(service.name.clone(), ports.len() as u64);
        let counter = match service.address.is_ipv4() {
            true => "Udp.InDatagrams",
            false => "Udp6.InDatagrams",
        };
        let (after, client_after) = (snmp()?, topology.client.snmp()?);
        let received: Vec<_> = after
            .iter()
            .zip(&before)
            .map(|(after, before)| {
                assert_eq!(after.checksum_errors(), before.checksum_errors());
                after.since(before, counter)
            })
            .collect();
        let sizes = LARGEST as i64 + 1;
        assert_eq!(
            received.iter().sum::<i64>(),
            sizes,
            "{}: {received:?}",
            service.name
        );
        assert!(received.iter().all(|count| *count > 0), "{received:?}");
        assert_eq!(
            client_after.checksum_errors(),
            client_before.checksum_errors()
        );
        assert_eq!(client_after.since(&client_before, counter), sizes);
    }
    let status = balancer.status()?;
    for service in &status.services {
        let counters = service.counters;
        let sizes = LARGEST as u64 + 1;
        assert_eq!(
            (counters.packets, counters.reply_packets, counters.new_flows),
            (sizes, sizes, flows[&service.name]),
            "{}",
            service.name
        );
    }
    balancer.stop()
}
