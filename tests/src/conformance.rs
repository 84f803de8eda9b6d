//! What the cases show, as a document: what becomes of which packet.

use std::fmt::Write as _;

use lb_common::{backend::Outer, counters::Counters, drop_reason::DropReason, service};
use lb_userspace::state::Mode;

use crate::{
    case::{Action, Case, Change, Outcome},
    flow::Kind,
};

const MODES: [Mode; 5] = [Mode::FullNat, Mode::Nat, Mode::Dsr, Mode::Ipip, Mode::Gue];

/// Sections of the document: families and protocols of clients' packets.
const SECTIONS: [(&str, bool, bool); 4] = [
    ("TCP over IPv4", false, true),
    ("UDP over IPv4", false, false),
    ("TCP over IPv6", true, true),
    ("UDP over IPv6", true, false),
];

const HEAD: &str = "\
# Conformance

What becomes of every kind of packet, by mode, family and protocol. The tests write this
file from their cases, of which each holds the whole packet and every counter to what
[forwarding.md](forwarding.md) says; they fail where it is not up to date
(`SNAPSHOTS=overwrite cargo test -p lb-tests --test packets conformance` writes it anew).

- *forwarded*: to the backend, translated or wrapped as the mode says.
- *returned*: translated back, to the client.
- *answered*: by the balancer itself.
- *passed*: to the host, byte for byte as it came, without a trace. In the modes without
  translation replies are of this kind, if they come by the balancer at all.
- A name such as `ttl-expired`: dropped, and counted as that; *told*: the sender gets an ICMP
  error, or an RST.

Where the families of a tunnel's outer header differ in what they do, each has its own words.
A cell is empty where a mode has no such thing: source ports are chosen with `full-nat` alone,
flows are translated in the NAT modes, slots have a second owner and headers an outer one in
the others.
";

/// One kind of packet.
struct Row<'a> {
    what: &'a str,
    verdicts: Vec<(Kind, Vec<String>)>,
}

/// The document that these cases make, in their order.
#[must_use]
pub fn document<'a>(cases: impl IntoIterator<Item = &'a Case>) -> String {
    let mut rows: Vec<Row<'_>> = Vec::new();
    let mut foreign: Vec<(&str, Vec<String>)> = Vec::new();
    for case in cases {
        let Some((kind, what)) = &case.subject else {
            match foreign.iter_mut().find(|(name, _)| *name == case.name) {
                Some((_, known)) => merge(known, verdicts(case)),
                None => foreign.push((&case.name, verdicts(case))),
            }
            continue;
        };
        let index = rows.iter().position(|row| row.what == what);
        let index = index.unwrap_or_else(|| {
            rows.push(Row {
                what,
                verdicts: Vec::new(),
            });
            rows.len() - 1
        });
        rows[index].verdicts.push((*kind, verdicts(case)));
    }

    let mut text = HEAD.to_owned();
    for (title, ipv6, tcp) in SECTIONS {
        let names = MODES.map(Mode::as_str).join(" | ");
        let line = "|---".repeat(MODES.len() + 1);
        let _ = write!(text, "\n## {title}\n\n| Packets | {names} |\n{line}|\n");
        for row in &rows {
            let of_mode = |mode: Mode| {
                let mode = service::Mode::from(mode);
                let wanted =
                    move |kind: &Kind| (kind.mode, kind.ipv6, kind.tcp) == (mode, ipv6, tcp);
                row.verdicts.iter().filter(move |(kind, _)| wanted(kind))
            };
            let cells = MODES.map(|mode| cell(of_mode(mode)));
            if cells.iter().any(|cell| !cell.is_empty()) {
                let _ = writeln!(text, "| {} | {} |", row.what, cells.join(" | "));
            }
        }
    }
    text.push_str("\n## What is for no service\n\n| Packets | |\n|---|---|\n");
    for (name, verdicts) in foreign {
        let _ = writeln!(text, "| {name} | {} |", verdicts.join(", "));
    }
    text
}

/// What one mode does, by the families of its outer header if they differ.
fn cell<'a>(verdicts: impl Iterator<Item = &'a (Kind, Vec<String>)>) -> String {
    let mut all: Vec<_> = verdicts
        .map(|(kind, verdicts)| (kind.outer, verdicts.join(", ")))
        .collect();
    all.dedup_by(|(_, one), (_, other)| one == other);
    match &all[..] {
        [] => String::new(),
        [(_, verdicts)] => verdicts.clone(),
        _ => all
            .iter()
            .map(|(outer, verdicts)| match outer {
                Outer::Ipv6 => format!("in IPv6: {verdicts}"),
                _ => format!("in IPv4: {verdicts}"),
            })
            .collect::<Vec<_>>()
            .join("; "),
    }
}

/// What becomes of the packets of a case, each verdict once.
fn verdicts(case: &Case) -> Vec<String> {
    let mut verdicts = Vec::new();
    for step in case.steps.iter().filter(|step| !step.is_preparation) {
        if let Action::Frame {
            outcome, change, ..
        } = &step.action
        {
            merge(&mut verdicts, [verdict(outcome, change)]);
        }
    }
    verdicts
}

fn verdict(outcome: &Outcome, change: &Change) -> String {
    let reason = change.drops.keys().next().map(|key| {
        let reason = DropReason::from_number(key.reason).expect("a reason that there is");
        format!("`{}`", reason.name())
    });
    let counts = |count: fn(&Counters) -> u64| change.counters.values().any(|of| count(of) > 0);
    match (outcome, reason) {
        (Outcome::Sent(..), Some(reason)) => format!("{reason}, told"),
        (_, Some(reason)) => reason,
        (Outcome::Passed, None) => "passed".to_owned(),
        (Outcome::Sent(..), None) if counts(|of| of.packets) => "forwarded".to_owned(),
        (Outcome::Sent(..), None) if counts(|of| of.reply_packets) => "returned".to_owned(),
        (Outcome::Sent(..), None) => "answered".to_owned(),
        (Outcome::Dropped, None) => panic!("a drop without a reason"),
    }
}

fn merge(verdicts: &mut Vec<String>, more: impl IntoIterator<Item = String>) {
    for verdict in more {
        if !verdicts.contains(&verdict) {
            verdicts.push(verdict);
        }
    }
}
