//! What starts the daemon and watches it, if it is systemd (sd_notify(3)), and what the process
//! may do from then on.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use sd_notify::NotifyState;

use crate::{daemon, privileges};

/// Tells systemd how the daemon is. Where nobody listens, nothing is told.
pub(super) struct Supervisor {
    /// How often it wants to hear that the daemon lives; `None` where it does not.
    interval: Option<Duration>,
    told: Instant,
}

impl Supervisor {
    pub(super) fn new() -> Self {
        let mut microseconds = 0;
        let is_watched = sd_notify::watchdog_enabled(false, &mut microseconds);
        Self {
            // Twice in the time that it waits.
            interval: is_watched.then(|| Duration::from_micros(microseconds / 2)),
            told: Instant::now(),
        }
    }

    fn tell(states: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(false, states) {
            tracing::debug!(%error, "the service manager cannot be told");
        }
    }
}

impl daemon::Supervisor for Supervisor {
    fn loaded(&mut self) -> anyhow::Result<()> {
        privileges::reduce().context("giving up the rights that are not needed any more")
    }

    fn ready(&mut self) {
        Self::tell(&[NotifyState::Ready]);
    }

    fn alive(&mut self) {
        if self
            .interval
            .is_some_and(|interval| self.told.elapsed() >= interval)
        {
            self.told = Instant::now();
            Self::tell(&[NotifyState::Watchdog]);
        }
    }

    fn stopping(&mut self) {
        Self::tell(&[NotifyState::Stopping]);
    }
}
