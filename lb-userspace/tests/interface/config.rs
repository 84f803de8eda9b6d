//! Reading of configurations: what right ones mean, that no text makes the reader
//! fail otherwise than by a diagnostic, and that it takes what the API takes.

use std::{
    fmt::Write,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use lb_userspace::{
    address::AddressPrefix,
    config::{self, Config, DatapathLog, Limits, Outcome, Source, XdpMode},
    state::{
        Alpn, BackendSpec, Desired, DnsProbe, DrainSpec, ExecProbe, FULL_NAT_PORTS, GUE_PORT,
        GrpcProbe, Hash, HealthSpec, HttpProbe, Method, Mode, NewFlowLimits, OnDeadline, OnEmpty,
        OtherPorts, Probe, Protocol, QuicSpec, Quorum, RateLimit, Rcode, RecordType, Scheduler,
        ServerId, ServiceAddress, ServiceSpec, SlowStartCurve, Timeouts, TlsSpec, Track, UdpProbe,
        Word as _, parse_sources,
    },
};
use proptest::{collection::vec, prelude::*, sample::select};

const EVERY_KEY: &str = include_str!("config/every-key.toml");

/// The one key that every file must have.
const INTERFACES: &str = "interfaces = ['eth0']\n";

fn read(text: &[u8]) -> (Source, Outcome) {
    let source = Source::new("lb.toml", text);
    let outcome = config::read(&source);
    (source, outcome)
}

/// A backend with a check of its own.
fn checked(address: &str, port: Option<u16>, probe: Probe) -> BackendSpec {
    BackendSpec {
        health: Some(Box::new(HealthSpec {
            port,
            ..HealthSpec::new(probe)
        })),
        ..backend(address, 100)
    }
}

/// The configuration that `text` says without a word of warning.
fn right(text: &str) -> Config {
    let (source, outcome) = read(text.as_bytes());
    let complaints = outcome.diagnostics.render(&source, false);
    assert!(complaints.is_empty(), "{complaints}");
    outcome.config.expect("no complaints, so a configuration")
}

fn backend(address: &str, weight: u32) -> BackendSpec {
    BackendSpec {
        weight,
        ..BackendSpec::new(address.parse().unwrap())
    }
}

fn sources(text: &str) -> AddressPrefix {
    parse_sources(text).unwrap()
}

fn address(text: &str) -> ServiceAddress {
    text.parse().unwrap()
}

#[test]
fn nearly_everything_has_a_default() {
    let expected = Config {
        interfaces: vec!["eth0".into()],
        xdp_mode: XdpMode::Auto,
        socket: PathBuf::from("/run/lb/lb.sock"),
        read_group: None,
        pin_directory: PathBuf::from("/sys/fs/bpf/lb"),
        state_file: PathBuf::from("/var/lib/lb/state.json"),
        limits: Limits {
            flows: 1_048_576,
            embryonic: 131_072,
        },
        datapath_log: DatapathLog::Off,
        services: Vec::new(),
    };
    assert_eq!(right(INTERFACES), expected);
}

#[test]
fn every_key_is_taken_as_written() {
    let web = ServiceSpec {
        ring_size: 4093,
        track: Some(Track::All),
        quorum: Quorum::Percent(50),
        panic_threshold: Some(Quorum::Percent(30)),
        on_empty: OnEmpty::FailOpen,
        allow: vec![sources("198.51.100.0/24")],
        deny: vec![sources("198.51.100.7"), sources("198.51.100.128/25")],
        limits: NewFlowLimits {
            new_per_source: Some(RateLimit {
                rate: 10,
                burst: 100,
            }),
            new_per_service: Some(RateLimit::new(1000)),
        },
        slow_start: Some(Duration::from_secs(30)),
        slow_start_curve: SlowStartCurve::Quadratic,
        hash: Hash::ClientPort,
        source: Some(IpAddr::from([10, 0, 0, 1]).into()),
        source_ports: 2000..=2999,
        max_segment_size: Some(1400),
        other_ports: OtherPorts::Drop,
        icmp_echo: false,
        timeouts: Timeouts {
            unreplied: Duration::from_secs(5),
            tcp_established: Duration::from_secs(90 * 60),
            tcp_closing: Duration::from_millis(100),
            udp: Duration::from_secs(30 * 24 * 3600),
        },
        health: Some(HealthSpec {
            interval: Duration::from_secs(10),
            down_interval: Some(Duration::from_secs(5)),
            jitter: 10,
            hold_down: Some(Duration::from_secs(60)),
            passive: true,
            timeout: Some(Duration::from_millis(2500)),
            rise: 1,
            fall: 5,
            port: Some(8080),
            ..HealthSpec::new(Probe::Https(
                HttpProbe {
                    method: Method::Options,
                    path: "/healthz?full=1".into(),
                    host: Some("www.example.org".into()),
                    status: "200-204, 401".parse().unwrap(),
                    body: Some("ok".into()),
                },
                TlsSpec {
                    server_name: Some("a.example.org".into()),
                    ca: Some("/etc/lb/ca.pem".into()),
                    verify: true,
                },
                vec![Alpn::Http2, Alpn::Http1],
            ))
        }),
        backends: vec![
            BackendSpec {
                drain: Some(DrainSpec {
                    deadline: Some(Duration::from_secs(300)),
                    on_deadline: OnDeadline::Reset,
                }),
                ..backend("10.0.0.11:8443", 0)
            },
            BackendSpec {
                priority: 1,
                max_connections: Some(1000),
                ..backend("10.0.0.12:8443", 65_535)
            },
        ],
        ..ServiceSpec::new("web", address("192.0.2.10:443"), Mode::FullNat)
    };
    let dns = ServiceSpec {
        protocol: Protocol::Udp,
        scheduler: Scheduler::LeastConnections,
        affinity: Some(Duration::from_secs(600)),
        quorum: Quorum::Count(2),
        health: Some(HealthSpec {
            interval: Duration::from_millis(500),
            // The default of one second would be longer than the interval.
            timeout: None,
            port: Some(53),
            ..HealthSpec::new(Probe::Dns(DnsProbe {
                query: "www.example.org".into(),
                record: RecordType::Aaaa,
                rcode: Rcode::NoError,
                answer: Some("2001:db8::1".into()),
            }))
        }),
        quic: Some(QuicSpec {
            server_id_offset: 2,
            server_id_length: 3,
            config_rotation: vec![1, 2],
        }),
        backends: vec![
            BackendSpec {
                server_ids: vec!["c0ffee".parse().unwrap(), "c0ffef".parse().unwrap()],
                ..backend("[2001:db8::11]:*", 100)
            },
            BackendSpec {
                server_ids: vec!["000000".parse().unwrap()],
                ..backend("[2001:db8::12]:*", 100)
            },
        ],
        ..ServiceSpec::new("dns", address("[2001:db8::10]:*"), Mode::Nat)
    };
    let tunnel = ServiceSpec {
        source: Some(AddressPrefix::new([10, 9, 0, 0].into(), 24)),
        gue_port: 6081,
        backends: vec![
            checked(
                "10.0.0.21",
                None,
                Probe::Exec(ExecProbe {
                    command: vec!["/usr/bin/check".into(), "--fast".into()],
                    environment: [("MODE".into(), "a".into())].into(),
                }),
            ),
            checked(
                "[2001:db8::21]",
                Some(50_051),
                Probe::Grpc(GrpcProbe {
                    service: "mail.Inbox".into(),
                    host: None,
                    tls: Some(TlsSpec {
                        verify: false,
                        ..TlsSpec::default()
                    }),
                }),
            ),
            checked(
                "10.0.0.22",
                Some(7),
                Probe::Udp(UdpProbe {
                    send: "PING".into(),
                    expect: Some(vec![0xff, 0]),
                }),
            ),
            checked("10.0.0.23", None, Probe::Icmp),
        ],
        ..ServiceSpec::new("tunnel", address("[2001:db8:1::/64]:8000-8099"), Mode::Gue)
    };
    let expected = Config {
        interfaces: vec!["eth0".into(), "eth1.100".into()],
        xdp_mode: XdpMode::Native,
        socket: PathBuf::from("/run/lb/other.sock"),
        read_group: Some("monitoring".into()),
        pin_directory: PathBuf::from("/sys/fs/bpf/other"),
        state_file: PathBuf::from("/srv/lb/changes.json"),
        limits: Limits {
            flows: 65_536,
            embryonic: 4_096,
        },
        datapath_log: DatapathLog::Off,
        services: vec![web, dns, tunnel],
    };
    assert_eq!(right(EVERY_KEY), expected);
}

#[test]
fn the_example_of_the_documentation_is_right() {
    let config = right(include_str!("config/design.toml"));
    let desired = config.desired();
    let web = desired.service("web").unwrap();
    assert_eq!(web.backends, [backend("10.0.0.11:8443", 100)]);
}

/// What the documentation shows as a configuration is one.
#[test]
fn the_documentation_shows_right_configurations() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for page in ["README.md", "docs/configuration.md"] {
        let text = fs::read_to_string(root.join(page)).unwrap();
        let blocks: Vec<_> = text
            .split("```toml\n")
            .skip(1)
            .map(|block| block.split_once("```").unwrap().0)
            .collect();
        assert!(!blocks.is_empty(), "{page} shows none");
        for block in blocks {
            right(block);
        }
    }
}

