//! The thread between the kernel and the state machine.

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    net::IpAddr,
    time::Instant,
};

use tokio::sync::mpsc;

use super::{
    Event,
    kernel::Kernel,
    monitor::Monitor,
    table::{Action, Input, Table},
};

/// Why the watcher ended.
pub(super) enum End {
    /// Nobody listens any more.
    Unwanted,
    /// Notifications can no longer be read.
    Deaf(io::Error),
}

/// The watcher.
pub(super) struct Watcher {
    kernel: Kernel,
    table: Table,
    events: mpsc::Sender<Event>,
}

impl Watcher {
    pub(super) fn new(kernel: Kernel, events: mpsc::Sender<Event>) -> Self {
        Self {
            kernel,
            table: Table::new(Instant::now()),
            events,
        }
    }

    /// Runs until nobody listens any more.
    pub(super) async fn run(
        mut self,
        monitor: Monitor,
        mut watched: mpsc::UnboundedReceiver<BTreeSet<IpAddr>>,
    ) -> End {
        loop {
            let deadline = self.table.deadline();
            let inputs = tokio::select! {
                inputs = monitor.next() => match inputs {
                    Ok(inputs) => inputs,
                    Err(error) => return End::Deaf(error),
                },
                addresses = watched.recv() => match addresses {
                    Some(addresses) => vec![Input::Watch(addresses)],
                    None => return End::Unwanted,
                },
                () = sleep_until(deadline) => vec![Input::Time],
            };
            for input in inputs {
                if self.take(input).await.is_err() {
                    return End::Unwanted;
                }
            }
        }
    }

    /// Takes in what has happened, and all answers that this leads to.
    async fn take(&mut self, input: Input) -> Result<(), mpsc::error::SendError<Event>> {
        let mut actions = VecDeque::from(self.table.step(input, Instant::now()));
        while let Some(action) = actions.pop_front() {
            let answer = match action {
                Action::Tell(event) => {
                    self.events.send(event).await?;
                    continue;
                }
                Action::Provoke(key) => {
                    // Tried again anyway: an interface may have gone down meanwhile.
                    if let Err(error) = self.kernel.provoke(key) {
                        tracing::debug!(?key, %error, "the kernel does not resolve a neighbour");
                    }
                    continue;
                }
                Action::AskRoute(address) => self
                    .kernel
                    .route(address)
                    .map(|route| Input::Route(address, route)),
                Action::AskLink(ifindex) => self
                    .kernel
                    .link(ifindex)
                    .map(|link| Input::Link(ifindex, link)),
                Action::AskLinks => self.kernel.links().map(Input::Links),
                Action::AskNeighbour(key) => self
                    .kernel
                    .neighbour(key)
                    .map(|neighbour| Input::Neighbour(key, neighbour)),
            };
            let input = answer.unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot ask the kernel for routes and neighbours");
                Input::Unanswered
            });
            actions.extend(self.table.step(input, Instant::now()));
        }
        Ok(())
    }
}

/// Waits until then; for ever where there is nothing to wait for.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
