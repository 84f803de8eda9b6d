//! Rounds of runs, in turns with the floor, each checked.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::programs::ProgramFd;
use lb_bench_driver::{FRAME, Order, Plan, Vary};
use lb_common::{
    counters::Counters,
    flow::{FlowValue as _, MAX_FLOWS},
};
use lb_driver::{Callee, Driver, Outcome, XDP_PASS, XDP_TX};
use lb_userspace::{
    datapath::{FlowPair, FlowTables, Ipv4, Ipv6},
    state::Mode,
};

use crate::{
    Row, Scenario,
    frame::{self, Flags, Frame, HOPS, Macs},
    ip::{Ends, Ip},
    row::{Group, IpVersion, Slots},
    setup::{Balancer, FROM_BACKEND, FROM_CLIENT, IFINDEX, QUIC, client, number_of},
};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Numbers of flows: powers of two.
    pub flows: &'static [u32],
    /// Rounds that count. One before them does not.
    pub rounds: u32,
    /// Packets of a round.
    pub packets: u32,
    /// Packets of a round in which each begins a flow: a power of two.
    pub new_flows: u32,
    /// The flow tables have room for this many flows, and for twice as many as they
    /// are filled with.
    pub room: u32,
}

impl Size {
    /// For figures.
    pub const FULL: Self = Self {
        flows: &[1, 4_096, 1 << 16, 1 << 20],
        rounds: 9,
        packets: 1 << 19,
        new_flows: 1 << 14,
        room: MAX_FLOWS,
    };

    /// For a look.
    pub const QUICK: Self = Self {
        flows: &[1, 256],
        rounds: 2,
        packets: 1 << 12,
        new_flows: 1 << 8,
        room: 1 << 12,
    };
}

/// Nanoseconds per packet.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// The least of an empty program, the driver included.
    pub floor_ns: f64,
    /// The least, above the least of the floor.
    pub net_ns_min: f64,
    /// The median, above the median of the floor.
    pub net_ns_median: f64,
}

/// Measures the rows of a group on fresh tables.
pub(crate) fn group(
    group: &Group,
    size: &Size,
    visit: &mut impl FnMut(&Row, &Figures) -> Result<()>,
) -> Result<()> {
    match group.family {
        IpVersion::Ipv4 => rows::<Ipv4>(group, size, visit),
        IpVersion::Ipv6 => rows::<Ipv6>(group, size, visit),
    }
}

fn rows<V: Ip>(
    group: &Group,
    size: &Size,
    visit: &mut impl FnMut(&Row, &Figures) -> Result<()>,
) -> Result<()> {
    let mut bench = Bench::<V>::new(group, size).with_context(|| format!("{group:?}"))?;
    for row in &group.rows {
        let figures = bench
            .row(row, size)
            .with_context(|| format!("in row {row}"))?;
        visit(row, &figures)?;
    }
    Ok(())
}

/// A balancer with flows, and the driver.
pub(crate) struct Bench<V: Ip> {
    pub(crate) balancer: Balancer,
    tables: FlowTables,
    program: ProgramFd,
    driver: Driver,
    flows: u32,
    /// The tuples of packets from backends, as the driver has them.
    replies: Vec<V::Key>,
}

