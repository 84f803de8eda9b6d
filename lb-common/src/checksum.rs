//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Words are taken as they lie in memory. The one's complement sum does not
//! depend on byte order (RFC 1071, section 2 (B)) as long as every word, and the
//! checksum itself, is read the same way.

/// Folds a sum of 16-bit words to 16 bits, in one's complement.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// What replacing a 32-bit word adds to the sum that a checksum complements.
#[inline(always)]
#[must_use]
pub const fn replace32(old: u32, new: u32) -> u64 {
    !old as u64 + new as u64
}

/// The same for a 16-bit word.
#[inline(always)]
#[must_use]
pub const fn replace16(old: u16, new: u16) -> u64 {
    !old as u64 + new as u64
}

/// The checksum after the words that it covers changed by `delta`: equation 3 of
/// RFC 1624.
#[inline(always)]
#[must_use]
pub const fn update(checksum: u16, delta: u16) -> u16 {
    !fold(!checksum as u64 + delta as u64)
}
