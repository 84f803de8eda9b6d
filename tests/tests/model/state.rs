//! What the program's maps hold, in the model's words.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use lb_common::{
    counters::{Counters, DropKey},
    flow::{Flow4, Flow6, FlowEntry, FlowKey4, FlowKey6, FlowValue as _, state},
};
use lb_model::{
    nat::Flows,
    outcome::{Counts, Drop, Totals},
    packet::Tuple,
};
use lb_userspace::datapath::{Datapath, Family, FlowPair, FlowTables, word, words6};

use crate::{configuration::BACKEND_IDS, maps};

/// Counters of backends and drops.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counted {
    backends: BTreeMap<u32, Counters>,
    drops: BTreeMap<DropKey, u64>,
}

impl Counted {
    /// Reads the counters.
    pub(crate) fn read(datapath: &Datapath) -> Result<Self> {
        let mut counted = Self::default();
        for id in 0..=BACKEND_IDS.end() + 1 {
            counted.backends.insert(id, datapath.counters(id)?);
        }
        counted.drops = datapath.drops()?;
        Ok(counted)
    }

    /// What differs between what the program counted since `before` and what the model did.
    pub(crate) fn compare(&self, before: &Self, model: &Totals) -> Vec<String> {
        let mut lines = Vec::new();
        for (id, now) in &self.backends {
            let then = before.backends.get(id).copied().unwrap_or_default();
            let expected = model.backends.get(id).copied().unwrap_or_default();
            let got = Counts {
                packets: now.packets - then.packets,
                bytes: now.bytes - then.bytes,
                reply_packets: now.reply_packets - then.reply_packets,
                reply_bytes: now.reply_bytes - then.reply_bytes,
                new_flows: now.new_flows - then.new_flows,
                ended_flows: now.ended_flows - then.ended_flows,
            };
            if got != expected {
                lines.push(format!("backend {id}: expected {expected:?}, got {got:?}"));
            }
        }
        let expected: BTreeMap<DropKey, u64> = model
            .drops
            .iter()
            .map(|(drop, count)| (key(drop), *count))
            .collect();
        let keys: BTreeSet<_> = self.drops.keys().chain(expected.keys()).collect();
        for key in keys {
            let of = |map: &BTreeMap<DropKey, u64>| map.get(key).copied().unwrap_or(0);
            let got = of(&self.drops) - of(&before.drops);
            let expected = of(&expected);
            if got != expected {
                lines.push(format!("{key:?}: expected {expected}, got {got}"));
            }
        }
        lines
    }
}

fn key(drop: &Drop) -> DropKey {
    DropKey {
        service: drop.service,
        backend: drop.backend,
        reason: drop.reason as u16,
        direction: drop.direction as u16,
        reserved: 0,
    }
}

/// What differs between the program's flows and source ports and the model's.
pub(crate) fn compare_flows(
    tables: &mut FlowTables,
    flows: &Flows,
    pools: &BTreeSet<u32>,
) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut seen = 0;
    compare_pair(&mut tables.v4, flows, &mut seen, &mut lines)?;
    compare_pair(&mut tables.v6, flows, &mut seen, &mut lines)?;
    if seen != 2 * flows.len() {
        let expected = 2 * flows.len();
        lines.push(format!("flow entries: expected {expected}, got {seen}"));
    }
    let mut open = BTreeMap::<u32, [u32; 2]>::new();
    for flow in flows.iter() {
        let of_backend = open.entry(flow.backend).or_default();
        if !flow.seen.closed() {
            of_backend[usize::from(flow.seen.confirmed)] += 1;
        }
    }
    for (backend, expected) in open {
        let got = [tables.live.pending(backend), tables.live.of(backend)];
        if got != expected {
            lines.push(format!(
                "pending and live flows of backend {backend}: expected {expected:?}, got {got:?}"
            ));
        }
    }
    for (id, words) in tables.ports.used() {
        let mut expected = vec![0_u64; words.len()];
        for port in flows.ports(id) {
            expected[usize::from(port / 64)] |= 1 << (port % 64);
        }
        if pools.contains(&id) && *words != *expected {
            let ports = |words: &[u64]| -> Vec<usize> {
                let set = |port: &usize| words[port / 64] >> (port % 64) & 1 == 1;
                (0..64 * words.len()).filter(set).collect()
            };
            lines.push(format!(
                "ports of pool {id}: expected {:?}, got {:?}",
                ports(&expected),
                ports(&words)
            ));
        }
    }
    Ok(lines)
}

