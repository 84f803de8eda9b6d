//! Flows: what the datapath remembers of a connection.
//!
//! A NAT flow has two entries: one in `FLOWS_*` under the tuple that the client
//! sends, and one in `REPLIES_*` under the tuple that the backend sends. Each
//! holds all that a packet in its direction needs, so that an established packet
//! costs one flow lookup. Either leads to the other: the tuple that an entry
//! rewrites a packet to, reversed, is the key of its partner.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{addr::LinkPath, checksum, hash};

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
    /// The client gets answers: the flow is established, and nothing but its end or its
    /// silence takes its entry away.
    pub const CONFIRMED: u32 = 1 << 4;
    /// Another flow takes the place of this one, which was not confirmed in time.
    pub const EVICTED: u32 = 1 << 5;
    /// Of a pin: the flow began before its first packet that the balancer saw.
    pub const JOINED: u32 = 1 << 6;
    /// Of a pin: its begin was counted, and its end is to be.
    pub const COUNTED: u32 = 1 << 7;
    /// Of a translated flow: it began with a SYN, and what becomes of that is counted. See
    /// [`outcome`](crate::outcome).
    pub const WATCHED: u32 = 1 << 7;
    /// The bits from this one on are the place of the flow in the queue of those that are
    /// not confirmed.
    pub const PLACE: u32 = 8;
    /// The bits below that.
    pub const BITS: u32 = (1 << PLACE) - 1;

    /// The flow has ended: it was reset, or both sides have sent a FIN.
    #[inline(always)]
    #[must_use]
    pub const fn is_closed(state: u32) -> bool {
        const BOTH: u32 = FIN_CLIENT | FIN_BACKEND;
        state & RST != 0 || state & BOTH == BOTH
    }

    /// The flow has ended as far as its client is concerned, who alone is heard of flows
    /// that are not translated.
    #[inline(always)]
    #[must_use]
    pub const fn is_closed_by_client(state: u32) -> bool {
        state & (FIN_CLIENT | RST) != 0
    }

    /// The flow is ending or has ended.
    #[inline(always)]
    #[must_use]
    pub const fn is_closing(state: u32) -> bool {
        state & (FIN_CLIENT | FIN_BACKEND | RST) != 0
    }
}

/// How many open flows a backend has, in a word, so that one atomic addition takes a flow from
/// one count to the other.
pub mod load {
    use super::state;

    /// A flow that is confirmed.
    pub const LIVE: u64 = 1;
    /// A flow that is not confirmed yet.
    pub const PENDING: u64 = 1 << 32;

    /// The flows that are confirmed.
    #[inline(always)]
    #[must_use]
    pub const fn live(load: u64) -> u32 {
        load as u32
    }

    /// The flows that are not.
    #[inline(always)]
    #[must_use]
    pub const fn pending(load: u64) -> u32 {
        (load >> 32) as u32
    }

    /// All of them.
    #[inline(always)]
    #[must_use]
    pub const fn total(load: u64) -> u64 {
        live(load) as u64 + pending(load) as u64
    }

    /// What an entry in this state is to its backend. One that was [`state::EVICTED`] just
    /// when it was [`state::CONFIRMED`] is still there.
    #[inline(always)]
    #[must_use]
    pub const fn of(state: u32, is_closed: bool) -> u64 {
        if is_closed {
            0
        } else if state & state::CONFIRMED != 0 {
            LIVE
        } else if state & state::EVICTED != 0 {
            0
        } else {
            PENDING
        }
    }

    /// What is to be added when the state of an entry, and whether that is closed, goes from
    /// `old` to `new`. An entry that is [`state::EVICTED`] before it is confirmed counts no
    /// more, whatever its packets still say.
    #[inline(always)]
    #[must_use]
    pub const fn change(old: (u32, bool), new: (u32, bool)) -> u64 {
        if old.0 & (state::EVICTED | state::CONFIRMED) == state::EVICTED {
            return 0;
        }
        of(new.0, new.1).wrapping_sub(of(old.0, old.1))
    }
}