/// The page about the configuration names every key, and the true defaults.
#[test]
fn the_documented_defaults_are_the_defaults() {
    let page = include_str!("../../../docs/configuration.md");
    let block = page
        .split("```")
        .nth(1)
        .unwrap()
        .strip_prefix("toml\n")
        .unwrap();
    let documented = right(block);
    let keys: Vec<_> = page
        .lines()
        // One is not for the mode of this service.
        .map(|line| line.trim_start_matches("# "))
        .filter_map(|line| Some(line.split_once(" =")?.0))
        .collect();
    assert!(block.contains(&format!("\n# gue-port = {GUE_PORT} ")));
    for line in EVERY_KEY.lines().filter(|line| !line.contains("{ ")) {
        if let Some((key, _)) = line.split_once(" =") {
            assert!(keys.contains(&key), "{key} is not documented");
        }
    }
    // Without what has no default, or whose default is not a value.
    let without = [
        "[service.backend.drain]",
        "deadline =",
        "on-deadline =",
        "track =",
        "panic-threshold =",
        "slow-start =",
        "allow =",
        "deny =",
        "[service.limits]",
        "new-per-source =",
        "new-per-service =",
        "max-connections =",
        "source =",
        "max-segment-size =",
        "host =",
        "body =",
        "down-interval =",
        "hold-down =",
        "port =",
        "interfaces =",
        "read-group =",
        "timeout =",
    ];
    let kept = ["name =", "address =", "mode =", "type ="];
    let bare: String = block
        .lines()
        .filter(|line| line.starts_with('[') || kept.iter().any(|key| line.starts_with(key)))
        .filter(|line| {
            !["[service.backend.drain]", "[service.limits]"]
                .iter()
                .any(|header| line.starts_with(header))
        })
        .fold(INTERFACES.to_owned(), |text, line| text + line + "\n");
    let shown: String = block
        .lines()
        .filter(|line| !without.iter().any(|key| line.starts_with(key)))
        .fold(INTERFACES.to_owned(), |text, line| text + line + "\n");
    assert_eq!(right(&bare), right(&shown));
    // It follows the interval, and is then what is shown.
    let timeout = |config: &Config| config.services[0].health.as_ref().unwrap().timeout();
    assert_eq!(timeout(&right(&bare)), timeout(&documented));
    assert_eq!(documented.services.len(), 1);
}

