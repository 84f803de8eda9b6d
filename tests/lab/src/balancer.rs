//! The balancer under test: a real daemon with a real configuration file.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{Host, Process, Service, Status, Topology, command::run};

/// How long the balancer may take to come to a state that it is to come to.
const PATIENCE: Duration = Duration::from_secs(90);
/// Flows of each family that it has room for.
const FLOWS: u32 = 65_536;
/// How often its status is asked for meanwhile.
const POLL: Duration = Duration::from_millis(10);

/// A running `lb`. It is killed when this value is dropped; [`Balancer::stop`] ends it
/// in order.
#[derive(Debug)]
pub struct Balancer {
    process: Process,
    host: Host,
    program: PathBuf,
    config: PathBuf,
    socket: PathBuf,
    /// Where its datapath is kept.
    pins: PathBuf,
    /// How often it has been started.
    starts: u32,
}

/// Writes a configuration file.
fn write_config(
    path: &Path,
    topology: &Topology,
    socket: &Path,
    pins: &Path,
    services: &[Service],
) -> Result<()> {
    let mut toml = format!("interfaces = {:?}\n", topology.interfaces);
    writeln!(toml, "socket = \"{}\"", socket.display())?;
    writeln!(toml, "pin-directory = \"{}\"", pins.display())?;
    let state = path.with_file_name("state.json");
    writeln!(toml, "state-file = \"{}\"", state.display())?;
    // Several labs run at once; the default would take each more than a gigabyte.
    writeln!(toml, "limits.flows = {FLOWS}")?;
    for service in services {
        toml.push_str(&service.to_toml(topology));
    }
    fs::write(path, toml).with_context(|| format!("cannot write {}", path.display()))
}

/// Starts `lb run` for the `start`th time.
fn run_lb(host: &Host, program: &Path, config: &Path, start: u32) -> Result<Process> {
    let mut command = host.command(program);
    command.args(["run", "--config"]).arg(config);
    let label = match start {
        1 => "lb".to_owned(),
        start => format!("lb-{start}"),
    };
    host.spawn(&label, command)
}

impl Balancer {
    /// Starts `lb`, the program at this path, on the host `lb` of `topology`, and waits
    /// until it has found all backends of all services well.
    ///
    /// # Errors
    ///
    /// When it does not start, or does not find them well; with its log.
    pub fn start(topology: &Topology, program: &Path, services: &[Service]) -> Result<Self> {
        let balancer = Self::start_unchecked(topology, program, services)?;
        balancer.wait_until("all backends are well", Status::is_all_well)?;
        Ok(balancer)
    }

    /// Starts `lb` and waits only until it answers.
    ///
    /// # Errors
    ///
    /// When it does not start, with its log.
    pub fn start_unchecked(
        topology: &Topology,
        program: &Path,
        services: &[Service],
    ) -> Result<Self> {
        let config = topology.lab.directory().join("lb.toml");
        let socket = Self::socket_in(topology.lab.directory());
        let pins = topology.lab.bpf_file_system()?.join("lb");
        write_config(&config, topology, &socket, &pins, services)?;
        let host = topology.lb.clone();
        let mut balancer = Self {
            process: run_lb(&host, program, &config, 1)?,
            host,
            program: program.to_owned(),
            config,
            socket,
            pins,
            starts: 1,
        };
        balancer.wait_until_it_answers()?;
        Ok(balancer)
    }

    /// Writes another configuration file, which the balancer reads when it starts.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn configure(&self, topology: &Topology, services: &[Service]) -> Result<()> {
        write_config(&self.config, topology, &self.socket, &self.pins, services)
    }

    /// Starts it again after its end, with its configuration file as that is now, and
    /// waits until it answers.
    ///
    /// # Errors
    ///
    /// When it runs, or does not start; with its log.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(!self.process.is_running()?, "`lb run` has not ended");
        self.starts += 1;
        self.process = run_lb(&self.host, &self.program, &self.config, self.starts)?;
        self.wait_until_it_answers()
    }

    /// Ends it in order and starts another program in its place, as an upgrade does. From then
    /// on this one is started.
    ///
    /// # Errors
    ///
    /// When the old one does not end, or the new one does not start; with its log.
    pub fn upgrade(&mut self, program: &Path) -> Result<()> {
        self.end()?;
        program.clone_into(&mut self.program);
        self.start_again()
    }

    /// Starts it after its end, when it is not to be able to. Returns what it says.
    ///
    /// # Errors
    ///
    /// When it runs on.
    pub fn fail_to_start(&mut self) -> Result<String> {
        ensure!(!self.process.is_running()?, "`lb run` has not ended");
        self.starts += 1;
        let mut process = run_lb(&self.host, &self.program, &self.config, self.starts)?;
        let deadline = Instant::now() + PATIENCE;
        while process.is_running()? {
            ensure!(Instant::now() < deadline, "it runs: {}", process.log());
            thread::sleep(POLL);
        }
        Ok(process.log())
    }

    /// Where its datapath is kept.
    #[must_use]
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Takes it out of the kernel after its end.
    ///
    /// # Errors
    ///
    /// When it runs, or `lb detach` fails.
    pub fn detach(&self) -> Result<String> {
        let mut command = self.host.command(&self.program);
        command.args(["detach", "--pin-directory"]).arg(&self.pins);
        run(&mut command)
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The socket of the API of a balancer whose lab has this directory.
    pub(crate) fn socket_in(directory: &Path) -> PathBuf {
        directory.join("lb.sock")
    }

    /// The socket of its API.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Runs `lb` with these words, which contain no spaces themselves, and the socket
    /// of this balancer. Returns what it prints.
    ///
    /// # Errors
    ///
    /// When it fails, with what it says.
    pub fn lb(&self, words: &str) -> Result<String> {
        let mut command: Command = self.host.command(&self.program);
        command
            .args(words.split_whitespace())
            .arg("--socket")
            .arg(&self.socket);
        run(&mut command)
    }

    /// What is.
    ///
    /// # Errors
    ///
    /// When the balancer does not answer.
    pub fn status(&self) -> Result<Status> {
        let json = self.lb("status --json")?;
        serde_json::from_str(&json).with_context(|| format!("`lb status --json` says {json}"))
    }

    /// Waits until the status is as `condition` wants it, and returns it.
    ///
    /// # Errors
    ///
    /// When that has not come true after some seconds, with the last status.
    pub fn wait_until(
        &self,
        what: &str,
        mut condition: impl FnMut(&Status) -> bool,
    ) -> Result<Status> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status()?;
            if condition(&status) {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "after {PATIENCE:?} it is not so that {what}: {status:#?}\nthe log of `lb`:\n{}",
                    self.process.log()
                );
            }
            thread::sleep(POLL);
        }
    }

    /// Ends it with SIGTERM.
    ///
    /// # Errors
    ///
    /// When it does not end, or with another status than 0; with its log.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    /// Ends it with SIGTERM, so that it can be [started again](Self::start_again).
    ///
    /// # Errors
    ///
    /// As with [`Self::stop`].
    pub fn end(&mut self) -> Result<()> {
        let status = self.process.terminate()?;
        if !status.success() {
            bail!("`lb run` ended, {status}; its log:\n{}", self.process.log());
        }
        Ok(())
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Err(error) = self.status() else {
                return Ok(());
            };
            if !self.process.is_running()? {
                bail!("`lb run` has ended; its log:\n{}", self.process.log());
            }
            if Instant::now() > deadline {
                return Err(error.context(format!(
                    "`lb run` does not answer; its log:\n{}",
                    self.process.log()
                )));
            }
            thread::sleep(POLL);
        }
    }
}
