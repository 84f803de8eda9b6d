//! Where the datapath is kept while no daemon runs: maps and links, pinned in a directory
//! on a BPF file system.
//!
//! ```text
//! DIRECTORY/v3/FLOWS_V4 ...    the maps, of version 3 of their layout
//! DIRECTORY/links/2            the link to the interface of index 2
//! ```
//!
//! A link keeps the program attached, the program its maps. That maps have names is for
//! the next daemon. Those that no link needs, of a daemon that ended before it attached
//! anything, are worth nothing.

use std::{
    ffi::CString,
    fs::{self, DirBuilder, File},
    io,
    os::unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
    path::{Path, PathBuf},
};

use lb_common::{SCHEMA_VERSION, map_name};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{FsType, statfs},
};

use super::{
    bpf,
    error::{Error, Result},
    passage,
};

/// Where Linux has its BPF file system.
const BPFFS: &str = "/sys/fs/bpf";
/// Magic number of the BPF file system: `BPF_FS_MAGIC` of linux/magic.h.
pub const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);

/// The maps of the program that are kept: all that hold what cannot be made anew, or that programs of
/// two daemons must share while one replaces those of the other.
const MAPS: [&str; 46] = [
    map_name::RUNTIME,
    map_name::SERVICES_V4,
    map_name::SERVICES_V6,
    map_name::DIRECT_V4,
    map_name::DIRECT_V6,
    map_name::REPLY_SOURCES,
    map_name::VIPS_V4,
    map_name::VIPS_V6,
    map_name::PREFIXES_V4,
    map_name::PREFIXES_V6,
    map_name::PORTS,
    map_name::FRAGMENTS_V4,
    map_name::FRAGMENTS_V6,
    map_name::RINGS,
    map_name::SIZED_RINGS,
    map_name::SERVER_IDS,
    map_name::OPTIONS,
    map_name::TURNS,
    map_name::GUARDS,
    map_name::SOURCES_V4,
    map_name::SOURCES_V6,
    map_name::SERVICE_BUCKETS,
    map_name::SOURCE_BUCKETS,
    map_name::LIVE,
    map_name::PINS_V4,
    map_name::PINS_V6,
    map_name::EMBRYONIC_V4,
    map_name::EMBRYONIC_V6,
    map_name::ENTERED,
    map_name::CLIENTS_V4,
    map_name::CLIENTS_V6,
    map_name::NEWCOMERS_V4,
    map_name::NEWCOMERS_V6,
    map_name::BACKENDS,
    map_name::PORT_POOLS,
    map_name::FLOWS_V4,
    map_name::FLOWS_V6,
    map_name::REPLIES_V4,
    map_name::REPLIES_V6,
    map_name::COUNTERS,
    map_name::DROPS,
    map_name::DEVICES,
    map_name::INTERFACES,
    map_name::STAGES,
    map_name::HANDOVER,
    map_name::ICMP_BUDGET,
];

/// The directory, which one process uses at a time.
pub struct Pinned {
    directory: PathBuf,
    /// Released when this is dropped, or the process ends in any way.
    _lock: Flock<File>,
}

impl Pinned {
    /// Opens the directory, and makes it where there is none.
    ///
    /// # Errors
    ///
    /// Where it is on no BPF file system, or another process uses it.
    pub fn open(directory: &Path) -> Result<Self> {
        let failed = |action| move |source| refused(action, directory, source);
        if directory.starts_with(BPFFS) {
            mount_if_missing().map_err(failed("mounting the BPF file system for"))?;
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed("making"))?;
        let kind = statfs(directory).map_err(|error| failed("asking for")(error.into()))?;
        if kind.filesystem_type() != BPF_FS_MAGIC {
            return Err(Error::NoBpfFileSystem {
                path: directory.to_owned(),
            });
        }
        let file = File::open(directory).map_err(failed("opening"))?;
        let lock =
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(
                |(_, error)| match error {
                    Errno::EWOULDBLOCK => Error::PinnedInUse {
                        path: directory.to_owned(),
                    },
                    error => failed("locking")(error.into()),
                },
            )?;
        Ok(Self {
            directory: directory.to_owned(),
            _lock: lock,
        })
    }

