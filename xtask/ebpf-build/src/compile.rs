//! One run of cargo for the BPF target, kept apart from the cargo that may be
//! running around it.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Core, Error, Program, Toolchain, clippy, linker};

/// The machine that the program will run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `little` or `big`, as in `CARGO_CFG_TARGET_ENDIAN`.
    pub endian: String,
    /// The architecture, as in `CARGO_CFG_TARGET_ARCH`.
    pub arch: String,
}

impl Target {
    /// The machine that the build runs on.
    #[must_use]
    pub fn host() -> Self {
        let endian = if cfg!(target_endian = "big") {
            "big"
        } else {
            "little"
        };
        Self {
            endian: endian.into(),
            arch: env::consts::ARCH.into(),
        }
    }

    /// BPF has the byte order of the kernel that runs it.
    fn triple(&self) -> &'static str {
        if self.endian == "big" {
            "bpfeb-unknown-none"
        } else {
            "bpfel-unknown-none"
        }
    }
}

/// What a compilation of an eBPF program needs to know besides the program.
#[derive(Clone, Debug)]
pub struct Builder {
    project: PathBuf,
    toolchain: Toolchain,
    target: Target,
    target_dir: PathBuf,
}

/// A compiled program.
#[derive(Clone, Debug)]
pub struct Built {
    /// The object file.
    pub object: PathBuf,
    /// What the compiler warned of; empty if of nothing.
    pub warnings: String,
}

impl Builder {
    /// For the workspace at `project`, with the toolchain that was set up there,
    /// and with intermediate files under `target_dir`.
    ///
    /// # Errors
    /// As [`Toolchain::load`].
    pub fn new(project: &Path, target: Target, target_dir: &Path) -> Result<Self, Error> {
        Ok(Self {
            project: project.into(),
            toolchain: Toolchain::load(project)?,
            target,
            target_dir: target_dir.into(),
        })
    }

    /// Compiles `program`.
    ///
    /// # Errors
    /// If cargo cannot be started, or the program does not compile.
    pub fn build(&self, program: Program) -> Result<Built, Error> {
        let mut cargo = Command::new(cargo(&self.toolchain));
        cargo.arg("build");
        Ok(Built {
            warnings: self.run(cargo, program, &[])?,
            object: self
                .target_dir
                .join(self.target.triple())
                .join("ebpf")
                .join(program.bin),
        })
    }

    /// Runs the compiler's own clippy over `program`; every warning is an error.
    ///
    /// # Errors
    /// If clippy cannot be started, or finds something.
    pub fn lint(&self, program: Program) -> Result<(), Error> {
        let mut cargo_clippy = Command::new(clippy(&self.toolchain.rustc));
        cargo_clippy
            .arg("clippy")
            .env("CARGO", cargo(&self.toolchain));
        self.run(cargo_clippy, program, &["--", "--deny", "warnings"])?;
        Ok(())
    }

    /// Completes the command line and the environment of `cargo`, runs it, and
    /// returns what the compiler had to say.
    fn run(
        &self,
        mut cargo: Command,
        program: Program,
        last_arguments: &[&str],
    ) -> Result<String, Error> {
        for (key, _) in env::vars_os() {
            if !is_kept(&key.to_string_lossy()) {
                cargo.env_remove(key);
            }
        }
        cargo
            .current_dir(&self.project)
            .env("RUSTC", &self.toolchain.rustc)
            // aya-ebpf and the programs use unstable features (inline assembly for
            // BPF, for one). This makes a stable compiler admit them.
            .env("RUSTC_BOOTSTRAP", "1")
            .env(
                "CARGO_ENCODED_RUSTFLAGS",
                rustflags(&self.project, &self.target),
            )
            .args(["--package", program.package, "--bin", program.bin])
            .args(["--profile", "ebpf", "--locked", "--quiet"])
            .args(["--target", self.target.triple()])
            .arg("--target-dir")
            .arg(&self.target_dir);
        if self.toolchain.core == Core::Source {
            cargo.args(["-Z", "build-std=core"]);
        }
        cargo.args(last_arguments);

        let output = cargo
            .output()
            .map_err(|cause| Error::Spawn(cargo.get_program().into(), cause))?;
        let messages = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            Ok(messages)
        } else {
            Err(Error::Refused(program.package, messages))
        }
    }
}

