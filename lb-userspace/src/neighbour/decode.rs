//! From messages of rtnetlink(7) to facts.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use netlink_packet_core::{
    DecodeError, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload, Parseable,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{
        InfoData, InfoKind, InfoPortKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo,
        LinkLayerType, LinkMessage,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia},
};

use super::{
    HostAddress, Interface,
    facts::{Link, Neighbour, NeighbourKey, Route, Vlan},
    table::Input,
};
use crate::address::AddressPrefix;

/// The answer to a route lookup.
pub(super) fn route(message: &RouteMessage) -> Route {
    let mut out = None;
    let mut gateway = None;
    let mut source = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => out = Some(*ifindex),
            RouteAttribute::Gateway(address) => gateway = route_address(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some((*address).into()),
            RouteAttribute::PrefSource(address) => source = route_address(address),
            _ => {}
        }
    }
    match (message.header.kind, out) {
        (RouteType::Local, _) => Route::Local { source },
        (RouteType::Unicast, Some(ifindex)) => Route::Out {
            ifindex,
            gateway,
            source,
        },
        _ => Route::None,
    }
}

/// The destination of a local route; `None` for other routes, and those of tables that
/// only some packets meet.
pub(super) fn local_route(message: &RouteMessage) -> Option<AddressPrefix> {
    /// `RT_TABLE_DEFAULT`, `RT_TABLE_MAIN` and `RT_TABLE_LOCAL`.
    const TABLES: RangeInclusive<u8> = 253..=255;

    let header = &message.header;
    if header.kind != RouteType::Local || !TABLES.contains(&header.table) {
        return None;
    }
    let destination = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(address) => route_address(address),
            _ => None,
        });
    let length = header.destination_prefix_length;
    Some(match (destination, header.address_family) {
        (Some(destination), _) => AddressPrefix::new(destination, length),
        // A default route names no destination.
        (None, AddressFamily::Inet) => AddressPrefix::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        (None, _) => AddressPrefix::new(Ipv6Addr::UNSPECIFIED.into(), 0),
    })
}

fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// A neighbour entry.
pub(super) fn neighbour(message: &NeighbourMessage) -> Neighbour {
    let mac = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
            _ => None,
        });
    // What NUD_VALID comprises in the kernel (include/net/neighbour.h).
    match (message.header.state, mac) {
        (NeighbourState::Stale, Some(mac)) => Neighbour::Stale(mac),
        (
            NeighbourState::Permanent
            | NeighbourState::Noarp
            | NeighbourState::Reachable
            | NeighbourState::Probe
            | NeighbourState::Delay,
            Some(mac),
        ) => Neighbour::Valid(mac),
        _ => Neighbour::Unresolved,
    }
}

/// An address of an interface; `None` for one of neither IPv4 nor IPv6.
pub(super) fn address(message: &AddressMessage) -> Option<HostAddress> {
    let mut local = None;
    let mut network = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => network = Some(*address),
            _ => {}
        }
    }
    // Both are there where they differ: the second one is the peer's then.
    let address = local.or(network)?;
    Some(HostAddress {
        ifindex: message.header.index,
        device: message.header.index,
        address,
        network: (network.unwrap_or(address), message.header.prefix_len),
    })
}

/// An interface.
pub(super) fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let mut interface = Interface {
        ifindex: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up | LinkFlags::Running),
        bond: None,
    };
    let mut controller = None;
    let mut is_bonded = false;
    let mut lower = None;
    let mut tag = None;
    let mut elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Address(bytes) if ethernet => {
                interface.mac = bytes.as_slice().try_into().ok();
            }
            LinkAttribute::Link(ifindex) => lower = Some(*ifindex),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Controller(ifindex) => controller = Some(*ifindex),
            LinkAttribute::LinkInfo(info) => {
                tag = vlan_tag(info);
                is_bonded = info.contains(&LinkInfo::PortKind(InfoPortKind::Bond));
            }
            _ => {}
        }
    }
    interface.bond = controller.filter(|_| is_bonded);
    let vlan = lower.zip(tag).map(|(lower, (ethertype, id))| Vlan {
        lower,
        ethertype,
        id,
    });
    Link {
        interface,
        vlan: vlan.filter(|_| !elsewhere),
    }
}

