//! Slow start: a backend that comes back gets its share of new flows in steps. Pure: time
//! is an argument.

use std::time::Duration;

use crate::state::{SlowStartCurve, SlowStartSpec};

/// Steps of a ramp: each is a ring that must be built, and moves flows.
pub const STEPS: u32 = 16;
/// The share of a backend that has its whole weight.
pub const WHOLE: u32 = STEPS * STEPS;

/// What there is to be seen of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing is known of it yet.
    Unknown,
    /// It takes no new flows: its check failed, it is drained, or has no weight.
    Out,
    /// It takes new flows.
    Serving,
}

/// How a backend got where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warmth {
    /// When it serves, it serves with its whole weight.
    Warm,
    /// When it serves, its ramp begins.
    Cold,
    /// Its ramp began then.
    Ramping(Duration),
}

impl Warmth {
    /// What follows from what is seen of the backend at `now`.
    #[must_use]
    pub fn step(self, seen: Seen, spec: Option<SlowStartSpec>, now: Duration) -> Self {
        match (self, seen) {
            (_, Seen::Out) => Self::Cold,
            (before, Seen::Unknown) => before,
            (Self::Warm, Seen::Serving) => Self::Warm,
            (Self::Cold, Seen::Serving) => Self::Ramping(now).until(spec, now),
            (ramping, Seen::Serving) => ramping.until(spec, now),
        }
    }

    /// A ramp that has come to its end leaves the backend warm.
    fn until(self, spec: Option<SlowStartSpec>, now: Duration) -> Self {
        match spec {
            Some(spec) if self.number(spec, now) < STEPS => self,
            _ => Self::Warm,
        }
    }

    /// The step of the ramp at `now`, from 1 on.
    fn number(self, spec: SlowStartSpec, now: Duration) -> u32 {
        let Self::Ramping(began) = self else {
            return STEPS;
        };
        let passed = now.saturating_sub(began).as_nanos() * u128::from(STEPS);
        let steps = passed.checked_div(spec.window.as_nanos());
        let steps = steps.and_then(|steps| u32::try_from(steps).ok());
        steps.map_or(STEPS, |steps| steps.saturating_add(1).min(STEPS))
    }

    /// The part of its weight, of [`WHOLE`], that the backend has at `now`.
    #[must_use]
    pub fn share(self, spec: Option<SlowStartSpec>, now: Duration) -> u32 {
        let Some(spec) = spec else {
            return WHOLE;
        };
        let step = self.number(spec, now);
        match spec.curve {
            SlowStartCurve::Linear => step * STEPS,
            SlowStartCurve::Quadratic => step * step,
        }
    }

