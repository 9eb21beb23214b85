//! `/v1/health`: whether the daemon as a whole works.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, Uri, header};
use serde_json::json;

use super::super::{problem::Problem, request::Query};
use crate::{audit::Audit, refresh::Coordinator};

/// `health`: 200, or 503 with the reasons.
pub(in crate::server) async fn health(
    State(coordinator): State<Coordinator>,
    State(audit): State<Audit>,
    uri: Uri,
) -> Result<Response, Problem> {
    Query::parse(&uri, &[])?;
    let (mut reasons, of_the_log) = tokio::join!(coordinator.health_problems(), audit.health_problems());
    reasons.extend(of_the_log);
    let (status, body) = if reasons.is_empty() {
        (StatusCode::OK, json!({"status": "ok"}))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, json!({"status": "degraded", "reasons": reasons}))
    };
    Ok((status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response())
}
