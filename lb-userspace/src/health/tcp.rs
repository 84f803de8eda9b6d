//! The `tcp` probe: a connection is accepted.

use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::ProbeError;

/// Connects and closes.
pub(super) async fn probe(target: SocketAddr) -> Result<(), ProbeError> {
    TcpStream::connect(target).await?;
    Ok(())
}
