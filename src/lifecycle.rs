//! The daemon's life: how its parts are put together, started and shut down.
//!
//! Invariants:
//! 1. The shutdown waits for the flights under way and for one more try to save what is unsaved, within
//!    `SHUTDOWN_WORK_TIMEOUT`. Then the sockets' files are removed, and the store is closed last.
//! 2. A part that cannot start is an error before any socket exists. A sandbox of an earlier daemon that cannot be
//!    reopened is not.

use std::{io, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};

use crate::{
    account::ProviderName,
    audit::{Audit, AuditError},
    clock::Clock,
    config::{self, ClientKeyConfig, Config, Environment, ProviderConfig, SocketConfig},
    error_chain::error_chain,
    keys::Keys,
    login::Logins,
    policy::Policy,
    provider::{
        Provider, Providers, Rules,
        oauth2::{Assertions, Authentication, Endpoints, LoginSettings, OAuth2, Settings, SetupError},
    },
    refresh::Coordinator,
    sandbox::{self, SandboxRoot},
    server::{
        Api, SocketServices,
        listener::{BindError, BindLock, Listener, ServeOptions, Shutdown},
        peer::Peers,
    },
    store::{ItemStore, StoreError, key::passphrase::Ask, sqlite::Sqlite},
    timeouts::{FINAL_RESPONSES_TIMEOUT, SHUTDOWN_WORK_TIMEOUT, STORE_CLOSE_TIMEOUT},
};

pub mod check;
pub mod confine;
pub mod dev;
mod key;
pub mod overlap;
mod sandbox_sockets;
pub mod store;

use confine::Confined;
use key::KeyLoader;
use overlap::Overlap;
use sandbox_sockets::SandboxSockets;

/// Open files that are not connections: the store, calls to providers, logs.
const RESERVED_FILES: usize = 128;

/// Startup and shutdown errors.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// The store cannot be opened.
    #[error("cannot open the store")]
    Store(#[from] StoreError),
    /// There is no store to work on.
    #[error("there is no store in {}; `credproxy serve` makes one", .0.display())]
    NoStore(PathBuf),
    /// The key comes from an external source, so the daemon cannot replace it.
    #[error(
        "the key is given to the daemon from elsewhere, so it cannot put another there; name a new place with --to"
    )]
    ForeignKey,
    /// A socket cannot be bound.
    #[error("cannot bind the socket {name}")]
    Bind {
        /// The socket's name in the configuration.
        name: String,
        /// The cause.
        #[source]
        source: BindError,
    },
    /// The directory of one socket would expose another path.
    #[error(transparent)]
    Overlap(Overlap),
    /// A provider is configured in a way that cannot work.
    #[error("cannot use the provider {name}")]
    Provider {
        /// The provider's name.
        name: ProviderName,
        /// The cause.
        #[source]
        source: SetupError,
    },
    /// A system call failed.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// Another process traces this one.
    #[error(
        "process {0} traces this one: it could read every secret and change what is done; end it, or start with \
         --traced to let it"
    )]
    Traced(u32),
    /// The configuration requires confinement by the kernel, and it is not complete.
    #[error("confine = \"require\", but the daemon would be confined {0}")]
    NotConfined(confine::Extent),
    /// The audit log cannot be started.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The accounts of `--dev` cannot be created.
    #[error("cannot make the accounts of --dev")]
    Dev(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store was not closed in time. Committed changes are in the write-ahead log, which the next start reads.
    #[error("stopped without closing the store: the disk does not answer")]
    StoreNotClosed,
    /// Work was still under way when the shutdown timed out.
    #[error("stopped with work still under way, after {} s", SHUTDOWN_WORK_TIMEOUT.as_secs())]
    Unfinished,
}

