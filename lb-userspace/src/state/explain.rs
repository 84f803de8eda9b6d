//! What becomes of a packet, as people see it: what they ask for, and what they get.

use std::{fmt, net::SocketAddr, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Mode, Protocol, Reason, Scheduler, words::words};

words! {
    /// Which part of a packet that is in fragments.
    Piece, "fragment", "`first` or `later`" {
        /// The one with the transport header.
        First = "first",
        /// One that comes behind it.
        Later = "later",
    }
}

words! {
    /// What became of a packet.
    Fate, "fate", "`to-backend`, `to-client`, `answered`, `dropped` or `passed`" {
        /// It went to a backend.
        ToBackend = "to-backend",
        /// It went from a backend to a client.
        ToClient = "to-client",
        /// Its sender gets an answer in its place.
        Answered = "answered",
        /// It was dropped.
        Dropped = "dropped",
        /// It is for the network stack of this host.
        Passed = "passed",
    }
}

words! {
    /// Who has flows of a slot.
    SlotState, "state of a slot", "`clean`, `changing` or `pinned`" {
        /// The owner, all of them.
        Clean = "clean",
        /// The owner those that are new, the origin those of before.
        Changing = "changing",
        /// The owner, but for those with entries.
        Pinned = "pinned",
    }
}

/// Flags of a TCP header (RFC 9293, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// Their names, by bit.
    const NAMES: [&'static str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];
    /// Of the first packet of a connection.
    pub const SYN: Self = Self(1 << 1);
}

impl FromStr for TcpFlags {
    type Err = Reason;

    fn from_str(text: &str) -> Result<Self, Reason> {
        let mut flags = 0;
        for name in text.split(',').filter(|name| *name != "none") {
            let bit = Self::NAMES.iter().position(|known| *known == name);
            let bit = bit.ok_or_else(|| {
                Reason::new(
                    format!("there is no TCP flag `{name}`"),
                    format!(
                        "use some of `{}`, with commas, or `none`",
                        Self::NAMES.join(",")
                    ),
                )
            })?;
            flags |= 1 << bit;
        }
        Ok(Self(flags))
    }
}

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = (0..8).filter(|bit| self.0 >> bit & 1 == 1);
        let names: Vec<_> = names.map(|bit| Self::NAMES[bit]).collect();
        f.pad(&if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(",")
        })
    }
}

/// A packet that is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Its transport protocol.
    pub protocol: Protocol,
    /// Who sends it.
    pub source: SocketAddr,
    /// Where to, of the same family.
    pub destination: SocketAddr,
    /// Of TCP.
    pub tcp_flags: TcpFlags,
    /// Where it is in fragments, which one is meant.
    pub fragment: Option<Piece>,
    /// Name of the interface that it comes in by; `None` for that of its flow, or the first one.
    pub interface: Option<String>,
    /// Bytes behind the transport header, up to [`Self::MAX_LENGTH`]. All are zero.
    pub length: u16,
    /// TTL or hop limit, at least 1.
    pub ttl: u8,
}

impl Question {
    /// Most bytes behind the transport header: within a jumbo frame.
    pub const MAX_LENGTH: u16 = 8_900;
    /// TTL or hop limit unless somebody says otherwise (RFC 1700, "IP option numbers").
    pub const TTL: u8 = 64;

    /// The packet that begins a flow.
    #[must_use]
    pub fn new(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            protocol,
            source,
            destination,
            tcp_flags: TcpFlags::SYN,
            fragment: None,
            interface: None,
            length: 0,
            ttl: Self::TTL,
        }
    }

    /// # Errors
    ///
    /// What makes no sense in it.
    pub fn check(&self) -> Result<(), Reason> {
        if self.source.is_ipv4() != self.destination.is_ipv4() {
            return Err(Reason::new(
                "the source and the destination are of different families",
                "give two IPv4 addresses or two IPv6 addresses",
            ));
        }
        if self.length > Self::MAX_LENGTH {
            return Err(Reason::new(
                format!("{} bytes are more than a frame holds", self.length),
                format!("give at most {}", Self::MAX_LENGTH),
            ));
        }
        if self.ttl == 0 {
            return Err(Reason::new(
                "no packet comes with a TTL of 0",
                "give one from 1 to 255",
            ));
        }
        Ok(())
    }
}

/// What becomes of a packet, and what it met on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The packet.
    pub packet: QuestionStatus,
    /// What becomes of it.
    pub fate: Fate,
    /// The reason for a drop, by its name; also where the sender gets an answer instead.
    pub reason: Option<String>,
    /// The same in words.
    pub description: Option<String>,
    /// The service that it is sent to, or that its flow belongs to.
    pub service: Option<MetService>,
    /// Its slot in the ring of the service, where it is sent to one.
    pub slot: Option<MetSlot>,
    /// The entry of its flow, as it was.
    pub flow: Option<MetFlow>,
    /// Whether a flow begins with it, of which an entry is kept.
    pub begins_flow: bool,
    /// The backend.
    pub backend: Option<MetBackend>,
    /// What leaves, unless it is dropped or passed.
    pub sent: Option<Sent>,
}

/// The packet that was asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QuestionStatus {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address and port of the sender.
    pub source: String,
    /// Address and port of the receiver.
    pub destination: String,
    /// `syn,ack`; `null` for UDP.
    pub tcp_flags: Option<String>,
    /// Where it is in fragments, which one it is.
    pub fragment: Option<Piece>,
    /// Interface that it comes in by.
    pub interface: String,
    /// Bytes of the frame.
    pub bytes: u64,
}

/// The service of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MetService {
    /// Its name; `null` where it was removed.
    pub name: Option<String>,
    /// Its addresses and ports, as in the configuration.
    pub address: Option<String>,
    /// How it forwards.
    pub mode: Option<Mode>,
    /// How it chooses backends.
    pub scheduler: Option<Scheduler>,
    /// What the list of sources says: whether packets are taken; `null` where it has none, or
    /// the packet is from a backend.
    pub source_allowed: Option<bool>,
}

/// The slot of a packet in the ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MetSlot {
    /// Its number, from 0 on.
    pub index: u32,
    /// Slots of the ring.
    pub of: u32,
    /// Who has its flows.
    pub state: SlotState,
    /// The backend that new flows go to; `null` for none.
    pub owner: Option<String>,
    /// The backend that flows of before are at; `null` for none.
    pub origin: Option<String>,
}

/// The entry of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MetFlow {
    /// How far it is: `embryonic`, `established` or `closing`.
    pub state: super::FlowState,
    /// Its backend; `null` where that was removed.
    pub backend: Option<String>,
    /// Which table has it: `flow`, `reply` or `pin`.
    pub kind: String,
}

/// The backend of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MetBackend {
    /// Its address, as in the configuration; `null` where it was removed.
    pub address: Option<String>,
    /// What the datapath takes it for: `up`, `down`, `resetting` or `absent`.
    pub state: String,
}

/// A frame that leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sent {
    /// Interface that it leaves by.
    pub interface: String,
    /// Bytes of the frame.
    pub bytes: u64,
    /// Its headers, the outermost first.
    pub headers: Vec<Header>,
}

/// A header of a packet. What it has not is `null`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Header {
    /// `ethernet`, `vlan`, `ipv4`, `ipv6`, `fragment`, `tcp`, `udp`, `gue`, `icmp` or `icmpv6`.
    pub layer: String,
    /// Ethernet or IP address, or port.
    pub source: Option<String>,
    /// Ethernet or IP address, or port.
    pub destination: Option<String>,
    /// What else there is to know of it.
    pub detail: Option<String>,
}
