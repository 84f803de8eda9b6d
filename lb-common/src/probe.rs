//! Health checks that take the way of clients' packets: what the program that sends them
//! off is told.
//!
//! In the modes that leave the destination as it is, a check has to reach the service
//! address *on one backend*. The daemon's sockets cannot name both. So each backend has an
//! address of its own here, that means something on this host alone: packets to it get the
//! service address as their destination, and go to that backend.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Name of the program.
pub const PROGRAM: &str = "lb_probe";
/// Backend id to [`Probe`], of those that are checked so.
pub const PROBES: &str = "PROBES";

/// The network of the addresses of IPv4, which is reserved and so nobody's (RFC 1112,
/// section 4). The last 16 bits are the backend's id.
pub const NETWORK_V4: Ipv4Addr = Ipv4Addr::new(240, 108, 0, 0);
/// The network of those of IPv6, a unique local one (RFC 4193).
pub const NETWORK_V6: Ipv6Addr = Ipv6Addr::new(0xfd6c, 0x6270, 0x726f, 0x6265, 0, 0, 0, 0);
/// Bits of [`NETWORK_V4`].
pub const LENGTH_V4: u8 = 16;
/// Bits of [`NETWORK_V6`].
pub const LENGTH_V6: u8 = 64;
/// Where checks come from: the id of no backend.
pub const LOCAL: u32 = 0;

/// The address that stands for the service address on the backend of this id, of IPv4 or
/// IPv6.
#[must_use]
pub const fn address(backend: u32, is_ipv4: bool) -> IpAddr {
    if is_ipv4 {
        IpAddr::V4(Ipv4Addr::from_bits(NETWORK_V4.to_bits() | backend))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(NETWORK_V6.to_bits() | backend as u128))
    }
}

/// How packets of checks reach a service address on a backend. An entry of `PROBES`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Probe {
    /// The service address, network byte order; an IPv4 address fills the first word.
    pub service: [u32; 4],
    /// Where packets come from, an address of the balancer of the same family.
    pub source: [u32; 4],
    /// A [`Mode`](crate::service::Mode) that leaves the destination as it is.
    pub mode: u8,
    /// Reserved, zero.
    pub reserved: [u8; 3],
}

const _: () = assert!(size_of::<Probe>() == 36);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_id_at_their_end() {
        for (backend, v4, v6) in [
            (0, "240.108.0.0", "fd6c:6270:726f:6265::"),
            (258, "240.108.1.2", "fd6c:6270:726f:6265::102"),
            (65_535, "240.108.255.255", "fd6c:6270:726f:6265::ffff"),
        ] {
            assert_eq!(address(backend, true), v4.parse::<IpAddr>().unwrap());
            assert_eq!(address(backend, false), v6.parse::<IpAddr>().unwrap());
        }
    }
}
