//! Checks with probes that answer as the test wants, mostly on a paused clock: time
//! passes only while every task waits for it.

use std::{
    collections::BTreeMap,
    future,
    sync::atomic::{AtomicUsize, Ordering},
};

use proptest::prelude::*;
use tokio::{runtime, time};

use super::*;
use crate::{health::probe::within, state::Probe};

/// Timers fire at the next full millisecond.
const RESOLUTION: Duration = Duration::from_millis(1);
const INTERVAL: Duration = Duration::from_secs(10);

fn target(number: usize) -> Target {
    let text = format!("10.0.{}.{}:80", number / 256, number % 256);
    Target {
        service: "web".into(),
        backend: text.parse().unwrap(),
        address: text.parse().unwrap(),
        service_address: None,
        clients: None,
        spec: HealthSpec {
            interval: INTERVAL,
            timeout: Some(Duration::from_secs(1)),
            ..HealthSpec::new(Probe::Tcp)
        },
    }
}

/// Checks whose probes are `probing`, and what they report.
fn checks<F>(
    probing: impl Fn(Arc<Target>) -> F + Send + Sync + 'static,
) -> (Checks, mpsc::Receiver<Event>)
where
    F: Future<Output = Result<(), ProbeError>> + Send + 'static,
{
    let (events, receiver) = mpsc::channel(16);
    let prober: Prober = Arc::new(move |target| -> Probing { Box::pin(probing(target)) });
    let probers = Probers {
        check: Arc::clone(&prober),
        confirm: prober,
        all: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
        confirmations: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
    };
    let tasks = Handle::current();
    (Checks::with_probers(tasks, events, probers), receiver)
}

/// Asserts that nothing is reported any more and nobody is left who could: the
/// channel ends when the last task that sends has gone.
async fn assert_ended(mut events: mpsc::Receiver<Event>) {
    let ended = time::timeout(3 * INTERVAL, events.recv()).await;
    assert_eq!(ended.expect("the tasks should be gone"), None);
}

fn status(last: &str, streak: u32) -> HealthStatus {
    HealthStatus {
        last: last.into(),
        error: None,
        streak,
        held: None,
    }
}

/// How a backend is dead.
#[derive(Clone, Copy, Debug)]
enum Death {
    Refuses,
    Hangs,
}

