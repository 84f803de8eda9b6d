//! Transfers through a path that narrows on the way, in every forwarding mode.

use anyhow::{Context, Result};
use lb_lab::{Direction, Protocol};

use crate::modes::{Family, MODES, PATH_MTU, Site, finish};

/// Packets that are captured at each place: more than a transfer has.
const CAPTURED: u32 = 100_000;

/// What a router says of a packet that is too big: to the sender of the packet that it
/// sees, which the balancer has to pass on.
const TOO_BIG: &str = "(icmp.type == 3 && icmp.code == 4) || icmpv6.type == 2";

/// The router before the narrow link tells its side: the service for downloads, and for
/// uploads the balancer, or the client for whom it takes the source of `nat`. With `dsr` it
/// is the balancer whose own link narrows.
fn check(site: &Site, direction: Direction) -> Result<()> {
    let server = site.address(Protocol::Tcp);
    let captures = site.capture(&format!("{direction:?}"), CAPTURED)?;
    let dropped = || -> Result<u64> {
        let drops = site.balancer.status()?.drops;
        Ok(drops.get("too-big").copied().unwrap_or_default())
    };
    let before = (site.routed.refused(direction)?, dropped()?);
    let survives = PATH_MTU.contains(&site.routed.options.mode);
    if survives {
        site.routed.transfer_while_narrowing(direction, server)?;
    } else {
        site.routed.stall_while_narrowing(direction, server)?;
    }
    let by_router = site.routed.refused(direction)? > before.0;
    let by_balancer = dropped()? > before.1;
    assert!(by_router || by_balancer, "nothing was too big for the path");
    let [_, outside, inside, ..] = &finish(captures)?[..] else {
        unreachable!("both sides of the balancer are vantage points");
    };
    let told = outside.count(TOO_BIG)? + inside.count(TOO_BIG)?;
    // Routers always tell, a balancer only where it keeps to what routers do.
    assert!(told > 0 || !(survives || by_router), "nobody was told");
    Ok(())
}

fn narrow(family: Family) -> Result<()> {
    for &mode in MODES {
        for direction in Direction::ALL {
            Site::new("path-mtu", mode, family, 1_500)
                .and_then(|site| {
                    check(&site, direction)?;
                    site.balancer.stop()
                })
                .with_context(|| format!("{direction:?} by {mode}"))?;
        }
    }
    Ok(())
}

#[test]
fn transfers_through_a_path_that_narrows_over_ipv4() -> Result<()> {
    narrow(Family::V4)
}

#[test]
fn transfers_through_a_path_that_narrows_over_ipv6() -> Result<()> {
    narrow(Family::V6)
}
