//! A lab: its name, its directory, and how all of it goes away again.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU8, AtomicU32, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};

use crate::{Host, command::run};

/// One directory for each lab that exists, named by its id.
const ROOT: &str = "/run/lb-lab";
/// In [`ROOT`]; held while a lab's directory is made and while stale ones are
/// looked for, so that no lab is taken for stale before it holds its own lock.
const ROOT_LOCK: &str = ".lock";
/// In a lab's directory; held by the process that owns the lab for as long as it
/// lives. The kernel lets it go however that process ends.
const OWNER_LOCK: &str = "lock";
/// Where `ip netns` keeps the names of network namespaces.
pub(crate) const NETNS: &str = "/run/netns";
/// Set it to keep a lab's directory, with logs and captures, after its end.
const KEEP: &str = "LB_LAB_KEEP";

/// Hosts and links that exist as long as this value.
///
/// Names of namespaces, and the directory of logs and sockets, begin with an id
/// that no other lab has, so that any number of them run at once.
#[derive(Debug)]
pub struct Lab {
    id: String,
    directory: PathBuf,
    /// `None` in a lab that outlives its maker.
    owner: Option<File>,
    hosts: AtomicU8,
}

impl Lab {
    /// A lab without hosts. Removes stale labs first.
    ///
    /// `name` is for people who look at `ip netns list`: lower-case letters,
    /// digits and `-`.
    ///
    /// # Errors
    ///
    /// Without root's rights, with a bad name, or when `/run` cannot be written.
    pub fn new(name: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);

        check_name(name)?;
        sweep_stale()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("{name}-{}-{number}", process::id());
        let directory = Path::new(ROOT).join(&id);

        let _root = lock_root()?;
        fs::create_dir(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let owner = File::create(directory.join(OWNER_LOCK))?;
        owner.lock()?;
        Ok(Self {
            id,
            directory,
            owner: Some(owner),
            hosts: AtomicU8::new(0),
        })
    }

    /// Another host of this lab: lower-case letters, digits and `-`.
    ///
    /// # Errors
    ///
    /// When the name is taken or bad, or the namespace cannot be made.
    pub fn host(&self, name: &str) -> Result<Host> {
        check_name(name)?;
        let number = 1 + self.hosts.fetch_add(1, Ordering::Relaxed);
        Host::create(
            name,
            &format!("{}.{name}", self.id),
            &self.directory,
            number,
        )
        .with_context(|| format!("cannot make the host `{name}`"))
    }

    /// What the names of this lab's namespaces begin with, before `.` and the
    /// name of the host.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where logs, captures, sockets and configuration of this lab are kept. It
    /// goes with the lab.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.owner.is_none() {
            return;
        }
        if thread::panicking() {
            print_logs(&self.directory);
        }
        if let Err(error) = remove(&self.id) {
            // A destructor cannot fail, and the sweep of the next lab tries again.
            eprintln!("lab {}: {error:#}", self.id);
        }
    }
}

/// Removes the labs whose owner no longer lives: processes, namespaces and
/// directory. Labs of living processes are left alone.
///
/// # Errors
///
/// Without root's rights, or when something cannot be removed.
pub fn sweep_stale() -> Result<()> {
    let _root = lock_root()?;
    for entry in fs::read_dir(ROOT)? {
        let entry = entry?;
        let lock = match File::open(entry.path().join(OWNER_LOCK)) {
            Ok(lock) => lock,
            // No lab, or one without an owner.
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        match lock.try_lock() {
            Ok(()) => remove(&entry.file_name().to_string_lossy())?,
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Holds the lock of [`ROOT`] until it is dropped.
fn lock_root() -> Result<File> {
    ensure!(
        geteuid().is_root(),
        "network namespaces and XDP need root; run this as root"
    );
    fs::create_dir_all(ROOT).with_context(|| format!("cannot make {ROOT}"))?;
    let lock = File::create(Path::new(ROOT).join(ROOT_LOCK))?;
    lock.lock()?;
    Ok(lock)
}

/// Removes a lab: kills what runs in its namespaces, then takes away their names
/// and its directory.
fn remove(id: &str) -> Result<()> {
    let prefix = format!("{id}.");
    for name in netns_names()? {
        if name.starts_with(&prefix) {
            kill_inside(&name)?;
            run(Command::new("ip").args(["netns", "delete", &name]))?;
        }
    }
    let directory = Path::new(ROOT).join(id);
    if std::env::var_os(KEEP).is_some() {
        // Without its lock it belongs to nobody, and no sweep takes it.
        fs::remove_file(directory.join(OWNER_LOCK))?;
        eprintln!("kept {}", directory.display());
        return Ok(());
    }
    match fs::remove_dir_all(&directory) {
        Err(error) if !is_absent(&error) => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Names of all network namespaces of this machine that have one.
fn netns_names() -> Result<Vec<String>> {
    let entries = match fs::read_dir(NETNS) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error).context(format!("cannot read {NETNS}")),
    };
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Kills every process in the namespace of this name, and no other: a lab has made
/// its namespaces, so whatever runs there was started for it.
fn kill_inside(name: &str) -> Result<()> {
    let netns = identity(&Path::new(NETNS).join(name))
        .with_context(|| format!("cannot look at the namespace {name}"))?;
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
    Ok(())
}

/// What tells one namespace from another (namespaces(7)).
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Shows the end of every log, for the report of the test that failed.
fn print_logs(directory: &Path) {
    const LINES: usize = 30;

    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let text = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        let rest = lines.len().saturating_sub(LINES);
        eprintln!("--- end of {}", path.display());
        for line in &lines[rest..] {
            eprintln!("{line}");
        }
    }
}

fn check_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    ensure!(
        !name.is_empty() && name.chars().all(good),
        "`{name}` is no name for a lab or a host; use lower-case letters, digits and `-`"
    );
    Ok(())
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
