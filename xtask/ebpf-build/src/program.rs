//! The eBPF programs of the project.

/// A package of the workspace that compiles to an eBPF object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// The package's name.
    pub(crate) package: &'static str,
    /// Its binary, which is the object's name too.
    pub(crate) bin: &'static str,
    /// The folders that it is made of.
    pub(crate) sources: &'static [&'static str],
    /// The environment variable that names an object which is there already, for
    /// packagers and for machines without the toolchain.
    pub(crate) installed: Option<&'static str>,
}

impl Program {
    /// The datapath of the balancer.
    pub const LB: Self = Self {
        package: "lb-ebpf",
        bin: "lb",
        sources: &["lb-ebpf", "lb-common"],
        installed: Some("LB_EBPF_OBJECT"),
    };

    /// What unwraps tunnels on backend hosts.
    pub const DECAP: Self = Self {
        package: "lb-ebpf",
        bin: "decap",
        sources: &["lb-ebpf", "lb-common"],
        installed: Some("LB_DECAP_EBPF_OBJECT"),
    };

    /// The driver of the benchmark.
    pub const BENCH_DRIVER: Self = Self {
        package: "lb-bench-driver",
        bin: "driver",
        sources: &["tests/bench/driver"],
        installed: None,
    };

    /// All of them.
    pub const ALL: [Self; 3] = [Self::LB, Self::DECAP, Self::BENCH_DRIVER];
}
