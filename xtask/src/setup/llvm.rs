//! The LLVM that a program has loaded.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// LLVM as a shared library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Llvm {
    /// The name that a program linked to it asks for.
    pub(crate) soname: String,
    /// The file.
    pub(crate) path: PathBuf,
}

impl Llvm {
    /// The LLVM that `program` is linked to, or `None`: to none, statically, or
    /// to one that is not there.
    pub(crate) fn of(program: &Path) -> Option<Self> {
        let output = Command::new("ldd").arg(program).output().ok()?;
        let mut llvm = Self::parse(&String::from_utf8_lossy(&output.stdout))?;
        llvm.path = fs::canonicalize(llvm.path).ok()?;
        Some(llvm)
    }

    /// Reads the output of ldd(1): `NAME => PATH (ADDRESS)`.
    fn parse(ldd: &str) -> Option<Self> {
        ldd.lines().find_map(|line| {
            let (soname, found) = line.trim().split_once(" => ")?;
            let (path, _address) = found.rsplit_once(" (")?;
            soname.starts_with("libLLVM").then(|| Self {
                soname: soname.into(),
                path: path.into(),
            })
        })
    }

    /// Its major version, from a name like `libLLVM.so.22.1` or, up to 18,
    /// `libLLVM-18.so`.
    pub(crate) fn major(&self) -> Option<u32> {
        let version = self
            .soname
            .trim_start_matches(|character: char| !character.is_ascii_digit());
        version
            .split(|character: char| !character.is_ascii_digit())
            .next()?
            .parse()
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_DEBIAN: &str = "\
\tlinux-vdso.so.1 (0x00007ffd0a5f2000)
\tlibrustc_driver-1f.so => /lib/x86_64-linux-gnu/librustc_driver-1f.so (0x00007f0d62000000)
\tlibLLVM.so.22.1 => /lib/x86_64-linux-gnu/libLLVM.so.22.1 (0x00007f0d59800000)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f0d66d6a000)
";

    #[test]
    fn the_library_is_found_among_the_others() {
        let llvm = Llvm::parse(OF_DEBIAN).expect("it is in the list");
        assert_eq!(llvm.soname, "libLLVM.so.22.1");
        assert_eq!(
            llvm.path,
            Path::new("/lib/x86_64-linux-gnu/libLLVM.so.22.1")
        );
        assert_eq!(llvm.major(), Some(22));
    }

    #[test]
    fn the_name_of_rustups_library_has_the_compilers_version_too() {
        let llvm = Llvm::parse(
            "\tlibLLVM.so.22.1-rust-1.97.0-nightly => /t/bin/../lib/libLLVM.so.22.1-rust-1.97.0-nightly (0x1)",
        )
        .expect("it is in the list");
        assert_eq!(llvm.major(), Some(22));
    }

    #[test]
    fn a_library_that_is_gone_is_not_found() {
        for without in [
            "",
            "\tlibLLVM.so.22.1 => not found\n",
            "\tstatically linked\n",
        ] {
            assert_eq!(Llvm::parse(without), None, "{without:?}");
        }
    }
}
