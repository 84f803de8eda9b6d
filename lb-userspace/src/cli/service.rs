//! `lb service`.

use std::{fmt::Write, time::Duration};

use lb_common::ring::RING_SIZE;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    args::{self, AddService, ServiceChanges, ServiceOptions, Setting},
    backend, health,
    output::{self, Column},
};
use crate::{
    api::{
        Client,
        wire::{self, Backend, Rate, Service},
    },
    config::duration,
    state::{OnEmpty, Quorum, RateLimit, Scheduler},
};

pub(super) async fn service(client: &Client, command: args::Service) -> anyhow::Result<()> {
    match command {
        args::Service::Add(add) => {
            let added = client.add_service(&meant(&add)?).await;
            let added = added.map_err(health::name_the_option)?;
            done("added", &added, add.json)
        }
        args::Service::Set(set) => {
            let patch = patch(&set.changes);
            if patch.is_empty() {
                args::nothing_to_set("service");
            }
            let changed = client.patch_service(&set.name, patch.into()).await;
            let changed = changed.map_err(health::name_the_option)?;
            done("changed", &changed, set.json)
        }
        args::Service::Remove { name, json } => {
            let removed = client.remove_service(&name).await?;
            done("removed", &removed, json)
        }
        args::Service::List { json } => {
            let services = client.services().await?;
            if json {
                return output::print_json(&services);
            }
            output::print(&overview(&services))
        }
        args::Service::Show { name, json } => {
            let service = client.service(&name).await?;
            if json {
                return output::print_json(&service);
            }
            output::print(&show(&service))
        }
    }
}

fn done(what: &str, service: &Service, json: bool) -> anyhow::Result<()> {
    if json {
        return output::print_json(service);
    }
    let Service {
        name,
        address,
        protocol,
        ..
    } = service;
    output::message(&format!("{what} service {name}, {address} {protocol}"));
    Ok(())
}

/// The service that is to be added. What is not given is left to the defaults.
fn meant(add: &AddService) -> anyhow::Result<Service> {
    let mut document = options(&add.options);
    // A new service has nothing that could be taken back.
    remove_nulls(&mut document);
    document.insert("name".into(), add.name.clone().into());
    document.insert("address".into(), add.address.to_string().into());
    document.insert("mode".into(), add.mode.as_str().into());
    let backends: Vec<_> = add.backends.iter().map(Backend::from).collect();
    document.insert("backends".into(), serde_json::to_value(backends)?);
    Ok(wire::read(Value::Object(document))?)
}

/// What is to be changed, as a merge patch: `null` takes back.
fn patch(changes: &ServiceChanges) -> Map<String, Value> {
    let mut document = options(&changes.options);
    if let Some(address) = changes.address {
        document.insert("address".into(), address.to_string().into());
    }
    if let Some(mode) = changes.mode {
        document.insert("mode".into(), mode.as_str().into());
    }
    document
}

fn options(options: &ServiceOptions) -> Map<String, Value> {
    let mut document = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            document.insert(key.into(), value);
        }
    };
    put(
        "protocol",
        text(options.protocol.as_ref(), ToString::to_string),
    );
    put(
        "scheduler",
        text(options.scheduler.as_ref(), ToString::to_string),
    );
    put("hash", text(options.hash.as_ref(), ToString::to_string));
    let time = |time: &Duration| duration::format(*time);
    put("affinity", text(options.affinity.as_ref(), time));
    put("slow_start", text(options.slow_start.as_ref(), time));
    put(
        "slow_start_curve",
        text(options.slow_start_curve.as_ref(), ToString::to_string),
    );
    put("ring_size", value(options.ring_size.as_ref()));
    put("track", text(options.track.as_ref(), ToString::to_string));
    put("quorum", value(options.quorum.as_ref()));
    put("panic_threshold", value(options.panic_threshold.as_ref()));
    put(
        "on_empty",
        text(options.on_empty.as_ref(), ToString::to_string),
    );
    put("allow", list(&options.allow, ToString::to_string));
    put("deny", list(&options.deny, ToString::to_string));
    put("limits", limits(options));
    put("quic", quic(options));
    put("source", text(options.source.as_ref(), ToString::to_string));
    put(
        "source_ports",
        text(options.source_ports.as_ref(), |ports| {
            format!("{}-{}", ports.start(), ports.end())
        }),
    );
    put("gue_port", value(options.gue_port.as_ref()));
    put("max_segment_size", value(options.max_segment_size.as_ref()));
    put(
        "other_ports",
        text(options.other_ports.as_ref(), ToString::to_string),
    );
    put("icmp_echo", value(options.icmp_echo.as_ref()));
    put("timeouts", table(timeouts(options)));
    put("health", health::patch(&options.health));
    document
}

