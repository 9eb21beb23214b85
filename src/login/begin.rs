//! Starting a login: the instructions for the person, and the work that waits for the response.
//!
//! Invariant: waiting for the person can be cancelled at any time. A code exchange and a device poll are never
//! cancelled once they have been sent.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpSocket, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Inner, LoginError, Prompt, device, pkce,
    redirect_listener::{self, RedirectListener},
    response::PendingResponse,
    session::Work,
};
use crate::{
    account::Account,
    grant::Issued,
    policy::Role,
    provider::{Body, Flow, Provider, Refusal, Reply},
};

/// The flows in their default order: a device login needs nothing of this machine, a browser login needs a browser on
/// it.
pub(super) const DEFAULT_FLOW_ORDER: [Flow; 3] = [Flow::Device, Flow::Browser, Flow::Paste];

/// Tells a login when to stop waiting.
pub(super) struct StopSignal {
    pub(super) cancelled: CancellationToken,
    pub(super) stopping: CancellationToken,
}

impl StopSignal {
    /// Returns the reason once there is one, or once `lifetime` has passed.
    async fn after(self, lifetime: Duration) -> LoginError {
        match timeout(lifetime, self.cancelled.cancelled()).await {
            Err(_) => LoginError::Expired,
            Ok(()) if self.stopping.is_cancelled() => LoginError::ShuttingDown,
            Ok(()) => LoginError::NotFound,
        }
    }
}

/// A login that is ready to be spawned as a task.
pub(super) struct PreparedLogin {
    pub(super) prompt: Prompt,
    pub(super) lifetime: Duration,
    pub(super) pending_response: Option<Arc<PendingResponse>>,
    /// The address it listens on, if the registration names the port.
    pub(super) port: Option<SocketAddr>,
    pub(super) redirect_listener: Option<RedirectListener>,
    pub(super) work: Work,
}

impl Inner {
    pub(super) async fn begin_device(
        &self,
        provider: &Arc<dyn Provider>,
        stop: StopSignal,
    ) -> Result<PreparedLogin, LoginError> {
        let verifier = pkce::verifier()?;
        let authorization = provider.start_device(&verifier).await?;
        let lifetime = authorization.lifetime.map_or(self.lifetime, |lifetime| lifetime.min(self.lifetime));
        let prompt = Prompt::Confirm {
            verification_uri: authorization.verification_uri,
            user_code: authorization.user_code,
            complete: authorization.verification_uri_complete,
            interval: authorization.interval,
        };
        let (provider, interval, code) = (Arc::clone(provider), authorization.interval, authorization.device_code);
        let work =
            Box::pin(
                async move { device::poll(provider.as_ref(), &code, &verifier, interval, stop.after(lifetime)).await },
            );
        Ok(PreparedLogin { prompt, lifetime, pending_response: None, port: None, redirect_listener: None, work })
    }

    pub(super) async fn begin_redirect(
        &self,
        provider: &Arc<dyn Provider>,
        account: &Account,
        (flow, role): (Flow, Role),
        stop: StopSignal,
    ) -> Result<PreparedLogin, LoginError> {
        let redirect = provider.redirect_uri();
        let (state, verifier) = (pkce::state()?, pkce::verifier()?);
        let (mut redirect_listener, mut reserved, mut named) = (None, None, None);
        let redirect_uri = match (flow, redirect.listener()) {
            (Flow::Browser, Some((address, port))) => {
                let place = SocketAddr::from((address, port));
                named = Some(place).filter(|_| port != 0);
                let taken = || {
                    if role == Role::Host {
                        self.cancel_sandbox_logins_at(place);
                    }
                };
                let bound = RedirectListener::bind(place, redirect.path(), account, taken).await?;
                redirect.at_port(redirect_listener.insert(bound).port()?)
            }
            (_, Some((address, 0))) => {
                // Nothing answers on this port: the person copies the code from the browser's address line. While the
                // port is bound, no other program of this machine can listen on it.
                let socket = redirect_listener::reserve(address)?;
                let port = socket.local_addr().map_err(|_| LoginError::Internal)?.port();
                reserved = Some(socket);
                redirect.at_port(port)
            }
            (_, listener) => redirect.at_port(listener.map_or(0, |(_, port)| port)),
        };
        let url = provider.authorization_url(&redirect_uri, &state, &verifier).await?;
        let (pending_response, response) = PendingResponse::new(state, Arc::clone(provider));
        let (provider, lifetime) = (Arc::clone(provider), self.lifetime);
        let work = Box::pin(async move {
            let code = tokio::select! {
                biased;
                // A response that has already arrived counts.
                response = response => response.unwrap_or(Err(LoginError::Internal)),
                error = stop.after(lifetime) => Err(error),
            };
            drop::<Option<TcpSocket>>(reserved);
            let code = code?;
            issued(provider.exchange(&code, &redirect_uri, &verifier).await)
        });
        let (prompt, pending_response) = (Prompt::Visit(url.into()), Some(Arc::new(pending_response)));
        Ok(PreparedLogin { prompt, lifetime, pending_response, port: named, redirect_listener, work })
    }
}

/// The result of an exchange.
fn issued(reply: Reply) -> Result<Box<Issued>, LoginError> {
    match reply {
        Reply::Answered { body: Body::Issued(issued), .. } => Ok(issued),
        Reply::Answered { body: Body::Error(code), .. } => {
            Err(Refusal { reason: "the provider did not accept the code", code: Some(code) }.into())
        }
        Reply::Answered { body: Body::Unreadable, .. } => Err("the provider's answer is not readable".into()),
        Reply::Lost { timed_out: true } => Err("the provider did not answer in time".into()),
        Reply::Lost { timed_out: false } => Err("the provider's answer broke off".into()),
        Reply::NotSent(why) => Err(why.into()),
    }
}
