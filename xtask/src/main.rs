//! Tasks of the project: set-up, builds, tests, the lab and the demonstration.

mod compare;
mod lab;
mod package;
mod project;
mod setup;
mod tasks;
mod vm;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

/// Tasks of the project.
///
/// Each sets up the machine first if that has not been done.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building and testing need; nothing if it is there.
    Setup,
    /// Compile the eBPF programs alone; print the objects' paths, and their sizes.
    BuildEbpf,
    /// Run every test, those that need root and BPF included.
    Test {
        /// Arguments for `cargo test`, for one a filter: -- FILTER
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Check the format, run clippy on both sides, and build the documentation.
    Lint,
    /// `lint`, then `test`.
    Ci,
    /// Show what `lb` does: real traffic, a backend that dies and comes back.
    Demo,
    /// A lab of network namespaces that stays, to play with.
    #[command(subcommand)]
    Lab(Lab),
    /// Run random packets through the program and the reference model, and random changes
    /// of backends through the simulation.
    Soak(tasks::Soak),
    /// Run tests on the oldest kernel that is supported, in a virtual machine.
    Vm {
        /// A command to run there instead, with the file system of this machine: -- COMMAND
        #[arg(last = true)]
        command: Vec<OsString>,
    },
    /// Build the Debian package; with --try, install and remove it in a fresh Debian.
    Package(package::Package),
    /// Measure nanoseconds per packet, time and memory of flows and of many services;
    /// `packet --compare REVISION`: beside those of another revision.
    Bench {
        /// Arguments for the benchmark; --help lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

#[derive(Subcommand)]
enum Lab {
    /// Make it, with servers on the backends and the balancer running.
    Up,
    /// Take it away.
    Down,
    /// Open a shell in one of its hosts.
    Shell {
        /// The host's name, as `up` lists them.
        host: String,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    setup::run(&project::root())?;
    match task {
        Task::Setup => Ok(()),
        Task::BuildEbpf => tasks::build_ebpf(),
        Task::Test { arguments } => tasks::test(&arguments),
        Task::Lint => tasks::lint(),
        Task::Ci => {
            tasks::lint()?;
            tasks::test(&[])
        }
        Task::Soak(soak) => tasks::soak(&soak),
        Task::Package(options) => package::package(&options),
        Task::Vm { command } => vm::run(&command),
        Task::Demo => lab::demo(),
        Task::Lab(Lab::Up) => lab::up(),
        Task::Lab(Lab::Down) => lab::down(),
        Task::Lab(Lab::Shell { host }) => lab::shell(&host),
        Task::Bench { arguments } => tasks::bench(&arguments),
    }
}