impl<V: Ip> Bench<V> {
    /// Loads everything and lets all flows be established.
    pub(crate) fn new(group: &Group, size: &Size) -> Result<Self> {
        let flows = group.flows;
        let room = size.room.max(2 * flows);
        let balancer = Balancer::load::<V>(group, room, IFINDEX)?;
        let tables = balancer.datapath.flow_tables()?;
        let program = balancer.datapath.program_fd()?.try_clone()?;
        let mut bench = Self {
            balancer,
            tables,
            program,
            driver: Driver::load(flows, IFINDEX)?,
            flows,
            replies: Vec::new(),
        };
        let has_entries = match group.slots {
            Slots::Clean => group.mode.translates(),
            Slots::Changing | Slots::Tracked => true,
            // Its flows began before the change.
            Slots::Pinned | Slots::Named => false,
        };
        if !has_entries {
            return Ok(bench);
        }
        let ascending = Order::ascending(flows);
        let mut plan = bench.plan(Kind::Client(Flags::Syn), ascending)?;
        bench.run_under_test(&mut plan, flows, Scenario::New)?;
        if !group.mode.translates() {
            let mut plan = bench.plan(Kind::Client(Flags::Ack), ascending)?;
            bench.run_under_test(&mut plan, flows, Scenario::Tracked)?;
            return Ok(bench);
        }
        bench.collect_replies()?;
        let mut plan = bench.plan(Kind::Backend(Flags::SynAck), ascending)?;
        bench.run_under_test(&mut plan, flows, Scenario::Reply)?;
        // The end of the handshake: until it comes, each answer looks for it.
        let mut plan = bench.plan(Kind::Client(Flags::Ack), ascending)?;
        bench.run_under_test(&mut plan, flows, Scenario::Tracked)?;
        Ok(bench)
    }

    /// Lets so many packets of flows that are known come from clients, and returns the CPU time
    /// that they took. They begin behind those of `plan`.
    pub(crate) fn forward(&mut self, plan: &mut Plan, packets: u32) -> Result<Duration> {
        let callee = Callee::UnderTest;
        let outcome = self.driver.run(callee, &self.program, plan, packets)?;
        Ok(outcome.time)
    }

    /// The packets of [`Self::forward`].
    pub(crate) fn known(&self) -> Result<Plan> {
        self.plan(Kind::Client(Flags::Ack), Order::scattered(self.flows))
    }

    /// Reads from the flow table what the backends will send, and gives it to the
    /// driver in an order that has nothing to do with the table's.
    fn collect_replies(&mut self) -> Result<()> {
        let mut keys = Vec::new();
        V::tables_mut(&mut self.tables)
            .replies
            .for_each_batch(|entries| keys.extend(entries.map(|(key, _)| *key)))?;
        ensure!(
            keys.len() == self.flows as usize,
            "{} entries for replies of {} flows",
            keys.len(),
            self.flows
        );
        let order = Order::scattered(self.flows);
        self.replies = (0..self.flows)
            .map(|n| keys[order.nth(n) as usize])
            .collect();
        V::set_replies(&mut self.driver, &self.replies)
    }

    /// Measures a row.
    fn row(&mut self, row: &Row, size: &Size) -> Result<Figures> {
        let kind = Kind::of(row);
        let mut floor = Vec::new();
        let mut total = Vec::new();
        for round in 0..=size.rounds {
            let (mut plan, packets) = self.round(row, size, round)?;
            let mut driver_plan = plan;
            let driver_alone =
                self.driver
                    .run(Callee::Empty, &self.program, &mut driver_plan, packets)?;
            let arrived = self.arriving(kind, Some(last(&driver_plan)))?;
            check(&driver_alone, XDP_PASS, &arrived).context("the driver")?;

            let under_test = self.run_under_test(&mut plan, packets, row.scenario)?;
            let (verdict, left) = self.leaving(row.scenario, kind, last(&plan))?;
            check(&under_test, verdict, &left)?;
            if row.scenario == Scenario::New {
                self.forget(&plan, packets)?;
            }
            // The first round brings code and tables into the caches.
            if round != 0 {
                let per_packet =
                    |outcome: &Outcome| outcome.time.as_nanos() as f64 / f64::from(packets);
                floor.push(per_packet(&driver_alone));
                total.push(per_packet(&under_test));
            }
        }
        floor.sort_unstable_by(f64::total_cmp);
        total.sort_unstable_by(f64::total_cmp);
        let median = floor.len() / 2;
        Ok(Figures {
            floor_ns: floor[0],
            net_ns_min: total[0] - floor[0],
            net_ns_median: total[median] - floor[median],
        })
    }

