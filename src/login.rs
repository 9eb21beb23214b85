//! Logins: how a person's consent becomes a grant.
//!
//! Owns: [`Logins`], the logins under way with one task each, who may see them, and their limits. Its children own one
//! login's state, the authorization response, the redirect listener, the polling of a device login, and the limiter.
//!
//! Invariants:
//! 1. A login belongs to the socket and the user that started it. To everybody else it does not exist.
//! 2. A login takes one answer. Its verifier and device code go to the provider alone; its state goes there and back by
//!    the person's browser.
//! 3. What an answer sets off is carried to its end by the login's own task, whoever hangs up, cancels it or ends the
//!    daemon: a code is spent once the provider has it. It is a new grant: the account's cooldown and latch end with the
//!    old one.
//! 4. A login that failed has stored nothing, and none outlives its lifetime or the process.
//! 5. A login of a sandbox's never replaces a grant that is of use still, and takes neither the host's last places nor
//!    the port of a registration from it.
//!
//! Must not know: the API's form, what an exchange looks like on the wire, SQL.

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

/// Logins remembered after their end, so that whoever began them learns of it.
const MAX_ENDED_LOGINS: usize = 100;

/// Who began a login (invariant 1).
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
    /// Its name in the API.
    pub id: LoginId,
    /// What it logs in to.
    pub account: Account,
    /// How.
    pub flow: Flow,
    /// What the person is to do.
    pub prompt: Prompt,
    /// When it gives up waiting.
    pub expires_at: Timestamp,
    /// How far it is.
    pub progress: Progress,
}

/// What the person is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Open this address, and for [`Flow::Paste`] bring back the code.
    Visit(String),
    /// Open the address and type the code in.
    Confirm {
        /// The address.
        verification_uri: String,
        /// The code.
        user_code: String,
        /// The address with the code in it.
        complete: Option<String>,
        /// How often the provider is asked.
        interval: Duration,
    },
}

/// How far a login is.
#[derive(Debug, Clone)]
pub enum Progress {
    /// It waits for the person, or for the provider's answer.
    Pending,
    /// The grant is stored.
    Complete,
    /// It ended without one.
    Failed(LoginError),
}

/// Why there is no login, or none any more. Everything in it may be shown to the caller.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoginError {
    /// The configuration has no such provider.
    #[error("no provider of this name is configured")]
    NotConfigured,
    /// The provider has no such flow, or none at all.
    #[error("the provider does not offer this login flow; see /v1/providers")]
    NotOffered,
    /// As many wait as may, altogether or on this socket.
    #[error("too many logins are under way: finish or cancel one")]
    TooMany {
        /// When to try again.
        wait: Duration,
    },
    /// This socket has begun as many as it may for now, whatever became of them.
    #[error("this socket has begun too many logins: wait before the next one")]
    TooOften {
        /// When to try again.
        wait: Duration,
    },
    /// The port that the registration names cannot be listened on.
    #[error("the port of the provider's redirect_uri is in use: end the other login, or use another flow")]
    PortTaken {
        /// When to try again.
        wait: Duration,
    },
    /// Never begun, forgotten, cancelled, or another's.
    #[error("there is no such login: it was cancelled, is long over, or was begun on another socket")]
    NotFound,
    /// The person took too long.
    #[error("the login took too long: begin a new one")]
    Expired,
    /// It has had its answer.
    #[error("this login has had its answer: begin a new one")]
    AlreadyUsed,
    /// A device login.
    #[error("a device login takes no code: the person types one in at the provider's page")]
    TakesNoCode,
    /// What was pasted is no code, no `code#state` and no redirect address.
    #[error("this is no authorization code")]
    Malformed,
    /// The person or the provider refused, or the provider failed.
    #[error("{reason}{}", code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default())]
    Exchange {
        /// In words of ours.
        reason: &'static str,
        /// The provider's error code, if it has one that may be shown.
        code: Option<String>,
    },
    /// The provider agreed, and what is stored was left as it is.
    #[error("{0}")]
    GrantConflict(&'static str),
    /// The provider agreed, and the grant could not be stored.
    #[error(transparent)]
    Store(RefreshError),
    /// The daemon is about to end.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// A fault of ours.
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
    /// Logins whose grants the coordinator stores. Each waits for its person for `lifetime`, and is remembered for as
    /// long after its end.
    #[must_use]
    pub fn new(coordinator: Coordinator, lifetime: Duration) -> Self {
        Self::within(coordinator, lifetime, LoginLimits::default())
    }

    /// The same, no more of them at once than the limits say.
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

    /// Begins a login; without a flow, with the first that the provider offers of device, browser and paste.
    pub async fn start(&self, owner: Owner, account: Account, flow: Option<Flow>) -> Result<Login, LoginError> {
        let inner = &self.0;
        if inner.stopping.is_cancelled() {
            return Err(LoginError::ShuttingDown);
        }
        let provider = inner.coordinator.providers().get(&account.provider).ok_or(LoginError::NotConfigured)?;
        if owner.role == Role::Sandbox {
            // It is looked at again when the grant is to be stored.
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

    /// How the login stands.
    pub fn status(&self, owner: &Owner, id: LoginId) -> Result<Login, LoginError> {
        self.0.find(owner, id)?.current_status()
    }

    /// The same, once it stands otherwise than pending or `limit` has passed.
    pub async fn wait(&self, owner: &Owner, id: LoginId, limit: Duration) -> Result<Login, LoginError> {
        let session = self.0.find(owner, id)?;
        // A time that is up is no error: the login is pending still.
        timeout(limit, session.ended()).await.ok();
        session.current_status()
    }

    /// Brings the answer of a browser or paste login: a code, `code#state`, or the whole address that the browser was
    /// sent to. Waits for what comes of it.
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

    /// Ends the login at once unless it has had its answer, and forgets it.
    pub fn cancel(&self, owner: &Owner, id: LoginId) -> Result<(), LoginError> {
        let session = self.0.find(owner, id)?;
        self.0.sessions().remove(&id);
        session.cancelled.cancel();
        Ok(())
    }

    /// Ends and forgets what was begun on a socket that is gone.
    pub fn cancel_all_of_socket(&self, socket: &str) {
        self.0.sessions().retain(|_, session| {
            let stays = &*session.owner.socket != socket;
            if !stays {
                session.cancelled.cancel();
            }
            stays
        });
    }

    /// Begins no login any more and ends those under way; waits for those that have had their answer, and until the last
    /// of the tasks is gone.
    pub async fn shut_down(&self) {
        self.0.stopping.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl Inner {
    /// The life of one login, from its beginning until it is forgotten.
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

    /// Ends the logins of sandboxes that listen there: the host's own comes first.
    fn cancel_sandbox_logins_at(&self, place: SocketAddr) {
        self.sessions().retain(|_, session| {
            let stays = session.owner.role == Role::Host || session.port != Some(place) || session.has_ended();
            if !stays {
                tracing::info!(account = %session.account, socket = %session.owner.socket, "a login makes room for the host's");
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
            // Whose it is may not be for whoever began the login to know.
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

    /// Takes a login in; of those that have ended, the one that began first makes room.
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

/// Sees to it that a login is gone when its task is, whatever ended it.
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
