//! The ring of a service: hash of a flow to slot, slot to backend id.

/// Slots of a ring: a prime, as Maglev needs, and large enough that weights are
/// kept within a percent (Eisenbud et al., "Maglev", NSDI 2016, section 5.3).
pub const RING_SIZE: u32 = 65_537;

/// A slot without a backend.
pub const NO_BACKEND: u32 = 0;

/// The slot of a flow with this hash. Multiplication maps the hash evenly to
/// `0..size` without the cost of a division (Lemire, "Fast Random Integer
/// Generation in an Interval", 2019).
#[inline(always)]
#[must_use]
pub const fn slot(hash: u32, size: u32) -> u32 {
    ((hash as u64 * size as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_reach_from_first_to_last() {
        assert_eq!(slot(0, RING_SIZE), 0);
        assert_eq!(slot(u32::MAX, RING_SIZE), RING_SIZE - 1);
    }
}
