//! What is wanted, what is, and the requests that change the one and read the
//! other.

mod address;
mod control;
mod desired;
mod explain;
mod flows;
mod guard;
mod model;
pub mod quic;
mod reason;
pub mod rules;
mod status;
mod words;

pub use address::{BackendAddress, BackendPort, ServiceAddress, parse_port, parse_source};
pub use control::{Change, Control, Refusal, Request};
pub use desired::Desired;
pub use explain::{
    Explanation, Fate, Header, MetBackend, MetFlow, MetService, MetSlot, Piece, Question,
    QuestionStatus, Sent, SlotState, TcpFlags,
};
pub use flows::{FlowFilter, FlowList, FlowState, FlowStatus};
pub use guard::{NewFlowLimits, RateLimit, parse_sources};
pub use model::{
    BackendSpec, DrainSpec, FULL_NAT_PORTS, GUE_PORT, Hash, HealthSpec, Mode, OnDeadline, OnEmpty,
    OtherPorts, Probe, Protocol, Quorum, Scheduler, ServiceSpec, SlowStartCurve, SlowStartSpec,
    Timeouts, Track, parse_port_range,
};
pub use quic::{QuicSpec, ServerId};
pub use reason::Reason;
pub use status::{
    BackendState, BackendStatus, DrainPhase, DrainStatus, DropStatus, HealthStatus,
    InterfaceStatus, NextHopStatus, ServiceStatus, Status,
};
pub use words::Word;
pub(crate) use words::words;
