//! What there is to know of a host.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::Path,
};

use nix::{
    sys::{
        resource::{Resource, getrlimit},
        statfs::statfs,
        utsname::uname,
    },
    unistd::geteuid,
};

use super::kernel;
use crate::{
    config::{Config, host::LocalPorts},
    datapath::{self, AttachedMode, Driver, Options, Pinned},
    neighbour::{self, HostAddress, Interface, Locality},
    state::Status,
};

/// What is looked at. Where it could not be, it is `None` or empty, and nothing is said of it.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Whether this is asked by root: others see less.
    pub is_root: bool,
    /// Major and minor version of the kernel.
    pub kernel: Option<(u32, u32)>,
    /// The kernel tells the types of its structures.
    pub has_btf: bool,
    /// A BPF file system is where the datapath is to be kept, or would be mounted there.
    pub has_bpf_file_system: bool,
    /// CPUs that are on.
    pub cpus: usize,
    /// Memory that is free to be used, in MiB.
    pub memory: Option<u64>,
    /// Files that a process may open at most.
    pub files: Option<u64>,
    /// Values under `/proc/sys`, by path below that.
    pub sysctls: BTreeMap<String, String>,
    /// The interfaces.
    pub interfaces: Vec<Interface>,
    /// What drivers say of those of the configuration, by name.
    pub drivers: BTreeMap<String, Driver>,
    /// The programs that are attached to them, by name.
    pub programs: BTreeMap<String, AttachedMode>,
    /// The interfaces of the links that are kept of a datapath, by index.
    pub links: Vec<u32>,
    /// VLAN interfaces, with those that they stand on, by index.
    pub vlans: Vec<(u32, u32)>,
    /// The addresses of the host.
    pub addresses: Vec<HostAddress>,
    /// Neighbours, with the index of their interface.
    pub neighbours: Vec<(u32, IpAddr)>,
    /// Service addresses that are this host's own.
    pub own_vips: BTreeSet<IpAddr>,
    /// Backends that there is no route to.
    pub unreachable: BTreeSet<IpAddr>,
    /// Tables of packet filters.
    pub filter_tables: usize,
    /// Ports that the kernel gives to local sockets.
    pub local_ports: Option<LocalPorts>,
    /// Memory that the flow tables of the configuration take, in MiB.
    pub flow_tables: u64,
    /// What a running balancer says.
    pub status: Option<Status>,
}

impl Facts {
    /// Looks at this host. `status` is what a running balancer says, if one does.
    #[must_use]
    pub fn gather(config: Option<&Config>, status: Option<Status>) -> Self {
        let mut facts = Self {
            is_root: geteuid().is_root(),
            kernel: kernel_version(),
            has_btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: datapath::available_memory(),
            files: getrlimit(Resource::RLIMIT_NOFILE)
                .ok()
                .map(|(_, hard)| hard),
            interfaces: neighbour::interfaces().unwrap_or_default(),
            vlans: kernel::vlans().unwrap_or_default(),
            addresses: neighbour::addresses().unwrap_or_default(),
            neighbours: kernel::neighbours().unwrap_or_default(),
            filter_tables: kernel::filter_tables().unwrap_or(0),
            local_ports: LocalPorts::of_host().ok(),
            status,
            ..Self::default()
        };
        for name in [
            "net/core/bpf_jit_enable",
            "net/ipv4/ip_forward",
            "net/ipv6/conf/all/forwarding",
        ] {
            facts.read(name.to_owned());
        }
        for directory in ["all", "default"] {
            facts.read_interface(directory);
        }
        if let Some(config) = config {
            facts.of_config(config);
        }
        facts
    }

    fn of_config(&mut self, config: &Config) {
        self.has_bpf_file_system = has_bpf_file_system(&config.pin_directory);
        self.links = Pinned::links_in(&config.pin_directory);
        let options = Options {
            max_flows: config.limits.flows,
            max_embryonic: config.limits.embryonic,
            ..Options::default()
        };
        self.flow_tables = datapath::flow_table_memory(options.entries());
        for name in &config.interfaces {
            self.read_interface(name);
            let driver = datapath::driver(name).unwrap_or_default();
            self.drivers.insert(name.clone(), driver);
            if let Ok(Some(mode)) = datapath::attached_mode(name) {
                self.programs.insert(name.clone(), mode);
            }
        }
        for service in &config.services {
            let prefix = service.address.prefix;
            if prefix.is_address()
                && neighbour::locality(prefix).is_ok_and(|locality| locality == Locality::All)
            {
                self.own_vips.insert(prefix.address());
            }
            for backend in &service.backends {
                if !has_route(backend.address.ip) {
                    self.unreachable.insert(backend.address.ip);
                }
            }
        }
    }

    fn read_interface(&mut self, name: &str) {
        for (family, key) in [
            ("ipv4", "rp_filter"),
            ("ipv4", "send_redirects"),
            ("ipv6", "disable_ipv6"),
        ] {
            self.read(format!("net/{family}/conf/{name}/{key}"));
        }
    }

    fn read(&mut self, name: String) {
        if let Ok(value) = fs::read_to_string(Path::new("/proc/sys").join(&name)) {
            self.sysctls.insert(name, value.trim().to_owned());
        }
    }

    /// A number under `/proc/sys`.
    pub(super) fn sysctl(&self, name: &str) -> Option<i64> {
        self.sysctls.get(name)?.parse().ok()
    }
}

fn kernel_version() -> Option<(u32, u32)> {
    let name = uname().ok()?;
    let release = name.release().to_str()?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Whether a directory, or the one that it would be made in, is on a BPF file system.
fn has_bpf_file_system(directory: &Path) -> bool {
    let existing = directory.ancestors().find(|path| path.exists());
    existing.is_some_and(|path| {
        statfs(path).is_ok_and(|kind| kind.filesystem_type() == datapath::BPF_FS_MAGIC)
    })
}

/// Whether packets to an address would find a way.
fn has_route(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // The discard port; no packet is sent.
    UdpSocket::bind(SocketAddr::new(any, 0))
        .and_then(|socket| socket.connect(SocketAddr::new(address, 9)))
        .is_ok()
}