#[test]
fn windows_line_ends_and_a_byte_order_mark_change_nothing() {
    let text = format!("\u{feff}{}", EVERY_KEY.replace('\n', "\r\n"));
    assert_eq!(right(&text), right(EVERY_KEY));
}

#[test]
fn more_services_and_backends_than_there_is_room_for_are_refused() {
    let mut text = INTERFACES.to_owned();
    for n in 0..4096 {
        let (high, low) = (n / 256, n % 256);
        let _ = writeln!(
            text,
            "[[service]]\nname = 's{n}'\naddress = '192.0.{high}.{low}:80'\nmode = 'nat'\nbackend = ["
        );
        for backend in 0..17 {
            let _ = writeln!(text, "{{ address = '10.{backend}.0.1:80' }},");
        }
        text.push_str("]\n");
    }
    let (source, outcome) = read(text.as_bytes());
    let found: Vec<_> = outcome
        .diagnostics
        .iter()
        .map(|found| (found.message.as_str(), source.position(found.span.start).0))
        .collect();
    // 3855 * 17 = 65535 backends fit; each service takes 23 lines.
    assert_eq!(
        found,
        [
            (
                "there is room for 65535 backends, of all services together",
                3855 * 23 + 6
            ),
            ("there is room for 4095 services", 4095 * 23 + 2),
        ]
    );
}

