//! How accounts stand: the overview, without a token in it.

use super::{Inner, flight::given_up, slot::Snapshot};
use crate::{
    account::Account,
    clock::Timestamp,
    store::{Entry, Marks, Outcome},
};

/// How an account stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountState {
    /// The access token is good.
    Valid,
    /// It is good, and so near its end that a reader would have it refreshed.
    Expiring,
    /// It is of no use.
    Expired,
    /// A person must log in again.
    ReauthRequired,
    /// Nothing is known of its life, or the record cannot be read.
    Unknown,
}

/// One line of the overview.
#[derive(Debug)]
pub struct Status {
    /// Whose.
    pub account: Account,
    /// How it stands.
    pub state: AccountState,
    /// The access token's end.
    pub expires_at: Option<Timestamp>,
    /// The granted scope.
    pub scope: Option<String>,
    /// Whether there is a refresh token.
    pub refreshable: bool,
    /// When it was refreshed last.
    pub refreshed_at: Option<Timestamp>,
    /// What the last attempt failed of.
    pub last_error: Option<String>,
}

impl Inner {
    pub(super) fn status(&self, entry: Entry, now: Timestamp) -> Status {
        let unsaved = self.slots().get(&entry.account).and_then(|slot| slot.lock().unsaved.clone());
        let snapshot = match (unsaved, entry.record) {
            (Some(unsaved), _) => unsaved,
            (None, Ok(record)) => self.snapshot(&entry.account, &record.grant, record.marks),
            (None, Err(_)) => {
                return Status {
                    account: entry.account,
                    state: AccountState::Unknown,
                    expires_at: None,
                    scope: None,
                    refreshable: false,
                    refreshed_at: None,
                    last_error: Some("record_unreadable".to_owned()),
                };
            }
        };
        let token = &snapshot.token;
        Status {
            account: entry.account,
            state: self.state(&snapshot, now),
            expires_at: token.expires_at,
            scope: token.scope.clone(),
            refreshable: token.refreshable,
            refreshed_at: (token.version.generation > 1).then_some(token.issued_at),
            last_error: last_error(&snapshot.marks),
        }
    }

    fn state(&self, snapshot: &Snapshot, now: Timestamp) -> AccountState {
        let token = &snapshot.token;
        if snapshot.marks.latch.is_some() || given_up(&snapshot.marks, token.expired(now)) {
            AccountState::ReauthRequired
        } else if token.expires_at.is_none() {
            AccountState::Unknown
        } else if token.expired(now) {
            AccountState::Expired
        } else if self.lasts(token, None) {
            AccountState::Valid
        } else {
            AccountState::Expiring
        }
    }
}

/// What the last attempt failed of: the provider's code, or a word of ours.
pub(super) fn last_error(marks: &Marks) -> Option<String> {
    let attempt = marks.attempt.as_ref()?;
    let word = match attempt.outcome {
        Outcome::Success => return None,
        Outcome::Final => "grant_dead",
        Outcome::Configuration => "configuration",
        Outcome::NotSpent => "provider_unavailable",
        Outcome::Refused => "refused",
        Outcome::Ambiguous => "answer_lost",
    };
    Some(attempt.code.clone().unwrap_or_else(|| word.to_owned()))
}
