//! The programs under test. Cargo tells a test only those of its own package.

use std::{env, ffi::OsStr, path::PathBuf, process::Command, sync::LazyLock};

use lb_lab::Paths;

/// `lb` and `lab-server`, as built from the sources that this test was built from.
///
/// # Panics
///
/// When they do not compile.
pub(crate) fn paths() -> &'static Paths {
    static PATHS: LazyLock<Paths> = LazyLock::new(|| {
        let directory = env::var_os(PROGRAMS).map_or_else(build, PathBuf::from);
        Paths {
            lb: directory.join("lb"),
            server: directory.join("lab-server"),
        }
    });
    &PATHS
}

/// The folder that has them, in the environment; for a machine without cargo.
const PROGRAMS: &str = "LB_LAB_PROGRAMS";

/// Cargo builds nothing that is up to date, so this takes no time after a build of the
/// workspace, and never leaves an old program to be tested.
fn build() -> PathBuf {
    // This test is `target/PROFILE/deps/e2e-HASH`.
    let test = env::current_exe().expect("the path of this test");
    let directory = test.ancestors().nth(2).expect("two directories above it");
    let profile = match directory.file_name().and_then(OsStr::to_str) {
        Some("debug") => "dev",
        Some(profile) => profile,
        None => panic!("{} is not in cargo's target directory", test.display()),
    };
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        // All packages with their tests, as in a `cargo test` of everything, so that
        // dependencies have the same features and are not compiled again.
        .args(["build", "--quiet", "--bins", "--tests"])
        .args(["--profile", profile])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()
        .expect("cannot run cargo to build `lb` and `lab-server`");
    assert!(
        status.success(),
        "cannot build `lb` and `lab-server`, see above; has `cargo xtask setup` run?"
    );
    directory.to_owned()
}
