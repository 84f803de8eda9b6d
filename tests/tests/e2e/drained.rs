//! Drains with a deadline: connections that are left then are kept or reset, and real kernels
//! take it so.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::linux::net::TcpStreamExt as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_lab::{
    Balancer, Capture, Lab, Mode, Packets, Process, Routed, RoutedOptions, Service, Topology,
};

use crate::{PATIENCE, programs};

/// Port of the listeners of these tests.
const PORT: u16 = 9_100;
/// Connections that each backend has of a service.
const EACH: usize = 6;
/// Bytes that are on their way at most: more than any socket buffers.
const STREAM: usize = 64 << 20;

/// A lab of one mode with a service on IPv4 and one on IPv6, and listeners on both backends.
struct Scene {
    balancer: Balancer,
    services: Vec<Service>,
    /// By backend.
    listeners: Vec<TcpListener>,
    _servers: Vec<Process>,
    routed: Routed,
}

/// Both ends of a connection.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Scene {
    fn new(mode: Mode) -> Result<Self> {
        let lab = Lab::new(&format!("reset-{mode}"))?;
        let routed = Routed::new(lab, RoutedOptions::new(mode, 1_500))?;
        let topology = &routed.topology;
        let paths = programs::paths();
        // They answer the checks.
        let mut servers = topology.start_servers(&paths.server)?;
        servers.extend(routed.unwrap_tunnels(&paths.lb)?);
        let listen = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT));
        let listeners = topology.backends.iter().map(|backend| {
            let listener = backend.host.enter(listen)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        let listeners = listeners.collect::<Result<Vec<_>>>()?;
        let port = if mode.replies_direct() { PORT } else { 80 };
        let service = |name, ip: IpAddr| {
            let address = SocketAddr::new(ip, port);
            let mut service = Service::http(name, topology, address, mode);
            service.backend_port = PORT;
            service.health.fall = 100;
            // A small ring changes fast.
            service.key("ring-size = 1009")
        };
        let services = vec![
            service("v4", Topology::VIP4.into()),
            service("v6", Topology::VIP6.into()),
        ];
        let balancer = Balancer::start(topology, &paths.lb, &services)?;
        Ok(Self {
            balancer,
            services,
            listeners,
            _servers: servers,
            routed,
        })
    }

    /// A connection, and which backend has it.
    fn connect(&self, service: &Service) -> Result<(usize, Connection)> {
        let connect = || TcpStream::connect_timeout(&service.address, PATIENCE);
        let client = self.routed.topology.client.enter(connect)?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.set_nodelay(true)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            for (index, listener) in self.listeners.iter().enumerate() {
                match listener.accept() {
                    Ok((server, _)) => {
                        server.set_nonblocking(false)?;
                        server.set_read_timeout(Some(PATIENCE))?;
                        server.set_nodelay(true)?;
                        let mut connection = Connection { client, server };
                        connection.talk()?;
                        return Ok((index, connection));
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
            ensure!(Instant::now() < deadline, "nobody accepts");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Connections to a service, so many of each backend.
    fn connections(&self, service: &Service) -> Result<[Vec<Connection>; 2]> {
        let mut found = [Vec::new(), Vec::new()];
        // The chance that it takes more is one in many millions.
        for _ in 0..200 {
            let (backend, connection) = self.connect(service)?;
            if found[backend].len() < EACH {
                found[backend].push(connection);
            }
            if found.iter().all(|of_backend| of_backend.len() == EACH) {
                return Ok(found);
            }
        }
        bail!("a backend of {} gets no connections", service.name)
    }

    /// Calls `lb backend WHAT` with the first backend of a service, and more words.
    fn backend(&self, service: &Service, what: &str, more: &str) -> Result<()> {
        let address = self.first(service);
        let words = format!("backend {what} {} {address} {more}", service.name);
        self.balancer.lb(&words).map(drop)
    }

    fn first(&self, service: &Service) -> SocketAddr {
        let backend = &self.routed.topology.backends[0];
        backend.address(service.address.ip(), service.backend_port)
    }

    /// Waits until the drain of the first backend is in a phase. Returns the flows that are
    /// left.
    fn wait_for_phase(&self, service: &Service, phase: &str) -> Result<u64> {
        let mut left = 0;
        self.balancer
            .wait_until(&format!("the drain is `{phase}`"), |status| {
                let service_status = status.service(&service.name);
                let backend = service_status.and_then(|status| status.backend(self.first(service)));
                let drain = backend.ok().and_then(|backend| backend.drain.clone());
                drain.is_some_and(|drain| {
                    left = drain.flows_left;
                    drain.phase == phase
                })
            })?;
        Ok(left)
    }

    /// Captures on both ends.
    fn capture(&self) -> Result<[Capture; 2]> {
        let Topology {
            client, backends, ..
        } = &self.routed.topology;
        let capture = |host: &lb_lab::Host| host.capture("eth0", "reset", 200_000);
        Ok([capture(client)?, capture(&backends[0].host)?])
    }
}

impl Connection {
    /// A word to and fro.
    fn talk(&mut self) -> Result<()> {
        let mut word = [0; 4];
        self.client.write_all(b"ping")?;
        self.server.read_exact(&mut word)?;
        self.server.write_all(b"pong")?;
        self.client.read_exact(&mut word)?;
        // It acknowledges the word now, not when this flow may be one that is reset.
        self.client.set_quickack(true)?;
        ensure!(&word == b"pong", "{word:?}");
        Ok(())
    }
}

/// Reads until the connection is reset.
fn reset(name: &str, stream: &mut TcpStream) -> Result<()> {
    let mut buffer = vec![0; 65_536];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => bail!("{name}: the connection is closed"),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("{name} is not reset")),
        }
    }
}

/// Writes until that fails, and says how.
fn pour(stream: &TcpStream) -> Result<thread::JoinHandle<ErrorKind>> {
    let mut stream = stream.try_clone()?;
    Ok(thread::spawn(move || {
        let chunk = vec![7; 65_536];
        let written = (0..STREAM / chunk.len()).try_for_each(|_| stream.write_all(&chunk));
        written.map_or_else(|error| error.kind(), |()| ErrorKind::Other)
    }))
}

/// A drain from its begin to its end, for one service.
fn drain(scene: &Scene, service: &Service, mode: Mode) -> Result<()> {
    let translates = !mode.replies_direct();
    let [mut drained, mut others] = scene.connections(service)?;
    let talk_all =
        |connections: &mut [Connection]| connections.iter_mut().try_for_each(Connection::talk);
    // Time that has passed does not count against those that are kept.
    scene.backend(service, "drain", "--deadline 1ms")?;
    scene.wait_for_phase(service, "over")?;
    talk_all(&mut drained)?;
    scene.backend(service, "drain", "--deadline 1h --on-deadline reset")?;
    let left = scene.wait_for_phase(service, "draining")?;
    ensure!(!translates || left == EACH as u64, "{left} flows are left");
    talk_all(&mut drained)?;
    for _ in 0..10 {
        let (backend, _) = scene.connect(service)?;
        ensure!(backend == 1, "a drained backend gets a connection");
    }

    let [down, up, silent, by_client, by_backend, asks] = &mut drained[..] else {
        bail!("there are {EACH} connections");
    };
    let (mut reader, mut taker) = (down.client.try_clone()?, up.server.try_clone()?);
    // Both ways, with data in flight.
    let poured = [pour(&down.server)?, pour(&up.client)?];
    for stream in [&mut reader, &mut taker] {
        let mut some = vec![0; 1 << 20];
        stream.read_exact(&mut some)?;
    }
    scene.backend(service, "drain", "--deadline 1ms --on-deadline reset")?;
    scene.wait_for_phase(service, "resetting")?;

    reset("who downloads", &mut reader)?;
    for (name, poured) in ["who serves a download", "who uploads"].iter().zip(poured) {
        let kind = poured.join().expect("a thread that writes");
        // A write after the first error finds no connection.
        let is_reset = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&kind);
        ensure!(is_reset, "{name}: {kind:?}");
    }
    if translates {
        reset("who takes an upload", &mut taker)?;
    }

    by_client.client.write_all(b"ping")?;
    reset("a client that writes", &mut by_client.client)?;
    if translates {
        reset("a server whose client writes", &mut by_client.server)?;
    }
    by_backend.server.write_all(b"pong")?;
    reset("a client whose server writes", &mut by_backend.client)?;
    if translates {
        reset("a server that writes", &mut by_backend.server)?;
    }
    // Nothing else tells a server without translation than its client's kernel.
    asks.server.write_all(b"pong")?;
    reset("a server that asks", &mut asks.server)?;

    talk_all(&mut others)?;
    let (backend, mut connection) = scene.connect(service)?;
    ensure!(backend == 1, "a drained backend gets a connection");
    connection.talk()?;
    let drops = scene.balancer.status()?.drops;
    ensure!(drops["drained"] >= 4, "{drops:?}");

    scene.backend(service, "undrain", "")?;
    // Whoever has kept silent knows of nothing.
    silent.talk()?;
    talk_all(&mut others)?;
    scene.connections(service)?;
    Ok(())
}

fn reset_in(mode: Mode) -> Result<()> {
    let scene = Scene::new(mode)?;
    let captures = scene.capture()?;
    for service in &scene.services {
        drain(&scene, service, mode).with_context(|| format!("{mode} {}", service.name))?;
    }
    for capture in captures {
        let packets: Packets = capture.finish()?;
        packets.check()?;
        ensure!(packets.count("tcp.flags.reset == 1")? > 0, "no RST is seen");
    }
    scene.balancer.stop()
}

#[test]
fn connections_by_full_nat_are_reset_at_both_ends() -> Result<()> {
    reset_in(Mode::FullNat)
}

#[test]
fn connections_by_nat_are_reset_at_both_ends() -> Result<()> {
    reset_in(Mode::Nat)
}

#[test]
fn connections_without_translation_are_reset_at_the_client() -> Result<()> {
    reset_in(Mode::Dsr)
}

#[test]
fn connections_by_tunnels_are_reset_at_the_client() -> Result<()> {
    reset_in(Mode::Ipip)?;
    reset_in(Mode::Gue)
}
