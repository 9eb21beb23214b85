//! A store key derived from a passphrase.
//!
//! Owns: the derivation (Argon2id, RFC 9106), whose salt and costs are stored in clear, and the prompts.
//!
//! Invariants:
//! 1. A key is derived again with the costs it was created with, whatever this version would choose.
//! 2. Costs that no version ever wrote are treated as damage, and do not use up the memory.
//!
//! Must not know: how a person is prompted.

use std::{fmt::Write as _, io};

use argon2::{Algorithm, Argon2, Params, Version};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::KEY;
use crate::{
    error_chain::error_chain,
    secret::{Passphrase, StoreKey},
    store::StoreError,
};

/// RFC 9106 section 4, the second recommended option: 3 passes over 64 MiB with 4 lanes, and a salt of 128 bits. The
/// first one takes 2 GiB, which a small host or a limited service does not have.
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
const LANES: u32 = 4;
const SALT: usize = 16;

/// Invariant 2: sixteen times the present cost.
const MAX_MEMORY_KIB: u32 = 16 * MEMORY_KIB;
const MAX_PASSES: u32 = 16 * PASSES;

/// A shorter one can be guessed from a stolen copy in hours, whatever the costs.
const MIN_CHARACTERS: usize = 8;

/// The parameters by which a key is derived from a passphrase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Derivation {
    algorithm: Name,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    /// In hexadecimal digits.
    salt: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Name {
    #[serde(rename = "argon2id")]
    Argon2id,
}

/// Why no passphrase was entered.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Standard input is not a terminal, so nobody can be asked.
    #[error(
        "there is no terminal to ask for the passphrase on; start the daemon on one, or keep the key elsewhere: \
         `credproxy store rekey --to SOURCE` with {}",
        super::keyring::OTHER_SOURCES
    )]
    NoTerminal,
    /// The terminal failed, or the person cancelled.
    #[error("the passphrase could not be read")]
    Terminal(#[source] io::Error),
    /// The input was empty or too long.
    #[error("the passphrase {0}")]
    Unfit(crate::secret::SecretError),
    /// The new passphrase is too short.
    #[error("the passphrase is shorter than {MIN_CHARACTERS} characters")]
    TooShort,
    /// The two entries of a new passphrase differ.
    #[error("the two passphrases differ")]
    Differ,
}

impl From<AskError> for StoreError {
    fn from(error: AskError) -> Self {
        Self::Unfit { place: PLACE.to_owned(), reason: error_chain(&error) }
    }
}

/// The key's source, in errors.
pub const PLACE: &str = "the passphrase";

/// Prompts a person.
pub type Ask<'a> = &'a (dyn Fn(&str) -> Result<Passphrase, AskError> + Sync);

/// Asks for the passphrase of an existing store.
pub fn ask(ask: Ask<'_>) -> Result<Passphrase, StoreError> {
    Ok(ask("passphrase of the credproxy store: ")?)
}

/// Asks for a new passphrase, twice.
pub fn choose(ask: Ask<'_>) -> Result<Passphrase, StoreError> {
    let chosen = ask("new passphrase for the credproxy store: ")?;
    if chosen.characters() < MIN_CHARACTERS {
        return Err(AskError::TooShort.into());
    }
    if !ask("the same again: ")?.same_as(&chosen) {
        return Err(AskError::Differ.into());
    }
    Ok(chosen)
}

impl Derivation {
    /// A new random salt with the current costs.
    pub fn new() -> Result<Self, StoreError> {
        let mut salt = [0; SALT];
        getrandom::fill(&mut salt).map_err(StoreError::unavailable)?;
        let salt = salt.iter().fold(String::with_capacity(2 * SALT), |mut text, byte| {
            // Writing to a string cannot fail.
            write!(text, "{byte:02x}").unwrap_or_default();
            text
        });
        Ok(Self { algorithm: Name::Argon2id, memory_kib: MEMORY_KIB, passes: PASSES, lanes: LANES, salt })
    }

