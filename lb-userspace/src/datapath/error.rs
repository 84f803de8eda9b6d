//! What can go wrong between the daemon and the kernel.

use std::{io, path::PathBuf};

use aya::{
    EbpfError,
    maps::{MapError, xdp::XdpMapError},
    programs::ProgramError,
    util::KernelVersion,
};
use lb_common::{
    flow::{Flow4, Flow6, FlowKey4, FlowKey6},
    pin::Pin,
};

use super::attach::AttachedMode;

/// The oldest kernel that has all that the datapath needs: XDP on frames in several buffers
/// with `bpf_xdp_load_bytes` (5.18), `bpf_loop` (5.17), atomic operations that return a
/// value in BPF (5.12), BPF links for XDP (5.9). 6.1 is the first kernel with long-term
/// support that has them, and the oldest whose verifier has been tried.
const OLDEST_KERNEL: (u8, u8) = (6, 1);

/// Why the datapath did not do what it was told. [`Self::hint`] says how to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The process may not use BPF or XDP.
    #[error("missing privileges for {action}")]
    Privileges {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel is too old.
    #[error("the kernel is too old: this is {found}")]
    KernelTooOld {
        /// Version of the running kernel.
        found: String,
        /// What it refused.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel has no BPF at all.
    #[error("this kernel has no BPF")]
    NoBpf {
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no memory for the maps.
    #[error(
        "not enough memory for flow tables of {max_flows} entries, which take about {mebibytes} \
         MiB"
    )]
    Memory {
        /// Entries of each flow table.
        max_flows: u32,
        /// What the flow tables take.
        mebibytes: u64,
        /// The kernel's answer, where it was asked.
        source: Option<io::Error>,
    },
    /// The verifier refused the program.
    #[error("the kernel's verifier refused the program")]
    Verifier {
        /// The kernel's answer.
        source: io::Error,
    },
    /// Anything else while loading.
    #[error("loading the program into the kernel")]
    Load {
        /// What aya says.
        source: EbpfError,
    },
    /// The program in the object is not the one that this daemon belongs to.
    #[error("the eBPF object does not fit this daemon: {what}")]
    WrongObject {
        /// What is missing, or has another size.
        what: String,
    },
    /// There is no such interface.
    #[error("no such interface: `{name}`")]
    NoInterface {
        /// The name that was given.
        name: String,
    },
    /// Another XDP program is attached to the interface.
    #[error(
        "another XDP program is attached to `{interface}`: id {program_id}{}",
        program_name.as_ref().map(|name| format!(", `{name}`")).unwrap_or_default()
    )]
    Occupied {
        /// Name of the interface.
        interface: String,
        /// Id of the program, as `bpftool prog` shows it.
        program_id: u32,
        /// Name of the program, where it has one.
        program_name: Option<String>,
        /// The command that takes it away.
        remedy: String,
    },
    /// The driver does not take the program.
    #[error("`{interface}` does not take the XDP program in {} mode", mode.as_str())]
    Attach {
        /// Name of the interface.
        interface: String,
        /// How it was to be attached.
        mode: AttachedMode,
        /// The kernel's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no way for health checks to go as clients' packets do.
    #[error("making the interfaces of health checks")]
    Passage {
        /// The kernel's answer.
        source: io::Error,
    },
    /// An operation on a map failed.
    #[error("{action} in the map {map}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// Name of the map.
        map: &'static str,
        /// The kernel's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The directory that keeps the datapath is on no BPF file system.
    #[error("{} is on no BPF file system", path.display())]
    NoBpfFileSystem {
        /// The directory.
        path: PathBuf,
    },
    /// Another process uses that directory.
    #[error("another process uses {}", path.display())]
    PinnedInUse {
        /// The directory.
        path: PathBuf,
    },
    /// It keeps maps of another version of lb.
    #[error(
        "{} keeps a datapath of another version of lb (its maps have layout {found}, those of \
         this one {})",
        path.display(),
        lb_common::SCHEMA_VERSION
    )]
    OtherLayout {
        /// The directory.
        path: PathBuf,
        /// Version of the layout.
        found: u32,
    },
    /// One of the maps that it keeps has another form than those of this version.
    #[error(
        "{} keeps a datapath of another version of lb (its map {map} has another form)",
        path.display()
    )]
    OtherMap {
        /// The directory.
        path: PathBuf,
        /// Name of the map.
        map: &'static str,
    },
    /// An operation on what that directory keeps failed.
    #[error("{action} {}", path.display())]
    Pinned {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The test run of the program failed.
    #[error("running the program on a test packet")]
    TestRun(#[source] ProgramError),
    /// Asking the kernel about its interfaces failed.
    #[error("asking the kernel which XDP program is attached to `{interface}`")]
    Query {
        /// Name of the interface.
        interface: String,
        /// What went wrong.
        source: io::Error,
    },
}

impl Error {
    /// How to mend it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let (major, minor) = OLDEST_KERNEL;
        let hint = match self {
            Self::Privileges { .. } => {
                "run as root, or with the capabilities CAP_BPF and CAP_NET_ADMIN".into()
            }
            Self::KernelTooOld { .. } => format!(
                "lb needs Linux {major}.{minor} or newer: XDP on frames in several buffers came \
                 with 5.18, `bpf_loop` with 5.17, and older verifiers than that of \
                 {major}.{minor} have not been tried"
            ),
            Self::NoBpf { .. } => {
                "it was built without CONFIG_BPF_SYSCALL; use a distribution's stock kernel".into()
            }
            Self::Memory { .. } => "lower `flows` in `[limits]`".into(),
            Self::Verifier { .. } => {
                "this is a bug in lb; its log level debug shows what the verifier says".into()
            }
            Self::WrongObject { .. } => format!(
                "build both from the same source (map layout version {})",
                lb_common::SCHEMA_VERSION
            ),
            Self::NoInterface { .. } => "`ip link` lists those that there are".into(),
            Self::Occupied { remedy, .. } => {
                format!("stop what attached it, or remove it with `{remedy}`")
            }
            Self::Attach {
                mode: AttachedMode::Native,
                ..
            } => "--xdp-mode generic works with every driver, but more slowly".into(),
            Self::NoBpfFileSystem { .. } => {
                "`mount -t bpf bpf DIRECTORY` mounts one; the usual place is /sys/fs/bpf".into()
            }
            Self::PinnedInUse { .. } => {
                "stop the other lb; each needs a `pin-directory` of its own".into()
            }
            Self::OtherLayout { .. } | Self::OtherMap { .. } => {
                "`lb detach` of either version takes it away, with the flows that it remembers"
                    .into()
            }
            _ => return None,
        };
        Some(hint)
    }
}

