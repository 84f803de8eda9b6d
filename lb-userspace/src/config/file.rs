//! The file as a whole: its tables, and what its services must not share.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    ops::Range,
    path::PathBuf,
};

use toml::de::{DeTable, DeValue};

use super::{
    Config, DEFAULT_PIN_DIRECTORY, DEFAULT_SOCKET, DEFAULT_STATE_FILE, DatapathLog, Limits, Source,
    XdpMode,
    diagnostic::{Diagnostic, Diagnostics, Doubt, Severity},
    reader::{Table, Value},
    service::{self, ReadService},
};
use crate::state::{
    Reason,
    rules::{self, Field, MAX_ALL_SOURCES, MAX_BACKENDS, MAX_SERVER_IDS, MAX_SERVICES},
};

const INTERFACES: &str = "list the interfaces by name: `interfaces = [\"eth0\"]`";
const XDP_MODE: &str = "`xdp-mode = \"auto\"`, `\"native\"` or `\"generic\"`";
const PIN_DIRECTORY: &str =
    "write an absolute path in quotes: `pin-directory = \"/sys/fs/bpf/lb\"`";
const READ_GROUP: &str = "write the name of a group in quotes: `read-group = \"monitoring\"`";
const STATE_FILE: &str =
    "write an absolute path in quotes: `state-file = \"/var/lib/lb/state.json\"`";
const SOCKET: &str = "write an absolute path in quotes: `socket = \"/run/lb/lb.sock\"`";

/// What a file says, and what is wrong with it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The configuration; `None` if the file has an error.
    pub config: Option<Config>,
    /// Every mistake, in the order of the file.
    pub diagnostics: Diagnostics,
}

/// Reads a configuration, and finds every mistake in it.
#[must_use]
pub fn read(source: &Source) -> Outcome {
    let mut out = Diagnostics::default();
    let config = match source.invalid() {
        Some(span) => {
            out.push(Diagnostic::error(
                span,
                "the file is not UTF-8 text",
                "save it in the encoding UTF-8",
            ));
            None
        }
        None => Some(read_text(source, &mut out)),
    };
    out.sort();
    Outcome {
        config: config.filter(|_| out.count(Severity::Error) == 0),
        diagnostics: out,
    }
}

fn read_text(source: &Source, out: &mut Diagnostics) -> Config {
    let (root, errors) = DeTable::parse_recoverable(source.text());
    let table = Table::new(root.get_ref(), root.span(), "the file");
    let config = read_root(table, out);
    if !errors.is_empty() {
        let errors = syntax_errors(source, root.get_ref(), &errors);
        keep_certain(source, &errors, out);
        errors.into_iter().for_each(|error| out.push(error));
    }
    config
}

/// Drops the mistakes that may be but the consequence of a syntax error.
fn keep_certain(source: &Source, errors: &[Diagnostic], out: &mut Diagnostics) {
    let line = |byte| source.position(byte).0;
    let lines: Vec<_> = errors
        .iter()
        .map(|error| line(error.span.start)..=line(error.span.end))
        .collect();
    let header = errors
        .iter()
        .any(|error| source.line(error.span.start).trim_start().starts_with('['));
    out.retain(|found| {
        let spoilt = || {
            lines
                .iter()
                .any(|lines| lines.contains(&line(found.span.start)))
        };
        match found.doubt {
            Doubt::Line => !spoilt(),
            Doubt::Header => !header && !spoilt(),
            Doubt::Any => false,
        }
    });
}

/// The errors of the parser in this program's words.
fn syntax_errors(
    source: &Source,
    root: &DeTable<'_>,
    errors: &[toml::de::Error],
) -> Vec<Diagnostic> {
    // To the parser all that follows an array without an end is part of it, and wrong.
    let unclosed = errors
        .iter()
        .filter(|error| error.message().starts_with("unclosed array,"))
        .filter_map(|error| outermost_array(root, error.span()?.start))
        .min_by_key(|span| span.start);
    let mut found: Vec<_> = errors
        .iter()
        .map(|error| (error.message(), error.span().unwrap_or_default()))
        .filter(|(_, span)| {
            unclosed
                .as_ref()
                .is_none_or(|array| span.start < array.start)
        })
        .map(|(message, span)| syntax_error(source, message, span))
        .collect();
    // One bracket that is wrong is said to be so once for each that follows.
    let mut seen = HashSet::new();
    found.retain(|error| {
        let (line, _) = source.position(error.span.start);
        seen.insert((line, error.message.clone()))
    });
    found.extend(unclosed.map(|span| {
        Diagnostic::error(
            span,
            "the array that begins here has no end",
            "close it by `]`",
        )
    }));
    found
}

