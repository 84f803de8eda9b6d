//! The program in the kernel, and cases run through it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use lb_common::{
    Runtime,
    flow::{FlowValue, state},
    fragment::FRAGMENT_TICKS,
    ring::{RING_SIZE, Slot},
    service::ServiceOptions,
};
use lb_userspace::datapath::{
    Datapath, Family, FlowPair, FlowTable, FlowTables, LiveFlows, LogLevel, Options, Outlet,
    Pinned, Stored, TestRun, Verdict,
};

use crate::{
    case::{Action, Case, Change, Outcome},
    decode::difference,
    flow::Flow,
    snapshot::{BACKEND_IDS, Snapshot, Tuple},
    world::{INTERVAL, World},
};

/// Entries of each flow table unless a test needs another number.
const MAX_FLOWS: u32 = 64;

/// Failed cases that are told of in full.
const MAX_REPORTS: usize = 8;

/// The program, loaded. One serves many cases: before each its maps are brought to the
/// state that the case names.
pub struct Bench {
    datapath: Datapath,
    tables: FlowTables,
    world: World,
    /// The flow clock: a tick for each packet, so that what it touches shows.
    clock: u32,
    /// But for cases whose packets all come in one tick.
    is_clock_held: bool,
    /// Port pools that are there.
    pools: BTreeSet<u32>,
    /// Those from which nobody has taken a port yet: the next one is the first.
    fresh_pools: BTreeSet<u32>,
    /// What the maps held after the last packet, if nothing has changed them since.
    last: Option<Snapshot>,
}

impl Bench {
    /// Loads the program, with flow tables for 64 flows and as many that are not
    /// confirmed.
    ///
    /// # Panics
    ///
    /// Where the program can't be loaded: the tests need root and BPF.
    #[must_use]
    pub fn new() -> Self {
        Self::with_max_flows(MAX_FLOWS, MAX_FLOWS)
    }

    /// The same with flow tables for other numbers of flows; the second one is a power of
    /// two.
    ///
    /// # Panics
    ///
    /// Like [`Self::new`].
    #[must_use]
    pub fn with_max_flows(max_flows: u32, max_embryonic: u32) -> Self {
        let options = Options {
            max_flows,
            max_embryonic,
            log: LogLevel::Off,
        };
        let datapath = Datapath::load(&options);
        Self::of(datapath.expect("these tests load the XDP program and must run as root"))
    }

    /// The same with the maps pinned in this directory, on a BPF file system.
    ///
    /// # Panics
    ///
    /// Like [`Self::new`].
    #[must_use]
    pub fn pinned(max_flows: u32, max_embryonic: u32, directory: &Path) -> Self {
        let options = Options {
            max_flows,
            max_embryonic,
            log: LogLevel::Off,
        };
        let datapath =
            Pinned::open(directory).and_then(|pinned| Datapath::load_pinned(&options, pinned));
        Self::of(datapath.expect("these tests load the XDP program and must run as root"))
    }

    fn of(datapath: Datapath) -> Self {
        let tables = datapath.flow_tables().expect("handles to the flow tables");
        Self {
            datapath,
            tables,
            world: World::default(),
            clock: 0,
            is_clock_held: false,
            pools: BTreeSet::new(),
            fresh_pools: BTreeSet::new(),
            last: None,
        }
    }

    /// Runs the cases of a table and says how many there were.
    ///
    /// # Panics
    ///
    /// When all have run, if any failed, with what was wrong with each.
    pub fn run_all(&mut self, table: &str, cases: &[Case]) {
        self.report(table, cases, Self::run);
    }

    /// Like [`Self::run_all`], for cases that all begin where `before` ended, and leave
    /// that as it is.
    ///
    /// # Panics
    ///
    /// Like [`Self::run_all`].
    pub fn run_all_after(&mut self, before: &Case, table: &str, cases: &[Case]) {
        self.run(before).expect("what comes before");
        self.report(table, cases, Self::resume);
    }

    fn report(
        &mut self,
        table: &str,
        cases: &[Case],
        run: impl Fn(&mut Self, &Case) -> Result<()>,
    ) {
        let failures: Vec<String> = cases
            .iter()
            .filter_map(|case| run(self, case).err())
            .map(|error| format!("{error:#}"))
            .collect();
        // Past the test runner, which shows the output of failed tests alone.
        let _unseen = writeln!(
            std::io::stderr(),
            "{table}: {} cases, {} failed",
            cases.len(),
            failures.len()
        );
        assert!(
            failures.is_empty(),
            "{} of {} cases of `{table}` failed:\n\n{}",
            failures.len(),
            cases.len(),
            failures[..failures.len().min(MAX_REPORTS)].join("\n\n")
        );
        self.check_unused_counters();
    }

