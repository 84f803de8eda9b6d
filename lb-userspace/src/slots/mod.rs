//! The second backend of slots: which slots of a service's ring are changing or pinned, and
//! since when. `docs/selection.md`, "Rings of slots", is what this follows.
//!
//! The owners of slots follow from the backends and their weights, see
//! [`crate::scheduler`]; they are not kept here. So [`Slots`] takes memory for slots that
//! are not clean, and none for a service that has no others.
//!
//! Nothing here reads a clock or writes a table. What is decided holds when the ring has
//! been written; only from then on does the time count ([`Slots::written`]).

mod set;
#[cfg(test)]
mod tests;

use std::time::Duration;

use lb_common::ring::{NO_BACKEND, NOBODY, Slot};

pub use self::set::SlotSet;

/// The slots of a service that are not clean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    /// In the order of slots.
    unsettled: Vec<Unsettled>,
    /// No slot is changing since before this.
    oldest_change: Duration,
    is_written: bool,
}

/// A slot that is not clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unsettled {
    slot: u32,
    state: State,
    /// Since when the datapath has it so: packets see it from then on. [`NOT_YET`] until
    /// the ring is written.
    since: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// With the id of the origin.
    Changing(u32),
    Pinned,
}

/// Later than any time.
const NOT_YET: Duration = Duration::MAX;

/// How many slots of a ring are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets go to the owner, without a look at flow entries.
    pub clean: u32,
    /// A packet without a flow entry gets one.
    pub changing: u32,
    /// Flow entries are read, and none is written.
    pub pinned: u32,
}

impl Default for Slots {
    fn default() -> Self {
        Self::new()
    }
}

impl Slots {
    /// All slots are clean, in the datapath too.
    #[must_use]
    pub fn new() -> Self {
        Self {
            unsettled: Vec::new(),
            oldest_change: NOT_YET,
            is_written: true,
        }
    }

    /// The slots of a ring that the datapath has had from a daemon before. How long it has
    /// had them so is not known: whatever is not clean is so since `now`.
    #[must_use]
    pub fn restored(ring: &[Slot], now: Duration) -> Self {
        let unsettled = (0..).zip(ring).filter(|(_, slot)| !slot.is_clean());
        let unsettled = unsettled.map(|(slot, found)| Unsettled {
            slot,
            state: if found.is_pinned() || found.origin == NOBODY {
                State::Pinned
            } else {
                State::Changing(found.origin)
            },
            since: now,
        });
        Self {
            unsettled: unsettled.collect(),
            oldest_change: now,
            is_written: true,
        }
    }

    /// The ring names other owners: `after`, where it named those of `before`. The latter
    /// are those of the last call, or of the ring that was [restored](Self::restored).
    ///
    /// # Panics
    ///
    /// If the rings differ in size.
    pub fn retarget(&mut self, before: &[u32], after: &[u32]) {
        assert_eq!(before.len(), after.len(), "a ring of another size");
        let mut unsettled = Vec::new();
        let mut known = self.unsettled.iter().copied().peekable();
        for (slot, (before, after)) in (0..).zip(before.iter().zip(after)) {
            let known = known.next_if(|known| known.slot == slot);
            if before == after {
                unsettled.extend(known);
                continue;
            }
            self.is_written = false;
            let state = match known.map(|known| known.state) {
                // Whatever had an entry has it still, and nothing else lived here.
                Some(State::Pinned) if *before == NO_BACKEND => State::Pinned,
                None if *before == NO_BACKEND => continue,
                None | Some(State::Pinned) => State::Changing(*before),
                Some(State::Changing(origin)) if origin == *after => State::Pinned,
                Some(changing @ State::Changing(_)) => changing,
            };
            unsettled.push(Unsettled {
                slot,
                state,
                since: NOT_YET,
            });
        }
        self.unsettled = unsettled;
    }

    /// Every flow of the service has had an entry up to now, and new ones have no more: of
    /// `size` slots, those that are clean are pinned until the entries are gone.
    pub fn pin_clean(&mut self, size: u32) {
        let mut known = std::mem::take(&mut self.unsettled).into_iter().peekable();
        self.unsettled = (0..size)
            .map(|slot| {
                known
                    .next_if(|known| known.slot == slot)
                    .unwrap_or_else(|| {
                        self.is_written = false;
                        Unsettled {
                            slot,
                            state: State::Pinned,
                            since: NOT_YET,
                        }
                    })
            })
            .collect();
    }

