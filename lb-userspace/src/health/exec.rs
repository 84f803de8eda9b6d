//! The `exec` probe: a program ends with status 0.

use std::{io, os::unix::process::ExitStatusExt, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    process::{Child, Command},
    time,
};

use super::{ProbeError, Target, probe::shown};
use crate::state::ExecProbe;

/// Where programs find others.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Most bytes of what a program says that are kept.
const SAID: usize = 1_024;
/// How long the last words of a program may be on their way, which others may keep from
/// ending.
const LAST_WORDS: Duration = Duration::from_millis(20);

/// Runs the program, and kills it with its children if this is dropped before it has ended.
pub(super) async fn probe(target: &Target, exec: &ExecProbe) -> Result<(), ProbeError> {
    let (mut child, mut output) = start(target, exec).map_err(|error| {
        let program = exec.command.first().map(String::as_str).unwrap_or_default();
        ProbeError::Impossible(format!("`{program}`: {error}"))
    })?;
    let mut said = Vec::new();
    let status = {
        let reading = async {
            let mut buffer = [0; SAID];
            // All of it is read, so that the program never waits for a reader.
            while let Ok(length @ 1..) = output.read(&mut buffer).await {
                let room = SAID - said.len();
                said.extend(&buffer[..length.min(room)]);
            }
        };
        let mut reading = std::pin::pin!(reading);
        let mut has_ended = false;
        let status = loop {
            tokio::select! {
                status = child.0.wait() => break status,
                () = &mut reading, if !has_ended => has_ended = true,
            }
        };
        if !has_ended {
            let _late = time::timeout(LAST_WORDS, reading).await;
        }
        status?
    };
    if status.success() {
        return Ok(());
    }
    let end = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("ended by {signal}"),
            Err(_) => format!("ended by signal {signal}"),
        },
        (None, None) => "ended".to_owned(),
    };
    let mut lines = said.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    Err(ProbeError::Program(
        match lines.find(|line| !line.is_empty()) {
            Some(line) => format!("{end}: {}", shown(line)),
            None => end,
        },
    ))
}

/// Starts the program in a process group of its own. What it writes comes by the pipe.
fn start(target: &Target, exec: &ExecProbe) -> io::Result<(Group, pipe::Receiver)> {
    let (program, arguments) = exec
        .command
        .split_first()
        .ok_or(io::ErrorKind::InvalidInput)?;
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir("/")
        .env_clear()
        .env("PATH", PATH)
        .env("LB_SERVICE", &target.service)
        .env("LB_BACKEND", target.backend.to_string())
        .env("LB_ADDRESS", target.address.ip().to_string())
        .envs(&exec.environment)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .kill_on_drop(true);
    if target.address.port() != 0 {
        command.env("LB_PORT", target.address.port().to_string());
    }
    let child = command.spawn()?;
    let reader = pipe::Receiver::from_owned_fd(reader.into())?;
    Ok((Group(child), reader))
}

/// A program and what it has started.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // While it has not been waited for, its number is given to nobody else.
        if let Some(leader) = self.0.id() {
            let group = Pid::from_raw(leader.cast_signed());
            if let Err(error) = killpg(group, Signal::SIGKILL) {
                tracing::warn!(%group, %error, "the program of a health check cannot be killed");
            }
        }
    }
}
