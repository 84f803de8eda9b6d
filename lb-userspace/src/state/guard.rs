//! Whom a service takes packets from, and how many new flows: lists of sources and limits.

use std::{fmt, str::FromStr};

use super::{Reason, address::parse_prefix};
use crate::address::AddressPrefix;

/// Reads a prefix of sources, or the address of one.
///
/// # Errors
///
/// When it is no IP address, or a prefix that goes on behind its length.
pub fn parse_sources(text: &str) -> Result<AddressPrefix, Reason> {
    const FORMS: &str = "write an address, `198.51.100.7`, or a prefix, `198.51.100.0/24`";
    match text.parse::<std::net::IpAddr>() {
        Ok(ip) => Ok(ip.into()),
        Err(_) if text.contains('/') => parse_prefix(text, FORMS, |prefix| prefix.to_string()),
        Err(_) => Err(Reason::new(
            format!("`{}` is no IP address", text.escape_debug()),
            FORMS,
        )),
    }
}

/// A token bucket: so many new flows a second, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// New flows per second, at least 1.
    pub rate: u32,
    /// New flows at once after a silence, at least 1.
    pub burst: u32,
}

impl RateLimit {
    /// A limit without more at once than a second brings.
    #[must_use]
    pub const fn new(rate: u32) -> Self {
        Self { rate, burst: rate }
    }
}

/// `100`, or `100:500` where the burst is another.
impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.rate)?;
        if self.burst != self.rate {
            write!(f, ":{}", self.burst)?;
        }
        Ok(())
    }
}

impl FromStr for RateLimit {
    type Err = Reason;

    fn from_str(text: &str) -> Result<Self, Reason> {
        let number = |text: &str| text.parse().ok().filter(|_| !text.starts_with('+'));
        let read = match text.split_once(':') {
            Some((rate, burst)) => number(rate)
                .zip(number(burst))
                .map(|(rate, burst)| Self { rate, burst }),
            None => number(text).map(Self::new),
        };
        read.ok_or_else(|| {
            Reason::new(
                format!("`{}` is no limit", text.escape_debug()),
                "write how many a second, and behind a colon how many at once: `100:500`",
            )
        })
    }
}

/// How many flows may begin; `None` for any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewFlowLimits {
    /// From one source address.
    pub new_per_source: Option<RateLimit>,
    /// From all together.
    pub new_per_service: Option<RateLimit>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_rate_and_perhaps_a_burst() {
        for (text, rate, burst) in [("100", 100, 100), ("100:500", 100, 500)] {
            let limit: RateLimit = text.parse().unwrap();
            assert_eq!(limit, RateLimit { rate, burst });
            assert_eq!(limit.to_string(), text);
        }
        for wrong in ["", ":", "1:", ":1", "-1", "+1", "1/s", "1:2:3"] {
            assert!(wrong.parse::<RateLimit>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sources_are_addresses_and_prefixes() {
        for text in [
            "198.51.100.7",
            "198.51.100.0/24",
            "2001:db8::/32",
            "0.0.0.0/0",
        ] {
            assert_eq!(parse_sources(text).unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "198.51.100.7/24",
            "198.51.100.0/33",
            "198.51.100.7:80",
            "a/8",
        ] {
            assert!(parse_sources(wrong).is_err(), "{wrong}");
        }
    }
}
