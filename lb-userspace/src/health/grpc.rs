//! The `grpc` probe: `grpc.health.v1.Health/Check` answers `SERVING`
//! (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>).

use hyper::{HeaderMap, Request, body::Bytes, header::HeaderValue};
use percent_encoding::percent_decode;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    ProbeError, Target,
    http::agent,
    http2::{self, Answer},
    probe::shown,
    tcp,
    tls::{self, Protocols},
};
use crate::state::{Alpn, GrpcProbe};

const METHOD: &str = "/grpc.health.v1.Health/Check";
/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// Most bytes of an answer that are read: its message has two.
const MAX_ANSWER: usize = 1_024;

/// Connects and asks.
pub(super) async fn probe(target: &Target, grpc: &GrpcProbe) -> Result<(), ProbeError> {
    let stream = tcp::connect(target).await?;
    let Some(tls) = &grpc.tls else {
        return ask(stream, "http", target, grpc).await;
    };
    let protocols = Protocols::Required(&[Alpn::Http2]);
    let (stream, _) = tls::connect(stream, target, grpc.host.as_deref(), tls, protocols).await?;
    ask(stream, "https", target, grpc).await
}

async fn ask<S>(
    stream: S,
    scheme: &str,
    target: &Target,
    grpc: &GrpcProbe,
) -> Result<(), ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let host = grpc
        .host
        .clone()
        .unwrap_or_else(|| target.name().to_string());
    let request = Request::post(http2::uri(scheme, &host, METHOD)?)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", agent())
        .body(())
        .map_err(|error| ProbeError::Impossible(error.to_string()))?;
    let body = Some(question(&grpc.service));
    judge(&http2::exchange(stream, request, body, MAX_ANSWER).await?)
}

/// A `HealthCheckRequest` with its prefix: `string service = 1`.
fn question(service: &str) -> Bytes {
    let mut message = Vec::with_capacity(service.len() + 8);
    if !service.is_empty() {
        message.push(1 << 3 | 2);
        put_varint(&mut message, service.len() as u64);
        message.extend(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.append(&mut message);
    framed.into()
}

fn judge(answer: &Answer) -> Result<(), ProbeError> {
    if answer.status != 200 {
        return Err(ProbeError::Status(answer.status));
    }
    // Where there is no message, what stands behind it stands in the header.
    let of_call = |headers: &HeaderMap| {
        let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
        let message = headers.get("grpc-message").map(HeaderValue::as_bytes);
        let message: Vec<u8> = percent_decode(message.unwrap_or_default()).collect();
        Some((code, shown(&message)))
    };
    match of_call(&answer.trailers).or_else(|| of_call(&answer.headers)) {
        Some((0, _)) => {}
        Some((code, message)) => {
            let name = code_name(code);
            let text = match message.is_empty() {
                true => name,
                false => format!("{name}: {message}"),
            };
            return Err(ProbeError::Grpc(text));
        }
        None => return Err(ProbeError::Grpc("no status of the call".to_owned())),
    }
    let status = message(&answer.body).and_then(serving_status);
    match status {
        Some(1) => Ok(()),
        Some(0) => Err(ProbeError::Grpc("UNKNOWN".to_owned())),
        Some(2) => Err(ProbeError::Grpc("NOT_SERVING".to_owned())),
        Some(3) => Err(ProbeError::Grpc("SERVICE_UNKNOWN".to_owned())),
        Some(other) => Err(ProbeError::Grpc(format!("serving status {other}"))),
        None => Err(ProbeError::Grpc("no answer that can be read".to_owned())),
    }
}

/// The message behind its prefix, if it is whole and not compressed.
fn message(body: &[u8]) -> Option<&[u8]> {
    let (prefix, message) = body.split_first_chunk::<PREFIX>()?;
    let [0, length @ ..] = prefix else {
        return None;
    };
    message.get(..u32::from_be_bytes(*length) as usize)
}

/// The status in a `HealthCheckResponse`: `ServingStatus status = 1`, 0 where it is left out.
fn serving_status(mut message: &[u8]) -> Option<u64> {
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match (key >> 3, key & 7) {
            (1, 0) => status = varint(&mut message)?,
            (_, 0) => drop(varint(&mut message)?),
            (_, 1) => message = message.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            (_, 5) => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn put_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Takes a number off the begin of the bytes.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// The name of a status of a call.
fn code_name(code: u32) -> String {
    let name = match code {
        1 => "CANCELLED",
        2 => "UNKNOWN",
        3 => "INVALID_ARGUMENT",
        4 => "DEADLINE_EXCEEDED",
        5 => "NOT_FOUND",
        7 => "PERMISSION_DENIED",
        8 => "RESOURCE_EXHAUSTED",
        12 => "UNIMPLEMENTED",
        13 => "INTERNAL",
        14 => "UNAVAILABLE",
        16 => "UNAUTHENTICATED",
        other => return format!("status {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_question_is_as_the_protocol_has_it() {
        assert_eq!(&question("")[..], b"\0\0\0\0\0");
        assert_eq!(&question("a.B")[..], b"\0\0\0\0\x05\x0a\x03a.B");
        let long = question(&"x".repeat(300));
        assert_eq!(&long[..8], b"\0\0\0\x01\x2f\x0a\xac\x02");
    }

    #[test]
    fn what_the_answer_says() {
        assert_eq!(message(b"\0\0\0\0\x02\x08\x01"), Some(&b"\x08\x01"[..]));
        for wrong in [
            &b""[..],
            b"\0\0\0\0",
            b"\x01\0\0\0\0",
            b"\0\0\0\0\x03\x08\x01",
        ] {
            assert_eq!(message(wrong), None, "{wrong:?}");
        }
        assert_eq!(serving_status(b""), Some(0));
        assert_eq!(serving_status(b"\x08\x02"), Some(2));
        // Other fields, of every form, are passed over.
        let fields = b"\x10\x80\x01\x19abcdefgh\x22\x02hi\x2dabcd\x08\x01";
        assert_eq!(serving_status(fields), Some(1));
        for wrong in [&b"\x08"[..], b"\x22\x05a", b"\x0b", b"\x08\x80"] {
            assert_eq!(serving_status(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn numbers_read_as_they_were_written(number: u64) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, number);
            prop_assert_eq!(varint(&mut &bytes[..]), Some(number));
        }

        #[test]
        fn any_answer_can_be_read(bytes: Vec<u8>) {
            message(&bytes).and_then(serving_status);
        }
    }
}
