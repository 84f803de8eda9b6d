//! How the health of backends is checked.

use std::{
    collections::BTreeMap, fmt, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration,
};

use super::{Reason, Word as _, words::words};

words! {
    /// What a health check speaks.
    ProbeKind, "health check type",
    "`tcp`, `http`, `https`, `grpc`, `udp`, `dns`, `icmp` or `exec`" {
        /// A TCP connection is accepted.
        Tcp = "tcp",
        /// HTTP/1.1 (RFC 9112).
        Http = "http",
        /// HTTP/1.1 or HTTP/2 (RFC 9113) over TLS.
        Https = "https",
        /// The health checking protocol of gRPC (`grpc.health.v1.Health/Check`).
        Grpc = "grpc",
        /// A datagram is answered.
        Udp = "udp",
        /// A DNS query is answered (RFC 1035).
        Dns = "dns",
        /// An ICMP echo request is answered (RFC 792, RFC 4443).
        Icmp = "icmp",
        /// A program ends with status 0.
        Exec = "exec",
    }
}

words! {
    /// A key of a health check, as the file has it.
    HealthKey, "key of a health check", "one of those in docs/configuration.md" {
        /// What is spoken.
        Type = "type",
        /// What is asked for over HTTP.
        Path = "path",
        /// Whom it is asked of: the `Host` header, `:authority` of HTTP/2.
        Host = "host",
        /// The method of the request.
        Method = "method",
        /// Statuses of a healthy backend.
        Status = "status",
        /// What the body of the answer has in it.
        Body = "body",
        /// The name that the certificate is for.
        ServerName = "server-name",
        /// File with the certificates that others are trusted by.
        Ca = "ca",
        /// Whether the certificate is looked at.
        Verify = "verify",
        /// Protocols that are offered, of which the server takes one.
        Alpn = "alpn",
        /// Whether gRPC is spoken over TLS.
        Tls = "tls",
        /// The service that gRPC is asked about.
        GrpcService = "grpc-service",
        /// What is sent.
        Send = "send",
        /// The same as hex digits.
        SendHex = "send-hex",
        /// What the answer has in it.
        Expect = "expect",
        /// The same as hex digits.
        ExpectHex = "expect-hex",
        /// The name that is asked for.
        Query = "query",
        /// The type of record that is asked for.
        Record = "record",
        /// The response code of a healthy backend.
        Rcode = "rcode",
        /// What one of the records says.
        Answer = "answer",
        /// The program and its arguments.
        Command = "command",
        /// Its environment.
        Environment = "environment",
        /// Port that is checked.
        Port = "port",
        /// From one check to the next.
        Interval = "interval",
        /// The same while the backend is down.
        DownInterval = "down-interval",
        /// How long an answer may take.
        Timeout = "timeout",
        /// Successes in a row that bring a backend up.
        Rise = "rise",
        /// Failures in a row that take a backend down.
        Fall = "fall",
        /// How much earlier than that a check may come.
        Jitter = "jitter",
        /// How long a backend that flaps is held down at most.
        HoldDown = "hold-down",
        /// Whether clients' connections are watched.
        Passive = "passive",
    }
}

impl HealthKey {
    /// Whether checks of this type have this key.
    #[must_use]
    pub const fn is_of(self, kind: ProbeKind) -> bool {
        use ProbeKind as Kind;
        match self {
            Self::Type
            | Self::Interval
            | Self::DownInterval
            | Self::Timeout
            | Self::Rise
            | Self::Fall
            | Self::Jitter
            | Self::HoldDown
            | Self::Passive => true,
            Self::Port => !matches!(kind, Kind::Icmp),
            Self::Path | Self::Method | Self::Status | Self::Body => {
                matches!(kind, Kind::Http | Kind::Https)
            }
            Self::Host => matches!(kind, Kind::Http | Kind::Https | Kind::Grpc),
            Self::ServerName | Self::Ca | Self::Verify => matches!(kind, Kind::Https | Kind::Grpc),
            Self::Alpn => matches!(kind, Kind::Https),
            Self::Tls | Self::GrpcService => matches!(kind, Kind::Grpc),
            Self::Send | Self::SendHex | Self::Expect | Self::ExpectHex => {
                matches!(kind, Kind::Udp)
            }
            Self::Query | Self::Record | Self::Rcode | Self::Answer => matches!(kind, Kind::Dns),
            Self::Command | Self::Environment => matches!(kind, Kind::Exec),
        }
    }

