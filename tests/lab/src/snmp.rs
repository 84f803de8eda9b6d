//! The protocol counters of a kernel (`/proc/net/snmp`, `netstat` and `snmp6`).

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result};

/// Counters by name: `Udp.InCsumErrors`, `Ip.InDelivers`, `IpExt.InCsumErrors`, ... for
/// IPv4, `Udp6.InCsumErrors`, `Ip6.InDelivers`, ... for IPv6; `Tcp.*` counts both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snmp(BTreeMap<String, i64>);

impl Snmp {
    /// Reads those of the calling thread's network namespace.
    pub(crate) fn read() -> Result<Self> {
        // `/proc/net` is that of the process, which is its first thread's.
        let read = |file: &str| {
            let path = format!("/proc/thread-self/net/{file}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let tables = read("snmp")? + &read("netstat")?;
        Ok(Self::parse(&tables, &read("snmp6")?))
    }

    fn parse(tables: &str, snmp6: &str) -> Self {
        let mut counters = BTreeMap::new();
        // Two lines for each protocol: names, then numbers.
        for lines in tables.lines().collect::<Vec<_>>().chunks_exact(2) {
            let protocol = lines[0].split(':').next().unwrap_or_default();
            let names = lines[0].split_whitespace().skip(1);
            let values = lines[1].split_whitespace().skip(1);
            for (name, value) in names.zip(values) {
                counters.insert(format!("{protocol}.{name}"), value);
            }
        }
        // One line for each counter: `Udp6InDatagrams 12`.
        for line in snmp6.lines() {
            let mut words = line.split_whitespace();
            if let (Some(name), Some(value)) = (words.next(), words.next())
                && let Some((protocol, name)) = name.split_once('6')
            {
                counters.insert(format!("{protocol}6.{name}"), value);
            }
        }
        let number = |(name, value): (String, &str)| Some((name, value.parse().ok()?));
        Self(counters.into_iter().filter_map(number).collect())
    }

    /// The counter of this name.
    ///
    /// # Panics
    ///
    /// When the kernel has no such counter: a test that compares it would always
    /// succeed.
    #[must_use]
    pub fn get(&self, name: &str) -> i64 {
        *self
            .0
            .get(name)
            .unwrap_or_else(|| panic!("the kernel has no counter `{name}`"))
    }

    /// How much the counter of this name has grown since `earlier`.
    ///
    /// # Panics
    ///
    /// When the kernel has no such counter.
    #[must_use]
    pub fn since(&self, earlier: &Self, name: &str) -> i64 {
        self.get(name) - earlier.get(name)
    }

    /// Packets that this host has refused for a wrong checksum, in whatever
    /// protocol.
    #[must_use]
    pub fn checksum_errors(&self) -> i64 {
        [
            "IpExt.InCsumErrors",
            "Tcp.InCsumErrors",
            "Udp.InCsumErrors",
            "Udp6.InCsumErrors",
            "Icmp.InCsumErrors",
            "Icmp6.InCsumErrors",
        ]
        .iter()
        .map(|name| self.get(name))
        .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let snmp = Snmp::parse(
            "Ip: Forwarding InReceives\nIp: 1 7\nTcp: RtoMin MaxConn InCsumErrors\nTcp: 200 -1 3\n",
            "Ip6InReceives      12\nUdp6InCsumErrors    4\n",
        );
        assert_eq!(snmp.get("Ip.InReceives"), 7);
        assert_eq!(snmp.get("Tcp.MaxConn"), -1);
        assert_eq!(snmp.get("Tcp.InCsumErrors"), 3);
        assert_eq!(snmp.get("Ip6.InReceives"), 12);
        assert_eq!(snmp.get("Udp6.InCsumErrors"), 4);
    }
}
