//! One walk over the flow tables.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use lb_common::{
    client::Client,
    flow::{FlowKey4, FlowKey6, FlowValue as _, state},
    pin::Pin,
    ports::PORT_WORDS,
};

use super::{
    Lifetimes,
    listing::{self, Query},
};
use crate::{
    datapath::{Family, FlowPair, FlowTable, FlowTables, Ipv4, Ipv6, LiveFlows, Result, Stored},
    slots::SlotSet,
    state::FlowList,
};

/// What a sweep found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Flows that the sweep ended, by backend id. Those whose end the datapath had
    /// seen are not among them: it has counted them itself.
    pub ended: HashMap<u32, u64>,
    /// Backend ids that an entry still names. Any other may be used again.
    pub named: HashSet<u32>,
    /// Slots of the ring that a flow without translation still has an entry for, by the
    /// flow's backend.
    pub slots: HashMap<u32, SlotSet>,
}

/// Bits of the ports in use, by pool.
type Ports = HashMap<u32, Box<[u64]>>;

/// Takes silent flows away and gives their source ports back. Runs on a thread of its
/// own: a walk over a million flows takes a good part of a second.
pub struct Sweeper {
    tables: FlowTables,
    /// Ports that the last sweep found taken without a flow.
    suspects: Ports,
}

impl Sweeper {
    /// A sweeper of these tables.
    #[must_use]
    pub fn new(tables: FlowTables) -> Self {
        Self {
            tables,
            suspects: Ports::new(),
        }
    }

    /// Lists flows.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to read a table.
    pub fn list(&mut self, query: &Query) -> Result<FlowList> {
        listing::list(&mut self.tables, query)
    }

    /// Sweeps at tick `now`. `lifetimes` holds those of the backends in service, by id.
    /// The flows of those that are `gone` go at once; those of any other, which has come
    /// into service after the caller looked, stay.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to read or write a table.
    pub fn sweep(
        &mut self,
        now: u32,
        lifetimes: &HashMap<u32, Lifetimes>,
        gone: &HashSet<u32>,
    ) -> Result<Report> {
        let mut sweep = Sweep {
            now,
            lifetimes,
            gone,
            report: Report::default(),
            ports: Ports::new(),
        };
        // Read first: a port that is taken later is none of this sweep's business.
        let used = self.tables.ports.used();
        let free = |pool, port| {
            self.tables.ports.free(pool, port);
        };
        let live = Arc::clone(&self.tables.live);
        sweep.flows(&mut self.tables.v4, &live, &free)?;
        sweep.flows(&mut self.tables.v6, &live, &free)?;
        sweep.pins(&mut self.tables.v4.pins, &live)?;
        sweep.pins(&mut self.tables.v6.pins, &live)?;
        for table in &mut self.tables.v4.clients {
            sweep.clients(table)?;
        }
        for table in &mut self.tables.v6.clients {
            sweep.clients(table)?;
        }
        sweep.replies(&mut self.tables.v4, &free)?;
        sweep.replies(&mut self.tables.v6, &free)?;
        let suspects = without_flow(&used, &sweep.ports);
        for (pool, port) in common(&suspects, &self.suspects) {
            free(pool, port);
        }
        self.suspects = suspects;
        Ok(sweep.report)
    }
}

/// A sweep under way.
struct Sweep<'a> {
    now: u32,
    lifetimes: &'a HashMap<u32, Lifetimes>,
    gone: &'a HashSet<u32>,
    report: Report,
    /// Ports of the flows that are left.
    ports: Ports,
}