/// Result of the datapath's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An operation on a map that failed with `source`.
pub(super) fn map_error<E>(action: &'static str, map: &'static str) -> impl FnOnce(E) -> Error
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |source| Error::Map {
        action,
        map,
        source: source.into(),
    }
}

/// The result of a removal, for which it is fine that there was nothing to remove. The
/// kernel says that with `ENOENT`, which aya passes on as the failure of a system call.
pub(super) fn gone(removal: Result<(), MapError>) -> Result<(), MapError> {
    match removal {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// What an error of aya while loading means to a user. `max_flows` are the entries of
/// each flow table, if the object has some.
pub(super) fn loading(source: EbpfError, max_flows: Option<u32>) -> Error {
    let Some(io_error) = io_error(&source) else {
        return Error::Load { source };
    };
    let io_error = io_error.raw_os_error().map_or_else(
        || io::Error::from(io_error.kind()),
        io::Error::from_raw_os_error,
    );
    match (io_error.raw_os_error(), max_flows) {
        (Some(libc::EPERM | libc::EACCES), _) if !is_verdict(&source) => {
            return Error::Privileges {
                action: "loading the XDP program",
                source: io_error,
            };
        }
        (Some(libc::ENOSYS), _) => return Error::NoBpf { source: io_error },
        (Some(libc::ENOMEM | libc::E2BIG), Some(max_flows)) if !is_verdict(&source) => {
            return Error::Memory {
                max_flows,
                mebibytes: flow_table_mebibytes(max_flows),
                source: Some(io_error),
            };
        }
        _ => {}
    }
    if let Some(found) = too_old() {
        return Error::KernelTooOld {
            found,
            source: source.into(),
        };
    }
    match source {
        EbpfError::ProgramError(ProgramError::LoadError {
            io_error,
            verifier_log,
        }) => {
            tracing::debug!(%verifier_log, "the verifier refused the program");
            Error::Verifier { source: io_error }
        }
        source => Error::Load { source },
    }
}

/// Whether the verifier has looked at the program and said no: it says so with
/// `EACCES`, which elsewhere means missing privileges.
fn is_verdict(error: &EbpfError) -> bool {
    matches!(
        error,
        EbpfError::ProgramError(ProgramError::LoadError { verifier_log, .. })
            if !verifier_log.to_string().trim().is_empty()
    )
}

/// The error of the operating system at the bottom of an error.
fn io_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io_error) = error.downcast_ref::<io::Error>() {
            return Some(io_error);
        }
        // Errors of the kernel sit below these without being their `source`.
        if let Some(MapError::SyscallError(error)) = error.downcast_ref() {
            return Some(&error.io_error);
        }
        if let Some(ProgramError::SyscallError(error)) = error.downcast_ref() {
            return Some(&error.io_error);
        }
        cause = error.source();
    }
    None
}

