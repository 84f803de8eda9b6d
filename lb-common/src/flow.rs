//! Flows: what the datapath remembers of a connection.
//!
//! A NAT flow has two entries: one in `FLOWS_*` under the tuple that the client
//! sends, and one in `REPLIES_*` under the tuple that the backend sends. Each
//! holds all that a packet in its direction needs, so that an established packet
//! costs one flow lookup. Either leads to the other: the tuple that an entry
//! rewrites a packet to, reversed, is the key of its partner.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::LinkPath;

/// Entries of each flow table unless the daemon sets another.
pub const MAX_FLOWS: u32 = 1_048_576;

/// Bits of the `state` of a flow. The entry in `FLOWS_*` is the truth; the one
/// in `REPLIES_*` keeps what its own direction has already reported there.
pub mod state {
    /// The backend has answered: the flow is established.
    pub const REPLIED: u32 = 1;
    /// The client has sent a FIN.
    pub const FIN_CLIENT: u32 = 1 << 1;
    /// The backend has sent a FIN.
    pub const FIN_BACKEND: u32 = 1 << 2;
    /// Either side has sent an RST.
    pub const RST: u32 = 1 << 3;

    /// The flow has ended: it was reset, or both sides have sent a FIN.
    #[inline(always)]
    #[must_use]
    pub const fn is_closed(state: u32) -> bool {
        const BOTH: u32 = FIN_CLIENT | FIN_BACKEND;
        state & RST != 0 || state & BOTH == BOTH
    }

    /// The flow is ending or has ended.
    #[inline(always)]
    #[must_use]
    pub const fn is_closing(state: u32) -> bool {
        state & (FIN_CLIENT | FIN_BACKEND | RST) != 0
    }
}

macro_rules! flow_types {
    ($family:literal, $address:ty, $key:ident: $key_size:literal, $flow:ident: $flow_size:literal) => {
        #[doc = concat!("The tuple of an ", $family, " packet; key of the flow tables.")]
        #[derive(
            Clone,
            Copy,
            Debug,
            Default,
            PartialEq,
            Eq,
            Hash,
            FromBytes,
            IntoBytes,
            Immutable,
            KnownLayout,
        )]
        #[repr(C)]
        pub struct $key {
            /// Source address, network byte order.
            pub src: $address,
            /// Destination address, network byte order.
            pub dst: $address,
            /// Source port, network byte order.
            pub src_port: u16,
            /// Destination port, network byte order.
            pub dst_port: u16,
            /// IP protocol number: 6 or 17.
            pub protocol: u8,
            /// Reserved, zero.
            pub reserved: [u8; 3],
        }

        impl $key {
            /// The tuple of a packet the other way.
            #[inline(always)]
            #[must_use]
            pub const fn reversed(self) -> Self {
                Self {
                    src: self.dst,
                    dst: self.src,
                    src_port: self.dst_port,
                    dst_port: self.src_port,
                    ..self
                }
            }
        }

        #[doc = concat!("What happens to the packets of an ", $family, " flow in one direction.")]
        #[derive(
            Clone,
            Copy,
            Debug,
            Default,
            PartialEq,
            Eq,
            FromBytes,
            IntoBytes,
            Immutable,
            KnownLayout,
        )]
        #[repr(C)]
        pub struct $flow {
            /// New source address, network byte order.
            pub src: $address,
            /// New destination address, network byte order.
            pub dst: $address,
            /// New source port, network byte order.
            pub src_port: u16,
            /// New destination port, network byte order.
            pub dst_port: u16,
            /// What the change of addresses adds to a checksum that covers them
            /// (RFC 1624, section 3), in one's complement.
            pub address_delta: u16,
            /// The same for the change of addresses and ports.
            pub tuple_delta: u16,
            /// Id of the service.
            pub service: u32,
            /// Id of the backend.
            pub backend: u32,
            /// [`Runtime::clock`](crate::Runtime::clock) when the last packet of
            /// this direction passed.
            pub last_seen: u32,
            /// Bits of [`state`].
            pub state: u32,
            /// The client's side of the flow. In `FLOWS_*`: how its packets come
            /// in, turned round, to notice that the way back has moved. In
            /// `REPLIES_*`: how replies leave.
            pub path: LinkPath,
            /// Largest IP packet that leaves by `path`, in bytes; 0 for no limit.
            /// Used in `REPLIES_*` alone.
            pub mtu: u32,
            /// Id of the port pool that the source port of full NAT came from,
            /// else 0.
            pub port_pool: u32,
        }

        impl $flow {
            /// The key of the entry for the other direction.
            #[inline(always)]
            #[must_use]
            pub const fn partner(&self, protocol: u8) -> $key {
                $key {
                    src: self.dst,
                    dst: self.src,
                    src_port: self.dst_port,
                    dst_port: self.src_port,
                    protocol,
                    reserved: [0; 3],
                }
            }
        }

        const _: () = assert!(size_of::<$key>() == $key_size);
        const _: () = assert!(size_of::<$flow>() == $flow_size);
    };
}

flow_types!("IPv4", u32, FlowKey4: 16, Flow4: 64);
flow_types!("IPv6", [u32; 4], FlowKey6: 40, Flow6: 88);
