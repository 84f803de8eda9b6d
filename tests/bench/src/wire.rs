//! Frames through virtual cables: how many a second the balancer sends on, beside the least
//! program that sends anything back, and beside nftables.
//!
//! ```text
//! generator eth0 ------ eth0 forwarder
//! ```
//!
//! The generator is an XDP program that the kernel runs on frames of its own (live frames). What
//! is forwarded leaves by the interface that it came in by, and is dropped where it arrives. All
//! of it happens on one CPU, so that frames a second say what everything together takes.

use std::{
    fs::File,
    io::Write as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};
use lb_bench_driver::{Order, Plan, Vary};
use lb_driver::{Driver, Fixed};
use lb_lab::{End, Host, Lab, Link};
use lb_userspace::{
    datapath::{Ipv4, XdpMode},
    state::{Mode, Protocol, Word as _},
};
use nix::sched::{CloneFlags, setns};
use serde::Serialize;

use crate::{
    frame::{Flags, Frame, HOPS},
    ip::Ip,
    row::{Group, IpVersion, Slots},
    setup::{self, BALANCER_MAC, Balancer, FROM_CLIENT, SERVICE_PORT},
};

/// How much is sent.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Flows: a power of two.
    pub flows: u32,
    /// Frames of a round.
    pub frames: u32,
    /// Rounds.
    pub rounds: u32,
}

impl Traffic {
    /// For figures.
    pub const FULL: Self = Self {
        flows: 4_096,
        frames: 1 << 20,
        rounds: 9,
    };
    /// For a look.
    pub const QUICK: Self = Self {
        flows: 64,
        frames: 1 << 12,
        rounds: 2,
    };
}

/// What a forwarder came to. UDP over IPv4, in frames of the least length that all modes have.
#[derive(Clone, Debug, Serialize)]
pub struct Wire {
    /// Who forwards, and how.
    pub forwarder: String,
    /// Flows that the frames belong to.
    pub flows: u32,
    /// Frames that arrived in a second, at most.
    pub frames_per_second: f64,
    /// The same in the middle of all rounds.
    pub frames_per_second_median: f64,
    /// The most, as a part of what came back from the least program.
    pub of_least: f64,
    /// The part of all frames that was sent and did not arrive.
    pub lost: f64,
}

/// Nanoseconds of the rest are of no interest: a queue has run empty by then.
const SETTLED: Duration = Duration::from_millis(20);
/// No queue takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

const INTERFACE: &str = "eth0";
/// Backends that nftables has: as a map of all would be longer than it is worth.
const NFT_BACKENDS: u32 = 64;

/// Who forwards.
enum Forwarder {
    /// The balancer, and what it has forwarded.
    Lb(Box<Balancer>),
    /// A program that sends everything back; kept for as long as it is attached.
    Least { _attached: Box<Driver> },
    /// The kernel's own, with a program at its interface that leaves everything to it.
    Nftables,
}

/// A forwarder between cables of its own.
struct Contender {
    name: String,
    forwarder: Forwarder,
    generator: Host,
    driver: Driver,
    plan: Plan,
    /// Frames a second of each round.
    rates: Vec<f64>,
    sent: u64,
    arrived: u64,
    /// All of it goes with this.
    _lab: Lab,
}

/// Measures all forwarders in turns. Those that are not installed are told of on stderr.
///
/// # Errors
///
/// Where the kernel refuses, or a forwarder loses most of what it gets.
pub fn wire(traffic: &Traffic) -> Result<Vec<Wire>> {
    lb_driver::pin_thread()?;
    let mut contenders = vec![Contender::least(traffic)?];
    for mode in Mode::ALL {
        contenders.push(Contender::balancer(*mode, traffic)?);
    }
    match Contender::nftables(traffic)? {
        Some(nftables) => contenders.push(nftables),
        None => eprintln!("nftables is left out: there is no program `nft`"),
    }
    for contender in &mut contenders {
        // Every flow begins, and caches are filled.
        contender
            .send(traffic.flows.max(traffic.frames / 4))
            .with_context(|| contender.name.clone())?;
        (contender.sent, contender.arrived) = (0, 0);
        contender.rates.clear();
    }
    for _ in 0..traffic.rounds {
        for contender in &mut contenders {
            contender
                .send(traffic.frames)
                .with_context(|| contender.name.clone())?;
        }
    }
    let mut least = None;
    let result = |contender: &mut Contender| {
        contender.check()?;
        contender.rates.sort_unstable_by(f64::total_cmp);
        let most = contender.rates.last().copied().context("no rounds")?;
        Ok(Wire {
            forwarder: contender.name.clone(),
            flows: traffic.flows,
            frames_per_second: most.round(),
            frames_per_second_median: contender.rates[contender.rates.len() / 2].round(),
            of_least: most / *least.get_or_insert(most),
            lost: 1.0 - contender.arrived as f64 / contender.sent as f64,
        })
    };
    contenders.iter_mut().map(result).collect()
}

