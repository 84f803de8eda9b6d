//! What requests there are, in the form of OpenAPI 3.1.
//!
//! Router and document are made of the same [`Endpoint`]s, and the forms of what is sent and
//! answered of the types that are read and written: neither says what the other does not.

use axum::{
    Router,
    handler::Handler,
    routing::{MethodFilter, MethodRouter, on},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::{Map, Value, json};

use super::wire::Failure;

/// Makes the schema of a type.
pub(super) type Form = fn(&mut SchemaGenerator) -> Schema;

/// The form of a type of its own name.
pub(super) fn form<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// The form of a type of which a key may be left out, since the path says it.
pub(super) fn without<T: JsonSchema>(generator: &mut SchemaGenerator, key: &str) -> Schema {
    let mut schema = T::json_schema(generator);
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| name != key);
    }
    schema
}

/// A part of an object, by the rules of RFC 7386.
pub(super) fn patch(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "description": "What changes, as JSON Merge Patch (RFC 7386): `null` for the default.",
    })
}

/// A parameter of a path or a query.
struct Parameter {
    name: &'static str,
    place: &'static str,
    description: &'static str,
    form: Form,
    is_required: bool,
}

/// A request that the API answers.
pub(super) struct Endpoint<S> {
    method: &'static str,
    path: &'static str,
    route: MethodRouter<S>,
    id: &'static str,
    summary: &'static str,
    parameters: Vec<Parameter>,
    body: Option<Form>,
    status: u16,
    media_type: &'static str,
    answer: Form,
    /// Answers have the revision of the state.
    has_revision: bool,
}

impl<S: Clone + Send + Sync + 'static> Endpoint<S> {
    fn new<H, T>(
        (filter, method): (MethodFilter, &'static str),
        path: &'static str,
        id: &'static str,
        handler: H,
    ) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        Self {
            method,
            path,
            route: on(filter, handler),
            id,
            summary: "",
            parameters: Vec::new(),
            body: None,
            status: 200,
            media_type: "application/json",
            answer: form::<Value>,
            has_revision: false,
        }
    }

    /// One that reads.
    pub(super) fn get<H, T>(path: &'static str, id: &'static str, handler: H) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        Self::new((MethodFilter::GET, "get"), path, id, handler)
    }

    /// One that makes something new.
    pub(super) fn post<H, T>(path: &'static str, id: &'static str, handler: H) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        Self::new((MethodFilter::POST, "post"), path, id, handler).changes()
    }

    /// One that says all anew.
    pub(super) fn put<H, T>(path: &'static str, id: &'static str, handler: H) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        Self::new((MethodFilter::PUT, "put"), path, id, handler).changes()
    }

    /// One that changes a part.
    pub(super) fn patch<H, T>(path: &'static str, id: &'static str, handler: H) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        Self::new((MethodFilter::PATCH, "patch"), path, id, handler)
            .changes()
            .takes(patch)
    }

    /// One that takes something away.
    pub(super) fn delete<H, T>(path: &'static str, id: &'static str, handler: H) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        Self::new((MethodFilter::DELETE, "delete"), path, id, handler).changes()
    }

    /// What it does, in a sentence.
    pub(super) fn does(self, summary: &'static str) -> Self {
        Self { summary, ..self }
    }

    /// The form of its body.
    pub(super) fn takes(self, body: Form) -> Self {
        Self {
            body: Some(body),
            ..self
        }
    }

    /// The form of its answer.
    pub(super) fn answers(self, answer: Form) -> Self {
        Self { answer, ..self }
    }

    /// The status of its answer, where it makes something.
    pub(super) fn makes(self, answer: Form) -> Self {
        Self {
            status: 201,
            answer,
            ..self
        }
    }

    /// What its answer is, where that is no JSON.
    pub(super) fn of_type(self, media_type: &'static str) -> Self {
        Self { media_type, ..self }
    }

    /// Its answers have the revision of the state.
    pub(super) fn with_revision(self) -> Self {
        Self {
            has_revision: true,
            ..self
        }
    }

    fn changes(self) -> Self {
        let condition = Parameter {
            name: "If-Match",
            place: "header",
            description: "Revisions of the state, one of which it must have (RFC 9110, 13.1.1).",
            form: revisions,
            is_required: false,
        };
        let mut this = self.with_revision();
        this.parameters.push(condition);
        this
    }

    /// A key of its query.
    pub(super) fn query(
        mut self,
        name: &'static str,
        description: &'static str,
        form: Form,
    ) -> Self {
        self.parameters.push(Parameter {
            name,
            place: "query",
            description,
            form,
            is_required: false,
        });
        self
    }

    /// A key that its query must have.
    pub(super) fn required_query(
        mut self,
        name: &'static str,
        description: &'static str,
        form: Form,
    ) -> Self {
        self = self.query(name, description, form);
        if let Some(last) = self.parameters.last_mut() {
            last.is_required = true;
        }
        self
    }

    fn operation(&self, generator: &mut SchemaGenerator) -> Value {
        let names = self.path.split('{').skip(1);
        let names = names.filter_map(|rest| Some(rest.split_once('}')?.0));
        let of_path = names.map(|name| {
            json!({"name": name, "in": "path", "required": true,
                   "description": describe(name), "schema": {"type": "string", "minLength": 1}})
        });
        let mut parameters: Vec<Value> = of_path.collect();
        for parameter in &self.parameters {
            let schema = (parameter.form)(generator);
            parameters.push(json!({
                "name": parameter.name,
                "in": parameter.place,
                "required": parameter.is_required,
                "description": parameter.description,
                "schema": schema,
            }));
        }
        let mut operation = json!({
            "operationId": self.id,
            "summary": self.summary,
            "parameters": parameters,
            "responses": self.responses(generator),
        });
        if let Some(body) = self.body {
            operation["requestBody"] = json!({
                "required": true,
                "content": {"application/json": {"schema": body(generator)}},
            });
        }
        operation
    }

    fn responses(&self, generator: &mut SchemaGenerator) -> Value {
        let mut answer = json!({
            "description": if self.status == 201 { "It is made." } else { "It is done." },
            "content": {self.media_type: {"schema": (self.answer)(generator)}},
        });
        if self.has_revision {
            answer["headers"] = json!({"ETag": {
                "description": "The revision of the state.",
                "required": true,
                "schema": {"type": "string", "pattern": "^\"[0-9a-f]+-[0-9]+\"$"},
            }});
        }
        let mut responses = Map::new();
        responses.insert(self.status.to_string(), answer);
        let is_change = self.method != "get";
        for (status, description, only_of_changes) in FAILURES {
            if is_change || !only_of_changes {
                let schema = form::<Failure>(generator);
                let failure = json!({
                    "description": description,
                    "content": {"application/json": {"schema": schema}},
                });
                responses.insert(status.to_string(), failure);
            }
        }
        Value::Object(responses)
    }
}

