//! What is known of the way to an address.

use std::net::IpAddr;

use lb_common::addr::LinkPath;

use crate::state::NextHopStatus;

/// Whether packets to an address can leave, or what they lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NextHopState {
    /// They can: [`NextHop::path`] is known.
    Resolved,
    /// The kernel has no route, or one that refuses.
    NoRoute,
    /// The next hop has not told its Ethernet address (yet).
    NoNeighbour,
    /// The address belongs to this host.
    Local,
    /// The interface of the route is switched off or has no carrier.
    LinkDown,
}

/// The way to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Whether it can be used.
    pub state: NextHopState,
    /// Address of the next hop: the gateway, or the address itself. The gateway may
    /// be of the other family (RFC 5549).
    pub address: Option<IpAddr>,
    /// Interface that frames are transmitted on: for a route over a VLAN interface,
    /// the device below it. 0 where there is none.
    pub ifindex: u32,
    /// Name of that interface.
    pub interface: Option<String>,
    /// Interface, Ethernet addresses and VLAN tags; only where resolved.
    pub path: Option<LinkPath>,
    /// Largest IP packet that the interface of the route takes, in bytes; 0 where
    /// there is none.
    pub mtu: u32,
    /// Address that the kernel would send from.
    pub source: Option<IpAddr>,
}

impl NextHop {
    /// The form that `lb status` shows, where the balancer is attached to the
    /// interfaces `attached`.
    #[must_use]
    pub fn status(&self, attached: &[u32]) -> NextHopStatus {
        let state = match self.state {
            NextHopState::NoRoute => "no-route",
            NextHopState::Local => "local",
            _ if !attached.contains(&self.ifindex) => "not-attached",
            NextHopState::LinkDown => "link-down",
            NextHopState::NoNeighbour => "no-neighbour",
            NextHopState::Resolved => "resolved",
        };
        NextHopStatus {
            state: state.to_owned(),
            error: None,
            address: self.address.map(|address| address.to_string()),
            interface: self.interface.clone(),
            mac: self.path.map(|path| mac(path.dst_mac())),
        }
    }
}

/// What helps against a next hop in this state of [`NextHopStatus`].
#[must_use]
pub fn remedy(state: &str) -> &'static str {
    match state {
        "no-route" => "`ip route get` shows what the kernel knows of the address",
        "no-neighbour" => "nobody answers ARP or neighbour discovery for it: is it up?",
        "link-down" => "bring the interface up, or its cable",
        "not-attached" => "name the interface that it is reached by in `interfaces`",
        "local" => "the address is this host's own: name that of another host",
        _ => "",
    }
}

/// An Ethernet address in the notation of `ip link`.
fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
