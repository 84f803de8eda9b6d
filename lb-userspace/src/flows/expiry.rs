//! When a flow has been silent for too long. Pure: the time is an argument.

use std::time::Duration;

use lb_common::{
    CLOCK_TICK_MS,
    client::Client,
    flow::{FlowEntry, state},
    pin::Pin,
};

use crate::state::{Protocol, Timeouts};

/// The [`Timeouts`] of a service in ticks of the flow clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    is_tcp: bool,
    unreplied: u32,
    established: u32,
    closing: u32,
    /// Of the memory of a client; 0 where there is none.
    affinity: u32,
}

impl Lifetimes {
    /// The lifetimes of a service's flows. Durations beyond the clock's half turn
    /// (6.8 years) count as that.
    #[must_use]
    pub fn new(protocol: Protocol, timeouts: &Timeouts, affinity: Option<Duration>) -> Self {
        let is_tcp = protocol == Protocol::Tcp;
        Self {
            is_tcp,
            unreplied: ticks(timeouts.unreplied),
            established: ticks(if is_tcp {
                timeouts.tcp_established
            } else {
                timeouts.udp
            }),
            closing: ticks(timeouts.tcp_closing),
            affinity: affinity.map_or(0, ticks),
        }
    }

    /// How long a flow with this state may be silent.
    const fn limit(&self, flow_state: u32) -> u32 {
        let established = if self.is_tcp {
            state::CONFIRMED
        } else {
            state::CONFIRMED | state::REPLIED
        };
        if self.is_tcp && state::is_closing(flow_state) {
            self.closing
        } else if flow_state & established != 0 {
            self.established
        } else {
            self.unreplied
        }
    }

    /// Whether a flow that is not translated has been silent for too long.
    #[must_use]
    pub fn has_pin_expired(&self, pin: &Pin, now: u32) -> bool {
        // One that began earlier may be as quiet as it was.
        let joined = pin.state & state::JOINED != 0;
        let flow_state = pin.state | if joined { state::CONFIRMED } else { 0 };
        age(pin.last_seen, now) > self.limit(flow_state)
    }

    /// Whether a client is to be forgotten that was last seen then.
    #[must_use]
    pub fn is_forgotten(&self, client: &Client, now: u32) -> bool {
        self.affinity == 0 || age(client.last_seen, now) > self.affinity
    }

    /// Whether an entry alone, judged by its own state, has been silent for too long
    /// at tick `now`.
    #[must_use]
    pub fn is_silent(&self, entry: &FlowEntry, now: u32) -> bool {
        age(entry.last_seen, now) > self.limit(entry.state)
    }

    /// Whether a flow has been silent for too long in both directions. The state of
    /// the entry in `FLOWS_*` is the truth for both.
    #[must_use]
    pub fn has_expired(&self, flow: &FlowEntry, reply: Option<&FlowEntry>, now: u32) -> bool {
        let limit = self.limit(flow.state);
        age(flow.last_seen, now) > limit
            && reply.is_none_or(|reply| age(reply.last_seen, now) > limit)
    }
}

/// Ticks since a flow was last seen; 0 if that was after `now` was read. The clock wraps, so
/// that an age of more than half its range is one from the future.
pub(super) fn age(last_seen: u32, now: u32) -> u32 {
    let age = now.wrapping_sub(last_seen);
    if age > u32::MAX / 2 { 0 } else { age }
}

/// A time in ticks of the flow clock, half its range at most.
pub(crate) fn ticks(duration: Duration) -> u32 {
    let ticks = duration.as_millis() / u128::from(CLOCK_TICK_MS);
    u32::try_from(ticks).map_or(u32::MAX / 2, |ticks| ticks.min(u32::MAX / 2))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        unreplied: Duration::from_secs(30),
        tcp_established: Duration::from_secs(7_440),
        tcp_closing: Duration::from_secs(60),
        udp: Duration::from_secs(300),
    };

    fn entry(state: u32, last_seen: u32) -> FlowEntry {
        FlowEntry {
            state,
            last_seen,
            ..FlowEntry::default()
        }
    }

    /// A flow that last spoke at tick 0 is there at `seconds` and not a tick later.
    #[track_caller]
    fn lasts(protocol: Protocol, state: u32, seconds: u32) {
        let lifetimes = Lifetimes::new(protocol, &TIMEOUTS, None);
        let flow = entry(state, 0);
        assert!(!lifetimes.has_expired(&flow, Some(&flow), seconds * 10));
        assert!(lifetimes.has_expired(&flow, Some(&flow), seconds * 10 + 1));
    }

    #[test]
    fn each_state_has_its_timeout() {
        use state::{CONFIRMED, FIN_BACKEND, FIN_CLIENT, REPLIED, RST};
        lasts(Protocol::Tcp, 0, 30);
        lasts(Protocol::Tcp, REPLIED, 30);
        lasts(Protocol::Tcp, REPLIED | CONFIRMED, 7_440);
        lasts(Protocol::Tcp, REPLIED | FIN_CLIENT, 60);
        lasts(Protocol::Tcp, REPLIED | FIN_BACKEND, 60);
        lasts(Protocol::Tcp, RST, 60);
        lasts(Protocol::Udp, 0, 30);
        lasts(Protocol::Udp, REPLIED, 300);
    }

    #[test]
    fn either_direction_keeps_a_flow() {
        let lifetimes = Lifetimes::new(Protocol::Udp, &TIMEOUTS, None);
        let old = entry(state::REPLIED, 0);
        let young = entry(state::REPLIED, 9_000);
        assert!(!lifetimes.has_expired(&old, Some(&young), 9_001));
        assert!(!lifetimes.has_expired(&young, Some(&old), 9_001));
        assert!(lifetimes.has_expired(&old, Some(&old), 9_001));
        assert!(lifetimes.has_expired(&old, None, 9_001));
    }

    #[test]
    fn endless_timeouts_are_long() {
        let timeouts = Timeouts {
            udp: Duration::MAX,
            ..TIMEOUTS
        };
        let lifetimes = Lifetimes::new(Protocol::Udp, &timeouts, None);
        let flow = entry(state::REPLIED, 0);
        assert!(!lifetimes.has_expired(&flow, None, u32::MAX / 2));
    }

    proptest! {
        #[test]
        fn the_clock_may_wrap(start: u32, silent in 0..=3_000_u32) {
            let lifetimes = Lifetimes::new(Protocol::Udp, &TIMEOUTS, None);
            let flow = entry(state::REPLIED, start);
            prop_assert!(!lifetimes.has_expired(&flow, None, start.wrapping_add(silent)));
            prop_assert!(lifetimes.has_expired(&flow, None, start.wrapping_add(3_001)));
        }

        #[test]
        fn a_packet_after_the_clock_was_read_is_not_old(start: u32, ahead in 0..1_000_u32) {
            let lifetimes = Lifetimes::new(Protocol::Tcp, &TIMEOUTS, None);
            let flow = entry(0, start.wrapping_add(ahead));
            prop_assert!(!lifetimes.has_expired(&flow, None, start));
        }
    }
}
