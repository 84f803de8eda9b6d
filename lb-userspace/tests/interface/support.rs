//! A balancer without a datapath: the real API in front of the real desired state.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use lb_userspace::{
    api::{self, Access, Client, Socket},
    config::{self, Source},
    intent::{Intent, Overrides},
    state::{
        Control, Events, Explanation, FlowFilter, FlowList, FlowStatus, Question, Refusal, Request,
        Status, rules,
    },
};
use tempfile::TempDir;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

/// It listens on a socket in a directory of its own until it is stopped or dropped.
pub(crate) struct Balancer {
    directory: TempDir,
    events: Events,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
    daemon: JoinHandle<()>,
}

impl Balancer {
    /// Starts one that shows `status` and wants nothing yet. Needs a Tokio runtime.
    pub(crate) fn start(status: Status) -> Self {
        Self::start_for(status, Access::default())
    }

    /// The same, also for those whom `access` lets in.
    pub(crate) fn start_for(status: Status, access: Access) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lb.sock");
        let socket = Socket::bind_for(&path, access).unwrap();
        let (control, requests) = Control::channel(16);
        let events = control.events().clone();
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(api::serve(socket, control, async {
            let _ = stopped.await;
        }));
        let daemon = tokio::spawn(answer(requests, status));
        Self {
            directory,
            events,
            stop,
            server,
            daemon,
        }
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("lb.sock")
    }

    /// What it tells of: nothing by itself.
    pub(crate) const fn events(&self) -> &Events {
        &self.events
    }

    /// A client that asks it.
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.socket())
    }

    /// What answers the requests goes; the API stays.
    pub(crate) async fn lose_daemon(&mut self) {
        self.daemon.abort();
        let _ = (&mut self.daemon).await;
    }

    /// Stops the API, and waits until it has ended.
    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        self.server.await.unwrap();
        let left = std::fs::read_dir(self.directory.path()).unwrap().count();
        assert_eq!(left, 0, "the socket is removed");
    }
}

async fn answer(mut requests: mpsc::Receiver<Request>, status: Status) {
    let source = Source::new("/etc/lb/lb.toml", b"interfaces = [\"eth0\"]\n");
    let content = config::read(&source).config.unwrap().content(&source);
    let begun = Intent::begin(content, None, &Overrides::default(), &[]);
    let (mut intent, mut desired) = begun.unwrap();
    while let Some(request) = requests.recv().await {
        let revision = intent.revision();
        match request {
            Request::Status(answer) => drop(answer.send(status.clone())),
            Request::Services(answer) => {
                let services = desired.services().cloned().collect();
                drop(answer.send((revision, services)));
            }
            Request::Service(name, answer) => {
                drop(answer.send((revision, desired.service(&name).cloned())));
            }
            Request::View(answer) => drop(answer.send(intent.view(&desired))),
            Request::Flows(filter, answer) => drop(answer.send(flows(&filter))),
            Request::Explain(question, answer) => drop(answer.send(explain(&question))),
            Request::Change(change, condition, answer) => {
                let proposal = intent.change(&desired, change, condition.as_ref());
                let result = proposal.map(|proposal| {
                    desired = proposal.desired;
                    intent = proposal.after;
                    intent.revision()
                });
                drop(answer.send(result));
            }
            Request::Apply(apply, answer) => {
                let condition = apply.condition.as_ref();
                let proposal = match apply.content {
                    Some(content) => intent.apply(&desired, *content, condition),
                    None => intent.reset(&desired, condition),
                };
                let result = proposal.map(|proposal| {
                    let reloaded = proposal.after.reloaded(proposal.differences);
                    if !apply.is_dry_run {
                        desired = proposal.desired;
                        intent = proposal.after;
                    }
                    reloaded
                });
                drop(answer.send(result));
            }
        }
    }
}

/// What becomes of packets, by the port that they are sent to.
fn explain(question: &Question) -> Result<Explanation, Refusal> {
    let all: BTreeMap<String, Explanation> =
        serde_json::from_str(include_str!("cli/explain.json")).unwrap();
    let port = question.destination.port().to_string();
    Ok(all[&port].clone())
}

/// Two flows, as far as the filter lets them through.
fn flows(filter: &FlowFilter) -> Result<FlowList, Refusal> {
    if let Some(name) = filter.service.as_deref()
        && !["web", "dns"].contains(&name)
    {
        return Err(Refusal::NotFound(rules::no_such_service(name)));
    }
    let all: FlowList = serde_json::from_str(include_str!("cli/flows.json")).unwrap();
    let wanted = |flow: &FlowStatus| {
        let client: SocketAddr = flow.client.parse().unwrap();
        filter
            .service
            .as_ref()
            .is_none_or(|name| *name == flow.service)
            && filter
                .backend
                .is_none_or(|address| address.to_string() == flow.backend)
            && filter
                .client
                .is_none_or(|prefix| prefix.contains(client.ip()))
            && filter.state.is_none_or(|state| state == flow.state)
    };
    let mut flows: Vec<_> = all.flows.into_iter().filter(wanted).collect();
    let truncated = flows.len() > filter.limit as usize;
    flows.truncate(filter.limit as usize);
    Ok(FlowList { flows, truncated })
}

/// Sends one request as it is, and reads all of the answer.
pub(crate) fn send(socket: &Path, request: &[u8]) -> String {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    stream
        .set_read_timeout(Some(std::time::Duration::from_secs(20)))
        .unwrap();
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
