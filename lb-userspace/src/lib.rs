//! The userspace of `lb`: what should be (configuration, API), what is (health,
//! next hops), and the one place that brings the BPF maps from the one to the
//! other.
//!
//! Dependencies point one way: `cli -> api -> state -> reconcile -> datapath ->
//! lb-common`. Nothing above [`datapath`] knows what a BPF map is.

pub mod address;
pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod datapath;
pub mod decap;
pub mod doctor;
pub mod drain;
pub mod explain;
pub mod flows;
pub mod health;
pub mod intent;
pub mod neighbour;
pub mod privileges;
pub mod reconcile;
pub mod scheduler;
pub mod schema;
pub mod slots;
pub mod slow_start;
pub mod state;
#[cfg(test)]
mod testing;
pub mod wire;
