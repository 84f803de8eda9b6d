//! The documents about the API and the configuration file: that they are as the code is, and
//! that what is read and answered is as they say.

use std::{collections::BTreeSet, fs, path::Path};

use jsonschema::Validator;
use lb_userspace::{
    api::{self, wire},
    schema,
    state::{Happening, Status},
};
use serde_json::{Value, json};
use snapbox::{Assert, Data};

use crate::support::{Balancer, send};

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// `SNAPSHOTS=overwrite cargo test --test interface schema` writes them anew.
#[test]
fn the_documents_are_as_the_code_is() {
    let assert = Assert::new().action_env(snapbox::assert::DEFAULT_ACTION_ENV);
    for (file, document) in [
        ("docs/openapi.json", api::openapi()),
        ("docs/lb.schema.json", schema::configuration()),
    ] {
        let text = serde_json::to_string_pretty(&document).unwrap() + "\n";
        let path = project().join(file);
        assert.eq(Data::text(text).raw(), Data::read_from(&path, None).raw());
    }
}

/// A file as the JSON that the schema is about; `None` where it is no TOML.
fn read(text: &str) -> Option<Value> {
    let table: toml::Table = text.parse().ok()?;
    Some(serde_json::to_value(table).unwrap())
}

fn configuration() -> Validator {
    jsonschema::validator_for(&schema::configuration()).unwrap()
}

fn mistakes(validator: &Validator, instance: &Value) -> Vec<String> {
    let errors = validator.iter_errors(instance);
    errors
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

#[test]
fn right_configurations_are_right_by_the_schema() {
    let block = |page: &str, mark: &str| {
        let page = fs::read_to_string(project().join(page)).unwrap();
        let block = page.split("```toml\n").nth(1).unwrap();
        let block = block.split("```").next().unwrap().to_owned();
        assert!(block.contains(mark), "{block}");
        block
    };
    let validator = configuration();
    for text in [
        include_str!("config/every-key.toml").to_owned(),
        include_str!("config/design.toml").to_owned(),
        include_str!("apply/first.toml").to_owned(),
        include_str!("apply/second.toml").to_owned(),
        block("docs/configuration.md", "embryonic"),
    ] {
        let found = mistakes(&validator, &read(&text).unwrap());
        assert!(found.is_empty(), "{found:#?}\n{text}");
    }
}

#[test]
fn wrong_keys_words_and_types_are_wrong_by_the_schema() {
    let validator = configuration();
    let gallery = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interface/config-mistakes");
    let mut seen = 0;
    for entry in fs::read_dir(gallery).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let messages = fs::read_to_string(path.with_extension("txt")).unwrap();
        let kinds = [
            "unknown key `",
            "is not known\n",
            "` must be a",
            "is missing from",
        ];
        let is_kind = kinds.iter().any(|kind| messages.contains(kind));
        let text = fs::read(&path).unwrap();
        let Some(read) = str::from_utf8(&text)
            .ok()
            .and_then(read)
            .filter(|_| is_kind)
        else {
            continue;
        };
        seen += 1;
        assert!(!validator.is_valid(&read), "{}\n{messages}", path.display());
    }
    assert!(seen > 25, "{seen} were looked at");
}

/// Every key of the schema, wherever it stands.
fn keys(schema: &Value, found: &mut BTreeSet<String>) {
    match schema {
        Value::Object(keywords) => {
            if let Some(Value::Object(properties)) = keywords.get("properties") {
                found.extend(properties.keys().cloned());
                properties.values().for_each(|schema| keys(schema, found));
            }
            let others = keywords.iter().filter(|(key, _)| *key != "properties");
            others.for_each(|(_, value)| keys(value, found));
        }
        Value::Array(elements) => elements.iter().for_each(|schema| keys(schema, found)),
        _ => {}
    }
}

#[test]
fn the_schema_has_the_keys_that_the_file_has_and_no_others() {
    fn written(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(table) => {
                for (key, value) in table {
                    found.insert(key.clone());
                    // What is in there are names of variables.
                    if key != "environment" {
                        written(value, found);
                    }
                }
            }
            Value::Array(elements) => elements.iter().for_each(|value| written(value, found)),
            _ => {}
        }
    }
    let mut of_schema = BTreeSet::new();
    keys(&schema::configuration(), &mut of_schema);
    let mut of_file = BTreeSet::new();
    written(
        &read(include_str!("config/every-key.toml")).unwrap(),
        &mut of_file,
    );
    let more: Vec<_> = of_file.difference(&of_schema).collect();
    assert!(more.is_empty(), "not in the schema: {more:?}");
    // What stands in no example is at least read: the reader names what it does not know.
    for key in of_schema.difference(&of_file) {
        let page = fs::read_to_string(project().join("docs/configuration.md")).unwrap();
        assert!(
            page.contains(&format!("{key} =")) || page.contains(&format!("`{key}`")),
            "{key}"
        );
    }
}

