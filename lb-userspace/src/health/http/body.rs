//! The body of an HTTP/1.1 answer as it comes in (RFC 9112, sections 6 and 7).

use httparse::{Header, Status, parse_chunk_size};

use super::super::{ProbeError, probe::shown};

/// Most bytes of the line before a chunk.
const MAX_CHUNK_LINE: usize = 256;

/// How the end of a body is known.
enum Framing {
    /// So many bytes are still to come.
    Length(u64),
    /// Chunks, of the present one so many bytes are still to come, and so many are to be
    /// passed over first.
    Chunked { left: u64, skip: usize },
    /// By the end of the connection.
    Close,
}

/// What has come of a body.
pub(super) struct Body {
    framing: Framing,
    bytes: Vec<u8>,
    /// How many of these have been looked through.
    seen: usize,
}

impl Body {
    /// The body behind a header section.
    pub(super) fn after(status: u16, headers: &[Header<'_>]) -> Self {
        let field = |name: &str| {
            let mut named = headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name));
            named.next_back().map(|header| header.value.trim_ascii())
        };
        let is_chunked = field("transfer-encoding").is_some_and(|codings| {
            let last = codings.rsplit(|byte| *byte == b',').next();
            last.is_some_and(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"chunked"))
        });
        let length = field("content-length").and_then(|value| str::from_utf8(value).ok());
        let framing = match (status, length.map(str::parse)) {
            (204 | 304, _) => Framing::Length(0),
            _ if is_chunked => Framing::Chunked { left: 0, skip: 0 },
            (_, Some(Ok(length))) => Framing::Length(length),
            _ => Framing::Close,
        };
        Self {
            framing,
            bytes: Vec::new(),
            seen: 0,
        }
    }

    /// Takes what has come, and says whether that was all.
    pub(super) fn feed(&mut self, raw: &mut Vec<u8>) -> Result<bool, ProbeError> {
        loop {
            match &mut self.framing {
                Framing::Close => {
                    self.bytes.append(raw);
                    return Ok(false);
                }
                Framing::Length(left) => {
                    take(raw, left, &mut self.bytes);
                    return Ok(*left == 0);
                }
                Framing::Chunked { left, skip } => {
                    if *left > 0 {
                        take(raw, left, &mut self.bytes);
                        if *left > 0 {
                            return Ok(false);
                        }
                        // The line that a chunk ends with.
                        *skip = 2;
                    }
                    if raw.len() < *skip {
                        return Ok(false);
                    }
                    raw.drain(..*skip);
                    *skip = 0;
                    match parse_chunk_size(raw) {
                        Ok(Status::Complete((_, 0))) => return Ok(true),
                        Ok(Status::Complete((line, size))) => {
                            raw.drain(..line);
                            *left = size;
                        }
                        Ok(Status::Partial) if raw.len() < MAX_CHUNK_LINE => return Ok(false),
                        Ok(Status::Partial) | Err(_) => {
                            return Err(ProbeError::NotHttp("a chunk of no size".to_owned()));
                        }
                    }
                }
            }
        }
    }

    /// How many bytes have come.
    pub(super) const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether these bytes are in it. What was looked through for them before is not again.
    pub(super) fn contains(&mut self, expected: &[u8]) -> bool {
        let begin = self.seen.saturating_sub(expected.len());
        self.seen = self.bytes.len();
        contains(&self.bytes[begin..], expected)
    }

    /// What the end of the connection means.
    pub(super) fn cut_off(&self, expected: &str) -> ProbeError {
        match self.framing {
            Framing::Close => ProbeError::Body(shown(expected.as_bytes())),
            Framing::Length(_) | Framing::Chunked { .. } => ProbeError::Closed,
        }
    }
}

/// Whether these bytes are in those.
pub(in super::super) fn contains(bytes: &[u8], expected: &[u8]) -> bool {
    expected.is_empty() || bytes.windows(expected.len()).any(|part| part == expected)
}

/// Moves as many bytes as are there and left.
fn take(raw: &mut Vec<u8>, left: &mut u64, into: &mut Vec<u8>) {
    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(raw.len());
    into.extend(raw.drain(..count));
    *left -= count as u64;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(headers: &[(&str, &str)]) -> Body {
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| Header {
                name,
                value: value.as_bytes(),
            })
            .collect();
        Body::after(200, &headers)
    }

    /// What comes of these bytes, fed in pieces of `step`; `true` where they are the whole.
    fn fed(mut body: Body, raw: &[u8], step: usize) -> Result<(Vec<u8>, bool), ProbeError> {
        let mut buffer = Vec::new();
        let mut is_whole = body.feed(&mut buffer)?;
        for piece in raw.chunks(step) {
            buffer.extend(piece);
            is_whole = body.feed(&mut buffer)?;
        }
        Ok((body.bytes, is_whole))
    }

    #[test]
    fn the_end_of_a_body() {
        for step in 1..40 {
            let length = body(&[("Content-Length", "3")]);
            assert_eq!(fed(length, b"abcd", step).unwrap(), (b"abc".into(), true));
            let short = body(&[("content-length", "5")]);
            assert_eq!(fed(short, b"abcd", step).unwrap(), (b"abcd".into(), false));
            let close = body(&[]);
            assert_eq!(fed(close, b"abcd", step).unwrap(), (b"abcd".into(), false));
            let chunked = || body(&[("Transfer-Encoding", "gzip, Chunked")]);
            let chunks = b"2;a=b\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
            assert_eq!(fed(chunked(), chunks, step).unwrap(), (b"abc".into(), true));
            assert!(fed(chunked(), b"2\r\nab\r\nxyz\r\n", step).is_err());
        }
        let endless = [b'0'; 2 * MAX_CHUNK_LINE];
        let chunked = body(&[("transfer-encoding", "chunked")]);
        assert!(fed(chunked, &endless, 7).is_err());
    }

    proptest! {
        #[test]
        fn what_is_in_a_body_is_found_wherever_it_is_cut(
            text in "[ab]{0,60}",
            expected in "[ab]{1,4}",
            step in 1..9_usize,
        ) {
            let mut close = body(&[]);
            let mut found = false;
            for piece in text.as_bytes().chunks(step) {
                close.feed(&mut piece.to_vec()).unwrap();
                found |= close.contains(expected.as_bytes());
            }
            prop_assert_eq!(found, text.contains(&expected));
        }
    }
}
