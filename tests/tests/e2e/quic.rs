//! Real QUIC: a client that comes from another address and port in the middle of a transfer
//! keeps its backend, because its packets name it.

mod peer;

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use lb_lab::{Balancer, Lab, Mode, Process, Routed, RoutedOptions, Service, Status};
use tokio::runtime::Runtime;

use self::peer::{Answer, Identity, bind, connect};
use crate::{modes::Way, programs};

/// Where servers listen.
const PORT: u16 = 4_433;
/// What is transferred, in bytes.
const LENGTH: u64 = 4 * 1_024 * 1_024;
/// Silence after which a connection is lost that is to go on.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same where it is to be lost.
const IMPATIENCE: Duration = Duration::from_secs(5);
/// Places of the client that are tried until the ring sends one of them elsewhere.
const PLACES: u16 = 200;

/// A lab with a QUIC server on each of three backends.
struct Site {
    routed: Routed,
    balancer: Balancer,
    identity: Identity,
    idle: Duration,
    runtime: Runtime,
    _servers: Vec<Process>,
}

impl Site {
    /// Makes it, with a service on the address of each family that has these keys. Backends
    /// have server IDs if these are `named`.
    fn new(name: &str, mode: Mode, keys: &[&str], is_named: bool, idle: Duration) -> Result<Self> {
        let options = RoutedOptions {
            backends: 3,
            ..RoutedOptions::new(mode, 1_500)
        };
        let routed = Routed::new(Lab::new(name)?, options)?;
        let topology = &routed.topology;
        let paths = programs::paths();
        let mut processes = topology.start_servers(&paths.server)?;
        processes.extend(routed.unwrap_tunnels(&paths.lb)?);
        for (v4, other) in [(true, "198.51.100.3/24"), (false, "2001:db8:1::3/64")] {
            let nodad = if v4 { "" } else { "nodad" };
            let add = format!("address add {other} dev eth0 {nodad}");
            topology.client.ip(&add)?;
        }

        let runtime = Runtime::new()?;
        let identity = Identity::new()?;
        let in_runtime = runtime.enter();
        for (number, backend) in (0..).zip(&topology.backends) {
            for way in Way::STRAIGHT {
                let ip = match mode.replies_direct() {
                    true => way.vip(),
                    false => backend.ip(way.v4),
                };
                let address = SocketAddr::new(ip, PORT);
                identity.serve(&backend.host, address, &server_id(number), idle)?;
            }
        }
        drop(in_runtime);

        let services = Way::STRAIGHT.map(|way| {
            let address = SocketAddr::new(way.vip(), PORT);
            let mut service = Service::udp(&way.to_string(), topology, address, mode, PORT);
            // Nothing here is about health.
            service.health.fall = 100;
            if is_named {
                service.backend_keys = (0..3)
                    .map(|number| format!("server-id = \"{}\"", hex(&server_id(number))))
                    .collect();
            }
            keys.iter().fold(service, |service, key| service.key(key))
        });
        let balancer = Balancer::start(topology, &paths.lb, &services)?;
        Ok(Self {
            routed,
            balancer,
            identity,
            idle,
            runtime,
            _servers: processes,
        })
    }

    /// A socket of the client.
    fn socket(&self, ip: IpAddr, port: u16) -> Result<UdpSocket> {
        bind(&self.routed.topology.client, SocketAddr::new(ip, port))
    }

