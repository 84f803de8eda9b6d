//! What each request does.

use std::sync::{Arc, LazyLock};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequestParts, Path, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, request::Parts},
    response::{IntoResponse, Response},
};
use schemars::json_schema;
use serde_json::{Map, Value, json};
use tokio::sync::{Mutex, Semaphore};

use super::{
    configuration::Configuration,
    error::ApiError,
    events::{self, MAX_LISTENERS},
    explain as questions,
    openapi::{self, Endpoint, Form, form},
    unique::Unique,
    wire::{self, Backend, Drain, File, Service},
};
use crate::{
    config::{self, Source},
    state::{
        Apply, BackendAddress, BackendSpec, Change, Condition, Control, DrainSpec, Event,
        Explanation, FlowFilter, FlowList, FlowState, HealthSpec, Piece, Probe, Protocol, Reason,
        Refusal, Reloaded, Revision, ServiceSpec, Status, rules,
    },
};

/// Most bytes of a request's body: a service with all the backends that there is
/// room for.
pub(super) const MAX_BODY: usize = 8 * 1024 * 1024;

/// How often a change is tried that depends on what is, while others change that: all but the
/// requests to the API, which come one after the other.
const ATTEMPTS: usize = 8;

/// What every request shares.
#[derive(Clone)]
struct Api {
    control: Control,
    /// Held from the reading to the writing of a change that depends on what is, so that
    /// nobody has to do it over again because of another request.
    changes: Arc<Mutex<()>>,
    /// Room for those who are told of events.
    listeners: Arc<Semaphore>,
}

type Answer<T> = Result<Json<T>, ApiError>;

/// The API in front of `control`.
pub(super) fn router(control: Control) -> Router {
    let api = Api {
        control,
        changes: Arc::default(),
        listeners: Arc::new(Semaphore::new(MAX_LISTENERS)),
    };
    let routes = openapi::router(endpoints());
    with_manners(routes).with_state(api)
}