    /// When the share is another next.
    #[must_use]
    pub fn next(self, spec: Option<SlowStartSpec>, now: Duration) -> Option<Duration> {
        let (Self::Ramping(began), Some(spec)) = (self, spec) else {
            return None;
        };
        let step = self.number(spec, now);
        let part = spec.window.as_nanos() * u128::from(step);
        // Rounded up: a look at this time must not come too early.
        let after = u64::try_from(part.div_ceil(u128::from(STEPS))).ok()?;
        (step < STEPS).then(|| began.saturating_add(Duration::from_nanos(after)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const LINEAR: Option<SlowStartSpec> = Some(SlowStartSpec {
        window: at(160),
        curve: SlowStartCurve::Linear,
    });
    const QUADRATIC: Option<SlowStartSpec> = Some(SlowStartSpec {
        window: at(160),
        curve: SlowStartCurve::Quadratic,
    });

    #[test]
    fn a_backend_that_comes_back_ramps_up() {
        let cold = Warmth::Warm.step(Seen::Out, LINEAR, at(0));
        assert_eq!(cold, Warmth::Cold);
        let ramp = cold.step(Seen::Serving, LINEAR, at(100));
        let shares = |spec| [100, 109, 110, 245, 249, 250, 300].map(|s| ramp.share(spec, at(s)));
        assert_eq!(shares(LINEAR), [16, 16, 32, 240, 240, 256, 256]);
        assert_eq!(shares(QUADRATIC), [1, 1, 4, 225, 225, 256, 256]);
        assert_eq!(ramp.step(Seen::Serving, LINEAR, at(249)), ramp);
        assert_eq!(ramp.step(Seen::Serving, LINEAR, at(250)), Warmth::Warm);
        assert_eq!(ramp.step(Seen::Out, LINEAR, at(200)), Warmth::Cold);
    }

    #[test]
    fn who_was_there_from_the_beginning_is_warm() {
        let new = Warmth::Warm.step(Seen::Unknown, LINEAR, at(0));
        let serving = new.step(Seen::Serving, LINEAR, at(1));
        assert_eq!(serving, Warmth::Warm);
        assert_eq!(serving.share(LINEAR, at(1)), WHOLE);
    }

    #[test]
    fn without_a_window_nothing_ramps() {
        let back = Warmth::Cold.step(Seen::Serving, None, at(1));
        assert_eq!(back, Warmth::Warm);
        assert_eq!(Warmth::Ramping(at(0)).share(None, at(0)), WHOLE);
        let taken_back = Warmth::Ramping(at(0)).step(Seen::Serving, None, at(1));
        assert_eq!(taken_back, Warmth::Warm);
    }

    fn any_spec() -> impl Strategy<Value = SlowStartSpec> {
        let curves = select(vec![SlowStartCurve::Linear, SlowStartCurve::Quadratic]);
        (1..100_000_u64, curves).prop_map(|(millis, curve)| SlowStartSpec {
            window: Duration::from_millis(millis),
            curve,
        })
    }

    proptest! {
        /// Whoever looks at the times that `next` names sees every step, each larger than
        /// the one before, and the end within the window.
        #[test]
        fn a_ramp_has_few_steps_and_an_end(spec in any_spec(), began in 0..100_000_u64) {
            let began = Duration::from_millis(began);
            let (window, spec) = (spec.window, Some(spec));
            let mut warmth = Warmth::Cold.step(Seen::Serving, spec, began);
            let (mut now, mut shares) = (began, vec![warmth.share(spec, began)]);
            while let Some(next) = warmth.next(spec, now) {
                prop_assert!(next > now);
                let before = next - Duration::from_nanos(1);
                prop_assert_eq!(Some(&warmth.share(spec, before)), shares.last());
                now = next;
                warmth = warmth.step(Seen::Serving, spec, now);
                shares.push(warmth.share(spec, now));
            }
            prop_assert!(shares.is_sorted_by(|a, b| a < b), "{:?}", shares);
            prop_assert_eq!(shares.len(), STEPS as usize);
            prop_assert_eq!(shares.last(), Some(&WHOLE));
            prop_assert_eq!(warmth, Warmth::Warm);
            prop_assert!(now - began <= window);
        }

        /// Whatever happens, a backend that serves has a share, and only one that was out
        /// lately has less than the whole.
        #[test]
        fn only_who_was_out_has_less(
            spec in any_spec(),
            events in vec((0..50_000_u64, select(vec![Seen::Unknown, Seen::Out, Seen::Serving])), 1..40),
        ) {
            let (window, spec) = (spec.window, Some(spec));
            let mut warmth = Warmth::Warm;
            let (mut now, mut out_at) = (Duration::ZERO, None);
            for (millis, seen) in events {
                now += Duration::from_millis(millis);
                let was_cold = warmth == Warmth::Cold;
                warmth = warmth.step(seen, spec, now);
                if seen == Seen::Out || was_cold {
                    out_at = Some(now);
                }
                if seen == Seen::Serving {
                    let share = warmth.share(spec, now);
                    prop_assert!((1..=WHOLE).contains(&share));
                    let lately = out_at.is_some_and(|out| now < out + window);
                    prop_assert!(share == WHOLE || lately);
                }
            }
        }
    }
}
