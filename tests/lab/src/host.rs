//! A host: a network namespace with a name, and what runs inside.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    panic,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use crate::{
    Background, Capture, Process, Snmp, Stop,
    command::{run, run_with_input},
    netns,
};

/// Set in every host, before it has interfaces.
const SYSCTLS: &[(&str, &str)] = &[
    // Addresses are there as soon as they are added, without duplicate address
    // detection, and no others come by themselves.
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    // Multicast groups are reported when they are joined and a second time at once,
    // not after a second: then a test can account for every packet of a host.
    (
        "net/ipv6/conf/default/mldv2_unsolicited_report_interval",
        "1",
    ),
    // A strict filter would drop packets to and from service addresses, which
    // are on no interface.
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
];

/// A host of a [`Lab`](crate::Lab). Clones are the same host.
#[derive(Clone, Debug)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    netns: String,
    /// Keeps the namespace open; threads and processes enter by it.
    file: File,
    directory: PathBuf,
    lasting: bool,
    number: u8,
    interfaces: AtomicU8,
}

/// The place of a host in its lab.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// The id of the lab.
    pub(crate) lab: &'a str,
    /// Where its logs go.
    pub(crate) directory: &'a Path,
    /// Which host of the lab it is, from 1.
    pub(crate) number: u8,
    /// Its processes stay when this one ends.
    pub(crate) lasting: bool,
}

impl Host {
    /// Makes the namespace of the host that `place` describes.
    pub(crate) fn create(place: Place<'_>) -> Result<Self> {
        let netns = netns::name(place.lab, place.name);
        let file = netns::create(&netns)?;
        let host = Self(Arc::new(Inner {
            name: place.name.to_owned(),
            netns,
            file,
            directory: place.directory.to_owned(),
            lasting: place.lasting,
            number: place.number,
            interfaces: AtomicU8::new(0),
        }));
        for (key, value) in SYSCTLS {
            host.sysctl(key, value)?;
        }
        host.ip("link set lo up")?;
        Ok(host)
    }

    /// Its name within the lab.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The name of its namespace, as `ip -n NAME` takes it.
    #[must_use]
    pub fn netns(&self) -> &str {
        &self.0.netns
    }

    /// Calls `function` on a thread inside this host, and returns what it returns.
    ///
    /// Sockets made there stay in this host wherever they are used afterwards, and
    /// threads started there are in this host, too.
    ///
    /// # Panics
    ///
    /// When `function` does, with the same payload.
    pub fn enter<R: Send>(&self, function: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter_thread();
                function()
            });
            thread
                .join()
                .unwrap_or_else(|payload| panic::resume_unwind(payload))
        })
    }

    /// Calls `function` on a thread inside this host that goes on by itself.
    ///
    /// It should return soon after it is told to [`Stop`].
    pub fn background<R: Send + 'static>(
        &self,
        function: impl FnOnce(&Stop) -> R + Send + 'static,
    ) -> Background<R> {
        let host = self.clone();
        Background::start(move |stop| {
            host.enter_thread();
            function(stop)
        })
    }

    fn enter_thread(&self) {
        setns(&self.0.file, CloneFlags::CLONE_NEWNET)
            .unwrap_or_else(|error| panic!("cannot enter the host `{}`: {error}", self.name()));
    }

    /// A command that will run inside this host.
    ///
    /// Only the network namespace is entered: unlike with `ip netns exec`, `/sys`
    /// and with it bpffs stay those of the machine.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let host = Arc::clone(&self.0);
        let enter = move || setns(&host.file, CloneFlags::CLONE_NEWNET).map_err(Into::into);
        #[expect(
            unsafe_code,
            reason = "the only way to run setns between fork and exec"
        )]
        // SAFETY: the closure makes one system call and allocates nothing, so it may
        // run in the child of a process with several threads.
        unsafe {
            command.pre_exec(enter);
        }
        command
    }

    /// Starts `command`, which [`Host::command`] has made, in the background.
    ///
    /// What it writes goes to a log named by `label`. It is killed when the returned
    /// guard is dropped, and when this process ends in whatever way, unless the lab is
    /// one that stays.
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    pub fn spawn(&self, label: &str, command: Command) -> Result<Process> {
        Process::spawn(self.log_path(label), command, self.0.lasting)
    }

    fn log_path(&self, label: &str) -> PathBuf {
        let file = format!("{}-{label}.log", self.name());
        self.0.directory.join(file)
    }

    /// Runs `ip` inside this host with these arguments, which contain no spaces
    /// themselves. Returns what it prints.
    ///
    /// # Errors
    ///
    /// When `ip` fails, with what it says.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        run(self.command("ip").args(arguments.split_whitespace()))
    }

    /// Runs several `ip` commands, one a line, with one process.
    pub(crate) fn ip_batch(&self, lines: &str) -> Result<()> {
        run_with_input(self.command("ip").args(["-batch", "-"]), lines)?;
        Ok(())
    }

    /// Sets a kernel parameter of this host: a path below `/proc/sys`, such as
    /// `net/ipv4/ip_forward`.
    ///
    /// # Errors
    ///
    /// When there is no such parameter, or it does not take the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        // What is below `net` belongs to the namespace of the thread that opens it.
        self.enter(|| fs::write(&path, value))
            .with_context(|| format!("cannot write `{value}` to {}", path.display()))
    }

    /// The protocol counters of this host's kernel.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn snmp(&self) -> Result<Snmp> {
        self.enter(Snmp::read)
    }

    /// The Ethernet address of an interface, such as `02:00:00:00:01:01`.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn mac(&self, interface: &str) -> Result<String> {
        let json = self.ip(&format!("-json link show dev {interface}"))?;
        let links: serde_json::Value = serde_json::from_str(&json)?;
        links[0]["address"]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("`{interface}` has no Ethernet address"))
    }

    /// Writes the packets of an interface to `HOST-INTERFACE-LABEL.pcap` in the lab's
    /// directory, whole and at most `limit` of them. The directory goes with the lab
    /// unless `LB_LAB_KEEP` is set.
    ///
    /// XDP comes before the capture: look at the neighbours of a balancer, not at
    /// the balancer itself.
    ///
    /// # Errors
    ///
    /// When `tcpdump` is missing or does not start to capture.
    pub fn capture(&self, interface: &str, label: &str, limit: u32) -> Result<Capture> {
        Capture::start(self, &self.0.directory, interface, label, limit)
    }

    /// The number of this host in its lab and of its next interface, both from 1.
    pub(crate) fn next_interface(&self) -> (u8, u8) {
        let interface = 1 + self.0.interfaces.fetch_add(1, Ordering::Relaxed);
        (self.0.number, interface)
    }
}
