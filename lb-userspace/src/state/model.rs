//! The desired state: services and their backends, after every check has passed.

use std::{borrow::Cow, fmt, net::IpAddr, ops::RangeInclusive, str::FromStr, time::Duration};

use lb_common::{ring::RING_SIZE, service};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    BackendAddress, BackendPort, HealthSpec, NewFlowLimits, QuicSpec, Reason, ServerId,
    ServiceAddress, parse_port, words::words,
};
use crate::address::AddressPrefix;

/// Source ports that full NAT uses unless the configuration says otherwise: all
/// that Linux leaves below its own default range for local sockets, 32768 to 60999
/// (`net.ipv4.ip_local_port_range`), without the privileged ones.
pub const FULL_NAT_PORTS: RangeInclusive<u16> = 1024..=32767;

/// UDP port that backends take GUE at unless the configuration says otherwise
/// (draft-ietf-intarea-gue, section 8).
pub const GUE_PORT: u16 = 6080;

words! {
    /// Transport protocol of a service.
    Protocol, "protocol", "`tcp` or `udp`" {
        /// TCP, IP protocol 6.
        Tcp = "tcp",
        /// UDP, IP protocol 17.
        Udp = "udp",
    }
}

words! {
    /// Forwarding mode of a service.
    Mode, "mode", "`full-nat`, `nat`, `dsr`, `ipip` or `gue`" {
        /// Destination and source are translated; backends need no set-up.
        FullNat = "full-nat",
        /// The destination is translated; backends route replies through here.
        Nat = "nat",
        /// Only the Ethernet addresses change; backends on the same Ethernet have the
        /// service address and answer the client directly.
        Dsr = "dsr",
        /// Packets are wrapped in IP; backends unwrap them, have the service address and
        /// answer the client directly.
        Ipip = "ipip",
        /// Packets are wrapped in UDP; else like [`Self::Ipip`].
        Gue = "gue",
    }
}

impl Mode {
    /// Whether addresses and ports change, so that both sides must be of one family and
    /// replies come back this way.
    #[must_use]
    pub const fn translates(self) -> bool {
        matches!(self, Self::FullNat | Self::Nat)
    }

    /// Whether packets are wrapped.
    #[must_use]
    pub const fn tunnels(self) -> bool {
        matches!(self, Self::Ipip | Self::Gue)
    }
}

impl From<Scheduler> for service::Scheduler {
    fn from(scheduler: Scheduler) -> Self {
        match scheduler {
            Scheduler::Maglev => Self::Hash,
            Scheduler::RoundRobin => Self::RoundRobin,
            Scheduler::LeastConnections => Self::LeastConnections,
            Scheduler::Random => Self::Random,
        }
    }
}

impl From<Mode> for service::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::FullNat => Self::FullNat,
            Mode::Nat => Self::Nat,
            Mode::Dsr => Self::Dsr,
            Mode::Ipip => Self::Ipip,
            Mode::Gue => Self::Gue,
        }
    }
}

words! {
    /// What becomes of TCP and UDP packets to a port of a service address that no service
    /// has.
    OtherPorts, "treatment of other ports", "`pass` or `drop`" {
        /// They go to the host.
        Pass = "pass",
        /// They are dropped.
        Drop = "drop",
    }
}

words! {
    /// How a new flow finds its backend. All of them keep to the weights.
    Scheduler, "scheduler", "`maglev`, `round-robin`, `least-connections` or `random`" {
        /// Maglev hashing of what [`Hash`](enum@Hash) says.
        Maglev = "maglev",
        /// One after the other.
        RoundRobin = "round-robin",
        /// The one with the fewest flows for its weight.
        LeastConnections = "least-connections",
        /// Any.
        Random = "random",
    }
}

words! {
    /// What of a packet chooses its slot of the ring with [`Scheduler::Maglev`].
    Hash, "hash input", "`5-tuple`, `client` or `client-port`" {
        /// Addresses, ports and protocol.
        FiveTuple = "5-tuple",
        /// The client's address: all flows of a client go to one backend.
        Client = "client",
        /// The client's address and port: also over several services, if they have the
        /// same backends.
        ClientPort = "client-port",
    }
}