/// What an entry holds besides the tuple that it rewrites packets to.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FlowEntry {
    /// What the change of addresses adds to a checksum that covers them (RFC 1624,
    /// section 3), in one's complement.
    pub address_delta: u16,
    /// The same for the change of addresses and ports.
    pub tuple_delta: u16,
    /// Id of the backend.
    pub backend: u32,
    /// [`Runtime::clock`](crate::Runtime::clock) when the last packet of this
    /// direction passed.
    pub last_seen: u32,
    /// Bits of [`state`].
    pub state: u32,
    /// The client's side of the flow: how replies leave. In `FLOWS_*` it serves to
    /// notice that the client's packets come in by another way than they did.
    pub path: LinkPath,
    /// In `REPLIES_*`: largest IP packet that leaves by `path`, in bytes; 0 for no limit. In
    /// `FLOWS_*`, of TCP: the sequence number that the client acknowledges when it has the
    /// backend's first answer, host byte order.
    pub mtu_or_sequence: u32,
    /// Id of the port pool that the source port of full NAT came from, else 0.
    pub port_pool: u32,
}

const _: () = assert!(size_of::<FlowEntry>() == 48);

/// A tuple of either family.
pub trait Tuple: Copy + Eq {
    /// The tuple of a packet the other way.
    #[must_use]
    fn reversed(self) -> Self;

    /// Becomes the tuple of a packet the other way than `of`. Without a copy between, for
    /// which the datapath's stack has no room.
    fn reverse_of(&mut self, of: &Self);

    /// The hash that chooses the slot of the ring. The same on every host.
    #[must_use]
    fn hash(&self) -> u32;

    /// The hash that chooses the slot where the client alone does: its address, and its
    /// port too if `with_port`.
    #[must_use]
    fn hash_of_client(&self, with_port: bool) -> u32;

    /// What rewriting a packet from this tuple to `to` adds to a checksum that
    /// covers the addresses alone, and to one that covers the ports too: values
    /// for [`checksum::update`].
    #[must_use]
    fn deltas(&self, to: &Self) -> (u16, u16);
}

/// An entry of a flow table of either family.
pub trait FlowValue: Copy {
    /// Key of the table.
    type Key: Tuple;

    /// Both parts, to write them in place.
    fn parts_mut(&mut self) -> (&mut FlowEntry, &mut Self::Key);

    /// All but the tuple.
    #[must_use]
    fn entry(&self) -> &FlowEntry;

    /// The tuple that packets are rewritten to.
    #[must_use]
    fn to(&self) -> &Self::Key;

    /// The key of the entry for the other direction.
    #[inline(always)]
    #[must_use]
    fn partner(&self) -> Self::Key {
        self.to().reversed()
    }
}

