//! Attaching the program to interfaces.

use std::io;

use aya::programs::{
    Xdp,
    links::{FdLink, LinkType, PinnedLink},
    loaded_links, loaded_programs,
    xdp::{XdpLink, XdpMode as Flags},
};
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage, LinkXdp},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::net::if_::if_nametoindex;

use super::{
    error::{Error, Result, errno},
    pinned::Pinned,
};
use crate::privileges::with_lookups;

/// How the program is to be attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver; where the driver can't, in the network stack, with a warning.
    #[default]
    Auto,
    /// In the driver or not at all.
    Native,
    /// In the network stack: works with every driver, but costs an `sk_buff` a packet.
    Generic,
}

/// How the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachedMode {
    /// In the driver.
    Native,
    /// In the network stack.
    Generic,
}

impl AttachedMode {
    /// The word in messages and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    const fn flags(self) -> Flags {
        match self {
            Self::Native => Flags::Driver,
            Self::Generic => Flags::Skb,
        }
    }
}

/// An interface that the program is attached to; detached when this is dropped, or when
/// the process ends in any way, unless its link is pinned.
pub(super) struct Attachment {
    pub(super) ifindex: u32,
    link: FdLink,
}

/// Index of the interface of this name.
pub(super) fn index_of(name: &str) -> Result<u32> {
    if_nametoindex(name).map_err(|_| Error::NoInterface {
        name: name.to_owned(),
    })
}

/// Attaches `program` to the interface `name`, and pins the link if there is a place for
/// it. Where one is pinned already, its program is replaced: each packet meets the old or
/// the new one.
pub(super) fn attach(
    program: &mut Xdp,
    name: &str,
    ifindex: u32,
    mode: XdpMode,
    pinned: Option<&Pinned>,
) -> Result<(Attachment, AttachedMode)> {
    if let Some(pinned) = pinned
        && let Some(attached) = replace(program, name, ifindex, mode, pinned)?
    {
        return Ok(attached);
    }
    let (attachment, mode) = attach_new(program, name, ifindex, mode)?;
    let Some(pinned) = pinned else {
        return Ok((attachment, mode));
    };
    let path = pinned.link(ifindex);
    let link = attachment.link.pin(&path).map_err(|error| Error::Attach {
        interface: name.to_owned(),
        mode,
        source: error.into(),
    })?;
    let attachment = Attachment {
        ifindex,
        link: link.into(),
    };
    Ok((attachment, mode))
}

/// Replaces the program of the link that is pinned for an interface. `None` where there is
/// none, or one that does not fit: that is taken away.
fn replace(
    program: &mut Xdp,
    name: &str,
    ifindex: u32,
    wanted: XdpMode,
    pinned: &Pinned,
) -> Result<Option<(Attachment, AttachedMode)>> {
    let Ok(link) = PinnedLink::from_pin(pinned.link(ifindex)) else {
        return Ok(None);
    };
    let attached = attached(ifindex).map_err(query(name))?;
    let fits = attached.filter(|attached| match wanted {
        XdpMode::Auto => true,
        XdpMode::Native => attached.mode == AttachedMode::Native,
        XdpMode::Generic => attached.mode == AttachedMode::Generic,
    });
    let Some(attached) = fits else {
        pinned.remove_link(ifindex)?;
        return Ok(None);
    };
    let update = || -> std::result::Result<FdLink, Box<dyn std::error::Error + Send + Sync>> {
        let id = program.attach_to_link(XdpLink::try_from(FdLink::from(link))?)?;
        Ok(FdLink::try_from(program.take_link(id)?)?)
    };
    match update() {
        Ok(link) => {
            let attachment = Attachment { ifindex, link };
            Ok(Some((attachment, attached.mode)))
        }
        // The interface that it was for is gone, and another has its index.
        Err(error) => {
            tracing::debug!(interface = name, reason = %Chain(&*error), "not the interface's link");
            pinned.remove_link(ifindex)?;
            Ok(None)
        }
    }
}

/// Attaches `program` to the interface `name`, where no other program may be.
fn attach_new(
    program: &mut Xdp,
    name: &str,
    ifindex: u32,
    mode: XdpMode,
) -> Result<(Attachment, AttachedMode)> {
    if let Some(attached) = attached(ifindex).map_err(query(name))? {
        return Err(occupied(name, attached.program_id));
    }
    let attached = match mode {
        XdpMode::Native => AttachedMode::Native,
        XdpMode::Generic => AttachedMode::Generic,
        XdpMode::Auto => match attach_as(program, name, ifindex, AttachedMode::Native) {
            Ok(attachment) => return Ok((attachment, AttachedMode::Native)),
            Err(error @ Error::Attach { .. }) => {
                tracing::warn!(
                    interface = name,
                    reason = %Chain(&error),
                    "the driver does not take XDP programs: attaching in generic mode, which \
                     costs several times as much for each packet"
                );
                AttachedMode::Generic
            }
            Err(error) => return Err(error),
        },
    };
    Ok((attach_as(program, name, ifindex, attached)?, attached))
}

