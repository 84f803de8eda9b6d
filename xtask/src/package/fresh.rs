//! The package in a fresh Debian, from its installation to the purge.
//!
//! The Debian is a directory that debootstrap fills once. Each trial has it under a layer of its
//! own, in mounts that nobody else sees and that go with the process. The balancer's host is one
//! of a lab, so that there are clients and backends; systemd runs on no part of it. What that
//! would do is done by the words of the unit: its commands, its capabilities, its group, and the
//! socket by which the daemon says that it is ready.

use std::{
    collections::BTreeSet,
    env, fs,
    net::SocketAddr,
    os::unix::{fs::MetadataExt as _, net::UnixDatagram},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lb_lab::{Host, Lab, Load, Process, Status, Topology, TopologyOptions, udp};
use nix::sys::signal::Signal;

use super::{output, run};
use crate::project::target_dir;

/// How long something may take.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long the answer to a datagram may take.
const ANSWER: Duration = Duration::from_secs(10);

/// What the trial balances.
const CONFIGURATION: &str = r#"
interfaces = ["eth0", "eth1"]
limits.flows = 65536
limits.embryonic = 4096

[[service]]
name = "web"
address = "192.0.2.10:80"
mode = "full-nat"
health = { type = "http", path = "/healthz", interval = "1s" }
backend = [{ address = "10.0.0.11:8080" }, { address = "10.0.0.12:8080" }]

[[service]]
name = "echo"
address = "192.0.2.10:1007"
protocol = "udp"
mode = "nat"
backend = [{ address = "10.0.0.11:7" }, { address = "10.0.0.12:7" }]
"#;

/// Two versions of a package that are to be tried, and the server of the lab's backends.
#[derive(clap::Args)]
pub(super) struct Trial {
    pub(super) package: PathBuf,
    pub(super) next: PathBuf,
    pub(super) server: PathBuf,
}

impl Trial {
    /// Makes the Debian if there is none yet, and runs the trial in mounts of its own.
    pub(super) fn prepare(&self, mirror: &str) -> Result<()> {
        let debian = debian()?;
        if !debian.exists() {
            let part = debian.with_extension("part");
            if part.exists() {
                fs::remove_dir_all(&part)?;
            }
            let mut debootstrap = Command::new("debootstrap");
            debootstrap.args(["--variant=minbase", "--include=procps", "bookworm"]);
            run(debootstrap.arg(&part).arg(mirror))?;
            fs::rename(&part, &debian)?;
        }
        let mut within = Command::new("unshare");
        within.args(["--mount", "--propagation", "private"]);
        within.arg(env::current_exe()?).args(["package", "within"]);
        run(within.args([&self.package, &self.next, &self.server]))
    }

    /// The trial itself.
    pub(super) fn run(&self) -> Result<()> {
        let root = mount()?;
        let topology = Topology::standard(Lab::new("package")?, TopologyOptions::default())?;
        let _servers = topology.start_servers(&self.server)?;
        let mut debian = Debian {
            root,
            host: topology.lb.clone(),
            daemon: None,
            starts: 0,
        };
        let before = debian.files()?;
        debian.install(&self.package)?;
        debian.look_around()?;
        debian.start()?;
        debian.reload()?;
        self.upgrade(&mut debian, &topology)?;
        debian.stop()?;
        debian.remove()?;
        debian.purge(&before)
    }

    /// Puts the next version in place of the one before, as its installation makes systemd do,
    /// while packets come.
    fn upgrade(&self, debian: &mut Debian, topology: &Topology) -> Result<()> {
        let [web, echo]: [SocketAddr; 2] = ["192.0.2.10:80".parse()?, "192.0.2.10:1007".parse()?];
        let program = debian.attached()?.context("nothing is attached")?;
        let client = &topology.client;
        let echoed = client.background(move |stop| udp::stream(&[echo], ANSWER, stop));
        let load = Load {
            threads: 4,
            per_connection: 50,
            ..Load::new(web, u64::MAX)
        };
        let loaded = client.background(move |stop| load.run_until(stop));

        debian.install(&self.next)?;
        debian.stop()?;
        debian.start()?;
        thread::sleep(Duration::from_secs(1));
        let echoed = echoed.finish()?;
        let loaded = loaded.finish().into_result()?;
        ensure!(echoed > 0 && loaded.requests > 0, "there was no traffic");
        let drops = debian.status()?.drops;
        ensure!(drops.values().all(|packets| *packets == 0), "{drops:?}");
        ensure!(
            debian.attached()?.is_some_and(|now| now != program),
            "the program is that of before"
        );
        let configuration = fs::read_to_string(debian.root.join("etc/lb/lb.toml"))?;
        ensure!(configuration.contains("192.0.2.10"), "{configuration}");
        say(&format!(
            "upgraded under traffic: {echoed} datagrams and {} requests, all answered",
            loaded.requests
        ));
        Ok(())
    }
}

/// Where the Debian is that nobody writes to.
fn debian() -> Result<PathBuf> {
    Ok(target_dir()?.join("package/debian"))
}

fn say(line: &str) {
    eprintln!("   {line}");
}

/// Makes a Debian to write to, with what programs need. Returns its root.
fn mount() -> Result<PathBuf> {
    let place = target_dir()?.join("package/fresh");
    fs::create_dir_all(&place)?;
    let mount = |kind: &str, options: &str, to: &Path| {
        let mut mount = Command::new("mount");
        mount.args(["-t", kind, "-o", options, kind]);
        run(mount.arg(to))
    };
    mount("tmpfs", "mode=755", &place)?;
    let [upper, work, root] = ["upper", "work", "root"].map(|name| place.join(name));
    for directory in [&upper, &work, &root] {
        fs::create_dir(directory)?;
    }
    let (lower, upper, work) = (debian()?, upper.display(), work.display());
    let layers = format!(
        "lowerdir={},upperdir={upper},workdir={work}",
        lower.display()
    );
    mount("overlay", &layers, &root)?;
    mount("proc", "ro", &root.join("proc"))?;
    mount("sysfs", "rw", &root.join("sys"))?;
    mount("bpf", "mode=700", &root.join("sys/fs/bpf"))?;
    mount("tmpfs", "mode=755", &root.join("run"))?;
    let mut devices = Command::new("mount");
    run(devices.args(["--bind", "/dev"]).arg(root.join("dev")))?;
    Ok(root)
}

/// The balancer's host, with Debian on it.
struct Debian {
    root: PathBuf,
    host: Host,
    daemon: Option<Process>,
    starts: u32,
}

impl Debian {
    /// A command that runs there.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.host.command("chroot");
        command.arg(&self.root).args(words);
        command.env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// Runs a command there and returns what it says.
    fn run(&self, words: &[&str]) -> Result<String> {
        output(&mut self.command(words)).with_context(|| words.join(" "))
    }

    /// Every path, but for those where others than the package write.
    fn files(&self) -> Result<BTreeSet<PathBuf>> {
        const OTHERS: [&str; 9] = [
            "proc",
            "sys",
            "dev",
            "run",
            "opt",
            "tmp",
            "var/log",
            "var/cache",
            "var/lib/dpkg",
        ];
        let mut found = BTreeSet::new();
        let mut directories = vec![self.root.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                let path = entry.path().strip_prefix(&self.root)?.to_owned();
                if OTHERS.iter().any(|other| path == Path::new(other)) {
                    continue;
                }
                if entry.file_type()?.is_dir() {
                    directories.push(entry.path());
                }
                found.insert(path);
            }
        }
        Ok(found)
    }

    fn install(&self, package: &Path) -> Result<()> {
        let name = package.file_name().context("a package has a name")?;
        fs::copy(package, self.root.join("opt").join(name))?;
        let path = format!("/opt/{}", name.display());
        self.run(&["dpkg", "--install", &path])?;
        let version = self.run(&["dpkg-query", "--show", "--showformat=${Version}", "lb"])?;
        ensure!(name.to_string_lossy().contains(&version), "{version}");
        say(&format!("installed {version}"));
        Ok(())
    }

    /// What is there before anything runs.
    fn look_around(&self) -> Result<()> {
        self.run(&["getent", "group", "lb"])?;
        self.run(&["dpkg", "--verify", "lb"])?;
        let completions = "/usr/share/bash-completion/completions/lb";
        self.run(&["bash", "-n", completions])?;
        // The example names no interface: it is no configuration yet.
        let checked = self.command(&["lb", "check", "/etc/lb/lb.toml"]).output()?;
        ensure!(checked.status.code() == Some(1), "{checked:?}");
        fs::write(self.root.join("etc/lb/lb.toml"), CONFIGURATION)?;
        self.run(&["lb", "check", "/etc/lb/lb.toml"])?;
        Ok(())
    }

    /// The value of a setting of the unit, if it has that.
    fn setting(&self, key: &str) -> Result<Vec<String>> {
        let unit = self.root.join("usr/lib/systemd/system/lb.service");
        let unit = fs::read_to_string(unit)?;
        let values = unit
            .lines()
            .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        Ok(values.map(str::to_owned).collect())
    }

    /// Starts the daemon as the unit says, and waits until it says that it is ready.
    fn start(&mut self) -> Result<()> {
        let [exec] = &self.setting("ExecStart")?[..] else {
            bail!("the unit starts another number of programs than one");
        };
        let [bounds] = &self.setting("CapabilityBoundingSet")?[..] else {
            bail!("the unit has no bounds of capabilities");
        };
        let bounds: String = bounds
            .split_whitespace()
            .map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()))
            .collect();
        for (key, value) in [
            ("Type", "notify"),
            ("Group", "lb"),
            ("NoNewPrivileges", "yes"),
        ] {
            ensure!(self.setting(key)? == [value], "{key} of the unit");
        }
        let notify = self.root.join("run/notify");
        if notify.exists() {
            fs::remove_file(&notify)?;
        }
        let ready = UnixDatagram::bind(&notify)?;
        ready.set_read_timeout(Some(PATIENCE))?;

        let bounds = format!("-all{bounds}");
        let mut words = vec!["setpriv", "--no-new-privs", "--bounding-set", &bounds];
        words.extend(["--regid", "lb", "--clear-groups"]);
        words.extend(exec.split_whitespace());
        let mut command = self.command(&words);
        command.env("NOTIFY_SOCKET", "/run/notify");
        self.starts += 1;
        let daemon = self.host.spawn(&format!("lb-{}", self.starts), command)?;
        let daemon = self.daemon.insert(daemon);
        let mut message = [0; 256];
        loop {
            let length = ready.recv(&mut message);
            let length = length.with_context(|| format!("not ready: {}", daemon.log()))?;
            let text = String::from_utf8_lossy(&message[..length]);
            if text.lines().any(|line| line == "READY=1") {
                break;
            }
        }
        self.wait_until("all backends are well", Status::is_all_well)?;
        let group = self.run(&["getent", "group", "lb"])?;
        let id: u32 = group.split(':').nth(2).context("no id")?.parse()?;
        let socket = fs::metadata(self.root.join("run/lb/lb.sock"))?;
        let (owner, mode) = (socket.gid(), socket.mode() & 0o777);
        ensure!(
            (owner, mode) == (id, 0o660),
            "the socket: {owner}, {mode:o}"
        );
        say("started");
        Ok(())
    }

    /// Loads another word of the file as the unit says.
    fn reload(&mut self) -> Result<()> {
        let other = CONFIGURATION.replace("10.0.0.12:8080\"", "10.0.0.12:8080\", weight = 7");
        ensure!(other != CONFIGURATION);
        fs::write(self.root.join("etc/lb/lb.toml"), other)?;
        let process = self
            .daemon
            .as_ref()
            .context("nothing runs")?
            .id()
            .to_string();
        for exec in self.setting("ExecReload")? {
            let exec = exec.replace("$MAINPID", &process);
            let words: Vec<&str> = exec.split_whitespace().collect();
            self.run(&words)?;
        }
        self.wait_until("the file is in force", |status| {
            let backends = status.services.iter().flat_map(|one| &one.backends);
            backends
                .map(|backend| backend.weight)
                .any(|weight| weight == 7)
        })?;
        say("reloaded");
        Ok(())
    }

    fn status(&self) -> Result<Status> {
        Ok(serde_json::from_str(
            &self.run(&["lb", "status", "--json"])?,
        )?)
    }

    fn wait_until(&self, what: &str, is_so: impl Fn(&Status) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.status().is_ok_and(|status| is_so(&status)) {
            ensure!(
                Instant::now() < deadline,
                "not so: {what}; {:?}",
                self.status()
            );
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// The id of the program that is attached to the first interface.
    fn attached(&self) -> Result<Option<u64>> {
        let json = self.host.ip("-json link show dev eth0")?;
        let links: serde_json::Value = serde_json::from_str(&json)?;
        Ok(links[0]["xdp"]["prog"]["id"].as_u64())
    }

    /// Ends the daemon as systemd does.
    fn stop(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("nothing runs")?;
        daemon.signal(Signal::SIGTERM)?;
        let deadline = Instant::now() + PATIENCE;
        while daemon.is_running()? {
            ensure!(Instant::now() < deadline, "it runs on: {}", daemon.log());
            thread::sleep(Duration::from_millis(20));
        }
        ensure!(self.attached()?.is_some(), "nothing is attached any more");
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        self.run(&["dpkg", "--remove", "lb"])?;
        ensure!(self.attached()?.is_none(), "the program is attached still");
        for (path, is_there) in [
            ("etc/lb/lb.toml", true),
            ("var/lib/lb", true),
            ("usr/sbin/lb", false),
            ("sys/fs/bpf/lb", false),
        ] {
            ensure!(self.root.join(path).exists() == is_there, "{path}");
        }
        say("removed");
        Ok(())
    }

    /// Purges the package: nothing of it is left.
    fn purge(&self, before: &BTreeSet<PathBuf>) -> Result<()> {
        self.run(&["dpkg", "--purge", "lb"])?;
        let known = self.command(&["dpkg-query", "--show", "lb"]).output()?;
        ensure!(!known.status.success(), "dpkg knows it still");
        let group = self.command(&["getent", "group", "lb"]).output()?;
        ensure!(!group.status.success(), "its group is there still");
        let after = self.files()?;
        // What groupadd and groupdel keep of the time before.
        let is_backup = |path: &&PathBuf| {
            ["etc/group-", "etc/gshadow-"]
                .map(Path::new)
                .contains(&path.as_path())
        };
        let changed: Vec<_> = after
            .symmetric_difference(before)
            .filter(|path| !is_backup(path))
            .collect();
        ensure!(changed.is_empty(), "left or gone: {changed:?}");
        say("purged, and nothing is left");
        Ok(())
    }
}