/// EtherType and VLAN identifier of a VLAN interface.
fn vlan_tag(info: &[LinkInfo]) -> Option<(u16, u16)> {
    if !info.contains(&LinkInfo::Kind(InfoKind::Vlan)) {
        return None;
    }
    let data = info.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(data)) => Some(data),
        _ => None,
    })?;
    let ethertype = data.iter().find_map(|data| match data {
        InfoVlan::Protocol(protocol) => Some(u16::from(*protocol)),
        _ => None,
    })?;
    let id = data.iter().find_map(|data| match data {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    })?;
    Some((ethertype, id))
}

/// What a datagram of notifications says may have changed.
pub(super) fn notifications(datagram: &[u8]) -> Vec<Input> {
    messages(datagram)
        .filter_map(|(_, payload)| match payload {
            Ok(NetlinkPayload::InnerMessage(message)) => notification(&message),
            Ok(_) => None,
            // A kind of message that is not known here, such as those of next hop
            // objects. It is not lost: everything is asked for again.
            Err(_) => Some(Input::Overrun),
        })
        .collect()
}

fn notification(message: &RouteNetlinkMessage) -> Option<Input> {
    match message {
        // The kernel says so of its interfaces, and of ports that leave a bridge.
        RouteNetlinkMessage::DelLink(link)
            if link.header.interface_family != AddressFamily::Bridge =>
        {
            Some(Input::LinkGone(link.header.index))
        }
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
            Some(Input::LinkChanged(link.header.index))
        }
        RouteNetlinkMessage::NewNeighbour(neighbour)
        | RouteNetlinkMessage::DelNeighbour(neighbour) => {
            neighbour_key(neighbour).map(Input::NeighbourChanged)
        }
        _ => Some(Input::RoutesChanged),
    }
}

/// The name of a neighbour entry; `None` for an entry of a bridge's table.
fn neighbour_key(message: &NeighbourMessage) -> Option<NeighbourKey> {
    if message.header.family == AddressFamily::Bridge {
        return None;
    }
    let address = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                Some(IpAddr::from(*address))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                Some(IpAddr::from(*address))
            }
            _ => None,
        })?;
    Some(NeighbourKey {
        ifindex: message.header.ifindex,
        address,
    })
}

/// A message of rtnetlink(7), or what hinders its decoding.
type Payload = Result<NetlinkPayload<RouteNetlinkMessage>, DecodeError>;

