//! Real traffic in every forwarding mode, compared byte for byte and read from captures.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use lb_lab::{Mode, Packets, Ping, http, pattern, port, udp};

use crate::{
    PATIENCE,
    modes::{SEGMENT, Site, Way, finish},
};

/// MTUs of the links, in bytes of an IP packet.
const MTUS: [u32; 2] = [1_500, 9_000];
/// Bytes of a transfer.
const LENGTH: u64 = 100_000_000;
/// Bytes of one by a way that differs from another in the outer header alone.
const SHORT: u64 = 10_000_000;
/// Bytes of one that is captured.
const CAPTURED: u64 = 300_000;
/// The largest payload of a datagram in an Ethernet frame, over IPv4.
const WHOLE: usize = 1_500 - 20 - 8;
/// Payloads of datagrams that fragments carry, some of them also where frames are large.
const FRAGMENTED: [usize; 5] = [1_473, 2_000, 9_001, 30_000, 60_000];
/// The largest payload of an echo request.
const ECHO: u16 = 1_400;

/// A file each way.
fn transfer(server: SocketAddr, length: u64) -> Result<()> {
    http::Transfer::begin(server, length, u64::MAX, PATIENCE)?.finish()?;
    http::Upload::begin(server, length, PATIENCE)?.finish()?;
    Ok(())
}

/// The payloads of the datagrams that are sent by a way: every size that fits into a frame,
/// and for a way that differs from another in the outer header alone, even and odd ones.
fn sizes(way: Way) -> impl Iterator<Item = usize> {
    (0..=WHOLE)
        .step_by(if way.crossed { 13 } else { 1 })
        .chain(FRAGMENTED)
}

/// Files and datagrams by one way.
fn send(site: &Site, way: Way) -> Result<()> {
    let (head, _) = http::get(site.address(&format!("http-{way}"))?, "/", PATIENCE)?;
    let seen = match site.mode() {
        Mode::FullNat => way.of_family(["10.0.0.1", "2001:db8:3::1"]),
        _ => way.of_family(["198.51.100.2", "2001:db8:1::2"]),
    };
    assert_eq!(head.client.ip().to_string(), seen);
    transfer(site.address(&format!("http-{way}"))?, CAPTURED)?;

    let payload = pattern::bytes(FRAGMENTED.into_iter().fold(WHOLE, usize::max));
    let server = site.address(&format!("echo-{way}"))?;
    sizes(way).try_for_each(|size| {
        // A socket for each, so that every backend has its share.
        let socket = udp::connect(server, PATIENCE)?;
        udp::echo(&socket, &payload[..size]).with_context(|| format!("{size} bytes"))
    })
}

/// Requests to services on a prefix: the ends of a range of ports, where the mode can take
/// all of it to one server, and every port.
fn send_to_prefix(site: &Site, way: Way) -> Result<()> {
    let mut server = site.address(&format!("range-{way}"))?;
    for port in ports_of_range(site.mode()) {
        server.set_port(port);
        transfer(server, CAPTURED).with_context(|| format!("port {port}"))?;
    }
    let mut server = site.address(&format!("any-{way}"))?;
    udp::who(server, PATIENCE)?;
    server.set_port(port::ECHO);
    udp::echo(&udp::connect(server, PATIENCE)?, b"to every port")
}

/// The ports that clients try of the range.
fn ports_of_range(mode: Mode) -> Vec<u16> {
    match mode.replies_direct() {
        true => vec![port::HTTP],
        false => vec![8_000, 8_099],
    }
}

/// Echo requests to addresses that answer, and to one whose service says that it does not.
fn ping(way: Way) -> Result<()> {
    let payload = pattern::bytes(ECHO.into());
    let ping = Ping::open(way.vip(), PATIENCE)?;
    let deaf = Ping::open(way.of_family(lb_lab::Routed::OF_PREFIXES), PATIENCE)?;
    for size in 0..=ECHO {
        deaf.send(size, &payload[..size.into()])?;
        ping.exchange(size, &payload[..size.into()])?;
    }
    // Whoever answers the later request has had the earlier ones.
    assert!(
        !deaf.has_answer()?,
        "an answer in spite of `icmp-echo = false`"
    );
    Ok(())
}