    /// Pins slots that have been changing for longer than `idle`, after which a silent flow
    /// has no claim any more (`timeouts.tcp-established`): each flow that has one spoke
    /// meanwhile, and has an entry.
    ///
    /// What the datapath counted of entries that it could not write, up to `now`, is told
    /// [before](Self::table_was_full).
    pub fn tick(&mut self, now: Duration, idle: Duration) {
        let is_due = |since| now.saturating_sub(since) > idle;
        if !is_due(self.oldest_change) {
            return;
        }
        self.oldest_change = NOT_YET;
        for slot in &mut self.unsettled {
            if slot.state == State::Pinned {
                continue;
            }
            if is_due(slot.since) {
                slot.pin();
                self.is_written = false;
            } else {
                self.oldest_change = self.oldest_change.min(slot.since);
            }
        }
    }

    /// An entry could not be written before `now`. A flow that should have one spoke, so
    /// the timeout of changing slots begins anew.
    pub fn table_was_full(&mut self, now: Duration) {
        for slot in &mut self.unsettled {
            if slot.state != State::Pinned && slot.since != NOT_YET {
                slot.since = slot.since.max(now);
            }
        }
    }

    /// A sweep of the flow tables, begun at `began`, has found entries of the slots `used`
    /// alone. The other pinned slots are clean, if they were pinned before.
    pub fn swept(&mut self, began: Duration, used: &SlotSet) {
        let before = self.unsettled.len();
        self.unsettled.retain(|slot| {
            slot.state != State::Pinned || slot.since >= began || used.contains(slot.slot)
        });
        if self.unsettled.len() < before {
            self.is_written = false;
            self.unsettled.shrink_to_fit();
        }
    }

    /// A backend is no more, and with it its flows: where it was the origin, whatever has no
    /// entry is the owner's. The ring does not name it as an owner any more.
    pub fn backend_removed(&mut self, id: u32) {
        for slot in &mut self.unsettled {
            if slot.state == State::Changing(id) {
                slot.pin();
                self.is_written = false;
            }
        }
    }

    /// The slots of the ring with these owners, as the datapath is to have them.
    pub fn ring(&self, owners: &[u32]) -> impl Iterator<Item = Slot> {
        let mut unsettled = self.unsettled.iter().peekable();
        (0..).zip(owners).map(move |(slot, owner)| {
            let origin = match unsettled.next_if(|found| found.slot == slot) {
                None => NO_BACKEND,
                Some(found) => match found.state {
                    State::Changing(origin) => origin,
                    State::Pinned if *owner == NO_BACKEND => NOBODY,
                    State::Pinned => *owner,
                },
            };
            Slot {
                owner: *owner,
                origin,
            }
        })
    }

    /// Whether all slots are clean.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.unsettled.is_empty()
    }

    /// Whether the datapath has the slots as they are here.
    #[must_use]
    pub fn is_written(&self) -> bool {
        self.is_written
    }

    /// The datapath has got the [`Self::ring`], and at `now` no packet is on its way that
    /// found another.
    pub fn written(&mut self, now: Duration) {
        if self.is_written {
            return;
        }
        self.is_written = true;
        for slot in &mut self.unsettled {
            if slot.since == NOT_YET {
                slot.since = now;
                self.oldest_change = self.oldest_change.min(now);
            }
        }
    }

    /// How many of `size` slots are in which state.
    #[must_use]
    pub fn counts(&self, size: u32) -> Counts {
        let is_pinned = |slot: &&Unsettled| slot.state == State::Pinned;
        let pinned = self.unsettled.iter().filter(is_pinned).count() as u32;
        let changing = self.unsettled.len() as u32 - pinned;
        Counts {
            clean: size - changing - pinned,
            changing,
            pinned,
        }
    }
}

impl Unsettled {
    fn pin(&mut self) {
        self.state = State::Pinned;
        self.since = NOT_YET;
    }
}
