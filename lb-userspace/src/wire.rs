//! The JSON forms of services and backends. Addresses, words and durations are
//! written as in the configuration file; what is left out has the same default.
//! Fields are added, never renamed.

use std::{collections::BTreeMap, fmt::Display, time::Duration};

use lb_common::ring::RING_SIZE;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    address::AddressPrefix,
    config::duration,
    state::{
        self, BackendSpec, DrainSpec, FULL_NAT_PORTS, FlowFilter, GUE_PORT, Hash, HealthKey,
        HealthSpec, NewFlowLimits, OnEmpty, OtherPorts, ProbeKeys, Protocol, QuicSpec, Quorum,
        RateLimit, Reason, Scheduler, ServiceSpec, SlowStartCurve, parse_jitter, parse_port_range,
        parse_source, parse_sources,
        quic::{MAX_CONNECTION_ID, MAX_ROTATION, MAX_SERVER_ID},
        rules::{self, Field},
    },
};

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Where clients reach it: `192.0.2.10:443`, `192.0.2.0/24:8000-8099`, or `*` as the
    /// port.
    pub address: String,
    /// `tcp` or `udp`.
    #[serde(default = "default_protocol")]
    #[schemars(with = "state::Protocol")]
    pub protocol: String,
    /// `full-nat`, `nat`, `dsr`, `ipip` or `gue`.
    #[schemars(with = "state::Mode")]
    pub mode: String,
    /// `maglev`, `round-robin`, `least-connections` or `random`.
    #[serde(default = "default_scheduler")]
    #[schemars(with = "Scheduler")]
    pub scheduler: String,
    /// `5-tuple`, `client` or `client-port`.
    #[serde(default = "default_hash")]
    #[schemars(with = "Hash")]
    pub hash: String,
    /// Duration for which a client keeps its backend; `null` for none.
    #[serde(default)]
    pub affinity: Option<String>,
    /// Slots of the ring.
    #[serde(default = "default_ring_size")]
    #[schemars(range(min = rules::MIN_RING, max = rules::MAX_RING))]
    pub ring_size: u32,
    /// `none` or `all`; absent where it follows from the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<state::Track>")]
    pub track: Option<String>,
    /// A number of backends, or a share as text: `50%`.
    #[serde(default)]
    pub quorum: Quorum,
    /// The same: with fewer that are up, all are used; absent where checks are always believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub panic_threshold: Option<Quorum>,
    /// `drop` or `fail-open`.
    #[serde(default = "default_on_empty")]
    #[schemars(with = "OnEmpty")]
    pub on_empty: String,
    /// Duration of the slow start of a backend that comes back; `null` for none.
    #[serde(default)]
    pub slow_start: Option<String>,
    /// `linear` or `quadratic`.
    #[serde(default = "default_slow_start_curve")]
    #[schemars(with = "SlowStartCurve")]
    pub slow_start_curve: String,
    /// Sources whose packets are taken; none for all.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Sources whose packets are dropped.
    #[serde(default)]
    pub deny: Vec<String>,
    /// How many flows may begin.
    #[serde(default)]
    pub limits: Limits,
    /// Where connection IDs of QUIC have the server ID; `null` for nowhere.
    #[serde(default)]
    pub quic: Option<Quic>,
    /// Source address of full NAT and of tunnels, there also a prefix; `null` for the
    /// kernel's choice.
    #[serde(default)]
    pub source: Option<String>,
    /// Source ports of full NAT: `1024-32767`.
    #[serde(default = "default_source_ports")]
    pub source_ports: String,
    /// UDP port that backends take GUE at.
    #[serde(default = "default_gue_port")]
    #[schemars(range(min = 1))]
    pub gue_port: u16,
    /// Largest segment that TCP connections may announce, in bytes; `null` for any.
    #[serde(default)]
    #[schemars(range(min = rules::MIN_SEGMENT_SIZE))]
    pub max_segment_size: Option<u16>,
    /// `pass` or `drop`.
    #[serde(default = "default_other_ports")]
    #[schemars(with = "OtherPorts")]
    pub other_ports: String,
    /// Whether ICMP echo requests to the address are answered.
    #[serde(default = "default_icmp_echo")]
    pub icmp_echo: bool,
    /// When silent flows are forgotten.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Health checks; `null` for none.
    #[serde(default)]
    pub health: Option<Health>,
    /// Its backends.
    #[serde(default)]
    pub backends: Vec<Backend>,
}

