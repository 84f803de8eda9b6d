//! Compiles the eBPF programs into `OUT_DIR/lb` and `OUT_DIR/decap`.
//!
//! `LB_EBPF_OBJECT` and `LB_DECAP_EBPF_OBJECT` name objects that are there already, for
//! packagers and for machines without the eBPF toolchain; then nothing is compiled.

use std::process::ExitCode;

use ebpf_build::Program;

fn main() -> ExitCode {
    ebpf_build::build_script(&[Program::LB, Program::DECAP])
}
