//! What makes a service right. The configuration file and the API ask the same
//! rules, so that neither takes what the other refuses.
//!
//! A rule looks at values that could be read; that they could be is the business of
//! those who read them.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use lb_common::CLOCK_TICK_MS;

mod health;

pub use health::{MAX_HEALTH_INTERVAL, MIN_HEALTH_INTERVAL, exec_by_file, no_probe, unknown_probe};

use health::health;

use super::{
    BackendAddress, BackendPort, BackendSpec, DrainSpec, FULL_NAT_PORTS, FlowFilter, GUE_PORT,
    Hash, HealthKey, Mode, OnDeadline, Protocol, Quorum, RateLimit, Reason, Scheduler,
    ServiceAddress, ServiceSpec, SlowStartCurve, Track,
    quic::{MAX_CONNECTION_ID, MAX_ROTATION, MAX_SERVER_ID},
};
use crate::address::{AddressPrefix, PortRange};

/// Most bytes of a service's name.
pub const MAX_NAME: usize = 63;
/// Services that the datapath has room for; id 0 is never used.
pub const MAX_SERVICES: usize = lb_common::service::MAX_SERVICES as usize - 1;
/// Backends of all services that the datapath has room for; id 0 is never used.
pub const MAX_BACKENDS: usize = lb_common::backend::MAX_BACKENDS as usize - 1;
/// Server IDs of all services that the datapath has room for, while others take their place.
pub const MAX_SERVER_IDS: usize = lb_common::quic::MAX_SERVER_IDS as usize / 2;
/// The longest that a flow may be silent.
pub const MAX_FLOW_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Bits of the source of a tunnel that may vary with the flow.
pub const MAX_SOURCE_BITS: u8 = 16;
/// The least maximum segment size: what every host takes (RFC 9293, section 3.7.1).
pub const MIN_SEGMENT_SIZE: u16 = 536;
/// The longest that a drain may take.
pub const MAX_DRAIN: Duration = Duration::from_secs(30 * 24 * 3600);
/// The shortest slow start: each of its steps is a ring to be built.
pub const MIN_SLOW_START: Duration = Duration::from_secs(1);
/// The longest slow start.
pub const MAX_SLOW_START: Duration = Duration::from_secs(24 * 3600);
/// Prefixes of both lists of sources of a service together.
pub const MAX_SOURCES: usize = 16_384;
/// Prefixes of the lists of sources of all services together. While one list takes the place
/// of another, the datapath has both, and besides one prefix for each service.
pub const MAX_ALL_SOURCES: usize =
    (lb_common::guard::MAX_SOURCE_PREFIXES / 2) as usize - MAX_SERVICES;
/// The longest that the bucket of a limit may take to fill: what the datapath can count.
pub const MAX_FILLING: Duration = Duration::from_secs(365 * 24 * 3600);
/// Fewest slots of a ring.
pub const MIN_RING: u32 = 251;
/// Most slots of a ring: the largest prime of 24 bits.
pub const MAX_RING: u32 = 16_777_213;

/// One value of a service, named as in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "each is a field of the specification, documented there"
)]
pub enum Field {
    Service,
    Name,
    Address,
    Protocol,
    Mode,
    Scheduler,
    Hash,
    Affinity,
    RingSize,
    Track,
    Quorum,
    PanicThreshold,
    OnEmpty,
    SlowStart,
    SlowStartCurve,
    Allow,
    Deny,
    Limits,
    NewPerSource,
    NewPerService,
    Quic,
    ServerIdOffset,
    ServerIdLength,
    ConfigRotation,
    Source,
    SourcePorts,
    GuePort,
    MaxSegmentSize,
    OtherPorts,
    IcmpEcho,
    Timeouts,
    Unreplied,
    TcpEstablished,
    TcpClosing,
    Udp,
    Health,
    HealthKey(HealthKey),
    Backends,
    Backend(usize),
    BackendAddress(usize),
    BackendWeight(usize),
    BackendPriority(usize),
    BackendMaxConnections(usize),
    BackendServerId(usize),
    BackendDrain(usize),
    BackendDeadline(usize),
    BackendOnDeadline(usize),
    BackendHealth(usize),
    BackendHealthKey(usize, HealthKey),
}

impl Field {
    /// The health check of a backend, or of the service where `None`.
    #[must_use]
    pub const fn health(backend: Option<usize>) -> Self {
        match backend {
            None => Self::Health,
            Some(index) => Self::BackendHealth(index),
        }
    }

    /// A key of the same.
    #[must_use]
    pub const fn health_key(backend: Option<usize>, key: HealthKey) -> Self {
        match backend {
            None => Self::HealthKey(key),
            Some(index) => Self::BackendHealthKey(index, key),
        }
    }

