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

use crate::{
    compare,
    project::{cargo, execute, require_root, root, step, target_dir},
    setup::packages,
};

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

/// How much random work the soak is.
#[derive(clap::Args)]
pub(crate) struct Soak {
    /// Packets through the program and the model.
    #[arg(long, default_value_t = 10_000_000)]
    packets: u64,
    /// Flows of the simulation at a time.
    #[arg(long, default_value_t = 1_000_000)]
    flows: u64,
    /// Changes of the simulation's backends.
    #[arg(long, default_value_t = 200)]
    changes: u64,
    /// Connections that are held while backends change and the daemon is killed.
    #[arg(long, default_value_t = 2_000)]
    connections: u64,
    /// Times that the daemon is killed or ended, and started again, meanwhile.
    #[arg(long, default_value_t = 150)]
    starts: u64,
    /// TCP connections that are held under a steady load.
    #[arg(long, default_value_t = 500)]
    steady_connections: u64,
    /// Times that the daemon is killed and started again under it.
    #[arg(long, default_value_t = 100)]
    kills: u64,
    /// Times that the configuration is loaded anew under it.
    #[arg(long, default_value_t = 100)]
    reloads: u64,
    /// Times that another version of the program takes the place of the one before under it.
    #[arg(long, default_value_t = 20)]
    upgrades: u64,
    /// Flows at a time through the program while backends change.
    #[arg(long, default_value_t = 100_000)]
    program_flows: u64,
    /// Changes of their backends.
    #[arg(long, default_value_t = 50)]
    program_changes: u64,
    /// Spoofed SYNs of each flood.
    #[arg(long, default_value_t = 20_000_000)]
    syns: u64,
    /// Connections that are opened, closed and counted.
    #[arg(long, default_value_t = 1_000_000)]
    counted: u64,
    /// The seed of all that is random, to repeat a run; another one each time if none.
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs the tests of random things, optimized, as long as `soak` says. What is found in one
/// does not hide what is found in the next.
pub(crate) fn soak(soak: &Soak) -> Result<()> {
    require_root("the test loads BPF programs and makes network namespaces")?;
    let test = |name: &str, filter: &str, variables: &[(&str, Option<u64>)]| {
        let mut test = cargo();
        test.args(["test", "--release", "--package", "lb-tests", "--test", name]);
        test.args(["--", filter]);
        for (variable, value) in variables {
            if let Some(value) = value {
                test.env(variable, value.to_string());
            }
        }
        step(&format!("soak of the {name}"), || execute(&mut test))
    };
    let model = test(
        "model",
        "",
        &[
            ("LB_MODEL_PACKETS", Some(soak.packets)),
            ("LB_MODEL_SEED", soak.seed),
        ],
    );
    let simulation = test(
        "simulation",
        "",
        &[
            ("LB_SIMULATION_FLOWS", Some(soak.flows)),
            ("LB_SIMULATION_CHANGES", Some(soak.changes)),
            ("LB_SIMULATION_SEED", soak.seed),
        ],
    );
    let claims = test(
        "claims",
        "",
        &[
            ("LB_CLAIMS_FLOWS", Some(soak.program_flows)),
            ("LB_CLAIMS_CHANGES", Some(soak.program_changes)),
            ("LB_CLAIMS_SYNS", Some(soak.syns)),
            ("LB_CLAIMS_CONNECTIONS", Some(soak.counted)),
            ("LB_CLAIMS_SEED", soak.seed),
        ],
    );
    let restarts = test(
        "e2e",
        "restarts",
        &[
            ("LB_CONNECTIONS", Some(soak.connections)),
            ("LB_STARTS", Some(soak.starts)),
        ],
    );
    let steady = test(
        "e2e",
        "steady",
        &[
            ("LB_STEADY_CONNECTIONS", Some(soak.steady_connections)),
            ("LB_STEADY_KILLS", Some(soak.kills)),
            ("LB_STEADY_RELOADS", Some(soak.reloads)),
            ("LB_STEADY_UPGRADES", Some(soak.upgrades)),
        ],
    );
    model.and(simulation).and(claims).and(restarts).and(steady)
}

/// Checks format, lints and documentation; every warning is an error. What is
/// found in one does not hide what is found in the next.
pub(crate) fn lint() -> Result<()> {
    let results = [
        step("format", || {
            execute(cargo().args(["fmt", "--all", "--check"]))
        }),
        step("clippy", || {
            execute(cargo().args(["clippy", "--all-targets", "--", "--deny", "warnings"]))?;
            // It runs in the virtual machine alone, and is not one of the others.
            let devices = ["--package", "lb-tests", "--test", "devices"];
            execute(
                cargo()
                    .arg("clippy")
                    .args(devices)
                    .args(["--", "--deny", "warnings"]),
            )
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

/// Runs the benchmark; `arguments` are its own, but for the revision that it is to be compared
/// with.
pub(crate) fn bench(arguments: &[OsString]) -> Result<()> {
    let (revision, arguments) = compare::take_revision(arguments)?;
    if arguments.first().is_some_and(|subject| subject == "wire") {
        packages::install_peers()?;
    }
    let mut bench = cargo();
    bench
        .args(["run", "--release", "--package", "lb-bench", "--"])
        .args(arguments);
    if let Some(revision) = revision {
        bench.arg("--beside").arg(compare::benchmark(&revision)?);
    }
    execute(&mut bench)
}