    /// Derives the key. It takes a good part of a second, and as much memory as the costs say.
    #[expect(clippy::disallowed_methods, reason = "the passphrase goes from here into the derivation alone")]
    pub fn key(&self, passphrase: &Passphrase) -> Result<StoreKey, StoreError> {
        let salt = self.salt().ok_or_else(damaged)?;
        if self.memory_kib > MAX_MEMORY_KIB || self.passes > MAX_PASSES {
            return Err(damaged());
        }
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(KEY)).map_err(|_| damaged())?;
        let mut key = Zeroizing::new([0; KEY]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.expose_secret().as_bytes(), &salt, &mut *key)
            .map_err(|_| damaged())?;
        Ok(StoreKey::new(*key))
    }

    /// The form in which it is stored.
    pub(crate) fn to_text(&self) -> Result<String, StoreError> {
        serde_json::to_string(self).map_err(StoreError::unavailable)
    }

    /// Parses [`Derivation::to_text`].
    pub(crate) fn from_text(text: &str) -> Result<Self, StoreError> {
        serde_json::from_str(text).map_err(|_| damaged())
    }

    fn salt(&self) -> Option<[u8; SALT]> {
        let digits = self.salt.as_bytes();
        let mut salt = [0; SALT];
        if digits.len() != 2 * SALT {
            return None;
        }
        for (byte, pair) in salt.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair.iter().try_fold(0, |value, digit| Some(value << 4 | super::value_of(*digit)?))?;
        }
        Some(salt)
    }
}

fn damaged() -> StoreError {
    StoreError::Unfit {
        place: PLACE.to_owned(),
        reason: "how the key is made of it is damaged in the store, or was written by a later version; use that \
                 version, or put back a backup of the store"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(text.into()).unwrap()
    }

    /// As cheap as it goes.
    fn cheap() -> Derivation {
        Derivation { memory_kib: 8, passes: 1, lanes: 1, ..Derivation::new().unwrap() }
    }

    #[test]
    fn the_same_passphrase_makes_the_same_key_again_and_no_other_does() {
        let derivation = cheap();
        let again = Derivation::from_text(&derivation.to_text().unwrap()).unwrap();
        let key = derivation.key(&passphrase("canary horse")).unwrap();
        assert!(super::super::same(&key, &again.key(&passphrase("canary horse")).unwrap()));
        assert!(!super::super::same(&key, &again.key(&passphrase("canary house")).unwrap()));
        assert!(!super::super::same(&key, &cheap().key(&passphrase("canary horse")).unwrap()), "each has its salt");
    }

    #[test]
    fn the_costs_are_those_of_the_rfc_and_can_be_paid() {
        let derivation = Derivation::new().unwrap();
        assert_eq!((derivation.memory_kib, derivation.passes, derivation.lanes), (65_536, 3, 4));
        derivation.key(&passphrase("canary")).unwrap();
    }

    #[test]
    fn senseless_costs_are_damage() {
        for bad in [
            Derivation { memory_kib: u32::MAX, ..cheap() },
            Derivation { passes: u32::MAX, ..cheap() },
            Derivation { passes: 0, ..cheap() },
            Derivation { lanes: u32::MAX, ..cheap() },
            Derivation { salt: "00".into(), ..cheap() },
            Derivation { salt: "gg".repeat(16), ..cheap() },
        ] {
            assert!(matches!(bad.key(&passphrase("canary")), Err(StoreError::Unfit { .. })), "{bad:?}");
        }
        for bad in ["", "{}", r#"{"algorithm":"argon2d","memory_kib":8,"passes":1,"lanes":1,"salt":"00"}"#] {
            assert!(Derivation::from_text(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_chosen_passphrase_is_long_enough_and_typed_twice_alike() {
        let chosen = |typed: &[&str]| {
            let typed = Mutex::new(typed.iter().rev().map(|text| (*text).to_owned()).collect::<Vec<_>>());
            choose(&|_| Ok(passphrase(&typed.lock().unwrap().pop().unwrap()))).map_err(|error| error.to_string())
        };
        assert!(chosen(&["canary horse", "canary horse"]).is_ok());
        assert!(chosen(&["canary horse", "canary house"]).unwrap_err().contains("differ"));
        assert!(chosen(&["canary"]).unwrap_err().contains("shorter than 8"));
        let nobody = choose(&|_| Err(AskError::NoTerminal)).unwrap_err().to_string();
        assert!(nobody.contains("no terminal") && nobody.contains("credential:NAME"), "{nobody}");
    }
}
