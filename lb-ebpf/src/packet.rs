//! What a parsed packet is, and the checks that only our own packets get.

use core::mem::transmute;

use aya_ebpf::{helpers::bpf_xdp_load_bytes, programs::XdpContext};
use lb_common::{checksum, drop_reason::DropReason};
use network_types::{bitfield::BitfieldU16, ip::IpProto, tcp::TcpHdr, udp::UdpHdr};

use crate::{family::Family, link::Link};

/// A pointer to a `T` at `offset` in the frame, if the frame reaches that far.
#[inline(always)]
pub fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    // Pointer arithmetic, since the verifier would lose the packet behind integers
    // that the compiler may choose to add in 32 bits.
    let start = (ctx.data() as *mut u8).wrapping_add(offset);
    if start.wrapping_add(size_of::<T>()) as usize > ctx.data_end() {
        return None;
    }
    Some(start.cast())
}

/// Copies `length` bytes at `offset` in the frame to the begin of `buffer`, if the
/// frame reaches that far and the buffer holds them. Slower than [`at`], but the
/// verifier follows it once, whatever the length and the offset: for headers that
/// few packets have.
#[inline(always)]
pub fn copy<'a, T>(
    ctx: &XdpContext,
    offset: usize,
    buffer: &'a mut T,
    length: usize,
) -> Option<&'a T> {
    if length == 0 || length > size_of::<T>() {
        return None;
    }
    // SAFETY: the buffer holds `length` bytes.
    let error = unsafe {
        bpf_xdp_load_bytes(
            ctx.ctx,
            offset as u32,
            (&raw mut *buffer).cast(),
            length as u32,
        )
    };
    (error == 0).then_some(buffer)
}

/// Why a packet has no transport header that the datapath reads.
pub enum Unparsed {
    /// It can't be for a service.
    Foreign,
    /// It is broken, or of a kind that is not forwarded; it is ours if a service
    /// has its destination and protocol.
    Malformed(DropReason, Protocol),
}

/// What stands behind the IP headers.
pub struct Payload {
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Length of the IP headers in bytes, options and extension headers included.
    pub headers: usize,
}

/// The protocol of a packet, as far as it could be read.
#[derive(Clone, Copy)]
pub enum Protocol {
    /// TCP or UDP.
    Known(u8),
    /// It may be any: the headers before it could not be followed.
    Unknown,
}

/// IP protocol numbers that services have.
pub const TCP: u8 = IpProto::Tcp as u8;
/// See [`TCP`].
pub const UDP: u8 = IpProto::Udp as u8;

/// A TCP or UDP packet.
pub struct Packet<'a, F: Family> {
    /// Its link layer.
    pub link: &'a Link,
    /// Its IP header.
    pub ip: *mut F::Header,
    /// Length of the IP headers in bytes, options and extension headers included.
    pub headers: usize,
    /// Its transport header.
    pub transport: Transport,
    /// Its addresses, ports and protocol.
    pub tuple: F::Tuple,
}

/// The transport header of a packet. One shape for TCP and UDP, since the verifier
/// does not follow pointers through an enum.
#[repr(C)]
pub struct Transport {
    /// Source and destination port.
    ports: *mut [u16; 2],
    /// Checksum.
    checksum: *mut u16,
    /// TCP control bits, see [`tcp`]; 0 for UDP.
    pub flags: u64,
    /// TCP: length of the header in bytes. UDP: length of the datagram in bytes.
    length: u64,
    /// TCP, else UDP.
    pub is_tcp: bool,
}

impl Transport {
    /// Reads the transport header. `None` if the frame ends before the header does.
    #[inline(always)]
    pub fn parse(ctx: &XdpContext, link: &Link, payload: &Payload) -> Option<Self> {
        let offset = link.payload + payload.headers;
        if payload.protocol == TCP {
            let tcp: *mut TcpHdr = at(ctx, offset)?;
            // SAFETY: `at` checked the bounds; the two bytes are plain integers.
            let [offset, flags] = unsafe { transmute::<BitfieldU16, [u8; 2]>((*tcp)._bitfield_1) };
            Some(Self {
                is_tcp: true,
                flags: u64::from(flags),
                length: u64::from(offset >> 4) * 4,
                ports: tcp.cast(),
                // SAFETY: as above.
                checksum: unsafe { (&raw mut (*tcp).check).cast() },
            })
        } else {
            let udp: *mut UdpHdr = at(ctx, offset)?;
            Some(Self {
                is_tcp: false,
                flags: 0,
                // SAFETY: `at` checked the bounds.
                length: u64::from(u16::from_be_bytes(unsafe { (*udp).len })),
                ports: udp.cast(),
                // SAFETY: as above.
                checksum: unsafe { (&raw mut (*udp).check).cast() },
            })
        }
    }

