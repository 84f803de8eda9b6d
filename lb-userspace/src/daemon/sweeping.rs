//! Sweeps the flow tables on a thread of their own, so that a million flows never hold
//! up the daemon.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::mpsc as orders,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};

use super::chain;
use crate::{
    datapath::{self, FlowTables},
    flows::{Lifetimes, Query, Report, Sweeper},
    state::{FlowList, Refusal},
};

/// The least time between the beginnings of two sweeps.
const INTERVAL: Duration = Duration::from_secs(1);
/// Sweeping takes at most this part of a CPU's time: the larger the tables, the rarer.
const SHARE: u32 = 10;

/// A sweep to be done.
#[derive(Debug)]
pub(super) struct Order {
    /// The time.
    pub(super) now: Duration,
    /// The flow clock.
    pub(super) tick: u32,
    /// Those of the backends in service, by id.
    pub(super) lifetimes: HashMap<u32, Lifetimes>,
    /// Ids of backends whose flows are to go at once.
    pub(super) gone: HashSet<u32>,
}

/// What the thread is to do.
enum Task {
    Sweep(Order),
    /// Flows that are to be listed, and who wants them.
    List(Query, oneshot::Sender<Result<FlowList, Refusal>>),
}

/// A sweep that has been done.
#[derive(Debug)]
pub(super) struct Swept {
    /// When it began, at the latest.
    pub(super) began: Duration,
    /// What it found, or why it failed.
    pub(super) result: datapath::Result<Report>,
}

/// The thread that sweeps, and lists flows. It ends when this is dropped.
pub(super) struct Sweeping {
    orders: Option<orders::Sender<Task>>,
    results: mpsc::Receiver<(Swept, Duration)>,
    thread: Option<JoinHandle<()>>,
    /// When the next sweep is due; `None` while one is under way.
    due: Option<Duration>,
}

impl Sweeping {
    /// Starts the thread, which waits for orders.
    pub(super) fn start(tables: FlowTables) -> io::Result<Self> {
        let (orders, received) = orders::channel::<Task>();
        let (sender, results) = mpsc::channel(1);
        let mut sweeper = Sweeper::new(tables);
        let sweep = move || {
            for task in received {
                let order = match task {
                    Task::Sweep(order) => order,
                    Task::List(query, answer) => {
                        let list = sweeper.list(&query);
                        let list = list.map_err(|error| Refusal::Failed(chain(&error)));
                        // Whoever asked may have gone away.
                        drop(answer.send(list));
                        continue;
                    }
                };
                let start = Instant::now();
                let result = sweeper.sweep(order.tick, &order.lifetimes, &order.gone);
                let swept = Swept {
                    began: order.now,
                    result,
                };
                if sender.blocking_send((swept, start.elapsed())).is_err() {
                    return;
                }
            }
        };
        Ok(Self {
            orders: Some(orders),
            results,
            thread: Some(thread::Builder::new().name("sweep".into()).spawn(sweep)?),
            due: Some(Duration::ZERO),
        })
    }

    /// Whether a sweep should begin.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// Begins a sweep.
    pub(super) fn order(&mut self, order: Order) {
        self.due = None;
        // The thread only ends before this where it has panicked; then nothing is due
        // any more.
        let _ended = self
            .orders
            .as_ref()
            .map(|orders| orders.send(Task::Sweep(order)));
    }

    /// Lists flows, when the sweep that may be under way has ended.
    pub(super) fn list(&self, query: Query, answer: oneshot::Sender<Result<FlowList, Refusal>>) {
        // Without the thread nobody answers, and whoever asked is told that.
        let _ended = self
            .orders
            .as_ref()
            .map(|orders| orders.send(Task::List(query, answer)));
    }

    /// The end of the sweep that is under way.
    pub(super) async fn ended(&mut self) -> Option<Swept> {
        let (swept, took) = self.results.recv().await?;
        self.due = Some(swept.began + INTERVAL.max(took * SHARE));
        Some(swept)
    }
}

impl Drop for Sweeping {
    fn drop(&mut self) {
        self.orders = None;
        self.results.close();
        if let Some(thread) = self.thread.take() {
            // A panic there has told of itself already.
            let _panicked = thread.join();
        }
    }
}