/// How many flows may begin; absent for any number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// From one source address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_per_source: Option<Rate>,
    /// From all together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_per_service: Option<Rate>,
}

/// A limit of new flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// In a second.
    #[schemars(range(min = 1, max = u32::MAX))]
    pub rate: u32,
    /// At once; absent where it is the rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = u32::MAX))]
    pub burst: Option<u32>,
}

/// Where connection IDs of QUIC have the server ID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Quic {
    /// Bytes before it.
    #[serde(default = "default_server_id_offset")]
    #[schemars(range(min = 1, max = MAX_CONNECTION_ID - 1))]
    pub server_id_offset: u8,
    /// Its bytes.
    #[schemars(range(min = 1, max = MAX_SERVER_ID))]
    pub server_id_length: u8,
    /// Configurations that are read, from 0 to 6.
    #[serde(default = "default_config_rotation")]
    #[schemars(inner(range(max = MAX_ROTATION)))]
    pub config_rotation: Vec<u8>,
}

/// How long a flow may be silent, as durations: `30s`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// TCP and UDP, before the backend has answered.
    pub unreplied: String,
    /// TCP, established.
    pub tcp_established: String,
    /// TCP, after a FIN or RST.
    pub tcp_closing: String,
    /// UDP, after an answer.
    pub udp: String,
}

/// How backends are checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = must_have_type)]
pub struct Health {
    /// `tcp`, `http`, `https`, `grpc`, `udp`, `dns`, `icmp` or `exec`; must be given.
    #[serde(rename = "type", default)]
    #[schemars(with = "state::ProbeKind")]
    pub kind: String,
    /// Path that `http` and `https` ask for; absent where it is `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// `Host` header that they send, `:authority` of `grpc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Method of the request; absent where it is `GET`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<state::Method>")]
    pub method: Option<String>,
    /// Statuses of a healthy backend; absent where they are `200-399`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// What the body of the answer has in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Name that the certificate must have, where it is not that of the `host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// File with the certificates that others are trusted by; absent for those of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Whether certificates are looked at; absent where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<bool>,
    /// Protocols that `https` offers: `http/1.1`, `h2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<state::Alpn>>")]
    pub alpn: Option<Vec<String>>,
    /// Whether `grpc` is spoken over TLS; absent where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    /// Service that `grpc` asks about; absent for the server as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_service: Option<String>,
    /// What `udp` sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send: Option<String>,
    /// The same in hex, where it is not text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_hex: Option<String>,
    /// What the answer has in it; absent for anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<String>,
    /// The same in hex, where it is not text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_hex: Option<String>,
    /// Name that `dns` asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// Type of record that it asks for; absent where it is `A`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<state::RecordType>")]
    pub record: Option<String>,
    /// Response code of a healthy backend; absent where it is `NOERROR`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<state::Rcode>")]
    pub rcode: Option<String>,
    /// What one of the records says; absent for anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Program that `exec` runs, and its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Variables of its environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<BTreeMap<String, String>>,
    /// Port that is checked, where it is not the backend's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Duration from one check to the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    /// The same while the backend is down; absent where it is no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_interval: Option<String>,
    /// Share of the interval by which a check may come earlier: `10%`; absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<String>,
    /// Duration that a backend that flaps is held down at most; absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_down: Option<String>,
    /// Whether clients' connections are watched, too; absent where they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passive: Option<bool>,
    /// Duration that an answer may take; absent where it follows the interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Successes in a row that bring a backend up.
    #[serde(default = "default_rise")]
    #[schemars(range(min = 1, max = u32::MAX))]
    pub rise: u32,
    /// Failures in a row that take a backend down.
    #[serde(default = "default_fall")]
    #[schemars(range(min = 1, max = u32::MAX))]
    pub fall: u32,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// Where it listens: `10.0.0.11:8443`, or `*` as the port; `10.0.0.11` in the modes
    /// that keep the port.
    pub address: String,
    /// Its share of new flows, from 0 to 65535.
    #[serde(default = "default_weight")]
    #[schemars(range(max = BackendSpec::MAX_WEIGHT))]
    pub weight: u32,
    /// Its tier, from 0 to 255; the lowest serves first.
    #[serde(default)]
    #[schemars(range(max = BackendSpec::MAX_PRIORITY))]
    pub priority: u32,
    /// Live flows from which on it gets no new ones; absent for any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = u32::MAX))]
    pub max_connections: Option<u32>,
    /// Its server IDs in connection IDs of QUIC, in hex; absent where it has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub server_ids: Vec<String>,
    /// It is being emptied; absent where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// How it is checked; absent where that is what the service says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

/// The end of a backend's service: it gets no new flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// Duration for which flows may go on; absent for any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<String>,
    /// What becomes of flows that are left then: `keep` or `reset`.
    #[serde(default = "default_on_deadline")]
    #[schemars(with = "state::OnDeadline")]
    pub on_deadline: String,
}

