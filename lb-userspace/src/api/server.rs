//! The serving end: accepts connections, and ends well.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Request,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use percent_encoding::percent_decode_str;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    access::Right,
    decap,
    error::ApiError,
    places::{Place, Places},
    routes::{self, MAX_BODY},
    socket::Socket,
};
use crate::{
    datapath::Peer,
    decap::Handle,
    state::{Control, Reason},
};

/// Most connections at a time. One more takes the place of the one that has been idle
/// longest; while all have requests that are being done, it waits.
const MAX_CONNECTIONS: usize = 64;
/// The same of those who may do nothing, and are told so: where they are many, they get no
/// answer, and keep nobody else from one.
const MAX_STRANGERS: usize = 4;
/// How long a client may take for the head of its request.
const HEAD_PATIENCE: Duration = Duration::from_secs(3);
/// How long a request may take, its body included.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long requests may go on after the shutdown began.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long to wait after a connection could not be accepted (no more file
/// descriptors, say), instead of failing at full speed.
const PAUSE: Duration = Duration::from_millis(100);
/// How often to look whether the socket is still there.
const LOOK: Duration = Duration::from_secs(5);

/// Answers requests to the balancer on the socket until `shutdown` is there, then ends
/// the requests that have begun, and removes the socket.
pub async fn serve(socket: Socket, control: Control, shutdown: impl Future<Output = ()>) {
    let events = control.events().clone();
    let shutdown = async move {
        shutdown.await;
        // Those who listen to them would not end by themselves.
        events.close();
    };
    serve_router(socket, routes::router(control), shutdown).await;
}

/// The same for what unwraps tunnels.
pub async fn serve_decap(socket: Socket, handle: Handle, shutdown: impl Future<Output = ()>) {
    serve_router(socket, decap::router(handle), shutdown).await;
}

async fn serve_router(mut socket: Socket, router: Router, shutdown: impl Future<Output = ()>) {
    let router = TowerToHyperService::new(router);
    let connections = GracefulShutdown::new();
    let places = Arc::new(Places::new(MAX_CONNECTIONS));
    let strangers = Places::new(MAX_STRANGERS);
    let mut shutdown = std::pin::pin!(shutdown);
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut is_lost = false;
    loop {
        let accepted = tokio::select! {
            accepted = socket.listener.accept() => accepted,
            _ = look.tick() => {
                is_lost = restore(&mut socket, is_lost);
                continue;
            }
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
        let right = match Peer::of(&stream) {
            Ok(peer) => socket.access.right(socket.owner(), &peer),
            Err(error) => {
                tracing::warn!(%error, "cannot tell who asks the API");
                continue;
            }
        };
        let place = match right {
            Right::None => match strangers.take_now() {
                Some(place) => Arc::new(place),
                None => continue,
            },
            Right::Read | Right::Write => tokio::select! {
                place = places.take() => Arc::new(place),
                () = &mut shutdown => break,
            },
        };
        let service = service_fn({
            let place = Arc::clone(&place);
            let router = router.clone();
            move |request| answer(router.clone(), Arc::clone(&place), right, request)
        });
        // A request a connection: on a local socket another costs next to nothing,
        // and no idle one holds a place.
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_PATIENCE)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            tokio::select! {
                result = connection => if let Err(error) = result {
                    tracing::debug!(%error, "a connection to the API ended early");
                },
                () = place.lost() => {
                    tracing::debug!("an idle connection to the API was closed for a new one");
                }
            }
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

/// Makes the socket again that somebody has removed. Returns whether it is missing still,
/// of which it speaks only where it `was_lost` not before.
fn restore(socket: &mut Socket, was_lost: bool) -> bool {
    match socket.restore() {
        Ok(false) => false,
        Ok(true) => {
            let socket = socket.path().display();
            tracing::warn!(%socket, "the socket of the API was removed, and is made again");
            false
        }
        Err(reason) => {
            if !was_lost {
                tracing::warn!(error = %reason, "the socket of the API was removed");
            }
            true
        }
    }
}

/// Answers one request. Its connection counts as idle but for the time that the balancer
/// takes: a client that is slow to send or to read may be cut off.
async fn answer<R>(
    router: R,
    place: Arc<Place>,
    right: Right,
    request: Request<Incoming>,
) -> Result<Response, Infallible>
where
    R: Service<Request<Full<Bytes>>, Response = Response, Error = Infallible>,
{
    if let Err(error) = right.permit(request.method()) {
        return Ok(error.into_response());
    }
    let answer = async {
        let request = match read(request).await {
            Ok(request) => request,
            Err(error) => return Ok(error.into_response()),
        };
        let _busy = place.busy();
        router.call(request).await
    };
    tokio::time::timeout(PATIENCE, answer)
        .await
        .unwrap_or_else(|_| {
            let reason = Reason::new(
                format!(
                    "the request took longer than {} seconds",
                    PATIENCE.as_secs()
                ),
                "`lb status` shows what has been done; the log of the balancer may say more",
            );
            Ok(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, reason).into_response())
        })
}

/// The request with all of its body, and a path that can be read.
async fn read(request: Request<Incoming>) -> Result<Request<Full<Bytes>>, ApiError> {
    let path = request.uri().path();
    if percent_decode_str(path).decode_utf8().is_err() {
        return Err(ApiError::from(Reason::new(
            format!("the path `{path}` is not UTF-8"),
            "names and addresses are ASCII; write other bytes of theirs as %XX",
        )));
    }
    let (head, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY).collect().await;
    let body = body.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
        Some(_) => ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Reason::new(
                format!("the body is larger than {} MiB", MAX_BODY >> 20),
                "a service with all the backends that there is room for is smaller",
            ),
        ),
        None => ApiError::from(Reason::new(
            format!("the body cannot be read: {error}"),
            "send as many bytes as `Content-Length` says",
        )),
    })?;
    Ok(Request::from_parts(head, Full::new(body.to_bytes())))
}
