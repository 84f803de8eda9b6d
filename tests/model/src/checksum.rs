//! The Internet checksum (RFC 1071) and its update (RFC 1624). *Modes*: "Checksums are
//! updated, not computed anew, so that a wrong one stays wrong and the receiver finds it."

/// One's complement sum of 16-bit words, the last byte of an odd number padded with zero.
/// Zero for zeros alone.
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    let total: u64 = bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    residue(total)
}

/// What is left of a sum modulo 65535, where only a sum of nothing is zero.
#[must_use]
pub fn residue(total: u64) -> u16 {
    match (total, total % 0xffff) {
        (0, _) => 0,
        (_, 0) => 0xffff,
        (_, rest) => rest as u16,
    }
}

/// The checksum after bytes that it covers became others: equation 3 of RFC 1624,
/// `HC' = ~(~HC + ~m + m')`. The bytes are whole words of what is covered.
///
/// # Panics
///
/// Where the lengths differ or are odd.
#[must_use]
pub fn updated(checksum: u16, before: &[u8], after: &[u8]) -> u16 {
    assert_eq!(before.len(), after.len(), "bytes are replaced by as many");
    assert!(before.len().is_multiple_of(2), "words are replaced");
    let complement: Vec<u8> = before.iter().map(|byte| !byte).collect();
    let total = u64::from(!checksum) + u64::from(sum(&complement)) + u64::from(sum(after));
    !residue(total)
}

/// A checksum of UDP, in which zero says that there is none (RFC 768).
#[must_use]
pub fn of_udp(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}