/// A configuration file that is to be applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// What messages call it: its absolute path.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// The answer to a request that could not be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// Why.
    pub error: Error,
}

/// Why a request could not be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Error {
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The path of the value that is wrong, in the service or in what was sent:
    /// `backends[0].weight`. Absent where it is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// A check without a type is read, so that what is said of it has the words of the rules; but
/// it is none.
fn must_have_type(schema: &mut Schema) {
    if let Some(kind) = schema
        .pointer_mut("/properties/type")
        .and_then(Value::as_object_mut)
    {
        kind.remove("default");
    }
    schema.insert("required".to_owned(), json!(["type"]));
}

fn default_protocol() -> String {
    Protocol::Tcp.to_string()
}

fn default_scheduler() -> String {
    Scheduler::Maglev.to_string()
}

fn default_hash() -> String {
    Hash::FiveTuple.to_string()
}

const fn default_ring_size() -> u32 {
    RING_SIZE
}

fn default_on_empty() -> String {
    OnEmpty::Drop.to_string()
}

fn default_source_ports() -> String {
    format_ports(&FULL_NAT_PORTS)
}

const fn default_gue_port() -> u16 {
    GUE_PORT
}

fn default_other_ports() -> String {
    OtherPorts::Pass.to_string()
}

const fn default_icmp_echo() -> bool {
    true
}

fn default_slow_start_curve() -> String {
    SlowStartCurve::Linear.to_string()
}

const fn default_server_id_offset() -> u8 {
    QuicSpec::DEFAULT_OFFSET
}

fn default_config_rotation() -> Vec<u8> {
    vec![QuicSpec::DEFAULT_ROTATION]
}

fn default_on_deadline() -> String {
    DrainSpec::DEFAULT_END.to_string()
}

const fn default_rise() -> u32 {
    HealthSpec::DEFAULT_RISE
}

const fn default_fall() -> u32 {
    HealthSpec::DEFAULT_FALL
}

const fn default_weight() -> u32 {
    BackendSpec::DEFAULT_WEIGHT
}

fn format_ports(ports: &std::ops::RangeInclusive<u16>) -> String {
    format!("{}-{}", ports.start(), ports.end())
}

impl Default for Timeouts {
    fn default() -> Self {
        Self::from(&state::Timeouts::default())
    }
}

impl From<&state::Timeouts> for Timeouts {
    fn from(timeouts: &state::Timeouts) -> Self {
        Self {
            unreplied: duration::format(timeouts.unreplied),
            tcp_established: duration::format(timeouts.tcp_established),
            tcp_closing: duration::format(timeouts.tcp_closing),
            udp: duration::format(timeouts.udp),
        }
    }
}

impl From<&HealthSpec> for Health {
    fn from(health: &HealthSpec) -> Self {
        // What is no more than the default is left out, so that a patch to another type, which
        // has other keys, need not name it.
        let ProbeKeys {
            path,
            host,
            method,
            status,
            body,
            server_name,
            ca,
            verify,
            alpn,
            tls,
            grpc_service,
            send,
            send_hex,
            expect,
            expect_hex,
            query,
            record,
            rcode,
            answer,
            command,
            environment,
        } = health.probe.keys();
        Self {
            kind: health.probe.kind().to_string(),
            path,
            host,
            method,
            status,
            body,
            server_name,
            ca,
            verify,
            alpn,
            tls,
            grpc_service,
            send,
            send_hex,
            expect,
            expect_hex,
            query,
            record,
            rcode,
            answer,
            command,
            environment,
            port: health.port,
            interval: Some(duration::format(health.interval)),
            down_interval: health.down_interval.map(duration::format),
            jitter: (health.jitter != 0).then(|| format!("{}%", health.jitter)),
            hold_down: health.hold_down.map(duration::format),
            passive: health.passive.then_some(true),
            timeout: health.timeout.map(duration::format),
            rise: health.rise,
            fall: health.fall,
        }
    }
}

