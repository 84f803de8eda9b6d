//! The asking end, which the command line uses.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{net::UnixStream, task::JoinHandle};

use super::{
    Configuration,
    events::{self, HEARTBEAT},
    explain,
    wire::{self, Backend, Drain, Failure, File, Service},
};
use crate::{
    decap,
    state::{
        After, Event, EventId, Explanation, FlowFilter, FlowList, Question, Reason, Reloaded,
        Status,
    },
};

/// How long an answer may take: longer than the server gives itself, so that its
/// own explanation comes first.
const PATIENCE: Duration = Duration::from_secs(40);

/// How long there may be no sign of events or of their absence.
const SILENCE: Duration = Duration::from_secs(4 * HEARTBEAT.as_secs());

/// Asks the balancer that listens on a socket. Every method fails with a [`Reason`]
/// when the balancer cannot be asked, or says no.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    server: Server,
}

/// What the balancer is asked.
struct Asked<'a> {
    method: Method,
    path: String,
    body: Option<Value>,
    /// The revision that the state must have.
    revision: Option<&'a str>,
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

    /// The whole configuration that is in force.
    pub async fn configuration(&self) -> Result<Configuration, Reason> {
        self.ask(Method::GET, "/v1/config".into(), None).await
    }

    /// Brings about what a file says, or only says what would change; if the state has this
    /// revision, where one is given.
    pub async fn apply(
        &self,
        file: &File,
        is_dry_run: bool,
        revision: Option<&str>,
    ) -> Result<Reloaded, Reason> {
        let body = serde_json::to_value(file).expect("its keys are strings");
        let path = format!("/v1/apply?dry_run={is_dry_run}");
        let request = Asked {
            method: Method::POST,
            path,
            body: Some(body),
            revision,
        };
        self.ask_if(request).await
    }

    /// Forgets what was changed beside the file, or only says what that would change.
    pub async fn reset(&self, is_dry_run: bool) -> Result<Reloaded, Reason> {
        let path = format!("/v1/reset?dry_run={is_dry_run}");
        self.ask(Method::POST, path, None).await
    }

    /// What happens after this; without `follow` only what has happened.
    pub async fn events(&self, after: After, follow: bool) -> Result<EventStream, Reason> {
        let asked = Asked {
            method: Method::GET,
            path: format!("/v1/events?{}", events::Question::query(after, follow)),
            body: None,
            revision: None,
        };
        let sent = tokio::time::timeout(PATIENCE, self.send(asked));
        let sent = sent.await.map_err(|_| self.is_silent(PATIENCE))?;
        let (response, connection) = sent.map_err(|error| self.unreachable(&error))?;
        let is_success = response.status().is_success();
        let mut stream = EventStream {
            client: self.clone(),
            body: response.into_body(),
            connection,
            rest: Vec::new(),
            last: None,
        };
        if is_success {
            return Ok(stream);
        }
        while stream.read().await? {}
        Err(failure(&stream.rest))
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
        let revision = None;
        self.ask_if(Asked {
            method,
            path,
            body,
            revision,
        })
        .await
    }

    async fn ask_if<T: DeserializeOwned>(&self, request: Asked<'_>) -> Result<T, Reason> {
        let exchange = self.exchange(request);
        let (success, answer) = tokio::time::timeout(PATIENCE, exchange)
            .await
            .map_err(|_| self.is_silent(PATIENCE))?
            .map_err(|error| self.unreachable(&error))?;
        if success {
            return serde_json::from_slice(&answer).map_err(|error| foreign(&error));
        }
        Err(failure(&answer))
    }

    /// Whether the answer is a success, and its body.
    async fn exchange(&self, asked: Asked<'_>) -> io::Result<(bool, Bytes)> {
        let (response, _connection) = self.send(asked).await?;
        let success = response.status().is_success();
        let answer = response.into_body().collect().await;
        Ok((success, answer.map_err(io::Error::other)?.to_bytes()))
    }

    /// The answer, whose body is on its way, and what brings it.
    async fn send(&self, asked: Asked<'_>) -> io::Result<(Response<Incoming>, Connection)> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let connection = Connection(tokio::spawn(connection));
        let body = asked.body.map(|json| json.to_string()).unwrap_or_default();
        let mut request = Request::builder()
            .method(asked.method)
            .uri(asked.path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(revision) = asked.revision {
            request = request.header(header::IF_MATCH, format!("\"{revision}\""));
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(io::Error::other)?;
        let response = sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        Ok((response, connection))
    }

    fn is_silent(&self, patience: Duration) -> Reason {
        Reason::new(
            format!("no answer within {} seconds", patience.as_secs()),
            format!("the log of the {} may say why", self.server.name),
        )
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

/// What brings an answer; ended when this is dropped.
#[derive(Debug)]
struct Connection(JoinHandle<hyper::Result<()>>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Events as they come.
#[derive(Debug)]
pub struct EventStream {
    client: Client,
    body: Incoming,
    #[expect(dead_code, reason = "it is held as long as the answer is read")]
    connection: Connection,
    /// What has come and is not whole yet.
    rest: Vec<u8>,
    last: Option<EventId>,
}

impl EventStream {
    /// The next event, when it comes. `None` where the balancer says that no more will.
    ///
    /// # Errors
    ///
    /// A [`Reason`] where the answer is broken off, or is none that this version knows.
    pub async fn next(&mut self) -> Result<Option<Event>, Reason> {
        loop {
            while let Some(end) = self.rest.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.rest.drain(..end + 2).collect();
                let block = String::from_utf8_lossy(&block);
                let field = |name: &str| {
                    block
                        .lines()
                        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                };
                if let Some(id) = field("id") {
                    self.last = Some(id.parse()?);
                }
                if let Some(json) = field("data") {
                    let event = serde_json::from_str(json);
                    return event.map(Some).map_err(|error| foreign(&error));
                }
            }
            if !self.read().await? {
                return Ok(None);
            }
        }
    }

    /// Where to go on: the id of the last event that has come, if it is known.
    #[must_use]
    pub const fn last(&self) -> Option<EventId> {
        self.last
    }

    /// Reads some more. `false` where the answer ends.
    async fn read(&mut self) -> Result<bool, Reason> {
        let frame = tokio::time::timeout(SILENCE, self.body.frame()).await;
        let frame = frame.map_err(|_| self.client.is_silent(SILENCE))?;
        let Some(frame) = frame else {
            return Ok(false);
        };
        let frame = frame.map_err(|error| self.client.unreachable(&io::Error::other(error)))?;
        if let Some(data) = frame.data_ref() {
            self.rest.extend_from_slice(data);
        }
        Ok(true)
    }
}

/// What is no answer that is known.
fn foreign(error: &serde_json::Error) -> Reason {
    Reason::new(
        format!("the answer is not one that this version knows: {error}"),
        "use the `lb` of the version that runs",
    )
}

/// Why the balancer says no.
fn failure(answer: &[u8]) -> Reason {
    match serde_json::from_slice::<Failure>(answer) {
        Ok(Failure { error }) => Reason {
            message: error.message,
            hint: error.hint,
            field: error.field,
        },
        Err(error) => foreign(&error),
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
