//! The Debian package: `lb` with its manual pages, completions, unit and an example of a
//! configuration.
//!
//! It is put together by hand and wrapped by `dpkg-deb`: what it holds is one program, which has
//! the eBPF objects inside, and a handful of files.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::project::{cargo, execute, require_root, root, step, target_dir};

mod content;
mod fresh;

/// What the package is to be.
#[derive(clap::Args)]
pub(crate) struct Package {
    /// Version of the package, in place of that of the program.
    #[arg(long)]
    version: Option<String>,
    /// Profile of cargo that the program is built with. Anything but `release` makes a package
    /// to look at, not one to install; `dev` takes the program that the tests have built.
    #[arg(long, default_value = "release")]
    profile: String,
    /// Who makes it: `NAME <ADDRESS>`.
    #[arg(
        long,
        env = "LB_MAINTAINER",
        default_value = "The authors of lb <lb@localhost>"
    )]
    maintainer: String,
    /// Install it in a fresh Debian 12, start, upgrade under traffic, remove and purge it there.
    /// Takes debootstrap, a mirror of Debian, root and some minutes.
    #[arg(long = "try")]
    is_tried: bool,
    /// The mirror for --try, as in sources.list.
    #[arg(long, default_value = "http://deb.debian.org/debian")]
    mirror: String,
    /// What --try does within mounts of its own.
    #[command(subcommand)]
    within: Option<Within>,
}

#[derive(clap::Subcommand)]
enum Within {
    /// The trial itself.
    #[command(hide = true)]
    Within(fresh::Trial),
}

/// Builds the package, looks at what it holds, and tries it if that is asked for.
pub(crate) fn package(options: &Package) -> Result<()> {
    if let Some(Within::Within(trial)) = &options.within {
        return trial.run();
    }
    if options.is_tried {
        require_root("the trial makes mounts and network namespaces, and runs BPF programs")?;
    }
    step("programs", || {
        let mut build = cargo();
        build.args(["build", "--profile", &options.profile]);
        if options.profile == "dev" {
            build.args(["--bins", "--tests"]);
        } else {
            build.args(["--package", "lb-userspace", "--bin", "lb"]);
            build.args(["--package", "lb-lab", "--bin", "lab-server"]);
        }
        execute(&mut build)
    })?;
    let built = target_dir()?.join(match options.profile.as_str() {
        "dev" => "debug",
        profile => profile,
    });
    let version = match &options.version {
        Some(version) => version.clone(),
        None => env!("CARGO_PKG_VERSION").to_owned(),
    };
    let package = assemble(options, &built.join("lb"), &version)?;
    content::check(&package, &version)?;
    println!("{}", package.display());
    if options.is_tried {
        let next = assemble(options, &built.join("lb"), &format!("{version}+1"))?;
        let trial = fresh::Trial {
            package,
            next,
            server: built.join("lab-server"),
        };
        step("fresh Debian", || trial.prepare(&options.mirror))?;
    }
    Ok(())
}

/// Puts the package of a version together, of the program that was built. Returns where it is.
fn assemble(options: &Package, built: &Path, version: &str) -> Result<PathBuf> {
    let target = target_dir()?;
    let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    let directory = target.join("package");
    let tree = directory.join(format!("lb_{version}"));
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    let program = tree.join("usr/sbin/lb");
    let source = root().join("packaging");
    copy(built, &program, 0o755)?;
    run(Command::new("strip").arg("--strip-unneeded").arg(&program))?;
    copy(
        &source.join("lb.service"),
        &tree.join("usr/lib/systemd/system/lb.service"),
        0o644,
    )?;
    copy(&source.join("lb.toml"), &tree.join("etc/lb/lb.toml"), 0o644)?;

    let man = tree.join("usr/share/man/man1");
    run(Command::new(&program).arg("man").arg(&man))?;
    for (shell, path) in [
        ("bash", "usr/share/bash-completion/completions/lb"),
        ("zsh", "usr/share/zsh/vendor-completions/_lb"),
        ("fish", "usr/share/fish/vendor_completions.d/lb.fish"),
    ] {
        let script = output(Command::new(&program).args(["completions", shell]))?;
        write(&tree.join(path), &script, 0o644)?;
    }

    let documents = tree.join("usr/share/doc/lb");
    copy(
        &source.join("copyright"),
        &documents.join("copyright"),
        0o644,
    )?;
    for entry in fs::read_dir(root().join("docs"))? {
        let path = entry?.path();
        let name = path.file_name().context("a file has a name")?;
        copy(&path, &documents.join("docs").join(name), 0o644)?;
    }
    copy(
        &root().join("README.md"),
        &documents.join("README.md"),
        0o644,
    )?;
    // RFC 5322, as Debian Policy wants it (section 4.4).
    let date = output(
        Command::new("date")
            .args(["-R", "-r"])
            .arg(root().join("Cargo.toml")),
    )?;
    let maintainer = &options.maintainer;
    let changelog = format!(
        "lb ({version}) unstable; urgency=medium\n\n  * This version.\n\n -- {maintainer}  {date}"
    );
    write(&documents.join("changelog"), &changelog, 0o644)?;
    for compressed in fs::read_dir(&man)?
        .map(|entry| Ok(entry?.path()))
        .chain([Ok::<_, std::io::Error>(documents.join("changelog"))])
    {
        let path = compressed?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        run(Command::new("gzip").args(["-9n"]).arg(&path))?;
    }

    control(&tree, version, architecture, maintainer)?;
    let package = directory.join(format!("lb_{version}_{architecture}.deb"));
    let mut build = Command::new("dpkg-deb");
    build
        .args(["--root-owner-group", "--build"])
        .arg(&tree)
        .arg(&package);
    run(&mut build)?;
    Ok(package)
}

