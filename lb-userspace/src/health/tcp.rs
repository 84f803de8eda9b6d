//! The `tcp` probe: a connection is accepted.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::net::{TcpSocket, TcpStream};

use super::{ProbeError, Target};

/// Connects and closes.
pub(super) async fn probe(target: &Target) -> Result<(), ProbeError> {
    connect(target).await?;
    Ok(())
}

/// A connection to what is checked.
pub(super) async fn connect(target: &Target) -> io::Result<TcpStream> {
    if target.service_address.is_none() {
        return TcpStream::connect(target.address).await;
    }
    connect_apart(target.address).await
}

/// A connection from a port that no other has, which leaves nothing behind.
pub(super) async fn connect_apart(address: SocketAddr) -> io::Result<TcpStream> {
    // All checks of a service come to its backends from one address. So each has a port
    // that no other has at the time, as it is chosen before the kernel knows where to.
    let (socket, any): (_, SocketAddr) = match address {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, (Ipv4Addr::UNSPECIFIED, 0).into()),
        SocketAddr::V6(_) => (TcpSocket::new_v6()?, (Ipv6Addr::UNSPECIFIED, 0).into()),
    };
    // And it is free again when the check has ended, without a minute of TIME-WAIT.
    socket.set_zero_linger()?;
    socket.bind(any)?;
    socket.connect(address).await
}
