//! Frames, put together by another library than the program under test, checksums
//! computed from the start.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, TcpHeader,
};
use lb_bench_driver::{BALANCE, FRAME};
use lb_userspace::state::Protocol;

/// Ethernet destination and source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Macs {
    pub(crate) dst: [u8; 6],
    pub(crate) src: [u8; 6],
}

impl Macs {
    /// Those of an answer.
    pub(crate) fn reversed(self) -> Self {
        Self {
            dst: self.src,
            src: self.dst,
        }
    }
}

/// TCP control bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flags {
    Syn,
    SynAck,
    Ack,
}

/// A TCP or UDP packet in a frame of [`FRAME`] bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) macs: Macs,
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) protocol: Protocol,
    /// Of TCP.
    pub(crate) flags: Flags,
    /// TTL or hop limit.
    pub(crate) hops: u8,
    /// Of IPv4, as it lies in memory.
    pub(crate) identification: u16,
    /// The first bytes of the payload.
    pub(crate) header: &'static [u8],
    /// Its last bytes, as they lie in memory; the rest is zero.
    pub(crate) balance: u32,
}

/// The sequence number of every TCP segment.
const SEQUENCE: u32 = 1;

/// Hops that a packet has left when it arrives.
pub(crate) const HOPS: u8 = 64;

impl Frame {
    /// The frame.
    pub(crate) fn bytes(&self) -> Result<[u8; FRAME]> {
        let builder = PacketBuilder::ethernet2(self.macs.src, self.macs.dst).ip(self.ip_headers()?);
        let mut frame = Vec::with_capacity(FRAME);
        let (src_port, dst_port) = (self.src.port(), self.dst.port());
        match self.protocol {
            Protocol::Tcp => {
                let mut tcp = TcpHeader::new(src_port, dst_port, SEQUENCE, u16::MAX);
                tcp.syn = self.flags != Flags::Ack;
                tcp.ack = self.flags != Flags::Syn;
                if tcp.ack {
                    // A SYN counts: what both ends acknowledge.
                    tcp.acknowledgment_number = SEQUENCE + 1;
                }
                let builder = builder.tcp_header(tcp);
                let payload = self.payload(builder.size(0));
                builder.write(&mut frame, &payload)?;
            }
            Protocol::Udp => {
                let builder = builder.udp(src_port, dst_port);
                let payload = self.payload(builder.size(0));
                builder.write(&mut frame, &payload)?;
            }
        }
        frame.try_into().ok().context("a frame of another length")
    }

    fn ip_headers(&self) -> Result<IpHeaders> {
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header = Ipv4Header {
                    identification: u16::from_be(self.identification),
                    dont_fragment: true,
                    fragment_offset: IpFragOffset::ZERO,
                    ..Ipv4Header::new(0, self.hops, IpNumber::TCP, src.octets(), dst.octets())?
                };
                Ok(IpHeaders::Ipv4(header, Default::default()))
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let header = Ipv6Header {
                    hop_limit: self.hops,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Ipv6Header::default()
                };
                Ok(IpHeaders::Ipv6(header, Default::default()))
            }
            (src, dst) => bail!("{src} and {dst} are of different families"),
        }
    }

    /// What follows `headers` bytes.
    fn payload(&self, headers: usize) -> Vec<u8> {
        let mut payload = self.header.to_vec();
        payload.resize(BALANCE - headers, 0);
        payload.extend(self.balance.to_ne_bytes());
        payload
    }
}

/// An ARP request, which no balancer answers.
pub(crate) fn arp(macs: Macs) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..6].copy_from_slice(&macs.dst);
    frame[6..12].copy_from_slice(&macs.src);
    // EtherType, hardware and protocol type, lengths, and the operation (RFC 826).
    frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame
}

/// An ICMP echo request, or the answer to it.
pub(crate) fn echo(
    macs: Macs,
    src: SocketAddr,
    dst: SocketAddr,
    is_request: bool,
) -> Result<[u8; FRAME]> {
    let builder = PacketBuilder::ethernet2(macs.src, macs.dst);
    let (id, sequence) = (7, 1);
    let mut frame = Vec::with_capacity(FRAME);
    match (src.ip(), dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let builder = builder.ipv4(src.octets(), dst.octets(), HOPS);
            let builder = if is_request {
                builder.icmpv4_echo_request(id, sequence)
            } else {
                builder.icmpv4_echo_reply(id, sequence)
            };
            let payload = vec![0; FRAME - builder.size(0)];
            builder.write(&mut frame, &payload)?;
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let builder = builder.ipv6(src.octets(), dst.octets(), HOPS);
            let builder = if is_request {
                builder.icmpv6_echo_request(id, sequence)
            } else {
                builder.icmpv6_echo_reply(id, sequence)
            };
            let payload = vec![0; FRAME - builder.size(0)];
            builder.write(&mut frame, &payload)?;
        }
        (src, dst) => bail!("{src} and {dst} are of different families"),
    }
    frame.try_into().ok().context("a frame of another length")
}
