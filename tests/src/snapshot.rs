//! What the program's maps hold: counters, flows and ports in use.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use lb_common::{
    counters::{Counters, DropKey},
    drop_reason::DropReason,
    flow::{Flow4, Flow6, FlowEntry, FlowKey4, FlowKey6, state},
    guard::{Guard, TICKS_PER_NANOSECOND},
    pin::Pin,
    stage::IcmpBudget,
};
use lb_userspace::datapath::{Datapath, Family, FlowPair, FlowTable, FlowTables, Stored};
use nix::time::{ClockId, clock_gettime};

use crate::{case::Change, fragment::First, world::INTERVAL};

/// Ids of the backends whose counters are read after every packet: 0, which is none,
/// those of the standard world, and a few that nobody has.
pub(crate) const BACKEND_IDS: std::ops::Range<u32> = 0..64;

/// Source, destination and protocol of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tuple {
    src: SocketAddr,
    dst: SocketAddr,
    protocol: u32,
}

impl Tuple {
    pub(crate) fn new(src: SocketAddr, dst: SocketAddr, protocol: u8) -> Self {
        let protocol = protocol.into();
        Self { src, dst, protocol }
    }

    fn reversed(self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            ..self
        }
    }
}

impl From<FlowKey4> for Tuple {
    fn from(key: FlowKey4) -> Self {
        let address = |word: u32| IpAddr::from(word.to_ne_bytes());
        Self {
            src: (address(key.src), u16::from_be(key.src_port)).into(),
            dst: (address(key.dst), u16::from_be(key.dst_port)).into(),
            protocol: key.protocol,
        }
    }
}

impl From<FlowKey6> for Tuple {
    fn from(key: FlowKey6) -> Self {
        let address = |words: [u32; 4]| {
            let mut bytes = [0; 16];
            for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
                chunk.copy_from_slice(&word.to_ne_bytes());
            }
            IpAddr::from(bytes)
        };
        Self {
            src: (address(key.src), u16::from_be(key.src_port)).into(),
            dst: (address(key.dst), u16::from_be(key.dst_port)).into(),
            protocol: key.protocol,
        }
    }
}

/// An entry of a flow table of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    entry: FlowEntry,
    to: Tuple,
}

impl From<Flow4> for Entry {
    fn from(flow: Flow4) -> Self {
        Self {
            entry: flow.entry,
            to: flow.to.into(),
        }
    }
}

impl From<Flow6> for Entry {
    fn from(flow: Flow6) -> Self {
        Self {
            entry: flow.entry,
            to: flow.to.into(),
        }
    }
}

/// A flow table.
type Table = BTreeMap<Tuple, Entry>;

/// What the maps that the program writes hold at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    counters: BTreeMap<u32, Counters>,
    drops: BTreeMap<DropKey, u64>,
    /// Both families together.
    flows: Table,
    replies: Table,
    pins: BTreeMap<Tuple, Pin>,
    /// Open flows that are pending and that are live, by backend.
    open: BTreeMap<u32, [u32; 2]>,
    /// Pool and port.
    ports: BTreeSet<(u32, u16)>,
    /// First fragments and when they were seen.
    fragments: BTreeMap<First, u32>,
    /// Errors that were sent, by CPU.
    budgets: Vec<IcmpBudget>,
    /// Tokens that are missing in buckets of sources.
    source_tokens: i64,
    /// Tokens that are missing in buckets of services.
    service_tokens: i64,
}

impl Snapshot {
    /// Reads the maps, among them the buckets of the services that have `guards`.
    pub(crate) fn take(
        datapath: &Datapath,
        tables: &mut FlowTables,
        guards: &BTreeMap<u32, Guard>,
    ) -> Result<Self> {
        let mut snapshot = Self::default();
        if !guards.is_empty() {
            snapshot.read_buckets(datapath, guards)?;
        }
        for id in BACKEND_IDS {
            snapshot.counters.insert(id, datapath.counters(id)?);
            let open = [tables.live.pending(id), tables.live.of(id)];
            snapshot.open.insert(id, open);
        }
        snapshot.drops.extend(datapath.drops()?);
        for (id, words) in tables.ports.used() {
            for (index, word) in words.iter().enumerate().filter(|(_, word)| **word != 0) {
                let set = (0..64).filter(|bit| word >> bit & 1 == 1);
                let ports = set.map(|bit| (id, (index * 64 + bit) as u16));
                snapshot.ports.extend(ports);
            }
        }
        snapshot.read_pair(&mut tables.v4)?;
        snapshot.read_pair(&mut tables.v6)?;
        snapshot.budgets = datapath.icmp_budgets()?;
        for (key, fragment) in datapath.fragments_v4()? {
            snapshot
                .fragments
                .insert(First::from_v4(key, fragment), fragment.seen);
        }
        for (key, fragment) in datapath.fragments_v6()? {
            snapshot
                .fragments
                .insert(First::from_v6(key, fragment), fragment.seen);
        }
        Ok(snapshot)
    }

