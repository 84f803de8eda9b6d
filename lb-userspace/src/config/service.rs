//! A `[[service]]` of the file.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    ops::{Range, RangeInclusive},
    time::Duration,
};

mod health;

use super::{
    diagnostic::{Diagnostic, Diagnostics, Doubt},
    duration,
    reader::{Table, Value},
};
use crate::{
    address::PortRange,
    state::{
        BackendAddress, BackendPort, BackendSpec, DrainSpec, FULL_NAT_PORTS, GUE_PORT, Hash,
        HealthKey, Mode, NewFlowLimits, OnEmpty, OtherPorts, Protocol, QuicSpec, Quorum, RateLimit,
        Scheduler, ServiceAddress, ServiceSpec, SlowStartCurve, Timeouts, parse_port_range,
        parse_source, parse_sources,
        quic::{MAX_CONNECTION_ID, MAX_ROTATION, MAX_SERVER_ID},
        rules::{self, Field},
    },
};

const NAME: &str = "give the service a name: `name = \"web\"`";
const ADDRESS: &str = "say where clients reach the service: `address = \"192.0.2.10:443\"`";
const PROTOCOL: &str = "`protocol = \"tcp\"` or `protocol = \"udp\"`";
const MODE: &str = "`mode = \"full-nat\"` works with any backend and hides the client's address; \
                    `mode = \"nat\"` keeps it, and needs backends that route replies through \
                    this host; `dsr`, `ipip` and `gue` need backends that have the service \
                    address";
const SCHEDULER: &str = "`scheduler = \"maglev\"`, `\"round-robin\"`, `\"least-connections\"` or \
                         `\"random\"`";
const HASH: &str = "`hash = \"5-tuple\"`, `\"client\"` or `\"client-port\"`";
const TRACK: &str = "`track = \"none\"` or `track = \"all\"`";
const QUORUM: &str = "write a number of backends, `quorum = 2`, or a share, `quorum = \"50%\"`";
const ON_DEADLINE: &str = "`on-deadline = \"keep\"` or `on-deadline = \"reset\"`";
const CURVE: &str = "`slow-start-curve = \"linear\"` or `slow-start-curve = \"quadratic\"`";
const SOURCES: &str = "list prefixes in quotes: `[\"198.51.100.0/24\", \"203.0.113.7\"]`";
const RATE: &str = "say how many flows may begin in a second: `{ rate = 100, burst = 500 }`";
const SERVER_ID_LENGTH: &str = "say how many bytes of a connection ID name the server: \
                                `server-id-length = 4`";
const ROTATION: &str = "list the configurations in use: `config-rotation = [0]`";
const SERVER_ID: &str = "write it in hex: `server-id = \"c0ffee01\"`, or several: \
                         `[\"c0ffee01\", \"c0ffee02\"]`";
const PANIC_THRESHOLD: &str =
    "write a number of backends, `panic-threshold = 2`, or a share, `panic-threshold = \"50%\"`";
const ON_EMPTY: &str = "`on-empty = \"drop\"` or `on-empty = \"fail-open\"`";
const SOURCE: &str = "write an address of this host in quotes: `source = \"10.0.0.1\"`";
const SOURCE_PORTS: &str = "write the range in quotes: `source-ports = \"1024-32767\"`";
const OTHER_PORTS: &str = "`other-ports = \"pass\"` or `other-ports = \"drop\"`";
const DURATION: &str = "write the duration in quotes, with its unit: `\"2s\"` or `\"500ms\"`";
const BACKEND: &str = "say where the backend listens: `address = \"10.0.0.11:8443\"`";

/// A service as it was read, and where its values stand.
pub(super) struct ReadService {
    /// What was read. Where a value could not be, something else stands.
    pub(super) spec: ServiceSpec,
    spans: HashMap<Field, Range<usize>>,
    unread: HashSet<Field>,
}

impl ReadService {
    /// Where the field stands, or what it would be part of.
    pub(super) fn span(&self, field: Field) -> Range<usize> {
        let mut at = field;
        loop {
            match self.spans.get(&at) {
                Some(span) => return span.clone(),
                None if at == Field::Service => return 0..0,
                None => at = at.parent(),
            }
        }
    }

