//! Items: what is kept in the store beside the grants.
//!
//! Owns: the kinds there are, the tag that tells one content from the next, and how a content is written.
//!
//! Must not know: what is in a content. That is the business of the room that puts it.

use std::{fmt, mem, str::FromStr};

use secrecy::ExposeSecret as _;
use serde::{Serialize, de::DeserializeOwned};

use crate::secret::{self, Content};

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

/// The text is not a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the tag of an item")]
pub struct ItemTagError;

/// The text of `Display` and no other, so that two texts are the same tag only if they are the same.
impl FromStr for ItemTag {
    type Err = ItemTagError;

    fn from_str(text: &str) -> Result<Self, ItemTagError> {
        let digits = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number = u128::from_str_radix(text, 16).ok().filter(|_| digits);
        number.map(Self).ok_or(ItemTagError)
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

/// Why there is no item.
#[derive(Debug, thiserror::Error)]
pub enum ItemError {
    /// There is no tag for it.
    #[error("the generator of random numbers fails")]
    Random(#[from] getrandom::Error),
    /// What it is to hold has no JSON form.
    #[error("the content cannot be written")]
    Json(#[from] serde_json::Error),
}

impl Item {
    /// This as JSON, under a tag of its own.
    pub fn new(value: &impl Serialize) -> Result<Self, ItemError> {
        let content = Content::new(mem::take(&mut *secret::json(value)?));
        Ok(Self { tag: ItemTag::random()?, content })
    }

    /// What [`Item::new`] was given; `None` when the content is nothing of that kind.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "reads the content for the room that put it")]
    pub fn read<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(self.content.expose_secret()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_reads_back_and_no_other_text_is_one() {
        let tag = ItemTag::from_bytes([0xab; 16]);
        assert_eq!(tag.to_string().parse(), Ok(tag));
        assert_eq!("0".repeat(32).parse(), Ok(ItemTag::from_bytes([0; 16])));
        for bad in ["", "ab", &"AB".repeat(16), &"0".repeat(33), &format!("+{}", "0".repeat(31)), &"g".repeat(32)] {
            assert_eq!(bad.parse::<ItemTag>(), Err(ItemTagError), "{bad}");
        }
    }

    #[test]
    fn a_content_reads_back_and_another_is_none() {
        let item = Item::new(&("canary-\"x\"", 7)).unwrap();
        assert_eq!(item.read::<(String, u8)>(), Some(("canary-\"x\"".to_owned(), 7)));
        assert!(item.read::<(u8, u8)>().is_none());
        assert_ne!(item.tag, Item::new(&()).unwrap().tag);
    }
}
