//! `lb status`.

use std::{fmt::Write, time::Duration};

use super::{
    args,
    human::{bytes, count},
    output::{self, Column},
};
use crate::{
    api::Client,
    config::duration,
    state::{
        BackendStatus, DrainPhase, DrainStatus, DropStatus, OnDeadline, ServiceStatus, Status,
        rules,
    },
};

pub(super) async fn status(client: &Client, args: &args::Status) -> anyhow::Result<()> {
    let Some(seconds) = args.watch else {
        let status = look(client, args).await?;
        return if args.json {
            output::print_json(&status)
        } else {
            output::print(&show(&status))
        };
    };
    let mut ticks = tokio::time::interval(Duration::from_secs(seconds));
    loop {
        ticks.tick().await;
        // A balancer that is being started again will be back.
        let text = match look(client, args).await {
            Ok(status) if args.json => format!("{}\n", serde_json::to_string(&status)?),
            Ok(status) => format!("{}{}", output::clear(), show(&status)),
            Err(error) => {
                output::error(&error);
                continue;
            }
        };
        if !output::print_if_read(&text)? {
            return Ok(());
        }
    }
}

/// The status, of the service that was asked for.
async fn look(client: &Client, args: &args::Status) -> anyhow::Result<Status> {
    let mut status = client.status().await?;
    if let Some(name) = &args.service {
        status.services.retain(|service| service.name == *name);
        if status.services.is_empty() {
            return Err(rules::no_such_service(name).into());
        }
    }
    Ok(status)
}

fn show(status: &Status) -> String {
    let mut text = String::new();
    for service in &status.services {
        show_service(service, &mut text);
        text.push('\n');
    }
    if status.services.is_empty() {
        text.push_str("no services\n\n");
    }
    let interfaces: Vec<_> = status
        .interfaces
        .iter()
        .map(|interface| {
            let how = match interface.state.as_str() {
                "attached" => &interface.mode,
                other => other,
            };
            format!("{} ({how})", interface.name)
        })
        .collect();
    let _ = writeln!(text, "interfaces  {}", or_none(&interfaces));
    for interface in &status.interfaces {
        if let Some(error) = &interface.error {
            let _ = writeln!(text, "  {}: {error}", interface.name);
        }
    }
    let drops: Vec<_> = status
        .drops
        .iter()
        .filter(|(_, packets)| **packets > 0)
        .map(|(reason, packets)| format!("{reason} {}", count(*packets)))
        .collect();
    let _ = writeln!(text, "drops       {}", or_none(&drops));
    text
}

fn or_none(words: &[String]) -> String {
    if words.is_empty() {
        "none".to_owned()
    } else {
        words.join(", ")
    }
}

const COLUMNS: &[Column] = &[
    Column::Text("BACKEND"),
    Column::Text("STATE"),
    Column::Text("HEALTH"),
    Column::Text("NEXT HOP"),
    Column::Number("WEIGHT"),
    Column::Number("ACTIVE"),
    Column::Number("NEW"),
    Column::Number("PACKETS"),
    Column::Number("BYTES"),
    Column::Number("REPLIES"),
    Column::Number("BYTES"),
    Column::Number("DROPS"),
];

fn show_service(service: &ServiceStatus, text: &mut String) {
    let _ = writeln!(
        text,
        "{}  {} {}  {}, {}",
        service.name, service.address, service.protocol, service.mode, service.scheduler
    );
    let total = vec![
        "total".to_owned(),
        String::new(),
        String::new(),
        String::new(),
        String::new(),
        count(service.active_flows),
        count(service.new_flows),
        count(service.packets),
        bytes(service.bytes),
        count(service.reply_packets),
        bytes(service.reply_bytes),
        dropped(&service.drops),
    ];
    let rows = service.backends.iter().map(row).chain([total]);
    text.push_str(&output::table("  ", COLUMNS, rows));
    for backend in &service.backends {
        if let Some(error) = &backend.next_hop.error {
            let _ = writeln!(text, "  {} is not used: {error}", backend.address);
        }
        if let Some(drain) = &backend.drain {
            let words = drain_in_words(drain, service.active_is_exact);
            let _ = writeln!(text, "  {} {words}", backend.address);
        }
        if let Some(error) = &backend.health.error {
            let _ = writeln!(
                text,
                "  {} failed {} in a row: {error}",
                backend.address,
                match backend.health.streak {
                    1 => "1 check".to_owned(),
                    streak => format!("{streak} checks"),
                }
            );
        }
    }
    for backend in &service.backends {
        if let Some(seconds) = backend.health.held {
            let time = duration::format(Duration::from_secs(seconds));
            let _ = writeln!(
                text,
                "  {} flaps, and is held down for {time} more",
                backend.address
            );
        }
    }
    for drop in &service.drops {
        let _ = writeln!(
            text,
            "  dropped {} ({}): {}",
            drop.reason,
            drop.direction,
            count(drop.packets)
        );
    }
}

fn drain_in_words(drain: &DrainStatus, is_exact: bool) -> String {
    let about = if is_exact { "" } else { ", by estimate" };
    if drain.phase == DrainPhase::Drained {
        return format!("is drained: no flow is left{about}");
    }
    let left = count(drain.flows_left);
    let begin = count(drain.flows_at_start.max(drain.flows_left));
    let end = match (drain.seconds_left, drain.on_deadline) {
        (None, _) => "no deadline".to_owned(),
        (Some(0), OnDeadline::Keep) => "the deadline has passed, they are kept".to_owned(),
        (Some(0), OnDeadline::Reset) => {
            "the deadline has passed, each is reset with its next packet".to_owned()
        }
        (Some(seconds), on_deadline) => {
            let time = duration::format(Duration::from_secs(seconds));
            let fate = match on_deadline {
                OnDeadline::Keep => "kept",
                OnDeadline::Reset => "reset",
            };
            format!("{time} to the deadline, then they are {fate}")
        }
    };
    format!("drains: {left} of {begin} flows left{about}, {end}")
}

fn row(backend: &BackendStatus) -> Vec<String> {
    let next_hop = match &backend.next_hop.interface {
        Some(interface) if backend.next_hop.state == "resolved" => interface,
        _ => &backend.next_hop.state,
    };
    vec![
        backend.address.clone(),
        backend.state.to_string(),
        backend.health.last.clone(),
        next_hop.clone(),
        backend.weight.to_string(),
        count(backend.active_flows),
        count(backend.new_flows),
        count(backend.packets),
        bytes(backend.bytes),
        count(backend.reply_packets),
        bytes(backend.reply_bytes),
        dropped(&backend.drops),
    ]
}

fn dropped(drops: &[DropStatus]) -> String {
    count(drops.iter().map(|drop| drop.packets).sum())
}
