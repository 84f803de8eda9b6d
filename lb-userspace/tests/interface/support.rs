//! A balancer without a datapath: the real API in front of the real desired state.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use lb_userspace::{
    api::{self, Client, Socket},
    state::{
        Control, Desired, Explanation, FlowFilter, FlowList, FlowStatus, Question, Refusal,
        Request, Status, rules,
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
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
    daemon: JoinHandle<()>,
}

impl Balancer {
    /// Starts one that shows `status` and wants nothing yet. Needs a Tokio runtime.
    pub(crate) fn start(status: Status) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = Socket::bind(&directory.path().join("lb.sock")).unwrap();
        let (control, requests) = Control::channel(16);
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(api::serve(socket, control, async {
            let _ = stopped.await;
        }));
        let daemon = tokio::spawn(answer(requests, status));
        Self {
            directory,
            stop,
            server,
            daemon,
        }
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("lb.sock")
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
    let mut desired = Desired::default();
    while let Some(request) = requests.recv().await {
        match request {
            Request::Status(answer) => drop(answer.send(status.clone())),
            Request::Services(answer) => {
                drop(answer.send(desired.services().cloned().collect()));
            }
            Request::Flows(filter, answer) => drop(answer.send(flows(&filter))),
            Request::Explain(question, answer) => drop(answer.send(explain(&question))),
            Request::Change(change, answer) => drop(answer.send(desired.apply(change))),
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
