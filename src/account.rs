//! Names: of providers, buckets, API keys and store items; and accounts, which are a provider and a bucket.
//!
//! Invariants:
//! 1. A name matches `[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}`, so it is safe in a path, a header, a log line and a file.
//! 2. No name contains the text `refresh_token`, in any case: names are echoed in answers, and that text never leaves.

use std::{fmt, str::FromStr, sync::Arc};

use hashbrown::Equivalent;
use serde::{Deserialize, Serialize};

use crate::secret::holds_forbidden_text;

/// The longest name, in bytes.
pub const MAX_NAME: usize = 128;

/// Why a text is not a name. The text itself is not repeated: it may be anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not of the form in invariant 1.
    #[error(
        "a name starts with a letter or digit, goes on with letters, digits and ._@+-, and has at most 128 of them"
    )]
    Malformed,
    /// Contains the text of invariant 2.
    #[error("a name must not contain \"refresh_token\"")]
    Forbidden,
}

impl NameError {
    /// The text for an answer over a socket, which must not contain `refresh_token` itself.
    pub(crate) fn for_socket(self) -> String {
        match self {
            Self::Malformed => self.to_string(),
            Self::Forbidden => "a name must not contain a reserved word; see docs/configuration.md".into(),
        }
    }
}

/// Whether the text is a name.
fn check(text: &str) -> Result<(), NameError> {
    let mut bytes = text.bytes();
    let well_formed = bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._@+-".contains(&byte))
        && text.len() <= MAX_NAME;
    if !well_formed {
        Err(NameError::Malformed)
    } else if holds_forbidden_text(text) {
        Err(NameError::Forbidden)
    } else {
        Ok(())
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text).map(|()| Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

name! {
    /// One OAuth client registration at one authorization server, as named in the configuration.
    ProviderName
}
name! {
    /// A named account slot under a provider; `default` when none is named.
    Bucket
}
name! {
    /// The name of a static API key, chosen by the person who set it.
    KeyName
}
name! {
    /// The name of a store item, unique within its kind.
    ItemName
}

impl ItemName {
    /// Encodes a 128-bit id as 32 hexadecimal digits.
    #[must_use]
    pub fn of_bits(bits: u128) -> Self {
        Self(format!("{bits:032x}").into())
    }
}

impl From<KeyName> for ItemName {
    fn from(name: KeyName) -> Self {
        Self(name.0)
    }
}

impl From<ItemName> for KeyName {
    fn from(name: ItemName) -> Self {
        Self(name.0)
    }
}

const DEFAULT_BUCKET: &str = "default";

impl Default for Bucket {
    fn default() -> Self {
        Self(DEFAULT_BUCKET.into())
    }
}

/// A provider and a bucket: the unit of locking, cooldown, policy and storage. Shown as `provider/bucket`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    /// The provider that issued the grant.
    pub provider: ProviderName,
    /// The slot under the provider.
    pub bucket: Bucket,
}

impl Account {
    /// Combines a provider and a bucket.
    #[must_use]
    pub const fn new(provider: ProviderName, bucket: Bucket) -> Self {
        Self { provider, bucket }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.provider, self.bucket)
    }
}

/// A borrowed [`Account`]: looks accounts up without allocating.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AccountRef<'a> {
    provider: &'a str,
    bucket: &'a str,
}

/// Which of an account's two names was refused: `provider` or `bucket`.
pub type Which = &'static str;

impl<'a> AccountRef<'a> {
    /// Checks both names; the bucket is `default` if it is `None`.
    pub fn new(provider: &'a str, bucket: Option<&'a str>) -> Result<Self, (Which, NameError)> {
        let bucket = bucket.unwrap_or(DEFAULT_BUCKET);
        check(provider).map_err(|error| ("provider", error))?;
        check(bucket).map_err(|error| ("bucket", error))?;
        Ok(Self { provider, bucket })
    }

    /// The provider's name.
    #[must_use]
    pub const fn provider(self) -> &'a str {
        self.provider
    }
}

