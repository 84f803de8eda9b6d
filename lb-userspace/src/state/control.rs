//! Requests to the running balancer. The API turns HTTP into these; the daemon's
//! main task answers them one after the other, so that a reader never sees half
//! a change.

use tokio::sync::{mpsc, oneshot};

use super::{
    BackendAddress, BackendSpec, Explanation, FlowFilter, FlowList, Question, Reason, ServiceSpec,
    Status,
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
    /// The datapath would not take it.
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
    Services(oneshot::Sender<Vec<ServiceSpec>>),
    /// Flows that there are.
    Flows(FlowFilter, oneshot::Sender<Result<FlowList, Refusal>>),
    /// What becomes of a packet.
    Explain(Question, oneshot::Sender<Result<Explanation, Refusal>>),
    /// A change to what is wanted. The answer comes when the datapath has it.
    Change(Change, oneshot::Sender<Result<(), Refusal>>),
}

/// The sending end, which every API connection holds.
#[derive(Clone, Debug)]
pub struct Control(mpsc::Sender<Request>);

impl Control {
    /// A channel that holds up to `capacity` requests that wait for the daemon.
    #[must_use]
    pub fn channel(capacity: usize) -> (Self, mpsc::Receiver<Request>) {
        let (sender, receiver) = mpsc::channel(capacity);
        (Self(sender), receiver)
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

    /// What is wanted, by name.
    ///
    /// # Errors
    ///
    /// [`Refusal::ShuttingDown`] when the daemon no longer answers.
    pub async fn services(&self) -> Result<Vec<ServiceSpec>, Refusal> {
        self.ask(Request::Services).await
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

    /// Makes a change and waits until the datapath has it.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] says why nothing was changed.
    pub async fn change(&self, change: Change) -> Result<(), Refusal> {
        self.ask(|answer| Request::Change(change, answer)).await?
    }
}
