//! Prefixes of addresses.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use crate::{address::AddressPrefix, state::Reason};

/// An address, or all addresses that begin with the same bits (RFC 4632, RFC 4291).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The prefix of this length that `address` lies in. A length beyond the address is
    /// the whole of it.
    #[must_use]
    pub fn around(address: IpAddr, length: u8) -> Self {
        let length = length.min(bits(address));
        let address = match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                Ipv4Addr::from_bits(address.to_bits() & mask).into()
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                Ipv6Addr::from_bits(address.to_bits() & mask).into()
            }
        };
        Self { address, length }
    }

    /// Its first address.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// The number of bits that are the same in all its addresses.
    #[must_use]
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// Whether it is one address.
    #[must_use]
    pub const fn is_address(&self) -> bool {
        self.length == bits(self.address)
    }
}

impl From<Prefix> for AddressPrefix {
    fn from(prefix: Prefix) -> Self {
        Self::new(prefix.address, prefix.length)
    }
}

const fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_address() {
            self.address.fmt(f)
        } else {
            write!(f, "{}/{}", self.address, self.length)
        }
    }
}

impl FromStr for Prefix {
    type Err = Reason;

    fn from_str(text: &str) -> Result<Self, Reason> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| {
            Reason::new(
                format!("`{text}` is no address and no prefix"),
                "write 192.0.2.10, 2001:db8::10, 192.0.2.0/24 or 2001:db8::/64",
            )
        })?;
        let length = match length {
            None => bits(address),
            Some(length) => length
                .parse()
                .ok()
                .filter(|length| *length <= bits(address))
                .ok_or_else(|| {
                    Reason::new(
                        format!("`{text}` has no length of a prefix behind the `/`"),
                        format!("write a number from 0 to {}", bits(address)),
                    )
                })?,
        };
        let prefix = Self::around(address, length);
        if prefix.address != address {
            return Err(Reason::new(
                format!("`{text}` has bits behind the first {length}"),
                format!("write {prefix}, or {address} alone"),
            ));
        }
        Ok(prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read_as_they_are_shown() {
        for text in [
            "192.0.2.10",
            "192.0.2.0/24",
            "0.0.0.0/0",
            "128.0.0.0/1",
            "2001:db8::10",
            "2001:db8::/32",
            "::/0",
            "fe80::/10",
        ] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        for (text, shown) in [("10.0.0.1/32", "10.0.0.1"), ("::1/128", "::1")] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_prefix_is_refused_with_a_remedy() {
        for (text, remedy) in [
            ("", "write 192.0.2.10"),
            ("host", "write 192.0.2.10"),
            ("10.0.0.1/", "from 0 to 32"),
            ("10.0.0.1/33", "from 0 to 32"),
            ("10.0.0.1/-1", "from 0 to 32"),
            ("::/129", "from 0 to 128"),
            ("10.0.0.1/24", "write 10.0.0.0/24, or 10.0.0.1 alone"),
            (
                "2001:db8::1/64",
                "write 2001:db8::/64, or 2001:db8::1 alone",
            ),
        ] {
            let hint = text.parse::<Prefix>().unwrap_err().hint.unwrap();
            assert!(hint.contains(remedy), "{text}: {hint}");
        }
    }

    #[test]
    fn a_prefix_is_around_all_its_addresses() {
        let address = "10.11.12.13".parse().unwrap();
        for (length, shown) in [
            (0, "0.0.0.0/0"),
            (9, "10.0.0.0/9"),
            (31, "10.11.12.12/31"),
            (200, "10.11.12.13"),
        ] {
            assert_eq!(Prefix::around(address, length).to_string(), shown);
        }
    }
}
