//! The API over a real Unix socket, in front of a balancer without a datapath.

use crate::support::{Balancer, send};
use std::time::Duration;

use lb_userspace::{
    api::{
        self, Access, Client, Socket,
        wire::{self, Backend, Service},
    },
    state::{
        After, Control, Event, Happening, InterfaceStatus, REMEMBERED, Reason, Request, Revision,
        ServiceSpec, Status,
    },
};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::oneshot,
    time::timeout,
};

fn web() -> Service {
    wire::read(json!({
        "name": "web",
        "address": "192.0.2.10:443",
        "mode": "full-nat",
        "backends": [{"address": "10.0.0.11:8443"}],
    }))
    .unwrap()
}

fn backend(address: &str, weight: u32) -> Backend {
    wire::read(json!({"address": address, "weight": weight})).unwrap()
}

fn message<T: std::fmt::Debug>(answer: Result<T, Reason>) -> String {
    answer.unwrap_err().message
}

#[tokio::test]
async fn a_service_lives_its_life() {
    let balancer = Balancer::start(Status::default());
    let client = balancer.client();
    assert_eq!(client.services().await, Ok(vec![]));

    let added = client.add_service(&web()).await.unwrap();
    assert_eq!(added, web());
    assert_eq!(client.service("web").await, Ok(web()));
    assert_eq!(
        message(client.add_service(&web()).await),
        "service `web` is there already"
    );

    let patch = json!({"health": {"type": "http", "path": "/healthz"}, "mode": "nat"});
    let patched = client.patch_service("web", patch).await.unwrap();
    assert_eq!(patched.mode, "nat");
    let health = patched.health.clone().unwrap();
    assert_eq!((health.kind.as_str(), health.fall), ("http", 3));
    assert_eq!(health.interval.as_deref(), Some("2s"));
    assert_eq!(patched.backends, web().backends);

    let patch = json!({"health": {"interval": "500ms", "timeout": "1s"}});
    assert_eq!(
        message(client.patch_service("web", patch).await),
        "the timeout, 1s, is longer than the interval, 500ms"
    );
    assert_eq!(client.services().await, Ok(vec![patched]));

    let patch = json!({"health": null, "mode": "full-nat"});
    assert_eq!(client.patch_service("web", patch).await, Ok(web()));
    assert_eq!(client.remove_service("web").await, Ok(web()));
    assert_eq!(
        message(client.remove_service("web").await),
        "there is no service `web`"
    );
    balancer.stop().await;
}

#[tokio::test]
async fn a_backend_lives_its_life() {
    let balancer = Balancer::start(Status::default());
    let client = balancer.client();
    let mut service = web();
    service.address = "[2001:db8::10]:*".into();
    service.backends.clear();
    client.add_service(&service).await.unwrap();

    // Brackets, colons and asterisks have to survive the way through the path.
    for address in ["[2001:db8::11]:*", "[2001:db8::11]:80"] {
        let new = backend(address, 100);
        assert_eq!(client.add_backend("web", &new).await, Ok(new.clone()));
        assert!(message(client.add_backend("web", &new).await).contains("already"));
        let idle = backend(address, 0);
        assert_eq!(client.set_backend("web", &idle).await, Ok(idle.clone()));
        let listed = client.service("web").await.unwrap().backends;
        assert_eq!(listed, std::slice::from_ref(&idle));
        assert_eq!(
            client.remove_backend("web", address).await,
            Ok(idle.clone())
        );
        let gone = format!("service `web` has no backend `{address}`");
        assert_eq!(message(client.remove_backend("web", address).await), gone);
        assert_eq!(message(client.set_backend("web", &idle).await), gone);
    }
    assert_eq!(
        message(
            client
                .add_backend("no/such web", &backend("10.0.0.1:1", 1))
                .await
        ),
        "there is no service `no/such web`"
    );
    balancer.stop().await;
}

