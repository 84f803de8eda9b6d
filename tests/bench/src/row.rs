//! The rows of the table, and which of them are measured on the same tables.

use std::fmt;

use lb_userspace::state::{Mode, Protocol};

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
}

/// Rows that are measured one after the other on the same tables.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) mode: Mode,
    pub(crate) family: IpVersion,
    pub(crate) protocol: Protocol,
    pub(crate) flows: u32,
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
    for mode in [Mode::FullNat, Mode::Nat] {
        for family in [IpVersion::Ipv4, IpVersion::Ipv6] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for flows in flows.iter().copied() {
                    let mut group = Group {
                        mode,
                        family,
                        protocol,
                        flows,
                        rows: Vec::new(),
                    };
                    group.rows = group.candidates().into_iter().filter(wanted).collect();
                    groups.push(group);
                }
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
        };
        let mut rows = Vec::new();
        // Packets that are not ours are measured beside flows of one kind alone.
        if self.mode == Mode::FullNat && self.protocol == Protocol::Tcp {
            rows.push(Row {
                mode: None,
                ..ours(Scenario::NotOurs)
            });
            if self.family == IpVersion::Ipv4 && self.flows == 1 {
                rows.push(Row {
                    mode: None,
                    family: None,
                    protocol: None,
                    ..ours(Scenario::NotOurs)
                });
            }
        }
        rows.extend([Scenario::Tracked, Scenario::Reply, Scenario::New].map(ours));
        rows
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
        }
    }
}

impl Row {
    /// The words of mode, family and protocol, `-` where there is none.
    #[must_use]
    pub fn words(&self) -> [&'static str; 3] {
        [
            self.mode.map_or("-", Mode::as_str),
            self.family.map_or("-", IpVersion::as_str),
            self.protocol.map_or("-", Protocol::as_str),
        ]
    }
}

impl IpVersion {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }
}

/// The name of the row.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [mode, family, protocol] = self.words();
        let scenario = self.scenario.as_str();
        write!(f, "{scenario}/{mode}/{family}/{protocol}/{}", self.flows)
    }
}
