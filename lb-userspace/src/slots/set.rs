//! A set of slots.

/// Slots of a ring, a bit for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotSet {
    words: Vec<u64>,
}

impl SlotSet {
    /// The empty set of slots of a ring of this size.
    #[must_use]
    pub fn new(size: u32) -> Self {
        Self {
            words: vec![0; size.div_ceil(u64::BITS) as usize],
        }
    }

    /// Puts a slot into it.
    ///
    /// # Panics
    ///
    /// If the ring has no such slot.
    #[inline]
    pub fn insert(&mut self, slot: u32) {
        self.words[(slot / u64::BITS) as usize] |= 1 << (slot % u64::BITS);
    }

    /// Whether a slot is in it.
    ///
    /// # Panics
    ///
    /// If the ring has no such slot.
    #[inline]
    #[must_use]
    pub fn contains(&self, slot: u32) -> bool {
        self.words[(slot / u64::BITS) as usize] & 1 << (slot % u64::BITS) != 0
    }
}
