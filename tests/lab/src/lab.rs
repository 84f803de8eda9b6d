//! A lab: its name, its directory, and how all of it goes away again.

use std::{
    env,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU8, AtomicU32, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::geteuid,
};

use crate::{Host, host::Place, netns};

/// One directory for each lab that exists, named by its id.
const ROOT: &str = "/run/lb-lab";
/// In [`ROOT`]; held while a lab's directory is made and while stale ones are
/// looked for, so that no lab is taken for stale before it holds its own lock.
const ROOT_LOCK: &str = ".lock";
/// In a lab's directory; held by the process that owns the lab for as long as it
/// lives. The kernel lets it go however that process ends.
const OWNER_LOCK: &str = "lock";
/// In a lab's directory: where its BPF file system is mounted.
const BPF: &str = "bpf";
/// The id of the lab that stays.
pub(crate) const STANDING: &str = "lb-lab";
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
        let directory = directory(&id);

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

    /// A lab of the id [`STANDING`], which stays until it is [`remove`]d. There is one of
    /// them at a time.
    pub(crate) fn standing() -> Result<Self> {
        let directory = directory(STANDING);
        let _root = lock_root()?;
        fs::create_dir(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self {
            id: STANDING.to_owned(),
            directory,
            owner: None,
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
        Host::create(Place {
            name,
            lab: &self.id,
            directory: &self.directory,
            number,
            lasting: self.owner.is_none(),
        })
        .with_context(|| format!("cannot make the host `{name}`"))
    }

    /// What the names of this lab's namespaces begin with, before `.` and the
    /// name of the host.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A BPF file system of this lab: what is pinned there goes with the lab.
    ///
    /// # Errors
    ///
    /// When it cannot be mounted.
    pub fn bpf_file_system(&self) -> Result<PathBuf> {
        let path = self.directory.join(BPF);
        if !path.exists() {
            fs::create_dir(&path)?;
            let bpf = Some("bpf");
            mount(bpf, &path, bpf, MsFlags::empty(), None::<&str>)
                .context("cannot mount a BPF file system")?;
        }
        Ok(path)
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

/// The directory of the lab of this id.
pub(crate) fn directory(id: &str) -> PathBuf {
    Path::new(ROOT).join(id)
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
pub(crate) fn remove(id: &str) -> Result<()> {
    for name in netns::names_of(id)? {
        netns::remove(&name)?;
    }
    let directory = directory(id);
    match umount2(&directory.join(BPF), MntFlags::MNT_DETACH) {
        // There is none, or it is none.
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
        Err(error) => return Err(error).context("cannot unmount the BPF file system"),
    }
    if env::var_os(KEEP).is_some() && id != STANDING {
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

pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
