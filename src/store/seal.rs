//! Sealing: encrypts grants and items so that only the store key opens them.
//!
//! Owns: the format of a sealed record and item, and of the check value that distinguishes a wrong key from a damaged
//! record.
//!
//! Invariants:
//! 1. Sealed bytes open only for the account, grant id and generation, or the kind, name and tag, that they were sealed
//!    for: all three, and the format, are associated data. A row copied or rolled back under another name does not open.
//! 2. Every sealing has its own random nonce of 192 bits, so no counter is needed, however many stores share a key.
//! 3. Plaintext is kept only in buffers that are wiped, and is never copied by a growing buffer.
//!
//! A record is one byte of format, 24 bytes of nonce, the ciphertext and 16 bytes of tag (XChaCha20-Poly1305,
//! draft-irtf-cfrg-xchacha-03). The plaintext is two JSON objects: the members that are ours, and the provider's. These
//! stand apart because a parser of JSON limits the depth, and a level around them could push them over that limit.
//! An item is the same around the bytes that its owner gave.
//!
//! Must not know: where sealed bytes are kept.

use std::{io, mem};

use chacha20poly1305::{AeadInOut as _, KeyInit as _, Tag, XChaCha20Poly1305, XNonce};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    account::{Account, ItemName},
    clock::Timestamp,
    grant::{Extra, Grant, Version},
    item::{Item, ItemKind, ItemTag},
    secret::{AccessToken, Content, FingerprintKey, Length, RefreshToken, SecretError, StoreKey},
    store::{KeyId, StoreError},
};

/// The format that is written, and the only one so far.
const FORMAT: u8 = 1;
const NONCE: usize = 24;
const TAG: usize = 16;

/// The content of the check value.
const CHECKED: &[u8] = b"credproxy";

/// Seals and opens with one key.
#[derive(Debug)]
pub(crate) struct Sealer(StoreKey);

/// The sealed bytes cannot be opened. Separate from [`StoreError`] because only the caller knows whose they are.
#[derive(Debug)]
pub(crate) struct Refused;

impl From<serde_json::Error> for Refused {
    fn from(_: serde_json::Error) -> Self {
        Self
    }
}

impl From<SecretError> for Refused {
    fn from(_: SecretError) -> Self {
        Self
    }
}

#[derive(Serialize)]
struct Plain<'a> {
    access_token: &'a str,
    token_type: &'a str,
    issued_at: Timestamp,
    expires_at: Option<Timestamp>,
    scope: Option<&'a str>,
    refresh_token: Option<&'a str>,
}

#[derive(Deserialize)]
struct Opened {
    access_token: String,
    token_type: String,
    issued_at: Timestamp,
    expires_at: Option<Timestamp>,
    scope: Option<String>,
    refresh_token: Option<String>,
}

impl Sealer {
    pub(crate) const fn new(key: StoreKey) -> Self {
        Self(key)
    }

    /// Seals a grant for an account. Fails only if the random generator does.
    pub(crate) fn seal(&self, account: &Account, grant: &Grant) -> Result<Vec<u8>, StoreError> {
        self.seal_as(account, grant.version, grant)
    }

    /// Seals the content of a grant with another version.
    #[expect(clippy::disallowed_methods, reason = "the tokens go from here into the ciphertext alone")]
    pub(crate) fn seal_as(&self, account: &Account, version: Version, grant: &Grant) -> Result<Vec<u8>, StoreError> {
        let plain = Plain {
            access_token: grant.access_token.expose_secret(),
            token_type: &grant.token_type,
            issued_at: grant.issued_at,
            expires_at: grant.expires_at,
            scope: grant.scope.as_deref(),
            refresh_token: grant.refresh_token.as_ref().map(ExposeSecret::expose_secret),
        };
        let mut length = Length::default();
        plain.write(&grant.extra, &mut length)?;
        self.encrypt(&record_data(account, version), length.0, |buffer| plain.write(&grant.extra, buffer))
    }

    /// Opens what [`Sealer::seal`] made for this account and version.
    pub(crate) fn open(&self, account: &Account, version: Version, sealed: &[u8]) -> Result<Grant, StoreError> {
        match sealed.first() {
            Some(&format) if format > FORMAT => {
                return Err(StoreError::NewerRecord { account: account.clone(), format: format.into() });
            }
            _ => {}
        }
        self.decrypt(&record_data(account, version), sealed)
            .and_then(|plain| read(&plain, version))
            .map_err(|Refused| StoreError::Unreadable { account: account.clone() })
    }

