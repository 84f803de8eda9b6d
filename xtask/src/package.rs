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

use crate::project::{cargo, execute, root, step, target_dir};

/// What the package is to be.
#[derive(clap::Args)]
pub(crate) struct Package {
    /// Version of the package, in place of that of the program.
    #[arg(long)]
    version: Option<String>,
    /// Install it in a fresh Debian 12, start, upgrade, remove and purge it there. Takes
    /// debootstrap and a mirror of Debian.
    #[arg(long = "try")]
    is_tried: bool,
    /// The mirror for --try, as in sources.list.
    #[arg(long, default_value = "http://deb.debian.org/debian")]
    mirror: String,
}

/// Builds the package, and tries it if that is asked for.
pub(crate) fn package(options: &Package) -> Result<()> {
    step("program", || {
        let mut build = cargo();
        build.args([
            "build",
            "--release",
            "--package",
            "lb-userspace",
            "--bin",
            "lb",
        ]);
        execute(&mut build)
    })?;
    let version = match &options.version {
        Some(version) => version.clone(),
        None => env!("CARGO_PKG_VERSION").to_owned(),
    };
    let package = assemble(&version)?;
    println!("{}", package.display());
    if options.is_tried {
        let next = assemble(&format!("{version}+1"))?;
        step("fresh Debian", || attempt(&package, &next, &options.mirror))?;
    }
    Ok(())
}

/// Puts the package of a version together. Returns where it is.
fn assemble(version: &str) -> Result<PathBuf> {
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
    copy(&target.join("release/lb"), &program, 0o755)?;
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
        copy(&path, &documents.join(name), 0o644)?;
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
    let changelog = format!(
        "lb ({version}) unstable; urgency=medium\n\n  * This version.\n\n -- The authors of lb \
         <lb@localhost>  {date}"
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

    control(&tree, version, architecture)?;
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
fn control(tree: &Path, version: &str, architecture: &str) -> Result<()> {
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
        "Package: lb\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: The authors of \
         lb <lb@localhost>\nInstalled-Size: {}\nDepends: libc6 (>= {libc}), libgcc-s1, \
         passwd\nSection: net\nPriority: optional\nDescription: layer-4 load balancer in XDP\n A \
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

/// What is done with the package in a fresh Debian: the words of a shell that has the network
/// and mounts of its own.
const ATTEMPT: &str = r#"
set -eux
root=$1
package=$2
next=$3
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t bpf bpf "$root/sys/fs/bpf"
mount -t tmpfs tmpfs "$root/run"
cp "$package" "$next" "$root/opt/"
in() { chroot "$root" "$@"; }
running=
trap 'if [ -n "$running" ]; then kill -9 $running; fi' EXIT

in dpkg --install "/opt/$(basename "$package")"
in getent group lb
in test -s /usr/share/man/man1/lb-explain.1.gz
in bash -n /usr/share/bash-completion/completions/lb
# The example is no configuration yet.
! in lb check /etc/lb/lb.toml

ip link set lo up
ip link add name edge type veth peer name other
ip address add 192.0.2.1/24 dev edge
ip link set edge up
ip link set other up
cat > "$root/etc/lb/lb.toml" <<'END'
interfaces = ["edge"]
limits.flows = 4096
limits.embryonic = 1024
[[service]]
name = "web"
address = "198.51.100.10:80"
mode = "dsr"
[[service.backend]]
address = "192.0.2.2"
END
in lb check /etc/lb/lb.toml
start() {
    chroot "$root" lb run --config /etc/lb/lb.toml 2>> "$root/opt/log" &
    running=$!
    for _ in $(seq 300); do
        if in lb status > /dev/null 2>&1; then return; fi
        kill -0 $running || { cat "$root/opt/log"; return 1; }
        sleep 0.2
    done
    return 1
}
start
in lb status
attached() { ip -json link show dev edge | grep -o '"prog":{"id":[0-9]*'; }
before=$(attached)

# What is attached goes on without a gap: at no moment is there no program.
touch "$root/run/watch"
( while [ -e "$root/run/watch" ]; do attached > /dev/null || echo gap >> "$root/opt/gaps"; done ) &
watch=$!
in dpkg --install --force-confold "/opt/$(basename "$next")"
kill $running
wait $running
running=
start
after=$(attached)
rm "$root/run/watch"
wait $watch
test ! -e "$root/opt/gaps"
test "$before" != "$after"
in lb status
in sh -c 'grep -q 198.51.100.10 /etc/lb/lb.toml'

kill $running
wait $running
running=
in dpkg --remove lb
! attached
in test -e /etc/lb/lb.toml
in test ! -e /usr/sbin/lb
in test ! -e /sys/fs/bpf/lb
in dpkg --purge lb
in test ! -e /etc/lb
! in getent group lb
test -z "$(in find / -xdev -path /opt -prune -o -path /proc -prune -o -name '*lb.service*' -print)"
"#;

/// Installs, starts, upgrades, removes and purges the package in a Debian of its own.
fn attempt(package: &Path, next: &Path, mirror: &str) -> Result<()> {
    let root = target_dir()?.join("package/debian");
    if !root.join("etc/debian_version").exists() {
        run(Command::new("debootstrap")
            .args(["--variant=minbase", "bookworm"])
            .arg(&root)
            .arg(mirror))?;
    }
    // What an attempt before this one has left.
    for left in ["root/log", "root/gaps"] {
        if root.join(left).exists() {
            fs::remove_file(root.join(left))?;
        }
    }
    let mut unshare = Command::new("unshare");
    unshare
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            ATTEMPT,
            "sh",
        ])
        .args([&root, package, next]);
    run(&mut unshare)
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
