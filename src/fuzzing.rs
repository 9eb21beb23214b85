//! The entry points of the fuzz targets in `fuzz/`. Built only with the feature `fuzzing`.
//!
//! Owns: nothing; each function passes its input on, with a fixed key or environment where one is needed.
//!
//! Must not know: what a target holds to be wrong.

use std::path::Path;

use crate::{
    account::Account,
    config::{Config, ConfigError, Environment},
    grant::{Grant, Version},
    secret::StoreKey,
    store::{
        StoreError,
        seal::{self, Sealer},
    },
};

/// Parses a configuration as if it were the file `/etc/x.toml`.
pub fn configuration(text: &str) -> Result<Config, ConfigError> {
    let env = Environment::of([("HOME", "/home/me"), ("XDG_RUNTIME_DIR", "/run/user/1")]);
    Config::parse(Path::new("/etc/x.toml"), text, &env)
}

fn sealer() -> Sealer {
    Sealer::new(StoreKey::new([0x5a; 32]))
}

/// Seals a grant with a fixed key.
pub fn seal(account: &Account, grant: &Grant) -> Result<Vec<u8>, StoreError> {
    sealer().seal(account, grant)
}

/// Opens what [`seal`] made.
pub fn open(account: &Account, version: Version, sealed: &[u8]) -> Result<Grant, StoreError> {
    sealer().open(account, version, sealed)
}

/// Parses the plaintext of a record, which fuzzing cannot reach through the cipher.
#[must_use]
pub fn opened(plain: &[u8], version: Version) -> Option<Grant> {
    seal::read(plain, version).ok()
}
