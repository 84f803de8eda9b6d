//! `lb backend`.

use super::{
    args::{self, BackendName},
    output::{self, Column},
};
use crate::api::{Client, wire};

pub(super) async fn backend(client: &Client, command: args::Backend) -> anyhow::Result<()> {
    match command {
        args::Backend::Add {
            backend,
            weight,
            json,
        } => {
            let meant = meant(&backend, weight);
            let added = client.add_backend(&backend.service, &meant).await?;
            done("added", &backend.service, &added, json)
        }
        args::Backend::Set {
            backend,
            weight,
            json,
        } => {
            let meant = meant(&backend, weight);
            let changed = client.set_backend(&backend.service, &meant).await?;
            done("changed", &backend.service, &changed, json)
        }
        args::Backend::Remove { backend, json } => {
            let address = backend.address.to_string();
            let removed = client.remove_backend(&backend.service, &address).await?;
            done("removed", &backend.service, &removed, json)
        }
        args::Backend::List { service, json } => {
            let backends = client.service(&service).await?.backends;
            if json {
                return output::print_json(&backends);
            }
            output::print(&table("", &backends))
        }
    }
}

fn meant(name: &BackendName, weight: u32) -> wire::Backend {
    wire::Backend {
        address: name.address.to_string(),
        weight,
    }
}

fn done(what: &str, service: &str, backend: &wire::Backend, json: bool) -> anyhow::Result<()> {
    if json {
        return output::print_json(backend);
    }
    let wire::Backend { address, weight } = backend;
    output::message(&format!(
        "{what} backend {address} of service {service}, weight {weight}"
    ));
    Ok(())
}

/// The backends of a service as it is configured.
pub(super) fn table(indent: &str, backends: &[wire::Backend]) -> String {
    let columns = [Column::Text("BACKEND"), Column::Number("WEIGHT")];
    let rows = backends
        .iter()
        .map(|backend| vec![backend.address.clone(), backend.weight.to_string()]);
    output::table(indent, &columns, rows)
}
