//! What each request does.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State},
    http::{Method, StatusCode, Uri},
    routing::{get, post, put},
};
use serde_json::{Map, Value};
use tokio::sync::{Mutex, MutexGuard};

use super::{
    error::ApiError,
    explain as questions,
    unique::Unique,
    wire::{self, Backend, Drain, Service},
};
use crate::state::{
    BackendAddress, BackendSpec, Change, Control, DrainSpec, Explanation, FlowList, Reason,
    Refusal, ServiceSpec, Status, rules,
};

/// Most bytes of a request's body: a service with all the backends that there is
/// room for.
pub(super) const MAX_BODY: usize = 8 * 1024 * 1024;

/// What every request shares.
#[derive(Clone)]
struct Api {
    control: Control,
    /// Held from the reading to the writing of a change that depends on what is.
    changes: Arc<Mutex<()>>,
}

type Answer<T> = Result<Json<T>, ApiError>;

/// The API in front of `control`.
pub(super) fn router(control: Control) -> Router {
    let api = Api {
        control,
        changes: Arc::default(),
    };
    let routes = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/flows", get(flows))
        .route("/v1/explain", get(explain))
        .route("/v1/services", get(services))
        .route(
            "/v1/services/{name}",
            get(service)
                .post(add_service)
                .put(set_service)
                .patch(patch_service)
                .delete(remove_service),
        )
        .route("/v1/services/{name}/backends", post(add_backend))
        .route(
            "/v1/services/{name}/backends/{address}",
            put(set_backend).patch(patch_backend).delete(remove_backend),
        )
        .route(
            "/v1/services/{name}/backends/{address}/drain",
            put(drain_backend).delete(undrain_backend),
        );
    with_manners(routes).with_state(api)
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

async fn services(State(api): State<Api>) -> Answer<Vec<Service>> {
    let services = api.control.services().await?;
    Ok(Json(services.iter().map(Service::from).collect()))
}

async fn service(State(api): State<Api>, Path(name): Path<String>) -> Answer<Service> {
    Ok(Json(Service::from(&api.find(&name).await?)))
}

async fn add_service(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Service>), ApiError> {
    let spec = read_service(&name, object(&body)?)?;
    let added = Service::from(&spec);
    let _turn = api.turn().await;
    api.control
        .change(Change::AddService(Box::new(spec)))
        .await?;
    Ok((StatusCode::CREATED, Json(added)))
}

async fn set_service(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<Service> {
    let spec = read_service(&name, object(&body)?)?;
    let _turn = api.turn().await;
    api.replace(spec).await
}

async fn patch_service(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<Service> {
    let patch = object(&body)?;
    let _turn = api.turn().await;
    let now = Service::from(&api.find(&name).await?);
    let mut document = serde_json::to_value(now).expect("its keys are strings");
    merge(&mut document, Value::Object(patch));
    let Value::Object(document) = document else {
        unreachable!("an object merged into an object is one");
    };
    api.replace(read_service(&name, document)?).await
}

async fn remove_service(State(api): State<Api>, Path(name): Path<String>) -> Answer<Service> {
    let _turn = api.turn().await;
    let removed = Service::from(&api.find(&name).await?);
    api.control.change(Change::RemoveService(name)).await?;
    Ok(Json(removed))
}

async fn add_backend(
    State(api): State<Api>,
    Path(service): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Backend>), ApiError> {
    let wanted: Backend = wire::read(Value::Object(object(&body)?))?;
    let backend = BackendSpec::try_from(&wanted)?;
    let _turn = api.turn().await;
    let added = Backend::from(&backend);
    api.control
        .change(Change::AddBackend { service, backend })
        .await?;
    Ok((StatusCode::CREATED, Json(added)))
}

async fn set_backend(
    State(api): State<Api>,
    Path((service, address)): Path<(String, String)>,
    body: Bytes,
) -> Answer<Backend> {
    let mut document = object(&body)?;
    // The default would bring a drained backend back.
    if !document.contains_key("weight") {
        return Err(wire::missing("weight").into());
    }
    name_it(&mut document, "address", &address)?;
    let wanted: Backend = wire::read(Value::Object(document))?;
    let backend = BackendSpec::try_from(&wanted)?;
    let _turn = api.turn().await;
    api.replace_backend(service, backend).await
}

async fn patch_backend(
    State(api): State<Api>,
    Path((service, address)): Path<(String, String)>,
    body: Bytes,
) -> Answer<Backend> {
    let patch = object(&body)?;
    let _turn = api.turn().await;
    let now = Backend::from(&api.find_backend(&service, &address).await?);
    let mut document = serde_json::to_value(&now).expect("its keys are strings");
    merge(&mut document, Value::Object(patch));
    let Value::Object(mut document) = document else {
        unreachable!("an object merged into an object is one");
    };
    name_it(&mut document, "address", &now.address)?;
    let wanted: Backend = wire::read(Value::Object(document))?;
    let backend = BackendSpec::try_from(&wanted)?;
    api.replace_backend(service, backend).await
}

async fn drain_backend(
    State(api): State<Api>,
    Path((service, address)): Path<(String, String)>,
    body: Bytes,
) -> Answer<Backend> {
    let drain: Drain = wire::read(Value::Object(object(&body)?))?;
    let drain = drain.spec(str::to_owned)?;
    api.set_drain(service, &address, Some(drain)).await
}

async fn undrain_backend(
    State(api): State<Api>,
    Path((service, address)): Path<(String, String)>,
) -> Answer<Backend> {
    api.set_drain(service, &address, None).await
}

async fn remove_backend(
    State(api): State<Api>,
    Path((service, address)): Path<(String, String)>,
) -> Answer<Backend> {
    let _turn = api.turn().await;
    let removed = api.find_backend(&service, &address).await?;
    let address = removed.address;
    let removed = Backend::from(&removed);
    api.control
        .change(Change::RemoveBackend { service, address })
        .await?;
    Ok(Json(removed))
}

impl Api {
    /// Waits until every change that began before has been made.
    async fn turn(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().await
    }

    async fn find(&self, name: &str) -> Result<ServiceSpec, ApiError> {
        let services = self.control.services().await?;
        services
            .into_iter()
            .find(|service| service.name == name)
            .ok_or_else(|| Refusal::NotFound(rules::no_such_service(name)).into())
    }

    async fn find_backend(&self, service: &str, address: &str) -> Result<BackendSpec, ApiError> {
        let address: BackendAddress = address.parse()?;
        let mut backends = self.find(service).await?.backends.into_iter();
        backends
            .find(|backend| backend.address == address)
            .ok_or_else(|| ApiError::not_found(rules::no_such_backend(service, address)))
    }

    async fn set_drain(
        &self,
        service: String,
        address: &str,
        drain: Option<DrainSpec>,
    ) -> Answer<Backend> {
        let _turn = self.turn().await;
        let now = self.find_backend(&service, address).await?;
        let backend = BackendSpec { drain, ..now };
        self.replace_backend(service, backend).await
    }

    async fn replace_backend(&self, service: String, backend: BackendSpec) -> Answer<Backend> {
        let now = Backend::from(&backend);
        self.control
            .change(Change::SetBackend { service, backend })
            .await?;
        Ok(Json(now))
    }

    async fn replace(&self, spec: ServiceSpec) -> Answer<Service> {
        let now = Service::from(&spec);
        self.control
            .change(Change::SetService(Box::new(spec)))
            .await?;
        Ok(Json(now))
    }
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
    use serde_json::json;

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
