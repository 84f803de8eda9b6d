//! The `http` and `https` probes: a request over HTTP/1.1 (RFC 9112), or where TLS says so
//! HTTP/2 (RFC 9113), is answered with a status and a body that are expected.

use httparse::{EMPTY_HEADER, Response, Status};
use hyper::Request;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

mod body;

pub(super) use self::body::contains;

use self::body::Body;
use super::{
    ProbeError, Target, http2,
    probe::shown,
    tcp,
    tls::{self, Protocols},
};
use crate::state::{Alpn, HttpProbe, Method, TlsSpec};

/// Most bytes of an answer that are read, up to the end of its header section.
pub(super) const MAX_HEAD: usize = 16 * 1024;
/// Most header fields of an answer.
const MAX_FIELDS: usize = 128;
/// Most bytes of an answer that an error quotes.
const QUOTED: usize = 24;

/// Connects and asks.
pub(super) async fn plain(target: &Target, http: &HttpProbe) -> Result<(), ProbeError> {
    ask(tcp::connect(target).await?, target, http).await
}

/// Connects, and asks over TLS.
pub(super) async fn secure(
    target: &Target,
    http: &HttpProbe,
    tls: &TlsSpec,
    alpn: &[Alpn],
) -> Result<(), ProbeError> {
    let protocols = match alpn {
        [] => Protocols::Preferred(&[Alpn::Http1]),
        given => Protocols::Required(given),
    };
    let stream = tcp::connect(target).await?;
    let (stream, protocol) =
        tls::connect(stream, target, http.host.as_deref(), tls, protocols).await?;
    match protocol {
        Some(Alpn::Http2) => ask_http2(stream, target, http).await,
        Some(Alpn::Http1) | None => ask(stream, target, http).await,
    }
}

/// Asks over HTTP/1.1 and reads as much of the answer as is to be judged.
async fn ask<S>(mut stream: S, target: &Target, http: &HttpProbe) -> Result<(), ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(request(target, http).as_bytes()).await?;
    stream.flush().await?;

    let mut head = Vec::with_capacity(1024);
    let answer = loop {
        if let Some(answer) = answer(&head)? {
            break answer;
        }
        let room = MAX_HEAD - head.len();
        if room == 0 {
            return Err(ProbeError::HeaderTooLarge);
        }
        if (&mut stream).take(room as u64).read_buf(&mut head).await? == 0 {
            return Err(ProbeError::Closed);
        }
    };
    judge_status(answer.status, http)?;
    let Some(expected) = &http.body else {
        return Ok(());
    };
    let mut body = answer.body;
    let mut raw = head.split_off(answer.length);
    loop {
        let is_whole = body.feed(&mut raw)?;
        if body.contains(expected.as_bytes()) {
            return Ok(());
        }
        if is_whole || body.len() >= HttpProbe::MAX_BODY {
            return Err(ProbeError::Body(shown(expected.as_bytes())));
        }
        if stream.read_buf(&mut raw).await? == 0 {
            return Err(body.cut_off(expected));
        }
    }
}

/// The same over HTTP/2.
async fn ask_http2<S>(stream: S, target: &Target, http: &HttpProbe) -> Result<(), ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = Request::builder()
        .method(http.method.as_str())
        .uri(http2::uri("https", &host(target, http), &http.path)?)
        .header("user-agent", agent())
        .header("accept", "*/*")
        .body(())
        .map_err(|error| ProbeError::Impossible(error.to_string()))?;
    let limit = if http.body.is_some() {
        HttpProbe::MAX_BODY
    } else {
        0
    };
    let answer = http2::exchange(stream, request, None, limit).await?;
    judge_status(answer.status, http)?;
    match &http.body {
        Some(expected) if !contains(&answer.body, expected.as_bytes()) => {
            Err(ProbeError::Body(shown(expected.as_bytes())))
        }
        _ => Ok(()),
    }
}

fn judge_status(status: u16, http: &HttpProbe) -> Result<(), ProbeError> {
    match http.status.contains(status) {
        true => Ok(()),
        false => Err(ProbeError::Status(status)),
    }
}

/// Whom the request is for. An IPv6 address stands in brackets, and with the port as part of
/// it (RFC 9110, section 7.2), as `SocketAddr` is printed.
fn host(target: &Target, http: &HttpProbe) -> String {
    http.host
        .clone()
        .unwrap_or_else(|| target.name().to_string())
}

/// Who asks.
pub(super) fn agent() -> String {
    format!("lb-health/{}", env!("CARGO_PKG_VERSION"))
}

fn request(target: &Target, http: &HttpProbe) -> String {
    let length = match http.method {
        Method::Post => "Content-Length: 0\r\n",
        _ => "",
    };
    format!(
        "{} {} HTTP/1.1\r\n\
         Host: {}\r\n\
         User-Agent: {}\r\n\
         Accept: */*\r\n\
         {length}\
         Connection: close\r\n\
         \r\n",
        http.method,
        http.path,
        host(target, http),
        agent(),
    )
}

/// The head of an answer.
struct Answer {
    status: u16,
    /// Bytes of it.
    length: usize,
    body: Body,
}

/// The answer, once its header is whole. Interim responses, which may come before it
/// unasked, are passed over (RFC 9110 section 15.2).
fn answer(head: &[u8]) -> Result<Option<Answer>, ProbeError> {
    let mut begin = 0;
    loop {
        let mut fields = [EMPTY_HEADER; MAX_FIELDS];
        let mut response = Response::new(&mut fields);
        let rest = &head[begin..];
        let parsed = response
            .parse(rest)
            .map_err(|error| ProbeError::NotHttp(format!("{error}: \"{}\"", quoted(rest))))?;
        match (parsed, response.code) {
            (Status::Complete(length), Some(100..=199)) => begin += length,
            (Status::Complete(length), Some(status)) => {
                return Ok(Some(Answer {
                    status,
                    length: begin + length,
                    body: Body::after(status, response.headers),
                }));
            }
            (Status::Complete(_), None) | (Status::Partial, _) => return Ok(None),
        }
    }
}

/// The begin of the first line, fit for a terminal.
fn quoted(head: &[u8]) -> impl std::fmt::Display {
    let line = head.split(|byte| matches!(byte, b'\r' | b'\n')).next();
    let line = line.unwrap_or_default();
    line[..line.len().min(QUOTED)].escape_ascii()
}

#[cfg(test)]
mod tests;