    /// Whether the field's value is what the file says, or its default.
    pub(super) fn is_read(&self, field: Field) -> bool {
        !self.unread.contains(&field)
    }

    /// The value of a key, `default` where there is none.
    fn optional<T>(
        &mut self,
        field: Field,
        value: Option<Value<'_>>,
        default: T,
        read: impl FnOnce(Value<'_>) -> Option<T>,
    ) -> T {
        let Some(value) = value else {
            return default;
        };
        self.required(field, Some(value), default, read)
    }

    /// The value of a key, `placeholder` where there is none.
    fn required<T>(
        &mut self,
        field: Field,
        value: Option<Value<'_>>,
        placeholder: T,
        read: impl FnOnce(Value<'_>) -> Option<T>,
    ) -> T {
        if let Some(value) = value {
            self.spans.insert(field, value.span());
            if let Some(read) = read(value) {
                return read;
            }
        }
        self.unread.insert(field);
        placeholder
    }
}

/// Reads a service and asks the rules about what could be read.
pub(super) fn read(mut table: Table<'_>, out: &mut Diagnostics) -> ReadService {
    let mut service = ReadService {
        spec: placeholder(),
        spans: HashMap::from([(Field::Service, table.span())]),
        unread: HashSet::new(),
    };
    general(&mut service, &mut table, out);
    if let Some(timeouts) = table.optional("timeouts") {
        service.spans.insert(Field::Timeouts, timeouts.span());
        if let Some(timeouts_table) = timeouts.table("[service.timeouts]", out) {
            service.spec.timeouts = read_timeouts(&mut service, timeouts_table, out);
        }
    }
    if let Some(health) = table.optional("health") {
        service.spec.health = health::read(&mut service, None, health, out);
    }
    guard(&mut service, &mut table, out);
    match table.optional("backend") {
        Some(backends) => read_backends(&mut service, backends, out),
        None => out.push(
            Diagnostic::warning(
                table.span(),
                "the service has no backend, so its packets are dropped",
                "add one under the header [[service.backend]], or later by `lb backend add`",
            )
            .doubted(Doubt::Any),
        ),
    }
    table.finish(out);
    ask_the_rules(&service, out);
    service
}

fn placeholder() -> ServiceSpec {
    let address = ServiceAddress {
        prefix: nowhere().into(),
        ports: PortRange::from(1),
    };
    ServiceSpec::new("", address, Mode::FullNat)
}

/// Stands for an address that could not be read.
const fn nowhere() -> IpAddr {
    IpAddr::V4(Ipv4Addr::UNSPECIFIED)
}

fn ask_the_rules(service: &ReadService, out: &mut Diagnostics) {
    let is_written = |field| service.spans.contains_key(&field);
    for violation in rules::check_written(&service.spec, is_written) {
        let mode = violation.by_mode.then_some(Field::Mode);
        let concerns = [Some(violation.field), violation.against, mode];
        if !concerns
            .iter()
            .flatten()
            .all(|field| service.is_read(*field))
        {
            continue;
        }
        let span = service.span(violation.field);
        let mut found = Diagnostic::error(span.clone(), violation.message, violation.hint);
        if let Some(against) = violation.against {
            let other = service.span(against);
            if other != span {
                let label = match against {
                    Field::BackendServerId(_) => "first here",
                    Field::BackendAddress(_) if !is_port_of_check(violation.field) => "first here",
                    _ => "because of this",
                };
                found = found.with_other(other, label);
            }
        }
        out.push(found);
    }
    let backends = &service.spec.backends;
    if backends.is_empty() || backends.iter().any(BackendSpec::takes_flows) {
        return;
    }
    out.push(if backends.iter().all(|backend| backend.weight == 0) {
        Diagnostic::warning(
            service.span(Field::BackendWeight(0)),
            "every backend of the service has weight 0, so no new flow is taken",
            "give at least one backend a weight",
        )
    } else {
        Diagnostic::warning(
            service.span(Field::Backends),
            "every backend of the service is drained or has weight 0, so no new flow is taken",
            "leave `drain` out of at least one backend that has a weight",
        )
    });
}

/// Whether it is the port of a health check.
const fn is_port_of_check(field: Field) -> bool {
    matches!(
        field,
        Field::HealthKey(HealthKey::Port) | Field::BackendHealthKey(_, HealthKey::Port)
    )
}

fn general(service: &mut ReadService, table: &mut Table<'_>, out: &mut Diagnostics) {
    let name = table.required("name", NAME, out);
    service.spec.name = service.required(Field::Name, name, String::new(), |value| {
        value.string(NAME, out).map(str::to_owned)
    });
    let address = table.required("address", ADDRESS, out);
    let placeholder = service.spec.address;
    service.spec.address = service.required(Field::Address, address, placeholder, |value| {
        value.parse(ADDRESS, out, str::parse)
    });
    let protocol = table.optional("protocol");
    service.spec.protocol = service.optional(Field::Protocol, protocol, Protocol::Tcp, |value| {
        value.parse(PROTOCOL, out, str::parse)
    });
    let mode = table.required("mode", MODE, out);
    service.spec.mode = service.required(Field::Mode, mode, Mode::FullNat, |value| {
        value.parse(MODE, out, str::parse)
    });
    selection(service, table, out);
    let source = table.optional("source");
    service.spec.source = service.optional(Field::Source, source, None, |value| {
        value.parse(SOURCE, out, parse_source).map(Some)
    });
    let ports = table.optional("source-ports");
    service.spec.source_ports =
        service.optional(Field::SourcePorts, ports, FULL_NAT_PORTS, |value| {
            value.parse(SOURCE_PORTS, out, parse_port_range)
        });
    let port = table.optional("gue-port");
    service.spec.gue_port = service.optional(Field::GuePort, port, GUE_PORT, |value| {
        value.integer(1..=u16::MAX, out)
    });
    let size = table.optional("max-segment-size");
    service.spec.max_segment_size = service.optional(Field::MaxSegmentSize, size, None, |value| {
        const RANGE: RangeInclusive<u16> = rules::MIN_SEGMENT_SIZE..=u16::MAX;
        value.integer(RANGE, out).map(Some)
    });
    let other = table.optional("other-ports");
    service.spec.other_ports =
        service.optional(Field::OtherPorts, other, OtherPorts::Pass, |value| {
            value.parse(OTHER_PORTS, out, str::parse)
        });
    let echo = table.optional("icmp-echo");
    service.spec.icmp_echo =
        service.optional(Field::IcmpEcho, echo, true, |value| value.boolean(out));
}

/// How a flow finds its backend.
fn selection(service: &mut ReadService, table: &mut Table<'_>, out: &mut Diagnostics) {
    let scheduler = table.optional("scheduler");
    let default = Scheduler::Maglev;
    service.spec.scheduler = service.optional(Field::Scheduler, scheduler, default, |value| {
        value.parse(SCHEDULER, out, str::parse)
    });
    let hash = table.optional("hash");
    service.spec.hash = service.optional(Field::Hash, hash, Hash::FiveTuple, |value| {
        value.parse(HASH, out, str::parse)
    });
    let affinity = table.optional("affinity");
    service.spec.affinity = service.optional(Field::Affinity, affinity, None, |value| {
        value.parse(DURATION, out, duration::parse).map(Some)
    });
    let size = table.optional("ring-size");
    let default = service.spec.ring_size;
    service.spec.ring_size = service.optional(Field::RingSize, size, default, |value| {
        const RANGE: RangeInclusive<u32> = rules::MIN_RING..=rules::MAX_RING;
        value.integer(RANGE, out)
    });
    let track = table.optional("track");
    service.spec.track = service.optional(Field::Track, track, None, |value| {
        value.parse(TRACK, out, str::parse).map(Some)
    });
    let quorum = table.optional("quorum");
    let default = Quorum::default();
    service.spec.quorum = service.optional(Field::Quorum, quorum, default, |value| {
        if value.is_string() {
            value.parse(QUORUM, out, str::parse)
        } else {
            value.integer(1..=u32::MAX, out).map(Quorum::Count)
        }
    });
    let window = table.optional("slow-start");
    service.spec.slow_start = service.optional(Field::SlowStart, window, None, |value| {
        value.parse(DURATION, out, duration::parse).map(Some)
    });
    let curve = table.optional("slow-start-curve");
    let default = SlowStartCurve::Linear;
    service.spec.slow_start_curve =
        service.optional(Field::SlowStartCurve, curve, default, |value| {
            value.parse(CURVE, out, str::parse)
        });
    let threshold = table.optional("panic-threshold");
    service.spec.panic_threshold =
        service.optional(Field::PanicThreshold, threshold, None, |value| {
            if value.is_string() {
                value.parse(PANIC_THRESHOLD, out, str::parse).map(Some)
            } else {
                let count = value.integer(1..=u32::MAX, out);
                count.map(|count| Some(Quorum::Count(count)))
            }
        });
    let on_empty = table.optional("on-empty");
    service.spec.on_empty = service.optional(Field::OnEmpty, on_empty, OnEmpty::Drop, |value| {
        value.parse(ON_EMPTY, out, str::parse)
    });
}

/// Whom the service takes packets from, and how many flows; and what QUIC says.
fn guard(service: &mut ReadService, table: &mut Table<'_>, out: &mut Diagnostics) {
    for (field, key) in [(Field::Allow, "allow"), (Field::Deny, "deny")] {
        let list = table.optional(key);
        let list = service.optional(field, list, Vec::new(), |value| {
            let elements = value.array(SOURCES, out)?;
            let read = |value: &Value<'_>| value.parse(SOURCES, out, parse_sources);
            let read: Vec<_> = elements.iter().map(read).collect();
            read.into_iter().collect()
        });
        match field {
            Field::Allow => service.spec.allow = list,
            _ => service.spec.deny = list,
        }
    }
    if let Some(limits) = table.optional("limits") {
        service.spans.insert(Field::Limits, limits.span());
        if let Some(mut limits) = limits.table("[service.limits]", out) {
            let mut read = |field, key, header| {
                let value = limits.optional(key);
                service.optional(field, value, None, |value| {
                    read_limit(value, header, out).map(Some)
                })
            };
            let header = "[service.limits.new-per-source]";
            let new_per_source = read(Field::NewPerSource, "new-per-source", header);
            let header = "[service.limits.new-per-service]";
            let new_per_service = read(Field::NewPerService, "new-per-service", header);
            service.spec.limits = NewFlowLimits {
                new_per_source,
                new_per_service,
            };
            limits.finish(out);
        }
    }
    if let Some(quic) = table.optional("quic") {
        service.spans.insert(Field::Quic, quic.span());
        service.spec.quic = quic
            .table("[service.quic]", out)
            .map(|table| read_quic(service, table, out));
        if service.spec.quic.is_none() {
            service.unread.insert(Field::Quic);
        }
    }
}

fn read_limit(value: Value<'_>, header: &'static str, out: &mut Diagnostics) -> Option<RateLimit> {
    let mut table = value.table(header, out)?;
    let rate = table
        .required("rate", RATE, out)
        .and_then(|value| value.integer(1..=u32::MAX, out));
    let burst = match table.optional("burst") {
        Some(value) => value.integer(1..=u32::MAX, out),
        None => rate,
    };
    table.finish(out);
    rate.zip(burst)
        .map(|(rate, burst)| RateLimit { rate, burst })
}

fn read_quic(service: &mut ReadService, mut table: Table<'_>, out: &mut Diagnostics) -> QuicSpec {
    let length = table.required("server-id-length", SERVER_ID_LENGTH, out);
    let length = service.required(Field::ServerIdLength, length, 1, |value| {
        value.integer(1..=MAX_SERVER_ID, out)
    });
    let mut quic = QuicSpec::new(length);
    let offset = table.optional("server-id-offset");
    let default = quic.server_id_offset;
    quic.server_id_offset = service.optional(Field::ServerIdOffset, offset, default, |value| {
        value.integer(1..=MAX_CONNECTION_ID - 1, out)
    });
    let rotation = table.optional("config-rotation");
    let default = quic.config_rotation;
    quic.config_rotation = service.optional(Field::ConfigRotation, rotation, default, |value| {
        let elements = value.array(ROTATION, out)?;
        let read = |value: &Value<'_>| value.integer(0..=MAX_ROTATION, out);
        let read: Vec<_> = elements.iter().map(read).collect();
        read.into_iter().collect()
    });
    table.finish(out);
    quic
}

fn read_duration(
    service: &mut ReadService,
    field: Field,
    value: Option<Value<'_>>,
    default: Duration,
    out: &mut Diagnostics,
) -> Duration {
    service.optional(field, value, default, |value| {
        value.parse(DURATION, out, duration::parse)
    })
}

fn read_timeouts(
    service: &mut ReadService,
    mut table: Table<'_>,
    out: &mut Diagnostics,
) -> Timeouts {
    let default = Timeouts::default();
    let mut read = |field, key, default| {
        let value = table.optional(key);
        read_duration(service, field, value, default, out)
    };
    let timeouts = Timeouts {
        unreplied: read(Field::Unreplied, "unreplied", default.unreplied),
        tcp_established: read(
            Field::TcpEstablished,
            "tcp-established",
            default.tcp_established,
        ),
        tcp_closing: read(Field::TcpClosing, "tcp-closing", default.tcp_closing),
        udp: read(Field::Udp, "udp", default.udp),
    };
    table.finish(out);
    timeouts
}

fn read_backends(service: &mut ReadService, backends: Value<'_>, out: &mut Diagnostics) {
    service.spans.insert(Field::Backends, backends.span());
    for (index, mut table) in backends
        .tables("[[service.backend]]", out)
        .into_iter()
        .enumerate()
    {
        service.spans.insert(Field::Backend(index), table.span());
        let address = table.required("address", BACKEND, out);
        let field = Field::BackendAddress(index);
        let placeholder = BackendAddress {
            ip: nowhere(),
            port: BackendPort::Number(1),
        };
        let address = service.required(field, address, placeholder, |value| {
            value.parse(BACKEND, out, str::parse)
        });
        let weight = table.optional("weight");
        let field = Field::BackendWeight(index);
        let default = BackendSpec::DEFAULT_WEIGHT;
        let weight = service.optional(field, weight, default, |value| {
            const RANGE: RangeInclusive<u32> = 0..=BackendSpec::MAX_WEIGHT;
            value.integer(RANGE, out)
        });
        let priority = table.optional("priority");
        let field = Field::BackendPriority(index);
        let priority = service.optional(field, priority, 0, |value| {
            value.integer(0..=BackendSpec::MAX_PRIORITY, out)
        });
        let most = table.optional("max-connections");
        let field = Field::BackendMaxConnections(index);
        let max_connections = service.optional(field, most, None, |value| {
            value.integer(1..=u32::MAX, out).map(Some)
        });
        let id = table.optional("server-id");
        let field = Field::BackendServerId(index);
        let server_ids = service.optional(field, id, Vec::new(), |value| {
            if value.is_string() {
                return value.parse(SERVER_ID, out, str::parse).map(|id| vec![id]);
            }
            let elements = value.array(SERVER_ID, out)?;
            let read = |value: &Value<'_>| value.parse(SERVER_ID, out, str::parse);
            let read: Vec<_> = elements.iter().map(read).collect();
            read.into_iter().collect()
        });
        let drain = read_drain(service, index, &mut table, out);
        let health = table.optional("health");
        let health = health.and_then(|health| health::read(service, Some(index), health, out));
        service.spec.backends.push(BackendSpec {
            server_ids,
            drain,
            health: health.map(Box::new),
            weight,
            priority,
            max_connections,
            ..BackendSpec::new(address)
        });
        table.finish(out);
    }
}

fn read_drain(
    service: &mut ReadService,
    index: usize,
    backend: &mut Table<'_>,
    out: &mut Diagnostics,
) -> Option<DrainSpec> {
    let drain = backend.optional("drain")?;
    let span = drain.span();
    service.spans.insert(Field::BackendDrain(index), span);
    let mut table = drain.table("[service.backend.drain]", out)?;
    let deadline = table.optional("deadline");
    let field = Field::BackendDeadline(index);
    let deadline = service.optional(field, deadline, None, |value| {
        value.parse(DURATION, out, duration::parse).map(Some)
    });
    let end = table.optional("on-deadline");
    let field = Field::BackendOnDeadline(index);
    let on_deadline = service.optional(field, end, DrainSpec::DEFAULT_END, |value| {
        value.parse(ON_DEADLINE, out, str::parse)
    });
    table.finish(out);
    Some(DrainSpec {
        deadline,
        on_deadline,
    })
}
