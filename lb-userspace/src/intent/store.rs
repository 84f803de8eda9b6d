//! The state file: what was changed while the balancer ran, for the daemon after this one.
//!
//! ```json
//! {"format": 1, "checksum": "9f0c…", "state": {"services": {…}, "drains": […]}}
//! ```
//!
//! It is replaced whole ([`disk`](super::disk)), and read whole or not at all: what is damaged
//! or of another format is refused, not guessed at.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Applied, Overrides, disk};
use crate::state::Reason;

/// The format that this version writes, and the only one that it reads.
const FORMAT: u64 = 1;

/// What survives the daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// What was changed of services and backends.
    pub services: Overrides,
    /// Drains that are under way or over, in the order of services and backends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drains: Vec<KeptDrain>,
    /// A file that was applied in the place of the one that the daemon was started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<Applied>,
}

/// A drain that has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptDrain {
    /// Name of the service.
    pub service: String,
    /// Address of the backend.
    pub backend: String,
    /// When it began, in milliseconds since 1970 (UTC).
    pub began: u64,
    /// Live flows then.
    pub flows_at_start: u64,
}

impl KeptDrain {
    /// A drain that began so long ago.
    #[must_use]
    pub fn new(service: String, backend: String, ago: Duration, flows_at_start: u64) -> Self {
        let began = SystemTime::now() - ago;
        let began = began.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            service,
            backend,
            began: began.as_millis() as u64,
            flows_at_start,
        }
    }

    /// How long ago it began. No time at all where the clock of the host was set back behind
    /// the beginning.
    #[must_use]
    pub fn ago(&self) -> Duration {
        let began = UNIX_EPOCH + Duration::from_millis(self.began);
        SystemTime::now().duration_since(began).unwrap_or_default()
    }
}

/// The state file, which nobody else uses meanwhile.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    /// What is in the file; nothing where that is not known.
    written: Option<String>,
    _lock: Flock<File>,
}

impl Store {
    /// Takes the file at `path`, which need not be there, for this process alone.
    ///
    /// # Errors
    ///
    /// A [`Reason`] where another process has it, or its directory cannot be made.
    pub fn open(path: &Path) -> Result<Self, Reason> {
        let shown = path.display();
        let failed = |error: io::Error| {
            Reason::new(
                format!("cannot keep what is changed in `{shown}`: {error}"),
                "name a file that this user may write, by `state-file` in the configuration",
            )
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        let mut options = OpenOptions::new();
        let lock = options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(lock);
        let lock = Flock::lock(lock.map_err(failed)?, FlockArg::LockExclusiveNonblock);
        let lock = lock.map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => Reason::new(
                format!("another process keeps its changes in `{shown}`"),
                "stop the other `lb run`; each needs a `state-file` of its own",
            ),
            errno => failed(errno.into()),
        })?;
        Ok(Self {
            path: path.to_owned(),
            written: None,
            _lock: lock,
        })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is kept; nothing where there is no file.
    ///
    /// # Errors
    ///
    /// A [`Reason`] where the file is damaged, or of a newer version.
    pub fn read(&mut self) -> Result<Kept, Reason> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
            Err(error) => {
                return Err(Reason::new(
                    format!("cannot read `{}`: {error}", self.path.display()),
                    "it has what was changed while the balancer ran; let this user read it",
                ));
            }
        };
        let (kept, state) = parse(&bytes).map_err(|wrong| {
            Reason::new(
                format!(
                    "`{}`, which has what was changed while the balancer ran, {wrong}",
                    self.path.display()
                ),
                "bring back a copy of it, or start with what the configuration file says by \
                 `lb run --forget-changes`, which keeps the file beside the new one",
            )
        })?;
        self.written = Some(state);
        Ok(kept)
    }

    /// Puts the file aside, if there is one, and says where.
    ///
    /// # Errors
    ///
    /// A [`Reason`] where it cannot be renamed.
    pub fn put_aside(&mut self) -> Result<Option<PathBuf>, Reason> {
        let copy = |number: u32| {
            let mut name = self.path.as_os_str().to_owned();
            name.push(format!(".forgotten-{number}"));
            PathBuf::from(name)
        };
        let aside = (1..=u32::MAX).map(copy).find(|path| !path.exists());
        let aside = aside.unwrap_or_else(|| copy(0));
        match fs::rename(&self.path, &aside) {
            Ok(()) => Ok(Some(aside)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Reason::new(
                format!(
                    "cannot rename `{}` to `{}`: {error}",
                    self.path.display(),
                    aside.display()
                ),
                "let this user write into the directory",
            )),
        }
    }

    /// Writes what is to be kept, if that is something else than what is in the file, and
    /// returns when it is on the disk.
    ///
    /// # Errors
    ///
    /// Where the disk is full, say. Then the file has what it had before, or, where only the
    /// last step failed, perhaps the new.
    pub fn write(&mut self, kept: &Kept) -> io::Result<()> {
        let state = serde_json::to_string(kept)?;
        if self.written.as_ref() == Some(&state)
            || (self.written.is_none() && *kept == Kept::default() && !self.path.exists())
        {
            return Ok(());
        }
        self.written = None;
        let text = format!(
            "{{\"format\":{FORMAT},\"checksum\":\"{:016x}\",\"state\":{state}}}\n",
            checksum(state.as_bytes())
        );
        disk::replace(&mut disk::Host, &self.path, text.as_bytes())?;
        self.written = Some(state);
        Ok(())
    }
}

