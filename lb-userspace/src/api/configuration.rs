//! The whole configuration that is in force, each item beside what the file says of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::wire::{self, Backend, Service};
use crate::state::{Action, ConfigurationStatus, Difference, View, words};

words! {
    /// Where an item comes from.
    Origin, "origin", "`file`, `changed` or `added`" {
        /// It is as the file says.
        File = "file",
        /// The file names it, and says something else of it.
        Changed = "changed",
        /// The file does not name it.
        Added = "added",
    }
}

/// The whole configuration that is in force. Fields are added, never renamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Configuration {
    /// Where it comes from.
    #[serde(flatten)]
    pub source: ConfigurationStatus,
    /// What the daemon runs with, beside the services.
    pub settings: Map<String, Value>,
    /// The services, by name.
    pub services: Vec<ConfiguredService>,
    /// What the file names and was taken away.
    pub removed: Vec<RemovedItem>,
}

/// A service in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ConfiguredService {
    /// Where it comes from, but for its backends.
    pub origin: Origin,
    /// What the file says of the keys that are not as it says; `null` for none.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub file: Map<String, Value>,
    /// The service, whose backends are below.
    pub service: Service,
    /// Its backends.
    pub backends: Vec<ConfiguredBackend>,
}

/// A backend in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ConfiguredBackend {
    /// Where it comes from.
    pub origin: Origin,
    /// What the file says of the keys that are not as it says; `null` for none.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub file: Map<String, Value>,
    /// The backend.
    pub backend: Backend,
}

/// What the file names and was taken away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RemovedItem {
    /// Name of the service.
    pub service: String,
    /// Address of the backend, where it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
}

impl From<View> for Configuration {
    fn from(view: View) -> Self {
        let differences = view.differences;
        let services = view.now.services().map(|spec| {
            let mut service = Service::from(spec);
            let backends = std::mem::take(&mut service.backends);
            let of_service = |found: &&Difference| found.service == service.name;
            let differences: Vec<&Difference> = differences.iter().filter(of_service).collect();
            let backends = backends.into_iter().map(|backend| {
                let (origin, file) = origin(&differences, Some(&backend.address));
                ConfiguredBackend {
                    origin,
                    file,
                    backend,
                }
            });
            let backends = backends.collect();
            let (origin, file) = origin(&differences, None);
            ConfiguredService {
                origin,
                file,
                service,
                backends,
            }
        });
        let services = services.collect();
        let removed = differences
            .iter()
            .filter(|found| found.action == Action::Remove);
        Self {
            source: view.status,
            settings: match view.settings {
                Value::Object(settings) => settings,
                _ => Map::new(),
            },
            services,
            removed: removed
                .map(|found| RemovedItem {
                    service: found.service.clone(),
                    backend: found.backend.clone(),
                })
                .collect(),
        }
    }
}

/// Where a service comes from, or a backend of it, by what differs of the service.
fn origin(differences: &[&Difference], backend: Option<&str>) -> (Origin, Map<String, Value>) {
    let found = differences
        .iter()
        .find(|found| found.backend.as_deref() == backend);
    let Some(found) = found else {
        return (Origin::File, Map::new());
    };
    let origin = match found.action {
        Action::Add => Origin::Added,
        Action::Change | Action::Remove => Origin::Changed,
    };
    let keys = found
        .keys
        .iter()
        .map(|key| (key.key.clone(), key.before.clone()));
    (origin, keys.collect())
}

