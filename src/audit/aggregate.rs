//! Counts equal events together, so that a flood adds a few lines per second to the log, and a busy reader next to
//! none.
//!
//! Owns: which events are written at once, and the counts of the others.
//!
//! Events are equal when they differ in their times only. The first of equal events is written at once. Later ones are
//! counted, and each second the count is written as one line ([`EventAggregator::flush`]) until a second has none. Each
//! peer (a user on a socket, or all users that a socket rejects) has a budget of lines: [`LINE_BURST`] at once, and
//! [`LINES_PER_SECOND`] more each second. An event beyond the budget is counted by operation and outcome alone, in a
//! summary. There are at most [`SUMMARIES_PER_SECOND`] summaries per second, and one more for everything else.
//!
//! Invariants:
//! 1. Every event is written or counted, and every count is written: the sum of `times`, where a line without one counts
//!    as 1, is the number of events.
//! 2. Once its burst is used up, a peer adds at most [`LINES_PER_SECOND`] + [`SUMMARIES_PER_SECOND`] + 1 lines per
//!    second. An event with a line of its own ([`Event::own_line`]) does not count: other limits bound those.
//! 3. At most [`MAX_EVENTS`] different events are in memory, and a few summaries for each peer.
//!
//! Must not know: where lines go, and when a second is over.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use super::{Event, Origin, Subject, Timestamp, labels};

/// Lines that a peer may add at once: enough for a program that asks for each of some hundred accounts.
const LINE_BURST: u32 = 200;

/// Lines that a peer may add each second after its burst: some 5 KB, with which the default log lasts for hours.
const LINES_PER_SECOND: u32 = 20;

/// Summaries of one peer per second.
const SUMMARIES_PER_SECOND: u32 = 10;

/// Different events in memory. Each takes some 300 bytes.
const MAX_EVENTS: usize = 8192;

/// How many events a line stands for, and when they happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) times: u64,
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
    /// The events differ in what the line leaves out: the program and the names, and in the last summary everything.
    pub(super) summary: bool,
}

impl Count {
    const fn of_one(now: Timestamp) -> Self {
        Self { times: 1, first: now, last: now, summary: false }
    }
}

/// What to do with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placement {
    /// Write it at once, then call [`EventAggregator::set_line_end`], or [`EventAggregator::count_unwritten`] if there
    /// was no room.
    First(EventKey),
    /// It was counted. The last line of its equals ends at this position.
    Counted(u64),
}

/// The key of an event in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct EventKey(u64);

/// The events of the last second or so, with their counts.
#[derive(Default)]
pub(super) struct EventAggregator {
    /// Randomly keyed, so that nobody can choose events that collide. Accidental collisions are detected.
    hasher: RandomState,
    entries: HashMap<EventKey, EventCounts>,
    peers: HashMap<u64, LineBudget>,
    /// How many counts were begun: lines are written in that order.
    begun: u64,
}

/// How many of its lines a peer has used.
#[derive(Default)]
struct LineBudget {
    lines: u32,
    summaries: u32,
}

impl LineBudget {
    fn take_line(&mut self) -> bool {
        let is_left = self.lines < LINE_BURST;
        self.lines += u32::from(is_left);
        is_left
    }
}

/// Equal events and their count.
struct EventCounts {
    origin: Origin,
    operation: &'static str,
    subject: Subject,
    outcome: &'static str,
    status: Option<u16>,
    provider_called: bool,
    summary: bool,
    /// The position at which their last line ends.
    end: u64,
    /// How many of them no line accounts for yet.
    times: u64,
    first: Timestamp,
    last: Timestamp,
    longest: Duration,
    /// The position of their count in the order of beginnings.
    order: u64,
}

impl EventCounts {
    fn of(event: &Event<'_>, summary: bool) -> Self {
        Self {
            origin: event.origin.clone(),
            operation: event.operation,
            subject: event.subject.clone(),
            outcome: event.outcome,
            status: event.status,
            provider_called: event.provider_called,
            summary,
            end: 0,
            times: 0,
            first: Timestamp::from_millis(0),
            last: Timestamp::from_millis(0),
            longest: Duration::ZERO,
            order: 0,
        }
    }

