//! The hash of a flow. Both sides compute it, and so do two balancers with the
//! same configuration: it must not depend on the host. Addresses and ports are taken as they
//! lie in memory, so hosts of another byte order hash otherwise.

/// Odd constants with well-spread bits (the fractions of the golden ratio and of
/// the square roots of 3 and 5).
const MULTIPLIERS: [u64; 3] = [
    0x9E37_79B9_7F4A_7C15,
    0xBB67_AE85_84CA_A73B,
    0x3C6E_F372_FE94_F82B,
];

/// Mixes one word into a hash.
#[inline(always)]
const fn mix(hash: u64, word: u64, round: usize) -> u64 {
    let product = (hash ^ word).wrapping_mul(MULTIPLIERS[round % 3]);
    product ^ (product >> 32)
}

/// Joins the two ports and the protocol of a tuple to a word.
#[inline(always)]
const fn transport(src_port: u16, dst_port: u16, protocol: u32) -> u64 {
    ((src_port as u64) << 32) | ((dst_port as u64) << 16) | protocol as u64
}

/// Hash of an IPv4 five-tuple; addresses and ports in network byte order.
#[inline(always)]
#[must_use]
pub const fn tuple4(src: u32, dst: u32, src_port: u16, dst_port: u16, protocol: u32) -> u32 {
    let hash = mix(0, ((src as u64) << 32) | dst as u64, 0);
    let hash = mix(hash, transport(src_port, dst_port, protocol), 1);
    mix(hash, 0, 2) as u32
}

/// Hash of an IPv6 five-tuple; addresses and ports in network byte order.
#[inline(always)]
#[must_use]
pub const fn tuple6(
    src: [u32; 4],
    dst: [u32; 4],
    src_port: u16,
    dst_port: u16,
    protocol: u32,
) -> u32 {
    let hash = mix(0, ((src[0] as u64) << 32) | src[1] as u64, 0);
    let hash = mix(hash, ((src[2] as u64) << 32) | src[3] as u64, 1);
    let hash = mix(hash, ((dst[0] as u64) << 32) | dst[1] as u64, 2);
    let hash = mix(hash, ((dst[2] as u64) << 32) | dst[3] as u64, 0);
    let hash = mix(hash, transport(src_port, dst_port, protocol), 1);
    mix(hash, 0, 2) as u32
}
