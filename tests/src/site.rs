//! A balancer as it runs: the program, its tables and its daemon, in a time of the test's own.
//! Packets go through the program one by one.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use lb_common::{
    addr::LinkPath,
    ring::{Slot, slot},
};
use lb_model::hash::five_tuple;
use lb_userspace::{
    daemon::Stepped,
    datapath::{Datapath, Options, Pinned, Verdict, XdpMode},
    neighbour::{Interface, NextHop, NextHopState},
    state::{
        BackendAddress, BackendPort, BackendSpec, Change, Desired, HealthSpec, Mode, Probe,
        ServiceSpec,
    },
};

use crate::{packet::Packet, world::CLIENT_IF};

/// Ethernet address of the balancer.
const BALANCER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0];
/// Ethernet address of the clients' router.
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 2, 0];

/// What clients send to, and how it is forwarded. There is one service of a mode at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Front {
    /// Name of the service.
    pub name: &'static str,
    /// Its mode.
    pub mode: Mode,
    /// Its address and port.
    pub vip: SocketAddr,
}

impl Front {
    /// A service over IPv4, or over IPv6.
    #[must_use]
    pub fn new(name: &'static str, mode: Mode, ipv6: bool) -> Self {
        let address: IpAddr = if ipv6 {
            Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10).into()
        } else {
            Ipv4Addr::new(192, 0, 2, 10).into()
        };
        let port = 80 + mode as u16;
        Self {
            name,
            mode,
            vip: (address, port).into(),
        }
    }

    /// A client: there are some 2^31 of them.
    #[must_use]
    pub fn client(self, number: u32) -> SocketAddr {
        let (host, port) = (number / 50_000, 10_000 + (number % 50_000) as u16);
        let address: IpAddr = if self.vip.is_ipv6() {
            Ipv6Addr::from_bits(0x2001_0db8_000c_0000_0000_0000_0000_0000 + u128::from(host)).into()
        } else {
            Ipv4Addr::from_bits(0x6440_0001 + host).into()
        };
        (address, port).into()
    }

    /// The address of a backend. Those of services whose clients have IPv6 addresses have
    /// them too where packets are translated.
    #[must_use]
    pub fn backend(self, number: u32) -> BackendAddress {
        let ip = if self.vip.is_ipv6() && self.mode.translates() {
            Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, number as u16).into()
        } else {
            Ipv4Addr::from_bits(0x0a01_0000 + number).into()
        };
        let port = if self.mode.translates() {
            BackendPort::Number(8_080)
        } else {
            BackendPort::Unnamed
        };
        BackendAddress { ip, port }
    }

    /// The service with backends of these numbers, which are checked.
    #[must_use]
    pub fn spec(self, backends: &[u32]) -> ServiceSpec {
        let address = self.vip.to_string().parse().expect("an address");
        ServiceSpec {
            backends: backends
                .iter()
                .map(|number| BackendSpec::new(self.backend(*number)))
                .collect(),
            health: Some(HealthSpec {
                rise: 1,
                fall: 1,
                port: Some(80),
                ..HealthSpec::new(Probe::Tcp)
            }),
            ..ServiceSpec::new(self.name, address, self.mode)
        }
    }
}

/// The number of a backend.
fn number(ip: IpAddr) -> u32 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits() & 0xffff,
        IpAddr::V6(ip) => ip.to_bits() as u32 & 0xffff,
    }
}

/// The Ethernet address of the backend of this number.
fn mac(number: u32) -> [u8; 6] {
    let [_, _, high, low] = number.to_be_bytes();
    [2, 0, 1, 0, high, low]
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It went to the backend of this number, in this frame.
    Backend(u32, Vec<u8>),
    /// It went to a client, in this frame.
    Client(Vec<u8>),
    /// It was left to the host.
    Passed,
    /// It was dropped.
    Dropped,
}

/// The balancer.
pub struct Site {
    /// There is always one, but while it is exchanged.
    daemon: Option<Stepped>,
    options: Options,
    pins: Option<PathBuf>,
    now: Duration,
}

impl Site {
    /// A balancer that has just begun with these services, all backends of which are up.
    ///
    /// # Panics
    ///
    /// Where the program cannot be loaded: these tests need root and BPF. So all methods
    /// where the kernel refuses.
    #[must_use]
    pub fn new(options: Options, services: impl IntoIterator<Item = ServiceSpec>) -> Self {
        Self::with_health(options, services, |_, _| true)
    }