/// What a state file says, and its text; or what is wrong with it.
fn parse(bytes: &[u8]) -> Result<(Kept, String), String> {
    let damaged = |what: &str| format!("is damaged: {what}");
    let json: Value = serde_json::from_slice(bytes).map_err(|error| damaged(&error.to_string()))?;
    match json.get("format").and_then(Value::as_u64) {
        Some(FORMAT) => {}
        Some(format) if format > FORMAT => {
            return Err(format!(
                "was written by a newer version of lb (format {format}, not {FORMAT})"
            ));
        }
        _ => return Err(damaged("it does not say its format")),
    }
    let state = json
        .get("state")
        .ok_or_else(|| damaged("there is no state in it"))?;
    let text = state.to_string();
    let expected = format!("{:016x}", checksum(text.as_bytes()));
    if json.get("checksum").and_then(Value::as_str) != Some(&*expected) {
        return Err(damaged("its checksum is wrong"));
    }
    let kept = Kept::deserialize(state).map_err(|error| damaged(&error.to_string()))?;
    Ok((kept, text))
}

/// FNV-1a of 64 bits: finds what a disk has damaged, not what somebody has forged.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Kept {
        Kept {
            services: serde_json::from_str(
                r#"{"web": {"file": {"name": "web", "quorum": 1}, "now": {"name": "web", "quorum": 2}}}"#,
            )
            .unwrap(),
            drains: vec![KeptDrain::new("web".into(), "10.0.0.1:80".into(), Duration::from_secs(5), 7)],
            applied: None,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lib/lb/state.json");
        let mut store = Store::open(&path).unwrap();
        assert_eq!(store.read(), Ok(Kept::default()));
        store.write(&Kept::default()).unwrap();
        assert!(!path.exists(), "there is nothing to keep");
        store.write(&kept()).unwrap();
        let message = Store::open(&path).unwrap_err().message;
        assert!(message.contains("another process"), "{message}");
        drop(store);

        let mut store = Store::open(&path).unwrap();
        let read = store.read().unwrap();
        assert_eq!(read.services, kept().services);
        assert!((5..60).contains(&read.drains[0].ago().as_secs()));
        // What has gone is written, too.
        store.write(&Kept::default()).unwrap();
        assert_eq!(store.read(), Ok(Kept::default()));
    }

    /// Every byte of a state file changed, and every length of it.
    #[test]
    fn what_is_damaged_is_refused_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        let mut store = Store::open(&path).unwrap();
        store.write(&kept()).unwrap();
        let whole = fs::read(&path).unwrap();
        let (read, _) = parse(&whole).unwrap();
        for end in 0..whole.len() - 1 {
            assert!(parse(&whole[..end]).is_err(), "{end} bytes");
        }
        for index in 0..whole.len() {
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[index] ^= 1 << bit;
                // What is no part of the state, white space say, may be read all the same.
                if let Ok((other, _)) = parse(&damaged) {
                    assert_eq!(other, read, "byte {index}, bit {bit}");
                }
            }
        }
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let reason = store.read().unwrap_err();
        assert!(reason.message.contains("is damaged"), "{reason}");
        let aside = store.put_aside().unwrap().unwrap();
        assert_eq!(fs::read(aside).unwrap(), whole[..whole.len() / 2]);
        assert_eq!(store.read(), Ok(Kept::default()));
    }

    #[test]
    fn a_newer_format_is_refused() {
        let newer = br#"{"format": 2, "state": {}}"#;
        let wrong = parse(newer).unwrap_err();
        assert!(wrong.contains("newer version"), "{wrong}");
    }
}