    /// No backend id that the cases do not use has counted anything.
    fn check_unused_counters(&self) {
        for id in [BACKEND_IDS.end, 1_000, 65_535] {
            let counters = self.datapath.counters(id).expect("counters");
            assert_eq!(counters, <_>::default(), "backend {id} is nobody's");
        }
    }

    /// Runs a case.
    ///
    /// # Errors
    ///
    /// The first step that went otherwise than expected, and how.
    pub fn run(&mut self, case: &Case) -> Result<()> {
        self.reset(&case.world)
            .with_context(|| format!("{}: preparing", case.name))?;
        // The first fragments of the case before are forgotten.
        self.clock += FRAGMENT_TICKS + 1;
        self.resume(case)
    }

    /// Runs the steps of a case in the world that is there, with its flows.
    ///
    /// # Errors
    ///
    /// Like [`Self::run`].
    pub fn resume(&mut self, case: &Case) -> Result<()> {
        let mut world = self.world.clone();
        self.clock += 1;
        self.is_clock_held = case.is_one_tick;
        for (index, step) in case.steps.iter().enumerate() {
            let done = match &step.action {
                Action::Frame {
                    ifindex,
                    frame,
                    outcome,
                    change,
                } => self.check(*ifindex, frame, outcome, change),
                Action::Reconcile(change) => {
                    change(&mut world);
                    self.enter(&world)
                }
                Action::Sweep(flow) => self.sweep(flow),
                Action::Wait(ticks) => self.set_clock(self.clock + ticks),
                Action::Fill(tokens) => self.fill_buckets(*tokens),
            };
            done.with_context(|| format!("{}, step {index} ({})", case.name, step.label))?;
        }
        Ok(())
    }

    /// Empties the flow tables and port pools and writes a world to the other maps.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses. So with all methods.
    pub fn reset(&mut self, world: &World) -> Result<()> {
        let live = Arc::clone(&self.tables.live);
        clear_pair(&mut self.tables.v4, &live)?;
        clear_pair(&mut self.tables.v6, &live)?;
        // So that all buckets are full.
        for id in std::mem::take(&mut self.world.guards).keys() {
            self.datapath.remove_guard(*id)?;
        }
        for key in self.datapath.source_buckets()?.into_keys() {
            self.datapath.remove_source_bucket(key)?;
        }
        self.enter(world)?;
        self.last = None;
        self.reset_pools(world)
    }

    /// Makes the port pools of a world, with all ports free.
    fn reset_pools(&mut self, world: &World) -> Result<()> {
        let wanted = world.pools();
        let gone: Vec<u32> = self.pools.difference(&wanted).copied().collect();
        if !gone.is_empty() {
            self.datapath.remove_port_pools(&gone)?;
            self.fresh_pools.retain(|pool| wanted.contains(pool));
        }
        let used: Vec<u32> = wanted.difference(&self.fresh_pools).copied().collect();
        if !used.is_empty() {
            self.datapath.create_port_pools(&used)?;
            self.fresh_pools.extend(used);
        }
        self.pools = wanted;
        Ok(())
    }

