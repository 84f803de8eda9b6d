//! HTTP/1.1 with keep-alive.
//!
//! - `/` the name of the server
//! - `/healthz` status 200
//! - `/bytes/N` N bytes of [`pattern`], with `?rate=R` at about R bytes a second
//! - `POST /bytes` status 200 if the body is [`pattern`], else 422 and what is wrong

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lb_lab::pattern;

/// Most bytes that are read or written at once.
const CHUNK: u64 = 16_384;
/// A slow transfer writes about this often.
const PACE: Duration = Duration::from_millis(20);

/// Answers the requests of one connection.
pub(crate) fn serve(name: &str, stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let client = stream.peer_addr()?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = Request::read(&mut reader)? {
        let answer = match request.upload {
            Some(length) => Answer::to_upload(&mut reader, length)?,
            None => Answer::to(&request.path, name),
        };
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
    /// Length of the body that follows; `None` where none does.
    upload: Option<u64>,
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
        let value = |name: &str| {
            let named = |header: &&httparse::Header<'_>| header.name.eq_ignore_ascii_case(name);
            request
                .headers
                .iter()
                .find(named)
                .map(|header| header.value)
        };
        let close = value("connection").is_some_and(|value| value.eq_ignore_ascii_case(b"close"));
        let upload = match value("content-length") {
            Some(length) => Some(std::str::from_utf8(length)?.parse()?),
            None => None,
        };
        Ok(Some(Self {
            path: request.path.unwrap_or_default().to_owned(),
            keep_alive: !close,
            upload,
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
    fn text(status: &'static str, text: String) -> Self {
        Self {
            status,
            text,
            bytes: 0,
            rate: None,
        }
    }

    fn to(target: &str, name: &str) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        match path {
            "/" => Self::text("200 OK", format!("{name}\n")),
            "/healthz" => Self::text("200 OK", "ok\n".to_owned()),
            _ => match path.strip_prefix("/bytes/").map(str::parse) {
                Some(Ok(bytes)) => Self {
                    bytes,
                    rate: query
                        .strip_prefix("rate=")
                        .and_then(|rate| rate.parse().ok()),
                    ..Self::text("200 OK", String::new())
                },
                _ => Self::text(
                    "404 Not Found",
                    "try /, /healthz or /bytes/N?rate=R\n".to_owned(),
                ),
            },
        }
    }

    /// Reads a body to its end, whatever is in it: the client says all before it listens.
    fn to_upload(reader: &mut impl Read, length: u64) -> Result<Self> {
        let mut buffer = [0; CHUNK as usize];
        let mut flaw = None;
        let mut offset = 0;
        while offset < length {
            let wanted = (length - offset).min(CHUNK) as usize;
            let read = reader.read(&mut buffer[..wanted])?;
            if read == 0 {
                bail!("the upload ended at byte {offset} of {length}");
            }
            if let Err(error) = pattern::check(&buffer[..read], offset) {
                flaw.get_or_insert(error);
            }
            offset += read as u64;
        }
        Ok(match flaw {
            None => Self::text("200 OK", "received\n".to_owned()),
            Some(flaw) => Self::text("422 Unprocessable Content", format!("{flaw}\n")),
        })
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
