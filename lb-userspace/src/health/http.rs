//! The `http` probe: a GET over HTTP/1.1 (RFC 9112) is answered with a status from
//! 200 to 399.

use std::{net::SocketAddr, ops::RangeInclusive};

use httparse::{EMPTY_HEADER, Response, Status};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::ProbeError;

/// Most bytes of an answer that are read, up to the end of its header section.
pub(super) const MAX_HEAD: usize = 16 * 1024;
/// Most header fields of an answer.
const MAX_FIELDS: usize = 128;
/// Statuses of a healthy backend: success and redirection.
const HEALTHY: RangeInclusive<u16> = 200..=399;
/// Most bytes of an answer that an error quotes.
const QUOTED: usize = 24;

/// Connects, asks for `path`, and reads the answer up to the end of its header.
pub(super) async fn probe(
    target: SocketAddr,
    path: &str,
    host: Option<&str>,
) -> Result<(), ProbeError> {
    let mut stream = TcpStream::connect(target).await?;
    stream
        .write_all(request(target, path, host).as_bytes())
        .await?;

    let mut head = Vec::with_capacity(1024);
    loop {
        if let Some(status) = final_status(&head)? {
            return if HEALTHY.contains(&status) {
                Ok(())
            } else {
                Err(ProbeError::Status(status))
            };
        }
        let room = MAX_HEAD - head.len();
        if room == 0 {
            return Err(ProbeError::HeaderTooLarge);
        }
        if (&mut stream).take(room as u64).read_buf(&mut head).await? == 0 {
            return Err(ProbeError::Closed);
        }
    }
}

fn request(target: SocketAddr, path: &str, host: Option<&str>) -> String {
    // An IPv6 address stands in brackets, and with the port as part of it
    // (RFC 9110 section 7.2), as `SocketAddr` is printed.
    let host = host.map_or_else(|| target.to_string(), str::to_owned);
    format!(
        "GET {path} HTTP/1.1\r\n\
         Host: {host}\r\n\
         User-Agent: lb-health/{}\r\n\
         Accept: */*\r\n\
         Connection: close\r\n\
         \r\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// The status of the answer, once its header is whole. Interim responses, which may
/// come before it unasked, are passed over (RFC 9110 section 15.2).
fn final_status(mut head: &[u8]) -> Result<Option<u16>, ProbeError> {
    loop {
        let mut fields = [EMPTY_HEADER; MAX_FIELDS];
        let mut response = Response::new(&mut fields);
        let parsed = response
            .parse(head)
            .map_err(|error| ProbeError::NotHttp(format!("{error}: \"{}\"", quoted(head))))?;
        match (parsed, response.code) {
            (Status::Complete(length), Some(100..=199)) => head = &head[length..],
            (Status::Complete(_), status) => return Ok(status),
            (Status::Partial, _) => return Ok(None),
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