fn attach_as(
    program: &mut Xdp,
    name: &str,
    ifindex: u32,
    mode: AttachedMode,
) -> Result<Attachment> {
    let refused = |source: Box<dyn std::error::Error + Send + Sync>| Error::Attach {
        interface: name.to_owned(),
        mode,
        source,
    };
    let id = program
        .attach_to_if_index(ifindex, mode.flags())
        .map_err(|error| match errno(&error) {
            Some(number @ (libc::EPERM | libc::EACCES)) => Error::Privileges {
                action: "attaching the XDP program",
                source: io::Error::from_raw_os_error(number),
            },
            Some(libc::ENODEV) => Error::NoInterface {
                name: name.to_owned(),
            },
            _ => refused(error.into()),
        })?;
    let link = program
        .take_link(id)
        .map_err(|error| refused(error.into()))?;
    // Where the kernel refuses a BPF link with EINVAL, aya attaches through netlink. That
    // would leave the program behind when the daemon is killed.
    let link = FdLink::try_from(link)
        .map_err(|_| refused("the kernel refused a BPF link to the interface".into()))?;
    Ok(Attachment { ifindex, link })
}

fn occupied(interface: &str, program_id: u32) -> Error {
    let (program_name, link) = with_lookups(|| {
        let program_name = loaded_programs()
            .filter_map(Result::ok)
            .find(|program| program.id() == program_id)
            .and_then(|program| program.name_as_str().map(str::to_owned))
            .filter(|name| !name.is_empty());
        // A program that is attached by a link goes only with the link.
        let link = loaded_links().filter_map(Result::ok).find(|link| {
            link.program_id() == program_id && matches!(link.link_type(), Ok(LinkType::Xdp))
        });
        (program_name, link)
    });
    let remedy = match link {
        Some(link) => format!("bpftool link detach id {}", link.id()),
        None => format!("ip link set dev {interface} xdp off"),
    };
    Error::Occupied {
        interface: interface.to_owned(),
        program_id,
        program_name,
        remedy,
    }
}

/// An XDP program that is attached to an interface.
#[derive(Clone, Copy)]
struct Attached {
    program_id: u32,
    mode: AttachedMode,
}

fn query(interface: &str) -> impl FnOnce(io::Error) -> Error {
    |source| Error::Query {
        interface: interface.to_owned(),
        source,
    }
}

/// Sends a request by rtnetlink(7) and returns what the kernel answers.
pub(super) fn exchange(
    request: RouteNetlinkMessage,
    flags: u16,
) -> io::Result<NetlinkPayload<RouteNetlinkMessage>> {
    let mut message = NetlinkMessage::from(request);
    message.header.flags = flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(answer.payload)
}

/// The XDP program that is attached to an interface.
fn attached(ifindex: u32) -> io::Result<Option<Attached>> {
    let mut request = LinkMessage::default();
    request.header.index = ifindex;
    let request = RouteNetlinkMessage::GetLink(request);
    match exchange(request, NLM_F_REQUEST)? {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
            Ok(link.attributes.iter().find_map(attached_program))
        }
        NetlinkPayload::Error(error) => Err(error.to_io()),
        other => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("unexpected answer to RTM_GETLINK: {other:?}"),
        )),
    }
}

/// How an XDP program is attached to the interface of this name, if one is.
///
/// # Errors
///
/// Where there is no such interface, or the kernel does not tell.
pub fn attached_mode(interface: &str) -> Result<Option<AttachedMode>> {
    let ifindex = index_of(interface)?;
    let attached = attached(ifindex).map_err(query(interface))?;
    Ok(attached.map(|attached| attached.mode))
}

/// The id of the program that is attached to an interface.
#[cfg(test)]
pub(super) fn attached_program_of(ifindex: u32) -> Option<u32> {
    attached(ifindex)
        .unwrap()
        .map(|attached| attached.program_id)
}

fn attached_program(attribute: &LinkAttribute) -> Option<Attached> {
    let LinkAttribute::Xdp(attributes) = attribute else {
        return None;
    };
    let mut program_id = None;
    let mut mode = AttachedMode::Native;
    for attribute in attributes {
        match attribute {
            LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::HwProgId(id) if *id != 0 => {
                program_id = Some(*id);
            }
            LinkXdp::SkbProgId(id) if *id != 0 => {
                program_id = Some(*id);
                mode = AttachedMode::Generic;
            }
            _ => {}
        }
    }
    program_id.map(|program_id| Attached { program_id, mode })
}

/// An error and its causes on one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
