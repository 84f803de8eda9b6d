//! Sets of addresses and of ports: what a service can take beyond one of each.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The addresses that begin with the same bits. The others are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressPrefix {
    address: IpAddr,
    length: u8,
}

impl AddressPrefix {
    /// The addresses that have the first `length` bits of `address`. `length` is at most
    /// the bits that an address has; what is more counts as that.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Self {
        let length = length.min(bits(address));
        let open = u32::from(bits(address) - length);
        let address = match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(open).unwrap_or(0);
                Ipv4Addr::from_bits(address.to_bits() & mask).into()
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(open).unwrap_or(0);
                Ipv6Addr::from_bits(address.to_bits() & mask).into()
            }
        };
        Self { address, length }
    }

    /// The first of its addresses, and the only one if it is an address.
    #[must_use]
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// The last of its addresses.
    #[must_use]
    pub fn last(self) -> IpAddr {
        let open = u32::from(self.host_bits());
        match self.address {
            IpAddr::V4(first) => {
                let mask = u32::MAX.checked_shl(open).unwrap_or(0);
                Ipv4Addr::from_bits(first.to_bits() | !mask).into()
            }
            IpAddr::V6(first) => {
                let mask = u128::MAX.checked_shl(open).unwrap_or(0);
                Ipv6Addr::from_bits(first.to_bits() | !mask).into()
            }
        }
    }

    /// How many bits its addresses have in common.
    #[must_use]
    pub const fn length(self) -> u8 {
        self.length
    }

    /// How many bits its addresses do not have in common.
    #[must_use]
    pub const fn host_bits(self) -> u8 {
        bits(self.address) - self.length
    }

    /// Whether it is a single address.
    #[must_use]
    pub const fn is_address(self) -> bool {
        self.host_bits() == 0
    }

    /// Whether `address` is one of its addresses.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Self::new(address, self.length) == self
    }
}

impl From<IpAddr> for AddressPrefix {
    fn from(address: IpAddr) -> Self {
        Self {
            address,
            length: bits(address),
        }
    }
}

/// An address, or `192.0.2.0/24`.
impl fmt::Display for AddressPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_address() {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.length)
        }
    }
}

/// How many bits an address has.
const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// Ports that follow each other: at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self {
        first: 0,
        last: u16::MAX,
    };

    /// The ports from `first` to `last`; `None` where there is none.
    #[must_use]
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first <= last {
            Some(Self { first, last })
        } else {
            None
        }
    }

    /// The lowest port.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }

    /// How many there are.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.last as u32 - self.first as u32 + 1
    }

    /// The port, if it is one.
    #[must_use]
    pub const fn single(self) -> Option<u16> {
        if self.first == self.last {
            Some(self.first)
        } else {
            None
        }
    }

    /// Whether all ports of `other` are in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Whether any port is in both.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl From<u16> for PortRange {
    fn from(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }
}

/// A port, `8000-8099`, or `*` for every port.
impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.single() {
            Some(port) => write!(f, "{port}"),
            None if *self == Self::ALL => f.write_str("*"),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// Some ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet {
    /// In order, with a gap between each two.
    ranges: Vec<PortRange>,
}

impl PortSet {
    /// The ports as ranges, in order, as few as there can be.
    pub fn ranges(&self) -> impl Iterator<Item = PortRange> {
        self.ranges.iter().copied()
    }

    /// Whether all ports of `range` are in it.
    #[must_use]
    pub fn covers(&self, range: PortRange) -> bool {
        let behind = self.ranges.partition_point(|own| own.last < range.first);
        self.ranges
            .get(behind)
            .is_some_and(|own| own.contains(range))
    }

    /// The ports that are in it or in `other`.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.ranges().chain(other.ranges()).collect()
    }
}