    /// Whether it says what is asked, in place of when and how often.
    #[must_use]
    pub const fn is_of_probe(self) -> bool {
        !matches!(
            self,
            Self::Type
                | Self::Port
                | Self::Interval
                | Self::DownInterval
                | Self::Timeout
                | Self::Rise
                | Self::Fall
                | Self::Jitter
                | Self::HoldDown
                | Self::Passive
        )
    }

    /// Its name in the API.
    #[must_use]
    pub fn in_json(self) -> String {
        self.as_str().replace('-', "_")
    }

    /// It is said of a check of a type that does not have it.
    #[must_use]
    pub fn foreign_to(self, kind: ProbeKind) -> Reason {
        let of: Vec<_> = ProbeKind::ALL
            .iter()
            .filter(|kind| self.is_of(**kind))
            .map(|kind| format!("`{kind}`"))
            .collect();
        let of = match of.as_slice() {
            [most @ .., last] if !most.is_empty() => format!("{} or {last}", most.join(", ")),
            one => one.concat(),
        };
        Reason::new(
            format!("a health check of type `{kind}` has no `{self}`"),
            format!("leave it out, or use type {of}"),
        )
    }
}

words! {
    /// Method of an HTTP request (RFC 9110, section 9.3).
    Method, "method", "`GET`, `HEAD`, `OPTIONS` or `POST`" {
        /// What is there.
        Get = "GET",
        /// The same without its body.
        Head = "HEAD",
        /// What can be done.
        Options = "OPTIONS",
        /// Something is done; nothing is sent along.
        Post = "POST",
    }
}

words! {
    /// Type of a DNS record (RFC 1035, section 3.2.2; RFC 3596; RFC 2782).
    RecordType, "type of record",
    "`A`, `AAAA`, `CNAME`, `MX`, `NS`, `PTR`, `SOA`, `SRV` or `TXT`" {
        /// IPv4 address.
        A = "A",
        /// IPv6 address.
        Aaaa = "AAAA",
        /// Canonical name.
        Cname = "CNAME",
        /// Mail exchange.
        Mx = "MX",
        /// Name server.
        Ns = "NS",
        /// Pointer to a name.
        Ptr = "PTR",
        /// Begin of a zone.
        Soa = "SOA",
        /// Server of a service.
        Srv = "SRV",
        /// Text.
        Txt = "TXT",
    }
}

words! {
    /// Response code of DNS (RFC 1035, section 4.1.1).
    Rcode, "response code", "`NOERROR`, `FORMERR`, `SERVFAIL`, `NXDOMAIN`, `NOTIMP` or `REFUSED`" {
        /// All is well.
        NoError = "NOERROR",
        /// The query was not understood.
        FormErr = "FORMERR",
        /// The server could not do it.
        ServFail = "SERVFAIL",
        /// There is no such name.
        NxDomain = "NXDOMAIN",
        /// The server does not do that.
        NotImp = "NOTIMP",
        /// The server does not want to.
        Refused = "REFUSED",
    }
}

/// Ranges of HTTP statuses: `200-299, 401`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statuses(Vec<RangeInclusive<u16>>);

impl Statuses {
    /// Whether a status is one of them.
    #[must_use]
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

impl Default for Statuses {
    /// Success and redirection.
    fn default() -> Self {
        Self(vec![200..=399])
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            match range.start() == range.end() {
                true => write!(f, "{}", range.start())?,
                false => write!(f, "{}-{}", range.start(), range.end())?,
            }
        }
        Ok(())
    }
}

impl FromStr for Statuses {
    type Err = Reason;

    fn from_str(text: &str) -> Result<Self, Reason> {
        // What comes before the final answer, below 200, is passed over.
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let status = text.parse().ok().filter(|_| digits)?;
            (200..=599).contains(&status).then_some(status)
        };
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (first, last) = (number(first.trim())?, number(last.trim())?);
            (first <= last).then_some(first..=last)
        };
        let ranges: Option<Vec<_>> = text.split(',').map(|part| range(part.trim())).collect();
        ranges.map(Self).ok_or_else(|| {
            Reason::new(
                format!("`{}` is no range of HTTP statuses", text.escape_debug()),
                "write statuses from 200 to 599 and ranges of them: `200-299, 401`",
            )
        })
    }
}

/// What is asked over HTTP, and what is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProbe {
    /// Method of the request.
    pub method: Method,
    /// Path and query, beginning with `/`.
    pub path: String,
    /// Value of the `Host` header; the address that is asked where `None`.
    pub host: Option<String>,
    /// Statuses of a healthy backend.
    pub status: Statuses,
    /// What the first [`MAX_BODY`](Self::MAX_BODY) bytes of the body have in it.
    pub body: Option<String>,
}

