//! What a package holds, as dpkg reads it.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use super::{output, run};

/// Files that have to be there, with what may be done with them.
const FILES: [(&str, &str); 13] = [
    ("./etc/lb/lb.toml", "-rw-r--r--"),
    ("./usr/lib/systemd/system/lb.service", "-rw-r--r--"),
    ("./usr/sbin/lb", "-rwxr-xr-x"),
    ("./usr/share/bash-completion/completions/lb", "-rw-r--r--"),
    (
        "./usr/share/fish/vendor_completions.d/lb.fish",
        "-rw-r--r--",
    ),
    ("./usr/share/zsh/vendor-completions/_lb", "-rw-r--r--"),
    ("./usr/share/doc/lb/README.md", "-rw-r--r--"),
    ("./usr/share/doc/lb/docs/operations.md", "-rw-r--r--"),
    ("./usr/share/doc/lb/changelog.gz", "-rw-r--r--"),
    ("./usr/share/doc/lb/copyright", "-rw-r--r--"),
    ("./usr/share/man/man1/lb.1.gz", "-rw-r--r--"),
    ("./usr/share/man/man1/lb-run.1.gz", "-rw-r--r--"),
    ("./usr/share/man/man1/lb-backend-drain.1.gz", "-rw-r--r--"),
];

/// Directories that others may be in, too.
const PLACES: [&str; 4] = [
    "./etc/lb/",
    "./usr/sbin/",
    "./usr/lib/systemd/",
    "./usr/share/",
];

/// Holds a package to what its users, and Debian's policy, may expect.
///
/// # Errors
///
/// What is wrong with it.
pub(super) fn check(package: &Path, version: &str) -> Result<()> {
    let listing = output(Command::new("dpkg-deb").arg("--contents").arg(package))?;
    let mut files = BTreeMap::new();
    for line in listing.lines() {
        let mut words = line.split_whitespace();
        let (mode, owner) = (words.next(), words.next());
        let (mode, owner) = mode.zip(owner).context("a line without an owner")?;
        let path = words.nth(3).context("a line without a path")?;
        ensure!(owner == "root/root", "{path} belongs to {owner}");
        let is_ours = PLACES.iter().any(|place| path.starts_with(place));
        let is_way = PLACES.iter().any(|place| place.starts_with(path));
        ensure!(is_ours || is_way, "{path} is in no place of ours");
        // Write permission of the group and of others.
        let others = [mode.get(5..6), mode.get(8..9)];
        ensure!(others == [Some("-"); 2], "{path} is {mode}");
        files.insert(path.to_owned(), mode.to_owned());
    }
    for (path, mode) in FILES {
        let found = files
            .get(path)
            .with_context(|| format!("{path} is missing"))?;
        ensure!(found == mode, "{path} is {found}");
    }

    let field = |name| {
        output(
            Command::new("dpkg-deb")
                .arg("--field")
                .arg(package)
                .arg(name),
        )
    };
    ensure!(field("Package")?.trim() == "lb");
    ensure!(field("Version")?.trim() == version);
    ensure!(field("Depends")?.contains("libc6 (>= 2."));

    let control = package.with_extension("control");
    if control.exists() {
        fs::remove_dir_all(&control)?;
    }
    let mut extract = Command::new("dpkg-deb");
    run(extract.arg("--control").arg(package).arg(&control))?;
    let conffiles = fs::read_to_string(control.join("conffiles"))?;
    ensure!(conffiles == "/etc/lb/lb.toml\n", "{conffiles}");
    for script in ["postinst", "prerm", "postrm"] {
        run(Command::new("sh").arg("-n").arg(control.join(script)))?;
    }
    Ok(())
}
