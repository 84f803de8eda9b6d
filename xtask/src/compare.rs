//! The benchmark of another revision, built in a tree of its own.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::project::{cargo, execute, root, step, target_dir};

/// The option of `cargo xtask bench packet` that names a revision.
const OPTION: &str = "--compare";

/// Takes the option and its value out of the arguments.
///
/// # Errors
/// If it has no value, or stands there twice.
pub(crate) fn take_revision(arguments: &[OsString]) -> Result<(Option<String>, Vec<OsString>)> {
    let mut revision = None;
    let mut others = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let text = argument.to_str().unwrap_or_default();
        let value = if text == OPTION {
            rest.next().and_then(|value| value.to_str())
        } else if let Some(value) = text.strip_prefix("--compare=") {
            Some(value)
        } else {
            others.push(argument.clone());
            continue;
        };
        let value = value.filter(|value| !value.is_empty());
        let value = value.with_context(|| {
            format!("{OPTION} needs a revision\nhint: `{OPTION} main`, or whatever git knows")
        })?;
        if revision.replace(value.to_owned()).is_some() {
            bail!("{OPTION} is there twice");
        }
    }
    Ok((revision, others))
}

/// The benchmark of a revision, which is built unless it has been before.
///
/// # Errors
/// If git does not know the revision, or it cannot be built.
pub(crate) fn benchmark(revision: &str) -> Result<PathBuf> {
    let commit = git(
        &root(),
        &[
            "rev-parse",
            "--verify",
            "--end-of-options",
            &format!("{revision}^{{commit}}"),
        ],
    )?;
    let place = target_dir()?.join("compare");
    let binary = place.join(format!("lb-bench-{commit}"));
    if !binary.exists() {
        step(&format!("benchmark of {revision}"), || {
            build(&place, &commit, &binary)
        })?;
    }
    Ok(binary)
}

/// Builds in one tree for all revisions, so that what they have in common is compiled once.
fn build(place: &Path, commit: &str, binary: &Path) -> Result<()> {
    fs::create_dir_all(place).with_context(|| format!("cannot make {}", place.display()))?;
    let tree = place.join("tree");
    if tree.join("Cargo.toml").exists() {
        git(
            &tree,
            &["checkout", "--quiet", "--detach", "--force", commit],
        )?;
    } else {
        // One that somebody has removed is still known to git.
        git(&root(), &["worktree", "prune"])?;
        let path = tree.to_str().context("a path that is no text")?;
        git(
            &root(),
            &["worktree", "add", "--quiet", "--detach", path, commit],
        )?;
    }
    // What set-up has put here does for both.
    let toolchain = ebpf_build::directory(&tree);
    if toolchain.symlink_metadata().is_err() {
        symlink(ebpf_build::directory(&root()), &toolchain)
            .with_context(|| format!("cannot make {}", toolchain.display()))?;
    }
    let target = place.join("target");
    execute(
        cargo()
            .current_dir(&tree)
            .env("CARGO_TARGET_DIR", &target)
            .args(["build", "--release", "--package", "lb-bench"]),
    )?;
    // Whoever is stopped here leaves no half of it.
    let half = binary.with_extension("part");
    fs::copy(target.join("release/lb-bench"), &half)
        .and_then(|_| fs::rename(&half, binary))
        .with_context(|| format!("cannot write {}", binary.display()))
}

/// What git answers.
fn git(directory: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .current_dir(directory)
        .args(arguments)
        .output()
        .context("cannot start git")?;
    if !output.status.success() {
        bail!(
            "git {} failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    let answer = String::from_utf8(output.stdout).context("git answers no text")?;
    Ok(answer.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(arguments: &[&str]) -> Result<(Option<String>, Vec<OsString>)> {
        let arguments: Vec<OsString> = arguments.iter().map(Into::into).collect();
        take_revision(&arguments)
    }

    #[test]
    fn the_revision_is_taken_out() -> Result<()> {
        let others = ["packet", "--quick"].map(OsString::from);
        for arguments in [
            &["packet", "--compare", "main", "--quick"][..],
            &["packet", "--quick", "--compare=main"],
        ] {
            let (revision, rest) = taken(arguments)?;
            assert_eq!(revision.as_deref(), Some("main"), "{arguments:?}");
            assert_eq!(rest, others, "{arguments:?}");
        }
        assert_eq!(taken(&["packet", "--quick"])?, (None, others.to_vec()));
        Ok(())
    }

    #[test]
    fn one_revision_is_needed() {
        for arguments in [
            &["--compare"][..],
            &["--compare="],
            &["--compare", "a", "--compare", "b"],
        ] {
            assert!(taken(arguments).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn what_git_does_not_know_is_said() {
        let error = benchmark("no-such-revision").expect_err("no revision");
        assert!(error.to_string().contains("git rev-parse"), "{error:#}");
    }
}