    /// The same with backends of which only those are up that `is_up` says yes to.
    ///
    /// # Panics
    ///
    /// Like [`Self::new`].
    #[must_use]
    pub fn with_health(
        options: Options,
        services: impl IntoIterator<Item = ServiceSpec>,
        is_up: impl Fn(&ServiceSpec, BackendAddress) -> bool,
    ) -> Self {
        let datapath = Datapath::load(&options)
            .expect("these tests load the XDP program and must run as root");
        Self::with(datapath, options, None, services, is_up)
    }

    /// The same with its tables pinned in this directory of a BPF file system, so that the
    /// program is loaded anew when the daemon is.
    ///
    /// # Panics
    ///
    /// Like [`Self::new`].
    #[must_use]
    pub fn pinned(
        directory: &Path,
        options: Options,
        services: impl IntoIterator<Item = ServiceSpec>,
    ) -> Self {
        let pins = Some(directory.to_owned());
        let datapath = load_pinned(directory, &options);
        Self::with(datapath, options, pins, services, |_, _| true)
    }

    fn with(
        datapath: Datapath,
        options: Options,
        pins: Option<PathBuf>,
        services: impl IntoIterator<Item = ServiceSpec>,
        is_up: impl Fn(&ServiceSpec, BackendAddress) -> bool,
    ) -> Self {
        let desired = Desired::new(services).expect("services that can be");
        let mut site = Self {
            daemon: None,
            options,
            pins,
            now: Duration::ZERO,
        };
        site.begin(datapath, desired);
        let services: Vec<ServiceSpec> = site.daemon().desired().services().cloned().collect();
        for service in &services {
            for backend in &service.backends {
                let up = is_up(service, backend.address);
                let daemon = site.daemon();
                daemon.set_health(&service.name, backend.address, up);
            }
        }
        site
    }

    /// A daemon begins, and learns the ways to its backends.
    fn begin(&mut self, datapath: Datapath, desired: Desired) {
        let daemon = Stepped::begin(datapath, &[interface()], desired, self.now);
        self.daemon = Some(daemon.expect("the tables can be read"));
        self.tell_next_hops();
        self.pass(Duration::ZERO);
    }

    /// Another daemon takes the place of the one that runs. Where the tables are pinned,
    /// another program takes that of the one that is loaded.
    ///
    /// # Panics
    ///
    /// Like [`Self::new`].
    pub fn restart(&mut self) {
        let old = self.daemon.take().expect("a daemon");
        let desired = old.desired().clone();
        let mut datapath = old.end();
        if let Some(directory) = &self.pins {
            drop(datapath);
            datapath = load_pinned(directory, &self.options);
        }
        self.begin(datapath, desired);
    }

    /// The daemon.
    ///
    /// # Panics
    ///
    /// Never: there is always one.
    pub fn daemon(&mut self) -> &mut Stepped {
        self.daemon.as_mut().expect("a daemon")
    }

