//! Items: what is kept in the store beside the grants.
//!
//! Owns: the kinds there are, and the tag that tells one content from the next.
//!
//! Must not know: what a content looks like. That is the business of the room that puts it.

use std::fmt;

use crate::secret::Content;

/// What kind of thing is kept beside the grants. Another kind is another format of the store: a program that does not
/// know it could not seal it anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ItemKind {
    /// A static API key.
    ApiKey,
    /// A sandbox socket that was made at run time.
    Sandbox,
}

impl ItemKind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::ApiKey, Self::Sandbox];

    /// By which the store knows it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key",
            Self::Sandbox => "sandbox",
        }
    }
}

/// By which a person knows it.
impl fmt::Display for ItemKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ApiKey => "API key",
            Self::Sandbox => "sandbox",
        })
    }
}

/// Which content of an item: random, and another at each put. Shown as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemTag(u128);

impl ItemTag {
    /// A tag from the operating system's generator.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self::from_bytes(bytes))
    }

    /// Makes a tag of the given bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// The 16 bytes.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for ItemTag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

/// Something kept beside the grants.
#[derive(Debug)]
pub struct Item {
    /// Which content it is.
    pub tag: ItemTag,
    /// What it is, in its owner's form.
    pub content: Content,
}
