//! What is wanted, what is, and the requests that change the one and read the
//! other.

mod control;
mod model;
mod status;

pub use control::{Change, Control, Refusal, Request};
pub use model::{
    BackendSpec, FULL_NAT_PORTS, HealthSpec, Mode, ParseError, Probe, Protocol, Scheduler,
    ServiceSpec, Timeouts, VirtualAddress,
};
pub use status::{
    BackendState, BackendStatus, DropStatus, HealthStatus, InterfaceStatus, NextHopStatus,
    ServiceStatus, Status,
};
