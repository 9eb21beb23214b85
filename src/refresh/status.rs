//! The status overview of accounts, without any token in it.

use super::{Inner, cooldown::cut_off, flight::given_up, slot::Snapshot};
use crate::{
    account::Account,
    clock::Timestamp,
    store::{Entry, Outcome, Record, RefreshState},
};

/// The status of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountState {
    /// The access token is valid.
    Valid,
    /// It is valid, but so near its expiry that a read would refresh it.
    Expiring,
    /// It has expired.
    Expired,
    /// A person must log in again.
    ReauthRequired,
    /// Its expiry is unknown, or the record cannot be read.
    Unknown,
}

/// One line of the overview.
#[derive(Debug)]
pub struct Status {
    /// The account.
    pub account: Account,
    /// Its status.
    pub state: AccountState,
    /// When the access token expires.
    pub expires_at: Option<Timestamp>,
    /// The granted scope.
    pub scope: Option<String>,
    /// Whether there is a refresh token.
    pub refreshable: bool,
    /// When it was last refreshed.
    pub refreshed_at: Option<Timestamp>,
    /// The error of the last attempt.
    pub last_error: Option<String>,
}

impl Inner {
    pub(super) fn status(&self, entry: Entry) -> Status {
        let slot = self.slots().get(&entry.account).cloned();
        let (unsaved, flying) = slot.as_ref().map_or((None, false), |slot| {
            let state = slot.lock();
            (state.unsaved.clone(), state.flight.is_some())
        });
        let snapshot = match (unsaved, entry.record, slot) {
            (Some(unsaved), ..) => unsaved,
            (None, Ok(record), Some(slot)) => {
                self.snapshot_in(&slot, &entry.account, &record.grant, record.refresh_state)
            }
            (None, Ok(record), None) => self.snapshot(&entry.account, &record.grant, record.refresh_state),
            (None, Err(_), _) => {
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
            state: self.state(&snapshot),
            expires_at: token.expires_at,
            scope: token.scope.clone(),
            refreshable: token.refreshable,
            refreshed_at: (token.version.generation > 1).then_some(token.issued_at),
            // A presentation of the flight under way is not an error.
            last_error: last_error(&snapshot.refresh_state)
                .filter(|_| !flying || cut_off(&snapshot.refresh_state).is_none()),
        }
    }

    /// Whether the grant is still usable.
    pub(super) fn is_usable(&self, account: &Account, record: &Record) -> bool {
        let snapshot = self.snapshot(account, &record.grant, record.refresh_state.clone());
        match self.state(&snapshot) {
            AccountState::ReauthRequired => false,
            AccountState::Expired => snapshot.token.refreshable,
            AccountState::Valid | AccountState::Expiring | AccountState::Unknown => true,
        }
    }

    fn state(&self, snapshot: &Snapshot) -> AccountState {
        let token = &snapshot.token;
        if snapshot.refresh_state.dead.is_some() || given_up(&snapshot.refresh_state, snapshot.expired(&*self.clock)) {
            AccountState::ReauthRequired
        } else if token.expires_at.is_none() {
            AccountState::Unknown
        } else if snapshot.expired(&*self.clock) {
            AccountState::Expired
        } else if self.has_enough_validity(snapshot, None) {
            AccountState::Valid
        } else {
            AccountState::Expiring
        }
    }
}

/// The error of the last attempt: the provider's code, or one of our own words.
pub(super) fn last_error(refresh_state: &RefreshState) -> Option<String> {
    if cut_off(refresh_state).is_some() {
        return Some("interrupted".to_owned());
    }
    let copied = refresh_state.copied_at.map(|_| "store_copied".to_owned());
    let Some(attempt) = &refresh_state.attempt else { return copied };
    let word = match attempt.outcome {
        Outcome::Success => return copied,
        Outcome::Final => "grant_dead",
        Outcome::Configuration => "configuration",
        Outcome::NotSpent => "provider_unavailable",
        Outcome::Refused => "refused",
        Outcome::Ambiguous => "answer_lost",
    };
    Some(attempt.code.clone().unwrap_or_else(|| word.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Attempt, Presentation};

    #[test]
    fn a_presentation_without_an_end_is_told_from_one_whose_answer_was_lost() {
        let at = Timestamp::from_secs;
        let mark = |seconds| Some(Presentation { at: at(seconds), count: 1 });
        let attempt =
            |outcome| Some(Attempt { ended_at: at(10), outcome, code: None, consecutive: 1, not_before: at(10) });
        let word = |presented, attempt| last_error(&RefreshState { presented, attempt, dead: None, copied_at: None });
        assert_eq!(word(None, None), None);
        assert_eq!(word(mark(1), None).as_deref(), Some("interrupted"));
        assert_eq!(word(mark(20), attempt(Outcome::Success)).as_deref(), Some("interrupted"));
        assert_eq!(word(mark(5), attempt(Outcome::Ambiguous)).as_deref(), Some("answer_lost"));
        assert_eq!(word(None, attempt(Outcome::NotSpent)).as_deref(), Some("provider_unavailable"));
    }
}
