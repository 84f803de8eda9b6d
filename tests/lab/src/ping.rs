//! Echo requests (ping), by sockets that the kernel gives to those who may have no raw ones
//! (icmp(7), `IPPROTO_ICMP`): it chooses the identifier, and makes and verifies checksums.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

/// Bytes of the header of an echo.
const HEADER: usize = 8;

/// An identifier of echo requests to one address.
#[derive(Debug)]
pub struct Ping {
    socket: UdpSocket,
    target: IpAddr,
}

impl Ping {
    /// One that waits for answers no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// When the host does not let its users ping (`net.ipv4.ping_group_range`), or has no
    /// route to `target`.
    pub fn open(target: IpAddr, timeout: Duration) -> Result<Self> {
        let (family, protocol) = match target {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)
            .context("cannot open a socket for echo requests")?;
        // Its calls are those of a UDP socket.
        let socket = UdpSocket::from(socket);
        socket.connect(SocketAddr::new(target, 0))?;
        socket.set_read_timeout(Some(timeout))?;
        Ok(Self { socket, target })
    }

    /// The type of an echo request to this address, and that of its reply.
    const fn types(&self) -> (u8, u8) {
        match self.target {
            IpAddr::V4(_) => (8, 0),
            IpAddr::V6(_) => (128, 129),
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    ///
    /// When the kernel does not send it.
    pub fn send(&self, sequence: u16, payload: &[u8]) -> Result<()> {
        let mut packet = vec![0; HEADER];
        packet[0] = self.types().0;
        packet[6..].copy_from_slice(&sequence.to_be_bytes());
        packet.extend(payload);
        self.socket.send(&packet).context("cannot send")?;
        Ok(())
    }

    /// Sends a request and checks that its reply comes, and nothing else.
    ///
    /// # Errors
    ///
    /// When it does not come in time.
    pub fn exchange(&self, sequence: u16, payload: &[u8]) -> Result<()> {
        self.send(sequence, payload)?;
        let mut reply = vec![0; 65_536];
        let length = self.socket.recv(&mut reply).with_context(|| {
            let (target, length) = (self.target, payload.len());
            format!("{target} does not answer an echo request of {length} bytes")
        })?;
        let (header, rest) = reply[..length].split_at(HEADER.min(length));
        ensure!(
            header.first() == Some(&self.types().1)
                && header.get(6..) == Some(&sequence.to_be_bytes())
                && rest == payload,
            "{} answers an echo request of {} bytes by {header:?} and {} bytes",
            self.target,
            payload.len(),
            rest.len()
        );
        Ok(())
    }

    /// Whether a reply or an error has come that nobody has read.
    ///
    /// # Errors
    ///
    /// When the socket cannot be asked.
    pub fn has_answer(&self) -> Result<bool> {
        self.socket.set_nonblocking(true)?;
        let result = self.socket.recv(&mut [0; 1]);
        self.socket.set_nonblocking(false)?;
        let nothing = std::io::ErrorKind::WouldBlock;
        Ok(!result.is_err_and(|error| error.kind() == nothing))
    }
}
