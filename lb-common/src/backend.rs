//! Backends and interfaces, as the datapath sees them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::LinkPath;

/// Number of entries in `BACKENDS` unless the daemon sets another.
pub const MAX_BACKENDS: u32 = 65_536;

/// What new and known flows may do with a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BackendState {
    /// No such backend: the entry is free, or rests until no flow names it.
    Absent = 0,
    /// Serves the flows that the ring sends it.
    Up = 1,
    /// Failed its health checks. Established TCP flows go on, since a failed
    /// check is no proof that they are dead; a TCP handshake without an answer
    /// and UDP flows move to another backend.
    Down = 2,
    /// It is drained, and its time is over: in the place of a packet of a TCP connection that
    /// it has, one of the ends gets an RST. UDP flows move to another backend, and so does a
    /// client that connects again. No owner of a slot, but it may be an origin.
    Resetting = 3,
}

/// The outer header of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outer {
    /// No tunnel: the mode does not wrap packets.
    None = 0,
    /// IPv4.
    Ipv4 = 1,
    /// IPv6.
    Ipv6 = 2,
}

/// An entry of `BACKENDS`. The hot fields, which every packet reads, stand first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Backend {
    /// The way to the backend; `ifindex` 0 while its neighbour is unresolved.
    pub path: LinkPath,
    /// Largest IP packet from a client that fits the path, in bytes, the outer headers of
    /// a tunnel taken off; 0 for no limit.
    pub mtu: u32,
    /// Id of the service that the backend belongs to.
    pub service: u32,
    /// A [`BackendState`].
    pub state: u8,
    /// An [`Outer`].
    pub outer: u8,
    /// Port, network byte order; 0 keeps the packet's own. GUE: the UDP port of the
    /// tunnel. Zero in the other modes that do not translate.
    pub port: u16,
    /// Address, network byte order; an IPv4 address fills the first word.
    pub address: [u32; 4],
    /// Source address of full NAT or of the outer header, like `address`. Zero in the
    /// other modes.
    pub source: [u32; 4],
    /// Id of the port pool of full NAT; 0 in the other modes.
    pub port_pool: u32,
    /// First port of the range of full NAT, host byte order.
    pub first_port: u16,
    /// Last port of that range, host byte order.
    pub last_port: u16,
    /// Tunnels: bits of the outer source address that the flow's hash replaces, a mask of
    /// its last 16 bits, network byte order. Zero in the other modes.
    pub source_mask: u16,
    /// Largest MSS option of a SYN that passes, in bytes; 0 leaves all as they are.
    pub max_segment_size: u16,
    /// Share of new flows, against the other backends of the service; 0 where it takes none.
    /// Only where the scheduler goes by it, or clients are remembered.
    pub weight: u32,
    /// Flows that it takes at a time; 0 for any number.
    pub max_flows: u32,
}

/// What the datapath knows of an interface that it may send by.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Interface {
    /// Largest IP packet that it takes, in bytes.
    pub mtu: u32,
}

const _: () = assert!(size_of::<Backend>() == 88);
const _: () = assert!(size_of::<Interface>() == 4);
