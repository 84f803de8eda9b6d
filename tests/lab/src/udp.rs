//! A UDP client.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

/// A UDP socket of its own source port, that hears `server` alone and is told of
/// ICMP errors.
///
/// # Errors
///
/// When there is no route to `server`.
pub fn connect(server: SocketAddr, timeout: Duration) -> Result<UdpSocket> {
    let open = || -> std::io::Result<UdpSocket> {
        let socket = match server {
            SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
            SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?,
        };
        socket.connect(server)?;
        socket.set_read_timeout(Some(timeout))?;
        Ok(socket)
    };
    open().with_context(|| format!("cannot open a UDP socket to {server}"))
}

/// Sends `payload` and returns the answer. Nothing is sent again.
///
/// # Errors
///
/// When no answer comes in time, or an ICMP error.
pub fn exchange(socket: &UdpSocket, payload: &[u8]) -> Result<Vec<u8>> {
    socket.send(payload).context("cannot send")?;
    let mut answer = vec![0; 65_536];
    let length = socket
        .recv(&mut answer)
        .with_context(|| format!("no answer to {} bytes", payload.len()))?;
    answer.truncate(length);
    Ok(answer)
}

/// Sends `payload` and checks that the same comes back.
///
/// # Errors
///
/// When no answer comes in time, or another one.
pub fn echo(socket: &UdpSocket, payload: &[u8]) -> Result<()> {
    let answer = exchange(socket, payload)?;
    ensure!(
        answer == payload,
        "sent {} bytes, and {} others came back",
        payload.len(),
        answer.len()
    );
    Ok(())
}

/// Asks the port [`port::WHO`](crate::port::WHO) of a backend for its name and for
/// the client's address as the backend sees it.
///
/// # Errors
///
/// When no answer comes in time, or one that is not understood.
pub fn who(server: SocketAddr, timeout: Duration) -> Result<(String, SocketAddr)> {
    let socket = connect(server, timeout)?;
    let answer = String::from_utf8(exchange(&socket, b"who?")?)?;
    let (name, client) = answer
        .trim_end()
        .split_once(' ')
        .with_context(|| format!("`{answer}` is not `NAME CLIENT`"))?;
    Ok((name.to_owned(), client.parse()?))
}
