//! The rows of the table, and which of them are measured on the same tables.

use std::fmt;

use lb_userspace::state::{Mode, Protocol, Word as _};

/// What a packet is to the balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Not for any service.
    NotOurs,
    /// From a client, of a flow that is known.
    Tracked,
    /// From a backend, of a flow that is known.
    Reply,
    /// From a client, of a flow that begins with it.
    New,
    /// From a client, of a slot of the ring without an entry in the flow table.
    Clean,
    /// The same, where it begins a connection.
    CleanSyn,
    /// From a client, of a slot that changed hands: its flow has an entry.
    Changing,
    /// From a client, of a slot that changed hands: its flow has none.
    Pinned,
    /// From a client, with a connection ID of QUIC that names the backend. No flow has an
    /// entry.
    Quic,
    /// An ICMP echo request to a service address.
    Echo,
}

/// What the slots of the service that is measured say of its flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slots {
    /// All.
    Clean,
    /// Flows that began after the change have entries.
    Changing,
    /// Flows from before the change have entries.
    Pinned,
    /// Nothing: the service has an entry for every flow.
    Tracked,
    /// Nothing: packets name their backend.
    Named,
}

/// What a configuration can have more than services on one address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Beside the others, a service on a range of ports.
    Ranges,
    /// Beside the others, a service on a prefix.
    Prefixes,
    /// The services lower the segment size of connections.
    SegmentSize,
    /// The services have lists of sources.
    Sources,
    /// The services have limits of new flows, of each source and of all together.
    Limits,
    /// Rings have not the usual number of slots.
    RingSize,
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// A row: what is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// What the packets are.
    pub scenario: Scenario,
    /// Mode of the service, where the packets are for one.
    pub mode: Option<Mode>,
    /// IP version; none for ARP.
    pub family: Option<IpVersion>,
    /// Transport protocol; none for ARP.
    pub protocol: Option<Protocol>,
    /// Flows in the tables, and flows that the packets belong to in turn; for
    /// [`Scenario::New`] the former alone.
    pub flows: u32,
    /// What the configuration has more.
    pub feature: Option<Feature>,
}

/// Rows that are measured one after the other on the same tables.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) mode: Mode,
    pub(crate) family: IpVersion,
    pub(crate) protocol: Protocol,
    pub(crate) flows: u32,
    pub(crate) slots: Slots,
    pub(crate) feature: Option<Feature>,
    pub(crate) rows: Vec<Row>,
}

/// The rows for these numbers of flows whose name contains any of `filters`, of whole
/// words, or all.
pub(crate) fn groups(flows: &[u32], filters: &[String]) -> Vec<Group> {
    let wanted = |row: &Row| {
        let name = format!("/{row}/");
        let names_it = |filter: &String| name.contains(&format!("/{filter}/"));
        filters.is_empty() || filters.iter().any(names_it)
    };
    let mut groups = Vec::new();
    let mut push = |mode, family, protocol, flows, slots, feature| {
        let mut group = Group {
            mode,
            family,
            protocol,
            flows,
            slots,
            feature,
            rows: Vec::new(),
        };
        group.rows = group.candidates().into_iter().filter(wanted).collect();
        groups.push(group);
    };
    for mode in Mode::ALL {
        for family in IpVersion::ALL {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for flows in flows {
                    push(*mode, family, protocol, *flows, Slots::Clean, None);
                }
            }
        }
    }
    // The same in all modes that do not translate.
    for family in IpVersion::ALL {
        for (slots, protocol) in [
            (Slots::Pinned, Protocol::Tcp),
            (Slots::Changing, Protocol::Tcp),
            (Slots::Tracked, Protocol::Tcp),
            (Slots::Tracked, Protocol::Udp),
            (Slots::Named, Protocol::Udp),
        ] {
            for flows in flows {
                push(Mode::Dsr, family, protocol, *flows, slots, None);
            }
        }
    }
    // Features are compared to one flow without them.
    for mode in [Mode::FullNat, Mode::Dsr] {
        for family in IpVersion::ALL {
            for feature in Feature::ALL {
                push(mode, family, Protocol::Tcp, 1, Slots::Clean, Some(feature));
            }
        }
    }
    groups.retain(|group| !group.rows.is_empty());
    groups
}

impl Group {
    fn candidates(&self) -> Vec<Row> {
        let ours = |scenario| Row {
            scenario,
            mode: Some(self.mode),
            family: Some(self.family),
            protocol: Some(self.protocol),
            flows: self.flows,
            feature: self.feature,
        };
        let mut rows = Vec::new();
        // Packets that are not ours are measured beside flows of one kind alone.
        if self.mode == Mode::FullNat && self.protocol == Protocol::Tcp {
            rows.push(Row {
                mode: None,
                ..ours(Scenario::NotOurs)
            });
            if self.flows == 1 && self.feature.is_none() {
                rows.push(Row {
                    mode: None,
                    protocol: None,
                    ..ours(Scenario::Echo)
                });
            }
            if self.family == IpVersion::Ipv4 && self.flows == 1 && self.feature.is_none() {
                rows.push(Row {
                    mode: None,
                    family: None,
                    protocol: None,
                    ..ours(Scenario::NotOurs)
                });
            }
        }
        rows.extend(self.scenarios().iter().copied().map(ours));
        rows
    }

    /// What packets for the service can be.
    fn scenarios(&self) -> &'static [Scenario] {
        if self.mode.translates() {
            return &[Scenario::Tracked, Scenario::Reply, Scenario::New];
        }
        match self.slots {
            Slots::Clean if self.protocol == Protocol::Tcp => {
                &[Scenario::Clean, Scenario::CleanSyn]
            }
            Slots::Clean => &[Scenario::Clean],
            Slots::Changing => &[Scenario::Changing],
            Slots::Pinned => &[Scenario::Pinned],
            Slots::Tracked => &[Scenario::Tracked, Scenario::New],
            Slots::Named => &[Scenario::Quic],
        }
    }
}

impl Scenario {
    /// The word used in JSON and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotOurs => "not-ours",
            Self::Tracked => "tracked",
            Self::Reply => "reply",
            Self::New => "new",
            Self::Clean => "clean",
            Self::CleanSyn => "clean-syn",
            Self::Changing => "changing",
            Self::Pinned => "pinned",
            Self::Quic => "quic",
            Self::Echo => "echo",
        }
    }
}

impl Row {
    /// The words of mode, family, protocol and feature, `-` where there is none.
    #[must_use]
    pub fn words(&self) -> [&'static str; 4] {
        [
            self.mode.map_or("-", Mode::as_str),
            self.family.map_or("-", IpVersion::as_str),
            self.protocol.map_or("-", Protocol::as_str),
            self.feature.map_or("-", Feature::as_str),
        ]
    }
}

impl Feature {
    const ALL: [Self; 6] = [
        Self::Ranges,
        Self::Prefixes,
        Self::SegmentSize,
        Self::Sources,
        Self::Limits,
        Self::RingSize,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Ranges => "ranges",
            Self::Prefixes => "prefixes",
            Self::SegmentSize => "segment-size",
            Self::Sources => "sources",
            Self::Limits => "limits",
            Self::RingSize => "ring-size",
        }
    }
}

impl IpVersion {
    const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }
}

/// The name of the row.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [mode, family, protocol, feature] = self.words();
        let scenario = self.scenario.as_str();
        write!(f, "{scenario}/{mode}/{family}/{protocol}/{}", self.flows)?;
        match self.feature {
            Some(_) => write!(f, "/{feature}"),
            None => Ok(()),
        }
    }
}
