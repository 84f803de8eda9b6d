//! The lab that stays, to play with.

use std::{env, net::IpAddr, os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result, bail};
use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::sethostname,
};

use crate::{
    Balancer, Lab, Mode, Paths, Service, Topology, TopologyOptions,
    lab::{self, STANDING},
    netns, port,
};

/// Makes the standard topology with servers and a running balancer, and leaves it
/// standing. Says on stdout what there is.
///
/// # Errors
///
/// When it stands already, or a part of it does not start; then nothing is left.
pub fn up(paths: &Paths) -> Result<()> {
    if !netns::names_of(STANDING)?.is_empty() {
        bail!("the lab stands already; `cargo xtask lab down` takes it away");
    }
    let balancer = make(paths).inspect_err(|_| {
        // The first error matters more than what this one would say.
        let _ = lab::remove(STANDING);
    })?;
    println!(
        "\
The lab stands: client, lb, switch, b1, b2, b3.

    cargo xtask lab shell client
        curl http://192.0.2.10/             # full NAT
        curl http://192.0.2.20/             # NAT
        curl 'http://[2001:db8:2::10]/'
        curl 'http://[2001:db8:2::20]/'
    cargo xtask lab shell lb
        lb status
    cargo xtask lab down

Configuration: {config}
Logs: {logs}",
        config = balancer.config().display(),
        logs = balancer.config().with_file_name("*.log").display(),
    );
    Ok(())
}

fn make(paths: &Paths) -> Result<Balancer> {
    let topology = Topology::standard(Lab::standing()?, TopologyOptions::default())?;
    topology.start_servers(&paths.server)?;
    let mut services = Vec::new();
    for (mode, last) in Mode::NAT.into_iter().zip([10, 20]) {
        for (family, ip) in [
            ("", vip(&format!("192.0.2.{last}"))?),
            ("6", vip(&format!("2001:db8:2::{last}"))?),
        ] {
            let http = format!("web{family}-{mode}");
            services.push(Service::http(&http, &topology, (ip, 80).into(), mode));
            let who = format!("who{family}-{mode}");
            services.push(Service::udp(
                &who,
                &topology,
                (ip, 53).into(),
                mode,
                port::WHO,
            ));
        }
    }
    Balancer::start(&topology, &paths.lb, &services)
}

fn vip(text: &str) -> Result<IpAddr> {
    Ok(text.parse()?)
}

/// Takes the lab away, with all that runs in it.
///
/// # Errors
///
/// When a part of it cannot be removed.
pub fn down() -> Result<()> {
    let hosts = netns::names_of(STANDING)?.len();
    lab::remove(STANDING)?;
    match hosts {
        0 => println!("No lab stands."),
        _ => println!("The lab is gone."),
    }
    Ok(())
}

/// Becomes a shell in a host of the lab, where `lb` is in the path and finds its socket.
///
/// # Errors
///
/// When there is no such host, or no shell. It does not return otherwise.
pub fn shell(paths: &Paths, host: &str) -> Result<()> {
    let hosts = hosts()?;
    if !hosts.iter().any(|name| name == host) {
        match &*hosts {
            [] => bail!("no lab stands; `cargo xtask lab up` makes it"),
            hosts => bail!(
                "the lab has no host `{host}`; there are {}",
                hosts.join(", ")
            ),
        }
    }
    setns(
        netns::open(&netns::name(STANDING, host))?,
        CloneFlags::CLONE_NEWNET,
    )?;
    // A host name of its own, so that the prompt says where one is.
    unshare(CloneFlags::CLONE_NEWUTS)?;
    sethostname(host)?;

    let own = env::var_os("PATH").unwrap_or_default();
    let programs = paths.lb.parent().map(Into::into);
    let path = env::join_paths(programs.into_iter().chain(env::split_paths(&own)))?;
    let shell = env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    let error = Command::new(&shell)
        .env("PATH", path)
        .env("LB_SOCKET", Balancer::socket_in(&lab::directory(STANDING)))
        .exec();
    Err(error).with_context(|| format!("cannot run {}", shell.display()))
}

/// The names of the hosts of the lab that stands.
fn hosts() -> Result<Vec<String>> {
    let prefix = netns::name(STANDING, "");
    let names = netns::names_of(STANDING)?;
    Ok(names
        .iter()
        .filter_map(|name| name.strip_prefix(&prefix))
        .map(str::to_owned)
        .collect())
}
