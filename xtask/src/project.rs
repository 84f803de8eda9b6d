//! The project's folder, and cargo in it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, anyhow, bail};

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the project's folder")
        .into()
}

/// The folder that cargo compiles this project in.
///
/// # Errors
/// If this program was not compiled there.
pub(crate) fn target_dir() -> Result<PathBuf> {
    // This program is TARGET_DIR/PROFILE/xtask.
    let own = env::current_exe().context("cannot find the path of this program")?;
    let parent = own.ancestors().nth(2);
    Ok(parent
        .with_context(|| format!("{} is not in a target folder", own.display()))?
        .into())
}

/// The cargo that runs this, in the project's folder.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// Fails if this is not root.
///
/// # Errors
/// Then, with `why` root is needed.
pub(crate) fn require_root(why: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("{why}, which only root can\nhint: run it as root");
    }
    Ok(())
}

/// Runs a step of a task under a heading, and says how it ended and how long it
/// took.
pub(crate) fn step(heading: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("\n== {heading}");
    let start = Instant::now();
    let result = work();
    let seconds = start.elapsed().as_secs_f32();
    match &result {
        Ok(()) => eprintln!("== {heading}: done in {seconds:.0} s"),
        Err(error) => eprintln!("{error:#}\n== {heading}: failed in {seconds:.0} s"),
    }
    result.map_err(|_| anyhow!("{heading}: failed, see above"))
}

/// Runs a command whose output is the user's.
///
/// # Errors
/// If it cannot be started, or fails.
pub(crate) fn execute(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !status.success() {
        let arguments: Vec<_> = command
            .get_args()
            .map(std::ffi::OsStr::to_string_lossy)
            .collect();
        bail!("`cargo {}` failed: see above", arguments.join(" "));
    }
    Ok(())
}
