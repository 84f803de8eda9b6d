//! What on a host will hurt, and how to mend it: the facts (`facts`), and what follows from them.

mod facts;
mod kernel;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde::Serialize;

pub use self::facts::Facts;
use crate::{
    config::{Config, XdpMode, host},
    datapath::AttachedMode,
    state::{Mode, words},
};

words! {
    /// How much a finding hurts.
    Severity, "severity", "`error`, `warning` or `note`" {
        /// Packets are lost, or the balancer does not start.
        Error = "error",
        /// Some packets are lost, or it is slow.
        Warning = "warning",
        /// Worth to know.
        Note = "note",
    }
}

/// Something that hurts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is: a word that stays the same, see [`CHECKS`].
    pub id: &'static str,
    /// How much it hurts.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub hint: String,
}

/// A check, with the most that it finds.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// The `id` of its findings.
    pub id: &'static str,
    /// What it looks for.
    pub what: &'static str,
}

macro_rules! checks {
    ($($constant:ident = $id:literal, $what:literal;)+) => {
        $(const $constant: &str = $id;)+

        /// Every check.
        pub const CHECKS: &[Check] = &[$(Check { id: $id, what: $what },)+];
    };
}

checks! {
    CONFIG = "config", "The configuration cannot be read, or has mistakes.";
    KERNEL = "kernel-version", "The kernel is older than Linux 6.1.";
    JIT = "bpf-jit", "BPF programs are interpreted.";
    BTF = "btf", "The kernel tells no types (BTF).";
    BPFFS = "bpf-file-system", "The datapath is to be kept on no BPF file system.";
    MEMORY = "memory", "The flow tables do not fit in what memory is free.";
    FILES = "open-files", "Health checks need more open files than a process may have.";
    INTERFACE = "interface-missing", "There is no interface of a name.";
    DOWN = "interface-down", "An interface is off, or has no carrier.";
    OCCUPIED = "xdp-occupied", "Another XDP program is attached to an interface.";
    GENERIC = "xdp-generic", "The program runs in the network stack, not in the driver.";
    LRO = "large-receive-offload", "A driver joins packets before XDP sees them.";
    RX_VLAN = "vlan-offload", "A driver hides VLAN tags from XDP.";
    QUEUES = "receive-queues", "An interface has fewer receive queues than there are CPUs.";
    TUNNEL_MTU = "tunnel-mtu", "Full packets of clients do not fit in a tunnel.";
    FORWARDING = "ip-forwarding", "Backends' own packets are not forwarded, with `nat`.";
    REDIRECTS = "send-redirects", "Backends are told to go around this host, with `nat`.";
    RP_FILTER = "rp-filter", "Strict reverse path filtering drops what comes by another way.";
    IPV6 = "ipv6-disabled", "IPv6 is switched off, and services or backends need it.";
    PORTS = "source-ports", "Source ports of full NAT are those of this host's own sockets, too.";
    ROUTE = "no-route", "There is no route to a backend.";
    LOCAL_BACKEND = "backend-local", "A backend's address is this host's own.";
    NEXT_HOP = "next-hop", "The running balancer does not reach a backend.";
    DUPLICATE = "duplicate-address", "Another host on the network has a service address.";
    OWN_VIP = "service-address-local", "A service address is this host's own, too.";
    FILTERS = "packet-filter", "Packet filters of this host do not see what is balanced.";
    ORPHANED = "no-daemon", "Packets are balanced, and no daemon runs.";
    DETACHED = "not-attached", "The running balancer is not attached to an interface.";
    RIGHTS = "rights", "Without root, not everything can be looked at.";
}

/// The oldest kernel that is supported.
const OLDEST_KERNEL: (u32, u32) = (6, 1);
/// The largest packet that most clients send, in bytes.
const CLIENT_MTU: u32 = 1_500;
/// Files that a process has open beside those of health checks.
const OTHER_FILES: u64 = 256;

/// What follows from the facts, the worst first. Of a host without a configuration, only what
/// holds for every one.
#[must_use]
pub fn examine(facts: &Facts, config: Option<&Config>) -> Vec<Finding> {
    let mut patient = Patient {
        facts,
        findings: Vec::new(),
    };
    patient.host();
    if let Some(config) = config {
        patient.limits(config);
        for name in &config.interfaces {
            patient.interface(config, name);
        }
        patient.modes(config);
        patient.addresses(config);
        patient.daemon(config);
    }
    patient.findings.sort_by_key(|finding| finding.severity);
    patient.findings
}

/// A configuration that cannot be used.
#[must_use]
pub fn unusable(message: String, hint: String) -> Finding {
    Finding {
        id: CONFIG,
        severity: Severity::Error,
        message,
        hint,
    }
}

