//! What follows from facts. That the facts are what they are, `tests/tests/e2e/doctor.rs` shows.

use std::collections::BTreeSet;

use super::*;
use crate::{
    config::{self, Source},
    datapath::Driver,
    neighbour::Interface,
};

fn config(more: &str) -> Config {
    let text = format!(
        "interfaces = [\"eth0\"]\n{more}\n[[service]]\nname = \"web\"\naddress = \
         \"192.0.2.10:443\"\nmode = \"full-nat\"\n[[service.backend]]\naddress = \"10.0.0.11:8443\"\n"
    );
    config::read(&Source::new("lb.toml", text.as_bytes()))
        .config
        .unwrap()
}

/// A host on which nothing hurts.
fn well() -> Facts {
    Facts {
        is_root: true,
        kernel: Some((6, 1)),
        has_btf: true,
        has_bpf_file_system: true,
        cpus: 2,
        memory: Some(8_192),
        files: Some(4_096),
        interfaces: vec![Interface {
            ifindex: 2,
            name: "eth0".into(),
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: 1_500,
            up: true,
            bond: None,
        }],
        flow_tables: 1_000,
        ..Facts::default()
    }
}

fn ids(facts: &Facts, config: &Config) -> Vec<&'static str> {
    examine(facts, Some(config))
        .iter()
        .map(|finding| finding.id)
        .collect()
}

#[test]
fn nothing_is_found_where_nothing_hurts() {
    assert_eq!(examine(&well(), Some(&config(""))), []);
    assert_eq!(examine(&well(), None), []);
}

#[test]
fn what_no_lab_has_is_found() {
    let sysctl = |facts: &mut Facts, name: &str, value: &str| {
        facts.sysctls.insert(name.to_owned(), value.to_owned());
    };
    type Plant<'a> = (&'a str, &'a dyn Fn(&mut Facts));
    let cases: &[Plant<'_>] = &[
        ("kernel-version", &|facts| facts.kernel = Some((5, 15))),
        ("bpf-jit", &|facts| {
            sysctl(facts, "net/core/bpf_jit_enable", "0");
        }),
        ("btf", &|facts| facts.has_btf = false),
        ("bpf-file-system", &|facts| {
            facts.has_bpf_file_system = false;
        }),
        ("memory", &|facts| facts.flow_tables = 100_000),
        ("large-receive-offload", &|facts| {
            let driver = Driver {
                lro: Some(true),
                ..Driver::default()
            };
            facts.drivers.insert("eth0".into(), driver);
        }),
        ("vlan-offload", &|facts| {
            let driver = Driver {
                rx_vlan: Some(true),
                ..Driver::default()
            };
            facts.drivers.insert("eth0".into(), driver);
            facts.vlans = vec![(7, 2)];
        }),
        ("receive-queues", &|facts| {
            let driver = Driver {
                rx_queues: Some(1),
                ..Driver::default()
            };
            facts.drivers.insert("eth0".into(), driver);
        }),
        ("rights", &|facts| facts.is_root = false),
        ("interface-missing", &|facts| facts.interfaces.clear()),
    ];
    for (id, plant) in cases {
        let mut facts = well();
        plant(&mut facts);
        assert_eq!(ids(&facts, &config("")), [*id]);
    }
}

#[test]
fn the_worst_comes_first_and_every_finding_is_listed() {
    let mut facts = well();
    (facts.is_root, facts.kernel, facts.has_btf) = (false, Some((6, 0)), false);
    let found = examine(&facts, None);
    let severities: Vec<_> = found.iter().map(|finding| finding.severity).collect();
    assert_eq!(
        severities,
        [Severity::Error, Severity::Warning, Severity::Note]
    );
    assert!(
        found
            .iter()
            .all(|finding| CHECKS.iter().any(|check| check.id == finding.id))
    );
}

#[test]
fn checks_have_words_of_their_own_and_stand_in_the_documentation() {
    let ids: BTreeSet<_> = CHECKS.iter().map(|check| check.id).collect();
    assert_eq!(ids.len(), CHECKS.len());
    let rows: String = CHECKS
        .iter()
        .map(|check| format!("| `{}` | {} |\n", check.id, check.what))
        .collect();
    let page = include_str!("../../../docs/operations.md");
    assert!(
        page.contains(&rows),
        "docs/operations.md should have these rows:\n{rows}"
    );
}