    /// The plan of a round, and its number of packets.
    fn round(&self, row: &Row, size: &Size, round: u32) -> Result<(Plan, u32)> {
        let kind = Kind::of(row);
        if row.scenario == Scenario::New {
            let packets = size.new_flows;
            let base = self.flows + round * packets;
            let plan = self.plan(kind, Order::scattered(packets))?;
            return Ok((Plan { base, ..plan }, packets));
        }
        let order = match row.scenario {
            // The table that the driver reads is scattered already.
            Scenario::Reply => Order::ascending(self.flows),
            _ => Order::scattered(self.flows),
        };
        let next = round * size.packets;
        let plan = self.plan(kind, order)?;
        Ok((Plan { next, ..plan }, size.packets))
    }

    /// A plan for packets of one kind.
    fn plan(&self, kind: Kind, order: Order) -> Result<Plan> {
        let vary = match kind {
            Kind::Client(_) | Kind::Foreign => V::VARY_CLIENT,
            Kind::Backend(_) => V::VARY_REPLY,
            Kind::Echo | Kind::Arp => Vary::Nothing,
        };
        Ok(Plan {
            frame: self.arriving(kind, None)?,
            vary: vary as u16,
            unwraps: self.balancer.outer::<V>(V::UNSPECIFIED).is_some().into(),
            order,
            base: 0,
            next: 0,
        })
    }

    /// The packet of a flow as it arrives; without a flow, what the driver makes it of.
    fn arriving(&self, kind: Kind, flow: Option<u32>) -> Result<[u8; FRAME]> {
        match kind {
            Kind::Arp => Ok(frame::arp(FROM_CLIENT)),
            Kind::Echo => frame::echo(FROM_CLIENT, self.pinging().src, self.pinging().dst, true),
            Kind::Client(_) | Kind::Foreign => self.client_packet(kind, flow).bytes(),
            Kind::Backend(flags) => self.backend_packet(flags, flow).bytes(),
        }
    }

    /// Who asks for an echo, and from where it comes.
    fn pinging(&self) -> Ends {
        Ends {
            src: client::<V>(0),
            dst: self.balancer.address,
        }
    }

    fn client_packet(&self, kind: Kind, flow: Option<u32>) -> Frame {
        let (src, identification, balance) = match flow {
            None => ((V::CLIENTS, 0).into(), 0, 0),
            Some(flow) => {
                let (address, port) = lb_bench_driver::client(flow);
                let balance = u32::from(!address) | u32::from(!port) << 16;
                (client::<V>(flow), !address, balance)
            }
        };
        let (dst, flags) = match kind {
            Kind::Client(flags) => (self.balancer.address, flags),
            _ => (
                (V::ELSEWHERE, self.balancer.address.port()).into(),
                Flags::Ack,
            ),
        };
        Frame {
            macs: FROM_CLIENT,
            src,
            dst,
            protocol: self.balancer.protocol,
            flags,
            hops: HOPS,
            identification,
            header: match self.balancer.named {
                Some(_) => &QUIC,
                None => &[],
            },
            balance,
        }
    }

    fn backend_packet(&self, flags: Flags, flow: Option<u32>) -> Frame {
        let nowhere = (V::UNSPECIFIED, 0).into();
        let none = Ends {
            src: nowhere,
            dst: nowhere,
        };
        let (ends, (identification, balance)) = match flow {
            None => (none, (0, 0)),
            Some(flow) => {
                let key = &self.replies[flow as usize];
                (V::ends(key), V::compensation(key))
            }
        };
        Frame {
            macs: FROM_BACKEND,
            src: ends.src,
            dst: ends.dst,
            protocol: self.balancer.protocol,
            flags,
            hops: HOPS,
            identification,
            header: &[],
            balance: balance.into(),
        }
    }

