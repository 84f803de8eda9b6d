//! `lb decap` on a backend: tunnels that the test makes end there, and a real server
//! answers the client directly.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_lab::{Backend, Host, Process, SERVER_READY, Topology, TopologyOptions, pattern, port, udp};
use lb_tests::{Form, Packet, Tunnel};
use lb_userspace::decap::Status;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto,
    socket,
};

use crate::{PATIENCE, programs, standard};

/// How often the status is asked for while something is to come true.
const POLL: Duration = Duration::from_millis(10);

/// `lb decap` on a backend.
struct Decap {
    process: Process,
    host: Host,
    socket: PathBuf,
}

impl Decap {
    /// Starts it for both VIPs.
    fn start(topology: &Topology, backend: &Backend, words: &str) -> Result<Self> {
        let socket = topology.lab.directory().join("decap.sock");
        let mut command = backend.host.command(&programs::paths().lb);
        command
            .args(["decap", "--interface", "eth0"])
            .args(["--vip", &Topology::VIP4.to_string()])
            .args(["--vip", &Topology::VIP6.to_string()])
            .args(words.split_whitespace())
            .arg("--socket")
            .arg(&socket);
        let process = backend.host.spawn("decap", command)?;
        process.wait_for_log("attached")?;
        let decap = Self {
            process,
            host: backend.host.clone(),
            socket,
        };
        decap.wait_until("it answers", |_| true)?;
        Ok(decap)
    }

    /// Runs `lb decap status` with these words.
    fn show(&self, words: &str) -> Result<String> {
        let mut command: Command = self.host.command(&programs::paths().lb);
        command
            .args(["decap", "status"])
            .args(words.split_whitespace())
            .arg("--socket")
            .arg(&self.socket);
        let output = command.output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`lb decap status`: {stderr}");
        Ok(String::from_utf8(output.stdout)?)
    }

    fn wait_until(&self, what: &str, condition: impl Fn(&Status) -> bool) -> Result<Status> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self
                .show("--json")
                .and_then(|json| Ok(serde_json::from_str::<Status>(&json)?));
            match status {
                Ok(status) if condition(&status) => return Ok(status),
                status if Instant::now() > deadline => {
                    return Err(status.err().unwrap_or_else(|| anyhow::anyhow!("it is not")))
                        .context(format!("{what}; the log:\n{}", self.process.log()));
                }
                _ => thread::sleep(POLL),
            }
        }
    }

    /// Ends it in order.
    fn stop(mut self) -> Result<()> {
        let status = self.process.terminate()?;
        ensure!(status.success(), "{status}: {}", self.process.log());
        Ok(())
    }
}

/// A socket that sends packets with their IP headers as they are given.
struct Raw(OwnedFd, OwnedFd);

impl Raw {
    fn open(host: &Host) -> Result<Self> {
        let open = |family| {
            socket(
                family,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::Raw,
            )
        };
        host.enter(|| {
            Ok(Self(
                open(AddressFamily::Inet)?,
                open(AddressFamily::Inet6)?,
            ))
        })
    }

    fn send(&self, tunnel: &Tunnel) -> Result<()> {
        let packet = tunnel.packet();
        let flags = MsgFlags::empty();
        let sent = match tunnel.dst {
            IpAddr::V4(dst) => {
                let to = SockaddrIn::from(SocketAddrV4::new(dst, 0));
                sendto(self.0.as_raw_fd(), &packet, &to, flags)
            }
            IpAddr::V6(dst) => {
                let to = SockaddrIn6::from(SocketAddrV6::new(dst, 0, 0, 0));
                sendto(self.1.as_raw_fd(), &packet, &to, flags)
            }
        };
        ensure!(sent? == packet.len());
        Ok(())
    }
}

/// A backend with the VIPs and a server on them, and what else a test of it needs.
struct Scene {
    topology: Topology,
    _servers: Vec<Process>,
    raw: Raw,
}