    /// Source and destination port, a word as it lies in the frame.
    #[inline(always)]
    fn ports(&self) -> u32 {
        // SAFETY: the bounds were checked when the header was parsed; both headers
        // begin with the ports.
        unsafe { self.ports.cast::<u32>().read_unaligned() }
    }

    /// Writes other ports (network byte order) and keeps the checksum as right or
    /// wrong as it was.
    #[inline(always)]
    pub fn rewrite(&self, src_port: u16, dst_port: u16, delta: u16) {
        // SAFETY: the bounds were checked when the header was parsed, and no
        // reference to it lives.
        unsafe {
            self.ports.write_unaligned([src_port, dst_port]);
            let old = self.checksum.read_unaligned();
            // Of a datagram, zero says that there is no checksum, and must not
            // come about otherwise (RFC 768).
            if self.is_tcp {
                self.checksum.write_unaligned(checksum::update(old, delta));
            } else if old != 0 {
                let new = checksum::update(old, delta);
                let new = if new == 0 { 0xffff } else { new };
                self.checksum.write_unaligned(new);
            }
        }
    }

    /// Whether the header's own length fits the `room` that the IP header leaves
    /// it, in bytes, and its flags make sense.
    #[inline(always)]
    fn check(&self, room: u64) -> Result<(), DropReason> {
        let least = if self.is_tcp {
            TcpHdr::LEN
        } else {
            UdpHdr::LEN
        };
        if self.length < least as u64 || self.length > room {
            return Err(DropReason::TransportHeader);
        }
        if self.is_tcp && !tcp::is_plausible(self.flags) {
            return Err(DropReason::TcpFlags);
        }
        Ok(())
    }
}

/// TCP control bits (RFC 9293, section 3.1).
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u64 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u64 = 0x02;
    /// Reset the connection.
    pub const RST: u64 = 0x04;
    /// The acknowledgement field is valid.
    pub const ACK: u64 = 0x10;

    /// Whether a TCP could have sent these flags: one of the four at least, and
    /// SYN neither with FIN nor with RST.
    #[inline(always)]
    pub const fn is_plausible(flags: u64) -> bool {
        flags & (SYN | FIN | RST | ACK) != 0 && (flags & SYN == 0 || flags & (FIN | RST) == 0)
    }

    /// Whether these flags begin a connection.
    #[inline(always)]
    pub const fn opens(flags: u64) -> bool {
        flags & (SYN | ACK) == SYN
    }
}

impl<'a, F: Family> Packet<'a, F> {
    /// Puts a packet together from its headers.
    #[inline(always)]
    pub fn new(
        link: &'a Link,
        ip: *mut F::Header,
        payload: &Payload,
        transport: Transport,
    ) -> Self {
        Self {
            link,
            ip,
            headers: payload.headers,
            tuple: F::tuple(ip, payload.protocol, transport.ports()),
            transport,
        }
    }

    /// Whether the packet is whole: what its headers say fits the frame and each
    /// other. Returns the length of the IP packet in bytes. Only packets of ours
    /// are held to this, so that it costs others nothing.
    #[inline(always)]
    pub fn check(&self, ctx: &XdpContext) -> Result<u32, DropReason> {
        let length = F::check(ctx, self)?;
        let Some(transport) = length.checked_sub(self.headers) else {
            return Err(DropReason::IpLength);
        };
        self.transport.check(transport as u64)?;
        if F::ttl(self) <= 1 {
            return Err(DropReason::TtlExpired);
        }
        Ok(length as u32)
    }
}
