//! From single results to the state of a backend.

use crate::state::HealthStatus;

use super::ProbeError;

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
#[derive(Clone, Debug)]
pub struct Machine {
    rise: u32,
    fall: u32,
    state: Option<Transition>,
    last: Option<Result<(), ProbeError>>,
    streak: u32,
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
        }
    }

    /// Takes the result of a check, and says whether it changed the state. The first
    /// result always does.
    pub fn step(&mut self, outcome: Result<(), ProbeError>) -> Option<Transition> {
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
        if self.state == Some(towards) || !enough {
            return None;
        }
        self.state = Some(towards);
        self.state
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
        }
    }
}

/// The status of a backend before the first result.
#[must_use]
pub fn unknown() -> HealthStatus {
    HealthStatus {
        last: "unknown".to_owned(),
        error: None,
        streak: 0,
    }
}

#[cfg(test)]
mod tests;