impl Contender {
    /// The least program.
    fn least(traffic: &Traffic) -> Result<Self> {
        let cables = Cables::new("wire-least")?;
        let mut least = Driver::load(1, 1)?;
        within(&cables.forwarder, || {
            least.attach(Fixed::Reflect, INTERFACE)
        })?;
        let forwarder = Forwarder::Least {
            _attached: Box::new(least),
        };
        cables.contender("least program".to_owned(), forwarder, traffic)
    }

    fn balancer(mode: Mode, traffic: &Traffic) -> Result<Self> {
        let cables = Cables::new(&format!("wire-{}", mode.as_str()))?;
        let group = Group {
            mode,
            family: IpVersion::Ipv4,
            protocol: Protocol::Udp,
            flows: traffic.flows,
            slots: Slots::Clean,
            feature: None,
            rows: Vec::new(),
        };
        let ifindex = cables.ifindex(&cables.forwarder)?;
        let balancer = within(&cables.forwarder, || {
            let mut balancer = Balancer::load::<Ipv4>(&group, 2 * traffic.flows, ifindex)?;
            balancer.datapath.attach(INTERFACE, XdpMode::Native)?;
            Ok(balancer)
        })?;
        let forwarder = Forwarder::Lb(Box::new(balancer));
        cables.contender(format!("lb {}", mode.as_str()), forwarder, traffic)
    }

    /// Destination NAT by a hash of the client's address and port. `None` without the program
    /// that sets it up.
    fn nftables(traffic: &Traffic) -> Result<Option<Self>> {
        let mut version = Command::new("nft");
        let exists = version.arg("--version").stdout(Stdio::null()).status();
        if !exists.is_ok_and(|status| status.success()) {
            return Ok(None);
        }
        let cables = Cables::passing("wire-nftables")?;
        let host = &cables.forwarder;
        host.sysctl("net/ipv4/ip_forward", "1")?;
        // What goes back to where it came from is no mistake here.
        for interface in ["all", INTERFACE] {
            host.sysctl(&format!("net/ipv4/conf/{interface}/send_redirects"), "0")?;
        }
        host.ip("route add 10.0.0.0/8 dev eth0")?;
        let mut map = Vec::new();
        for number in 0..NFT_BACKENDS {
            let backend = Ipv4::backend(number + 1);
            host.ip(&format!(
                "neighbour add {backend} lladdr 02:00:00:00:00:02 dev eth0 nud permanent"
            ))?;
            map.push(format!("{number} : {backend}"));
        }
        let rules = format!(
            "table ip lb {{\n\
             chain prerouting {{\n\
             type nat hook prerouting priority dstnat;\n\
             ip daddr {} udp dport {SERVICE_PORT} dnat to \
             jhash ip saddr . udp sport mod {NFT_BACKENDS} map {{ {} }}\n\
             }}\n\
             }}\n",
            setup::service::<Ipv4>().ip(),
            map.join(", ")
        );
        let mut nft = host
            .command("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()?;
        let mut input = nft.stdin.take().context("nft has no input")?;
        input.write_all(rules.as_bytes())?;
        drop(input);
        ensure!(nft.wait()?.success(), "nft does not take the rules");
        let name = "nftables dnat".to_owned();
        cables
            .contender(name, Forwarder::Nftables, traffic)
            .map(Some)
    }

    /// Sends frames, and notes how many arrive.
    fn send(&mut self, frames: u32) -> Result<()> {
        let before = received(&self.generator)?;
        let (driver, plan) = (&mut self.driver, &mut self.plan);
        let time = within(&self.generator, || driver.transmit(plan, frames))?;
        let arrived = settled(&self.generator)? - before;
        ensure!(
            arrived >= u64::from(frames) / 2 && arrived <= u64::from(frames),
            "of {frames} frames {arrived} arrived"
        );
        self.sent += u64::from(frames);
        self.arrived += arrived;
        self.rates.push(arrived as f64 / time.as_secs_f64());
        Ok(())
    }

    /// That the balancer counts what arrived, and has dropped nothing.
    fn check(&self) -> Result<()> {
        let Forwarder::Lb(balancer) = &self.forwarder else {
            return Ok(());
        };
        balancer.check_drops()?;
        let counted = balancer.counters()?.packets;
        ensure!(
            counted >= self.arrived,
            "{} frames arrived, of which {} counts {counted}",
            self.arrived,
            self.name
        );
        Ok(())
    }
}

/// Both hosts, without a forwarder.
struct Cables {
    lab: Lab,
    generator: Host,
    forwarder: Host,
}

impl Cables {
    fn new(name: &str) -> Result<Self> {
        Self::with(name, |end| end)
    }

