//! `lb decap`.

use std::{fmt::Write, path::PathBuf};

use anyhow::Context;
use tokio::sync::oneshot;

use super::{
    args, ask,
    human::{bytes, count},
    output::{self, Column},
    run::{log_to_stderr, shutdown_signal},
};
use crate::{
    api::{self, Client, Socket},
    config::XdpMode,
    decap::{Config, DEFAULT_SOCKET, Decap, Status},
};

pub(super) fn decap(args: args::Decap, socket: Option<PathBuf>) -> anyhow::Result<()> {
    let socket = socket.unwrap_or_else(|| DEFAULT_SOCKET.into());
    match args.command {
        Some(args::DecapCommand::Status { json }) => ask(status(&Client::of_decap(&socket), json)),
        None => run(args.run, socket),
    }
}

fn run(args: args::DecapRun, socket: PathBuf) -> anyhow::Result<()> {
    log_to_stderr(args.log);
    let config = Config {
        interfaces: args.interfaces,
        vips: args.vips,
        sources: args.from,
        locals: args.locals,
        gue_port: args.gue_port,
        xdp_mode: args.xdp_mode.unwrap_or(XdpMode::Auto),
        socket,
    };
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start threads")?
        .block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    // Before anything is attached, as in `lb run`.
    let shutdown = shutdown_signal()?;
    let socket = Socket::bind(&config.socket)?;
    tracing::info!(socket = %socket.path().display(), "listening");
    let decap = Decap::start(config)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(api::serve_decap(socket, decap.handle(), async {
        let _ = stopped.await;
    }));
    let result = decap.run(shutdown).await;
    drop(stop);
    server.await.context("the API ended badly")?;
    result
}

async fn status(client: &Client, json: bool) -> anyhow::Result<()> {
    let status = client.decap_status().await?;
    if json {
        return output::print_json(&status);
    }
    output::print(&show(&status))
}

const COLUMNS: &[Column] = &[
    Column::Text("VIP"),
    Column::Text("LOCAL"),
    Column::Number("PACKETS"),
    Column::Number("BYTES"),
];

fn show(status: &Status) -> String {
    let rows = status.vips.iter().map(|vip| {
        vec![
            vip.address.clone(),
            match (vip.local, vip.partly_local) {
                (true, _) => "yes",
                (false, true) => "part",
                (false, false) => "no",
            }
            .to_owned(),
            count(vip.packets),
            bytes(vip.bytes),
        ]
    });
    let mut text = output::table("", COLUMNS, rows);
    let interfaces: Vec<_> = status
        .interfaces
        .iter()
        .map(|interface| format!("{} ({})", interface.name, interface.mode))
        .collect();
    let sources: Vec<_> = status
        .sources
        .iter()
        .map(|source| format!("{} ({})", source.prefix, source.interface))
        .collect();
    let _ = writeln!(text, "\ninterfaces  {}", or_none(&interfaces));
    let _ = writeln!(text, "to          {}", or_none(&status.locals));
    let _ = writeln!(text, "from        {}", or_none(&sources));
    let _ = writeln!(text, "GUE port    {}", status.gue_port);
    let counted = |counts: &std::collections::BTreeMap<String, u64>| {
        let counts: Vec<_> = counts
            .iter()
            .filter(|(_, packets)| **packets > 0)
            .map(|(why, packets)| format!("{why} {}", count(*packets)))
            .collect();
        or_none(&counts)
    };
    let _ = writeln!(text, "passed      {}", counted(&status.passed));
    let _ = writeln!(text, "drops       {}", counted(&status.drops));
    text
}

fn or_none(words: &[String]) -> String {
    if words.is_empty() {
        "none".to_owned()
    } else {
        words.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_a_table_and_what_it_rests_on() {
        let vip = |address: &str, local: bool, partly_local: bool, packets: u64, bytes: u64| {
            serde_json::json!({
                "address": address,
                "local": local,
                "partly_local": partly_local,
                "packets": packets,
                "bytes": bytes,
            })
        };
        let status = serde_json::json!({
            "vips": [
                vip("192.0.2.10", true, false, 123_456, 2048),
                vip("203.0.113.0/24", false, true, 0, 0),
                vip("2001:db8:2::/64", false, false, 0, 0),
            ],
            "passed": {"fragment": 0, "not-vip": 3},
            "drops": {"tunnel-ecn": 0, "tunnel-header": 1, "tunnel-source": 100_000},
            "interfaces": [{"name": "eth0", "state": "attached", "mode": "native"}],
            "gue_port": 6080,
            "locals": ["10.0.0.11", "2001:db8:3::11"],
            "sources": [{"interface": "eth0", "prefix": "10.0.0.0/24"}],
        });
        assert_eq!(
            show(&serde_json::from_value(status).unwrap()),
            "\
VIP              LOCAL  PACKETS     BYTES
192.0.2.10       yes       123k  2.00 KiB
203.0.113.0/24   part         0       0 B
2001:db8:2::/64  no           0       0 B

interfaces  eth0 (native)
to          10.0.0.11, 2001:db8:3::11
from        10.0.0.0/24 (eth0)
GUE port    6080
passed      not-vip 3
drops       tunnel-header 1, tunnel-source 100k
"
        );
    }
}
