//! The API of the running balancer: HTTP/1.1 and JSON over a Unix socket.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/openapi.json` | | this table as OpenAPI 3.1 |
//! | `GET /v1/status` | | [`Status`](crate::state::Status) |
//! | `GET /v1/flows?service=&backend=&client=&state=&limit=` | | [`FlowList`](crate::state::FlowList) |
//! | `GET /v1/events?after=&follow=` | | [`Event`](crate::state::Event)s, as server-sent events |
//! | `GET /v1/config` | | [`Configuration`] |
//! | `POST /v1/apply?dry_run=` | [`File`](wire::File) | [`Reloaded`](crate::state::Reloaded) |
//! | `POST /v1/reset?dry_run=` | | [`Reloaded`](crate::state::Reloaded) |
//! | `GET /v1/explain?protocol=&source=&destination=` | | [`Explanation`](crate::state::Explanation) |
//! | `GET /v1/services` | | array of [`Service`](wire::Service) |
//! | `GET /v1/services/{name}` | | [`Service`](wire::Service) |
//! | `POST /v1/services/{name}` | a new [`Service`](wire::Service) | 201, the service |
//! | `PUT /v1/services/{name}` | all of it anew | the service |
//! | `PATCH /v1/services/{name}` | what changes (RFC 7386) | the service |
//! | `DELETE /v1/services/{name}` | | the service as it was |
//! | `POST /v1/services/{name}/backends` | a new [`Backend`](wire::Backend) | 201, the backend |
//! | `PUT /v1/services/{name}/backends/{address}` | [`Backend`](wire::Backend) | the backend |
//! | `PATCH /v1/services/{name}/backends/{address}` | what changes (RFC 7386) | the backend |
//! | `PUT /v1/services/{name}/backends/{address}/drain` | [`Drain`](wire::Drain) | the backend |
//! | `DELETE /v1/services/{name}/backends/{address}/drain` | | the backend |
//! | `DELETE /v1/services/{name}/backends/{address}` | | the backend as it was |
//!
//! A change is answered when the datapath has it, and it is kept. `ETag` of an answer is the
//! revision of the state; a change with `If-Match` is made to such a state only. What cannot be
//! done is answered by `{"error": {"message", "hint"}}` with status 400 (the request makes no
//! sense), 403 (this user may not do it), 404 (what it names is not there), 409 (it contradicts what is there), 412 (the state
//! has another revision), 500 (the datapath would not take it, or it cannot be kept) or 503 (the
//! balancer does not answer).
//!
//! `lb decap` has a socket of its own, with `GET /v1/status` alone: a
//! [`decap::Status`](crate::decap::Status).

mod access;
mod client;
mod configuration;
mod decap;
mod error;
mod events;
mod explain;
mod openapi;
mod places;
mod routes;
mod server;
mod socket;
mod unique;
pub use access::Access;
pub use client::{Client, EventStream};
pub use configuration::{Configuration, ConfiguredBackend, ConfiguredService, Origin, RemovedItem};
pub use routes::openapi;
pub use server::{serve, serve_decap};
pub use socket::Socket;

pub use crate::wire;