/// The messages of a datagram.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (NetlinkHeader, Payload)> {
    /// `NLMSG_ALIGNTO`.
    const ALIGNMENT: usize = 4;

    std::iter::from_fn(move || {
        let header = NetlinkBuffer::new_checked(&datagram)
            .and_then(|buffer| NetlinkHeader::parse(&buffer))
            .ok()?;
        let length = header.length as usize;
        let message = NetlinkMessage::deserialize(&datagram[..length]);
        let next = length.next_multiple_of(ALIGNMENT);
        datagram = datagram.get(next..).unwrap_or_default();
        Some((header, message.map(|message| message.payload)))
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{LinkHeader, VlanProtocol};

    use super::*;

    fn vlan_link(netns: Option<i32>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header = LinkHeader {
            index: 7,
            link_layer_type: LinkLayerType::Ether,
            flags: LinkFlags::Up | LinkFlags::Running,
            ..LinkHeader::default()
        };
        message.attributes = vec![
            LinkAttribute::IfName("eth0.10".to_owned()),
            LinkAttribute::Mtu(1496),
            LinkAttribute::Link(3),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 7]),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(vec![
                    InfoVlan::Protocol(VlanProtocol::Ieee8021Ad),
                    InfoVlan::Id(10),
                ])),
            ]),
        ];
        message
            .attributes
            .extend(netns.map(LinkAttribute::LinkNetNsId));
        message
    }

    /// The bytes of messages one after the other, as the kernel sends them.
    fn datagram(messages: Vec<RouteNetlinkMessage>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for message in messages {
            let mut message = NetlinkMessage::from(message);
            message.finalize();
            let begin = bytes.len();
            bytes.resize(begin + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut bytes[begin..]);
        }
        bytes
    }

    #[test]
    fn a_vlan_interface_names_the_device_below_and_its_tag() {
        assert_eq!(
            link(&vlan_link(None)),
            Link {
                interface: Interface {
                    ifindex: 7,
                    name: "eth0.10".to_owned(),
                    mac: Some([2, 0, 0, 0, 0, 7]),
                    mtu: 1496,
                    up: true,
                    bond: None,
                },
                vlan: Some(Vlan {
                    lower: 3,
                    ethertype: 0x88a8,
                    id: 10
                }),
            }
        );
    }

    #[test]
    fn a_device_below_in_another_namespace_is_out_of_reach() {
        assert_eq!(link(&vlan_link(Some(0))).vlan, None);
    }

    #[test]
    fn an_interface_without_carrier_is_not_up() {
        let mut message = vlan_link(None);
        message.header.flags = LinkFlags::Up;
        assert!(!link(&message).interface.up);
    }

    #[test]
    fn neighbours_are_valid_in_the_states_that_the_kernel_uses() {
        use NeighbourState::{
            Delay, Failed, Incomplete, Noarp, Permanent, Probe, Reachable, Stale,
        };
        let mac = [2, 0, 0, 0, 0, 1];
        let in_state = |state| {
            let mut message = NeighbourMessage::default();
            message.header.state = state;
            message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
            neighbour(&message)
        };
        for state in [Reachable, Delay, Probe, Permanent, Noarp] {
            assert_eq!(in_state(state), Neighbour::Valid(mac), "{state}");
        }
        for state in [Incomplete, Failed, NeighbourState::None] {
            assert_eq!(in_state(state), Neighbour::Unresolved, "{state}");
        }
        assert_eq!(in_state(Stale), Neighbour::Stale(mac));
    }

    #[test]
    fn every_message_of_a_datagram_is_a_hint_of_its_own() {
        let mut neighbour = NeighbourMessage::default();
        neighbour.header.family = AddressFamily::Inet;
        neighbour.header.ifindex = 5;
        neighbour.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(
            [192, 0, 2, 1].into(),
        ))];
        let mut bridge = neighbour.clone();
        bridge.header.family = AddressFamily::Bridge;
        let mut port = vlan_link(None);
        port.header.interface_family = AddressFamily::Bridge;
        let datagram = datagram(vec![
            RouteNetlinkMessage::NewLink(vlan_link(None)),
            RouteNetlinkMessage::DelLink(vlan_link(None)),
            RouteNetlinkMessage::DelLink(port),
            RouteNetlinkMessage::NewNeighbour(neighbour),
            RouteNetlinkMessage::NewNeighbour(bridge),
            RouteNetlinkMessage::DelRoute(RouteMessage::default()),
        ]);
        let inputs = notifications(&datagram);
        assert!(
            matches!(
                inputs[..],
                [
                    Input::LinkChanged(7),
                    Input::LinkGone(7),
                    Input::LinkChanged(7),
                    Input::NeighbourChanged(NeighbourKey { ifindex: 5, .. }),
                    Input::RoutesChanged
                ]
            ),
            "{inputs:?}"
        );
    }

    #[test]
    fn what_is_not_understood_asks_for_everything() {
        let next_hop_object = [16u8, 0, 0, 0, 104, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let inputs = notifications(&next_hop_object);
        assert!(matches!(inputs[..], [Input::Overrun]), "{inputs:?}");
    }

    #[test]
    fn routes_that_refuse_are_none() {
        for kind in [
            RouteType::Unreachable,
            RouteType::BlackHole,
            RouteType::Prohibit,
            RouteType::Broadcast,
        ] {
            let mut message = RouteMessage::default();
            message.header.kind = kind;
            message.attributes = vec![RouteAttribute::Oif(2)];
            assert_eq!(route(&message), Route::None, "{kind:?}");
        }
    }
}
