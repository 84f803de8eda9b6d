//! The process of `lb run`, in a network namespace of its own. Needs root.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take that is no promise about time.
const PATIENCE: Duration = Duration::from_secs(180);

/// Runs `test` in a network namespace with the link `eth0` - `peer0`, and with a BPF file
/// system of its own at the usual place.
fn in_network_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            const MUST: &str = "this test makes namespaces and must run as root";
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect(MUST);
            let none = None::<&str>;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none).expect(MUST);
            let bpf = Some("bpf");
            mount(bpf, "/sys/fs/bpf", bpf, MsFlags::empty(), none).expect(MUST);
            ip("link set lo up");
            add_link(0);
            test()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes the link `eth<n>` - `peer<n>`, with the address 10.0.`<n>`.1/24 and the
/// neighbour 10.0.`<n>`.2.
fn add_link(n: u8) {
    ip(&format!(
        "link add eth{n} index {} type veth peer name peer{n}",
        100 + u32::from(n)
    ));
    ip(&format!("link set peer{n} up"));
    ip(&format!("link set eth{n} up"));
    ip(&format!("address add 10.0.{n}.1/24 dev eth{n}"));
    ip(&format!(
        "neighbour replace 10.0.{n}.2 lladdr 02:00:00:00:00:02 dev eth{n}"
    ));
}

fn ip(words: &str) {
    let output = Command::new("ip")
        .args(words.split_whitespace())
        .output()
        .expect("this test needs iproute2");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {words}: {stderr}");
}

/// A running `lb run`; killed when it is dropped.
struct Daemon {
    directory: TempDir,
    child: Child,
}

impl Daemon {
    /// Starts one in the network namespace of the calling thread, with its log in a
    /// file, and waits until it answers.
    fn start(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = File::create(directory.path().join("log")).unwrap();
        Self::start_in(directory, config, log)
    }

    fn start_in(directory: TempDir, config: &str, stderr: impl Into<Stdio>) -> Self {
        let file = directory.path().join("lb.toml");
        fs::write(&file, format!("{config}\n[limits]\nflows = 1024\n")).unwrap();
        let child = lb(directory.path())
            .args(["run", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let mut daemon = Self { directory, child };
        daemon.wait_until("it answers", |daemon| daemon.lb("status").status.success());
        daemon
    }

    /// Runs a command of the command line against it.
    fn lb(&self, words: &str) -> Output {
        lb(self.directory.path())
            .args(words.split_whitespace())
            .output()
            .unwrap()
    }

    /// Runs a command that must succeed.
    fn must(&self, words: &str) {
        let output = self.lb(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "lb {words}: {stderr}{}",
            self.log()
        );
    }

    fn status(&self) -> Value {
        serde_json::from_slice(&self.lb("status --json").stdout).unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn wait_until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it has ended, {status}, before {what}:\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "not: {what}\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it with SIGTERM.
    fn stop(mut self) -> ExitStatus {
        let id = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(id), Signal::SIGTERM).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lb(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb"));
    command
        .env_clear()
        .env("LB_SOCKET", socket(directory))
        .env("NO_COLOR", "1");
    command
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("lb.sock")
}

/// A service on backends 10.0.`<n>`.2.
fn service(links: &[u8]) -> String {
    let mut toml = "[[service]]\nname = \"web\"\naddress = \"192.0.2.10:80\"\n\
                    mode = \"full-nat\"\n"
        .to_owned();
    for n in links {
        toml += &format!("[[service.backend]]\naddress = \"10.0.{n}.2:80\"\n");
    }
    toml
}

#[test]
fn a_log_that_cannot_be_written_does_not_end_it() {
    in_network_namespace(|| {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        for stderr in [Stdio::from(full), Stdio::from(writer)] {
            let directory = tempfile::tempdir().unwrap();
            let config = format!("interfaces = [\"eth0\"]\n{}", service(&[0]));
            let daemon = Daemon::start_in(directory, &config, stderr);
            // Each changes a next hop or a service, and is a line of the log.
            ip("link set eth0 down");
            ip("link set eth0 up");
            daemon.must("service remove web");
            assert!(daemon.stop().success());
        }
    });
}

#[test]
fn an_interface_may_go_and_come_back() {
    in_network_namespace(|| {
        add_link(1);
        let config = format!("interfaces = [\"eth0\", \"eth1\"]\n{}", service(&[0, 1]));
        let mut daemon = Daemon::start(&config);
        let interface = |daemon: &Daemon| daemon.status()["interfaces"][1].clone();
        let hop = |daemon: &Daemon, index: usize| {
            let status = daemon.status();
            let hop = &status["services"][0]["backends"][index]["next_hop"]["state"];
            hop.as_str().unwrap().to_owned()
        };
        daemon.wait_until("both backends are reached", |daemon| {
            hop(daemon, 0) == "resolved" && hop(daemon, 1) == "resolved"
        });

        for round in 0..2 {
            ip("link delete eth1");
            daemon.wait_until("the interface is shown as gone", |daemon| {
                interface(daemon)["state"] == "gone" && hop(daemon, 1) == "no-route"
            });
            assert_eq!(hop(&daemon, 0), "resolved");
            daemon.must(&format!("backend add web 10.0.0.9{round}:80"));
            daemon.must("backend set web 10.0.0.2:80 --weight 7");

            add_link(1);
            daemon.wait_until("the interface is attached again", |daemon| {
                interface(daemon)["state"] == "attached" && hop(daemon, 1) == "resolved"
            });
            assert_eq!(interface(&daemon)["mode"], "native");
        }

        // One that comes back before anybody looks is another all the same.
        ip("link delete eth1");
        add_link(1);
        daemon.wait_until("it has been attached to its third successor", |daemon| {
            daemon.log().matches("INFO attached again").count() == 3 && hop(daemon, 1) == "resolved"
        });
        daemon.must("backend add web 10.0.0.1:80");
        daemon.wait_until("it is said of its own address", |daemon| {
            daemon.log().contains("the address is this host's own")
        });
        let log = daemon.log();
        assert!(!log.contains("not as it should be"), "{log}");
        assert!(daemon.stop().success());
    });
}
