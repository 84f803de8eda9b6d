//! What makes a health check right.

use std::{net::Ipv4Addr, time::Duration};

use super::{Field, Violation};
use crate::state::{
    BackendSpec, DnsProbe, ExecProbe, HealthKey, HealthSpec, HttpProbe, Method, Probe, ProbeKind,
    Protocol, Rcode, Reason, RecordType, ServiceSpec, TlsSpec, UdpProbe,
};

/// The least time between two health checks of a backend.
pub const MIN_HEALTH_INTERVAL: Duration = Duration::from_millis(100);
/// The most time between two health checks of a backend.
pub const MAX_HEALTH_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Most bytes of a datagram that is sent: what every path carries whole (RFC 8200, section 5).
const MAX_DATAGRAM: usize = 1_232;
/// Most bytes of a name in DNS as text, and of one of its labels (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// The checks of the service and of its backends.
pub(super) fn health(service: &ServiceSpec, found: &mut Vec<Violation>) {
    let own = service.backends.iter().enumerate();
    let own = own.filter_map(|(index, backend)| Some((Some(index), backend.health.as_deref()?)));
    let shared = service.health.iter().map(|spec| (None, spec));
    for (of, spec) in shared.chain(own) {
        Check { of, found }.all(spec);
    }
    found.extend(port(service));
    found.extend(passive(service));
}

/// Connections that nobody makes cannot be watched.
fn passive(service: &ServiceSpec) -> Option<Violation> {
    if service.protocol == Protocol::Tcp {
        return None;
    }
    let own = service.backends.iter().enumerate();
    let own = own.filter_map(|(index, backend)| Some((Some(index), backend.health.as_deref()?)));
    let mut all = service.health.iter().map(|spec| (None, spec)).chain(own);
    let (of, _) = all.find(|(_, spec)| spec.passive)?;
    Some(
        Violation::new(
            Field::health_key(of, HealthKey::Passive),
            format!(
                "a service of {} has no connections to watch",
                service.protocol
            ),
            "leave it out: passive checks are for TCP",
        )
        .against(Field::Protocol),
    )
}

/// A check without a port to ask.
fn port(service: &ServiceSpec) -> Option<Violation> {
    // With a single port of its own the service has no backend without one.
    if service.address.ports.single().is_some() {
        return None;
    }
    let portless = |backend: &BackendSpec| {
        let needs = |spec: &HealthSpec| spec.probe.needs_port();
        service.health_of(backend).is_some_and(needs) && service.checked_port(backend).is_none()
    };
    let index = service.backends.iter().position(portless)?;
    let backend = &service.backends[index];
    let of = backend.health.is_some().then_some(index);
    Some(
        Violation::new(
            Field::health_key(of, HealthKey::Port),
            format!(
                "the health check of backend `{}` has no port to ask",
                backend.address
            ),
            "give the health check a `port`",
        )
        .against(Field::BackendAddress(index)),
    )
}

/// What is found of one check.
struct Check<'a> {
    /// Whose it is: a backend's, or the service's.
    of: Option<usize>,
    found: &'a mut Vec<Violation>,
}

