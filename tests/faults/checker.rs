//! The judge: reads the server's record and what callers were answered, and says whether anything was lost, spent
//! twice, hidden, or answered too early. Knows the rules of docs/architecture.md, and none of the
//! program's code.
//!
//! Every life of a daemon presents under a `client_id` of its own (`world.rs`), so that the server's record says whose
//! presentation a crash has cut off.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write as _,
    path::Path,
    sync::{Mutex, MutexGuard},
};

use serde_json::Value;

use crate::support::{
    http::Response,
    issuer::{Issuer, Outcome, Presentation},
};

/// What docs/architecture.md ("Outcomes") makes of an answer, as far as a further presentation depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Tokens were answered: never again.
    Success,
    /// The grant was called dead: never again.
    Final,
    /// The token is not spent.
    NotSpent,
    /// Nobody knows.
    Ambiguous,
}

/// How a chain stands in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Alive,
    /// And the daemon says so.
    Lost,
}

#[derive(Debug)]
pub(crate) struct Checker {
    issuer: Issuer,
    ledger: Mutex<Ledger>,
}

#[derive(Debug, Default)]
struct Ledger {
    runs: usize,
    alive: usize,
    lost: usize,
    accounts: BTreeMap<String, Standing>,
    /// The `client_id`s of lives that ended in the middle of whatever they did.
    crashed: BTreeSet<String>,
    /// The store takes nothing: what is answered now is in memory alone.
    store_fails: bool,
    violations: Vec<String>,
}

/// What is known of an account's grant.
#[derive(Debug)]
struct Standing {
    /// The refresh token of the login.
    refresh: String,
    newest: Option<Answered>,
}

/// A token that a caller was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) id: String,
    pub(crate) generation: u64,
    pub(crate) access: String,
    pub(crate) expiry: i64,
    /// Whether it must be there after a crash.
    durable: bool,
}

impl Answered {
    /// Reads a 200 with its entity tag, `"provider/bucket:id:generation"`.
    pub(crate) fn of(answer: &Response) -> Self {
        let (id, generation) = tag(answer);
        let body = answer.json();
        Self {
            id,
            generation,
            access: body["access_token"].as_str().unwrap().to_owned(),
            expiry: body["expiry"].as_i64().unwrap(),
            durable: true,
        }
    }
}

fn tag(answer: &Response) -> (String, u64) {
    let tag = answer.header("etag").expect("a token has a tag").trim_matches('"');
    let mut parts = tag.rsplitn(3, ':');
    let generation = parts.next().unwrap().parse().unwrap();
    (parts.next().unwrap().to_owned(), generation)
}

