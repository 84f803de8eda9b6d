//! Compiles the driver program into `OUT_DIR/driver`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ebpf_build::build_script(&[ebpf_build::Program::BENCH_DRIVER])
}