impl Sweep<'_> {
    /// Ends silent flows.
    fn flows<F: Tuples>(
        &mut self,
        pair: &mut FlowPair<F>,
        live: &LiveFlows,
        free: &impl Fn(u32, u16),
    ) -> Result<()> {
        // Batches cannot be read and entries removed at the same time.
        let mut silent = Vec::new();
        pair.flows.for_each_batch(|entries| {
            for (key, flow) in entries {
                let entry = flow.entry();
                self.report.named.insert(entry.backend);
                if self.is_suspect(entry.backend, |lifetimes| {
                    lifetimes.is_silent(entry, self.now)
                }) {
                    silent.push(*key);
                }
            }
        })?;
        for key in silent {
            self.end(pair, &key, live, free)?;
        }
        Ok(())
    }

    /// Ends silent flows without translation, and notes the slots of the others.
    fn pins<K: Stored>(&mut self, table: &mut FlowTable<K, Pin>, live: &LiveFlows) -> Result<()> {
        let mut silent = Vec::new();
        table.for_each_batch(|entries| {
            for (key, pin) in entries {
                self.report.named.insert(pin.backend);
                if self.is_suspect(pin.backend, |lifetimes| {
                    lifetimes.has_pin_expired(pin, self.now)
                }) {
                    silent.push(*key);
                } else {
                    self.keep(pin);
                }
            }
        })?;
        for key in silent {
            let kept = Cell::new(None);
            let pin = table.take_if(&key, |pin| {
                let is_over = self.is_suspect(pin.backend, |lifetimes| {
                    lifetimes.has_pin_expired(pin, self.now)
                });
                kept.set((!is_over).then_some(*pin));
                Ok(is_over)
            })?;
            if let Some(pin) = kept.take() {
                self.keep(&pin);
            }
            let Some(pin) = pin else {
                continue;
            };
            let is_closed = state::is_closed_by_client(pin.state);
            live.forget(pin.backend, pin.state, is_closed);
            if !is_closed && pin.state & state::COUNTED != 0 {
                *self.report.ended.entry(pin.backend).or_default() += 1;
            }
        }
        Ok(())
    }

    /// Forgets clients whose time is over or whose backends are gone: an id is not given to
    /// another backend while a client would be sent to it.
    fn clients<K: Stored>(&mut self, table: &mut FlowTable<K, Client>) -> Result<()> {
        let mut forgotten = Vec::new();
        table.for_each_batch(|entries| {
            for (key, client) in entries {
                self.report.named.insert(client.backend);
                if self.is_suspect(client.backend, |lifetimes| {
                    lifetimes.is_forgotten(client, self.now)
                }) {
                    forgotten.push(*key);
                }
            }
        })?;
        for key in forgotten {
            table.take_if(&key, |client| {
                Ok(self.is_suspect(client.backend, |lifetimes| {
                    lifetimes.is_forgotten(client, self.now)
                }))
            })?;
        }
        Ok(())
    }

    /// The flow stays.
    fn keep(&mut self, pin: &Pin) {
        self.report
            .slots
            .entry(pin.backend)
            .or_default()
            .insert(pin.slot);
    }

    /// Whether a backend is gone, or else `is_silent`.
    fn is_suspect(&self, backend: u32, is_silent: impl Fn(&Lifetimes) -> bool) -> bool {
        self.gone.contains(&backend) || self.lifetimes.get(&backend).is_some_and(is_silent)
    }

    /// Ends a flow, unless it has spoken meanwhile or its other direction has.
    fn end<F: Tuples>(
        &mut self,
        pair: &mut FlowPair<F>,
        key: &F::Key,
        live: &LiveFlows,
        free: &impl Fn(u32, u16),
    ) -> Result<()> {
        let FlowPair { flows, replies, .. } = pair;
        let flow = flows.take_if(key, |flow| {
            let reply = replies.get(&flow.partner())?;
            let reply = reply.as_ref().map(F::Flow::entry);
            Ok(self.is_suspect(flow.entry().backend, |lifetimes| {
                lifetimes.has_expired(flow.entry(), reply, self.now)
            }))
        })?;
        let Some(flow) = flow else {
            return Ok(());
        };
        let entry = flow.entry();
        let is_closed = state::is_closed(entry.state);
        live.forget(entry.backend, entry.state, is_closed);
        if !is_closed {
            *self.report.ended.entry(entry.backend).or_default() += 1;
        }
        // Unless it is another flow's by now.
        replies.take_if(&flow.partner(), |reply| Ok(reply.partner() == *key))?;
        if entry.port_pool != 0 {
            free(entry.port_pool, F::balancer_port(&flow.partner()));
        }
        Ok(())
    }

    /// Removes entries for replies that no flow belongs to (their maker was cut off
    /// between the two), and notes the ports of the others.
    fn replies<F: Tuples>(
        &mut self,
        pair: &mut FlowPair<F>,
        free: &impl Fn(u32, u16),
    ) -> Result<()> {
        let mut silent = Vec::new();
        pair.replies.for_each_batch(|entries| {
            for (key, reply) in entries {
                let entry = reply.entry();
                self.report.named.insert(entry.backend);
                if entry.port_pool != 0 {
                    let bits = self
                        .ports
                        .entry(entry.port_pool)
                        .or_insert_with(|| vec![0; PORT_WORDS].into());
                    let port = F::balancer_port(key);
                    bits[usize::from(port / 64)] |= 1 << (port % 64);
                }
                if self.is_suspect(entry.backend, |lifetimes| {
                    lifetimes.is_silent(entry, self.now)
                }) {
                    silent.push(*key);
                }
            }
        })?;
        let FlowPair { flows, replies, .. } = pair;
        for key in silent {
            let reply = replies.take_if(&key, |reply| {
                let entry = reply.entry();
                let is_silent = self.is_suspect(entry.backend, |lifetimes| {
                    lifetimes.is_silent(entry, self.now)
                });
                Ok(is_silent && flows.get(&reply.partner())?.is_none())
            })?;
            if let Some(reply) = reply
                && reply.entry().port_pool != 0
            {
                free(reply.entry().port_pool, F::balancer_port(&key));
            }
        }
        Ok(())
    }
}