fn limits(options: &ServiceOptions) -> Option<Value> {
    let rate = |given: &Option<Setting<RateLimit>>| {
        Some(match given.as_ref()? {
            Setting::Default => Value::Null,
            // A patch has to take back the burst that was given before.
            Setting::Value(RateLimit { rate, burst }) => {
                json!({"rate": rate, "burst": (burst != rate).then_some(burst)})
            }
        })
    };
    let given = [
        ("new_per_source", rate(&options.new_per_source)),
        ("new_per_service", rate(&options.new_per_service)),
    ];
    table(collect(given))
}

/// What is given of QUIC; all of it is taken back with the length.
fn quic(options: &ServiceOptions) -> Option<Value> {
    if options.quic_server_id_length == Some(Setting::Default) {
        return Some(Value::Null);
    }
    let length = value(options.quic_server_id_length.as_ref());
    let given = [
        ("server_id_length", length),
        (
            "server_id_offset",
            value(options.quic_server_id_offset.as_ref()),
        ),
        (
            "config_rotation",
            list(&options.quic_config_rotation, |n| *n),
        ),
    ];
    table(collect(given))
}

/// The keys that have a value.
pub(super) fn collect<const N: usize>(given: [(&str, Option<Value>); N]) -> Map<String, Value> {
    let given = given.into_iter();
    given
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect()
}

fn timeouts(options: &ServiceOptions) -> Map<String, Value> {
    let mut document = Map::new();
    for (key, given) in [
        ("unreplied", &options.timeout_unreplied),
        ("tcp_established", &options.timeout_tcp_established),
        ("tcp_closing", &options.timeout_tcp_closing),
        ("udp", &options.timeout_udp),
    ] {
        if let Some(value) = text(given.as_ref(), |time| duration::format(*time)) {
            document.insert(key.into(), value);
        }
    }
    document
}

/// A given option as JSON; `null` where it is taken back.
pub(super) fn value(given: Option<&Setting<impl Serialize>>) -> Option<Value> {
    Some(match given? {
        Setting::Default => Value::Null,
        Setting::Value(value) => json!(value),
    })
}

/// The values of an option that may be given again as JSON; `null` where all are taken
/// back.
pub(super) fn list<T, J: Serialize>(
    given: &[Setting<T>],
    format: impl Fn(&T) -> J,
) -> Option<Value> {
    let values = given.iter().filter_map(|given| match given {
        Setting::Default => None,
        Setting::Value(value) => Some(json!(format(value))),
    });
    let values: Vec<Value> = values.collect();
    match (given, values.is_empty()) {
        ([], _) => None,
        (_, true) => Some(Value::Null),
        (_, false) => Some(values.into()),
    }
}

/// A given option as JSON text; `null` where it is taken back.
pub(super) fn text<T>(
    given: Option<&Setting<T>>,
    format: impl FnOnce(&T) -> String,
) -> Option<Value> {
    Some(match given? {
        Setting::Default => Value::Null,
        Setting::Value(value) => format(value).into(),
    })
}

pub(super) fn table(document: Map<String, Value>) -> Option<Value> {
    (!document.is_empty()).then_some(Value::Object(document))
}

pub(super) fn remove_nulls(document: &mut Map<String, Value>) {
    document.retain(|_, value| !value.is_null());
    for value in document.values_mut() {
        if let Value::Object(inner) = value {
            remove_nulls(inner);
        }
    }
}

