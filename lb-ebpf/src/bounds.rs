//! Bounds of numbers, said so that the verifiers of all kernels see them.

use core::arch::asm;

/// `length`, if it is from 1 to `most`. That a number other than zero is one at least
/// verifiers did not conclude before Linux 6.8.
#[inline(always)]
pub fn within(length: usize, most: usize) -> Option<usize> {
    let mut last = length;
    // The compiler would turn a subtraction of its own into comparisons of the length.
    // `black_box` hinders that, too, but by way of the stack, which is scarce.
    // SAFETY: a subtraction of one, which wraps around.
    unsafe {
        asm!("{last} += -1", last = inout(reg) last, options(pure, nomem, nostack));
    }
    (last < most).then(|| last + 1)
}

/// The bits of `number` that `mask` has. Where the compiler knows that there are no others it
/// would leave the mask out, and the verifiers of before Linux 6.10 know no bound of a number
/// that has had its bytes swapped. On the stack, as with `black_box`, there may be no room.
#[inline(always)]
pub fn masked(number: usize, mask: usize) -> usize {
    let mut bits = number;
    // SAFETY: an AND of two registers.
    unsafe {
        asm!(
            "{bits} &= {mask}",
            bits = inout(reg) bits,
            mask = in(reg) mask,
            options(pure, nomem, nostack),
        );
    }
    bits
}
