//! The API of `lb decap`.

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};

use super::{error::ApiError, routes};
use crate::{
    decap::{Handle, Status},
    state::Reason,
};

/// The API in front of a running program.
pub(super) fn router(handle: Handle) -> Router {
    routes::with_manners(Router::new().route("/v1/status", get(status))).with_state(handle)
}

async fn status(State(handle): State<Handle>) -> Result<Json<Status>, ApiError> {
    let failed =
        |message: String| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, Reason::bare(message));
    // The kernel answers while it is asked, which takes as long as it takes.
    match tokio::task::spawn_blocking(move || handle.status()).await {
        Ok(Ok(status)) => Ok(Json(status)),
        Ok(Err(error)) => Err(failed(format!("{error:#}"))),
        Err(error) => Err(failed(error.to_string())),
    }
}
