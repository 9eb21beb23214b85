//! Logins: how a person's consent becomes a grant.
//!
//! Owns: [`Logins`], the logins under way with one task each, who may see them, and their limits. Its children own one
//! login's state, the authorization response, the redirect listener, the polling of a device login, and the limiter.
//!
//! Invariants:
//! 1. A login belongs to the socket and the user that started it. To everybody else it does not exist.
//! 2. A login takes one answer. Its verifier and device code go to the provider alone; its state goes there and back by
//!    the person's browser.
//! 3. Once the provider's response has arrived, the login's own task processes it to the end, even if the login is
//!    cancelled, the client disconnects or the daemon stops: a code is spent once the provider has it. A login brings a
//!    new grant: the account's cooldown and its dead mark end with the old one.
//! 4. A login that failed has stored nothing, and none outlives its lifetime or the process.
//! 5. A sandbox's login never replaces a grant that is still usable, and takes neither the permits reserved for the
//!    host nor a registered redirect port from the host.
//!
//! Must not know: the format of the API, the exchange on the wire, SQL.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    account::Account,
    clock::Timestamp,
    grant::Issued,
    limits::LoginLimits,
    policy::Role,
    provider::{Flow, Refusal},
    refresh::{Coordinator, RefreshError, condition::IfMatch},
};

mod begin;
mod device;
mod limiter;
mod pkce;
mod redirect_listener;
mod response;
mod session;

use begin::{DEFAULT_FLOW_ORDER, StopSignal};
use limiter::{LoginLimiter, LoginPermit};
use redirect_listener::RedirectListener;
use session::{Session, SessionSetup, Work};

pub use session::LoginId;

/// Ended logins that are remembered, so that their owners learn the result.
const MAX_ENDED_LOGINS: usize = 100;

/// The owner of a login (invariant 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The socket's name in the configuration.
    pub socket: Arc<str>,
    /// What kind of peer that socket is for.
    pub role: Role,
    /// The peer's user id.
    pub uid: u32,
}

/// A login as its owner may see it.
#[derive(Debug, Clone)]
pub struct Login {
    /// Its id in the API.
    pub id: LoginId,
    /// The account that it logs in to.
    pub account: Account,
    /// Its flow.
    pub flow: Flow,
    /// What the person has to do.
    pub prompt: Prompt,
    /// When it expires.
    pub expires_at: Timestamp,
    /// Its status.
    pub progress: Progress,
}

/// What the person has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Open this address and, for [`Flow::Paste`], bring back the code.
    Visit(String),
    /// Open the address and enter the code.
    Confirm {
        /// The address.
        verification_uri: String,
        /// The code.
        user_code: String,
        /// The address with the code in it.
        complete: Option<String>,
        /// The interval between two polls of the provider.
        interval: Duration,
    },
}

/// The status of a login.
#[derive(Debug, Clone)]
pub enum Progress {
    /// It waits for the person or for the provider's response.
    Pending,
    /// The grant is stored.
    Complete,
    /// It failed.
    Failed(LoginError),
}

/// Why there is no login, or no longer one. Everything in it may be shown to the caller.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoginError {
    /// The configuration has no such provider.
    #[error("no provider of this name is configured")]
    NotConfigured,
    /// The provider does not support this flow, or no flow at all.
    #[error("the provider does not offer this login flow; see /v1/providers")]
    NotOffered,
    /// Too many logins are pending, in total or on this socket.
    #[error("too many logins are under way: finish or cancel one")]
    TooMany {
        /// When to try again.
        wait: Duration,
    },
    /// This socket has started too many logins lately, whatever became of them.
    #[error("this socket has begun too many logins: wait before the next one")]
    TooOften {
        /// When to try again.
        wait: Duration,
    },
    /// The port of the registered redirect URI cannot be bound.
    #[error("the port of the provider's redirect_uri is in use: end the other login, or use another flow")]
    PortTaken {
        /// When to try again.
        wait: Duration,
    },
    /// Unknown id, forgotten, cancelled, or another owner's.
    #[error("there is no such login: it was cancelled, is long over, or was begun on another socket")]
    NotFound,
    /// The login expired.
    #[error("the login took too long: begin a new one")]
    Expired,
    /// The login has had its response already.
    #[error("this login was already completed: begin a new one")]
    AlreadyUsed,
    /// A device login takes no code.
    #[error("a device login takes no code: the person types one in at the provider's page")]
    TakesNoCode,
    /// The pasted text is no code, no `code#state` and no redirect address.
    #[error("not a valid authorization code")]
    Malformed,
    /// The person or the provider refused, or the provider failed.
    #[error("{reason}{}", code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default())]
    Exchange {
        /// A description in our own words.
        reason: &'static str,
        /// The provider's error code, if there is one that may be shown.
        code: Option<String>,
    },
    /// The provider agreed, but the stored grant was kept.
    #[error("{0}")]
    GrantConflict(&'static str),
    /// The provider agreed, but the grant could not be stored.
    #[error(transparent)]
    Store(RefreshError),
    /// The daemon is stopping.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// An internal error.
    #[error("internal error")]
    Internal,
}

