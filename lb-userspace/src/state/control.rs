//! Requests to the running balancer. The API turns HTTP into these; the daemon's
//! main task answers them one after the other, so that a reader never sees half
//! a change.

use tokio::sync::{mpsc, oneshot};

use super::{
    BackendAddress, BackendSpec, Condition, Events, Explanation, FileContent, FlowFilter, FlowList,
    Question, Reason, Reloaded, Revision, ServiceSpec, Status, View,
};

/// A change to the desired state. It is checked whole and done whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new service.
    AddService(Box<ServiceSpec>),
    /// Another specification for the service of the same name.
    SetService(Box<ServiceSpec>),
    /// The service of this name goes, with its backends and flows.
    RemoveService(String),
    /// A new backend of the service.
    AddBackend {
        /// Name of the service.
        service: String,
        /// The backend.
        backend: BackendSpec,
    },
    /// Another weight for the backend of the same address.
    SetBackend {
        /// Name of the service.
        service: String,
        /// The backend.
        backend: BackendSpec,
    },
    /// The backend goes, with its flows.
    RemoveBackend {
        /// Name of the service.
        service: String,
        /// Address of the backend.
        address: BackendAddress,
    },
}

impl Change {
    /// Name of the service that it is about.
    #[must_use]
    pub fn service(&self) -> &str {
        match self {
            Self::AddService(spec) | Self::SetService(spec) => &spec.name,
            Self::RemoveService(name) => name,
            Self::AddBackend { service, .. }
            | Self::SetBackend { service, .. }
            | Self::RemoveBackend { service, .. } => service,
        }
    }
}

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// What the change names does not exist.
    #[error("{0}")]
    NotFound(Reason),
    /// What the change would add exists, or contradicts what exists.
    #[error("{0}")]
    Conflict(Reason),
    /// The change makes no sense in itself.
    #[error("{0}")]
    Invalid(Reason),
    /// The state is not one that the change may be made to.
    #[error("{0}")]
    Outdated(Reason),
    /// The datapath would not take it, or it cannot be kept.
    #[error("{0}")]
    Failed(String),
    /// The balancer is going down.
    #[error("the balancer is shutting down")]
    ShuttingDown,
}

/// A request with the way back for its answer.
#[derive(Debug)]
pub enum Request {
    /// What is.
    Status(oneshot::Sender<Status>),
    /// What is wanted, by name.
    Services(oneshot::Sender<(Revision, Vec<ServiceSpec>)>),
    /// What is wanted of the service of this name, if it is there.
    Service(String, oneshot::Sender<(Revision, Option<ServiceSpec>)>),
    /// What is wanted, beside what the file says of it.
    View(oneshot::Sender<View>),
    /// Flows that there are.
    Flows(FlowFilter, oneshot::Sender<Result<FlowList, Refusal>>),
    /// What becomes of a packet.
    Explain(Question, oneshot::Sender<Result<Explanation, Refusal>>),
    /// A change to what is wanted, if the state is one that it may be made to. The answer
    /// comes when the datapath has it, and it is kept.
    Change(
        Change,
        Option<Condition>,
        oneshot::Sender<Result<Revision, Refusal>>,
    ),
    /// All that a file says, or only the file.
    Apply(Apply, oneshot::Sender<Result<Reloaded, Refusal>>),
}

/// What is wanted anew.
#[derive(Clone, Debug)]
pub struct Apply {
    /// What a file says; nothing to forget what was changed beside the file.
    pub content: Option<Box<FileContent>>,
    /// The states that it may be done to.
    pub condition: Option<Condition>,
    /// Only say what would change.
    pub is_dry_run: bool,
}

/// The sending end, which every API connection holds.
#[derive(Clone, Debug)]
pub struct Control(mpsc::Sender<Request>, Events);

impl Control {
    /// A channel that holds up to `capacity` requests that wait for the daemon.
    #[must_use]
    pub fn channel(capacity: usize) -> (Self, mpsc::Receiver<Request>) {
        let (sender, receiver) = mpsc::channel(capacity);
        (Self(sender, Events::default()), receiver)
    }

    /// What happens.
    #[must_use]
    pub const fn events(&self) -> &Events {
        &self.1
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Refusal> {
        let (sender, receiver) = oneshot::channel();
        self.0
            .send(request(sender))
            .await
            .map_err(|_| Refusal::ShuttingDown)?;
        receiver.await.map_err(|_| Refusal::ShuttingDown)
    }

    /// What is.
    ///
    /// # Errors
    ///
    /// [`Refusal::ShuttingDown`] when the daemon no longer answers.
    pub async fn status(&self) -> Result<Status, Refusal> {
        self.ask(Request::Status).await
    }

    /// What is wanted, by name, and its revision.
    ///
    /// # Errors
    ///
    /// [`Refusal::ShuttingDown`] when the daemon no longer answers.
    pub async fn services(&self) -> Result<(Revision, Vec<ServiceSpec>), Refusal> {
        self.ask(Request::Services).await
    }

    /// What is wanted of the service of this name, and the state's revision.
    ///
    /// # Errors
    ///
    /// [`Refusal::ShuttingDown`] when the daemon no longer answers.
    pub async fn service(&self, name: &str) -> Result<(Revision, Option<ServiceSpec>), Refusal> {
        self.ask(|answer| Request::Service(name.to_owned(), answer))
            .await
    }

    /// What is wanted, beside what the file says of it.
    ///
    /// # Errors
    ///
    /// [`Refusal::ShuttingDown`] when the daemon no longer answers.
    pub async fn view(&self) -> Result<View, Refusal> {
        self.ask(Request::View).await
    }

    /// Flows that there are.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] says what of the filter is not there, or why the tables cannot be
    /// read.
    pub async fn flows(&self, filter: FlowFilter) -> Result<FlowList, Refusal> {
        self.ask(|answer| Request::Flows(filter, answer)).await?
    }

    /// What becomes of a packet. Nothing is sent, written or counted.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] says what of the question makes no sense, or why there is no answer.
    pub async fn explain(&self, question: Question) -> Result<Explanation, Refusal> {
        self.ask(|answer| Request::Explain(question, answer))
            .await?
    }

    /// Makes a change and waits until the datapath has it, and it is kept. Returns the
    /// revision of the state then.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] says why nothing was changed.
    pub async fn change(
        &self,
        change: Change,
        condition: Option<Condition>,
    ) -> Result<Revision, Refusal> {
        self.ask(|answer| Request::Change(change, condition, answer))
            .await?
    }

    /// Brings about what a file says, or says what would change.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] says why nothing was changed.
    pub async fn apply(&self, apply: Apply) -> Result<Reloaded, Refusal> {
        self.ask(|answer| Request::Apply(apply, answer)).await?
    }
}