words! {
    /// Which flows have an entry in the flow tables.
    Track, "tracking", "`none` or `all`" {
        /// Those whose slot of the ring alone does not say where they live.
        None = "none",
        /// Every one.
        All = "all",
    }
}

words! {
    /// What a service does whose backends are all down.
    OnEmpty, "behaviour without backends", "`drop` or `fail-open`" {
        /// It drops what begins a flow.
        Drop = "drop",
        /// It takes every backend as up: the checks may be wrong.
        FailOpen = "fail-open",
    }
}

words! {
    /// How the share of a backend grows that comes back.
    SlowStartCurve, "slow start curve", "`linear` or `quadratic`" {
        /// With the time.
        Linear = "linear",
        /// With the square of the time: gentler at first.
        Quadratic = "quadratic",
    }
}

/// A backend that comes back gets its share of new flows little by little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowStartSpec {
    /// The time until it has the whole.
    pub window: Duration,
    /// How its share grows.
    pub curve: SlowStartCurve,
}

words! {
    /// What becomes of the flows that are left when the time of a drain is over.
    OnDeadline, "end of a drain", "`reset` or `keep`" {
        /// Client and backend are told that the connection has ended.
        Reset = "reset",
        /// They go on.
        Keep = "keep",
    }
}

/// A backend that is being emptied: no new flows, until it is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainSpec {
    /// How long flows may go on, from its begin; `None` for as long as they like.
    pub deadline: Option<Duration>,
    /// What becomes of flows that are left then.
    pub on_deadline: OnDeadline,
}

impl DrainSpec {
    /// What becomes of flows where nothing is said.
    pub const DEFAULT_END: OnDeadline = OnDeadline::Keep;
}

/// How many backends must take flows before those of a lower tier are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quorum {
    /// So many, at least 1.
    Count(u32),
    /// So many of a hundred of the backends in the tiers above, from 1 to 100.
    Percent(u32),
}

impl Quorum {
    /// Whether `available` of `all` backends are enough.
    #[must_use]
    pub const fn is_met(self, available: usize, all: usize) -> bool {
        match self {
            Self::Count(count) => available as u64 >= count as u64,
            Self::Percent(percent) => available as u64 * 100 >= all as u64 * percent as u64,
        }
    }
}

impl Default for Quorum {
    /// One: a lower tier serves when the last backend above is gone.
    fn default() -> Self {
        Self::Count(1)
    }
}

impl fmt::Display for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// As in the configuration: a count is a number, a share is text.
impl Serialize for Quorum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Count(count) => serializer.serialize_u32(*count),
            Self::Percent(_) => serializer.collect_str(self),
        }
    }
}

impl JsonSchema for Quorum {
    fn schema_name() -> Cow<'static, str> {
        "Quorum".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of backends, or a share of them: `50%`.",
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": u32::MAX},
                {"type": "string", "pattern": "^[0-9]+%?$"},
            ],
        })
    }
}

