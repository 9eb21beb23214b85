//! Items: what the store keeps beside the grants.
//!
//! Owns: the kinds of items, the tag that identifies a content, and how a content is written.
//!
//! Must not know: what is in a content. The module that stores it does.

use std::{fmt, mem, str::FromStr};

use secrecy::ExposeSecret as _;
use serde::{Serialize, de::DeserializeOwned};

use crate::secret::{self, Content};

/// The kind of an item. A new kind needs a new format of the store, because a program that does not know it could not
/// reseal it.
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

    /// Its name in the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key",
            Self::Sandbox => "sandbox",
        }
    }
}

/// Human-readable name.
impl fmt::Display for ItemKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ApiKey => "API key",
            Self::Sandbox => "sandbox",
        })
    }
}

/// Identifies the content of an item: random, and new at each put. Shown as 32 hexadecimal digits.
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

/// Accepts only the text of `Display`, so that equal tags have equal texts.
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

/// Something that the store keeps beside the grants.
#[derive(Debug)]
pub struct Item {
    /// Identifies the content.
    pub tag: ItemTag,
    /// The content, in its owner's form.
    pub content: Content,
}

/// Why an item cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ItemError {
    /// A random tag cannot be generated.
    #[error("the random number generator failed")]
    Random(#[from] getrandom::Error),
    /// The content cannot be serialized.
    #[error("the content cannot be serialized")]
    Json(#[from] serde_json::Error),
}

impl Item {
    /// Serializes `value` as JSON, under a new tag.
    pub fn new(value: &impl Serialize) -> Result<Self, ItemError> {
        let content = Content::new(mem::take(&mut *secret::json(value)?));
        Ok(Self { tag: ItemTag::random()?, content })
    }

    /// Deserializes the content; `None` if it has another form.
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
