//! Everything that a machine with stable Rust lacks to build and test `lb`.
//!
//! What a system package brings is installed as one; the rest goes into the
//! project's own `.toolchain/`. What is there already is found by looking, so
//! that a second run has nothing to do.

mod compiler;
mod linker;
mod llvm;
pub(crate) mod packages;
mod python;

use std::{fs, os::unix::fs::MetadataExt, path::Path, time::Instant};

use anyhow::{Context, Result, anyhow, bail};
use compiler::{Candidate, Compiler};
use ebpf_build::Toolchain;

/// Brings the machine to where `cargo build` and `cargo xtask test` work, and
/// says on stderr what it does; one line if that is nothing.
///
/// # Errors
/// If something is missing that cannot be installed here: what, and how to.
pub(crate) fn run(project: &Path) -> Result<()> {
    let tools = packages::missing_tools();
    if tools.is_empty()
        && python::is_there(project)
        && let Some(toolchain) = decided(project)
    {
        say(format_args!(
            "nothing to do (eBPF compiler: {})",
            toolchain.rustc.display()
        ));
        return Ok(());
    }

    let start = Instant::now();
    let compiler = match compiler::find() {
        Some(compiler) => {
            packages::install(&tools)?;
            compiler
        }
        None => install_compiler(&tools)?,
    };
    say(format_args!("eBPF compiler: {compiler}"));
    linker::install(project, &compiler.llvm)?;
    python::install(project)?;
    compiler
        .toolchain
        .store(project)
        .context("cannot write down what was found")?;
    say(format_args!(
        "done in {:.0} s",
        start.elapsed().as_secs_f32()
    ));
    Ok(())
}

/// Installs Debian's compiler, and `tools` with it.
fn install_compiler(tools: &[&str]) -> Result<Compiler> {
    let wanted = [tools, &packages::COMPILER].concat();
    if let Err(error) = packages::install(&wanted) {
        bail!(
            "{error:#}\n\
             hint: where rustup can download, a nightly does instead of Debian's compiler:\n\
             \x20     rustup toolchain install nightly --component rust-src,clippy"
        );
    }
    compiler::judge(Candidate::of_the_system()).map_err(|(name, why)| {
        anyhow!(
            "{name} was installed, but {why}\n\
             hint: is the distribution's security repository among apt's sources?"
        )
    })
}

/// What an earlier run decided, if it still holds: everything is in place, and
/// the compiler is not another one since (a package update, `rustup update`).
fn decided(project: &Path) -> Option<Toolchain> {
    let toolchain = Toolchain::load(project).ok()?;
    let complete = compiler::cores(&toolchain.rustc).contains(&toolchain.core)
        && ebpf_build::clippy(&toolchain.rustc).exists();
    let decided = fs::metadata(ebpf_build::decision(project)).ok()?.mtime();
    // The time of the inode, as package managers keep the file's own time.
    let installed = fs::metadata(&toolchain.rustc).ok()?.ctime();
    (complete && installed <= decided).then_some(toolchain)
}

/// One line of progress.
pub(crate) fn say(message: std::fmt::Arguments<'_>) {
    eprintln!("set-up: {message}");
}
