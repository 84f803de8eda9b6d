//! The configuration file as JSON Schema, for editors and for those who write it by program.
//!
//! It is made of the forms of the API ([`wire`]), whose keys are those of the file with `_` for
//! `-`. It says what keys there are and what can stand there; what goes together is for
//! `lb check` to say.

use std::path::PathBuf;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{config, config::XdpMode, wire};

/// The configuration of lb.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "its form is read, and no value is ever made")]
struct Configuration {
    /// Network interfaces to attach to.
    #[schemars(length(min = 1), inner(length(min = 1, max = 15)))]
    interfaces: Vec<String>,
    /// Where on an interface the XDP program runs.
    xdp_mode: Option<XdpMode>,
    /// Path of the API socket.
    socket: Option<PathBuf>,
    /// Group, by name or number, whose members may look through the API.
    #[schemars(length(min = 1))]
    read_group: Option<String>,
    /// Where the kernel keeps the datapath while no daemon runs: a directory on a BPF file system.
    pin_directory: Option<PathBuf>,
    /// Where changes beside the file are kept.
    state_file: Option<PathBuf>,
    /// How much the datapath has room for.
    limits: Option<Capacity>,
    /// The services.
    #[schemars(default)]
    service: Vec<wire::Service>,
}

/// How much the datapath has room for.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "its form is read, and no value is ever made")]
struct Capacity {
    /// Entries of each flow table.
    #[schemars(range(min = config::Limits::MIN_FLOWS, max = config::Limits::MAX_FLOWS))]
    flows: Option<u32>,
    /// Flows that have not yet shown that they are real, a power of two.
    #[schemars(range(min = config::Limits::MIN_EMBRYONIC, max = config::Limits::MAX_EMBRYONIC))]
    embryonic: Option<u32>,
}

/// The schema of the configuration file (JSON Schema 2020-12). TOML is read as the JSON that has
/// the same tables, arrays and values.
#[must_use]
pub fn configuration() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<Configuration>().to_value();
    in_the_words_of_the_file(&mut schema);
    if let Some(properties) = schema.pointer_mut("/$defs/Service/properties") {
        rename(properties, "backends", "backend");
    }
    if let Some(properties) = schema.pointer_mut("/$defs/Backend/properties") {
        rename(properties, "server-ids", "server-id");
        let of_many = properties["server-id"].take();
        let description = of_many["description"].clone();
        // One may stand for itself.
        properties["server-id"] = json!({
            "description": description,
            "anyOf": [{"type": "string"}, of_many],
        });
    }
    schema
}

/// A schema with keys as the file has them, which knows no `null`.
fn in_the_words_of_the_file(schema: &mut Value) {
    let Value::Object(keywords) = schema else {
        return;
    };
    if keywords.get("default") == Some(&Value::Null) {
        keywords.remove("default");
    }
    let is_null = |form: &Value| form == "null" || *form == json!({"type": "null"});
    for (keyword, value) in keywords.iter_mut() {
        match (keyword.as_str(), value) {
            ("default", default) => dash(default),
            ("required", Value::Array(keys)) => {
                for key in keys {
                    if let Value::String(key) = key {
                        *key = key.replace('_', "-");
                    }
                }
            }
            ("properties", properties) => {
                dash_keys(properties);
                for value in properties
                    .as_object_mut()
                    .into_iter()
                    .flat_map(Map::values_mut)
                {
                    in_the_words_of_the_file(value);
                }
            }
            ("$defs", definitions) => {
                for value in definitions
                    .as_object_mut()
                    .into_iter()
                    .flat_map(Map::values_mut)
                {
                    in_the_words_of_the_file(value);
                }
            }
            ("anyOf" | "oneOf", Value::Array(forms)) => {
                forms.retain(|form| !is_null(form));
                forms.iter_mut().for_each(in_the_words_of_the_file);
            }
            ("type", types) => {
                if let Value::Array(several) = types {
                    several.retain(|form| !is_null(form));
                    if let [only] = &several[..] {
                        *types = only.clone();
                    }
                }
            }
            ("items" | "additionalProperties", form) => in_the_words_of_the_file(form),
            _ => {}
        }
    }
}

/// A value of the file, for one of the API.
fn dash(value: &mut Value) {
    match value {
        Value::Object(_) => {
            dash_keys(value);
            for value in value.as_object_mut().into_iter().flat_map(Map::values_mut) {
                dash(value);
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(dash),
        _ => {}
    }
}

fn dash_keys(object: &mut Value) {
    if let Value::Object(object) = object {
        let entries = std::mem::take(object).into_iter();
        object.extend(entries.map(|(key, value)| (key.replace('_', "-"), value)));
    }
}

/// Gives a key another name, in its place.
fn rename(object: &mut Value, before: &str, after: &str) {
    if let Value::Object(object) = object {
        let entries = std::mem::take(object).into_iter();
        object.extend(entries.map(|(key, value)| match key == before {
            true => (after.to_owned(), value),
            false => (key, value),
        }));
    }
}
