//! The tasks around the lab: a demonstration in one of its own, and one that stays.

use anyhow::Result;
use lb_lab::{Paths, demo as demonstration, standing};

use crate::project::{cargo, execute, require_root, step, target_dir};

const NEEDS_ROOT: &str = "the lab is made of network namespaces and runs a BPF program";

/// Shows what the balancer does.
pub(crate) fn demo() -> Result<()> {
    require_root(NEEDS_ROOT)?;
    demonstration::run(&build()?)
}

/// Makes the lab that stays.
pub(crate) fn up() -> Result<()> {
    require_root(NEEDS_ROOT)?;
    standing::up(&build()?)
}

/// Takes it away.
pub(crate) fn down() -> Result<()> {
    require_root(NEEDS_ROOT)?;
    standing::down()
}

/// Becomes a shell in one of its hosts.
pub(crate) fn shell(host: &str) -> Result<()> {
    require_root(NEEDS_ROOT)?;
    standing::shell(&programs()?, host)
}

/// Compiles the programs that the lab runs.
fn build() -> Result<Paths> {
    step("build", || {
        execute(
            cargo()
                .args(["build", "--release"])
                .args(["--package", "lb-userspace", "--bin", "lb"])
                .args(["--package", "lb-lab", "--bin", "lab-server"]),
        )
    })?;
    programs()
}

/// Where the programs are once they are compiled.
fn programs() -> Result<Paths> {
    let release = target_dir()?.join("release");
    Ok(Paths {
        lb: release.join("lb"),
        server: release.join("lab-server"),
    })
}
