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
//!  file --- what it says+                    +-- state file: what was changed
//! ```

mod balancer;
mod explaining;
mod keeping;
mod ledger;
mod plane;
mod status;
mod stepped;
mod sweeping;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    path::PathBuf,
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use lb_common::CLOCK_TICK_MS;
use tokio::{
    signal::unix::Signal,
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

pub use self::stepped::Stepped;
use self::{
    balancer::{Attached, Attachment, Balancer},
    explaining::Explaining,
    keeping::{Asker, Keeping},
    plane::{Plane, Wired},
    sweeping::Sweeping,
    watch::{News, watch},
};
use crate::{
    config::{Config, DatapathLog, Severity, XdpMode},
    datapath::{self, Datapath, LogLevel, Options, Pinned, ProgramLog},
    health::{Checks, passive},
    intent::{Intent, KeptDrain, Store},
    neighbour::{self, Interface, Neighbours},
    privileges::with_lookups,
    state::{Desired, Events, FileContent, Happening, Reason, Request, Status},
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

/// What a daemon begins with.
pub struct Setup {
    /// Its settings; the services are in `desired`.
    pub config: Config,
    /// The configuration file.
    pub file: PathBuf,
    /// What is wanted.
    pub desired: Desired,
    /// And who said so.
    pub intent: Intent,
    /// Where it is kept.
    pub store: Store,
    /// Drains that a daemon before this one began.
    pub drains: Vec<KeptDrain>,
    /// Says when the file is to be read again.
    pub hangup: Signal,
    /// Whom to tell of what happens.
    pub events: Events,
}

/// Runs the balancer that `setup` describes, and answers requests, until `shutdown`
/// comes. The datapath goes on forwarding then, and the next call goes on with it; what it
/// was when this one began, it is until all of that has been read.
///
/// # Errors
///
/// Where it cannot start: see [`datapath::Error`]. Once it runs it goes on.
pub async fn run(
    setup: Setup,
    mut requests: mpsc::Receiver<Request>,
    supervisor: &mut impl Supervisor,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let config = setup.config;
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
    let mut balancer = Balancer::new(plane, attached, setup.desired, found, start.elapsed());
    balancer.events = setup.events;
    balancer.resume_drains(&setup.drains, start.elapsed());
    let mut keeping = Keeping::new(setup.intent, setup.store);
    keeping.keep_drains(&balancer, start.elapsed());
    let (news_sender, mut news) = mpsc::channel(1);
    tokio::spawn(watch(setup.file, setup.hangup, news_sender));
    for interface in interfaces {
        balancer.neighbour(neighbour::Event::Interface(interface));
    }
    neighbours.watch(balancer.addresses());

    let mut clock = interval(Duration::from_millis(CLOCK_TICK_MS.into()));
    clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut watching = interval(passive::SAMPLING);
    watching.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shutdown = pin!(shutdown);
    balancer.reconcile_if_needed(start.elapsed());
    supervisor.ready();
    balancer.events.publish(Happening::Started {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision: keeping.intent.revision().to_string(),
    });
    loop {
        balancer.reconcile_if_needed(start.elapsed());
        if let Some(targets) = balancer.new_targets() {
            checks.resume(targets, |target| balancer.was_up(target));
        }
        let is_free = keeping.is_free() && !balancer.is_awaiting(start.elapsed());
        tokio::select! {
            () = &mut shutdown, if keeping.is_free() => {
                supervisor.stopping();
                balancer.events.publish(Happening::Stopping);
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
            _ = watching.tick(), if balancer.is_watching() => {
                for (service, backend) in balancer.doubted(start.elapsed()) {
                    checks.doubt(&service, backend);
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
            is_taken_back = keeping.written(&mut balancer, || start.elapsed()) => {
                if is_taken_back {
                    neighbours.watch(balancer.addresses());
                }
            }
            Some(read) = news.recv(), if is_free => {
                if reread(&mut keeping, &mut balancer, read, start.elapsed()) {
                    neighbours.watch(balancer.addresses());
                }
            }
            request = requests.recv(), if is_free => {
                let Some(request) = request else {
                    // Nobody can ask anything any more.
                    return Ok(());
                };
                let now = start.elapsed();
                match request {
                    Request::Flows(filter, answer) => match balancer.flows(&filter, now) {
                        Ok(query) => sweeping.list(query, answer),
                        Err(refusal) => drop(answer.send(Err(refusal))),
                    },
                    Request::Explain(question, answer) => {
                        let (names, ids) = balancer.names();
                        explaining.answer(names, ids, question, answer);
                    }
                    request => if answer(&mut keeping, &mut balancer, request, now) {
                        neighbours.watch(balancer.addresses());
                    },
                }
            }
        }
    }
}

/// Answers a request, but for those that take their time. Says whether something else is wanted now.
fn answer<P: Plane>(
    keeping: &mut Keeping,
    balancer: &mut Balancer<P>,
    request: Request,
    now: Duration,
) -> bool {
    let revision = keeping.intent.revision();
    match request {
        Request::Status(answer) => {
            let status = Status {
                configuration: Some(keeping.intent.status()),
                ..balancer.status(now)
            };
            drop(answer.send(status));
        }
        Request::Services(answer) => {
            let services = balancer.desired.services().cloned().collect();
            drop(answer.send((revision, services)));
        }
        Request::Service(name, answer) => {
            let service = balancer.desired.service(&name).cloned();
            drop(answer.send((revision, service)));
        }
        Request::View(answer) => drop(answer.send(keeping.intent.view(&balancer.desired))),
        Request::Change(change, condition, answer) => {
            let asker = Asker::Change(answer);
            return keeping.change(balancer, change, condition.as_ref(), asker, now);
        }
        Request::Apply(apply, answer) => {
            return keeping.apply(balancer, apply, Asker::Apply(answer), now);
        }
        Request::Flows(..) | Request::Explain(..) => {
            unreachable!("threads of their own answer these")
        }
    }
    false
}

/// Takes what the configuration file says. Says whether something else is wanted now.
fn reread<P: Plane>(
    keeping: &mut Keeping,
    balancer: &mut Balancer<P>,
    news: News,
    now: Duration,
) -> bool {
    let read = match news.read {
        Ok(read) => read,
        Err(reason) => {
            keeping.refused(balancer, None, &reason.message);
            return false;
        }
    };
    let (source, outcome) = *read;
    if keeping.intent.knows(source.text()) && !news.is_asked_for {
        return false;
    }
    for found in outcome.diagnostics.iter() {
        let (line, _) = source.position(found.span.start);
        let (message, hint) = (&found.message, &found.hint);
        match found.severity {
            Severity::Error => tracing::error!(line, hint, "{message}"),
            Severity::Warning => tracing::warn!(line, hint, "{message}"),
        }
    }
    let Some(config) = outcome.config else {
        let why = outcome.diagnostics.summary(&source);
        keeping.refused(balancer, Some(source.text()), &why);
        return false;
    };
    let content = FileContent {
        name: keeping.intent.path().to_owned(),
        ..config.content(&source)
    };
    keeping.reload(balancer, content, now)
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
