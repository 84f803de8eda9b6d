//! The daemon dies, ends and starts again while clients are served: the datapath does not
//! mind.

use std::{collections::BTreeMap, env, net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_lab::{
    Background, Balancer, Counters, Host, Load, LoadReport, Mode, Service, Status, TopologyOptions,
    http::Connection, port, udp,
};

use crate::{PATIENCE, http_of_each_kind, load, modes::Site, of_each_kind, programs, standard};

/// Connections that are held, to all services together, unless `LB_CONNECTIONS` says
/// another number.
const CONNECTIONS: usize = 400;

/// Of those who speak, so that there is time for others on a small machine.
const PAUSE: Duration = Duration::from_millis(2);

/// Times that the daemon is ended, or killed, and started again, unless `LB_STARTS` says
/// another number. Each start brings a program of its own and replaces the one that is attached.
const STARTS: usize = 9;

/// A number from the environment, or the usual one.
pub(crate) fn number(variable: &str, usual: usize) -> usize {
    let number = env::var(variable).ok();
    number.map_or(usual, |number| {
        number
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is a number"))
    })
}

fn connections() -> usize {
    number("LB_CONNECTIONS", CONNECTIONS)
}

fn starts() -> usize {
    number("LB_STARTS", STARTS)
}

/// Opens connections, evenly to all `addresses`, and speaks on each in turn until the end is
/// asked for. Each must be answered by one backend all the time. Returns how often all of
/// them have spoken.
pub(crate) fn hold(client: &Host, addresses: &[SocketAddr]) -> Result<Background<Result<u64>>> {
    hold_many(client, addresses, connections())
}

/// The same with so many connections.
pub(crate) fn hold_many(
    client: &Host,
    addresses: &[SocketAddr],
    connections: usize,
) -> Result<Background<Result<u64>>> {
    let each = connections / addresses.len();
    let open = || -> Result<Vec<(Connection, String)>> {
        let addresses = addresses.iter().flat_map(|one| vec![*one; each]);
        addresses
            .map(|address| {
                let mut connection = Connection::open(address, PATIENCE)?;
                let (head, _) = connection.get("/", false)?;
                Ok((connection, head.backend))
            })
            .collect()
    };
    let mut held = client.enter(open)?;
    Ok(client.background(move |stop| {
        let mut rounds = 0;
        loop {
            let is_last = stop.is_requested();
            for (connection, backend) in &mut held {
                let (head, _) = connection
                    .get("/", is_last)
                    .with_context(|| format!("a connection to {backend} is broken"))?;
                ensure!(head.backend == *backend, "{backend} became {head:?}");
                if !is_last {
                    thread::sleep(PAUSE);
                }
            }
            rounds += 1;
            if is_last {
                return Ok(rounds);
            }
        }
    }))
}

/// Sends datagrams to `addresses`, one at a time, until the end is asked for. Each must be
/// answered. Returns how many.
fn echo(client: &Host, addresses: Vec<SocketAddr>) -> Background<Result<u64>> {
    client.background(move |stop| {
        let connect = |address: &SocketAddr| udp::connect(*address, PATIENCE);
        let sockets: Vec<_> = addresses.iter().map(connect).collect::<Result<_>>()?;
        let mut sent = 0_u64;
        while !stop.is_requested() {
            for (socket, address) in sockets.iter().zip(&addresses) {
                let echo = udp::echo(socket, &sent.to_be_bytes());
                echo.with_context(|| format!("datagram {sent}, to {address}"))?;
                sent += 1;
            }
            thread::sleep(PAUSE);
        }
        Ok(sent)
    })
}

/// New connections without an end.
fn connect(client: &Host, address: SocketAddr) -> Background<LoadReport> {
    let load = Load {
        threads: 1,
        ..Load::new(address, u64::MAX)
    };
    client.background(move |stop| load.run_until(stop))
}

/// That no counter of a service or a backend that there is still has gone backwards since
/// `before`.
pub(crate) fn assert_onwards(before: &Status, after: &Status) -> Result<()> {
    let figures = |counters: &Counters| {
        [
            counters.packets,
            counters.bytes,
            counters.reply_packets,
            counters.reply_bytes,
            counters.new_flows,
            counters.ended_flows,
        ]
    };
    let all = |status: &Status| -> BTreeMap<(String, String), [u64; 6]> {
        let mut all = BTreeMap::new();
        for service in &status.services {
            let name = &service.name;
            all.insert((name.clone(), String::new()), figures(&service.counters));
            for backend in &service.backends {
                let key = (name.clone(), backend.address.clone());
                all.insert(key, figures(&backend.counters));
            }
        }
        all
    };
    let (before, after) = (all(before), all(after));
    for (key, before) in before {
        let Some(after) = after.get(&key) else {
            continue;
        };
        let is_onwards = before
            .iter()
            .zip(after)
            .all(|(before, after)| before <= after);
        ensure!(is_onwards, "{key:?}: {before:?} became {after:?}");
    }
    Ok(())
}

#[test]
fn nothing_is_lost_while_the_daemon_is_killed_and_started_again() -> Result<()> {
    let options = TopologyOptions {
        backends: 4,
        ..TopologyOptions::default()
    };
    let (topology, _servers) = standard("restarts", options)?;
    let https = http_of_each_kind(&topology);
    let echos = of_each_kind(1_007, |name, address, mode| {
        Service::udp(
            &format!("echo-{name}"),
            &topology,
            address,
            mode,
            port::ECHO,
        )
    });
    let services = |weights: &[u32]| -> Vec<Service> {
        let all = https.iter().chain(&echos).cloned();
        all.map(|service| {
            let mut service = service.weights(weights);
            // Nothing here is about health: a slow machine loses no backend.
            service.health.fall = 100;
            service
        })
        .collect()
    };
    let weights: [&[u32]; 3] = [
        &[100, 100, 100, 100],
        &[100, 0, 100, 300],
        &[50, 100, 0, 100],
    ];
    let mut balancer = Balancer::start(&topology, &programs::paths().lb, &services(weights[0]))?;
    let addresses = |services: &[Service]| -> Vec<SocketAddr> {
        services.iter().map(|service| service.address).collect()
    };
    let held = hold(&topology.client, &addresses(&https))?;
    let echoed = echo(&topology.client, addresses(&echos));
    let connected = connect(&topology.client, https[0].address);

    let mut before = balancer.status()?;
    for start in 1..=starts() {
        // In order, or not.
        if start % 3 == 0 {
            balancer.end()?;
        } else {
            balancer.process().kill()?;
        }
        // New connections find their way meanwhile.
        load(&topology, &https, 5)?;
        // Every other time something else is wanted then.
        let weights = weights[start / 2 % weights.len()];
        balancer.configure(&topology, &services(weights))?;
        balancer.start_again()?;
        let after = balancer.status()?;
        assert_onwards(&before, &after)?;
        load(&topology, &https, 5)?;
        before = after;
    }

    let (held, echoed) = (held.finish(), echoed.finish());
    let connected = connected.finish().into_result();
    let mut drops = balancer.status()?.drops;
    drops.retain(|_, packets| *packets != 0);
    assert!(drops.is_empty(), "{drops:?}, {held:?}, {echoed:?}");
    assert!(held? > 1);
    assert!(echoed? > 0);
    assert!(connected?.requests > 0);
    balancer.stop()
}

/// Backends of services in `mode` get other weights, and the daemon is started again every
/// few times: no connection moves.
fn changes(name: &str, mode: Mode) -> Result<()> {
    let mut site = Site::new(name, mode, 1_500)?;
    let held = hold(&site.routed.topology.client, &site.http())?;
    let names: Vec<String> = site.ways.iter().map(|way| format!("http-{way}")).collect();
    for change in 0..30 {
        let status = site.balancer.status()?;
        for name in &names {
            let service = status.service(name)?;
            let backend = &service.backends[change % service.backends.len()];
            let weight = [0, 30, 100, 250][change % 4];
            let address = &backend.address;
            site.balancer
                .lb(&format!("backend set {name} {address} --weight {weight}"))?;
        }
        if change % 6 == 5 {
            site.balancer.process().kill()?;
            site.balancer.start_again()?;
        }
    }
    ensure!(held.finish()? > 1, "the changes were too quick");
    site.balancer.stop()
}

#[test]
fn connections_stay_through_changes_in_dsr() -> Result<()> {
    changes("changes-dsr", Mode::Dsr)
}

#[test]
fn connections_stay_through_changes_in_ipip() -> Result<()> {
    changes("changes-ipip", Mode::Ipip)
}

#[test]
fn connections_stay_through_changes_in_gue() -> Result<()> {
    changes("changes-gue", Mode::Gue)
}
