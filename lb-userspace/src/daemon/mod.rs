//! The daemon: brings together what is wanted, what is, and the datapath.
//!
//! One task owns everything and takes one event after the other: a request, the result of
//! a health check, another next hop, the end of a sweep, time. What follows from an event
//! is `Balancer`'s to say; here is where events come from and where the answers go.
//!
//! ```text
//!  API ---- requests ---+
//!  health - results ----+                    +-- reconcile --> datapath
//!  netlink - next hops -+--> Balancer -------+-- health: what to check
//!  sweep -- what it saw-+                    +-- netlink: what to watch
//!  clock ---------------+                    +-- sweep: what is gone
//! ```

mod balancer;
mod explaining;
mod ledger;
mod plane;
mod status;
mod stepped;
mod sweeping;
#[cfg(test)]
mod tests;

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use lb_common::CLOCK_TICK_MS;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

pub use self::stepped::Stepped;
use self::{
    balancer::{Attached, Attachment, Balancer},
    explaining::Explaining,
    plane::Wired,
    sweeping::Sweeping,
};
use crate::{
    config::{Config, DatapathLog, XdpMode},
    datapath::{self, Datapath, LogLevel, Options, Pinned, ProgramLog},
    health::Checks,
    neighbour::{self, Interface, Neighbours},
    privileges::with_lookups,
    state::{Reason, Request},
};

/// Events of one source that may wait; their senders wait when there are more.
const EVENTS: usize = 1_024;

/// Who started the daemon, and hears of what it comes to.
pub trait Supervisor {
    /// The datapath is loaded: from here on the rights that are left are those that running
    /// needs. Comes before other threads are started.
    ///
    /// # Errors
    ///
    /// What keeps the daemon from going on.
    fn loaded(&mut self) -> anyhow::Result<()>;
    /// The datapath is as it is wanted, and requests are answered.
    fn ready(&mut self);
    /// It still runs. Comes with each tick of the flow clock.
    fn alive(&mut self);
    /// It is about to end.
    fn stopping(&mut self);
}

/// Runs the balancer that `config` describes, and answers requests, until `shutdown`
/// comes. The datapath goes on forwarding then, and the next call goes on with it; what it
/// was when this one began, it is until all of that has been read.
///
/// # Errors
///
/// Where it cannot start: see [`datapath::Error`]. Once it runs it goes on.
pub async fn run(
    config: Config,
    mut requests: mpsc::Receiver<Request>,
    supervisor: &mut impl Supervisor,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let interfaces = neighbour::interfaces().context("reading the interfaces of this host")?;
    let indices: Vec<u32> = config
        .interfaces
        .iter()
        .map(|name| index_of(&interfaces, name))
        .collect::<Result<_, _>>()
        .map_err(explained)?;
    let mut datapath = load(&config).map_err(explained)?;
    supervisor.loaded()?;
    if config.datapath_log != DatapathLog::Off
        && let Some(log) = datapath.take_log()
    {
        tokio::spawn(forward(log));
    }
    let mut sweeping = Sweeping::start(datapath.flow_tables().map_err(explained)?)
        .context("starting the thread that sweeps the flow tables")?;

    let (hop_sender, mut hops) = mpsc::channel(EVENTS);
    let (result_sender, mut results) = mpsc::channel(EVENTS);
    let neighbours = Neighbours::start(hop_sender).context("listening to the kernel's routes")?;
    let mut checks =
        Checks::new(result_sender).context("starting the thread that checks backends")?;

    let explaining = Explaining::new(datapath.pinned_maps());
    let attached = attach(&mut datapath, &config, &indices).map_err(explained)?;
    let (plane, found) = with_lookups(|| Wired::new(datapath, Box::new(move || start.elapsed())))
        .map_err(explained)?;
    let mut balancer = Balancer::new(plane, attached, config.desired(), found, start.elapsed());
    for interface in interfaces {
        balancer.neighbour(neighbour::Event::Interface(interface));
    }
    neighbours.watch(balancer.addresses());
    checks.set(balancer.targets());

    let mut clock = interval(Duration::from_millis(CLOCK_TICK_MS.into()));
    clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut shutdown = pin!(shutdown);
    balancer.reconcile_if_needed(start.elapsed());
    supervisor.ready();
    loop {
        balancer.reconcile_if_needed(start.elapsed());
        tokio::select! {
            () = &mut shutdown => {
                supervisor.stopping();
                tracing::info!("packets are forwarded on; `lb detach` ends that");
                return Ok(());
            }
            Some(event) = hops.recv() => {
                balancer.neighbour(event);
                // What came meanwhile is brought to the datapath together.
                while let Ok(event) = hops.try_recv() {
                    balancer.neighbour(event);
                }
            }
            Some(event) = results.recv() => {
                balancer.health(event);
                while let Ok(event) = results.try_recv() {
                    balancer.health(event);
                }
            }
            Some(swept) = sweeping.ended() => balancer.swept(swept),
            _ = clock.tick() => {
                let now = start.elapsed();
                supervisor.alive();
                balancer.tick(now);
                // Before, no port is known to be reserved.
                if sweeping.is_due(now) && !balancer.is_awaiting(now) {
                    sweeping.order(balancer.sweep(now));
                }
            }
            request = requests.recv(), if !balancer.is_awaiting(start.elapsed()) => match request {
                Some(Request::Status(answer)) => drop(answer.send(balancer.status(start.elapsed()))),
                Some(Request::Services(answer)) => drop(answer.send(balancer.services())),
                Some(Request::Flows(filter, answer)) => {
                    match balancer.flows(&filter, start.elapsed()) {
                        Ok(query) => sweeping.list(query, answer),
                        Err(refusal) => drop(answer.send(Err(refusal))),
                    }
                }
                Some(Request::Explain(question, answer)) => {
                    let (names, ids) = balancer.names();
                    explaining.answer(names, ids, question, answer);
                }
                Some(Request::Change(change, answer)) => {
                    let result = balancer.change(change, start.elapsed());
                    if result.is_ok() {
                        neighbours.watch(balancer.addresses());
                        checks.set(balancer.targets());
                    }
                    drop(answer.send(result));
                }
                // Nobody can ask anything any more.
                None => return Ok(()),
            },
        }
    }
}

