//! How a request that cannot be done is answered.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::wire;
use crate::state::{Reason, Refusal};

/// An answer that is none.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    reason: Reason,
}

impl ApiError {
    pub(super) const fn new(status: StatusCode, reason: Reason) -> Self {
        Self { status, reason }
    }

    /// What the request names is not there.
    pub(super) const fn not_found(reason: Reason) -> Self {
        Self::new(StatusCode::NOT_FOUND, reason)
    }
}

/// A request that cannot be understood.
impl From<Reason> for ApiError {
    fn from(reason: Reason) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::NotFound(reason) => Self::not_found(reason),
            Refusal::Conflict(reason) => Self::new(StatusCode::CONFLICT, reason),
            Refusal::Invalid(reason) => Self::new(StatusCode::BAD_REQUEST, reason),
            Refusal::Outdated(reason) => Self::new(StatusCode::PRECONDITION_FAILED, reason),
            Refusal::Failed(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, Reason::bare(message))
            }
            Refusal::ShuttingDown => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, Reason::bare(message))
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = wire::Error {
            message: self.reason.message,
            hint: self.reason.hint,
            field: self.reason.field,
        };
        (self.status, Json(wire::Failure { error })).into_response()
    }
}
