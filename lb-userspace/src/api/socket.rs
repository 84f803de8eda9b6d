//! The Unix socket that the API listens on.

use std::{
    fs, io, mem,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use nix::unistd::{getegid, geteuid};
use tokio::net::UnixListener;

use super::access::Access;
use crate::state::Reason;

/// A listening socket. Its file goes when it is dropped.
#[derive(Debug)]
pub struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Whom it is for.
    pub(super) access: Access,
    /// Device and inode of the file: a name may come to mean another.
    file: (u64, u64),
    /// Goes after the socket.
    directories: Directories,
}

impl Socket {
    /// Listens at `path`, for its owner and group. Makes the directory if there is none, and takes the place
    /// of a socket on which nobody listens any more. Needs the Tokio runtime.
    ///
    /// # Errors
    ///
    /// A [`Reason`] when somebody listens there, something else is there, or the
    /// socket cannot be made.
    pub fn bind(path: &Path) -> Result<Self, Reason> {
        Self::bind_for(path, Access::default())
    }

    /// The same, also for others.
    ///
    /// # Errors
    ///
    /// As with [`Self::bind`].
    pub fn bind_for(path: &Path, access: Access) -> Result<Self, Reason> {
        make_way(path)?;
        let failed = |error: io::Error| {
            Reason::new(
                format!("cannot listen on `{}`: {error}", path.display()),
                "name a place for the socket that this user may write to, by --socket",
            )
        };
        let directories = Directories::make(path).map_err(failed)?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        let socket = Self {
            listener,
            path: path.to_owned(),
            access,
            file: file(path).map_err(failed)?,
            directories,
        };
        let mode = fs::Permissions::from_mode(access.mode());
        fs::set_permissions(path, mode).map_err(failed)?;
        Ok(socket)
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Listens anew where somebody has removed the file. `false` where it is still there.
    ///
    /// # Errors
    ///
    /// As with [`Self::bind`].
    pub(super) fn restore(&mut self) -> Result<bool, Reason> {
        if self.is_there() {
            return Ok(false);
        }
        let mut new = Self::bind_for(&self.path, self.access)?;
        if new.directories.0.is_empty() {
            mem::swap(&mut new.directories, &mut self.directories);
        }
        // The old one leaves alone what is not its own.
        *self = new;
        Ok(true)
    }

    /// User and group of the file, as it is now; those of this process where it is gone.
    pub(super) fn owner(&self) -> (u32, u32) {
        match fs::symlink_metadata(&self.path) {
            Ok(metadata) => (metadata.uid(), metadata.gid()),
            Err(_) => (geteuid().as_raw(), getegid().as_raw()),
        }
    }

    fn is_there(&self) -> bool {
        file(&self.path).is_ok_and(|file| file == self.file)
    }
}

/// Device and inode of a file.
fn file(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Directories that were not there before, the outermost first. Those that are empty go
/// when this is dropped, so that a start that fails leaves nothing.
#[derive(Debug)]
struct Directories(Vec<PathBuf>);

impl Directories {
    /// Makes those that the file `path` is to lie in.
    fn make(path: &Path) -> io::Result<Self> {
        let missing = path.ancestors().skip(1).filter(|path| !path.exists());
        let mut missing: Vec<_> = missing.map(Path::to_owned).collect();
        missing.reverse();
        let mut made = Self(Vec::new());
        for directory in missing {
            fs::create_dir_all(&directory)?;
            made.0.push(directory);
        }
        Ok(made)
    }
}

impl Drop for Directories {
    fn drop(&mut self) {
        for directory in self.0.iter().rev() {
            // Somebody else may have put something into it.
            let _not_empty = fs::remove_dir(directory);
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.is_there() {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// Removes a socket that a daemon left when it died.
fn make_way(path: &Path) -> Result<(), Reason> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    let shown = path.display();
    if !metadata.file_type().is_socket() {
        return Err(Reason::new(
            format!("`{shown}` is there already, and is no socket"),
            "move it away, or name another place for the socket by --socket",
        ));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| {
                Reason::new(
                    format!("cannot remove `{shown}`, on which nobody listens: {error}"),
                    "remove it by hand",
                )
            }),
        Err(error) => Err(Reason::new(
            format!("cannot tell whether somebody listens on `{shown}`: {error}"),
            "be root, or name another place for the socket by --socket",
        )),
        Ok(_) => Err(Reason::new(
            format!("the socket `{shown}` is in use: another process listens on it"),
            "stop that one first, or name another place for the socket by --socket",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_owner_and_group_may_connect() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/lb/lb.sock");
        let socket = Socket::bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        drop(socket);
        assert!(!path.exists());
        let left = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, 0, "the directories are gone, too");
    }

    #[tokio::test]
    async fn a_start_that_fails_leaves_no_directories() {
        let directory = tempfile::tempdir().unwrap();
        // Too long for a socket, but not for a directory.
        let path = directory.path().join("run/lb").join("x".repeat(108));
        Socket::bind(&path).unwrap_err();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_socket_that_was_removed_is_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/lb.sock");
        let mut socket = Socket::bind(&path).unwrap();
        assert_eq!(socket.restore(), Ok(false));
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        assert_eq!(socket.restore(), Ok(true));
        UnixStream::connect(&path).unwrap();

        // Another daemon's is neither taken nor removed.
        fs::remove_file(&path).unwrap();
        let other = Socket::bind(&path).unwrap();
        assert!(socket.restore().unwrap_err().message.contains("is in use"));
        drop(socket);
        UnixStream::connect(other.path()).unwrap();
    }

    #[tokio::test]
    async fn a_socket_in_use_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lb.sock");
        let first = Socket::bind(&path).unwrap();
        let reason = Socket::bind(&path).unwrap_err();
        assert!(reason.message.contains("is in use"), "{reason}");
        UnixStream::connect(first.path()).unwrap();
    }

    #[tokio::test]
    async fn a_socket_of_a_dead_daemon_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lb.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = Socket::bind(&path).unwrap();
        UnixStream::connect(socket.path()).unwrap();
    }

    #[tokio::test]
    async fn another_file_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lb.sock");
        fs::write(&path, "precious").unwrap();
        let reason = Socket::bind(&path).unwrap_err();
        assert!(reason.message.contains("is no socket"), "{reason}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