/// The text of a service, as one writes it.
fn write_service(service: &ServiceSpec) -> String {
    let mut text = format!(
        "[[service]]\nname = '{}'\naddress = '{}'\nprotocol = '{}'\nmode = '{}'\n\
         other-ports = '{}'\nicmp-echo = {}\n",
        service.name,
        service.address,
        service.protocol,
        service.mode,
        service.other_ports,
        service.icmp_echo,
    );
    let _ = writeln!(
        text,
        "scheduler = '{}'\nhash = '{}'\nring-size = {}\nquorum = '{}'\non-empty = '{}'",
        service.scheduler, service.hash, service.ring_size, service.quorum, service.on_empty
    );
    let list = |key, list: &[AddressPrefix]| {
        let quoted: Vec<_> = list.iter().map(|prefix| format!("'{prefix}'")).collect();
        format!("{key} = [{}]\n", quoted.join(", "))
    };
    text.push_str(&list("allow", &service.allow));
    text.push_str(&list("deny", &service.deny));
    for (key, limit) in [
        ("new-per-source", service.limits.new_per_source),
        ("new-per-service", service.limits.new_per_service),
    ] {
        if let Some(RateLimit { rate, burst }) = limit {
            let _ = writeln!(text, "limits.{key} = {{ rate = {rate}, burst = {burst} }}");
        }
    }
    if let Some(quic) = &service.quic {
        let _ = writeln!(
            text,
            "quic = {{ server-id-offset = {}, server-id-length = {}, config-rotation = {:?} }}",
            quic.server_id_offset, quic.server_id_length, quic.config_rotation
        );
    }
    if let Some(affinity) = service.affinity {
        let _ = writeln!(text, "affinity = '{}'", config::duration::format(affinity));
    }
    if let Some(window) = service.slow_start {
        let window = config::duration::format(window);
        let _ = writeln!(text, "slow-start = '{window}'");
    }
    let curve = service.slow_start_curve;
    let _ = writeln!(text, "slow-start-curve = '{curve}'");
    if let Some(track) = service.track {
        let _ = writeln!(text, "track = '{track}'");
    }
    // Other modes take them from the API with their defaults, which a file leaves out.
    let ports = &service.source_ports;
    if service.mode == Mode::FullNat || *ports != FULL_NAT_PORTS {
        let _ = writeln!(text, "source-ports = '{}-{}'", ports.start(), ports.end());
    }
    if service.mode == Mode::Gue || service.gue_port != GUE_PORT {
        let _ = writeln!(text, "gue-port = {}", service.gue_port);
    }
    if let Some(size) = service.max_segment_size {
        let _ = writeln!(text, "max-segment-size = {size}");
    }
    if let Some(source) = service.source {
        let _ = writeln!(text, "source = '{source}'");
    }
    if let Some(health) = &service.health {
        let _ = writeln!(
            text,
            "[service.health]\ntype = 'tcp'\ninterval = '{}'\ntimeout = '{}'\nrise = {}",
            config::duration::format(health.interval),
            config::duration::format(health.timeout()),
            health.rise,
        );
    }
    for backend in &service.backends {
        let _ = writeln!(
            text,
            "[[service.backend]]\naddress = '{}'\nweight = {}\npriority = {}",
            backend.address, backend.weight, backend.priority
        );
        if let Some(most) = backend.max_connections {
            let _ = writeln!(text, "max-connections = {most}");
        }
        if !backend.server_ids.is_empty() {
            let ids: Vec<_> = backend.server_ids.iter().map(ServerId::to_string).collect();
            let _ = writeln!(text, "server-id = {ids:?}");
        }
        if let Some(drain) = backend.drain {
            let _ = writeln!(
                text,
                "[service.backend.drain]\non-deadline = '{}'",
                drain.on_deadline
            );
            if let Some(deadline) = drain.deadline {
                let _ = writeln!(text, "deadline = '{}'", config::duration::format(deadline));
            }
        }
    }
    text
}