#[tokio::test]
async fn a_patch_of_a_backend_leaves_the_rest() {
    let balancer = Balancer::start(Status::default());
    let client = balancer.client();
    client.add_service(&web()).await.unwrap();
    let patch = |patch: Value| {
        let client = client.clone();
        async move { client.patch_backend("web", "10.0.0.11:8443", patch).await }
    };
    let patched = patch(json!({"priority": 2, "max_connections": 10})).await;
    let patched = patched.unwrap();
    assert_eq!((patched.weight, patched.priority), (100, 2));
    let patched = patch(json!({"weight": 5})).await.unwrap();
    assert_eq!(patched.max_connections, Some(10));
    let patched = patch(json!({"max_connections": null})).await.unwrap();
    assert_eq!((patched.priority, patched.max_connections), (2, None));
    assert_eq!(
        message(patch(json!({"address": "10.0.0.12:8443"})).await),
        "address: the body says \"10.0.0.12:8443\", but the path `10.0.0.11:8443`"
    );
    assert_eq!(
        message(patch(json!({"priority": 256})).await),
        "the priority 256 is too large"
    );
    balancer.stop().await;
}

#[tokio::test]
async fn a_drain_is_begun_and_taken_back() {
    let balancer = Balancer::start(Status::default());
    let client = balancer.client();
    client.add_service(&web()).await.unwrap();
    let address = "10.0.0.11:8443";
    let drain = |drain: Value| {
        let client = client.clone();
        let drain: wire::Drain = wire::read(drain).unwrap();
        async move { client.drain_backend("web", address, &drain).await }
    };
    let drained = drain(json!({})).await.unwrap();
    assert_eq!(
        json!(drained)["drain"],
        json!({"on_deadline": "keep"}),
        "{drained:?}"
    );
    let wanted = json!({"deadline": "1m", "on_deadline": "reset"});
    drain(wanted.clone()).await.unwrap();
    // Whoever changes something else does not undrain it.
    let patch = json!({"icmp_echo": false});
    let service = client.patch_service("web", patch).await.unwrap();
    assert_eq!(json!(service.backends[0])["drain"], wanted);
    let patch = json!({"weight": 5});
    let backend = client.patch_backend("web", address, patch).await.unwrap();
    assert_eq!(json!(backend)["drain"], wanted);

    let back = client.undrain_backend("web", address).await.unwrap();
    assert_eq!((back.drain, back.weight), (None, 5));
    assert!(client.undrain_backend("web", address).await.is_ok());
    for (wrong, expected) in [
        (
            json!({"on_deadline": "reset"}),
            "flows are to be reset at a deadline that never comes",
        ),
        (
            json!({"deadline": "soon"}),
            "deadline: `soon` is no duration",
        ),
    ] {
        assert_eq!(message(drain(wrong).await), expected);
    }
    assert_eq!(
        message(client.undrain_backend("web", "10.0.0.99:1").await),
        "service `web` has no backend `10.0.0.99:1`"
    );
    balancer.stop().await;
}

#[tokio::test]
async fn a_quorum_is_a_number_or_a_share() {
    let balancer = Balancer::start(Status::default());
    let client = balancer.client();
    client.add_service(&web()).await.unwrap();
    for quorum in [json!(2), json!("50%")] {
        let patch = json!({"quorum": quorum});
        let patched = client.patch_service("web", patch).await.unwrap();
        assert_eq!(json!(patched)["quorum"], quorum);
    }
    for (quorum, expected) in [
        (json!(0), "0 is no quorum"),
        (
            json!("half"),
            "quorum: this is string \"half\", but must be a number of backends, or a share of \
             them like \"50%\"",
        ),
    ] {
        let patch = json!({"quorum": quorum});
        assert_eq!(message(client.patch_service("web", patch).await), expected);
    }
    balancer.stop().await;
}

/// A default that depends on something else follows it when that changes.
#[tokio::test]
async fn what_was_not_given_is_not_frozen() {
    let balancer = Balancer::start(Status::default());
    let client = balancer.client();
    let mut service = web();
    service.health = wire::read(json!({"type": "http", "interval": "300ms", "port": 80})).unwrap();
    client.add_service(&service).await.unwrap();
    let patched = |patch: Value| {
        let client = client.clone();
        async move { client.patch_service("web", patch).await.unwrap().health }
    };
    // The timeout follows the interval,
    let health = patched(json!({"health": {"interval": "200ms"}})).await;
    let health = health.unwrap();
    assert_eq!(health.interval.as_deref(), Some("200ms"));
    assert_eq!(health.timeout, None);
    // and the path the type.
    let health = patched(json!({"health": {"type": "tcp"}})).await.unwrap();
    assert_eq!((health.kind.as_str(), health.path), ("tcp", None));
    balancer.stop().await;
}

