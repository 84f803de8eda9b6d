//! Real traffic in every forwarding mode, compared byte for byte and read from captures.

use anyhow::{Context, Result};
use lb_lab::{Mode, Packets, Protocol, http, pattern, udp};

use crate::{
    PATIENCE,
    modes::{FRAGMENTED, Family, MODES, MTUS, Site, finish},
};

/// Bytes of a transfer.
const LENGTH: u64 = 100_000_000;
/// Packets of it that are captured at each place.
const CAPTURED: u32 = 2_000;

/// Calls `test` with a site of every mode and frame size.
fn everywhere(name: &str, family: Family, test: impl Fn(&Site) -> Result<()>) -> Result<()> {
    for &mode in MODES {
        for &mtu in MTUS {
            let check = |site: Site| {
                test(&site)?;
                let status = site.balancer.status()?;
                assert_eq!(status.drops.values().sum::<u64>(), 0, "{:?}", status.drops);
                assert_eq!(site.checksum_errors()?, 0);
                site.balancer.stop()
            };
            Site::new(name, mode, family, mtu)
                .and_then(check)
                .with_context(|| format!("{mode} with an MTU of {mtu}"))?;
        }
    }
    Ok(())
}

/// Captures that show nothing would have no flaws either.
fn assert_shown(captures: &[Packets]) -> Result<()> {
    // The client's link and both sides of the balancer; a backend may have been idle.
    for packets in &captures[..3] {
        let good = packets.count("tcp.checksum.status == 1")?;
        // The rest is health checks, and who has which address.
        assert!(good > CAPTURED as usize / 2, "{good} good packets");
    }
    Ok(())
}

fn transfers(family: Family) -> Result<()> {
    everywhere("transfers", family, |site| {
        let server = site.address(Protocol::Tcp);
        let client = &site.routed.topology.client;

        let (head, _) = client.enter(|| http::get(server, "/", PATIENCE))?;
        let seen = match (site.routed.options.mode, family) {
            (Mode::FullNat, Family::V4) => "10.0.0.1",
            (Mode::FullNat, Family::V6) => "2001:db8:3::1",
            (_, Family::V4) => "198.51.100.2",
            (_, Family::V6) => "2001:db8:1::2",
        };
        assert_eq!(head.client.ip().to_string(), seen);

        let captures = site.capture("download", CAPTURED)?;
        let begin = || http::Transfer::begin(server, LENGTH, u64::MAX, PATIENCE);
        client.enter(begin)?.finish()?;
        assert_shown(&finish(captures)?)?;

        let captures = site.capture("upload", CAPTURED)?;
        let begin = || http::Upload::begin(server, LENGTH, PATIENCE);
        client.enter(begin)?.finish()?;
        assert_shown(&finish(captures)?)?;

        // Counted from the IP header on, so it is more than the payload.
        let http = site.balancer.status()?.service("http")?.counters;
        let direct = site.routed.options.mode.replies_direct();
        assert_eq!(http.new_flows, 3);
        assert!(http.bytes > LENGTH, "{http:?}");
        assert!(direct || http.reply_bytes > LENGTH, "{http:?}");
        Ok(())
    })
}

#[test]
fn a_hundred_megabytes_go_both_ways_over_ipv4() -> Result<()> {
    transfers(Family::V4)
}

#[test]
fn a_hundred_megabytes_go_both_ways_over_ipv6() -> Result<()> {
    transfers(Family::V6)
}

fn datagrams(family: Family) -> Result<()> {
    /// Payloads of one packet each: the largest fits an Ethernet frame.
    const LARGEST: usize = 1_500 - 8;

    everywhere("datagrams", family, |site| {
        let server = site.address(Protocol::Udp);
        let captures = site.capture("echo", 100_000)?;
        let whole = LARGEST - family.header();
        let payload = pattern::bytes(FRAGMENTED.iter().copied().max().unwrap_or(0).max(whole));
        let sizes = (0..=whole).chain(FRAGMENTED.iter().copied());
        site.routed.topology.client.enter(|| {
            sizes.clone().try_for_each(|size| {
                // A socket for each, so that every backend has its share.
                let socket = udp::connect(server, PATIENCE)?;
                udp::echo(&socket, &payload[..size]).with_context(|| format!("{size} bytes"))
            })
        })?;
        let seen = finish(captures)?;
        // tshark verifies a datagram when it has put its fragments together.
        assert_eq!(
            seen[0].count("udp.checksum.status == 1")?,
            2 * sizes.count()
        );
        for backend in &site.routed.topology.backends {
            let address = backend.address(family.vip(), lb_lab::port::ECHO);
            let status = site.balancer.status()?;
            let counters = status.service("echo")?.backend(address)?.counters;
            assert!(counters.packets > 0, "{address} got none");
            if site.routed.options.mode.replies_direct() {
                assert_eq!(counters.reply_packets, 0);
            } else {
                assert_eq!(counters.reply_packets, counters.packets);
            }
        }
        Ok(())
    })
}

#[test]
fn datagrams_of_every_size_come_back_over_ipv4() -> Result<()> {
    datagrams(Family::V4)
}

#[test]
fn datagrams_of_every_size_come_back_over_ipv6() -> Result<()> {
    datagrams(Family::V6)
}