/// What the captures of [`send`] and [`send_to_prefix`] show, the client's and those of both
/// sides of the balancer.
fn check(site: &Site, captures: &[Packets]) -> Result<()> {
    let [client, outside, inside, ..] = captures else {
        unreachable!("the client and both sides of the balancer are vantage points");
    };
    let direct = site.mode().replies_direct();
    // Captures that show nothing would have no flaws either: at the least the data of the
    // captured transfers went by in full packets, and by the balancer those of uploads.
    let least = site.ways.len() * (CAPTURED / u64::from(site.routed.options.mtu)) as usize;
    for (packets, both) in [(client, true), (outside, !direct), (inside, !direct)] {
        let good = packets.count("tcp.checksum.status == 1")?;
        let wanted = if both { 2 * least } else { least };
        assert!(good > wanted, "{good} good packets");
    }
    // tshark verifies a datagram when it has put its fragments together.
    let datagrams: usize = site.ways.iter().map(|way| sizes(*way).count()).sum();
    let to_prefixes = 2 * Way::STRAIGHT.len();
    assert_eq!(
        client.count("udp.checksum.status == 1")?,
        2 * (datagrams + to_prefixes)
    );
    // Each of a download and an upload, by each port, in both families.
    let connections = 2 * ports_of_range(site.mode()).len() * Way::STRAIGHT.len();
    let lowered = format!("tcp.flags.syn == 1 && tcp.options.mss_val == {SEGMENT}");
    let replies = if direct { 0 } else { connections };
    assert_eq!(inside.count(&lowered)?, connections);
    assert_eq!(client.count(&lowered)?, replies);
    Ok(())
}

fn carry(mode: Mode, mtu: u32) -> Result<()> {
    let site = Site::new("traffic", mode, mtu)?;
    let client = &site.routed.topology.client;
    let captures = site.capture("all", 1_000_000)?;
    for way in &site.ways {
        client
            .enter(|| send(&site, *way))
            .with_context(|| format!("{way}"))?;
    }
    for way in Way::STRAIGHT {
        client
            .enter(|| send_to_prefix(&site, way))
            .with_context(|| format!("prefix, {way}"))?;
    }
    check(&site, &finish(captures)?)?;

    for way in &site.ways {
        let length = if way.crossed { SHORT } else { LENGTH };
        let server = site.address(&format!("http-{way}"))?;
        client
            .enter(|| transfer(server, length))
            .with_context(|| format!("{way}"))?;
    }
    for way in Way::STRAIGHT {
        client.enter(|| ping(way))?;
    }

    let status = site.balancer.status()?;
    let direct = mode.replies_direct();
    for way in &site.ways {
        // Counted from the IP header on, so it is more than the payload.
        let http = status.service(&format!("http-{way}"))?.counters;
        let least = if way.crossed { SHORT } else { LENGTH };
        assert_eq!(http.new_flows, 5);
        assert!(http.bytes > least, "{http:?}");
        assert!(direct || http.reply_bytes > least, "{http:?}");
        for backend in &site.routed.topology.backends {
            let ip = backend.ip(way.v4 != way.crossed);
            let echo = status.service(&format!("echo-{way}"))?;
            let counters = echo.backend(SocketAddr::new(ip, port::ECHO))?.counters;
            assert!(counters.packets > 0, "{ip} got none");
            let replies = if direct { 0 } else { counters.packets };
            assert_eq!(counters.reply_packets, replies);
        }
    }
    assert_eq!(status.drops.values().sum::<u64>(), 0, "{:?}", status.drops);
    assert_eq!(site.checksum_errors()?, 0);
    site.balancer.stop()
}

fn carry_all(mode: Mode) -> Result<()> {
    MTUS.into_iter()
        .try_for_each(|mtu| carry(mode, mtu).with_context(|| format!("an MTU of {mtu}")))
}

#[test]
fn full_nat_carries_files_and_datagrams() -> Result<()> {
    carry_all(Mode::FullNat)
}

#[test]
fn nat_carries_files_and_datagrams() -> Result<()> {
    carry_all(Mode::Nat)
}

#[test]
fn dsr_carries_files_and_datagrams() -> Result<()> {
    carry_all(Mode::Dsr)
}

#[test]
fn ipip_carries_files_and_datagrams() -> Result<()> {
    carry_all(Mode::Ipip)
}

#[test]
fn gue_carries_files_and_datagrams() -> Result<()> {
    carry_all(Mode::Gue)
}
