//! When the next attempt may be made.
//!
//! Owns: the cooldown after an attempt and the backoffs that lengthen it, as arithmetic on the refresh state and times.
//!
//! Invariants:
//! 1. No arithmetic panics, whatever the clock does.
//! 2. A time in the future counts as past: the clock has been set back since.
//! 3. In the process that made the attempt, waits are measured on the monotonic clock.

use std::time::Duration;

use crate::{
    clock::{Monotonic, Timestamp},
    store::{Attempt, Outcome, Presentation, RefreshState},
};

/// The longest `Retry-After` that is honoured: a mistaken date must not block an account for days.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// The longest backoff after rejected and ambiguous attempts: long enough to spare the provider, short enough for a
/// person who waits for a recovery.
const MAX_BACKOFF: Duration = Duration::from_mins(10);

/// The backoff after a configuration error, which only a person can fix: retrying every few minutes notices the fix
/// without being a nuisance.
const CONFIGURATION_BACKOFF: (Duration, Duration) = (Duration::from_mins(5), Duration::from_hours(1));

/// The result of an attempt, as far as the backoff depends on it.
#[derive(Debug, Clone)]
pub(super) struct AttemptResult {
    pub(super) outcome: Outcome,
    pub(super) code: Option<String>,
    pub(super) retry_after: Option<Duration>,
    /// When the new access token expires, after a success.
    pub(super) expires_at: Option<Timestamp>,
}

/// The record of an attempt that ended at `now`, given the one before it.
pub(super) fn record_attempt(
    result: AttemptResult,
    before: Option<&Attempt>,
    cooldown: Duration,
    now: Timestamp,
) -> Attempt {
    let consecutive = match before {
        Some(before) if before.outcome == result.outcome => before.consecutive.saturating_add(1),
        Some(_) | None => 1,
    };
    let wait = match result.outcome {
        Outcome::Success => result.expires_at.map_or(cooldown, |end| cooldown.min(end.since(now))),
        Outcome::Final => Duration::ZERO,
        Outcome::NotSpent => cooldown.max(result.retry_after.unwrap_or_default().min(MAX_RETRY_AFTER)),
        Outcome::Configuration => doubled(CONFIGURATION_BACKOFF.0, consecutive, CONFIGURATION_BACKOFF.1),
        Outcome::Refused | Outcome::Ambiguous => doubled(cooldown, consecutive, MAX_BACKOFF.max(cooldown)),
    };
    Attempt { ended_at: now, outcome: result.outcome, code: result.code, consecutive, not_before: now.plus(wait) }
}

fn doubled(first: Duration, consecutive: u32, longest: Duration) -> Duration {
    // Past 2^16 every initial backoff other than zero has reached the longest one.
    first.saturating_mul(1 << consecutive.saturating_sub(1).min(16)).min(longest)
}

/// The end of an attempt that this process made itself (invariant 3).
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnAttemptEnd {
    pub(super) at: Timestamp,
    pub(super) monotonic: Monotonic,
}

/// The inputs of the calculation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) wall: Timestamp,
    pub(super) monotonic: Monotonic,
    /// When the configuration was loaded: an earlier configuration error is ignored.
    pub(super) configured_at: Timestamp,
    pub(super) cooldown: Duration,
    /// The access token cannot be used any more.
    pub(super) expired: bool,
}

/// How long until the next attempt may be made; `None` if it may be made now.
pub(super) fn wait(refresh_state: &RefreshState, own: Option<OwnAttemptEnd>, now: Now) -> Option<Duration> {
    let after_attempt = refresh_state.attempt.as_ref().and_then(|attempt| after_attempt(attempt, own, now));
    let after_crash = cut_off(refresh_state).and_then(|presented| after_crash(presented, now));
    after_attempt.max(after_crash)
}

fn after_attempt(attempt: &Attempt, own: Option<OwnAttemptEnd>, now: Now) -> Option<Duration> {
    let forgiven = attempt.outcome == Outcome::Configuration && attempt.ended_at < now.configured_at;
    // The record lasts as long as the token, but the clock may have been set ahead since, or the machine may have
    // slept.
    if attempt.outcome == Outcome::Success && now.expired {
        return None;
    }
    let whole = attempt.not_before.since(attempt.ended_at);
    let passed = match own {
        // Made with the current configuration, even if a clock that was set back suggests otherwise.
        Some(own) if own.at == attempt.ended_at => now.monotonic.since(own.monotonic),
        Some(_) | None if forgiven || attempt.ended_at > now.wall => return None,
        Some(_) | None => now.wall.since(attempt.ended_at),
    };
    Some(whole.saturating_sub(passed)).filter(|left| !left.is_zero())
}

