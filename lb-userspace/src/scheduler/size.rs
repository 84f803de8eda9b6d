//! How many slots a ring has.

use lb_common::ring::RING_SIZE;

/// The number of slots of a ring: a prime, so that the order in which a backend prefers
/// slots comes to each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingSize(u32);

/// No ring has that many slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRingSize {
    /// Less than 2, or more than [`RingSize::MAX`].
    #[error("the size of a ring is from 2 to {}", RingSize::MAX.get())]
    OutOfRange,
    /// A composite number, between two primes.
    #[error("the size of a ring is a prime number, such as {below} or {above}")]
    NotPrime {
        /// The next one below.
        below: u32,
        /// The next one above.
        above: u32,
    },
}

impl RingSize {
    /// The size of rings unless another is wanted.
    pub const DEFAULT: Self = Self(RING_SIZE);
    /// The largest: the last prime before 2^24. The ring has eight bytes for each slot.
    pub const MAX: Self = Self(16_777_213);

    /// Takes a number of slots.
    ///
    /// # Errors
    ///
    /// If it is no prime, or too large.
    pub fn new(slots: u32) -> Result<Self, InvalidRingSize> {
        if !(2..=Self::MAX.0).contains(&slots) {
            return Err(InvalidRingSize::OutOfRange);
        }
        if is_prime(slots) {
            return Ok(Self(slots));
        }
        let prime = |number: &u32| is_prime(*number);
        Err(InvalidRingSize::NotPrime {
            below: (2..slots).rev().find(prime).unwrap_or(2),
            above: (slots..).find(prime).unwrap_or(Self::MAX.0),
        })
    }

    /// The number of slots.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl Default for RingSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// By the divisors up to the root, of which there are few.
pub(super) fn is_prime(number: u32) -> bool {
    let root = number.isqrt();
    number >= 2 && (2..=root).all(|divisor| !number.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes_are_sizes() {
        for size in [2, 3, 5, 65_537, 16_777_213] {
            assert_eq!(RingSize::new(size).map(RingSize::get), Ok(size));
        }
        assert_eq!(RingSize::new(RING_SIZE), Ok(RingSize::DEFAULT));
        assert_eq!(RingSize::new(RingSize::MAX.get()), Ok(RingSize::MAX));
        let below_100 = (0..100).filter(|size| RingSize::new(*size).is_ok());
        assert_eq!(below_100.count(), 25);
    }

    #[test]
    fn the_nearest_primes_are_named() {
        let invalid = RingSize::new(65_536).unwrap_err();
        let message = "the size of a ring is a prime number, such as 65521 or 65537";
        assert_eq!(invalid.to_string(), message);
        let (below, above) = (16_777_199, 16_777_213);
        let invalid = InvalidRingSize::NotPrime { below, above };
        assert_eq!(RingSize::new(16_777_212), Err(invalid));
        let square = InvalidRingSize::NotPrime {
            below: 47,
            above: 53,
        };
        assert_eq!(RingSize::new(49), Err(square));
    }

    #[test]
    fn others_are_out_of_range() {
        for size in [0, 1, 16_777_214, u32::MAX] {
            let invalid = RingSize::new(size).unwrap_err();
            assert_eq!(invalid, InvalidRingSize::OutOfRange);
        }
    }
}