/// Serves until a signal. A person is asked for the passphrase, if the key needs one, before anything else.
pub async fn serve(config: &Config, mut confined: Confined, ask: Ask<'_>) -> Result<(), LifecycleError> {
    outlive_file_limits()?;
    let clock = clock();
    let environment = confined.environment();
    if let Some(overlap) = overlap::overlaps(config, environment).into_iter().next() {
        return Err(LifecycleError::Overlap(overlap));
    }
    let root = config.host_socket().map(|host| environment.sandbox_root(&host.path));
    let loader = KeyLoader { source: &config.store.key, store: &config.store.path, copy: None, environment, ask };
    let store = Arc::new(loader.open().await?);
    if store.is_copied() {
        tracing::warn!(
            store = %config.store.path.display(),
            "the store is not where it was last used: it was copied, moved or restored. A refresh token is \
             good in one place only: stop every daemon that uses another copy. Tokens that are good are served; a grant \
             that was refreshed elsewhere since needs a new login"
        );
    }
    let audit = Audit::start(&config.audit, Arc::clone(&clock))?;
    let providers = providers(&config.providers, environment, config.refresh.request_timeout, &clock).await?;
    confined.close();
    if confined.extent.is_lacking() {
        tracing::warn!(confined = %confined.extent, "not fully sandboxed");
    } else {
        tracing::info!(confined = %confined.extent, "sandboxed");
    }
    let item_store: Arc<dyn ItemStore> = Arc::<Sqlite>::clone(&store);
    let keys = Keys::new(Arc::clone(&item_store), Arc::clone(&clock));
    let coordinator = Coordinator::new(Arc::<Sqlite>::clone(&store), providers, clock, config.refresh.cooldown);
    let logins = Logins::within(coordinator.clone(), config.logins.lifetime, config.limits.logins);
    let services = Services { coordinator, keys, logins, item_store, audit, sandboxes: config.limits.sandboxes, root };
    let served = run(&services, &config.sockets, |_| ()).await;
    services.audit.close().await;
    let closed = tokio::time::timeout(STORE_CLOSE_TIMEOUT, store.close()).await;
    served?;
    Ok(closed.map_err(|_| LifecycleError::StoreNotClosed)??)
}

/// Makes a write beyond the file size limit an error, which a refresh survives. If the signal were not caught, it would
/// end the process, with whatever the provider has just answered.
fn outlive_file_limits() -> Result<(), LifecycleError> {
    match signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw())) {
        // The signal stays caught after the stream is dropped.
        Ok(_) => Ok(()),
        Err(source) => Err(LifecycleError::Io { what: "listen for signals", source }),
    }
}

#[cfg(not(feature = "faults"))]
fn clock() -> Arc<dyn Clock> {
    Arc::new(crate::clock::SystemClock::new())
}

#[cfg(feature = "faults")]
fn clock() -> Arc<dyn Clock> {
    Arc::new(crate::faults::OffsetClock::new())
}

async fn providers(
    configured: &[ProviderConfig],
    environment: &Environment,
    request_timeout: Duration,
    clock: &Arc<dyn Clock>,
) -> Result<Providers, LifecycleError> {
    let mut providers: Vec<(ProviderName, Arc<dyn Provider>)> = Vec::with_capacity(configured.len());
    for provider in configured {
        let (built, missing) = client(provider, environment, request_timeout, Arc::clone(clock)).await;
        if let Some(error) = missing {
            // Only this provider fails, and reports it at every refresh.
            tracing::error!(provider = %provider.name, error = error_chain(error.as_ref()), "the provider cannot be used");
        }
        let built = built.map_err(|source| LifecycleError::Provider { name: provider.name.clone(), source })?;
        providers.push((provider.name.clone(), Arc::new(built)));
    }
    Ok(providers.into_iter().collect())
}

/// Why a provider cannot be used.
pub type Missing = Box<dyn std::error::Error + Send + Sync>;

/// Builds the client of a configured provider. The second value says why its secret, key or certificates cannot be
/// read, if so: it sends nothing then.
pub async fn client(
    provider: &ProviderConfig,
    environment: &Environment,
    request_timeout: Duration,
    clock: Arc<dyn Clock>,
) -> (Result<OAuth2, SetupError>, Option<Missing>) {
    let (authentication, missing) = authentication(provider, environment).await;
    let client = OAuth2::new(settings(provider, authentication, request_timeout), clock);
    let ca_file_error = || client.as_ref().ok()?.ca_file_error().map(|error| error_chain(error).into());
    let missing = missing.or_else(ca_file_error);
    (client, missing)
}