/// Every request that is answered.
fn endpoints() -> Vec<Endpoint<Api>> {
    let service_body: Form = |generator| openapi::without::<Service>(generator, "name");
    let backend_body: Form = |generator| {
        let mut schema = openapi::without::<Backend>(generator, "address");
        schema.insert("required".to_owned(), json!(["weight"]));
        schema
    };
    let (text, flag, number) = (form::<String>, form::<bool>, form::<u32>);
    let dry_run = "Only say what would change.";
    let one_service = "/v1/services/{name}";
    let one_backend = "/v1/services/{name}/backends/{address}";
    let drain = "/v1/services/{name}/backends/{address}/drain";
    let mut endpoints = vec![
        Endpoint::get("/v1/openapi.json", "openapi", document)
            .does("This document.")
            .answers(|_| json_schema!({"type": "object"})),
        Endpoint::get("/v1/status", "status", status)
            .does("What is: services, backends, their health and counters.")
            .answers(form::<Status>),
        Endpoint::get("/v1/flows", "flows", flows)
            .does("Flows that have entries in the flow tables.")
            .query("service", "Of the service of this name.", text)
            .query("backend", "Of the backends at this address.", text)
            .query(
                "client",
                "Of clients with this address, or in this prefix.",
                text,
            )
            .query("state", "In this state.", form::<FlowState>)
            .query("limit", "At most so many.", |_| {
                json_schema!({"type": "integer", "minimum": 1, "maximum": FlowFilter::MAX_LIMIT,
                              "default": FlowFilter::DEFAULT_LIMIT})
            })
            .answers(form::<FlowList>),
        Endpoint::get("/v1/events", "events", events)
            .does("What happens, as it happens: server-sent events whose data are events.")
            .query("after", "`start`, or the id of an event.", text)
            .query("follow", "Also what has not happened yet.", flag)
            .of_type("text/event-stream")
            .answers(|generator| {
                let event = form::<Event>(generator);
                json_schema!({
                    "description": "An event of the stream, by its fields; the data are JSON.",
                    "type": "object",
                    "required": ["data"],
                    "properties": {
                        "id": {"type": "string"},
                        "event": {"type": "string"},
                        "data": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "contentSchema": event,
                        },
                    },
                })
            }),
        Endpoint::get("/v1/explain", "explain", explain)
            .does("What becomes of a packet.")
            .required_query("protocol", "Its transport protocol.", form::<Protocol>)
            .required_query("source", "Its source, with the port.", text)
            .required_query("destination", "Its destination, with the port.", text)
            .query("tcp_flags", "Its TCP flags: `syn,ack`.", text)
            .query("fragment", "Which fragment it is.", form::<Piece>)
            .query("interface", "The interface that it comes in by.", text)
            .query("length", "Bytes behind its transport header.", number)
            .query("ttl", "Its TTL or hop limit.", form::<u8>)
            .answers(form::<Explanation>),
        Endpoint::get("/v1/config", "configuration", configuration)
            .does("The configuration in force, beside what the file says.")
            .answers(form::<Configuration>)
            .with_revision(),
        Endpoint::post("/v1/apply", "apply", apply)
            .does("Brings about what a configuration file says.")
            .query("dry_run", dry_run, flag)
            .takes(form::<File>)
            .answers(form::<Reloaded>),
        Endpoint::post("/v1/reset", "reset", reset)
            .does("Forgets what was changed beside the file.")
            .query("dry_run", dry_run, flag)
            .answers(form::<Reloaded>),
        Endpoint::get("/v1/services", "services", services)
            .does("What is wanted: every service.")
            .answers(form::<Vec<Service>>)
            .with_revision(),
    ];
    endpoints.extend([
        Endpoint::get(one_service, "service", service)
            .does("A service.")
            .answers(form::<Service>)
            .with_revision(),
        Endpoint::post(one_service, "addService", add_service)
            .does("Adds a service.")
            .takes(service_body)
            .makes(form::<Service>),
        Endpoint::put(one_service, "setService", set_service)
            .does("Says all of a service anew.")
            .takes(service_body)
            .answers(form::<Service>),
        Endpoint::patch(one_service, "patchService", patch_service)
            .does("Changes a part of a service.")
            .answers(form::<Service>),
        Endpoint::delete(one_service, "removeService", remove_service)
            .does("Removes a service, and says what it was.")
            .answers(form::<Service>),
        Endpoint::post("/v1/services/{name}/backends", "addBackend", add_backend)
            .does("Adds a backend to a service.")
            .takes(form::<Backend>)
            .makes(form::<Backend>),
        Endpoint::put(one_backend, "setBackend", set_backend)
            .does("Says all of a backend anew.")
            .takes(backend_body)
            .answers(form::<Backend>),
        Endpoint::patch(one_backend, "patchBackend", patch_backend)
            .does("Changes a part of a backend.")
            .answers(form::<Backend>),
        Endpoint::delete(one_backend, "removeBackend", remove_backend)
            .does("Removes a backend, and says what it was.")
            .answers(form::<Backend>),
        Endpoint::put(drain, "drainBackend", drain_backend)
            .does("Drains a backend: it gets no new flows.")
            .takes(form::<Drain>)
            .answers(form::<Backend>),
        Endpoint::delete(drain, "undrainBackend", undrain_backend)
            .does("Takes a drain back.")
            .answers(form::<Backend>),
    ]);
    endpoints
}

/// The document about the API (OpenAPI 3.1).
#[must_use]
pub fn openapi() -> Value {
    openapi::document(&endpoints())
}

/// It is the same for as long as the program runs.
async fn document() -> Json<&'static Value> {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(openapi);
    Json(&DOCUMENT)
}

/// What holds for every request: it ends, and gets an answer that can be read.
pub(super) fn with_manners<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    routes
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

async fn no_such_path(uri: Uri) -> ApiError {
    ApiError::not_found(Reason::new(
        format!("there is nothing at `{}`", uri.path()),
        "the API begins at /v1/status and /v1/services",
    ))
}

async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    let reason = Reason::new(
        format!("`{}` does not take {method}", uri.path()),
        "the documentation of the API lists what can be done",
    );
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, reason)
}

async fn status(State(api): State<Api>) -> Answer<Status> {
    Ok(Json(api.control.status().await?))
}

async fn flows(State(api): State<Api>, uri: Uri) -> Answer<FlowList> {
    let filter = wire::flow_filter(uri.query().unwrap_or_default())?;
    Ok(Json(api.control.flows(filter).await?))
}