    /// Brings the maps from the world that they hold to another.
    pub fn enter(&mut self, world: &World) -> Result<()> {
        let old = std::mem::replace(&mut self.world, world.clone());
        for packets in missing(&old.matches(), &world.matches()) {
            self.datapath.remove_service(*packets)?;
        }
        for address in missing(&old.vips(), &world.vips()) {
            self.datapath.remove_vip(*address)?;
        }
        for id in missing(&old.backends, &world.backends) {
            self.datapath.remove_backend(*id)?;
        }
        for id in missing(&old.guards, &world.guards) {
            self.datapath.remove_guard(*id)?;
        }
        for source in missing(&old.sources, &world.sources) {
            self.datapath.remove_source(*source)?;
        }
        for ifindex in missing(&old.interfaces, &world.interfaces) {
            self.datapath.remove_interface(*ifindex)?;
        }
        let empty: Vec<(u32, u32)> = missing(&old.rings, &world.rings)
            .map(|id| (*id, RING_SIZE))
            .collect();
        if !empty.is_empty() {
            self.datapath.remove_rings(&empty)?;
        }
        for (ifindex, mtu) in changed(&old.interfaces, &world.interfaces) {
            let outlet = Outlet {
                ifindex: *ifindex,
                mtu: *mtu,
            };
            self.datapath.set_interface(*ifindex, outlet)?;
        }
        for (id, backend) in changed(&old.backends, &world.backends) {
            self.datapath.set_backend(*id, *backend)?;
        }
        // Those that are not wanted any more stay: flows have ports of them.
        let pools: Vec<u32> = world.pools().difference(&self.pools).copied().collect();
        if !pools.is_empty() {
            self.datapath.create_port_pools(&pools)?;
            self.pools.extend(&pools);
            self.fresh_pools.extend(pools);
        }
        for id in missing(&old.options, &world.options) {
            self.set_options(*id, ServiceOptions::default())?;
        }
        for (id, options) in changed(&old.options, &world.options) {
            self.set_options(*id, *options)?;
        }
        let rings: Vec<_> = changed(&old.slots(), &world.slots())
            .map(|(id, (ring, origin))| {
                let slot = |owner: &u32| Slot {
                    owner: *owner,
                    origin: *origin,
                };
                (*id, ring.iter().map(slot).collect())
            })
            .collect();
        if !rings.is_empty() {
            self.datapath.set_rings(&rings)?;
        }
        for id in missing(&old.server_ids, &world.server_ids) {
            self.datapath.remove_server_id(*id)?;
        }
        for (id, backend) in changed(&old.server_ids, &world.server_ids) {
            self.datapath.set_server_id(*id, *backend)?;
        }
        for (service, ids) in changed(&old.connection_ids, &world.connection_ids) {
            let options = ServiceOptions {
                connection_ids: *ids,
                ..self.datapath.options(*service)?
            };
            self.datapath.set_options(*service, options)?;
        }
        for (source, is_allowed) in changed(&old.sources, &world.sources) {
            self.datapath.set_source(*source, *is_allowed)?;
        }
        for (id, guard) in changed(&old.guards, &world.guards) {
            self.datapath.set_guard(*id, *guard)?;
        }
        for (packets, service) in changed(&old.matches(), &world.matches()) {
            self.datapath.set_service(*packets, *service)?;
        }
        for (address, vip) in changed(&old.vips(), &world.vips()) {
            self.datapath.set_vip(*address, *vip)?;
        }
        self.set_runtime()
    }

    /// Writes the options of a service, but for those of connection IDs.
    fn set_options(&mut self, service: u32, options: ServiceOptions) -> Result<()> {
        let options = ServiceOptions {
            connection_ids: self.datapath.options(service)?.connection_ids,
            ..options
        };
        Ok(self.datapath.set_options(service, options)?)
    }

    fn set_runtime(&mut self) -> Result<()> {
        let flags = self.world.flags();
        let clock = self.clock;
        Ok(self.datapath.set_runtime(Runtime {
            clock,
            flags,
            ..Runtime::default()
        })?)
    }

    /// Sets the flow clock.
    pub fn set_clock(&mut self, clock: u32) -> Result<()> {
        self.clock = clock;
        self.set_runtime()
    }

    /// Lets so much time pass for limits of [`INTERVAL`] that this many tokens come.
    pub fn fill_buckets(&mut self, tokens: u32) -> Result<()> {
        self.last = None;
        let time = INTERVAL * u64::from(tokens);
        for id in self.world.guards.keys() {
            let full = self.datapath.service_bucket(*id)?;
            self.datapath
                .set_service_bucket(*id, full.wrapping_sub(time))?;
        }
        for (key, full) in self.datapath.source_buckets()? {
            self.datapath
                .set_source_bucket(key, full.wrapping_sub(time))?;
        }
        Ok(())
    }

    /// Runs the program on a frame.
    pub fn send(&mut self, ifindex: u32, frame: &[u8]) -> Result<TestRun> {
        self.last = None;
        self.fresh_pools.clear();
        self.test_run(ifindex, frame)
    }

    fn test_run(&mut self, ifindex: u32, frame: &[u8]) -> Result<TestRun> {
        Ok(self.datapath.test_run(frame, ifindex)?)
    }

    /// The program's maps.
    pub fn datapath(&mut self) -> &mut Datapath {
        &mut self.datapath
    }