    fn read_pair<F: Family>(&mut self, pair: &mut FlowPair<F>) -> Result<()>
    where
        Tuple: From<F::Key>,
        Entry: From<F::Flow>,
    {
        read_table(&mut pair.flows, &mut self.flows)?;
        read_table(&mut pair.replies, &mut self.replies)?;
        pair.pins.for_each_batch(|entries| {
            let entries = entries.map(|(key, pin)| (Tuple::from(*key), *pin));
            self.pins.extend(entries);
        })?;
        Ok(())
    }

    fn read_buckets(&mut self, datapath: &Datapath, guards: &BTreeMap<u32, Guard>) -> Result<()> {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_nanos() as u64;
        let now = now * TICKS_PER_NANOSECOND;
        // The time since they were taken is nothing beside an interval.
        let missing = |full: u64| {
            let ahead = full.wrapping_sub(now) as i64;
            (ahead.max(0) as f64 / INTERVAL as f64).round() as i64
        };
        for id in guards.keys() {
            self.service_tokens += missing(datapath.service_bucket(*id)?);
        }
        let buckets = datapath.source_buckets()?;
        self.source_tokens = buckets.values().map(|full| missing(*full)).sum();
        Ok(())
    }

    /// Whether ports of this pool are in use.
    pub(crate) fn has_ports_of(&self, pool: u32) -> bool {
        self.ports
            .range((pool, 0)..=(pool, u16::MAX))
            .next()
            .is_some()
    }

    /// What differs from the `expected` change since `before`, in words.
    pub(crate) fn compare(&self, before: &Self, expected: &Change, clock: u32) -> Vec<String> {
        let mut lines = Vec::new();
        self.compare_spoken(clock, expected, &mut lines);
        self.compare_fragments(before, clock, expected, &mut lines);
        report(
            &"errors sent in this tick",
            expected.errors.into(),
            i64::from(self.errors(clock)) - i64::from(before.errors(clock)),
            &mut lines,
        );
        self.compare_counters(before, expected, &mut lines);
        self.compare_drops(before, expected, &mut lines);
        for (name, expected, old, new) in [
            (
                "flows",
                expected.flows,
                before.flows.len(),
                self.flows.len(),
            ),
            (
                "replies",
                expected.flows,
                before.replies.len(),
                self.replies.len(),
            ),
            ("pins", expected.pins, before.pins.len(), self.pins.len()),
        ] {
            report(
                &format!("entries of {name}"),
                expected,
                new as i64 - old as i64,
                &mut lines,
            );
        }
        for (name, expected, old, new) in [
            (
                "sources",
                expected.source_tokens,
                before.source_tokens,
                self.source_tokens,
            ),
            (
                "services",
                expected.service_tokens,
                before.service_tokens,
                self.service_tokens,
            ),
        ] {
            report(
                &format!("tokens of {name}"),
                expected,
                new - old,
                &mut lines,
            );
        }
        let taken: BTreeSet<_> = self.ports.difference(&before.ports).copied().collect();
        let freed: BTreeSet<_> = before.ports.difference(&self.ports).copied().collect();
        for (name, expected, got) in [
            ("taken", &expected.taken, &taken),
            ("freed", &expected.freed, &freed),
        ] {
            if expected != got {
                lines.push(format!(
                    "ports {name} (pool, port): expected {expected:?}, got {got:?}"
                ));
            }
        }
        self.check_consistency(&mut lines);
        lines
    }

    /// Whether a packet has left its time in the entry of its direction, or in both of a
    /// flow that it began, and in no other.
    fn compare_spoken(&self, clock: u32, expected: &Change, lines: &mut Vec<String>) {
        let entries = self.flows.values().chain(self.replies.values());
        let spoken = entries.filter(|entry| entry.entry.last_seen == clock);
        if let Some(expected) = expected.spoken {
            let name = "entries that have spoken";
            report(&name, expected as i64, spoken.count() as i64, lines);
        }
    }

    /// Whether the first fragments that are remembered newly, or again, are the expected.
    fn compare_fragments(
        &self,
        before: &Self,
        clock: u32,
        expected: &Change,
        lines: &mut Vec<String>,
    ) {
        let is_new = |(first, seen): &(&First, &u32)| before.fragments.get(first) != Some(*seen);
        let new: BTreeMap<_, _> = self.fragments.iter().filter(is_new).collect();
        let expected: BTreeMap<_, _> = expected.fragments.iter().map(|f| (f, &clock)).collect();
        if new != expected {
            lines.push(format!(
                "first fragments remembered: expected {expected:#?}, got {new:#?}"
            ));
        }
    }

    /// Errors that were sent in this tick.
    fn errors(&self, clock: u32) -> u32 {
        let of_tick = self.budgets.iter().filter(|budget| budget.tick == clock);
        of_tick.map(|budget| budget.sent).sum()
    }

