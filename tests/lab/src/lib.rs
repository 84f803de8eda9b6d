//! Hosts in network namespaces, joined by veth pairs, for tests and demonstrations.
//!
//! A [`Lab`] is made of [`Host`]s, each a network namespace, and [`Link`]s between
//! them. Real servers run in the hosts as [`Process`]es, and real clients as
//! functions inside [`Host::enter`]. Faults are methods of [`Host`] and
//! [`Process`]. [`Topology`] is the lab that most tests need: a client, a balancer,
//! and backends behind a switch.
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
mod command;
mod faults;
mod host;
pub mod http;
mod lab;
mod link;
mod load;
pub mod pattern;
mod process;
mod snmp;
mod topology;
pub mod udp;
mod xdp;

pub use background::{Background, Stop};
pub use host::Host;
pub use lab::{Lab, sweep_stale};
pub use link::{End, Link};
pub use load::{Load, LoadReport};
pub use process::Process;
pub use snmp::Snmp;
pub use topology::{Backend, SERVER_READY, Topology, TopologyOptions, port};