impl HttpProbe {
    /// The path where none is given.
    pub const DEFAULT_PATH: &str = "/";
    /// Bytes of a body that are read.
    pub const MAX_BODY: usize = 64 * 1024;
}

impl Default for HttpProbe {
    fn default() -> Self {
        Self {
            method: Method::Get,
            path: Self::DEFAULT_PATH.to_owned(),
            host: None,
            status: Statuses::default(),
            body: None,
        }
    }
}

/// How the other side of TLS is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSpec {
    /// The name that is asked for and that the certificate must have; `None` for that of the
    /// `host`, or else the address.
    pub server_name: Option<String>,
    /// File with certificates of authorities, in PEM; those of the host where `None`.
    pub ca: Option<PathBuf>,
    /// Whether the certificate is looked at.
    pub verify: bool,
}

impl Default for TlsSpec {
    /// The certificate must be one that this host trusts.
    fn default() -> Self {
        Self {
            server_name: None,
            ca: None,
            verify: true,
        }
    }
}

/// What is asked over gRPC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrpcProbe {
    /// The service; empty for the server as a whole.
    pub service: String,
    /// Value of `:authority`; the address that is asked where `None`.
    pub host: Option<String>,
    /// TLS; HTTP/2 with prior knowledge (RFC 9113, section 3.3) where `None`.
    pub tls: Option<TlsSpec>,
}

/// A datagram and its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpProbe {
    /// What is sent.
    pub send: Vec<u8>,
    /// What is in the answer; `None` for any.
    pub expect: Option<Vec<u8>>,
}

/// What is asked of a name server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsProbe {
    /// The name.
    pub query: String,
    /// The type of record.
    pub record: RecordType,
    /// The response code of a healthy backend.
    pub rcode: Rcode,
    /// What one of the records says, as in a zone file; `None` for anything.
    pub answer: Option<String>,
}

/// A program that says whether a backend is healthy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecProbe {
    /// The program by its absolute path, and its arguments.
    pub command: Vec<String>,
    /// What its environment has besides `PATH` and what tells of the backend.
    pub environment: BTreeMap<String, String>,
}

/// What a health check asks of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A TCP connection is accepted.
    Tcp,
    /// A request is answered as it should be.
    Http(HttpProbe),
    /// The same over TLS, with the protocols that are offered in ALPN (RFC 7301): one of
    /// them must be taken, unless none are given.
    Https(HttpProbe, TlsSpec, Vec<Alpn>),
    /// The answer is `SERVING`.
    Grpc(GrpcProbe),
    /// A datagram is answered as it should be.
    Udp(UdpProbe),
    /// A query is answered as it should be.
    Dns(DnsProbe),
    /// An echo request is answered.
    Icmp,
    /// A program ends with status 0.
    Exec(ExecProbe),
}

words! {
    /// A protocol that TLS carries, by its name in ALPN.
    Alpn, "protocol", "`http/1.1` or `h2`" {
        /// HTTP/1.1.
        Http1 = "http/1.1",
        /// HTTP/2.
        Http2 = "h2",
    }
}

/// The keys of a health check that say what is asked, as they are written: absent where they
/// are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is a HealthKey, documented there")]
pub struct ProbeKeys {
    pub path: Option<String>,
    pub host: Option<String>,
    pub method: Option<String>,
    pub status: Option<String>,
    pub body: Option<String>,
    pub server_name: Option<String>,
    pub ca: Option<String>,
    pub verify: Option<bool>,
    pub alpn: Option<Vec<String>>,
    pub tls: Option<bool>,
    pub grpc_service: Option<String>,
    pub send: Option<String>,
    pub send_hex: Option<String>,
    pub expect: Option<String>,
    pub expect_hex: Option<String>,
    pub query: Option<String>,
    pub record: Option<String>,
    pub rcode: Option<String>,
    pub answer: Option<String>,
    pub command: Option<Vec<String>>,
    pub environment: Option<BTreeMap<String, String>>,
}

/// What is wrong with keys of a health check.
pub type Mistakes = Vec<(HealthKey, Reason)>;