    /// What the field is part of; the service is part of itself.
    #[must_use]
    pub const fn parent(self) -> Self {
        match self {
            Self::Unreplied | Self::TcpEstablished | Self::TcpClosing | Self::Udp => Self::Timeouts,
            Self::HealthKey(_) => Self::Health,
            Self::BackendHealthKey(index, _) => Self::BackendHealth(index),
            Self::BackendAddress(index)
            | Self::BackendWeight(index)
            | Self::BackendPriority(index)
            | Self::BackendMaxConnections(index)
            | Self::BackendServerId(index)
            | Self::BackendDrain(index)
            | Self::BackendHealth(index) => Self::Backend(index),
            Self::NewPerSource | Self::NewPerService => Self::Limits,
            Self::ServerIdOffset | Self::ServerIdLength | Self::ConfigRotation => Self::Quic,
            Self::BackendDeadline(index) | Self::BackendOnDeadline(index) => {
                Self::BackendDrain(index)
            }
            _ => Self::Service,
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "service",
            Self::Name => "name",
            Self::Address => "address",
            Self::Protocol => "protocol",
            Self::Mode => "mode",
            Self::Scheduler => "scheduler",
            Self::Hash => "hash",
            Self::Affinity => "affinity",
            Self::RingSize => "ring_size",
            Self::Track => "track",
            Self::Quorum => "quorum",
            Self::PanicThreshold => "panic_threshold",
            Self::OnEmpty => "on_empty",
            Self::SlowStart => "slow_start",
            Self::SlowStartCurve => "slow_start_curve",
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Limits => "limits",
            Self::NewPerSource => "limits.new_per_source",
            Self::NewPerService => "limits.new_per_service",
            Self::Quic => "quic",
            Self::ServerIdOffset => "quic.server_id_offset",
            Self::ServerIdLength => "quic.server_id_length",
            Self::ConfigRotation => "quic.config_rotation",
            Self::Source => "source",
            Self::SourcePorts => "source_ports",
            Self::GuePort => "gue_port",
            Self::MaxSegmentSize => "max_segment_size",
            Self::OtherPorts => "other_ports",
            Self::IcmpEcho => "icmp_echo",
            Self::Timeouts => "timeouts",
            Self::Unreplied => "timeouts.unreplied",
            Self::TcpEstablished => "timeouts.tcp_established",
            Self::TcpClosing => "timeouts.tcp_closing",
            Self::Udp => "timeouts.udp",
            Self::Health => "health",
            Self::HealthKey(key) => return write!(f, "health.{}", key.in_json()),
            Self::Backends => "backends",
            Self::Backend(index) => return write!(f, "backends[{index}]"),
            Self::BackendAddress(index) => return write!(f, "backends[{index}].address"),
            Self::BackendWeight(index) => return write!(f, "backends[{index}].weight"),
            Self::BackendPriority(index) => return write!(f, "backends[{index}].priority"),
            Self::BackendMaxConnections(index) => {
                return write!(f, "backends[{index}].max_connections");
            }
            Self::BackendServerId(index) => return write!(f, "backends[{index}].server_ids"),
            Self::BackendDrain(index) => return write!(f, "backends[{index}].drain"),
            Self::BackendDeadline(index) => return write!(f, "backends[{index}].drain.deadline"),
            Self::BackendOnDeadline(index) => {
                return write!(f, "backends[{index}].drain.on_deadline");
            }
            Self::BackendHealth(index) => return write!(f, "backends[{index}].health"),
            Self::BackendHealthKey(index, key) => {
                return write!(f, "backends[{index}].health.{}", key.in_json());
            }
        })
    }
}

/// A rule that a service breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The value that is wrong.
    pub field: Field,
    /// The value that it contradicts.
    pub against: Option<Field>,
    /// In another mode it would be right.
    pub by_mode: bool,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub hint: String,
}

impl Violation {
    fn new(field: Field, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            field,
            against: None,
            by_mode: false,
            message: message.into(),
            hint: hint.into(),
        }
    }

    fn against(self, other: Field) -> Self {
        Self {
            against: Some(other),
            ..self
        }
    }

    fn by_mode(self) -> Self {
        Self {
            by_mode: true,
            ..self
        }
    }
}

/// Every rule that the service breaks by itself, apart from other services.
#[must_use]
pub fn check(service: &ServiceSpec) -> Vec<Violation> {
    check_written(service, |_| false)
}

/// The same where it is known what is written down. What the mode has no use for is wrong
/// then also if it says no more than the default.
#[must_use]
pub fn check_written(service: &ServiceSpec, is_written: impl Fn(Field) -> bool) -> Vec<Violation> {
    let mut found = Vec::new();
    found.extend(name(&service.name));
    found.extend(service_address(service.address.prefix));
    selection(service, &mut found);
    sources(service, &mut found);
    limits(service, &mut found);
    quic(service, &mut found);
    source(service, &mut found);
    source_ports(service, is_written(Field::SourcePorts), &mut found);
    gue_port(service, is_written(Field::GuePort), &mut found);
    found.extend(max_segment_size(service));
    timeouts(service, &mut found);
    health(service, &mut found);
    backends(service, &mut found);
    found
}

