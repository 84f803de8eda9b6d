//! *What no client sends*: martian sources and hairpins.

use std::net::IpAddr;

use crate::world::{Backend, Mode};

/// "Its source address is its destination address, or no unicast address."
#[must_use]
pub fn is_martian(src: IpAddr, dst: IpAddr) -> bool {
    src == dst || !is_unicast(src)
}

/// "0.0.0.0/8, 127.0.0.0/8, 224.0.0.0/3; `::`, `::1`, `::ffff:0:0/96`, `ff00::/8`."
fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let first = address.octets()[0];
            first != 0 && first != 127 && first < 224
        }
        IpAddr::V6(address) => {
            !address.is_unspecified()
                && !address.is_loopback()
                && address.to_ipv4_mapped().is_none()
                && !address.is_multicast()
        }
    }
}

/// "A backend that is a client of its own service is served with `full-nat`. With `nat`
/// the packet would come back to it from itself: it is dropped."
#[must_use]
pub fn is_hairpin(mode: Mode, client: IpAddr, backend: &Backend) -> bool {
    mode == Mode::Nat && client == backend.address
}