    /// Seals an item. Fails only if the random generator does.
    #[expect(clippy::disallowed_methods, reason = "the content goes from here into the ciphertext alone")]
    pub(crate) fn seal_item(&self, kind: ItemKind, name: &ItemName, item: &Item) -> Result<Vec<u8>, StoreError> {
        let content = item.content.expose_secret();
        self.encrypt(&item_data(kind, name, item.tag), content.len(), |buffer| {
            buffer.extend_from_slice(content);
            Ok(())
        })
    }

    /// Opens what [`Sealer::seal_item`] made for this kind, name and tag.
    pub(crate) fn open_item(
        &self,
        kind: ItemKind,
        name: &ItemName,
        tag: ItemTag,
        sealed: &[u8],
    ) -> Result<Item, StoreError> {
        match sealed.first() {
            Some(&format) if format > FORMAT => {
                Err(StoreError::NewerItem { kind, name: name.clone(), format: format.into() })
            }
            _ => match self.decrypt(&item_data(kind, name, tag), sealed) {
                Ok(mut plain) => Ok(Item { tag, content: Content::new(mem::take(&mut *plain)) }),
                Err(Refused) => Err(StoreError::UnreadableItem { kind, name: name.clone() }),
            },
        }
    }

    /// A value by which [`Sealer::accepts`] recognises this key.
    pub(crate) fn check_value(&self) -> Result<Vec<u8>, StoreError> {
        self.encrypt(&check_data(), CHECKED.len(), |buffer| {
            buffer.extend_from_slice(CHECKED);
            Ok(())
        })
    }

    /// Whether the check value was made with this key.
    pub(crate) fn accepts(&self, check_value: &[u8]) -> bool {
        self.decrypt(&check_data(), check_value).is_ok_and(|plain| *plain == CHECKED)
    }

    /// Seals the key of a store's fingerprints.
    #[expect(clippy::disallowed_methods, reason = "the key goes from here into the ciphertext alone")]
    pub(crate) fn seal_fingerprint_key(&self, key: &FingerprintKey) -> Result<Vec<u8>, StoreError> {
        let bytes = key.expose_secret();
        self.encrypt(&associated_data(b"fingerprint key"), bytes.len(), |buffer| {
            buffer.extend_from_slice(bytes);
            Ok(())
        })
    }

    /// Opens what [`Sealer::seal_fingerprint_key`] made.
    pub(crate) fn open_fingerprint_key(&self, sealed: &[u8]) -> Result<FingerprintKey, Refused> {
        let plain = self.decrypt(&associated_data(b"fingerprint key"), sealed)?;
        Ok(FingerprintKey::from_bytes(plain.as_slice().try_into().map_err(|_| Refused)?))
    }

    /// Identifies the key to a person without disclosing it: the tag of an empty text under a nonce that no sealing
    /// ever has (invariant 2).
    pub(crate) fn key_id(&self) -> Result<KeyId, StoreError> {
        let data = associated_data(b"key id");
        let tag = self.cipher().encrypt_inout_detached(&XNonce::from([0; NONCE]), &data, (&mut [][..]).into());
        let tag = tag.map_err(|_| StoreError::unavailable("the key has no id"))?;
        let (id, _) = tag.split_first_chunk().ok_or_else(|| StoreError::unavailable("the key has no id"))?;
        Ok(KeyId(*id))
    }

    #[expect(clippy::disallowed_methods, reason = "the key goes from here into the cipher alone")]
    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.0.expose_secret().into())
    }

    /// Lets `write` write `length` bytes of plaintext into the buffer in which they are then encrypted.
    fn encrypt(
        &self,
        associated: &[u8],
        length: usize,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), StoreError>,
    ) -> Result<Vec<u8>, StoreError> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(StoreError::unavailable)?;
        let mut sealed = Zeroizing::new(Vec::with_capacity(1 + NONCE + length + TAG));
        sealed.push(FORMAT);
        sealed.extend_from_slice(&nonce);
        write(&mut sealed)?;
        let plain = &mut sealed[1 + NONCE..];
        let tag = self
            .cipher()
            .encrypt_inout_detached(&XNonce::from(nonce), associated, plain.into())
            .map_err(|_| StoreError::unavailable("it is too large to seal"))?;
        sealed.extend_from_slice(&tag);
        Ok(mem::take(&mut *sealed))
    }

    fn decrypt(&self, associated: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Refused> {
        let (&[FORMAT], sealed) = sealed.split_first_chunk().ok_or(Refused)? else { return Err(Refused) };
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE>().ok_or(Refused)?;
        let (ciphertext, tag) = sealed.split_last_chunk::<TAG>().ok_or(Refused)?;
        let mut plain = Zeroizing::new(ciphertext.to_vec());
        self.cipher()
            .decrypt_inout_detached(&XNonce::from(*nonce), associated, plain.as_mut_slice().into(), &Tag::from(*tag))
            .map_err(|_| Refused)?;
        Ok(plain)
    }
}

