//! `lb run`: joins configuration, API and daemon to a process.

use std::{io, path::PathBuf};

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};
use tracing_subscriber::EnvFilter;

use super::{args::Run, check, output, supervisor::Supervisor};
use crate::{
    api::{self, Socket},
    config::{
        self, Config, Severity, Source,
        host::{self, LocalPorts},
    },
    daemon, privileges,
    state::{Control, Mode, Reason},
};

/// Requests that may wait for the daemon; more wait in their connections.
const REQUESTS: usize = 64;

pub(super) fn run(mut args: Run, socket: Option<PathBuf>) -> anyhow::Result<()> {
    let log = std::mem::take(&mut args.log);
    let config = configure(args, socket)?;
    log_to_stderr(log);
    raise_file_limit();
    warn_of_shared_ports(&config);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_start(|| {
            if let Err(error) = privileges::reduce() {
                tracing::error!(%error, "a thread keeps rights that it does not need");
            }
        })
        .build()
        .context("cannot start the threads of the balancer")?
        .block_on(serve(config))
}

/// The configuration of the file, with what the command line says instead.
fn configure(args: Run, socket: Option<PathBuf>) -> anyhow::Result<Config> {
    let source = Source::open(&args.config)?;
    let outcome = config::read(&source);
    check::explain(&source, &outcome.diagnostics);
    let mut config = outcome.config.ok_or_else(|| {
        let errors = outcome.diagnostics.count(Severity::Error);
        Reason::new(
            format!(
                "`{}` has {}",
                source.name(),
                check::counted(errors, "error")
            ),
            "mend what is shown above; `lb check` tells when it is right",
        )
    })?;
    if !args.interfaces.is_empty() {
        config.interfaces = args.interfaces;
        config.interfaces.sort_unstable();
        config.interfaces.dedup();
    }
    config.xdp_mode = args.xdp_mode.unwrap_or(config.xdp_mode);
    config.socket = socket.unwrap_or(config.socket);
    config.datapath_log = args.datapath_log;
    Ok(config)
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

async fn serve(config: Config) -> anyhow::Result<()> {
    // Before anything is attached, so that the signals never find it attached and
    // nobody listening.
    let shutdown = shutdown_signal()?;
    let socket = Socket::bind(&config.socket)?;
    tracing::info!(socket = %socket.path().display(), "listening");
    let (control, requests) = Control::channel(REQUESTS);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(api::serve(socket, control, async {
        let _ = stopped.await;
    }));
    let result = daemon::run(config, requests, &mut Supervisor::new(), shutdown).await;
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
