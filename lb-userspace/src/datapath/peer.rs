//! Who is at the other end of a Unix socket (unix(7)).

#![expect(
    unsafe_code,
    reason = "getsockopt takes pointers, and no safe wrapper knows SO_PEERGROUPS"
)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// A process, as it was when it connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
}

impl Peer {
    /// The process at the other end of a connected Unix socket.
    ///
    /// # Errors
    ///
    /// Where the kernel does not tell.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        let credentials = getsockopt(&socket, PeerCredentials)?;
        Ok(Self {
            uid: credentials.uid(),
            gid: credentials.gid(),
            groups: groups(&socket)?,
        })
    }
}

/// The supplementary groups of the process at the other end (`SO_PEERGROUPS`, Linux 4.13).
fn groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 64];
    loop {
        let room = size_of_val(groups.as_slice());
        let mut size = room as libc::socklen_t;
        // SAFETY: the kernel writes at most `size` bytes to `groups`, which has as many, and any
        // bytes are numbers.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut size,
            )
        };
        let error = (result != 0).then(io::Error::last_os_error);
        let size = size as usize;
        match error {
            None => {
                groups.truncate(size / size_of::<u32>());
                return Ok(groups);
            }
            // It says how much room it needs; no process has more groups than this.
            Some(error)
                if error.raw_os_error() == Some(libc::ERANGE)
                    && size > room
                    && size <= MAX_GROUPS * size_of::<u32>() =>
            {
                groups.resize(size / size_of::<u32>(), 0);
            }
            Some(error) => return Err(error),
        }
    }
}

/// `NGROUPS_MAX` of linux/limits.h.
const MAX_GROUPS: usize = 65_536;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use nix::unistd::{getegid, geteuid, getgroups};

    use super::*;

    #[test]
    fn this_process_is_known() {
        let (socket, _other) = UnixStream::pair().unwrap();
        let groups = getgroups().unwrap();
        let expected = Peer {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            groups: groups.iter().map(|group| group.as_raw()).collect(),
        };
        assert_eq!(Peer::of(&socket).unwrap(), expected);
    }
}