impl From<&BackendSpec> for Backend {
    fn from(backend: &BackendSpec) -> Self {
        Self {
            address: backend.address.to_string(),
            weight: backend.weight,
            priority: backend.priority,
            max_connections: backend.max_connections,
            server_ids: backend.server_ids.iter().map(ToString::to_string).collect(),
            drain: backend.drain.as_ref().map(Drain::from),
            health: backend.health.as_deref().map(Health::from),
        }
    }
}

impl From<&ServiceSpec> for Service {
    fn from(service: &ServiceSpec) -> Self {
        Self {
            name: service.name.clone(),
            address: service.address.to_string(),
            protocol: service.protocol.to_string(),
            mode: service.mode.to_string(),
            scheduler: service.scheduler.to_string(),
            hash: service.hash.to_string(),
            affinity: service.affinity.map(duration::format),
            ring_size: service.ring_size,
            track: service.track.map(|track| track.to_string()),
            quorum: service.quorum,
            panic_threshold: service.panic_threshold,
            on_empty: service.on_empty.to_string(),
            slow_start: service.slow_start.map(duration::format),
            slow_start_curve: service.slow_start_curve.to_string(),
            allow: service.allow.iter().map(ToString::to_string).collect(),
            deny: service.deny.iter().map(ToString::to_string).collect(),
            limits: Limits {
                new_per_source: service.limits.new_per_source.map(Rate::from),
                new_per_service: service.limits.new_per_service.map(Rate::from),
            },
            quic: service.quic.as_ref().map(Quic::from),
            source: service.source.map(|source| source.to_string()),
            source_ports: format_ports(&service.source_ports),
            gue_port: service.gue_port,
            max_segment_size: service.max_segment_size,
            other_ports: service.other_ports.to_string(),
            icmp_echo: service.icmp_echo,
            timeouts: Timeouts::from(&service.timeouts),
            health: service.health.as_ref().map(Health::from),
            backends: service.backends.iter().map(Backend::from).collect(),
        }
    }
}

impl TryFrom<Service> for ServiceSpec {
    type Error = Reason;

    fn try_from(service: Service) -> Result<Self, Reason> {
        let backends =
            service.backends.iter().enumerate().map(|(index, backend)| {
                backend.spec(|key| format!("{}.{key}", Field::Backend(index)))
            });
        Ok(Self {
            address: at(Field::Address, service.address.parse())?,
            protocol: at(Field::Protocol, service.protocol.parse())?,
            mode: at(Field::Mode, service.mode.parse())?,
            scheduler: at(Field::Scheduler, service.scheduler.parse())?,
            hash: at(Field::Hash, service.hash.parse())?,
            affinity: service
                .affinity
                .map(|text| read_duration(Field::Affinity, &text))
                .transpose()?,
            ring_size: service.ring_size,
            track: service
                .track
                .map(|track| at(Field::Track, track.parse()))
                .transpose()?,
            quorum: service.quorum,
            panic_threshold: service.panic_threshold,
            on_empty: at(Field::OnEmpty, service.on_empty.parse())?,
            slow_start: service
                .slow_start
                .map(|text| read_duration(Field::SlowStart, &text))
                .transpose()?,
            slow_start_curve: at(Field::SlowStartCurve, service.slow_start_curve.parse())?,
            allow: sources(Field::Allow, &service.allow)?,
            deny: sources(Field::Deny, &service.deny)?,
            limits: NewFlowLimits {
                new_per_source: service.limits.new_per_source.map(RateLimit::from),
                new_per_service: service.limits.new_per_service.map(RateLimit::from),
            },
            quic: service.quic.map(QuicSpec::from),
            source: service
                .source
                .map(|source| at(Field::Source, parse_source(&source)))
                .transpose()?,
            source_ports: at(Field::SourcePorts, parse_port_range(&service.source_ports))?,
            gue_port: service.gue_port,
            max_segment_size: service.max_segment_size,
            other_ports: at(Field::OtherPorts, service.other_ports.parse())?,
            icmp_echo: service.icmp_echo,
            timeouts: state::Timeouts::try_from(&service.timeouts)?,
            health: service
                .health
                .map(|health| health.spec(|key| format!("{}.{key}", Field::Health)))
                .transpose()?,
            backends: backends.collect::<Result<_, Reason>>()?,
            name: service.name,
        })
    }
}

