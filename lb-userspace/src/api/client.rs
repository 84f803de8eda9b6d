//! The asking end, which the command line uses.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use super::explain;
use super::wire::{self, Backend, Drain, Failure, Service};
use crate::{
    decap,
    state::{Explanation, FlowFilter, FlowList, Question, Reason, Status},
};

/// How long an answer may take: longer than the server gives itself, so that its
/// own explanation comes first.
const PATIENCE: Duration = Duration::from_secs(40);

/// Asks the balancer that listens on a socket. Every method fails with a [`Reason`]
/// when the balancer cannot be asked, or says no.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    server: Server,
}

/// Who should listen, in messages.
#[derive(Clone, Copy, Debug)]
struct Server {
    name: &'static str,
    command: &'static str,
}

#[expect(
    clippy::missing_errors_doc,
    reason = "they are the same for all, and stand above"
)]
impl Client {
    /// A client of the balancer that listens at this path.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            server: Server {
                name: "balancer",
                command: "lb run",
            },
        }
    }

    /// A client of the `lb decap` that listens at this path, which answers
    /// [`Self::decap_status`] alone.
    #[must_use]
    pub fn of_decap(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            server: Server {
                name: "`lb decap`",
                command: "lb decap",
            },
        }
    }

    /// The state of what unwraps tunnels.
    pub async fn decap_status(&self) -> Result<decap::Status, Reason> {
        self.ask(Method::GET, "/v1/status".into(), None).await
    }

    /// The state of the balancer.
    pub async fn status(&self) -> Result<Status, Reason> {
        self.ask(Method::GET, "/v1/status".into(), None).await
    }

    /// Flows that there are.
    pub async fn flows(&self, filter: &FlowFilter) -> Result<FlowList, Reason> {
        let path = format!("/v1/flows?{}", wire::flow_query(filter));
        self.ask(Method::GET, path, None).await
    }

    /// What becomes of a packet.
    pub async fn explain(&self, question: &Question) -> Result<Explanation, Reason> {
        let path = format!("/v1/explain?{}", explain::query(question));
        self.ask(Method::GET, path, None).await
    }

    /// Every service, by name.
    pub async fn services(&self) -> Result<Vec<Service>, Reason> {
        self.ask(Method::GET, "/v1/services".into(), None).await
    }

    /// The service of this name.
    pub async fn service(&self, name: &str) -> Result<Service, Reason> {
        self.ask(Method::GET, service_path(name), None).await
    }

    /// Adds a service.
    pub async fn add_service(&self, service: &Service) -> Result<Service, Reason> {
        let body = serde_json::to_value(service).expect("its keys are strings");
        let path = service_path(&service.name);
        self.ask(Method::POST, path, Some(body)).await
    }

    /// Changes what the patch names (RFC 7386).
    pub async fn patch_service(&self, name: &str, patch: Value) -> Result<Service, Reason> {
        let path = service_path(name);
        self.ask(Method::PATCH, path, Some(patch)).await
    }

    /// Removes a service, and says what it was.
    pub async fn remove_service(&self, name: &str) -> Result<Service, Reason> {
        self.ask(Method::DELETE, service_path(name), None).await
    }

    /// Adds a backend to a service.
    pub async fn add_backend(&self, service: &str, backend: &Backend) -> Result<Backend, Reason> {
        let body = serde_json::to_value(backend).expect("its keys are strings");
        let path = format!("{}/backends", service_path(service));
        self.ask(Method::POST, path, Some(body)).await
    }

    /// Gives a backend everything anew.
    pub async fn set_backend(&self, service: &str, backend: &Backend) -> Result<Backend, Reason> {
        let body = serde_json::to_value(backend).expect("its keys are strings");
        let path = backend_path(service, &backend.address);
        self.ask(Method::PUT, path, Some(body)).await
    }

    /// Changes what the patch names of a backend (RFC 7386).
    pub async fn patch_backend(
        &self,
        service: &str,
        address: &str,
        patch: Value,
    ) -> Result<Backend, Reason> {
        let path = backend_path(service, address);
        self.ask(Method::PATCH, path, Some(patch)).await
    }

    /// Begins the drain of a backend, or gives it another end.
    pub async fn drain_backend(
        &self,
        service: &str,
        address: &str,
        drain: &Drain,
    ) -> Result<Backend, Reason> {
        let body = serde_json::to_value(drain).expect("its keys are strings");
        let path = format!("{}/drain", backend_path(service, address));
        self.ask(Method::PUT, path, Some(body)).await
    }

    /// Takes a drain back.
    pub async fn undrain_backend(&self, service: &str, address: &str) -> Result<Backend, Reason> {
        let path = format!("{}/drain", backend_path(service, address));
        self.ask(Method::DELETE, path, None).await
    }

    /// Removes a backend, and says what it was.
    pub async fn remove_backend(&self, service: &str, address: &str) -> Result<Backend, Reason> {
        let path = backend_path(service, address);
        self.ask(Method::DELETE, path, None).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: String,
        body: Option<Value>,
    ) -> Result<T, Reason> {
        let exchange = self.exchange(method, path, body);
        let (success, answer) = tokio::time::timeout(PATIENCE, exchange)
            .await
            .map_err(|_| {
                Reason::new(
                    format!("no answer within {} seconds", PATIENCE.as_secs()),
                    format!("the log of the {} may say why", self.server.name),
                )
            })?
            .map_err(|error| self.unreachable(&error))?;
        let foreign = |error: serde_json::Error| {
            Reason::new(
                format!("the answer is not one that this version knows: {error}"),
                "use the `lb` of the version that runs",
            )
        };
        if success {
            return serde_json::from_slice(&answer).map_err(foreign);
        }
        let failure: Failure = serde_json::from_slice(&answer).map_err(foreign)?;
        Err(Reason {
            message: failure.error.message,
            hint: failure.error.hint,
        })
    }

    /// Whether the answer is a success, and its body.
    async fn exchange(
        &self,
        method: Method,
        path: String,
        body: Option<Value>,
    ) -> io::Result<(bool, Bytes)> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let connection = tokio::spawn(connection);
        let body = body.map(|json| json.to_string()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(io::Error::other)?;
        let response = sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        let success = response.status().is_success();
        let answer = response.into_body().collect().await;
        connection.abort();
        Ok((success, answer.map_err(io::Error::other)?.to_bytes()))
    }

    fn unreachable(&self, error: &io::Error) -> Reason {
        let socket = self.socket.display();
        let Server { name, command } = self.server;
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Reason::new(
                format!("no {name} listens on `{socket}`"),
                format!(
                    "start one by `{command}`, or name the socket of the one that runs by --socket"
                ),
            ),
            io::ErrorKind::PermissionDenied => Reason::new(
                format!("this user may not connect to `{socket}`"),
                "be root, or a member of the group that the socket belongs to",
            ),
            _ => Reason::new(
                format!("cannot talk to the {name} on `{socket}`: {error}"),
                format!("the log of the {name} may say why"),
            ),
        }
    }
}

fn service_path(name: &str) -> String {
    let name = utf8_percent_encode(name, NON_ALPHANUMERIC);
    format!("/v1/services/{name}")
}

fn backend_path(service: &str, address: &str) -> String {
    let address = utf8_percent_encode(address, NON_ALPHANUMERIC);
    format!("{}/backends/{address}", service_path(service))
}