impl Configuration {
    /// In the form of the configuration file, without what is as by default. Comments say what
    /// is not as in the file.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut line = |words: &str| {
            text.push_str(words.trim_end());
            text.push('\n');
        };
        line(&format!(
            "# in force, revision {}; by `{}`",
            self.source.revision, self.source.file
        ));
        if let Some(applied) = &self.source.applied {
            line(&format!(
                "# and `{applied}`, which was applied in its place"
            ));
        }
        if let Some(error) = &self.source.error {
            line(&format!(
                "# which was refused when it was last read: {error}"
            ));
        }
        for removed in &self.removed {
            let what = match &removed.backend {
                None => format!("service {}", removed.service),
                Some(backend) => format!("backend {backend} of service {}", removed.service),
            };
            line(&format!("# removed, though the file names it: {what}"));
        }
        let (tables, values): (Vec<_>, Vec<_>) = self
            .settings
            .iter()
            .partition(|(_, value)| value.is_object());
        for (key, value) in values {
            line(&format!("{} = {}", dashed(key), inline(value)));
        }
        for (key, table) in tables {
            line("");
            line(&format!("[{}]", dashed(key)));
            for (key, value) in table.as_object().into_iter().flatten() {
                line(&format!("{} = {}", dashed(key), inline(value)));
            }
        }
        for service in &self.services {
            line("");
            let (name, address, mode) = (
                &service.service.name,
                &service.service.address,
                &service.service.mode,
            );
            let defaults = object(
                &wire::read::<Service>(json!({"name": name, "address": address, "mode": mode}))
                    .ok(),
            );
            let item = Item {
                header: "service",
                origin: service.origin,
                file: &service.file,
                keys: object(&Some(&service.service)),
                defaults,
                needed: &["name", "address", "mode", "protocol"],
            };
            item.write(&mut line);
            for backend in &service.backends {
                line("");
                let defaults = object(
                    &wire::read::<Backend>(json!({"address": backend.backend.address})).ok(),
                );
                let item = Item {
                    header: "service.backend",
                    origin: backend.origin,
                    file: &backend.file,
                    keys: object(&Some(&backend.backend)),
                    defaults,
                    needed: &["address", "weight"],
                };
                item.write(&mut line);
            }
        }
        text
    }
}

/// A service or a backend that is to be written.
struct Item<'a> {
    header: &'static str,
    origin: Origin,
    file: &'a Map<String, Value>,
    keys: Map<String, Value>,
    defaults: Map<String, Value>,
    /// Keys that are written though they may be as by default.
    needed: &'static [&'static str],
}

impl Item<'_> {
    fn write(&self, line: &mut impl FnMut(&str)) {
        let mark = if self.origin == Origin::Added {
            "  # added"
        } else {
            ""
        };
        line(&format!("[[{}]]{mark}", self.header));
        let mut tables = Vec::new();
        for (key, value) in &self.keys {
            let is_default =
                self.defaults.get(key) == Some(value) && !self.needed.contains(&key.as_str());
            if value.is_null() || is_default {
                continue;
            }
            // `health` or `drain`, but a limit of new flows is a value.
            if value.is_object() {
                tables.push((key, value));
                continue;
            }
            line(&format!(
                "{} = {}{}",
                dashed(key),
                inline(value),
                self.mark(key)
            ));
        }
        for (key, file) in self.file {
            let value = self.keys.get(key).filter(|value| !value.is_null());
            if value.is_none()
                || self.defaults.get(key) == value && !self.needed.contains(&key.as_str())
            {
                line(&format!(
                    "# {}: by default; the file says {}",
                    dashed(key),
                    said(file)
                ));
            }
        }
        for (key, table) in tables {
            line("");
            line(&format!(
                "[{}.{}]{}",
                self.header,
                dashed(key),
                self.mark(key)
            ));
            let defaults = self.defaults.get(key).and_then(Value::as_object);
            for (key, value) in table.as_object().into_iter().flatten() {
                if !value.is_null()
                    && defaults.and_then(|defaults| defaults.get(key)) != Some(value)
                {
                    line(&format!("{} = {}", dashed(key), inline(value)));
                }
            }
        }
    }

    fn mark(&self, key: &str) -> String {
        self.file.get(key).map_or_else(String::new, |file| {
            format!("  # changed; the file says {}", said(file))
        })
    }
}

/// What the file says, on one line.
fn said(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        value => inline(value),
    }
}

fn object<T: Serialize>(value: &Option<T>) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

/// A key as in the file. The server IDs of a backend are its `server-id`, one or several.
fn dashed(key: &str) -> String {
    match key {
        "server_ids" => "server-id".to_owned(),
        key => key.replace('_', "-"),
    }
}

/// A value of TOML on one line.
fn inline(value: &Value) -> String {
    match value {
        Value::Null => "\"\"".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => toml::Value::String(text.clone()).to_string(),
        Value::Array(elements) => {
            let elements: Vec<String> = elements.iter().map(inline).collect();
            format!("[{}]", elements.join(", "))
        }
        Value::Object(entries) => {
            let entries = entries.iter().filter(|(_, value)| !value.is_null());
            let entries: Vec<String> = entries
                .map(|(key, value)| format!("{} = {}", dashed(key), inline(value)))
                .collect();
            format!("{{ {} }}", entries.join(", "))
        }
    }
}