/// What else may be answered, and whether it is to changes alone.
const FAILURES: [(u16, &str, bool); 8] = [
    (400, "It makes no sense.", false),
    (403, "This user may not do it.", false),
    (404, "What it names is not there.", false),
    (409, "It contradicts what is there.", true),
    (412, "The state has another revision.", true),
    (413, "The body is too large.", true),
    (
        500,
        "The datapath does not take it, or it cannot be kept.",
        false,
    ),
    (
        503,
        "The balancer does not answer, or has no room for another listener.",
        false,
    ),
];

fn revisions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "pattern": "^(\\*|\"[0-9a-f]+-[0-9]+\")$"})
}

/// What a part of a path is.
fn describe(name: &str) -> &'static str {
    match name {
        "name" => "Name of the service.",
        _ => "Address of the backend, as the service has it.",
    }
}

/// The router of all of them.
pub(super) fn router<S: Clone + Send + Sync + 'static>(endpoints: Vec<Endpoint<S>>) -> Router<S> {
    endpoints
        .into_iter()
        .fold(Router::new(), |router, endpoint| {
            router.route(endpoint.path, endpoint.route)
        })
}

/// The document about all of them.
pub(super) fn document<S: Clone + Send + Sync + 'static>(endpoints: &[Endpoint<S>]) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for endpoint in endpoints {
        let operation = endpoint.operation(&mut generator);
        let path = paths
            .entry(endpoint.path)
            .or_insert_with(|| Value::Object(Map::new()));
        path[endpoint.method] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "lb",
            "description": "Asks and changes the running balancer, over its Unix socket.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": generator.take_definitions(true)},
    })
}