/// Reads how the provider's client authenticates. The second value says why its secret or key cannot be read.
async fn authentication(provider: &ProviderConfig, environment: &Environment) -> (Authentication, Option<Missing>) {
    match &provider.authentication {
        config::AuthenticationConfig::None => (Authentication::None, None),
        config::AuthenticationConfig::Secret { place, source } => {
            let (secret, missing) = match source.client_secret(environment).await {
                Ok(secret) => (Ok(secret), None),
                Err(error) => (Err("the client secret could not be read"), Some(error.into())),
            };
            (Authentication::Secret { place: *place, secret }, missing)
        }
        config::AuthenticationConfig::Key(key) => match assertions(provider, key, environment).await {
            Ok(assertions) => (Authentication::Key(Ok(Box::new(assertions))), None),
            Err(error) => (Authentication::Key(Err("the client key could not be read")), Some(error)),
        },
    }
}

async fn assertions(
    provider: &ProviderConfig,
    config: &ClientKeyConfig,
    environment: &Environment,
) -> Result<Assertions, Missing> {
    let key = config.source.client_key(environment).await?;
    // With a token endpoint beside it, the issuer's metadata may never be read, so its own spelling is not known.
    let issuer = || provider.token_endpoint.as_ref().and(provider.issuer.clone());
    let audience = config.audience.clone().or_else(issuer);
    Ok(Assertions::new(&key, config.algorithm, config.id.clone(), audience)?)
}

/// Converts the configuration of a provider to the provider client's settings.
fn settings(provider: &ProviderConfig, authentication: Authentication, request_timeout: Duration) -> Settings {
    Settings {
        endpoints: Endpoints {
            // The configuration has checked that it is a URL; discovery compares its text (RFC 8414 section 3.3).
            issuer: provider.issuer.as_deref().and_then(|issuer| issuer.parse().ok()),
            token: provider.token_endpoint.clone(),
            refresh: provider.refresh_endpoint.clone(),
            authorization: provider.authorization_endpoint.clone(),
            device_authorization: provider.device_authorization_endpoint.clone(),
            revocation: provider.revocation_endpoint.clone(),
        },
        client_id: provider.client_id.clone(),
        authentication,
        dialect: provider.dialect.clone(),
        second_exchange: provider.second_exchange.clone(),
        request_timeout,
        ca_file: provider.ca_file.clone(),
        rules: Rules {
            dead_grant_codes: provider.dead_grant_codes.clone(),
            dead_grant_statuses: provider.dead_grant_statuses.clone(),
            reuse_grace: provider.reuse_grace,
            expose: provider.expose.clone(),
            concurrent_refreshes: provider.concurrent_refreshes,
        },
        login: LoginSettings {
            scopes: provider.scopes.clone(),
            redirect_uri: provider.redirect_uri.clone(),
            pkce: provider.pkce,
            device_pkce: provider.device_pkce,
        },
    }
}

/// What all sockets share.
#[derive(Debug, Clone)]
struct Services {
    coordinator: Coordinator,
    keys: Keys,
    logins: Logins,
    item_store: Arc<dyn ItemStore>,
    audit: Audit,
    /// The largest number of sandboxes.
    sandboxes: usize,
    /// Where their directories are; `None` when no socket may create one.
    root: Option<SandboxRoot>,
}

impl Services {
    /// What the socket of that name offers.
    fn of_socket(&self, policy: Policy, socket: &str) -> SocketServices {
        SocketServices {
            coordinator: self.coordinator.clone(),
            keys: self.keys.clone(),
            logins: self.logins.clone(),
            sandboxes: None,
            audit: self.audit.clone(),
            socket: Arc::from(socket),
            policy,
            capability: None,
        }
    }
}

