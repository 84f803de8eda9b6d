//! Every type of health check against real servers, which die and come back.

use std::{fs, net::IpAddr, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use lb_lab::{
    Balancer, Lab, Mode, Process, Routed, RoutedOptions, Service, Topology, TopologyOptions, port,
};

use crate::{modes::Way, programs, standard};

/// Where `openssl s_server` listens.
const HTTPS: u16 = 8443;

/// A certificate for `backend.example`, and its key, in this folder.
fn make_certificate(folder: &Path) -> Result<()> {
    // It is its own authority, and none for others.
    let config = "[req]\ndistinguished_name = name\nx509_extensions = extensions\nprompt = no\n\
                  [name]\nCN = backend.example\n\
                  [extensions]\nsubjectAltName = DNS:backend.example\n\
                  basicConstraints = critical, CA:FALSE\n";
    fs::write(folder.join("openssl.conf"), config)?;
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-config", "openssl.conf"])
        .args(["-keyout", "key.pem", "-out", "certificate.pem"])
        .current_dir(folder)
        .output()
        .context("these tests need openssl")?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// An HTTPS server on a backend that is not ours.
fn start_https(topology: &Topology, backend: usize) -> Result<Process> {
    let host = &topology.backends[backend].host;
    let mut openssl = host.command("openssl");
    openssl
        .args(["s_server", "-www", "-accept", &HTTPS.to_string()])
        .args(["-cert", "certificate.pem", "-key", "key.pem"])
        .current_dir(topology.lab.directory());
    let server = host.spawn("https", openssl)?;
    server.wait_for_log("ACCEPT")?;
    Ok(server)
}

/// A service that is checked so. Which is balanced does not matter here.
fn checked(topology: &Topology, number: u16, name: &str, keys: &str) -> Service {
    let address = (Topology::VIP4, 8_000 + number).into();
    Service::http(name, topology, address, Mode::FullNat).checked_by(keys)
}

/// Waits until `balancer` has the backend `b2` in this state in all services, and `b1` up.
fn wait_for(balancer: &Balancer, services: &[Service], state: &str) -> Result<()> {
    balancer.wait_until(&format!("b2 is {state} everywhere"), |status| {
        services.iter().all(|service| {
            let backends = status.service(&service.name).map(|found| &found.backends);
            backends.is_ok_and(|backends| {
                backends.len() == 2 && backends[0].state == "up" && backends[1].state == state
            })
        })
    })?;
    Ok(())
}

#[test]
fn every_type_of_check_takes_a_dead_backend_out_and_back() -> Result<()> {
    let options = TopologyOptions {
        backends: 2,
        ..TopologyOptions::default()
    };
    let (topology, mut servers) = standard("checks", options)?;
    let folder = topology.lab.directory().to_owned();
    make_certificate(&folder)?;
    let ca = folder.join("certificate.pem");
    let ca = ca.to_str().context("the folder has a name in UTF-8")?;
    let _first = start_https(&topology, 0)?;
    let mut second = start_https(&topology, 1)?;

    let (http, echo, dns) = (port::HTTP, port::ECHO, port::DNS);
    // The shell that a check does not need makes a connection of its own here.
    let connect = "exec 3<>/dev/tcp/$LB_ADDRESS/$LB_PORT";
    let tls = format!(
        "server-name = \"backend.example\"\nca = \"{ca}\"\nbody = \"s_server\"\nport = {HTTPS}"
    );
    let services: Vec<_> = (0..)
        .zip([
            ("tcp", format!("type = \"tcp\"\nport = {http}")),
            (
                "http",
                format!(
                    "type = \"http\"\npath = \"/nowhere\"\nstatus = \"404\"\nbody = \"/bytes/N\"\n\
                     port = {http}"
                ),
            ),
            ("https", format!("type = \"https\"\n{tls}")),
            (
                "https-by-protocol",
                format!("type = \"https\"\nverify = false\nport = {HTTPS}"),
            ),
            (
                "udp",
                format!("type = \"udp\"\nsend = \"PING\"\nexpect = \"ING\"\nport = {echo}"),
            ),
            (
                "dns",
                format!(
                    "type = \"dns\"\nquery = \"www.example.org\"\nanswer = \"192.0.2.53\"\n\
                     port = {dns}"
                ),
            ),
            ("icmp", "type = \"icmp\"".to_owned()),
            (
                "exec",
                format!(
                    "type = \"exec\"\ncommand = [\"/bin/bash\", \"-c\", \"{connect}\"]\n\
                     port = {http}"
                ),
            ),
        ])
        .map(|(number, (name, keys))| checked(&topology, number, name, &keys))
        .collect();
    let balancer = Balancer::start(&topology, &programs::paths().lb, &services)?;

    let host = topology.backends[1].host.clone();
    let answers_pings = |yes: bool| {
        let ignores = if yes { "0" } else { "1" };
        host.sysctl("net/ipv4/icmp_echo_ignore_all", ignores)
    };
    // Hanging: nothing is refused, and nothing is answered. What only wants a connection
    // gets one from the kernel.
    servers[1].stop()?;
    second.stop()?;
    answers_pings(false)?;
    let (connecting, asking): (Vec<_>, Vec<_>) = services
        .iter()
        .cloned()
        .partition(|service| ["tcp", "exec"].contains(&service.name.as_str()));
    wait_for(&balancer, &asking, "down")?;
    wait_for(&balancer, &connecting, "up")?;
    servers[1].resume()?;
    second.resume()?;
    answers_pings(true)?;
    wait_for(&balancer, &services, "up")?;

    // Dead.
    servers[1].kill()?;
    second.kill()?;
    answers_pings(false)?;
    wait_for(&balancer, &services, "down")?;
    let status = balancer.status()?;
    let error = |name: &str| {
        let health = &status.service(name)?.backends[1].health;
        health.error.clone().context("a failing check says why")
    };
    for name in ["tcp", "http", "https", "udp", "dns"] {
        assert_eq!(error(name)?, "connection refused", "{name}");
    }
    assert!(error("icmp")?.starts_with("timed out after"));
    let said = error("exec")?;
    assert!(said.starts_with("exit status 1: "), "{said}");

    servers[1] = topology.backends[1].start_server(&programs::paths().server)?;
    let _second = start_https(&topology, 1)?;
    answers_pings(true)?;
    wait_for(&balancer, &services, "up")?;
    balancer.stop()
}

/// Waits until of this service `b2` is in this state, and `b1` up; of all others both are up.
fn wait_for_one(
    balancer: &Balancer,
    services: &[Service],
    address: IpAddr,
    state: &str,
) -> Result<()> {
    balancer.wait_until(&format!("b2 without {address} is {state}"), |status| {
        services.iter().all(|service| {
            let expected = match service.address.ip() == address {
                true => state,
                false => "up",
            };
            status.service(&service.name).is_ok_and(|service| {
                let states: Vec<_> = service.backends.iter().map(|b| &*b.state).collect();
                states == ["up", expected]
            })
        })
    })?;
    Ok(())
}

/// In these modes a check goes to the service address on the backend, as a client's packets
/// do: what is missing there of what clients need takes it out of service.
fn what_clients_need_is_checked(name: &str, mode: Mode) -> Result<()> {
    let options = RoutedOptions {
        backends: 2,
        ..RoutedOptions::new(mode, 1_500)
    };
    let routed = Routed::new(Lab::new(name)?, options)?;
    let paths = programs::paths();
    let topology = &routed.topology;
    let _servers = topology.start_servers(&paths.server)?;
    let mut unwrapping = routed.unwrap_tunnels(&paths.lb)?;
    let services: Vec<_> = Way::of(mode)
        .into_iter()
        .map(|way| Service {
            crossed: way.crossed,
            ..Service::http(
                &format!("http-{way}"),
                topology,
                (way.vip(), port::HTTP).into(),
                mode,
            )
        })
        .collect();
    let balancer = Balancer::start(topology, &paths.lb, &services)?;

    let host = &topology.backends[1].host;
    for service in &services {
        let address = service.address.ip();
        let (length, flags) = match address {
            IpAddr::V4(_) => (32, ""),
            IpAddr::V6(_) => (128, "nodad"),
        };
        host.ip(&format!("address del {address}/{length} dev lo"))?;
        wait_for_one(&balancer, &services, address, "down")?;
        host.ip(&format!("address add {address}/{length} dev lo {flags}"))?;
        wait_for_one(&balancer, &services, address, "up")?;
    }

    // Without unwrapping nothing arrives, whatever the service.
    if let Some(decap) = unwrapping.get_mut(1) {
        decap.terminate()?;
        wait_for(&balancer, &services, "down")?;
    }
    // What the checks send is no client's.
    let status = balancer.status()?;
    for service in &status.services {
        let counted = service.counters.plus(Default::default());
        assert_eq!((counted.packets, counted.reply_packets), (0, 0));
    }
    balancer.stop()
}

#[test]
fn a_backend_without_the_service_address_is_down_with_dsr() -> Result<()> {
    what_clients_need_is_checked("check-dsr", Mode::Dsr)
}

#[test]
fn a_backend_without_the_service_address_or_unwrapping_is_down_with_ipip() -> Result<()> {
    what_clients_need_is_checked("check-ipip", Mode::Ipip)
}

#[test]
fn a_backend_without_the_service_address_or_unwrapping_is_down_with_gue() -> Result<()> {
    what_clients_need_is_checked("check-gue", Mode::Gue)
}
