//! What most packets ask first, in arrays under hashes of our own: which service has this
//! address and port, and whether any backend has this address. A look at an array costs a
//! tenth of one at a hash map of the kernel.
//!
//! `DIRECT_V4` and `DIRECT_V6` stand in front of `SERVICES_V4` and `SERVICES_V6`, as a
//! direct-mapped cache does: an entry holds one of the services whose keys it is the place
//! of, and says whether there are more. `REPLY_SOURCES` is a Bloom filter (Bloom,
//! "Space/Time Trade-offs in Hash Coding with Allowable Errors", 1970) with one hash.
//!
//! The daemon writes both word by word, in shared memory, and so that a packet finds its
//! service at every instant: see [`MORE`].

use zerocopy::transmute;

use crate::service::{ServiceKey4, ServiceKey6};

/// Entries of each of `DIRECT_V4` and `DIRECT_V6`: twice as many as there are services.
pub const DIRECT_ENTRIES: u32 = 1 << DIRECT_BITS;
const DIRECT_BITS: u32 = 13;

/// Bits of `REPLY_SOURCES`.
pub const REPLY_SOURCE_BITS: u32 = 1 << FILTER_BITS;
/// Words of `REPLY_SOURCES`.
pub const REPLY_SOURCE_WORDS: u32 = REPLY_SOURCE_BITS / u64::BITS;
const FILTER_BITS: u32 = 18;

/// Words of an entry of `DIRECT_V4`: tag and service.
pub const DIRECT_WORDS_V4: usize = 2;
/// Words of an entry of `DIRECT_V6`: tag, service, and the address.
pub const DIRECT_WORDS_V6: usize = 4;
/// Word of an entry that holds the tag of a key, and [`MORE`].
pub const TAG: usize = 0;
/// Word of an entry that holds the [`Service`](crate::service::Service).
pub const SERVICE: usize = 1;
/// First word of the address, in `DIRECT_V6`.
pub const ADDRESS: usize = 2;

/// Bit of a tag, one of the protocol's that are not used: the hash map has to be asked,
/// unless the entry holds the very key. An entry without a key says so while it is written:
/// its tag is written last, and read first.
pub const MORE: u64 = {
    let key = ServiceKey4 {
        address: 0,
        port: 0,
        protocol: 0x8000,
    };
    transmute!(key)
};

/// Odd constants with well-spread bits, as those of [`hash`](crate::hash).
const MULTIPLIERS: [u64; 3] = [
    0x9E37_79B9_7F4A_7C15,
    0xBB67_AE85_84CA_A73B,
    0x3C6E_F372_FE94_F82B,
];

/// A key of services that has a place in front of the hash map.
pub trait DirectKey: Copy + Eq {
    /// What tells it from other keys of the same address words, never 0.
    #[must_use]
    fn tag(&self) -> u64;

    /// The words of its address where the tag does not have it.
    #[must_use]
    fn address(&self) -> Option<[u64; 2]>;

    /// Index of its entry.
    #[must_use]
    fn index(&self) -> u32;
}

impl DirectKey for ServiceKey4 {
    #[inline(always)]
    fn tag(&self) -> u64 {
        transmute!(*self)
    }

    #[inline(always)]
    fn address(&self) -> Option<[u64; 2]> {
        None
    }

    #[inline(always)]
    fn index(&self) -> u32 {
        top(self.tag().wrapping_mul(MULTIPLIERS[0]), DIRECT_BITS)
    }
}

impl DirectKey for ServiceKey6 {
    #[inline(always)]
    fn tag(&self) -> u64 {
        // The protocol stands where it has the bit of `MORE`.
        transmute!(ServiceKey4 {
            address: 0,
            port: self.port,
            protocol: self.protocol,
        })
    }

    #[inline(always)]
    fn address(&self) -> Option<[u64; 2]> {
        Some(transmute!(self.address))
    }

    #[inline(always)]
    fn index(&self) -> u32 {
        let tag = self.tag().wrapping_mul(MULTIPLIERS[2]);
        top(tag ^ product(self.address), DIRECT_BITS)
    }
}

/// The bit of `REPLY_SOURCES` of an address as backends have it, network byte order: an IPv4
/// address fills the first word.
#[inline(always)]
#[must_use]
pub fn reply_source(address: [u32; 4]) -> u32 {
    top(product(address), FILTER_BITS)
}

#[inline(always)]
fn product(address: [u32; 4]) -> u64 {
    let [high, low]: [u64; 2] = transmute!(address);
    high.wrapping_mul(MULTIPLIERS[0]) ^ low.wrapping_mul(MULTIPLIERS[1])
}

/// The highest bits of a product, which depend on all of its factors.
#[inline(always)]
const fn top(product: u64, bits: u32) -> u32 {
    (product >> (u64::BITS - bits)) as u32
}
