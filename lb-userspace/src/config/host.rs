//! What the host, not the file, says about a configuration.

use std::{fs, io, ops::RangeInclusive};

use super::Config;

const LOCAL_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Ports that the kernel hands out to local sockets, IPv4 and IPv6 alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPorts {
    range: RangeInclusive<u16>,
    /// Parts of the range that the kernel leaves alone.
    reserved: Vec<RangeInclusive<u16>>,
}

impl LocalPorts {
    /// Those of this network namespace.
    ///
    /// # Errors
    ///
    /// When `/proc/sys` cannot be read.
    pub fn of_host() -> io::Result<Self> {
        let range = fs::read_to_string(LOCAL_RANGE)?;
        let reserved = fs::read_to_string(RESERVED)?;
        Self::parse(&range, &reserved)
            .ok_or_else(|| io::Error::other(format!("`{range}` is no range of ports")))
    }

    fn parse(range: &str, reserved: &str) -> Option<Self> {
        let mut bounds = range.split_whitespace().map(str::parse);
        let range = bounds.next()?.ok()?..=bounds.next()?.ok()?;
        let reserved = reserved
            .trim()
            .split(',')
            .filter(|part| !part.is_empty())
            .map(|part| {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                Some(first.parse().ok()?..=last.parse().ok()?)
            })
            .collect::<Option<_>>()?;
        Some(Self { range, reserved })
    }

    /// How many ports of `range` a local socket may be given as well.
    #[must_use]
    pub fn shared_with(&self, range: &RangeInclusive<u16>) -> usize {
        range
            .clone()
            .filter(|port| self.range.contains(port))
            .filter(|port| !self.reserved.iter().any(|part| part.contains(port)))
            .count()
    }
}

/// Which full-NAT services would share source ports with sockets of this host, as
/// messages. A reply to such a socket could be taken for one to a client.
#[must_use]
pub fn port_conflicts(config: &Config, local: &LocalPorts) -> Vec<String> {
    config
        .services
        .iter()
        .filter(|service| service.mode == crate::state::Mode::FullNat)
        .filter_map(|service| {
            let shared = local.shared_with(&service.source_ports);
            let (first, last) = (service.source_ports.start(), service.source_ports.end());
            (shared > 0).then(|| {
                format!(
                    "service `{}` uses source ports {first}-{last}, {shared} of which this host \
                     gives to its own sockets; keep them apart with `source-ports`, or with \
                     `sysctl net.ipv4.ip_local_reserved_ports={first}-{last}`",
                    service.name
                )
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_ranges_keep_clear_of_each_other() {
        let local = LocalPorts::parse("32768\t60999\n", "\n").unwrap();
        assert_eq!(local.shared_with(&crate::state::FULL_NAT_PORTS), 0);
    }

    #[test]
    fn reserved_ports_are_not_shared() {
        let local = LocalPorts::parse("100 199", "110,120-129\n").unwrap();
        assert_eq!(local.shared_with(&(0..=99)), 0);
        assert_eq!(local.shared_with(&(100..=109)), 10);
        assert_eq!(local.shared_with(&(105..=114)), 9);
        assert_eq!(local.shared_with(&(120..=129)), 0);
        assert_eq!(local.shared_with(&(190..=65535)), 10);
    }

    #[test]
    fn the_host_tells() {
        LocalPorts::of_host().unwrap();
    }
}