#[tokio::test]
async fn the_status_arrives_as_it_was() {
    let status = Status {
        drops: [("fragment".to_owned(), 7)].into(),
        interfaces: vec![InterfaceStatus {
            name: "eth0".into(),
            state: "attached".into(),
            mode: "native".into(),
            error: None,
        }],
        ..Status::default()
    };
    let balancer = Balancer::start(status.clone());
    assert_eq!(balancer.client().status().await, Ok(status));
    balancer.stop().await;
}

/// A PATCH reads all of a service and writes it back: what others change meanwhile
/// must not be lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn changes_at_the_same_time_are_all_made() {
    let balancer = Balancer::start(Status::default());
    let client = balancer.client();
    client.add_service(&web()).await.unwrap();
    let patches = (1..=40).map(|n| {
        let client = client.clone();
        tokio::spawn(async move {
            let patch = json!({"timeouts": {"udp": format!("{n}s")}});
            client.patch_service("web", patch).await.unwrap();
        })
    });
    let additions = (1..=40).map(|n| {
        let client = client.clone();
        tokio::spawn(async move {
            let new = backend(&format!("10.0.1.{n}:80"), n);
            client.add_backend("web", &new).await.unwrap();
        })
    });
    let tasks: Vec<_> = patches.zip(additions).flat_map(<[_; 2]>::from).collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(client.service("web").await.unwrap().backends.len(), 41);
    balancer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failure_has_a_status_and_a_message() {
    let mut balancer = Balancer::start(Status::default());
    balancer.client().add_service(&web()).await.unwrap();
    let cases = [
        ("GET /nowhere", "", 404, "there is nothing at `/nowhere`"),
        (
            "DELETE /v1/status",
            "",
            405,
            "`/v1/status` does not take DELETE",
        ),
        (
            "GET /v1/services/%ff",
            "",
            400,
            "the path `/v1/services/%ff` is not UTF-8",
        ),
        ("GET /v1/services/x", "", 404, "there is no service `x`"),
        ("DELETE /v1/services/x", "", 404, "there is no service `x`"),
        ("PATCH /v1/services/x", "{}", 404, "there is no service `x`"),
        (
            "PUT /v1/services/x",
            r#"{"address": "192.0.2.11:1", "mode": "nat"}"#,
            404,
            "there is no service `x`",
        ),
        (
            "POST /v1/services/x",
            r#"{"address": "192.0.2.10:443", "mode": "nat"}"#,
            409,
            "`192.0.2.10:443` tcp belongs to service `web` already",
        ),
        (
            "POST /v1/services/x",
            "[]",
            400,
            "the body is JSON, but no object",
        ),
        (
            "POST /v1/services/x",
            r#"{"address": "#,
            400,
            "the body is no JSON object: EOF while parsing a value at line 1 column 12",
        ),
        ("POST /v1/services/x", "{}", 400, "`address` is missing"),
        (
            "POST /v1/services/x",
            r#"{"name": "y"}"#,
            400,
            "name: the body says \"y\", but the path `x`",
        ),
        (
            "POST /v1/services/x",
            r#"{"address": "a", "mode": "nat", "color": 1}"#,
            400,
            "color: unknown key `color`",
        ),
        (
            "POST /v1/services/x",
            r#"{"address": "192.0.2.11:1", "mode": "nat", "backends": [{"address": "10.0.0"}]}"#,
            400,
            "backends[0].address: `10.0.0` is no IP address with a port",
        ),
        (
            "POST /v1/services/x",
            r#"{"address": "192.0.2.11:1", "mode": "nat", "backends": [{"address": "10.0.0.1"}]}"#,
            400,
            "`10.0.0.1` names no port",
        ),
        (
            "POST /v1/services/x",
            r#"{"address": "192.0.2.10:400-500", "mode": "gue", "other_ports": "refuse"}"#,
            400,
            "other_ports: treatment of other ports `refuse` is not known",
        ),
        (
            "POST /v1/services/x",
            r#"{"address": "192.0.2.11:1", "mode": "gue", "gue_port": 0}"#,
            400,
            "0 is no port",
        ),
        (
            "POST /v1/services/x",
            r#"{"address": "192.0.2.11:1", "mode": "dsr", "max_segment_size": 535}"#,
            400,
            "segments of 535 bytes are too small",
        ),
        (
            "POST /v1/services/x",
            r#"{"address": "192.0.2.11:1", "mode": "nat", "backends": [{"address": "10.0.0.1:1", "weight": "5"}]}"#,
            400,
            "backends[0].weight: this is string \"5\", but must be a whole number",
        ),
        (
            "POST /v1/services/x",
            r#"{"address": "192.0.2.11:1", "mode": "dnat"}"#,
            400,
            "mode: mode `dnat` is not known",
        ),
        (
            "PATCH /v1/services/web",
            r#"{"health": {"type": "tcp", "path": "/"}}"#,
            400,
            "health.path: a health check of type `tcp` has no `path`",
        ),
        (
            "PATCH /v1/services/web",
            r#"{"health": {"type": "exec", "command": ["/bin/true"]}}"#,
            400,
            "a health check that runs a program cannot be set while the balancer runs",
        ),
        (
            "POST /v1/services/web/backends",
            r#"{"address": "10.0.0.99:1", "health": {"type": "exec", "command": ["/bin/true"]}}"#,
            400,
            "a health check that runs a program cannot be set while the balancer runs",
        ),
        (
            "POST /v1/services/web/backends",
            r#"{"address": "10.0.0.99:1", "health": {"type": "https", "status": "2xx"}}"#,
            400,
            "health.status: `2xx` is no range of HTTP statuses",
        ),
        (
            "PATCH /v1/services/web",
            r#"{"health": {"interval": "5"}}"#,
            400,
            "health.type: the health check has no type",
        ),
        (
            "PATCH /v1/services/web",
            r#"{"timeouts": {"udp": "soon"}}"#,
            400,
            "timeouts.udp: `soon` is no duration",
        ),
        (
            "PATCH /v1/services/web",
            r#"{"name": "other"}"#,
            400,
            "name: the body says \"other\", but the path `web`",
        ),
        (
            "POST /v1/services/web/backends",
            r#"{"address": "127.0.0.1:80"}"#,
            400,
            "`127.0.0.1` is a loopback address",
        ),
        (
            "POST /v1/services/web/backends",
            r#"{"address": "10.0.0.11:8443"}"#,
            409,
            "service `web` has backend `10.0.0.11:8443` already",
        ),
        (
            "PUT /v1/services/web/backends/10.0.0.11:8443",
            "{}",
            400,
            "`weight` is missing",
        ),
        (
            "POST /v1/services/web/backends",
            r#"{"address": "10.0.0.9:1", "weight": 1, "weight": 2}"#,
            400,
            "the body is no JSON object: `weight` is there twice at line 1 column 51",
        ),
        (
            "PUT /v1/services/web/backends/10.0.0.12:8443",
            r#"{"weight": 1}"#,
            404,
            "service `web` has no backend `10.0.0.12:8443`",
        ),
        (
            "GET /v1/flows?state=open",
            "",
            400,
            "state: state of a flow `open` is not known",
        ),
        (
            "GET /v1/flows?client=%zz",
            "",
            400,
            "client: `%zz` is no IP address",
        ),
        (
            "GET /v1/flows?limit=-1",
            "",
            400,
            "limit: `-1` is no number",
        ),
        (
            "GET /v1/flows?colour=red",
            "",
            400,
            "unknown key `colour` in the query",
        ),
        (
            "GET /v1/flows?service=x%2Fy",
            "",
            404,
            "there is no service `x/y`",
        ),
        (
            "PUT /v1/services/web/backends/10.0.0.11:8443/drain",
            r#"{"deadline": "1m", "on_deadline": "kill"}"#,
            400,
            "on_deadline: end of a drain `kill` is not known",
        ),
        (
            "PATCH /v1/services/web",
            r#"{"limits": {"new_per_source": {"burst": 5}}}"#,
            400,
            "limits.new_per_source: `rate` is missing",
        ),
        (
            "PATCH /v1/services/web",
            r#"{"deny": ["198.51.100.1/24"]}"#,
            400,
            "deny: `198.51.100.1/24` is no prefix: it has bits behind the first 24",
        ),
        (
            "PATCH /v1/services/web",
            r#"{"quic": {"server_id_length": 256}}"#,
            400,
            "quic.server_id_length: this is integer `256`, but must be a whole number from 0 to 255",
        ),
        (
            "POST /v1/services/web/backends",
            r#"{"address": "10.0.0.9:1", "server_ids": ["xyz"]}"#,
            400,
            "server_ids: `xyz` is no server ID",
        ),
        (
            "DELETE /v1/services/web/backends/nonsense",
            "",
            400,
            "`nonsense` is no IP address with a port",
        ),
    ];
    let socket = balancer.socket();
    for (line, body, status, expected) in cases {
        let (found, error) = ask(&socket, line, body);
        assert_eq!(
            (found, error["error"]["message"].as_str()),
            (status, Some(expected)),
            "{line} {body}: {error}"
        );
    }
    assert_eq!(balancer.client().services().await, Ok(vec![web()]));

    // One byte more than the server takes.
    let (status, error) = ask(
        &socket,
        "POST /v1/services/x",
        &" ".repeat(8 * 1024 * 1024 + 1),
    );
    assert_eq!(
        (status, &error["error"]["message"]),
        (413, &json!("the body is larger than 8 MiB"))
    );

    balancer.lose_daemon().await;
    let (status, error) = ask(&socket, "GET /v1/status", "");
    assert_eq!(status, 503);
    assert_eq!(
        error,
        json!({"error": {"message": "the balancer is shutting down"}})
    );
    balancer.stop().await;
}

