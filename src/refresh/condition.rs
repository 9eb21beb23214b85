//! Entity tags: which state of which account's grant a caller has seen.
//!
//! Owns: the text of a tag, opaque to callers, and the evaluation of conditions (RFC 9110 section 13.1.1).
//!
//! Must not know: headers.

use std::{fmt, ops::Deref};

use bytes::Bytes;

use crate::{account::Account, grant::Version};

/// The entity tag of one state of an account's grant: as text, `provider/bucket:id:generation`.
#[derive(Clone, PartialEq, Eq)]
pub struct EntityTag(Bytes);

impl EntityTag {
    /// The tag with its quotes, as it is sent. Its bytes are visible ASCII.
    #[must_use]
    pub fn quoted(&self) -> Bytes {
        self.0.clone()
    }
}

impl Deref for EntityTag {
    type Target = str;

    fn deref(&self) -> &str {
        // It was made from text, with a quote at either end.
        self.0.get(1..self.0.len() - 1).and_then(|tag| str::from_utf8(tag).ok()).unwrap_or_default()
    }
}

impl fmt::Debug for EntityTag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, formatter)
    }
}

/// The entity tag of one state of an account's grant.
#[must_use]
pub fn tag(account: &Account, version: Version) -> EntityTag {
    EntityTag(format!("\"{account}:{version}\"").into())
}

/// A tag that a caller sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tag {
    /// A tag of this daemon's format; whether that grant still exists is not known.
    Ours(Account, Version),
    /// A tag that this daemon never made.
    Foreign,
}

impl Tag {
    /// Parses a tag without its quotes.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let parsed = text.split_once(':').and_then(|(account, version)| {
            let account: Account = account.parse().ok()?;
            let version: Version = version.parse().ok()?;
            (*tag(&account, version) == *text).then_some(Self::Ours(account, version))
        });
        parsed.unwrap_or(Self::Foreign)
    }
}

/// `If-Match`, and the one form of `If-None-Match` that a change may have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum IfMatch {
    /// Not sent.
    #[default]
    Absent,
    /// `*`: any state.
    Any,
    /// `If-None-Match: *`: only if there is none. For puts only.
    NoneThere,
    /// One or more tags.
    Tags(Vec<Tag>),
}

/// What [`IfMatch`] means for a refresh of `account`, whose grant is at `current`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Refresh.
    Go,
    /// The token that the caller rejects has already been replaced.
    Moved,
    /// No tag belongs to the account.
    Mismatch,
}

impl IfMatch {
    pub(super) fn verdict(&self, account: &Account, current: Version) -> Verdict {
        let tags = match self {
            Self::Absent | Self::Any | Self::NoneThere => return Verdict::Go,
            Self::Tags(tags) => tags,
        };
        let mut verdict = Verdict::Mismatch;
        for tag in tags {
            match tag {
                Tag::Ours(of, version) if of == account && *version == current => return Verdict::Go,
                Tag::Ours(of, _) if of == account => verdict = Verdict::Moved,
                Tag::Ours(..) | Tag::Foreign => {}
            }
        }
        verdict
    }

    /// Whether it was sent but contains no tag that this daemon ever made: a mistake of the caller's.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        matches!(self, Self::Tags(tags) if tags.iter().all(|tag| *tag == Tag::Foreign))
    }

    /// The versions of `account` that a change may replace; `None` for any.
    pub(super) fn versions(&self, account: &Account) -> Option<Vec<Version>> {
        match self {
            Self::Absent | Self::Any | Self::NoneThere => None,
            Self::Tags(tags) => Some(
                tags.iter()
                    .filter_map(|tag| match tag {
                        Tag::Ours(of, version) if of == account => Some(*version),
                        Tag::Ours(..) | Tag::Foreign => None,
                    })
                    .collect(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::grant::GrantId;

    #[test]
    fn a_tag_says_go_moved_or_mismatch() {
        let mine: Account = "corp/me@x+y".parse().unwrap();
        let other: Account = "corp".parse().unwrap();
        let version = |generation| Version { id: GrantId::from_bytes([3; 16]), generation };
        let sent = |tags: &[&str]| IfMatch::Tags(tags.iter().map(|text| Tag::parse(text)).collect());
        let (current, earlier, foreign) = (tag(&mine, version(5)), tag(&mine, version(4)), tag(&other, version(5)));
        for (tags, verdict) in [
            (vec![&*current], Verdict::Go),
            (vec![&*earlier], Verdict::Moved),
            (vec![&*foreign], Verdict::Mismatch),
            (vec!["garbage"], Verdict::Mismatch),
            (vec![&*foreign, &*earlier], Verdict::Moved),
            (vec![&*foreign, &*earlier, "x", &*current], Verdict::Go),
        ] {
            assert_eq!(sent(&tags).verdict(&mine, version(5)), verdict, "{tags:?}");
        }
        assert!(sent(&["garbage", "corp:00:1", ""]).is_foreign());
        assert!(!sent(&["garbage", &foreign]).is_foreign() && !IfMatch::Any.is_foreign());
        assert_eq!(IfMatch::Absent.verdict(&mine, version(5)), Verdict::Go);
        assert_eq!(IfMatch::Any.verdict(&mine, version(5)), Verdict::Go);
        assert_eq!(sent(&[&current, &foreign]).versions(&mine), Some(vec![version(5)]));
    }

    proptest! {
        #[test]
        fn every_tag_reads_back_and_no_other_text_is_ours(
            names in ("[A-Za-z0-9][A-Za-z0-9._@+-]{0,20}", "[A-Za-z0-9][A-Za-z0-9._@+-]{0,20}"),
            id in any::<[u8; 16]>(),
            generation in any::<u64>(),
            at in any::<proptest::sample::Index>(),
            other in any::<char>(),
        ) {
            let account = Account::new(names.0.parse().unwrap(), names.1.parse().unwrap());
            let version = Version { id: GrantId::from_bytes(id), generation };
            let text = tag(&account, version);
            prop_assert_eq!(Tag::parse(&text), Tag::Ours(account.clone(), version));
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"'), "{text:?}");
            let mut changed: Vec<char> = text.chars().collect();
            let at = at.index(changed.len());
            changed[at] = other;
            let changed: String = changed.into_iter().collect();
            match Tag::parse(&changed) {
                Tag::Ours(of, version) => prop_assert_eq!(&*tag(&of, version), &*changed),
                Tag::Foreign => prop_assert_ne!(&*changed, &*text),
            }
        }

        #[test]
        fn one_current_tag_among_any_others_means_go(texts in proptest::collection::vec(".{0,20}", 0..6), at in 0..6_usize) {
            let account: Account = "corp".parse().unwrap();
            let version = Version { id: GrantId::from_bytes([3; 16]), generation: 5 };
            let mut tags: Vec<_> = texts.iter().map(|text| Tag::parse(text)).collect();
            let (before, without) = (tags.clone(), IfMatch::Tags(tags.clone()).verdict(&account, version));
            prop_assert!(without != Verdict::Go || before.contains(&Tag::Ours(account.clone(), version)));
            tags.insert(at.min(tags.len()), Tag::parse(&tag(&account, version)));
            prop_assert_eq!(IfMatch::Tags(tags).verdict(&account, version), Verdict::Go);
        }
    }
}
