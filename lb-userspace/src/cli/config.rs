//! `lb config`.

use super::{apply, args, output};
use crate::{api::Client, schema};

pub(super) async fn config(client: &Client, command: args::Config) -> anyhow::Result<()> {
    match command {
        args::Config::Show { json } => {
            let configuration = client.configuration().await?;
            if json {
                return output::print_json(&configuration);
            }
            output::print(&configuration.to_toml())
        }
        args::Config::Schema => output::print_json(&schema::configuration()),
        args::Config::Reset { dry_run, json } => {
            let reloaded = client.reset(dry_run).await?;
            apply::show(&reloaded, dry_run, json)
        }
    }
}
