//! A bound of a number, said so that the verifiers of all kernels see it.

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