/// A validator of a part of the document.
fn part(document: &Value, schema: &Value) -> Validator {
    let mut root = schema.clone();
    root["components"] = document["components"].clone();
    jsonschema::validator_for(&root).unwrap()
}

/// Asks, and compares the answer to the document. Returns it.
fn ask(balancer: &Balancer, document: &Value, asked: (&str, &str, &str), body: &Value) -> Value {
    let (method, path, target) = asked;
    let operation = &document["paths"][path][method];
    assert!(operation.is_object(), "{method} {path}");
    let body = match body {
        Value::Null => String::new(),
        body => {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            let found = mistakes(&part(document, schema), body);
            assert!(found.is_empty(), "{asked:?} {body}: {found:#?}");
            body.to_string()
        }
    };
    let request = format!(
        "{} {target} HTTP/1.1\r\nHost: lb\r\nContent-Length: {}\r\n\r\n{body}",
        method.to_uppercase(),
        body.len()
    );
    let answer = send(&balancer.socket(), request.as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap();
    let response = &operation["responses"][status];
    assert!(response.is_object(), "{asked:?}: {answer}");
    let body: Value = serde_json::from_str(body).unwrap();
    let schema = &response["content"]["application/json"]["schema"];
    let found = mistakes(&part(document, schema), &body);
    assert!(found.is_empty(), "{asked:?}: {body:#}: {found:#?}");
    assert_eq!(
        head.contains("\r\netag: "),
        response["headers"]["ETag"].is_object(),
        "{answer}"
    );
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_as_the_document_says() {
    let status: Status = serde_json::from_str(include_str!("cli/status.json")).unwrap();
    let balancer = Balancer::start(status);
    let document = api::openapi();
    let go = |method: &str, path: &str, target: &str, body: Value| {
        ask(&balancer, &document, (method, path, target), &body)
    };
    let served = go("get", "/v1/openapi.json", "/v1/openapi.json", Value::Null);
    assert_eq!(served, document);
    let (service, web) = ("/v1/services/{name}", "/v1/services/web");
    let new = json!({
        "address": "192.0.2.10:443", "mode": "full-nat", "quorum": "50%",
        "health": {"type": "http", "path": "/"},
        "limits": {"new_per_source": {"rate": 5}},
        "backends": [{"address": "10.0.0.11:8443", "health": {"type": "dns", "query": "a.example"}}],
    });
    for body in [new.clone(), new.clone()] {
        go("post", service, web, body);
    }
    go("put", service, web, new);
    go(
        "patch",
        service,
        web,
        json!({"quorum": 2, "icmp_echo": null}),
    );
    go("patch", service, web, json!({"backends": {}}));
    go("get", service, web, Value::Null);
    go("get", service, "/v1/services/none", Value::Null);
    go("get", "/v1/services", "/v1/services", Value::Null);
    let (backends, backend) = (
        "/v1/services/{name}/backends",
        "/v1/services/{name}/backends/{address}",
    );
    let drain = "/v1/services/{name}/backends/{address}/drain";
    let first = "/v1/services/web/backends/10.0.0.11:8443";
    go(
        "post",
        backends,
        "/v1/services/web/backends",
        json!({"address": "10.0.0.12:8443"}),
    );
    go("put", backend, first, json!({"weight": 7, "priority": 1}));
    go("patch", backend, first, json!({"weight": 8}));
    let on_deadline = json!({"deadline": "5m", "on_deadline": "reset"});
    go("put", drain, &format!("{first}/drain"), on_deadline);
    go("delete", drain, &format!("{first}/drain"), Value::Null);
    go("delete", backend, first, Value::Null);
    go("get", "/v1/status", "/v1/status", Value::Null);
    go("get", "/v1/flows", "/v1/flows?limit=1", Value::Null);
    go("get", "/v1/flows", "/v1/flows?limit=x", Value::Null);
    go("get", "/v1/config", "/v1/config", Value::Null);
    let text = include_str!("apply/first.toml");
    let file = json!({"name": "/etc/lb/lb.toml", "text": text});
    go("post", "/v1/apply", "/v1/apply?dry_run=true", file.clone());
    go("post", "/v1/apply", "/v1/apply", file);
    let wrong = json!({"name": "/etc/lb/lb.toml", "text": "interfaces = 7"});
    go("post", "/v1/apply", "/v1/apply", wrong);
    go("post", "/v1/reset", "/v1/reset", Value::Null);
    for port in ["443", "80", "53"] {
        let target = format!(
            "/v1/explain?protocol=tcp&source=198.51.100.7:40000&destination=192.0.2.10:{port}"
        );
        let known: Value = serde_json::from_str(include_str!("cli/explain.json")).unwrap();
        if known.get(port).is_some() {
            go("get", "/v1/explain", &target, Value::Null);
        }
    }
    go("delete", service, web, Value::Null);
    let happenings: Vec<Happening> = serde_json::from_str(include_str!("cli/events.json")).unwrap();
    assert!(!happenings.is_empty());
    balancer.stop().await;
}

/// Every path takes the methods that the document names for it, and no other; and whatever the
/// client and the page about the API name is in the document.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_has_every_route_and_no_other() {
    let balancer = Balancer::start(Status::default());
    let document = api::openapi();
    let page = fs::read_to_string(project().join("docs/api.md")).unwrap();
    let mut operations = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let target = path
            .replace("{name}", "none")
            .replace("{address}", "10.0.0.1:1");
        for method in ["get", "put", "post", "patch", "delete"] {
            let is_named = methods.get(method).is_some();
            operations += usize::from(is_named);
            let query = if path == "/v1/events" {
                "?follow=false"
            } else {
                ""
            };
            let request = format!(
                "{} {target}{query} HTTP/1.1\r\nHost: lb\r\nContent-Length: 0\r\n\r\n",
                method.to_uppercase()
            );
            let answer = send(&balancer.socket(), request.as_bytes());
            let is_taken =
                !answer.starts_with("HTTP/1.1 405 ") && !answer.contains("there is nothing at");
            assert_eq!(is_taken, is_named, "{method} {path}: {answer}");
            let line = format!("| `{} {path}` |", method.to_uppercase());
            assert_eq!(page.contains(&line), is_named, "docs/api.md: {line}");
        }
    }
    let lines = page
        .lines()
        .filter(|line| line.contains(" /v1/") && line.starts_with("| `"));
    assert_eq!(lines.count(), operations);
    balancer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_say_where_the_mistake_is() {
    let balancer = Balancer::start(Status::default());
    let web = json!({"name": "web", "address": "192.0.2.10:443", "mode": "full-nat",
                     "backends": [{"address": "10.0.0.11:8443"}]});
    let web: wire::Service = wire::read(web).unwrap();
    balancer.client().add_service(&web).await.unwrap();
    for (target, body, field) in [
        (
            "PATCH /v1/services/web",
            json!({"health": {"type": "tcp", "port": 65_536}}),
            "health.port",
        ),
        ("PATCH /v1/services/web", json!({"colour": "red"}), "colour"),
        ("PATCH /v1/services/web", json!({"mode": "proxy"}), "mode"),
        ("PATCH /v1/services/web", json!({"mode": null}), "mode"),
        (
            "PATCH /v1/services/web",
            json!({"backends": [{}]}),
            "backends[0].address",
        ),
        (
            "PATCH /v1/services/web",
            json!({"timeouts": {"udp": "soon"}}),
            "timeouts.udp",
        ),
        (
            "PATCH /v1/services/web",
            json!({"health": {"type": "tcp", "interval": "1s", "timeout": "2s"}}),
            "health.timeout",
        ),
        (
            "PATCH /v1/services/web",
            json!({"backends": [{"address": "10.0.0.11:8443", "priority": 256}]}),
            "backends[0].priority",
        ),
        (
            "PUT /v1/services/web/backends/10.0.0.11:8443",
            json!({"weight": "x"}),
            "weight",
        ),
        (
            "PUT /v1/services/web/backends/10.0.0.11:8443",
            json!({}),
            "weight",
        ),
        (
            "PUT /v1/services/web/backends/10.0.0.11:8443/drain",
            json!({"deadline": "x"}),
            "deadline",
        ),
        (
            "POST /v1/services/other",
            json!({"address": "192.0.2.10:443", "mode": "nat"}),
            "address",
        ),
        ("GET /v1/flows?state=asleep", Value::Null, "state"),
    ] {
        let body = match &body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let request = format!(
            "{target} HTTP/1.1\r\nHost: lb\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = send(&balancer.socket(), request.as_bytes());
        let (_, answer) = answer.split_once("\r\n\r\n").unwrap();
        let answer: Value = serde_json::from_str(answer).unwrap();
        assert_eq!(answer["error"]["field"], field, "{target} {body}: {answer}");
    }
    balancer.stop().await;
}
