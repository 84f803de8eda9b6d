//! The tasks that are runs of cargo. The machine is set up when they begin.

use std::{
    ffi::OsString,
    fs,
    io::{self, Write},
};

use anyhow::{Context, Result, bail};
use ebpf_build::{Program, Target, Toolchain};

use crate::project::{cargo, execute, root, step};

/// The crates of the host. The eBPF programs compile for their own target only, and
/// are compiled by the build scripts of lb-userspace and lb-bench.
const HOST_CRATES: [&str; 5] = [
    "--workspace",
    "--exclude",
    "lb-ebpf",
    "--exclude",
    "lb-bench-driver",
];

/// Compiles the eBPF program and prints where the object is.
pub(crate) fn build_ebpf() -> Result<()> {
    let project = root();
    let toolchain = Toolchain::load(&project)?;
    let target_dir = project.join("target/ebpf");
    let built = ebpf_build::build(
        Program::LB,
        &project,
        &toolchain,
        &Target::host(),
        &target_dir,
    )?;
    eprint!("{}", built.warnings);
    let bytes = fs::metadata(&built.object)
        .with_context(|| format!("cannot read {}", built.object.display()))?
        .len();
    writeln!(io::stdout(), "{}\t{bytes} bytes", built.object.display())?;
    Ok(())
}

/// Runs all tests; `arguments` go to `cargo test`.
pub(crate) fn test(arguments: &[OsString]) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the tests load BPF programs and make network namespaces: only root can\n\
             hint: run as root, or the tests that need neither: \
             cargo test -p lb-common -p lb-userspace --lib"
        );
    }
    step("tests", || {
        execute(
            cargo()
                .args(["test", "--no-fail-fast"])
                .args(HOST_CRATES)
                .args(arguments),
        )
    })
}

/// Checks format, lints and documentation; every warning is an error.
pub(crate) fn lint() -> Result<()> {
    step("format", || {
        execute(cargo().args(["fmt", "--all", "--check"]))
    })?;
    step("clippy", || {
        execute(cargo().arg("clippy").args(HOST_CRATES).args([
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ]))
    })?;
    // The clippy of stable Rust has no `core` for BPF, and on the host the
    // program's inline assembly does not compile: the eBPF compiler's own it is.
    step("clippy of the eBPF programs", || {
        let project = root();
        let toolchain = Toolchain::load(&project)?;
        let target_dir = project.join("target/ebpf");
        for program in Program::ALL {
            ebpf_build::lint(program, &project, &toolchain, &Target::host(), &target_dir)?;
        }
        Ok(())
    })?;
    step("documentation", || {
        execute(
            cargo()
                .args(["doc", "--no-deps"])
                .args(HOST_CRATES)
                .env("RUSTDOCFLAGS", "--deny warnings"),
        )
    })
}

/// Runs the benchmark; `arguments` are its own.
pub(crate) fn bench(arguments: &[OsString]) -> Result<()> {
    execute(
        cargo()
            .args(["run", "--release", "--package", "lb-bench", "--"])
            .args(arguments),
    )
}
