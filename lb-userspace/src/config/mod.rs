//! The configuration file: what the operator wants, in TOML.
//!
//! [`read`] finds every mistake in one pass. Reading goes in three steps: the text
//! becomes tables (`toml`), tables become values (`reader`), and values are asked
//! the [`rules`](crate::state::rules) that the API asks too.

mod diagnostic;
pub mod duration;
mod file;
pub mod host;
mod reader;
mod service;
mod source;

use std::path::PathBuf;

pub use diagnostic::{Diagnostic, Diagnostics, Severity};
pub use file::{
    Outcome, parse_interface, parse_pin_directory, parse_socket, parse_state_file, read,
};
pub use source::Source;

use serde_json::{Map, Value, json};

use crate::state::{Desired, FileContent, ServiceSpec, words};

/// Where the API listens unless the configuration or the command line says
/// otherwise.
pub const DEFAULT_SOCKET: &str = "/run/lb/lb.sock";
/// Where packages and systemd have the configuration.
pub const DEFAULT_CONFIG: &str = "/etc/lb/lb.toml";
/// Where the datapath is kept unless the file says otherwise.
pub const DEFAULT_PIN_DIRECTORY: &str = "/sys/fs/bpf/lb";

/// Where what is changed while it runs is kept unless the file says otherwise.
pub const DEFAULT_STATE_FILE: &str = "/var/lib/lb/state.json";

/// A configuration without a mistake in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Names of the interfaces that the balancer attaches to, at least one and without
    /// duplicates.
    pub interfaces: Vec<String>,
    /// How it attaches.
    pub xdp_mode: XdpMode,
    /// Where the API listens.
    pub socket: PathBuf,
    /// The group whose members may look through the API, by name or number; `None` for nobody
    /// but those who may change things.
    pub read_group: Option<String>,
    /// Where the datapath is kept while no daemon runs: a directory on a BPF file system.
    pub pin_directory: PathBuf,
    /// Where what is changed while it runs is kept for the next start.
    pub state_file: PathBuf,
    /// How much the datapath has room for.
    pub limits: Limits,
    /// What the datapath logs. Not in the file: it costs every packet, so it is
    /// asked for on the command line.
    pub datapath_log: DatapathLog,
    /// The services, in the order of the file. They keep the rules of [`Desired`].
    pub services: Vec<ServiceSpec>,
}

impl Config {
    /// The services as the desired state.
    ///
    /// # Panics
    ///
    /// Only if a service was put into the configuration that [`read`] would have
    /// refused.
    #[must_use]
    pub fn desired(&self) -> Desired {
        Desired::new(self.services.iter().cloned()).expect("checked when it was read")
    }

    /// All but the services, as JSON; with `_` in keys for the `-` of the file.
    #[must_use]
    pub fn settings(&self) -> Map<String, Value> {
        let settings = json!({
            "interfaces": self.interfaces,
            "xdp_mode": self.xdp_mode,
            "socket": self.socket,
            "pin_directory": self.pin_directory,
            "state_file": self.state_file,
            "limits": {"flows": self.limits.flows, "embryonic": self.limits.embryonic},
        });
        match settings {
            Value::Object(mut settings) => {
                if let Some(group) = &self.read_group {
                    settings.insert("read_group".to_owned(), group.as_str().into());
                }
                settings
            }
            _ => unreachable!("it is written as one above"),
        }
    }

    /// What the file that it was read from says.
    ///
    /// # Panics
    ///
    /// As with [`Self::desired`].
    #[must_use]
    pub fn content(&self, source: &Source) -> FileContent {
        FileContent {
            name: source.name().to_owned(),
            text: source.text().to_owned(),
            services: self.desired(),
            settings: self.settings(),
        }
    }
}

/// How much the datapath has room for; its memory is taken at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Flows of each address family.
    pub flows: u32,
    /// Flows of each address family that have not shown yet that they are real: a power
    /// of two.
    pub embryonic: u32,
}

impl Limits {
    /// The least number of flows that makes sense.
    pub const MIN_FLOWS: u32 = 1_024;
    /// The largest number of flows: some 18 GiB of memory for IPv4, 24 for IPv6.
    pub const MAX_FLOWS: u32 = 67_108_864;
    /// The least number of places for embryonic flows.
    pub const MIN_EMBRYONIC: u32 = 1_024;
    /// The largest number of places for embryonic flows.
    pub const MAX_EMBRYONIC: u32 = 16_777_216;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: lb_common::flow::MAX_FLOWS,
            embryonic: lb_common::MAX_EMBRYONIC,
        }
    }
}

words! {
    /// Where on an interface the XDP program runs.
    XdpMode, "XDP mode", "`auto`, `native` or `generic`" {
        /// In the driver; where it cannot, in the kernel's generic hook, with a warning.
        Auto = "auto",
        /// In the driver, or not at all.
        Native = "native",
        /// In the kernel's generic hook: works everywhere, and slowly.
        Generic = "generic",
    }
}

words! {
    /// The least severe message that the datapath logs.
    DatapathLog, "log level", "`off`, `error`, `warn`, `info`, `debug` or `trace`" {
        /// Nothing; the verifier removes the code.
        Off = "off",
        /// Errors.
        Error = "error",
        /// Warnings.
        Warn = "warn",
        /// What happens to flows.
        Info = "info",
        /// What happens to packets.
        Debug = "debug",
        /// Every step.
        Trace = "trace",
    }
}
