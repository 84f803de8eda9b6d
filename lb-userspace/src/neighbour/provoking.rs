//! When the kernel is asked to resolve or confirm a neighbour.
//!
//! Packets that XDP forwards do not count as use of a neighbour entry, so the kernel
//! neither resolves it for them nor notices that it has become wrong.

use std::time::{Duration, Instant};

use super::facts::Neighbour;

/// From one try to the next while there is no answer: doubled each time, from the
/// first of these to the last. The kernel itself asks three times in the three
/// seconds after a try (`mcast_solicit`, `retrans_time_ms`).
const UNRESOLVED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// From one try to the next while an entry stays stale. After a try the kernel waits
/// five seconds for a confirmation from elsewhere (`delay_first_probe_time`) before
/// it asks, without a word about it.
const STALE: Duration = Duration::from_secs(10);

/// Tries for one neighbour.
#[derive(Debug, Default)]
pub(super) struct Provoking {
    /// When the next is due.
    due: Option<Instant>,
    /// When the last was.
    last: Option<Instant>,
    /// From the next to the one after it.
    pause: Duration,
}

impl Provoking {
    /// When the next try is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Takes in an answer about the neighbour and the one before it.
    pub(super) fn note(&mut self, before: Option<Neighbour>, after: Neighbour, now: Instant) {
        use Neighbour::{Stale, Unresolved, Valid};
        match (before, after) {
            (_, Valid(_)) => self.due = None,
            (Some(Unresolved), Unresolved) | (Some(Stale(_)), Stale(_)) => {}
            (_, Unresolved) => self.begin(UNRESOLVED.0, now),
            (_, Stale(_)) => self.begin(STALE, now),
        }
    }

    /// The link has changed: what is unresolved is tried again without delay.
    pub(super) fn again(&mut self, neighbour: Option<Neighbour>, now: Instant) {
        if neighbour == Some(Neighbour::Unresolved) {
            self.begin(UNRESOLVED.0, now);
        }
    }

    /// At once, but however often the entry changes, not more often than the kernel
    /// asks by itself.
    fn begin(&mut self, pause: Duration, now: Instant) {
        let earliest = self.last.map_or(now, |last| last + UNRESOLVED.0);
        self.due = Some(earliest.max(now));
        self.pause = pause;
    }

    /// Whether a try is due; if so, it counts as made.
    pub(super) fn fire(&mut self, now: Instant) -> bool {
        if self.due.is_none_or(|due| now < due) {
            return false;
        }
        self.last = Some(now);
        self.due = Some(now + self.pause);
        self.pause = (self.pause * 2).min(UNRESOLVED.1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    /// The seconds of `0..until` at which a try is made.
    fn tries(provoking: &mut Provoking, start: Instant, until: u64) -> Vec<u64> {
        (0..until)
            .filter(|second| provoking.fire(start + Duration::from_secs(*second)))
            .collect()
    }

    #[test]
    fn tries_for_an_unresolved_neighbour_back_off_to_ten_seconds() {
        let start = Instant::now();
        let mut provoking = Provoking::default();
        provoking.note(None, Neighbour::Unresolved, start);
        assert_eq!(
            tries(&mut provoking, start, 60),
            [0, 1, 3, 7, 15, 25, 35, 45, 55]
        );
    }

    #[test]
    fn another_answer_without_an_address_does_not_begin_anew() {
        let start = Instant::now();
        let mut provoking = Provoking::default();
        provoking.note(None, Neighbour::Unresolved, start);
        assert_eq!(tries(&mut provoking, start, 4), [0, 1, 3]);
        let later = start + Duration::from_secs(4);
        provoking.note(Some(Neighbour::Unresolved), Neighbour::Unresolved, later);
        assert_eq!(provoking.due(), Some(start + Duration::from_secs(7)));
    }

    #[test]
    fn a_valid_neighbour_is_left_alone_and_a_stale_one_is_confirmed_at_once() {
        let start = Instant::now();
        let mut provoking = Provoking::default();
        provoking.note(None, Neighbour::Valid(MAC), start);
        assert_eq!(tries(&mut provoking, start, 60), [0; 0]);
        provoking.note(Some(Neighbour::Valid(MAC)), Neighbour::Stale(MAC), start);
        assert_eq!(tries(&mut provoking, start, 30), [0, 10, 20]);
        provoking.note(Some(Neighbour::Stale(MAC)), Neighbour::Valid(MAC), start);
        assert_eq!(provoking.due(), None);
    }

    #[test]
    fn a_neighbour_that_is_lost_is_asked_for_at_once() {
        let start = Instant::now();
        let mut provoking = Provoking::default();
        provoking.note(Some(Neighbour::Valid(MAC)), Neighbour::Unresolved, start);
        assert_eq!(provoking.due(), Some(start));
    }

    #[test]
    fn a_neighbour_that_keeps_changing_is_tried_once_a_second_at_most() {
        let start = Instant::now();
        let mut provoking = Provoking::default();
        let states = [Neighbour::Unresolved, Neighbour::Stale(MAC)];
        let mut before = None;
        let made = (0..100)
            .filter(|tenth| {
                let now = start + Duration::from_millis(tenth * 100);
                let after = states[usize::from(tenth % 2 == 0)];
                provoking.note(before.replace(after), after, now);
                provoking.fire(now)
            })
            .count();
        assert_eq!(made, 10);
    }

    #[test]
    fn a_changed_link_brings_the_next_try_forward() {
        let start = Instant::now();
        let mut provoking = Provoking::default();
        provoking.note(None, Neighbour::Unresolved, start);
        tries(&mut provoking, start, 16);
        let now = start + Duration::from_secs(18);
        provoking.again(Some(Neighbour::Unresolved), now);
        assert_eq!(provoking.due(), Some(now));
    }
}
