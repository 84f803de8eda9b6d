//! `lb completions` and `lb man`: made of the definition of the command line.

use std::fs;

use anyhow::Context as _;

use super::{args, output};
use crate::state::Reason;

pub(super) fn completions(args: &args::Completions) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::command(), "lb", &mut script);
    output::print(&String::from_utf8(script).context("the script is no text")?)
}

pub(super) fn man(args: &args::Man) -> anyhow::Result<()> {
    let Some(directory) = &args.directory else {
        // As those that are written to files are made.
        let mut command = args::command().disable_help_subcommand(true);
        command.build();
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        return output::print(&String::from_utf8(page).context("the page is no text")?);
    };
    fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(args::command(), directory))
        .map_err(|error| {
            let reason = Reason::new(
                format!("cannot write to `{}`: {error}", directory.display()),
                "name a directory that this user may write to",
            );
            reason.into()
        })
}
