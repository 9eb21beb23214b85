//! What a socket may do.
//!
//! Owns: roles, operations, allow-lists, and the decisions that follow from them. Pure: no state, no time.
//!
//! Invariant: what is not allowed is refused. A sandbox socket without an allow-list sees nothing.

use std::{fmt, str::FromStr};

use crate::account::{Account, AccountRef, KeyName, NameError, ProviderName};

/// What kind of peer a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The person's own programs: everything is allowed.
    Host,
    /// Programs that are not trusted with more than their allow-list.
    Sandbox,
}

/// What a sandbox socket may be allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Get a token, including the refresh that this may cause, and see its status.
    Read,
    /// Ask for a new token.
    Refresh,
    /// Start and complete a login.
    Login,
    /// Get an API key.
    Keys,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 4] = [Self::Read, Self::Refresh, Self::Login, Self::Keys];

    /// Its name in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Refresh => "refresh",
            Self::Login => "login",
            Self::Keys => "keys",
        }
    }
}

/// The text is not the name of an operation. It is not repeated: it may contain anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be \"read\", \"refresh\", \"login\" or \"keys\"")]
pub struct OperationError;

impl FromStr for Operation {
    type Err = OperationError;

    fn from_str(text: &str) -> Result<Self, OperationError> {
        Self::ALL.into_iter().find(|known| known.as_str() == text).ok_or(OperationError)
    }
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

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account(account) => write!(formatter, "{account}"),
            Self::Provider(provider) => write!(formatter, "{provider}/*"),
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

    /// The provider of the entry.
    #[must_use]
    pub const fn provider(&self) -> &ProviderName {
        match self {
            Self::Account(account) => &account.provider,
            Self::Provider(provider) => provider,
        }
    }
}

/// What a sandbox is allowed. Everything else is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    /// The accounts.
    pub allow: Vec<Pattern>,
    /// The operations on the accounts and API keys.
    pub operations: Vec<Operation>,
    /// The API keys.
    pub keys: Vec<KeyName>,
}

impl Allowed {
    /// What a configuration, a request or a command line asks for. Operations that are not named are `read` and `refresh`;
    /// keys that are named bring the operation `keys` along.
    #[must_use]
    pub fn new(allow: Vec<Pattern>, operations: Option<Vec<Operation>>, keys: Vec<KeyName>) -> Self {
        let mut operations = operations.unwrap_or_else(|| vec![Operation::Read, Operation::Refresh]);
        if !keys.is_empty() && !operations.contains(&Operation::Keys) {
            operations.push(Operation::Keys);
        }
        Self { allow, operations, keys }
    }
}

/// A socket's policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    role: Role,
    /// The policy of a sandbox.
    allowed: Allowed,
}

impl Policy {
    /// Everything.
    #[must_use]
    pub const fn host() -> Self {
        Self { role: Role::Host, allowed: Allowed { allow: Vec::new(), operations: Vec::new(), keys: Vec::new() } }
    }

    /// What these lists allow.
    #[must_use]
    pub const fn sandbox(allowed: Allowed) -> Self {
        Self { role: Role::Sandbox, allowed }
    }

    /// The role.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// Whether `operation` is allowed on `account`.
    #[must_use]
    pub fn permits<'a>(&self, operation: Operation, account: impl Into<AccountRef<'a>>) -> bool {
        self.may(operation) && self.sees(account)
    }

    /// Whether `operation` is allowed on any account at all.
    #[must_use]
    pub fn may(&self, operation: Operation) -> bool {
        match self.role {
            Role::Host => true,
            Role::Sandbox => self.allowed.operations.contains(&operation),
        }
    }

    /// Whether grants and API keys may be put and deleted.
    #[must_use]
    pub fn may_write(&self) -> bool {
        self.role == Role::Host
    }

    /// Whether the account's existence may be disclosed.
    #[must_use]
    pub fn sees<'a>(&self, account: impl Into<AccountRef<'a>>) -> bool {
        let account = account.into();
        match self.role {
            Role::Host => true,
            Role::Sandbox => self.allowed.allow.iter().any(|pattern| pattern.covers(account)),
        }
    }

    /// Whether the provider's existence may be disclosed.
    #[must_use]
    pub fn sees_provider(&self, provider: &ProviderName) -> bool {
        match self.role {
            Role::Host => true,
            Role::Sandbox => self.allowed.allow.iter().any(|pattern| pattern.provider() == provider),
        }
    }

    /// Whether the API key may be read. Otherwise its existence is not disclosed either.
    #[must_use]
    pub fn permits_key(&self, key: &KeyName) -> bool {
        match self.role {
            Role::Host => true,
            Role::Sandbox => self.may(Operation::Keys) && self.allowed.keys.contains(key),
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
        let policy = Policy::sandbox(Allowed { allow, operations: vec![Operation::Read], ..Allowed::default() });
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
        let nothing = Policy::sandbox(Allowed { operations: Operation::ALL.to_vec(), ..Allowed::default() });
        assert!(!nothing.sees(&account("corp")) && !nothing.permits_key(&"openai".parse().unwrap()));
        let host = Policy::host();
        assert!(host.permits(Operation::Refresh, &account("corp")) && host.may_write());
        assert!(host.permits_key(&"openai".parse().unwrap()));
    }

    #[test]
    fn a_key_needs_the_operation_and_its_name_on_the_list() {
        let keys = vec!["openai".parse().unwrap()];
        let allow = vec!["other".parse().unwrap()];
        let policy = Policy::sandbox(Allowed { allow, operations: vec![Operation::Keys], keys: keys.clone() });
        assert!(policy.permits_key(&keys[0]));
        for unseen in ["other", "OpenAI", "openai2", "open"] {
            assert!(!policy.permits_key(&unseen.parse().unwrap()), "{unseen}");
        }
        let others = vec![Operation::Read, Operation::Refresh, Operation::Login];
        assert!(
            !Policy::sandbox(Allowed { operations: others, keys, ..Allowed::default() })
                .permits_key(&"openai".parse().unwrap())
        );
    }

    #[test]
    fn keys_that_are_named_bring_their_operation_along() {
        let keys = || vec!["openai".parse().unwrap()];
        let read = || Some(vec![Operation::Read]);
        for (operations, keys, expected) in [
            (None, Vec::new(), vec![Operation::Read, Operation::Refresh]),
            (None, keys(), vec![Operation::Read, Operation::Refresh, Operation::Keys]),
            (read(), Vec::new(), vec![Operation::Read]),
            (read(), keys(), vec![Operation::Read, Operation::Keys]),
            (Some(vec![Operation::Keys]), keys(), vec![Operation::Keys]),
            (Some(Vec::new()), Vec::new(), Vec::new()),
        ] {
            assert_eq!(Allowed::new(Vec::new(), operations, keys).operations, expected);
        }
    }

    #[test]
    fn an_operation_has_one_name() {
        for operation in Operation::ALL {
            assert_eq!(operation.as_str().parse(), Ok(operation));
            assert!(OperationError.to_string().contains(operation.as_str()));
        }
        for bad in ["", "Read", "write", "keys "] {
            assert_eq!(bad.parse::<Operation>(), Err(OperationError), "{bad:?}");
        }
    }

    #[test]
    fn a_pattern_is_an_account_or_a_whole_provider() {
        for bad in ["", "*", "/*", "*/x", "corp/", "corp/**", "corp/a/*", "c*"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }
}
