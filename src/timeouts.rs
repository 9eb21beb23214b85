//! The timeouts that depend on each other, in one place, with the arithmetic that relates them.
//!
//! Everything outside this process can hang: a provider, a disk, another process that holds a lock. So each wait has a
//! timeout, and a longer one is composed of shorter ones: that of a refresh of calls to the provider and changes in the
//! store, that of the shutdown of whatever may still be under way. An independent timeout is defined beside the code
//! that it limits.

use std::time::Duration;

/// The maximum and default timeout of one call to a provider (`refresh.request_timeout`).
pub const PROVIDER_CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// The age of a flight after which it starts no more calls to the provider.
pub const LAST_PROVIDER_CALL_START: Duration = Duration::from_secs(15);

/// The longest time from a flight's start to the provider's last answer.
pub const FLIGHT_TIMEOUT: Duration = LAST_PROVIDER_CALL_START.saturating_add(PROVIDER_CALL_TIMEOUT);

/// How long one call of the store may wait: for other changes, for another process's lock, for the disk. A change takes
/// milliseconds.
pub const STORE_CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The extra time for a change that has begun and cannot be withdrawn.
pub const BEGUN_CHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a caller who can be served a valid token waits for a store that does not answer. A `GET` contains two such
/// waits, and must be answered within 2 s.
pub const STALLED_STORE_TIMEOUT: Duration = Duration::from_millis(750);

/// How long a flight waits for a permit of its provider's.
pub const PROVIDER_PERMIT_TIMEOUT: Duration = Duration::from_secs(8);

/// How long a flight waits for the lease while another owner has it.
pub const LEASE_WAIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The timeout of a health check for the store. It checks the audit log at the same time, and answers within 1 s.
pub const HEALTH_CHECK_TIMEOUT: Duration = Duration::from_millis(500);

/// How long an operation or a health check waits for the audit log to become writable.
pub const AUDIT_CHECK_TIMEOUT: Duration = Duration::from_millis(700);

/// How long shutdown retries to save what a provider has answered.
pub const FINAL_SAVE_TIMEOUT: Duration = Duration::from_secs(8);

/// How long shutdown waits for flights, logins and changes. No call to a provider starts after it has begun, so the
/// longest is a call under way, the change that saves its answer, and the retries to save it.
pub const SHUTDOWN_WORK_TIMEOUT: Duration = Duration::from_secs(35);

/// How long shutdown waits for the last responses to be sent.
pub const FINAL_RESPONSES_TIMEOUT: Duration = Duration::from_secs(2);

/// How long shutdown waits for the last lines of the audit log.
pub const FINAL_AUDIT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long shutdown waits for the store to close.
pub const STORE_CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest time that shutdown takes.
pub const SHUTDOWN_TIMEOUT: Duration = SHUTDOWN_WORK_TIMEOUT
    .saturating_add(FINAL_RESPONSES_TIMEOUT.saturating_mul(2))
    .saturating_add(FINAL_AUDIT_TIMEOUT)
    .saturating_add(STORE_CLOSE_TIMEOUT);

const fn fits(parts: &[Duration], whole: Duration) -> bool {
    let mut sum = Duration::ZERO;
    let mut at = 0;
    while at < parts.len() {
        sum = sum.saturating_add(parts[at]);
        at += 1;
    }
    sum.as_millis() <= whole.as_millis()
}

const _: () = assert!(
    fits(&[PROVIDER_PERMIT_TIMEOUT, LEASE_WAIT_TIMEOUT], LAST_PROVIDER_CALL_START),
    "a flight gets to its first call"
);
const _: () = assert!(
    fits(&[PROVIDER_PERMIT_TIMEOUT, STORE_CALL_TIMEOUT], Duration::from_secs(14)),
    "many refreshes at once are refused within 16 s by a store that does not answer, on a busy machine as well"
);
const _: () =
    assert!(fits(&[STALLED_STORE_TIMEOUT, STALLED_STORE_TIMEOUT], Duration::from_secs(2)), "a good token within 2 s");
const _: () = assert!(fits(&[HEALTH_CHECK_TIMEOUT], Duration::from_secs(1)), "health within 1 s");
const _: () = assert!(fits(&[AUDIT_CHECK_TIMEOUT], Duration::from_secs(1)), "health within 1 s, whatever the log does");
const _: () = assert!(
    fits(&[PROVIDER_CALL_TIMEOUT, STORE_CALL_TIMEOUT, BEGUN_CHANGE_TIMEOUT, FINAL_SAVE_TIMEOUT], SHUTDOWN_WORK_TIMEOUT),
    "whether an answer could be saved is known, and said, before the end",
);
const _: () = assert!(
    fits(&[FLIGHT_TIMEOUT, STORE_CALL_TIMEOUT], SHUTDOWN_WORK_TIMEOUT),
    "a flight is over when the work under way is"
);
