//! What differs between IPv4 and IPv6, of outer and inner headers.

mod ipv4;
mod ipv6;

use aya_ebpf::programs::XdpContext;

pub use self::{ipv4::Ipv4, ipv6::Ipv6};

/// What an IP header says.
pub struct Header<F: Family> {
    /// Source address.
    pub source: F::Address,
    /// Destination address.
    pub destination: F::Address,
    /// IP protocol number of what follows.
    pub protocol: u8,
    /// Length of the header in bytes, as it says: less than [`Family::LEN`] if it lies.
    pub headers: usize,
    /// Length of the packet in bytes, as it says.
    pub length: usize,
    /// The two bits of ECN.
    pub ecn: u8,
    /// It is no fragment but a first one.
    pub begins: bool,
    /// It is no fragment but a last one.
    pub ends: bool,
}

/// An IP version.
pub trait Family: Sized {
    /// An address, network byte order.
    type Address;

    /// Its EtherType, network byte order.
    const ETHER_TYPE: u16;
    /// Length of the header without options and extensions, in bytes.
    const LEN: usize;

    /// Reads the header at `offset`. `None` if it is not there, or of another version.
    fn read(ctx: &XdpContext, offset: usize) -> Option<Header<Self>>;

    /// Reads the fragment header behind the header at `offset`, if there is one. `None`
    /// if it is truncated.
    fn enter_fragment(ctx: &XdpContext, offset: usize, header: &mut Header<Self>) -> Option<()>;

    /// Whether the header at `offset` agrees with the frame and itself.
    fn is_sound(ctx: &XdpContext, offset: usize, header: &Header<Self>) -> bool;

    /// Writes the ECN bits of the header at `offset` and keeps its checksum as right or
    /// wrong as it was.
    fn set_ecn(ctx: &XdpContext, offset: usize, ecn: u8);

    /// Whether tunnels may end at this address.
    fn is_local(address: &Self::Address) -> bool;

    /// Whether tunnels that come in by this interface may begin at this address.
    fn is_allowed(ifindex: u32, address: &Self::Address) -> bool;

    /// Index of the VIP that this address belongs to.
    fn vip(address: &Self::Address) -> Option<u32>;
}