/// A service that is right about as often as not.
fn any_service() -> impl Strategy<Value = ServiceSpec> {
    let addresses = vec![
        "192.0.2.1:80",
        "192.0.2.1:*",
        "192.0.2.1:80-90",
        "192.0.2.1:85-95",
        "192.0.2.0/24:80",
        "10.0.0.0/29:1024-32767",
        "10.0.0.9:*",
        "[2001:db8::1]:80",
        "0.0.0.0:80",
    ];
    let backends = vec![
        "10.0.0.1:80",
        "10.0.0.1:80",
        "10.0.0.2:80",
        "10.0.0.2:*",
        "10.0.0.2",
        "[2001:db8::2]:80",
    ];
    let backend = (
        select(backends),
        select(vec![0, 1, 65_535, 65_536]),
        select(vec![0, 0, 0, 255, 256]),
        prop::option::weighted(0.2, select(vec![0, 1, 100])),
        prop::option::weighted(0.2, any_drain()),
        vec(select(vec!["00", "01", "0001"]), 0..2),
    )
        .prop_map(
            |(address, weight, priority, max_connections, drain, ids)| BackendSpec {
                server_ids: ids.iter().map(|id| id.parse().unwrap()).collect(),
                priority,
                max_connections,
                drain,
                ..backend(address, weight)
            },
        );
    let sources = vec![
        AddressPrefix::from(IpAddr::from([10, 0, 0, 9])),
        AddressPrefix::new([10, 0, 0, 0].into(), 24),
        AddressPrefix::new([10, 0, 0, 0].into(), 8),
    ];
    let millis = || select(vec![0, 100, 1_000, 2_000]).prop_map(Duration::from_millis);
    let health = (millis(), millis(), 0..3_u32).prop_map(|(interval, timeout, rise)| HealthSpec {
        interval,
        timeout: Some(timeout),
        rise,
        ..HealthSpec::new(Probe::Tcp)
    });
    (
        select(vec!["a", "b", "c", "-"]),
        select(addresses),
        select(Mode::ALL),
        prop::option::weighted(0.4, select(sources)),
        select(vec![(1024, 32_767), (1024, 32_767), (2000, 1000)]),
        (
            select(vec![GUE_PORT, GUE_PORT, 6081]),
            prop::option::weighted(0.2, select(vec![100, 1400])),
            select(OtherPorts::ALL),
            any::<bool>(),
        ),
        (any_selection(), prop::option::weighted(0.4, any_guard())),
        prop::option::weighted(0.3, health),
        vec(backend, 0..3),
    )
        .prop_map(
            |(name, address, mode, source, (first, last), options, selection, health, backends)| {
                ServiceSpec {
                    source,
                    source_ports: first..=last,
                    gue_port: options.0,
                    max_segment_size: options.1,
                    other_ports: options.2,
                    icmp_echo: options.3,
                    health,
                    backends,
                    name: name.into(),
                    address: address.parse().unwrap(),
                    mode,
                    ..guarded(selection)
                }
            },
        )
}

/// A service with the guard of another, if there is one.
fn guarded((service, guard): (ServiceSpec, Option<ServiceSpec>)) -> ServiceSpec {
    let Some(guard) = guard else {
        return service;
    };
    ServiceSpec {
        protocol: guard.protocol,
        allow: guard.allow,
        deny: guard.deny,
        limits: guard.limits,
        quic: guard.quic,
        ..service
    }
}

/// Whom a service takes packets from, and what QUIC says.
fn any_guard() -> impl Strategy<Value = ServiceSpec> {
    let prefixes = || {
        let prefixes = vec![
            "0.0.0.0/0",
            "198.51.100.7",
            "198.51.100.0/24",
            "2001:db8::/32",
        ];
        vec(select(prefixes).prop_map(sources), 0..3)
    };
    let limit = || {
        let rates = (select(vec![0, 1]), select(vec![1, 5]));
        prop::option::weighted(
            0.3,
            rates.prop_map(|(rate, burst)| RateLimit { rate, burst }),
        )
    };
    let rotations = vec![vec![0], vec![0, 6], vec![], vec![1, 0], vec![7]];
    let quic = (select(vec![1, 19, 20]), 0..3_u8, select(rotations)).prop_map(
        |(server_id_offset, server_id_length, config_rotation)| QuicSpec {
            server_id_offset,
            server_id_length,
            config_rotation,
        },
    );
    (
        select(Protocol::ALL),
        prefixes(),
        prefixes(),
        (limit(), limit()),
        prop::option::weighted(0.5, quic),
    )
        .prop_map(|(protocol, allow, deny, limits, quic)| ServiceSpec {
            protocol,
            allow,
            deny,
            limits: NewFlowLimits {
                new_per_source: limits.0,
                new_per_service: limits.1,
            },
            quic,
            ..ServiceSpec::new("", address("192.0.2.1:80"), Mode::Nat)
        })
}