/// Clients that connect and say nothing, or not all of it, or do not read, must not keep
/// others out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_and_slow_clients_do_not_lock_others_out() {
    let balancer = Balancer::start(Status::default());
    let client = balancer.client();
    client.add_service(&web()).await.unwrap();
    let mut slow = Vec::new();
    for sent in [
        "",
        "GET /v1/status HTTP/1.1\r\nHos",
        "POST /v1/services/x HTTP/1.1\r\nHost: lb\r\nContent-Length: 99\r\n\r\n{",
    ] {
        for _ in 0..64 {
            let mut stream = UnixStream::connect(balancer.socket()).await.unwrap();
            stream.write_all(sent.as_bytes()).await.unwrap();
            slow.push(stream);
        }
        let answer = timeout(Duration::from_secs(20), client.services()).await;
        assert_eq!(answer, Ok(Ok(vec![web()])), "behind 64 times `{sent}`");
    }
    drop(slow);
    balancer.stop().await;
}

/// Status and JSON of the answer.
fn ask(socket: &std::path::Path, line: &str, body: &str) -> (u16, Value) {
    let request = format!(
        "{line} HTTP/1.1\r\nHost: lb\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = send(socket, request.as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

/// What happened, as the number that it is.
fn numbered(number: usize) -> Happening {
    Happening::DrainEnded {
        service: "web".into(),
        backend: number.to_string(),
    }
}

#[tokio::test]
async fn events_are_told_as_they_happen() {
    let balancer = Balancer::start(Status::default());
    let client = balancer.client();
    balancer.events().publish(numbered(0));
    let mut new = client.events(After::Now, true).await.unwrap();
    let mut all = client.events(After::Start, true).await.unwrap();
    balancer.events().publish(numbered(1));
    let next = new.next().await.unwrap().unwrap();
    assert_eq!(next.what, numbered(1));
    assert_eq!(new.last().unwrap().to_string(), next.id);
    assert_eq!(all.next().await.unwrap().unwrap().what, numbered(0));
    assert_eq!(all.next().await.unwrap(), Some(next));
    // Somebody who has gone comes back, and has missed nothing.
    let after = After::Event(new.last().unwrap());
    drop(new);
    balancer.events().publish(numbered(2));
    let mut again = client.events(after, false).await.unwrap();
    assert_eq!(again.next().await.unwrap().unwrap().what, numbered(2));
    assert_eq!(again.next().await, Ok(None));
    // A stream ends with the balancer, and with the last of what it has told.
    balancer.events().publish(Happening::Stopping);
    let stopped = tokio::spawn(balancer.stop());
    assert_eq!(all.next().await.unwrap().unwrap().what, numbered(2));
    assert_eq!(all.next().await.unwrap().unwrap().what, Happening::Stopping);
    assert_eq!(all.next().await, Ok(None));
    stopped.await.unwrap();
}

/// However slowly a client reads, it knows of every event, or how many it does not know of.
#[tokio::test]
async fn a_slow_reader_is_told_what_it_missed() {
    let balancer = Balancer::start(Status::default());
    let client = balancer.client();
    let mut slow = client.events(After::Now, true).await.unwrap();
    let mut published = 0;
    // The socket has room for some of them; which, is its affair.
    for _ in 0..20 {
        for _ in 0..REMEMBERED {
            balancer.events().publish(numbered(published));
            published += 1;
        }
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }
    let (mut known, mut missed) = (0, 0);
    while known < published {
        match slow.next().await.unwrap().unwrap().what {
            Happening::Missed { events } => {
                let events = usize::try_from(events.unwrap()).unwrap();
                (known, missed) = (known + events, missed + events);
            }
            what => {
                assert_eq!(what, numbered(known));
                known += 1;
            }
        }
    }
    assert!(missed > 0 && missed < published, "{missed} of {published}");
    balancer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_have_the_form_of_the_standard() {
    let balancer = Balancer::start(Status::default());
    balancer.events().publish(numbered(7));
    let get = |path: &str, header: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: lb\r\n{header}\r\n");
        send(&balancer.socket(), request.as_bytes())
    };
    let answer = get("/v1/events?follow=false", "");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.contains("content-type: text/event-stream\r\n"),
        "{answer}"
    );
    let data = answer.lines().find_map(|line| line.strip_prefix("data: "));
    let event: Event = serde_json::from_str(data.unwrap()).unwrap();
    assert_eq!(event.what, numbered(7));
    let block = format!(
        "id: {}\nevent: drain-ended\ndata: {}\n\n",
        event.id,
        data.unwrap()
    );
    assert!(answer.contains(&block), "{answer}");
    let last = format!("Last-Event-ID: {}\r\n", event.id);
    let answer = get("/v1/events?follow=false&after=start", &last);
    assert!(!answer.contains("data: "), "{answer}");
    let answer = get("/v1/events?follow=false", "Last-Event-ID: 1-1\r\n");
    assert!(answer.contains("\nevent: missed\n"), "{answer}");
    for (path, header) in [
        ("/v1/events?after=soon", ""),
        ("/v1/events?since=1", ""),
        ("/v1/events", "Last-Event-ID: x\r\n"),
    ] {
        let answer = get(path, header);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    balancer.stop().await;
}

#[tokio::test]
async fn listeners_are_so_many_at_most() {
    let balancer = Balancer::start(Status::default());
    let client = balancer.client();
    let mut listeners = Vec::new();
    for _ in 0..32 {
        listeners.push(client.events(After::Now, true).await.unwrap());
    }
    let refused = client.events(After::Now, true).await.unwrap_err();
    assert!(
        refused.message.starts_with("32 clients are told"),
        "{refused}"
    );
    // All else goes on.
    assert_eq!(client.services().await, Ok(vec![]));
    listeners.pop();
    let again = async {
        while client.events(After::Now, true).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), again).await.unwrap();
    balancer.stop().await;
}

/// What curl(1) gets as this user with these groups: the status, and the body; 0 where it may not
/// connect. Needs root, and setpriv(1).
fn as_user(socket: &std::path::Path, user: &str, request: &str) -> (u16, String) {
    let mut words: Vec<&str> = user.split_whitespace().collect();
    words.extend([
        "curl",
        "--silent",
        "--write-out",
        "\n%{http_code}",
        "--unix-socket",
    ]);
    words.push(socket.to_str().unwrap());
    words.extend(request.split_whitespace());
    let output = std::process::Command::new("setpriv").args(words).output();
    let output = String::from_utf8(output.unwrap().stdout).unwrap();
    let (body, status) = output.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_are_those_of_the_user_who_asks() {
    const GET: &str = "http://lb/v1/services";
    const PUT: &str = "--request DELETE http://lb/v1/services/web";
    const WRITERS: Option<u32> = Some(61_001);
    let users = [
        // root, an owner, members of the group by the first and by another group,
        ("--reuid 0 --regid 61009 --clear-groups", 200, 404),
        ("--reuid 61000 --regid 61009 --clear-groups", 200, 404),
        ("--reuid 61005 --regid 61001 --clear-groups", 200, 404),
        ("--reuid 61005 --regid 61009 --groups 61008,61001", 200, 404),
        // the same of those who may look, and others.
        ("--reuid 61005 --regid 61002 --clear-groups", 200, 403),
        ("--reuid 61005 --regid 61009 --groups 61002", 200, 403),
        ("--reuid 61005 --regid 61009 --groups 61008", 403, 403),
    ];
    for with_readers in [true, false] {
        let access = match with_readers {
            true => Access::for_readers("61002").unwrap(),
            false => Access::default(),
        };
        let balancer = Balancer::start_for(Status::default(), access);
        let socket = balancer.socket();
        let directory = socket.parent().unwrap();
        std::fs::set_permissions(
            directory,
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        std::os::unix::fs::chown(&socket, Some(61_000), WRITERS).unwrap();
        for (user, get, delete) in users {
            let expected = match (with_readers, delete) {
                // The kernel does not let them connect.
                (false, 403) => [0, 0],
                _ => [get, delete],
            };
            let got = [GET, PUT].map(|request| as_user(&socket, user, request));
            assert_eq!([got[0].0, got[1].0], expected, "{user}: {got:?}");
            for (status, body) in got {
                if status == 403 {
                    let body: Value = serde_json::from_str(&body).unwrap();
                    let message = body["error"]["message"].as_str().unwrap();
                    assert!(message.starts_with("this user may "), "{message}");
                    assert!(body["error"]["hint"].is_string(), "{body}");
                }
            }
        }
        if !with_readers {
            // Who opens the socket to all does not open the balancer to all.
            std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o666))
                .unwrap();
            for (user, ..) in &users[4..] {
                assert_eq!(as_user(&socket, user, GET).0, 403, "{user}");
            }
        }
        balancer.stop().await;
    }
}

/// A balancer whose state is another one whenever a change comes.
#[tokio::test]
async fn a_change_is_not_tried_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let socket = Socket::bind(&directory.path().join("lb.sock")).unwrap();
    let (control, mut requests) = Control::channel(16);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(api::serve(socket, control, async {
        let _ = stopped.await;
    }));
    let daemon = tokio::spawn(async move {
        let spec = ServiceSpec::try_from(web()).unwrap();
        let mut changes = 0;
        let mut revision = Revision::first(1);
        while let Some(request) = requests.recv().await {
            revision = revision.next();
            match request {
                Request::Service(_, answer) => drop(answer.send((revision, Some(spec.clone())))),
                Request::Change(_, condition, answer) => {
                    changes += 1;
                    let refusal = condition.unwrap().require(revision).unwrap_err();
                    drop(answer.send(Err(refusal)));
                }
                other => unreachable!("{other:?}"),
            }
        }
        changes
    });
    let path = directory.path().join("lb.sock");
    let patch = json!({"icmp_echo": false}).to_string();
    let request = format!(
        "PATCH /v1/services/web HTTP/1.1\r\nHost: lb\r\nContent-Length: {}\r\n\r\n{patch}",
        patch.len()
    );
    let answer = tokio::task::spawn_blocking(move || send(&path, request.as_bytes()));
    let answer = answer.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 409 "), "{answer}");
    assert!(
        answer.contains("others changed the state 8 times"),
        "{answer}"
    );
    drop(stop);
    server.await.unwrap();
    assert_eq!(daemon.await.unwrap(), 8);
}

