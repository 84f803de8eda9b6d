//! A set of slots.

/// Slots of a ring, a bit for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotSet {
    words: Vec<u64>,
}

impl SlotSet {
    /// The empty set, with room for the slots of a ring of this size.
    #[must_use]
    pub fn new(size: u32) -> Self {
        Self {
            words: vec![0; size.div_ceil(u64::BITS) as usize],
        }
    }

    /// Puts a slot into it.
    #[inline]
    pub fn insert(&mut self, slot: u32) {
        let word = (slot / u64::BITS) as usize;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (slot % u64::BITS);
    }

    /// Puts the slots of another set into it.
    pub fn extend(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// Whether a slot is in it.
    #[inline]
    #[must_use]
    pub fn contains(&self, slot: u32) -> bool {
        let word = self.words.get((slot / u64::BITS) as usize);
        word.is_some_and(|word| word & 1 << (slot % u64::BITS) != 0)
    }
}
