//! Which backend the connection ID of a QUIC packet names (draft-ietf-quic-load-balancers,
//! in plaintext), so that a client that changes its address keeps it.
//!
//! Where connection IDs stand is the same in all versions of QUIC (RFC 8999, section 5).

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    backend::BackendState,
    quic::{CONFIGURATION_SHIFT, MAX_SERVER_ID, ServerIdKey},
    ring::NO_BACKEND,
    service::{Mode, Service},
};
use network_types::udp::UdpHdr;

use crate::{
    family::Family,
    maps::{BACKENDS, OPTIONS, SERVER_IDS},
    packet::{Packet, Part, copy},
};

/// The first bit of a long header, which has the length of the connection ID.
const LONG: u8 = 0x80;
/// Bytes before the connection ID in a long header.
const BEFORE_LONG: u32 = 6;
/// Bytes before the connection ID in a short header.
const BEFORE_SHORT: u32 = 1;

/// The first bytes of a packet, zeros where it has fewer.
#[derive(Clone, Copy, Default)]
#[repr(C, align(8))]
struct Head {
    /// [`LONG`] or not.
    form: u8,
    /// Short header: the first octet of the connection ID. Long header: of the version.
    octet_of_short: u8,
    /// The rest of the version.
    version: [u8; 3],
    /// Long header: the length of the connection ID.
    id_length: u8,
    /// Long header: the first octet of the connection ID.
    octet_of_long: u8,
    /// Behind what is read.
    unread: u8,
}

/// Bytes of a header that tell all but the server ID.
const HEAD: u32 = BEFORE_LONG + 1;

/// The backend that the connection ID of a packet names, if the service has such IDs and the
/// backend takes packets; [`NO_BACKEND`] else. `length` is that of the IP packet.
///
/// A later fragment has none: in the modes without translation it goes where the first one
/// went, in the others its flow has an entry.
#[inline(always)]
pub fn named<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<'_, F>,
    service: &Service,
    length: u32,
) -> u32 {
    if service.flags & Service::QUIC == 0 {
        return NO_BACKEND;
    }
    if packet.part == Part::Later {
        if Mode::translates(service.mode) {
            return NO_BACKEND;
        }
        let Some(draft) = F::draft() else {
            return NO_BACKEND;
        };
        // SAFETY: the draft belongs to this CPU, and a program does not migrate or re-enter
        // itself while it runs.
        let first = unsafe { (*draft).fragment.backend };
        return usable(service.id(), first);
    }
    // Neither beyond the end of the datagram, nor, where that is a fragment, of the packet.
    let room = length - packet.headers as u32;
    let datagram = packet.transport.datagram_length().min(room);
    let offset = packet.link.payload + packet.headers + UdpHdr::LEN;
    let payload = datagram - UdpHdr::LEN as u32;
    let backend = quic_backend(ctx.ctx, service.id(), offset as u64, payload);
    if packet.part == Part::First
        && let Some(draft) = F::draft()
    {
        // SAFETY: as above.
        unsafe { (*draft).fragment.backend = backend };
    }
    backend
}

/// The backend that the connection ID in the `length` bytes at `offset` of the frame names.
///
/// A global function, like `ipv6_walk`: few services have such IDs.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn quic_backend(ctx: *mut xdp_md, service: u32, offset: u64, length: u32) -> u32 {
    read(&XdpContext::new(ctx), service, offset as usize, length).unwrap_or(NO_BACKEND)
}

#[inline(always)]
fn read(ctx: &XdpContext, service: u32, offset: usize, length: u32) -> Option<u32> {
    let ids = OPTIONS.get(service)?.connection_ids;
    let mut head = Head::default();
    let head = copy(ctx, offset, &mut head, length.min(HEAD) as usize)?;
    let is_long = head.form & LONG != 0;
    let (before, octet) = if is_long {
        (BEFORE_LONG, head.octet_of_long)
    } else {
        (BEFORE_SHORT, head.octet_of_short)
    };
    let room = length.checked_sub(before)?;
    // Where the ID of a short header ends the server alone knows.
    let id = if is_long {
        u32::from(head.id_length)
    } else {
        room
    };
    let (skipped, named) = (u32::from(ids.offset), u32::from(ids.length));
    if id > room || skipped + named > id {
        return None;
    }
    if ids.configurations >> (octet >> CONFIGURATION_SHIFT) & 1 == 0 {
        return None;
    }
    let mut key = ServerIdKey {
        id: [0; MAX_SERVER_ID],
        length: named as u8,
        service,
        reserved: 0,
    };
    let at = offset + (before + skipped) as usize;
    copy(ctx, at, &mut key.id, named as usize)?;
    // SAFETY: the program never writes the table; the value is copied.
    let backend = *unsafe { SERVER_IDS.get(key) }?;
    Some(usable(service, backend))
}

/// The backend of this id, if it belongs to the service and takes packets.
#[inline(always)]
fn usable(service: u32, id: u32) -> u32 {
    const UP: u8 = BackendState::Up as u8;
    match BACKENDS.get(id) {
        Some(backend) if backend.state == UP && backend.service == service => id,
        _ => NO_BACKEND,
    }
}
