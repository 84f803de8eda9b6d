//! What is said to become of a packet, and what the program then does with it: the same to the
//! byte, and to every counter. And nothing is left of the question.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use anyhow::{Result, ensure};
use lb_common::{
    counters::{Counters, DropKey},
    drop_reason::DropReason,
    pin::Pin,
};
use lb_model::{Model, packet::TCP, world::World};
use lb_tests::{
    Bench, in_network_namespace,
    rng::Rng,
    soak::{number, say, seed},
    with_bpf_file_system,
};
use lb_userspace::{
    datapath::{Datapath, Family, FlowPair, FlowTables, Twin, Verdict},
    explain::{Explained, Names, Port, ServiceName, explain},
    state::{Fate, Mode, Piece, Protocol, Question, Scheduler, TcpFlags},
};
use zerocopy::IntoBytes as _;

use crate::{
    configuration::{self, BACKEND_IDS, INTERFACES},
    maps::maps,
    state, stay_on_this_cpu,
    traffic::Traffic,
};

/// Questions unless `LB_MODEL_QUESTIONS` says another number.
const QUESTIONS: u64 = 10_000;
/// Questions in one world.
const WORLD: u64 = 1_000;
/// Other packets between two questions.
const PACKETS: usize = 3;
/// Questions after which it is looked at whether anything has changed.
const LOOK: u64 = 100;
/// Entries of each flow table: more than there are packets in a world.
const MAX_FLOWS: u32 = 16_384;

#[test]
fn explanations_are_what_the_program_does() {
    let questions = number("LB_MODEL_QUESTIONS").unwrap_or(QUESTIONS);
    let seed = seed("LB_MODEL_SEED");
    say(format_args!(
        "explain: {questions} questions from seed {seed}"
    ));
    in_network_namespace(|| {
        with_bpf_file_system(|directory| {
            stay_on_this_cpu();
            let bench = Bench::pinned(MAX_FLOWS, MAX_FLOWS, directory);
            let mut asking = Asking::new(bench).expect("a second instance");
            let mut figures = BTreeMap::new();
            let mut left = questions;
            let mut next = seed;
            while left > 0 {
                let count = left.min(WORLD);
                if let Err(mismatch) = asking.world(next, count, &mut figures) {
                    panic!("LB_MODEL_SEED={next}: {mismatch:#}");
                }
                left -= count;
                next = next.wrapping_add(1);
            }
            for (what, count) in figures {
                say(format_args!("{count:>10}  {what}"));
            }
        });
    });
}

/// The program, and one that is asked.
struct Asking {
    bench: Bench,
    tables: FlowTables,
    twin: Twin,
    clock: u32,
}

impl Asking {
    fn new(mut bench: Bench) -> Result<Self> {
        let datapath = bench.datapath();
        let tables = datapath.flow_tables()?;
        let maps = datapath.pinned_maps().expect("they are pinned");
        let twin = Twin::load(&maps, BACKEND_IDS.end() + 1)?;
        Ok(Self {
            bench,
            tables,
            twin,
            clock: 0,
        })
    }

    /// Asks `count` questions in the world of a seed.
    fn world(&mut self, seed: u64, count: u64, figures: &mut BTreeMap<String, u64>) -> Result<()> {
        let mut rng = Rng::new(seed);
        let mut world = configuration::random(&mut rng);
        self.bench.reset(&maps(&world))?;
        self.clock += 1_000;
        self.bench.set_clock(self.clock)?;
        let mut model = Model::new(Arc::new(world.clone()));
        model.set_clock(self.clock);
        let mut traffic = Traffic::default();
        let mut asked = 0;
        let mut in_fragments = HashSet::new();
        while asked < count {
            if rng.below(100) == 0 {
                self.clock += 1;
                self.bench.set_clock(self.clock)?;
                model.set_clock(self.clock);
            }
            if rng.below(300) == 0 {
                configuration::change(&mut rng, &mut world);
                self.bench.enter(&maps(&world))?;
                model.configure(Arc::new(world.clone()));
            }
            for _ in 0..PACKETS {
                let incoming = traffic.next(&mut rng, &model);
                self.receive(
                    &mut rng,
                    &mut model,
                    &mut traffic,
                    incoming.ifindex,
                    &incoming.frame,
                )?;
            }
            let Some(question) = question(&mut rng, &traffic, &model) else {
                continue;
            };
            // All fragments that are asked about have one identification: the program still
            // remembers those of before, which the question knows nothing of.
            let ends = (
                question.source.ip(),
                question.destination.ip(),
                question.protocol,
            );
            if question.fragment.is_some() && !in_fragments.insert(ends) {
                continue;
            }
            asked += 1;
            let before = (asked % LOOK == 0).then(|| self.all(&world)).transpose()?;
            let explained = explain(&mut self.twin, &names(&world), &question)?;
            if let Some(before) = before {
                ensure!(
                    before == self.all(&world)?,
                    "{question:?} has left something"
                );
            }
            self.compare(&mut rng, &mut model, &mut traffic, &explained)
                .map_err(|error| error.context(format!("question {asked}: {question:?}")))?;
            tell(&world, &explained)?;
            let told = &explained.explanation;
            let what = match &told.reason {
                Some(reason) => format!("{}: {reason}", told.fate),
                None => told.fate.to_string(),
            };
            *figures.entry(what).or_default() += 1;
        }
        Ok(())
    }