impl<'de> Deserialize<'de> for Quorum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl de::Visitor<'_> for Reader {
            type Value = Quorum;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of backends, or a share of them like \"50%\"")
            }

            fn visit_u64<E: de::Error>(self, count: u64) -> Result<Quorum, E> {
                let wrong = || E::invalid_value(de::Unexpected::Unsigned(count), &self);
                u32::try_from(count).map(Quorum::Count).map_err(|_| wrong())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Quorum, E> {
                let wrong = |_| E::invalid_value(de::Unexpected::Str(text), &self);
                text.parse().map_err(wrong)
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

impl FromStr for Quorum {
    type Err = Reason;

    fn from_str(text: &str) -> Result<Self, Reason> {
        let number = |text: &str| text.parse().ok().filter(|_| !text.starts_with('+'));
        let read = match text.strip_suffix('%') {
            Some(percent) => number(percent).map(Self::Percent),
            None => number(text).map(Self::Count),
        };
        read.ok_or_else(|| {
            Reason::new(
                format!("`{}` is no quorum", text.escape_debug()),
                "write a number of backends, `2`, or a share of them, `50%`",
            )
        })
    }
}

impl Protocol {
    /// IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// Reads a range of ports, `1024-32767`. That it is the right way round is for
/// [`rules`](super::rules) to say.
///
/// # Errors
///
/// When it is not two ports joined by `-`.
pub fn parse_port_range(text: &str) -> Result<RangeInclusive<u16>, Reason> {
    let (first, last) = text.split_once('-').ok_or_else(|| {
        Reason::new(
            format!("`{text}` is no range of ports"),
            "write the first and the last port: `1024-32767`",
        )
    })?;
    Ok(parse_port(first.trim())?..=parse_port(last.trim())?)
}

/// How long a flow may be silent before it is forgotten, by the state it is in.
/// Both directions count as speaking. Whole numbers of [`lb_common::CLOCK_TICK_MS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, before the backend has answered. Also UDP without an answer.
    pub unreplied: Duration,
    /// TCP, established.
    pub tcp_established: Duration,
    /// TCP, after a FIN from either side or an RST.
    pub tcp_closing: Duration,
    /// UDP, after an answer.
    pub udp: Duration,
}

impl Default for Timeouts {
    /// Established TCP: 2 hours 4 minutes, the least that RFC 5382 REQ-5 allows a
    /// NAT. UDP: 5 minutes, as RFC 4787 REQ-5 recommends; unanswered UDP and
    /// handshakes 30 seconds. Closing: 60 seconds, how long Linux keeps TIME-WAIT,
    /// so that a source port is not used again towards a backend that still does.
    fn default() -> Self {
        Self {
            unreplied: Duration::from_secs(30),
            tcp_established: Duration::from_secs(7_440),
            tcp_closing: Duration::from_secs(60),
            udp: Duration::from_secs(300),
        }
    }
}

/// A service and its backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Unique name: ASCII letters, digits, `-`, `_` and `.`, 1 to 63 of them, the
    /// first a letter or a digit.
    pub name: String,
    /// Where clients reach it.
    pub address: ServiceAddress,
    /// What they speak.
    pub protocol: Protocol,
    /// How packets are forwarded.
    pub mode: Mode,
    /// How new flows are spread.
    pub scheduler: Scheduler,
    /// What chooses the slot with [`Scheduler::Maglev`].
    pub hash: Hash,
    /// With the other schedulers, a client goes to the backend that it had last, if it was
    /// there within this time; `None` for no such memory.
    pub affinity: Option<Duration>,
    /// Slots of the ring: a prime from [`MIN_RING`](super::rules::MIN_RING) to
    /// [`MAX_RING`](super::rules::MAX_RING).
    pub ring_size: u32,
    /// Which flows have entries, where it was given; see [`Self::track`].
    pub track: Option<Track>,
    /// When the backends of lower tiers are left out.
    pub quorum: Quorum,
    /// With fewer backends that are up than this, of all that are neither drained nor out of
    /// reach, all of these are used; `None` where checks are always believed.
    pub panic_threshold: Option<Quorum>,
    /// What happens while all backends are down.
    pub on_empty: OnEmpty,
    /// How long a backend that comes back has less than its share; `None` for not at all.
    pub slow_start: Option<Duration>,
    /// How its share grows.
    pub slow_start_curve: SlowStartCurve,
    /// Sources whose packets are taken: of prefixes with the same address the longest
    /// decides, here or in `deny`. Where this is empty, those that no prefix has are taken,
    /// else they are not.
    pub allow: Vec<AddressPrefix>,
    /// Sources whose packets are dropped.
    pub deny: Vec<AddressPrefix>,
    /// How many flows may begin.
    pub limits: NewFlowLimits,
    /// How connection IDs of QUIC say which backend they belong to; `None` for not at all.
    pub quic: Option<QuicSpec>,
    /// Source address of full NAT, of the same family as `address`. Of tunnels the
    /// source of the outer header to backends of its family, where a prefix stands for
    /// addresses that vary with the flow. `None` for the one that the kernel would use
    /// towards the backend.
    pub source: Option<AddressPrefix>,
    /// Source ports of full NAT.
    pub source_ports: RangeInclusive<u16>,
    /// UDP port that backends take GUE at.
    pub gue_port: u16,
    /// Largest segment that TCP connections may announce, in bytes; `None` for any.
    pub max_segment_size: Option<u16>,
    /// What becomes of packets to other ports of `address`. One service that drops them
    /// is enough.
    pub other_ports: OtherPorts,
    /// Whether ICMP echo requests to `address` are answered. One service that says no is
    /// enough.
    pub icmp_echo: bool,
    /// When silent flows are forgotten.
    pub timeouts: Timeouts,
    /// Health checks; `None` takes every backend as up that has none of its own.
    pub health: Option<HealthSpec>,
    /// Backends, in the order of the file.
    pub backends: Vec<BackendSpec>,
}

impl ServiceSpec {
    /// A TCP service without backends, everything else by default.
    #[must_use]
    pub fn new(name: impl Into<String>, address: ServiceAddress, mode: Mode) -> Self {
        Self {
            name: name.into(),
            address,
            protocol: Protocol::Tcp,
            mode,
            scheduler: Scheduler::Maglev,
            hash: Hash::FiveTuple,
            affinity: None,
            ring_size: RING_SIZE,
            track: None,
            quorum: Quorum::default(),
            panic_threshold: None,
            on_empty: OnEmpty::Drop,
            slow_start: None,
            slow_start_curve: SlowStartCurve::Linear,
            allow: Vec::new(),
            deny: Vec::new(),
            limits: NewFlowLimits::default(),
            quic: None,
            source: None,
            source_ports: FULL_NAT_PORTS,
            gue_port: GUE_PORT,
            max_segment_size: None,
            other_ports: OtherPorts::Pass,
            icmp_echo: true,
            timeouts: Timeouts::default(),
            health: None,
            backends: Vec::new(),
        }
    }

    /// Which flows have entries: what was given, or else those that need one.
    #[must_use]
    pub fn track(&self) -> Track {
        self.track.unwrap_or_else(|| {
            if self.needs_entries() || self.protocol == Protocol::Udp {
                Track::All
            } else {
                Track::None
            }
        })
    }

    /// Whether each of its flows has an entry.
    #[must_use]
    pub fn has_entries(&self) -> bool {
        self.track() == Track::All
    }

    /// How many server IDs its backends have.
    #[must_use]
    pub fn server_ids(&self) -> usize {
        let backends = self.backends.iter();
        backends.map(|backend| backend.server_ids.len()).sum()
    }

    /// Whether a flow without an entry lives where its slot of the ring says, so that slots
    /// must remember who served them before.
    #[must_use]
    pub fn has_origins(&self) -> bool {
        self.protocol == Protocol::Tcp && !self.mode.translates()
    }

    /// The slow start of its backends, if it has one.
    #[must_use]
    pub fn slow_start(&self) -> Option<SlowStartSpec> {
        self.slow_start.map(|window| SlowStartSpec {
            window,
            curve: self.slow_start_curve,
        })
    }

    /// Whether no flow can do without an entry.
    #[must_use]
    pub fn needs_entries(&self) -> bool {
        self.mode.translates()
            || self.scheduler != Scheduler::Maglev
            || self.backends.iter().any(|b| b.max_connections.is_some())
    }

    /// How a backend is checked: as it says itself, or else as the service says.
    #[must_use]
    pub fn health_of<'a>(&'a self, backend: &'a BackendSpec) -> Option<&'a HealthSpec> {
        backend.health.as_deref().or(self.health.as_ref())
    }

    /// The port of a backend that is checked; `None` also where it has no health checks.
    #[must_use]
    pub fn checked_port(&self, backend: &BackendSpec) -> Option<u16> {
        let kept = match backend.address.port {
            BackendPort::Number(port) => Some(port),
            BackendPort::Every | BackendPort::Unnamed => self.address.ports.single(),
        };
        self.health_of(backend)?.port.or(kept)
    }

    /// The port at which a backend takes clients' connections; `None` where it has several.
    #[must_use]
    pub fn clients_port(&self, backend: &BackendSpec) -> Option<u16> {
        match backend.address.port {
            BackendPort::Number(port) if self.mode.translates() => Some(port),
            _ => self.address.ports.single(),
        }
    }

    /// The source that `source` says for packets to `backend`.
    #[must_use]
    pub fn source_towards(&self, backend: IpAddr) -> Option<AddressPrefix> {
        self.source
            .filter(|source| source.address().is_ipv4() == backend.is_ipv4())
    }
}

/// A backend of a service, named by its address within the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSpec {
    /// Address and port. In the modes that keep the port it is not named, or the
    /// service's; else it is, or is [`BackendPort::Every`] for a service on several.
    pub address: BackendAddress,
    /// Share of new flows in proportion to the sum of weights; 0 for none.
    pub weight: u32,
    /// Its tier: backends with a higher number serve only while those with lower ones are
    /// fewer than the quorum.
    pub priority: u32,
    /// Live flows from which on it gets no new ones, at least 1; `None` for any number.
    pub max_connections: Option<u32>,
    /// The server IDs that it has in connection IDs of QUIC; several while it changes them.
    pub server_ids: Vec<ServerId>,
    /// It is being emptied.
    pub drain: Option<DrainSpec>,
    /// How it is checked, where that is not what the service says.
    pub health: Option<Box<HealthSpec>>,
}

