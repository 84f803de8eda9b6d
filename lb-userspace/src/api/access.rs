//! Who may do what over the socket, by the user and the groups of the process at its other end.
//!
//! Root, the user that the socket belongs to and the members of its group may do all. Members
//! of one other group may be let in to look.

use axum::http::{Method, StatusCode};
use nix::unistd::{Gid, Group};

use super::error::ApiError;
use crate::{datapath::Peer, state::Reason};

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Right {
    /// Nothing.
    None,
    /// Look.
    Read,
    /// Look and change.
    Write,
}

impl Right {
    /// Refuses a request that needs more.
    pub(super) fn permit(self, method: &Method) -> Result<(), ApiError> {
        let needed = match *method {
            Method::GET | Method::HEAD => Self::Read,
            _ => Self::Write,
        };
        if self >= needed {
            return Ok(());
        }
        let reason = match self {
            Self::None => Reason::new(
                "this user may not ask the balancer",
                "be root, or a member of the group of the socket or of `read-group`",
            ),
            Self::Read | Self::Write => Reason::new(
                "this user may look at the balancer, but not change it",
                "be root, or a member of the group of the socket",
            ),
        };
        Err(ApiError::new(StatusCode::FORBIDDEN, reason))
    }
}

/// Whom a socket is for, beside its owner and group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Whose members may look.
    read_group: Option<Gid>,
}

impl Access {
    /// Members of this group, by name or number, may look.
    ///
    /// # Errors
    ///
    /// A [`Reason`] where the host has no group of the name.
    pub fn for_readers(group: &str) -> Result<Self, Reason> {
        let read_group = match group.parse() {
            Ok(number) => Gid::from_raw(number),
            Err(_) => named(group)?,
        };
        Ok(Self {
            read_group: Some(read_group),
        })
    }

    /// The mode of the socket. To connect is to write to it, which the kernel allows one group at
    /// most; where there are two, everybody may, and is asked who they are.
    pub(super) const fn mode(self) -> u32 {
        match self.read_group {
            None => 0o660,
            Some(_) => 0o666,
        }
    }

    /// What a process may do over a socket of this user and group.
    pub(super) fn right(self, (uid, gid): (u32, u32), peer: &Peer) -> Right {
        let is_in = |group: u32| peer.gid == group || peer.groups.contains(&group);
        if peer.uid == 0 || peer.uid == uid || is_in(gid) {
            Right::Write
        } else if self.read_group.is_some_and(|group| is_in(group.as_raw())) {
            Right::Read
        } else {
            Right::None
        }
    }
}

fn named(group: &str) -> Result<Gid, Reason> {
    let shown = group.escape_debug();
    match Group::from_name(group) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err(Reason::new(
            format!("read-group: this host has no group `{shown}`"),
            "make it by `groupadd --system`, or name another; `getent group` lists them",
        )),
        Err(error) => Err(Reason::new(
            format!("read-group: cannot look for the group `{shown}`: {error}"),
            "name it by its number",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> Peer {
        Peer {
            uid,
            gid,
            groups: groups.to_vec(),
        }
    }

    #[test]
    fn rights_are_those_of_the_user_and_all_groups() {
        let access = Access::for_readers("61002").unwrap();
        assert_eq!((access.mode(), Access::default().mode()), (0o666, 0o660));
        let socket = (61_000, 61_001);
        for (peer, right) in [
            (peer(0, 0, &[]), Right::Write),
            (peer(61_000, 9, &[]), Right::Write),
            (peer(9, 61_001, &[]), Right::Write),
            (peer(9, 9, &[8, 61_001]), Right::Write),
            (peer(9, 61_002, &[61_001]), Right::Write),
            (peer(9, 61_002, &[]), Right::Read),
            (peer(9, 9, &[61_002]), Right::Read),
            (peer(9, 9, &[61_003]), Right::None),
            (peer(61_001, 61_000, &[]), Right::None),
        ] {
            assert_eq!(access.right(socket, &peer), right, "{peer:?}");
            let without = match right {
                Right::Read => Right::None,
                other => other,
            };
            assert_eq!(Access::default().right(socket, &peer), without, "{peer:?}");
        }
    }

    #[test]
    fn who_may_look_may_not_change() {
        for (right, get, put) in [
            (Right::None, false, false),
            (Right::Read, true, false),
            (Right::Write, true, true),
        ] {
            for method in [Method::GET, Method::HEAD] {
                assert_eq!(right.permit(&method).is_ok(), get, "{right:?} {method}");
            }
            for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
                assert_eq!(right.permit(&method).is_ok(), put, "{right:?} {method}");
            }
        }
    }

    #[test]
    fn groups_are_looked_up() {
        let root = Access::for_readers("root").unwrap();
        assert_eq!(root, Access::for_readers("0").unwrap());
        let reason = Access::for_readers("no-such-group").unwrap_err();
        assert_eq!(
            reason.message,
            "read-group: this host has no group `no-such-group`"
        );
    }
}