    fn is(&self, event: &Event<'_>) -> bool {
        self.operation == event.operation
            && self.outcome == event.outcome
            && self.status == event.status
            && self.provider_called == event.provider_called
            && self.origin == *event.origin
            && self.subject == *event.subject
    }

    fn add(&mut self, count: &Count, latency: Duration, begun: &mut u64) {
        if self.times == 0 {
            self.first = count.first;
            self.order = *begun;
            *begun += 1;
        }
        self.times += count.times;
        self.last = count.last;
        self.longest = self.longest.max(latency);
    }

    fn event(&self) -> Event<'_> {
        Event {
            origin: &self.origin,
            operation: self.operation,
            subject: &self.subject,
            outcome: self.outcome,
            status: self.status,
            latency: self.longest,
            provider_called: self.provider_called,
            own_line: false,
        }
    }

    fn count(&self) -> Count {
        Count { times: self.times, first: self.first, last: self.last, summary: self.summary }
    }
}

impl EventAggregator {
    /// Whether nothing is left to write or to forget.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.peers.is_empty()
    }

    /// Records an event: decides whether it is written at once, and counts it if not.
    pub(super) fn record(&mut self, event: &Event<'_>, now: Timestamp) -> Placement {
        let key = self.key(event);
        let one = Count::of_one(now);
        let known = self.entries.get_mut(&key);
        let is_new = known.is_none();
        if let Some(entry) = known.filter(|entry| entry.is(event)) {
            entry.add(&one, event.latency, &mut self.begun);
            return Placement::Counted(entry.end);
        }
        let has_room = is_new && self.entries.len() < MAX_EVENTS;
        if has_room && self.peers.entry(event.origin.peer()).or_default().take_line() {
            self.entries.insert(key, EventCounts::of(event, false));
            return Placement::First(key);
        }
        self.summarize(event, &one);
        Placement::Counted(0)
    }

    /// Notes where the line of a first event ends.
    pub(super) fn set_line_end(&mut self, key: EventKey, end: u64) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.end = end;
        }
    }

    /// Counts a first event instead, because there was no room for its line.
    pub(super) fn count_unwritten(&mut self, key: EventKey, event: &Event<'_>, now: Timestamp) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.add(&Count::of_one(now), event.latency, &mut self.begun);
        }
    }

    /// Ends a second: passes every count to `write`, in the order of their beginnings. `write` returns the position at
    /// which the line ends.
    pub(super) fn flush(&mut self, mut write: impl FnMut(&Event<'_>, &Count) -> u64) {
        for budget in self.peers.values_mut() {
            budget.lines = budget.lines.saturating_sub(LINES_PER_SECOND);
        }
        self.entries.retain(|_, entry| entry.times > 0);
        for key in self.keys_in_order(false) {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            if self.peers.entry(entry.origin.peer()).or_default().take_line() {
                entry.end = write(&entry.event(), &entry.count());
                (entry.times, entry.longest) = (0, Duration::ZERO);
            } else if let Some(entry) = self.entries.remove(&key) {
                self.summarize(&entry.event(), &entry.count());
            }
        }
        for key in self.keys_in_order(true) {
            if let Some(entry) = self.entries.remove(&key) {
                write(&entry.event(), &entry.count());
            }
        }
        self.peers.retain(|_, budget| {
            budget.summaries = 0;
            budget.lines > 0
        });
    }

    fn keys_in_order(&self, summaries: bool) -> Vec<EventKey> {
        let wanted = self.entries.iter().filter(|(_, entry)| entry.summary == summaries);
        let mut keys: Vec<_> = wanted.map(|(key, entry)| (entry.order, *key)).collect();
        keys.sort_unstable_by_key(|(order, _)| *order);
        keys.into_iter().map(|(_, key)| key).collect()
    }

    /// Counts an event in a summary: by operation and outcome, or in the last one for everything.
    fn summarize(&mut self, event: &Event<'_>, count: &Count) {
        let (origin, subject) = (event.origin.without_program(), Subject::default());
        let kind = Event { origin: &origin, subject: &subject, ..*event };
        let (operation, outcome) = (labels::VARIOUS, labels::VARIOUS);
        let all = Event { operation, outcome, status: None, provider_called: false, ..kind };
        let mut key = self.key(&kind);
        let budget = self.peers.entry(origin.peer()).or_default();
        match self.entries.get(&key) {
            Some(entry) if entry.is(&kind) => {}
            None if budget.summaries < SUMMARIES_PER_SECOND => {
                budget.summaries += 1;
                self.entries.insert(key, EventCounts::of(&kind, true));
            }
            Some(_) | None => {
                key = self.key(&all);
                self.entries.entry(key).or_insert_with(|| EventCounts::of(&all, true));
            }
        }
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.add(count, event.latency, &mut self.begun);
        }
    }

    fn key(&self, event: &Event<'_>) -> EventKey {
        let Subject { account, named } = event.subject;
        let facts = (event.origin, event.operation, account.get(), named.get());
        EventKey(self.hasher.hash_one((facts, event.outcome, event.status, event.provider_called)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::account::AccountRef;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    /// A log, as the queue writes one.
    #[derive(Default)]
    struct Log {
        folds: EventAggregator,
        /// What is written of whom: operation, account, outcome, count.
        lines: Vec<(&'static str, Option<String>, &'static str, Count)>,
    }

    fn line(event: &Event<'_>, count: &Count) -> (&'static str, Option<String>, &'static str, Count) {
        let Subject { account, .. } = event.subject;
        (event.operation, account.get().cloned(), event.outcome, *count)
    }

    impl Log {
        fn tell(&mut self, event: &Event<'_>, now: Timestamp) {
            if let Placement::First(key) = self.folds.record(event, now) {
                self.lines.push(line(event, &Count::of_one(now)));
                self.folds.set_line_end(key, 1);
            }
        }

        /// The lines that a second's end adds.
        fn second(&mut self) -> usize {
            let before = self.lines.len();
            self.folds.flush(|event, count| {
                self.lines.push(line(event, count));
                2
            });
            self.lines.len() - before
        }

        fn events(&self) -> u64 {
            self.lines.iter().map(|(.., count)| count.times).sum()
        }
    }

    fn about(account: usize) -> Subject {
        let subject = Subject::default();
        subject.account(AccountRef::new("corp", Some(&format!("n{account}"))).unwrap());
        subject
    }

    fn event<'a>(origin: &'a Origin, subject: &'a Subject) -> Event<'a> {
        Event {
            origin,
            operation: "getToken",
            subject,
            outcome: labels::OK,
            status: Some(200),
            latency: Duration::ZERO,
            provider_called: false,
            own_line: false,
        }
    }

    #[test]
    fn the_first_is_written_at_once_and_then_one_line_a_second_until_one_has_none() {
        let (mut log, origin, subject) = (Log::default(), Origin::of_peer("s", 0, None), about(1));
        for second in 0..3 {
            for millis in 0..100 {
                log.tell(&event(&origin, &subject), at(second * 1000 + millis));
            }
            assert_eq!(log.second(), 1);
        }
        let counts: Vec<_> = log.lines.iter().map(|(.., count)| (count.times, count.first, count.last)).collect();
        let count = |times, first, last| (times, at(first), at(last));
        assert_eq!(counts, [count(1, 0, 0), count(99, 1, 99), count(100, 1000, 1099), count(100, 2000, 2099)]);
        assert_eq!((log.second(), log.folds.entries.len()), (0, 0));
        // The peer gets its lines back.
        while !log.folds.is_empty() {
            assert_eq!(log.second(), 0);
        }
        log.tell(&event(&origin, &subject), at(9000));
        assert_eq!(log.lines.len(), 5);
    }

    #[test]
    fn whatever_differs_is_told_apart() {
        let mut log = Log::default();
        let (me, you, subject, other) =
            (Origin::of_peer("s", 1, None), Origin::of_peer("s", 2, None), about(1), about(2));
        let named = Subject::default();
        named.named(crate::audit::Kind::Key, "corp");
        let one = event(&me, &subject);
        let events = [
            Event { origin: &you, ..one },
            Event { subject: &other, ..one },
            Event { subject: &named, ..one },
            Event { operation: "listTokens", ..one },
            Event { outcome: "NOT_FOUND", ..one },
            Event { status: Some(404), ..one },
            Event { provider_called: true, ..one },
            one,
        ];
        for _ in 0..2 {
            for event in &events {
                log.tell(event, at(0));
            }
        }
        assert_eq!(log.lines.len(), events.len());
        log.tell(&Event { latency: Duration::from_secs(1), ..event(&me, &subject) }, at(1));
        assert_eq!(log.lines.len(), events.len(), "but for the times");
    }

    #[test]
    fn more_than_a_peer_has_lines_for_is_counted_by_operation_and_outcome() {
        let (mut log, origin) = (Log::default(), Origin::of_peer("s", 0, None));
        for number in 0..1000 {
            let subject = about(number);
            log.tell(&event(&origin, &subject), at(0));
            log.tell(&Event { outcome: "NOT_FOUND", ..event(&origin, &subject) }, at(0));
        }
        assert_eq!(log.lines.len(), LINE_BURST as usize);
        // Another peer's lines are its own.
        let other = Origin::of_peer("s", 1, None);
        log.tell(&event(&other, &about(1)), at(0));
        assert_eq!(log.lines.len(), LINE_BURST as usize + 1);
        assert_eq!(log.second(), 2);
        let summaries: Vec<_> = log.lines.iter().filter(|(.., count)| count.summary).collect();
        for (operation, account, outcome, count) in summaries {
            assert!(*operation == "getToken" && account.is_none() && count.times == 900, "{outcome} {count:?}");
        }
        assert_eq!(log.events(), 2001);
    }

    #[test]
    fn all_whom_a_socket_turns_away_are_one_peer() {
        let mut log = Log::default();
        for uid in 0..1000 {
            log.tell(&event(&Origin::of_rejected("s", uid, Some(uid)), &Subject::default()), at(0));
        }
        assert_eq!((log.lines.len(), log.second(), log.events()), (LINE_BURST as usize, 1, 1000));
    }

    #[test]
    fn what_found_no_room_is_written_with_the_counts() {
        let (mut log, origin, subject) = (Log::default(), Origin::of_peer("s", 0, None), about(1));
        let one = event(&origin, &subject);
        let Placement::First(key) = log.folds.record(&one, at(5)) else { panic!("it is the first") };
        log.folds.count_unwritten(key, &one, at(5));
        assert_eq!((log.second(), log.events()), (1, 1));
    }

    const OPERATIONS: [&str; 20] =
        ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t"];

    proptest! {
        /// Invariants 1 to 3.
        #[test]
        fn nothing_is_lost_and_no_peer_adds_more_than_its_lines(
            steps in proptest::collection::vec((0..3_u32, 0..20_usize, 0..400_usize, 0..10_usize), 1..120),
            rounds in 1..8_usize,
        ) {
            let mut log = Log::default();
            let origins: Vec<_> = (0..3).map(|uid| Origin::of_peer("s", uid, None)).collect();
            let mut told = 0_i64;
            for round in 0..rounds {
                for (peer, operation, account, times) in &steps {
                    let subject = about(account + round * 100);
                    let operation = OPERATIONS[*operation];
                    for _ in 0..*times {
                        let event = Event { operation, ..event(&origins[*peer as usize], &subject) };
                        log.tell(&event, at(told));
                        told += 1;
                    }
                }
                prop_assert!(log.folds.entries.len() <= MAX_EVENTS + 3 * (SUMMARIES_PER_SECOND as usize + 1));
                log.second();
                let seconds = u32::try_from(round).unwrap() + 1;
                let most = 3 * (LINE_BURST + seconds * (LINES_PER_SECOND + SUMMARIES_PER_SECOND + 1));
                prop_assert!(log.lines.len() <= most as usize, "{} after {seconds}", log.lines.len());
            }
            for _ in 0..LINE_BURST / LINES_PER_SECOND + 2 {
                log.second();
            }
            prop_assert!(log.folds.is_empty());
            prop_assert_eq!(log.events(), u64::try_from(told).unwrap());
            prop_assert!(log.lines.iter().all(|(.., count)| count.times > 0));
        }
    }
}
