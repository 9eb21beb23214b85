//! `/v1/sandboxes`: sockets created at run time. Host only.

use axum::{
    Json,
    body::Body,
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, Uri, header, request::Parts};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use super::super::{
    AppState,
    connection::RequestContext,
    peer::Peer,
    problem::Problem,
    request::{Query, SandboxSegment, given, members},
};
use crate::{
    account::KeyName,
    audit::Kind,
    policy::{Allowed, Operation, Pattern, Role},
    problem_code::ProblemCode,
    sandbox::{Created, Sandbox, SandboxLifetime, SandboxRequest, Sandboxes},
};

/// Returns the sandboxes, if the socket may manage them.
#[derive(Debug)]
pub(in crate::server) struct HostOnly(Sandboxes);

impl FromRequestParts<AppState> for HostOnly {
    type Rejection = Problem;

    async fn from_request_parts(_: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        if state.0.policy.role() != Role::Host {
            return Err(Problem::unauthorized());
        }
        let none =
            || Problem::new(ProblemCode::NotFound, "no sandboxes are made here: this API has no sockets of its own");
        state.0.services.sandboxes.clone().map(Self).ok_or_else(none)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default, deserialize_with = "given")]
    operations: Option<Vec<String>>,
    #[serde(default)]
    keys: Vec<KeyName>,
    #[serde(default, deserialize_with = "given")]
    ttl: Option<u64>,
    #[serde(default)]
    capability: bool,
    #[serde(default)]
    tied: bool,
}

/// `createSandbox`: creates a socket in a directory of its own.
pub(in crate::server) async fn create(
    HostOnly(sandboxes): HostOnly,
    peer: Peer,
    context: RequestContext,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Query::parse(&uri, &[])?;
    let known = "allow, operations, keys, ttl, capability and tied, none of which must be there";
    let asked: CreateBody = members(&headers, body, MAX_BODY_BYTES, known).await?;
    let lifetime = asked.ttl.map(SandboxLifetime::of_secs).transpose();
    let request = SandboxRequest {
        lifetime: lifetime.map_err(|error| Problem::invalid(format!("ttl: {error}")))?,
        capability: asked.capability,
        // No process has the number 0.
        process: asked.tied.then(|| peer.pid.map_or(0, u32::cast_signed)),
        allowed: allowed(asked)?,
    };
    let created = sandboxes.create(request).await.map_err(|error| Problem::sandbox(&error))?;
    let id = created.sandbox.id.to_string();
    context.set_subject(Kind::Sandbox, &id);
    let location = format!("/v1/sandboxes/{id}");
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(View::created(&created))).into_response())
}

/// `listSandboxes`: lists the sandboxes.
pub(in crate::server) async fn list(HostOnly(sandboxes): HostOnly, uri: Uri) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct List<'a> {
        sandboxes: Vec<View<'a>>,
    }
    Query::parse(&uri, &[])?;
    let found = sandboxes.list().await.map_err(|error| Problem::sandbox(&error))?;
    Ok(Json(List { sandboxes: found.iter().map(View::of).collect() }).into_response())
}

/// `getSandbox`: returns a sandbox.
pub(in crate::server) async fn get(
    HostOnly(sandboxes): HostOnly,
    SandboxSegment(id): SandboxSegment,
    uri: Uri,
) -> Result<Response, Problem> {
    Query::parse(&uri, &[])?;
    let sandbox = sandboxes.get(id).await.map_err(|error| Problem::sandbox(&error))?;
    Ok(Json(View::of(&sandbox)).into_response())
}

/// `deleteSandbox`: closes its connections and removes its socket.
pub(in crate::server) async fn delete(
    HostOnly(sandboxes): HostOnly,
    SandboxSegment(id): SandboxSegment,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    Query::parse(&uri, &[])?;
    sandboxes.delete(id).await.map_err(|error| Problem::sandbox(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

/// The largest body: some hundred accounts and keys.
const MAX_BODY_BYTES: usize = 16 * 1024;

fn allowed(asked: CreateBody) -> Result<Allowed, Problem> {
    let allow = asked.allow.iter().map(|text| text.parse::<Pattern>()).collect::<Result<_, _>>();
    let allow = allow
        .map_err(|_| Problem::invalid("allow: each must be \"provider\", \"provider/bucket\" or \"provider/*\""))?;
    let operations = asked.operations.map(|named| named.iter().map(|text| text.parse::<Operation>()).collect());
    let operations = operations.transpose().map_err(|error| Problem::invalid(format!("operations: each {error}")))?;
    Ok(Allowed::new(allow, operations, asked.keys))
}

/// A sandbox in the API's format.
#[derive(Serialize)]
struct View<'a> {
    id: String,
    directory: String,
    socket: String,
    allow: Vec<String>,
    operations: Vec<&'static str>,
    keys: &'a [KeyName],
    expires_at: i64,
    tied: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    capability: Option<&'a str>,
}

impl<'a> View<'a> {
    fn of(sandbox: &'a Sandbox) -> Self {
        let Allowed { allow, operations, keys } = &sandbox.allowed;
        Self {
            id: sandbox.id.to_string(),
            directory: sandbox.directory.display().to_string(),
            socket: sandbox.socket().display().to_string(),
            allow: allow.iter().map(ToString::to_string).collect(),
            operations: operations.iter().map(|operation| operation.as_str()).collect(),
            keys,
            expires_at: sandbox.expires_at.as_secs(),
            tied: sandbox.tied,
            capability: None,
        }
    }

    #[expect(clippy::disallowed_methods, reason = "whoever made the sandbox is told its capability, this once")]
    fn created(created: &'a Created) -> Self {
        let capability = created.capability.as_ref().map(ExposeSecret::expose_secret);
        Self { capability, ..Self::of(&created.sandbox) }
    }
}
