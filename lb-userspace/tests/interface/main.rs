//! What people and programs see of `lb`: the configuration file, the API and the
//! command line, in front of a balancer without a datapath; and the process of the
//! daemon, which needs root.

mod api;
mod cli;
mod config;
mod config_mistakes;
mod mutations;
mod run;
mod schema;
mod support;
