//! The tasks that are runs of cargo. The machine is set up when they begin.

use std::{
    ffi::OsString,
    fs,
    io::{self, Write},
};

use anyhow::{Context, Result};
use ebpf_build::{Program, Target, Toolchain};

use crate::project::{cargo, execute, require_root, root, step};

/// The crates of the host. The eBPF programs compile for their own target only, and
/// are compiled by the build scripts of lb-userspace and lb-bench.
const HOST_CRATES: [&str; 5] = [
    "--workspace",
    "--exclude",
    "lb-ebpf",
    "--exclude",
    "lb-bench-driver",
];

/// Where the eBPF program is compiled by itself; its builds within lb-userspace
/// have folders of their own.
const EBPF_TARGET: &str = "target/ebpf";

/// Compiles the eBPF program and prints where the object is.
pub(crate) fn build_ebpf() -> Result<()> {
    let project = root();
    let toolchain = Toolchain::load(&project)?;
    let target_dir = project.join(EBPF_TARGET);
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
    require_root("the tests load BPF programs and make network namespaces")?;
    step("tests", || {
        execute(
            cargo()
                .args(["test", "--no-fail-fast"])
                .args(HOST_CRATES)
                .args(arguments),
        )
    })
}

/// Checks format, lints and documentation; every warning is an error. What is
/// found in one does not hide what is found in the next.
pub(crate) fn lint() -> Result<()> {
    let results = [
        step("format", || {
            execute(cargo().args(["fmt", "--all", "--check"]))
        }),
        step("clippy", || {
            execute(cargo().arg("clippy").args(HOST_CRATES).args([
                "--all-targets",
                "--",
                "--deny",
                "warnings",
            ]))
        }),
        step("clippy of the eBPF programs", lint_ebpf),
        step("documentation", || {
            execute(
                cargo()
                    .args(["doc", "--no-deps"])
                    .args(HOST_CRATES)
                    .env("RUSTDOCFLAGS", "--deny warnings"),
            )
        }),
    ];
    results.into_iter().collect()
}

/// The clippy of stable Rust has no `core` for BPF, and on the host the program's
/// inline assembly does not compile: it is the eBPF compiler's own.
fn lint_ebpf() -> Result<()> {
    let project = root();
    let toolchain = Toolchain::load(&project)?;
    let target_dir = project.join(EBPF_TARGET);
    for program in Program::ALL {
        ebpf_build::lint(program, &project, &toolchain, &Target::host(), &target_dir)?;
    }
    Ok(())
}

/// Runs the benchmark; `arguments` are its own.
pub(crate) fn bench(arguments: &[OsString]) -> Result<()> {
    execute(
        cargo()
            .args(["run", "--release", "--package", "lb-bench", "--"])
            .args(arguments),
    )
}
