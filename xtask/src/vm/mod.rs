//! The tests on another kernel: Linux 6.1, Debian 12's, in an emulated machine.
//!
//! It shares the file system of this machine, read-only, with what cargo has compiled here.
//! The processor is emulated, so that it runs everywhere, ten to thirty times as slowly: what
//! is asked of the tests there is less than here, and nothing of it is a matter of time.

mod install;
mod machine;

use std::{
    ffi::OsString,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use install::Installation;
use serde_json::Value;

use crate::project::{cargo, execute, root, step, target_dir};

/// How long the machine may run.
const PATIENCE: Duration = Duration::from_secs(50 * 60);

/// Tests to run: those of a package's target.
struct Tests {
    package: &'static str,
    /// The target, as cargo names it.
    target: &'static str,
    /// Arguments for it.
    arguments: &'static str,
    /// What is in its environment.
    environment: &'static str,
}

const TESTS: [Tests; 6] = [
    // Loading of the programs, and what they cost the verifier.
    Tests {
        package: "lb-userspace",
        target: "lb_userspace",
        arguments: "datapath:: --nocapture",
        environment: "",
    },
    Tests {
        package: "lb-tests",
        target: "packets",
        // Files, in which the kernel has no part, and numbers that are for a processor.
        arguments: "--skip conformance --skip many_flows",
        environment: "",
    },
    Tests {
        package: "lb-tests",
        target: "decap",
        arguments: "",
        environment: "",
    },
    Tests {
        package: "lb-tests",
        target: "model",
        arguments: "",
        environment: "LB_MODEL_PACKETS=20000",
    },
    Tests {
        package: "lb-tests",
        target: "properties",
        arguments: "",
        environment: "",
    },
    // Devices that only this kernel is sure to have.
    Tests {
        package: "lb-tests",
        target: "devices",
        arguments: "--test-threads 1",
        environment: "",
    },
];

/// Runs the tests, or `command`.
///
/// # Errors
///
/// When there is no machine to be had, something does not compile, or a test fails.
pub(crate) fn run(command: &[OsString]) -> Result<()> {
    let project = root();
    let installation = Installation::of(&project)?;
    let directory = target_dir()?.join("vm");
    let script = match command {
        [] => tests(&compile()?)?,
        command => arguments(command)?,
    };
    let script = format!("{}{script}", preamble(&project)?);
    step("Linux 6.1", || {
        machine::run(&installation, &directory, &script, PATIENCE)
    })
}

/// What is so in the machine before anything runs.
fn preamble(project: &Path) -> Result<String> {
    let programs = target_dir()?.join("release");
    Ok(format!(
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         export HOME=/tmp LB_LAB_PROGRAMS={} RUST_BACKTRACE=1\n\
         cd {}\n\
         ip link set lo up\n\
         uname -sr\n",
        quoted(&programs.to_string_lossy()),
        quoted(&project.to_string_lossy()),
    ))
}

/// A test program that cargo has compiled.
struct Executable {
    target: String,
    path: PathBuf,
    /// The folder of its package, where cargo would run it.
    package: PathBuf,
}

/// Compiles the tests and the programs that they run.
fn compile() -> Result<Vec<Executable>> {
    let mut executables = Vec::new();
    step("build", || {
        execute(cargo().args(["build", "--release"]).args([
            "--package",
            "lb-userspace",
            "--package",
            "lb-lab",
            "--bins",
        ]))?;
        let mut test = cargo();
        test.args(["test", "--release", "--no-run", "--message-format=json"]);
        for tests in &TESTS {
            test.args(["--package", tests.package]);
            match tests.target {
                "lb_userspace" => test.arg("--lib"),
                target => test.args(["--test", target]),
            };
        }
        executables = executables_of(test.stderr(Stdio::inherit()))?;
        Ok(())
    })?;
    Ok(executables)
}

/// Runs cargo and reads of its messages which tests it has compiled.
fn executables_of(cargo: &mut Command) -> Result<Vec<Executable>> {
    let output = cargo.output().context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "`cargo test --no-run` failed: see above"
    );
    let messages = output.stdout.split(|byte| *byte == b'\n');
    let executable = |message: Value| -> Option<Executable> {
        let path = message["executable"].as_str()?.into();
        let manifest: &Path = message["manifest_path"].as_str()?.as_ref();
        (message["profile"]["test"] == true).then(|| Executable {
            target: message["target"]["name"]
                .as_str()
                .unwrap_or_default()
                .into(),
            path,
            package: manifest.parent().unwrap_or(manifest).into(),
        })
    };
    messages
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).context("cargo says something else than JSON"))
        .filter_map(|message| message.map(executable).transpose())
        .collect()
}

/// The script that runs the tests, all of them, also after one has failed.
fn tests(executables: &[Executable]) -> Result<String> {
    let mut script = "failed=\n\
        run() {\n\
            name=$1 begin=$(date +%s); shift\n\
            printf '\\n-- %s\\n' \"$name\"\n\
            if env \"$@\"; then verdict=passed; else verdict=FAILED failed=\"$failed $name\"; fi\n\
            printf -- '-- %s: %s, %d s\\n' \"$name\" \"$verdict\" $(($(date +%s) - begin))\n\
        }\n"
    .to_owned();
    for tests in &TESTS {
        let executable = executables
            .iter()
            .find(|executable| executable.target == tests.target)
            .with_context(|| format!("cargo has not compiled the tests `{}`", tests.target))?;
        writeln!(
            script,
            "cd {} && run {} {} {} {}",
            quoted(&executable.package.to_string_lossy()),
            tests.target,
            tests.environment,
            quoted(&executable.path.to_string_lossy()),
            tests.arguments,
        )?;
    }
    script.push_str("if [ \"$failed\" ]; then echo \"FAILED:$failed\"; exit 1; fi");
    Ok(script)
}

/// A command line.
fn arguments(command: &[OsString]) -> Result<String> {
    let words = command.iter().map(|word| {
        let word = word
            .to_str()
            .context("the command has letters that are none")?;
        Ok(quoted(word))
    });
    Ok(words.collect::<Result<Vec<_>>>()?.join(" "))
}

/// A word as sh takes it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests_of_words {
    use super::quoted;

    #[test]
    fn words_are_what_they_are_to_the_shell() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
