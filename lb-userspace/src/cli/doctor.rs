//! `lb doctor`.

use std::{path::Path, process::ExitCode};

use serde::Serialize;

use super::{args, output};
use crate::{
    api::Client,
    config::{self, Config, Severity as Mistake, Source},
    doctor::{self, Facts, Finding, Severity},
    state::Status,
};

/// What `lb doctor --json` prints. Fields are added, never renamed.
#[derive(Serialize)]
struct Report {
    /// Whether a running balancer was asked.
    daemon: bool,
    /// Whether a configuration was looked at.
    config: bool,
    findings: Vec<Finding>,
}

pub(super) fn doctor(
    args: &args::Doctor,
    socket: Option<std::path::PathBuf>,
) -> anyhow::Result<ExitCode> {
    let mut findings = Vec::new();
    let config = match &args.config {
        Some(path) => read(path, &mut findings),
        None if Path::new(config::DEFAULT_CONFIG).exists() => {
            read(Path::new(config::DEFAULT_CONFIG), &mut findings)
        }
        None => None,
    };
    let socket = socket
        .or_else(|| config.as_ref().map(|config| config.socket.clone()))
        .unwrap_or_else(args::default_socket);
    let status = status(&socket);
    let facts = Facts::gather(config.as_ref(), status);
    findings.extend(doctor::examine(&facts, config.as_ref()));
    let is_ill = findings
        .iter()
        .any(|finding| finding.severity == Severity::Error);
    if args.json {
        output::print_json(&Report {
            daemon: facts.status.is_some(),
            config: config.is_some(),
            findings,
        })?;
    } else {
        output::print(&show(&findings))?;
        if config.is_none() && findings.iter().all(|finding| finding.id != "config") {
            output::message(
                "no configuration was looked at: name one by --config, to have its interfaces, \
                 services and backends examined",
            );
        }
    }
    Ok(if is_ill {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The configuration of a file. Where it has mistakes, that is a finding.
fn read(path: &Path, findings: &mut Vec<Finding>) -> Option<Config> {
    let source = match Source::open(path) {
        Ok(source) => source,
        Err(reason) => {
            let hint = reason.hint.unwrap_or_default();
            findings.push(doctor::unusable(reason.message, hint));
            return None;
        }
    };
    let outcome = config::read(&source);
    if outcome.config.is_none() {
        let errors = outcome.diagnostics.count(Mistake::Error);
        findings.push(doctor::unusable(
            format!(
                "`{}` has {}",
                source.name(),
                super::check::counted(errors, "error")
            ),
            format!("`lb check {}` shows them", source.name()),
        ));
    }
    outcome.config
}

/// What the balancer says that listens on a socket.
fn status(socket: &Path) -> Option<Status> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    runtime.block_on(Client::new(socket).status()).ok()
}

fn show(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "nothing was found\n".to_owned();
    }
    let mut text = String::new();
    for finding in findings {
        text.push_str(&format!(
            "{}: {} [{}]\n",
            finding.severity, finding.message, finding.id
        ));
        text.push_str(&format!("  hint: {}\n", finding.hint));
    }
    text
}