impl TryFrom<&Timeouts> for state::Timeouts {
    type Error = Reason;

    fn try_from(timeouts: &Timeouts) -> Result<Self, Reason> {
        Ok(Self {
            unreplied: read_duration(Field::Unreplied, &timeouts.unreplied)?,
            tcp_established: read_duration(Field::TcpEstablished, &timeouts.tcp_established)?,
            tcp_closing: read_duration(Field::TcpClosing, &timeouts.tcp_closing)?,
            udp: read_duration(Field::Udp, &timeouts.udp)?,
        })
    }
}

impl Health {
    /// What it means; `place` says where one of its keys stands.
    fn spec(&self, place: impl Fn(&str) -> String) -> Result<HealthSpec, Reason> {
        let Self {
            path,
            host,
            method,
            status,
            body,
            server_name,
            ca,
            verify,
            alpn,
            tls,
            grpc_service,
            send,
            send_hex,
            expect,
            expect_hex,
            query,
            record,
            rcode,
            answer,
            command,
            environment,
            ..
        } = self.clone();
        let keys = ProbeKeys {
            path,
            host,
            method,
            status,
            body,
            server_name,
            ca,
            verify,
            alpn,
            tls,
            grpc_service,
            send,
            send_hex,
            expect,
            expect_hex,
            query,
            record,
            rcode,
            answer,
            command,
            environment,
        };
        let place = |key: HealthKey| place(&key.in_json());
        let kind = self.kind.parse();
        let kind = at(
            place(HealthKey::Type),
            kind.map_err(|_| rules::unknown_probe(&self.kind)),
        )?;
        let probe = keys.read(kind).map_err(|mistakes| {
            let first = mistakes.into_iter().next();
            first.map_or_else(rules::no_probe, |(key, reason)| Reason {
                message: format!("{}: {}", place(key), reason.message),
                field: Some(place(key)),
                ..reason
            })
        })?;
        let time = |key, text: &Option<String>| {
            let text = text.as_deref();
            text.map(|text| at(place(key), duration::parse(text)))
                .transpose()
        };
        let interval = time(HealthKey::Interval, &self.interval)?;
        let jitter = self.jitter.as_deref();
        let jitter = jitter.map(|text| at(place(HealthKey::Jitter), parse_jitter(text)));
        Ok(HealthSpec {
            interval: interval.unwrap_or(HealthSpec::DEFAULT_INTERVAL),
            down_interval: time(HealthKey::DownInterval, &self.down_interval)?,
            jitter: jitter.transpose()?.unwrap_or_default(),
            hold_down: time(HealthKey::HoldDown, &self.hold_down)?,
            passive: self.passive.unwrap_or_default(),
            timeout: time(HealthKey::Timeout, &self.timeout)?,
            rise: self.rise,
            fall: self.fall,
            port: self.port,
            ..HealthSpec::new(probe)
        })
    }
}

impl TryFrom<&Backend> for BackendSpec {
    type Error = Reason;

    fn try_from(backend: &Backend) -> Result<Self, Reason> {
        backend.spec(str::to_owned)
    }
}

impl From<&DrainSpec> for Drain {
    fn from(drain: &DrainSpec) -> Self {
        Self {
            deadline: drain.deadline.map(duration::format),
            on_deadline: drain.on_deadline.to_string(),
        }
    }
}

impl Drain {
    /// What it means; `path` says where one of its keys stands.
    pub(crate) fn spec(&self, path: impl Fn(&str) -> String) -> Result<DrainSpec, Reason> {
        let deadline = self.deadline.as_deref();
        Ok(DrainSpec {
            deadline: deadline
                .map(|text| at(path("deadline"), duration::parse(text)))
                .transpose()?,
            on_deadline: at(path("on_deadline"), self.on_deadline.parse())?,
        })
    }
}