    /// The verdict on the packet of a flow, and the frame that leaves.
    fn leaving(&self, scenario: Scenario, kind: Kind, flow: u32) -> Result<(u32, Vec<u8>)> {
        let arrived = match kind {
            Kind::Arp | Kind::Foreign => {
                return Ok((XDP_PASS, self.arriving(kind, Some(flow))?.into()));
            }
            Kind::Echo => {
                let (macs, ends) = (FROM_CLIENT.reversed(), self.pinging().reversed());
                let answer = frame::echo(macs, ends.src, ends.dst, false)?;
                return Ok((XDP_TX, answer.into()));
            }
            Kind::Client(_) => self.client_packet(kind, Some(flow)),
            Kind::Backend(flags) => self.backend_packet(flags, Some(flow)),
        };
        let ends = Ends {
            src: arrived.src,
            dst: arrived.dst,
        };
        if !self.balancer.mode.translates() {
            return Ok((XDP_TX, self.sent_on(&arrived, &ends)?));
        }
        let (to, macs) = match scenario {
            Scenario::Reply => (self.towards_client(&ends)?, FROM_CLIENT.reversed()),
            _ => self.towards_backend(&ends)?,
        };
        let left = Frame {
            src: to.src,
            dst: to.dst,
            macs,
            hops: HOPS - 1,
            ..arrived
        };
        Ok((XDP_TX, left.bytes()?.into()))
    }

    /// What a client's packet becomes that is not translated.
    fn sent_on(&self, arrived: &Frame, ends: &Ends) -> Result<Vec<u8>> {
        let hash = V::hash(&self.key(ends)?);
        let target = self.balancer.target::<V>(hash);
        let frame = Frame {
            macs: target.macs,
            hops: HOPS - 1,
            ..*arrived
        };
        let frame = frame.bytes()?;
        Ok(match self.balancer.outer::<V>(target.address.ip()) {
            Some(outer) => outer.wrap(&frame, ETHERNET, hash),
            None => frame.into(),
        })
    }

    /// What a client's packet becomes: the ring says which backend it goes to, and the
    /// flow table, with full NAT, from which port.
    fn towards_backend(&self, ends: &Ends) -> Result<(Ends, Macs)> {
        let key = self.key(ends)?;
        let target = self.balancer.target::<V>(V::hash(&key));
        let src = if self.balancer.mode == Mode::FullNat {
            let flow = self.tables_ref().flows.get(&key)?;
            let flow = flow.with_context(|| format!("no flow for {ends:?}"))?;
            (V::SOURCE, V::ends(flow.to()).src.port()).into()
        } else {
            ends.src
        };
        let to = Ends {
            src,
            dst: target.address,
        };
        Ok((to, target.macs))
    }

    /// What a backend's packet becomes: the service's to the client whose packets
    /// become its reverse.
    fn towards_client(&self, ends: &Ends) -> Result<Ends> {
        let reply = self.tables_ref().replies.get(&self.key(ends)?)?;
        let reply = reply.with_context(|| format!("no entry for {ends:?}"))?;
        let client = V::ends(reply.to()).dst;
        let forward = Ends {
            src: client,
            dst: self.balancer.address,
        };
        let (to, _) = self.towards_backend(&forward)?;
        ensure!(
            to == ends.reversed(),
            "a reply from {} to {} is for {client}, whose packets go to {} from {}",
            ends.src,
            ends.dst,
            to.dst,
            to.src
        );
        Ok(forward.reversed())
    }

    fn key(&self, ends: &Ends) -> Result<V::Key> {
        V::key(ends, number_of(self.balancer.protocol))
            .with_context(|| format!("{ends:?} are of the other family"))
    }

