//! What `lb status --json` says, as another program reads it.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Context, Result};
use serde::Deserialize;

/// The state of the balancer. Only what tests look at.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// Its services.
    pub services: Vec<ServiceStatus>,
    /// Packets dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// The interfaces that it is attached to.
    pub interfaces: Vec<InterfaceStatus>,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its counters.
    #[serde(flatten)]
    pub counters: Counters,
    /// What was dropped, by reason and direction.
    pub drops: Vec<DropStatus>,
    /// Its backends.
    pub backends: Vec<BackendStatus>,
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BackendStatus {
    /// Its address and port.
    pub address: String,
    /// Its weight.
    pub weight: u32,
    /// `up`, `down`, `draining` or `disabled`.
    pub state: String,
    /// What its health check found.
    pub health: HealthStatus,
    /// How its packets leave.
    pub next_hop: NextHopStatus,
    /// Its drain.
    pub drain: Option<DrainStatus>,
    /// Its counters.
    #[serde(flatten)]
    pub counters: Counters,
    /// What was dropped, by reason and direction.
    pub drops: Vec<DropStatus>,
}

/// What a health check found.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct HealthStatus {
    /// `none`, `unknown`, `ok` or `failing`.
    pub last: String,
    /// Why the last check failed.
    pub error: Option<String>,
}

/// A next hop.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct NextHopStatus {
    /// `resolved`, or why it is not.
    pub state: String,
    /// Address of the next hop: a gateway's, or the backend's own.
    pub address: Option<String>,
    /// Interface that packets leave by.
    pub interface: Option<String>,
    /// Ethernet address of the next hop.
    pub mac: Option<String>,
}

/// Packets to or from a service or a backend that were dropped.
/// The drain of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct DrainStatus {
    /// `draining`, `drained`, `over` or `resetting`.
    pub phase: String,
    /// Live flows.
    pub flows_left: u64,
    /// Seconds to the deadline.
    pub seconds_left: Option<u64>,
}

/// Packets to or from a backend that were dropped.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct DropStatus {
    /// Name of the reason.
    pub reason: String,
    /// How many.
    pub packets: u64,
}

/// Counters of a service or a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Counters {
    /// Packets from clients.
    pub packets: u64,
    /// Bytes of those, from the IP header on.
    pub bytes: u64,
    /// Packets to clients.
    pub reply_packets: u64,
    /// Bytes of those, from the IP header on.
    pub reply_bytes: u64,
    /// Flows that began.
    pub new_flows: u64,
    /// Flows that ended.
    pub ended_flows: u64,
    /// Flows that began and have not ended.
    pub active_flows: u64,
}

/// An interface of the balancer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// `attached`, `gone` or `not-attached`.
    pub state: String,
    /// `native`, `generic` or `none`.
    pub mode: String,
}

impl Status {
    /// The service of this name.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn service(&self, name: &str) -> Result<&ServiceStatus> {
        self.services
            .iter()
            .find(|service| service.name == name)
            .with_context(|| format!("the balancer has no service `{name}`"))
    }

    /// Whether every backend of every service takes flows and was found well.
    #[must_use]
    pub fn is_all_well(&self) -> bool {
        self.services
            .iter()
            .flat_map(|service| &service.backends)
            .all(BackendStatus::is_well)
    }
}

impl Counters {
    /// The sums with another's.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            reply_packets: self.reply_packets + other.reply_packets,
            reply_bytes: self.reply_bytes + other.reply_bytes,
            new_flows: self.new_flows + other.new_flows,
            ended_flows: self.ended_flows + other.ended_flows,
            active_flows: self.active_flows + other.active_flows,
        }
    }
}

impl ServiceStatus {
    /// The backend at this address and port.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn backend(&self, address: SocketAddr) -> Result<&BackendStatus> {
        let address = address.to_string();
        self.backends
            .iter()
            .find(|backend| backend.address == address)
            .with_context(|| format!("the service `{}` has no backend {address}", self.name))
    }
}

impl BackendStatus {
    /// Whether it takes flows, was found well, and can be reached.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.state == "up"
            && matches!(&*self.health.last, "ok" | "none")
            && self.next_hop.state == "resolved"
    }
}
