//! Tunnel packets through the real program of `lb decap`: the whole frame and every
//! counter compared.

mod bench;
mod ecn;
mod foreign;
mod malformed;
mod refused;
mod unwrapped;

use std::net::SocketAddr;

use lb_tests::Packet;

/// Whom the clients speak to.
fn vip(ipv6: bool) -> SocketAddr {
    if ipv6 {
        "[2001:db8:2::10]:443".parse().expect("an address")
    } else {
        "192.0.2.10:443".parse().expect("an address")
    }
}

/// Index of [`vip`].
fn vip_index(ipv6: bool) -> u32 {
    u32::from(ipv6)
}

/// A client.
fn client(ipv6: bool) -> SocketAddr {
    if ipv6 {
        "[2001:db8:1::7]:40000".parse().expect("an address")
    } else {
        "198.51.100.7:40000".parse().expect("an address")
    }
}

/// A packet from the client to the VIP.
fn request(ipv6: bool, tcp: bool) -> Packet {
    let (src, dst) = (client(ipv6), vip(ipv6));
    if tcp {
        Packet::tcp(src, dst, |tcp| tcp.ack = true).with_payload("GET / HTTP/1.1\r\n\r\n")
    } else {
        Packet::udp(src, dst).with_payload("what?")
    }
}

/// The name of a family in the names of cases.
fn family(ipv6: bool) -> &'static str {
    if ipv6 { "IPv6" } else { "IPv4" }
}
