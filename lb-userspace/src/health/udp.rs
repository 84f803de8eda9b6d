//! The `udp` probe: a datagram is answered.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::net::UdpSocket;

use super::{ProbeError, http::contains, probe::shown};
use crate::state::UdpProbe;

/// More bytes than any datagram has.
const DATAGRAM: usize = 65_536;

/// A socket that hears nobody but the target. What says that nobody listens there comes as
/// an error of the next call.
pub(super) async fn connect(target: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(target).await?;
    Ok(socket)
}

/// Sends the datagram, and looks at the first answer.
pub(super) async fn probe(target: SocketAddr, udp: &UdpProbe) -> Result<(), ProbeError> {
    let socket = connect(target).await?;
    socket.send(&udp.send).await?;
    let mut answer = vec![0; DATAGRAM];
    let length = socket.recv(&mut answer).await?;
    let answer = &answer[..length];
    match &udp.expect {
        Some(expected) if !contains(answer, expected) => Err(ProbeError::Answer(shown(answer))),
        _ => Ok(()),
    }
}
