//! The routed topology by itself, with a kernel in the balancer's place, and the checks
//! that tests of the forwarding modes are made of.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use lb_lab::{
    Lab, Mode, Narrowing, Packets, Process, Routed, RoutedOptions, Topology, http, pattern, port,
    udp,
};

const SERVER: &str = env!("CARGO_BIN_EXE_lab-server");
/// Long enough for a loaded machine; only a failed test waits for it.
const PATIENCE: Duration = Duration::from_secs(10);
/// One mode of each set-up of the lab: to a kernel, `full-nat` is `nat` and `ipip` is `gue`.
const MODES: [Mode; 3] = [Mode::Nat, Mode::Dsr, Mode::Gue];

fn routed(name: &str, mode: Mode, mtu: u32) -> Result<(Routed, Vec<Process>)> {
    let routed = Routed::new(Lab::new(name)?, RoutedOptions::new(mode, mtu))?;
    if mode.replies_direct() {
        routed.route_to_first_backend()?;
    }
    let servers = routed.topology.start_servers(Path::new(SERVER))?;
    Ok((routed, servers))
}

/// Where a client reaches `b1` in each family: by its own address where a balancer would
/// translate, which a kernel does not.
fn addresses(routed: &Routed, mode: Mode, port: u16) -> [SocketAddr; 2] {
    let backend = &routed.topology.backends[0];
    let ips: [IpAddr; 2] = match mode.replies_direct() {
        true => [Topology::VIP4.into(), Topology::VIP6.into()],
        false => [backend.v4.into(), backend.v6.into()],
    };
    ips.map(|ip| (ip, port).into())
}

#[test]
fn a_client_reaches_a_backend_in_every_mode_and_replies_take_their_way() -> Result<()> {
    for mode in MODES {
        let (routed, _servers) = routed("ways", mode, 1_500)?;
        for server in addresses(&routed, mode, port::WHO) {
            let capture = routed.r1.capture(
                "eth1",
                &format!("v{}", if server.is_ipv4() { 4 } else { 6 }),
                1_000,
            )?;
            let (name, client) = routed
                .topology
                .client
                .enter(|| udp::who(server, PATIENCE))
                .with_context(|| format!("{mode} to {server}"))?;
            assert_eq!(name, "b1");
            assert_eq!(client.is_ipv4(), server.is_ipv4());

            let seen = capture.finish()?.count("udp.port == 9")?;
            let wanted = if mode.replies_direct() { 1 } else { 2 };
            assert_eq!(seen, wanted, "{mode} from {server} beside the balancer");
        }
    }
    Ok(())
}

#[test]
fn frames_of_nine_thousand_bytes_go_everywhere() -> Result<()> {
    for mode in MODES {
        let (routed, _servers) = routed("jumbo", mode, 9_000)?;
        for server in addresses(&routed, mode, port::ECHO) {
            routed.topology.client.enter(|| -> Result<()> {
                let socket = udp::connect(server, PATIENCE)?;
                udp::echo(&socket, &pattern::bytes(8_900))
            })?;
        }
        let counters = routed.topology.backends[0].host.snmp()?;
        assert_eq!(counters.get("Ip.ReasmReqds"), 0);
        assert_eq!(counters.get("Ip6.ReasmReqds"), 0);
    }
    Ok(())
}

#[test]
fn large_datagrams_arrive_in_fragments() -> Result<()> {
    for mode in MODES {
        let (routed, _servers) = routed("fragments", mode, 1_500)?;
        for (server, counter) in addresses(&routed, mode, port::ECHO)
            .into_iter()
            .zip(["Ip.ReasmOKs", "Ip6.ReasmOKs"])
        {
            let capture = routed.r1.capture("eth1", counter, 1_000)?;
            routed.topology.client.enter(|| -> Result<()> {
                let socket = udp::connect(server, PATIENCE)?;
                udp::echo(&socket, &pattern::bytes(60_000))
            })?;
            let packets = capture.finish()?;
            packets.check()?;
            // A datagram is verified when it is whole.
            let wanted = if mode.replies_direct() { 1 } else { 2 };
            assert_eq!(packets.count("udp.checksum.status == 1")?, wanted);
            let backend = &routed.topology.backends[0].host;
            assert_eq!(backend.snmp()?.get(counter), 1);
        }
    }
    Ok(())
}