fn any_drain() -> impl Strategy<Value = DrainSpec> {
    let days = |days: u64| Duration::from_secs(days * 24 * 3600);
    let deadline = prop::option::of(select(vec![days(0), days(30), days(31)]));
    (deadline, select(OnDeadline::ALL)).prop_map(|(deadline, on_deadline)| DrainSpec {
        deadline,
        on_deadline,
    })
}

/// A service that has nothing but how it chooses among backends.
fn any_selection() -> impl Strategy<Value = ServiceSpec> {
    let second = Duration::from_secs(1);
    let day = Duration::from_secs(24 * 3600);
    (
        select(vec![
            Scheduler::Maglev,
            Scheduler::Maglev,
            Scheduler::Random,
        ]),
        select(vec![Hash::FiveTuple, Hash::FiveTuple, Hash::Client]),
        prop::option::weighted(0.2, select(vec![Duration::ZERO, second, 31 * day])),
        select(vec![65_537, 65_537, 251, 250, 252]),
        prop::option::weighted(0.3, select(Track::ALL)),
        select(vec![
            Quorum::Count(1),
            Quorum::Count(0),
            Quorum::Percent(50),
            Quorum::Percent(101),
        ]),
        select(OnEmpty::ALL),
        prop::option::weighted(0.3, select(vec![Duration::ZERO, second])),
        select(SlowStartCurve::ALL),
    )
        .prop_map(
            |(
                scheduler,
                hash,
                affinity,
                ring_size,
                track,
                quorum,
                on_empty,
                slow_start,
                slow_start_curve,
            )| ServiceSpec {
                slow_start,
                slow_start_curve,
                scheduler,
                hash,
                affinity,
                ring_size,
                track,
                quorum,
                on_empty,
                ..ServiceSpec::new("", address("192.0.2.1:80"), Mode::Nat)
            },
        )
}

proptest! {
    /// The file takes what the API takes, and means the same by it.
    #[test]
    fn file_and_api_agree(services in vec(any_service(), 0..4)) {
        let services_text: String = services.iter().map(write_service).collect();
        let text = format!("{INTERFACES}{services_text}");
        let (source, outcome) = read(text.as_bytes());
        let complaints = outcome.diagnostics.render(&source, false);
        match Desired::new(services.clone()) {
            Ok(_) => prop_assert_eq!(outcome.config.map(|config| config.services), Some(services),
                "{}", complaints),
            Err(refusal) => prop_assert!(outcome.config.is_none(), "{}\n{}", refusal, text),
        }
    }

    /// Whatever becomes of the bytes of a file, it is read or explained.
    #[test]
    fn spoilt_files_are_explained(
        changes in vec((any::<prop::sample::Index>(), any::<u8>(), 0..5_u8), 1..12),
    ) {
        let mut bytes = EVERY_KEY.as_bytes().to_vec();
        for (index, byte, kind) in changes {
            let at = index.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, b"\"'[]{}=.,\n#\\"[usize::from(byte) % 12]),
                2 => drop(bytes.splice(at..at, "☃\u{301}".bytes())),
                3 => drop(bytes.drain(at..(at + usize::from(byte)).min(bytes.len() - 1))),
                _ => bytes.extend_from_within(at..),
            }
        }
        bytes.truncate(20_000);
        let (source, outcome) = read(&bytes);
        for colour in [false, true] {
            let shown = outcome.diagnostics.render(&source, colour);
            prop_assert_eq!(shown.is_empty(), outcome.diagnostics.iter().len() == 0);
        }
        let errors = outcome.diagnostics.count(config::Severity::Error);
        prop_assert_eq!(outcome.config.is_none(), errors > 0);
        if let Some(config) = outcome.config {
            prop_assert_eq!(config.desired().services().len(), config.services.len());
        }
    }
}