impl Scene {
    fn new(name: &str, options: TopologyOptions) -> Result<Self> {
        let (topology, mut servers) = standard(name, options)?;
        let backend = &topology.backends[0];
        // The server can bind it at once, without duplicate address detection.
        let (v4, v6) = (Topology::VIP4, Topology::VIP6);
        for vip in [format!("{v4}/32"), format!("{v6}/128 nodad")] {
            backend.host.ip(&format!("address add dev lo {vip}"))?;
        }
        let mut command = backend.host.command(&programs::paths().server);
        command
            .args(["--name", "vip"])
            .args(["--address", &Topology::VIP4.to_string()])
            .args(["--address", &Topology::VIP6.to_string()]);
        let server = backend.host.spawn("vip-server", command)?;
        server.wait_for_log(SERVER_READY)?;
        servers.push(server);
        let raw = Raw::open(&topology.lb)?;
        Ok(Self {
            topology,
            _servers: servers,
            raw,
        })
    }

    /// A socket of the client's, which hears the VIP alone, and its address.
    fn client(&self, ipv6: bool) -> Result<(std::net::UdpSocket, SocketAddr)> {
        let socket = self
            .topology
            .client
            .enter(|| udp::connect(vip(ipv6), PATIENCE))?;
        let address = socket.local_addr()?;
        Ok((socket, address))
    }
}

fn vip(ipv6: bool) -> SocketAddr {
    let ip = if ipv6 {
        IpAddr::from(Topology::VIP6)
    } else {
        Topology::VIP4.into()
    };
    SocketAddr::new(ip, port::ECHO)
}

/// The answer that comes to the client.
fn answer(socket: &std::net::UdpSocket) -> Result<Vec<u8>> {
    let mut answer = vec![0; 65_536];
    let length = socket.recv(&mut answer).context("no answer")?;
    answer.truncate(length);
    Ok(answer)
}

#[test]
fn a_server_on_the_vip_answers_what_comes_in_tunnels() -> Result<()> {
    let scene = Scene::new("decap", TopologyOptions::default())?;
    let backend = &scene.topology.backends[0];
    let decap = Decap::start(&scene.topology, backend, "")?;
    let payload = pattern::bytes(1_300);
    let mut sent = [(0, 0); 2];
    for form in Form::ALL {
        for outer in [false, true] {
            for inner in [false, true] {
                let (socket, client) = scene.client(inner)?;
                for size in [0, 1, 40, payload.len()] {
                    let packet = Packet::udp(client, vip(inner)).with_payload(&payload[..size]);
                    let tunnel = Tunnel::new(form, outer, &packet);
                    // A source that is not allowed is not heard: what comes back is the
                    // answer to the next one.
                    let lie = Packet::udp(client, vip(inner)).with_payload("lie");
                    let lie = Tunnel::new(form, outer, &lie).with(|tunnel| {
                        tunnel.src = match outer {
                            false => "198.51.100.1".parse().expect("an address"),
                            true => "2001:db8:1::1".parse().expect("an address"),
                        };
                    });
                    scene.raw.send(&lie)?;
                    scene.raw.send(&tunnel)?;
                    let what = format!("{form:?}, outer IPv6 {outer}, inner IPv6 {inner}");
                    ensure!(answer(&socket).context(what)? == payload[..size]);
                    let (packets, bytes) = &mut sent[usize::from(inner)];
                    *packets += 1;
                    *bytes += tunnel.inner.len() as u64;
                }
            }
        }
    }
    let status = decap.wait_until("it answers", |_| true)?;
    let counted: Vec<_> = status
        .vips
        .iter()
        .map(|vip| (vip.packets, vip.bytes))
        .collect();
    assert_eq!(counted, sent);
    assert!(status.vips.iter().all(|vip| vip.local));
    let all = sent[0].0 + sent[1].0;
    assert_eq!(status.drops["tunnel-source"], all);
    assert_eq!(status.drops.values().sum::<u64>(), all);
    assert_eq!(status.passed.values().sum::<u64>(), 0);
    assert_eq!(status.interfaces[0].mode, "native");
    let table = decap.show("")?;
    assert!(table.contains("192.0.2.10"), "{table}");
    assert!(table.contains("drops       tunnel-source 48"), "{table}");

    assert!(backend.host.ip("link show dev eth0")?.contains("xdp"));
    decap.stop()?;
    let link = backend.host.ip("link show dev eth0")?;
    assert!(!link.contains("xdp"), "{link}");
    Ok(())
}