/// The cargo to call. One that compiles `core` must be of the compiler's own
/// release; else the running one will do.
fn cargo(toolchain: &Toolchain) -> PathBuf {
    match toolchain.core {
        Core::Source => toolchain.rustc.with_file_name("cargo"),
        Core::Prebuilt => env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from),
    }
}

/// The flags, each by its reason, in the form of `CARGO_ENCODED_RUSTFLAGS`.
///
/// Debug information, from which the linker derives BTF, and the number of
/// codegen units are set in the workspace's profile `ebpf`.
fn rustflags(project: &Path, target: &Target) -> OsString {
    let mut linker_flag = OsString::from("-Clinker=");
    linker_flag.push(linker(project));

    let flags: [OsString; 5] = [
        // aya-ebpf's bindings of the kernel's structures, by architecture.
        format!("--cfg=bpf_target_arch=\"{}\"", kernel_arch(&target.arch)).into(),
        // Atomics that return the old value, and 32-bit jumps: Linux 5.12.
        "-Ctarget-cpu=v3".into(),
        linker_flag,
        "-Clink-arg=--btf".into(),
        // Load header fields whole, not byte by byte. rustc warns of the feature
        // when it is told; the linker generates the code, so it is enough there.
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".into(),
    ];
    flags.join(&OsString::from("\x1f"))
}

/// aya-ebpf knows one RISC-V; Rust has several names for its extensions.
fn kernel_arch(arch: &str) -> &str {
    if arch.starts_with("riscv64") {
        "riscv64"
    } else {
        arch
    }
}

/// Whether the compilation may see a variable of the environment. Around a build
/// script stands a cargo that speaks of another compiler, target and flags (and
/// of clippy, when that is what runs); of its variables only those pass that say
/// where crates come from and how many jobs may run.
fn is_kept(variable: &str) -> bool {
    const KEPT: [&str; 8] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_MAKEFLAGS",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
        "RUSTUP_HOME",
    ];
    let foreign = ["CARGO", "RUST"]
        .iter()
        .any(|prefix| variable.starts_with(prefix))
        || variable == "LD_LIBRARY_PATH"
        || variable == "OUT_DIR"
        || variable == "TARGET";
    !foreign || KEPT.iter().any(|prefix| variable.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(endian: &str, arch: &str) -> Target {
        Target {
            endian: endian.into(),
            arch: arch.into(),
        }
    }

    #[test]
    fn the_object_has_the_byte_order_of_its_kernel() {
        assert_eq!(target("little", "x86_64").triple(), "bpfel-unknown-none");
        assert_eq!(target("big", "s390x").triple(), "bpfeb-unknown-none");
    }

    #[test]
    fn nothing_of_the_surrounding_cargo_passes_but_its_sources_and_jobs() {
        for foreign in [
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_CFG_TARGET_ARCH",
            "CARGO_PROFILE_RELEASE_DEBUG",
            "CARGO_TARGET_DIR",
            "RUSTC",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "LD_LIBRARY_PATH",
            "TARGET",
        ] {
            assert!(!is_kept(foreign), "{foreign}");
        }
        for kept in [
            "CARGO_HOME",
            "CARGO_MAKEFLAGS",
            "CARGO_NET_OFFLINE",
            "RUSTUP_HOME",
            "PATH",
            "HOME",
            "http_proxy",
        ] {
            assert!(is_kept(kept), "{kept}");
        }
    }

    #[test]
    fn flags_are_separated_as_cargo_wants_them() {
        let flags = rustflags(Path::new("/p p"), &target("little", "riscv64gc"));
        let flags = flags.to_str().expect("all of it is ASCII");
        let flags: Vec<&str> = flags.split('\x1f').collect();
        assert_eq!(flags[0], "--cfg=bpf_target_arch=\"riscv64\"");
        assert!(flags.contains(&"-Clinker=/p p/.toolchain/bin/bpf-linker"));
    }

    #[test]
    fn a_compiler_that_builds_core_brings_its_own_cargo() {
        let mut toolchain = Toolchain {
            rustc: "/t/bin/rustc".into(),
            core: Core::Source,
        };
        assert_eq!(cargo(&toolchain), Path::new("/t/bin/cargo"));
        toolchain.core = Core::Prebuilt;
        assert_ne!(cargo(&toolchain), Path::new("/t/bin/cargo"));
    }
}
