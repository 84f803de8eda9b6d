//! The program in the kernel, and cases run through it.

use std::{collections::BTreeMap, io::Write as _, net::IpAddr};

use lb_common::{
    decap::{GUE_PORT, Passed, VipCounters},
    drop_reason::DropReason,
};
use lb_tests::{CLIENT_IF, Tunnel, difference, in_network_namespace};
use lb_userspace::datapath::{Decap, Verdict};

/// A frame, and what becomes of it.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) ifindex: u32,
    pub(crate) frame: Vec<u8>,
    pub(crate) outcome: Outcome,
}

/// What becomes of a frame.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// The stack gets this frame, counted for the VIP of this index. Its bytes are those
    /// of the inner packet.
    Unwrapped {
        frame: Vec<u8>,
        vip: u32,
        bytes: usize,
    },
    /// The stack gets it as it came; nothing is counted.
    Foreign,
    /// The same, but counted.
    Left(Passed),
    /// It is gone.
    Dropped(DropReason),
}

impl Case {
    pub(crate) fn new(name: impl Into<String>, frame: Vec<u8>, outcome: Outcome) -> Self {
        Self {
            name: name.into(),
            ifindex: CLIENT_IF,
            frame,
            outcome,
        }
    }
}

/// VIPs by index: the last two of each family lie in the one before them.
pub(crate) const VIPS: [(&str, u8); 6] = [
    ("192.0.2.10", 32),
    ("2001:db8:2::10", 128),
    ("203.0.113.0", 24),
    ("203.0.113.64", 26),
    ("2001:db8:9::", 48),
    ("2001:db8:9:8000::", 49),
];

/// Who may send tunnels, by [`CLIENT_IF`] alone.
const SOURCES: [(&str, u8); 3] = [("10.0.0.0", 24), ("172.16.0.9", 32), ("2001:db8:3::", 64)];

/// All that the program counts.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    vips: BTreeMap<u32, VipCounters>,
    drops: BTreeMap<&'static str, u64>,
    passed: BTreeMap<&'static str, u64>,
}

impl Counts {
    fn read(program: &Decap) -> Self {
        // Some that are nobody's, too.
        let vips = (0..VIPS.len() as u32 + 2).chain([lb_common::decap::MAX_VIPS - 1]);
        Self {
            vips: vips
                .map(|vip| (vip, program.counters(vip).expect("counters")))
                .collect(),
            drops: DropReason::ALL
                .iter()
                .map(|reason| (reason.name(), program.dropped(*reason).expect("drops")))
                .collect(),
            passed: Passed::ALL
                .iter()
                .map(|why| (why.name(), program.passed(*why).expect("passed")))
                .collect(),
        }
    }

    /// Adds what an outcome should count.
    fn expect(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Unwrapped { vip, bytes, .. } => {
                let counters = self.vips.get_mut(vip).expect("a VIP of the bench");
                counters.packets += 1;
                counters.bytes += *bytes as u64;
            }
            Outcome::Foreign => {}
            Outcome::Left(why) => *self.passed.get_mut(why.name()).expect("all are there") += 1,
            Outcome::Dropped(reason) => {
                *self.drops.get_mut(reason.name()).expect("all are there") += 1;
            }
        }
    }
}

/// Runs a table of cases, with GUE at its own port.
pub(crate) fn run(table: &str, cases: &[Case]) {
    run_at_port(table, GUE_PORT, cases);
}

/// Runs a table of cases, with GUE at another port.
pub(crate) fn run_at_port(table: &str, gue_port: u16, cases: &[Case]) {
    in_network_namespace(|| {
        let mut program = load(gue_port);
        let failures: Vec<_> = cases
            .iter()
            .filter_map(|case| failure(&mut program, case))
            .collect();
        // Past the test runner, which shows the output of failed tests alone.
        let _unseen = writeln!(
            std::io::stderr(),
            "decap, {table}: {} cases, {} failed",
            cases.len(),
            failures.len()
        );
        assert!(!cases.is_empty());
        assert!(
            failures.is_empty(),
            "{} of {} cases of `{table}` failed:\n\n{}",
            failures.len(),
            cases.len(),
            failures[..failures.len().min(8)].join("\n\n")
        );
    });
}

fn load(gue_port: u16) -> Decap {
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    let mut program =
        Decap::load(gue_port).expect("these tests load the XDP program and must run as root");
    for host in [IpAddr::from(Tunnel::END_V4), Tunnel::END_V6.into()] {
        program.set_local(host).expect("a local address");
    }
    for (source, length) in SOURCES {
        program
            .set_source(CLIENT_IF, address(source), length)
            .expect("a source");
    }
    for (index, (vip, length)) in VIPS.into_iter().enumerate() {
        program
            .set_vip(index as u32, address(vip), length)
            .expect("a VIP");
    }
    program
}

/// What went otherwise than expected.
fn failure(program: &mut Decap, case: &Case) -> Option<String> {
    let mut expected = Counts::read(program);
    expected.expect(&case.outcome);
    let run = program
        .test_run(&case.frame, case.ifindex)
        .unwrap_or_else(|error| panic!("{}: {error:?}", case.name));
    let counts = Counts::read(program);

    let mut lines = Vec::new();
    let (verdict, frame) = match &case.outcome {
        Outcome::Unwrapped { frame, .. } => (Verdict::Pass, Some(frame)),
        Outcome::Foreign | Outcome::Left(_) => (Verdict::Pass, Some(&case.frame)),
        // What is in the buffer of a packet that is gone is nobody's business.
        Outcome::Dropped(_) => (Verdict::Drop, None),
    };
    if run.verdict != verdict {
        lines.push(format!(
            "verdict: expected {verdict:?}, got {:?}",
            run.verdict
        ));
    }
    if let Some(frame) = frame {
        lines.extend(difference(frame, &run.frame));
    }
    if counts != expected {
        lines.push(format!("counters: expected {expected:?}\n  got {counts:?}"));
    }
    (!lines.is_empty()).then(|| format!("{}\n  {}", case.name, lines.join("\n  ")))
}
