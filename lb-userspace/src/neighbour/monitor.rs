//! Notifications from the kernel, by rtnetlink(7).

use std::io;

use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};

use super::{decode, table::Input};

/// Everything that the way of a packet depends on.
const GROUPS: [u32; 9] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_NEXTHOP,
];

/// A socket that hears what changes.
pub(super) struct Monitor(TokioSocket);

impl Monitor {
    /// Begins to listen in the network namespace of the calling thread, on the reactor
    /// of the tokio runtime that the thread has entered.
    pub(super) fn open() -> io::Result<Self> {
        let mut monitor = TokioSocket::new(NETLINK_ROUTE)?;
        let socket = monitor.socket_mut();
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        Ok(Self(monitor))
    }

    /// Waits for the next notifications. Losing them is one: [`Input::Overrun`].
    pub(super) async fn next(&self) -> io::Result<Vec<Input>> {
        match self.0.recv_from_full().await {
            // Only the kernel's word counts; its port is 0 (netlink(7)).
            Ok((datagram, sender)) if sender.port_number() == 0 => {
                Ok(decode::notifications(&datagram))
            }
            Ok(_) => Ok(Vec::new()),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(vec![Input::Overrun]),
            Err(error) => Err(error),
        }
    }
}