    /// Whether the flow tables and the ports are as they were `before`, to the byte.
    pub(crate) fn compare_flows(&self, before: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, old, new) in [
            ("flows", &before.flows, &self.flows),
            ("replies", &before.replies, &self.replies),
        ] {
            if old != new {
                lines.push(format!("{name}: expected {old:#?}, got {new:#?}"));
            }
        }
        lines
    }

    fn compare_counters(&self, before: &Self, expected: &Change, lines: &mut Vec<String>) {
        for (id, new) in &self.counters {
            let old = before.counters.get(id).copied().unwrap_or_default();
            let expected = expected.counters.get(id).copied().unwrap_or_default();
            type Field = (&'static str, fn(&Counters) -> u64);
            const FIELDS: [Field; 7] = [
                ("packets", |c| c.packets),
                ("bytes", |c| c.bytes),
                ("reply packets", |c| c.reply_packets),
                ("reply bytes", |c| c.reply_bytes),
                ("new flows", |c| c.new_flows),
                ("ended flows", |c| c.ended_flows),
                ("untracked packets", |c| c.untracked),
            ];
            for (name, field) in FIELDS {
                report(
                    &format!("backend {id}, {name}"),
                    field(&expected) as i64,
                    field(new).wrapping_sub(field(&old)) as i64,
                    lines,
                );
            }
            if new.reserved != 0 {
                lines.push(format!("backend {id}: reserved counters are written"));
            }
        }
    }

    fn compare_drops(&self, before: &Self, expected: &Change, lines: &mut Vec<String>) {
        let maps = [&self.drops, &before.drops, &expected.drops];
        let keys: BTreeSet<_> = maps.iter().flat_map(|map| map.keys()).collect();
        for key in keys {
            let [new, old, expected] = maps.map(|map| map.get(key).copied().unwrap_or_default());
            report(
                &describe(*key),
                expected as i64,
                new.wrapping_sub(old) as i64,
                lines,
            );
        }
    }

    /// What must always hold: every entry has its partner, and the ports in use are
    /// those of the flows.
    fn check_consistency(&self, lines: &mut Vec<String>) {
        let mut ports = BTreeSet::new();
        for (tuple, Entry { entry, to }) in &self.flows {
            let Some(reply) = self.replies.get(&to.reversed()) else {
                lines.push(format!("flow {tuple:?} has no entry for replies"));
                continue;
            };
            if reply.to != tuple.reversed()
                || (reply.entry.backend, reply.entry.port_pool) != (entry.backend, entry.port_pool)
                || reply.entry.path != entry.path
            {
                lines.push(format!("flow {tuple:?} and its partner differ: {reply:?}"));
            }
            if entry.port_pool != 0 {
                ports.insert((entry.port_pool, to.src.port()));
            }
        }
        for (tuple, reply) in &self.replies {
            if !self.flows.contains_key(&reply.to.reversed()) {
                lines.push(format!("reply {tuple:?} has no entry for the client"));
            }
        }
        for (id, counted) in &self.open {
            let flows = self.flows.values().map(|Entry { entry, .. }| {
                let is_closed = state::is_closed(entry.state);
                (entry.backend, entry.state, is_closed)
            });
            let pins = self.pins.values().map(|pin| {
                let is_closed = state::is_closed_by_client(pin.state);
                (pin.backend, pin.state, is_closed)
            });
            let mut entries = [0; 2];
            for (_, bits, _) in flows
                .chain(pins)
                .filter(|(backend, _, is_closed)| backend == id && !is_closed)
            {
                entries[usize::from(bits & state::CONFIRMED != 0)] += 1;
            }
            if entries != *counted {
                lines.push(format!(
                    "backend {id}: {counted:?} pending and live flows, but {entries:?} entries"
                ));
            }
        }
        if ports != self.ports {
            lines.push(format!(
                "ports in use: of flows {ports:?}, in the pools {:?}",
                self.ports
            ));
        }
    }
}

fn read_table<K: Stored, V: Stored>(table: &mut FlowTable<K, V>, all: &mut Table) -> Result<()>
where
    Tuple: From<K>,
    Entry: From<V>,
{
    table.for_each_batch(|entries| {
        all.extend(entries.map(|(key, flow)| (Tuple::from(*key), Entry::from(*flow))));
    })?;
    Ok(())
}

fn report(name: &impl Display, expected: i64, got: i64, lines: &mut Vec<String>) {
    if expected != got {
        lines.push(format!("{name}: expected {expected:+}, got {got:+}"));
    }
}

fn describe(key: DropKey) -> String {
    let reason = DropReason::from_number(key.reason);
    format!(
        "drops for {}, service {} backend {} direction {}",
        reason.map_or("no known reason", DropReason::name),
        key.service,
        key.backend,
        key.direction
    )
}
