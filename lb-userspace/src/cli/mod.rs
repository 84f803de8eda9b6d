//! The command line. Arguments are taken in two steps: what was typed (`args`), and
//! what it means, in the module of each command.

mod apply;
mod args;
mod backend;
mod check;
mod config;
mod decap;
mod detach;
mod doctor;
mod events;
mod explain;
mod flows;
mod health;
mod human;
mod manual;
mod output;
mod run;
mod service;
mod status;
mod supervisor;

use std::process::ExitCode;

use clap::Parser;

use self::args::{Args, Command};
use crate::api::{self, Client};

/// Runs the command that the process was given. The exit status is 0 when it was
/// done, 1 when it failed and 2 when it was not understood.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    match execute(args) {
        Ok(code) => code,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}

fn execute(args: Args) -> anyhow::Result<ExitCode> {
    let socket = args.socket.or_else(args::socket_of_environment);
    let client = || Client::new(&socket.clone().unwrap_or_else(args::default_socket));
    match args.command {
        Command::Run(run) => run::run(*run, socket)?,
        Command::Check(check) => return check::check(&check),
        Command::Doctor(args) => return doctor::doctor(&args, socket),
        Command::Completions(args) => manual::completions(&args)?,
        Command::Man(args) => manual::man(&args)?,
        Command::Detach(command) => detach::detach(&command)?,
        Command::Openapi => output::print_json(&api::openapi())?,
        Command::Decap(decap) => decap::decap(*decap, socket)?,
        Command::Apply(command) => return ask(apply::apply(&client(), &command)),
        Command::Config(command) => ask(config::config(&client(), command))?,
        Command::Status(status) => ask(status::status(&client(), &status))?,
        Command::Events(command) => ask(events::events(&client(), &command))?,
        Command::Flows(flows) => ask(flows::flows(&client(), flows))?,
        Command::Explain(explain) => ask(explain::explain(&client(), explain))?,
        Command::Service(command) => ask(service::service(&client(), command))?,
        Command::Backend(command) => ask(backend::backend(&client(), command))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command that asks a running balancer.
fn ask<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(command)
}
