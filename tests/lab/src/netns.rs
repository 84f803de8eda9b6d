//! Network namespaces with names, as `ip netns` makes them.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{command::run, lab::is_absent};

/// Where the names are.
const DIRECTORY: &str = "/run/netns";

/// The name of the namespace of a host in the lab of this id.
pub(crate) fn name(lab: &str, host: &str) -> String {
    format!("{lab}.{host}")
}

/// Makes a namespace.
pub(crate) fn create(name: &str) -> Result<File> {
    run(Command::new("ip").args(["netns", "add", name]))?;
    open(name)
}

/// Opens a namespace, for `setns`.
pub(crate) fn open(name: &str) -> Result<File> {
    let path = path(name);
    File::open(&path).with_context(|| format!("cannot open {}", path.display()))
}

/// The names of the namespaces of the lab of this id, in order.
pub(crate) fn names_of(lab: &str) -> Result<Vec<String>> {
    let prefix = name(lab, "");
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        // Nobody has made any since the machine started.
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error).context(format!("cannot read {DIRECTORY}")),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Removes a namespace of a lab, and kills what runs inside: the lab has made the
/// namespace, so whatever is there was started for it.
pub(crate) fn remove(name: &str) -> Result<()> {
    let path = path(name);
    let netns = identity(&path).with_context(|| format!("cannot look at {}", path.display()))?;
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        // It may end meanwhile, or be a zombie: then there is nothing to kill.
        let inside = identity(&entry.path().join("ns/net")).is_ok_and(|found| found == netns);
        if inside && pid != Pid::this().as_raw() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    run(Command::new("ip").args(["netns", "delete", name]))?;
    Ok(())
}

fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// What tells one namespace from another (namespaces(7)).
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
