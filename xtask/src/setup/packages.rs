//! What the system's packages bring.

use std::{
    env,
    ffi::OsStr,
    fs, io,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context, Result, bail};

use super::say;

/// The compiler for BPF with its `core`, and its clippy, in Debian 12. LLVM comes
/// with them.
pub(crate) const COMPILER: [&str; 3] = ["rustc-web", "libstd-rust-web-dev-bpf", "rust-web-clippy"];

/// The programs that the tests and the lab call, or a user in the lab's shell, each
/// with the package that has it.
const TOOLS: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("ethtool", "ethtool"),
    ("tcpdump", "tcpdump"),
    ("tshark", "tshark"),
    ("sysctl", "procps"),
    ("curl", "curl"),
];

/// The programs that `lb` is measured beside, in the same way. Nothing else needs them.
const PEERS: [(&str, &str); 1] = [("nft", "nftables")];

/// The packages of the programs that are not there.
pub(crate) fn missing_tools() -> Vec<&'static str> {
    let path = env::var_os("PATH").unwrap_or_default();
    packages_without(&TOOLS, |program| is_on(&path, program))
}

/// Installs what `lb` is measured beside.
///
/// # Errors
/// As with [`install`].
pub(crate) fn install_peers() -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    install(&packages_without(&PEERS, |program| is_on(&path, program)))
}

fn packages_without(
    programs: &[(&str, &'static str)],
    is_there: impl Fn(&str) -> bool,
) -> Vec<&'static str> {
    let mut packages: Vec<_> = programs
        .iter()
        .filter(|(program, _)| !is_there(program))
        .map(|(_, package)| *package)
        .collect();
    packages.dedup();
    packages
}

pub(crate) fn is_on(path: &OsStr, program: &str) -> bool {
    env::split_paths(path).any(|directory| directory.join(program).is_file())
}

/// Installs `packages`; none is nothing to do.
///
/// # Errors
/// If this is not root, or not a Debian, or a package is not to be had.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !is_on(&env::var_os("PATH").unwrap_or_default(), "apt-get") {
        bail!("missing is what Debian has as {list}, and there is no apt-get to install it");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "these packages are missing, and only root can install them: {list}\n\
             hint: apt-get install --no-install-recommends {list}"
        );
    }
    say(format_args!("installing by apt-get: {list}"));
    update()?;
    // Nothing is removed for it: that would be somebody's compiler.
    apt_get(
        &[
            &["install", "--yes", "--no-install-recommends", "--no-remove"],
            packages,
        ]
        .concat(),
    )
}

/// Downloads `packages` into a folder; nothing is installed.
///
/// # Errors
/// If one of them is not to be had.
pub(crate) fn download(packages: &[&str], directory: &Path) -> Result<()> {
    let output = Command::new("apt-get")
        .args(["--quiet", "download"])
        .args(packages)
        .current_dir(directory)
        .output();
    succeeded(&["download", &packages.join(" ")], output)
}

/// The same with what a package depends on and the system lacks.
///
/// # Errors
/// If one of them is not to be had.
pub(crate) fn download_with_dependencies(package: &str, directory: &Path) -> Result<()> {
    // apt-get wants that folder there.
    fs::create_dir_all(directory.join("partial"))?;
    apt_get(&[
        "install",
        "--yes",
        "--no-install-recommends",
        "--download-only",
        "--option",
        &format!("Dir::Cache::archives={}", directory.display()),
        package,
    ])
}

/// Asks for the present packages.
///
/// # Errors
/// If that fails.
pub(crate) fn update() -> Result<()> {
    apt_get(&["update"])
}

/// Runs apt-get, which is quiet unless it fails.
fn apt_get(arguments: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        // Another apt, as machines run one when they start, is waited for.
        .args(["--quiet", "--option", "DPkg::Lock::Timeout=300"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output();
    succeeded(arguments, output)
}

/// Whether apt-get did what it was told; what it said, if not.
fn succeeded(arguments: &[&str], output: io::Result<Output>) -> Result<()> {
    let Output {
        status,
        stdout,
        stderr,
    } = output.context("cannot start apt-get")?;
    if !status.success() {
        bail!(
            "apt-get {} failed:\n{}{}",
            arguments.join(" "),
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr).trim_end()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_installed() {
        assert_eq!(packages_without(&TOOLS, |_| true), [""; 0]);
        assert_eq!(
            packages_without(&TOOLS, |program| program != "ethtool"),
            ["ethtool"]
        );
    }

    #[test]
    fn a_package_with_two_of_the_programs_is_named_once() {
        assert_eq!(
            packages_without(&TOOLS, |_| false),
            ["iproute2", "ethtool", "tcpdump", "tshark", "procps", "curl"]
        );
        assert_eq!(
            packages_without(&TOOLS, |program| program != "bridge"),
            ["iproute2"]
        );
    }
}
