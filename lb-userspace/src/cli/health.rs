//! Health checks on the command line, of services and of backends.

use serde_json::{Map, Value, json};

use super::{
    args::{self, Health, HealthOptions, Setting},
    service::{table, text, value},
};
use crate::{
    api::wire,
    config::duration,
    state::{
        HealthKey, HealthSpec, ProbeKind, Reason, Word as _,
        rules::{self, Field},
    },
};

/// The API's word for a health check without a type, in words of the command line.
pub(super) fn name_the_option(reason: Reason) -> Reason {
    let no_probe = rules::no_probe().message;
    if reason.message == format!("{}: {no_probe}", Field::HealthKey(HealthKey::Type)) {
        return Reason::new(
            no_probe,
            "say what is asked: `--health tcp` or `--health http:/healthz`",
        );
    }
    reason
}

/// What is given, as a merge patch.
pub(super) fn patch(options: &HealthOptions) -> Option<Value> {
    let mut document = Map::new();
    match &options.health {
        Some(Health::None) => return Some(Value::Null),
        Some(Health::Of(kind, argument)) => {
            document.insert(HealthKey::Type.in_json(), kind.as_str().into());
            // What the type before it had goes with it.
            for key in HealthKey::ALL {
                if !key.is_of(*kind) || args::argument(*kind) == Some(*key) {
                    document.insert(key.in_json(), Value::Null);
                }
            }
            if let Some((key, text)) = argument {
                document.insert(key.in_json(), text.as_str().into());
            }
        }
        None => {}
    }
    for (key, given) in &options.health_option {
        let value = match (key, given) {
            (_, Setting::Default) => Value::Null,
            (HealthKey::Verify | HealthKey::Tls | HealthKey::Passive, Setting::Value(text)) => text
                .parse()
                .map_or_else(|_| text.as_str().into(), Value::Bool),
            (HealthKey::Alpn, Setting::Value(text)) => text.split(',').map(str::trim).collect(),
            (_, Setting::Value(text)) => text.as_str().into(),
        };
        document.insert(key.in_json(), value);
    }
    let mut put = |key: HealthKey, value: Option<Value>| {
        if let Some(value) = value {
            document.insert(key.in_json(), value);
        }
    };
    let time = |time: &std::time::Duration| duration::format(*time);
    put(
        HealthKey::Host,
        text(options.health_host.as_ref(), Clone::clone),
    );
    put(HealthKey::Port, value(options.health_port.as_ref()));
    put(
        HealthKey::Interval,
        text(options.health_interval.as_ref(), time),
    );
    put(
        HealthKey::DownInterval,
        text(options.health_down_interval.as_ref(), time),
    );
    put(
        HealthKey::Jitter,
        text(options.health_jitter.as_ref(), |jitter| {
            format!("{jitter}%")
        }),
    );
    put(
        HealthKey::Timeout,
        text(options.health_timeout.as_ref(), time),
    );
    put(HealthKey::Rise, options.health_rise.map(Value::from));
    put(HealthKey::Fall, options.health_fall.map(Value::from));
    table(document)
}

/// The health check as the command line takes it.
pub(super) fn check(health: Option<&wire::Health>) -> String {
    let Some(health) = health else {
        return "none".to_owned();
    };
    let kind: Option<ProbeKind> = health.kind.parse().ok();
    let argument = kind.and_then(args::argument).map(HealthKey::in_json);
    let keys = json!(health);
    let argument = argument.and_then(|key| keys[key].as_str());
    match argument {
        Some(argument) => format!("{}:{argument}", health.kind),
        None => health.kind.clone(),
    }
}

/// Lines about a check, as far as [`check`] does not say it.
pub(super) fn show(health: &wire::Health, line: &mut impl FnMut(&str, &str)) {
    let kind: Option<ProbeKind> = health.kind.parse().ok();
    let said = kind.and_then(args::argument);
    let keys = json!(health);
    let others = HealthKey::ALL
        .iter()
        .filter(|key| key.is_of_probe() && Some(**key) != said);
    for key in others {
        let words = match &keys[key.in_json()] {
            Value::Null => continue,
            Value::String(text) => text.clone(),
            Value::Array(list) => {
                let words = list.iter().filter_map(Value::as_str);
                words.collect::<Vec<_>>().join(" ")
            }
            Value::Object(map) => {
                // Values may be secrets.
                map.keys().cloned().collect::<Vec<_>>().join(" ")
            }
            other => other.to_string(),
        };
        line(&key.as_str().replace('-', " "), &words);
    }
    if kind != Some(ProbeKind::Icmp) {
        let port = health.port.map(|port| port.to_string());
        line("port", port.as_deref().unwrap_or("the backend's"));
    }
    line("interval", health.interval.as_deref().unwrap_or_default());
    if let Some(interval) = &health.down_interval {
        line("while down", interval);
    }
    if let Some(jitter) = &health.jitter {
        line("jitter", jitter);
    }
    if let Some(time) = &health.hold_down {
        line("hold down", time);
    }
    if health.passive == Some(true) {
        line("passive", "true");
    }
    line("timeout", &timeout(health));
    line("rise, fall", &format!("{}, {}", health.rise, health.fall));
}

/// The timeout of a health check, also where it is not given.
fn timeout(health: &wire::Health) -> String {
    let read = |text: &Option<String>| text.as_deref().and_then(|text| duration::parse(text).ok());
    let intervals = [read(&health.interval), read(&health.down_interval)];
    match (&health.timeout, intervals.into_iter().flatten().min()) {
        (Some(timeout), _) => timeout.clone(),
        (None, Some(interval)) => {
            let timeout = duration::format(HealthSpec::default_timeout(interval));
            format!("{timeout} (default)")
        }
        (None, None) => "default".to_owned(),
    }
}
