//! *Connection IDs of QUIC* (selection.md): the backend that a packet names.

use crate::{
    bytes::be16,
    packet::Ip,
    world::{Health, Service, World},
};

/// Bytes of a UDP header.
const UDP_HEADER: usize = 8;

/// The backend that the connection ID of a client's packet names, if its service reads them:
/// "a backend of the service that is up".
#[must_use]
pub fn named(world: &World, service: &Service, ip: &Ip, bytes: &[u8]) -> Option<u32> {
    let quic = service.quic.as_ref()?;
    let segment = bytes.get(ip.headers..ip.length)?;
    let datagram = &segment[..usize::from(be16(segment, 4)).min(segment.len())];
    let packet = datagram.get(UDP_HEADER..)?;
    let id = if packet.first()? & 0x80 != 0 {
        packet.get(6..)?.get(..usize::from(*packet.get(5)?))?
    } else {
        packet.get(1..)?
    };
    if !quic.configurations.contains(&(id.first()? >> 5)) {
        return None;
    }
    let server_id = id.get(quic.offset..)?.get(..quic.length)?;
    usable(world, service, *quic.server_ids.get(server_id)?)
}

/// The backend of this id, if packets that name it go to it.
#[must_use]
pub fn usable(world: &World, service: &Service, id: u32) -> Option<u32> {
    let backend = world.backends.get(&id)?;
    (backend.health == Health::Up && backend.service == service.id).then_some(id)
}