struct Patient<'a> {
    facts: &'a Facts,
    findings: Vec<Finding>,
}

impl Patient<'_> {
    fn find(
        &mut self,
        id: &'static str,
        severity: Severity,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.findings.push(Finding {
            id,
            severity,
            message: message.into(),
            hint: hint.into(),
        });
    }

    /// What holds for every host.
    fn host(&mut self) {
        let facts = self.facts;
        if !facts.is_root {
            self.find(
                RIGHTS,
                Severity::Note,
                "this is not asked by root: which programs and links there are is not seen",
                "run `lb doctor` as root",
            );
        }
        if let Some(version @ (major, minor)) = facts.kernel
            && version < OLDEST_KERNEL
        {
            self.find(
                KERNEL,
                Severity::Error,
                format!("this is Linux {major}.{minor}; lb needs 6.1 or newer"),
                "boot a newer kernel: Debian 12 and later distributions have one",
            );
        }
        if facts.sysctl("net/core/bpf_jit_enable") == Some(0) {
            self.find(
                JIT,
                Severity::Warning,
                "the kernel interprets BPF programs: each packet costs several times as much",
                "`sysctl net.core.bpf_jit_enable=1`",
            );
        }
        if !facts.has_btf {
            self.find(
                BTF,
                Severity::Warning,
                "the kernel tells no types of its own (/sys/kernel/btf/vmlinux is not there)",
                "use a distribution's stock kernel, which has CONFIG_DEBUG_INFO_BTF",
            );
        }
    }

    fn limits(&mut self, config: &Config) {
        let facts = self.facts;
        if !facts.has_bpf_file_system {
            let directory = config.pin_directory.display();
            // It is mounted at the start where Linux has it.
            let is_usual = config.pin_directory.starts_with("/sys/fs/bpf");
            self.find(
                BPFFS,
                if is_usual {
                    Severity::Note
                } else {
                    Severity::Error
                },
                format!("`pin-directory` {directory} is on no BPF file system"),
                if is_usual {
                    "`lb run` mounts one; to have it before: `mount -t bpf bpf /sys/fs/bpf`"
                        .to_owned()
                } else {
                    "mount one there, or use the default, /sys/fs/bpf/lb".to_owned()
                },
            );
        }
        // Tables that are there have their memory already.
        if let Some(memory) = facts.memory
            && facts.links.is_empty()
            && facts.flow_tables > memory
        {
            self.find(
                MEMORY,
                Severity::Error,
                format!(
                    "the flow tables take {} MiB, of which {memory} are free",
                    facts.flow_tables
                ),
                "lower `flows` in `[limits]`",
            );
        }
        let checked = config
            .services
            .iter()
            .filter(|service| service.health.is_some());
        let checks: usize = checked.map(|service| service.backends.len()).sum();
        if let Some(files) = facts.files
            && checks as u64 + OTHER_FILES > files
        {
            self.find(
                FILES,
                Severity::Warning,
                format!("{checks} backends are checked, and a process may open {files} files"),
                "raise the limit: `LimitNOFILE=` in the unit, or `ulimit -Hn` before `lb run`",
            );
        }
    }

    fn interface(&mut self, config: &Config, name: &str) {
        let facts = self.facts;
        let found = facts
            .interfaces
            .iter()
            .find(|interface| interface.name == name);
        let Some(interface) = found else {
            self.find(
                INTERFACE,
                Severity::Error,
                format!("there is no interface `{name}`"),
                "`ip link` lists those that there are; mend `interfaces`",
            );
            return;
        };
        if !interface.up {
            self.find(
                DOWN,
                Severity::Error,
                format!("`{name}` is off, or has no carrier"),
                format!("`ip link set {name} up`; look at the cable and the other end"),
            );
        }
        let mode = facts.programs.get(name).copied();
        let is_ours = facts.links.contains(&interface.ifindex)
            || facts.status.as_ref().is_some_and(|status| {
                let mut interfaces = status.interfaces.iter();
                interfaces.any(|known| known.name == name && known.state == "attached")
            });
        match mode {
            Some(_) if !is_ours => self.find(
                OCCUPIED,
                Severity::Error,
                format!("another XDP program is attached to `{name}`"),
                format!("stop what attached it, or `ip link set dev {name} xdp off`"),
            ),
            Some(AttachedMode::Generic) if config.xdp_mode != XdpMode::Generic => self.find(
                GENERIC,
                Severity::Warning,
                format!(
                    "`{name}` runs the program in the network stack (generic mode), at several \
                     times the cost for each packet"
                ),
                "use a driver with native XDP; `lb run --xdp-mode native` says why it does not \
                 take the program",
            ),
            Some(AttachedMode::Generic) => self.find(
                GENERIC,
                Severity::Warning,
                format!("`xdp-mode` has `{name}` run the program in the network stack"),
                "take `xdp-mode = \"generic\"` out, if the driver has native XDP",
            ),
            Some(AttachedMode::Native) | None => {}
        }
        let driver = facts.drivers.get(name).copied().unwrap_or_default();
        if driver.lro == Some(true) {
            self.find(
                LRO,
                Severity::Error,
                format!("the driver of `{name}` joins packets (large receive offload)"),
                format!("`ethtool -K {name} lro off`"),
            );
        }
        let has_vlans = facts
            .vlans
            .iter()
            .any(|(_, lower)| *lower == interface.ifindex);
        if driver.rx_vlan == Some(true) && has_vlans {
            self.find(
                RX_VLAN,
                Severity::Error,
                format!(
                    "`{name}` has VLAN interfaces, and its driver takes the tags out of frames \
                     before XDP sees them"
                ),
                format!("`ethtool -K {name} rxvlan off`"),
            );
        }
        if let Some(queues) = driver.rx_queues
            && (queues as usize) < facts.cpus
        {
            self.find(
                QUEUES,
                Severity::Note,
                format!(
                    "`{name}` has {queues} receive queues for {} CPUs: the others balance nothing",
                    facts.cpus
                ),
                format!(
                    "`ethtool -L {name} combined {}`, where the driver can",
                    facts.cpus
                ),
            );
        }
        self.rp_filter(name);
    }

    fn rp_filter(&mut self, name: &str) {
        let of = |name: &str| {
            self.facts
                .sysctl(&format!("net/ipv4/conf/{name}/rp_filter"))
        };
        // The larger of both holds (ip-sysctl.rst); 1 is strict, 2 is loose.
        let value = of("all").unwrap_or(0).max(of(name).unwrap_or(0));
        if value == 1 {
            self.find(
                RP_FILTER,
                Severity::Warning,
                format!(
                    "`{name}` drops packets that come by another way than answers would go \
                     (strict reverse path filtering): health checks and what passes may be lost"
                ),
                format!("`sysctl net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{name}.rp_filter=2`"),
            );
        }
    }

    /// What the modes of the services need.
    fn modes(&mut self, config: &Config) {
        let facts = self.facts;
        let tunnels: Vec<_> = config
            .services
            .iter()
            .filter(|s| s.mode.tunnels())
            .collect();
        if !tunnels.is_empty() {
            for interface in &facts.interfaces {
                if config.interfaces.contains(&interface.name) && interface.mtu <= CLIENT_MTU {
                    self.find(
                        TUNNEL_MTU,
                        Severity::Warning,
                        format!(
                            "`{}` has an MTU of {}: packets of {CLIENT_MTU} bytes do not fit in \
                             the tunnels of service `{}`, and their senders are told to send \
                             smaller ones",
                            interface.name, interface.mtu, tunnels[0].name
                        ),
                        "raise the MTU towards the backends by 20 to 52 bytes, or set \
                         `max-segment-size`",
                    );
                }
            }
        }
        let nat: Vec<_> = config
            .services
            .iter()
            .filter(|s| s.mode == Mode::Nat)
            .collect();
        for (is_v4, key, command) in [
            (true, "net/ipv4/ip_forward", "net.ipv4.ip_forward"),
            (
                false,
                "net/ipv6/conf/all/forwarding",
                "net.ipv6.conf.all.forwarding",
            ),
        ] {
            let of_family = |address: std::net::IpAddr| address.is_ipv4() == is_v4;
            let service = nat.iter().find(|s| of_family(s.address.prefix.address()));
            if let Some(service) = service
                && facts.sysctl(key) == Some(0)
            {
                self.find(
                    FORWARDING,
                    Severity::Warning,
                    format!(
                        "this host is the gateway of the backends of service `{}`, and does not \
                         forward packets of their own",
                        service.name
                    ),
                    format!("`sysctl {command}=1`, if they reach anything else by this host"),
                );
            }
        }
        if let Some(service) = nat.first() {
            let of = |name: &str| facts.sysctl(&format!("net/ipv4/conf/{name}/send_redirects"));
            for name in &config.interfaces {
                // Either is enough (ip-sysctl.rst).
                if facts.sysctl("net/ipv4/ip_forward") == Some(1)
                    && (of("all") == Some(1) || of(name) == Some(1))
                {
                    self.find(
                        REDIRECTS,
                        Severity::Warning,
                        format!(
                            "`{name}` tells backends of service `{}` of shorter ways (ICMP \
                             redirects): their answers would go around the balancer",
                            service.name
                        ),
                        format!(
                            "`sysctl net.ipv4.conf.all.send_redirects=0 \
                             net.ipv4.conf.{name}.send_redirects=0`"
                        ),
                    );
                }
            }
        }
        if let Some(ports) = &facts.local_ports {
            for conflict in host::port_conflicts(config, ports) {
                let (message, hint) = conflict.split_once("; ").unwrap_or((&conflict, ""));
                self.find(PORTS, Severity::Error, message, hint);
            }
        }
        if facts.filter_tables > 0 {
            self.find(
                FILTERS,
                Severity::Note,
                format!(
                    "{} tables of packet filters (nftables) are there: packets that are balanced \
                     pass none of them, and connection tracking knows none",
                    facts.filter_tables
                ),
                "say with `allow` and `deny` whom services take packets from",
            );
        }
    }

    /// What is at the addresses of services and backends.
    fn addresses(&mut self, config: &Config) {
        let facts = self.facts;
        let own: BTreeSet<_> = facts.addresses.iter().map(|own| own.address).collect();
        let attached: BTreeSet<u32> = facts
            .interfaces
            .iter()
            .filter(|interface| config.interfaces.contains(&interface.name))
            .map(|interface| interface.ifindex)
            .collect();
        let mut seen = BTreeSet::new();
        let mut needs_ipv6 = false;
        for service in &config.services {
            let vip = service.address.prefix.address();
            needs_ipv6 |= vip.is_ipv6();
            if seen.insert(vip) && service.address.prefix.is_address() {
                let mut neighbours = facts.neighbours.iter();
                if neighbours.any(|(ifindex, known)| *known == vip && attached.contains(ifindex)) {
                    self.find(
                        DUPLICATE,
                        Severity::Error,
                        format!("another host on the network answers for {vip}"),
                        "take the address off that host; backends have it on a loopback \
                         interface, with `arp_ignore=1` and `arp_announce=2`",
                    );
                }
                if facts.own_vips.contains(&vip) {
                    self.find(
                        OWN_VIP,
                        Severity::Note,
                        format!(
                            "{vip} is an address of this host, too: what it sends there itself, \
                             or what comes by other interfaces, is not balanced"
                        ),
                        "that is fine where other hosts find it by ARP; a route needs no address",
                    );
                }
            }
            for backend in &service.backends {
                let ip = backend.address.ip;
                needs_ipv6 |= ip.is_ipv6();
                if !seen.insert(ip) {
                    continue;
                }
                if own.contains(&ip) {
                    self.find(
                        LOCAL_BACKEND,
                        Severity::Error,
                        format!(
                            "backend {} of service `{}` is this host",
                            backend.address, service.name
                        ),
                        "run the backend on another host: XDP sends nothing to its own",
                    );
                } else if facts.unreachable.contains(&ip) {
                    self.find(
                        ROUTE,
                        Severity::Error,
                        format!(
                            "there is no route to backend {} of service `{}`",
                            backend.address, service.name
                        ),
                        format!("`ip route get {ip}` says more; add a route"),
                    );
                }
            }
        }
        if needs_ipv6 && facts.sysctl("net/ipv6/conf/all/disable_ipv6") == Some(1) {
            self.find(
                IPV6,
                Severity::Error,
                "services or backends have IPv6 addresses, and IPv6 is switched off",
                "`sysctl net.ipv6.conf.all.disable_ipv6=0`",
            );
        }
    }

    /// What a running balancer says, or that there is none.
    fn daemon(&mut self, config: &Config) {
        let Some(status) = &self.facts.status else {
            if !self.facts.links.is_empty() {
                self.find(
                    ORPHANED,
                    Severity::Warning,
                    format!(
                        "the kernel balances packets, and no daemon listens on `{}`: backends are \
                         not checked",
                        config.socket.display()
                    ),
                    "start it: `systemctl start lb`, or `lb run`; `lb detach` ends the balancing",
                );
            }
            return;
        };
        for interface in &status.interfaces {
            if interface.state != "attached" {
                let why = interface.error.as_deref().unwrap_or(&interface.state);
                self.find(
                    DETACHED,
                    Severity::Error,
                    format!(
                        "the balancer is not attached to `{}`: {why}",
                        interface.name
                    ),
                    "`lb status` shows when it is",
                );
            }
        }
        let mut seen = BTreeSet::new();
        for service in &status.services {
            for backend in &service.backends {
                let hop = &backend.next_hop;
                if hop.state != "resolved" && seen.insert(backend.address.clone()) {
                    let why = hop.error.as_deref().unwrap_or(&hop.state);
                    self.find(
                        NEXT_HOP,
                        Severity::Error,
                        format!(
                            "service `{}` does not reach backend {}: {why}",
                            service.name, backend.address
                        ),
                        "`ip route get` and `ip neigh` say more of the way there",
                    );
                }
            }
        }
    }
}