    /// Sends the frames of a question, and compares what comes of the last one.
    fn compare(
        &mut self,
        rng: &mut Rng,
        model: &mut Model,
        traffic: &mut Traffic,
        explained: &Explained,
    ) -> Result<()> {
        let Explained {
            frames,
            ifindex,
            trace,
            ..
        } = explained;
        let mut before = counted(self.bench.datapath())?;
        let mut run = None;
        for frame in frames {
            before = counted(self.bench.datapath())?;
            run = Some(self.receive(rng, model, traffic, *ifindex, frame)?);
        }
        let run = run.expect("a frame");
        ensure!(
            trace.run.verdict == run.verdict,
            "told {:?}, did {:?}; told {:?} and {:?}",
            trace.run.verdict,
            run.verdict,
            explained.explanation,
            trace.drops
        );
        if run.verdict != Verdict::Drop {
            ensure!(
                trace.run.frame == run.frame,
                "told {:02x?}\ndid  {:02x?}\n{:?}",
                trace.run.frame,
                run.frame,
                explained.explanation
            );
        }
        let after = counted(self.bench.datapath())?;
        let mut counters = trace.counters.clone();
        let mut drops = trace.drops.clone();
        for (id, after) in &after.0 {
            let told = counters.remove(id).unwrap_or_default();
            let expected = before.0[id].plus(told);
            ensure!(
                *after == expected,
                "backend {id}: told {told:?}, did {after:?}"
            );
        }
        for (key, after) in &after.1 {
            let told = drops.remove(key).unwrap_or_default();
            let before = before.1.get(key).copied().unwrap_or_default();
            ensure!(
                *after == before + told,
                "{key:?}: told {told}, did {}",
                after - before
            );
        }
        ensure!(
            counters.is_empty() && drops.is_empty(),
            "told {counters:?} {drops:?}"
        );
        Ok(())
    }

    /// Has program and model receive a packet.
    fn receive(
        &mut self,
        rng: &mut Rng,
        model: &mut Model,
        traffic: &mut Traffic,
        ifindex: u32,
        frame: &[u8],
    ) -> Result<lb_userspace::datapath::TestRun> {
        let run = self.bench.send(ifindex, frame)?;
        let newest = model.flows.newest();
        model.receive(ifindex, frame, &|client| {
            state::source_port(&self.tables, client)
        });
        if newest != model.flows.newest()
            && let Some(flow) = model.flows.newest()
        {
            traffic.began(rng, flow);
        }
        Ok(run)
    }

    /// All that the program writes.
    fn all(&mut self, world: &World) -> Result<impl PartialEq + use<>> {
        let datapath = self.bench.datapath();
        let ids: Vec<u32> = world.services.iter().map(|service| service.id).collect();
        let service_buckets: Vec<u64> = ids
            .iter()
            .map(|id| datapath.service_bucket(*id))
            .collect::<Result<_, _>>()?;
        let fragments = format!(
            "{:?}",
            (
                datapath.fragments_v4()?,
                datapath.fragments_v6()?,
                datapath.icmp_budgets()?
            )
        );
        let (counters, drops) = counted(datapath)?;
        let source_buckets = datapath.source_buckets()?;
        let loads: Vec<[u32; 2]> = BACKEND_IDS
            .map(|id| [self.tables.live.of(id), self.tables.live.pending(id)])
            .collect();
        let mut used: Vec<_> = self.tables.ports.used().into_iter().collect();
        used.sort_unstable();
        Ok((
            (counters, drops, fragments),
            (service_buckets, source_buckets, loads, used),
            entries(&mut self.tables.v4)?,
            entries(&mut self.tables.v6)?,
        ))
    }
}

/// Counters by backend, and drops.
fn counted(datapath: &Datapath) -> Result<(BTreeMap<u32, Counters>, BTreeMap<DropKey, u64>)> {
    let ids = 0..=BACKEND_IDS.end() + 1;
    let counters = ids.map(|id| Ok((id, datapath.counters(id)?)));
    Ok((counters.collect::<Result<_>>()?, datapath.drops()?))
}

