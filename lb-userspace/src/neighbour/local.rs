//! Which addresses are this host's own.

use crate::address::AddressPrefix;

/// How many addresses of a prefix the host takes packets to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locality {
    /// All of them.
    All,
    /// Some, and not all.
    Part,
    /// None.
    None,
}

impl Locality {
    /// That of `prefix` with these local routes, of the same family or not.
    pub(super) fn of(prefix: AddressPrefix, routes: &[AddressPrefix]) -> Self {
        if routes.iter().any(|route| covers(*route, prefix)) {
            return Self::All;
        }
        let mut inside: Vec<_> = routes
            .iter()
            .copied()
            .filter(|route| covers(prefix, *route))
            .collect();
        // A route comes behind the one that covers it.
        inside.sort_unstable();
        inside.dedup_by(|route, before| covers(*before, *route));
        // All addresses of IPv6 are one more than fit, and so are those of its halves.
        let addresses = inside
            .iter()
            .fold(0_u128, |sum, route| sum.wrapping_add(addresses(*route)));
        match inside.is_empty() {
            true => Self::None,
            false if addresses == self::addresses(prefix) => Self::All,
            false => Self::Part,
        }
    }
}

/// Whether all addresses of `inner` are addresses of `outer`.
fn covers(outer: AddressPrefix, inner: AddressPrefix) -> bool {
    outer.length() <= inner.length() && outer.contains(inner.address())
}

/// How many addresses the prefix has; 0 stands for 2^128.
fn addresses(prefix: AddressPrefix) -> u128 {
    1_u128.checked_shl(prefix.host_bits().into()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> AddressPrefix {
        let (address, length) = text.split_once('/').unwrap();
        AddressPrefix::new(address.parse().unwrap(), length.parse().unwrap())
    }

    #[test]
    fn routes_may_be_wider_narrower_or_together_as_wide() {
        for (vip, routes, expected) in [
            ("192.0.2.0/24", "", Locality::None),
            ("192.0.2.0/24", "2001:db8::/32 192.0.3.0/24", Locality::None),
            ("192.0.2.0/24", "192.0.2.0/24", Locality::All),
            ("192.0.2.0/24", "192.0.0.0/16", Locality::All),
            ("192.0.2.0/24", "192.0.2.0/32", Locality::Part),
            ("192.0.2.0/24", "192.0.2.200/32", Locality::Part),
            ("192.0.2.0/24", "192.0.2.0/25 192.0.2.128/25", Locality::All),
            (
                "192.0.2.0/24",
                "192.0.2.0/25 192.0.2.0/26 192.0.2.64/26",
                Locality::Part,
            ),
            (
                "192.0.2.0/30",
                "192.0.2.3/32 192.0.2.1/32 192.0.2.0/32 192.0.2.2/32 192.0.2.2/32",
                Locality::All,
            ),
            ("2001:db8:2::/64", "2001:db8:2::10/128", Locality::Part),
            ("::/0", "::/1 8000::/1", Locality::All),
            ("::/0", "::/1", Locality::Part),
        ] {
            let prefixes: Vec<_> = routes.split_whitespace().map(prefix).collect();
            assert_eq!(
                Locality::of(prefix(vip), &prefixes),
                expected,
                "{vip} of {routes}"
            );
        }
    }
}