impl Backend {
    /// What it means; `path` says where one of its keys stands.
    fn spec(&self, path: impl Fn(&str) -> String) -> Result<BackendSpec, Reason> {
        Ok(BackendSpec {
            address: at(path("address"), self.address.parse())?,
            weight: self.weight,
            priority: self.priority,
            max_connections: self.max_connections,
            server_ids: self
                .server_ids
                .iter()
                .map(|id| at(path("server_ids"), id.parse()))
                .collect::<Result<_, _>>()?,
            drain: self
                .drain
                .as_ref()
                .map(|drain| drain.spec(|key| path(&format!("drain.{key}"))))
                .transpose()?,
            health: self
                .health
                .as_ref()
                .map(|health| health.spec(|key| path(&format!("health.{key}"))))
                .transpose()?
                .map(Box::new),
        })
    }
}

impl From<RateLimit> for Rate {
    fn from(RateLimit { rate, burst }: RateLimit) -> Self {
        Self {
            rate,
            burst: (burst != rate).then_some(burst),
        }
    }
}

impl From<Rate> for RateLimit {
    fn from(Rate { rate, burst }: Rate) -> Self {
        Self {
            rate,
            burst: burst.unwrap_or(rate),
        }
    }
}

impl From<&QuicSpec> for Quic {
    fn from(quic: &QuicSpec) -> Self {
        Self {
            server_id_offset: quic.server_id_offset,
            server_id_length: quic.server_id_length,
            config_rotation: quic.config_rotation.clone(),
        }
    }
}

impl From<Quic> for QuicSpec {
    fn from(quic: Quic) -> Self {
        Self {
            server_id_offset: quic.server_id_offset,
            server_id_length: quic.server_id_length,
            config_rotation: quic.config_rotation,
        }
    }
}

fn sources(field: Field, list: &[String]) -> Result<Vec<AddressPrefix>, Reason> {
    let read = |text: &String| at(field, parse_sources(text));
    list.iter().map(read).collect()
}

fn read_duration(field: Field, text: &str) -> Result<Duration, Reason> {
    at(field, duration::parse(text))
}

/// Names the field that an error is about.
fn at<T>(field: impl Display, result: Result<T, Reason>) -> Result<T, Reason> {
    result.map_err(|reason| Reason {
        message: format!("{field}: {}", reason.message),
        field: Some(field.to_string()),
        ..reason
    })
}

/// Reads one of these forms, with the path to what is wrong in the error.
///
/// # Errors
///
/// When the JSON has another form.
pub fn read<T: DeserializeOwned>(json: Value) -> Result<T, Reason> {
    serde_path_to_error::deserialize(json).map_err(|error| {
        let path = error.path().to_string();
        let Reason {
            message,
            hint,
            field,
        } = in_words(&error.inner().to_string());
        let message = match path.as_str() {
            "." => message,
            path => format!("{path}: {message}"),
        };
        // A key that is missing is named beside the path to what it is missing from.
        let field = match (path.as_str(), field) {
            (".", field) => field,
            (path, Some(key)) if path != key => Some(format!("{path}.{key}")),
            (path, _) => Some(path.to_owned()),
        };
        Reason {
            message,
            hint,
            field,
        }
    })
}

/// What the deserializer says, in the words of those who write JSON.
fn in_words(said: &str) -> Reason {
    let quoted = |text: &str| Some(text.split('`').nth(1)?.to_owned());
    if said.starts_with("missing field ")
        && let Some(field) = quoted(said)
    {
        return missing(&field);
    }
    if let Some((unknown, known)) = said.split_once(", expected ")
        && said.starts_with("unknown field ")
    {
        let known = known.trim_start_matches("one of ");
        let message = unknown.replace("unknown field", "unknown key");
        return Reason::new(message, format!("known here are {known}"));
    }
    let wrong = ["invalid type: ", "invalid value: ", "invalid length "];
    if let Some(rest) = wrong.iter().find_map(|start| said.strip_prefix(start))
        && let Some((found, expected)) = rest.split_once(", expected ")
    {
        let found = match found {
            "map" => "an object",
            "sequence" => "an array",
            other => other,
        };
        let expected = match expected {
            "u16" => "a whole number from 0 to 65535",
            "u8" => "a whole number from 0 to 255",
            "u32" => "a whole number",
            "a sequence" => "an array",
            text if text.starts_with("struct ") => "an object",
            "a map" => "an object",
            other => other,
        };
        return Reason::new(
            format!("this is {found}, but must be {expected}"),
            "docs/api.md has an example of every key",
        );
    }
    Reason::bare(said)
}

