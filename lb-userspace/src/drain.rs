//! The drain of a backend: it gets no new flows, those that it has go on, and at a
//! deadline it is over. Pure: time and flows are arguments.

use std::time::Duration;

use crate::state::{DrainPhase, DrainSpec, DrainStatus};

/// A drain under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    spec: DrainSpec,
    began: Duration,
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
            at_start: flows,
            last: DrainPhase::Draining,
        }
    }

    /// Takes another deadline, which counts from the beginning like the first.
    pub fn change(&mut self, spec: DrainSpec) {
        self.spec = spec;
    }

    /// How far it is with `flows` left.
    #[must_use]
    pub fn phase(&self, now: Duration, flows: u64) -> DrainPhase {
        if flows == 0 {
            DrainPhase::Drained
        } else if self.left(now) == Some(Duration::ZERO) {
            DrainPhase::Over
        } else {
            DrainPhase::Draining
        }
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
            seconds: now.saturating_sub(self.began).as_secs(),
            // Rounded up, so that there is a second left until there is nothing.
            seconds_left: self
                .left(now)
                .map(|left| left.as_secs() + u64::from(left.subsec_nanos() != 0)),
            on_deadline: self.spec.on_deadline,
        }
    }

    /// The time until the deadline.
    fn left(&self, now: Duration) -> Option<Duration> {
        let deadline = self.began.saturating_add(self.spec.deadline?);
        Some(deadline.saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::OnDeadline;

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