impl Plain<'_> {
    fn write(&self, extra: &Extra, mut to: impl io::Write) -> Result<(), StoreError> {
        serde_json::to_writer(&mut to, self).map_err(StoreError::unavailable)?;
        serde_json::to_writer(to, extra).map_err(StoreError::unavailable)
    }
}

/// Reads what [`Plain::write`] wrote.
pub(crate) fn read(plain: &[u8], version: Version) -> Result<Grant, Refused> {
    let mut json = serde_json::Deserializer::from_slice(plain);
    let opened = Opened::deserialize(&mut json)?;
    let extra = Extra::deserialize(&mut json)?;
    json.end()?;
    Ok(Grant {
        version,
        access_token: AccessToken::new(opened.access_token)?,
        token_type: opened.token_type,
        issued_at: opened.issued_at,
        expires_at: opened.expires_at,
        scope: opened.scope,
        refresh_token: opened.refresh_token.map(RefreshToken::new).transpose()?,
        extra,
    })
}

fn record_data(account: &Account, version: Version) -> Vec<u8> {
    let mut data = associated_data(b"record");
    add_names(&mut data, [account.provider.as_str(), account.bucket.as_str()]);
    data.extend_from_slice(&version.id.to_bytes());
    data.extend_from_slice(&version.generation.to_be_bytes());
    data
}

fn item_data(kind: ItemKind, name: &ItemName, tag: ItemTag) -> Vec<u8> {
    let mut data = associated_data(b"item");
    add_names(&mut data, [kind.as_str(), name.as_str()]);
    data.extend_from_slice(&tag.to_bytes());
    data
}

/// Each name is preceded by its length, so that `a/bc` and `ab/c` stay apart.
fn add_names(data: &mut Vec<u8>, names: [&str; 2]) {
    for name in names {
        data.extend_from_slice(&u64::to_be_bytes(name.len() as u64));
        data.extend_from_slice(name.as_bytes());
    }
}

fn check_data() -> Vec<u8> {
    associated_data(b"key check")
}