/// Reads the query of a request for flows: `service=web&state=embryonic`, percent-encoded.
pub(crate) fn flow_filter(query: &str) -> Result<FlowFilter, Reason> {
    let mut filter = FlowFilter::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(value).decode_utf8_lossy();
        match key {
            "service" => filter.service = Some(value.into_owned()),
            "backend" => filter.backend = Some(at(key, value.parse())?),
            "client" => filter.client = Some(at(key, parse_sources(&value))?),
            "state" => filter.state = Some(at(key, value.parse())?),
            "limit" => {
                let wrong = || Reason::new(format!("`{value}` is no number"), "`limit=1000`");
                filter.limit = at(key, value.parse().map_err(|_| wrong()))?;
            }
            _ => {
                return Err(Reason::new(
                    format!("unknown key `{key}` in the query"),
                    "known here are `service`, `backend`, `client`, `state`, `limit`",
                ));
            }
        }
    }
    Ok(filter)
}

/// Reads the query of a request that may only say what it would do: `dry_run=true`.
pub(crate) fn is_dry_run(query: &str) -> Result<bool, Reason> {
    let mut is_dry_run = false;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        is_dry_run = match pair.split_once('=') {
            Some(("dry_run", "true")) => true,
            Some(("dry_run", "false")) => false,
            _ => {
                return Err(Reason::new(
                    format!("`{pair}` in the query is not understood"),
                    "known here is `dry_run=true`",
                ));
            }
        };
    }
    Ok(is_dry_run)
}

/// The query that [`flow_filter`] reads as this.
pub(crate) fn flow_query(filter: &FlowFilter) -> String {
    let given = [
        ("service", filter.service.clone()),
        ("backend", filter.backend.map(|address| address.to_string())),
        ("client", filter.client.map(|prefix| prefix.to_string())),
        ("state", filter.state.map(|state| state.to_string())),
        ("limit", Some(filter.limit.to_string())),
    ];
    let pairs = given.iter().filter_map(|(key, value)| {
        let value = utf8_percent_encode(value.as_ref()?, NON_ALPHANUMERIC);
        Some(format!("{key}={value}"))
    });
    pairs.collect::<Vec<_>>().join("&")
}

/// A key that must be given is not.
pub(crate) fn missing(key: &str) -> Reason {
    Reason {
        message: format!("`{key}` is missing"),
        hint: hint_for(key).map(str::to_owned),
        field: Some(key.to_owned()),
    }
}

/// An example of a key that must be given.
fn hint_for(key: &str) -> Option<&'static str> {
    Some(match key {
        "address" => "say where it is reached: `\"address\": \"192.0.2.10:443\"`",
        "rate" => "say how many flows may begin in a second: `\"rate\": 100`",
        "server_id_length" => "say how many bytes of a connection ID name the server",
        "mode" => "say how packets are forwarded: `\"mode\": \"full-nat\"`",
        "weight" => "say which share of new flows it gets: `\"weight\": 100`; 0 for none",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_told_without_words_of_rust() {
        let message = |document: Value| {
            let mut service = json!({"name": "web", "address": "192.0.2.1:80", "mode": "nat"});
            for (key, value) in document.as_object().unwrap() {
                service[key] = value.clone();
            }
            read::<Service>(service).unwrap_err()
        };
        for (document, expected) in [
            (
                json!({"mode": 1}),
                "mode: this is integer `1`, but must be a string",
            ),
            (
                json!({"health": "tcp"}),
                "health: this is string \"tcp\", but must be an object",
            ),
            (
                json!({"health": {"port": 65_536}}),
                "health.port: this is integer `65536`, but must be a whole number from 0 to 65535",
            ),
            (
                json!({"health": {"rise": -1}}),
                "health.rise: this is integer `-1`, but must be a whole number",
            ),
            (
                json!({"backends": {}}),
                "backends: this is an object, but must be an array",
            ),
            (
                json!({"backends": [{}]}),
                "backends[0]: `address` is missing",
            ),
        ] {
            let reason = message(document.clone());
            assert_eq!(reason.message, expected, "{document}");
            assert!(reason.hint.is_some(), "{document}");
        }
    }
}
