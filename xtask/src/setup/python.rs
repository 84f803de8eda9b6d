//! The generator of requests that the API is tested with: a Python program, in an environment
//! of its own in `.toolchain/`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{packages, say};

/// The program, at the version that the tests were written for.
const WANTED: &str = "schemathesis==4.32.5";
/// The system's own Python: another on the path may be made for something else.
const PYTHON: &str = "/usr/bin/python3";

/// The folder of the environment.
fn directory(project: &Path) -> PathBuf {
    project.join(".toolchain/schemathesis")
}

/// Where it is written down which version is whole.
fn mark(project: &Path) -> PathBuf {
    directory(project).join("installed")
}

/// Whether the program is there.
pub(super) fn is_there(project: &Path) -> bool {
    fs::read_to_string(mark(project)).is_ok_and(|version| version == WANTED)
}

/// Installs it, if it is not there.
///
/// # Errors
/// If there is no Python, or the program is not to be had.
pub(super) fn install(project: &Path) -> Result<()> {
    if is_there(project) {
        return Ok(());
    }
    if !succeeds(Command::new(PYTHON).args(["-c", "import venv, ensurepip"])) {
        packages::install(&["python3-venv"])?;
    }
    say(format_args!("installing {WANTED}"));
    let directory = directory(project);
    run(Command::new(PYTHON)
        .args(["-m", "venv", "--clear"])
        .arg(&directory))?;
    let mut pip = Command::new(directory.join("bin/python"));
    run(pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        WANTED,
    ]))?;
    fs::write(mark(project), WANTED).context("cannot write down what was installed")
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output();
    let output = output.with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(())
}
