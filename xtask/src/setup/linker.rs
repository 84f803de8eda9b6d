//! bpf-linker, which makes of the compiler's bitcode an object with BTF.
//!
//! Its LLVM must not be older than the compiler's. So it is linked to the very
//! library that the compiler is linked to, be it Debian's or rustup's: nothing
//! else of LLVM needs to be installed.

use std::{
    env, fs,
    io::ErrorKind,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{llvm::Llvm, say};

/// The release of bpf-linker.
const RELEASE: &str = "0.13.0";
/// The major versions of LLVM that this release can be linked to.
const LLVM_MAJORS: std::ops::RangeInclusive<u32> = 21..=23;

/// Compiles bpf-linker into the project's `.toolchain/`, linked to `llvm`, unless
/// it is there.
pub(crate) fn install(project: &Path, llvm: &Llvm) -> Result<()> {
    if is_installed(&ebpf_build::linker(project), llvm) {
        return Ok(());
    }
    let major = llvm
        .major()
        .filter(|major| LLVM_MAJORS.contains(major))
        .with_context(|| {
            format!(
                "bpf-linker {RELEASE} takes LLVM {} to {}, the compiler has {}",
                LLVM_MAJORS.start(),
                LLVM_MAJORS.end(),
                llvm.path.display()
            )
        })?;
    say(format_args!(
        "compiling bpf-linker {RELEASE} for {}; this takes a minute or two",
        llvm.soname
    ));
    let root = ebpf_build::directory(project);
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(env::split_paths(&path).chain([root.join("bin")]))
        .context("the project's path has a colon in it")?;
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["install", "bpf-linker", "--locked", "--force"])
        .args(["--version", &format!("={RELEASE}")])
        .args(["--no-default-features", "--features"])
        .arg(format!("llvm-{major}"))
        .arg("--root")
        .arg(&root)
        // Else cargo advises to put that folder on the path.
        .env("PATH", path)
        .env("LLVM_PREFIX", llvm_prefix(project, llvm)?)
        // Its own release profile keeps debug information: 40 MB of it.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env("CARGO_PROFILE_RELEASE_STRIP", "true")
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("bpf-linker {RELEASE} could not be installed: see above");
    }
    Ok(())
}

/// Whether `linker` is the release that is wanted and has the wanted LLVM.
fn is_installed(linker: &Path, llvm: &Llvm) -> bool {
    let version = Command::new(linker).arg("--version").output();
    version.is_ok_and(|output| output.stdout == format!("bpf-linker {RELEASE}\n").into_bytes())
        && Llvm::of(linker).is_some_and(|linked| linked.path == llvm.path)
}

/// Makes a folder that looks to bpf-linker like an installed LLVM: `lib/` with the
/// library under the linker's name for it and under the loader's.
fn llvm_prefix(project: &Path, llvm: &Llvm) -> Result<PathBuf> {
    let prefix = ebpf_build::directory(project).join("llvm");
    let lib = prefix.join("lib");
    match fs::remove_dir_all(&lib) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => fs::create_dir_all(&lib),
    }
    .with_context(|| format!("cannot make {} anew", lib.display()))?;
    for name in ["libLLVM.so", &llvm.soname] {
        let link = lib.join(name);
        symlink(&llvm.path, &link).with_context(|| format!("cannot make {}", link.display()))?;
    }
    Ok(prefix)
}