impl BackendSpec {
    /// The weight of a backend that names none.
    pub const DEFAULT_WEIGHT: u32 = 100;
    /// The largest weight.
    pub const MAX_WEIGHT: u32 = 65_535;
    /// The largest number of a tier.
    pub const MAX_PRIORITY: u32 = 255;

    /// Whether new flows may go to it, as far as the configuration says.
    #[must_use]
    pub const fn takes_flows(&self) -> bool {
        self.weight != 0 && self.drain.is_none()
    }

    /// A backend with everything else by default.
    #[must_use]
    pub const fn new(address: BackendAddress) -> Self {
        Self {
            address,
            weight: Self::DEFAULT_WEIGHT,
            priority: 0,
            max_connections: None,
            server_ids: Vec::new(),
            drain: None,
            health: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_is_a_count_or_a_share() {
        assert_eq!("2".parse(), Ok(Quorum::Count(2)));
        assert_eq!("50%".parse(), Ok(Quorum::Percent(50)));
        for wrong in ["", "%", "-1", "+1", "1.5", "50 %", "half"] {
            assert!(wrong.parse::<Quorum>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_quorum_is_met_exactly() {
        assert!(!Quorum::Count(2).is_met(1, 5));
        assert!(Quorum::Count(2).is_met(2, 5));
        assert!(!Quorum::Percent(50).is_met(2, 5));
        assert!(Quorum::Percent(50).is_met(3, 5));
        assert!(Quorum::Percent(100).is_met(5, 5));
    }

    #[test]
    fn flows_have_entries_where_they_need_them() {
        let service = |mode, protocol, scheduler| ServiceSpec {
            protocol,
            scheduler,
            ..ServiceSpec::new("web", "192.0.2.1:80".parse().unwrap(), mode)
        };
        let track = |mode, protocol, scheduler| service(mode, protocol, scheduler).track();
        let maglev = Scheduler::Maglev;
        assert_eq!(track(Mode::Dsr, Protocol::Tcp, maglev), Track::None);
        assert_eq!(track(Mode::Dsr, Protocol::Udp, maglev), Track::All);
        assert_eq!(track(Mode::Nat, Protocol::Tcp, maglev), Track::All);
        let random = Scheduler::Random;
        assert_eq!(track(Mode::Gue, Protocol::Tcp, random), Track::All);
        let mut limited = service(Mode::Gue, Protocol::Tcp, maglev);
        limited.backends = vec![BackendSpec {
            max_connections: Some(1),
            ..BackendSpec::new("10.0.0.1".parse().unwrap())
        }];
        assert_eq!(limited.track(), Track::All);
    }
}
