//! Every short history against what the words say, and long ones at random.

use std::time::Duration;

use proptest::{collection::vec, prelude::*};

use super::*;

/// Longest history of which every one is tried: 2 to the power of it.
const EXHAUSTIVE: u32 = 10;

fn outcome(success: bool) -> Result<(), ProbeError> {
    success.then_some(()).ok_or(ProbeError::Closed)
}

/// How many results at the end of the history are alike.
fn run(history: &[bool]) -> u32 {
    let last = history.last();
    let alike = history
        .iter()
        .rev()
        .take_while(|&result| Some(result) == last);
    u32::try_from(alike.count()).unwrap()
}

/// Whether a backend with this history is up, without a machine: what counts is the
/// latest result that decided.
fn expected_up(history: &[bool], rise: u32, fall: u32) -> bool {
    let decides = |end: &usize| {
        let needed = if history[end - 1] { rise } else { fall };
        *end == 1 || run(&history[..*end]) >= needed
    };
    let decisive = (1..=history.len()).rev().find(decides);
    decisive.is_some_and(|end| history[end - 1])
}

fn follow(history: &[bool], rise: u32, fall: u32) {
    let mut machine = Machine::new(rise, fall);
    assert!(!machine.is_up());
    assert_eq!(machine.status(), unknown());

    for end in 1..=history.len() {
        let (before, now) = (&history[..end - 1], &history[..end]);
        let success = history[end - 1];
        let was_up = expected_up(before, rise, fall);
        let up = expected_up(now, rise, fall);
        let transition = match (up, end == 1 || up != was_up) {
            (_, false) => None,
            (true, true) => Some(Transition::Up),
            (false, true) => Some(Transition::Down),
        };
        let context = format!("rise {rise}, fall {fall}, {now:?}");

        assert_eq!(
            machine.step(outcome(success), Duration::ZERO),
            transition,
            "{context}"
        );
        assert_eq!(machine.is_up(), up, "{context}");
        let status = HealthStatus {
            last: if success { "ok" } else { "failing" }.into(),
            error: (!success).then(|| ProbeError::Closed.to_string()),
            streak: run(now),
            held: None,
        };
        assert_eq!(machine.status(), status, "{context}");
    }
}

#[test]
fn every_short_history() {
    for rise in 1..=4 {
        for fall in 1..=4 {
            for bits in 0..1_u32 << EXHAUSTIVE {
                let history: Vec<bool> = (0..EXHAUSTIVE).map(|i| bits >> i & 1 == 1).collect();
                follow(&history, rise, fall);
            }
        }
    }
}

proptest! {
    #[test]
    fn long_histories(
        runs in vec((any::<bool>(), 1..60_usize), 0..12),
        rise in 1..50_u32,
        fall in 1..50_u32,
    ) {
        let history: Vec<bool> = runs
            .into_iter()
            .flat_map(|(success, length)| std::iter::repeat_n(success, length))
            .collect();
        follow(&history, rise, fall);
    }
}

#[test]
fn a_flap_shorter_than_fall_changes_nothing() {
    let mut machine = Machine::new(2, 3);
    assert_eq!(
        machine.step(outcome(true), Duration::ZERO),
        Some(Transition::Up)
    );
    for success in [false, false, true, false, false, true] {
        assert_eq!(machine.step(outcome(success), Duration::ZERO), None);
        assert!(machine.is_up());
    }
    for _ in 0..2 {
        assert_eq!(machine.step(outcome(false), Duration::ZERO), None);
    }
    assert_eq!(
        machine.step(outcome(false), Duration::ZERO),
        Some(Transition::Down)
    );
    assert_eq!(machine.step(outcome(true), Duration::ZERO), None);
    assert_eq!(
        machine.step(outcome(true), Duration::ZERO),
        Some(Transition::Up)
    );
}

#[test]
fn the_error_shown_is_the_latest() {
    let mut machine = Machine::new(1, 1);
    machine.step(Err(ProbeError::Status(503)), Duration::ZERO);
    machine.step(Err(ProbeError::Closed), Duration::ZERO);
    assert_eq!(machine.status().error, Some(ProbeError::Closed.to_string()));
    assert_eq!(machine.status().streak, 2);
}

#[test]
fn what_was_known_before_a_restart_is_not_changed_by_one_result() {
    let mut machine = Machine::new(2, 3).resumed(true);
    assert!(machine.is_up());
    assert_eq!(machine.step(outcome(false), Duration::ZERO), None);
    assert_eq!(machine.step(outcome(false), Duration::ZERO), None);
    let fallen = machine.step(outcome(false), Duration::ZERO);
    assert_eq!(fallen, Some(Transition::Down));

    let mut machine = Machine::new(2, 3).resumed(false);
    assert!(!machine.is_up());
    assert_eq!(machine.step(outcome(true), Duration::ZERO), None);
    let risen = machine.step(outcome(true), Duration::ZERO);
    assert_eq!(risen, Some(Transition::Up));
}

#[test]
fn who_does_not_serve_clients_is_down_until_its_checks_bring_it_back() {
    let mut machine = Machine::new(2, 3);
    let fail = |machine: &mut Machine| machine.fail(ProbeError::Closed, Duration::ZERO);
    assert_eq!(fail(&mut machine), None, "it is not up yet");
    machine.step(outcome(true), Duration::ZERO);
    assert_eq!(fail(&mut machine), Some(Transition::Down));
    assert_eq!(machine.status().streak, 1);
    assert_eq!(fail(&mut machine), None);
    assert_eq!(machine.step(outcome(true), Duration::ZERO), None);
    let risen = machine.step(outcome(true), Duration::ZERO);
    assert_eq!(risen, Some(Transition::Up));
}

#[test]
fn a_backend_that_flaps_is_held_down() {
    let second = Duration::from_secs(1);
    let damping = Damping::new(second, 60 * second);
    let mut machine = Machine::new(1, 1).damped(damping);
    machine.step(outcome(true), Duration::ZERO);
    assert_eq!(machine.step(outcome(false), second), Some(Transition::Down));
    assert_eq!(machine.status().held, Some(2));
    assert_eq!(machine.step(outcome(true), 2 * second), None);
    assert_eq!(machine.status().held, Some(1));
    assert_eq!(machine.status().last, "ok");
    assert_eq!(
        machine.step(outcome(true), 3 * second),
        Some(Transition::Up)
    );
    assert_eq!(machine.status().held, None);
    machine.fail(ProbeError::Closed, 4 * second);
    assert_eq!(machine.status().held, Some(4));
}
