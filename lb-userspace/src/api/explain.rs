//! Questions in a query: `protocol=tcp&source=198.51.100.7:40000&destination=192.0.2.10:443`.

use std::fmt::Display;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::wire;
use crate::state::{Protocol, Question, Reason};

/// Keys of the query.
const KEYS: &str = "known here are `protocol`, `source`, `destination`, `tcp_flags`, `fragment`, \
                    `interface`, `length`, `ttl`";

/// Reads the query of a question.
pub(super) fn question(query: &str) -> Result<Question, Reason> {
    let mut protocol = None;
    let (mut source, mut destination) = (None, None);
    let nowhere = ([0, 0, 0, 0], 0).into();
    let mut question = Question::new(Protocol::Tcp, nowhere, nowhere);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(value).decode_utf8_lossy();
        match key {
            "protocol" => protocol = Some(value.parse()?),
            "source" => source = Some(socket(key, &value)?),
            "destination" => destination = Some(socket(key, &value)?),
            "tcp_flags" => question.tcp_flags = value.parse()?,
            "fragment" => question.fragment = Some(value.parse()?),
            "interface" => question.interface = Some(value.into_owned()),
            "length" => question.length = number(key, &value)?,
            "ttl" => question.ttl = number(key, &value)?,
            _ => {
                return Err(Reason::new(
                    format!("unknown key `{key}` in the query"),
                    KEYS,
                ));
            }
        }
    }
    question.protocol = protocol.ok_or_else(|| wire::missing("protocol"))?;
    question.source = source.ok_or_else(|| wire::missing("source"))?;
    question.destination = destination.ok_or_else(|| wire::missing("destination"))?;
    question.check()?;
    Ok(question)
}

/// The query that [`question`] reads as this.
pub(super) fn query(question: &Question) -> String {
    let given: [(&str, Option<&dyn Display>); 8] = [
        ("protocol", Some(&question.protocol)),
        ("source", Some(&question.source)),
        ("destination", Some(&question.destination)),
        ("tcp_flags", Some(&question.tcp_flags)),
        (
            "fragment",
            question.fragment.as_ref().map(|piece| piece as _),
        ),
        (
            "interface",
            question.interface.as_ref().map(|name| name as _),
        ),
        ("length", Some(&question.length)),
        ("ttl", Some(&question.ttl)),
    ];
    let pairs = given.iter().filter_map(|(key, value)| {
        let value = value.as_ref()?.to_string();
        Some(format!(
            "{key}={}",
            utf8_percent_encode(&value, NON_ALPHANUMERIC)
        ))
    });
    pairs.collect::<Vec<_>>().join("&")
}

fn socket(key: &str, value: &str) -> Result<std::net::SocketAddr, Reason> {
    value.parse().map_err(|_| {
        Reason::new(
            format!("{key}: `{value}` is no address with a port"),
            "write `198.51.100.7:40000` or `[2001:db8::7]:40000`",
        )
    })
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, Reason> {
    value.parse().map_err(|_| {
        Reason::new(
            format!("{key}: `{value}` is no number, or too large"),
            format!("`{key}=64`"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Piece, TcpFlags};

    #[test]
    fn a_question_comes_as_it_was_asked() {
        let mut asked = Question::new(
            Protocol::Udp,
            "[2001:db8::7]:40000".parse().unwrap(),
            "[2001:db8::10]:53".parse().unwrap(),
        );
        assert_eq!(question(&query(&asked)).as_ref(), Ok(&asked));
        asked.fragment = Some(Piece::Later);
        asked.interface = Some("bond0&x=y".to_owned());
        asked.tcp_flags = TcpFlags(0x11);
        (asked.length, asked.ttl) = (100, 1);
        assert_eq!(question(&query(&asked)), Ok(asked));
    }

    #[test]
    fn mistakes_are_told() {
        for (query, message) in [
            ("", "`protocol` is missing"),
            ("protocol=tcp&source=1.2.3.4:5", "`destination` is missing"),
            ("protocol=sctp", "protocol `sctp` is not known"),
            (
                "source=1.2.3.4",
                "source: `1.2.3.4` is no address with a port",
            ),
            ("tcp_flags=syn,x", "there is no TCP flag `x`"),
            ("ttl=300", "ttl: `300` is no number, or too large"),
            ("colour=red", "unknown key `colour` in the query"),
            (
                "protocol=tcp&source=1.2.3.4:5&destination=[::1]:5",
                "the source and the destination are of different families",
            ),
        ] {
            assert_eq!(question(query).unwrap_err().message, message, "{query}");
        }
    }
}
