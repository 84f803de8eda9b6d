//! A world: a configuration, packets in it, and whether program and model agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    sync::Arc,
};

use anyhow::{Result, anyhow};
use etherparse::LaxPacketHeaders;
use lb_model::{
    Model,
    outcome::{Action, Outcome},
    world::World,
};
use lb_tests::{Bench, difference, rng::Rng};
use lb_userspace::datapath::{FlowTables, TestRun, Verdict};

use crate::{
    configuration,
    maps::maps,
    state::{self, Counted},
    traffic::{Incoming, Traffic},
};

/// Packets of a world.
pub(crate) const WORLD: u64 = 8_192;
/// Packets after which the counters are compared.
const BATCH: u64 = 256;
/// Packets after which the flow tables are compared.
const FLOWS: u64 = 2_048;
/// Entries of each flow table: more than packets of a world.
const MAX_FLOWS: u32 = 16_384;
/// Ticks between two worlds: more than a fragment is remembered.
const REST: u32 = 1_000;

/// What came of the packets, for people to see that all kinds were there.
#[derive(Debug, Default)]
pub(crate) struct Figures(BTreeMap<String, u64>);

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in &self.0 {
            writeln!(formatter, "{count:>10}  {name}")?;
        }
        Ok(())
    }
}

/// The program, and worlds for it.
pub(crate) struct Fuzzer {
    bench: Bench,
    tables: FlowTables,
    clock: u32,
    /// What came of the packets.
    pub(crate) figures: Figures,
}

/// A mismatch: after how many packets it showed, and what it is.
struct Mismatch {
    packets: u64,
    what: String,
    /// It showed in what is compared now and then, so an earlier packet may be the cause.
    late: bool,
}

impl Fuzzer {
    pub(crate) fn new() -> Self {
        let mut bench = Bench::with_max_flows(MAX_FLOWS, MAX_FLOWS);
        let tables = bench.datapath().flow_tables();
        Self {
            tables: tables.expect("handles to the flow tables"),
            bench,
            clock: 0,
            figures: Figures::default(),
        }
    }

    /// Runs the packets of a world.
    ///
    /// # Errors
    ///
    /// The first packet of which program and model made something else.
    pub(crate) fn world(&mut self, seed: u64, count: u64) -> Result<()> {
        let Err(mut mismatch) = self.attempt(seed, count, false)? else {
            return Ok(());
        };
        if mismatch.late {
            // Once more, and after every packet all is compared.
            match self.attempt(seed, mismatch.packets, true)? {
                Err(first) => mismatch = first,
                Ok(()) => mismatch.what += "\n(not when compared after every packet)",
            }
        }
        let Mismatch { packets, what, .. } = mismatch;
        Err(anyhow!(
            "seed {seed}, packet {packets}: {what}\nto repeat it: \
             LB_MODEL_SEED={seed} LB_MODEL_PACKETS={packets} cargo test -p lb-tests --test model"
        ))
    }

    fn attempt(
        &mut self,
        seed: u64,
        count: u64,
        careful: bool,
    ) -> Result<std::result::Result<(), Mismatch>> {
        let mut rng = Rng::new(seed);
        let mut world = configuration::random(&mut rng);
        self.bench.reset(&maps(&world))?;
        self.clock += REST;
        self.bench.set_clock(self.clock)?;
        let before = Counted::read(self.bench.datapath())?;
        let mut model = Model::new(Arc::new(world.clone()));
        model.set_clock(self.clock);
        let mut traffic = Traffic::default();
        for packets in 1..=count {
            self.happen(&mut rng, &mut world, &mut model, &traffic)?;
            let incoming = traffic.next(&mut rng, &model);
            let run = self.bench.send(incoming.ifindex, &incoming.frame)?;
            let newest = model.flows.newest();
            let outcome = model.receive(incoming.ifindex, &incoming.frame, &|client| {
                state::source_port(&self.tables, client)
            });
            let lines = compare(&incoming, &outcome, &run);
            if !lines.is_empty() {
                let what = describe(&incoming, &outcome, &run, &lines, &world);
                let late = false;
                return Ok(Err(Mismatch {
                    packets,
                    what,
                    late,
                }));
            }
            if !careful {
                self.figures.add(&incoming, &outcome);
            }
            if newest != model.flows.newest() {
                model
                    .flows
                    .newest()
                    .inspect(|flow| traffic.began(&mut rng, *flow));
            }
            let due = |interval| careful || packets % interval == 0 || packets == count;
            let mut lines = Vec::new();
            if due(BATCH) {
                let now = Counted::read(self.bench.datapath())?;
                lines.extend(now.compare(&before, &model.totals));
            }
            if due(FLOWS) {
                lines.extend(state::compare_flows(
                    &mut self.tables,
                    &model.flows,
                    &pools(&world),
                )?);
            }
            if !lines.is_empty() {
                let what = describe(&incoming, &outcome, &run, &lines, &world);
                let late = true;
                return Ok(Err(Mismatch {
                    packets,
                    what,
                    late,
                }));
            }
        }
        Ok(Ok(()))
    }

