//! What differs between IPv4 and IPv6.

mod ipv4;
mod ipv6;

use aya_ebpf::{
    btf_maps::{HashMap, LpmTrie},
    programs::XdpContext,
};
use lb_common::{
    drop_reason::DropReason,
    flow::{FlowValue, MAX_FLOWS, Tuple},
    service::{MAX_PREFIXES, MAX_SERVICES, Service, Vip},
};

pub use self::{ipv4::Ipv4, ipv6::Ipv6};
use crate::{
    link::Link,
    packet::{Packet, Payload, Unparsed},
};

/// Services by key.
pub type Services<K> = HashMap<K, Service, { MAX_SERVICES as usize }>;
/// Service addresses.
pub type Vips<A> = HashMap<A, Vip, { MAX_SERVICES as usize }>;
/// Prefixes that are service addresses.
pub type Prefixes<A> = LpmTrie<A, Vip, { MAX_PREFIXES as usize }>;
/// A flow table.
pub type Flows<F> = HashMap<<F as Family>::Tuple, <F as Family>::Flow, { MAX_FLOWS as usize }>;

/// The two entries of a flow that is being made, and the key of the one for
/// replies.
#[repr(C)]
pub struct Draft<F: FlowValue> {
    /// The entry for the client's packets.
    pub flow: F,
    /// The entry for replies.
    pub reply: F,
    /// The key of the entry for replies.
    pub reply_key: F::Key,
}

/// An IP version: its header, its tuple and its maps.
pub trait Family: Sized {
    /// An address, network byte order.
    type Address: Copy + 'static;
    /// The fixed part of the IP header.
    type Header;
    /// Key of the flow tables.
    type Tuple: Tuple + 'static;
    /// Value of the flow tables.
    type Flow: FlowValue<Key = Self::Tuple> + 'static;
    /// Key of the service tables.
    type ServiceKey: Copy + 'static;

    /// Bits of an address.
    const ADDRESS_BITS: u32;

    /// The IP header of a frame, if there is one.
    fn header(ctx: &XdpContext, link: &Link) -> Option<*mut Self::Header>;

    /// The destination address.
    fn destination(ip: *mut Self::Header) -> Self::Address;

    /// What stands behind the IP headers.
    fn payload(ctx: &XdpContext, link: &Link, ip: *mut Self::Header) -> Result<Payload, Unparsed>;

    /// The tuple of a packet with these ports, a word as it lies in the frame. Put
    /// together of whole words: the hash reads it soon after, and a load that spans
    /// two stores waits for both.
    fn tuple(ip: *mut Self::Header, protocol: u8, ports: u32) -> Self::Tuple;

    /// Whether the IP header agrees with the frame and itself. Returns the length
    /// of the IP packet in bytes.
    fn check(ctx: &XdpContext, packet: &Packet<'_, Self>) -> Result<usize, DropReason>;

    /// TTL or hop limit.
    fn ttl(packet: &Packet<'_, Self>) -> u8;

    /// Writes the addresses of `to` into the IP header, takes one from the TTL or
    /// hop limit and keeps the header checksum right.
    fn rewrite(packet: &Packet<'_, Self>, to: &Self::Tuple, address_delta: u16);

    /// Gives a tuple the source address of a backend entry.
    fn set_src(tuple: &mut Self::Tuple, address: &[u32; 4]);

    /// Gives a tuple the address of a backend entry as its destination, and a port
    /// (network byte order).
    fn set_dst(tuple: &mut Self::Tuple, address: &[u32; 4], port: u16);

    /// Gives a tuple another source port, network byte order.
    fn set_src_port(tuple: &mut Self::Tuple, port: u16);

    /// Source and destination port of a tuple, network byte order.
    fn ports(tuple: &Self::Tuple) -> (u16, u16);

    /// IP protocol number of a tuple.
    fn protocol(tuple: &Self::Tuple) -> u8;

    /// Destination address of a tuple.
    fn service_address(tuple: &Self::Tuple) -> Self::Address;

    /// The key of the service that `tuple` is sent to.
    fn service_key(tuple: &Self::Tuple) -> Self::ServiceKey;

    /// Services on one address and port.
    fn services() -> &'static Services<Self::ServiceKey>;
    /// Service addresses.
    fn vips() -> &'static Vips<Self::Address>;
    /// Prefixes that are service addresses.
    fn prefixes() -> &'static Prefixes<Self::Address>;
    /// Flows, client to service.
    fn flows() -> &'static Flows<Self>;
    /// Flows, backend to client.
    fn replies() -> &'static Flows<Self>;
    /// Where a flow is put together: the stack has no room for it.
    fn draft() -> Option<*mut Draft<Self::Flow>>;
}
