//! `lb run`: joins configuration, API and daemon to a process.

use std::{
    io,
    path::{self, PathBuf},
};

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};
use tracing_subscriber::EnvFilter;

use super::{args::Run, check, output, supervisor::Supervisor};
use crate::{
    api::{self, Access, Socket},
    config::{
        self, Config, Severity, Source,
        host::{self, LocalPorts},
    },
    daemon::{self, Setup},
    intent::{Intent, KeptDrain, Store},
    privileges,
    state::{Control, Desired, FileContent, Mode, Reason},
};

/// Requests that may wait for the daemon; more wait in their connections.
const REQUESTS: usize = 64;

pub(super) fn run(mut args: Run, socket: Option<PathBuf>) -> anyhow::Result<()> {
    log_to_stderr(std::mem::take(&mut args.log));
    let prepared = prepare(args, socket)?;
    raise_file_limit();
    warn_of_shared_ports(&prepared.config);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_start(|| {
            if let Err(error) = privileges::reduce() {
                tracing::error!(%error, "a thread keeps rights that it does not need");
            }
        })
        .build()
        .context("cannot start the threads of the balancer")?
        .block_on(serve(prepared))
}

/// What the balancer begins with, but for what needs a runtime.
struct Prepared {
    config: Config,
    file: PathBuf,
    desired: Desired,
    intent: Intent,
    store: Store,
    drains: Vec<KeptDrain>,
}

/// Reads the file and what was changed while the balancer ran before.
fn prepare(args: Run, socket: Option<PathBuf>) -> anyhow::Result<Prepared> {
    let source = Source::open(&args.config)?;
    let config = read(&source)?;
    let file = path::absolute(&args.config).context("cannot tell where the file is")?;
    let state_file = config.state_file.clone();
    let mut store = Store::open(&state_file)?;
    if args.forget_changes
        && let Some(aside) = store.put_aside()?
    {
        let (file, aside) = (state_file.display(), aside.display());
        tracing::warn!(%file, %aside, "what was changed while the balancer ran is put aside");
    }
    let kept = store.read()?;

    let own = FileContent {
        name: file.display().to_string(),
        ..config.content(&source)
    };
    let applied = kept
        .applied
        .filter(|applied| applied.instead_of == own.text);
    let (mut config, applied) = match applied {
        None => (config, None),
        Some(applied) => {
            let source = Source::new(applied.name.clone(), applied.text.as_bytes());
            tracing::info!(file = applied.name, "the file that was applied last holds");
            let config = read(&source)?;
            let content = config.content(&source);
            (config, Some((applied, content)))
        }
    };
    let mut fixed = Vec::new();
    if !args.interfaces.is_empty() {
        config.interfaces = args.interfaces;
        config.interfaces.sort_unstable();
        config.interfaces.dedup();
        fixed.push("interfaces");
    }
    if let Some(mode) = args.xdp_mode {
        config.xdp_mode = mode;
        fixed.push("xdp_mode");
    }
    if let Some(socket) = socket {
        config.socket = socket;
        fixed.push("socket");
    }
    config.state_file = state_file;
    config.datapath_log = args.datapath_log;
    // What it runs with, so that only another word of the file is something new.
    let settings = config.settings();
    let with_settings = |content| FileContent {
        settings: settings.clone(),
        ..content
    };
    let applied = applied.map(|(applied, content)| (applied, with_settings(content)));
    let begun = Intent::begin(with_settings(own), applied, &kept.services, &fixed);
    let (intent, desired) = begun.map_err(|refusal| {
        Reason::new(
            refusal.to_string(),
            "mend the file, or start with what it says alone by `lb run --forget-changes`",
        )
    })?;
    let changed = intent.status().changed_services;
    if changed != 0 {
        tracing::info!(
            services = changed,
            "changes that were made while the balancer ran hold on; `lb config show` tells them"
        );
    }
    config.services = desired.services().cloned().collect();
    Ok(Prepared {
        config,
        file,
        desired,
        intent,
        store,
        drains: kept.drains,
    })
}

/// The configuration of a file, with its mistakes on stderr.
fn read(source: &Source) -> anyhow::Result<Config> {
    let outcome = config::read(source);
    check::explain(source, &outcome.diagnostics);
    Ok(outcome.config.ok_or_else(|| {
        let errors = outcome.diagnostics.count(Severity::Error);
        Reason::new(
            format!(
                "`{}` has {}",
                source.name(),
                check::counted(errors, "error")
            ),
            "mend what is shown above; `lb check` tells when it is right",
        )
    })?)
}

pub(super) fn log_to_stderr(filter: EnvFilter) {
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // Where stderr cannot be written, a line is lost. Told of that on stderr, it would
        // be the end of the process.
        .log_internal_errors(false)
        .with_ansi(output::colour())
        .with_target(false)
        .init();
}

/// Lets this process open as many files as the system allows it: every health check that
/// is under way has a socket, and 1,024, the usual limit, is for programs that use
/// `select`.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

fn warn_of_shared_ports(config: &Config) {
    if config
        .services
        .iter()
        .all(|service| service.mode != Mode::FullNat)
    {
        return;
    }
    match LocalPorts::of_host() {
        Ok(local) => {
            for conflict in host::port_conflicts(config, &local) {
                tracing::warn!("{conflict}");
            }
        }
        Err(error) => tracing::warn!(%error, "cannot tell which ports this host uses itself"),
    }
}

async fn serve(prepared: Prepared) -> anyhow::Result<()> {
    // Before anything is attached, so that the signals never find it attached and
    // nobody listening.
    let shutdown = shutdown_signal()?;
    let hangup = signal(SignalKind::hangup()).context("cannot listen for signals")?;
    let read_group = prepared.config.read_group.as_deref();
    let access = read_group.map_or_else(|| Ok(Access::default()), Access::for_readers)?;
    let socket = Socket::bind_for(&prepared.config.socket, access)?;
    tracing::info!(socket = %socket.path().display(), "listening");
    let (control, requests) = Control::channel(REQUESTS);
    let events = control.events().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(api::serve(socket, control, async {
        let _ = stopped.await;
    }));
    let setup = Setup {
        config: prepared.config,
        file: prepared.file,
        desired: prepared.desired,
        intent: prepared.intent,
        store: prepared.store,
        drains: prepared.drains,
        hangup,
        events,
    };
    let result = daemon::run(setup, requests, &mut Supervisor::new(), shutdown).await;
    drop(stop);
    server.await.context("the API ended badly")?;
    result
}

/// Comes when the process is told to end by SIGINT or SIGTERM.
pub(super) fn shutdown_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let (mut interrupt, mut terminate): (Signal, Signal) = (
        listen(SignalKind::interrupt())?,
        listen(SignalKind::terminate())?,
    );
    Ok(async move {
        let name = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        };
        tracing::info!("{name}: shutting down");
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_limited_by_the_hard_limit_alone() {
        let limits = || getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let (_, hard) = limits();
        setrlimit(Resource::RLIMIT_NOFILE, hard - 1, hard).unwrap();
        raise_file_limit();
        assert_eq!(limits(), (hard, hard));
    }
}
