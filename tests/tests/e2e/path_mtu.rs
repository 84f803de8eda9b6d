//! Transfers through a path that narrows on the way, in every forwarding mode.

use anyhow::{Context, Result};
use lb_lab::{Mode, Narrowing};

use crate::modes::{Site, finish};

/// Packets that are captured at each place: more than the transfers have.
const CAPTURED: u32 = 100_000;

/// What a router says of a packet that is too big: to the sender of the packet that it
/// sees, which the balancer has to pass on.
const TOO_BIG: &str = "(icmp.type == 3 && icmp.code == 4) || icmpv6.type == 2";

/// The router before the narrow link tells its side: the service for downloads; for uploads
/// the balancer, where that is the source of what the router gets, else the client. Before
/// its own link, the balancer tells the client.
fn check(site: &Site, narrowing: Narrowing) -> Result<()> {
    let captures = site.capture(&format!("{narrowing:?}"), CAPTURED)?;
    let counts = || -> Result<_> {
        let drops = site.balancer.status()?.drops;
        let by_balancer = drops.get("too-big").copied().unwrap_or_default();
        Ok((site.routed.refused(narrowing)?, by_balancer))
    };
    let before = counts()?;
    site.routed
        .transfer_while_narrowing(narrowing, &site.http())?;
    let after = counts()?;
    let (by_router, by_balancer) = (after.0 - before.0, after.1 - before.1);

    let [_, outside, inside, ..] = &finish(captures)?[..] else {
        unreachable!("both sides of the balancer are vantage points");
    };
    let (outside, inside) = (outside.count(TOO_BIG)?, inside.count(TOO_BIG)?);
    let seen = format!(
        "the router refused {by_router}, the balancer {by_balancer}; errors outside \
         {outside}, inside {inside}"
    );
    // Each way has a sender of its own to be told, on both sides of the balancer, unless
    // the balancer is the first to tell.
    let ways = site.ways.len();
    assert!(outside >= ways, "{seen}");
    match narrowing {
        Narrowing::BeforeClient | Narrowing::BeforeBackends => {
            assert!(by_router >= ways as i64 && inside >= ways, "{seen}");
            // An error about a tunnel ends here, and the client gets another.
            let ended = narrowing == Narrowing::BeforeBackends && site.mode().is_tunnel();
            assert_eq!(by_balancer > 0, ended, "{seen}");
        }
        Narrowing::BehindBalancer => {
            assert!(by_router == 0 && by_balancer >= ways as u64, "{seen}");
        }
    }
    site.routed.widen(narrowing)
}

fn narrow(mode: Mode) -> Result<()> {
    let site = Site::new("path-mtu", mode, 1_500)?;
    for &narrowing in Narrowing::of(mode) {
        check(&site, narrowing).with_context(|| format!("{narrowing:?}"))?;
    }
    assert_eq!(site.checksum_errors()?, 0);
    site.balancer.stop()
}

#[test]
fn transfers_of_full_nat_survive_a_path_that_narrows() -> Result<()> {
    narrow(Mode::FullNat)
}

#[test]
fn transfers_of_nat_survive_a_path_that_narrows() -> Result<()> {
    narrow(Mode::Nat)
}

#[test]
fn transfers_of_dsr_survive_a_path_that_narrows() -> Result<()> {
    narrow(Mode::Dsr)
}

#[test]
fn transfers_of_ipip_survive_a_path_that_narrows() -> Result<()> {
    narrow(Mode::Ipip)
}

#[test]
fn transfers_of_gue_survive_a_path_that_narrows() -> Result<()> {
    narrow(Mode::Gue)
}
