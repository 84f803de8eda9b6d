//! The flow table as people see it: what they ask for, and what they get.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BackendAddress, Protocol, words::words};
use crate::address::AddressPrefix;

words! {
    /// How far a flow is.
    FlowState, "state of a flow", "`embryonic`, `established` or `closing`" {
        /// It has not shown yet that somebody answers.
        Embryonic = "embryonic",
        /// Both sides speak.
        Established = "established",
        /// One side has ended it, or both.
        Closing = "closing",
    }
}

/// Which flows are asked for: those that everything given says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowFilter {
    /// Of the service of this name.
    pub service: Option<String>,
    /// Of the backends at this address; without a port, on any.
    pub backend: Option<BackendAddress>,
    /// Of these clients.
    pub client: Option<AddressPrefix>,
    /// In this state.
    pub state: Option<FlowState>,
    /// At most so many, from 1 to [`Self::MAX_LIMIT`].
    pub limit: u32,
}

impl FlowFilter {
    /// How many are listed where nothing is said.
    pub const DEFAULT_LIMIT: u32 = 1_000;
    /// The most that are listed: the answer stays within a few megabytes.
    pub const MAX_LIMIT: u32 = 10_000;
}

impl Default for FlowFilter {
    fn default() -> Self {
        Self {
            service: None,
            backend: None,
            client: None,
            state: None,
            limit: Self::DEFAULT_LIMIT,
        }
    }
}

/// Flows, in no order. Those that come or go while the tables are read may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowList {
    /// As many as were asked for.
    pub flows: Vec<FlowStatus>,
    /// Whether there are more.
    pub truncated: bool,
}

/// A flow. Addresses have ports: `192.0.2.10:443`, `[2001:db8::10]:443`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowStatus {
    /// Name of the service.
    pub service: String,
    /// Its backend, as in the configuration.
    pub backend: String,
    /// Its transport protocol.
    pub protocol: Protocol,
    /// Who began it.
    pub client: String,
    /// Where the client sends to.
    pub address: String,
    /// What the backend sees as its client.
    pub source: String,
    /// How far it is.
    pub state: FlowState,
    /// Seconds since either side spoke.
    pub idle_seconds: u64,
}
