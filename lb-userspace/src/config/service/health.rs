//! A health check of the file: that of a service, or of one of its backends.

use std::collections::BTreeMap;

use super::{DURATION, ReadService};
use crate::{
    config::{
        diagnostic::{Diagnostic, Diagnostics},
        duration,
        reader::{Table, Value},
    },
    state::{
        HealthKey as Key, HealthSpec, Mistakes, Probe, ProbeKeys, ProbeKind, Reason, parse_jitter,
        rules::{self, Field},
    },
};

const TYPE: &str = "`type = \"tcp\"` connects, `type = \"http\"` asks for a path";
const COMMAND: &str = "list the program and its arguments: `command = [\"/usr/local/bin/check\"]`";
const ALPN: &str = "list protocols in quotes: `alpn = [\"h2\"]`";
const ENVIRONMENT: &str = "write values in quotes: `environment = { MODE = \"fast\" }`";
const JITTER: &str = "write it in percent and in quotes: `jitter = \"10%\"`";

/// Reads a table of health checks, that of a backend or of the service where `None`.
pub(super) fn read(
    service: &mut ReadService,
    backend: Option<usize>,
    value: Value<'_>,
    out: &mut Diagnostics,
) -> Option<HealthSpec> {
    service.spans.insert(Field::health(backend), value.span());
    let header = match backend {
        None => "[service.health]",
        Some(_) => "[service.backend.health]",
    };
    let mut check = Check {
        service,
        backend,
        table: value.table(header, out)?,
        out,
    };
    let health = check.all();
    let Check { table, .. } = check;
    table.finish(out);
    Some(health)
}

struct Check<'c, 't> {
    service: &'c mut ReadService,
    backend: Option<usize>,
    table: Table<'t>,
    out: &'c mut Diagnostics,
}

