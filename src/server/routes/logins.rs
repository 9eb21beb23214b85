//! `/v1/logins`: pending logins.

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, Uri, header};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::Zeroizing;

use super::{
    super::{
        AppState,
        problem::Problem,
        request::{Caller, LoginSegment, Query, given, members, preferred_wait},
    },
    tokens::MAX_LONG_POLL,
};
use crate::{
    account::{Account, Bucket, ProviderName},
    audit::Kind,
    clock::Timestamp,
    login::{Login, LoginError, Logins, Progress, Prompt},
    policy::{Operation, Policy},
    problem_code::ProblemCode,
    provider::Flow,
    refresh::Coordinator,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Start {
    provider: ProviderName,
    #[serde(default)]
    bucket: Bucket,
    #[serde(default, deserialize_with = "given")]
    flow: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pasted {
    code: String,
}

/// `startLogin`: starts a login, and returns what the person has to do.
pub(in crate::server) async fn start(
    State(logins): State<Logins>,
    Caller { owner, policy, context }: Caller,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Query::parse(&uri, &[])?;
    let asked: Start = members(&headers, body, MAX_BODY_BYTES, "provider, and if need be bucket and flow").await?;
    let flow = asked.flow.map(|flow| flow.parse()).transpose();
    let flow: Option<Flow> = flow.map_err(|error| Problem::invalid(format!("{error}")))?;
    let account = Account::new(asked.provider, asked.bucket);
    context.set_account(&account);
    if !policy.permits(Operation::Login, &account) {
        return Err(Problem::unauthorized());
    }
    let begun = logins.start(owner, account.clone(), flow).await;
    context.note_provider_called(match &begun {
        Ok(login) => login.flow == Flow::Device,
        Err(error) => asked_provider(error),
    });
    let login = begun.map_err(|error| Problem::login(Some(&account), &error))?;
    let id = login.id.to_string();
    context.set_subject(Kind::Login, &id);
    let location = format!("/v1/logins/{id}");
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(View::of(&login, None))).into_response())
}

/// `getLogin`: returns the status; with `Prefer: wait=N`, once it has ended.
pub(in crate::server) async fn get(
    State(logins): State<Logins>,
    State(coordinator): State<Coordinator>,
    caller: Caller,
    LoginSegment(id): LoginSegment,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Json<View>, Problem> {
    Query::parse(&uri, &[])?;
    let Caller { owner, policy, context } = permitted(caller)?;
    let login = match preferred_wait(&headers) {
        Some(wait) => logins.wait(&owner, id, MAX_LONG_POLL.min(Duration::from_secs(wait))).await,
        None => logins.status(&owner, id),
    };
    shown(login.inspect(|login| context.set_account(&login.account)), &coordinator, &policy).await
}

/// `finishLogin`: completes a login with the code that the person brought.
pub(in crate::server) async fn paste(
    State(AppState(state)): State<AppState>,
    caller: Caller,
    LoginSegment(id): LoginSegment,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<View>, Problem> {
    Query::parse(&uri, &[])?;
    let pasted: Pasted = members(&headers, body, MAX_BODY_BYTES, "code").await?;
    let Caller { owner, policy, context } = permitted(caller)?;
    let code = Zeroizing::new(pasted.code);
    let login =
        state.services.logins.paste(&owner, id, &code).await.inspect(|login| context.set_account(&login.account));
    context.note_provider_called(login.as_ref().map_or_else(asked_provider, |_| true));
    shown(login, &state.services.coordinator, &policy).await
}

/// `cancelLogin`: cancels a login and forgets it.
pub(in crate::server) async fn cancel(
    State(logins): State<Logins>,
    caller: Caller,
    LoginSegment(id): LoginSegment,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    Query::parse(&uri, &[])?;
    let owner = permitted(caller)?.owner;
    logins.cancel(&owner, id).map_err(|error| Problem::login(None, &error))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whether the provider was called for a login.
fn asked_provider(error: &LoginError) -> bool {
    matches!(error, LoginError::Exchange { .. } | LoginError::Store(_))
}

fn permitted(caller: Caller) -> Result<Caller, Problem> {
    if caller.policy.may(Operation::Login) { Ok(caller) } else { Err(Problem::unauthorized()) }
}

/// The largest body: a pasted address, whose code may be a JWT of some KiB.
const MAX_BODY_BYTES: usize = 16 * 1024;

/// A failed login is reported with status 200 when its status is requested.
async fn shown(
    login: Result<Login, LoginError>,
    coordinator: &Coordinator,
    policy: &Policy,
) -> Result<Json<View>, Problem> {
    let login = login.map_err(|error| Problem::login(None, &error))?;
    let token = match login.progress {
        Progress::Complete if policy.permits(Operation::Read, &login.account) => {
            coordinator.peek(&login.account).await.ok()
        }
        Progress::Complete | Progress::Pending | Progress::Failed(_) => None,
    };
    // A grant may begin with an access token that cannot be used, which is never returned.
    let token = token.filter(|snapshot| !snapshot.expired(&**coordinator.clock()));
    let token = token.and_then(|snapshot| serde_json::from_slice(&snapshot.token.json()).ok());
    Ok(Json(View::of(&login, token)))
}

/// A login in the API's format.
#[derive(Serialize)]
pub(in crate::server) struct View {
    id: String,
    provider: ProviderName,
    bucket: Bucket,
    flow: &'static str,
    status: &'static str,
    expires_at: i64,
    #[serde(flatten)]
    prompt: Option<Shown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<ProblemCode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Shown {
    Visit {
        authorization_url: String,
    },
    Confirm {
        verification_uri: String,
        user_code: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        verification_uri_complete: Option<String>,
        interval: u64,
    },
}

impl From<Prompt> for Shown {
    fn from(prompt: Prompt) -> Self {
        match prompt {
            Prompt::Visit(authorization_url) => Self::Visit { authorization_url },
            Prompt::Confirm { verification_uri, user_code, complete, interval } => Self::Confirm {
                verification_uri,
                user_code,
                verification_uri_complete: complete,
                interval: interval.as_secs().max(1),
            },
        }
    }
}

impl View {
    fn of(login: &Login, token: Option<Value>) -> Self {
        let (status, prompt, problem) = match &login.progress {
            Progress::Pending => ("pending", Some(login.prompt.clone().into()), None),
            Progress::Complete => ("complete", None, None),
            Progress::Failed(error) => ("error", None, Some(Problem::login(Some(&login.account), error).into_parts())),
        };
        let (code, detail) = problem.unzip();
        Self {
            id: login.id.to_string(),
            provider: login.account.provider.clone(),
            bucket: login.account.bucket.clone(),
            flow: login.flow.name(),
            status,
            expires_at: Timestamp::as_secs(login.expires_at),
            prompt,
            token,
            code,
            detail,
        }
    }
}
