//! Configuration files with something wrong in them, thousands: each is taken whole or refused
//! whole, and one that is refused leaves what is in force as it is, byte by byte.

use lb_userspace::{
    api::wire,
    config::{self, Source},
    state::{ServiceSpec, Status},
};

use crate::support::{Balancer, send};

const FILE: &str = include_str!("config/every-key.toml");
/// The check of the file that runs a program.
const PROGRAM: &str =
    r#"type = "exec", command = ["/usr/bin/check", "--fast"], environment = { MODE = "a" }"#;
const MUTANTS: u64 = 2_000;

/// A generator of numbers (xorshift64*), so that a failure can be had again.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        number as usize % end.max(1)
    }
}

/// What may be written where another type belongs.
const WRONG: &[&str] = &[
    "true",
    "1",
    "-1",
    "0",
    "1.5",
    "nan",
    "99999999999",
    "\"x\"",
    "\"\"",
    "[]",
    "[1, \"x\"]",
    "{}",
    "{ a = 1 }",
    "1979-05-27",
    "'\u{e9}\\'",
    "",
    "\"1s\"",
    "\"10.0.0.1:80\"",
    "[[1]]",
];

/// A file with something wrong in it, or perhaps not.
pub(crate) fn mutant(file: &str, numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = file.as_bytes().to_vec();
    for _ in 0..=numbers.below(3) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let line = numbers.below(lines.len());
        match numbers.below(9) {
            0 => {
                let byte = numbers.below(bytes.len());
                if let Some(byte) = bytes.get_mut(byte) {
                    *byte ^= 1 << numbers.below(8);
                }
                continue;
            }
            1 => {
                bytes.truncate(numbers.below(bytes.len()));
                continue;
            }
            2 => {
                let at = numbers.below(bytes.len());
                bytes.insert(at, numbers.below(256) as u8);
                continue;
            }
            3 if !lines.is_empty() => drop(lines.remove(line)),
            4 if !lines.is_empty() => {
                let copy = lines[line].clone();
                let to = numbers.below(lines.len());
                lines.insert(to, copy);
            }
            5 if !lines.is_empty() => {
                let other = numbers.below(lines.len());
                lines.swap(line, other);
            }
            // A key without its last letter.
            6 if !lines.is_empty() => {
                if let Some((key, value)) = lines[line].clone().split_once('=') {
                    let mut key = key.trim_end().to_owned();
                    key.pop();
                    lines[line] = format!("{key} ={value}");
                }
            }
            _ if !lines.is_empty() => {
                if let Some((key, _)) = lines[line].clone().split_once('=') {
                    let wrong = WRONG[numbers.below(WRONG.len())];
                    lines[line] = format!("{key}= {wrong}");
                }
            }
            _ => {}
        }
        bytes = lines.join("\n").into_bytes();
    }
    bytes
}

/// The services of a file, by name; nothing where it has an error.
pub(crate) fn services(file: &[u8]) -> Option<Vec<ServiceSpec>> {
    let config = config::read(&Source::new("mutant", file)).config?;
    Some(config.desired().services().cloned().collect())
}

/// Applies a file, as it is or as JSON can carry it, over HTTP. Returns the status and the body.
pub(crate) fn apply(socket: &std::path::Path, file: &[u8]) -> (u16, String) {
    let file = wire::File {
        name: "/etc/lb/mutant.toml".into(),
        text: String::from_utf8_lossy(file).into_owned(),
    };
    let body = serde_json::to_string(&file).unwrap();
    let length = body.len();
    ask(
        socket,
        &format!("POST /v1/apply HTTP/1.1\r\nHost: lb\r\nContent-Length: {length}\r\n\r\n{body}"),
    )
}

/// What is in force, as bytes.
pub(crate) fn in_force(socket: &std::path::Path) -> String {
    let (status, body) = ask(socket, "GET /v1/config HTTP/1.1\r\nHost: lb\r\n\r\n");
    assert_eq!(status, 200);
    body
}

fn ask(socket: &std::path::Path, request: &str) -> (u16, String) {
    let answer = send(socket, request.as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
}

/// Applies mutants of `file` to whoever listens, and says how many were taken and refused.
pub(crate) fn run(
    socket: &std::path::Path,
    file: &str,
    mutants: std::ops::Range<u64>,
) -> (u64, u64) {
    let (mut taken, mut refused) = (0, 0);
    assert_eq!(apply(socket, file.as_bytes()).0, 200);
    for seed in mutants {
        let mutant = mutant(file, &mut Numbers::new(seed));
        let lossy = String::from_utf8_lossy(&mutant).into_owned();
        let before = in_force(socket);
        let (status, answer) = apply(socket, &mutant);
        match (services(lossy.as_bytes()), status) {
            (Some(services), 200) => {
                let services: Vec<_> = services.iter().map(wire::Service::from).collect();
                let now = ask(socket, "GET /v1/services HTTP/1.1\r\nHost: lb\r\n\r\n").1;
                assert_eq!(
                    now,
                    serde_json::to_string(&services).unwrap(),
                    "mutant {seed}"
                );
                taken += 1;
                assert_eq!(apply(socket, file.as_bytes()).0, 200, "mutant {seed}");
            }
            // A right file that would move connections.
            (Some(_), 409) | (None, 400) => {
                assert!(answer.contains("\"message\""), "mutant {seed}: {answer}");
                assert_eq!(in_force(socket), before, "mutant {seed}");
                refused += 1;
            }
            (services, status) => {
                panic!(
                    "mutant {seed}: {status}, though it is right: {}; {answer}\n{lossy}",
                    services.is_some()
                );
            }
        }
    }
    (taken, refused)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mutant_is_taken_whole_or_refused_whole() {
    let balancer = Balancer::start(Status::default());
    let socket = balancer.socket();
    // Through the socket nobody makes the daemon run another program, by no file.
    let file = FILE.replace(PROGRAM, "type = \"icmp\"");
    assert_ne!(file, FILE);
    assert_eq!(apply(&socket, FILE.as_bytes()).0, 400);
    let run = tokio::task::spawn_blocking(move || run(&socket, &file, 0..MUTANTS));
    let (taken, refused) = run.await.unwrap();
    assert_eq!(taken + refused, MUTANTS);
    assert!(
        taken > 50 && refused > 1_000,
        "{taken} were taken, {refused} refused"
    );
    balancer.stop().await;
}