impl ProbeKeys {
    /// The keys that are written.
    fn given(&self) -> impl Iterator<Item = HealthKey> {
        use HealthKey as Key;
        [
            (self.path.is_some(), Key::Path),
            (self.host.is_some(), Key::Host),
            (self.method.is_some(), Key::Method),
            (self.status.is_some(), Key::Status),
            (self.body.is_some(), Key::Body),
            (self.server_name.is_some(), Key::ServerName),
            (self.ca.is_some(), Key::Ca),
            (self.verify.is_some(), Key::Verify),
            (self.alpn.is_some(), Key::Alpn),
            (self.tls.is_some(), Key::Tls),
            (self.grpc_service.is_some(), Key::GrpcService),
            (self.send.is_some(), Key::Send),
            (self.send_hex.is_some(), Key::SendHex),
            (self.expect.is_some(), Key::Expect),
            (self.expect_hex.is_some(), Key::ExpectHex),
            (self.query.is_some(), Key::Query),
            (self.record.is_some(), Key::Record),
            (self.rcode.is_some(), Key::Rcode),
            (self.answer.is_some(), Key::Answer),
            (self.command.is_some(), Key::Command),
            (self.environment.is_some(), Key::Environment),
        ]
        .into_iter()
        .filter_map(|(is_given, key)| is_given.then_some(key))
    }

    /// What they mean together.
    ///
    /// # Errors
    ///
    /// Every key that the type does not have, or that means nothing.
    pub fn read(self, kind: ProbeKind) -> Result<Probe, Mistakes> {
        let mut mistakes: Mistakes = self
            .given()
            .filter(|key| !key.is_of(kind))
            .map(|key| (key, key.foreign_to(kind)))
            .collect();
        let probe = match kind {
            ProbeKind::Tcp => Probe::Tcp,
            ProbeKind::Icmp => Probe::Icmp,
            ProbeKind::Http => Probe::Http(self.http(&mut mistakes)),
            ProbeKind::Https => {
                let alpn = self.alpn.iter().flatten();
                let alpn = alpn
                    .filter_map(|word| word_of(Some(word), HealthKey::Alpn, &mut mistakes))
                    .collect();
                Probe::Https(self.http(&mut mistakes), self.tls(), alpn)
            }
            ProbeKind::Grpc => self.grpc(&mut mistakes),
            ProbeKind::Udp => self.udp(&mut mistakes),
            ProbeKind::Dns => self.dns(&mut mistakes),
            ProbeKind::Exec => Probe::Exec(ExecProbe {
                command: self.command.unwrap_or_default(),
                environment: self.environment.unwrap_or_default(),
            }),
        };
        match mistakes.is_empty() {
            true => Ok(probe),
            false => Err(mistakes),
        }
    }

    fn http(&self, mistakes: &mut Mistakes) -> HttpProbe {
        let default = HttpProbe::default();
        let status = word_of(self.status.as_ref(), HealthKey::Status, mistakes);
        let method = word_of(self.method.as_ref(), HealthKey::Method, mistakes);
        HttpProbe {
            method: method.unwrap_or(default.method),
            path: self.path.clone().unwrap_or(default.path),
            host: self.host.clone(),
            status: status.unwrap_or(default.status),
            body: self.body.clone(),
        }
    }

    fn tls(&self) -> TlsSpec {
        TlsSpec {
            server_name: self.server_name.clone(),
            ca: self.ca.as_ref().map(PathBuf::from),
            verify: self.verify.unwrap_or(true),
        }
    }

    fn grpc(self, mistakes: &mut Mistakes) -> Probe {
        use HealthKey as Key;
        let tls = self.tls.unwrap_or(false);
        let of_tls = [Key::ServerName, Key::Ca, Key::Verify];
        if !tls {
            for key in self.given().filter(|key| of_tls.contains(key)) {
                let message = format!("without TLS a health check has no `{key}`");
                mistakes.push((key, Reason::new(message, "say `tls = true`, too")));
            }
        }
        Probe::Grpc(GrpcProbe {
            tls: tls.then(|| self.tls()),
            service: self.grpc_service.unwrap_or_default(),
            host: self.host,
        })
    }

    fn udp(self, mistakes: &mut Mistakes) -> Probe {
        let mut bytes =
            |text: Option<String>, hex: Option<String>, key: HealthKey| match (text, hex) {
                (Some(_), Some(_)) => {
                    let message = "the same is said twice, as text and in hex";
                    mistakes.push((key, Reason::new(message, "leave one of them out")));
                    None
                }
                (Some(text), None) => Some(text.into_bytes()),
                (None, Some(hex)) => {
                    let read = from_hex(&hex);
                    read.map_err(|reason| mistakes.push((key, reason))).ok()
                }
                (None, None) => None,
            };
        Probe::Udp(UdpProbe {
            send: bytes(self.send, self.send_hex, HealthKey::SendHex).unwrap_or_default(),
            expect: bytes(self.expect, self.expect_hex, HealthKey::ExpectHex),
        })
    }