async fn explain(State(api): State<Api>, uri: Uri) -> Answer<Explanation> {
    let question = questions::question(uri.query().unwrap_or_default())?;
    Ok(Json(api.control.explain(question).await?))
}

async fn events(
    State(api): State<Api>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, ApiError> {
    let question = events::Question::read(uri.query().unwrap_or_default(), &headers)?;
    events::answer(api.control.events(), &api.listeners, question)
}

async fn configuration(State(api): State<Api>) -> Result<Tagged<Configuration>, ApiError> {
    let view = api.control.view().await?;
    Ok(Tagged(view.revision, Configuration::from(view)))
}

async fn apply(
    State(api): State<Api>,
    IfMatch(condition): IfMatch,
    uri: Uri,
    body: Bytes,
) -> Result<Response, ApiError> {
    let is_dry_run = wire::is_dry_run(uri.query().unwrap_or_default())?;
    let file: File = wire::read(Value::Object(object(&body)?))?;
    // A large file takes its time.
    let read = tokio::task::spawn_blocking(move || {
        let source = Source::new(file.name, file.text.as_bytes());
        let outcome = config::read(&source);
        match outcome.config {
            Some(config) => Ok(Box::new(config.content(&source))),
            None => Err(Reason::new(
                outcome.diagnostics.summary(&source),
                "`lb check` finds every mistake in a file",
            )),
        }
    });
    let content = read
        .await
        .map_err(|error| Refusal::Failed(error.to_string()))??;
    let apply = Apply {
        content: Some(content),
        condition,
        is_dry_run,
    };
    api.apply(apply).await
}

async fn reset(
    State(api): State<Api>,
    IfMatch(condition): IfMatch,
    uri: Uri,
) -> Result<Response, ApiError> {
    let apply = Apply {
        content: None,
        condition,
        is_dry_run: wire::is_dry_run(uri.query().unwrap_or_default())?,
    };
    api.apply(apply).await
}

async fn services(State(api): State<Api>) -> Result<Tagged<Vec<Service>>, ApiError> {
    let (revision, services) = api.control.services().await?;
    Ok(Tagged(
        revision,
        services.iter().map(Service::from).collect(),
    ))
}

async fn service(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Tagged<Service>, ApiError> {
    let (revision, service) = api.find(&name).await?;
    Ok(Tagged(revision, Service::from(&service)))
}

async fn add_service(
    State(api): State<Api>,
    Path(name): Path<String>,
    IfMatch(condition): IfMatch,
    body: Bytes,
) -> Result<(StatusCode, Tagged<Service>), ApiError> {
    let spec = read_service(&name, object(&body)?)?;
    let added = Service::from(&spec);
    let change = Change::AddService(Box::new(spec));
    let revision = api.change(change, condition).await?;
    Ok((StatusCode::CREATED, Tagged(revision, added)))
}

async fn set_service(
    State(api): State<Api>,
    Path(name): Path<String>,
    IfMatch(condition): IfMatch,
    body: Bytes,
) -> Result<Tagged<Service>, ApiError> {
    let spec = read_service(&name, object(&body)?)?;
    let now = Service::from(&spec);
    let change = Change::SetService(Box::new(spec));
    let revision = api.change(change, condition).await?;
    Ok(Tagged(revision, now))
}

async fn patch_service(
    State(api): State<Api>,
    Path(name): Path<String>,
    IfMatch(condition): IfMatch,
    body: Bytes,
) -> Result<Tagged<Service>, ApiError> {
    let patch = object(&body)?;
    api.amend(&name, condition, |now| {
        let mut document = serde_json::to_value(Service::from(&now)).expect("its keys are strings");
        merge(&mut document, Value::Object(patch.clone()));
        let Value::Object(document) = document else {
            unreachable!("an object merged into an object is one");
        };
        let spec = read_service(&name, document)?;
        let answer = Service::from(&spec);
        Ok((Change::SetService(Box::new(spec)), answer))
    })
    .await
}

async fn remove_service(
    State(api): State<Api>,
    Path(name): Path<String>,
    IfMatch(condition): IfMatch,
) -> Result<Tagged<Service>, ApiError> {
    api.amend(&name, condition, |now| {
        Ok((Change::RemoveService(now.name.clone()), Service::from(&now)))
    })
    .await
}

async fn add_backend(
    State(api): State<Api>,
    Path(service): Path<String>,
    IfMatch(condition): IfMatch,
    body: Bytes,
) -> Result<(StatusCode, Tagged<Backend>), ApiError> {
    let wanted: Backend = wire::read(Value::Object(object(&body)?))?;
    let backend = BackendSpec::try_from(&wanted)?;
    let added = Backend::from(&backend);
    let change = Change::AddBackend { service, backend };
    let revision = api.change(change, condition).await?;
    Ok((StatusCode::CREATED, Tagged(revision, added)))
}

async fn set_backend(
    State(api): State<Api>,
    Path((service, address)): Path<(String, String)>,
    IfMatch(condition): IfMatch,
    body: Bytes,
) -> Result<Tagged<Backend>, ApiError> {
    let mut document = object(&body)?;
    // The default would bring a drained backend back.
    if !document.contains_key("weight") {
        return Err(wire::missing("weight").into());
    }
    name_it(&mut document, "address", &address)?;
    let wanted: Backend = wire::read(Value::Object(document))?;
    let backend = BackendSpec::try_from(&wanted)?;
    let now = Backend::from(&backend);
    let change = Change::SetBackend { service, backend };
    let revision = api.change(change, condition).await?;
    Ok(Tagged(revision, now))
}

async fn patch_backend(
    State(api): State<Api>,
    Path((service, address)): Path<(String, String)>,
    IfMatch(condition): IfMatch,
    body: Bytes,
) -> Result<Tagged<Backend>, ApiError> {
    let patch = object(&body)?;
    api.amend_backend(&service, &address, condition, |now| {
        let now = Backend::from(&now);
        let mut document = serde_json::to_value(&now).expect("its keys are strings");
        merge(&mut document, Value::Object(patch.clone()));
        let Value::Object(mut document) = document else {
            unreachable!("an object merged into an object is one");
        };
        name_it(&mut document, "address", &now.address)?;
        let wanted: Backend = wire::read(Value::Object(document))?;
        Ok(BackendSpec::try_from(&wanted)?)
    })
    .await
}

async fn drain_backend(
    State(api): State<Api>,
    Path((service, address)): Path<(String, String)>,
    IfMatch(condition): IfMatch,
    body: Bytes,
) -> Result<Tagged<Backend>, ApiError> {
    let drain: Drain = wire::read(Value::Object(object(&body)?))?;
    let drain = drain.spec(str::to_owned)?;
    api.set_drain(&service, &address, condition, Some(drain))
        .await
}

async fn undrain_backend(
    State(api): State<Api>,
    Path((service, address)): Path<(String, String)>,
    IfMatch(condition): IfMatch,
) -> Result<Tagged<Backend>, ApiError> {
    api.set_drain(&service, &address, condition, None).await
}

async fn remove_backend(
    State(api): State<Api>,
    Path((service, address)): Path<(String, String)>,
    IfMatch(condition): IfMatch,
) -> Result<Tagged<Backend>, ApiError> {
    let address: BackendAddress = address.parse()?;
    api.amend(&service, condition, |now| {
        let removed = backend_of(&now, address)?;
        let service = now.name.clone();
        let change = Change::RemoveBackend { service, address };
        Ok((change, Backend::from(&removed)))
    })
    .await
}

/// An answer with the revision of the state that it is about.
struct Tagged<T>(Revision, T);

impl<T: serde::Serialize> IntoResponse for Tagged<T> {
    fn into_response(self) -> Response {
        let tag = HeaderValue::try_from(format!("\"{}\"", self.0));
        let mut response = Json(self.1).into_response();
        if let Ok(tag) = tag {
            response.headers_mut().insert(header::ETAG, tag);
        }
        response
    }
}

/// The states that a request may change: `If-Match`.
struct IfMatch(Option<Condition>);

impl<S: Sync> FromRequestParts<S> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let given: Vec<&HeaderValue> = parts.headers.get_all(header::IF_MATCH).iter().collect();
        let [value] = given[..] else {
            return match given.is_empty() {
                true => Ok(Self(None)),
                false => Err(
                    Reason::new("`If-Match` is there twice", "name all revisions in one").into(),
                ),
            };
        };
        let text = value.to_str().unwrap_or_default();
        let condition = text.parse().map_err(|reason: Reason| Reason {
            message: format!("If-Match: {}", reason.message),
            ..reason
        })?;
        Ok(Self(Some(condition)))
    }
}

