//! One run of the virtual machine.

use std::{
    fs,
    io::{ErrorKind, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::install::Installation;

/// The first process.
const INIT: &str = include_str!("init.sh");
/// Modules that the first process needs, below `kernel` of the modules.
const EARLY: [&str; 6] = [
    "drivers/virtio",
    "fs/9p",
    "fs/fscache",
    "fs/netfs",
    "fs/overlayfs",
    "net/9p",
];
/// How often it is looked whether the machine has ended.
const POLL: Duration = Duration::from_millis(100);

/// Starts the machine, lets it run `script` as root by sh, with the file system of this
/// machine, and waits for the end. What it writes goes to stdout.
///
/// # Errors
///
/// When the machine does not start, `script` does not end within `patience`, or ends with
/// another status than 0.
pub(super) fn run(
    installation: &Installation,
    directory: &Path,
    script: &str,
    patience: Duration,
) -> Result<()> {
    fs::create_dir_all(directory)?;
    sweep_stale(directory)?;
    // Of this run alone.
    let directory = directory.join(std::process::id().to_string());
    fs::create_dir(&directory)?;
    let result = run_in(installation, &directory, script, patience);
    fs::remove_dir_all(&directory)?;
    result
}

/// Removes what runs have left that were killed: folders named by processes that are no more.
/// The machine of such a run has ended with it.
fn sweep_stale(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let process: Option<u32> = name.to_str().and_then(|name| name.parse().ok());
        let own = process == Some(std::process::id());
        if process.is_some() && (own || !Path::new("/proc").join(&name).exists()) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn run_in(
    installation: &Installation,
    directory: &Path,
    script: &str,
    patience: Duration,
) -> Result<()> {
    let (path, verdict) = (directory.join("script"), directory.join("verdict"));
    // Whatever happens, the machine ends, and tells by the second serial port how. While it
    // ends, there is no file system to start a program from.
    let script = format!(
        "({script}\n)\necho $? > /dev/ttyS1\nsync\necho o > /proc/sysrq-trigger\n\
         while :; do :; done\n"
    );
    fs::write(&path, script)?;
    let initramfs = initramfs(installation, directory)?;
    let kernel_arguments = format!(
        "console=ttyS0 quiet panic=-1 no_timer_check modules={} script={}",
        installation.modules.display(),
        path.display()
    );
    let mut machine = installation
        .emulator()
        .args(["-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-smp", "2", "-m", "4G", "-nodefaults", "-no-reboot"])
        .args(["-display", "none", "-monitor", "none", "-serial", "stdio"])
        .arg("-serial")
        .arg(format!("file:{}", verdict.display()))
        .args([
            "-virtfs",
            "local,path=/,mount_tag=outside,readonly=on,security_model=none,multidevs=remap",
        ])
        .arg("-kernel")
        .arg(&installation.kernel)
        .arg("-initrd")
        .arg(&initramfs)
        .args(["-append", &kernel_arguments])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start qemu")?;
    let deadline = Instant::now() + patience;
    let status = loop {
        if let Some(status) = machine.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            machine.kill()?;
            machine.wait()?;
            bail!("the virtual machine has not ended after {patience:?}");
        }
        thread::sleep(POLL);
    };
    ensure!(status.success(), "qemu ended, {status}");
    match fs::read_to_string(&verdict)?.trim() {
        "0" => Ok(()),
        "" => bail!("the virtual machine ended without a result"),
        status => bail!("the virtual machine ended with status {status}"),
    }
}

/// What the kernel starts with: busybox, the modules that it needs to reach the file system
/// of this machine, and the first process.
fn initramfs(installation: &Installation, directory: &Path) -> Result<PathBuf> {
    let root = directory.join("root");
    let [bin, modules] = ["bin", "lib/modules"].map(|name| root.join(name));
    fs::create_dir_all(&bin)?;
    fs::copy(&installation.busybox, bin.join("busybox"))?;
    let init = root.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, PermissionsExt::from_mode(0o755))?;
    for version in fs::read_dir(&installation.modules)? {
        let version = version?;
        let to = modules.join(version.file_name());
        copy_files(&version.path(), &to)?;
        for name in EARLY {
            let name = Path::new("kernel").join(name);
            copy_files(&version.path().join(&name), &to.join(&name))?;
        }
    }

    let archive = directory.join("initramfs");
    let mut cpio = Command::new(&installation.busybox)
        .args(["cpio", "--quiet", "-o", "-H", "newc", "-F"])
        .arg(&archive)
        .current_dir(&root)
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start busybox")?;
    let mut names = Vec::new();
    list(&root, Path::new(""), &mut names)?;
    if let Some(mut stdin) = cpio.stdin.take() {
        stdin.write_all(&names)?;
    }
    ensure!(cpio.wait()?.success(), "`busybox cpio` failed: see above");
    Ok(archive)
}

/// Copies the files of a folder, but not those of folders in it.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let entries = match fs::read_dir(from) {
        // A kernel may have it built in.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("cannot read {}", from.display()))?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// The names of everything below `root`, a folder before what is in it.
fn list(root: &Path, below: &Path, names: &mut Vec<u8>) -> Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let name = below.join(entry.file_name());
        names.extend_from_slice(name.as_os_str().as_encoded_bytes());
        names.push(b'\n');
        if entry.file_type()?.is_dir() {
            list(root, &name, names)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_killed_runs_have_left_is_removed() {
        let directory = std::env::temp_dir().join(format!("lb-vm-sweep-{}", std::process::id()));
        // No process has a number beyond PID_MAX_LIMIT.
        let killed = directory.join("4194305");
        let runs = directory.join(std::os::unix::process::parent_id().to_string());
        let other = directory.join("other");
        for path in [&killed, &runs, &other] {
            fs::create_dir_all(path.join("root")).unwrap();
        }
        sweep_stale(&directory).unwrap();
        let left = [&killed, &runs, &other].map(|path| path.exists());
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(left, [false, true, true]);
    }
}
