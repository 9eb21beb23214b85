//! `serve --dev`: a daemon that needs nothing, to try it out.
//!
//! A store in memory, a built-in authorization server on loopback, one account whose grant lives and one whose grant
//! the server has forgotten.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{LifecycleError, run};
use crate::{
    account::Account,
    audit::Audit,
    clock::{Clock, SystemClock},
    config::SocketConfig,
    login::Logins,
    provider::{
        ClientAuth, Provider, RequestFormat, Rules,
        oauth2::{Endpoints, LoginSettings, OAuth2, Settings, endpoint},
    },
    refresh::{Coordinator, condition::IfMatch},
    server::dev::Issuer,
    store::memory::Memory,
};

/// The account whose grant lives.
pub const ALIVE: &str = "dev/default";

/// The account whose grant is dead.
pub const DEAD: &str = "dev/dead";

/// The usual one.
const LOGIN_LIFETIME: Duration = Duration::from_mins(10);

/// The usual cooldown, so that a newcomer meets it.
const COOLDOWN: Duration = Duration::from_secs(30);

/// Serves on `socket` until a signal. Gives back what `ready` gave.
pub async fn serve<T>(socket: SocketConfig, ready: impl FnOnce(&[PathBuf]) -> T) -> Result<T, LifecycleError> {
    let issuer = Issuer::bind()
        .await
        .map_err(|source| LifecycleError::Io { what: "start the built-in authorization server", source })?;
    let coordinator = coordinator(&issuer).await.map_err(LifecycleError::Dev)?;
    let (stop, serving) = (CancellationToken::new(), TaskTracker::new());
    serving.spawn(issuer.serve(stop.clone()));
    serving.close();
    let logins = Logins::new(coordinator.clone(), LOGIN_LIFETIME);
    let served = run(&coordinator, &logins, &[socket], &Audit::default(), ready).await;
    stop.cancel();
    serving.wait().await;
    served
}

async fn coordinator(issuer: &Issuer) -> Result<Coordinator, Box<dyn std::error::Error + Send + Sync>> {
    let settings = Settings {
        endpoints: Endpoints { token: Some(endpoint(&issuer.token_endpoint()?)?), ..Endpoints::default() },
        client_id: "credproxy-dev".to_owned(),
        client_secret: None,
        client_auth: ClientAuth::None,
        request_format: RequestFormat::Form,
        request_timeout: Duration::from_secs(15),
        ca_file: None,
        rules: Rules::default(),
        login: LoginSettings::default(),
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let provider: Arc<dyn Provider> = Arc::new(OAuth2::new(settings, Arc::clone(&clock))?);
    let (alive, dead): (Account, Account) = (ALIVE.parse()?, DEAD.parse()?);
    let providers = [(alive.provider.clone(), provider)].into_iter().collect();
    let coordinator = Coordinator::new(Arc::new(Memory::new()?), providers, clock, COOLDOWN);
    coordinator.put(&alive, issuer.login(true)?, &IfMatch::Absent).await?;
    coordinator.put(&dead, issuer.login(false)?, &IfMatch::Absent).await?;
    Ok(coordinator)
}