    /// A socket at the client's other address that the ring sends to another backend than
    /// `name`, which has talked to it.
    async fn elsewhere(&self, way: Way, name: &str) -> Result<UdpSocket> {
        let other = way.of_family([
            IpAddr::from([198, 51, 100, 3]),
            IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, 3]),
        ]);
        for port in (50_000..).take(PLACES.into()) {
            let socket = self.socket(other, port)?;
            let endpoint = self.identity.client(socket.try_clone()?, self.idle)?;
            let connection = connect(&endpoint, service(way)).await?;
            let answer = Answer::to(&connection, 0).await?;
            connection.close(0_u32.into(), b"");
            endpoint.wait_idle().await;
            if answer.name != name {
                return Ok(socket);
            }
        }
        bail!("all places are sent to `{name}`");
    }

    /// Transfers [`LENGTH`] bytes, with a change of the client's address and port in the
    /// middle. Returns where the server has seen the client before and after.
    async fn migrate(&self, way: Way) -> Result<(SocketAddr, SocketAddr)> {
        let first = way.of_family([
            IpAddr::from([198, 51, 100, 2]),
            IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, 2]),
        ]);
        let endpoint = self.identity.client(self.socket(first, 0)?, self.idle)?;
        let connection = connect(&endpoint, service(way)).await?;
        let mut answer = Answer::to(&connection, LENGTH).await?;
        answer.read_to(LENGTH / 2).await?;
        let other = self.elsewhere(way, &answer.name).await?;
        endpoint.rebind(other)?;
        answer.read_to(LENGTH).await?;
        let again = Answer::to(&connection, 0).await?;
        ensure!(again.name == answer.name, "{} answers now", again.name);
        connection.close(0_u32.into(), b"");
        endpoint.wait_idle().await;
        Ok((answer.seen, again.seen))
    }

    /// Checks that the transfer goes on, and that its server has seen the client move.
    fn check(&self, way: Way) -> Result<()> {
        let migration = self.runtime.block_on(self.migrate(way));
        let (before, after) = migration.with_context(|| way.to_string())?;
        ensure!(before != after, "{way}: the server has seen no migration");
        // It sees the client's address where that is not translated.
        let is_full_nat = self.routed.options.mode == Mode::FullNat;
        ensure!(is_full_nat || before.ip() != after.ip(), "{way}: {before}");
        Ok(())
    }
}

/// Where clients find the service.
fn service(way: Way) -> SocketAddr {
    SocketAddr::new(way.vip(), PORT)
}

/// The server ID of a backend.
fn server_id(number: u8) -> [u8; 4] {
    [0xc0, 0xff, 0xee, number]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A client that migrates keeps its backend, in this mode and both families.
fn keeps(name: &str, mode: Mode, keys: &[&str]) -> Result<()> {
    let keys = [&["quic = { server-id-length = 4 }"][..], keys].concat();
    let site = Site::new(name, mode, &keys, true, PATIENCE)?;
    for way in Way::STRAIGHT {
        site.check(way)?;
    }
    let status = site.balancer.status()?;
    let dropped = status.drops.values().any(|packets| *packets != 0);
    assert!(!dropped, "{:?}", status.drops);
    site.balancer.stop()
}

#[test]
fn a_client_that_migrates_keeps_its_backend_in_full_nat() -> Result<()> {
    keeps("quic-full-nat", Mode::FullNat, &[])
}

#[test]
fn a_client_that_migrates_keeps_its_backend_in_nat() -> Result<()> {
    keeps("quic-nat", Mode::Nat, &[])
}

#[test]
fn a_client_that_migrates_keeps_its_backend_in_dsr() -> Result<()> {
    keeps("quic-dsr", Mode::Dsr, &[])
}

#[test]
fn a_client_that_migrates_keeps_its_backend_without_entries() -> Result<()> {
    keeps("quic-untracked", Mode::Dsr, &["track = \"none\""])
}

#[test]
fn a_client_that_migrates_keeps_its_backend_in_ipip() -> Result<()> {
    keeps("quic-ipip", Mode::Ipip, &["track = \"none\""])
}

#[test]
fn a_client_that_migrates_keeps_its_backend_in_gue() -> Result<()> {
    keeps("quic-gue", Mode::Gue, &[])
}

/// The datapath names backends also while no daemon runs, and the next one lets it.
#[test]
fn a_client_that_migrates_keeps_its_backend_after_a_restart() -> Result<()> {
    let keys = ["quic = { server-id-length = 4 }", "track = \"none\""];
    let mut site = Site::new("quic-restart", Mode::Dsr, &keys, true, PATIENCE)?;
    let [v4, v6] = Way::STRAIGHT;
    site.balancer.end()?;
    site.check(v4)?;
    site.balancer.start_again()?;
    site.balancer
        .wait_until("all backends are well", Status::is_all_well)?;
    site.check(v6)?;
    site.balancer.stop()
}

/// Without server IDs the same transfer breaks.
#[test]
fn a_client_that_migrates_loses_its_backend_where_nothing_names_it() -> Result<()> {
    for (name, mode) in [("quic-no-nat", Mode::FullNat), ("quic-no-dsr", Mode::Dsr)] {
        let site = Site::new(name, mode, &[], false, IMPATIENCE)?;
        let broken = site.runtime.block_on(site.migrate(Way::STRAIGHT[0]));
        let error = broken.expect_err("another backend cannot know the connection");
        assert!(format!("{error:#}").contains("timed out"), "{error:#}");
        site.balancer.stop()?;
    }
    Ok(())
}