/// `provider/bucket`.
impl From<AccountRef<'_>> for String {
    fn from(named: AccountRef<'_>) -> Self {
        [named.provider, "/", named.bucket].concat()
    }
}

impl<'a> From<&'a Account> for AccountRef<'a> {
    fn from(account: &'a Account) -> Self {
        Self { provider: account.provider.as_str(), bucket: account.bucket.as_str() }
    }
}

impl From<AccountRef<'_>> for Account {
    fn from(named: AccountRef<'_>) -> Self {
        Self::new(ProviderName(named.provider.into()), Bucket(named.bucket.into()))
    }
}

/// Lets a map of accounts be searched by borrowed names. Both types have the same hash.
impl Equivalent<Account> for AccountRef<'_> {
    fn equivalent(&self, account: &Account) -> bool {
        AccountRef::from(account) == *self
    }
}

/// `provider` (its `default` bucket) or `provider/bucket`.
impl FromStr for Account {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((provider, bucket)) => Ok(Self::new(provider.parse()?, bucket.parse()?)),
            None => Ok(Self::new(text.parse()?, Bucket::default())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_outside_the_pattern_are_refused() {
        let longest = "a".repeat(MAX_NAME);
        for good in ["a", "9", "corp", "me@example.com", "A.b_c+d-e", &longest] {
            assert_eq!(good.parse::<Bucket>().unwrap().as_str(), good);
        }
        let too_long = "a".repeat(MAX_NAME + 1);
        for bad in ["", ".a", "-a", "a/b", "a b", "a\0", "ä", "..", "a%2f", "a\n", &too_long] {
            assert_eq!(bad.parse::<Bucket>().unwrap_err(), NameError::Malformed, "{bad:?}");
        }
    }

    #[test]
    fn a_name_that_could_not_be_echoed_is_refused() {
        assert_eq!("x-Refresh_Token".parse::<ProviderName>().unwrap_err(), NameError::Forbidden);
    }

    #[test]
    fn an_account_without_a_bucket_means_default() {
        assert_eq!("corp".parse::<Account>().unwrap().to_string(), "corp/default");
        assert_eq!("corp/work".parse::<Account>().unwrap().to_string(), "corp/work");
        assert!("corp/a/b".parse::<Account>().is_err());
    }

    #[test]
    fn borrowed_names_find_their_account_and_no_other() {
        let accounts = ["a/bc", "ab/c", "a/default"].map(|text| text.parse::<Account>().unwrap());
        let map: hashbrown::HashMap<Account, usize> = accounts.into_iter().zip(0..).collect();
        let find = |provider, bucket| map.get(&AccountRef::new(provider, bucket).unwrap()).copied();
        assert_eq!([find("a", Some("bc")), find("ab", Some("c")), find("a", None)], [Some(0), Some(1), Some(2)]);
        assert_eq!([find("abc", None), find("a", Some("b"))], [None, None]);
        assert_eq!(AccountRef::new("a/b", None).unwrap_err(), ("provider", NameError::Malformed));
        assert_eq!(AccountRef::new("a", Some("")).unwrap_err(), ("bucket", NameError::Malformed));
    }

    proptest! {
        #[test]
        fn a_name_is_kept_as_it_is_or_refused(text in ".{0,140}|[A-Za-z0-9._@+-]{0,140}|.?refresh_token.?") {
            let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
            let fit = first
                && text.len() <= MAX_NAME
                && text.chars().all(|one| one.is_ascii_alphanumeric() || "._@+-".contains(one))
                && !text.to_ascii_lowercase().contains("refresh_token");
            prop_assert_eq!(text.parse::<Bucket>().is_ok(), fit);
            if fit {
                let account = Account::new(text.parse().unwrap(), text.parse().unwrap());
                prop_assert_eq!(account.provider.as_str(), &text);
                prop_assert_eq!(account.to_string().parse(), Ok(account));
            }
        }
    }
}