/// The outermost array that contains the byte or ends there.
fn outermost_array(table: &DeTable<'_>, byte: usize) -> Option<Range<usize>> {
    table.iter().find_map(|(_, value)| {
        let span = value.span();
        match value.get_ref() {
            DeValue::Array(_) if (span.start..=span.end).contains(&byte) => Some(span),
            // Headers do not span what stands under them.
            DeValue::Array(elements) => elements
                .iter()
                .filter_map(|element| element.get_ref().as_table())
                .find_map(|table| outermost_array(table, byte)),
            DeValue::Table(table) => outermost_array(table, byte),
            _ => None,
        }
    })
}

fn syntax_error(source: &Source, message: &str, span: Range<usize>) -> Diagnostic {
    let (message, expected) = match message.split_once(", expected ") {
        Some((message, expected)) => (message, Some(expected)),
        None => (message, None),
    };
    let text = source.text().get(span.clone()).unwrap_or_default();
    let no_value = Diagnostic::error(
        span.clone(),
        "the value cannot be understood",
        "write text in quotes: `key = \"value\"`",
    );
    match message {
        "string values must be quoted" if text.is_empty() => {
            Diagnostic::error(span, "the value is missing", "write one after `=`")
        }
        "string values must be quoted" | "invalid integer" | "invalid float" => no_value,
        "duplicate key" => Diagnostic::error(
            span,
            format!("`{text}` is there twice"),
            "keep one; each service begins with [[service]], each backend with \
             [[service.backend]]",
        ),
        _ => {
            let hint = match expected {
                Some(expected) => format!("{expected} is expected here"),
                None => "the file is TOML: lines `key = value` under [headers]".to_owned(),
            };
            Diagnostic::error(span, format!("syntax: {message}"), hint)
        }
    }
}

fn read_root(mut root: Table<'_>, out: &mut Diagnostics) -> Config {
    let interfaces = root
        .required("interfaces", INTERFACES, out)
        .map(|value| read_interfaces(value, out))
        .unwrap_or_default();
    let xdp_mode = root
        .optional("xdp-mode")
        .and_then(|value| value.parse(XDP_MODE, out, str::parse))
        .unwrap_or(XdpMode::Auto);
    let socket = root
        .optional("socket")
        .and_then(|value| value.parse(SOCKET, out, parse_socket))
        .unwrap_or_else(|| DEFAULT_SOCKET.into());
    let read_group = root
        .optional("read-group")
        .and_then(|value| value.parse(READ_GROUP, out, parse_group));
    let pin_directory = root
        .optional("pin-directory")
        .and_then(|value| value.parse(PIN_DIRECTORY, out, parse_pin_directory))
        .unwrap_or_else(|| DEFAULT_PIN_DIRECTORY.into());
    let state_file = root
        .optional("state-file")
        .and_then(|value| value.parse(STATE_FILE, out, parse_state_file))
        .unwrap_or_else(|| DEFAULT_STATE_FILE.into());
    let limits = root
        .optional("limits")
        .and_then(|value| value.table("[limits]", out))
        .map(|table| read_limits(table, out))
        .unwrap_or_default();
    let services: Vec<_> = root
        .optional("service")
        .map(|value| value.tables("[[service]]", out))
        .unwrap_or_default()
        .into_iter()
        .map(|table| service::read(table, out))
        .collect();
    root.finish(out);
    check_together(&services, out);
    Config {
        interfaces,
        xdp_mode,
        socket,
        read_group,
        pin_directory,
        state_file,
        limits,
        datapath_log: DatapathLog::Off,
        services: services.into_iter().map(|service| service.spec).collect(),
    }
}

fn read_interfaces(value: Value<'_>, out: &mut Diagnostics) -> Vec<String> {
    let mut seen = HashMap::<String, Range<usize>>::new();
    let mut names = Vec::new();
    let elements = value.array(INTERFACES, out);
    if elements.as_ref().is_some_and(Vec::is_empty) {
        let reason = Reason::new("`interfaces` names no interface", INTERFACES);
        out.push(value.error(reason));
    }
    for element in elements.unwrap_or_default() {
        let Some(name) = element.parse(INTERFACES, out, parse_interface) else {
            continue;
        };
        if let Some(first) = seen.get(&name) {
            let reason = Reason::new(format!("interface `{name}` is there twice"), "name it once");
            out.push(
                element
                    .error(reason)
                    .with_other(first.clone(), "first here"),
            );
            continue;
        }
        seen.insert(name.clone(), element.span());
        names.push(name);
    }
    names
}