impl Api {
    async fn find(&self, name: &str) -> Result<(Revision, ServiceSpec), ApiError> {
        let (revision, service) = self.control.service(name).await?;
        let service = service.ok_or_else(|| Refusal::NotFound(rules::no_such_service(name)))?;
        Ok((revision, service))
    }

    /// Changes a service by what `amended` makes of it, which is asked again where somebody
    /// else was faster.
    async fn amend<T>(
        &self,
        name: &str,
        condition: Option<Condition>,
        amended: impl Fn(ServiceSpec) -> Result<(Change, T), ApiError>,
    ) -> Result<Tagged<T>, ApiError> {
        let _turn = self.changes.lock().await;
        for _ in 0..ATTEMPTS {
            let (revision, service) = self.find(name).await?;
            if let Some(condition) = &condition {
                condition.require(revision)?;
            }
            let (change, answer) = amended(service)?;
            self.must_run_nothing_new(&change).await?;
            match self
                .control
                .change(change, Some(Condition::is(revision)))
                .await
            {
                Ok(revision) => return Ok(Tagged(revision, answer)),
                Err(Refusal::Outdated(_)) => {}
                Err(refusal) => return Err(refusal.into()),
            }
        }
        Err(Refusal::Conflict(Reason::new(
            format!("others changed the state {ATTEMPTS} times meanwhile"),
            "try again, or see by `lb events` who they are",
        ))
        .into())
    }