proptest! {
    /// See the documentation of [`health`](crate::health).
    #[test]
    fn a_dead_backend_is_out_in_time(
        number in 0..10_000_usize,
        interval in 100..5_000_u64,
        timeout in 0.01..=1.0,
        latency in 0.0..0.99,
        died in 0.0..5.0,
        fall in 1..6_u32,
        jitter in 0..=HealthSpec::MAX_JITTER,
        death in prop_oneof![Just(Death::Refuses), Just(Death::Hangs)],
    ) {
        let mut target = target(number);
        let interval = Duration::from_millis(interval);
        // One check ends before the next begins.
        let timeout = interval.mul_f64(timeout * (1.0 - f64::from(jitter) / 100.0));
        let latency = timeout.mul_f64(latency).saturating_sub(RESOLUTION);
        target.spec = HealthSpec {
            interval,
            timeout: Some(timeout),
            fall,
            jitter,
            ..target.spec
        };
        let runtime = runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();

        let (last, after) = runtime.block_on(async {
            // After the first check has begun, which must succeed.
            let died = Instant::now() + RESOLUTION + interval.mul_f64(died);
            let (mut checks, mut events) = checks(move |target| async move {
                within(target.spec.timeout(), async {
                    if Instant::now() < died {
                        time::sleep(latency).await;
                        return Ok(());
                    }
                    match death {
                        Death::Refuses => Err(ProbeError::Closed),
                        Death::Hangs => future::pending().await,
                    }
                })
                .await
            });
            checks.set([target]);
            let mut last = events.recv().await.unwrap();
            assert!(last.up && last.changed, "{last:?}");
            while last.up {
                last = events.recv().await.unwrap();
            }
            (last, Instant::now().duration_since(died))
        });

        prop_assert!(last.changed);
        prop_assert_eq!(last.status.streak, fall);
        // One for the timer of the check, one for that of its timeout.
        let bound = interval * fall + timeout + 2 * RESOLUTION;
        prop_assert!(after <= bound, "{after:?} after it died, not {bound:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn first_checks_come_at_once_but_not_all_together() {
    const TARGETS: usize = 3 * FIRST_CHECKS + 1;
    let begin = Instant::now();
    let under_way = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let most_seen = Arc::clone(&most);
    let (mut checks, mut events) = checks(move |_| {
        let (under_way, most) = (Arc::clone(&under_way), Arc::clone(&most));
        async move {
            let now = under_way.fetch_add(1, Ordering::Relaxed) + 1;
            most.fetch_max(now, Ordering::Relaxed);
            time::sleep(Duration::from_secs(1)).await;
            under_way.fetch_sub(1, Ordering::Relaxed);
            Ok(())
        }
    });
    // So long an interval that no second check comes among the first ones.
    checks.set((0..TARGETS).map(|number| {
        let mut target = target(number);
        target.spec.interval = Duration::from_secs(1_000_000_000);
        target
    }));
    for _ in 0..TARGETS {
        let event = events.recv().await.unwrap();
        assert_eq!((event.up, event.changed), (true, true));
        assert_eq!(event.status, status("ok", 1));
    }
    assert_eq!(most_seen.load(Ordering::Relaxed), FIRST_CHECKS);
    assert_eq!(begin.elapsed(), Duration::from_secs(4));
}

#[tokio::test(start_paused = true)]
async fn checks_spread_over_the_interval() {
    const TARGETS: usize = 1_000;
    let begin = Instant::now();
    let begins = Arc::new(Mutex::new(BTreeMap::<BackendAddress, Vec<Duration>>::new()));
    let record = Arc::clone(&begins);
    let (mut checks, mut events) = checks(move |target| {
        let mut begins = record.lock().unwrap();
        begins
            .entry(target.backend)
            .or_default()
            .push(begin.elapsed());
        future::ready(Ok(()))
    });
    checks.set((0..TARGETS).map(target));
    while begin.elapsed() < 4 * INTERVAL {
        events.recv().await.unwrap();
    }

    let mut in_second = [0; 10];
    for begins in begins.lock().unwrap().values() {
        assert_eq!(begins[0], Duration::ZERO);
        assert!(begins[1] <= INTERVAL + RESOLUTION);
        assert!(begins.len() >= 4, "{begins:?}");
        for pair in begins[1..].windows(2) {
            assert_eq!(pair[1] - pair[0], INTERVAL);
        }
        in_second[begins[1].as_secs() as usize % 10] += 1;
    }
    // 100 in the mean, with a standard deviation of less than 10.
    for count in in_second {
        assert!((50..150).contains(&count), "{in_second:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_is_down_is_asked_at_its_own_interval() {
    let begin = Instant::now();
    let (mut checks, mut events) = checks(move |_| {
        let up = begin.elapsed() < 3 * INTERVAL || begin.elapsed() > 8 * INTERVAL;
        future::ready(up.then_some(()).ok_or(ProbeError::Closed))
    });
    let mut target = target(1);
    target.spec.down_interval = Some(INTERVAL / 10);
    checks.set([target]);
    let mut before = begin;
    let mut seen = [0; 2];
    let mut was_up = events.recv().await.unwrap().up;
    for number in 0..60 {
        let event = events.recv().await.unwrap();
        // The second check comes within the interval, to spread.
        if number > 0 {
            let expected = if was_up { INTERVAL } else { INTERVAL / 10 };
            assert_eq!(before.elapsed(), expected);
            seen[usize::from(was_up)] += 1;
        }
        (before, was_up) = (Instant::now(), event.up);
    }
    assert!(seen.iter().all(|count| *count > 3), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_target_goes_on() {
    let (mut checks, mut events) = checks(|_| future::ready(Ok(())));
    for round in 1..=5 {
        checks.set([target(1)]);
        let event = events.recv().await.unwrap();
        assert_eq!(event.status, status("ok", round));
        assert_eq!(event.changed, round == 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_target_begins_anew() {
    let (mut checks, mut events) = checks(|target| {
        let refused = target.address.port() == 81;
        future::ready(if refused {
            Err(ProbeError::Closed)
        } else {
            Ok(())
        })
    });
    checks.set([target(1)]);
    assert!(events.recv().await.unwrap().up);

    // Down at once, with one failure of three.
    let began = Instant::now();
    let mut elsewhere = target(1);
    elsewhere.address.set_port(81);
    checks.set([elsewhere]);
    let event = events.recv().await.unwrap();
    assert_eq!((event.up, event.changed), (false, true));
    assert_eq!(event.status.streak, 1);

    // Up at once, with one success of two.
    let mut slower = target(1);
    slower.spec.interval *= 2;
    checks.set([slower]);
    let event = events.recv().await.unwrap();
    assert_eq!((event.up, event.changed), (true, true));
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn targets_come_and_go() {
    let (mut checks, mut events) = checks(|_| future::ready(Ok(())));
    checks.set([target(1), target(2)]);
    let mut first = [events.recv().await.unwrap(), events.recv().await.unwrap()];
    first.sort_by_key(|event| event.backend);
    assert_eq!(
        first.map(|event| event.backend),
        [target(1).backend, target(2).backend]
    );

    checks.set([target(2), target(3)]);
    let event = events.recv().await.unwrap();
    assert_eq!((event.backend, event.status.streak), (target(3).backend, 1));
    let begin = Instant::now();
    while begin.elapsed() < 3 * INTERVAL {
        assert_ne!(events.recv().await.unwrap().backend, target(1).backend);
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_the_checks_stops_them() {
    let (mut checks, mut events) = checks(|_| future::ready(Ok(())));
    checks.set((0..3).map(target));
    for _ in 0..3 {
        events.recv().await.unwrap();
    }
    drop(checks);
    assert_ended(events).await;
}

/// The task is in the middle of a step on another thread when its target goes, so
/// that it cannot be stopped before it wants to report.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_went_reports_nothing() {
    let (begun, mut begins) = mpsc::channel(1);
    let (finish, finishes) = std::sync::mpsc::channel();
    let finishes = Mutex::new(finishes);
    let (mut checks, events) = checks(move |_| {
        // Only the first check waits; none should come after it.
        if begun.try_send(()).is_ok() {
            finishes.lock().unwrap().recv().unwrap();
        }
        future::ready(Ok(()))
    });
    checks.set([target(1)]);
    begins.recv().await.unwrap();
    begins.close();
    checks.set([]);
    finish.send(()).unwrap();
    drop(checks);
    assert_ended(events).await;
}

/// Nothing else runs on the thread of this test while it does not wait.
#[tokio::test]
async fn checks_go_on_while_their_owner_is_busy() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let (events, mut results) = mpsc::channel(16);
    let mut checks = Checks::new(events).unwrap();
    let mut target = target(11);
    target.address = listener.local_addr().unwrap();
    target.spec.interval = Duration::from_millis(100);
    checks.set([target]);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let mut checked = 0;
    while checked < 3 {
        checked += usize::from(listener.accept().is_ok());
        assert!(std::time::Instant::now() < deadline, "{checked} checks");
        std::thread::yield_now();
    }
    assert!(results.try_recv().unwrap().up);
}

#[tokio::test(start_paused = true)]
async fn a_doubt_that_is_confirmed_takes_a_backend_out_at_once() {
    let serves = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let served = Arc::clone(&serves);
    let (mut checks, mut events) = checks(move |_| {
        let serves = served.load(Ordering::Relaxed);
        future::ready(serves.then_some(()).ok_or(ProbeError::Closed))
    });
    checks.set([target(1)]);
    assert!(events.recv().await.unwrap().up);
    // Of one that serves, nothing is heard before its next check.
    checks.doubt("web", target(1).backend);
    checks.doubt("web", target(2).backend);
    time::sleep(RESOLUTION).await;
    assert!(events.try_recv().is_err());

    serves.store(false, Ordering::Relaxed);
    checks.doubt("web", target(1).backend);
    let begin = Instant::now();
    let event = events.recv().await.unwrap();
    assert_eq!((event.up, event.changed), (false, true));
    assert_eq!(begin.elapsed(), Duration::ZERO);
    // Its checks bring it back.
    serves.store(true, Ordering::Relaxed);
    assert!(!events.recv().await.unwrap().up);
    let event = events.recv().await.unwrap();
    assert_eq!((event.up, event.changed), (true, true));
}

#[tokio::test(start_paused = true)]
async fn a_doubt_does_not_wait_for_a_check_that_hangs() {
    let asked = Arc::new(AtomicUsize::new(0));
    let (mut checks, mut events) = checks(move |_| {
        let number = asked.fetch_add(1, Ordering::Relaxed);
        async move {
            match number {
                0 => Ok(()),
                1 => future::pending().await,
                _ => Err(ProbeError::Closed),
            }
        }
    });
    checks.set([target(1)]);
    assert!(events.recv().await.unwrap().up);
    // The second check hangs by now.
    time::sleep(INTERVAL + RESOLUTION).await;
    checks.doubt("web", target(1).backend);
    let event = time::timeout(RESOLUTION, events.recv()).await;
    assert!(!event.expect("at once").unwrap().up);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_was_up_before_is_not_down_by_its_first_check() {
    let (mut checks, mut events) = checks(|_| future::ready(Err(ProbeError::Closed)));
    checks.resume([target(1), target(2)], |target| {
        (target.backend == self::target(1).backend).then_some(true)
    });
    let mut first = [events.recv().await.unwrap(), events.recv().await.unwrap()];
    first.sort_by_key(|event| event.backend);
    assert_eq!(first.map(|event| event.up), [true, false]);
    let begin = Instant::now();
    loop {
        let event = events.recv().await.unwrap();
        if event.backend == target(1).backend && !event.up {
            assert_eq!(event.status.streak, 3);
            break;
        }
    }
    assert!(begin.elapsed() > INTERVAL);
}

#[tokio::test(start_paused = true)]
async fn no_more_checks_are_under_way_than_there_may_be() {
    const MOST: usize = 20;
    let under_way = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let most_seen = Arc::clone(&most);
    let (mut checks, mut events) = checks(move |_| {
        let (under_way, most) = (Arc::clone(&under_way), Arc::clone(&most));
        async move {
            let now = under_way.fetch_add(1, Ordering::Relaxed) + 1;
            most.fetch_max(now, Ordering::Relaxed);
            time::sleep(Duration::from_secs(1)).await;
            under_way.fetch_sub(1, Ordering::Relaxed);
            Ok(())
        }
    });
    checks.probers.all = Arc::new(Semaphore::new(MOST));
    checks.first = Arc::new(Semaphore::new(MOST / 2));
    // More than so many can do in an interval.
    checks.set((0..400).map(target));
    for _ in 0..1_200 {
        events.recv().await.unwrap();
    }
    let most = most_seen.load(Ordering::Relaxed);
    assert_eq!(most, MOST);
}
