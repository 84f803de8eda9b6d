//! What is: the form that `lb status --json` prints. Fields are added, never
//! renamed.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigurationStatus, Mode, OnDeadline, Protocol, Scheduler, words::words};

/// The state of the whole balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// Services, by name.
    pub services: Vec<ServiceStatus>,
    /// Packets dropped since the start, by the name of the reason; every reason
    /// is there, also those with 0.
    pub drops: BTreeMap<String, u64>,
    /// Interfaces that the balancer is, or should be, attached to.
    pub interfaces: Vec<InterfaceStatus>,
    /// Where what is wanted comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<ConfigurationStatus>,
}

/// A service. Its counters are the sums over its backends, those that were
/// removed included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Where clients reach it, as in the configuration.
    pub address: String,
    /// Its transport protocol.
    pub protocol: Protocol,
    /// Its forwarding mode.
    pub mode: Mode,
    /// Its scheduler.
    pub scheduler: Scheduler,
    /// Packets from clients that were forwarded.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
    /// Packets from backends that were forwarded to clients.
    pub reply_packets: u64,
    /// Their bytes, from the IP header on.
    pub reply_bytes: u64,
    /// Flows that began.
    pub new_flows: u64,
    /// Flows that ended, or were forgotten after their timeout.
    pub ended_flows: u64,
    /// Flows that are live: of those with entries, the confirmed ones that have not ended.
    pub active_flows: u64,
    /// Whether its `active_flows` and those of its backends are exact: each of its flows has
    /// an entry. Else they are an estimate.
    #[serde(default)]
    pub active_is_exact: bool,
    /// Packets dropped, with reasons; only what has happened.
    pub drops: Vec<DropStatus>,
    /// Its backends, in the order of the configuration.
    pub backends: Vec<BackendStatus>,
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackendStatus {
    /// Its address and port, as in the configuration.
    pub address: String,
    /// Its weight.
    pub weight: u32,
    /// Whether it takes flows.
    pub state: BackendState,
    /// What its health check last found.
    pub health: HealthStatus,
    /// How its packets leave.
    pub next_hop: NextHopStatus,
    /// Its drain, while it is under way or over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainStatus>,
    /// Packets forwarded to it.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
    /// Packets from it that were forwarded to clients.
    pub reply_packets: u64,
    /// Their bytes, from the IP header on.
    pub reply_bytes: u64,
    /// Flows that began.
    pub new_flows: u64,
    /// Flows that ended, or were forgotten after their timeout.
    pub ended_flows: u64,
    /// Flows that are live, as in [`ServiceStatus::active_flows`].
    pub active_flows: u64,
    /// Packets dropped, with reasons; only what has happened.
    pub drops: Vec<DropStatus>,
}

words! {
    /// How far the drain of a backend is.
    DrainPhase, "phase of a drain", "`draining`, `drained`, `over` or `resetting`" {
        /// Flows are left, and time.
        Draining = "draining",
        /// No flow is left.
        Drained = "drained",
        /// The deadline has passed, and flows are left, which go on.
        Over = "over",
        /// The deadline has passed, and the flows that are left are reset with their next
        /// packet.
        Resetting = "resetting",
    }
}

/// The drain of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrainStatus {
    /// How far it is.
    pub phase: DrainPhase,
    /// Live flows when it began.
    pub flows_at_start: u64,
    /// Live flows now.
    pub flows_left: u64,
    /// Seconds since it began.
    pub seconds: u64,
    /// Seconds to the deadline; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
    /// What becomes of flows that are left then.
    pub on_deadline: OnDeadline,
}

words! {
    /// Whether a backend takes flows.
    BackendState, "state", "`up`, `down`, `draining` or `disabled`" {
        /// It takes new flows (if its weight is not 0).
        Up = "up",
        /// Its health check took it out.
        Down = "down",
        /// It is drained, or its weight is 0: the flows that it has go on, no new ones come.
        Draining = "draining",
        /// Taken out by hand.
        Disabled = "disabled",
    }
}

/// What the health check of a backend found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HealthStatus {
    /// `none` without a health check, `unknown` before the first result, else `ok`
    /// or `failing`: the last result.
    pub last: String,
    /// Why the last check failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Successes or failures in a row.
    pub streak: u32,
    /// Seconds from that result on that the backend stays down although its checks succeed,
    /// because it flaps; absent where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<u64>,
}

/// The next hop of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NextHopStatus {
    /// `resolved`, or why it is not: `no-route`, `no-neighbour`, `link-down`,
    /// `local` (the address belongs to this host), `not-attached` (the way out is an
    /// interface that the balancer does not use); or why the service's mode cannot use it:
    /// `gateway`, `no-source`, `service-ports`.
    pub state: String,
    /// What is in the way, where that needs more than a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Address of the next hop: the gateway, or the backend itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Name of the interface that packets leave by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Ethernet address of the next hop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// Packets dropped for one reason in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DropStatus {
    /// Name of the reason.
    pub reason: String,
    /// `forward` or `reply`.
    pub direction: String,
    /// How many.
    pub packets: u64,
}

/// An interface that the balancer is, or should be, attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// `attached`; `gone`, until there is an interface of the name again; or
    /// `not-attached`, where there is one again that does not take the program (yet).
    pub state: String,
    /// `native` or `generic`; `none` while the balancer is not attached.
    pub mode: String,
    /// Why the balancer could not be attached to an interface that came back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