#[test]
fn a_transfer_survives_a_path_that_narrows() -> Result<()> {
    for mode in MODES {
        let (routed, _servers) = routed("narrow", mode, 1_500)?;
        for &narrowing in Narrowing::of(mode) {
            // One by one: each is too big for itself.
            for server in addresses(&routed, mode, port::HTTP) {
                let before = routed.refused(narrowing)?;
                routed
                    .transfer_while_narrowing(narrowing, &[server])
                    .with_context(|| format!("{mode} with {server}"))?;
                assert!(routed.refused(narrowing)? > before, "nothing was too big");
                routed.widen(narrowing)?;
            }
        }
    }
    Ok(())
}

/// What the test above relies on: it is the router's ICMP that lets a transfer survive.
#[test]
fn without_icmp_a_transfer_stands_still() -> Result<()> {
    let mode = Mode::Dsr;
    let (routed, _servers) = routed("still", mode, 1_500)?;
    for rule in [
        "-4 rule add to 192.0.2.0/24 ipproto icmp blackhole",
        "-6 rule add to 2001:db8:2::/64 ipproto ipv6-icmp blackhole",
    ] {
        routed.topology.lb.ip(rule)?;
    }
    for server in addresses(&routed, mode, port::HTTP) {
        let before = routed.refused(Narrowing::BeforeClient)?;
        routed
            .stall_while_narrowing(Narrowing::BeforeClient, server)
            .with_context(|| format!("from {server}"))?;
        assert!(routed.refused(Narrowing::BeforeClient)? > before);
    }
    Ok(())
}

