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
        let state = directory.path().join("state.json");
        let state = format!("state-file = \"{}\"\n", state.display());
        fs::write(&file, format!("{state}{config}\n[limits]\nflows = 1024\n")).unwrap();
        let child = spawn(directory.path(), stderr);
        let mut daemon = Self { directory, child };
        daemon.wait_until("it answers", |daemon| daemon.lb("status").status.success());
        daemon
    }

    /// Kills it, and starts another with the same files.
    fn kill_and_start(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let mut log = File::options();
        let log = log.append(true).open(self.directory.path().join("log"));
        self.child = spawn(self.directory.path(), log.unwrap());
        self.wait_until("it answers", |daemon| daemon.lb("status").status.success());
    }

    /// Renames another configuration file over the one that is there.
    fn configure(&self, config: &str) {
        let new = self.directory.path().join("new.toml");
        let state = self.directory.path().join("state.json");
        let state = format!("state-file = \"{}\"\n", state.display());
        fs::write(&new, format!("{state}{config}\n[limits]\nflows = 1024\n")).unwrap();
        fs::rename(new, self.directory.path().join("lb.toml")).unwrap();
    }

    /// The backends of `web` with weight and state.
    fn backends(&self) -> Vec<(String, u64, String)> {
        let status = self.status();
        let backends = status["services"][0]["backends"].as_array();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        backends
            .into_iter()
            .flatten()
            .map(|backend| {
                let weight = backend["weight"].as_u64().unwrap();
                (text(&backend["address"]), weight, text(&backend["state"]))
            })
            .collect()
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

fn spawn(directory: &Path, stderr: impl Into<Stdio>) -> Child {
    lb(directory)
        .args(["run", "--config"])
        .arg(directory.join("lb.toml"))
        .stdin(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap()
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

#[test]
fn what_was_changed_survives_the_daemon() {
    in_network_namespace(|| {
        let config = format!("interfaces = [\"eth0\"]\n{}", service(&[0, 7, 8]));
        let mut daemon = Daemon::start(&config);
        daemon.must("backend set web 10.0.0.2:80 --weight 7");
        daemon.must("backend remove web 10.0.7.2:80");
        daemon.must("backend add web 10.0.9.2:80 --weight 9");
        daemon.must("backend drain web 10.0.8.2:80 --deadline 1h --on-deadline reset");
        let named =
            |address: &str, weight, state: &str| (address.to_owned(), weight, state.to_owned());
        let mut expected = vec![
            named("10.0.0.2:80", 7, "up"),
            named("10.0.8.2:80", 100, "draining"),
            named("10.0.9.2:80", 9, "up"),
        ];
        let drain =
            |daemon: &Daemon| daemon.status()["services"][0]["backends"][1]["drain"].clone();
        daemon.wait_until("the drain has been under way for some time", |daemon| {
            drain(daemon)["seconds"].as_u64() >= Some(2)
        });
        for _ in 0..2 {
            daemon.kill_and_start();
            assert_eq!(daemon.backends(), expected);
            let drain = drain(&daemon);
            assert!(drain["seconds"].as_u64() >= Some(2), "{drain}");
            assert!(drain["seconds_left"].as_u64() <= Some(3_598), "{drain}");
        }

        // The file says something else of one of them; that holds, and the rest.
        daemon.configure(&config.replace("10.0.0.2:80\"", "10.0.0.2:80\"\nweight = 50"));
        expected[0].1 = 50;
        daemon.wait_until("the file is taken", |daemon| daemon.backends() == expected);
        daemon.kill_and_start();
        assert_eq!(daemon.backends(), expected);
        assert!(drain(&daemon)["seconds"].as_u64() >= Some(2));

        // A damaged file is refused, and kept.
        daemon.child.kill().unwrap();
        daemon.child.wait().unwrap();
        let directory = daemon.directory.path().to_owned();
        let state = directory.join("state.json");
        let mut damaged = fs::read(&state).unwrap();
        let middle = damaged.len() / 2;
        damaged.truncate(middle);
        fs::write(&state, &damaged).unwrap();
        let config = directory.join("lb.toml");
        let run = |words: &[&str]| {
            let mut command = lb(&directory);
            command.arg("run").arg("--config").arg(&config).args(words);
            command
        };
        let refused = run(&[]).output().unwrap();
        assert_eq!(refused.status.code(), Some(1));
        let stderr = String::from_utf8(refused.stderr).unwrap();
        assert!(
            stderr.contains("is damaged") && stderr.contains("--forget-changes"),
            "{stderr}"
        );
        assert_eq!(fs::read(&state).unwrap(), damaged);
        let log = File::options()
            .append(true)
            .open(directory.join("log"))
            .unwrap();
        daemon.child = run(&["--forget-changes"]).stderr(log).spawn().unwrap();
        daemon.wait_until("it answers", |daemon| daemon.lb("status").status.success());
        let addresses: Vec<String> = daemon
            .backends()
            .into_iter()
            .map(|(address, ..)| address)
            .collect();
        assert_eq!(addresses, ["10.0.0.2:80", "10.0.7.2:80", "10.0.8.2:80"]);
        assert_eq!(
            fs::read(directory.join("state.json.forgotten-1")).unwrap(),
            damaged
        );
        assert!(daemon.stop().success());
    });
}

#[test]
fn a_change_that_was_answered_is_there_after_any_crash() {
    in_network_namespace(|| {
        let config = format!("interfaces = [\"eth0\"]\n{}", service(&[0]));
        let mut daemon = Daemon::start(&config);
        let (mut tried, mut done) = (100, 100);
        for round in 0..6_u64 {
            let socket = daemon.directory.path().to_owned();
            let weights = thread::spawn(move || {
                // Until the daemon is gone.
                for weight in tried + 1.. {
                    let mut command = lb(&socket);
                    command.args(["backend", "set", "web", "10.0.0.2:80", "--weight"]);
                    let output = command.arg(weight.to_string()).output().unwrap();
                    if !output.status.success() {
                        return (weight, weight - 1);
                    }
                }
                unreachable!("there are many weights")
            });
            thread::sleep(Duration::from_millis(150 + 37 * round));
            daemon.child.kill().unwrap();
            daemon.child.wait().unwrap();
            (tried, done) = weights.join().unwrap();
            daemon.kill_and_start();
            let (_, weight, _) = daemon.backends()[0];
            assert!(
                (done..=tried).contains(&weight),
                "{weight}, not {done} or {tried}"
            );
            tried = tried.max(weight);
        }
        assert!(done > 100, "nothing was changed");
        assert!(daemon.stop().success());
    });
}

#[test]
fn a_file_that_changes_is_taken_whole_or_not_at_all() {
    in_network_namespace(|| {
        let config = |links: &[u8]| format!("interfaces = [\"eth0\"]\n{}", service(links));
        let mut daemon = Daemon::start(&config(&[0]));
        let error = |daemon: &Daemon| daemon.status()["configuration"]["error"].clone();
        let count = |daemon: &Daemon| daemon.backends().len();
        daemon.configure(&config(&[0, 1]));
        daemon.wait_until("the file is taken", |daemon| count(daemon) == 2);
        // One of two services is wrong.
        let wrong = config(&[0, 1, 2]) + "[[service]]\nname = \"dns\"\n";
        daemon.configure(&wrong);
        daemon.wait_until("the file is refused", |daemon| error(daemon).is_string());
        let message = error(&daemon);
        assert!(
            message.as_str().unwrap().contains("is missing from"),
            "{message}"
        );
        assert_eq!(count(&daemon), 2);
        let log = daemon.log();
        assert!(log.contains("all stays as it is"), "{log}");
        // A signal does not make it better,
        let id = Pid::from_raw(i32::try_from(daemon.child.id()).unwrap());
        let refusals = |daemon: &Daemon| daemon.log().matches("all stays as it is").count();
        let before = refusals(&daemon);
        kill(id, Signal::SIGHUP).unwrap();
        daemon.wait_until("it has been read again", |daemon| refusals(daemon) > before);
        assert_eq!(count(&daemon), 2);
        // nor does its absence.
        fs::remove_file(daemon.directory.path().join("lb.toml")).unwrap();
        daemon.wait_until("it is missed", |daemon| {
            error(daemon)
                .as_str()
                .is_some_and(|error| error.contains("cannot read"))
        });
        assert_eq!(count(&daemon), 2);
        daemon.configure(&config(&[0, 1, 2]).replace("eth0", "peer0"));
        daemon.wait_until("the file is taken", |daemon| count(daemon) == 3);
        let configuration = daemon.status()["configuration"].clone();
        assert!(configuration.get("error").is_none(), "{configuration}");
        assert_eq!(
            configuration["restart_needed"],
            serde_json::json!(["interfaces"])
        );
        assert!(daemon.stop().success());
    });
}

/// The kinds of events that there were, and what they are about.
fn events(daemon: &Daemon) -> Vec<String> {
    let output = daemon.lb("events --no-follow --json");
    let lines = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| event[key].as_str().map(str::to_owned);
        let changes = event["changes"].as_u64().map(|changes| changes.to_string());
        let words = [text("event"), text("backend"), text("phase"), changes];
        let up = event["up"]
            .as_bool()
            .map(|up| if up { "up" } else { "down" });
        let words = words.into_iter().flatten();
        words
            .chain(up.map(str::to_owned))
            .collect::<Vec<_>>()
            .join(" ")
    };
    lines.lines().map(line).collect()
}

#[test]
fn what_happens_is_told() {
    in_network_namespace(|| {
        let config = |n: u8| {
            let check = "[service.health]\ntype = \"tcp\"\ninterval = \"100ms\"\n";
            let service = service(&[0]).replacen(
                "[[service.backend]]",
                &format!("{check}[[service.backend]]"),
                1,
            );
            let other = format!("[[service.backend]]\naddress = \"10.0.0.2:{n}\"\nweight = 0\n");
            format!("interfaces = [\"eth0\"]\n{service}{other}")
        };
        let mut daemon = Daemon::start(&config(7));
        let (reader, writer) = io::pipe().unwrap();
        // The command has an end of the pipe as long as it is there.
        let mut following = {
            let mut command = lb(daemon.directory.path());
            command.arg("events").stdout(writer);
            command.spawn().unwrap()
        };
        let mut expected = vec!["started".to_owned()];
        let mut then = |daemon: &mut Daemon, more: &[&str]| {
            expected.extend(more.iter().map(|event| (*event).to_owned()));
            daemon.wait_until(&format!("{expected:?} are told"), |daemon| {
                let mut told = events(daemon);
                // Checks end when they end.
                told.retain(|event| !event.starts_with("health"));
                told == expected
            });
        };
        then(&mut daemon, &[]);
        daemon.wait_until("both are found down", |daemon| {
            let told = events(daemon);
            ["health 10.0.0.2:80 down", "health 10.0.0.2:7 down"]
                .iter()
                .all(|event| told.iter().any(|told| told == event))
        });
        daemon.must("backend set web 10.0.0.2:80 --weight 7");
        then(&mut daemon, &["change 1"]);
        daemon.must("backend drain web 10.0.0.2:80");
        then(&mut daemon, &["change 1", "drain 10.0.0.2:80 drained"]);
        daemon.must("backend undrain web 10.0.0.2:80");
        then(&mut daemon, &["change 1", "drain-ended 10.0.0.2:80"]);
        assert!(!daemon.lb("service remove no-such").status.success());
        daemon.configure(&config(9));
        then(&mut daemon, &["reload 2"]);
        daemon.configure("interfaces = 7\n");
        then(&mut daemon, &["reload-refused"]);
        assert!(daemon.stop().success());
        assert!(following.wait().unwrap().success());
        let told = io::read_to_string(reader).unwrap();
        let last = told.lines().last().unwrap();
        assert!(last.contains("stopping"), "{told}");
    });
}

#[test]
fn what_cannot_be_kept_is_not_changed() {
    let outer = tempfile::tempdir().unwrap();
    in_network_namespace(|| {
        let (none, tmpfs) = (None::<&str>, Some("tmpfs"));
        mount(
            none,
            outer.path(),
            tmpfs,
            MsFlags::empty(),
            Some("size=256k"),
        )
        .unwrap();
        let directory = TempDir::new_in(outer.path()).unwrap();
        let fill = directory.path().join("fill");
        let config = format!("interfaces = [\"eth0\"]\n{}", service(&[0]));
        let daemon = Daemon::start_in(directory, &config, Stdio::null());
        daemon.must("backend set web 10.0.0.2:80 --weight 1");
        let full = fs::write(&fill, vec![0; 1 << 20]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        let before = daemon.status()["configuration"].clone();
        for words in [
            "backend set web 10.0.0.2:80 --weight 2",
            "backend drain web 10.0.0.2:80",
            "backend add web 10.0.0.3:80",
            "service remove web",
        ] {
            let output = daemon.lb(words);
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{words}");
            assert!(
                stderr.contains("cannot be kept") && stderr.contains("No space"),
                "{stderr}"
            );
            let expected = ("10.0.0.2:80".to_owned(), 1, "up".to_owned());
            assert_eq!(daemon.backends(), [expected]);
        }
        assert_eq!(daemon.status()["configuration"], before);
        fs::remove_file(&fill).unwrap();
        daemon.must("backend set web 10.0.0.2:80 --weight 3");
        assert_eq!(daemon.backends()[0].1, 3);
        assert!(daemon.stop().success());
    });
}
