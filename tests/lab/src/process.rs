//! Processes that end with the test that started them.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        LazyLock,
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::{
        prctl::set_pdeathsig,
        signal::{SigSet, Signal, kill},
    },
    unistd::{Pid, setpgid, setsid},
};

use crate::command::explain_missing;

/// How long a process may take to say that it is ready, or to end when asked.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often a condition that cannot be waited for is looked at.
const POLL: Duration = Duration::from_millis(5);

/// A process in the background. It is killed when this value is dropped, unless its
/// lab is one that stays.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: Log,
    lasting: bool,
}

impl Process {
    /// Starts a process that lives as long as this value and this process, or by
    /// itself if it is `lasting`.
    pub(crate) fn spawn(log: PathBuf, mut command: Command, lasting: bool) -> Result<Self> {
        let log = Log::redirect(log, &mut command)?;
        let prepare = move || -> io::Result<()> {
            // What this process keeps back, its children shall not.
            SigSet::empty().thread_set_mask()?;
            // Of its own session or group: an interrupt from the terminal reaches only
            // this process, which then ends its children in order.
            if lasting {
                setsid()?;
            } else {
                setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
                set_pdeathsig(Signal::SIGKILL)?;
            }
            Ok(())
        };
        #[expect(
            unsafe_code,
            reason = "the only way to run prctl between fork and exec"
        )]
        // SAFETY: the closure makes system calls and allocates nothing, so it may run in
        // the child of a process with several threads.
        unsafe {
            command.pre_exec(prepare);
        }
        let child = fork_from_lasting_thread(command)?;
        Ok(Self {
            child,
            log,
            lasting,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to it.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // Until it is waited for, its id cannot belong to another process.
        if let Some(status) = self.child.try_wait()? {
            bail!("cannot send {signal}: the process has ended, {status}");
        }
        let pid = Pid::from_raw(self.child.id().try_into()?);
        kill(pid, signal).with_context(|| format!("cannot send {signal}"))
    }

    /// Stops it without its knowledge: its connections stay and nobody answers.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on after [`Process::stop`].
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Kills it and waits until it is gone. Its kernel closes its connections.
    ///
    /// # Errors
    ///
    /// When it had ended before.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end with SIGTERM and waits for it.
    ///
    /// # Errors
    ///
    /// When it had ended before, or has not after some seconds.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait()
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// When it has not ended after some seconds.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "the process has not ended after {PATIENCE:?}; its log:\n{}",
                    self.log.read()
                );
            }
            thread::sleep(POLL);
        }
    }

    /// Whether it has not ended yet.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// What it has written to stdout and stderr so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.read()
    }

    /// Waits until it has written `text`.
    ///
    /// # Errors
    ///
    /// When it ends before, or has not written it after some seconds; with its log.
    pub fn wait_for_log(&self, text: &str) -> Result<()> {
        self.log.wait_for(text, self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.lasting {
            return;
        }
        // An error says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What one process writes: the end of a file that earlier processes of the same
/// name have written to.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    start: u64,
}

impl Log {
    /// Makes `command` write there.
    fn redirect(path: PathBuf, command: &mut Command) -> Result<Self> {
        let open = || -> io::Result<(File, File, u64)> {
            let file = File::options().create(true).append(true).open(&path)?;
            let start = file.metadata()?.len();
            Ok((file.try_clone()?, file, start))
        };
        let (stdout, stderr, start) =
            open().with_context(|| format!("cannot open {}", path.display()))?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        Ok(Self { path, start })
    }

    fn read(&self) -> String {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.start))?;
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            Ok(text)
        };
        read().map_or_else(
            |error| format!("(cannot read {}: {error})", self.path.display()),
            |text| String::from_utf8_lossy(&text).into_owned(),
        )
    }

    /// Waits until `process`, a child of this process, has written `text`.
    fn wait_for(&self, text: &str, process: u32) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // In this order: what it wrote just before it ended counts.
            let ended = has_ended(process);
            let written = self.read();
            if written.contains(text) {
                return Ok(());
            }
            if ended {
                bail!("the process has ended; its log:\n{written}");
            }
            if Instant::now() > deadline {
                bail!("no `{text}` after {PATIENCE:?}; the log:\n{written}");
            }
            thread::sleep(POLL);
        }
    }
}

/// Whether a child of this process is a zombie, or gone.
fn has_ended(id: u32) -> bool {
    // The state follows the name, which ends with the last `)` (proc_pid_stat(5)).
    fs::read_to_string(format!("/proc/{id}/stat")).map_or(true, |stat| {
        stat.rsplit_once(") ")
            .is_none_or(|(_, rest)| rest.starts_with('Z'))
    })
}

/// A command to start, and the way back for the process.
type Request = (Command, Sender<Result<Child>>);

/// Starts a process from a thread that lives as long as this process.
///
/// The signal of `PR_SET_PDEATHSIG` comes when the *thread* that forked ends
/// (prctl(2)): from the thread of a test, processes would not survive into the next
/// test that shares a lab with it.
fn fork_from_lasting_thread(command: Command) -> Result<Child> {
    static FORKER: LazyLock<Sender<Request>> = LazyLock::new(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        thread::spawn(move || {
            for (mut command, answer) in requests {
                let child: io::Result<_> = command.spawn();
                // Nobody waits for the answer when the asking thread panicked.
                let _ = answer.send(child.map_err(|error| explain_missing(&command, error)));
            }
        });
        sender
    });
    let (answer, child) = mpsc::channel();
    FORKER
        .send((command, answer))
        .context("the thread that starts processes is gone")?;
    child
        .recv()
        .context("the thread that starts processes is gone")?
}
