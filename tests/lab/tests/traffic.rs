//! The servers, the clients and the faults, without a balancer between them.

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use lb_lab::{Lab, Load, Process, Topology, TopologyOptions, http, pattern, port, udp};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

const SERVER: &str = env!("CARGO_BIN_EXE_lab-server");
/// Long enough for a loaded machine; only a failed test waits for it.
const PATIENCE: Duration = Duration::from_secs(10);
/// For answers that must not come.
const BRIEF: Duration = Duration::from_millis(200);

fn standard(name: &str) -> Result<(Topology, Vec<Process>)> {
    let topology = Topology::standard(Lab::new(name)?, TopologyOptions::default())?;
    let servers = topology.start_servers(Path::new(SERVER))?;
    Ok((topology, servers))
}

/// Both addresses of the first backend.
fn addresses(topology: &Topology, port: u16) -> [SocketAddr; 2] {
    let backend = &topology.backends[0];
    [(backend.v4, port).into(), (backend.v6, port).into()]
}

#[test]
fn http_tells_who_answered_and_who_asked() -> Result<()> {
    let (topology, _servers) = standard("http")?;
    let own: [IpAddr; 2] = ["198.51.100.2".parse()?, "2001:db8:1::2".parse()?];
    for (server, own) in addresses(&topology, port::HTTP).into_iter().zip(own) {
        topology.client.enter(|| -> Result<()> {
            let mut connection = http::Connection::open(server, PATIENCE)?;
            let local = connection.local_address()?;
            for last in [false, false, true] {
                let (head, body) = connection.get("/", last)?;
                assert_eq!(
                    (head.status, &*head.backend, &*body),
                    (200, "b1", &b"b1\n"[..])
                );
                assert_eq!((head.client, head.client.ip()), (local, own));
            }
            assert!(connection.get("/", true).is_err(), "it was to be closed");

            let (head, body) = http::get(server, "/bytes/100000", PATIENCE)?;
            assert_eq!(head.length, 100_000);
            assert_eq!(body, pattern::bytes(100_000));
            http::get(server, "/healthz", PATIENCE)?;
            let error = http::get(server, "/nothing", PATIENCE).unwrap_err();
            assert!(error.to_string().contains("404"), "{error:#}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_load_counts_every_request_and_every_error() -> Result<()> {
    let (topology, mut servers) = standard("load")?;
    let server = addresses(&topology, port::HTTP)[0];
    let load = Load {
        per_connection: 3,
        ..Load::new(server, 100)
    };
    let report = topology.client.enter(|| load.run());
    let report = report.into_result()?;
    assert_eq!(report.requests, 100);
    // 33 connections of three requests, and one of one.
    assert_eq!(report.connections.get("b1"), Some(&34));
    assert_eq!(report.share("b1"), 1.0);
    assert_eq!(report.share("b2"), 0.0);

    servers[0].kill()?;
    let report = topology.client.enter(|| load.run());
    assert_eq!((report.requests, report.errors.len()), (0, 34));
    assert!(
        report.errors[0].text.contains("10.0.0.11:8080"),
        "{report:?}"
    );
    Ok(())
}

#[test]
fn load_in_the_background_ends_when_it_is_told() -> Result<()> {
    let (topology, _servers) = standard("background")?;
    let load = Load::new(addresses(&topology, port::HTTP)[0], u64::MAX);
    let background = topology.client.background(move |stop| load.run_until(stop));
    // Its end does not come by itself.
    let once = Load::new(addresses(&topology, port::HTTP)[1], 50);
    topology.client.enter(|| once.run()).into_result()?;
    assert!(!background.is_finished());
    let report = background.finish().into_result()?;
    assert!(report.requests > 0);
    Ok(())
}

#[test]
fn a_transfer_lives_through_a_stopped_server_and_not_through_a_killed_one() -> Result<()> {
    let (topology, mut servers) = standard("transfer")?;
    let server = addresses(&topology, port::HTTP)[0];
    let begin = || {
        let begin = || http::Transfer::begin(server, 300_000, 1_000_000, PATIENCE);
        topology.client.enter(begin)
    };
    let transfer = begin()?;
    assert_eq!(transfer.backend(), "b1");
    servers[0].stop()?;
    // It accepts (its kernel does) and never answers.
    let error = topology.client.enter(|| http::get(server, "/", BRIEF));
    assert!(format!("{:#}", error.unwrap_err()).contains("no good answer"));
    servers[0].resume()?;
    transfer.finish()?;

    let transfer = begin()?;
    servers[0].kill()?;
    assert!(format!("{:#}", transfer.finish().unwrap_err()).contains("at byte"));

    servers[0] = topology.backends[0].start_server(Path::new(SERVER))?;
    begin()?.finish()
}

#[test]
fn tcp_echo_returns_what_was_sent() -> Result<()> {
    let (topology, _servers) = standard("tcp-echo")?;
    for server in addresses(&topology, port::ECHO) {
        let mut stream = topology.client.enter(|| TcpStream::connect(server))?;
        let sent = pattern::bytes(50_000);
        stream.write_all(&sent)?;
        stream.shutdown(Shutdown::Write)?;
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        assert!(received == sent);
    }
    Ok(())
}

#[test]
fn udp_echo_of_every_size_has_good_checksums() -> Result<()> {
    let options = TopologyOptions {
        // IPv6 fits 1,472 bytes of payload only into 1,520.
        mtu: 1_520,
        ..TopologyOptions::default()
    };
    let topology = Topology::standard(Lab::new("udp")?, options)?;
    let _servers = topology.start_servers(Path::new(SERVER))?;
    let backend = &topology.backends[0].host;
    let before = [topology.client.snmp()?, backend.snmp()?];
    for server in addresses(&topology, port::ECHO) {
        topology.client.enter(|| -> Result<()> {
            let socket = udp::connect(server, PATIENCE)?;
            let payload = pattern::bytes(1_472);
            (0..=payload.len()).try_for_each(|size| udp::echo(&socket, &payload[..size]))
        })?;
    }
    for (host, before) in [&topology.client, backend].into_iter().zip(before) {
        let after = host.snmp()?;
        assert_eq!(after.checksum_errors(), before.checksum_errors());
        assert_eq!(after.since(&before, "Udp.InDatagrams"), 1_473);
        assert_eq!(after.since(&before, "Udp6.InDatagrams"), 1_473);
        assert_eq!(after.since(&before, "Ip.ReasmReqds"), 0);
        assert_eq!(after.since(&before, "Ip6.ReasmReqds"), 0);
    }
    Ok(())
}

/// What the test above relies on: a kernel counts what it refuses.
#[test]
fn a_wrong_checksum_is_refused_and_counted() -> Result<()> {
    let (topology, _servers) = standard("checksum")?;
    let backend = &topology.backends[0].host;
    for (server, counter) in addresses(&topology, port::ECHO)
        .into_iter()
        .zip(["Udp.InCsumErrors", "Udp6.InCsumErrors"])
    {
        let before = backend.snmp()?;
        topology.client.enter(|| {
            let family = match server {
                SocketAddr::V4(_) => AddressFamily::Inet,
                SocketAddr::V6(_) => AddressFamily::Inet6,
            };
            // The kernel adds the IP header alone.
            let raw = socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Udp)?;
            let [high, low] = server.port().to_be_bytes();
            let datagram = [40, 0, high, low, 0, 8, 0xba, 0xad];
            let mut target = server;
            target.set_port(0);
            let target = SockaddrStorage::from(target);
            sendto(raw.as_raw_fd(), &datagram, &target, MsgFlags::empty())
        })?;
        let deadline = Instant::now() + PATIENCE;
        while backend.snmp()?.since(&before, counter) == 0 {
            assert!(Instant::now() < deadline, "{counter} does not count");
        }
        assert_eq!(
            backend.snmp()?.checksum_errors() - before.checksum_errors(),
            1
        );
    }
    Ok(())
}

#[test]
fn udp_tells_who_answered_and_who_asked() -> Result<()> {
    let (topology, _servers) = standard("who")?;
    for backend in &topology.backends {
        for server in [IpAddr::from(backend.v4), backend.v6.into()] {
            let (name, client) = topology
                .client
                .enter(|| udp::who((server, port::WHO).into(), PATIENCE))?;
            assert_eq!(name, backend.host.name());
            assert_eq!(client.is_ipv4(), server.is_ipv4());
        }
    }
    Ok(())
}

#[test]
fn faults_break_what_they_say_and_can_be_mended() -> Result<()> {
    let (topology, _servers) = standard("faults")?;
    let [v4, v6] = addresses(&topology, port::WHO);
    let asks = |server, timeout| topology.client.enter(|| udp::who(server, timeout)).is_ok();
    let assert_works = |what| {
        assert!(asks(v4, PATIENCE), "IPv4 after {what}");
        assert!(asks(v6, PATIENCE), "IPv6 after {what}");
    };
    let assert_broken = |what| {
        assert!(!asks(v4, BRIEF), "IPv4 during {what}");
        assert!(!asks(v6, BRIEF), "IPv6 during {what}");
    };
    let backend = &topology.backends[0].host;
    assert_works("the start");

    topology.switch.link_down("b1")?;
    assert_broken("a cut link");
    topology.switch.link_up("b1")?;
    topology.lb.flush_neighbours("eth1")?;
    assert_works("a cut link");

    topology.lb.blackhole("10.0.0.11/32")?;
    topology.lb.blackhole("2001:db8:3::11/128")?;
    assert_broken("a black hole");
    topology.lb.remove_blackhole("10.0.0.11/32")?;
    topology.lb.remove_blackhole("2001:db8:3::11/128")?;
    assert_works("a black hole");

    let mac = backend.mac("eth0")?;
    assert!(mac.starts_with("02:00:00:00:"), "{mac}");
    backend.set_mac("eth0", "02:00:00:00:aa:bb")?;
    assert_broken("a change of MAC address that nobody was told");
    topology.lb.flush_neighbours("eth1")?;
    assert_works("the neighbours were asked again");
    assert_eq!(backend.mac("eth0")?, "02:00:00:00:aa:bb");

    topology.client.set_mtu("eth0", 1_300)?;
    let big = |server| {
        let socket = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
            socket.connect(server)?;
            Ok(socket)
        });
        // With path MTU discovery, as is the default, the kernel does not fragment
        // what the interface itself cannot take.
        socket.and_then(|socket| socket.send(&[0; 1_400]))
    };
    topology.client.enter(|| big(v4))?;
    assert!(topology.client.snmp()?.get("Ip.FragCreates") > 0);
    Ok(())
}

/// With transmit checksum offload, a sender leaves the checksum to a network card that
/// is not there: then a capture has bad ones.
#[test]
fn a_capture_shows_packets_with_finished_checksums() -> Result<()> {
    let (topology, _servers) = standard("capture")?;
    let capture = topology.client.capture("eth0", "all", 10_000)?;
    for server in addresses(&topology, port::WHO) {
        topology.client.enter(|| udp::who(server, PATIENCE))?;
    }
    for server in addresses(&topology, port::HTTP) {
        topology.client.enter(|| http::get(server, "/", PATIENCE))?;
    }
    let packets = capture.finish()?;
    packets.check()?;
    assert_eq!(packets.count("udp.checksum.status == 1")?, 4);
    // At least a handshake, a request, an answer and two ends, each acknowledged.
    assert!(packets.count("tcp.checksum.status == 1")? >= 2 * 8);
    assert_eq!(packets.count("tcp.flags.fin == 1")?, 4);
    Ok(())
}