    fn dns(self, mistakes: &mut Mistakes) -> Probe {
        let record = word_of(self.record.as_ref(), HealthKey::Record, mistakes);
        let rcode = word_of(self.rcode.as_ref(), HealthKey::Rcode, mistakes);
        Probe::Dns(DnsProbe {
            query: self.query.unwrap_or_default(),
            record: record.unwrap_or(DnsProbe::DEFAULT_RECORD),
            rcode: rcode.unwrap_or(DnsProbe::DEFAULT_RCODE),
            answer: self.answer,
        })
    }
}

fn word_of<T: FromStr<Err = Reason>>(
    word: Option<&String>,
    key: HealthKey,
    mistakes: &mut Mistakes,
) -> Option<T> {
    let read = word?.parse();
    read.map_err(|reason| mistakes.push((key, reason))).ok()
}

fn from_hex(text: &str) -> Result<Vec<u8>, Reason> {
    let byte = |pair: &[u8]| {
        let digit = |c: u8| char::from(c).to_digit(16);
        let [high, low] = pair else { return None };
        Some((digit(*high)? << 4 | digit(*low)?) as u8)
    };
    let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
    bytes.ok_or_else(|| {
        Reason::new(
            format!("`{}` is not hex", text.escape_debug()),
            "write two hex digits for each byte: `0d0a`",
        )
    })
}

/// Bytes as text, if that reads well, or else in hex.
fn as_text(bytes: &[u8]) -> (Option<String>, Option<String>) {
    let readable = |text: &&str| {
        !text
            .chars()
            .any(|c| c.is_control() && !"\r\n\t".contains(c))
    };
    match str::from_utf8(bytes).ok().filter(readable) {
        Some(text) => (Some(text.to_owned()), None),
        None => (
            None,
            Some(bytes.iter().map(|b| format!("{b:02x}")).collect()),
        ),
    }
}

impl DnsProbe {
    /// What is asked for where nothing is said: what every zone has.
    pub const DEFAULT_RECORD: RecordType = RecordType::A;
    /// What a healthy backend answers where nothing is said.
    pub const DEFAULT_RCODE: Rcode = Rcode::NoError;
}

impl Probe {
    /// Its type.
    #[must_use]
    pub const fn kind(&self) -> ProbeKind {
        match self {
            Self::Tcp => ProbeKind::Tcp,
            Self::Http(_) => ProbeKind::Http,
            Self::Https(..) => ProbeKind::Https,
            Self::Grpc(_) => ProbeKind::Grpc,
            Self::Udp(_) => ProbeKind::Udp,
            Self::Dns(_) => ProbeKind::Dns,
            Self::Icmp => ProbeKind::Icmp,
            Self::Exec(_) => ProbeKind::Exec,
        }
    }

    /// Whether it cannot do without a port.
    #[must_use]
    pub const fn needs_port(&self) -> bool {
        !matches!(self, Self::Icmp | Self::Exec(_))
    }

    /// The keys that it is written with, without those that say no more than their default.
    #[must_use]
    pub fn keys(&self) -> ProbeKeys {
        let mut keys = ProbeKeys::default();
        match self {
            Self::Tcp | Self::Icmp => {}
            Self::Http(http) => keys.put_http(http),
            Self::Https(http, tls, alpn) => {
                keys.put_http(http);
                keys.put_tls(tls);
                let words = || alpn.iter().map(ToString::to_string).collect();
                keys.alpn = (!alpn.is_empty()).then(words);
            }
            Self::Grpc(grpc) => {
                keys.host.clone_from(&grpc.host);
                keys.grpc_service = Some(grpc.service.clone()).filter(|name| !name.is_empty());
                if let Some(tls) = &grpc.tls {
                    keys.tls = Some(true);
                    keys.put_tls(tls);
                }
            }
            Self::Udp(udp) => {
                if !udp.send.is_empty() {
                    (keys.send, keys.send_hex) = as_text(&udp.send);
                }
                if let Some(expect) = &udp.expect {
                    (keys.expect, keys.expect_hex) = as_text(expect);
                }
            }
            Self::Dns(dns) => {
                keys.query = Some(dns.query.clone());
                let record = (dns.record != DnsProbe::DEFAULT_RECORD).then_some(dns.record);
                keys.record = record.map(|record| record.to_string());
                let rcode = (dns.rcode != DnsProbe::DEFAULT_RCODE).then_some(dns.rcode);
                keys.rcode = rcode.map(|rcode| rcode.to_string());
                keys.answer.clone_from(&dns.answer);
            }
            Self::Exec(exec) => {
                keys.command = Some(exec.command.clone());
                keys.environment = Some(exec.environment.clone()).filter(|all| !all.is_empty());
            }
        }
        keys
    }
}

