//! Hosts in network namespaces, joined by veth pairs, for tests and demonstrations.
//!
//! A [`Lab`] is made of [`Host`]s, each a network namespace, and [`Link`]s between
//! them. Real servers run in the hosts as [`Process`]es, and real clients as
//! functions inside [`Host::enter`]. Faults are methods of [`Host`] and
//! [`Process`]. [`Topology`] is the lab that most tests need: a client, a balancer,
//! and backends behind a switch; [`Routed`] is the one for what depends on the
//! forwarding mode, with routers on both sides of the balancer.
//!
//! Everything goes away with the [`Lab`], also when a test panics; what a killed
//! test leaves is removed by the next one ([`sweep_stale`]).
//!
//! ```no_run
//! use lb_lab::{End, Lab, Link};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::new("example")?;
//! let (left, right) = (lab.host("left")?, lab.host("right")?);
//! Link::between(
//!     End::of(&left, "eth0").address("10.0.0.1/24"),
//!     End::of(&right, "eth0").address("10.0.0.2/24"),
//! )
//! .up()?;
//! let listener = right.enter(|| std::net::TcpListener::bind("10.0.0.2:80"))?;
//! left.enter(|| std::net::TcpStream::connect("10.0.0.2:80"))?;
//! # Ok(())
//! # }
//! ```

mod background;
mod balancer;
mod capture;
mod command;
mod config;
pub mod demo;
mod faults;
mod flood;
mod host;
pub mod http;
mod interrupt;
mod lab;
mod link;
mod load;
mod narrowing;
mod netns;
pub mod pattern;
mod ping;
mod process;
mod routed;
mod snmp;
pub mod standing;
mod status;
mod topology;
pub mod udp;
mod xdp;

use std::path::PathBuf;

pub use background::{Background, Stop};
pub use balancer::Balancer;
pub use capture::{Capture, Packets};
pub use config::{Health, Mode, Protocol, Service};
pub use flood::syn_flood;
pub use host::Host;
pub use lab::{Lab, sweep_stale};
pub use link::{End, Link};
pub use load::{Load, LoadError, LoadReport};
pub use narrowing::Narrowing;
pub use ping::Ping;
pub use process::Process;
pub use routed::{Routed, RoutedOptions};
pub use snmp::Snmp;
pub use status::{
    BackendStatus, Counters, DrainStatus, DropStatus, HealthStatus, InterfaceStatus, NextHopStatus,
    ServiceStatus, Status,
};
pub use topology::{Backend, SERVER_READY, Topology, TopologyOptions, port};

/// The programs that run in a lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The balancer, `lb`.
    pub lb: PathBuf,
    /// The backends' server, `lab-server`, which this package builds.
    pub server: PathBuf,
}
