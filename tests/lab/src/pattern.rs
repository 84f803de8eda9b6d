//! Bytes that tell where in a transfer they belong, so that one that is lost,
//! doubled, changed or out of place is noticed.

use anyhow::{Result, ensure};

/// The byte at `offset` of every transfer.
#[must_use]
pub const fn byte(offset: u64) -> u8 {
    // A step of the golden ratio for each word of eight, and the byte within it:
    // no period shorter than any transfer.
    let word = (offset / 8 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = word ^ (word >> 29);
    mixed.to_le_bytes()[(offset % 8) as usize]
}

/// Fills `buffer` with the bytes from `offset` on.
pub fn fill(buffer: &mut [u8], offset: u64) {
    for (position, target) in (offset..).zip(buffer) {
        *target = byte(position);
    }
}

/// The first `length` bytes.
#[must_use]
pub fn bytes(length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length];
    fill(&mut buffer, 0);
    buffer
}

/// Checks that `bytes` are those from `offset` on.
///
/// # Errors
///
/// With the position of the first that is not.
pub fn check(bytes: &[u8], offset: u64) -> Result<()> {
    for (position, &found) in (offset..).zip(bytes) {
        let expected = byte(position);
        ensure!(
            found == expected,
            "byte {position} is {found:#04x}, expected {expected:#04x}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_that_is_lost_doubled_or_changed_is_found() {
        let good = bytes(100_000);
        check(&good, 0).unwrap();
        check(&good[70_000..], 70_000).unwrap();

        let mut changed = good.clone();
        changed[77_777] ^= 1;
        assert!(
            check(&changed, 0)
                .unwrap_err()
                .to_string()
                .contains("77777")
        );

        // Any shift is noticed within some bytes, also by whole words and pages.
        for shift in [1, 8, 64, 1_448, 4_096, 65_536] {
            assert!(check(&good[shift..shift + 64], 0).is_err(), "shift {shift}");
        }
    }
}