    /// Runs the program on a frame and compares all that comes of it with what is
    /// expected.
    ///
    /// # Errors
    ///
    /// What differs, a line for each difference.
    pub fn check(
        &mut self,
        ifindex: u32,
        frame: &[u8],
        outcome: &Outcome,
        change: &Change,
    ) -> Result<()> {
        // A redirection does not tell where it leads to. With no other interface to
        // lead to than the expected one, it does.
        let world = self.world.clone();
        if let Outcome::Sent(exit, _) = outcome {
            let mut narrowed = world.clone();
            narrowed
                .interfaces
                .retain(|index, _| [ifindex, *exit].contains(index));
            self.enter(&narrowed)?;
        }
        let before = match self.last.take() {
            Some(last) => last,
            None => Snapshot::take(&self.datapath, &mut self.tables, &self.world.guards)?,
        };
        if !self.is_clock_held {
            self.clock += 1;
        }
        self.set_runtime()?;
        let run = self.test_run(ifindex, frame)?;
        let after = Snapshot::take(&self.datapath, &mut self.tables, &self.world.guards)?;
        self.enter(&world)?;
        self.fresh_pools.retain(|pool| !after.has_ports_of(*pool));

        let mut change = change.clone();
        if self.is_clock_held {
            // What came before has left the same time.
            change.spoken = None;
        }
        let mut lines = Vec::new();
        let verdict = match outcome {
            Outcome::Sent(exit, _) if *exit == ifindex => Verdict::Tx,
            Outcome::Sent(..) => Verdict::Redirect,
            Outcome::Passed => Verdict::Pass,
            Outcome::Dropped => Verdict::Drop,
        };
        if run.verdict != verdict {
            lines.push(format!(
                "verdict: expected {verdict:?}, got {:?}",
                run.verdict
            ));
        }
        match outcome {
            Outcome::Sent(_, expected) => lines.extend(difference(expected, &run.frame)),
            Outcome::Passed => lines.extend(difference(frame, &run.frame)),
            // What is in the buffer of a packet that is gone is nobody's business.
            Outcome::Dropped => {}
        }
        lines.extend(after.compare(&before, &change, self.clock));
        if *outcome == Outcome::Passed {
            lines.extend(after.compare_flows(&before));
        }
        if !lines.is_empty() {
            bail!("\n  {}", lines.join("\n  "));
        }
        self.last = Some(after);
        Ok(())
    }

    /// Removes a flow as the daemon does it when both directions have been silent for
    /// too long.
    fn sweep(&mut self, flow: &Flow) -> Result<()> {
        self.last = None;
        let tuple = Tuple::new(flow.client, flow.vip, flow.kind.protocol());
        let live = Arc::clone(&self.tables.live);
        let removed = remove_from(&mut self.tables.v4, tuple, &live)?
            || remove_from(&mut self.tables.v6, tuple, &live)?;
        if !removed {
            bail!("the flow to sweep is not there");
        }
        if let Some((pool, port)) = flow.pool_port()
            && !self.tables.ports.free(pool, port)
        {
            bail!("port {port} of pool {pool} was free already");
        }
        Ok(())
    }
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

/// Keys of `old` that are not in `new`.
fn missing<'a, K: Ord, V>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    old.keys().filter(|key| !new.contains_key(key))
}

/// Entries of `new` that are not so in `old`.
fn changed<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    new.iter()
        .filter(|(key, value)| old.get(key) != Some(value))
}

/// Removes every entry.
fn clear_pair<F: Family>(pair: &mut FlowPair<F>, live: &LiveFlows) -> Result<()> {
    clear(&mut pair.flows, |flow| end_translated(flow, live))?;
    clear(&mut pair.replies, |_| {})?;
    clear(&mut pair.pins, |pin| {
        let is_closed = state::is_closed_by_client(pin.state);
        live.forget(pin.backend, pin.state, is_closed);
    })
}

/// What the daemon counts when it removes a flow.
fn end_translated(flow: &impl FlowValue, live: &LiveFlows) {
    let entry = flow.entry();
    live.forget(entry.backend, entry.state, state::is_closed(entry.state));
}

fn clear<K: Stored, V: Stored>(table: &mut FlowTable<K, V>, ended: impl Fn(&V)) -> Result<()> {
    let mut keys = Vec::new();
    table.for_each_batch(|entries| keys.extend(entries.map(|(key, _)| *key)))?;
    for key in keys {
        if let Some(entry) = table.take(&key)? {
            ended(&entry);
        }
    }
    Ok(())
}

/// Removes both entries of a flow. `false` where there were none.
fn remove_from<F: Family>(pair: &mut FlowPair<F>, tuple: Tuple, live: &LiveFlows) -> Result<bool>
where
    Tuple: From<F::Key>,
{
    let mut found = None;
    pair.flows.for_each_batch(|entries| {
        for (key, flow) in entries {
            if Tuple::from(*key) == tuple {
                found = Some((*key, flow.partner()));
            }
        }
    })?;
    let Some((key, partner)) = found else {
        return Ok(false);
    };
    let Some(flow) = pair.flows.take(&key)? else {
        return Ok(false);
    };
    end_translated(&flow, live);
    Ok(pair.replies.take(&partner)?.is_some())
}