/// What dpkg is to know.
fn control(tree: &Path, version: &str, architecture: &str, maintainer: &str) -> Result<()> {
    let control = tree.join("DEBIAN");
    let libc = glibc(&fs::read(tree.join("usr/sbin/lb"))?).context("the program needs no libc")?;
    let mut files = Vec::new();
    list(tree, &mut files)?;
    files.retain(|path| !path.starts_with(&control));
    files.sort();
    let mut bytes = 0;
    for file in &files {
        bytes += fs::metadata(file)?.len();
    }
    let text = format!(
        "Package: lb\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: \
         {maintainer}\nInstalled-Size: {}\nDepends: libc6 (>= {libc}), libgcc-s1, \
         passwd, procps\nSection: net\nPriority: optional\nDescription: layer-4 load balancer in XDP\n A \
         program in the network driver (XDP) rewrites or wraps packet headers and\n sends every \
         flow of TCP and UDP to a backend; a daemon checks the backends'\n health, fills the \
         tables and reports counters.\n .\n It needs Linux 6.1 or newer, with BTF, and a network \
         driver with native XDP.\n",
        bytes.div_ceil(1_024)
    );
    write(&control.join("control"), &text, 0o644)?;
    write(&control.join("conffiles"), "/etc/lb/lb.toml\n", 0o644)?;
    let mut sums = String::new();
    for file in &files {
        let sum = output(Command::new("md5sum").arg(file))?;
        let sum = sum.split_whitespace().next().context("a sum")?;
        let path = file.strip_prefix(tree)?.display();
        if !file.starts_with(tree.join("etc")) {
            sums.push_str(&format!("{sum}  {path}\n"));
        }
    }
    write(&control.join("md5sums"), &sums, 0o644)?;
    for script in ["postinst", "prerm", "postrm"] {
        copy(
            &root().join("packaging").join(script),
            &control.join(script),
            0o755,
        )?;
    }
    Ok(())
}

/// The newest version of glibc whose symbols a program names.
fn glibc(program: &[u8]) -> Option<String> {
    const MARK: &[u8] = b"GLIBC_2.";
    let versions = program
        .windows(MARK.len())
        .enumerate()
        .filter_map(|(at, window)| {
            let digits = program.get(at + MARK.len()..).filter(|_| window == MARK)?;
            let digits: String = digits
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .map(|byte| char::from(*byte))
                .collect();
            digits.parse::<u32>().ok()
        });
    versions.max().map(|minor| format!("2.{minor}"))
}

fn list(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    write(to, bytes, mode)
}

fn write(path: &Path, content: impl AsRef<[u8]>, mode: u32) -> Result<()> {
    let parent = path.parent().context("a file is in a directory")?;
    for directory in parent.ancestors().collect::<Vec<_>>().into_iter().rev() {
        if !directory.exists() {
            fs::create_dir(directory)?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
        }
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().display().to_string();
    let output = command
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    ensure!(
        output.status.success(),
        "{name} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    let status = command
        .status()
        .with_context(|| format!("cannot start {name}"))?;
    ensure!(status.success(), "{name} failed: see above");
    Ok(())
}