/// Reads the name or number of a group.
fn parse_group(name: &str) -> Result<String, Reason> {
    // What stands between names in group(5).
    if name.is_empty() || name.contains([':', ',', '\n', '\0']) {
        return Err(Reason::new(
            format!("no group can be called `{}`", name.escape_debug()),
            "`getent group` lists those of this host",
        ));
    }
    Ok(name.to_owned())
}

/// Reads the name of an interface, by the rules of the kernel (`dev_valid_name`).
///
/// # Errors
///
/// When no interface can have this name.
pub fn parse_interface(name: &str) -> Result<String, Reason> {
    const MAX: usize = 15;
    let right = (1..=MAX).contains(&name.len())
        && ![".", ".."].contains(&name)
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0');
    if right {
        Ok(name.to_owned())
    } else {
        Err(Reason::new(
            format!("no interface can be called `{}`", name.escape_debug()),
            "`ip -brief link` shows the interfaces of this host",
        ))
    }
}

/// Reads the path of a Unix socket.
///
/// # Errors
///
/// When it is not absolute, or longer than the kernel takes (`sun_path`).
pub fn parse_socket(path: &str) -> Result<PathBuf, Reason> {
    const MAX: usize = 107;
    if !path.starts_with('/') {
        return Err(Reason::new(
            format!("the path `{}` is not absolute", path.escape_debug()),
            format!("begin it with `/`, as in `{DEFAULT_SOCKET}`"),
        ));
    }
    if path.len() > MAX || path.contains('\0') {
        return Err(Reason::new(
            format!("`{}` cannot be the path of a socket", path.escape_debug()),
            format!("use a path of at most {MAX} bytes"),
        ));
    }
    Ok(path.into())
}

/// Reads the path of a directory on a BPF file system.
///
/// # Errors
///
/// When it is not absolute, or one that the kernel does not take there: names with a dot in
/// them are its own.
pub fn parse_pin_directory(path: &str) -> Result<PathBuf, Reason> {
    if !path.starts_with('/') || path.contains('\0') {
        return Err(Reason::new(
            format!("the path `{}` is not absolute", path.escape_debug()),
            format!("begin it with `/`, as in `{DEFAULT_PIN_DIRECTORY}`"),
        ));
    }
    let name = path.trim_end_matches('/').rsplit('/').next();
    if name.is_none_or(|name| name.is_empty() || name.contains('.')) {
        return Err(Reason::new(
            format!(
                "no directory on a BPF file system can be called `{}`",
                path.escape_debug()
            ),
            "names with a `.` in them are the kernel's own",
        ));
    }
    Ok(path.into())
}

/// Reads the path of the file in which what is changed while the balancer runs is kept.
///
/// # Errors
///
/// When it is not absolute, or that of a directory.
pub fn parse_state_file(path: &str) -> Result<PathBuf, Reason> {
    let name = path.rsplit('/').next();
    let is_file = name.is_some_and(|name| !["", ".", ".."].contains(&name));
    if path.starts_with('/') && is_file && !path.contains('\0') {
        return Ok(path.into());
    }
    Err(Reason::new(
        format!(
            "the path `{}` is no absolute path of a file",
            path.escape_debug()
        ),
        format!("begin it with `/` and end it with a name, as in `{DEFAULT_STATE_FILE}`"),
    ))
}

fn read_limits(mut table: Table<'_>, out: &mut Diagnostics) -> Limits {
    let flows = table
        .optional("flows")
        .and_then(|value| value.integer(Limits::MIN_FLOWS..=Limits::MAX_FLOWS, out))
        .unwrap_or(Limits::default().flows);
    let embryonic = table
        .optional("embryonic")
        .and_then(|value| {
            let number = value.integer(Limits::MIN_EMBRYONIC..=Limits::MAX_EMBRYONIC, out)?;
            if !number.is_power_of_two() {
                let (lower, upper) = (number.next_power_of_two() / 2, number.next_power_of_two());
                out.push(value.error(Reason::new(
                    format!("{number} is no power of two"),
                    format!("the nearest are {lower} and {upper}"),
                )));
            }
            Some(number)
        })
        .unwrap_or(Limits::default().embryonic);
    table.finish(out);
    Limits { flows, embryonic }
}

