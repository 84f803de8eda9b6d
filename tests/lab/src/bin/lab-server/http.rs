//! HTTP/1.1 with keep-alive.
//!
//! - `/` the name of the server
//! - `/healthz` status 200
//! - `/bytes/N` N bytes of [`pattern`], with `?rate=R` at about R bytes a second

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lb_lab::pattern;

/// Most bytes that are written at once.
const CHUNK: u64 = 16_384;
/// A slow transfer writes about this often.
const PACE: Duration = Duration::from_millis(20);

/// Answers the requests of one connection.
pub(crate) fn serve(name: &str, stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let client = stream.peer_addr()?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = Request::read(&mut reader)? {
        let answer = Answer::to(&request.path, name);
        let stream = reader.get_mut();
        // Whole in one write, and so in one packet.
        let head = format!(
            "HTTP/1.1 {}\r\nContent-Length: {}\r\nConnection: {}\r\n\
             X-Backend: {name}\r\nX-Client: {client}\r\n\r\n{}",
            answer.status,
            answer.text.len() as u64 + answer.bytes,
            if request.keep_alive {
                "keep-alive"
            } else {
                "close"
            },
            answer.text,
        );
        stream.write_all(head.as_bytes())?;
        send_bytes(stream, answer.bytes, answer.rate)
            .with_context(|| format!("cannot send {} to {client}", request.path))?;
        if !request.keep_alive {
            break;
        }
    }
    Ok(())
}

/// What matters of a request.
struct Request {
    path: String,
    keep_alive: bool,
}

impl Request {
    /// The next request of a connection; `None` when the client has no more.
    fn read(reader: &mut impl BufRead) -> Result<Option<Self>> {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            if reader.read_until(b'\n', &mut text)? == 0 {
                if text.is_empty() {
                    return Ok(None);
                }
                bail!("the client closed the connection within a request");
            }
        }
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut headers);
        request.parse(&text)?;
        let close = request.headers.iter().any(|header| {
            header.name.eq_ignore_ascii_case("connection")
                && header.value.eq_ignore_ascii_case(b"close")
        });
        Ok(Some(Self {
            path: request.path.unwrap_or_default().to_owned(),
            keep_alive: !close,
        }))
    }
}

/// A short text, or many bytes.
struct Answer {
    status: &'static str,
    text: String,
    bytes: u64,
    /// Bytes a second; `None` for as fast as the client takes them.
    rate: Option<u64>,
}

impl Answer {
    fn to(target: &str, name: &str) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let text = |status, text| Self {
            status,
            text,
            bytes: 0,
            rate: None,
        };
        match path {
            "/" => text("200 OK", format!("{name}\n")),
            "/healthz" => text("200 OK", "ok\n".to_owned()),
            _ => match path.strip_prefix("/bytes/").map(str::parse) {
                Some(Ok(bytes)) => Self {
                    bytes,
                    rate: query
                        .strip_prefix("rate=")
                        .and_then(|rate| rate.parse().ok()),
                    ..text("200 OK", String::new())
                },
                _ => text(
                    "404 Not Found",
                    "try /, /healthz or /bytes/N?rate=R\n".to_owned(),
                ),
            },
        }
    }
}

/// Sends the first `count` bytes of the pattern, as much at a time as `rate` allows.
fn send_bytes(stream: &mut TcpStream, count: u64, rate: Option<u64>) -> Result<()> {
    let mut buffer = [0; CHUNK as usize];
    let begin = Instant::now();
    let mut sent = 0;
    while sent < count {
        let due = match rate {
            Some(rate) => (begin.elapsed().as_secs_f64() * rate as f64) as u64,
            None => count,
        };
        if due <= sent {
            thread::sleep(PACE);
            continue;
        }
        let length = (due.min(count) - sent).min(CHUNK);
        let chunk = &mut buffer[..length as usize];
        pattern::fill(chunk, sent);
        stream.write_all(chunk)?;
        sent += length;
    }
    Ok(())
}