    /// The indices of the interfaces that there are links for in a directory, whoever uses it;
    /// none where it cannot be read.
    #[must_use]
    pub fn links_in(directory: &Path) -> Vec<u32> {
        let Ok(entries) = fs::read_dir(directory.join("links")) else {
            return Vec::new();
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter_map(|name| name.parse().ok()).collect()
    }

    /// Opens the directory if there is one.
    ///
    /// # Errors
    ///
    /// As with [`Self::open`].
    pub fn open_existing(directory: &Path) -> Result<Option<Self>> {
        match directory.try_exists() {
            Ok(false) => Ok(None),
            _ => Self::open(directory).map(Some),
        }
    }

    /// Makes the directories for a datapath. Where no link is left, nor are the maps.
    /// Those of another layout are left alone.
    pub(super) fn prepare(&self) -> Result<()> {
        let is_worthless = self.links()?.is_empty();
        for version in self.versions()? {
            if is_worthless {
                self.remove(&self.maps(version))?;
            } else if version != SCHEMA_VERSION {
                return Err(Error::OtherLayout {
                    path: self.directory.clone(),
                    found: version,
                });
            }
        }
        for directory in [self.maps(SCHEMA_VERSION), self.directory.join("links")] {
            match fs::create_dir(&directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                result => result.map_err(self.failed("making", &directory))?,
            }
        }
        Ok(())
    }

    /// The directory.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether there are maps of our layout.
    pub(super) fn has_maps(&self) -> bool {
        self.map_paths().all(|(_, path)| path.exists())
    }

    /// The maps, with the places where they are, or are to be.
    pub(super) fn map_paths(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        let maps = self.maps(SCHEMA_VERSION);
        MAPS.into_iter().map(move |name| (name, maps.join(name)))
    }

    /// The place of a map of this name that is the daemon's own.
    pub(super) fn map_path(&self, name: &str) -> PathBuf {
        self.maps(SCHEMA_VERSION).join(name)
    }

    /// The place of the link to the interface of this index.
    pub(super) fn link(&self, ifindex: u32) -> PathBuf {
        self.directory.join("links").join(ifindex.to_string())
    }

    /// The indices of the interfaces that there are links for.
    ///
    /// # Errors
    ///
    /// Where the directory cannot be read.
    pub fn links(&self) -> Result<Vec<u32>> {
        let names = self.names(&self.directory.join("links"))?;
        let mut links: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
        links.sort_unstable();
        Ok(links)
    }

    /// Takes the link to an interface away, if there is one: the program is detached.
    pub(super) fn remove_link(&self, ifindex: u32) -> Result<()> {
        let path = self.link(ifindex);
        let name = CString::new(path.as_os_str().as_bytes());
        let detached = name
            .map_err(io::Error::from)
            .and_then(|path| bpf::detach(&path));
        match detached {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.map_err(self.failed("detaching", &path))?,
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(self.failed("removing", &path)),
        }
    }

    /// Takes everything away: the program is detached from all interfaces, and the interfaces
    /// of health checks that a killed daemon has left are removed. Returns the indices of those
    /// that the program was attached to.
    ///
    /// # Errors
    ///
    /// Where something can't be removed. What was before it has been.
    pub fn remove_all(self) -> Result<Vec<u32>> {
        let links = self.links()?;
        for ifindex in &links {
            self.remove_link(*ifindex)?;
        }
        passage::remove_left().map_err(|source| Error::Passage { source })?;
        self.remove(&self.directory.join("links"))?;
        for version in self.versions()? {
            self.remove(&self.maps(version))?;
        }
        match fs::remove_dir(&self.directory) {
            // The file system may be mounted right there.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            result => result.map_err(self.failed("removing", &self.directory))?,
        }
        Ok(links)
    }

    /// Removes a directory and the files in it. It is fine where there is none.
    fn remove(&self, directory: &Path) -> Result<()> {
        for name in self.names(directory)? {
            let path = directory.join(name);
            fs::remove_file(&path).map_err(self.failed("removing", &path))?;
        }
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(self.failed("removing", directory)),
        }
    }

    /// Where maps of this version of their layout are.
    fn maps(&self, version: u32) -> PathBuf {
        self.directory.join(format!("v{version}"))
    }

    /// Versions of the layout of maps that are here.
    fn versions(&self) -> Result<Vec<u32>> {
        let names = self.names(&self.directory)?;
        let versions = names.iter().filter_map(|name| name.strip_prefix('v'));
        Ok(versions
            .filter_map(|version| version.parse().ok())
            .collect())
    }

    /// The names in a directory; none where there is no such directory.
    fn names(&self, directory: &Path) -> Result<Vec<String>> {
        let read = || -> io::Result<Vec<String>> {
            let entries = fs::read_dir(directory)?;
            entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        };
        match read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            result => result.map_err(self.failed("reading", directory)),
        }
    }

    fn failed(&self, action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| refused(action, path, source)
    }
}

/// What it means that the kernel refuses to do something on a path.
fn refused(action: &'static str, path: &Path, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::PermissionDenied => Error::Privileges {
            action: "keeping the datapath on the BPF file system",
            source,
        },
        _ => Error::Pinned {
            action,
            path: path.to_owned(),
            source,
        },
    }
}

/// Mounts the BPF file system where Linux has it, as iproute2 does, too: systemd mounts
/// it, but not every host has that.
fn mount_if_missing() -> io::Result<()> {
    if statfs(BPFFS)?.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), BPFFS, Some("bpf"), flags, Some("mode=0700"))?;
    Ok(())
}
