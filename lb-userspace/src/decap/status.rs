//! What is: the form that `lb decap status --json` prints. Fields are added, never
//! renamed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::state::InterfaceStatus;

/// The state of the unwrapping of tunnels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whom tunnels are unwrapped for, in the order of their addresses.
    pub vips: Vec<VipStatus>,
    /// Tunnel packets to this host that were left to the network stack, by why.
    pub passed: BTreeMap<String, u64>,
    /// Tunnel packets to this host that were dropped, by the name of the reason.
    pub drops: BTreeMap<String, u64>,
    /// Interfaces that the program is attached to.
    pub interfaces: Vec<InterfaceStatus>,
    /// UDP port of GUE.
    pub gue_port: u16,
    /// Addresses that tunnels may end at.
    pub locals: Vec<String>,
    /// Where tunnels may begin.
    pub sources: Vec<SourceStatus>,
}

/// A VIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipStatus {
    /// The address or prefix.
    pub address: String,
    /// Whether the host takes packets to it, of a prefix to all its addresses.
    pub local: bool,
    /// Whether the host takes packets to some addresses of the prefix, and not to others.
    pub partly_local: bool,
    /// Packets that were unwrapped for it.
    pub packets: u64,
    /// Their bytes, from the inner IP header on.
    pub bytes: u64,
}

/// Where tunnels may begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// The interface that they come in by.
    pub interface: String,
    /// The address or prefix of their source.
    pub prefix: String,
}
