//! The tasks that are runs of cargo. The machine is set up when they begin.
//!
//! Cargo takes the workspace's `default-members`: all packages but the eBPF
//! programs, which the build scripts of those that load them compile.

use std::{
    ffi::OsString,
    fs,
    io::{self, Write},
};

use anyhow::{Context, Result};
use ebpf_build::{Builder, Program, Target};

use crate::project::{cargo, execute, require_root, root, step, target_dir};

/// Compiles the eBPF programs of `lb` and prints where the objects are.
pub(crate) fn build_ebpf() -> Result<()> {
    let builder = ebpf_builder()?;
    for program in [Program::LB, Program::DECAP] {
        let built = builder.build(program)?;
        eprint!("{}", built.warnings);
        let bytes = fs::metadata(&built.object)
            .with_context(|| format!("cannot read {}", built.object.display()))?
            .len();
        writeln!(io::stdout(), "{}\t{bytes} bytes", built.object.display())?;
    }
    Ok(())
}

/// Runs all tests; `arguments` go to `cargo test`.
pub(crate) fn test(arguments: &[OsString]) -> Result<()> {
    require_root("the tests load BPF programs and make network namespaces")?;
    step("tests", || {
        execute(cargo().args(["test", "--no-fail-fast"]).args(arguments))
    })
}

/// Runs the test of the reference model, optimized, with many packets.
pub(crate) fn soak(packets: u64, seed: Option<u64>) -> Result<()> {
    require_root("the test loads BPF programs and makes network namespaces")?;
    let mut test = cargo();
    test.args([
        "test",
        "--release",
        "--package",
        "lb-tests",
        "--test",
        "model",
    ])
    .env("LB_MODEL_PACKETS", packets.to_string());
    if let Some(seed) = seed {
        test.env("LB_MODEL_SEED", seed.to_string());
    }
    step("soak", || execute(&mut test))
}

/// Checks format, lints and documentation; every warning is an error. What is
/// found in one does not hide what is found in the next.
pub(crate) fn lint() -> Result<()> {
    let results = [
        step("format", || {
            execute(cargo().args(["fmt", "--all", "--check"]))
        }),
        step("clippy", || {
            execute(cargo().args(["clippy", "--all-targets", "--", "--deny", "warnings"]))
        }),
        step("clippy of the eBPF programs", lint_ebpf),
        step("documentation", || {
            execute(
                cargo()
                    .args(["doc", "--no-deps"])
                    .env("RUSTDOCFLAGS", "--deny warnings"),
            )
        }),
    ];
    results.into_iter().collect()
}

/// The clippy of stable Rust has no `core` for BPF, and on the host the program's
/// inline assembly does not compile: it is the eBPF compiler's own.
fn lint_ebpf() -> Result<()> {
    let builder = ebpf_builder()?;
    for program in Program::ALL {
        builder.lint(program)?;
    }
    Ok(())
}

/// Shares what is compiled with the build scripts.
fn ebpf_builder() -> Result<Builder> {
    let target_dir = target_dir()?.join("ebpf");
    Ok(Builder::new(&root(), Target::host(), &target_dir)?)
}

/// Runs the benchmark; `arguments` are its own.
pub(crate) fn bench(arguments: &[OsString]) -> Result<()> {
    execute(
        cargo()
            .args(["run", "--release", "--package", "lb-bench", "--"])
            .args(arguments),
    )
}