    async fn amend_backend(
        &self,
        service: &str,
        address: &str,
        condition: Option<Condition>,
        amended: impl Fn(BackendSpec) -> Result<BackendSpec, ApiError>,
    ) -> Result<Tagged<Backend>, ApiError> {
        let address: BackendAddress = address.parse()?;
        self.amend(service, condition, |now| {
            let backend = amended(backend_of(&now, address)?)?;
            let answer = Backend::from(&backend);
            let service = now.name.clone();
            Ok((Change::SetBackend { service, backend }, answer))
        })
        .await
    }

    /// Makes a change, whatever the service is now.
    async fn change(
        &self,
        change: Change,
        condition: Option<Condition>,
    ) -> Result<Revision, ApiError> {
        self.must_run_nothing_new(&change).await?;
        Ok(self.control.change(change, condition).await?)
    }

    /// [`Self::runs_nothing_new`] with the checks of a change.
    async fn must_run_nothing_new(&self, change: &Change) -> Result<(), ApiError> {
        match change {
            Change::AddService(spec) | Change::SetService(spec) => {
                self.runs_nothing_new(named_programs(spec).collect()).await
            }
            Change::AddBackend { service, backend } | Change::SetBackend { service, backend } => {
                let own = backend.health.iter().map(|health| &**health);
                let wanted = own.filter(|health| is_program(health));
                let wanted = wanted.map(|health| (service.as_str(), health)).collect();
                self.runs_nothing_new(wanted).await
            }
            Change::RemoveService(_) | Change::RemoveBackend { .. } => Ok(()),
        }
    }

    /// Refuses checks, each of the service that is named, where they run a program that it
    /// does not run already.
    ///
    /// Whoever may write to the socket may change where packets go; what the daemon runs,
    /// with all its rights, is for the owner of the file to say.
    async fn runs_nothing_new(&self, wanted: Vec<(&str, &HealthSpec)>) -> Result<(), ApiError> {
        if wanted.is_empty() {
            return Ok(());
        }
        let (_, services) = self.control.services().await?;
        let is_known = |(name, wanted): &(&str, &HealthSpec)| {
            let service = services.iter().find(|spec| spec.name == *name);
            service.is_some_and(|spec| programs(spec).any(|now| now.probe == wanted.probe))
        };
        if wanted.iter().all(is_known) {
            return Ok(());
        }
        Err(Refusal::Invalid(rules::exec_by_file()).into())
    }

    async fn set_drain(
        &self,
        service: &str,
        address: &str,
        condition: Option<Condition>,
        drain: Option<DrainSpec>,
    ) -> Result<Tagged<Backend>, ApiError> {
        let amended = |now| Ok(BackendSpec { drain, ..now });
        self.amend_backend(service, address, condition, amended)
            .await
    }

