//! Runs the checks of all backends, each in a task of its own.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    io, mem,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::{self, Handle, Runtime},
    sync::{Semaphore, mpsc},
    task::AbortHandle,
    time::{Instant, sleep_until},
};

use crate::state::{BackendAddress, HealthSpec, HealthStatus};

use super::{
    Machine, ProbeError,
    pace::{self, Pace},
    probe,
    probe::random,
};

/// Most first checks that are under way at a time, so that a configuration of
/// thousands of backends does not open as many connections in one moment.
const FIRST_CHECKS: usize = 256;

/// A backend that is to be checked. It is named by its service and its address there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name of the service.
    pub service: String,
    /// The backend's address in the service.
    pub backend: BackendAddress,
    /// Where the check connects to; the port is 0 where it needs none.
    pub address: SocketAddr,
    /// What that stands for, where it is an address of [`lb_common::probe`]: the service
    /// address, on this backend.
    pub service_address: Option<SocketAddr>,
    /// How it is checked.
    pub spec: HealthSpec,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Name of the service.
    pub service: String,
    /// The backend's address in the service.
    pub backend: BackendAddress,
    /// Whether the backend can take flows.
    pub up: bool,
    /// Whether this check changed that; the first check of a target always does,
    /// from unknown.
    pub changed: bool,
    /// The result.
    pub status: HealthStatus,
}

impl Target {
    /// What is asked, as those know it who are asked.
    #[must_use]
    pub fn name(&self) -> SocketAddr {
        self.service_address.unwrap_or(self.address)
    }
}

type Probing = Pin<Box<dyn Future<Output = Result<(), ProbeError>> + Send>>;
type Prober = Arc<dyn Fn(Arc<Target>) -> Probing + Send + Sync>;

/// The checks that run. Dropping this stops them all.
pub struct Checks {
    tasks: Handle,
    _own: Option<Own>,
    events: mpsc::Sender<Event>,
    prober: Prober,
    first: Arc<Semaphore>,
    running: HashMap<(String, BackendAddress), Check>,
}

impl Checks {
    /// No checks yet. Those to come send an [`Event`] after every result; where the
    /// channel is full they wait.
    ///
    /// They run on a thread of their own: a check must not be late, and a backend not be
    /// taken out for it, because the daemon is busy.
    ///
    /// # Errors
    ///
    /// When no thread can be started.
    pub fn new(events: mpsc::Sender<Event>) -> io::Result<Self> {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("health")
            .enable_all()
            .build()?;
        let prober =
            |target: Arc<Target>| -> Probing { Box::pin(async move { probe(&target).await }) };
        let tasks = runtime.handle().clone();
        Ok(Self {
            _own: Some(Own(Some(runtime))),
            ..Self::with_prober(tasks, events, Arc::new(prober))
        })
    }

    fn with_prober(tasks: Handle, events: mpsc::Sender<Event>, prober: Prober) -> Self {
        Self {
            tasks,
            _own: None,
            events,
            prober,
            first: Arc::new(Semaphore::new(FIRST_CHECKS)),
            running: HashMap::new(),
        }
    }

    /// Makes these the targets that are checked, no two of one name.
    ///
    /// A target that is as it was goes on undisturbed. A new one is checked at once.
    /// One whose address or specification changed begins anew, its first result
    /// deciding alone; until that comes nothing is sent of it. Of a target that went
    /// or changed nothing is sent after this returns, not even the result of a check
    /// that is under way; events that are in the channel already stay there.
    pub fn set(&mut self, wanted: impl IntoIterator<Item = Target>) {
        let mut before = mem::take(&mut self.running);
        for target in wanted {
            let name = (target.service.clone(), target.backend);
            // A check that is not kept is stopped here, before its successor starts.
            let kept = before.remove(&name).filter(|check| *check.target == target);
            let check = kept.unwrap_or_else(|| self.start(target));
            self.running.insert(name, check);
        }
    }

    fn start(&self, target: Target) -> Check {
        let target = Arc::new(target);
        let reporter = Reporter {
            events: self.events.clone(),
            open: Arc::new(Mutex::new(true)),
        };
        let task = self.tasks.spawn(run(
            Arc::clone(&target),
            Arc::clone(&self.prober),
            Arc::clone(&self.first),
            reporter.clone(),
        ));
        Check {
            target,
            reporter,
            task: task.abort_handle(),
        }
    }
}

/// The runtime that the checks have to themselves.
struct Own(Option<Runtime>);

impl Drop for Own {
    fn drop(&mut self) {
        // The other way to end it would wait, which the daemon's task may not.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A check that runs until this is dropped.
struct Check {
    target: Arc<Target>,
    reporter: Reporter,
    task: AbortHandle,
}

impl Drop for Check {
    fn drop(&mut self) {
        // A task that another thread is running now ends only when it next waits.
        self.reporter.close();
        self.task.abort();
    }
}

/// The way of a check's results to the one who wants them, which can be closed.
#[derive(Clone)]
struct Reporter {
    events: mpsc::Sender<Event>,
    open: Arc<Mutex<bool>>,
}

impl Reporter {
    /// Sends the event unless the way is closed. Nothing is sent after
    /// [`close`](Self::close) has returned.
    async fn send(&self, event: Event) {
        // An error means that nobody listens any more, so that there is nothing to do.
        if let Ok(permit) = self.events.reserve().await {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            if *open {
                permit.send(event);
            }
        }
    }

    fn close(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }
}

/// Checks one target for ever.
async fn run(target: Arc<Target>, prober: Prober, first: Arc<Semaphore>, reporter: Reporter) {
    let spec = &target.spec;
    let mut machine = Machine::new(spec.rise, spec.fall);

    let permit = first.acquire().await.expect("nobody closes the semaphore");
    let begin = Instant::now();
    let outcome = prober(Arc::clone(&target)).await;
    drop(permit);
    report(&target, &mut machine, outcome, &reporter).await;

    let mut due = begin + phase(&target, machine.is_up());
    let mut pace = Pace::new(due);
    loop {
        sleep_until(due).await;
        let outcome = prober(Arc::clone(&target)).await;
        report(&target, &mut machine, outcome, &reporter).await;
        let share = random() as f64 / u64::MAX as f64;
        let gap = pace::gap(spec.interval(machine.is_up()), spec.jitter, share);
        due = pace.next(gap, Instant::now());
    }
}

async fn report(
    target: &Target,
    machine: &mut Machine,
    outcome: Result<(), ProbeError>,
    reporter: &Reporter,
) {
    let changed = machine.step(outcome).is_some();
    reporter
        .send(Event {
            service: target.service.clone(),
            backend: target.backend,
            up: machine.is_up(),
            changed,
            status: machine.status(),
        })
        .await;
}

/// When the second check begins, counted from the first: a part of the interval that
/// is the target's own, so that the checks of backends that came together spread over
/// the whole of it.
fn phase(target: &Target, is_up: bool) -> Duration {
    let mut hasher = DefaultHasher::new();
    (&target.service, target.backend, target.address).hash(&mut hasher);
    let part = hasher.finish() as f64 / u64::MAX as f64;
    target.spec.interval(is_up).mul_f64(part)
}

#[cfg(test)]
mod tests;