impl FromIterator<PortRange> for PortSet {
    fn from_iter<I: IntoIterator<Item = PortRange>>(ranges: I) -> Self {
        let mut given: Vec<_> = ranges.into_iter().collect();
        given.sort_unstable();
        let mut ranges: Vec<PortRange> = Vec::with_capacity(given.len());
        for range in given {
            match ranges.last_mut() {
                Some(before) if u32::from(range.first) <= u32::from(before.last) + 1 => {
                    before.last = before.last.max(range.last);
                }
                _ => ranges.push(range),
            }
        }
        Self { ranges }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn prefix(address: &str, length: u8) -> AddressPrefix {
        AddressPrefix::new(address.parse().unwrap(), length)
    }

    #[test]
    fn a_prefix_keeps_the_first_bits_alone() {
        for (address, length, shown) in [
            ("192.0.2.10", 24, "192.0.2.0/24"),
            ("192.0.2.10", 31, "192.0.2.10/31"),
            ("192.0.2.10", 32, "192.0.2.10"),
            ("192.0.2.10", 0, "0.0.0.0/0"),
            ("2001:db8::10", 64, "2001:db8::/64"),
            ("2001:db8::10", 0, "::/0"),
            ("2001:db8::10", 128, "2001:db8::10"),
        ] {
            assert_eq!(prefix(address, length).to_string(), shown);
        }
    }

    #[test]
    fn a_prefix_has_the_addresses_of_its_family_that_begin_like_it() {
        let net = prefix("192.0.2.0", 24);
        assert!(net.contains([192, 0, 2, 255].into()));
        assert!(!net.contains([192, 0, 3, 0].into()));
        assert!(!prefix("0.0.0.0", 0).contains(Ipv6Addr::UNSPECIFIED.into()));
        assert!(prefix("::", 0).contains(Ipv6Addr::LOCALHOST.into()));
        assert_eq!(net.last(), IpAddr::from([192, 0, 2, 255]));
        assert_eq!(prefix("::", 0).last(), IpAddr::from([0xff; 16]));
        assert_eq!(prefix("2001:db8::1", 128).last().to_string(), "2001:db8::1");
    }

    #[test]
    fn ranges_overlap_at_their_ends() {
        let range = |first, last| PortRange::new(first, last).unwrap();
        assert!(range(1, 5).overlaps(range(5, 9)));
        assert!(!range(1, 5).overlaps(range(6, 9)));
        assert!(range(1, 5).contains(range(1, 5)));
        assert!(!range(1, 5).contains(range(5, 6)));
        assert_eq!(PortRange::new(2, 1), None);
        assert_eq!(PortRange::ALL.count(), 65_536);
    }

    fn in_any(ranges: &[PortRange], port: u16) -> bool {
        ranges.iter().any(|range| range.contains(port.into()))
    }

    proptest! {
        #[test]
        fn a_set_has_the_ports_of_its_ranges(
            pairs in vec((0..200_u16, 0..200_u16), 0..8),
            probe in (0..200_u16, 0..200_u16),
        ) {
            let range = |(a, b): (u16, u16)| PortRange::new(a.min(b), a.max(b)).unwrap();
            let ranges: Vec<_> = pairs.into_iter().map(range).collect();
            let set: PortSet = ranges.iter().copied().collect();
            for port in 0..=200 {
                prop_assert_eq!(set.covers(port.into()), in_any(&ranges, port));
            }
            let probe = range(probe);
            let all = (probe.first()..=probe.last()).all(|port| in_any(&ranges, port));
            prop_assert_eq!(set.covers(probe), all);
            // As few as there can be, so that equal sets are the same.
            let apart = set.ranges.windows(2).all(|two| two[0].last + 1 < two[1].first);
            prop_assert!(apart, "{:?}", set);
            let (some, others) = ranges.split_at(ranges.len() / 2);
            let union = PortSet::from_iter(some.iter().copied())
                .union(&others.iter().copied().collect());
            prop_assert_eq!(union, set);
        }
    }
}
