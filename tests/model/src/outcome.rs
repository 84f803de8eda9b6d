//! What becomes of a packet.

use std::collections::BTreeMap;

macro_rules! reasons {
    ($($variant:ident = $number:literal, $name:literal;)+) => {
        /// Why a packet is dropped. The numbers are those of the documentation's list.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        #[expect(missing_docs, reason = "the README's list tells what each is")]
        pub enum Reason {
            $($variant = $number,)+
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its name in counters.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

reasons! {
    IpHeader = 1, "ip-header";
    IpLength = 2, "ip-length";
    IpChecksum = 3, "ip-checksum";
    Ipv6Extension = 5, "ipv6-extension";
    TransportHeader = 6, "transport-header";
    TcpFlags = 7, "tcp-flags";
    TtlExpired = 8, "ttl-expired";
    NoBackend = 9, "no-backend";
    BackendGone = 10, "backend-gone";
    NextHopUnresolved = 11, "next-hop-unresolved";
    NoFlow = 12, "no-flow";
    FlowTableFull = 13, "flow-table-full";
    SourcePortsExhausted = 14, "source-ports-exhausted";
    ReplyTupleTaken = 15, "reply-tuple-taken";
    TooBig = 16, "too-big";
    NoInterface = 17, "no-interface";
    NoHeadroom = 18, "no-headroom";
    NoService = 19, "no-service";
    MartianSource = 20, "martian-source";
    Hairpin = 21, "hairpin";
    FragmentFirstMissing = 22, "fragment-first-missing";
    FragmentTiny = 23, "fragment-tiny";
    FragmentOverlap = 24, "fragment-overlap";
    IcmpHeader = 25, "icmp-header";
    SourceDenied = 30, "source-denied";
    RateLimitedSource = 31, "rate-limited-source";
    RateLimitedService = 32, "rate-limited-service";
    Drained = 35, "drained";
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
pub enum Direction {
    /// From a client to a service.
    Forward = 0,
    /// From a backend to a client.
    Reply = 1,
}

/// A packet that is dropped, and what it is counted under: 0 where no service was found,
/// or no backend chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Drop {
    /// Id of the service.
    pub service: u32,
    /// Id of the backend.
    pub backend: u32,
    /// Why.
    pub reason: Reason,
    /// Which way it went.
    pub direction: Direction,
}

impl Drop {
    /// To a service address, but of no service that is known.
    #[must_use]
    pub fn unknown(reason: Reason) -> Self {
        Self::forward(reason, 0, 0)
    }

    /// On its way from a client.
    #[must_use]
    pub fn forward(reason: Reason, service: u32, backend: u32) -> Self {
        Self {
            service,
            backend,
            reason,
            direction: Direction::Forward,
        }
    }

    /// On its way to a client.
    #[must_use]
    pub fn reply(reason: Reason, service: u32, backend: u32) -> Self {
        Self {
            direction: Direction::Reply,
            ..Self::forward(reason, service, backend)
        }
    }
}

/// What is to happen to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The host gets it as it came.
    Pass,
    /// Nobody gets it.
    Drop,
    /// It leaves by the interface that it came in by.
    Transmit,
    /// It leaves by the interface with this index.
    Redirect(u32),
}

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What is to happen to it.
    pub action: Action,
    /// The frame that leaves or that the host gets; `None` where nobody gets one.
    pub frame: Option<Vec<u8>>,
    /// The drop that is counted. A packet that is too big is counted as dropped also when
    /// the frame leaves again as an answer.
    pub drop: Option<Drop>,
    /// A choice of the program that was not its to make.
    pub complaint: Option<String>,
}

impl Outcome {
    /// The host gets the frame as it came.
    #[must_use]
    pub fn pass(frame: &[u8]) -> Self {
        Self::sent(Action::Pass, frame.to_vec())
    }

    /// The frame leaves.
    #[must_use]
    pub fn sent(action: Action, frame: Vec<u8>) -> Self {
        Self {
            action,
            frame: Some(frame),
            drop: None,
            complaint: None,
        }
    }

    /// Nobody gets it.
    #[must_use]
    pub fn dropped(drop: Drop) -> Self {
        Self {
            action: Action::Drop,
            frame: None,
            drop: Some(drop),
            complaint: None,
        }
    }
}

impl From<Drop> for Outcome {
    fn from(drop: Drop) -> Self {
        Self::dropped(drop)
    }
}

/// What passed for a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets from clients.
    pub packets: u64,
    /// Bytes of their IP packets as they came.
    pub bytes: u64,
    /// Packets to clients.
    pub reply_packets: u64,
    /// Bytes of their IP packets as they came.
    pub reply_bytes: u64,
    /// Flows that began.
    pub new_flows: u64,
    /// Flows that ended.
    pub ended_flows: u64,
}

/// Everything that has been counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// By id of the backend; none that is all zeros.
    pub backends: BTreeMap<u32, Counts>,
    /// Dropped packets.
    pub drops: BTreeMap<Drop, u64>,
}

impl Totals {
    /// The counts of a backend, to add to.
    pub fn backend(&mut self, id: u32) -> &mut Counts {
        self.backends.entry(id).or_default()
    }
}
