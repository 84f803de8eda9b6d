//! Compiles the eBPF program into `OUT_DIR/lb`, for
//! `include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb"))`.
//!
//! `LB_EBPF_OBJECT` names an object that is there already, for packagers and for
//! machines without the eBPF toolchain; then nothing is compiled.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use ebpf_build::{Program, Target, Toolchain};

const INSTALLED_OBJECT: &str = "LB_EBPF_OBJECT";

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
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let project = manifest_dir
        .parent()
        .ok_or("the package does not lie in the project's folder")?;

    println!("cargo::rerun-if-env-changed={INSTALLED_OBJECT}");
    let object = match env::var_os(INSTALLED_OBJECT) {
        Some(installed) => installed_object(Path::new(&installed))?,
        None => compile(project, &out_dir)?,
    };
    fs::copy(&object, out_dir.join("lb")).map_err(|e| {
        format!(
            "cannot copy {} to {}: {e}",
            object.display(),
            out_dir.display()
        )
    })?;
    Ok(())
}

fn installed_object(path: &Path) -> Result<PathBuf, Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", path.display());
    if !path.is_absolute() {
        return Err(format!(
            "{INSTALLED_OBJECT}={} is not an absolute path",
            path.display()
        )
        .into());
    }
    Ok(path.into())
}

fn compile(project: &Path, out_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    for source in [
        "lb-ebpf",
        "lb-common",
        "Cargo.toml",
        "Cargo.lock",
        ".toolchain/ebpf.toml",
    ] {
        println!("cargo::rerun-if-changed={}", project.join(source).display());
    }
    let toolchain = Toolchain::load(project)?;
    let target = Target {
        endian: variable("CARGO_CFG_TARGET_ENDIAN")?,
        arch: variable("CARGO_CFG_TARGET_ARCH")?,
    };
    // A folder of its own: the surrounding cargo holds the lock of its target
    // folder until this script has ended.
    let built = ebpf_build::build(
        Program::LB,
        project,
        &toolchain,
        &target,
        &out_dir.join("target"),
    )?;
    for line in built.warnings.lines() {
        println!("cargo::warning={line}");
    }
    Ok(built.object)
}

fn variable(name: &str) -> Result<String, Box<dyn Error>> {
    env::var(name).map_err(|e| format!("{name}: {e}").into())
}
