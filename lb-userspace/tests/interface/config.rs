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
        BackendSpec, Desired, FULL_NAT_PORTS, GUE_PORT, HealthSpec, Mode, OtherPorts, Probe,
        Protocol, Scheduler, ServiceSpec, Timeouts, Word as _,
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

/// The configuration that `text` says without a word of warning.
fn right(text: &str) -> Config {
    let (source, outcome) = read(text.as_bytes());
    let complaints = outcome.diagnostics.render(&source, false);
    assert!(complaints.is_empty(), "{complaints}");
    outcome.config.expect("no complaints, so a configuration")
}

fn backend(address: &str, weight: u32) -> BackendSpec {
    BackendSpec {
        address: address.parse().unwrap(),
        weight,
    }
}

#[test]
fn nearly_everything_has_a_default() {
    let expected = Config {
        interfaces: vec!["eth0".into()],
        xdp_mode: XdpMode::Auto,
        socket: PathBuf::from("/run/lb/lb.sock"),
        limits: Limits { flows: 1_048_576 },
        datapath_log: DatapathLog::Off,
        services: Vec::new(),
    };
    assert_eq!(right(INTERFACES), expected);
}

#[test]
fn every_key_is_taken_as_written() {
    let web = ServiceSpec {
        name: "web".into(),
        address: "192.0.2.10:443".parse().unwrap(),
        protocol: Protocol::Tcp,
        mode: Mode::FullNat,
        scheduler: Scheduler::Maglev,
        source: Some(IpAddr::from([10, 0, 0, 1]).into()),
        source_ports: 2000..=2999,
        gue_port: GUE_PORT,
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
            probe: Probe::Http {
                path: "/healthz?full=1".into(),
                host: Some("www.example.org".into()),
            },
            interval: Duration::from_secs(10),
            timeout: Some(Duration::from_millis(2500)),
            rise: 1,
            fall: 5,
            port: Some(8080),
        }),
        backends: vec![
            backend("10.0.0.11:8443", 0),
            backend("10.0.0.12:8443", 65_535),
        ],
    };
    let dns = ServiceSpec {
        name: "dns".into(),
        address: "[2001:db8::10]:*".parse().unwrap(),
        protocol: Protocol::Udp,
        mode: Mode::Nat,
        scheduler: Scheduler::Maglev,
        source: None,
        source_ports: FULL_NAT_PORTS,
        gue_port: GUE_PORT,
        max_segment_size: None,
        other_ports: OtherPorts::Pass,
        icmp_echo: true,
        timeouts: Timeouts::default(),
        health: Some(HealthSpec {
            probe: Probe::Tcp,
            interval: Duration::from_millis(500),
            // The default of one second would be longer than the interval.
            timeout: None,
            rise: 2,
            fall: 3,
            port: Some(53),
        }),
        backends: vec![backend("[2001:db8::11]:*", 100)],
    };
    let tunnel = ServiceSpec {
        name: "tunnel".into(),
        address: "[2001:db8:1::/64]:8000-8099".parse().unwrap(),
        protocol: Protocol::Tcp,
        mode: Mode::Gue,
        scheduler: Scheduler::Maglev,
        source: Some(AddressPrefix::new([10, 9, 0, 0].into(), 24)),
        source_ports: FULL_NAT_PORTS,
        gue_port: 6081,
        max_segment_size: None,
        other_ports: OtherPorts::Pass,
        icmp_echo: true,
        timeouts: Timeouts::default(),
        health: None,
        backends: vec![backend("10.0.0.21", 100), backend("[2001:db8::21]", 100)],
    };
    let expected = Config {
        interfaces: vec!["eth0".into(), "eth1.100".into()],
        xdp_mode: XdpMode::Native,
        socket: PathBuf::from("/run/lb/other.sock"),
        limits: Limits { flows: 65_536 },
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
    let keys: Vec<_> = block
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
        "source =",
        "max-segment-size =",
        "host =",
        "port =",
        "interfaces =",
        "timeout =",
    ];
    let kept = ["name =", "address =", "mode =", "type ="];
    let bare: String = block
        .lines()
        .filter(|line| line.starts_with('[') || kept.iter().any(|key| line.starts_with(key)))
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
            "[[service.backend]]\naddress = '{}'\nweight = {}",
            backend.address, backend.weight
        );
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
    let backend = (select(backends), select(vec![0, 1, 65_535, 65_536]))
        .prop_map(|(address, weight)| backend(address, weight));
    let sources = vec![
        AddressPrefix::from(IpAddr::from([10, 0, 0, 9])),
        AddressPrefix::new([10, 0, 0, 0].into(), 24),
        AddressPrefix::new([10, 0, 0, 0].into(), 8),
    ];
    let millis = || select(vec![0, 100, 1_000, 2_000]).prop_map(Duration::from_millis);
    let health = (millis(), millis(), 0..3_u32).prop_map(|(interval, timeout, rise)| HealthSpec {
        probe: Probe::Tcp,
        interval,
        timeout: Some(timeout),
        rise,
        fall: HealthSpec::DEFAULT_FALL,
        port: None,
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
        prop::option::weighted(0.3, health),
        vec(backend, 0..3),
    )
        .prop_map(
            |(name, address, mode, source, (first, last), options, health, backends)| ServiceSpec {
                name: name.into(),
                address: address.parse().unwrap(),
                protocol: Protocol::Tcp,
                mode,
                scheduler: Scheduler::Maglev,
                source,
                source_ports: first..=last,
                gue_port: options.0,
                max_segment_size: options.1,
                other_ports: options.2,
                icmp_echo: options.3,
                timeouts: Timeouts::default(),
                health,
                backends,
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
