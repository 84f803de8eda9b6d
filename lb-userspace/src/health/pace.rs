//! When a check begins.

use std::time::Duration;

use tokio::time::Instant;

/// The beat of the checks of one backend: a late one leaves the next where it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    due: Instant,
}

impl Pace {
    /// The second check begins then.
    pub(super) const fn new(second: Instant) -> Self {
        Self { due: second }
    }

    /// When the next one begins: `gap` after the one before was to begin. Of those whose
    /// time has passed all but the last are left out.
    pub(super) fn next(&mut self, gap: Duration, now: Instant) -> Instant {
        self.due += gap;
        let late = now.saturating_duration_since(self.due);
        let missed = late.as_nanos().checked_div(gap.as_nanos()).unwrap_or(0);
        self.due += gap * u32::try_from(missed).unwrap_or(u32::MAX);
        self.due
    }
}

/// The time to the next check: the interval, or less by up to `jitter` percent of it, as
/// `share`, from 0 to 1, says. So no more than the interval ever passes between two.
pub(super) fn gap(interval: Duration, jitter: u32, share: f64) -> Duration {
    let most = interval.mul_f64(f64::from(jitter) / 100.0);
    interval - most.mul_f64(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_late_check_leaves_the_next_where_they_were() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        let mut next = |now: f64| {
            let due = pace.next(SECOND, begin + SECOND.mul_f64(now));
            (due - begin).as_secs_f64()
        };
        assert_eq!(next(0.1), 1.0);
        // It began in time and took half a second.
        assert_eq!(next(1.5), 2.0);
        // It took longer than it should have.
        assert_eq!(next(3.2), 3.0);
        // Nothing ran for a while.
        assert_eq!(next(7.9), 7.0);
        assert_eq!(next(7.9), 8.0);
    }

    #[test]
    fn jitter_makes_the_time_shorter_alone() {
        assert_eq!(gap(SECOND, 0, 0.9), SECOND);
        assert_eq!(gap(SECOND, 50, 0.0), SECOND);
        assert_eq!(gap(SECOND, 50, 1.0), SECOND / 2);
        assert_eq!(gap(SECOND, 10, 0.5).as_millis(), 950);
    }
}