/// Reads the balancer's port from the tuple of a reply.
trait Tuples: Family {
    /// The port (host byte order) that the backend sends to.
    fn balancer_port(reply: &Self::Key) -> u16;
}

impl Tuples for Ipv4 {
    fn balancer_port(reply: &FlowKey4) -> u16 {
        u16::from_be(reply.dst_port)
    }
}

impl Tuples for Ipv6 {
    fn balancer_port(reply: &FlowKey6) -> u16 {
        u16::from_be(reply.dst_port)
    }
}

/// The ports that are used, but not by a flow.
fn without_flow(used: &Ports, by_flows: &Ports) -> Ports {
    used.iter()
        .map(|(pool, used)| {
            let mut left = used.clone();
            if let Some(flows) = by_flows.get(pool) {
                for (left, flows) in left.iter_mut().zip(flows) {
                    *left &= !flows;
                }
            }
            (*pool, left)
        })
        .collect()
}

/// The ports that are in both.
fn common<'a>(a: &'a Ports, b: &'a Ports) -> impl Iterator<Item = (u32, u16)> + 'a {
    a.iter().flat_map(|(pool, a)| {
        let b = b.get(pool).into_iter().flatten();
        let words = a.iter().zip(b).map(|(a, b)| a & b).enumerate();
        // Nearly all are zero.
        let words = words.filter(|(_, word)| *word != 0);
        words.flat_map(move |(index, word)| {
            (0..64)
                .filter(move |bit| word & (1 << bit) != 0)
                .map(move |bit| (*pool, (index * 64 + bit) as u16))
        })
    })
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use lb_common::{
        client::ClientKey4,
        flow::{Flow4, FlowEntry, Tuple as _},
    };

    use super::*;
    use crate::{
        address::PortRange,
        datapath::{Datapath, LogLevel, Options},
        state::{Protocol, Timeouts},
    };

    fn ports(pool: u32, ports: &[u16]) -> Ports {
        let mut bits = vec![0_u64; PORT_WORDS];
        for port in ports {
            bits[usize::from(port / 64)] |= 1 << (port % 64);
        }
        Ports::from([(pool, bits.into())])
    }

    #[test]
    fn a_port_without_a_flow_is_suspect() {
        let used = ports(1, &[1_024, 1_025, 65_535]);
        let suspects = without_flow(&used, &ports(1, &[1_025]));
        assert_eq!(suspects, ports(1, &[1_024, 65_535]));
        assert_eq!(without_flow(&used, &ports(2, &[1_024])), used);
    }

    #[test]
    fn only_a_port_that_is_suspect_twice_is_freed() {
        let now = ports(1, &[0, 1_024, 2_000, 65_535]);
        let before = ports(1, &[1_024, 3_000, 65_535]);
        let freed: Vec<_> = common(&now, &before).collect();
        assert_eq!(freed, [(1, 1_024), (1, 65_535)]);
        assert_eq!(common(&now, &ports(2, &[1_024])).count(), 0);
    }

    /// The tables of a real datapath; whether there is one is for the caller to see.
    fn sweeper() -> (Datapath, Sweeper) {
        let options = Options {
            max_flows: 1_024,
            max_embryonic: 1_024,
            log: LogLevel::Off,
        };
        let mut datapath =
            Datapath::load(&options).expect("this test loads BPF programs and must run as root");
        datapath.create_port_pools(&[1]).unwrap();
        let sweeper = Sweeper::new(datapath.flow_tables().unwrap());
        (datapath, sweeper)
    }

    /// Lifetimes of UDP flows to backend 7: 1 second until an answer, 10 after it.
    fn lifetimes() -> HashMap<u32, Lifetimes> {
        let timeouts = Timeouts {
            unreplied: Duration::from_secs(1),
            udp: Duration::from_secs(10),
            ..Timeouts::default()
        };
        HashMap::from([(7, Lifetimes::new(Protocol::Udp, &timeouts, None))])
    }

    /// Writes a flow of client `port` to backend 7, last seen at tick `seen` and, by
    /// the backend, at tick `answered`.
    fn insert(sweeper: &mut Sweeper, port: u16, seen: u32, answered: u32) -> FlowKey4 {
        let tuple = |src, dst, src_port: u16, dst_port: u16| FlowKey4 {
            src,
            dst,
            src_port: src_port.to_be(),
            dst_port: dst_port.to_be(),
            protocol: 17,
        };
        let key = tuple(1, 2, port, 53);
        let to = tuple(3, 4, port, 5_353);
        let entry = |last_seen| FlowEntry {
            backend: 7,
            last_seen,
            port_pool: 1,
            ..FlowEntry::default()
        };
        let pair = &mut sweeper.tables.v4;
        let flow = Flow4 {
            entry: entry(seen),
            to,
        };
        let reply = Flow4 {
            entry: entry(answered),
            to: key.reversed(),
        };
        pair.flows.insert(&key, &flow).unwrap();
        pair.replies.insert(&to.reversed(), &reply).unwrap();
        key
    }

    #[test]
    fn silent_flows_go_and_others_stay() {
        let (_datapath, mut sweeper) = sweeper();
        let silent = insert(&mut sweeper, 1_000, 0, 0);
        let speaking = insert(&mut sweeper, 1_001, 10, 0);
        let answered = insert(&mut sweeper, 1_002, 0, 10);
        let report = sweeper.sweep(11, &lifetimes(), &HashSet::new()).unwrap();
        assert_eq!(report.ended, HashMap::from([(7, 1)]));
        assert_eq!(report.named, HashSet::from([7]));
        let flows = &sweeper.tables.v4.flows;
        assert!(flows.get(&silent).unwrap().is_none());
        assert!(flows.get(&speaking).unwrap().is_some());
        assert!(flows.get(&answered).unwrap().is_some());

        sweeper.sweep(100, &lifetimes(), &HashSet::new()).unwrap();
        let report = sweeper.sweep(100, &lifetimes(), &HashSet::new()).unwrap();
        assert_eq!(report, Report::default(), "nothing is left behind");
    }

    #[test]
    fn a_flow_that_takes_the_place_of_a_silent_one_stays() {
        const NOW: u32 = 1_000;
        let (datapath, mut sweeper) = sweeper();
        let mut client = Sweeper::new(datapath.flow_tables().unwrap());
        for round in 0..300 {
            let silent: Vec<_> = (1_000..1_064)
                .map(|port| (port, insert(&mut sweeper, port, 0, 0)))
                .collect();
            let swept = std::thread::scope(|scope| {
                let again = scope.spawn(|| {
                    for (port, _) in &silent {
                        insert(&mut client, *port, NOW, NOW);
                    }
                });
                let swept = sweeper.sweep(NOW, &lifetimes(), &HashSet::new());
                again.join().unwrap();
                swept
            });
            swept.unwrap();
            for (port, key) in silent {
                let flow = sweeper.tables.v4.flows.get(&key).unwrap();
                let flow = flow.unwrap_or_else(|| panic!("round {round}: {port} has no flow"));
                assert_eq!(flow.entry.last_seen, NOW);
            }
        }
    }

    #[test]
    fn flows_of_a_backend_out_of_service_go_at_once() {
        let (_datapath, mut sweeper) = sweeper();
        insert(&mut sweeper, 1_000, 5, 5);
        let mut sweep = |gone| sweeper.sweep(5, &HashMap::new(), &gone).unwrap();
        let report = sweep(HashSet::from([8]));
        assert_eq!(report.ended, HashMap::new(), "nothing is known of it yet");
        let report = sweep(HashSet::from([7]));
        assert_eq!(report.ended, HashMap::from([(7, 1)]));
        assert!(sweep(HashSet::from([7])).named.is_empty());
    }

    /// The id of a backend is not free while a client would be sent to whoever has it.
    #[test]
    fn clients_are_forgotten_with_their_backends_and_after_their_time() {
        let (_datapath, mut sweeper) = sweeper();
        let key = |address| ClientKey4 {
            address,
            service: 1,
        };
        for table in &mut sweeper.tables.v4.clients {
            for (address, last_seen) in [(1, 0), (2, 50)] {
                let client = Client {
                    backend: 7,
                    last_seen,
                };
                table.insert(&key(address), &client).unwrap();
            }
        }
        let remember = |affinity| {
            let of = Lifetimes::new(Protocol::Udp, &Timeouts::default(), affinity);
            HashMap::from([(7, of)])
        };
        let lifetimes = remember(Some(Duration::from_secs(5)));
        let report = sweeper.sweep(51, &lifetimes, &HashSet::new()).unwrap();
        assert_eq!(report.named, HashSet::from([7]));
        let is_there = |sweeper: &Sweeper, address| {
            let tables = &sweeper.tables.v4.clients;
            let found = tables.each_ref().map(|t| t.get(&key(address)).unwrap());
            found.map(|client| client.is_some())
        };
        assert_eq!(is_there(&sweeper, 1), [false; 2]);
        assert_eq!(is_there(&sweeper, 2), [true; 2]);

        let gone = HashSet::from([7]);
        sweeper.sweep(51, &HashMap::new(), &gone).unwrap();
        assert_eq!(is_there(&sweeper, 2), [false; 2]);
        let report = sweeper.sweep(51, &HashMap::new(), &gone).unwrap();
        assert!(report.named.is_empty());

        let client = Client {
            backend: 7,
            last_seen: 51,
        };
        sweeper.tables.v4.clients[0]
            .insert(&key(1), &client)
            .unwrap();
        sweeper.sweep(51, &remember(None), &HashSet::new()).unwrap();
        assert_eq!(is_there(&sweeper, 1), [false; 2], "none are remembered");
    }

    #[test]
    fn a_flow_that_the_datapath_saw_end_is_not_counted_again() {
        let (_datapath, mut sweeper) = sweeper();
        let key = insert(&mut sweeper, 1_000, 0, 0);
        let flows = &mut sweeper.tables.v4.flows;
        let mut flow = flows.get(&key).unwrap().unwrap();
        flow.entry.state = state::RST;
        flows.insert(&key, &flow).unwrap();
        let report = sweeper.sweep(1_000, &lifetimes(), &HashSet::new()).unwrap();
        assert_eq!(report.ended, HashMap::new());
    }

    #[test]
    fn a_reserved_port_stays_taken_until_it_is_given_back_and_a_flow_keeps_its_own() {
        let (_datapath, mut sweeper) = sweeper();
        let pools = Arc::clone(&sweeper.tables.ports);
        let sweep = |sweeper: &mut Sweeper, now| {
            sweeper.sweep(now, &lifetimes(), &HashSet::new()).unwrap();
        };
        let is_taken = |port: u16| {
            let bits = pools.bits(1).unwrap();
            bits[usize::from(port / 64)] & 1 << (port % 64) != 0
        };
        let reserve = |ports: &[u16]| {
            pools.reserve(1, ports.iter().copied().map(PortRange::from).collect());
        };
        reserve(&[1_000, 6_000]);
        assert!(!pools.is_in_use(1), "by no flow");
        assert!(!pools.free(1, 1_000));
        for _ in 0..3 {
            sweep(&mut sweeper, 0);
        }
        assert!(is_taken(1_000) && is_taken(6_000));

        // A flow has the port when it is given back.
        insert(&mut sweeper, 1_000, 0, 0);
        reserve(&[6_000]);
        for _ in 0..3 {
            sweep(&mut sweeper, 0);
        }
        assert!(is_taken(1_000) && pools.is_in_use(1));
        sweep(&mut sweeper, 100);
        assert!(!is_taken(1_000) && is_taken(6_000));

        // No flow has it.
        reserve(&[]);
        assert!(is_taken(6_000));
        sweep(&mut sweeper, 100);
        sweep(&mut sweeper, 100);
        assert!(!is_taken(6_000));
    }

    #[test]
    fn an_entry_for_replies_without_a_flow_goes_when_it_is_old() {
        let (_datapath, mut sweeper) = sweeper();
        let key = insert(&mut sweeper, 1_000, 0, 0);
        sweeper.tables.v4.flows.take(&key).unwrap();
        sweeper.sweep(10, &lifetimes(), &HashSet::new()).unwrap();
        assert!(
            sweeper
                .sweep(11, &lifetimes(), &HashSet::new())
                .unwrap()
                .named
                .contains(&7)
        );
        assert!(
            sweeper
                .sweep(12, &lifetimes(), &HashSet::new())
                .unwrap()
                .named
                .is_empty()
        );
    }
}