impl ProbeKeys {
    fn put_http(&mut self, http: &HttpProbe) {
        let default = HttpProbe::default();
        self.method = (http.method != default.method).then(|| http.method.to_string());
        self.path = (http.path != default.path).then(|| http.path.clone());
        self.host.clone_from(&http.host);
        self.status = (http.status != default.status).then(|| http.status.to_string());
        self.body.clone_from(&http.body);
    }

    fn put_tls(&mut self, tls: &TlsSpec) {
        self.server_name.clone_from(&tls.server_name);
        let ca = tls.ca.as_ref();
        self.ca = ca.map(|path| path.to_string_lossy().into_owned());
        self.verify = (!tls.verify).then_some(false);
    }
}

/// How the health of backends is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthSpec {
    /// What is asked.
    pub probe: Probe,
    /// From the begin of one check to the begin of the next.
    pub interval: Duration,
    /// The same while the backend is down; `interval` where `None`.
    pub down_interval: Option<Duration>,
    /// How much earlier than that a check may come, at random, in percent of the interval:
    /// at most [`MAX_JITTER`](Self::MAX_JITTER).
    pub jitter: u32,
    /// How long an answer may take, at most `interval`; `None` where it was not given,
    /// see [`Self::timeout`].
    pub timeout: Option<Duration>,
    /// Successes in a row that bring a backend up. At least 1.
    pub rise: u32,
    /// Failures in a row that take a backend down. At least 1.
    pub fall: u32,
    /// How long a backend that flaps is held down at most, although its checks succeed; `None`
    /// for not at all.
    pub hold_down: Option<Duration>,
    /// Whether a backend is out at once that does not take clients' connections, which the
    /// datapath then watches. Of TCP services alone.
    pub passive: bool,
    /// Port that is checked; the backend's own where `None`. Needed where neither the
    /// backend nor the service has a single one.
    pub port: Option<u16>,
}

impl HealthSpec {
    /// The interval where none is given.
    pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(2);
    /// The timeout where none is given and the interval is not shorter.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
    /// `rise` where none is given.
    pub const DEFAULT_RISE: u32 = 2;
    /// `fall` where none is given.
    pub const DEFAULT_FALL: u32 = 3;
    /// The largest jitter, in percent.
    pub const MAX_JITTER: u32 = 50;

    /// A check with everything else by default.
    #[must_use]
    pub const fn new(probe: Probe) -> Self {
        Self {
            probe,
            interval: Self::DEFAULT_INTERVAL,
            down_interval: None,
            jitter: 0,
            hold_down: None,
            passive: false,
            timeout: None,
            rise: Self::DEFAULT_RISE,
            fall: Self::DEFAULT_FALL,
            port: None,
        }
    }

    /// How long an answer may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
            .unwrap_or_else(|| Self::default_timeout(self.shortest()))
    }

    /// The timeout where none is given.
    #[must_use]
    pub fn default_timeout(interval: Duration) -> Duration {
        Self::DEFAULT_TIMEOUT.min(interval)
    }

    /// From the begin of one check to the begin of the next, by the state of the backend.
    #[must_use]
    pub fn interval(&self, is_up: bool) -> Duration {
        match self.down_interval {
            Some(interval) if !is_up => interval,
            _ => self.interval,
        }
    }

    /// The least that the two intervals are, apart from jitter.
    #[must_use]
    pub fn shortest(&self) -> Duration {
        self.interval(false).min(self.interval)
    }
}

/// Reads a share of an interval, `10%`, in percent.
///
/// # Errors
///
/// When it is none.
pub fn parse_jitter(text: &str) -> Result<u32, Reason> {
    let digits = text.strip_suffix('%').filter(|text| !text.starts_with('+'));
    digits.and_then(|text| text.parse().ok()).ok_or_else(|| {
        Reason::new(
            format!("`{}` is no share of an interval", text.escape_debug()),
            "write it in percent: `10%`",
        )
    })
}

#[cfg(test)]
mod tests;
