//! `lb backend`.

use serde_json::{Map, Value};

use super::{
    args::{self, BackendOptions},
    output::{self, Column},
    service::{collect, list, remove_nulls, value},
};
use crate::{
    api::{Client, wire},
    config::duration,
    state::DrainSpec,
};

pub(super) async fn backend(client: &Client, command: args::Backend) -> anyhow::Result<()> {
    match command {
        args::Backend::Add {
            backend,
            options,
            json,
        } => {
            let mut document = document(&options);
            // A new backend has nothing that could be taken back.
            remove_nulls(&mut document);
            document.insert("address".into(), backend.address.to_string().into());
            let meant = wire::read(Value::Object(document))?;
            let added = client.add_backend(&backend.service, &meant).await?;
            done("added", &backend.service, &added, json)
        }
        args::Backend::Set {
            backend,
            options,
            json,
        } => {
            let patch = document(&options);
            if patch.is_empty() {
                args::nothing_to_set("backend");
            }
            let address = backend.address.to_string();
            let changed = client.patch_backend(&backend.service, &address, patch.into());
            done("changed", &backend.service, &changed.await?, json)
        }
        args::Backend::Drain {
            backend,
            deadline,
            on_deadline,
            json,
        } => {
            let drain = wire::Drain {
                deadline: deadline.map(duration::format),
                on_deadline: on_deadline.unwrap_or(DrainSpec::DEFAULT_END).to_string(),
            };
            let address = backend.address.to_string();
            let drained = client.drain_backend(&backend.service, &address, &drain);
            done("draining", &backend.service, &drained.await?, json)
        }
        args::Backend::Undrain { backend, json } => {
            let address = backend.address.to_string();
            let back = client.undrain_backend(&backend.service, &address).await?;
            done("not draining", &backend.service, &back, json)
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

/// The options that are given, as a merge patch.
fn document(options: &BackendOptions) -> Map<String, Value> {
    collect([
        ("weight", value(options.weight.as_ref())),
        ("priority", value(options.priority.as_ref())),
        ("max_connections", value(options.max_connections.as_ref())),
        ("server_ids", list(&options.server_ids, ToString::to_string)),
    ])
}

fn done(what: &str, service: &str, backend: &wire::Backend, json: bool) -> anyhow::Result<()> {
    if json {
        return output::print_json(backend);
    }
    let wire::Backend {
        address, weight, ..
    } = backend;
    output::message(&format!(
        "{what} backend {address} of service {service}, weight {weight}"
    ));
    Ok(())
}

/// The backends of a service as it is configured.
pub(super) fn table(indent: &str, backends: &[wire::Backend]) -> String {
    let mut columns = vec![Column::Text("BACKEND"), Column::Number("WEIGHT")];
    let tiers = backends.iter().any(|backend| backend.priority != 0);
    let limits = backends.iter().any(|b| b.max_connections.is_some());
    let ids = backends
        .iter()
        .any(|backend| !backend.server_ids.is_empty());
    let drains = backends.iter().any(|backend| backend.drain.is_some());
    columns.extend(tiers.then_some(Column::Number("PRIORITY")));
    columns.extend(limits.then_some(Column::Number("MAX CONNECTIONS")));
    columns.extend(ids.then_some(Column::Text("SERVER ID")));
    columns.extend(drains.then_some(Column::Text("DRAIN")));
    let rows = backends.iter().map(|backend| {
        let mut row = vec![backend.address.clone(), backend.weight.to_string()];
        row.extend(tiers.then(|| backend.priority.to_string()));
        let limit = backend.max_connections;
        row.extend(limits.then(|| limit.map_or("any".to_owned(), |most| most.to_string())));
        row.extend(ids.then(|| backend.server_ids.join(", ")));
        let drain = backend.drain.as_ref();
        row.extend(drains.then(|| drain.map_or_else(|| "no".to_owned(), drain_in_words)));
        row
    });
    output::table(indent, &columns, rows)
}

fn drain_in_words(drain: &wire::Drain) -> String {
    match &drain.deadline {
        Some(deadline) => format!("{deadline}, then {}", drain.on_deadline),
        None => "no deadline".to_owned(),
    }
}
