//! Whom a service takes packets from, and how many new flows.
//!
//! A **list** is the set of prefixes of `SOURCES_*` with the id of the service in front. The
//! longest one that has a source decides; there is one of no bits for all others.
//!
//! A **bucket** is a word, the time at which it will be full: the theoretical arrival time
//! of the generic cell rate algorithm (ITU-T I.371, annex A; ATM Forum TM 4.1, section 4.4.2).
//! A flow takes a token by moving that time one interval on, which it may as long as it is
//! not further ahead of the clock than the tolerance. So a bucket of any size is one word,
//! and full where nobody has written it.
//!
//! The clock is the kernel's, which goes on while no daemon runs: `CLOCK_MONOTONIC`, in
//! [`TICKS_PER_NANOSECOND`]. It wraps after nine years, and whoever compares times knows that.
//! On a host that runs for half of these, a bucket that nobody has written is once found empty.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Units of the clock of buckets in a nanosecond: so fine that a rate of a thousand million
/// flows a second is exact to two in a hundred.
pub const TICKS_PER_NANOSECOND: u64 = 64;

/// The furthest that a bucket may be ahead of the clock: 2.2 years, half of what can be told
/// from the past, with as much room for the clock to run on.
pub const MAX_TOLERANCE: u64 = 1 << 62;

/// Verdict in `SOURCES_*`: packets of the source are taken.
pub const ALLOW: u32 = 1;
/// Verdict in `SOURCES_*`: packets of the source are dropped.
pub const DENY: u32 = 2;

/// Prefixes of each family in the lists of all services together, those that are to go and
/// those that come in their place.
pub const MAX_SOURCE_PREFIXES: u32 = 262_144;

/// Buckets of sources. Where there are more, the one not used for the longest time is
/// forgotten, and full again.
pub const MAX_SOURCE_BUCKETS: u32 = 131_072;

/// Value of `GUARDS`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Guard {
    /// A set of the constants of this type.
    pub flags: u32,
    /// [`BucketKey::generation`] of its sources' buckets.
    pub generation: u32,
    /// How many flows a source may begin.
    pub per_source: Rate,
    /// How many flows all together may begin.
    pub per_service: Rate,
}

impl Guard {
    /// The service has a list.
    pub const LISTED: u32 = 1;
}

/// How fast a bucket fills, and how much is in it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Rate {
    /// Time from token to token, in units of the clock; 0 for any number of tokens.
    pub interval: u64,
    /// How far a bucket may be ahead of the clock when a token is taken: the time that all
    /// tokens but one take to come. At most [`MAX_TOLERANCE`].
    pub tolerance: u64,
}

impl Rate {
    /// So many tokens a second, and so many at once; both at least 1.
    #[must_use]
    pub const fn new(rate: u32, burst: u32) -> Self {
        const SECOND: u64 = 1_000_000_000 * TICKS_PER_NANOSECOND;
        Self::every(SECOND / rate as u64, burst)
    }

    /// A token in each interval, which is at least 1, and so many at once.
    #[must_use]
    pub const fn every(interval: u64, burst: u32) -> Self {
        let tolerance = interval.saturating_mul(burst.saturating_sub(1) as u64);
        Self {
            interval,
            tolerance: if tolerance < MAX_TOLERANCE {
                tolerance
            } else {
                MAX_TOLERANCE
            },
        }
    }

    /// Takes a token out of a bucket that will be full at `full`. Returns when it will be full
    /// then.
    ///
    /// # Errors
    ///
    /// Where there is none: when the bucket will be full, which is another time where that
    /// was further ahead than this rate fills a bucket in.
    #[inline(always)]
    pub const fn take(self, full: u64, now: u64) -> Result<u64, u64> {
        let ahead = full.wrapping_sub(now);
        // From the past on, it is full.
        let ahead = if ahead as i64 <= 0 { 0 } else { ahead };
        if ahead <= self.tolerance {
            return Ok(now.wrapping_add(ahead).wrapping_add(self.interval));
        }
        // Another rate has left it so.
        let empty = self.tolerance + self.interval;
        Err(if ahead > empty {
            now.wrapping_add(empty)
        } else {
            full
        })
    }
}

/// Key of `SOURCES_V4`, matched from its first bit on.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct SourceKey4 {
    /// Id of the service, as it lies in memory: matched whole.
    pub service: u32,
    /// Source, network byte order.
    pub address: u32,
}

