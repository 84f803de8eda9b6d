//! The `icmp` probe: an echo request is answered (RFC 792, RFC 4443).

use std::{
    net::{IpAddr, UdpSocket},
    os::fd::AsRawFd,
};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, socket,
};

use super::{ProbeError, probe::random};

const REQUEST_V4: u8 = 8;
const REPLY_V4: u8 = 0;
const REQUEST_V6: u8 = 128;
const REPLY_V6: u8 = 129;
/// Type, code, checksum, identifier, sequence number, and something to know it by.
const LENGTH: usize = 16;
/// More bytes than an answer has, with the longest IPv4 header.
const BUFFER: usize = 60 + 2 * LENGTH;

/// Sends an echo request and waits for its reply.
pub(super) async fn probe(target: IpAddr) -> Result<(), ProbeError> {
    let (family, protocol) = match target {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let raw = socket(family, SockType::Raw, flags, protocol).map_err(|error| {
        ProbeError::Impossible(format!("no raw socket: {}", error.desc().to_lowercase()))
    })?;
    // So the kernel gives it only what comes from there, not what answers other checks.
    let address = SockaddrStorage::from(std::net::SocketAddr::new(target, 0));
    connect(raw.as_raw_fd(), &address).map_err(std::io::Error::from)?;
    // To the runtime it is a socket of datagrams like one of UDP.
    let socket = tokio::net::UdpSocket::from_std(UdpSocket::from(raw))?;

    let request = request(target, random());
    socket.send(&request).await?;
    let mut buffer = [0; BUFFER];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if is_reply(target, &request, &buffer[..length]) {
            return Ok(());
        }
    }
}

fn request(target: IpAddr, token: u64) -> [u8; LENGTH] {
    let mut request = [0; LENGTH];
    let identifier = (token >> 48) as u16;
    request[0] = if target.is_ipv4() {
        REQUEST_V4
    } else {
        REQUEST_V6
    };
    request[4..6].copy_from_slice(&identifier.to_be_bytes());
    request[8..].copy_from_slice(&token.to_be_bytes());
    // That of ICMPv6 has the addresses in it, and is the kernel's to compute.
    if target.is_ipv4() {
        let checksum = checksum(&request);
        request[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    request
}

/// Whether a packet is the reply to the request.
fn is_reply(target: IpAddr, request: &[u8; LENGTH], packet: &[u8]) -> bool {
    let (kind, message) = match (target, packet) {
        // Of IPv4, the kernel gives the header along.
        (IpAddr::V4(_), [first, ..]) => {
            let header = usize::from(first & 0x0f) * 4;
            (REPLY_V4, packet.get(header..))
        }
        (IpAddr::V4(_), []) => return false,
        (IpAddr::V6(_), packet) => (REPLY_V6, Some(packet)),
    };
    let Some([reply_kind, 0, _, _, rest @ ..]) = message else {
        return false;
    };
    *reply_kind == kind && *rest == request[4..]
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let (pairs, _) = bytes.as_chunks::<2>();
    let sum = pairs
        .iter()
        .map(|pair| u32::from(u16::from_be_bytes(*pair)))
        .sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_ipv4_has_a_checksum() {
        let request = request("10.0.0.1".parse().unwrap(), 0x1234_5678_9abc_def0);
        assert_eq!(request[..2], [REQUEST_V4, 0]);
        assert_eq!(request[4..8], [0x12, 0x34, 0, 0]);
        assert_eq!(checksum(&request), 0);
    }

    #[test]
    fn only_the_reply_to_the_request_counts() {
        let v4: IpAddr = "10.0.0.1".parse().unwrap();
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        let asked = request(v4, 7);
        let mut reply = asked;
        reply[0] = REPLY_V4;
        let packet = |header: u8, message: &[u8]| {
            let mut packet = vec![0; usize::from(header) * 4];
            packet[0] = 0x40 | header;
            packet.extend(message);
            packet
        };
        assert!(is_reply(v4, &asked, &packet(5, &reply)));
        assert!(is_reply(v4, &asked, &packet(15, &reply)));
        assert!(!is_reply(v4, &asked, &packet(5, &asked)));
        assert!(!is_reply(v4, &asked, &packet(5, &reply[..LENGTH - 1])));
        assert!(!is_reply(v4, &asked, &[]));
        assert!(!is_reply(v4, &asked, &[0x4f]));
        let other = request(v4, 8);
        assert!(!is_reply(v4, &other, &packet(5, &reply)));

        let asked = request(v6, 7);
        let mut reply = asked;
        reply[0] = REPLY_V6;
        // As the kernel completes it.
        reply[2] = 0x99;
        assert!(is_reply(v6, &asked, &reply));
        assert!(!is_reply(v6, &asked, &asked));
    }
}
