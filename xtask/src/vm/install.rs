//! What the virtual machine is made of, from Debian's packages, unpacked into the
//! project's `.toolchain/`: nothing of the system is changed.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::setup::{packages, say};

/// The stock kernel: a package that depends on the one of the present version.
const KERNEL: &str = "linux-image-amd64";
/// What the package of that version is named, in Debian 12.
const VERSION: &str = "linux-image-6.1.0-";
/// Of the kernel's package, what the machine needs. Its drivers are a quarter of a
/// gigabyte.
const OF_KERNEL: [&str; 9] = [
    "./boot/vmlinuz-*",
    "./lib/modules/*/modules.*",
    "./lib/modules/*/kernel/crypto",
    "./lib/modules/*/kernel/fs",
    "./lib/modules/*/kernel/lib",
    "./lib/modules/*/kernel/net",
    "./lib/modules/*/kernel/drivers/net/*.ko",
    "./lib/modules/*/kernel/drivers/net/bonding",
    "./lib/modules/*/kernel/drivers/virtio",
];

/// A machine that can be started.
#[derive(Clone, Debug)]
pub(super) struct Installation {
    /// The kernel.
    pub(super) kernel: PathBuf,
    /// What is `/lib/modules` in the machine: a folder for the kernel's version.
    pub(super) modules: PathBuf,
    /// A busybox that needs no library.
    pub(super) busybox: PathBuf,
    /// Where the emulator was unpacked; `None` where the system has one.
    unpacked: Option<PathBuf>,
}

impl Installation {
    /// What there is in `.toolchain/vm` of the project, or what is brought there now.
    ///
    /// # Errors
    ///
    /// On other systems than a Debian 12 on x86-64, or when a package is not to be had.
    pub(super) fn of(project: &Path) -> Result<Self> {
        ensure!(
            env::consts::ARCH == "x86_64",
            "the virtual machine runs the tests of this machine, and has a kernel for x86-64"
        );
        let directory = ebpf_build::directory(project).join("vm");
        if let Some(found) = Self::find(&directory) {
            return Ok(found);
        }
        // What was interrupted is begun again.
        let partial = directory.with_extension("partial");
        for old in [&directory, &partial] {
            if old.exists() {
                fs::remove_dir_all(old)?;
            }
        }
        fs::create_dir_all(&partial)?;
        unpack_packages(&partial)?;
        fs::rename(&partial, &directory)?;
        Self::find(&directory).context("the packages lack what the virtual machine needs")
    }

    fn find(directory: &Path) -> Option<Self> {
        let emulator = directory.join("usr/bin/qemu-system-x86_64");
        let unpacked = emulator.is_file().then(|| directory.to_owned());
        if unpacked.is_none() && !has_emulator() {
            return None;
        }
        let kernel = only_entry(&directory.join("boot")).ok()?;
        let busybox = directory.join("bin/busybox");
        busybox.is_file().then(|| Self {
            kernel,
            modules: directory.join("lib/modules"),
            busybox,
            unpacked,
        })
    }

    /// The emulator, which ends with this process.
    pub(super) fn emulator(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        if let Some(unpacked) = &self.unpacked {
            let libraries = unpacked.join("usr/lib/x86_64-linux-gnu");
            let path = env::var_os("PATH").unwrap_or_default();
            let mut path: Vec<_> = env::split_paths(&path).collect();
            path.insert(0, unpacked.join("usr/bin"));
            command
                .env("PATH", env::join_paths(path).unwrap_or_default())
                .env("QEMU_MODULE_DIR", libraries.join("qemu"))
                .env("LD_LIBRARY_PATH", libraries);
            for data in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(unpacked.join(data));
            }
        }
        command
    }
}

fn has_emulator() -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    packages::is_on(&path, "qemu-system-x86_64")
}

/// Downloads the packages and unpacks them into `directory`.
fn unpack_packages(directory: &Path) -> Result<()> {
    packages::update()?;
    let kernel = kernel_package()?;
    say(format_args!(
        "downloading a virtual machine by apt-get: {kernel}, busybox-static, qemu-system-x86"
    ));
    let downloads = directory.join("downloads");
    fs::create_dir(&downloads)?;
    packages::download(&[&kernel, "busybox-static"], &downloads)?;
    for package in packages_in(&downloads)? {
        let is_kernel = package
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(VERSION));
        let wanted: &[&str] = if is_kernel {
            &OF_KERNEL
        } else {
            &["./bin/busybox"]
        };
        unpack(&package, directory, wanted)?;
        fs::remove_file(package)?;
    }
    if !has_emulator() {
        packages::download_with_dependencies("qemu-system-x86", &downloads)?;
        for package in packages_in(&downloads)? {
            unpack(&package, directory, &[])?;
        }
    }
    fs::remove_dir_all(&downloads)?;
    let modules = only_entry(&directory.join("lib/modules"))?;
    let version = modules.file_name().unwrap_or_default();
    let depmod = Command::new(directory.join("bin/busybox"))
        .arg("depmod")
        .arg("-b")
        .arg(directory)
        .arg(version)
        .status()
        .context("cannot start busybox")?;
    ensure!(depmod.success(), "`busybox depmod` failed: see above");
    Ok(())
}

/// The name of the package of the present stock kernel.
fn kernel_package() -> Result<String> {
    let output = Command::new("apt-cache")
        .args(["depends", "--important", KERNEL])
        .output()
        .context("there is no apt-get to download a virtual machine: it is of Debian 12")?;
    let depends = String::from_utf8_lossy(&output.stdout);
    let package = depends
        .split_whitespace()
        .find(|word| word.starts_with(VERSION));
    match package {
        Some(package) => Ok(package.to_owned()),
        None => bail!("apt-get knows no {VERSION}*: is it the one of Debian 12?"),
    }
}

/// Unpacks of a package what is `wanted`, or everything.
fn unpack(package: &Path, directory: &Path, wanted: &[&str]) -> Result<()> {
    let command = "dpkg-deb --fsys-tarfile \"$1\" | { shift; tar --extract \"$@\"; }";
    let status = Command::new("sh")
        .args(["-c", command, "sh"])
        .arg(package)
        .arg("--directory")
        .arg(directory)
        .args(["--wildcards", "--no-wildcards-match-slash"])
        .args(wanted)
        .status()
        .context("cannot start sh")?;
    ensure!(status.success(), "cannot unpack {}", package.display());
    Ok(())
}

/// The packages in a folder.
fn packages_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let paths = fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
    let paths: Vec<_> = paths.collect::<Result<_>>()?;
    let is_package = |path: &PathBuf| path.extension() == Some(OsStr::new("deb"));
    Ok(paths.into_iter().filter(is_package).collect())
}

/// What a folder has, if it is one thing.
fn only_entry(directory: &Path) -> Result<PathBuf> {
    let entries: Vec<_> = fs::read_dir(directory)?.collect();
    match <[_; 1]>::try_from(entries) {
        Ok([entry]) => Ok(entry?.path()),
        Err(_) => bail!("{} has not one entry", directory.display()),
    }
}
