//! Which compiler on this machine can compile for BPF.
//!
//! That target has no `core` in stable Rust. It is either compiled with the
//! program, which takes a nightly toolchain of rustup with the component
//! `rust-src`, or it comes compiled, as in Debian 12's packages.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use ebpf_build::{Core, Toolchain};

use super::{llvm::Llvm, say};

/// Where Debian's packages put the compiler and the target's `core`.
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";

/// A compiler that will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compiler {
    /// What the builds need to know of it.
    pub(crate) toolchain: Toolchain,
    /// Its LLVM, to which the linker is linked too: so neither is older.
    pub(crate) llvm: Llvm,
    name: String,
    version: Version,
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = match self.toolchain.core {
            Core::Prebuilt => "core prebuilt",
            Core::Source => "core from source",
        };
        let Self {
            name,
            version,
            llvm,
            ..
        } = self;
        write!(f, "{name} {version}, {core}, {}", llvm.soname)
    }
}

/// A compiler that is there, or is not, and what can be seen of it.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    name: String,
    rustc: PathBuf,
    /// How it has to have `core` to be of use.
    core: Core,
    /// Output of `rustc --version`, if it runs.
    version: Option<String>,
    /// Which forms of `core` are there.
    cores: Vec<Core>,
    clippy: bool,
    llvm: Option<Llvm>,
}

impl Candidate {
    fn look(name: String, rustc: PathBuf, core: Core) -> Self {
        Self {
            version: output(Command::new(&rustc).arg("--version")),
            cores: cores(&rustc),
            clippy: ebpf_build::clippy(&rustc).exists(),
            llvm: Llvm::of(&rustc),
            name,
            rustc,
            core,
        }
    }

    /// The compiler of the system's packages.
    pub(crate) fn of_the_system() -> Self {
        Self::look(
            "the system's rustc".into(),
            SYSTEM_RUSTC.into(),
            Core::Prebuilt,
        )
    }

    fn of_rustup() -> Vec<Self> {
        let toolchains = output(Command::new("rustup").args(["toolchain", "list", "-v"]));
        nightlies(&toolchains.unwrap_or_default())
            .into_iter()
            .map(|(name, directory)| {
                let rustc = directory.join("bin/rustc");
                Self::look(format!("rustup's {name}"), rustc, Core::Source)
            })
            .collect()
    }
}

/// The first compiler that will do, of rustup's nightlies and then the system's.
/// Says why it passes over the others.
pub(crate) fn find() -> Option<Compiler> {
    let mut candidates = Candidate::of_rustup();
    candidates.push(Candidate::of_the_system());
    candidates
        .into_iter()
        .find_map(|candidate| match judge(candidate) {
            Ok(compiler) => Some(compiler),
            Err((name, why)) => {
                say(format_args!("passing over {name}: {why}"));
                None
            }
        })
}

/// Whether a candidate will do; if not, its name and why.
pub(crate) fn judge(candidate: Candidate) -> Result<Compiler, (String, String)> {
    let Candidate {
        name,
        rustc,
        core,
        version,
        cores,
        clippy,
        llvm,
    } = candidate;
    let Some(version) = version else {
        return Err((name, "it is not installed, or does not run".into()));
    };
    let Some(version) = Version::of_output(&version) else {
        return Err((name, format!("`{}` is no version", version.trim())));
    };
    let oldest = Version::oldest();
    if version < oldest {
        return Err((name, format!("it is {version}, {oldest} is needed")));
    }
    if !cores.contains(&core) {
        let what = match core {
            Core::Prebuilt => "no core for bpfel-unknown-none",
            Core::Source => "no component rust-src",
        };
        return Err((name, format!("it has {what}")));
    }
    if !clippy {
        return Err((name, "it has no clippy".into()));
    }
    let Some(llvm) = llvm else {
        return Err((name, "its LLVM is no shared library".into()));
    };
    Ok(Compiler {
        toolchain: Toolchain { rustc, core },
        llvm,
        name,
        version,
    })
}

/// Which forms of `core` for BPF are in the sysroot of `rustc`.
pub(crate) fn cores(rustc: &Path) -> Vec<Core> {
    let Some(sysroot) = rustc.parent().and_then(Path::parent) else {
        return Vec::new();
    };
    let rustlib = sysroot.join("lib/rustlib");
    [
        (Core::Prebuilt, "bpfel-unknown-none/lib"),
        (Core::Source, "src/rust/library/core/src/lib.rs"),
    ]
    .into_iter()
    .filter(|(_, path)| rustlib.join(path).exists())
    .map(|(core, _)| core)
    .collect()
}

/// Name and directory of each nightly in the output of
/// `rustup toolchain list -v`: `NAME [(active, default)] DIRECTORY`.
fn nightlies(list: &str) -> Vec<(&str, PathBuf)> {
    list.lines()
        .filter(|line| line.starts_with("nightly"))
        .filter_map(|line| {
            let name = line.split_whitespace().next()?;
            let (_, directory) = line.split_once('/')?;
            Some((name, Path::new("/").join(directory)))
        })
        .collect()
}

