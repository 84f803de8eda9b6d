//! Generic UDP encapsulation (draft-ietf-intarea-gue), as far as it carries IP packets
//! and nothing else.

use aya_ebpf::programs::XdpContext;
use network_types::{ip::IpProto, udp::UdpHdr};

use crate::{frame::at, maps::gue_port};

/// The header of version 0 without optional fields (section 3.1).
#[repr(C)]
struct Gue0 {
    /// Version (two bits), control (one), length of optional fields (five).
    first: u8,
    /// IP protocol number of what follows.
    protocol: u8,
    flags: u16,
}

/// A GUE packet.
pub struct Gue {
    /// Version of the inner IP packet: 4 or 6.
    pub version: u8,
    /// Length of the UDP and GUE headers in bytes.
    pub headers: usize,
    /// What the UDP datagram has for the inner packet, in bytes.
    pub room: usize,
}

/// Whether the UDP header at `offset` is there, and sent to the port of GUE.
#[inline(always)]
pub fn is_to_port(ctx: &XdpContext, offset: usize) -> bool {
    let Some(ports) = at::<[u16; 2]>(ctx, offset) else {
        return false;
    };
    // SAFETY: `at` checked the bounds.
    let [_, port] = unsafe { ports.read_unaligned() };
    port == gue_port()
}

impl Gue {
    /// Reads the UDP header at `offset`, behind which the IP packet has `room` bytes for
    /// it and all that follows, and the GUE header. `None` for control messages,
    /// optional fields, other versions and other payload than IP. The checksum of UDP is
    /// not looked at: what is inside has its own.
    #[inline(always)]
    pub fn read(ctx: &XdpContext, offset: usize, room: usize) -> Option<Self> {
        let udp: *const UdpHdr = at(ctx, offset)?;
        // SAFETY: `at` checked the bounds.
        let length = usize::from(u16::from_be_bytes(unsafe { (*udp).len }));
        if length > room {
            return None;
        }
        let first: *const u8 = at(ctx, offset + UdpHdr::LEN)?;
        // SAFETY: `at` checked the bounds.
        let (version, headers) = match unsafe { *first } >> 4 {
            // Version 1: the IP packet itself, whose version begins with the bits 01
            // (section 4).
            version @ (4 | 6) => (version, UdpHdr::LEN),
            0 => (
                version_0(ctx, offset + UdpHdr::LEN)?,
                UdpHdr::LEN + size_of::<Gue0>(),
            ),
            _ => return None,
        };
        Some(Self {
            version,
            headers,
            room: length.checked_sub(headers)?,
        })
    }
}

/// The version of the IP packet behind a header of GUE version 0.
#[inline(always)]
fn version_0(ctx: &XdpContext, offset: usize) -> Option<u8> {
    const IPV4: u8 = IpProto::Ipv4 as u8;
    const IPV6: u8 = IpProto::Ipv6 as u8;
    let gue: *const Gue0 = at(ctx, offset)?;
    // SAFETY: `at` checked the bounds.
    let gue = unsafe { gue.read_unaligned() };
    if gue.first != 0 || gue.flags != 0 {
        return None;
    }
    match gue.protocol {
        IPV4 => Some(4),
        IPV6 => Some(6),
        _ => None,
    }
}
