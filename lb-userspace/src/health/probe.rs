//! One check of one backend.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    time::Duration,
};

use nix::errno::Errno;
use tokio::time;

use crate::state::Probe;

use super::{Target, dns, exec, grpc, http, icmp, tcp, tls, udp};

/// Most characters of what a backend said that are shown.
const SHOWN: usize = 120;

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
    /// An HTTP status outside of what is expected.
    #[error("status {0}")]
    Status(u16),
    /// The header section of the answer is too large to be read.
    #[error("header larger than {} KiB", http::MAX_HEAD / 1024)]
    HeaderTooLarge,
    /// The answer is no HTTP/1 response.
    #[error("not HTTP: {0}")]
    NotHttp(String),
    /// HTTP/2 did not come about, or broke off.
    #[error("HTTP/2: {0}")]
    Http2(String),
    /// The body of the answer has not in it what is expected.
    #[error("not in the body: \"{0}\"")]
    Body(String),
    /// TLS did not come about.
    #[error("TLS: {0}")]
    Tls(String),
    /// The server takes none of the protocols that are offered.
    #[error("TLS: the server takes none of the protocols {0}")]
    Alpn(String),
    /// The answer says that the service does not serve, or is none.
    #[error("gRPC: {0}")]
    Grpc(String),
    /// Something else was answered than what is expected.
    #[error("answered \"{0}\"")]
    Answer(String),
    /// The answer is no message of DNS, or not the one that is expected.
    #[error("DNS: {0}")]
    Dns(String),
    /// The program did not end with status 0.
    #[error("{0}")]
    Program(String),
    /// A connection to the port that clients use did not come about.
    #[error("clients get no connection: {0}")]
    Clients(String),
    /// The check cannot be done on this host.
    #[error("cannot check: {0}")]
    Impossible(String),
}

impl From<io::Error> for ProbeError {
    fn from(error: io::Error) -> Self {
        if let Some(number) = error.raw_os_error() {
            return Self::Network(Errno::from_raw(number).desc().to_lowercase());
        }
        // So ends a connection of TLS that was cut off.
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Closed;
        }
        tls::reason(&error).unwrap_or_else(|| Self::Network(error.to_string()))
    }
}

/// What a backend said, fit for a terminal and a table.
pub(super) fn shown(text: &[u8]) -> String {
    text.escape_ascii().map(char::from).take(SHOWN).collect()
}

/// A number that nobody can foretell.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(())
}

/// Asks the backend once, as the specification says: its probe, within its timeout.
///
/// # Errors
///
/// Why the backend is not healthy.
pub async fn probe(target: &Target) -> Result<(), ProbeError> {
    within(target.spec.timeout(), async {
        match &target.spec.probe {
            Probe::Tcp => tcp::probe(target).await,
            Probe::Http(http) => http::plain(target, http).await,
            Probe::Https(http, tls, alpn) => http::secure(target, http, tls, alpn).await,
            Probe::Grpc(grpc) => grpc::probe(target, grpc).await,
            Probe::Udp(udp) => udp::probe(target.address, udp).await,
            Probe::Dns(dns) => dns::probe(target.address, dns).await,
            Probe::Icmp => icmp::probe(target.address.ip()).await,
            Probe::Exec(exec) => exec::probe(target, exec).await,
        }
    })
    .await
}

/// The longest that a connection to the port that clients use may take. Whoever is asked is
/// doubted already.
const CLIENTS_WAIT: Duration = Duration::from_millis(250);
/// Connections that must fail by silence: a single SYN may be lost.
const CLIENTS_TRIES: u32 = 2;

/// Makes a connection to the port that clients use.
///
/// # Errors
///
/// Why clients get none either. What goes wrong on this host says nothing about them.
pub async fn confirm(target: &Target) -> Result<(), ProbeError> {
    let Some(address) = target.clients else {
        return Ok(());
    };
    for _ in 0..CLIENTS_TRIES {
        let error = match time::timeout(CLIENTS_WAIT, tcp::connect_apart(address)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => continue,
        };
        return match error.kind() {
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::TimedOut => {
                Err(ProbeError::Clients(ProbeError::from(error).to_string()))
            }
            _ => Ok(()),
        };
    }
    let silence = ProbeError::TimedOut(CLIENTS_WAIT * CLIENTS_TRIES);
    Err(ProbeError::Clients(silence.to_string()))
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