#[tokio::test]
async fn without_a_balancer_the_client_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let client = Client::new(&directory.path().join("lb.sock"));
    let reason = client.status().await.unwrap_err();
    assert!(
        reason.message.starts_with("no balancer listens on `"),
        "{reason}"
    );
    assert!(reason.hint.unwrap().contains("lb run"));
}

/// A request whose body is still on its way when the balancer is told to stop.
#[tokio::test]
async fn a_request_that_has_begun_is_answered_before_the_end() {
    let balancer = Balancer::start(Status::default());
    let socket = balancer.socket();
    let body = serde_json::to_string(&web()).unwrap();
    let head = format!(
        "POST /v1/services/web HTTP/1.1\r\nHost: lb\r\nExpect: 100-continue\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut go_on = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    stream.read_exact(&mut go_on).await.unwrap();
    let stopped = tokio::spawn(balancer.stop());
    let removed = async {
        while socket.exists() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), removed).await.unwrap();
    // On this one thread whatever could run has run after a few turns.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!stopped.is_finished(), "the request is not done yet");
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    stopped.await.unwrap();
}

/// Services with every field somewhere else than at its default.
fn any_service() -> impl Strategy<Value = Service> {
    let duration = || prop::sample::select(vec!["1s", "2m 5s", "100ms"]).prop_map(str::to_owned);
    let health = (
        prop::sample::select(vec![("tcp", None), ("http", Some("/x".to_owned()))]),
        prop::option::of(1..=u16::MAX),
        (duration(), duration()),
        (0..5_u32, 0..5_u32),
    )
        .prop_map(
            |((kind, path), port, (interval, timeout), (rise, fall))| wire::Health {
                kind: kind.into(),
                path,
                port,
                interval: Some(interval),
                timeout: Some(timeout),
                rise,
                fall,
                ..wire::read(json!({})).unwrap()
            },
        );
    let backends = prop::collection::vec((any::<[u8; 4]>(), any::<u16>(), any::<u32>()), 0..4);
    (
        prop::option::of(health),
        [duration(), duration(), duration(), duration()],
        prop::option::of(any::<[u8; 4]>()),
        (1..=u16::MAX, 1..=u16::MAX),
        backends,
    )
        .prop_map(|(health, timeouts, source, ports, backends)| {
            let [unreplied, tcp_established, tcp_closing, udp] = timeouts;
            Service {
                protocol: "udp".into(),
                source: source.map(|ip| std::net::Ipv4Addr::from(ip).to_string()),
                source_ports: format!("{}-{}", ports.0, ports.1),
                timeouts: wire::Timeouts {
                    unreplied,
                    tcp_established,
                    tcp_closing,
                    udp,
                },
                health,
                backends: backends
                    .into_iter()
                    .map(|(ip, port, weight)| {
                        let ip = std::net::Ipv4Addr::from(ip);
                        let port = if port == 0 {
                            "*".into()
                        } else {
                            port.to_string()
                        };
                        backend(&format!("{ip}:{port}"), weight)
                    })
                    .collect(),
                ..web()
            }
        })
}