/// Key of `SOURCES_V6`, matched from its first bit on.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct SourceKey6 {
    /// Id of the service, as it lies in memory: matched whole.
    pub service: u32,
    /// Source, network byte order.
    pub address: [u32; 4],
}

/// Bits of a key before the address: the length of the prefix that is every source.
pub const ANY_SOURCE: u32 = u32::BITS;

/// Key of `SOURCE_BUCKETS`.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C, align(8))]
pub struct BucketKey {
    /// Id of the service.
    pub service: u32,
    /// How many services have had this id, as far as they had limits: buckets of another one
    /// are nobody's, and forgotten when their place is needed.
    pub generation: u32,
    /// The source as it lies in memory: the address of IPv4, the first 64 bits of that of
    /// IPv6, since whoever has one address of such a prefix has them all.
    pub source: u64,
}

const _: () = assert!(size_of::<Guard>() == 40);
const _: () = assert!(size_of::<SourceKey4>() == 8);
const _: () = assert!(size_of::<SourceKey6>() == 20);
const _: () = assert!(size_of::<BucketKey>() == 16);

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    /// Tokens that there are at a time.
    fn count(rate: Rate, full: &mut u64, now: u64) -> usize {
        let mut taken = 0;
        while let Ok(next) = rate.take(*full, now) {
            *full = next;
            taken += 1;
        }
        taken
    }

    #[test]
    fn a_bucket_holds_a_burst_and_fills_at_its_rate() {
        const SECOND: u64 = 1_000_000_000 * TICKS_PER_NANOSECOND;
        for (rate, burst) in [(1, 1), (1, 5), (10, 100), (1_000, 1), (3, 7)] {
            let bucket = Rate::new(rate, burst);
            // Nobody has written it, and the clock stands anywhere.
            for start in [SECOND, 1 << 62, u64::MAX - SECOND] {
                let (mut full, mut now) = (0, start);
                if start >= 1 << 63 {
                    full = start;
                }
                assert_eq!(count(bucket, &mut full, now), burst as usize);
                assert_eq!(count(bucket, &mut full, now), 0);
                now = now.wrapping_add(bucket.interval - 1);
                assert_eq!(count(bucket, &mut full, now), 0, "{rate} {burst}");
                now = now.wrapping_add(1);
                assert_eq!(count(bucket, &mut full, now), 1, "{rate} {burst}");
                now = now.wrapping_add(bucket.interval * 2);
                assert_eq!(count(bucket, &mut full, now), 2.min(burst as usize));
                now = now.wrapping_add(bucket.interval * u64::from(burst) * 3);
                assert_eq!(count(bucket, &mut full, now), burst as usize);
            }
        }
    }

    #[test]
    fn rates_are_what_they_say() {
        for (rate, least, most) in [
            (1, 1, 1),
            (1_000, 1_000, 1_000),
            (1_000_000, 1_000_000, 1_000_000),
            (1_000_000_000, 1_000_000_000, 1_020_000_000),
        ] {
            let interval = Rate::new(rate, 1).interval;
            let real = 1_000_000_000 * TICKS_PER_NANOSECOND / interval;
            assert!((least..=most).contains(&real), "{rate}: {real}");
        }
        assert_eq!(Rate::new(1, u32::MAX).tolerance, MAX_TOLERANCE);
        assert!(Rate::new(u32::MAX, u32::MAX).interval > 0);
    }

    /// A bucket that a slow rate has emptied is not empty for as long with a fast one.
    #[test]
    fn another_rate_finds_no_debts_of_the_old_one() {
        let (slow, fast) = (Rate::new(1, 3_600), Rate::new(1_000, 10));
        let now = 1 << 50;
        let mut full = 0;
        assert_eq!(count(slow, &mut full, now), 3_600);
        let left = fast.take(full, now).unwrap_err();
        assert_eq!(left, now + fast.interval * 10);
        assert_eq!(fast.take(left, now), Err(left));
        let later = now + fast.interval;
        assert_eq!(count(fast, &mut left.clone(), later), 1);
    }

    #[test]
    fn a_token_that_is_given_back_is_there_again() {
        let rate = Rate::new(1, 3);
        let (mut full, now) = (0, 1 << 50);
        assert_eq!(count(rate, &mut full, now), 3);
        full -= rate.interval;
        assert_eq!(count(rate, &mut full, now), 1);
    }
}
