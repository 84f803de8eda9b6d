//! Tells the ends of a TCP connection that it is over, in the place of a packet of it.
//!
//! The sender of the packet is answered as by one that knows of no connection (RFC 9293,
//! section 3.10.7.1). Of a connection that is translated, the other end is told first, if it
//! has not been: who waits for data, and has nothing to say, would wait on else. What made the
//! packet comes again, not being acknowledged, and is answered then.
//!
//! A receiver takes an RST only with the very number that it expects next (RFC 5961, section
//! 3.2). For the sender that is what it has acknowledged, for the other end that of the packet;
//! should it expect another one, it says so, and is answered in turn.

use core::hint::black_box;

use aya_ebpf::{
    bindings::xdp_action::XDP_DROP, helpers::bpf_xdp_adjust_tail, programs::XdpContext,
};
use lb_common::{
    addr::LinkPath, checksum, drop_reason::DropReason, flow::Tuple as _, stage::Handover,
};

use crate::{
    family::{Carried, DONT_FRAGMENT, Family},
    flow::{self, Flow},
    link::Link,
    maps::BACKENDS,
    packet::{TCP, at, frame_length, put, tcp},
    stage, words,
};

/// Words of a TCP header without options: ports, sequence number, acknowledgement number;
/// length, flags and window; checksum and urgent pointer.
const WORDS: usize = 5;
/// Bytes of it.
const LENGTH: usize = WORDS * size_of::<u32>();
/// Its length, in the place of the header's field.
const DATA_OFFSET: u8 = (WORDS as u8) << 4;
/// TTL or hop limit of an RST.
const TTL: u8 = 64;
/// The bits of the length of IP headers: more than any that have been followed.
const HEADERS_MASK: u32 = (1 << 14) - 1;

/// Turns a packet that has been counted as dropped, and whose headers have been checked, into
/// an RST.
#[inline(always)]
pub fn path<F: Family>(ctx: &XdpContext, link: &Link) -> u32 {
    let Some(word) = stage::handed_over() else {
        return XDP_DROP;
    };
    // The verifier has to see the bound that was checked when the headers were read.
    let headers = (black_box(word) & HEADERS_MASK) as usize;
    let (Some(ip), Some(header)) = (
        F::header(ctx, link),
        at::<[u32; WORDS]>(ctx, link.payload + headers),
    ) else {
        return XDP_DROP;
    };
    let room = (F::length(ip) - headers) as u32;
    // SAFETY: `at` checked the bounds.
    let segment = Segment::read(unsafe { words::load(header.cast::<u32>()) }, room);
    let tuple = F::tuple(ip, TCP, segment.ports);
    let is_reply = word & Handover::REPLY != 0;
    let sent = if let Some(flow) = flow::reset::<F>(&tuple, is_reply)
        && segment.comes_again()
        && let Some(path) = way_on(&flow, is_reply)
    {
        make::<F>(ctx, link, path, flow.to(), &segment.passed_on())
    } else {
        let path = link.way_back();
        make::<F>(ctx, link, &path, &tuple.reversed(), &segment.answer())
    };
    sent.unwrap_or(XDP_DROP)
}

/// The way of packets like this one, if it is known.
#[inline(always)]
fn way_on<F: Family>(flow: &Flow<F>, is_reply: bool) -> Option<&LinkPath> {
    let path = if is_reply {
        flow.path()
    } else {
        &BACKENDS.get(flow.backend())?.path
    };
    (path.ifindex != 0).then_some(path)
}

/// What of a TCP segment tells how it is answered. Numbers are in host byte order.
struct Segment {
    /// Both ports, a word as it lies in the frame.
    ports: u32,
    sequence: u32,
    acknowledgement: u32,
    flags: u64,
    /// What it takes of the sequence space.
    length: u32,
}

/// The fields of an RST.
struct Reset {
    sequence: u32,
    acknowledgement: u32,
    flags: u64,
}

impl Segment {
    /// One of `room` bytes with this header.
    #[inline(always)]
    fn read(header: [u32; WORDS], room: u32) -> Self {
        let [ports, sequence, acknowledgement, rest, _] = header;
        let [offset, flags, ..] = rest.to_ne_bytes();
        let flags = u64::from(flags);
        let bit = |flag| u32::from(flags & flag != 0);
        let data = room.wrapping_sub(u32::from(offset >> 4) * 4);
        Self {
            ports,
            sequence: u32::from_be(sequence),
            acknowledgement: u32::from_be(acknowledgement),
            flags,
            length: data.wrapping_add(bit(tcp::SYN) + bit(tcp::FIN)),
        }
    }

    /// Whether its sender sends it again if nobody acknowledges it. With a SYN, the other end
    /// has still to learn of the connection.
    #[inline(always)]
    fn comes_again(&self) -> bool {
        self.length != 0 && self.flags & tcp::SYN == 0
    }

    /// The RST that answers it.
    #[inline(always)]
    fn answer(&self) -> Reset {
        if self.flags & tcp::ACK != 0 {
            return Reset {
                sequence: self.acknowledgement,
                acknowledgement: 0,
                flags: tcp::RST,
            };
        }
        Reset {
            sequence: 0,
            acknowledgement: self.sequence.wrapping_add(self.length),
            flags: tcp::RST | tcp::ACK,
        }
    }

    /// The RST that its receiver gets in its place.
    #[inline(always)]
    fn passed_on(&self) -> Reset {
        Reset {
            sequence: self.sequence,
            acknowledgement: 0,
            flags: tcp::RST,
        }
    }
}

/// Makes the packet, with this tuple, and sends it by `path`. What it is made of is at least
/// as long.
#[inline(always)]
fn make<F: Family>(
    ctx: &XdpContext,
    link: &Link,
    path: &LinkPath,
    tuple: &F::Tuple,
    reset: &Reset,
) -> Result<u32, DropReason> {
    let length = link.payload + F::HEADER + LENGTH;
    let excess = frame_length(ctx).saturating_sub(length) as i32;
    if excess != 0 {
        // SAFETY: the context is valid; every packet pointer is taken anew.
        if unsafe { bpf_xdp_adjust_tail(ctx.ctx, -excess) } != 0 {
            return Err(DropReason::NoHeadroom);
        }
    }
    let offset = link.rewrite(ctx, path, 0, link.ether_type)?;
    let carried = Carried {
        traffic_class: 0,
        flags: DONT_FRAGMENT,
        identification: 0,
    };
    let addresses = F::addresses(tuple);
    F::write(ctx, offset, &carried, LENGTH, TCP, TTL, addresses)?;
    let (src_port, dst_port) = F::ports(tuple);
    let ([a, b], [c, d]) = (src_port.to_ne_bytes(), dst_port.to_ne_bytes());
    let mut header = [
        u32::from_ne_bytes([a, b, c, d]),
        reset.sequence.to_be(),
        reset.acknowledgement.to_be(),
        u32::from_ne_bytes([DATA_OFFSET, reset.flags as u8, 0, 0]),
        0,
    ];
    let mut sum = F::address_sum(tuple);
    sum += u64::from((LENGTH as u16).to_be()) + u64::from(u16::from(TCP).to_be());
    for word in header {
        sum += u64::from(word);
    }
    let [high, low] = (!checksum::fold(sum)).to_ne_bytes();
    header[WORDS - 1] = u32::from_ne_bytes([high, low, 0, 0]);
    put(ctx, offset + F::HEADER, header)?;
    link.send(path)
}