proptest! {
    /// JSON to specification and back is the same, and so is what both say.
    #[test]
    fn json_and_specification_say_the_same(service in any_service()) {
        let spec = ServiceSpec::try_from(service.clone()).unwrap();
        let again = Service::from(&spec);
        prop_assert_eq!(&again, &service);
        let read: Service = wire::read(serde_json::to_value(&again).unwrap()).unwrap();
        prop_assert_eq!(ServiceSpec::try_from(read).unwrap(), spec);
    }
}

/// The page about the API shows every key of the status, and no other.
#[test]
fn the_documented_status_is_the_status() {
    let page = include_str!("../../../docs/api.md");
    let block = page.split("```json\n").nth(1).unwrap();
    let documented: Value = serde_json::from_str(block.split("```").next().unwrap()).unwrap();
    let status: Status = serde_json::from_value(documented.clone()).unwrap();
    // What is not known would be missing here.
    assert_eq!(serde_json::to_value(&status).unwrap(), documented);
    let backend = &status.services[0].backends[0];
    let hop = &backend.next_hop;
    let optional = [
        &backend.health.error,
        &hop.address,
        &hop.interface,
        &hop.mac,
    ];
    assert!(optional.iter().all(|key| key.is_some()), "{optional:?}");
    assert!(status.interfaces.iter().any(|one| one.error.is_some()));
    for state in [
        "resolved",
        "no-route",
        "no-neighbour",
        "link-down",
        "not-attached",
        "local",
    ] {
        assert!(page.contains(&format!("`{state}`")), "{state}");
    }
}
