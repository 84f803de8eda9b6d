//! How the balancer ends a connection.

use std::net::SocketAddr;

use etherparse::TcpHeader;

use crate::packet::{Packet, Transport};

/// TTL and hop limit of what the balancer says.
const TTL: u8 = 64;

/// The RST that answers a TCP packet, sent to where that came from (RFC 9293, section
/// 3.10.7.1).
///
/// # Panics
///
/// Where the packet is one of UDP.
#[must_use]
pub fn reset_for(packet: &Packet) -> Packet {
    let Transport::Tcp(segment) = &packet.transport else {
        panic!("datagrams are not answered");
    };
    let (src, dst) = packet.sockets();
    let mut answer = Packet::tcp(dst, src, |tcp| {
        *tcp = TcpHeader::new(dst.port(), src.port(), 0, 0);
        tcp.rst = true;
        if segment.ack {
            tcp.sequence_number = segment.acknowledgment_number;
        } else {
            tcp.ack = true;
            let flags = u32::from(segment.syn) + u32::from(segment.fin);
            let length = packet.payload.len() as u32 + flags;
            tcp.acknowledgment_number = segment.sequence_number.wrapping_add(length);
        }
    });
    answer.strip();
    answer.set_ttl(TTL);
    (answer.src_mac, answer.dst_mac) = (packet.dst_mac, packet.src_mac);
    answer.tags.clone_from(&packet.tags);
    answer
}

/// The RST that stands in the place of a packet to `dst`, which it is to tell, with the tags of
/// the packet.
pub(crate) fn reset_onward(packet: &Packet, src: SocketAddr, dst: SocketAddr) -> Packet {
    let Transport::Tcp(segment) = &packet.transport else {
        panic!("datagrams are not answered");
    };
    let mut reset = Packet::tcp(src, dst, |tcp| {
        *tcp = TcpHeader::new(src.port(), dst.port(), segment.sequence_number, 0);
        tcp.rst = true;
    });
    reset.strip();
    reset.set_ttl(TTL);
    reset.tags.clone_from(&packet.tags);
    reset
}
