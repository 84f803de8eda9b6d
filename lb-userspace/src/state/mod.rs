//! What is wanted, what is, and the requests that change the one and read the
//! other.

mod control;
mod desired;
mod model;
mod reason;
pub mod rules;
mod status;
mod words;

pub use control::{Change, Control, Refusal, Request};
pub use desired::Desired;
pub use model::{
    BackendSpec, FULL_NAT_PORTS, HealthSpec, Mode, Probe, Protocol, Scheduler, ServiceSpec,
    Timeouts, VirtualAddress, parse_port, parse_port_range, parse_source,
};
pub use reason::Reason;
pub use status::{
    BackendState, BackendStatus, DropStatus, HealthStatus, InterfaceStatus, NextHopStatus,
    ServiceStatus, Status,
};
pub use words::Word;
pub(crate) use words::words;
