//! `lb check`.

use std::process::ExitCode;

use serde::Serialize;

use super::{args::Check, output};
use crate::config::{self, Diagnostics, Outcome, Severity, Source};

/// What `lb check --json` prints. Fields are added, never renamed.
#[derive(Serialize)]
struct Report<'a> {
    file: &'a str,
    /// Whether `lb run` would take the file.
    valid: bool,
    diagnostics: Vec<Finding<'a>>,
}

#[derive(Serialize)]
struct Finding<'a> {
    severity: Severity,
    line: usize,
    column: usize,
    message: &'a str,
    hint: &'a str,
}

pub(super) fn check(args: &Check) -> anyhow::Result<ExitCode> {
    let source = Source::open(&args.file)?;
    let outcome = config::read(&source);
    if args.json {
        output::print_json(&report(&source, &outcome))?;
    } else {
        explain(&source, &outcome.diagnostics);
        output::message(&summary(&source, &outcome));
    }
    Ok(match outcome.config {
        Some(_) => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    })
}

/// Shows what is wrong with a file.
pub(super) fn explain(source: &Source, diagnostics: &Diagnostics) {
    let text = diagnostics.render(source, output::colour());
    if !text.is_empty() {
        output::message(text.trim_end_matches('\n'));
        output::message("");
    }
}

pub(super) fn summary(source: &Source, outcome: &Outcome) -> String {
    let file = source.name();
    let Some(config) = &outcome.config else {
        let errors = outcome.diagnostics.count(Severity::Error);
        return format!("{file}: {}", counted(errors, "error"));
    };
    let backends = config.services.iter().map(|service| service.backends.len());
    let services = counted(config.services.len(), "service");
    let backends = counted(backends.sum(), "backend");
    format!("{file}: no errors; {services} and {backends}")
}

fn report<'a>(source: &'a Source, outcome: &'a Outcome) -> Report<'a> {
    let finding = |found: &'a config::Diagnostic| {
        let (line, column) = source.position(found.span.start);
        Finding {
            severity: found.severity,
            line,
            column,
            message: &found.message,
            hint: &found.hint,
        }
    };
    Report {
        file: source.name(),
        valid: outcome.config.is_some(),
        diagnostics: outcome.diagnostics.iter().map(finding).collect(),
    }
}

/// A number with its noun.
pub(super) fn counted(number: usize, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        number => format!("{number} {noun}s"),
    }
}