fn associated_data(purpose: &[u8]) -> Vec<u8> {
    [b"credproxy ", purpose, &[0, FORMAT]].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::grant::{GrantId, properties::grants};

    const VERSION: Version = Version { id: GrantId::from_bytes([7; 16]), generation: 3 };

    fn sealer() -> Sealer {
        Sealer::new(StoreKey::new([9; 32]))
    }

    fn account(text: &str) -> Account {
        text.parse().unwrap()
    }

    fn grant() -> Grant {
        let Value::Object(extra) = json!({"account_id": "me \"quoted\"", "nested": {"secret": "canary-extra"}}) else {
            panic!("not an object")
        };
        Grant {
            version: VERSION,
            access_token: AccessToken::new("canary-at \\\" %".into()).unwrap(),
            token_type: "Bearer".into(),
            issued_at: Timestamp::from_millis(-5),
            expires_at: Some(Timestamp::from_millis(1_700_000_000_123)),
            scope: Some("a b ü".into()),
            refresh_token: Some(RefreshToken::new("canary-rt".into()).unwrap()),
            extra: extra.into(),
        }
    }

    fn unreadable(result: &Result<Grant, StoreError>) -> bool {
        matches!(result, Err(StoreError::Unreadable { .. }))
    }

    #[expect(clippy::disallowed_methods, reason = "compares tokens in a test")]
    fn fields(grant: &Grant) -> impl PartialEq + std::fmt::Debug {
        (
            grant.version,
            grant.access_token.expose_secret().to_owned(),
            grant.token_type.clone(),
            (grant.issued_at, grant.expires_at),
            grant.scope.clone(),
            grant.refresh_token.as_ref().map(|token| token.expose_secret().to_owned()),
            grant.extra.clone(),
        )
    }

    #[test]
    fn every_field_comes_back() {
        let bare = Grant { expires_at: None, scope: None, refresh_token: None, extra: Extra::default(), ..grant() };
        for grant in [grant(), bare] {
            let sealed = sealer().seal(&account("corp/work"), &grant).unwrap();
            let opened = sealer().open(&account("corp/work"), VERSION, &sealed).unwrap();
            assert!(fields(&opened) == fields(&grant));
        }
    }

    #[test]
    fn whatever_a_provider_could_nest_comes_back() {
        let deepest = format!("{{\"member\":{}{}}}", "[".repeat(126), "]".repeat(126));
        let extra: Extra = serde_json::from_str(&deepest).unwrap();
        assert!(serde_json::from_str::<Value>(&format!("[{deepest}]")).is_err(), "one level more is past the limit");
        let sealed = sealer().seal(&account("corp"), &Grant { extra: extra.clone(), ..grant() }).unwrap();
        assert_eq!(sealer().open(&account("corp"), VERSION, &sealed).unwrap().extra, extra);
    }

    #[test]
    fn a_record_opens_for_its_own_account_and_version_only() {
        let sealed = sealer().seal(&account("a/bc"), &grant()).unwrap();
        for other in ["ab/c", "a/b", "b/bc", "a/bcd", "a/BC"] {
            assert!(unreadable(&sealer().open(&account(other), VERSION, &sealed)), "{other}");
        }
        for generation in [0, 2, 4] {
            assert!(unreadable(&sealer().open(&account("a/bc"), Version { generation, ..VERSION }, &sealed)));
        }
        let id = GrantId::from_bytes([8; 16]);
        assert!(unreadable(&sealer().open(&account("a/bc"), Version { id, ..VERSION }, &sealed)));
        assert!(unreadable(&Sealer::new(StoreKey::new([8; 32])).open(&account("a/bc"), VERSION, &sealed)));
        assert!(sealer().open(&account("a/bc"), VERSION, &sealed).is_ok());
    }

    #[test]
    fn no_flipped_bit_goes_unnoticed() {
        let sealed = sealer().seal(&account("corp"), &grant()).unwrap();
        for place in 0..sealed.len() {
            for bit in 0..8 {
                let mut damaged = sealed.clone();
                damaged[place] ^= 1 << bit;
                assert!(sealer().open(&account("corp"), VERSION, &damaged).is_err(), "byte {place}, bit {bit}");
            }
        }
    }

    #[test]
    fn no_truncated_or_lengthened_record_opens() {
        let mut sealed = sealer().seal(&account("corp"), &grant()).unwrap();
        for length in 0..sealed.len() {
            assert!(unreadable(&sealer().open(&account("corp"), VERSION, &sealed[..length])), "{length} bytes");
        }
        sealed.push(0);
        assert!(unreadable(&sealer().open(&account("corp"), VERSION, &sealed)));
    }

    #[test]
    fn a_later_format_is_told_from_damage() {
        let mut sealed = sealer().seal(&account("corp"), &grant()).unwrap();
        sealed[0] = FORMAT + 1;
        let error = sealer().open(&account("corp"), VERSION, &sealed).unwrap_err();
        assert!(matches!(error, StoreError::NewerRecord { format: 2, .. }), "{error:?}");
        sealed[0] = 0;
        assert!(unreadable(&sealer().open(&account("corp"), VERSION, &sealed)));
    }

    #[test]
    fn no_plaintext_shows_and_no_two_sealings_are_alike() {
        let first = sealer().seal(&account("corp"), &grant()).unwrap();
        let second = sealer().seal(&account("corp"), &grant()).unwrap();
        for plain in [&b"canary"[..], b"Bearer", b"access_token", b"account_id"] {
            assert!(!first.windows(plain.len()).any(|window| window == plain));
        }
        assert_ne!(first[1..=NONCE], second[1..=NONCE]);
        assert_ne!(first[1 + NONCE..], second[1 + NONCE..]);
    }

    #[test]
    fn the_buffer_is_made_in_one_piece() {
        let sealed = sealer().seal(&account("corp"), &grant()).unwrap();
        assert_eq!(sealed.capacity(), sealed.len());
    }

    #[test]
    fn the_check_value_knows_its_key_and_is_no_record() {
        let value = sealer().check_value().unwrap();
        assert!(sealer().accepts(&value));
        assert!(!Sealer::new(StoreKey::new([8; 32])).accepts(&value));
        assert!(unreadable(&sealer().open(&account("corp"), VERSION, &value)));
        assert!(!sealer().accepts(&sealer().seal(&account("corp"), &grant()).unwrap()));
        assert!(!sealer().accepts(&[]));
    }

    fn item() -> Item {
        Item { tag: ItemTag::from_bytes([7; 16]), content: Content::new(b"canary-item".to_vec()) }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "compares contents in a test")]
    fn an_item_opens_for_its_own_kind_name_and_tag_only() {
        let (name, tag) = ("one".parse().unwrap(), item().tag);
        let sealed = sealer().seal_item(ItemKind::ApiKey, &name, &item()).unwrap();
        let open = |kind, name: &str, tag| sealer().open_item(kind, &name.parse().unwrap(), tag, &sealed);
        assert_eq!(open(ItemKind::ApiKey, "one", tag).unwrap().content.expose_secret(), b"canary-item");
        for result in [
            open(ItemKind::Sandbox, "one", tag),
            open(ItemKind::ApiKey, "On", tag),
            open(ItemKind::ApiKey, "one", ItemTag::from_bytes([8; 16])),
            Sealer::new(StoreKey::new([8; 32])).open_item(ItemKind::ApiKey, &name, tag, &sealed),
        ] {
            assert!(matches!(result, Err(StoreError::UnreadableItem { .. })), "{result:?}");
        }
        assert!(unreadable(&sealer().open(&account("api_key/one"), VERSION, &sealed)));
        assert_eq!(sealed.capacity(), sealed.len());
        assert!(!sealed.windows(6).any(|window| window == b"canary"));
        for place in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[place] ^= 1;
            assert!(sealer().open_item(ItemKind::ApiKey, &name, tag, &damaged).is_err(), "byte {place}");
            assert!(sealer().open_item(ItemKind::ApiKey, &name, tag, &sealed[..place]).is_err(), "{place} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_grant_comes_back_and_opens_nowhere_else(
            grant in grants(),
            name in "[a-z]{1,3}/[a-z]{1,3}",
            other in "[a-z]{1,3}/[a-z]{1,3}",
            version in (any::<u8>(), any::<u64>()),
        ) {
            let sealed = sealer().seal(&account(&name), &grant).unwrap();
            let opened = sealer().open(&account(&name), grant.version, &sealed).unwrap();
            prop_assert!(fields(&opened) == fields(&grant), "{opened:?}\n{grant:?}");
            if name != other {
                prop_assert!(unreadable(&sealer().open(&account(&other), grant.version, &sealed)));
            }
            let id = GrantId::from_bytes([version.0; 16]);
            for moved in [Version { generation: version.1, ..grant.version }, Version { id, ..grant.version }] {
                if moved != grant.version {
                    prop_assert!(unreadable(&sealer().open(&account(&name), moved, &sealed)));
                }
            }
        }

        #[test]
        fn any_damage_is_refused(
            grant in grants(), at in any::<proptest::sample::Index>(), bits in 1..=u8::MAX, cut in any::<bool>(),
        ) {
            let mut sealed = sealer().seal(&account("corp"), &grant).unwrap();
            let at = at.index(sealed.len());
            if cut { sealed.truncate(at) } else { sealed[at] ^= bits }
            prop_assert!(sealer().open(&account("corp"), grant.version, &sealed).is_err());
        }

        #[test]
        fn no_made_up_bytes_open_or_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), plain in ".{0,80}") {
            prop_assert!(sealer().open(&account("corp"), VERSION, &bytes).is_err());
            prop_assert!(!sealer().accepts(&bytes));
            drop((read(&bytes, VERSION), read(plain.as_bytes(), VERSION)));
        }
    }

    #[test]
    fn a_key_has_an_id_of_its_own_that_stays() {
        let id = sealer().key_id().unwrap().to_string();
        assert_eq!(id, sealer().key_id().unwrap().to_string());
        assert_ne!(id, Sealer::new(StoreKey::new([8; 32])).key_id().unwrap().to_string());
        assert_eq!(id.len(), 12);
    }
}