    /// What happens between packets: time passes, flows are swept, things change.
    fn happen(
        &mut self,
        rng: &mut Rng,
        world: &mut World,
        model: &mut Model,
        traffic: &Traffic,
    ) -> Result<()> {
        if rng.below(64) == 0 {
            self.clock += rng.weighted(&[(80, 1), (10, 20), (10, 310)]);
            self.bench.set_clock(self.clock)?;
            model.set_clock(self.clock);
        }
        if rng.below(32) == 0 {
            let tokens = rng.range(1, 3) as u32;
            self.bench.fill_buckets(tokens)?;
            model.buckets.fill(tokens);
        }
        if rng.below(48) == 0 && !traffic.flows.is_empty() {
            let client = *rng.pick(&traffic.flows);
            state::sweep(&mut self.tables, &client)?;
            model.flows.remove(&client);
        }
        if rng.below(700) == 0 {
            configuration::change(rng, world);
            self.bench.enter(&maps(world))?;
            model.configure(Arc::new(world.clone()));
        }
        Ok(())
    }
}

/// Ids of the port pools.
fn pools(world: &World) -> BTreeSet<u32> {
    let pools = world.backends.values().map(|backend| backend.pool);
    pools.filter(|pool| *pool != 0).collect()
}

impl Figures {
    fn add(&mut self, incoming: &Incoming, outcome: &Outcome) {
        let name = match (outcome.action, outcome.drop) {
            (_, Some(drop)) => drop.reason.name(),
            (Action::Pass, None) => "passed",
            (_, None) => "sent",
        };
        let name = format!("{}: {name}", incoming.label);
        *self.0.entry(name).or_default() += 1;
    }
}

/// What differs between what the model says of a packet and what the program did.
fn compare(incoming: &Incoming, outcome: &Outcome, run: &TestRun) -> Vec<String> {
    let mut lines = Vec::new();
    let expected = match outcome.action {
        Action::Pass => Verdict::Pass,
        Action::Drop => Verdict::Drop,
        Action::Transmit => Verdict::Tx,
        Action::Redirect(_) => Verdict::Redirect,
    };
    if expected != run.verdict {
        lines.push(format!(
            "verdict: expected {expected:?}, got {:?}",
            run.verdict
        ));
    }
    match &outcome.frame {
        Some(expected) => lines.extend(difference(expected, &run.frame)),
        // What is in the buffer of a packet that is gone is nobody's business, but a
        // packet that is not ours must never change.
        None if run.verdict == Verdict::Pass => {
            lines.extend(difference(&incoming.frame, &run.frame));
        }
        None => {}
    }
    lines.extend(outcome.complaint.clone());
    lines
}

/// All about a packet that program and model don't agree on.
fn describe(
    incoming: &Incoming,
    outcome: &Outcome,
    run: &TestRun,
    lines: &[String],
    world: &World,
) -> String {
    let mut text = format!("{}, by interface {}\n", incoming.label, incoming.ifindex);
    for line in lines {
        let _infallible = writeln!(text, "  {line}");
    }
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let _infallible = write!(
        text,
        "frame: {}\nit is: {:?}\nmodel: {:?}, drop {:?}\nprogram: {:?} {}\n",
        hex(&incoming.frame),
        LaxPacketHeaders::from_ethernet(&incoming.frame),
        outcome.action,
        outcome.drop,
        run.verdict,
        hex(&run.frame),
    );
    for service in &world.services {
        let _infallible = writeln!(
            text,
            "service {}: {:?} {:?} {} {:?}",
            service.id, service.address, service.ports, service.protocol, service.mode
        );
        let _infallible = writeln!(
            text,
            "  allow {:?} deny {:?} new flows {:?} {:?}",
            service.allow, service.deny, service.new_per_source, service.new_per_service
        );
    }
    for (id, backend) in &world.backends {
        let _infallible = writeln!(text, "backend {id}: {backend:?}");
    }
    let _infallible = writeln!(text, "interfaces: {:?}", world.interfaces);
    text
}