fn name(name: &str) -> Option<Violation> {
    let right = (1..=MAX_NAME).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c));
    (!right).then(|| {
        Violation::new(
            Field::Name,
            if name.is_empty() {
                "the name is empty".to_owned()
            } else {
                format!("`{}` cannot name a service", name.escape_debug())
            },
            format!(
                "a name has 1 to {MAX_NAME} letters, digits, `-`, `_` or `.`, and begins with a \
                 letter or digit"
            ),
        )
    })
}

/// Addresses that packets can be sent to from other hosts.
fn service_address(prefix: AddressPrefix) -> Option<Violation> {
    if prefix.is_address() {
        return host_address(Field::Address, prefix.address());
    }
    [prefix.address(), prefix.last()]
        .into_iter()
        .find_map(|ip| {
            let kind = unusable(ip)?;
            Some(Violation::new(
                Field::Address,
                format!("`{prefix}` has addresses that no service can have: `{ip}` is {kind}"),
                "use a longer prefix, of addresses that are routed to this host",
            ))
        })
}

/// An address that a packet can be sent to from another host, and that means the
/// same on every interface.
fn host_address(field: Field, ip: IpAddr) -> Option<Violation> {
    let kind = unusable(ip)?;
    let hint = match kind {
        "an IPv4 address written as IPv6" => "write the IPv4 address by itself",
        "a link-local address" => {
            "use a global or unique local address: a link-local one needs an interface to mean \
             something"
        }
        _ => "use the address of a host, one that is routed to it",
    };
    Some(Violation::new(field, format!("`{ip}` is {kind}"), hint))
}