fn overview(services: &[Service]) -> String {
    let columns = [
        Column::Text("NAME"),
        Column::Text("ADDRESS"),
        Column::Text("PROTOCOL"),
        Column::Text("MODE"),
        Column::Text("SCHEDULER"),
        Column::Text("HEALTH CHECK"),
        Column::Number("BACKENDS"),
    ];
    let rows = services.iter().map(|service| {
        vec![
            service.name.clone(),
            service.address.clone(),
            service.protocol.clone(),
            service.mode.clone(),
            service.scheduler.clone(),
            health::check(service.health.as_ref()),
            service.backends.len().to_string(),
        ]
    });
    output::table("", &columns, rows)
}

/// Lines about the choice of backends, as far as it is not the usual.
fn selection(service: &Service, line: &mut impl FnMut(&str, &str)) {
    if service.scheduler == Scheduler::Maglev.as_str() {
        line("hash", &service.hash);
    } else {
        line("affinity", service.affinity.as_deref().unwrap_or("none"));
    }
    if service.ring_size != RING_SIZE {
        line("ring size", &service.ring_size.to_string());
    }
    if let Some(track) = &service.track {
        line("track", track);
    }
    if let Some(window) = &service.slow_start {
        line(
            "slow start",
            &format!("{window}, {}", service.slow_start_curve),
        );
    }
    if service.quorum != Quorum::default() {
        line("quorum", &service.quorum.to_string());
    }
    if let Some(threshold) = service.panic_threshold {
        line("panic threshold", &threshold.to_string());
    }
    if service.on_empty != OnEmpty::Drop.as_str() {
        line("on empty", &service.on_empty);
    }
}

/// Lines about sources, limits and QUIC, as far as there is something to say.
fn guard(service: &Service, line: &mut impl FnMut(&str, &str)) {
    for (key, list) in [("allow", &service.allow), ("deny", &service.deny)] {
        if !list.is_empty() {
            line(key, &list.join(", "));
        }
    }
    let limits = &service.limits;
    for (whose, limit) in [
        ("a source", &limits.new_per_source),
        ("all", &limits.new_per_service),
    ] {
        if let Some(Rate { rate, burst }) = limit {
            let burst = burst.unwrap_or(*rate);
            line(
                "new flows",
                &format!("from {whose} {rate} a second, {burst} at once"),
            );
        }
    }
    if let Some(quic) = &service.quic {
        let rotation: Vec<_> = quic.config_rotation.iter().map(u8::to_string).collect();
        line(
            "QUIC",
            &format!(
                "server ID of {} bytes behind {}, configuration {}",
                quic.server_id_length,
                quic.server_id_offset,
                rotation.join(", ")
            ),
        );
    }
}

fn show(service: &Service) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(text, "{key:<16}{value}");
    };
    line("name", &service.name);
    line("address", &service.address);
    line("protocol", &service.protocol);
    line("mode", &service.mode);
    line("scheduler", &service.scheduler);
    selection(service, &mut line);
    let source = service.source.as_deref().unwrap_or("chosen by the kernel");
    match service.mode.as_str() {
        "full-nat" => {
            line("source", source);
            line("source ports", &service.source_ports);
        }
        "ipip" => line("source", source),
        "gue" => {
            line("source", source);
            line("GUE port", &service.gue_port.to_string());
        }
        _ => {}
    }
    if let Some(size) = service.max_segment_size {
        line("segment size", &format!("at most {size} bytes"));
    }
    guard(service, &mut line);
    line("other ports", &service.other_ports);
    let echo = if service.icmp_echo {
        "answered"
    } else {
        "passed on"
    };
    line("ICMP echo", echo);
    let timeouts = &service.timeouts;
    line(
        "timeouts",
        &format!(
            "unreplied {}, TCP established {}, TCP closing {}, UDP {}",
            timeouts.unreplied, timeouts.tcp_established, timeouts.tcp_closing, timeouts.udp
        ),
    );
    line("health check", &health::check(service.health.as_ref()));
    if let Some(health) = &service.health {
        health::show(health, &mut |key, value| line(&format!("  {key}"), value));
    }
    text.push('\n');
    text.push_str(&backend::table("", &service.backends));
    text
}