fn compare_pair<F: Family>(
    pair: &mut FlowPair<F>,
    flows: &Flows,
    seen: &mut usize,
    lines: &mut Vec<String>,
) -> Result<()>
where
    Key: From<F::Key>,
    Entry: From<F::Flow>,
{
    pair.flows.for_each_batch(|entries| {
        for (key, flow) in entries {
            *seen += 1;
            let (Key(key), Entry(entry, to)) = (Key::from(*key), Entry::from(*flow));
            let expected = flows.of_client(&key).map(|flow| {
                let mut bits = 0;
                for (set, bit) in [
                    (flow.seen.reply, state::REPLIED),
                    (flow.seen.client_fin, state::FIN_CLIENT),
                    (flow.seen.backend_fin, state::FIN_BACKEND),
                    (flow.seen.rst, state::RST),
                    (flow.seen.confirmed, state::CONFIRMED),
                ] {
                    bits |= if set { bit } else { 0 };
                }
                (
                    flow.server,
                    (flow.backend, flow.pool, maps::path(&flow.path), bits),
                )
            });
            let got = (
                to,
                (
                    entry.backend,
                    entry.port_pool,
                    entry.path,
                    entry.state & state::BITS,
                ),
            );
            if expected != Some(got) {
                lines.push(format!(
                    "flow {key:?}: expected {expected:#?}, got {got:#?}"
                ));
            }
        }
    })?;
    pair.replies.for_each_batch(|entries| {
        for (key, flow) in entries {
            *seen += 1;
            let (Key(key), Entry(entry, to)) = (Key::from(*key), Entry::from(*flow));
            let expected = flows.of_backend(&key).map(|flow| {
                (
                    flow.client.reversed(),
                    flow.backend,
                    flow.pool,
                    maps::path(&flow.path),
                    flow.mtu.unwrap_or(0),
                    flow.spoke[1],
                )
            });
            let got = (
                to,
                entry.backend,
                entry.port_pool,
                entry.path,
                entry.mtu_or_sequence,
                entry.last_seen,
            );
            if expected != Some(got) {
                lines.push(format!(
                    "reply {key:?}: expected {expected:#?}, got {got:#?}"
                ));
            }
        }
    })?;
    Ok(())
}

/// A key in the model's words.
struct Key(Tuple);

/// A value: all but the tuple, and the tuple.
struct Entry(FlowEntry, Tuple);

impl From<FlowKey4> for Key {
    fn from(key: FlowKey4) -> Self {
        let address = |word: u32| std::net::IpAddr::from(word.to_ne_bytes());
        Self(Tuple {
            src: (address(key.src), u16::from_be(key.src_port)).into(),
            dst: (address(key.dst), u16::from_be(key.dst_port)).into(),
            protocol: key.protocol as u8,
        })
    }
}

impl From<FlowKey6> for Key {
    fn from(key: FlowKey6) -> Self {
        let address = |words: [u32; 4]| {
            let mut bytes = [0; 16];
            for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
                chunk.copy_from_slice(&word.to_ne_bytes());
            }
            std::net::IpAddr::from(bytes)
        };
        Self(Tuple {
            src: (address(key.src), u16::from_be(key.src_port)).into(),
            dst: (address(key.dst), u16::from_be(key.dst_port)).into(),
            protocol: key.protocol as u8,
        })
    }
}

impl From<Flow4> for Entry {
    fn from(flow: Flow4) -> Self {
        Self(flow.entry, Key::from(flow.to).0)
    }
}

impl From<Flow6> for Entry {
    fn from(flow: Flow6) -> Self {
        Self(flow.entry, Key::from(flow.to).0)
    }
}

/// A key of the flow tables.
enum AnyKey {
    V4(FlowKey4),
    V6(FlowKey6),
}

impl From<&Tuple> for AnyKey {
    fn from(tuple: &Tuple) -> Self {
        use std::net::IpAddr::{V4, V6};

        let protocol = tuple.protocol.into();
        let (src_port, dst_port) = (tuple.src.port().to_be(), tuple.dst.port().to_be());
        match (tuple.src.ip(), tuple.dst.ip()) {
            (V4(src), V4(dst)) => Self::V4(FlowKey4 {
                src: word(src),
                dst: word(dst),
                src_port,
                dst_port,
                protocol,
            }),
            (V6(src), V6(dst)) => Self::V6(FlowKey6 {
                src: words6(src),
                dst: words6(dst),
                src_port,
                dst_port,
                protocol,
            }),
            _ => unreachable!("a flow is of one family"),
        }
    }
}

/// The source port that the program has given to a client's flow.
pub(crate) fn source_port(tables: &FlowTables, client: &Tuple) -> Option<u16> {
    let port = match client.into() {
        AnyKey::V4(key) => tables.v4.flows.get(&key).expect("a look")?.to.src_port,
        AnyKey::V6(key) => tables.v6.flows.get(&key).expect("a look")?.to.src_port,
    };
    Some(u16::from_be(port))
}

/// The daemon removes a flow that was silent for too long.
pub(crate) fn sweep(tables: &mut FlowTables, client: &Tuple) -> Result<()> {
    let taken = match client.into() {
        AnyKey::V4(key) => take(&mut tables.v4, &key)?,
        AnyKey::V6(key) => take(&mut tables.v6, &key)?,
    };
    if let Some((entry, port)) = taken {
        tables.ports.free(entry.port_pool, port);
        let is_closed = state::is_closed(entry.state);
        tables.live.forget(entry.backend, entry.state, is_closed);
    }
    Ok(())
}

/// Removes both entries of a flow. The client's, with the source port, if it was there.
fn take<F: Family>(pair: &mut FlowPair<F>, key: &F::Key) -> Result<Option<(FlowEntry, u16)>>
where
    Entry: From<F::Flow>,
{
    let Some(flow) = pair.flows.take(key)? else {
        return Ok(None);
    };
    pair.replies.take(&flow.partner())?;
    let Entry(entry, to) = Entry::from(flow);
    Ok(Some((entry, to.src.port())))
}
