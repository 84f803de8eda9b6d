//! What tests share that need root: networks of their own.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

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
