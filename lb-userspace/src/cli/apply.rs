//! `lb apply`.

use std::{path, process::ExitCode};

use anyhow::Context as _;
use serde_json::Value;

use super::{args, check, output};
use crate::{
    api::{Client, wire},
    config::{self, Source},
    state::{Action, Difference, KeyChange, Reloaded},
};

pub(super) async fn apply(client: &Client, command: &args::Apply) -> anyhow::Result<ExitCode> {
    let source = Source::open(&command.file)?;
    let outcome = config::read(&source);
    check::explain(&source, &outcome.diagnostics);
    if outcome.config.is_none() {
        output::message(&check::summary(&source, &outcome));
        return Ok(ExitCode::FAILURE);
    }
    let name = path::absolute(&command.file).context("cannot tell where the file is")?;
    let file = wire::File {
        name: name.display().to_string(),
        text: source.text().to_owned(),
    };
    let revision = command.if_revision.map(|revision| revision.to_string());
    let reloaded = client
        .apply(&file, command.dry_run, revision.as_deref())
        .await?;
    show(&reloaded, command.dry_run, command.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Shows what has changed, or would.
pub(super) fn show(reloaded: &Reloaded, is_dry_run: bool, json: bool) -> anyhow::Result<()> {
    if json {
        return output::print_json(reloaded);
    }
    let lines: String = reloaded
        .differences
        .iter()
        .map(|found| line(found) + "\n")
        .collect();
    output::print(&lines)?;
    let changes = match (reloaded.differences.len(), is_dry_run) {
        (0, _) => "nothing changes".to_owned(),
        (1, true) => "1 change, which is not made".to_owned(),
        (changes, true) => format!("{changes} changes, which are not made"),
        (changes, false) => check::counted(changes, "change") + " made",
    };
    output::message(&changes);
    if !reloaded.restart_needed.is_empty() {
        let keys = reloaded.restart_needed.join(", ").replace('_', "-");
        output::message(&format!("only after another start of `lb run`: {keys}"));
    }
    Ok(())
}

/// `+`, `-` or `~`, what it is about, and what changes of it.
pub(super) fn line(found: &Difference) -> String {
    let sign = match found.action {
        Action::Add => '+',
        Action::Remove => '-',
        Action::Change => '~',
    };
    let what = match &found.backend {
        Some(backend) => format!("backend {} {backend}", found.service),
        None => format!("service {}", found.service),
    };
    let keys: Vec<String> = found.keys.iter().map(key).collect();
    match keys.is_empty() {
        true => format!("{sign} {what}"),
        false => format!("{sign} {what}: {}", keys.join(", ")),
    }
}

fn key(change: &KeyChange) -> String {
    let value = |value: &Value| match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let key = change.key.replace('_', "-");
    format!(
        "{key} {} -> {}",
        value(&change.before),
        value(&change.after)
    )
}
