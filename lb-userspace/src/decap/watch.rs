//! Notifications from the kernel, by rtnetlink(7).

use std::io;

use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};

/// Addresses, and the interfaces that have them.
const GROUPS: [u32; 3] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
];

/// A socket that hears of every change of an address. What it is, the kernel is asked
/// then.
pub(super) struct Watch(TokioSocket);

impl Watch {
    /// Begins to listen in the network namespace of the calling thread, on the reactor
    /// of the tokio runtime that the thread has entered.
    pub(super) fn open() -> io::Result<Self> {
        let mut watch = TokioSocket::new(NETLINK_ROUTE)?;
        let socket = watch.socket_mut();
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        Ok(Self(watch))
    }

    /// Waits for a change.
    pub(super) async fn changed(&self) -> io::Result<()> {
        match self.0.recv_from_full().await {
            Ok(_) => Ok(()),
            // Some were lost, so there were some.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}