macro_rules! flow_types {
    ($family:literal, $address:ty, $hash:path, $key:ident: $key_size:literal, $flow:ident: $flow_size:literal) => {
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
        #[repr(C, align(8))]
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
            pub protocol: u32,
        }

        impl Tuple for $key {
            #[inline(always)]
            fn reversed(self) -> Self {
                Self {
                    src: self.dst,
                    dst: self.src,
                    src_port: self.dst_port,
                    dst_port: self.src_port,
                    ..self
                }
            }

            #[inline(always)]
            fn reverse_of(&mut self, of: &Self) {
                self.src = of.dst;
                self.dst = of.src;
                self.src_port = of.dst_port;
                self.dst_port = of.src_port;
                self.protocol = of.protocol;
            }

            #[inline(always)]
            fn hash(&self) -> u32 {
                $hash(
                    self.src,
                    self.dst,
                    self.src_port,
                    self.dst_port,
                    self.protocol,
                )
            }

            #[inline(always)]
            fn hash_of_client(&self, with_port: bool) -> u32 {
                let port = if with_port { self.src_port } else { 0 };
                $hash(self.src, Default::default(), port, 0, 0)
            }

            #[inline(always)]
            fn deltas(&self, to: &Self) -> (u16, u16) {
                let addresses = self.src.replaced(to.src) + self.dst.replaced(to.dst);
                let ports = checksum::replace16(self.src_port, to.src_port)
                    + checksum::replace16(self.dst_port, to.dst_port);
                (checksum::fold(addresses), checksum::fold(addresses + ports))
            }
        }

        #[doc = concat!("An entry of the ", $family, " flow tables.")]
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
            /// All but the tuple.
            pub entry: FlowEntry,
            /// The tuple that packets are rewritten to.
            pub to: $key,
        }

        impl FlowValue for $flow {
            type Key = $key;

            #[inline(always)]
            fn parts_mut(&mut self) -> (&mut FlowEntry, &mut $key) {
                (&mut self.entry, &mut self.to)
            }

            #[inline(always)]
            fn entry(&self) -> &FlowEntry {
                &self.entry
            }

            #[inline(always)]
            fn to(&self) -> &$key {
                &self.to
            }
        }

        const _: () = assert!(size_of::<$key>() == $key_size);
        const _: () = assert!(size_of::<$flow>() == $flow_size);
    };
}

flow_types!("IPv4", u32, hash::tuple4, FlowKey4: 16, Flow4: 64);
flow_types!("IPv6", [u32; 4], hash::tuple6, FlowKey6: 40, Flow6: 88);

/// An address as words of a checksum.
trait Words {
    /// What replacing it adds to the sum.
    fn replaced(self, new: Self) -> u64;
}

impl Words for u32 {
    #[inline(always)]
    fn replaced(self, new: Self) -> u64 {
        checksum::replace32(self, new)
    }
}

impl Words for [u32; 4] {
    #[inline(always)]
    fn replaced(self, new: Self) -> u64 {
        checksum::replace32(self[0], new[0])
            + checksum::replace32(self[1], new[1])
            + checksum::replace32(self[2], new[2])
            + checksum::replace32(self[3], new[3])
    }
}

#[cfg(test)]
mod tests {
    use super::{
        load::{self, LIVE, PENDING},
        state::{CONFIRMED, EVICTED, RST, is_closed},
    };

    /// The load of a flow whose entry gets these bits one after the other.
    fn after(bits: &[u32]) -> u64 {
        let (mut state, mut load) = (0, PENDING);
        for bits in bits {
            let (old, new) = (state, state | bits);
            load = load.wrapping_add(load::change((old, is_closed(old)), (new, is_closed(new))));
            state = new;
        }
        load
    }

    #[test]
    fn a_flow_counts_once_from_its_beginning_to_its_end() {
        assert_eq!(after(&[]), PENDING);
        assert_eq!(after(&[CONFIRMED]), LIVE);
        assert_eq!(after(&[CONFIRMED, CONFIRMED]), LIVE);
        assert_eq!(after(&[CONFIRMED, RST]), 0);
        assert_eq!(after(&[RST]), 0);
        assert_eq!(after(&[RST, CONFIRMED, RST]), 0);
        assert_eq!(after(&[CONFIRMED | RST]), 0);
    }

    #[test]
    fn whoever_comes_first_evicts_or_confirms() {
        assert_eq!(after(&[EVICTED]), 0);
        assert_eq!(after(&[EVICTED, CONFIRMED]), 0);
        assert_eq!(after(&[EVICTED, RST]), 0);
        assert_eq!(after(&[CONFIRMED, EVICTED]), LIVE);
        assert_eq!(after(&[CONFIRMED, EVICTED, RST]), 0);
        assert_eq!(after(&[RST, EVICTED]), 0);
    }

    #[test]
    fn a_load_has_both_counts() {
        let load = 3 * LIVE + 5 * PENDING;
        assert_eq!(load::live(load), 3);
        assert_eq!(load::pending(load), 5);
        assert_eq!(load::total(load), 8);
    }
}
