//! What the build scripts of the packages that load an eBPF program do.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{Builder, Program, Target, decision};

/// Compiles `programs` into the `OUT_DIR` of the running build script, each under the
/// name of its binary, for `include_bytes_aligned!(concat!(env!("OUT_DIR"), "/NAME"))`.
/// Says on stderr why it fails.
#[must_use]
pub fn build_script(programs: &[Program]) -> ExitCode {
    match programs.iter().copied().try_for_each(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(program: Program) -> Result<(), Box<dyn Error>> {
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let object = match installed(program)? {
        Some(object) => object,
        None => compile(program, &out_dir)?,
    };
    fs::copy(&object, out_dir.join(program.bin))
        .map_err(|e| format!("cannot copy the eBPF object {}: {e}", object.display()))?;
    Ok(())
}

/// The object that is there already, if the environment names one.
fn installed(program: Program) -> Result<Option<PathBuf>, Box<dyn Error>> {
    let Some(variable) = program.installed else {
        return Ok(None);
    };
    println!("cargo::rerun-if-env-changed={variable}");
    let Some(object) = env::var_os(variable).map(PathBuf::from) else {
        return Ok(None);
    };
    // The script runs in its package's folder, which is not where the user was.
    if !object.is_absolute() {
        return Err(format!("{variable}={} is not an absolute path", object.display()).into());
    }
    println!("cargo::rerun-if-changed={}", object.display());
    Ok(Some(object))
}

fn compile(program: Program, out_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let project = project();
    let common = ["Cargo.toml", "Cargo.lock"];
    for source in common.iter().chain(program.sources) {
        println!("cargo::rerun-if-changed={}", project.join(source).display());
    }
    println!("cargo::rerun-if-changed={}", decision(&project).display());

    let target = Target {
        endian: variable("CARGO_CFG_TARGET_ENDIAN")?,
        arch: variable("CARGO_CFG_TARGET_ARCH")?,
    };
    let built = Builder::new(&project, target, &target_dir(out_dir)?)?.build(program)?;
    for line in built.warnings.lines() {
        println!("cargo::warning={line}");
    }
    Ok(built.object)
}

/// A folder beside those of the surrounding cargo's profiles, so that the scripts
/// of all packages and profiles compile aya-ebpf once. Not one of those: the
/// surrounding cargo holds their locks until the script has ended.
fn target_dir(out_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    // OUT_DIR is TARGET_DIR/PROFILE/build/PACKAGE-HASH/out.
    let parent = out_dir
        .ancestors()
        .nth(4)
        .ok_or_else(|| format!("OUT_DIR={} is not in a target folder", out_dir.display()))?;
    Ok(parent.join("ebpf"))
}

/// The workspace's root.
fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("this package lies in xtask/")
        .into()
}

fn variable(name: &str) -> Result<String, Box<dyn Error>> {
    env::var(name).map_err(|e| format!("{name}: {e}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_packages_and_profiles_share_a_folder() {
        for out_dir in [
            "/p/target/debug/build/lb-userspace-6e03/out",
            "/p/target/release/build/lb-bench-77aa/out",
        ] {
            let shared = target_dir(Path::new(out_dir)).expect("it is deep enough");
            assert_eq!(shared, Path::new("/p/target/ebpf"));
        }
        assert!(target_dir(Path::new("/out")).is_err());
    }

    #[test]
    fn what_programs_are_made_of_is_there() {
        for program in Program::ALL {
            for source in program.sources {
                assert!(project().join(source).is_dir(), "{source}");
            }
        }
    }
}
