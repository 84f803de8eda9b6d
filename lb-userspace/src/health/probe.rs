//! One check of one backend.

use std::{io, net::SocketAddr, time::Duration};

use nix::errno::Errno;
use tokio::time;

use crate::state::{HealthSpec, Probe};

use super::{http, tcp};

/// Why a backend failed a check, in a few words that fit into a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// The network or the backend's host said no: `connection refused`.
    #[error("{0}")]
    Network(String),
    /// There was no whole answer in time.
    #[error("timed out after {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    /// The backend closed the connection before it had answered.
    #[error("connection closed without a whole answer")]
    Closed,
    /// An HTTP status outside of 200 to 399.
    #[error("status {0}")]
    Status(u16),
    /// The header section of the answer is too large to be read.
    #[error("header larger than {} KiB", http::MAX_HEAD / 1024)]
    HeaderTooLarge,
    /// The answer is no HTTP/1 response.
    #[error("not HTTP: {0}")]
    NotHttp(String),
}

impl From<io::Error> for ProbeError {
    fn from(error: io::Error) -> Self {
        let text = match error.raw_os_error() {
            Some(number) => Errno::from_raw(number).desc().to_lowercase(),
            None => error.to_string(),
        };
        Self::Network(text)
    }
}

/// Asks the backend once, as the specification says: its probe, within its timeout.
/// The port is that of `target`; the one in the specification is for the caller to
/// put there.
///
/// # Errors
///
/// Why the backend is not healthy.
pub async fn probe(target: SocketAddr, spec: &HealthSpec) -> Result<(), ProbeError> {
    within(spec.timeout(), async {
        match &spec.probe {
            Probe::Tcp => tcp::probe(target).await,
            Probe::Http { path, host } => http::probe(target, path, host.as_deref()).await,
        }
    })
    .await
}

/// Gives `check` this much time, for everything that it does together.
pub(super) async fn within(
    timeout: Duration,
    check: impl Future<Output = Result<(), ProbeError>>,
) -> Result<(), ProbeError> {
    time::timeout(timeout, check)
        .await
        .unwrap_or(Err(ProbeError::TimedOut(timeout)))
}

#[cfg(test)]
mod tests;
