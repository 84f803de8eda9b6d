//! What tests share that need root: networks of their own.

use std::{path::Path, process::Command};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Runs `test` in a network namespace of its own, which goes when it ends, also by a
/// panic: the namespace lives as long as the thread in it.
pub(crate) fn in_network_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .expect("this test makes a network namespace and must run as root");
            ip("link set lo up");
            test()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `test` with the path of a BPF file system of its own, which goes with all that is
/// in it when the test ends, also by a panic.
pub(crate) fn with_bpf_file_system<T: Send>(test: impl FnOnce(&Path) -> T + Send) -> T {
    let directory = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            const MUST: &str = "this test mounts a BPF file system and must run as root";
            unshare(CloneFlags::CLONE_NEWNS).expect(MUST);
            let none = None::<&str>;
            let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, flags, none).expect(MUST);
            let bpf = Some("bpf");
            mount(bpf, directory.path(), bpf, MsFlags::empty(), none).expect(MUST);
            test(directory.path())
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `ip` with these words, in the namespace of the calling thread.
pub(crate) fn ip(words: &str) {
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