impl Checker {
    pub(crate) fn new(issuer: &Issuer) -> Self {
        Self { issuer: issuer.clone(), ledger: Mutex::default() }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    /// One more fault was driven.
    pub(crate) fn ran(&self) {
        self.ledger().runs += 1;
    }

    pub(crate) fn violation(&self, what: impl Into<String>) {
        let what = what.into();
        eprintln!("VIOLATION: {what}");
        self.ledger().violations.push(what);
    }

    /// A grant was put and the daemon agreed; `access` is good until `expiry`.
    pub(crate) fn logged_in(&self, account: &str, (access, refresh): (&str, &str), expiry: i64, put: &Response) {
        let (id, generation) = tag(put);
        let newest = Some(Answered { id, generation, access: access.to_owned(), expiry, durable: true });
        self.ledger().accounts.insert(account.to_owned(), Standing { refresh: refresh.to_owned(), newest });
    }

    /// The grant was deleted, or nobody knows.
    pub(crate) fn forget(&self, account: &str) {
        self.ledger().accounts.remove(account);
    }

    /// The life that presents under `client` was killed.
    pub(crate) fn crashed(&self, client: &str) {
        let mut ledger = self.ledger();
        ledger.crashed.insert(client.to_owned());
        for standing in ledger.accounts.values_mut() {
            standing.newest.take_if(|newest| !newest.durable);
        }
    }

    /// From now on the store takes nothing, or it takes everything again and has taken all that was kept.
    pub(crate) fn store_fails(&self, fails: bool) {
        let mut ledger = self.ledger();
        ledger.store_fails = fails;
        if !fails {
            ledger.accounts.values_mut().filter_map(|it| it.newest.as_mut()).for_each(|newest| newest.durable = true);
        }
    }

    /// A caller was given this token.
    pub(crate) fn answered(&self, account: &str, answer: &Response) {
        let answered = Answered::of(answer);
        let mut ledger = self.ledger();
        let durable = !ledger.store_fails;
        let Some(standing) = ledger.accounts.get_mut(account) else { return };
        let Some(newest) = &mut standing.newest else {
            standing.newest = Some(Answered { durable, ..answered });
            return;
        };
        // A grant that was replaced meanwhile may still be answered to those who asked before.
        if newest.id != answered.id || answered.generation < newest.generation {
            return;
        }
        let same = newest.generation == answered.generation;
        let forked = same && newest.access != answered.access;
        if !same {
            *newest = Answered { durable, ..answered };
        }
        drop(ledger);
        if forked {
            self.violation(format!("{account}: one generation with two tokens"));
        }
    }

    /// The daemon was started again: `answer` is what a `GET` gives. `now` is its wall clock.
    pub(crate) fn survived(&self, account: &str, answer: &Response, now: i64) {
        let newest = self.ledger().accounts.get(account).and_then(|standing| standing.newest.clone());
        let Some(newest) = newest else { return };
        if answer.status != 200 {
            if newest.expiry > now {
                self.violation(format!("{account}: a token that was answered is gone: {}", answer.text()));
            }
            return;
        }
        let found = Answered::of(answer);
        if found.id != newest.id || found.generation < newest.generation {
            self.violation(format!(
                "{account}: answered was generation {} of {}, found after the crash {} of {}",
                newest.generation, newest.id, found.generation, found.id
            ));
        }
    }

    /// A `GET` was answered with something else than a token at `now` by the daemon's wall clock.
    pub(crate) fn refused(&self, account: &str, answer: &Response, now: i64) {
        let newest = self.ledger().accounts.get(account).and_then(|standing| standing.newest.clone());
        if newest.is_some_and(|newest| newest.expiry > now) {
            self.violation(format!("{account}: a valid token was hidden: {} {}", answer.status, answer.text()));
        }
    }

    /// The daemon answered a token at `now` by its wall clock, with a server that is well: by the server's clock the token
    /// must not have ended. A wall clock that shows a time of the token's life, as it counted that life when the token
    /// came, excuses the daemon: it cannot be told from a right one.
    pub(crate) fn in_time(&self, account: &str, answer: &Response, now: i64) {
        const ROUNDING: i64 = 2;
        let answered = Answered::of(answer);
        let Some((age, lifetime)) = self.issuer.age_and_lifetime(&answered.access) else { return };
        if age < lifetime || !self.issuer.is_well() {
            return;
        }
        let lifetime = i64::try_from(lifetime.as_secs()).unwrap();
        let (begin, end) = (answered.expiry - lifetime, answered.expiry);
        if !(begin - ROUNDING..end + ROUNDING).contains(&now) {
            self.violation(format!(
                "{account}: a token of {lifetime} s was answered when it was {age:?} old: {answered:?}"
            ));
        }
    }

    /// Judges how a chain stands: `answer` is what asking for a new token gave once the fault was over, `state` the
    /// account's state in the daemon's own list.
    pub(crate) fn settled(&self, account: &str, answer: &Response, state: &str) -> Fate {
        let refresh = self.ledger().accounts[account].refresh.clone();
        match answer.status {
            200 => {
                let whole = self.issuer.family_alive(&refresh) && self.issuer.living_successor(&refresh).is_some();
                if !whole {
                    self.violation(format!("{account}: a new token, but the chain is broken"));
                }
                self.ledger().alive += 1;
                Fate::Alive
            }
            401 => {
                self.judge_loss(account, &refresh, answer, state);
                self.ledger().lost += 1;
                Fate::Lost
            }
            status => {
                self.violation(format!("{account}: neither alive nor lost: {status} {}", answer.text()));
                Fate::Lost
            }
        }
    }

    /// A loss must be true, said, and not our fault: the provider rotated, and a crash or the wire took its answer.
    fn judge_loss(&self, account: &str, refresh: &str, answer: &Response, state: &str) {
        let body = answer.json();
        let detail = body["detail"].as_str().unwrap_or_default();
        if body["code"] != "REAUTH_REQUIRED" || !detail.contains("was lost") || state != "reauth_required" {
            self.violation(format!("{account}: a loss is not reported: {state}, {}", answer.text()));
        }
        if self.issuer.family_alive(refresh) {
            self.violation(format!("{account}: called dead, and lives"));
        }
        let presentations = self.issuer.presentations();
        let rotated =
            presentations.iter().rfind(|it| it.outcome == Outcome::Rotated && self.issuer.related(&it.token, refresh));
        let excused =
            rotated.is_some_and(|it| class(it) == Class::Ambiguous || self.ledger().crashed.contains(&it.client));
        if !excused {
            self.violation(format!("{account}: lost without a cause: {rotated:?}"));
        }
    }

    /// Counts the presentations that were not the first of their token: after an outcome that did not spend it, and
    /// after one that nobody knows. Any other is a violation.
    fn tries(&self) -> (usize, usize) {
        let (mut not_spent, mut ambiguous) = (0, 0);
        let mut latest: BTreeMap<String, Presentation> = BTreeMap::new();
        // A request that was held is carried out after those that came later, when who sent it may long be dead.
        let mut presentations = self.issuer.presentations();
        presentations.sort_by_key(|it| it.arrived);
        for presentation in presentations {
            let Some(before) = latest.insert(presentation.token.clone(), presentation.clone()) else { continue };
            let crashed = self.ledger().crashed.contains(&before.client);
            if !crashed && before.told.as_ref().is_some_and(|(_, at)| *at > presentation.arrived) {
                self.violation(format!("presented by two at once: {before:?} and {presentation:?}"));
            }
            match class(&before) {
                Class::NotSpent => not_spent += 1,
                Class::Ambiguous => ambiguous += 1,
                Class::Success | Class::Final if crashed => ambiguous += 1,
                Class::Success | Class::Final => {
                    self.violation(format!("presented again without need: {before:?}, then {presentation:?}"));
                }
            }
        }
        (not_spent, ambiguous)
    }

    /// How often a refresh token was presented so far.
    pub(crate) fn presentations(&self) -> usize {
        self.issuer.presentations().len()
    }

    /// Writes this fault's line of the table, and fails if a rule was broken.
    pub(crate) fn report(&self, fault: &str) {
        let (not_spent, ambiguous) = self.tries();
        let ledger = self.ledger();
        let numbers = [
            ledger.runs,
            self.issuer.presentations().len(),
            not_spent,
            ambiguous,
            ledger.alive,
            ledger.lost,
            ledger.violations.len(),
        ];
        let numbers = numbers.map(|number| number.to_string());
        write_line(fault, &numbers.join("\t"));
        assert!(ledger.violations.is_empty(), "{fault}:\n{}", ledger.violations.join("\n"));
    }
}

/// Writes the line of a fault that cannot be driven here.
pub(crate) fn skipped(fault: &str, why: &str) {
    write_line(fault, &format!("skipped: {why}"));
}

/// A file for each line: every test runs in a process of its own. `scripts/test` puts them together.
fn write_line(fault: &str, columns: &str) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults");
    fs::create_dir_all(&folder).unwrap();
    let name: String = fault.chars().map(|it| if it.is_ascii_alphanumeric() { it } else { '_' }).collect();
    let mut file = File::create(folder.join(name)).unwrap();
    writeln!(file, "{fault}\t{columns}").unwrap();
}

/// "Not now" and "not from this client".
const CODES: [&str; 7] = [
    "slow_down",
    "temporarily_unavailable",
    "invalid_client",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "invalid_request",
];

/// Sorts what was answered to a presentation. The table of docs/architecture.md, "Outcomes", written
/// down a second time.
fn class(presentation: &Presentation) -> Class {
    let Some((answer, _)) = &presentation.told else { return Class::Ambiguous };
    let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
    let member = |name: &str| body.as_ref().and_then(|body| body[name].as_str()).map(str::to_owned);
    match (answer.status, member("error").as_deref()) {
        (_, Some("invalid_grant")) => Class::Final,
        (_, Some(code)) if CODES.contains(&code) => Class::NotSpent,
        (200..=299, None) if member("access_token").is_some_and(|token| !token.is_empty()) => Class::Success,
        (200..=299 | 503, Some(_)) | (300..=499, _) => Class::NotSpent,
        _ => Class::Ambiguous,
    }
}
