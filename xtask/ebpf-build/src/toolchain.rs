//! What `cargo xtask setup` found, in a file between it and the builds.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::Error;

/// Where the project keeps what set-up installs and decides; not under version
/// control.
#[must_use]
pub fn directory(project: &Path) -> PathBuf {
    project.join(".toolchain")
}

/// The linker, which set-up compiles into the project's own folder.
#[must_use]
pub fn linker(project: &Path) -> PathBuf {
    directory(project).join("bin/bpf-linker")
}

/// The file with what set-up decided, a [`Toolchain`].
#[must_use]
pub fn decision(project: &Path) -> PathBuf {
    directory(project).join("ebpf.toml")
}

/// The clippy that belongs to a compiler.
#[must_use]
pub fn clippy(rustc: &Path) -> PathBuf {
    rustc.with_file_name("cargo-clippy")
}

/// Where `core` for the BPF target comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Core {
    /// Compiled already, in the compiler's sysroot.
    Prebuilt,
    /// Compiled with the program, from the source in the compiler's sysroot
    /// (`-Z build-std`).
    Source,
}

/// The compiler for the eBPF program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// The compiler itself, not a proxy that chooses one.
    pub rustc: PathBuf,
    /// Where its `core` comes from.
    pub core: Core,
}

impl Toolchain {
    /// Reads what set-up decided in `project`.
    ///
    /// # Errors
    /// [`Error::NotSetUp`] if there is no such decision, or if what it names is
    /// not there any more; [`Error::Unreadable`] if it is not understood.
    pub fn load(project: &Path) -> Result<Self, Error> {
        let file = decision(project);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Error::NotSetUp(file)),
            Err(e) => return Err(Error::Unreadable(file, e.to_string())),
        };
        let toolchain = Self::parse(&text).map_err(|why| Error::Unreadable(file, why))?;
        for needed in [&toolchain.rustc, &linker(project)] {
            if !needed.exists() {
                return Err(Error::NotSetUp(needed.clone()));
            }
        }
        Ok(toolchain)
    }

    /// Writes the decision down for [`Toolchain::load`].
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn store(&self, project: &Path) -> io::Result<()> {
        fs::create_dir_all(directory(project))?;
        fs::write(decision(project), self.text())
    }

    fn text(&self) -> String {
        let core = match self.core {
            Core::Prebuilt => "prebuilt",
            Core::Source => "source",
        };
        format!(
            "# Written by `cargo xtask setup`, read by every build of the eBPF program.\n\
             rustc = \"{}\"\ncore = \"{core}\"\n",
            self.rustc.display(),
        )
    }

    /// Parses lines of `key = "value"`, the part of TOML that [`Self::text`] uses.
    fn parse(text: &str) -> Result<Self, String> {
        let (mut rustc, mut core) = (None, None);
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (key, value) = line
                .split_once(" = ")
                .and_then(|(key, value)| Some((key, value.strip_prefix('"')?.strip_suffix('"')?)))
                .ok_or_else(|| format!("`{line}` is not of the form key = \"value\""))?;
            match (key, value) {
                ("rustc", path) => rustc = Some(PathBuf::from(path)),
                ("core", "prebuilt") => core = Some(Core::Prebuilt),
                ("core", "source") => core = Some(Core::Source),
                _ => return Err(format!("`{line}` is not understood")),
            }
        }
        let missing = |key| format!("`{key}` is missing");
        Ok(Self {
            rustc: rustc.ok_or_else(|| missing("rustc"))?,
            core: core.ok_or_else(|| missing("core"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for core in [Core::Prebuilt, Core::Source] {
            let written = Toolchain {
                rustc: "/opt/a b/bin/rustc".into(),
                core,
            };
            assert_eq!(Toolchain::parse(&written.text()), Ok(written));
        }
    }

    #[test]
    fn a_damaged_file_says_what_is_wrong() {
        for (text, why) in [
            ("", "`rustc` is missing"),
            ("rustc = \"/r\"", "`core` is missing"),
            ("core = \"prebuilt\"", "`rustc` is missing"),
            (
                "core = \"guessed\"",
                "`core = \"guessed\"` is not understood",
            ),
            ("linker = \"ld\"", "`linker = \"ld\"` is not understood"),
            (
                "rustc = /r",
                "`rustc = /r` is not of the form key = \"value\"",
            ),
            ("nonsense", "`nonsense` is not of the form key = \"value\""),
        ] {
            assert_eq!(Toolchain::parse(text), Err(why.into()), "{text:?}");
        }
    }
}
