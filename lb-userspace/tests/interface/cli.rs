//! The command line, as it is seen. Every file in `cli` is the record of a
//! session with a balancer: after each line that begins with `$` stands what the
//! command printed, lines of stderr behind `2>`, and its exit status if it was not
//! 0. A new balancer serves each session. A configuration `own/FILE` is FILE with a state
//! file of the test.
//!
//! After a change that is meant, `SNAPSHOTS=overwrite cargo test --test interface cli` writes
//! the answers anew; so a new case needs but its `$` line.

use std::{
    fmt::Write,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::support::Balancer;
use lb_userspace::{
    api::wire::Service,
    state::{Happening, Status},
};
use serde_json::json;
use snapbox::{Assert, Data};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_go_as_recorded() {
    let assert = Assert::new().action_env(snapbox::assert::DEFAULT_ACTION_ENV);
    let mut seen = 0;
    let mut differences = String::new();
    for entry in fs::read_dir(here().join("cli")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "txt") {
            continue;
        }
        seen += 1;
        let balancer = balancer().await;
        let expected = fs::read_to_string(&path).unwrap();
        let mut actual = String::new();
        for command in expected
            .lines()
            .filter_map(|line| line.strip_prefix("$ lb"))
        {
            if !actual.is_empty() {
                actual.push('\n');
            }
            let _ = writeln!(actual, "$ lb{command}");
            record(&balancer, command, &mut actual);
        }
        balancer.stop().await;
        let name = path.file_name().unwrap().to_str().unwrap();
        let expected = Data::read_from(&path, None).raw();
        if let Err(difference) = assert.try_eq(Some(&name), Data::text(actual).raw(), expected) {
            differences.push_str(&difference.to_string());
        }
    }
    assert!(differences.is_empty(), "{differences}");
    assert!(seen > 0, "no session was found");
}

fn record(balancer: &Balancer, command: &str, record: &mut String) {
    let own = tempfile::tempdir().unwrap();
    let words = command.split_whitespace();
    let words = words.map(|word| match word.strip_prefix("own/") {
        Some(file) => with_state_file(file, own.path()),
        None => word.to_owned(),
    });
    let words: Vec<_> = words.collect();
    let output = lb(balancer, &words.join(" ")).output().unwrap();
    let Output {
        status,
        stdout,
        stderr,
    } = output;
    // The socket is somewhere else each time.
    let socket = balancer.socket();
    let text = |bytes| {
        let text = String::from_utf8(bytes)
            .unwrap()
            .replace(socket.to_str().unwrap(), "LB_SOCKET")
            .replace(own.path().to_str().unwrap(), "own")
            .replace(here().to_str().unwrap(), "HERE");
        without_time(&without_clock(&text))
    };
    record.push_str(&text(stdout));
    for line in text(stderr).lines() {
        let _ = writeln!(record, "{}", format!("2> {line}").trim_end());
    }
    if !status.success() {
        let _ = writeln!(record, "exit status {}", status.code().unwrap());
    }
}

/// A copy of a configuration in `directory`, which also has its state file: nothing of a test
/// is left on the host.
fn with_state_file(file: &str, directory: &Path) -> String {
    let text = fs::read_to_string(here().join(file)).unwrap();
    let path = directory.join(file);
    let state = directory.join("state.json");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(
        &path,
        format!("state-file = \"{}\"\n{text}", state.display()),
    )
    .unwrap();
    path.to_str().unwrap().to_owned()
}

/// The text with each time of the day (`2026-01-01T00:00:00.000Z`) replaced.
fn without_clock(text: &str) -> String {
    const FORM: &str = "0000-00-00T00:00:00.000Z";
    let is_time = |text: &str| {
        let mut pairs = text.bytes().zip(FORM.bytes());
        pairs.all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            form => byte == form,
        })
    };
    let mut times = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let step = match rest.get(..FORM.len()) {
            Some(time) if is_time(time) => {
                times.push_str("NOW");
                FORM.len()
            }
            _ => {
                times.push(first);
                first.len_utf8()
            }
        };
        rest = &rest[step..];
    }
    times
}

/// The text with the time in revisions (`19a9e1b0c2d-7`) replaced: it is another each time.
fn without_time(text: &str) -> String {
    let is_hex = |byte: &u8| byte.is_ascii_hexdigit();
    let mut words = String::new();
    let mut rest = text;
    while let Some(dash) = rest.find('-') {
        let (before, after) = rest.split_at(dash);
        let digits = before.bytes().rev().take_while(is_hex).count();
        if digits == 11 && after[1..].starts_with(|c: char| c.is_ascii_digit()) {
            words.push_str(&before[..dash - digits]);
            words.push_str("TIME-");
        } else {
            words.push_str(&rest[..=dash]);
        }
        rest = &after[1..];
    }
    words + rest
}

