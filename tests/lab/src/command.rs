//! Tools of the system that the lab runs.

use std::{
    io::{self, Write},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Runs `command` to its end and returns what it wrote to stdout.
///
/// # Errors
///
/// When it cannot be started, or fails: then with the command line and what it
/// wrote to stderr.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    run_with_input(command, "")
}

/// The same with something on its stdin.
pub(crate) fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    let line = describe(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| explain_missing(command, error))?;
    let written = child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child
        .wait_with_output()
        .with_context(|| format!("cannot wait for `{line}`"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let input = match input.trim_end() {
            "" => String::new(),
            input => format!("\nits input was:\n{input}"),
        };
        bail!(
            "`{line}` failed, {}: {}{input}",
            output.status,
            stderr.trim_end()
        );
    }
    written.with_context(|| format!("cannot write to `{line}`"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Why `command` could not be started, with the package that may be missing.
pub(crate) fn explain_missing(command: &Command, error: io::Error) -> anyhow::Error {
    let program = command.get_program().to_string_lossy();
    let hint = match (&*program, error.kind()) {
        ("ip" | "bridge", io::ErrorKind::NotFound) => "; install the package iproute2",
        ("ethtool" | "tcpdump" | "tshark", io::ErrorKind::NotFound) => {
            "; install the package of that name"
        }
        _ => "",
    };
    let message = format!("cannot run `{program}`{hint}");
    anyhow::Error::new(error).context(message)
}

/// The command line, for messages.
fn describe(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}
