//! Passive checks: which backends are doubted, from what the datapath counts of the
//! connections that clients begin.
//!
//! A doubt is no proof. Clients' packets can be forged, and so can be what seem to be answers
//! of backends: a SYN with a wrong checksum is never answered, and whoever forged it may send
//! an RST in the backend's name. So all that follows from a doubt is a connection of our own,
//! to the port that clients use, at once: nobody but the backend decides how that ends. And
//! a flood of SYNs that nobody answers says nothing about any backend, so that one is doubted
//! only while another one of its service does answer.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use lb_common::outcome::Outcomes;

/// How often the counts are to be looked at.
pub const SAMPLING: Duration = Duration::from_millis(25);
/// RSTs that make a doubt, without one connection that is accepted meanwhile.
const REFUSALS: u64 = 3;
/// SYNs without an answer that make one, likewise.
const SILENT: u64 = 8;
/// How long a SYN may wait for its answer. Backends are near.
const PATIENCE: Duration = Duration::from_millis(200);
/// Where no answer is seen: SYNs that make a doubt, while no connection goes on.
const STANDING: u64 = 5;
/// How long that has to last.
const STANDSTILL: Duration = Duration::from_millis(50);
/// What happened longer ago than this makes no doubt together with what happens now.
const MEMORY: Duration = Duration::from_secs(2);
/// How lately another backend of the service must have answered.
const LATELY: Duration = Duration::from_secs(1);
/// How long after a doubt there is no other about the same backend.
const REST: Duration = Duration::from_secs(1);

/// A backend that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Id of the backend.
    pub backend: u32,
    /// Id of its service.
    pub service: u32,
    /// Whether the datapath sees what the backend answers.
    pub is_answer_seen: bool,
}

/// What is watched of all backends. Time is an argument.
#[derive(Debug, Default)]
pub struct Watch {
    backends: HashMap<u32, Seen>,
}

/// What was seen of a backend.
#[derive(Debug)]
struct Seen {
    counts: Outcomes,
    /// Since when no connection was accepted, or went on, though some were begun.
    since: Option<Duration>,
    refused: u64,
    /// SYNs that may still be answered in time: when they were seen, and how many.
    waiting: VecDeque<(Duration, u64)>,
    /// SYNs whose time is over.
    silent: u64,
    /// Where no answer is seen: SYNs, and packets of connections that went on, when the latter
    /// were last counted.
    counted: Option<(Duration, u64, u64)>,
    /// When a connection was last accepted, or last went on.
    answered: Option<Duration>,
    rests_until: Duration,
}

impl Seen {
    fn new(counts: Outcomes) -> Self {
        Self {
            counts,
            since: None,
            refused: 0,
            waiting: VecDeque::new(),
            silent: 0,
            counted: None,
            answered: None,
            rests_until: Duration::ZERO,
        }
    }

    /// All is well, or is to be seen anew.
    fn forget(&mut self) {
        self.since = None;
        self.refused = 0;
        self.waiting.clear();
        self.silent = 0;
    }

    /// Takes the counts where answers are seen. Returns whether they make a doubt.
    fn see(&mut self, counts: Outcomes, now: Duration) -> bool {
        let new = counts.since(std::mem::replace(&mut self.counts, counts));
        if new.answered > 0 {
            self.forget();
            self.answered = Some(now);
            return false;
        }
        if new.begun > 0 || new.refused > 0 {
            let since = *self.since.get_or_insert(now);
            if now.saturating_sub(since) > MEMORY {
                self.forget();
                self.since = Some(now);
            }
            self.refused += new.refused;
            if new.begun > 0 {
                self.waiting.push_back((now, new.begun));
            }
        }
        while let Some((seen, begun)) = self.waiting.front().copied()
            && now.saturating_sub(seen) >= PATIENCE
        {
            self.waiting.pop_front();
            self.silent += begun;
        }
        self.refused >= REFUSALS || self.silent >= SILENT
    }

    /// The same where none are; `going_on` counts packets of clients that are neither the
    /// first nor the last of their connections.
    fn see_clients(
        &mut self,
        counts: Outcomes,
        going_on: impl FnOnce() -> Option<u64>,
        now: Duration,
    ) -> bool {
        self.counts = counts;
        // To count them costs a system call: not before there is a reason.
        if let Some((then, begun, _)) = self.counted
            && (counts.begun.wrapping_sub(begun) < STANDING
                || now.saturating_sub(then) < STANDSTILL)
        {
            return false;
        }
        let Some(going_on) = going_on() else {
            return false;
        };
        let before = self.counted.replace((now, counts.begun, going_on));
        let Some((then, begun, before)) = before else {
            return false;
        };
        // SYNs alone came, if the same SYNs are all that the packets are more.
        if going_on > before {
            self.answered = Some(now);
            return false;
        }
        now.saturating_sub(then) <= MEMORY && counts.begun.wrapping_sub(begun) >= STANDING
    }
}

impl Watch {
    /// Looks at the counts of all backends that are watched. Those that are doubted are to
    /// be checked at once. `going_on` counts packets of connections to a backend that go on,
    /// asked only where the datapath sees no answers.
    pub fn look(
        &mut self,
        now: Duration,
        watched: &[Watched],
        counts: impl Fn(u32) -> Outcomes,
        going_on: impl Fn(u32) -> Option<u64>,
    ) -> Vec<u32> {
        if self.backends.len() > watched.len() {
            let ids: std::collections::HashSet<u32> =
                watched.iter().map(|watched| watched.backend).collect();
            self.backends.retain(|id, _| ids.contains(id));
        }
        let mut doubted = Vec::new();
        for one in watched {
            let counts = counts(one.backend);
            let Some(seen) = self.backends.get_mut(&one.backend) else {
                self.backends.insert(one.backend, Seen::new(counts));
                continue;
            };
            let is_doubted = if one.is_answer_seen {
                seen.see(counts, now)
            } else {
                seen.see_clients(counts, || going_on(one.backend), now)
            };
            if is_doubted && seen.rests_until <= now {
                doubted.push(*one);
            }
        }
        if doubted.is_empty() {
            return Vec::new();
        }
        let answers = |one: &Watched| {
            watched.iter().any(|other| {
                let seen = self.backends.get(&other.backend);
                let answered = seen.and_then(|seen| seen.answered);
                other.service == one.service
                    && other.backend != one.backend
                    && answered.is_some_and(|then| now.saturating_sub(then) <= LATELY)
            })
        };
        doubted.retain(answers);
        for one in &doubted {
            if let Some(seen) = self.backends.get_mut(&one.backend) {
                seen.forget();
                seen.rests_until = now + REST;
            }
        }
        doubted.into_iter().map(|one| one.backend).collect()
    }
}

#[cfg(test)]
mod tests;