/// A release of the compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    major: u32,
    minor: u32,
}

impl Version {
    /// The oldest that will do: the workspace's `rust-version`.
    fn oldest() -> Self {
        Self::parse(env!("CARGO_PKG_RUST_VERSION")).expect("it is MAJOR.MINOR")
    }

    /// Reads `1.96`, `1.96.0` or `1.97.0-nightly`.
    fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split('.').map(str::parse);
        Some(Self {
            major: numbers.next()?.ok()?,
            minor: numbers.next()?.ok()?,
        })
    }

    /// Reads the output of `rustc --version`: `rustc 1.96.0 (ac68faa20 2026-05-25)`.
    fn of_output(output: &str) -> Option<Self> {
        Self::parse(output.split_whitespace().nth(1)?)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What `command` prints, or `None` if it does not run or fails.
fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate() -> Candidate {
        Candidate {
            name: "rustup's nightly".into(),
            rustc: "/t/bin/rustc".into(),
            core: Core::Source,
            version: Some("rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\n".into()),
            cores: vec![Core::Source],
            clippy: true,
            llvm: Some(Llvm {
                soname: "libLLVM.so.22.1".into(),
                path: "/t/lib/libLLVM.so.22.1".into(),
            }),
        }
    }

    fn why_not(candidate: Candidate) -> String {
        judge(candidate).expect_err("this one does not do").1
    }

    #[test]
    fn a_nightly_with_the_source_of_core_does() {
        let compiler = judge(candidate()).expect("it has everything");
        assert_eq!(compiler.toolchain.rustc, Path::new("/t/bin/rustc"));
        assert_eq!(compiler.toolchain.core, Core::Source);
        assert_eq!(
            compiler.to_string(),
            "rustup's nightly 1.97, core from source, libLLVM.so.22.1"
        );
    }

    #[test]
    fn a_nightly_without_the_source_of_core_is_passed_over() {
        let without = Candidate {
            cores: vec![],
            ..candidate()
        };
        assert_eq!(why_not(without), "it has no component rust-src");
    }

    #[test]
    fn a_system_compiler_needs_a_compiled_core() {
        let with_source_only = Candidate {
            core: Core::Prebuilt,
            ..candidate()
        };
        assert_eq!(
            why_not(with_source_only),
            "it has no core for bpfel-unknown-none"
        );
    }

    #[test]
    fn an_old_compiler_is_passed_over() {
        let old = Candidate {
            version: Some("rustc 1.85.0 (4d91de4e4 2025-02-17)".into()),
            ..candidate()
        };
        let oldest = Version::oldest();
        assert_eq!(why_not(old), format!("it is 1.85, {oldest} is needed"));
    }

    #[test]
    fn a_compiler_that_does_not_run_is_passed_over() {
        let absent = Candidate {
            version: None,
            ..candidate()
        };
        assert_eq!(why_not(absent), "it is not installed, or does not run");
        let strange = Candidate {
            version: Some("hello\n".into()),
            ..candidate()
        };
        assert_eq!(why_not(strange), "`hello` is no version");
    }

    #[test]
    fn a_compiler_without_clippy_is_passed_over() {
        let without = Candidate {
            clippy: false,
            ..candidate()
        };
        assert_eq!(why_not(without), "it has no clippy");
    }

    #[test]
    fn a_compiler_with_llvm_inside_is_passed_over() {
        let fixed = Candidate {
            llvm: None,
            ..candidate()
        };
        assert_eq!(why_not(fixed), "its LLVM is no shared library");
    }

    #[test]
    fn nightlies_are_found_among_the_toolchains_of_rustup() {
        let list = "\
stable-x86_64-unknown-linux-gnu (active, default) /root/.rustup/toolchains/stable-x86_64-unknown-linux-gnu
nightly-x86_64-unknown-linux-gnu /root/.rustup/toolchains/nightly-x86_64-unknown-linux-gnu
nightly-2026-05-19-x86_64-unknown-linux-gnu (override) /home/a b/toolchains/dated
1.95.0-x86_64-unknown-linux-gnu /root/.rustup/toolchains/1.95.0-x86_64-unknown-linux-gnu
";
        assert_eq!(
            nightlies(list),
            [
                (
                    "nightly-x86_64-unknown-linux-gnu",
                    PathBuf::from("/root/.rustup/toolchains/nightly-x86_64-unknown-linux-gnu")
                ),
                (
                    "nightly-2026-05-19-x86_64-unknown-linux-gnu",
                    PathBuf::from("/home/a b/toolchains/dated")
                ),
            ]
        );
        assert_eq!(nightlies("no installed toolchains\n"), []);
    }

    #[test]
    fn releases_are_ordered_by_number() {
        let version = |release| Version::parse(release).expect("a release");
        assert!(version("1.9.0") < version("1.95"));
        assert_eq!(version("1.97.0-nightly"), version("1.97"));
        assert!(version("2.0") > version("1.97"));
    }
}
