//! What people and programs see of `lb` without its datapath: the configuration
//! file, the API and the command line.

mod api;
mod cli;
mod config;
mod config_mistakes;
mod support;