/// Serves on these sockets until a signal, then shuts down in order (invariant 1). Calls `ready` once every socket is
/// open, and returns its result.
async fn run<T>(
    services: &Services,
    sockets: &[SocketConfig],
    ready: impl FnOnce(&[PathBuf]) -> T,
) -> Result<T, LifecycleError> {
    // Signals are caught before there is anything to clean up.
    let mut signals = Signals::new().map_err(|source| LifecycleError::Io { what: "listen for signals", source })?;
    let (share, sandbox_share) = shares(raise_open_files(), sockets.len(), services.sandboxes);
    let failed = |socket: &SocketConfig| {
        let name = socket.name.clone();
        move |source| LifecycleError::Bind { name, source }
    };
    let lock = match SocketConfig::host(sockets) {
        Some(host) => Some(BindLock::take(&host.path, &Peers::of(&host.uids)).await.map_err(failed(host))?),
        None => None,
    };
    let mut listeners = Vec::with_capacity(sockets.len());
    for socket in sockets {
        let listener = Listener::bind(&socket.name, &socket.path, Peers::of(&socket.uids)).map_err(failed(socket))?;
        listeners.push((Arc::new(listener), socket));
    }
    drop(lock);
    let (shutdown, mut serving) = (Shutdown::default(), JoinSet::new());
    let mut sandboxes = None;
    if let Some(root) = services.root.clone() {
        let clock = Arc::clone(services.coordinator.clock());
        let sockets = SandboxSockets { services: services.clone(), share: sandbox_share, shutdown: shutdown.clone() };
        let (handle, actor) =
            sandbox::SandboxActor::new(Arc::clone(&services.item_store), clock, root, sockets, services.sandboxes);
        // Sandboxes of an earlier daemon are reopened meanwhile: no socket waits for them.
        serving.spawn(actor.run(shutdown.graceful.clone()));
        sandboxes = Some(handle);
    }
    for (listener, socket) in &listeners {
        let offered = services.of_socket(socket.policy.clone(), listener.name());
        let api = Api::new(SocketServices { sandboxes: sandboxes.clone(), ..offered }.into());
        let options = ServeOptions { limits: socket.limits, share, audit: services.audit.clone() };
        let (listener, shutdown) = (Arc::clone(listener), shutdown.clone());
        serving.spawn(async move { listener.serve(api, options, &shutdown).await });
    }
    let paths: Vec<PathBuf> = listeners.iter().map(|(listener, _)| listener.path().to_owned()).collect();
    tracing::info!(sockets = ?paths, "ready");
    let done = ready(&paths);
    let signal = signals.next().await;
    tracing::info!(signal, "ending");
    shutdown.graceful.cancel();
    // The coordinator finishes storing the grant of a login.
    let ended = async {
        services.logins.shut_down().await;
        services.keys.shut_down().await;
        services.coordinator.shut_down().await;
    };
    let finished = tokio::time::timeout(SHUTDOWN_WORK_TIMEOUT, ended).await;
    let served = async { while serving.join_next().await.is_some() {} };
    let mut served = pin!(served);
    if tokio::time::timeout(FINAL_RESPONSES_TIMEOUT, &mut served).await.is_err() {
        tracing::warn!("some connections were closed before their requests were finished");
        // Tasks that still run hold the sockets open.
        shutdown.immediate.cancel();
        if tokio::time::timeout(FINAL_RESPONSES_TIMEOUT, &mut served).await.is_err() {
            tracing::error!("some sockets could not be closed in order");
        }
    }
    finished.map(|()| done).map_err(|_| LifecycleError::Unfinished)
}

/// The signals that end the daemon. SIGHUP is one: when its terminal goes away, nobody could stop it any more.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hang_up.recv() => "SIGHUP",
        }
    }
}

/// Raises the limit of open files as far as possible. Returns how many connections that allows.
fn raise_open_files() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
    }
    let files = getrlimit(Resource::Nofile)
        .current
        .map_or(MAX_CONNECTIONS, |files| usize::try_from(files).unwrap_or(usize::MAX));
    files.saturating_sub(RESERVED_FILES).clamp(RESERVED_FILES, MAX_CONNECTIONS)
}

/// Divides the connections: how many each configured socket and each sandbox may hold. All sandboxes together share a
/// quarter.
fn shares(connections: usize, sockets: usize, sandboxes: usize) -> (usize, usize) {
    let for_sandboxes = connections / 4;
    ((connections - for_sandboxes) / sockets.max(1), (for_sandboxes / sandboxes.max(1)).max(MIN_CONNECTIONS))
}

/// With fewer, a program behind the socket could not make a request while another one waits.
const MIN_CONNECTIONS: usize = 4;

/// The most connections, however many files may be open: each costs some ten KiB.
const MAX_CONNECTIONS: usize = 65_536;
