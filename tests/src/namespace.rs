//! A network for one test: the program needs interfaces that packets come in by.

use std::{path::Path, process::Command};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, CpuSet, sched_getcpu, sched_setaffinity, unshare},
    unistd::Pid,
};

use crate::world::INTERFACES;

/// Runs `test` in a network namespace of its own that has the interfaces of
/// [`World::standard`](crate::World::standard). The namespace lives as long as the
/// thread in it, so it goes when the test ends, also by a panic.
pub fn in_network_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .expect("this test makes a network namespace and must run as root");
            for (name, ifindex) in INTERFACES {
                ip(&format!(
                    "link add name {name} index {ifindex} type veth peer name {name}-peer"
                ));
            }
            test()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `test` with the path of a BPF file system of its own, which goes with all that is in it
/// when the test ends, also by a panic: it is in a mount namespace of the thread's.
///
/// # Panics
///
/// Where the kernel refuses: it takes root.
pub fn with_bpf_file_system<T>(test: impl FnOnce(&Path) -> T) -> T {
    const MUST: &str = "this test mounts a BPF file system and must run as root";
    // Over what nothing here needs.
    let directory = Path::new("/mnt");
    unshare(CloneFlags::CLONE_NEWNS).expect(MUST);
    let none = None::<&str>;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, flags, none).expect(MUST);
    let bpf = Some("bpf");
    mount(bpf, directory, bpf, MsFlags::empty(), none).expect(MUST);
    test(&directory.join("lb"))
}

/// Keeps the calling thread on its CPU: what is limited per CPU is so for all its packets.
///
/// # Panics
///
/// Where the kernel refuses.
pub fn on_one_cpu() {
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu().expect("the CPU"))
        .expect("its place");
    sched_setaffinity(Pid::from_raw(0), &cpus).expect("to stay there");
}

/// Runs `ip` with these words, in the namespace of the calling thread.
fn ip(words: &str) {
    let output = Command::new("ip")
        .args(words.split_whitespace())
        .output()
        .expect("this test needs iproute2");
    assert!(
        output.status.success(),
        "ip {words}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
