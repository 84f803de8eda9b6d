//! The drain of a backend: it gets no new flows, those that it has go on, and at a
//! deadline it is over: those that are left are kept, or reset. Pure: time and flows are
//! arguments.
//!
//! ```text
//!             deadline, keep
//!           ┌───────────────> over
//! draining ─┤
//!           └───────────────> resetting
//!             deadline, reset
//! ```
//!
//! In each of them it is `drained` while no flow is left. What the datapath does with a packet
//! follows from the deadline alone ([`Drain::resets`]): a flow that nobody counts may still
//! speak. Another deadline leads back; so does the end of the drain, from anywhere.

use std::time::Duration;

use crate::state::{DrainPhase, DrainSpec, DrainStatus, OnDeadline};

/// A drain under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    spec: DrainSpec,
    began: Duration,
    /// How long it had been under way then, in the time of daemons before this one.
    before: Duration,
    /// The deadline had passed before.
    was_over: bool,
    at_start: u64,
    last: DrainPhase,
}

impl Drain {
    /// A drain that begins at `now`, of a backend with so many live flows.
    #[must_use]
    pub const fn new(spec: DrainSpec, now: Duration, flows: u64) -> Self {
        Self {
            spec,
            began: now,
            before: Duration::ZERO,
            was_over: false,
            at_start: flows,
            last: DrainPhase::Draining,
        }
    }

    /// A drain that a daemon before this one began, at a time that is not known, and whose
    /// deadline had passed. Another deadline counts from `now`.
    #[must_use]
    pub const fn over(spec: DrainSpec, now: Duration, flows: u64) -> Self {
        Self {
            was_over: true,
            ..Self::new(spec, now, flows)
        }
    }

    /// A drain that a daemon before this one began, so long ago, with so many live flows.
    #[must_use]
    pub const fn resumed(spec: DrainSpec, now: Duration, ago: Duration, flows: u64) -> Self {
        Self {
            before: ago,
            ..Self::new(spec, now, flows)
        }
    }