/// What the kernel says at the bottom of an error.
pub(super) fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    io_error(error).and_then(io::Error::raw_os_error)
}

/// The version of the running kernel where it is older than [`OLDEST_KERNEL`]. Only
/// asked after a failure: distributions bring new features to kernels with old numbers.
fn too_old() -> Option<String> {
    let (major, minor) = OLDEST_KERNEL;
    let running = KernelVersion::current().ok()?;
    if running >= KernelVersion::new(major, minor, 0) {
        return None;
    }
    let release = nix::sys::utsname::uname().ok()?;
    Some(release.release().to_string_lossy().into_owned())
}

/// Refuses flow tables that are larger than what memory is free. The kernel takes all of
/// it before it says no, and other processes would pay for that.
pub(super) fn check_memory(max_flows: u32) -> Result<()> {
    let mebibytes = flow_table_mebibytes(max_flows);
    // Where it cannot be read, the kernel will tell.
    match available_memory() {
        Some(available) if mebibytes > available => Err(Error::Memory {
            max_flows,
            mebibytes,
            source: None,
        }),
        _ => Ok(()),
    }
}

/// Memory of this host that is free to be used, in MiB; `None` where the kernel does not tell.
#[must_use]
pub fn available_memory() -> Option<u64> {
    available_mebibytes(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// Memory that flow tables of so many entries each take, in MiB.
#[must_use]
pub fn flow_table_memory(entries: u32) -> u64 {
    flow_table_mebibytes(entries)
}

/// `MemAvailable` of proc_meminfo(5).
fn available_mebibytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes >> 10)
}

/// Memory that the flow tables take: an entry's header of 48 bytes, its key and
/// value, and 16 bytes for each bucket, of which there is a power of two.
fn flow_table_mebibytes(max_flows: u32) -> u64 {
    const HEADER: u64 = 48;
    const BUCKET: u64 = 16;
    let entries = u64::from(max_flows);
    let entry = |key: usize, value: usize| HEADER + (key + value) as u64;
    let v4 = entry(size_of::<FlowKey4>(), size_of::<Flow4>());
    let v6 = entry(size_of::<FlowKey6>(), size_of::<Flow6>());
    let pins = entry(size_of::<FlowKey4>(), size_of::<Pin>())
        + entry(size_of::<FlowKey6>(), size_of::<Pin>());
    let buckets = 6 * BUCKET * entries.next_power_of_two();
    (entries * (2 * (v4 + v6) + pins) + buckets) >> 20
}

impl From<XdpMapError> for Error {
    fn from(source: XdpMapError) -> Self {
        map_error("writing", lb_common::map_name::DEVICES)(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_as_the_kernel_writes_it() {
        let meminfo = "MemTotal:       24675328 kB\nMemAvailable:    2097152 kB\n";
        assert_eq!(available_mebibytes(meminfo), Some(2_048));
        assert_eq!(available_mebibytes("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn a_million_flows_take_nine_hundred_mebibytes() {
        assert_eq!(flow_table_mebibytes(1 << 20), 888);
    }
}
