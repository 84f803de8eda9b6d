//! From single results to the state of a backend.

use std::time::Duration;

use crate::state::HealthStatus;

use super::{Damping, ProbeError};

/// A backend came up or went down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// It can take flows.
    Up,
    /// It can not, any more or yet.
    Down,
}

/// Whether a backend is up, by the results of its checks.
///
/// ```text
///             success                 `fall` failures in a row
/// unknown ---------------> up ------------------------------------> down
///    |                      ^                                        ^ |
///    |                      +----------------------------------------|-+
///    |  failure                       `rise` successes in a row      |
///    +---------------------------------------------------------------+
/// ```
///
/// A backend that flaps is [held down](Damping) although its checks succeed. One that does not
/// serve clients goes down by that alone.
#[derive(Clone, Debug)]
pub struct Machine {
    rise: u32,
    fall: u32,
    state: Option<Transition>,
    last: Option<Result<(), ProbeError>>,
    streak: u32,
    damping: Damping,
    /// When the last result came.
    now: Duration,
}

impl Machine {
    /// A backend of which nothing is known. `rise` and `fall` are at least 1.
    #[must_use]
    pub const fn new(rise: u32, fall: u32) -> Self {
        Self {
            rise,
            fall,
            state: None,
            last: None,
            streak: 0,
            damping: Damping::new(Duration::ZERO, Duration::ZERO),
            now: Duration::ZERO,
        }
    }

    /// The same with damping.
    #[must_use]
    pub fn damped(self, damping: Damping) -> Self {
        Self { damping, ..self }
    }

    /// The same for a backend of which it is known whether it was up: its first result does
    /// not decide alone.
    #[must_use]
    pub fn resumed(self, was_up: bool) -> Self {
        let state = if was_up {
            Transition::Up
        } else {
            Transition::Down
        };
        Self {
            state: Some(state),
            ..self
        }
    }

    /// Takes the result of a check, and says whether it changed the state. The first
    /// result always does, where nothing was known before.
    pub fn step(&mut self, outcome: Result<(), ProbeError>, now: Duration) -> Option<Transition> {
        self.now = now;
        let success = outcome.is_ok();
        let goes_on = self
            .last
            .as_ref()
            .is_some_and(|last| last.is_ok() == success);
        self.streak = if goes_on {
            self.streak.saturating_add(1)
        } else {
            1
        };
        self.last = Some(outcome);

        let (towards, needed) = if success {
            (Transition::Up, self.rise)
        } else {
            (Transition::Down, self.fall)
        };
        let enough = self.state.is_none() || self.streak >= needed;
        let is_held = success && self.damping.held(now).is_some();
        if self.state == Some(towards) || !enough || is_held {
            return None;
        }
        Some(self.go(towards))
    }

    /// Clients get no connection: the backend goes down, whatever its checks have found.
    pub fn fail(&mut self, error: ProbeError, now: Duration) -> Option<Transition> {
        if !self.is_up() {
            return None;
        }
        self.now = now;
        self.last = Some(Err(error));
        self.streak = 1;
        Some(self.go(Transition::Down))
    }

    fn go(&mut self, towards: Transition) -> Transition {
        match towards {
            Transition::Up => self.damping.rise(self.now),
            Transition::Down => self.damping.fall(self.now),
        }
        self.state = Some(towards);
        towards
    }

    /// Whether the backend can take flows; not before the first result.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.state == Some(Transition::Up)
    }

    /// What the checks found, for people to read.
    #[must_use]
    pub fn status(&self) -> HealthStatus {
        let (last, error) = match &self.last {
            None => return unknown(),
            Some(Ok(())) => ("ok", None),
            Some(Err(error)) => ("failing", Some(error.to_string())),
        };
        HealthStatus {
            last: last.to_owned(),
            error,
            streak: self.streak,
            held: match self.is_up() {
                true => None,
                false => self.damping.held(self.now).map(whole_seconds),
            },
        }
    }
}

/// Seconds, none of which is over before the time is.
const fn whole_seconds(time: Duration) -> u64 {
    time.as_millis().div_ceil(1_000) as u64
}

/// The status of a backend before the first result.
#[must_use]
pub fn unknown() -> HealthStatus {
    HealthStatus {
        last: "unknown".to_owned(),
        error: None,
        streak: 0,
        held: None,
    }
}

#[cfg(test)]
mod tests;
