//! The Unix socket that the API listens on.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;

use crate::state::Reason;

/// Owner and group may connect (which needs the right to write), others not.
const MODE: u32 = 0o660;

/// A listening socket. Its file goes when it is dropped.
#[derive(Debug)]
pub struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Listens at `path`. Makes the directory if there is none, and takes the place
    /// of a socket on which nobody listens any more. Needs the Tokio runtime.
    ///
    /// # Errors
    ///
    /// A [`Reason`] when somebody listens there, something else is there, or the
    /// socket cannot be made.
    pub fn bind(path: &Path) -> Result<Self, Reason> {
        make_way(path)?;
        let failed = |error: io::Error| {
            Reason::new(
                format!("cannot listen on `{}`: {error}", path.display()),
                "name a place for the socket that this user may write to, by --socket",
            )
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let socket = Self {
            listener,
            path: path.to_owned(),
        };
        fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(failed)?;
        Ok(socket)
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
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
