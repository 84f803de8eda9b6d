//! Addresses of services and backends, as they are written.

use std::{fmt, net::IpAddr, str::FromStr};

use super::Reason;
use crate::address::{AddressPrefix, PortRange};

/// Where a service is reached: `192.0.2.10:443`, `[2001:db8::/64]:8000-8099`,
/// `192.0.2.0/24:*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceAddress {
    /// The address, or those that begin alike.
    pub prefix: AddressPrefix,
    /// The ports; [`PortRange::ALL`] is written `*`.
    pub ports: PortRange,
}

impl fmt::Display for ServiceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prefix, ports } = self;
        match prefix.address() {
            IpAddr::V4(_) => write!(f, "{prefix}:{ports}"),
            IpAddr::V6(_) => write!(f, "[{prefix}]:{ports}"),
        }
    }
}

impl FromStr for ServiceAddress {
    type Err = Reason;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORMS: &str = "write `192.0.2.10:443` or `[2001:db8::10]:443`; a prefix as \
                             `192.0.2.0/24`, ports as `8000-8099`, or `*` for every port";
        if let Some(reason) = without_brackets(text).or_else(|| without_port(text)) {
            return Err(reason);
        }
        let (host, ports) = split(text, FORMS)?;
        let ports = parse_ports(ports)?;
        let bare = host.trim_matches(['[', ']']);
        if !bare.contains('/') {
            let prefix = parse_host(host, FORMS)?.into();
            return Ok(Self { prefix, ports });
        }
        let is_bracketed = host.starts_with('[') && host.ends_with(']');
        if is_bracketed != bare.contains(':') {
            return Err(no_address(host, FORMS));
        }
        let prefix = parse_prefix(bare, FORMS, |prefix| Self { prefix, ports }.to_string())?;
        Ok(Self { prefix, ports })
    }
}

/// Where a backend is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendAddress {
    /// Its address.
    pub ip: IpAddr,
    /// Its port.
    pub port: BackendPort,
}

impl BackendAddress {
    /// Whether this stands for `backend` where backends are looked for: without a port, for
    /// those on every port of the address.
    #[must_use]
    pub fn names(self, backend: Self) -> bool {
        self == backend || (self.port == BackendPort::Unnamed && self.ip == backend.ip)
    }
}

/// The port that packets to a backend have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackendPort {
    /// This one.
    Number(u16),
    /// The one that the client asked for, whichever that is: written `*`.
    Every,
    /// The one that the client asked for, in the modes that keep it: not written.
    Unnamed,
}

impl BackendPort {
    /// The port, where it is named.
    #[must_use]
    pub const fn number(self) -> Option<u16> {
        match self {
            Self::Number(port) => Some(port),
            Self::Every | Self::Unnamed => None,
        }
    }
}

/// `10.0.0.11:8443`, `10.0.0.11:*` or `10.0.0.11`; an IPv6 address in brackets.
impl fmt::Display for BackendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            IpAddr::V4(ip) => write!(f, "{ip}")?,
            IpAddr::V6(ip) => write!(f, "[{ip}]")?,
        }
        match self.port {
            BackendPort::Number(port) => write!(f, ":{port}"),
            BackendPort::Every => f.write_str(":*"),
            BackendPort::Unnamed => Ok(()),
        }
    }
}

impl FromStr for BackendAddress {
    type Err = Reason;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORMS: &str = "write `10.0.0.11:8443` or `[2001:db8::11]:8443`, `*` as the port to \
                             keep the client's, or `10.0.0.11` in modes that always keep it";
        if let Some(reason) = without_brackets(text) {
            return Err(reason);
        }
        if let Some(ip) = parse_bare(text) {
            let port = BackendPort::Unnamed;
            return Ok(Self { ip, port });
        }
        let (host, port) = split(text, FORMS)?;
        let port = match port {
            "*" => BackendPort::Every,
            digits => BackendPort::Number(parse_port(digits)?),
        };
        let ip = parse_host(host, FORMS)?;
        Ok(Self { ip, port })
    }
}

/// What stands before and behind the last colon.
fn split<'a>(text: &'a str, forms: &str) -> Result<(&'a str, &'a str), Reason> {
    let message = || format!("`{}` is no IP address with a port", text.escape_debug());
    text.rsplit_once(':')
        .ok_or_else(|| Reason::new(message(), forms))
}

/// Reads an address, of IPv6 in brackets.
fn parse_host(host: &str, forms: &str) -> Result<IpAddr, Reason> {
    let ip = match host.strip_prefix('[').and_then(|v6| v6.strip_suffix(']')) {
        Some(v6) => v6.parse().map(IpAddr::V6).ok(),
        None => host.parse().map(IpAddr::V4).ok(),
    };
    ip.ok_or_else(|| no_address(host, forms))
}

