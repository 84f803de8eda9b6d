//! What the kernel says of links, neighbours and packet filters, by netlink.

use std::{io, net::IpAddr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
};
use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE` (linux/netfilter).
const GET_TABLES: u16 = 10 << 8 | 1;
/// `NLMSG_ERROR` and `NLMSG_DONE` of linux/netlink.h.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// VLAN interfaces, with the interface that each stands on.
pub(super) fn vlans() -> io::Result<Vec<(u32, u32)>> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let links = list(request)?
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some((link.header.index, below(&link)?)),
            _ => None,
        });
    Ok(links.collect())
}

/// The interface that a VLAN interface stands on. Others have something else there: a veth, its
/// peer, which may be in another namespace.
fn below(link: &LinkMessage) -> Option<u32> {
    let is_vlan = link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos
            .iter()
            .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Vlan))),
        _ => false,
    });
    let lower = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Link(lower) => Some(*lower),
            _ => None,
        });
    lower.filter(|_| is_vlan)
}

/// Neighbours that have an Ethernet address, with the index of their interface.
pub(super) fn neighbours() -> io::Result<Vec<(u32, IpAddr)>> {
    let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let neighbours = list(request)?
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(neighbour) => {
                let attributes = &neighbour.attributes;
                let address = attributes.iter().find_map(|attribute| match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                        Some(IpAddr::V4(*address))
                    }
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                        Some(IpAddr::V6(*address))
                    }
                    _ => None,
                });
                let has_mac = attributes.iter().any(|attribute| {
                    matches!(attribute, NeighbourAttribute::LinkLayerAddress(mac)
                    if mac.iter().any(|byte| *byte != 0))
                });
                address
                    .filter(|_| has_mac)
                    .map(|address| (neighbour.header.ifindex, address))
            }
            _ => None,
        });
    Ok(neighbours.collect())
}

fn list(request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let mut answers = Vec::new();
    dump(NETLINK_ROUTE, &bytes, |message| {
        // What is not understood is not looked for.
        if let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message)
            && let NetlinkPayload::InnerMessage(answer) = message.payload
        {
            answers.push(answer);
        }
    })?;
    Ok(answers)
}

/// How many tables of packet filters (nftables, also those of `iptables-nft`) there are.
pub(super) fn filter_tables() -> io::Result<usize> {
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut request = ((HEADER + 4) as u32).to_ne_bytes().to_vec();
    request.extend(GET_TABLES.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    // Sequence number and port; family, version and resource.
    request.extend([0; 8]);
    request.extend([0; 4]);
    let mut tables = 0;
    dump(NETLINK_NETFILTER, &request, |_| tables += 1)?;
    Ok(tables)
}

/// Sends a request for a listing, and shows each message of it to `visit`.
fn dump(protocol: isize, request: &[u8], mut visit: impl FnMut(&[u8])) -> io::Result<()> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(request, 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while let Some((length, header)) = rest.split_first_chunk::<4>() {
            let length = u32::from_ne_bytes(*length) as usize;
            let (Some(message), Some(kind)) = (rest.get(..length), header.get(..2)) else {
                break;
            };
            if length < HEADER {
                break;
            }
            match u16::from_ne_bytes([kind[0], kind[1]]) {
                DONE => return Ok(()),
                ERROR => {
                    let code = message
                        .get(HEADER..HEADER + 4)
                        .and_then(|code| code.try_into().ok());
                    return match code.map_or(0, i32::from_ne_bytes) {
                        0 => Ok(()),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
                _ => visit(message),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}
