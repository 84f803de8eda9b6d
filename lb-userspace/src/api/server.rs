//! The serving end: accepts connections, and ends well.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::sync::Semaphore;

use super::{decap, routes, socket::Socket};
use crate::{decap::Handle, state::Control};

/// Most connections at a time; the next wait in the socket's backlog.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take for the head of its request.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// How long requests may go on after the shutdown began.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long to wait after a connection could not be accepted (no more file
/// descriptors, say), instead of failing at full speed.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers requests to the balancer on the socket until `shutdown` is there, then ends
/// the requests that have begun, and removes the socket.
pub async fn serve(socket: Socket, control: Control, shutdown: impl Future<Output = ()>) {
    serve_router(socket, routes::router(control), shutdown).await;
}

/// The same for what unwraps tunnels.
pub async fn serve_decap(socket: Socket, handle: Handle, shutdown: impl Future<Output = ()>) {
    serve_router(socket, decap::router(handle), shutdown).await;
}

async fn serve_router(socket: Socket, router: Router, shutdown: impl Future<Output = ()>) {
    let service = TowerToHyperService::new(router);
    let connections = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let next = async {
            let place = Arc::clone(&room)
                .acquire_owned()
                .await
                .expect("never closed");
            (place, socket.listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = &mut shutdown => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the API");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // A request a connection: on a local socket another costs next to nothing,
        // and no idle one holds a place.
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_PATIENCE)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service.clone());
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the API ended early");
            }
            drop(place);
        });
    }
    drop(socket);
    if tokio::time::timeout(FAREWELL, connections.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("requests to the API were cut off by the shutdown");
    }
}
