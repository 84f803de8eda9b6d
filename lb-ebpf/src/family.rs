//! What differs between IPv4 and IPv6.

mod ipv4;
mod ipv6;

use aya_ebpf::{
    bindings::xdp_md,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap},
    programs::XdpContext,
};
use lb_common::{
    MAX_EMBRYONIC,
    addr::LinkPath,
    client::{Client, MAX_CLIENTS, MAX_NEWCOMERS},
    direct::DirectKey,
    drop_reason::DropReason,
    flow::{FlowValue, MAX_FLOWS, Tuple},
    fragment::{Fragment, MAX_FRAGMENTS},
    pin::Pin,
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
/// First fragments by key.
pub type Fragments<K> = LruHashMap<K, Fragment, { MAX_FRAGMENTS as usize }>;
/// A flow table.
pub type Flows<F> = HashMap<<F as Family>::Tuple, <F as Family>::Flow, { MAX_FLOWS as usize }>;

/// Flows without translation.
pub type Pins<F> = HashMap<<F as Family>::Tuple, Pin, { MAX_FLOWS as usize }>;
/// Clients and the backends that they had.
pub type Clients<F> = LruHashMap<<F as Family>::ClientKey, Client, { MAX_CLIENTS as usize }>;
/// The same of clients that are not confirmed.
pub type Newcomers<F> = LruHashMap<<F as Family>::ClientKey, Client, { MAX_NEWCOMERS as usize }>;
/// A queue of flows that are not confirmed.
pub type Embryonic<F> = Array<<F as Family>::Tuple, { MAX_EMBRYONIC as usize }>;

/// What is put together for a flow table or a fragment table: the stack has no room.
#[repr(C)]
pub struct Draft<V: FlowValue, K> {
    /// The entry for the client's packets.
    pub flow: V,
    /// The entry for replies.
    pub reply: V,
    /// The key of the entry for replies.
    pub reply_key: V::Key,
    /// The tuple that a global function was called with: before Linux 6.2 what such a pointer
    /// leads to is no key of a map.
    pub key: V::Key,
    /// A flow that another takes the place of.
    pub victim: V::Key,
    /// Its source port, host byte order, 0 where none was taken over.
    pub taken_over: u16,
    /// The key of a first fragment.
    pub fragment_key: K,
    /// Its entry.
    pub fragment: Fragment,
}

/// Where a fragment belongs (RFC 791, section 3.2; RFC 8200, section 4.5).
pub struct Position {
    /// [`TCP`](crate::packet::TCP) or [`UDP`](crate::packet::UDP).
    pub protocol: u8,
    /// Identification, as in the fragment keys.
    pub identification: u32,
    /// Where in the packet's payload it begins, in bytes.
    pub offset: u32,
    /// Length of the IP headers in bytes, those for the fragment included.
    pub headers: usize,
}

/// "Don't fragment" of IPv4, network byte order.
pub const DONT_FRAGMENT: u16 = u16::from_be(0x4000);

/// What the outer header of a tunnel takes over from a packet.
pub struct Carried {
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// IPv4 flags and fragment offset, network byte order: only "don't fragment".
    pub flags: u16,
    /// IPv4 identification, network byte order.
    pub identification: u16,
}

/// An IP version: its header, its tuple and its maps.
pub trait Family: Sized {
    /// An address, network byte order.
    type Address: Copy + 'static;
    /// The fixed part of the IP header.
    type Header;
    /// Key of the flow tables.
    type Tuple: Tuple + 'static;
    /// Key of the tables of clients.
    type ClientKey: Copy + 'static;
    /// Value of the flow tables.
    type Flow: FlowValue<Key = Self::Tuple> + 'static;
    /// Key of the service tables.
    type ServiceKey: DirectKey + 'static;
    /// Key of the fragment table.
    type FragmentKey: Copy + 'static;

    /// EtherType, network byte order.
    const ETHER_TYPE: u16;
    /// Its protocol number inside a tunnel.
    const PROTOCOL: u8;
    /// The protocol number of its ICMP.
    const ICMP: u8;
    /// Bits of an address.
    const ADDRESS_BITS: u32;
    /// Length of the fixed header in bytes.
    const HEADER: usize;
    /// Its place in `ENTERED`.
    const INDEX: u32;

    /// The IP header that begins at `offset` in the frame, if there is one.
    fn header_at(ctx: &XdpContext, offset: usize) -> Option<*mut Self::Header>;

    /// The IP header of a frame, if there is one.
    #[inline(always)]
    fn header(ctx: &XdpContext, link: &Link) -> Option<*mut Self::Header> {
        Self::header_at(ctx, link.payload)
    }

    /// The source address.
    fn source(ip: *mut Self::Header) -> Self::Address;

    /// The destination address.
    fn destination(ip: *mut Self::Header) -> Self::Address;

    /// What stands behind the IP headers, of which the first is at `offset` in the frame.
    fn payload(ctx: &XdpContext, offset: usize, ip: *mut Self::Header)
    -> Result<Payload, Unparsed>;

    /// Where a fragment belongs.
    fn position(ctx: &XdpContext, offset: usize, ip: *mut Self::Header) -> Position;

    /// The tuple of a packet with these ports, a word as it lies in the frame. Put
    /// together of whole words: the hash reads it soon after, and a load that spans
    /// two stores waits for both.
    fn tuple(ip: *mut Self::Header, protocol: u8, ports: u32) -> Self::Tuple;

    /// Length of the IP packet in bytes, as its header says.
    fn length(ip: *mut Self::Header) -> usize;

    /// Whether the checksum of the IP header is right, of which `headers` bytes are in
    /// the frame. Where there is none, it is.
    fn checksum_is_right(
        ctx: &XdpContext,
        link: &Link,
        ip: *mut Self::Header,
        headers: usize,
    ) -> bool;

    /// TTL or hop limit.
    fn ttl(ip: *mut Self::Header) -> u8;

    /// Sets the TTL or hop limit and keeps the header checksum right.
    fn set_ttl(ip: *mut Self::Header, ttl: u8);

    /// Takes one from the TTL or hop limit.
    #[inline(always)]
    fn decrement_ttl(ip: *mut Self::Header) {
        Self::set_ttl(ip, Self::ttl(ip) - 1);
    }

    /// Writes the addresses of `to` into the IP header and keeps the header checksum
    /// right.
    fn set_addresses(ip: *mut Self::Header, to: &Self::Tuple, address_delta: u16);

    /// Writes the addresses of `to` into the IP header, takes one from the TTL or
    /// hop limit and keeps the header checksum right.
    fn rewrite(ip: *mut Self::Header, to: &Self::Tuple, address_delta: u16);

    /// What an outer header takes over.
    fn carried(ip: *mut Self::Header) -> Carried;

    /// The sum of the packet of `length` bytes, whose transport checksum is right, and
    /// whose IP headers are `headers` bytes. `None` if the headers alone don't tell it.
    fn sum(packet: &Packet<'_, Self>, length: u32) -> Option<u64>;

    /// Length of the header in bytes, IPv4 options included.
    fn header_length(ip: *mut Self::Header) -> usize;

    /// Protocol or next header of the fixed header.
    fn next(ip: *mut Self::Header) -> u8;

    /// The sum of both addresses of a tuple.
    fn address_sum(tuple: &Self::Tuple) -> u64;

    /// Writes a header for `payload` bytes of `protocol`, from and to `addresses`, at
    /// `offset` in the frame.
    fn write(
        ctx: &XdpContext,
        offset: usize,
        carried: &Carried,
        payload: usize,
        protocol: u8,
        ttl: u8,
        addresses: (Self::Address, Self::Address),
    ) -> Result<(), DropReason>;

    /// Wraps a packet of this family, see [`crate::tunnel`].
    fn wrap(ctx: *mut xdp_md, backend: u32, hash: u32, length: u32, sum: u64) -> u64;

    /// The backend that [`crate::pin`] has for a packet.
    fn pinned(tuple: &Self::Tuple, service: u64, slot: u64, index: u32, signs: u32) -> u32;

    /// Writes the entry for the answer to a health check, see [`crate::probe`].
    fn expect_answer(tuple: &Self::Tuple, path: &LinkPath, backend: u32) -> u64;

    /// Writes the entries of a flow, see [`crate::open`].
    fn write_entries(
        tuple: &Self::Tuple,
        path: &LinkPath,
        service: u64,
        backend: u32,
        flags: u32,
    ) -> u32;

    /// Takes a source port over for the flow in the draft, see [`crate::open`].
    fn take_over(backend: u32) -> u32;

    /// A flow that is about to get its entry enters the queue of [`crate::embryonic`].
    fn enter_embryonic(tuple: &Self::Tuple, place: u32);

    /// The backend that a client had last, see [`crate::client`].
    fn remembered(tuple: &Self::Tuple, service: u64) -> u32;

    /// The backend of a client is remembered, see [`crate::client`].
    fn note_client(tuple: &Self::Tuple, service: u32, backend: u32, is_confirmed: bool);

    /// The key of the client that sends `tuple`.
    fn client_key(tuple: &Self::Tuple, service: u32) -> Self::ClientKey;

    /// Whether a service takes no packets from a source: see [`crate::guard`].
    fn denied(service: u32, source: Self::Address) -> u32;

    /// A source as buckets have it: see [`lb_common::guard::BucketKey::source`].
    fn source_word(source: Self::Address) -> u64;

    /// Whether a packet from `src` to `dst` may come from a client.
    fn is_client(src: Self::Address, dst: Self::Address) -> bool;

    /// Whether two addresses are the same. Word by word: the compiler would call a
    /// function to compare more than a word.
    fn same(a: Self::Address, b: Self::Address) -> bool;

    /// The last 16 bits of an address.
    fn last_bits(address: Self::Address) -> u32;

    /// The address of a backend entry.
    fn address(words: &[u32; 4]) -> Self::Address;

    /// Source and destination address of a tuple.
    fn addresses(tuple: &Self::Tuple) -> (Self::Address, Self::Address);

    /// Gives a tuple the source address of a backend entry.
    fn set_src(tuple: &mut Self::Tuple, address: &[u32; 4]);

    /// Gives a tuple the address of a backend entry as its destination, and a port
    /// (network byte order).
    fn set_dst(tuple: &mut Self::Tuple, address: &[u32; 4], port: u16);

    /// Gives a tuple another source port, network byte order.
    fn set_src_port(tuple: &mut Self::Tuple, port: u16);

    /// Gives a tuple another destination port, network byte order.
    fn set_dst_port(tuple: &mut Self::Tuple, port: u16);

    /// Source and destination port of a tuple, network byte order.
    fn ports(tuple: &Self::Tuple) -> (u16, u16);

    /// IP protocol number of a tuple.
    fn protocol(tuple: &Self::Tuple) -> u8;

    /// The key of the service that `tuple` is sent to.
    fn service_key(tuple: &Self::Tuple) -> Self::ServiceKey;

    /// The key of the packet that a fragment is of.
    fn fragment_key(ip: *mut Self::Header, protocol: u8, identification: u32) -> Self::FragmentKey;

    /// Destination and protocol in such a key.
    fn fragment_owner(key: &Self::FragmentKey) -> (Self::Address, u8);

    /// The entry of this index in the array in front of that, as words.
    fn direct(index: u32) -> Option<*const u64>;

    /// The bit of an address in `REPLY_SOURCES`.
    fn reply_source(address: Self::Address) -> u32;

    /// Services on one address and port.
    fn services() -> &'static Services<Self::ServiceKey>;
    /// Service addresses.
    fn vips() -> &'static Vips<Self::Address>;
    /// Prefixes that are service addresses.
    fn prefixes() -> &'static Prefixes<Self::Address>;
    /// First fragments.
    fn fragments() -> &'static Fragments<Self::FragmentKey>;
    /// Flows, client to service.
    fn flows() -> &'static Flows<Self>;
    /// Flows, backend to client.
    fn replies() -> &'static Flows<Self>;
    /// Flows without translation, client to service.
    fn pins() -> &'static Pins<Self>;
    /// Clients that are remembered.
    fn clients() -> &'static Clients<Self>;
    /// Those of them that are not confirmed.
    fn newcomers() -> &'static Newcomers<Self>;
    /// Flows that are not confirmed.
    fn embryonic() -> &'static Embryonic<Self>;
    /// Where entries are put together.
    fn draft() -> Option<*mut Draft<Self::Flow, Self::FragmentKey>>;
}
