//! What many services and backends cost: to begin with, to change, and to hold.
//!
//! The daemon is the real one on the tables in the kernel, [`Stepped`]: without a clock, and
//! without a network, whose part each row takes over.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use lb_common::{
    addr::LinkPath,
    ring::{NO_BACKEND, RING_SIZE, Slot},
};
use lb_userspace::{
    daemon::Stepped,
    datapath::{Datapath, LogLevel, Options},
    neighbour::{Interface, NextHop, NextHopState},
    state::{BackendAddress, BackendPort, BackendSpec, Change, Desired, Mode, ServiceSpec},
};
use serde::Serialize;

use crate::{memory, setup::IFINDEX};

/// Services, and backends of each.
pub(crate) type Extent = (u32, u32);

/// For figures. All of them have at most as many backends as there is room for.
pub(crate) const FULL: &[Extent] = &[(1, 1_000), (64, 4), (1_000, 10), (256, 255), (4_095, 16)];
/// For a look.
pub(crate) const QUICK: &[Extent] = &[(1, 50), (8, 4)];

/// Changes that are timed.
const CHANGES: u32 = 16;
/// Flows that the tables have room for: their memory is what `memory` tells of.
const FLOWS: u32 = 1 << 16;

/// Rings are made of pages of so many bytes.
const PAGE: u64 = 4_096;

/// A balancer of one extent. Times are in milliseconds: those of the clock, which may be spent
/// with waiting for programs that run, and those of the CPU.
#[derive(Clone, Debug, Serialize)]
pub struct Scale {
    /// Services.
    pub services: u32,
    /// Backends of each.
    pub backends: u32,
    /// From nothing to programs and empty maps in the kernel.
    pub load_ms: f64,
    /// From empty maps to all services with all their backends.
    pub begin_ms: f64,
    /// The same, of CPU.
    pub begin_cpu_ms: f64,
    /// A daemon that finds all in the maps already.
    pub adopt_ms: f64,
    /// One backend gets another weight, from the request to the ring: in the middle of several.
    pub change_ms: f64,
    /// The same, of CPU.
    pub change_cpu_ms: f64,
    /// The longest of them.
    pub change_longest_ms: f64,
    /// Memory of the rings, in MiB.
    pub rings_mib: f64,
    /// Memory of the other maps, in MiB, the flow tables left out.
    pub maps_mib: f64,
    /// Memory of the process, in MiB, mapped rings left out.
    pub process_mib: f64,
}

/// Measures each extent.
///
/// # Errors
///
/// Where BPF refuses, or the daemon does not do what it should.
pub fn scale(extents: &[Extent], mut visit: impl FnMut(&Scale) -> Result<()>) -> Result<()> {
    for (services, backends) in extents {
        let scale = measure(*services, *backends)
            .with_context(|| format!("{services} services of {backends} backends"))?;
        visit(&scale)?;
    }
    Ok(())
}

fn measure(services: u32, backends: u32) -> Result<Scale> {
    let options = Options {
        max_flows: FLOWS,
        max_embryonic: FLOWS,
        log: LogLevel::Off,
    };
    let (datapath, load) = Timing::of(|| Datapath::load(&options))?;
    let datapath = datapath.context("the benchmark loads BPF programs and must run as root")?;
    let desired = Desired::new((0..services).map(|service| spec(service, backends)))?;
    let (daemon, begin) = Timing::of(|| begun(datapath, desired.clone(), Duration::ZERO))?;
    let mut daemon = daemon?;
    check(&mut daemon, services, backends)?;

    let mut changes = Vec::new();
    let mut weights = Vec::new();
    for number in 0..CHANGES {
        let service = number * 7 % services;
        let mut backend = BackendSpec::new(address(service, number % backends));
        backend.weight = 50 + number;
        weights.push((name(service), backend.clone()));
        let change = Change::SetBackend {
            service: name(service),
            backend,
        };
        let (changed, timing) = Timing::of(|| daemon.change(change))?;
        changed?;
        changes.push(timing);
    }
    let (service, backend) = weights.last().context("no change was made")?;
    let wanted = daemon.desired().service(service).context("a service")?;
    ensure!(wanted.backends.contains(backend), "a change was lost");
    changes.sort_unstable_by_key(|timing| timing.clock);
    let middle = changes[changes.len() / 2];
    let longest = changes[changes.len() - 1];

    let ring = u64::from(RING_SIZE) * size_of::<Slot>() as u64;
    let rings_mib = mib(ring.next_multiple_of(PAGE) * u64::from(services));
    let maps_mib = mib(memory::of_maps_but(&memory::FLOW_TABLES)?);
    let process_mib = mib(resident()?);
    let desired = daemon.desired().clone();
    let datapath = daemon.end();
    let (daemon, adopt) = Timing::of(|| begun(datapath, desired, Duration::from_secs(60)))?;
    check(&mut daemon?, services, backends)?;
    Ok(Scale {
        services,
        backends,
        load_ms: load.clock_ms(),
        begin_ms: begin.clock_ms(),
        begin_cpu_ms: begin.cpu_ms(),
        adopt_ms: adopt.clock_ms(),
        change_ms: middle.clock_ms(),
        change_cpu_ms: middle.cpu_ms(),
        change_longest_ms: longest.clock_ms(),
        rings_mib,
        maps_mib,
        process_mib,
    })
}

