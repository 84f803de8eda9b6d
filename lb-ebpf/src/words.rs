//! Several words at once, at places of any alignment.
//!
//! What the compiler knows to be unaligned it copies byte by byte, or by a call where
//! there is more of it; a word of its own it loads and stores whole.

use core::array;

/// Loads words.
///
/// # Safety
///
/// All of them must be readable.
#[inline(always)]
pub unsafe fn load<W: Copy, const N: usize>(start: *const W) -> [W; N] {
    // SAFETY: as the caller vouches.
    array::from_fn(|index| unsafe { start.add(index).read_unaligned() })
}

/// Stores words.
///
/// # Safety
///
/// There must be room for all of them.
#[inline(always)]
pub unsafe fn store<W: Copy, const N: usize>(start: *mut W, words: [W; N]) {
    for (index, word) in words.into_iter().enumerate() {
        // SAFETY: as the caller vouches.
        unsafe { start.add(index).write_unaligned(word) };
    }
}