/// A presentation without an outcome: a crash interrupted it, unless it is under way.
pub(super) fn cut_off(refresh_state: &RefreshState) -> Option<Presentation> {
    refresh_state
        .presented
        .filter(|mark| refresh_state.attempt.as_ref().is_none_or(|attempt| attempt.ended_at < mark.at))
}

/// After one interruption the second try is made at once (docs/architecture.md, "Ambiguity"); a daemon that crashes every
/// time must not present the token at each start.
fn after_crash(presented: Presentation, now: Now) -> Option<Duration> {
    if presented.count < 2 || presented.at > now.wall {
        return None;
    }
    Some(now.cooldown.saturating_sub(now.wall.since(presented.at))).filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COOLDOWN: Duration = Duration::from_secs(30);
    const T: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn result(outcome: Outcome) -> AttemptResult {
        AttemptResult { outcome, code: None, retry_after: None, expires_at: None }
    }

    fn refresh_state(attempt: Attempt) -> RefreshState {
        RefreshState { attempt: Some(attempt), ..RefreshState::default() }
    }

    fn at(wall: Timestamp) -> Now {
        Now { wall, monotonic: Monotonic::new(Duration::ZERO), configured_at: T, cooldown: COOLDOWN, expired: false }
    }

    #[expect(clippy::unnecessary_wraps, reason = "said once here, it need not be said in every assertion")]
    fn seconds(number: u64) -> Option<Duration> {
        Some(Duration::from_secs(number))
    }

    #[test]
    fn the_cooldown_counts_from_the_end_of_the_attempt() {
        for outcome in [Outcome::Success, Outcome::NotSpent, Outcome::Refused, Outcome::Ambiguous] {
            let refresh_state = refresh_state(record_attempt(result(outcome), None, COOLDOWN, T));
            assert_eq!(wait(&refresh_state, None, at(T)), seconds(30), "{outcome:?}");
            assert_eq!(wait(&refresh_state, None, at(T.plus(Duration::from_secs(29)))), seconds(1), "{outcome:?}");
            assert_eq!(wait(&refresh_state, None, at(T.plus(COOLDOWN))), None, "{outcome:?}");
        }
    }

    #[test]
    fn after_a_success_it_ends_at_the_latest_when_the_token_expires() {
        let soon = AttemptResult { expires_at: Some(T.plus(Duration::from_secs(5))), ..result(Outcome::Success) };
        assert_eq!(wait(&refresh_state(record_attempt(soon, None, COOLDOWN, T)), None, at(T)), seconds(5));
    }

    #[test]
    fn when_the_machine_has_slept_past_the_tokens_end_a_success_keeps_nobody_waiting() {
        let awake = Now { expired: true, ..at(T.plus(Duration::from_hours(8))) };
        let own = Some(OwnAttemptEnd { at: T, monotonic: awake.monotonic });
        assert_eq!(wait(&refresh_state(record_attempt(result(Outcome::Success), None, COOLDOWN, T)), own, awake), None);
        assert_eq!(
            wait(&refresh_state(record_attempt(result(Outcome::NotSpent), None, COOLDOWN, T)), own, awake),
            seconds(30)
        );
    }

    #[test]
    fn backoffs_double_to_their_limit_and_begin_anew_after_another_outcome() {
        let waits = |outcome, cooldown| {
            let mut before: Option<Attempt> = None;
            (0..40).map(move |_| {
                let next = record_attempt(result(outcome), before.as_ref(), cooldown, T);
                before = Some(next.clone());
                next.not_before.since(T).as_secs()
            })
        };
        let first = |outcome, cooldown| waits(outcome, cooldown).take(6).collect::<Vec<_>>();
        assert_eq!(first(Outcome::Ambiguous, COOLDOWN), [30, 60, 120, 240, 480, 600]);
        assert_eq!(first(Outcome::Refused, Duration::ZERO), [0; 6]);
        assert_eq!(first(Outcome::Configuration, COOLDOWN), [300, 600, 1200, 2400, 3600, 3600]);
        assert_eq!(waits(Outcome::Refused, COOLDOWN).nth(39), Some(600));
        let refused = record_attempt(result(Outcome::Refused), None, COOLDOWN, T);
        assert_eq!(record_attempt(result(Outcome::Ambiguous), Some(&refused), COOLDOWN, T).consecutive, 1);
    }

    #[test]
    fn retry_after_lengthens_the_cooldown_to_an_hour_at_most() {
        let later = |retry_after| AttemptResult { retry_after: Some(retry_after), ..result(Outcome::NotSpent) };
        for (asked, waited) in [(10, 30), (90, 90), (86_400, 3600)] {
            let attempt = record_attempt(later(Duration::from_secs(asked)), None, COOLDOWN, T);
            assert_eq!(wait(&refresh_state(attempt), None, at(T)), seconds(waited), "{asked}");
        }
        let endless = record_attempt(later(Duration::MAX), None, COOLDOWN, T);
        assert_eq!(wait(&refresh_state(endless), None, at(T)), seconds(3600));
    }

    #[test]
    fn a_mark_in_the_future_counts_as_over() {
        let refresh_state = refresh_state(record_attempt(
            result(Outcome::Success),
            None,
            COOLDOWN,
            T.plus(Duration::from_hours(24 * 365)),
        ));
        assert_eq!(wait(&refresh_state, None, at(T)), None);
    }

    #[test]
    fn inside_the_process_the_wall_clock_does_not_count() {
        let refresh_state = refresh_state(record_attempt(result(Outcome::Success), None, COOLDOWN, T));
        let own = Some(OwnAttemptEnd { at: T, monotonic: Monotonic::new(Duration::ZERO) });
        for wall in [Timestamp::from_millis(i64::MIN), Timestamp::from_secs(0), T, Timestamp::from_millis(i64::MAX)] {
            let now = Now { monotonic: Monotonic::new(Duration::from_secs(10)), ..at(wall) };
            assert_eq!(wait(&refresh_state, own, now), seconds(20));
        }
    }

    #[test]
    fn a_configuration_error_is_forgiven_once_the_configuration_was_read_again() {
        let refresh_state = refresh_state(record_attempt(result(Outcome::Configuration), None, COOLDOWN, T));
        let later = T.plus(Duration::from_secs(10));
        assert_eq!(wait(&refresh_state, None, at(later)), seconds(290));
        assert_eq!(wait(&refresh_state, None, Now { configured_at: later, ..at(later) }), None);
    }

    #[test]
    fn after_one_crash_the_next_try_is_at_once_and_after_two_it_waits() {
        for (count, waited) in [(1, None), (2, seconds(30)), (9, seconds(30))] {
            let refresh_state =
                RefreshState { presented: Some(Presentation { at: T, count }), ..RefreshState::default() };
            assert_eq!(wait(&refresh_state, None, at(T)), waited, "{count}");
        }
    }

    prop_compose! {
        fn endings()(
            outcome in outcomes(),
            retry_after in proptest::option::of(any::<Duration>()),
            expires_at in proptest::option::of(timestamps()),
        ) -> AttemptResult {
            AttemptResult { outcome, code: None, retry_after, expires_at }
        }
    }

    fn outcomes() -> impl Strategy<Value = Outcome> {
        use Outcome::{Ambiguous, Configuration, Final, NotSpent, Refused, Success};
        proptest::sample::select(vec![Success, Final, Configuration, NotSpent, Refused, Ambiguous])
    }

    fn timestamps() -> impl Strategy<Value = Timestamp> {
        let millis = prop_oneof![
            Just(i64::MIN),
            Just(i64::MAX),
            any::<i64>(),
            (-5_000_000..5_000_000_i64).prop_map(|near| T.as_millis() + near),
        ];
        millis.prop_map(Timestamp::from_millis)
    }

    /// What configuration allows.
    fn cooldowns() -> impl Strategy<Value = Duration> {
        (0..=3600_u64).prop_map(Duration::from_secs)
    }

    prop_compose! {
        /// Any refresh state that a store could return, including damage that still parses.
        fn any_marks()(
            attempt in proptest::option::of((timestamps(), outcomes(), any::<u32>(), timestamps())),
            presented in proptest::option::of((timestamps(), any::<u32>())),
        ) -> RefreshState {
            let attempt = attempt.map(|(ended_at, outcome, consecutive, not_before)| {
                Attempt { ended_at, outcome, code: None, consecutive, not_before }
            });
            RefreshState { attempt, presented: presented.map(|(at, count)| Presentation { at, count }), dead: None, copied_at: None }
        }
    }

    fn longest(outcome: Outcome, cooldown: Duration) -> Duration {
        match outcome {
            Outcome::Success => cooldown,
            Outcome::Final => Duration::ZERO,
            Outcome::NotSpent => cooldown.max(MAX_RETRY_AFTER),
            Outcome::Configuration => CONFIGURATION_BACKOFF.1,
            Outcome::Refused | Outcome::Ambiguous => cooldown.max(MAX_BACKOFF),
        }
    }

    proptest! {
        #[test]
        fn no_time_makes_the_arithmetic_panic(
            refresh_state in any_marks(),
            result in endings(),
            times in (timestamps(), timestamps(), timestamps()),
            monotonic in (any::<Duration>(), any::<Duration>()),
            (cooldown, expired) in (any::<Duration>(), any::<bool>()),
        ) {
            let (wall, configured_at, ended) = times;
            let own = Some(OwnAttemptEnd { at: ended, monotonic: Monotonic::new(monotonic.0) });
            let now = Now { wall, monotonic: Monotonic::new(monotonic.1), configured_at, cooldown, expired };
            let attempt = record_attempt(result, refresh_state.attempt.as_ref(), cooldown, wall);
            prop_assert!(attempt.not_before >= attempt.ended_at);
            for refresh_state in [refresh_state, RefreshState { attempt: Some(attempt), ..RefreshState::default() }] {
                for own in [None, own] {
                    prop_assert_ne!(wait(&refresh_state, own, now), Some(Duration::ZERO));
                }
            }
        }

        #[test]
        fn no_wait_is_longer_than_its_cap_whatever_came_before(
            endings in proptest::collection::vec(endings(), 1..40), cooldown in cooldowns(), at_end in timestamps(),
        ) {
            let mut before: Option<Attempt> = None;
            for result in endings {
                let outcome = result.outcome;
                let next = record_attempt(result, before.as_ref(), cooldown, at_end);
                let waited = wait(&refresh_state(next.clone()), None, Now { cooldown, ..at(at_end) }).unwrap_or_default();
                prop_assert!(waited <= longest(outcome, cooldown), "{outcome:?}: {waited:?}");
                let consecutive = before.filter(|before| before.outcome == outcome).map_or(1, |before| before.consecutive + 1);
                prop_assert_eq!(next.consecutive, consecutive);
                before = Some(next);
            }
        }

        #[test]
        fn what_is_left_shrinks_as_time_passes_and_never_grows(
            result in endings(), cooldown in cooldowns(), passed in (0..8_000_000_u64, 0..8_000_000_u64),
        ) {
            let refresh_state = refresh_state(record_attempt(result, None, cooldown, T));
            let left = |millis| {
                let now = Now { cooldown, ..at(T.plus(Duration::from_millis(millis))) };
                wait(&refresh_state, None, now).unwrap_or_default()
            };
            let (sooner, later) = (passed.0.min(passed.1), passed.0.max(passed.1));
            prop_assert!(left(later) <= left(sooner));
            prop_assert!(left(later) == left(sooner).saturating_sub(Duration::from_millis(later - sooner)));
        }

        #[test]
        fn a_longer_streak_never_waits_less(outcome in outcomes(), cooldown in cooldowns(), consecutive in 1..1000_u32) {
            let waits = |consecutive| {
                let before = Attempt { ended_at: T, outcome, code: None, consecutive, not_before: T };
                record_attempt(result(outcome), Some(&before), cooldown, T).not_before
            };
            prop_assert!(waits(consecutive + 1) >= waits(consecutive));
        }

        #[test]
        fn any_mark_of_the_future_is_over(mut refresh_state in any_marks(), wall in timestamps(), cooldown in cooldowns()) {
            if let Some(attempt) = &mut refresh_state.attempt {
                attempt.ended_at = attempt.ended_at.max(wall.plus(Duration::from_millis(1)));
            }
            if let Some(presented) = &mut refresh_state.presented {
                presented.at = presented.at.max(wall.plus(Duration::from_millis(1)));
            }
            prop_assume!(wall < Timestamp::from_millis(i64::MAX));
            prop_assert_eq!(wait(&refresh_state, None, Now { cooldown, ..at(wall) }), None);
        }

        #[test]
        fn inside_the_process_no_wall_clock_changes_the_wait(
            result in endings(),
            cooldown in cooldowns(),
            ended in timestamps(),
            walls in (timestamps(), timestamps()),
            passed in 0..4_000_u64,
        ) {
            let attempt = record_attempt(result, None, cooldown, ended);
            let whole = attempt.not_before.since(ended);
            let refresh_state = refresh_state(attempt);
            let own = Some(OwnAttemptEnd { at: ended, monotonic: Monotonic::new(Duration::from_secs(9)) });
            let monotonic = Monotonic::new(Duration::from_secs(9 + passed));
            let left = |wall| wait(&refresh_state, own, Now { monotonic, cooldown, ..at(wall) });
            for wall in [walls.0, walls.1] {
                prop_assert_eq!(left(wall).unwrap_or_default(), whole.saturating_sub(Duration::from_secs(passed)));
            }
        }
    }
}
