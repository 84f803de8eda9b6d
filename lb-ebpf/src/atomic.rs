//! Atomic read-modify-write. Rust's BPF target offers atomic loads and stores
//! alone, as early kernels did; the instructions have been there since Linux 5.12.

use core::arch::asm;

/// Sets bits of a word and returns what it was.
///
/// # Safety
///
/// `word` must point into a map value and be aligned.
#[inline(always)]
pub unsafe fn fetch_or_u32(word: *mut u32, bits: u32) -> u32 {
    let mut value = bits;
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        asm!(
            "{value} = atomic_fetch_or((u32 *)({word} + 0), {value})",
            word = in(reg) word,
            value = inout(wreg) value,
            options(nostack),
        );
    }
    value
}

/// Sets bits of a word and returns what it was.
///
/// # Safety
///
/// `word` must point into a map value and be aligned.
#[inline(always)]
pub unsafe fn fetch_or_u64(word: *mut u64, bits: u64) -> u64 {
    let mut value = bits;
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        asm!(
            "{value} = atomic_fetch_or((u64 *)({word} + 0), {value})",
            word = in(reg) word,
            value = inout(reg) value,
            options(nostack),
        );
    }
    value
}

/// Adds to a word.
///
/// # Safety
///
/// `word` must point into a map value and be aligned.
#[inline(always)]
pub unsafe fn add_u64(word: *mut u64, value: u64) {
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        asm!(
            "lock *(u64 *)({word} + 0) += {value}",
            word = in(reg) word,
            value = in(reg) value,
            options(nostack),
        );
    }
}

/// Adds to a word and returns what it was.
///
/// # Safety
///
/// `word` must point into a map value and be aligned.
#[inline(always)]
pub unsafe fn fetch_add_u64(word: *mut u64, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        asm!(
            "{value} = atomic_fetch_add((u64 *)({word} + 0), {value})",
            word = in(reg) word,
            value = inout(reg) value,
            options(nostack),
        );
    }
    value
}

/// Gives a word another value if it has the expected one. Returns what it was.
///
/// # Safety
///
/// `word` must point into a map value and be aligned.
#[inline(always)]
pub unsafe fn compare_exchange_u64(word: *mut u64, expected: u64, new: u64) -> u64 {
    let mut value = expected;
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inout("r0") value,
            options(nostack),
        );
    }
    value
}

/// Keeps only these bits of a word.
///
/// # Safety
///
/// `word` must point into a map value and be aligned.
#[inline(always)]
pub unsafe fn and_u64(word: *mut u64, bits: u64) {
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        asm!(
            "lock *(u64 *)({word} + 0) &= {bits}",
            word = in(reg) word,
            bits = in(reg) bits,
            options(nostack),
        );
    }
}