    fn tell_next_hops(&mut self) {
        let daemon = self.daemon();
        for ip in daemon.addresses() {
            daemon.next_hop(ip, next_hop(ip));
        }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Time passes.
    pub fn pass(&mut self, by: Duration) {
        self.now += by;
        let now = self.now;
        self.daemon().pass_to(now);
    }

    /// Changes what is wanted. The ways to new backends are known at once.
    ///
    /// # Panics
    ///
    /// Where the change is refused.
    pub fn change(&mut self, change: Change) {
        self.daemon().change(change).expect("a change that can be");
        self.tell_next_hops();
    }

    /// A backend comes up or goes down.
    pub fn set_health(&mut self, front: Front, number: u32, up: bool) {
        let backend = front.backend(number);
        self.daemon().set_health(front.name, backend, up);
    }

    /// A new backend, which is up.
    ///
    /// # Panics
    ///
    /// Where there is one of its number.
    pub fn add_backend(&mut self, front: Front, number: u32, weight: u32) {
        let backend = BackendSpec {
            weight,
            ..BackendSpec::new(front.backend(number))
        };
        let service = front.name.to_owned();
        self.change(Change::AddBackend { service, backend });
        self.set_health(front, number, true);
    }

    /// A backend goes, with its flows.
    ///
    /// # Panics
    ///
    /// Where there is none of this number.
    pub fn remove_backend(&mut self, front: Front, number: u32) {
        self.change(Change::RemoveBackend {
            service: front.name.to_owned(),
            address: front.backend(number),
        });
    }

    /// Changes what is wanted of a backend.
    ///
    /// # Panics
    ///
    /// Where there is none of this number, or it cannot be so.
    pub fn edit_backend(&mut self, front: Front, number: u32, edit: impl FnOnce(&mut BackendSpec)) {
        let address = front.backend(number);
        let spec = self.service(front);
        let mut backends = spec.backends.into_iter();
        let mut backend = backends
            .find(|backend| backend.address == address)
            .expect("a backend");
        edit(&mut backend);
        let service = front.name.to_owned();
        self.change(Change::SetBackend { service, backend });
    }

    /// What is wanted of a service.
    ///
    /// # Panics
    ///
    /// Where there is none of this name.
    pub fn service(&mut self, front: Front) -> ServiceSpec {
        let service = self.daemon().desired().service(front.name);
        service.expect("a service").clone()
    }

    /// A packet comes from a client.
    ///
    /// # Panics
    ///
    /// Where the program cannot be run, or fails.
    pub fn from_client(&mut self, packet: Packet) -> Fate {
        self.send(packet, CLIENT_MAC)
    }

    /// A packet comes from the backend of this number.
    ///
    /// # Panics
    ///
    /// Like [`Self::from_client`].
    pub fn from_backend(&mut self, number: u32, packet: Packet) -> Fate {
        self.send(packet, mac(number))
    }

    fn send(&mut self, mut packet: Packet, from: [u8; 6]) -> Fate {
        packet.src_mac = from;
        packet.dst_mac = BALANCER_MAC;
        let frame = packet.build();
        let datapath = self.daemon().datapath();
        let run = datapath.test_run(&frame, CLIENT_IF).expect("a run");
        match run.verdict {
            Verdict::Tx if run.frame.starts_with(&CLIENT_MAC) => Fate::Client(run.frame),
            Verdict::Tx => {
                let [.., high, low] = *run.frame.first_chunk::<6>().expect("an address");
                let number = u32::from(high) << 8 | u32::from(low);
                assert_eq!(run.frame.first_chunk(), Some(&mac(number)), "a backend");
                Fate::Backend(number, run.frame)
            }
            Verdict::Pass => {
                assert_eq!(run.frame, frame, "what is passed is as it came");
                Fate::Passed
            }
            Verdict::Drop => Fate::Dropped,
            verdict @ (Verdict::Aborted | Verdict::Redirect) => panic!("{verdict:?}: {packet:?}"),
        }
    }

    /// What was dropped, for people to read.
    pub fn drops(&mut self) -> String {
        let drops = self.daemon().status().drops.into_iter();
        let drops = drops.filter(|(_, packets)| *packets != 0);
        let drops = drops.map(|(reason, packets)| format!("{packets} {reason}"));
        drops.collect::<Vec<_>>().join(", ")
    }

    /// The slots of a service's ring, as packets see them.
    ///
    /// # Panics
    ///
    /// Where there is none.
    pub fn slots(&mut self, front: Front) -> Vec<Slot> {
        let datapath = self.daemon().datapath();
        let services = datapath.services().expect("the services");
        let mode = lb_common::service::Mode::from(front.mode) as u8;
        let mut services = services.values();
        let service = services.find(|service| service.mode == mode);
        let service = service.expect("a service of the mode");
        let ring = datapath.ring(service.id(), service.ring_size());
        ring.expect("the ring can be read").expect("a ring")
    }
}

/// Gives a packet the Ethernet addresses of one from a client.
pub(crate) fn address(packet: &mut Packet) {
    (packet.dst_mac, packet.src_mac) = (BALANCER_MAC, CLIENT_MAC);
}

/// The place in a ring of so many slots that packets from a client have.
#[must_use]
pub fn slot_of(front: Front, client: SocketAddr, slots: usize) -> usize {
    slot(five_tuple(client, front.vip, 6), slots as u32) as usize
}

fn load_pinned(directory: &Path, options: &Options) -> Datapath {
    let pinned = Pinned::open(directory).expect("a directory for pins");
    let mut datapath = Datapath::load_pinned(options, pinned)
        .expect("these tests load the XDP program and must run as root");
    // Tables that nothing is attached with are not kept.
    let mode = datapath.attach_at("client", CLIENT_IF, XdpMode::Auto);
    mode.expect("the program at the interface");
    datapath
}

fn interface() -> Interface {
    Interface {
        ifindex: CLIENT_IF,
        name: "client".to_owned(),
        mac: Some(BALANCER_MAC),
        mtu: 1_500,
        up: true,
        bond: None,
    }
}

/// The way to a backend.
fn next_hop(ip: IpAddr) -> NextHop {
    let source = match ip {
        IpAddr::V4(_) => Ipv4Addr::new(10, 255, 0, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 1, 1).into(),
    };
    NextHop {
        state: NextHopState::Resolved,
        address: Some(ip),
        ifindex: CLIENT_IF,
        interface: Some("client".to_owned()),
        path: Some(LinkPath::new(CLIENT_IF, mac(number(ip)), BALANCER_MAC)),
        mtu: 1_500,
        source: Some(source),
    }
}