    /// With a program at the forwarder's interface that leaves all to the kernel.
    fn passing(name: &str) -> Result<Self> {
        Self::with(name, End::takes_xdp_frames)
    }

    fn with(name: &str, adapt: impl FnOnce(End) -> End) -> Result<Self> {
        let lab = Lab::new(name)?;
        let (generator, forwarder) = (lab.host("generator")?, lab.host("forwarder")?);
        let end = End::of(&forwarder, INTERFACE).address("192.0.2.1/32");
        Link::between(End::of(&generator, INTERFACE), adapt(end)).up()?;
        let [a, b, c, d, e, f] = BALANCER_MAC;
        forwarder.ip(&format!(
            "link set dev {INTERFACE} address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"
        ))?;
        Ok(Self {
            lab,
            generator,
            forwarder,
        })
    }

    fn ifindex(&self, host: &Host) -> Result<u32> {
        let index = link(host)?["ifindex"].as_u64();
        Ok(index.context("an interface has no index")?.try_into()?)
    }

    fn contender(self, name: String, forwarder: Forwarder, traffic: &Traffic) -> Result<Contender> {
        let mut driver = Driver::load(1, self.ifindex(&self.generator)?)?;
        within(&self.generator, || driver.attach(Fixed::Swallow, INTERFACE))?;
        let frame = Frame {
            macs: FROM_CLIENT,
            src: (Ipv4::CLIENTS, 0).into(),
            dst: setup::service::<Ipv4>(),
            protocol: Protocol::Udp,
            flags: Flags::Ack,
            hops: HOPS,
            identification: 0,
            header: &[],
            balance: 0,
        };
        Ok(Contender {
            name,
            forwarder,
            driver,
            plan: Plan {
                frame: frame.bytes()?,
                vary: Vary::Client4 as u16,
                unwraps: 0,
                order: Order::scattered(traffic.flows),
                base: 0,
                next: 0,
            },
            generator: self.generator,
            rates: Vec::new(),
            sent: 0,
            arrived: 0,
            _lab: self.lab,
        })
    }
}

/// What `ip` says of the interface of a host.
fn link(host: &Host) -> Result<serde_json::Value> {
    let json = host.ip(&format!("-json -statistics link show dev {INTERFACE}"))?;
    let mut links: Vec<serde_json::Value> = serde_json::from_str(&json)?;
    links.pop().context("there is no such interface")
}

/// Frames that have arrived, those that were dropped there among them.
fn received(host: &Host) -> Result<u64> {
    let packets = link(host)?["stats64"]["rx"]["packets"].as_u64();
    packets.context("an interface has no statistics")
}

/// The same when no more come.
fn settled(host: &Host) -> Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = received(host)?;
    loop {
        thread::sleep(SETTLED);
        let now = received(host)?;
        if now == last {
            return Ok(now);
        }
        if Instant::now() > deadline {
            bail!("frames still come after {PATIENCE:?}");
        }
        last = now;
    }
}

/// Works in the network namespace of a host, on the calling thread: what is loaded belongs to it.
fn within<R>(host: &Host, work: impl FnOnce() -> Result<R>) -> Result<R> {
    let home = File::open("/proc/thread-self/ns/net").context("cannot open this namespace")?;
    let path = format!("/run/netns/{}", host.netns());
    let there = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    setns(&there, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {path}"))?;
    let result = work();
    setns(&home, CloneFlags::CLONE_NEWNET).context("cannot return from a namespace")?;
    result
}

/// The table.
pub(crate) fn table(results: &[Wire]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "FORWARDER",
        "FLOWS",
        "FRAMES/S",
        "MEDIAN",
        "OF LEAST",
        "LOST %",
    ]);
    for wire in results {
        table.add_row([
            wire.forwarder.clone(),
            wire.flows.to_string(),
            format!("{:.0}", wire.frames_per_second),
            format!("{:.0}", wire.frames_per_second_median),
            format!("{:.2}", wire.of_least),
            format!("{:.2}", wire.lost * 100.0),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
