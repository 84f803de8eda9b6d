//! What a parsed packet is, and the checks that only our own packets get.

use core::{mem::transmute, ptr};

use aya_ebpf::{
    helpers::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    programs::XdpContext,
};
use lb_common::{checksum, drop_reason::DropReason};
use network_types::{bitfield::BitfieldU16, ip::IpProto, tcp::TcpHdr, udp::UdpHdr};

use crate::{bounds, family::Family, link::Link, words};

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
    let length = bounds::within(length, size_of::<T>())?;
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

/// Writes words at `offset` in the frame.
#[inline(always)]
pub fn put<const N: usize>(
    ctx: &XdpContext,
    offset: usize,
    words: [u32; N],
) -> Result<(), DropReason> {
    let field: *mut [u32; N] = at(ctx, offset).ok_or(DropReason::NoHeadroom)?;
    // SAFETY: `at` checked the bounds.
    unsafe { words::store(field.cast(), words) };
    Ok(())
}

/// Why a packet has no payload that the datapath reads at once.
pub enum Unparsed {
    /// It can't be for a service.
    Foreign,
    /// It is a fragment of a packet of [`TCP`] or [`UDP`], or may be one.
    Fragment,
    /// It is broken, or of a kind that is not forwarded; it is ours if a service
    /// has its destination and protocol.
    Malformed(DropReason, Protocol),
}

/// What stands behind the IP headers.
pub struct Payload {
    /// [`TCP`], [`UDP`], or the ICMP of the family.
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
    /// Which part of a whole packet it is.
    pub part: Part,
    /// Its addresses, ports and protocol.
    pub tuple: F::Tuple,
}

/// What fragmentation left of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All.
    Whole,
    /// The begin, with the transport header.
    First,
    /// A later part, without.
    Later,
}

/// The transport header of a packet. One shape for TCP and UDP, since the verifier
/// does not follow pointers through an enum. Of a [`Part::Later`] it is not looked at.
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

    /// What stands for the header that a later fragment lacks. It begins nothing.
    #[inline(always)]
    pub fn absent(protocol: u8) -> Self {
        Self {
            is_tcp: protocol == TCP,
            flags: tcp::ACK,
            length: 0,
            ports: ptr::null_mut(),
            checksum: ptr::null_mut(),
        }
    }

    /// Source and destination port, a word as it lies in the frame.
    #[inline(always)]
    pub fn ports(&self) -> u32 {
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

    /// UDP: length of the datagram in bytes, at least 8 once it has been checked.
    #[inline(always)]
    pub fn datagram_length(&self) -> u32 {
        self.length as u32
    }

    /// TCP: length of the header in bytes, at least 20 once it has been checked.
    #[inline(always)]
    pub fn header_length(&self) -> u64 {
        self.length
    }

    /// Whether the checksum covers all the `room` bytes behind the IP headers. Of a
    /// datagram, zero says that there is none (RFC 768).
    #[inline(always)]
    pub fn covers(&self, room: u32) -> bool {
        // SAFETY: the bounds were checked when the header was parsed.
        let checksum = unsafe { self.checksum.read_unaligned() };
        self.is_tcp || checksum != 0 && self.length == u64::from(room)
    }

    /// Whether the header's own length fits the `room` that the IP header leaves
    /// it, in bytes, and its flags make sense. The first fragment of a datagram has
    /// less room than the datagram takes.
    #[inline(always)]
    fn check(&self, room: u64, part: Part) -> Result<(), DropReason> {
        let least = if self.is_tcp {
            TcpHdr::LEN
        } else {
            UdpHdr::LEN
        };
        if part == Part::First && (room < least as u64 || self.is_tcp && self.length > room) {
            return Err(DropReason::FragmentTiny);
        }
        let fits = self.length <= room || part == Part::First;
        if self.length < least as u64 || !fits {
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
    /// Puts a whole packet together from its headers.
    #[inline(always)]
    pub fn new(
        link: &'a Link,
        ip: *mut F::Header,
        payload: &Payload,
        transport: Transport,
    ) -> Self {
        let ports = transport.ports();
        Self::part(link, ip, payload, transport, ports, Part::Whole)
    }

    /// Puts a fragment together, of a packet with these ports.
    #[inline(always)]
    pub fn part(
        link: &'a Link,
        ip: *mut F::Header,
        payload: &Payload,
        transport: Transport,
        ports: u32,
        part: Part,
    ) -> Self {
        Self {
            link,
            ip,
            headers: payload.headers,
            tuple: F::tuple(ip, payload.protocol, ports),
            transport,
            part,
        }
    }

    /// Whether an RST may answer the packet: one of TCP, of which enough is there, and that
    /// is none itself.
    #[inline(always)]
    pub fn takes_reset(&self) -> bool {
        self.transport.is_tcp && self.part != Part::Later && self.transport.flags & tcp::RST == 0
    }

    /// Whether the packet is whole: what its headers say fits the frame and each
    /// other. Returns the length of the IP packet in bytes. Only packets of ours
    /// are held to this, so that it costs others nothing.
    #[inline(always)]
    pub fn check(&self, ctx: &XdpContext) -> Result<u32, DropReason> {
        let length = check_ip::<F>(ctx, self.link, self.ip, self.headers)?;
        if self.part != Part::Later {
            let room = length - self.headers as u32;
            self.transport.check(u64::from(room), self.part)?;
        }
        if F::ttl(self.ip) <= 1 {
            return Err(DropReason::TtlExpired);
        }
        Ok(length)
    }
}

/// Whether an IP header with `headers` bytes of headers agrees with the frame and itself.
/// Returns the length of the IP packet in bytes.
#[inline(always)]
pub fn check_ip<F: Family>(
    ctx: &XdpContext,
    link: &Link,
    ip: *mut F::Header,
    headers: usize,
) -> Result<u32, DropReason> {
    let length = F::length(ip);
    if length < headers {
        return Err(DropReason::IpLength);
    }
    // Of a frame in several buffers only the first is reached by pointers. The verifier
    // lets nothing be added to one that it knows no bound of, which before Linux 6.10 holds
    // for a length whose bytes have been swapped.
    let reached = ctx.data_end() - ip as usize;
    if length > reached && link.payload + length > frame_length(ctx) {
        return Err(DropReason::IpLength);
    }
    if !F::checksum_is_right(ctx, link, ip, headers) {
        return Err(DropReason::IpChecksum);
    }
    Ok(length as u32)
}

/// Length of the frame in bytes, all of its buffers.
#[inline(always)]
pub fn frame_length(ctx: &XdpContext) -> usize {
    // SAFETY: the context is valid while the program runs.
    unsafe { bpf_xdp_get_buff_len(ctx.ctx) as usize }
}