/// What [`Desired`](crate::state::Desired) asks of services together.
fn check_together(services: &[ReadService], out: &mut Diagnostics) {
    let mut names = HashMap::new();
    let mut backends = 0;
    let mut sources = 0;
    let mut server_ids = 0;
    let owners: HashMap<IpAddr, &ReadService> = services
        .iter()
        .filter(|service| service.is_read(Field::Address))
        .filter(|service| service.spec.address.prefix.is_address())
        .map(|service| (service.spec.address.prefix.address(), service))
        .collect();
    for (index, service) in services.iter().enumerate() {
        let spec = &service.spec;
        if service.is_read(Field::Name)
            && let Some(first) = first_user(&mut names, spec.name.as_str(), service)
        {
            let reason = rules::same_name(&spec.name);
            let found = value_error(service, Field::Name, reason);
            out.push(found.with_other(first.span(Field::Name), "first here"));
        }
        let clash = services[..index]
            .iter()
            .find_map(|first| Some((first, clash(service, first)?)));
        if let Some((first, (field, other, reason))) = clash {
            let label = if other == Field::Source {
                "because of this"
            } else {
                "first here"
            };
            let found = value_error(service, field, reason);
            out.push(found.with_other(first.span(other), label));
        }
        backends_that_are_services(service, &owners, out);
        if index == MAX_SERVICES {
            let reason = rules::too_many_services();
            out.push(value_error(service, Field::Service, reason));
        }
        let room = backends <= MAX_BACKENDS;
        backends += spec.backends.len();
        if room && backends > MAX_BACKENDS && spec.backends.len() <= MAX_BACKENDS {
            let reason = rules::too_many_backends();
            out.push(value_error(service, Field::Backends, reason));
        }
        let room = server_ids <= MAX_SERVER_IDS;
        server_ids += spec.server_ids();
        if room && server_ids > MAX_SERVER_IDS {
            let reason = rules::too_many_server_ids();
            out.push(value_error(service, Field::Quic, reason));
        }
        let of_service = spec.allow.len() + spec.deny.len();
        let room = sources <= MAX_ALL_SOURCES;
        sources += of_service;
        if room && sources > MAX_ALL_SOURCES {
            let field = if spec.deny.is_empty() {
                Field::Allow
            } else {
                Field::Deny
            };
            out.push(value_error(service, field, rules::too_many_sources()));
        }
    }
}

/// Warns of backends at the address of another service: no host answers there.
fn backends_that_are_services(
    service: &ReadService,
    owners: &HashMap<IpAddr, &ReadService>,
    out: &mut Diagnostics,
) {
    for (index, backend) in service.spec.backends.iter().enumerate() {
        let ip = backend.address.ip;
        let field = Field::BackendAddress(index);
        // That it is the service's own is an error, and said elsewhere.
        if let Some(owner) = owners.get(&ip)
            && service.is_read(field)
            && !service.spec.address.prefix.contains(ip)
        {
            let (address, name) = (backend.address, &owner.spec.name);
            out.push(
                Diagnostic::warning(
                    service.span(field),
                    format!("backend `{address}` has the address of service `{name}`"),
                    "name the address of the host that serves: what a backend is sent does not \
                     pass through a service again",
                )
                .with_other(owner.span(Field::Address), "the service's"),
            );
        }
    }
}

/// The service that has `key` already; else it is from now on `service`.
fn first_user<'s, K: std::hash::Hash + Eq>(
    users: &mut HashMap<K, &'s ReadService>,
    key: K,
    service: &'s ReadService,
) -> Option<&'s ReadService> {
    let first = *users.entry(key).or_insert(service);
    (!std::ptr::eq(first, service)).then_some(first)
}

/// Why two services cannot be together, as far as the values that say so could be read.
fn clash(service: &ReadService, first: &ReadService) -> Option<(Field, Field, Reason)> {
    let (field, other, reason) = rules::conflict(&service.spec, &first.spec)?;
    let concerned: &[Field] = match (field, other) {
        (Field::Address, Field::Address) => &[Field::Address, Field::Protocol],
        _ => &[
            Field::Address,
            Field::Protocol,
            Field::Mode,
            Field::Source,
            Field::SourcePorts,
        ],
    };
    let is_read = |read: &ReadService| concerned.iter().all(|field| read.is_read(*field));
    (is_read(service) && is_read(first)).then_some((field, other, reason))
}

fn value_error(service: &ReadService, field: Field, reason: Reason) -> Diagnostic {
    Diagnostic::error(
        service.span(field),
        reason.message,
        reason.hint.unwrap_or_default(),
    )
}
