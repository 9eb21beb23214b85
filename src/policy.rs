//! What a socket may do.
//!
//! Owns: roles, operations, the allow-list, and the decisions made of them. Pure: no state, no time.
//!
//! Invariant: what is not allowed is refused. A sandbox socket without an allow-list sees nothing.

use std::str::FromStr;

use crate::account::{Account, AccountRef, NameError, ProviderName};

/// What kind of peer a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The person's own programs: everything is allowed.
    Host,
    /// Programs that are not trusted with more than their allow-list.
    Sandbox,
}

/// What a sandbox socket may be allowed to do with an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Get its token, which includes the refresh that this may cause; see how it stands.
    Read,
    /// Ask for a new token.
    Refresh,
    /// Begin a login, and see it through.
    Login,
}

/// One entry of an allow-list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// `provider/bucket`, or `provider` for its bucket `default`.
    Account(Account),
    /// `provider/*`: every bucket.
    Provider(ProviderName),
}

impl FromStr for Pattern {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.strip_suffix("/*") {
            Some(provider) => provider.parse().map(Self::Provider),
            None => text.parse().map(Self::Account),
        }
    }
}

impl Pattern {
    fn covers(&self, account: AccountRef<'_>) -> bool {
        match self {
            Self::Account(allowed) => AccountRef::from(allowed) == account,
            Self::Provider(allowed) => allowed.as_str() == account.provider(),
        }
    }

    const fn provider(&self) -> &ProviderName {
        match self {
            Self::Account(account) => &account.provider,
            Self::Provider(provider) => provider,
        }
    }
}

/// A socket's policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    role: Role,
    allow: Vec<Pattern>,
    operations: Vec<Operation>,
}

impl Policy {
    /// Everything.
    #[must_use]
    pub const fn host() -> Self {
        Self { role: Role::Host, allow: Vec::new(), operations: Vec::new() }
    }

    /// These operations on these accounts.
    #[must_use]
    pub const fn sandbox(allow: Vec<Pattern>, operations: Vec<Operation>) -> Self {
        Self { role: Role::Sandbox, allow, operations }
    }

    /// The role.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// Whether `operation` may be done with `account`.
    #[must_use]
    pub fn permits<'a>(&self, operation: Operation, account: impl Into<AccountRef<'a>>) -> bool {
        self.may(operation) && self.sees(account)
    }

    /// Whether `operation` may be done with any account at all.
    #[must_use]
    pub fn may(&self, operation: Operation) -> bool {
        match self.role {
            Role::Host => true,
            Role::Sandbox => self.operations.contains(&operation),
        }
    }

    /// Whether grants may be put and deleted.
    #[must_use]
    pub fn may_write(&self) -> bool {
        self.role == Role::Host
    }

    /// Whether the account may be known of.
    #[must_use]
    pub fn sees<'a>(&self, account: impl Into<AccountRef<'a>>) -> bool {
        let account = account.into();
        match self.role {
            Role::Host => true,
            Role::Sandbox => self.allow.iter().any(|pattern| pattern.covers(account)),
        }
    }

    /// Whether the provider may be known of.
    #[must_use]
    pub fn sees_provider(&self, provider: &ProviderName) -> bool {
        match self.role {
            Role::Host => true,
            Role::Sandbox => self.allow.iter().any(|pattern| pattern.provider() == provider),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(text: &str) -> Account {
        text.parse().unwrap()
    }

    #[test]
    fn a_sandbox_reaches_its_list_and_nothing_else() {
        let allow = ["anthropic", "github/work", "corp/*"].map(|text| text.parse().unwrap()).to_vec();
        let policy = Policy::sandbox(allow, vec![Operation::Read]);
        for seen in ["anthropic", "github/work", "corp", "corp/any"] {
            assert!(policy.permits(Operation::Read, &account(seen)), "{seen}");
            assert!(!policy.permits(Operation::Refresh, &account(seen)), "{seen}");
        }
        for unseen in ["anthropic/work", "github", "corp2", "other"] {
            assert!(!policy.sees(&account(unseen)) && !policy.permits(Operation::Read, &account(unseen)), "{unseen}");
        }
        assert!(!policy.may_write());
        assert!(policy.sees_provider(&"github".parse().unwrap()) && !policy.sees_provider(&"x".parse().unwrap()));
    }

    #[test]
    fn a_sandbox_without_a_list_sees_nothing_and_the_host_everything() {
        let nothing = Policy::sandbox(vec![], vec![Operation::Read, Operation::Refresh]);
        assert!(!nothing.sees(&account("corp")));
        let host = Policy::host();
        assert!(host.permits(Operation::Refresh, &account("corp")) && host.may_write());
    }

    #[test]
    fn a_pattern_is_an_account_or_a_whole_provider() {
        for bad in ["", "*", "/*", "*/x", "corp/", "corp/**", "corp/a/*", "c*"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }
}
