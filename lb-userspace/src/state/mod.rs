//! What is wanted, what is, and the requests that change the one and read the
//! other.

mod address;
mod configuration;
mod control;
mod desired;
mod events;
mod explain;
mod flows;
mod guard;
mod health;
mod model;
pub mod quic;
mod reason;
pub mod rules;
mod status;
mod words;

pub use address::{BackendAddress, BackendPort, ServiceAddress, parse_port, parse_source};
pub use configuration::{
    Action, Condition, ConfigurationStatus, Difference, FileContent, KeyChange, Reloaded, Revision,
    View,
};
pub use control::{Apply, Change, Control, Refusal, Request};
pub use desired::Desired;
pub use events::{
    After, Changes, Event, EventId, Events, Happening, Listener, REMEMBERED, shortened,
};
pub use explain::{
    Explanation, Fate, Header, MetBackend, MetFlow, MetService, MetSlot, Piece, Question,
    QuestionStatus, Sent, SlotState, TcpFlags,
};
pub use flows::{FlowFilter, FlowList, FlowState, FlowStatus};
pub use guard::{NewFlowLimits, RateLimit, parse_sources};
pub use health::{
    Alpn, DnsProbe, ExecProbe, GrpcProbe, HealthKey, HealthSpec, HttpProbe, Method, Mistakes,
    Probe, ProbeKeys, ProbeKind, Rcode, RecordType, Statuses, TlsSpec, UdpProbe, parse_jitter,
};
pub use model::{
    BackendSpec, DrainSpec, FULL_NAT_PORTS, GUE_PORT, Hash, Mode, OnDeadline, OnEmpty, OtherPorts,
    Protocol, Quorum, Scheduler, ServiceSpec, SlowStartCurve, SlowStartSpec, Timeouts, Track,
    parse_port_range,
};
pub use quic::{QuicSpec, ServerId};
pub use reason::Reason;
pub use status::{
    BackendState, BackendStatus, DrainPhase, DrainStatus, DropStatus, HealthStatus,
    InterfaceStatus, NextHopStatus, ServiceStatus, Status,
};
pub use words::Word;
pub(crate) use words::words;