fn no_address(host: &str, forms: &str) -> Reason {
    Reason::new(
        format!("`{}` is no IP address", host.escape_debug()),
        format!("{forms}; names are not resolved"),
    )
}

/// Reads an address without a port, IPv6 with or without brackets.
fn parse_bare(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[').and_then(|v6| v6.strip_suffix(']')) {
        Some(v6) => v6.parse().map(IpAddr::V6).ok(),
        None => text.parse().ok(),
    }
}

/// What to say of an IPv6 address that may have a port at its end.
fn without_brackets(text: &str) -> Option<Reason> {
    let (v6, port) = text.rsplit_once(':')?;
    let ip = v6.parse().map(IpAddr::V6).ok()?;
    let port = BackendPort::Number(parse_port(port).ok()?);
    Some(Reason::new(
        format!("`{text}` lacks the brackets between address and port"),
        format!("write `{}`", BackendAddress { ip, port }),
    ))
}

/// What to say of the address of a service that lacks its port.
fn without_port(text: &str) -> Option<Reason> {
    let (ip, port) = (parse_bare(text)?, BackendPort::Number(443));
    let named = BackendAddress { ip, port };
    Some(Reason::new(
        format!("`{text}` names no port"),
        format!("write `{named}`, or `*` as the port for every port"),
    ))
}

/// Reads `192.0.2.0/24`. `correct` writes what should have stood in the place of a prefix
/// that goes on behind its length.
pub(super) fn parse_prefix(
    text: &str,
    forms: &str,
    correct: impl FnOnce(AddressPrefix) -> String,
) -> Result<AddressPrefix, Reason> {
    let (ip, length) = text.split_once('/').unwrap_or((text, ""));
    let ip: IpAddr = ip.parse().map_err(|_| no_address(ip, forms))?;
    let bits = AddressPrefix::from(ip).length();
    let plain = length.bytes().all(|byte| byte.is_ascii_digit());
    let length: u8 = length
        .parse()
        .ok()
        .filter(|length| plain && *length <= bits)
        .ok_or_else(|| {
            Reason::new(
                format!("`{}` is no length of a prefix", length.escape_debug()),
                format!("a prefix of `{ip}` has a length from 0 to {bits}"),
            )
        })?;
    let prefix = AddressPrefix::new(ip, length);
    if prefix.address() != ip {
        return Err(Reason::new(
            format!("`{text}` is no prefix: it has bits behind the first {length}"),
            format!("write `{}`", correct(prefix)),
        ));
    }
    Ok(prefix)
}

/// Reads `443`, `8000-8099` or `*`.
fn parse_ports(text: &str) -> Result<PortRange, Reason> {
    if text == "*" {
        return Ok(PortRange::ALL);
    }
    let Some((first, last)) = text.split_once('-') else {
        return parse_port(text).map(PortRange::from);
    };
    let (first, last) = (parse_port(first)?, parse_port(last)?);
    PortRange::new(first, last).ok_or_else(|| {
        Reason::new(
            format!("the range {first}-{last} is empty"),
            format!("the lower port comes first: `{last}-{first}`"),
        )
    })
}

/// Reads a port number.
///
/// # Errors
///
/// When it is no number from 1 to 65535 in plain digits.
pub fn parse_port(digits: &str) -> Result<u16, Reason> {
    // `u16::from_str` alone would take a sign.
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .parse()
        .ok()
        .filter(|port| plain && *port != 0)
        .ok_or_else(|| {
            Reason::new(
                format!("`{}` is no port", digits.escape_debug()),
                "a port is a number from 1 to 65535",
            )
        })
}