    async fn apply(&self, apply: Apply) -> Result<Response, ApiError> {
        if let Some(content) = &apply.content {
            let services = content.services.services();
            let wanted = services.flat_map(named_programs).collect();
            self.runs_nothing_new(wanted).await?;
        }
        let reloaded: Reloaded = self.control.apply(apply).await?;
        let tag = HeaderValue::try_from(format!("\"{}\"", reloaded.revision));
        let mut response = Json(reloaded).into_response();
        if let Ok(tag) = tag {
            response.headers_mut().insert(header::ETAG, tag);
        }
        Ok(response)
    }
}

fn backend_of(service: &ServiceSpec, address: BackendAddress) -> Result<BackendSpec, ApiError> {
    let mut backends = service.backends.iter();
    let found = backends.find(|backend| backend.address == address);
    found
        .cloned()
        .ok_or_else(|| ApiError::not_found(rules::no_such_backend(&service.name, address)))
}

/// Whether a check runs a program.
fn is_program(spec: &HealthSpec) -> bool {
    matches!(spec.probe, Probe::Exec(_))
}

/// The checks of a service and its backends that run programs.
fn programs(service: &ServiceSpec) -> impl Iterator<Item = &HealthSpec> {
    let own = service.backends.iter();
    let own = own.filter_map(|backend| backend.health.as_deref());
    let all = service.health.iter().chain(own);
    all.filter(|spec| is_program(spec))
}

/// [`programs`], each with the name of the service.
fn named_programs(service: &ServiceSpec) -> impl Iterator<Item = (&str, &HealthSpec)> {
    programs(service).map(|spec| (service.name.as_str(), spec))
}

/// The JSON object that a body is.
fn object(body: &Bytes) -> Result<Map<String, Value>, ApiError> {
    let read = serde_json::from_slice(body).map_err(|error| {
        ApiError::from(Reason::new(
            format!("the body is no JSON object: {error}"),
            "send an object, `{...}`",
        ))
    })?;
    match read {
        Unique(Value::Object(object)) => Ok(object),
        Unique(_) => Err(ApiError::from(Reason::new(
            "the body is JSON, but no object",
            "send an object, `{...}`",
        ))),
    }
}

fn read_service(name: &str, mut document: Map<String, Value>) -> Result<ServiceSpec, Reason> {
    name_it(&mut document, "name", name)?;
    ServiceSpec::try_from(wire::read::<Service>(Value::Object(document))?)
}

/// Gives the document the name that the path says. It may say it as well, but not
/// another.
fn name_it(document: &mut Map<String, Value>, key: &str, name: &str) -> Result<(), Reason> {
    let given = document
        .entry(key)
        .or_insert_with(|| Value::String(name.to_owned()));
    if given == name {
        return Ok(());
    }
    Err(Reason::new(
        format!("{key}: the body says {given}, but the path `{name}`"),
        format!("leave `{key}` out of the body; it cannot be changed"),
    ))
}

/// JSON Merge Patch (RFC 7386, section 2).
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else {
        unreachable!("made one above");
    };
    for (key, value) in patch {
        if value.is_null() {
            target.shift_remove(&key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 7386, appendix A.
    #[test]
    fn merges_as_the_rfc_does() {
        for (target, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": "b"}),
                json!({"b": "c"}),
                json!({"a": "b", "b": "c"}),
            ),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (
                json!({"a": "b", "b": "c"}),
                json!({"a": null}),
                json!({"b": "c"}),
            ),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (
                json!({"a": [{"b": "c"}]}),
                json!({"a": [1]}),
                json!({"a": [1]}),
            ),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (json!({"a": "foo"}), json!(null), json!(null)),
            (json!({"a": "foo"}), json!("bar"), json!("bar")),
            (
                json!({"e": null}),
                json!({"a": 1}),
                json!({"e": null, "a": 1}),
            ),
            (
                json!([1, 2]),
                json!({"a": "b", "c": null}),
                json!({"a": "b"}),
            ),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
        ] {
            let mut merged = target.clone();
            merge(&mut merged, patch.clone());
            assert_eq!(merged, expected, "{target} with {patch}");
        }
    }
}