fn unusable(ip: IpAddr) -> Option<&'static str> {
    match ip {
        _ if ip.is_unspecified() => Some("the unspecified address"),
        _ if ip.is_loopback() => Some("a loopback address"),
        _ if ip.is_multicast() => Some("a multicast address"),
        IpAddr::V4(Ipv4Addr::BROADCAST) => Some("the broadcast address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("an address of \"this network\""),
        IpAddr::V4(v4) if v4.octets()[0] >= 240 => Some("a reserved address"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("an IPv4 address written as IPv6"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        _ => None,
    }
}

/// How a flow finds its backend.
fn selection(service: &ServiceSpec, found: &mut Vec<Violation>) {
    let is_maglev = service.scheduler == Scheduler::Maglev;
    if !is_maglev && service.hash != Hash::FiveTuple {
        found.push(
            Violation::new(
                Field::Hash,
                format!("scheduler `{}` hashes nothing", service.scheduler),
                "leave it out, or use scheduler `maglev`; `affinity` keeps a client at its backend",
            )
            .against(Field::Scheduler),
        );
    }
    if let Some(affinity) = service.affinity {
        if is_maglev {
            found.push(
                Violation::new(
                    Field::Affinity,
                    "scheduler `maglev` remembers no client",
                    "use `hash = \"client\"`, which sends a client to one backend, or another \
                     scheduler",
                )
                .against(Field::Scheduler),
            );
        }
        found.extend(flow_time(
            Field::Affinity,
            "a client cannot be remembered for",
            affinity,
        ));
    }
    match service.slow_start {
        Some(window) if !(MIN_SLOW_START..=MAX_SLOW_START).contains(&window) => {
            found.push(Violation::new(
                Field::SlowStart,
                format!(
                    "a slow start cannot take {}",
                    humantime::format_duration(window)
                ),
                "use a time from 1s to 1day, or leave it out",
            ));
        }
        None if service.slow_start_curve != SlowStartCurve::Linear => {
            found.push(
                Violation::new(
                    Field::SlowStartCurve,
                    "there is no slow start that could have a curve",
                    "say how long it takes, too: `slow-start = \"30s\"`",
                )
                .against(Field::SlowStart),
            );
        }
        _ => {}
    }
    found.extend(ring_size(service.ring_size));
    found.extend(untracked(service));
    let quorums = [
        (Field::Quorum, Some(service.quorum), "quorum"),
        (
            Field::PanicThreshold,
            service.panic_threshold,
            "panic threshold",
        ),
    ];
    for (field, quorum, name) in quorums {
        let is_some = match quorum {
            Some(Quorum::Count(count)) => count >= 1,
            Some(Quorum::Percent(percent)) => (1..=100).contains(&percent),
            None => true,
        };
        if let Some(quorum) = quorum.filter(|_| !is_some) {
            found.push(Violation::new(
                field,
                format!("{quorum} is no {name}"),
                "use a number of backends, at least 1, or a share from 1% to 100%",
            ));
        }
    }
}

/// The lists of sources.
fn sources(service: &ServiceSpec, found: &mut Vec<Violation>) {
    let address = service.address.prefix;
    let count = service.allow.len() + service.deny.len();
    if count > MAX_SOURCES {
        let field = if service.deny.is_empty() {
            Field::Allow
        } else {
            Field::Deny
        };
        found.push(Violation::new(
            field,
            format!("{count} prefixes are more than a service has room for"),
            format!("use at most {MAX_SOURCES}: several may be parts of a shorter one"),
        ));
        return;
    }
    let mut seen = HashMap::new();
    for (field, list) in [(Field::Allow, &service.allow), (Field::Deny, &service.deny)] {
        for prefix in list {
            let (mine, wanted) = (family(prefix.address()), family(address.address()));
            if mine != wanted {
                found.push(
                    Violation::new(
                        field,
                        format!("`{prefix}` is {mine}, but the service's address `{address}` is {wanted}"),
                        format!("leave it out: clients of this service have {wanted} addresses"),
                    )
                    .against(Field::Address),
                );
            }
            match seen.insert(*prefix, field) {
                Some(before) if before == field => found.push(Violation::new(
                    field,
                    format!("`{prefix}` is there twice"),
                    "name it once",
                )),
                Some(_) => found.push(
                    Violation::new(
                        field,
                        format!("`{prefix}` is both allowed and denied"),
                        "take it out of one of the lists; the longest prefix decides",
                    )
                    .against(Field::Allow),
                ),
                None => {}
            }
        }
    }
}

fn limits(service: &ServiceSpec, found: &mut Vec<Violation>) {
    let limits = &service.limits;
    for (field, limit) in [
        (Field::NewPerSource, limits.new_per_source),
        (Field::NewPerService, limits.new_per_service),
    ] {
        let Some(RateLimit { rate, burst }) = limit else {
            continue;
        };
        if rate == 0 || burst == 0 {
            found.push(Violation::new(
                field,
                "with a limit of 0 no flow ever begins",
                "use a rate and a burst of at least 1, or leave it out",
            ));
        } else if u64::from(burst / rate) >= MAX_FILLING.as_secs() {
            found.push(Violation::new(
                field,
                format!(
                    "at {rate} a second, {burst} at once take more than a year to be there again"
                ),
                "use a smaller burst or a higher rate",
            ));
        }
        if service.protocol == Protocol::Udp && service.track() == Track::None {
            found.push(
                Violation::new(
                    field,
                    "without entries nobody knows which datagrams begin a flow",
                    "leave it out, or use `track = \"all\"`",
                )
                .against(Field::Track),
            );
        }
    }
}

/// Connection IDs of QUIC.
fn quic(service: &ServiceSpec, found: &mut Vec<Violation>) {
    let Some(quic) = &service.quic else {
        let named = |backend: &BackendSpec| !backend.server_ids.is_empty();
        found.extend(service.backends.iter().position(named).map(|index| {
            Violation::new(
                Field::BackendServerId(index),
                "a backend has a server ID, but the service does not say where to find it",
                "say how long it is in connection IDs: `quic = { server-id-length = 4 }`",
            )
            .against(Field::Quic)
        }));
        return;
    };
    if service.protocol != Protocol::Udp {
        let message = "QUIC is spoken over UDP alone";
        let hint = "leave it out, or use `protocol = \"udp\"`";
        found.push(Violation::new(Field::Quic, message, hint).against(Field::Protocol));
    }
    let (offset, length) = (quic.server_id_offset, quic.server_id_length);
    if !(1..=MAX_SERVER_ID).contains(&length) {
        found.push(Violation::new(
            Field::ServerIdLength,
            format!("a server ID cannot have {length} bytes"),
            format!("use a length from 1 to {MAX_SERVER_ID}"),
        ));
        return;
    }
    if offset == 0 || offset > MAX_CONNECTION_ID - length {
        found.push(Violation::new(
            Field::ServerIdOffset,
            format!("no connection ID has {length} bytes of server ID behind {offset} others"),
            format!(
                "use an offset from 1 to {}: the first octet comes before, and a connection ID \
                 has {MAX_CONNECTION_ID} bytes at most",
                MAX_CONNECTION_ID - length
            ),
        ));
    }
    let rotation = &quic.config_rotation;
    if rotation.is_empty()
        || !rotation.is_sorted_by(|a, b| a < b)
        || rotation.iter().any(|number| *number > MAX_ROTATION)
    {
        found.push(Violation::new(
            Field::ConfigRotation,
            "these are no configurations of connection IDs",
            format!(
                "list numbers from 0 to {MAX_ROTATION} in rising order: `[0]`, or `[0, 1]` \
                     while servers change from one to the next"
            ),
        ));
    }
    let mut owners = HashMap::new();
    for (index, backend) in service.backends.iter().enumerate() {
        let field = Field::BackendServerId(index);
        for id in &backend.server_ids {
            if id.bytes().len() != usize::from(length) {
                let has = id.bytes().len();
                found.push(
                    Violation::new(
                        field,
                        format!(
                            "server ID `{id}` has {has} bytes, but those of the service {length}"
                        ),
                        format!("write {} hex digits", usize::from(length) * 2),
                    )
                    .against(Field::ServerIdLength),
                );
            }
            if let Some(owner) = owners.insert(*id, index) {
                found.push(
                    Violation::new(
                        field,
                        format!("server ID `{id}` is there twice"),
                        "give each backend one of its own",
                    )
                    .against(Field::BackendServerId(owner)),
                );
            }
        }
    }
}

/// Flows are to do without entries, and cannot.
fn untracked(service: &ServiceSpec) -> Option<Violation> {
    if service.track != Some(Track::None) || !service.needs_entries() {
        return None;
    }
    let limited = |backend: &BackendSpec| backend.max_connections.is_some();
    let (message, against) = if service.mode.translates() {
        let message = format!("in mode `{}` every flow has an entry", service.mode);
        (message, Field::Mode)
    } else if service.scheduler != Scheduler::Maglev {
        let message = format!(
            "with scheduler `{}` every flow has an entry",
            service.scheduler
        );
        (message, Field::Scheduler)
    } else {
        let index = service.backends.iter().position(limited)?;
        let message = "without entries nobody counts the connections of a backend".to_owned();
        (message, Field::BackendMaxConnections(index))
    };
    let hint = "leave it out, or use `all`";
    Some(Violation::new(Field::Track, message, hint).against(against))
}

fn ring_size(size: u32) -> Option<Violation> {
    if !(MIN_RING..=MAX_RING).contains(&size) {
        return Some(Violation::new(
            Field::RingSize,
            format!("a ring cannot have {size} slots"),
            format!("use a prime number from {MIN_RING} to {MAX_RING}"),
        ));
    }
    if is_prime(size) {
        return None;
    }
    // Both bounds are primes.
    let lower = (MIN_RING..size).rev().find(|n| is_prime(*n))?;
    let upper = (size..=MAX_RING).find(|n| is_prime(*n))?;
    Some(Violation::new(
        Field::RingSize,
        format!("{size} is no prime number"),
        format!("the nearest are {lower} and {upper}"),
    ))
}

/// Whether a number is prime.
#[must_use]
pub fn is_prime(number: u32) -> bool {
    let mut divisors = (2..).take_while(|divisor| divisor * divisor <= number);
    number >= 2 && divisors.all(|divisor| !number.is_multiple_of(divisor))
}

const fn family(ip: IpAddr) -> &'static str {
    match ip {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}

/// `field` has an address of another family than the service, in a mode where that
/// matters.
fn other_family(field: Field, ip: IpAddr, service: &ServiceSpec) -> Option<Violation> {
    let address = service.address.prefix;
    let (mine, wanted) = (family(ip), family(address.address()));
    if mine == wanted || service.mode.tunnels() {
        return None;
    }
    let found = Violation::new(
        field,
        format!("`{ip}` is {mine}, but the service's address `{address}` is {wanted}"),
        format!(
            "mode `{}` needs one family on both sides: use {wanted} here, or make a second \
             service for {mine}",
            service.mode
        ),
    );
    Some(found.against(Field::Address).by_mode())
}

fn source(service: &ServiceSpec, found: &mut Vec<Violation>) {
    let Some(source) = service.source else {
        return;
    };
    match service.mode {
        Mode::FullNat if !source.is_address() => {
            let message = format!("mode `full-nat` has one source address, but `{source}` is many");
            let hint = "write a single address; ports tell flows apart";
            found.push(Violation::new(Field::Source, message, hint).against(Field::Mode));
        }
        Mode::Ipip | Mode::Gue if source.host_bits() > MAX_SOURCE_BITS => {
            let length = source.length() + source.host_bits() - MAX_SOURCE_BITS;
            found.push(Violation::new(
                Field::Source,
                format!(
                    "at most {MAX_SOURCE_BITS} bits of the source vary with the flow, but \
                     `{source}` leaves {} open",
                    source.host_bits()
                ),
                format!(
                    "use a longer prefix: `{}`",
                    AddressPrefix::new(source.address(), length)
                ),
            ));
        }
        Mode::FullNat | Mode::Ipip | Mode::Gue => {}
        Mode::Nat | Mode::Dsr => found.push(keeps_source(Field::Source, service.mode)),
    }
    found.extend(host_address(Field::Source, source.address()));
    found.extend(other_family(Field::Source, source.address(), service));
    if let Some((ports, _)) = answers_taken(service, service) {
        found.push(
            Violation::new(
                Field::Source,
                format!(
                    "`{source}` is the address of this service on {ports}, so replies of backends \
                     would be taken for requests of clients"
                ),
                OTHER_SOURCE,
            )
            .against(Field::Address)
            .by_mode(),
        );
    }
}

fn source_ports(service: &ServiceSpec, is_written: bool, found: &mut Vec<Violation>) {
    let ports = &service.source_ports;
    if is_written || *ports != FULL_NAT_PORTS {
        match service.mode {
            Mode::FullNat => {}
            Mode::Nat | Mode::Dsr => found.push(keeps_source(Field::SourcePorts, service.mode)),
            Mode::Ipip | Mode::Gue => found.push(
                Violation::new(
                    Field::SourcePorts,
                    format!("mode `{}` does not choose source ports", service.mode),
                    format!("leave it out, or use mode `{}`", Mode::FullNat),
                )
                .against(Field::Mode),
            ),
        }
    }
    if ports.is_empty() {
        found.push(Violation::new(
            Field::SourcePorts,
            format!("the range {}-{} is empty", ports.start(), ports.end()),
            format!(
                "the lower port comes first: `{}-{}`",
                ports.end(),
                ports.start()
            ),
        ));
    } else if *ports.start() == 0 {
        found.push(Violation::new(
            Field::SourcePorts,
            "port 0 is no source port",
            format!("begin the range at 1 or more: `1-{}`", ports.end()),
        ));
    }
}

fn keeps_source(field: Field, mode: Mode) -> Violation {
    Violation::new(
        field,
        format!("mode `{mode}` keeps the client's address and port, so it takes no source"),
        format!("leave it out, or use mode `{}`", Mode::FullNat),
    )
    .against(Field::Mode)
}

fn gue_port(service: &ServiceSpec, is_written: bool, found: &mut Vec<Violation>) {
    if service.gue_port == 0 {
        found.push(Violation::new(
            Field::GuePort,
            "0 is no port",
            "a port is a number from 1 to 65535",
        ));
    } else if (is_written || service.gue_port != GUE_PORT) && service.mode != Mode::Gue {
        found.push(
            Violation::new(
                Field::GuePort,
                format!("mode `{}` wraps nothing in UDP", service.mode),
                "leave it out, or use mode `gue`",
            )
            .against(Field::Mode),
        );
    }
}

fn max_segment_size(service: &ServiceSpec) -> Option<Violation> {
    let size = service.max_segment_size?;
    if service.protocol != Protocol::Tcp {
        let message = "UDP has no segments whose size could be lowered";
        let hint = "leave it out; it is for TCP";
        let found = Violation::new(Field::MaxSegmentSize, message, hint);
        return Some(found.against(Field::Protocol));
    }
    (size < MIN_SEGMENT_SIZE).then(|| {
        Violation::new(
            Field::MaxSegmentSize,
            format!("segments of {size} bytes are too small"),
            format!("use a size of at least {MIN_SEGMENT_SIZE}, which every host must take"),
        )
    })
}

fn timeouts(service: &ServiceSpec, found: &mut Vec<Violation>) {
    let times = &service.timeouts;
    for (field, timeout) in [
        (Field::Unreplied, times.unreplied),
        (Field::TcpEstablished, times.tcp_established),
        (Field::TcpClosing, times.tcp_closing),
        (Field::Udp, times.udp),
    ] {
        found.extend(flow_time(field, "a flow cannot time out after", timeout));
    }
}

/// A time that the datapath counts in ticks of its clock; `what` is said of one that is too
/// long or too short.
fn flow_time(field: Field, what: &str, time: Duration) -> Option<Violation> {
    let tick = Duration::from_millis(CLOCK_TICK_MS.into());
    let shown = humantime::format_duration(time);
    if time < tick || time > MAX_FLOW_TIMEOUT {
        return Some(Violation::new(
            field,
            format!("{what} {shown}"),
            "use a time from 100ms to 30days",
        ));
    }
    (!time.as_nanos().is_multiple_of(tick.as_nanos())).then(|| {
        Violation::new(
            field,
            format!("{shown} is no multiple of {CLOCK_TICK_MS} ms, the tick of the flow clock"),
            "round it to tenths of a second",
        )
    })
}

fn backends(service: &ServiceSpec, found: &mut Vec<Violation>) {
    if service.backends.len() > MAX_BACKENDS {
        found.push(Violation::new(
            Field::Backends,
            format!("{} backends are too many", service.backends.len()),
            format!("all services together have at most {MAX_BACKENDS}"),
        ));
    }
    // Where the port is kept, writing it does not make another backend.
    let identity = |address: BackendAddress| match service.mode.translates() {
        true => address,
        false => BackendAddress {
            port: BackendPort::Unnamed,
            ..address
        },
    };
    let mut seen = HashMap::<BackendAddress, usize>::new();
    for (index, backend) in service.backends.iter().enumerate() {
        let field = Field::BackendAddress(index);
        let first = *seen.entry(identity(backend.address)).or_insert(index);
        if first == index {
            backend_alone(service, index, backend, found);
        } else {
            found.push(
                Violation::new(
                    field,
                    format!("backend `{}` is there twice", backend.address),
                    "name it once; its weight says how much it takes",
                )
                .against(Field::BackendAddress(first)),
            );
        }
    }
}

fn backend_alone(
    service: &ServiceSpec,
    index: usize,
    backend: &BackendSpec,
    found: &mut Vec<Violation>,
) {
    let field = Field::BackendAddress(index);
    let address = backend.address;
    found.extend(host_address(field, address.ip));
    found.extend(other_family(field, address.ip, service));
    if service.address.prefix.contains(address.ip) {
        found.push(
            Violation::new(
                field,
                format!("`{}` is the service's own address", address.ip),
                "name the address that the backend has to itself",
            )
            .against(Field::Address),
        );
    }
    found.extend(backend_port(service, field, address));
    if backend.weight > BackendSpec::MAX_WEIGHT {
        found.push(Violation::new(
            Field::BackendWeight(index),
            format!("the weight {} is too large", backend.weight),
            format!(
                "a weight is a number from 0 to {}; only the proportion to the other weights \
                 counts",
                BackendSpec::MAX_WEIGHT
            ),
        ));
    }
    backend_selection(index, backend, found);
    if let Some(drain) = &backend.drain {
        backend_drain(index, drain, found);
    }
}

/// What a backend has for the choice among backends, besides its weight.
fn backend_selection(index: usize, backend: &BackendSpec, found: &mut Vec<Violation>) {
    if backend.priority > BackendSpec::MAX_PRIORITY {
        found.push(Violation::new(
            Field::BackendPriority(index),
            format!("the priority {} is too large", backend.priority),
            format!(
                "a priority is a number from 0 to {}; the lowest is served first",
                BackendSpec::MAX_PRIORITY
            ),
        ));
    }
    if backend.max_connections == Some(0) {
        found.push(Violation::new(
            Field::BackendMaxConnections(index),
            "a backend that may have no connection never serves",
            "use a number of at least 1; for no new flows set the weight to 0",
        ));
    }
}

fn backend_drain(index: usize, drain: &DrainSpec, found: &mut Vec<Violation>) {
    match drain.deadline {
        Some(deadline) if deadline > MAX_DRAIN => found.push(Violation::new(
            Field::BackendDeadline(index),
            format!(
                "a drain cannot take {}",
                humantime::format_duration(deadline)
            ),
            "use a time up to 30days, or leave it out for no deadline",
        )),
        None if drain.on_deadline == OnDeadline::Reset => found.push(Violation::new(
            Field::BackendOnDeadline(index),
            "flows are to be reset at a deadline that never comes",
            "say when: `deadline = \"60s\"`",
        )),
        _ => {}
    }
}

fn backend_port(service: &ServiceSpec, field: Field, address: BackendAddress) -> Option<Violation> {
    let ports = service.address.ports;
    let with = |port| BackendAddress { port, ..address };
    let (message, hint) = match (service.mode.translates(), address.port, ports.single()) {
        (true, BackendPort::Number(_), _) | (true, BackendPort::Every, None) => return None,
        (true, BackendPort::Every, Some(port)) => (
            format!("backend `{address}` is on every port, but the service on {port} alone"),
            format!(
                "name the port that the backend listens on: `{}`",
                with(BackendPort::Number(port))
            ),
        ),
        (true, BackendPort::Unnamed, Some(port)) => (
            format!("`{address}` names no port"),
            format!(
                "name the port that the backend listens on: `{}`",
                with(BackendPort::Number(port))
            ),
        ),
        (true, BackendPort::Unnamed, None) => (
            format!("`{address}` names no port"),
            format!(
                "write `{}` to keep the port that the client asked for, or name one",
                with(BackendPort::Every)
            ),
        ),
        (false, BackendPort::Unnamed, _) => return None,
        (false, BackendPort::Number(port), Some(same)) if port == same => return None,
        (false, BackendPort::Every, _) if ports == PortRange::ALL => return None,
        (false, BackendPort::Number(_) | BackendPort::Every, _) => (
            format!(
                "mode `{}` keeps the port that the client asked for, so backend `{address}` has \
                 {}, like the service",
                service.mode,
                on_ports(ports)
            ),
            format!("leave the port out: `{}`", with(BackendPort::Unnamed)),
        ),
    };
    let found = Violation::new(field, message, hint);
    Some(found.against(Field::Address).by_mode())
}

/// Ports in words.
fn on_ports(ports: PortRange) -> String {
    match ports.single() {
        Some(port) => format!("port {port}"),
        None if ports == PortRange::ALL => "every port".to_owned(),
        None => format!("ports {ports}"),
    }
}

const OTHER_SOURCE: &str = "use another address of this host as the source";

/// Whether the replies of backends of `translating` would all be taken for requests to
/// `service`, on whose address and ports they come: its ports, and the source.
///
/// Where it leaves source ports, the others are kept out of use.
fn answers_taken(translating: &ServiceSpec, service: &ServiceSpec) -> Option<(String, IpAddr)> {
    let source = translating.source?.address();
    let ports = &translating.source_ports;
    let wanted = PortRange::new(*ports.start(), *ports.end())?;
    let taken = translating.mode == Mode::FullNat
        && translating.protocol == service.protocol
        && service.address.prefix.contains(source)
        && service.address.ports.contains(wanted);
    taken.then(|| (on_ports(service.address.ports), source))
}

/// Two services that cannot be together: which value of the first contradicts which of
/// the second.
#[must_use]
pub fn conflict(service: &ServiceSpec, other: &ServiceSpec) -> Option<(Field, Field, Reason)> {
    if service.protocol == other.protocol
        && service.address.prefix == other.address.prefix
        && is_ambiguous(service.address, other.address)
    {
        let reason = same_address(service, other);
        return Some((Field::Address, Field::Address, reason));
    }
    if let Some((ports, source)) = answers_taken(service, other) {
        let reason = Reason::new(
            format!(
                "`{source}` is an address of service `{}` on {ports}, so replies of backends \
                 would be taken for requests of its clients",
                other.name
            ),
            OTHER_SOURCE,
        );
        return Some((Field::Source, Field::Address, reason));
    }
    let (ports, source) = answers_taken(other, service)?;
    let reason = Reason::new(
        format!(
            "service `{}` has `{source}` as its source, so replies of its backends would be taken \
             for requests to this service on {ports}",
            other.name
        ),
        "use another address, or give that service another source",
    );
    Some((Field::Address, Field::Source, reason))
}

/// Whether some port of one prefix does not say which of two services it is for: of ranges
/// of which one is part of the other, the smaller has it.
fn is_ambiguous(one: ServiceAddress, other: ServiceAddress) -> bool {
    let (a, b) = (one.ports, other.ports);
    a == b || (a.overlaps(b) && !a.contains(b) && !b.contains(a))
}

/// A service whose flows live where their slots say cannot have other slots for them.
#[must_use]
pub fn other_slots(before: &ServiceSpec, after: &ServiceSpec) -> Option<Reason> {
    let what = if before.hash != after.hash {
        "hash"
    } else if before.ring_size != after.ring_size {
        "ring-size"
    } else {
        return None;
    };
    (before.has_origins() && after.has_origins()).then(|| {
        Reason::new(
            format!(
                "another `{what}` would send connections of service `{}` to other backends",
                before.name
            ),
            "remove the service and add it anew when its connections may end, or give the new one \
             another address and wait until they have ended",
        )
    })
}

/// Two services have one name.
#[must_use]
pub fn same_name(name: &str) -> Reason {
    Reason::new(
        format!("service `{name}` is there already"),
        "give each service a name of its own",
    )
}

/// `service` wants what the service `owner` has.
#[must_use]
pub fn same_address(service: &ServiceSpec, owner: &ServiceSpec) -> Reason {
    let (address, protocol) = (service.address, service.protocol);
    let owned = owner.address;
    let owner = &owner.name;
    if address == owned {
        return Reason::new(
            format!("`{address}` {protocol} belongs to service `{owner}` already"),
            "give it another address, port or protocol, or put the backends into one service",
        );
    }
    Reason::new(
        format!(
            "`{address}` {protocol} has some ports of service `{owner}`, `{owned}`, and others"
        ),
        "two ranges of ports are apart, or one is part of the other and goes before it",
    )
}

/// One service too many.
#[must_use]
pub fn too_many_services() -> Reason {
    Reason::new(
        format!("there is room for {MAX_SERVICES} services"),
        "remove one that is not used",
    )
}

/// One backend too many.
#[must_use]
pub fn too_many_backends() -> Reason {
    Reason::new(
        format!("there is room for {MAX_BACKENDS} backends, of all services together"),
        "remove backends that are not used",
    )
}

/// One server ID too many.
#[must_use]
pub fn too_many_server_ids() -> Reason {
    Reason::new(
        format!("there is room for {MAX_SERVER_IDS} server IDs, of all services together"),
        "give backends fewer of them",
    )
}

/// One prefix of sources too many.
#[must_use]
pub fn too_many_sources() -> Reason {
    Reason::new(
        format!(
            "there is room for {MAX_ALL_SOURCES} prefixes of sources, of all services together"
        ),
        "take out some that are parts of others, or of services that are not used",
    )
}

/// More flows are asked for than are listed, or none.
#[must_use]
pub fn flow_limit(limit: u32) -> Option<Reason> {
    let range = 1..=FlowFilter::MAX_LIMIT;
    (!range.contains(&limit)).then(|| {
        Reason::new(
            format!("{limit} flows cannot be listed"),
            format!(
                "ask for 1 to {} at a time, of one service, backend or client",
                FlowFilter::MAX_LIMIT
            ),
        )
    })
}

/// There is no service of this name.
#[must_use]
pub fn no_such_service(name: &str) -> Reason {
    Reason::new(
        format!("there is no service `{}`", name.escape_debug()),
        "`lb service list` shows which there are",
    )
}

/// The service has no backend at this address.
#[must_use]
pub fn no_such_backend(service: &str, address: BackendAddress) -> Reason {
    Reason::new(
        format!("service `{service}` has no backend `{address}`"),
        format!("`lb backend list {service}` shows which there are"),
    )
}