/// Jumbo frames, which a driver hands to XDP in several buffers, and the generic hook.
#[test]
fn jumbo_frames_arrive_whole_in_both_modes() -> Result<()> {
    let options = TopologyOptions {
        backends: 1,
        mtu: 1_500,
    };
    let scene = Scene::new("decap-jumbo", options)?;
    let backend = &scene.topology.backends[0];
    let payload = pattern::bytes(8_500);
    // The lab's own programs do not take larger frames; here nothing needs them.
    for (host, device) in [
        (&scene.topology.client, "eth0"),
        (&scene.topology.switch, "lb"),
    ] {
        host.ip(&format!("link set dev {device} xdp off"))?;
    }
    for mode in ["native", "generic"] {
        let decap = Decap::start(&scene.topology, backend, &format!("--xdp-mode {mode}"))?;
        assert_eq!(
            decap.wait_until("it answers", |_| true)?.interfaces[0].mode,
            mode
        );
        // Larger than a veth allows a program that takes no buffers but the first.
        for (host, device) in [
            (&scene.topology.client, "eth0"),
            (&scene.topology.lb, "eth0"),
            (&scene.topology.lb, "eth1"),
            (&scene.topology.switch, "lb"),
            (&scene.topology.switch, "br0"),
            (&scene.topology.switch, "b1"),
            (&backend.host, "eth0"),
        ] {
            host.ip(&format!("link set dev {device} mtu 9000"))
                .with_context(|| format!("{device} of {}", host.name()))?;
        }
        for form in Form::ALL {
            for inner in [false, true] {
                let (socket, client) = scene.client(inner)?;
                let packet = Packet::udp(client, vip(inner)).with_payload(&payload[..]);
                scene.raw.send(&Tunnel::new(form, inner, &packet))?;
                let what = || format!("{mode}: {form:?}, IPv6 {inner}");
                ensure!(answer(&socket).with_context(what)? == payload);
            }
        }
        decap.stop()?;
    }
    Ok(())
}

/// Where tunnels end follows the addresses of the interface; a VIP that the host would
/// not take is warned of.
#[test]
fn addresses_are_followed_and_missing_vips_told() -> Result<()> {
    let scene = Scene::new("decap-addresses", TopologyOptions::default())?;
    let backend = &scene.topology.backends[0];
    backend
        .host
        .ip(&format!("address del {}/32 dev lo", Topology::VIP4))?;
    backend.host.ip("address add 203.0.113.10/32 dev lo")?;
    let decap = Decap::start(&scene.topology, backend, "--vip 203.0.113.0/24")?;
    for warning in [
        "`ip address add 192.0.2.10/32 dev lo` makes it one",
        "only a part of 203.0.113.0/24 is this host's",
    ] {
        decap.process.wait_for_log(warning)?;
    }
    let status = decap.wait_until("it answers", |_| true)?;
    let is_local = status.vips.iter().map(|vip| (vip.local, vip.partly_local));
    assert_eq!(
        is_local.collect::<Vec<_>>(),
        [(false, false), (false, true), (true, false)]
    );

    let has = |address: &'static str| {
        move |status: &Status| status.locals.iter().any(|local| local == address)
    };
    backend.host.ip("address add 10.9.0.77/16 dev eth0")?;
    let status = decap.wait_until("the new address is known", has("10.9.0.77"))?;
    let prefixes: Vec<_> = status
        .sources
        .iter()
        .map(|source| &*source.prefix)
        .collect();
    assert!(prefixes.contains(&"10.9.0.0/16"), "{prefixes:?}");

    let (socket, client) = scene.client(true)?;
    let to_new = |payload: &str| {
        let packet = Packet::udp(client, vip(true)).with_payload(payload);
        Tunnel::new(Form::Ipip, false, &packet)
            .with(|tunnel| tunnel.dst = "10.9.0.77".parse().expect("an address"))
    };
    scene.topology.lb.ip("route add 10.9.0.77 dev eth1")?;
    scene.raw.send(&to_new("new"))?;
    assert_eq!(answer(&socket)?, b"new");

    backend.host.ip("address del 10.9.0.77/16 dev eth0")?;
    let status = decap.wait_until("the address is forgotten", |status| {
        !has("10.9.0.77")(status)
    })?;
    let prefixes: Vec<_> = status
        .sources
        .iter()
        .map(|source| &*source.prefix)
        .collect();
    assert!(!prefixes.contains(&"10.9.0.0/16"), "{prefixes:?}");
    decap.stop()
}