/// The entries of flows, by table.
fn entries<F: Family>(pair: &mut FlowPair<F>) -> Result<[BTreeMap<Vec<u8>, Vec<u8>>; 3]> {
    let mut tables = [const { BTreeMap::new() }; 3];
    let [flows, replies, pins] = &mut tables;
    for (table, all) in [(&mut pair.flows, flows), (&mut pair.replies, replies)] {
        table.for_each_batch(|entries| {
            all.extend(entries.map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec())));
        })?;
    }
    pair.pins.for_each_batch(|entries| {
        let entries: &mut dyn Iterator<Item = (&F::Key, &Pin)> = entries;
        pins.extend(entries.map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec())));
    })?;
    Ok(tables)
}

/// A question about a random packet.
fn question(rng: &mut Rng, traffic: &Traffic, model: &Model) -> Option<Question> {
    let tuple = traffic.tuple(rng, model)?;
    let protocol = if tuple.protocol == TCP {
        Protocol::Tcp
    } else {
        Protocol::Udp
    };
    let mut question = Question::new(protocol, tuple.src, tuple.dst);
    question.tcp_flags = TcpFlags(rng.weighted(&[
        (40, 0x02),
        (30, 0x10),
        (8, 0x12),
        (8, 0x11),
        (4, 0x04),
        (4, 0x14),
        (3, 0x18),
        (1, 0),
        (2, rng.clone().byte()),
    ]));
    question.fragment =
        rng.weighted(&[(85, None), (7, Some(Piece::First)), (8, Some(Piece::Later))]);
    question.interface = Some(rng.pick(&INTERFACES).to_string());
    question.length = rng.weighted(&[(60, 0), (20, 100), (10, 1_400), (10, 1_600)]);
    question.ttl = rng.weighted(&[(95, 64), (3, 1), (2, 2)]);
    Some(question)
}

/// Everything is called by its number.
fn names(world: &World) -> Names {
    let service = |service: &lb_model::world::Service| {
        let name = ServiceName {
            name: service.id.to_string(),
            address: String::new(),
            mode: Mode::FullNat,
            scheduler: Scheduler::Maglev,
        };
        (service.id, name)
    };
    let port = |ifindex: u32| {
        let port = Port {
            name: ifindex.to_string(),
            mac: [2, 0, 0, 0, 1, ifindex as u8],
            outlet: ifindex,
        };
        (ifindex, port)
    };
    Names {
        services: world.services.iter().map(service).collect(),
        backends: world
            .backends
            .keys()
            .map(|id| (*id, id.to_string()))
            .collect(),
        interfaces: INTERFACES.map(port).into(),
        attached: INTERFACES.to_vec(),
    }
}

/// What is told is what was met.
fn tell(world: &World, explained: &Explained) -> Result<()> {
    let Explained {
        explanation, trace, ..
    } = explained;
    // Of two, one has lost a flow to the other, to which the packet went.
    let mut all = trace.counters.iter();
    let took = |counters: &Counters| counters.packets + counters.reply_packets > 0;
    let one = all.clone().find(|(_, counters)| took(counters));
    let (id, counted) = match one.or_else(|| all.next()) {
        Some((id, counters)) => (Some(*id), *counters),
        None => (None, Counters::default()),
    };
    let is_right = match explanation.fate {
        Fate::ToBackend => counted.packets == 1,
        Fate::ToClient => counted.reply_packets == 1,
        Fate::Answered => trace.drops.values().sum::<u64>() == 1,
        Fate::Dropped => trace.drops.values().sum::<u64>() == 1,
        Fate::Passed => counted == Counters::default() && trace.drops.is_empty(),
    };
    ensure!(is_right, "{explanation:?} of {trace:?}");
    let backend = explanation
        .backend
        .as_ref()
        .and_then(|backend| backend.address.clone());
    let service = explanation
        .service
        .as_ref()
        .and_then(|service| service.name.clone());
    if let Some(id) = id {
        ensure!(
            backend == world.backends.get(&id).map(|_| id.to_string()),
            "{explanation:?}"
        );
        if let Some(backend) = world.backends.get(&id) {
            ensure!(
                service == Some(backend.service.to_string()),
                "{explanation:?}, not {}",
                backend.service
            );
        }
    }
    if let Some((key, _)) = trace.drops.iter().next() {
        let reason = DropReason::from_number(key.reason).map(|reason| reason.name().to_owned());
        ensure!(explanation.reason == reason, "{explanation:?}");
        if key.service != 0 && key.backend == 0 {
            ensure!(
                service == Some(key.service.to_string()),
                "{explanation:?}, not {key:?}"
            );
        }
    }
    Ok(())
}