    /// How long ago it began, in the time of all daemons.
    #[must_use]
    pub const fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.began).saturating_add(self.before)
    }

    /// Live flows when it began.
    #[must_use]
    pub const fn flows_at_start(&self) -> u64 {
        self.at_start
    }

    /// Takes another deadline, which counts from the beginning like the first.
    pub fn change(&mut self, spec: DrainSpec) {
        self.was_over &= spec == self.spec;
        self.spec = spec;
    }

    /// How far it is with `flows` left.
    #[must_use]
    pub fn phase(&self, now: Duration, flows: u64) -> DrainPhase {
        if flows == 0 {
            DrainPhase::Drained
        } else if self.resets(now) {
            DrainPhase::Resetting
        } else if self.is_over(now) {
            DrainPhase::Over
        } else {
            DrainPhase::Draining
        }
    }

    /// Whether flows are reset with their next packet.
    #[must_use]
    pub fn resets(&self, now: Duration) -> bool {
        self.spec.on_deadline == OnDeadline::Reset && self.is_over(now)
    }

    /// When flows are reset from, if that is still to come.
    #[must_use]
    pub fn next(&self, now: Duration) -> Option<Duration> {
        let is_ahead = self.spec.on_deadline == OnDeadline::Reset && !self.is_over(now);
        self.deadline().filter(|_| is_ahead)
    }

    /// Looks how far it is, and says so if that is another phase than at the last look.
    pub fn step(&mut self, now: Duration, flows: u64) -> Option<DrainPhase> {
        let phase = self.phase(now, flows);
        (std::mem::replace(&mut self.last, phase) != phase).then_some(phase)
    }

    /// What there is to see of it.
    #[must_use]
    pub fn status(&self, now: Duration, flows: u64) -> DrainStatus {
        DrainStatus {
            phase: self.phase(now, flows),
            flows_at_start: self.at_start,
            flows_left: flows,
            seconds: self.age(now).as_secs(),
            // Rounded up, so that there is a second left until there is nothing.
            seconds_left: self
                .left(now)
                .map(|left| left.as_secs() + u64::from(left.subsec_nanos() != 0)),
            on_deadline: self.spec.on_deadline,
        }
    }

    fn deadline(&self) -> Option<Duration> {
        let rest = self.spec.deadline?.saturating_sub(self.before);
        Some(self.began.saturating_add(rest))
    }

    /// The time until the deadline.
    fn left(&self, now: Duration) -> Option<Duration> {
        let left = self.deadline()?.saturating_sub(now);
        Some(if self.was_over { Duration::ZERO } else { left })
    }

    fn is_over(&self, now: Duration) -> bool {
        self.left(now) == Some(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn spec(seconds: Option<u64>) -> DrainSpec {
        DrainSpec {
            deadline: seconds.map(at),
            on_deadline: OnDeadline::Keep,
        }
    }

    #[test]
    fn it_ends_with_the_last_flow_or_at_the_deadline() {
        let drain = Drain::new(spec(Some(60)), at(100), 5);
        assert_eq!(drain.phase(at(100), 5), DrainPhase::Draining);
        assert_eq!(drain.phase(at(159), 1), DrainPhase::Draining);
        assert_eq!(drain.phase(at(159), 0), DrainPhase::Drained);
        assert_eq!(drain.phase(at(160), 1), DrainPhase::Over);
        assert_eq!(drain.phase(at(160), 0), DrainPhase::Drained);
        let endless = Drain::new(spec(None), at(100), 5);
        assert_eq!(endless.phase(Duration::MAX, 1), DrainPhase::Draining);
    }

    #[test]
    fn each_phase_is_told_once() {
        let mut drain = Drain::new(spec(Some(60)), at(0), 5);
        assert_eq!(drain.step(at(1), 5), None);
        assert_eq!(drain.step(at(60), 5), Some(DrainPhase::Over));
        assert_eq!(drain.step(at(61), 4), None);
        assert_eq!(drain.step(at(62), 0), Some(DrainPhase::Drained));
        assert_eq!(drain.step(at(63), 0), None);
    }

    #[test]
    fn a_new_deadline_counts_from_the_beginning() {
        let mut drain = Drain::new(spec(Some(60)), at(100), 5);
        drain.change(spec(Some(90)));
        assert_eq!(drain.status(at(180), 5).seconds_left, Some(10));
        drain.change(spec(None));
        assert_eq!(drain.status(at(1_000), 5).seconds_left, None);
    }

    fn resetting(seconds: u64) -> DrainSpec {
        DrainSpec {
            on_deadline: OnDeadline::Reset,
            ..spec(Some(seconds))
        }
    }

    #[test]
    fn flows_are_reset_from_the_deadline_on_where_that_is_wanted() {
        let drain = Drain::new(resetting(60), at(100), 5);
        assert_eq!(drain.phase(at(159), 1), DrainPhase::Draining);
        assert_eq!(drain.next(at(159)), Some(at(160)));
        assert_eq!(drain.phase(at(160), 1), DrainPhase::Resetting);
        assert_eq!(drain.next(at(160)), None);
        // Also those that are not counted.
        assert_eq!(drain.phase(at(160), 0), DrainPhase::Drained);
        assert!(drain.resets(at(160)));
        let kept = Drain::new(spec(Some(60)), at(100), 5);
        assert!(!kept.resets(at(1_000)));
        assert_eq!(kept.next(at(100)), None);
    }

    #[test]
    fn a_later_deadline_or_another_end_lets_flows_go_on_again() {
        let mut drain = Drain::new(resetting(60), at(0), 5);
        assert!(drain.resets(at(60)));
        drain.change(resetting(90));
        assert!(!drain.resets(at(60)));
        assert_eq!(drain.step(at(60), 5), None);
        drain.change(resetting(60));
        assert_eq!(drain.step(at(60), 5), Some(DrainPhase::Resetting));
        drain.change(spec(Some(60)));
        assert_eq!(drain.step(at(60), 5), Some(DrainPhase::Over));
        drain.change(spec(None));
        assert_eq!(drain.step(at(60), 5), Some(DrainPhase::Draining));
    }

    #[test]
    fn what_was_over_before_a_restart_is_over() {
        let mut drain = Drain::over(resetting(60), at(1), 2);
        assert!(drain.resets(at(1)));
        assert_eq!(drain.next(at(1)), None);
        assert_eq!(drain.status(at(1), 2).seconds_left, Some(0));
        drain.change(resetting(60));
        assert!(drain.resets(at(1)));
        drain.change(resetting(50));
        assert_eq!(drain.next(at(1)), Some(at(51)));
    }

    #[test]
    fn a_restart_does_not_forget_when_it_began() {
        let drain = Drain::resumed(resetting(60), at(1), at(50), 9);
        assert_eq!((drain.age(at(3)), drain.flows_at_start()), (at(52), 9));
        assert_eq!(drain.next(at(1)), Some(at(11)));
        let status = drain.status(at(3), 2);
        assert_eq!((status.seconds, status.seconds_left), (52, Some(8)));
        assert!(drain.resets(at(11)));
        // The deadline came while no daemon ran.
        assert!(Drain::resumed(resetting(60), at(1), at(70), 9).resets(at(1)));
        // Another one counts from the beginning, too.
        let mut drain = drain;
        drain.change(resetting(90));
        assert_eq!(drain.next(at(11)), Some(at(41)));
    }

    /// Every phase, from every phase.
    #[test]
    fn phases_follow_from_the_deadline_and_the_flows() {
        let specs = [
            (spec(None), DrainPhase::Draining),
            (spec(Some(60)), DrainPhase::Draining),
            (spec(Some(10)), DrainPhase::Over),
            (resetting(60), DrainPhase::Draining),
            (resetting(10), DrainPhase::Resetting),
        ];
        let looks = specs
            .iter()
            .flat_map(|(spec, phase)| [(*spec, 0, DrainPhase::Drained), (*spec, 7, *phase)]);
        let looks: Vec<_> = looks.collect();
        for (spec, flows, phase) in &looks {
            let mut drain = Drain::new(*spec, at(100), 7);
            let first = (*phase != DrainPhase::Draining).then_some(*phase);
            assert_eq!(drain.step(at(130), *flows), first);
            for (other, flows, after) in &looks {
                drain.change(*other);
                let told = (after != phase).then_some(*after);
                assert_eq!(drain.step(at(130), *flows), told);
                assert_eq!(drain.resets(at(130)), *other == resetting(10));
                assert_eq!(drain.status(at(130), *flows).phase, *after);
                drain.change(*spec);
                drain.step(at(130), if *phase == DrainPhase::Drained { 0 } else { 7 });
            }
        }
    }

    proptest! {
        /// It is over exactly when the status says that no time is left.
        #[test]
        fn no_time_is_left_only_when_it_is_over(
            deadline in 0..10_000_u64,
            began in 0..10_000_u64,
            waited in 0..20_000_u64,
        ) {
            let deadline = Duration::from_millis(deadline);
            let began = Duration::from_millis(began);
            let spec = DrainSpec { deadline: Some(deadline), ..spec(None) };
            let status = Drain::new(spec, began, 1).status(began + Duration::from_millis(waited), 1);
            let is_over = status.phase == DrainPhase::Over;
            prop_assert_eq!(status.seconds_left == Some(0), is_over);
            prop_assert_eq!(is_over, u128::from(waited) >= deadline.as_millis());
        }
    }
}