/// Reads a source address, or a prefix of some.
///
/// # Errors
///
/// When it is no IP address, or a prefix that goes on behind its length.
pub fn parse_source(text: &str) -> Result<AddressPrefix, Reason> {
    const FORMS: &str = "write an address of this host without a port: `10.0.0.1`; for tunnels \
                         also a prefix: `10.0.0.0/24`";
    match text.parse::<IpAddr>() {
        Ok(ip) => Ok(ip.into()),
        Err(_) if text.contains('/') => parse_prefix(text, FORMS, |prefix| prefix.to_string()),
        Err(_) => Err(Reason::new(
            format!("`{}` is no IP address", text.escape_debug()),
            FORMS,
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused<T: FromStr<Err = Reason> + fmt::Debug>(text: &str) -> (String, String) {
        let reason = text.parse::<T>().unwrap_err();
        (reason.message, reason.hint.unwrap())
    }

    #[test]
    fn services_are_on_addresses_prefixes_and_ranges() {
        for text in [
            "192.0.2.10:443",
            "192.0.2.10:8000-8099",
            "192.0.2.10:*",
            "192.0.2.0/24:443",
            "[2001:db8::10]:443",
            "[2001:db8::/64]:443",
            "[2001:db8::/64]:*",
        ] {
            let address: ServiceAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        let one = "192.0.2.10/32:443-443".parse::<ServiceAddress>().unwrap();
        assert_eq!(one.to_string(), "192.0.2.10:443");
    }

    #[test]
    fn a_wrong_address_of_a_service_is_refused_with_the_right_one() {
        for (text, message, hint) in [
            (
                "192.0.2.10/24:443",
                "`192.0.2.10/24` is no prefix: it has bits behind the first 24",
                "write `192.0.2.0/24:443`",
            ),
            (
                "[2001:db8::1/64]:443",
                "`2001:db8::1/64` is no prefix: it has bits behind the first 64",
                "write `[2001:db8::/64]:443`",
            ),
            (
                "192.0.2.0/33:443",
                "`33` is no length of a prefix",
                "a prefix of `192.0.2.0` has a length from 0 to 32",
            ),
            (
                "192.0.2.10:99-1",
                "the range 99-1 is empty",
                "the lower port comes first: `1-99`",
            ),
            (
                "192.0.2.10:0-9",
                "`0` is no port",
                "a port is a number from 1 to 65535",
            ),
        ] {
            let refused = refused::<ServiceAddress>(text);
            assert_eq!((refused.0.as_str(), refused.1.as_str()), (message, hint));
        }
        for text in [
            "[192.0.2.0/24]:1",
            "2001:db8::/64:1",
            "192.0.2.0/+8:1",
            "/8:1",
            "a/8:1",
        ] {
            refused::<ServiceAddress>(text);
        }
    }

    #[test]
    fn backends_may_leave_their_port_out() {
        for (text, port) in [
            ("10.0.0.11", BackendPort::Unnamed),
            ("10.0.0.11:*", BackendPort::Every),
            ("10.0.0.11:80", BackendPort::Number(80)),
            ("[2001:db8::11]", BackendPort::Unnamed),
            ("[2001:db8::11]:*", BackendPort::Every),
        ] {
            let address: BackendAddress = text.parse().unwrap();
            assert_eq!((address.port, address.to_string()), (port, text.to_owned()));
        }
        let v6: BackendAddress = "2001:db8::11".parse().unwrap();
        assert_eq!(v6.to_string(), "[2001:db8::11]");
        let (message, hint) = refused::<BackendAddress>("2001:db8::1:80");
        assert!(message.contains("lacks the brackets"), "{message}");
        assert_eq!(hint, "write `[2001:db8::1]:80`");
    }

    #[test]
    fn a_source_is_an_address_or_a_prefix() {
        for text in ["10.0.0.1", "10.0.0.0/24", "2001:db8::/112"] {
            assert_eq!(parse_source(text).unwrap().to_string(), text);
        }
        let reason = parse_source("10.0.0.1/24").unwrap_err();
        assert_eq!(reason.hint.unwrap(), "write `10.0.0.0/24`");
        for text in ["10.0.0.1:80", "", "10.0.0.0/", "eth0", "[2001:db8::1]"] {
            parse_source(text).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(ip: IpAddr, length: u8, a: u16, b: u16) {
            let prefix = AddressPrefix::new(ip, length);
            let ports = PortRange::new(a.min(b).max(1), a.max(b).max(1)).unwrap();
            let address = ServiceAddress { prefix, ports };
            prop_assert_eq!(address.to_string().parse(), Ok(address));
            for port in [BackendPort::Number(a.max(1)), BackendPort::Every, BackendPort::Unnamed] {
                let backend = BackendAddress { ip, port };
                prop_assert_eq!(backend.to_string().parse(), Ok(backend));
            }
        }

        #[test]
        fn no_text_is_too_strange(text in "[0-9a-f.:/*\\[\\]-]{0,24}") {
            for text in [text.clone(), format!("{text}:80"), format!("192.0.2.0/{text}")] {
                let _ = text.parse::<ServiceAddress>().map(|address| {
                    assert_eq!(address.to_string().parse(), Ok(address));
                });
                let _ = text.parse::<BackendAddress>().map(|address| {
                    assert_eq!(address.to_string().parse(), Ok(address));
                });
            }
        }
    }
}