/// How long something took.
#[derive(Clone, Copy, Debug)]
struct Timing {
    clock: Duration,
    cpu: Duration,
}

impl Timing {
    fn of<T>(work: impl FnOnce() -> T) -> Result<(T, Self)> {
        let (start, cpu) = (Instant::now(), lb_driver::thread_time()?);
        let result = work();
        let timing = Self {
            clock: start.elapsed(),
            cpu: lb_driver::thread_time()? - cpu,
        };
        Ok((result, timing))
    }

    fn clock_ms(self) -> f64 {
        milliseconds(self.clock)
    }

    fn cpu_ms(self) -> f64 {
        milliseconds(self.cpu)
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 100_000.0).round() / 100.0
}

fn mib(bytes: u64) -> f64 {
    (bytes as f64 / f64::from(1 << 20) * 10.0).round() / 10.0
}

/// A daemon that has done all it has to.
fn begun(datapath: Datapath, desired: Desired, now: Duration) -> Result<Stepped> {
    let mut daemon = Stepped::begin(datapath, &[interface()], desired, now)?;
    let addresses = daemon.addresses();
    daemon.next_hops(addresses.map(|address| (address, next_hop(address))));
    daemon.pass_to(now);
    Ok(daemon)
}

/// That the datapath has all services, with a ring in which there are backends.
fn check(daemon: &mut Stepped, services: u32, backends: u32) -> Result<()> {
    let datapath = daemon.datapath();
    let written = datapath.services()?;
    ensure!(
        written.len() == services as usize,
        "{} services are in the datapath",
        written.len()
    );
    let service = written.values().next().context("a service")?;
    let ring = datapath.ring(service.id(), service.ring_size())?;
    let ring = ring.context("a service has no ring")?;
    let mut owners: Vec<u32> = ring.iter().map(|slot| slot.owner).collect();
    owners.sort_unstable();
    owners.dedup();
    ensure!(
        owners.len() == backends as usize && !owners.contains(&NO_BACKEND),
        "{} backends have slots",
        owners.len()
    );
    Ok(())
}

fn name(service: u32) -> String {
    format!("service-{service}")
}

fn spec(service: u32, backends: u32) -> ServiceSpec {
    let vip = Ipv4Addr::from_bits(0xc612_0000 + service);
    let address = format!("{vip}:443").parse().expect("an address");
    ServiceSpec {
        backends: (0..backends)
            .map(|backend| BackendSpec::new(self::address(service, backend)))
            .collect(),
        ..ServiceSpec::new(name(service), address, Mode::Dsr)
    }
}

/// The address of a backend. No other service has it.
fn address(service: u32, backend: u32) -> BackendAddress {
    BackendAddress {
        ip: Ipv4Addr::from_bits(0x0a00_0000 + (service << 10) + backend).into(),
        port: BackendPort::Unnamed,
    }
}

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn interface() -> Interface {
    Interface {
        ifindex: IFINDEX,
        name: "lo".to_owned(),
        mac: Some(MAC),
        mtu: 1_500,
        up: true,
        bond: None,
    }
}

fn next_hop(address: IpAddr) -> NextHop {
    NextHop {
        state: NextHopState::Resolved,
        address: Some(address),
        ifindex: IFINDEX,
        interface: Some("lo".to_owned()),
        path: Some(LinkPath::new(IFINDEX, [2, 0, 0, 0, 0, 2], MAC)),
        mtu: 1_500,
        source: Some(Ipv4Addr::new(10, 255, 0, 1).into()),
    }
}

/// Bytes of memory that are this process's alone: what it maps of the kernel's is counted with
/// the maps.
fn resident() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc")?;
    let field = status.lines().find_map(|line| {
        let value = line.strip_prefix("RssAnon:")?;
        value.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    });
    Ok(field.context("the kernel does not tell the memory of this process")? * 1_024)
}

/// The table.
pub(crate) fn table(scales: &[Scale]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "SERVICES",
        "BACKENDS EACH",
        "LOAD MS",
        "BEGIN MS",
        "CPU",
        "ADOPT MS",
        "CHANGE MS",
        "CPU",
        "LONGEST",
        "RINGS MIB",
        "MAPS MIB",
        "PROCESS MIB",
    ]);
    for scale in scales {
        table.add_row([
            scale.services.to_string(),
            scale.backends.to_string(),
            format!("{:.0}", scale.load_ms),
            format!("{:.0}", scale.begin_ms),
            format!("{:.0}", scale.begin_cpu_ms),
            format!("{:.0}", scale.adopt_ms),
            format!("{:.1}", scale.change_ms),
            format!("{:.1}", scale.change_cpu_ms),
            format!("{:.1}", scale.change_longest_ms),
            format!("{:.0}", scale.rings_mib),
            format!("{:.0}", scale.maps_mib),
            format!("{:.0}", scale.process_mib),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
