//! What a parsed packet is, and the checks that only our own packets get.

use core::mem::transmute;

use aya_ebpf::programs::XdpContext;
use lb_common::drop_reason::DropReason;
use network_types::{ip::IpProto, tcp::TcpHdr, udp::UdpHdr};

use crate::{family::Family, link::Link};

/// A pointer to a `T` at `offset` in the frame, if the frame reaches that far.
#[inline(always)]
pub fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    Some(start as *mut T)
}

/// Why there is no packet.
pub enum Unparsed<F: Family> {
    /// It can't be for a service.
    Foreign,
    /// It is broken, or of a kind that is not forwarded. It is ours if it goes to
    /// this address with this protocol.
    Malformed(DropReason, F::Address, Protocol),
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

/// The transport header of a packet.
#[derive(Clone, Copy)]
pub enum Transport {
    /// TCP, with the data offset in 32-bit words and the control bits.
    Tcp(*mut TcpHdr, u8, u8),
    /// UDP.
    Udp(*mut UdpHdr),
}

impl Transport {
    /// Reads the transport header at `offset` in the frame. `None` if the frame
    /// ends before the header does.
    #[inline(always)]
    pub fn parse(ctx: &XdpContext, offset: usize, protocol: u8) -> Option<Self> {
        if protocol == TCP {
            let tcp: *mut TcpHdr = at(ctx, offset)?;
            // SAFETY: `at` checked the bounds; the two bytes are plain integers.
            let [offset, flags] = unsafe { transmute::<_, [u8; 2]>((*tcp)._bitfield_1) };
            Some(Self::Tcp(tcp, offset >> 4, flags))
        } else {
            Some(Self::Udp(at(ctx, offset)?))
        }
    }

    /// Source and destination port, network byte order.
    #[inline(always)]
    pub fn ports(self) -> (u16, u16) {
        // SAFETY: the bounds were checked when the header was parsed.
        let (src, dst) = unsafe {
            match self {
                Self::Tcp(tcp, ..) => ((*tcp).source, (*tcp).dest),
                Self::Udp(udp) => ((*udp).src, (*udp).dst),
            }
        };
        (u16::from_ne_bytes(src), u16::from_ne_bytes(dst))
    }

    /// Whether the header's own lengths fit the `length` bytes that the IP header
    /// leaves it, and its flags make sense.
    #[inline(always)]
    fn check(self, length: usize) -> Result<(), DropReason> {
        match self {
            Self::Tcp(_, words, flags) => {
                let header = usize::from(words) * 4;
                if header < TcpHdr::LEN || header > length {
                    return Err(DropReason::TransportHeader);
                }
                if !tcp::is_plausible(flags) {
                    return Err(DropReason::TcpFlags);
                }
            }
            Self::Udp(udp) => {
                // SAFETY: the bounds were checked when the header was parsed.
                let datagram = usize::from(u16::from_be_bytes(unsafe { (*udp).len }));
                if datagram < UdpHdr::LEN || datagram > length {
                    return Err(DropReason::TransportHeader);
                }
            }
        }
        Ok(())
    }
}

/// TCP control bits (RFC 9293, section 3.1).
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field is valid.
    pub const ACK: u8 = 0x10;

    /// Whether a TCP could have sent these flags: one of the four at least, and
    /// SYN neither with FIN nor with RST.
    #[inline(always)]
    pub const fn is_plausible(flags: u8) -> bool {
        flags & (SYN | FIN | RST | ACK) != 0 && (flags & SYN == 0 || flags & (FIN | RST) == 0)
    }

    /// Whether these flags begin a connection.
    #[inline(always)]
    pub const fn opens(flags: u8) -> bool {
        flags & (SYN | ACK) == SYN
    }
}

impl<F: Family> Packet<'_, F> {
    /// Whether the packet is whole: what its headers say fits the frame and each
    /// other. Returns the length of the IP packet in bytes. Only packets of ours
    /// are held to this, so that it costs others nothing.
    #[inline(always)]
    pub fn check(&self, ctx: &XdpContext) -> Result<u32, DropReason> {
        let length = F::check(ctx, self)?;
        let Some(transport) = length.checked_sub(self.headers) else {
            return Err(DropReason::IpLength);
        };
        self.transport.check(transport)?;
        if F::ttl(self) <= 1 {
            return Err(DropReason::TtlExpired);
        }
        Ok(length as u32)
    }
}