#[test]
fn an_upload_is_compared_byte_for_byte() -> Result<()> {
    let (routed, _servers) = routed("upload", Mode::Nat, 1_500)?;
    for server in addresses(&routed, Mode::Nat, port::HTTP) {
        routed.topology.client.enter(|| -> Result<()> {
            let head = http::Upload::begin(server, 5_000_000, PATIENCE)?.finish()?;
            assert_eq!(head.backend, "b1");

            use std::io::{Read, Write};
            let mut wrong = pattern::bytes(100_000);
            wrong[77_777] ^= 1;
            let mut stream = std::net::TcpStream::connect(server)?;
            write!(
                stream,
                "POST /bytes HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                wrong.len()
            )?;
            stream.write_all(&wrong)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            assert!(
                answer.starts_with("HTTP/1.1 422 ") && answer.contains("byte 77777 "),
                "{answer}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// A capture in the form of pcap: a header of 24 bytes, then packets, each behind 16.
struct File {
    header: Vec<u8>,
    packets: Vec<Vec<u8>>,
}

impl File {
    fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path)?;
        let (header, mut rest) = bytes.split_at(24);
        let mut packets = Vec::new();
        while !rest.is_empty() {
            let length = u32::from_ne_bytes(rest[8..12].try_into()?) as usize;
            packets.push(rest[16..16 + length].to_vec());
            rest = &rest[16 + length..];
        }
        Ok(Self {
            header: header.to_vec(),
            packets,
        })
    }

    /// Writes these packets in place of its own.
    fn with(&self, packets: &[Vec<u8>], path: PathBuf) -> Result<Packets> {
        let mut bytes = self.header.clone();
        for packet in packets {
            let length = (packet.len() as u32).to_ne_bytes();
            bytes.extend([&[0; 8][..], &length, &length, packet].concat());
        }
        fs::write(&path, bytes)?;
        Ok(Packets::of(path))
    }
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes
        .chunks_exact(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes()
}

/// Puts the IP packet of a frame into IPv4, behind `between`.
fn wrap(frame: &[u8], protocol: u8, between: &[u8]) -> Vec<u8> {
    let (ethernet, inner) = frame.split_at(14);
    let length = (20 + between.len() + inner.len()) as u16;
    let mut outer = [0; 20];
    outer[0] = 0x45;
    outer[2..4].copy_from_slice(&length.to_be_bytes());
    outer[8..10].copy_from_slice(&[64, protocol]);
    outer[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 1, 11]);
    let sum = checksum(&outer);
    outer[10..12].copy_from_slice(&sum);
    [&ethernet[..12], &[8, 0], &outer, between, inner].concat()
}

/// The check of a capture finds a flaw in every header, also within tunnels.
#[test]
fn a_bad_checksum_and_a_malformed_packet_are_found() -> Result<()> {
    let (routed, _servers) = routed("flaws", Mode::Nat, 1_500)?;
    let client = &routed.topology.client;
    let capture = client.capture("eth0", "good", 1_000)?;
    for server in addresses(&routed, Mode::Nat, port::WHO) {
        client.enter(|| udp::who(server, PATIENCE))?;
    }
    for server in addresses(&routed, Mode::Nat, port::HTTP) {
        client.enter(|| http::get(server, "/", PATIENCE))?;
    }
    // Port 1 is closed: ICMP says so.
    for server in addresses(&routed, Mode::Nat, 1) {
        assert!(client.enter(|| udp::who(server, PATIENCE)).is_err());
    }
    let good = capture.finish()?;
    good.check()?;
    assert_eq!(good.count("icmp.type == 3")?, 1);
    assert_eq!(good.count("icmpv6.type == 1")?, 1);

    let file = File::read(good.file())?;
    let is = |packet: &&Vec<u8>, ethertype: u16, protocol: u8| {
        let at = if ethertype == 0x0800 { 23 } else { 20 };
        packet[12..14] == ethertype.to_be_bytes() && packet[at] == protocol
    };
    let (mut wrapped, mut bad, mut names) = (Vec::new(), Vec::new(), Vec::new());
    // Where each protocol has its checksum.
    for (name, ethertype, protocol, sum) in [
        ("udp4", 0x0800, 17, 6),
        ("tcp4", 0x0800, 6, 16),
        ("icmp4", 0x0800, 1, 2),
        ("udp6", 0x86dd, 17, 6),
        ("tcp6", 0x86dd, 6, 16),
        ("icmp6", 0x86dd, 58, 2),
    ] {
        let packet = file
            .packets
            .iter()
            .rfind(|packet| is(packet, ethertype, protocol))
            .with_context(|| format!("no {name}"))?;
        let (header, inner) = if ethertype == 0x0800 {
            (20, 4)
        } else {
            (40, 41)
        };
        // Ports, length and no checksum of UDP, and a GUE header without options.
        let [high, low] = ((12 + packet.len() - 14) as u16).to_be_bytes();
        let gue = [0x9c, 0x40, 0x17, 0xc0, high, low, 0, 0, 0, inner, 0, 0];
        for (form, whole, shift) in [
            ("plain", packet.clone(), 0),
            ("ipip", wrap(packet, inner, &[]), 20),
            ("gue", wrap(packet, 17, &gue), 32),
        ] {
            let mut flaw = |kind: &str, at: usize| {
                let mut flawed = whole.clone();
                flawed[at] ^= 1;
                bad.push(flawed);
                names.push(format!("{name} {form}: {kind}"));
            };
            flaw("checksum", 14 + shift + header + sum);
            if ethertype == 0x0800 {
                flaw("TTL", 14 + shift + 8);
            }
            if shift > 0 {
                flaw("outer TTL", 14 + 8);
            }
            bad.push(whole[..whole.len() - 2].to_vec());
            names.push(format!("{name} {form}: cut"));
            wrapped.push(whole);
        }
    }
    let directory = routed.topology.lab.directory();
    file.with(&wrapped, directory.join("wrapped.pcap"))?
        .check()?;

    let found = file.with(&bad, directory.join("bad.pcap"))?.flawed()?;
    let found: Vec<usize> = found
        .iter()
        .map(|line| Ok(line.split('\t').next().context("an empty line")?.parse()?))
        .collect::<Result<_>>()?;
    let missed: Vec<_> = (1..)
        .zip(names)
        .filter(|(number, _)| !found.contains(number))
        .collect();
    assert!(missed.is_empty(), "not found: {missed:#?}");
    Ok(())
}