    /// Runs the program under test and checks that each packet was counted as what it
    /// is, and none as dropped.
    fn run_under_test(
        &mut self,
        plan: &mut Plan,
        packets: u32,
        scenario: Scenario,
    ) -> Result<Outcome> {
        let before = self.balancer.counters()?;
        let outcome = self
            .driver
            .run(Callee::UnderTest, &self.program, plan, packets)?;
        self.balancer.check_drops()?;
        let packets = u64::from(packets);
        let (bytes, none) = (packets * ip_bytes(), Counters::default());
        let passed = match scenario {
            Scenario::NotOurs | Scenario::Echo => none,
            Scenario::Reply => Counters {
                reply_packets: packets,
                reply_bytes: bytes,
                ..none
            },
            Scenario::Tracked
            | Scenario::New
            | Scenario::Clean
            | Scenario::CleanSyn
            | Scenario::Changing
            | Scenario::Pinned
            | Scenario::Quic => Counters {
                packets,
                bytes,
                new_flows: match scenario {
                    Scenario::New | Scenario::CleanSyn => packets,
                    _ => 0,
                },
                ..none
            },
        };
        let (expected, after) = (before.plus(passed), self.balancer.counters()?);
        ensure!(
            after == expected,
            "{packets} packets brought the counters from {before:?} to {after:?}"
        );
        Ok(outcome)
    }

    /// Removes the flows of a round, as the daemon does, so that the next one finds the
    /// tables as this one did.
    fn forget(&mut self, plan: &Plan, packets: u32) -> Result<()> {
        for n in 0..packets {
            let ends = Ends {
                src: client::<V>(plan.base + plan.order.nth(n)),
                dst: self.balancer.address,
            };
            let key = self.key(&ends)?;
            let ports = Arc::clone(&self.tables.ports);
            let tables = V::tables_mut(&mut self.tables);
            if !self.balancer.mode.translates() {
                tables.pins.take(&key)?.context("a flow was lost")?;
                continue;
            }
            let flow = tables.flows.get(&key)?.context("a flow was lost")?;
            let both = tables.flows.take(&key)?.is_some()
                && tables.replies.take(&flow.partner())?.is_some();
            ensure!(both, "a flow has no entry for replies: {ends:?}");
            let pool = flow.entry().port_pool;
            let port = V::ends(flow.to()).src.port();
            ensure!(
                pool == 0 || ports.free(pool, port),
                "port {port} of pool {pool} was free"
            );
        }
        Ok(())
    }

    fn tables_ref(&self) -> &FlowPair<V> {
        V::tables(&self.tables)
    }
}

/// What the packets of a plan are.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// From clients of the service.
    Client(Flags),
    /// From its backends.
    Backend(Flags),
    /// TCP from and to somewhere else.
    Foreign,
    /// ICMP echo requests to the service address.
    Echo,
    /// ARP.
    Arp,
}

impl Kind {
    fn of(row: &Row) -> Self {
        match row.scenario {
            Scenario::NotOurs if row.family.is_none() => Self::Arp,
            Scenario::NotOurs => Self::Foreign,
            Scenario::Tracked
            | Scenario::Clean
            | Scenario::Changing
            | Scenario::Pinned
            | Scenario::Quic => Self::Client(Flags::Ack),
            Scenario::New | Scenario::CleanSyn => Self::Client(Flags::Syn),
            Scenario::Echo => Self::Echo,
            Scenario::Reply => Self::Backend(Flags::Ack),
        }
    }
}

/// The number of the flow that the last run was for.
fn last(plan: &Plan) -> u32 {
    plan.base + plan.order.nth(plan.next - 1)
}

/// Length of an Ethernet header.
const ETHERNET: usize = 14;

/// Length of the IP packet in a frame.
const fn ip_bytes() -> u64 {
    (FRAME - ETHERNET) as u64
}

/// That the last run ended as it should.
fn check(outcome: &Outcome, verdict: u32, frame: &[u8]) -> Result<()> {
    ensure!(
        outcome.verdict == verdict,
        "XDP verdict {} in place of {verdict}",
        outcome.verdict
    );
    ensure!(
        outcome.frame == frame,
        "the frame is\n{:02x?}\nin place of\n{frame:02x?}",
        outcome.frame
    );
    Ok(())
}
