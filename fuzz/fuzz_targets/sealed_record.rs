//! Sealed records: arbitrary bytes never open; a sealed grant comes back as it was, and not when it is damaged or
//! moved; a plaintext of any kind is read or refused.

#![no_main]

use credproxy::{
    account::Account,
    fuzzing::{open, opened, seal},
    grant::{Grant, GrantId, Version},
};
use fuzz::{corp, grant};
use libfuzzer_sys::fuzz_target;
use secrecy::ExposeSecret as _;

fn same(one: &Grant, other: &Grant) -> bool {
    let token = |grant: &Grant| grant.refresh_token.as_ref().map(|token| token.expose_secret().to_owned());
    one.version == other.version
        && one.access_token.expose_secret() == other.access_token.expose_secret()
        && one.token_type == other.token_type
        && (one.issued_at, one.expires_at) == (other.issued_at, other.expires_at)
        && one.scope == other.scope
        && token(one) == token(other)
        && one.extra == other.extra
}

fuzz_target!(|input: &[u8]| {
    let version = grant().version;
    assert!(open(&corp(), version, input).is_err(), "made-up bytes were opened");
    let (places, plain) = input.split_at(input.len().min(4));
    let Some(grant) = opened(plain, version) else { return };
    let sealed = seal(&corp(), &grant).unwrap();
    assert!(same(&open(&corp(), version, &sealed).unwrap(), &grant), "the grant came back changed");
    let &[high, low, bits, elsewhere] = places else { return };
    let mut damaged = sealed.clone();
    let place = usize::from(u16::from_be_bytes([high, low])) % sealed.len();
    damaged[place] ^= bits.max(1);
    assert!(open(&corp(), version, &damaged).is_err(), "byte {place} was changed by {bits} unnoticed");
    damaged.truncate(place);
    assert!(open(&corp(), version, &damaged).is_err(), "cut off at {place}, unnoticed");
    let account: Account = if elsewhere & 1 == 0 { "corp/other" } else { "other" }.parse().unwrap();
    assert!(open(&account, version, &sealed).is_err(), "opened for another account");
    let generation = version.generation.wrapping_add(u64::from(elsewhere).max(1));
    assert!(open(&corp(), Version { generation, ..version }, &sealed).is_err(), "opened for another generation");
    let id = GrantId::from_bytes([elsewhere.max(8); 16]);
    assert!(open(&corp(), Version { id, ..version }, &sealed).is_err(), "opened for another grant");
});