impl From<Refusal> for LoginError {
    fn from(refusal: Refusal) -> Self {
        let code = refusal.code.as_ref().and_then(|code| code.shown());
        Self::Exchange { reason: refusal.reason, code: code.map(str::to_owned) }
    }
}

impl From<&'static str> for LoginError {
    fn from(reason: &'static str) -> Self {
        Self::Exchange { reason, code: None }
    }
}

/// The logins under way. Clones share them.
#[derive(Debug, Clone)]
pub struct Logins(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    coordinator: Coordinator,
    lifetime: Duration,
    sessions: Mutex<HashMap<LoginId, Arc<Session>>>,
    limiter: Arc<LoginLimiter>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl Logins {
    /// Logins whose grants are stored by the coordinator. Each one waits for its person for `lifetime`, and is
    /// remembered for as long after its end.
    #[must_use]
    pub fn new(coordinator: Coordinator, lifetime: Duration) -> Self {
        Self::within(coordinator, lifetime, LoginLimits::default())
    }

    /// [`Logins::new`] with limits on the number of pending logins.
    #[must_use]
    pub fn within(coordinator: Coordinator, lifetime: Duration, limits: LoginLimits) -> Self {
        Self(Arc::new(Inner {
            coordinator,
            lifetime,
            sessions: Mutex::default(),
            limiter: Arc::new(LoginLimiter::new(limits)),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }))
    }

    /// Starts a login. The default flow is the first one that the provider offers of device, browser and paste.
    pub async fn start(&self, owner: Owner, account: Account, flow: Option<Flow>) -> Result<Login, LoginError> {
        let inner = &self.0;
        if inner.stopping.is_cancelled() {
            return Err(LoginError::ShuttingDown);
        }
        let provider = inner.coordinator.providers().get(&account.provider).ok_or(LoginError::NotConfigured)?;
        if owner.role == Role::Sandbox {
            // Checked again when the grant is stored.
            inner.coordinator.refuse_if_usable(&account).await.map_err(LoginError::Store)?;
        }
        let clock = inner.coordinator.clock();
        let permit = inner.limiter.acquire(&owner, clock.monotonic())?;
        provider.prepare_login().await?;
        let offered = provider.flows();
        let wanted = flow.as_ref().map_or(&DEFAULT_FLOW_ORDER[..], std::slice::from_ref);
        let flow = *wanted.iter().find(|flow| offered.contains(flow)).ok_or(LoginError::NotOffered)?;
        let stop = StopSignal { cancelled: inner.stopping.child_token(), stopping: inner.stopping.clone() };
        let cancelled = stop.cancelled.clone();
        let begun = match flow {
            Flow::Device => inner.begin_device(provider, stop).await?,
            Flow::Browser | Flow::Paste => inner.begin_redirect(provider, &account, (flow, owner.role), stop).await?,
        };
        let expires_at = clock.now().plus(begun.lifetime);
        let setup = SessionSetup { expires_at, pending_response: begun.pending_response, cancelled, port: begun.port };
        let session = Arc::new(Session::new(owner, account, flow, begun.prompt, setup)?);
        tracing::info!(account = %session.account, flow = flow.name(), "login begun");
        inner.remember(&session);
        let (login, inner) = (session.login(), Arc::clone(inner));
        self.0.tasks.spawn(inner.drive(session, begun.work, begun.redirect_listener, permit));
        Ok(login)
    }

    /// Returns the status of the login.
    pub fn status(&self, owner: &Owner, id: LoginId) -> Result<Login, LoginError> {
        self.0.find(owner, id)?.current_status()
    }

    /// Returns the status of the login once it is no longer pending, or after `limit`.
    pub async fn wait(&self, owner: &Owner, id: LoginId, limit: Duration) -> Result<Login, LoginError> {
        let session = self.0.find(owner, id)?;
        // A timeout is not an error: the login is still pending.
        timeout(limit, session.ended()).await.ok();
        session.current_status()
    }

    /// Completes a browser or paste login with a code, `code#state`, or the whole address that the browser was sent to.
    /// Waits for the result.
    pub async fn paste(&self, owner: &Owner, id: LoginId, text: &str) -> Result<Login, LoginError> {
        let session = self.0.find(owner, id)?;
        session.current_status()?;
        let pending_response = session.pending_response.as_ref().ok_or(LoginError::TakesNoCode)?;
        pending_response.settle(pending_response.parse_pasted(text)?)?;
        session.ended().await;
        match session.current_status()? {
            Login { progress: Progress::Failed(error), .. } => Err(error),
            login => Ok(login),
        }
    }

    /// Cancels the login, unless its response has arrived, and forgets it.
    pub fn cancel(&self, owner: &Owner, id: LoginId) -> Result<(), LoginError> {
        let session = self.0.find(owner, id)?;
        self.0.sessions().remove(&id);
        session.cancelled.cancel();
        Ok(())
    }

    /// Cancels and forgets the logins of a socket that has been removed.
    pub fn cancel_all_of_socket(&self, socket: &str) {
        self.0.sessions().retain(|_, session| {
            let stays = &*session.owner.socket != socket;
            if !stays {
                session.cancelled.cancel();
            }
            stays
        });
    }

    /// Accepts no more logins and cancels the pending ones. Waits for those that have had their response, and until all
    /// tasks have ended.
    pub async fn shut_down(&self) {
        self.0.stopping.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl Inner {
    /// The life of one login, from its start until it is forgotten.
    async fn drive(
        self: Arc<Self>,
        session: Arc<Session>,
        work: Work,
        redirect_listener: Option<RedirectListener>,
        permit: LoginPermit,
    ) {
        let forgotten = ForgetOnDrop { inner: &self, session: &session };
        let work = async {
            let outcome = match work.await {
                Ok(issued) => self.store(&session, *issued).await,
                Err(error) => Err(error),
            };
            session.end(outcome);
            drop(permit);
        };
        let serving = async {
            if let Some(redirect_listener) = redirect_listener {
                redirect_listener.serve(&session).await;
            }
        };
        tokio::join!(work, serving);
        session.cancelled.run_until_cancelled(tokio::time::sleep(self.lifetime)).await;
        drop(forgotten);
    }

    /// Cancels the logins of sandboxes that listen on this address: the host's own logins take precedence.
    fn cancel_sandbox_logins_at(&self, place: SocketAddr) {
        self.sessions().retain(|_, session| {
            let stays = session.owner.role == Role::Host || session.port != Some(place) || session.has_ended();
            if !stays {
                tracing::info!(account = %session.account, socket = %session.owner.socket, "cancelled a sandbox's login in favour of the host's");
                session.cancelled.cancel();
            }
            stays
        });
    }

    async fn store(&self, session: &Session, issued: Issued) -> Result<(), LoginError> {
        if issued.reveals(None) {
            return Err("the provider's access token is or holds its refresh token, which never leaves".into());
        }
        let put = match session.owner.role {
            Role::Host => self.coordinator.put(&session.account, issued, &IfMatch::Absent).await,
            Role::Sandbox => self.coordinator.put_unless_usable(&session.account, issued).await,
        };
        match put {
            Ok(_) => Ok(()),
            // The owner of the other login may not be disclosed to this one.
            Err(RefreshError::GrantConflict(_)) => Err(LoginError::GrantConflict(
                "the provider issued a refresh token that this daemon has used before or holds for another account; \
                 nothing was changed",
            )),
            Err(error) => Err(LoginError::Store(error)),
        }
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<LoginId, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, owner: &Owner, id: LoginId) -> Result<Arc<Session>, LoginError> {
        let sessions = self.sessions();
        sessions.get(&id).filter(|session| session.owner == *owner).cloned().ok_or(LoginError::NotFound)
    }

    /// Adds a login. If too many ended ones are remembered, the one that was started first is dropped.
    fn remember(&self, session: &Arc<Session>) {
        let mut sessions = self.sessions();
        let ended = sessions.values().filter(|session| session.has_ended());
        if ended.clone().count() >= MAX_ENDED_LOGINS
            && let Some(oldest) = ended.min_by_key(|session| session.expires_at).cloned()
        {
            sessions.remove(&oldest.id);
            oldest.cancelled.cancel();
        }
        sessions.insert(session.id, Arc::clone(session));
    }
}

/// Removes the login when its task ends, however it ends.
struct ForgetOnDrop<'a> {
    inner: &'a Inner,
    session: &'a Session,
}

impl Drop for ForgetOnDrop<'_> {
    fn drop(&mut self) {
        self.session.end(Err(LoginError::NotFound));
        self.inner.sessions().remove(&self.session.id);
    }
}

#[cfg(test)]
mod tests;