/// The datapath, with what a daemon before this one has left.
fn load(config: &Config) -> datapath::Result<Datapath> {
    let pinned = Pinned::open(&config.pin_directory)?;
    let options = Options {
        max_flows: config.limits.flows,
        max_embryonic: config.limits.embryonic,
        log: log_level(config.datapath_log),
    };
    let datapath = Datapath::load_pinned(&options, pinned)?;
    let (kept, wanted) = (datapath.flow_entries()?, options.entries());
    if kept != wanted {
        tracing::warn!(
            kept,
            wanted,
            "the flow tables keep the size that they have; `lb detach` before the start makes \
             others, without the flows"
        );
    }
    Ok(datapath)
}

/// Attaches the program to the interfaces of `config`, which have these indices, and
/// detaches it from others. Where that fails, it is attached where it was before.
fn attach(
    datapath: &mut Datapath,
    config: &Config,
    indices: &[u32],
) -> datapath::Result<Vec<Attached>> {
    let before = datapath.pinned_links()?;
    let wanted = xdp_mode(config.xdp_mode);
    let mut attached = Vec::new();
    for (name, ifindex) in config.interfaces.iter().zip(indices.iter().copied()) {
        let mode = match datapath.attach_at(name, ifindex, wanted) {
            Ok(mode) => mode,
            Err(error) => {
                for new in indices.iter().filter(|ifindex| !before.contains(ifindex)) {
                    datapath.detach(*new)?;
                }
                return Err(error);
            }
        };
        tracing::info!(interface = %name, mode = mode.as_str(), "attached");
        attached.push(Attached {
            name: name.clone(),
            wanted,
            state: Attachment::On { ifindex, mode },
        });
    }
    datapath.detach_others()?;
    Ok(attached)
}

/// The index of the interface of this name.
pub(crate) fn index_of(interfaces: &[Interface], name: &str) -> datapath::Result<u32> {
    let interface = interfaces.iter().find(|interface| interface.name == name);
    interface
        .map(|interface| interface.ifindex)
        .ok_or_else(|| datapath::Error::NoInterface {
            name: name.to_owned(),
        })
}

/// An error of the datapath with what a user can do about it.
pub(crate) fn explained(error: datapath::Error) -> anyhow::Error {
    match error.hint() {
        Some(hint) => Reason::new(chain(&error), hint).into(),
        None => error.into(),
    }
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

/// Writes what the XDP program logs to the daemon's log.
async fn forward(log: ProgramLog) {
    if let Err(error) = log.forward().await {
        tracing::warn!(%error, "the log of the XDP program cannot be read");
    }
}

fn log_level(level: DatapathLog) -> LogLevel {
    match level {
        DatapathLog::Off => LogLevel::Off,
        DatapathLog::Error => LogLevel::Error,
        DatapathLog::Warn => LogLevel::Warn,
        DatapathLog::Info => LogLevel::Info,
        DatapathLog::Debug => LogLevel::Debug,
        DatapathLog::Trace => LogLevel::Trace,
    }
}

pub(crate) fn xdp_mode(mode: XdpMode) -> datapath::XdpMode {
    match mode {
        XdpMode::Auto => datapath::XdpMode::Auto,
        XdpMode::Native => datapath::XdpMode::Native,
        XdpMode::Generic => datapath::XdpMode::Generic,
    }
}
