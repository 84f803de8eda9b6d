//! Many HTTP requests at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{Stop, http::Connection};

/// A number of HTTP requests to one address, from several threads.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where they go.
    pub server: SocketAddr,
    /// Path that they ask for.
    pub path: String,
    /// Threads, each with one connection at a time.
    pub threads: usize,
    /// Requests of all threads together.
    pub requests: u64,
    /// Requests on each connection, at least 1.
    pub per_connection: u64,
    /// For a connection, and for each read and write. Nothing is tried again.
    pub timeout: Duration,
}

/// What became of a [`Load`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Requests answered with status 200.
    pub requests: u64,
    /// Connections that at least one of them was answered on, by backend.
    pub connections: BTreeMap<String, u64>,
    /// The client's addresses, as the backends saw them.
    pub sources: BTreeSet<IpAddr>,
    /// What went wrong; a connection ends with the first error.
    pub errors: Vec<LoadError>,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    /// When the connection was begun.
    pub began: Instant,
    /// What happened.
    pub text: String,
}

impl Load {
    /// `requests` requests for `/`, each on a connection of its own, eight at a time.
    #[must_use]
    pub fn new(server: SocketAddr, requests: u64) -> Self {
        Self {
            server,
            path: "/".to_owned(),
            threads: 8,
            requests,
            per_connection: 1,
            timeout: Duration::from_secs(10),
        }
    }

    /// Sends all requests, in the network namespace of the calling thread.
    #[must_use]
    pub fn run(&self) -> LoadReport {
        self.run_until(&Stop::default())
    }

    /// Sends requests until all are sent or the end is asked for. What has begun is
    /// brought to its end.
    #[must_use]
    pub fn run_until(&self, stop: &Stop) -> LoadReport {
        let left = AtomicU64::new(self.requests);
        let mut total = LoadReport::default();
        thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads)
                .map(|_| scope.spawn(|| self.run_thread(&left, stop)))
                .collect();
            for thread in threads {
                match thread.join() {
                    Ok(report) => total.add(report),
                    Err(payload) => std::panic::resume_unwind(payload),
                }
            }
        });
        total
    }

    /// What one of the threads does.
    fn run_thread(&self, left: &AtomicU64, stop: &Stop) -> LoadReport {
        let mut report = LoadReport::default();
        while !stop.is_requested() {
            let requests = self.take(left);
            if requests == 0 {
                break;
            }
            let began = Instant::now();
            if let Err(error) = self.run_connection(requests, stop, &mut report) {
                report.errors.push(LoadError::new(began, &error));
            }
        }
        report
    }

    /// Takes the requests of one connection from those that are left.
    fn take(&self, left: &AtomicU64) -> u64 {
        let before = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            Some(left.saturating_sub(self.per_connection))
        });
        let (Ok(before) | Err(before)) = before;
        before.min(self.per_connection)
    }

    fn run_connection(&self, requests: u64, stop: &Stop, report: &mut LoadReport) -> Result<()> {
        let mut connection = Connection::open(self.server, self.timeout)?;
        let client = connection.local_address()?;
        self.ask(&mut connection, requests, stop, report)
            .with_context(|| format!("the connection of {client} failed"))
    }

    fn ask(
        &self,
        connection: &mut Connection,
        requests: u64,
        stop: &Stop,
        report: &mut LoadReport,
    ) -> Result<()> {
        let mut backend = None;
        for request in 1..=requests {
            let last = request == requests || stop.is_requested();
            let (head, _) = connection.get(&self.path, last)?;
            ensure!(head.status == 200, "{head:?}");
            report.requests += 1;
            report.sources.insert(head.client.ip());
            if backend.is_none() {
                *report.connections.entry(head.backend.clone()).or_default() += 1;
            }
            let first = backend.get_or_insert_with(|| head.backend.clone());
            ensure!(
                *first == head.backend,
                "the connection began with {first} and went on with {}",
                head.backend
            );
            if last {
                break;
            }
        }
        Ok(())
    }
}

impl LoadError {
    fn new(began: Instant, error: &anyhow::Error) -> Self {
        Self {
            began,
            text: format!("{error:#}"),
        }
    }
}

impl LoadReport {
    /// All connections that were answered.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.connections.values().sum()
    }

    /// The share of a backend in them, from 0 to 1.
    #[must_use]
    pub fn share(&self, backend: &str) -> f64 {
        let own = self.connections.get(backend).copied().unwrap_or_default();
        own as f64 / self.answered().max(1) as f64
    }

    /// Adds what another report counted.
    pub fn add(&mut self, other: Self) {
        self.requests += other.requests;
        for (backend, count) in other.connections {
            *self.connections.entry(backend).or_default() += count;
        }
        self.sources.extend(other.sources);
        self.errors.extend(other.errors);
    }

    /// Counts one exchange with a backend, which tells its name and the client's address.
    pub fn record(&mut self, exchange: impl FnOnce() -> Result<(String, SocketAddr)>) {
        let began = Instant::now();
        match exchange() {
            Ok((backend, client)) => {
                self.requests += 1;
                self.sources.insert(client.ip());
                *self.connections.entry(backend).or_default() += 1;
            }
            Err(error) => self.errors.push(LoadError::new(began, &error)),
        }
    }

    /// Itself, if nothing went wrong.
    ///
    /// # Errors
    ///
    /// When something did, with the first few errors.
    pub fn into_result(self) -> Result<Self> {
        let shown: Vec<_> = self.errors.iter().take(5).map(|e| &e.text).collect();
        ensure!(
            self.errors.is_empty(),
            "{} connections failed and {} requests were answered; the first errors: {shown:#?}",
            self.errors.len(),
            self.requests
        );
        Ok(self)
    }
}
