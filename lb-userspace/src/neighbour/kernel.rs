//! Requests to the kernel, by rtnetlink(7).

use std::{io, net::IpAddr};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_MULTIPART, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressMessage,
    link::LinkMessage,
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage},
    route::{RouteAttribute, RouteMessage, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::{
    socket::{setsockopt, sockopt},
    time::TimeVal,
};

use super::{
    HostAddress, decode,
    facts::{Link, Neighbour, NeighbourKey, Route},
};
use crate::address::AddressPrefix;

/// How often a listing is tried that changes while it is read.
const LISTING_TRIES: usize = 10;

/// How long an answer may take, in seconds. The kernel answers before the request
/// returns; only where it had no memory for the answer is there none.
const PATIENCE: i64 = 1;

/// Why there is no answer to a request.
enum Failure {
    /// The kernel refused.
    Refused(io::Error),
    /// The socket failed, or the listing changed meanwhile.
    Unanswered(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Unanswered(error)
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        let (Failure::Refused(error) | Failure::Unanswered(error)) = failure;
        error
    }
}

/// A socket for requests to the kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    socket: Socket,
    sequence: u32,
}

impl Kernel {
    /// Opens a socket in the network namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// The route to an address. Errors only where the kernel was not heard; its
    /// refusal is the answer that there is none.
    pub(super) fn route(&mut self, address: IpAddr) -> io::Result<Route> {
        let mut message = RouteMessage::default();
        message.header.address_family = address.into();
        message.header.destination_prefix_length = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        message.attributes = vec![RouteAttribute::Destination(address.into())];
        let answer = self.get(RouteNetlinkMessage::GetRoute(message))?;
        Ok(match answer {
            Some(RouteNetlinkMessage::NewRoute(route)) => decode::route(&route),
            _ => Route::None,
        })
    }

    /// The destinations of all local routes of a family.
    pub(super) fn local_routes(&mut self, family: AddressFamily) -> io::Result<Vec<AddressPrefix>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.kind = RouteType::Local;
        // Only then does the kernel look at the kind, and leave out a router's million others.
        self.socket.set_netlink_get_strict_chk(true)?;
        let answers = self.list(&RouteNetlinkMessage::GetRoute(message));
        self.socket.set_netlink_get_strict_chk(false)?;
        Ok(answers?
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route) => decode::local_route(route),
                _ => None,
            })
            .collect())
    }

    /// A neighbour entry.
    pub(super) fn neighbour(&mut self, key: NeighbourKey) -> io::Result<Neighbour> {
        let answer = self.get(RouteNetlinkMessage::GetNeighbour(neighbour_message(key)))?;
        Ok(match answer {
            Some(RouteNetlinkMessage::NewNeighbour(neighbour)) => decode::neighbour(&neighbour),
            _ => Neighbour::Unresolved,
        })
    }

    /// A link; `None` where there is none of this index.
    pub(super) fn link(&mut self, ifindex: u32) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        let answer = self.get(RouteNetlinkMessage::GetLink(message))?;
        Ok(match answer {
            Some(RouteNetlinkMessage::NewLink(link)) => Some(decode::link(&link)),
            _ => None,
        })
    }

    /// All links, by index.
    pub(super) fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut links: Vec<Link> = self
            .list(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(decode::link(link)),
                _ => None,
            })
            .collect();
        links.sort_by_key(|link| link.interface.ifindex);
        Ok(links)
    }

    /// All addresses. What is below their interfaces is not looked at.
    pub(super) fn addresses(&mut self) -> io::Result<Vec<HostAddress>> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let addresses = self.list(&request)?;
        Ok(addresses
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(address) => decode::address(address),
                _ => None,
            })
            .collect())
    }

    /// All that a request for a listing leads to.
    fn list(&mut self, request: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.request(request.clone(), NLM_F_DUMP) {
                Err(Failure::Unanswered(error))
                    if error.kind() == io::ErrorKind::Interrupted && tries < LISTING_TRIES => {}
                answers => return Ok(answers?),
            }
        }
    }

    /// Makes the kernel resolve a neighbour that has no valid entry, or confirm a
    /// stale one, as a packet to it would.
    ///
    /// `NTF_USE` rather than `NTF_EXT_MANAGED` (Linux 5.16), by which the kernel
    /// itself would keep at it: that stays with the entry for ever when this process
    /// is killed.
    pub(super) fn provoke(&mut self, key: NeighbourKey) -> io::Result<()> {
        let mut message = neighbour_message(key);
        message.header.flags = NeighbourFlags::Use;
        let request = RouteNetlinkMessage::NewNeighbour(message);
        self.request(request, NLM_F_CREATE | NLM_F_ACK)?;
        Ok(())
    }

    /// Asks for one thing; `None` where the kernel refuses.
    fn get(&mut self, request: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        match self.request(request, 0) {
            Ok(answers) => Ok(answers.into_iter().next()),
            Err(Failure::Refused(error)) => {
                tracing::trace!(%error, "the kernel has no answer");
                Ok(None)
            }
            Err(Failure::Unanswered(error)) => Err(error),
        }
    }

    fn request(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Failure> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(request);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for (header, payload) in decode::messages(&datagram) {
                // The late answer to a request that was given up.
                if header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                let more = header.flags & NLM_F_MULTIPART != 0;
                match payload {
                    Ok(NetlinkPayload::InnerMessage(answer)) => answers.push(answer),
                    Ok(NetlinkPayload::Error(error)) if error.code.is_some() => {
                        return Err(Failure::Refused(error.to_io()));
                    }
                    Ok(NetlinkPayload::Done(_)) if interrupted => {
                        return Err(io::Error::from(io::ErrorKind::Interrupted).into());
                    }
                    Ok(NetlinkPayload::Done(_)) => return Ok(answers),
                    Ok(_) => {}
                    // One interface that is not understood must not hide the others.
                    Err(error) => tracing::warn!(%error, "cannot read an answer of the kernel"),
                }
                if !more {
                    return Ok(answers);
                }
            }
        }
    }
}

fn neighbour_message(key: NeighbourKey) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = key.address.into();
    message.header.ifindex = key.ifindex;
    message.attributes = vec![NeighbourAttribute::Destination(key.address.into())];
    message
}
