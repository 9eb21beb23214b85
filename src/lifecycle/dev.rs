//! `serve --dev`: a daemon that needs no configuration, to try it out.
//!
//! It has a store in memory, a built-in authorization server on loopback, one account with a valid grant, and one whose
//! grant the server does not know.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{LifecycleError, Services, run};
use crate::{
    account::Account,
    audit::Audit,
    clock::{Clock, SystemClock},
    config::{Environment, SocketConfig},
    dialect::Dialect,
    keys::Keys,
    login::Logins,
    provider::{
        Provider, Rules,
        oauth2::{Authentication, Endpoints, LoginSettings, OAuth2, Settings, endpoint},
    },
    refresh::{Coordinator, condition::IfMatch},
    sandbox,
    server::dev::Issuer,
    store::memory::MemoryStore,
    timeouts::PROVIDER_CALL_TIMEOUT,
};

/// The account with a valid grant.
pub const ALIVE: &str = "dev/default";

/// The account with a dead grant.
pub const DEAD: &str = "dev/dead";

/// The default.
const LOGIN_LIFETIME: Duration = Duration::from_mins(10);

/// The default cooldown, so that a newcomer sees it.
const COOLDOWN: Duration = Duration::from_secs(30);

/// Serves on `socket` until a signal. Returns the result of `ready`.
pub async fn serve<T>(
    socket: SocketConfig,
    environment: &Environment,
    ready: impl FnOnce(&[PathBuf]) -> T,
) -> Result<T, LifecycleError> {
    let issuer = Issuer::bind()
        .await
        .map_err(|source| LifecycleError::Io { what: "start the built-in authorization server", source })?;
    let mut services = services(&issuer).await.map_err(LifecycleError::Dev)?;
    services.root = Some(environment.sandbox_root(&socket.path));
    let (stop, serving) = (CancellationToken::new(), TaskTracker::new());
    serving.spawn(issuer.serve(stop.clone()));
    serving.close();
    let served = run(&services, &[socket], ready).await;
    stop.cancel();
    serving.wait().await;
    served
}

async fn services(issuer: &Issuer) -> Result<Services, Box<dyn std::error::Error + Send + Sync>> {
    let url = |name| endpoint(&issuer.endpoint(name)).map(Some);
    let settings = Settings {
        endpoints: Endpoints {
            issuer: None,
            token: url("token")?,
            refresh: None,
            authorization: url("authorize")?,
            device_authorization: url("device_authorization")?,
            revocation: url("revoke")?,
        },
        client_id: "credproxy-dev".to_owned(),
        authentication: Authentication::None,
        dialect: Dialect::default(),
        second_exchange: None,
        request_timeout: PROVIDER_CALL_TIMEOUT,
        ca_file: None,
        rules: Rules::default(),
        login: LoginSettings::default(),
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let provider: Arc<dyn Provider> = Arc::new(OAuth2::new(settings, Arc::clone(&clock))?);
    let (alive, dead): (Account, Account) = (ALIVE.parse()?, DEAD.parse()?);
    let providers = [(alive.provider.clone(), provider)].into_iter().collect();
    let store = Arc::new(MemoryStore::new()?);
    let keys = Keys::new(Arc::<MemoryStore>::clone(&store), Arc::clone(&clock));
    let coordinator = Coordinator::new(Arc::<MemoryStore>::clone(&store), providers, clock, COOLDOWN);
    coordinator.put(&alive, issuer.login(true)?, &IfMatch::Absent).await?;
    coordinator.put(&dead, issuer.login(false)?, &IfMatch::Absent).await?;
    let logins = Logins::new(coordinator.clone(), LOGIN_LIFETIME);
    Ok(Services {
        coordinator,
        keys,
        logins,
        item_store: store,
        audit: Audit::default(),
        sandboxes: sandbox::DEFAULT_MAX_SANDBOXES,
        root: None,
    })
}
