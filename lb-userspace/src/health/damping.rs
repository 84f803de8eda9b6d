//! How long a backend that flaps stays down although its checks succeed.

use std::time::Duration;

/// Holds a backend down longer each time that it falls soon after it has come up.
///
/// ```text
///            falls, having been up for less than `longest`
/// calm ------------------------------------------------------> held for 2 intervals
///   ^                                                             | the same again
///   |  falls, having been up for longer                           v
///   +------------------------------------------------------- 4, 8 ... at most `longest`
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damping {
    interval: Duration,
    longest: Duration,
    /// How often it has fallen soon.
    falls: u32,
    risen: Option<Duration>,
    held_until: Duration,
}

impl Damping {
    /// Times count in multiples of `interval`; none is longer than `longest`, and where that
    /// is zero there are none.
    #[must_use]
    pub const fn new(interval: Duration, longest: Duration) -> Self {
        Self {
            interval,
            longest,
            falls: 0,
            risen: None,
            held_until: Duration::ZERO,
        }
    }

    /// The backend comes up.
    pub const fn rise(&mut self, now: Duration) {
        self.risen = Some(now);
    }

    /// It goes down.
    pub fn fall(&mut self, now: Duration) {
        let is_soon = |risen: Duration| now.saturating_sub(risen) < self.longest;
        if !self.risen.take().is_some_and(is_soon) {
            self.falls = 0;
            return;
        }
        self.falls = self.falls.saturating_add(1);
        let times = 2_u32.saturating_pow(self.falls);
        self.held_until = now + self.interval.saturating_mul(times).min(self.longest);
    }

    /// How long it is still held; `None` where it is not.
    #[must_use]
    pub fn held(&self, now: Duration) -> Option<Duration> {
        (now < self.held_until).then(|| self.held_until - now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn each_fall_holds_twice_as_long_up_to_the_longest() {
        let mut damping = Damping::new(at(2), at(60));
        let mut now = at(100);
        for expected in [4, 8, 16, 32, 60, 60] {
            damping.rise(now);
            now += at(59);
            damping.fall(now);
            assert_eq!(damping.held(now), Some(at(expected)));
            now += at(expected);
            assert_eq!(damping.held(now), None);
        }
        // A calm time makes it as new.
        damping.rise(now);
        now += at(60);
        damping.fall(now);
        assert_eq!(damping.held(now), None);
        damping.rise(now);
        damping.fall(now);
        assert_eq!(damping.held(now), Some(at(4)));
    }

    #[test]
    fn a_backend_that_was_never_up_is_not_held() {
        let mut damping = Damping::new(at(2), at(60));
        for now in 0..10 {
            damping.fall(at(now));
            assert_eq!(damping.held(at(now)), None);
        }
    }

    #[test]
    fn without_a_longest_time_there_is_none() {
        let mut damping = Damping::default();
        for now in 0..10 {
            damping.rise(at(now));
            damping.fall(at(now));
            assert_eq!(damping.held(at(now)), None);
        }
    }

    #[test]
    fn any_number_of_falls_is_fine() {
        let mut damping = Damping::new(at(24 * 3_600), at(24 * 3_600));
        for _ in 0..100 {
            damping.rise(at(1));
            damping.fall(at(1));
        }
        assert_eq!(damping.held(at(1)), Some(at(24 * 3_600)));
    }
}
