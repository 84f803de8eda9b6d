//! A UDP client.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::Stop;

/// Sockets of [`stream`] to each server.
const SOCKETS: usize = 4;
/// Datagrams of each of them that are on their way at a time. Those of all sockets together fit
/// in the queue of a veth interface, which has room for 256.
const WINDOW: u64 = 8;
/// Datagrams of a socket until another takes its place.
const RENEWAL: u64 = 2_000;

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

/// Sends datagrams to `servers` as fast as they come back, from several ports, until the end is
/// asked for. Each has to come back, and none comes back twice. Returns how many there were.
///
/// # Errors
///
/// When one does not come back within `timeout`, or something else does.
pub fn stream(servers: &[SocketAddr], timeout: Duration, stop: &Stop) -> Result<u64> {
    let mut flows = Vec::new();
    for server in servers.iter().flat_map(|server| [*server; SOCKETS]) {
        flows.push(Flow::begin(server, timeout)?);
    }
    let mut answered = 0;
    while !stop.is_requested() {
        for flow in &mut flows {
            flow.receive()?;
            answered += 1;
            if flow.sent < RENEWAL {
                flow.send()?;
            } else if flow.awaited.is_empty() {
                *flow = Flow::begin(flow.server, timeout)?;
            }
        }
    }
    for flow in &mut flows {
        while !flow.awaited.is_empty() {
            flow.receive()?;
            answered += 1;
        }
    }
    Ok(answered)
}

/// Datagrams from one port.
struct Flow {
    server: SocketAddr,
    socket: UdpSocket,
    sent: u64,
    /// Numbers of those that have not come back.
    awaited: BTreeSet<u64>,
}

impl Flow {
    fn begin(server: SocketAddr, timeout: Duration) -> Result<Self> {
        let mut flow = Self {
            server,
            socket: connect(server, timeout)?,
            sent: 0,
            awaited: BTreeSet::new(),
        };
        for _ in 0..WINDOW {
            flow.send()?;
        }
        Ok(flow)
    }

    fn send(&mut self) -> Result<()> {
        self.socket.send(&self.sent.to_be_bytes())?;
        self.awaited.insert(self.sent);
        self.sent += 1;
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        let mut answer = [0; 9];
        let length = self.socket.recv(&mut answer).with_context(|| {
            let (server, from) = (self.server, self.socket.local_addr());
            format!("{:?} from {from:?} to {server} are lost", self.awaited)
        })?;
        let number = answer[..length].try_into().map(u64::from_be_bytes);
        let is_awaited = number.is_ok_and(|number| self.awaited.remove(&number));
        ensure!(
            is_awaited,
            "{:?} came from {}",
            &answer[..length],
            self.server
        );
        Ok(())
    }
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
