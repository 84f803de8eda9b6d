//! Health checks: which backends can take flows.
//!
//! [`Checks`] asks every backend in turn ([`probe`]), and a [`Machine`] for each
//! makes of the answers whether it is up. A new backend counts as down until its
//! first check, which is made at once and decides alone; after that `rise` and
//! `fall` results in a row are needed.
//!
//! # How soon a dead backend is out
//!
//! A backend that is up and dies at the time *d* is reported as down no later than
//! *d* + `interval` × `fall` + `timeout`:
//!
//! - From the begin of one check to the begin of the next passes at most
//!   `interval`. So the first check that begins after *d* begins by
//!   *d* + `interval`, and the one that is number `fall` after the death by
//!   *d* + `interval` × `fall`. No check waits for another backend's: only a
//!   backend's very first check, before which it is not up, may stand in a queue.
//! - Every check that begins after *d* fails, and none takes longer than `timeout`.
//! - A check that was under way at *d* may still succeed. It began before *d*, so
//!   it is none of those counted above; should it fail, the backend is out sooner.
//!
//! Where clients' connections are watched ([`passive`]), it is out as soon as one of our own
//! fails that a doubt has led to.
//!
//! To this the time is added that the host takes to run a task whose timer has
//! expired. It does not add up: a check that begins late does not move the next.

mod checks;
mod damping;
mod dns;
mod exec;
mod files;
mod grpc;
mod http;
mod http2;
mod icmp;
mod machine;
mod pace;
pub mod passive;
mod probe;
mod tcp;
mod tls;
mod udp;

pub use checks::{Checks, Event, Target};
pub use damping::Damping;
pub use machine::{Machine, Transition, unknown};
pub use probe::{ProbeError, confirm, probe};