impl<'t> Check<'_, 't> {
    /// The value of a key, `None` where there is none or where it could not be read.
    fn key<T>(
        &mut self,
        key: Key,
        read: impl FnOnce(Value<'t>, &mut Diagnostics) -> Option<T>,
    ) -> Option<T> {
        let value = self.table.optional(key.as_str())?;
        let field = Field::health_key(self.backend, key);
        self.service.spans.insert(field, value.span());
        let read = read(value, self.out);
        if read.is_none() {
            self.service.unread.insert(field);
        }
        read
    }

    fn text(&mut self, key: Key) -> Option<String> {
        let hint = format!("write it in quotes: `{key} = \"{}\"`", example(key));
        self.key(key, |value, out| {
            value.string(&hint, out).map(str::to_owned)
        })
    }

    fn parsed<T>(
        &mut self,
        key: Key,
        hint: &str,
        parse: impl FnOnce(&str) -> Result<T, Reason>,
    ) -> Option<T> {
        self.key(key, |value, out| value.parse(hint, out, parse))
    }

    fn flag(&mut self, key: Key) -> Option<bool> {
        self.key(key, |value, out| value.boolean(out))
    }

    fn list(&mut self, key: Key, hint: &str) -> Option<Vec<String>> {
        self.key(key, |value, out| {
            let elements = value.array(hint, out)?;
            let texts: Vec<_> = elements
                .iter()
                .map(|element| element.string(hint, out).map(str::to_owned))
                .collect();
            texts.into_iter().collect()
        })
    }

    fn environment(&mut self) -> Option<BTreeMap<String, String>> {
        self.key(Key::Environment, |value, out| {
            let variables = value.table("[service.health.environment]", out)?;
            let read = |(name, value): (&'t str, Value<'t>)| {
                let value = value.string(ENVIRONMENT, out)?;
                Some((name.to_owned(), value.to_owned()))
            };
            let read: Vec<_> = variables
                .entries(Key::Environment.as_str())
                .map(read)
                .collect();
            read.into_iter().collect()
        })
    }

    fn all(&mut self) -> HealthSpec {
        let kind = self.kind();
        let keys = self.keys();
        let probe = kind.map(|kind| keys.read(kind));
        let probe = match probe {
            Some(Ok(probe)) => Some(probe),
            Some(Err(mistakes)) => {
                self.tell(mistakes);
                None
            }
            None => None,
        };
        if probe.is_none() {
            // Nothing else is to be said of something that nobody has written.
            let field = Field::health_key(self.backend, Key::Type);
            self.service.unread.insert(field);
            self.service
                .unread
                .insert(Field::health_key(self.backend, Key::Port));
        }
        let mut health = HealthSpec::new(probe.unwrap_or(Probe::Tcp));
        let number = |this: &mut Self, key, default| {
            let read = this.key(key, |value, out| value.integer(0..=u32::MAX, out));
            read.unwrap_or(default)
        };
        let interval = self.parsed(Key::Interval, DURATION, duration::parse);
        health.interval = interval.unwrap_or(health.interval);
        health.down_interval = self.parsed(Key::DownInterval, DURATION, duration::parse);
        health.timeout = self.parsed(Key::Timeout, DURATION, duration::parse);
        health.rise = number(self, Key::Rise, health.rise);
        health.fall = number(self, Key::Fall, health.fall);
        let jitter = self.parsed(Key::Jitter, JITTER, parse_jitter);
        health.jitter = jitter.unwrap_or(health.jitter);
        health.hold_down = self.parsed(Key::HoldDown, DURATION, duration::parse);
        health.passive = self.flag(Key::Passive).unwrap_or(health.passive);
        health.port = self.key(Key::Port, |value, out| value.integer(1..=u16::MAX, out));
        health
    }

    fn kind(&mut self) -> Option<ProbeKind> {
        let value = self.table.required(Key::Type.as_str(), TYPE, self.out);
        let field = Field::health_key(self.backend, Key::Type);
        let out = &mut *self.out;
        self.service.required(field, value, None, |value| {
            let read = |word: &str| word.parse().map_err(|_| rules::unknown_probe(word));
            value.parse(TYPE, out, read).map(Some)
        })
    }

    fn keys(&mut self) -> ProbeKeys {
        ProbeKeys {
            path: self.text(Key::Path),
            host: self.text(Key::Host),
            method: self.text(Key::Method),
            status: self.text(Key::Status),
            body: self.text(Key::Body),
            server_name: self.text(Key::ServerName),
            ca: self.text(Key::Ca),
            verify: self.flag(Key::Verify),
            alpn: self.list(Key::Alpn, ALPN),
            tls: self.flag(Key::Tls),
            grpc_service: self.text(Key::GrpcService),
            send: self.text(Key::Send),
            send_hex: self.text(Key::SendHex),
            expect: self.text(Key::Expect),
            expect_hex: self.text(Key::ExpectHex),
            query: self.text(Key::Query),
            record: self.text(Key::Record),
            rcode: self.text(Key::Rcode),
            answer: self.text(Key::Answer),
            command: self.list(Key::Command, COMMAND),
            environment: self.environment(),
        }
    }

    fn tell(&mut self, mistakes: Mistakes) {
        for (key, reason) in mistakes {
            let field = Field::health_key(self.backend, key);
            self.service.unread.insert(field);
            let span = self.service.span(field);
            let hint = reason.hint.unwrap_or_default();
            self.out.push(Diagnostic::error(span, reason.message, hint));
        }
    }
}

/// What may stand there.
const fn example(key: Key) -> &'static str {
    match key {
        Key::Path => "/healthz",
        Key::Host | Key::ServerName | Key::Query => "www.example.org",
        Key::Method => "HEAD",
        Key::Status => "200-299, 401",
        Key::Ca => "/etc/lb/ca.pem",
        Key::GrpcService => "mail.Inbox",
        Key::Send => "PING",
        Key::Expect => "PONG",
        Key::SendHex | Key::ExpectHex => "0d0a",
        Key::Record => "AAAA",
        Key::Rcode => "NOERROR",
        Key::Answer => "192.0.2.10",
        _ => "ok",
    }
}
