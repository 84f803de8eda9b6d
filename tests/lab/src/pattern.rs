//! Bytes that tell where in a transfer they belong, so that one that is lost,
//! doubled, changed or out of place is noticed.

use anyhow::{Result, ensure};

/// The byte at `offset` of every transfer.
#[must_use]
pub const fn byte(offset: u64) -> u8 {
    word(offset / 8)[(offset % 8) as usize]
}

/// The eight bytes from offset `8 * index` on.
const fn word(index: u64) -> [u8; 8] {
    // A step of the golden ratio for each word: no period shorter than any transfer.
    let word = (index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (word ^ (word >> 29)).to_le_bytes()
}

/// Fills `buffer` with the bytes from `offset` on.
pub fn fill(buffer: &mut [u8], offset: u64) {
    // By words where it can be: a test sends hundreds of megabytes, and is not optimised.
    let before_word = (offset.next_multiple_of(8) - offset).min(buffer.len() as u64);
    let (head, rest) = buffer.split_at_mut(before_word as usize);
    for (position, target) in (offset..).zip(head) {
        *target = byte(position);
    }
    let words = (offset.div_ceil(8)..).zip(rest.chunks_mut(8));
    for (index, target) in words {
        target.copy_from_slice(&word(index)[..target.len()]);
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
    let mut expected = vec![0; bytes.len()];
    fill(&mut expected, offset);
    if bytes == expected {
        return Ok(());
    }
    for ((position, found), expected) in (offset..).zip(bytes).zip(expected) {
        ensure!(
            *found == expected,
            "byte {position} is {found:#04x}, expected {expected:#04x}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_filled_with_the_same_bytes_wherever_it_begins_and_ends() {
        let whole: Vec<u8> = (0..64).map(byte).collect();
        for begin in 0..32 {
            for end in begin..64 {
                let mut part = vec![0; end - begin];
                fill(&mut part, begin as u64);
                assert_eq!(part, whole[begin..end], "{begin}..{end}");
            }
        }
    }

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