/// The command, in the folder of the tests and away from this process's settings.
fn lb(balancer: &Balancer, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb"));
    command
        .args(arguments.split_whitespace())
        .env_clear()
        .env("LB_SOCKET", balancer.socket())
        .env("COLUMNS", "100")
        .current_dir(here())
        .stdin(Stdio::null());
    command
}

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interface")
}

/// A reader that goes away early, as in `lb status | head -0`, is no failure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_pipe_is_no_failure() {
    let balancer = balancer().await;
    for command in ["status", "status --json", "service list", "--help"] {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let output = lb(&balancer, command)
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command}");
        assert!(output.status.success(), "{command}: {}", output.status);
    }
    balancer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_a_failure() {
    let balancer = balancer().await;
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = lb(&balancer, "status").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("No space left on device"), "{stderr}");
    balancer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn colours_are_for_those_who_ask() {
    let balancer = balancer().await;
    let output = lb(&balancer, "status no-such-service").output().unwrap();
    assert!(!output.stderr.contains(&0x1b), "stderr is no terminal");
    for (variables, is_coloured) in [
        (&[("TERM", "xterm")][..], true),
        (&[("TERM", "xterm"), ("NO_COLOR", "1")], false),
        (&[("TERM", "xterm"), ("NO_COLOR", "")], true),
        (&[("TERM", "dumb")], false),
    ] {
        let shown = on_a_terminal(&balancer, "status no-such-service", variables);
        assert!(shown.contains("no-such-service"), "{shown}");
        assert_eq!(
            shown.contains('\x1b'),
            is_coloured,
            "{variables:?}: {shown:?}"
        );
    }
    balancer.stop().await;
}

/// What a command shows on a terminal, which script(1) is for it.
fn on_a_terminal(balancer: &Balancer, arguments: &str, variables: &[(&str, &str)]) -> String {
    let program = env!("CARGO_BIN_EXE_lb");
    let mut script = Command::new("script");
    script
        .args(["--quiet", "--command"])
        .arg(format!("{program} {arguments}"))
        .arg("/dev/null")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LB_SOCKET", balancer.socket())
        .envs(variables.iter().copied())
        .stdin(Stdio::null());
    let output = script.output().expect("this test needs script(1)");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_is_shown_again_and_again() {
    let balancer = balancer().await;
    let (reader, writer) = io::pipe().unwrap();
    let mut watching = lb(&balancer, "status --watch=1 --json")
        .stdout(writer)
        .spawn()
        .unwrap();
    let mut lines = io::BufRead::lines(io::BufReader::new(reader));
    for _ in 0..3 {
        let line = lines.next().unwrap().unwrap();
        let _status: Status = serde_json::from_str(&line).unwrap();
    }
    // Whoever has seen enough goes away, and so does it.
    drop(lines);
    assert!(watching.wait().unwrap().success());
    balancer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manual_pages_and_completions_are_those_of_the_commands() {
    let balancer = balancer().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("man1");
    let written = lb(&balancer, "man").arg(&path).output().unwrap();
    assert!(written.status.success(), "{written:?}");
    for page in ["lb.1", "lb-run.1", "lb-explain.1", "lb-backend-drain.1"] {
        let page = fs::read_to_string(path.join(page)).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
    }
    let printed = lb(&balancer, "man").output().unwrap();
    let page = fs::read(path.join("lb.1")).unwrap();
    assert_eq!(printed.stdout, page);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = lb(&balancer, &format!("completions {shell}"))
            .output()
            .unwrap();
        let script = String::from_utf8(script.stdout).unwrap();
        assert!(
            script.contains("explain") && script.contains("undrain"),
            "{shell}"
        );
    }
    let unwritable = lb(&balancer, "man /proc/no").output().unwrap();
    assert_eq!(unwritable.status.code(), Some(1));
    balancer.stop().await;
}

/// A balancer with two services and a status to look at.
async fn balancer() -> Balancer {
    let status: Status = serde_json::from_str(include_str!("cli/status.json")).unwrap();
    let balancer = Balancer::start(status);
    let services = [
        json!({
            "name": "web",
            "address": "192.0.2.10:443",
            "mode": "full-nat",
            "health": {"type": "http", "path": "/healthz", "host": "www.example.org"},
            "backends": [
                {"address": "10.0.0.11:8443"},
                {"address": "10.0.0.12:8443", "weight": 50},
            ],
        }),
        json!({
            "name": "dns",
            "address": "[2001:db8::10]:*",
            "protocol": "udp",
            "mode": "nat",
        }),
    ];
    for service in services {
        let service: Service = serde_json::from_value(service).unwrap();
        balancer.client().add_service(&service).await.unwrap();
    }
    let happenings = serde_json::from_str(include_str!("cli/events.json"));
    let happenings: Vec<Happening> = happenings.unwrap();
    for what in happenings {
        balancer.events().publish(what);
    }
    balancer
}
