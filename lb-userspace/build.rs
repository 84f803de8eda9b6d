//! Compiles the eBPF program into `OUT_DIR/lb`.
//!
//! `LB_EBPF_OBJECT` names an object that is there already, for packagers and for
//! machines without the eBPF toolchain; then nothing is compiled.

use std::process::ExitCode;

fn main() -> ExitCode {
    ebpf_build::build_script(ebpf_build::Program::LB)
}
