//! The passage by which health checks enter the datapath: a pair of virtual interfaces, one
//! end for the daemon's sockets, the other for the program that sends checks off.
//!
//! ```text
//! sockets ── lbprobe0 ═══════ lbprobe1 ── lb_probe ── backends
//!            240.108.0.0/16
//!            fd6c:6270:726f:6265::/64
//! ```

#![expect(
    unsafe_code,
    reason = "switches checksum offload off, for which there is an ioctl alone"
)]

use std::{io, net::IpAddr, os::fd::AsRawFd as _};

use lb_common::probe::{self, LENGTH_V4, LENGTH_V6, LOCAL, NETWORK_V4, NETWORK_V6};
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};
use nix::sys::socket::{AddressFamily as SocketFamily, SockFlag, SockType, socket};

use super::attach;

/// The end for sockets.
pub(super) const NEAR: &str = "lbprobe0";
/// The end for the program.
pub(super) const FAR: &str = "lbprobe1";
/// Largest IP packet that passes: what every way takes, in a tunnel too (RFC 8200,
/// section 5).
pub const MTU: u32 = 1_280;

/// Both ends, by index. They go when this is dropped.
pub(super) struct Pair {
    pub(super) near: u32,
    pub(super) far: u32,
}

impl Drop for Pair {
    fn drop(&mut self) {
        if let Err(error) = remove(self.near) {
            tracing::warn!(%error, "the interfaces of health checks stay behind");
        }
    }
}

impl Pair {
    /// Makes the pair, in place of one that a daemon before this one has left.
    pub(super) fn new() -> io::Result<Self> {
        remove_left()?;
        create()?;
        let index = |name| attach::index_of(name).map_err(io::Error::other);
        let pair = Self {
            near: index(NEAR)?,
            far: index(FAR)?,
        };
        // Checksums that are left to the hardware would never be completed.
        switch_checksums_off(NEAR)?;
        for end in [pair.near, pair.far] {
            bring_up(end)?;
        }
        give_address(pair.near, true)?;
        // A host may have no IPv6.
        if let Err(error) = give_address(pair.near, false) {
            tracing::debug!(%error, "no health checks of IPv6 services by their address");
        }
        Ok(pair)
    }
}

/// Removes the pair that a daemon has left which could not do it itself, if there is one.
pub(super) fn remove_left() -> io::Result<()> {
    attach::index_of(NEAR).map_or(Ok(()), remove)
}

/// Asks the kernel for a change, and waits until it is made.
fn ask(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    match attach::exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags)? {
        NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        other => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("unexpected answer of the kernel: {other:?}"),
        )),
    }
}

fn create() -> io::Result<()> {
    let end = |name: &str| {
        let mut end = LinkMessage::default();
        end.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(MTU),
        ];
        end
    };
    let mut near = end(NEAR);
    near.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(end(FAR)))),
    ]));
    ask(
        RouteNetlinkMessage::NewLink(near),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// Removes an end, and with it the other.
fn remove(ifindex: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    ask(RouteNetlinkMessage::DelLink(message), 0)
}

/// Switches an end on. Nobody on it has to be asked for Ethernet addresses.
fn bring_up(ifindex: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.header.flags = LinkFlags::Up | LinkFlags::Noarp;
    message.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
    ask(RouteNetlinkMessage::SetLink(message), 0)
}

/// Gives an end the address that checks of a family come from, and the route to those that
/// they go to.
fn give_address(ifindex: u32, is_ipv4: bool) -> io::Result<()> {
    let address = probe::address(LOCAL, is_ipv4);
    let (family, length, network, network_length): (_, _, IpAddr, _) = if is_ipv4 {
        (AddressFamily::Inet, 32, NETWORK_V4.into(), LENGTH_V4)
    } else {
        (AddressFamily::Inet6, 128, NETWORK_V6.into(), LENGTH_V6)
    };
    let mut message = AddressMessage::default();
    message.header.family = family;
    message.header.prefix_len = length;
    message.header.index = ifindex;
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    ask(RouteNetlinkMessage::NewAddress(message), flags)?;

    let mut route = RouteMessage::default();
    route.header.address_family = family;
    route.header.destination_prefix_length = network_length;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Link;
    route.header.kind = RouteType::Unicast;
    route.attributes = vec![
        RouteAttribute::Destination(RouteAddress::from(network)),
        RouteAttribute::PrefSource(RouteAddress::from(address)),
        RouteAttribute::Oif(ifindex),
    ];
    ask(RouteNetlinkMessage::NewRoute(route), flags)
}

/// Has the kernel compute the checksums of what is sent by an interface.
fn switch_checksums_off(name: &str) -> io::Result<()> {
    /// `ETHTOOL_STXCSUM` of linux/ethtool.h.
    const SET_TX_CHECKSUMS: u32 = 0x17;
    /// `struct ethtool_value` of linux/ethtool.h.
    #[repr(C)]
    struct EthtoolValue {
        command: u32,
        data: u32,
    }

    let mut value = EthtoolValue {
        command: SET_TX_CHECKSUMS,
        data: 0,
    };
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut value).cast(),
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(SocketFamily::Inet, SockType::Datagram, flags, None)?;
    // SAFETY: the request names the interface and leads to the value; both outlive the call.
    let result =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
