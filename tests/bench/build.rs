//! Compiles the driver program into `OUT_DIR/driver`, for
//! `include_bytes_aligned!(concat!(env!("OUT_DIR"), "/driver"))`.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use ebpf_build::{Program, Target, Toolchain};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let manifest_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let project = manifest_dir
        .ancestors()
        .nth(2)
        .ok_or("the package does not lie in the project's folder")?;
    for source in [
        "tests/bench/driver",
        "Cargo.toml",
        "Cargo.lock",
        ".toolchain/ebpf.toml",
    ] {
        println!("cargo::rerun-if-changed={}", project.join(source).display());
    }
    let object = compile(project, &out_dir.join("target"))?;
    fs::copy(&object, out_dir.join("driver"))
        .map_err(|e| format!("cannot copy {}: {e}", object.display()))?;
    Ok(())
}

fn compile(project: &Path, target_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let toolchain = Toolchain::load(project)?;
    let target = Target {
        endian: env::var("CARGO_CFG_TARGET_ENDIAN")?,
        arch: env::var("CARGO_CFG_TARGET_ARCH")?,
    };
    let built = ebpf_build::build(
        Program::BENCH_DRIVER,
        project,
        &toolchain,
        &target,
        target_dir,
    )?;
    for line in built.warnings.lines() {
        println!("cargo::warning={line}");
    }
    Ok(built.object)
}
