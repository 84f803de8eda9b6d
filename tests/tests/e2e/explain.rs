//! `lb explain` of a balancer that runs: what it says is what happens.

use std::{
    net::IpAddr,
    os::unix::{fs::chown, process::CommandExt as _},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use lb_lab::{Balancer, TopologyOptions, http::Connection};
use serde_json::Value;

use crate::{PATIENCE, http_of_each_kind, load, programs, standard};

/// A user and a group without any rights.
const NOBODY: u32 = 65_534;

#[test]
fn what_is_told_is_what_happens() -> Result<()> {
    let (topology, _servers) = standard("explain", TopologyOptions::default())?;
    let services = http_of_each_kind(&topology);
    let balancer = Balancer::start(&topology, &programs::paths().lb, &services)?;
    let explain = |words: &str| -> Result<Value> {
        Ok(serde_json::from_str(
            &balancer.lb(&format!("explain {words} --json"))?,
        )?)
    };
    let before = balancer.lb("flows --json")?;
    for service in &services {
        let client = client_address(service.address.ip());
        let told = explain(&format!("tcp {client} {}", service.address))?;
        ensure!(
            told["fate"] == "to-backend" && told["begins_flow"] == true,
            "{told}"
        );
        ensure!(told["service"]["name"] == service.name.as_str(), "{told}");
        ensure!(
            told["backend"]["address"] == told["slot"]["owner"],
            "{told}"
        );
        ensure!(told["sent"]["interface"] == "eth1", "{told}");
        let told = explain(&format!("tcp {client} {} --ttl 1", service.address))?;
        ensure!(told["reason"] == "ttl-expired", "{told}");
    }
    ensure!(
        balancer.lb("flows --json")? == before,
        "a question has left a flow"
    );

    // A connection that is open is where it is said to be.
    for service in &services {
        let (mut connection, local) = topology.client.enter(|| -> Result<_> {
            let connection = Connection::open(service.address, PATIENCE)?;
            let local = connection.local_address()?;
            Ok((connection, local))
        })?;
        let (head, _) = topology.client.enter(|| connection.get("/", false))?;
        let told = explain(&format!("tcp {local} {} --tcp-flags ack", service.address))?;
        ensure!(told["flow"]["state"] == "established", "{told}");
        ensure!(
            told["begins_flow"] == false && told["fate"] == "to-backend",
            "{told}"
        );
        let backend = topology.backend(&head.backend)?;
        let expected = backend.ip(service.address.is_ipv4()).to_string();
        let address = told["backend"]["address"].as_str().context("an address")?;
        ensure!(address.contains(&expected), "{address}, not {expected}");
    }
    load(&topology, &services, 3)?;

    let told = explain("udp 198.51.100.2:40000 203.0.113.1:9")?;
    ensure!(
        told["fate"] == "passed" && told["service"].is_null(),
        "{told}"
    );

    // Whoever may connect to the socket may ask.
    let socket = topology.lab.directory().join("lb.sock");
    let ask = || {
        let mut command = Command::new(&programs::paths().lb);
        command
            .args(["explain", "tcp", "198.51.100.2:40000"])
            .arg(services[0].address.to_string())
            .arg("--socket")
            .arg(&socket)
            .uid(NOBODY)
            .gid(NOBODY);
        command.output()
    };
    ensure!(!ask()?.status.success(), "nobody may ask");
    chown(&socket, None, Some(NOBODY))?;
    let told = ask()?;
    ensure!(
        told.status.success(),
        "{}",
        String::from_utf8_lossy(&told.stderr)
    );
    balancer.stop()
}

/// The client's address of the same family, with a port.
fn client_address(like: IpAddr) -> &'static str {
    if like.is_ipv4() {
        "198.51.100.2:40000"
    } else {
        "[2001:db8:1::2]:40000"
    }
}
