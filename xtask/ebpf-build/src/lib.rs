//! Compiles the eBPF programs, those of `lb-ebpf` and the driver of the benchmark, to
//! object files.
//!
//! It needs a compiler with a `core` for the BPF target, which stable Rust does
//! not bring, and `bpf-linker`. `cargo xtask setup` finds or installs both and
//! writes down what it took, see [`Toolchain`]. The packages that load a program
//! call [`build_script`] in theirs.

mod compile;
mod program;
mod script;
mod toolchain;

pub use compile::{Builder, Built, Target};
pub use program::Program;
pub use script::build_script;
pub use toolchain::{Core, Toolchain, clippy, decision, directory, linker};

use std::{fmt, io, path::PathBuf};

/// Why there is no eBPF object.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// `cargo xtask setup` has not been run in this project, or what it put
    /// there is gone: the missing file.
    NotSetUp(PathBuf),
    /// The file that set-up wrote is not understood: the file, and what is wrong.
    Unreadable(PathBuf, String),
    /// A program could not be started: its name, and the cause.
    Spawn(PathBuf, io::Error),
    /// The compiler, clippy or the linker refused a program: its package, and what
    /// they said.
    Refused(&'static str, String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HINT: &str = "hint: run `cargo xtask setup` in the project's folder, as root";
        match self {
            Self::NotSetUp(missing) => write!(
                f,
                "the eBPF toolchain is not set up: {} is missing\n{HINT}",
                missing.display()
            ),
            Self::Unreadable(file, why) => {
                write!(f, "{}: {why}\n{HINT}", file.display())
            }
            Self::Spawn(program, cause) => {
                write!(f, "cannot start {}: {cause}\n{HINT}", program.display())
            }
            Self::Refused(package, output) => write!(
                f,
                "{package} does not compile for BPF without complaint:\n{}",
                output.trim_end()
            ),
        }
    }
}

impl std::error::Error for Error {}