/// Whether text can stand in the first line of a request or in a header.
fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl Check<'_> {
    fn field(&self, key: HealthKey) -> Field {
        Field::health_key(self.of, key)
    }

    fn push(&mut self, key: HealthKey, message: impl Into<String>, hint: impl Into<String>) {
        let field = self.field(key);
        self.found.push(Violation::new(field, message, hint));
    }

    fn push_against(
        &mut self,
        key: HealthKey,
        against: HealthKey,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        let violation = Violation::new(self.field(key), message, hint);
        let against = self.field(against);
        self.found.push(violation.against(against));
    }

    fn all(&mut self, health: &HealthSpec) {
        match &health.probe {
            Probe::Tcp | Probe::Icmp => {}
            Probe::Http(http) => self.http(http),
            Probe::Https(http, tls, _) => {
                self.http(http);
                self.tls(tls);
            }
            Probe::Grpc(grpc) => {
                self.host(grpc.host.as_deref());
                if let Some(tls) = &grpc.tls {
                    self.tls(tls);
                }
            }
            Probe::Udp(udp) => self.udp(udp),
            Probe::Dns(dns) => self.dns(dns),
            Probe::Exec(exec) => self.exec(exec),
        }
        let kind = health.probe.kind();
        if health.port.is_some() && !HealthKey::Port.is_of(kind) {
            let Reason { message, hint, .. } = HealthKey::Port.foreign_to(kind);
            self.push(HealthKey::Port, message, hint.unwrap_or_default());
        } else if health.port == Some(0) {
            let hint = "a port is a number from 1 to 65535";
            self.push(HealthKey::Port, "0 is no port", hint);
        }
        self.times(health);
        self.hold_down(health);
        for (key, count) in [
            (HealthKey::Rise, health.rise),
            (HealthKey::Fall, health.fall),
        ] {
            if count == 0 {
                let hint = "it is a number of results in a row, at least 1";
                self.push(key, format!("`{key}` is 0"), hint);
            }
        }
        if health.jitter > HealthSpec::MAX_JITTER {
            self.push(
                HealthKey::Jitter,
                format!(
                    "checks cannot come {}% of the interval earlier",
                    health.jitter
                ),
                format!("use at most {}%", HealthSpec::MAX_JITTER),
            );
        }
    }

    fn hold_down(&mut self, health: &HealthSpec) {
        let range = health.interval(false)..=MAX_HEALTH_INTERVAL;
        let Some(time) = health.hold_down.filter(|time| !range.contains(time)) else {
            return;
        };
        self.push(
            HealthKey::HoldDown,
            format!(
                "a backend cannot be held down for at most {}",
                humantime::format_duration(time)
            ),
            format!(
                "use a time from the interval while it is down, {}, to 1day",
                humantime::format_duration(*range.start())
            ),
        );
    }

    fn times(&mut self, health: &HealthSpec) {
        let range = MIN_HEALTH_INTERVAL..=MAX_HEALTH_INTERVAL;
        let mut in_range = true;
        let down = health.down_interval;
        for (key, interval) in [
            (HealthKey::Interval, Some(health.interval)),
            (HealthKey::DownInterval, down),
        ] {
            let Some(interval) = interval.filter(|interval| !range.contains(interval)) else {
                continue;
            };
            in_range = false;
            let interval = humantime::format_duration(interval);
            self.push(
                key,
                format!("a backend cannot be checked every {interval}"),
                "use an interval from 100ms to 1day",
            );
        }
        let timeout = health.timeout();
        let shortest = health.shortest();
        if health.timeout == Some(Duration::ZERO) {
            self.push(
                HealthKey::Timeout,
                "a backend that has no time to answer never will",
                "use a timeout of at least a few milliseconds",
            );
        } else if in_range && timeout > shortest {
            let (key, name) = match shortest == health.interval {
                true => (HealthKey::Interval, "interval"),
                false => (
                    HealthKey::DownInterval,
                    "interval while the backend is down",
                ),
            };
            self.push_against(
                HealthKey::Timeout,
                key,
                format!(
                    "the timeout, {}, is longer than the {name}, {}",
                    humantime::format_duration(timeout),
                    humantime::format_duration(shortest)
                ),
                "one check must end before the next begins: shorten the timeout or lengthen the \
                 interval",
            );
        }
    }

    fn http(&mut self, http: &HttpProbe) {
        let path = &http.path;
        // Anything else would end the request line or a header early.
        if !path.starts_with('/') {
            self.push(
                HealthKey::Path,
                format!("the path `{}` does not begin with `/`", path.escape_debug()),
                "write the path as it stands in a request: `/healthz`",
            );
        } else if !is_printable(path) || path.contains('#') {
            self.push(
                HealthKey::Path,
                format!("`{}` cannot stand in a request", path.escape_debug()),
                "write blanks, `#` and everything that is not ASCII as %XX",
            );
        }
        self.host(http.host.as_deref());
        match &http.body {
            Some(body) if body.is_empty() => self.push(
                HealthKey::Body,
                "every body has nothing in it",
                "write what a healthy backend answers, or leave it out",
            ),
            Some(_) if http.method == Method::Head => self.push_against(
                HealthKey::Body,
                HealthKey::Method,
                "the answer to `HEAD` has no body",
                "leave it out, or use another method",
            ),
            _ => {}
        }
    }

    fn host(&mut self, host: Option<&str>) {
        let Some(host) = host.filter(|host| host.is_empty() || !is_printable(host)) else {
            return;
        };
        self.push(
            HealthKey::Host,
            format!("`{}` is no host name", host.escape_debug()),
            "write the value of the Host header: `www.example.org`",
        );
    }

    fn tls(&mut self, tls: &TlsSpec) {
        if let Some(name) = &tls.server_name
            && !is_name(name)
            && name.parse::<std::net::IpAddr>().is_err()
        {
            self.push(
                HealthKey::ServerName,
                format!("`{}` is no name of a server", name.escape_debug()),
                "write the name that the certificate is for: `www.example.org`",
            );
        }
        match &tls.ca {
            Some(ca) if !ca.is_absolute() => self.push(
                HealthKey::Ca,
                format!("`{}` is no absolute path", ca.display()),
                "write the path from the root on: `/etc/lb/ca.pem`",
            ),
            Some(_) if !tls.verify => self.push_against(
                HealthKey::Ca,
                HealthKey::Verify,
                "authorities say nothing where certificates are not looked at",
                "leave it out, or use `verify = true`",
            ),
            _ => {}
        }
    }

    fn udp(&mut self, udp: &UdpProbe) {
        if udp.send.len() > MAX_DATAGRAM {
            self.push(
                HealthKey::Send,
                format!("{} bytes are too many to send", udp.send.len()),
                format!("send at most {MAX_DATAGRAM}"),
            );
        }
        if udp.expect.as_ref().is_some_and(Vec::is_empty) {
            self.push(
                HealthKey::Expect,
                "every answer has nothing in it",
                "write what a healthy backend answers, or leave it out",
            );
        }
    }

    fn dns(&mut self, dns: &DnsProbe) {
        if dns.query != "." && !is_name(dns.query.strip_suffix('.').unwrap_or(&dns.query)) {
            let message = match dns.query.is_empty() {
                true => "the health check has no name to ask for".to_owned(),
                false => format!("`{}` is no name in DNS", dns.query.escape_debug()),
            };
            self.push(
                HealthKey::Query,
                message,
                "write a name that the server knows: `query = \"www.example.org\"`",
            );
        }
        let Some(answer) = &dns.answer else {
            return;
        };
        if dns.rcode != Rcode::NoError {
            let message = format!("there is no answer with `{}`", dns.rcode);
            let hint = "leave one of them out";
            self.push_against(HealthKey::Answer, HealthKey::Rcode, message, hint);
        }
        let fits = match dns.record {
            RecordType::A => answer.parse::<Ipv4Addr>().is_ok(),
            RecordType::Aaaa => answer.parse::<std::net::Ipv6Addr>().is_ok(),
            _ => !answer.is_empty(),
        };
        if !fits {
            let message = format!(
                "no record `{}` says `{}`",
                dns.record,
                answer.escape_debug()
            );
            let hint = "write the data of a record as in a zone file";
            self.push_against(HealthKey::Answer, HealthKey::Record, message, hint);
        }
    }

    fn exec(&mut self, exec: &ExecProbe) {
        let texts = exec.command.iter().chain(exec.environment.values());
        let has_end = texts.into_iter().any(|text| text.contains('\0'));
        let command = exec.command.first();
        if !command.is_some_and(|program| program.starts_with('/')) || has_end {
            let message = match command {
                None => "there is no program to run".to_owned(),
                Some(_) if has_end => "no program can be given a zero byte".to_owned(),
                Some(program) => format!("`{}` is no absolute path", program.escape_debug()),
            };
            self.push(
                HealthKey::Command,
                message,
                "name the program by its absolute path, then its arguments, without a shell: \
                 `command = [\"/usr/local/bin/check\", \"--fast\"]`",
            );
        }
        let wrong = |name: &&String| name.is_empty() || name.contains(['=', '\0']);
        if let Some(name) = exec.environment.keys().find(wrong) {
            self.push(
                HealthKey::Environment,
                format!("`{}` is no name of a variable", name.escape_debug()),
                "write names and values: `environment = { MODE = \"fast\" }`",
            );
        }
    }
}

/// Whether this is a name in DNS, apart from the root.
fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    name.len() <= MAX_NAME && name.split('.').all(label)
}

/// A word that is no type of health check; an empty one stands for none at all.
#[must_use]
pub fn unknown_probe(word: &str) -> Reason {
    match word.parse::<ProbeKind>() {
        Err(reason) if !word.is_empty() => reason,
        _ => Reason {
            message: "the health check has no type".to_owned(),
            hint: "".parse::<ProbeKind>().err().and_then(|reason| reason.hint),
            field: None,
        },
    }
}

/// A health check that says all but what is asked.
#[must_use]
pub fn no_probe() -> Reason {
    unknown_probe("")
}

/// A program to be run that somebody names who may not be the one who writes the file.
#[must_use]
pub fn exec_by_file() -> Reason {
    Reason::new(
        "a health check that runs a program cannot be set while the balancer runs",
        "write it into the file that the balancer was started with: the daemon runs it with its own rights",
    )
}
