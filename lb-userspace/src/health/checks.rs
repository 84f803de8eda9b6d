//! Runs the checks of all backends, each in a task of its own.

use std::{
    collections::HashMap,
    future,
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
    Damping, Machine, ProbeError, confirm, files,
    pace::{self, Pace},
    probe,
    probe::random,
};

/// Most first checks that are under way at a time, so that a configuration of
/// thousands of backends does not open as many connections in one moment.
const FIRST_CHECKS: usize = 256;
/// Most backends that are doubted whose connections are tried at a time.
const CONFIRMATIONS: usize = 64;

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
    /// Where it takes clients' connections, if it is to be asked there when it is doubted: see
    /// [`passive`](super::passive).
    pub clients: Option<SocketAddr>,
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

/// How backends are asked.
#[derive(Clone)]
struct Probers {
    /// By their checks.
    check: Prober,
    /// Whether they take clients' connections.
    confirm: Prober,
    /// Checks that may be under way at a time.
    all: Arc<Semaphore>,
    /// The same of confirmations.
    confirmations: Arc<Semaphore>,
}

/// The checks that run. Dropping this stops them all.
pub struct Checks {
    tasks: Handle,
    _own: Option<Own>,
    events: mpsc::Sender<Event>,
    probers: Probers,
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
        let check =
            |target: Arc<Target>| -> Probing { Box::pin(async move { probe(&target).await }) };
        let confirm =
            |target: Arc<Target>| -> Probing { Box::pin(async move { confirm(&target).await }) };
        let probers = Probers {
            check: Arc::new(check),
            confirm: Arc::new(confirm),
            all: Arc::new(Semaphore::new(files::for_checks())),
            confirmations: Arc::new(Semaphore::new(CONFIRMATIONS)),
        };
        let tasks = runtime.handle().clone();
        Ok(Self {
            _own: Some(Own(Some(runtime))),
            ..Self::with_probers(tasks, events, probers)
        })
    }

    fn with_probers(tasks: Handle, events: mpsc::Sender<Event>, probers: Probers) -> Self {
        Self {
            tasks,
            _own: None,
            events,
            probers,
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
        self.resume(wanted, |_| None);
    }

    /// The same where it is known of some whether they were up before they were checked: of
    /// these a first result does not decide alone.
    pub fn resume(
        &mut self,
        wanted: impl IntoIterator<Item = Target>,
        was_up: impl Fn(&Target) -> Option<bool>,
    ) {
        let mut before = mem::take(&mut self.running);
        for target in wanted {
            let name = (target.service.clone(), target.backend);
            // A check that is not kept is stopped here, before its successor starts.
            let kept = before.remove(&name).filter(|check| *check.target == target);
            let check = kept.unwrap_or_else(|| {
                let was_up = was_up(&target);
                self.start(target, was_up)
            });
            self.running.insert(name, check);
        }
    }

    /// A backend is doubted: whether it takes clients' connections is tried at once, and if it
    /// does not it is down.
    pub fn doubt(&self, service: &str, backend: BackendAddress) {
        if let Some(check) = self.running.get(&(service.to_owned(), backend)) {
            // Where there is one doubt already, it will be told from that.
            let _told = check.doubts.try_send(());
        }
    }

    fn start(&self, target: Target, was_up: Option<bool>) -> Check {
        let target = Arc::new(target);
        let (doubts, doubted) = mpsc::channel(1);
        let reporter = Reporter {
            events: self.events.clone(),
            open: Arc::new(Mutex::new(true)),
        };
        let spec = &target.spec;
        let longest = spec.hold_down.unwrap_or_default();
        let damping = Damping::new(spec.interval(false), longest);
        let machine = Machine::new(spec.rise, spec.fall).damped(damping);
        let running = Running {
            target: Arc::clone(&target),
            probers: self.probers.clone(),
            reporter: reporter.clone(),
            machine: match was_up {
                Some(was_up) => machine.resumed(was_up),
                None => machine,
            },
            doubted,
            zero: Instant::now(),
        };
        let task = self.tasks.spawn(running.run(Arc::clone(&self.first)));
        Check {
            target,
            reporter,
            doubts,
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
    doubts: mpsc::Sender<()>,
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

/// The check of one target, as its task has it.
struct Running {
    target: Arc<Target>,
    probers: Probers,
    reporter: Reporter,
    machine: Machine,
    doubted: mpsc::Receiver<()>,
    /// When it began.
    zero: Instant,
}

impl Running {
    /// Checks for ever. A doubt waits for no check, since that may hang, and no check for it.
    async fn run(mut self, first: Arc<Semaphore>) {
        let permit = first.acquire().await.expect("nobody closes the semaphore");
        let begin = Instant::now();
        let outcome = self.check().await;
        drop(permit);
        self.take(outcome).await;

        let mut due = begin + phase(&self.target, self.machine.is_up());
        let mut pace = Pace::new(due);
        let (mut check, mut confirmation) = (None, None);
        loop {
            tokio::select! {
                () = sleep_until(due), if check.is_none() => check = Some(self.check()),
                outcome = end_of(&mut check) => {
                    check = None;
                    self.take(outcome).await;
                    let share = random() as f64 / u64::MAX as f64;
                    let spec = &self.target.spec;
                    let gap = pace::gap(spec.interval(self.machine.is_up()), spec.jitter, share);
                    due = pace.next(gap, Instant::now());
                }
                // Of one that is down there is nothing to doubt.
                Some(()) = self.doubted.recv(), if confirmation.is_none() => {
                    confirmation = self.machine.is_up().then(|| self.confirmation());
                }
                outcome = end_of(&mut confirmation) => {
                    confirmation = None;
                    if let Err(error) = outcome {
                        self.fail(error).await;
                    }
                }
            }
        }
    }

    /// Asks once, as soon as it may.
    fn check(&self) -> Probing {
        let probers = &self.probers;
        ask(&probers.check, &probers.all, &self.target)
    }

    /// Tries once whether clients' connections are taken.
    fn confirmation(&self) -> Probing {
        let probers = &self.probers;
        ask(&probers.confirm, &probers.confirmations, &self.target)
    }

    /// Clients get no connection.
    async fn fail(&mut self, error: ProbeError) {
        if self.machine.fail(error, self.zero.elapsed()).is_some() {
            self.report(true).await;
        }
    }

    async fn take(&mut self, outcome: Result<(), ProbeError>) {
        let changed = self.machine.step(outcome, self.zero.elapsed()).is_some();
        self.report(changed).await;
    }

    async fn report(&self, changed: bool) {
        self.reporter
            .send(Event {
                service: self.target.service.clone(),
                backend: self.target.backend,
                up: self.machine.is_up(),
                changed,
                status: self.machine.status(),
            })
            .await;
    }
}

/// Asks when there is a permit.
fn ask(prober: &Prober, permits: &Arc<Semaphore>, target: &Arc<Target>) -> Probing {
    let (prober, permits, target) = (Arc::clone(prober), Arc::clone(permits), Arc::clone(target));
    Box::pin(async move {
        let _permit = permits
            .acquire()
            .await
            .expect("nobody closes the semaphore");
        prober(target).await
    })
}

/// What comes of what is under way; nothing ever, while nothing is.
async fn end_of(probing: &mut Option<Probing>) -> Result<(), ProbeError> {
    match probing {
        Some(probing) => probing.await,
        None => future::pending().await,
    }
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
