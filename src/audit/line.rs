//! One line of JSON.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::Write as _,
    sync::{Arc, OnceLock},
    time::{Duration, UNIX_EPOCH},
};

use serde_json::Value;

use super::{Event, Timestamp, aggregate::Count};

/// Initial capacity for a line; most lines fit.
pub(super) const INITIAL_LINE_CAPACITY: usize = 320;

/// The longest program name that is written, in characters: a path may have 4096 bytes.
const MAX_PROGRAM_CHARS: usize = 256;

/// The peer and its socket: the part of a line that is the same for a whole connection. Clones share it.
#[derive(Debug, Clone)]
pub struct Origin {
    facts: Arc<Facts>,
    /// Only the peer is written, not its program: for a line that counts events of several programs.
    peer_only: bool,
}

#[derive(Debug)]
struct Facts {
    /// The members `socket` and `uid`.
    who: Box<str>,
    /// The length of the part of `who` that is the same for everybody who shares the budget of lines.
    peer_length: usize,
    pid: Option<u32>,
    /// The members that name the program.
    program: OnceLock<Box<str>>,
    peer_digest: u64,
}

impl Origin {
    /// A peer that was admitted to this socket.
    ///
    /// The program is looked up by process id, which is racy by nature: since connecting, the process may have become
    /// another program, or have ended and left its id to another. The executable is known where `/proc` shows it. A
    /// daemon confined by Landlock does not see it, and uses the name that the program gives itself.
    #[must_use]
    pub fn of_peer(socket: &str, uid: u32, pid: Option<u32>) -> Self {
        let who = format!("\"socket\":{},\"uid\":{uid}", quoted(socket));
        let origin = Self::new(who.len(), who, pid);
        origin.program();
        origin
    }

    /// A peer whose user may not connect to this socket. Its program is looked up only when a line is written for it,
    /// which rarely happens in a flood. All such users share one budget of lines, since there may be thousands of them.
    #[must_use]
    pub fn of_rejected(socket: &str, uid: u32, pid: Option<u32>) -> Self {
        let socket = format!("\"socket\":{}", quoted(socket));
        Self::new(socket.len(), format!("{socket},\"uid\":{uid}"), pid)
    }

    fn new(peer_length: usize, who: String, pid: Option<u32>) -> Self {
        let mut hasher = DefaultHasher::new();
        who[..peer_length].hash(&mut hasher);
        let peer_digest = hasher.finish();
        let facts = Facts { who: who.into(), peer_length, pid, program: OnceLock::new(), peer_digest };
        Self { facts: Arc::new(facts), peer_only: false }
    }

    fn program(&self) -> &str {
        self.facts.program.get_or_init(|| self.facts.pid.map(program).unwrap_or_default())
    }

    /// Identifies the budget of lines that it uses.
    pub(super) fn peer(&self) -> u64 {
        self.facts.peer_digest
    }

    /// Returns the origin without the program.
    pub(super) fn without_program(&self) -> Self {
        Self { facts: Arc::clone(&self.facts), peer_only: true }
    }
}

/// Equal when the same text is written for both. A program that is not looked up yet is compared by its process id.
impl PartialEq for Origin {
    fn eq(&self, other: &Self) -> bool {
        if self.peer_only != other.peer_only {
            return false;
        }
        let (one, two) = (&*self.facts, &*other.facts);
        if self.peer_only {
            return one.who[..one.peer_length] == two.who[..two.peer_length];
        }
        let programs_differ = || one.program.get().zip(two.program.get()).is_some_and(|(one, two)| one != two);
        std::ptr::eq(one, two) || one.pid == two.pid && one.who == two.who && !programs_differ()
    }
}

impl Hash for Origin {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.facts.peer_digest, self.peer_only).hash(state);
        if !self.peer_only {
            (self.facts.pid, self.facts.who.len()).hash(state);
        }
    }
}

fn program(pid: u32) -> Box<str> {
    let pid_member = format!(",\"pid\":{pid}");
    if let Ok(exe) = fs::read_link(format!("/proc/{pid}/exe")) {
        format!("{pid_member},\"exe\":{}", quoted(&exe.to_string_lossy())).into()
    } else if let Ok(comm) = fs::read(format!("/proc/{pid}/comm")) {
        format!("{pid_member},\"comm\":{}", quoted(String::from_utf8_lossy(&comm).trim_end_matches('\n'))).into()
    } else {
        pid_member.into()
    }
}

/// A JSON string that is harmless on a terminal, too: a peer chooses the name of its program.
fn quoted(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for one in text.chars().take(MAX_PROGRAM_CHARS) {
        if ['"', '\'', '\\'].contains(&one) {
            harmless.push(one);
        } else {
            harmless.extend(one.escape_debug());
        }
    }
    Value::from(harmless).to_string()
}

/// The range of times whose year has four digits, in milliseconds since 1970.
const YEARS: (i64, i64) = (0, 253_402_300_799_999);

fn shown(time: Timestamp) -> humantime::Rfc3339Timestamp {
    let millis = u64::try_from(time.as_millis().clamp(YEARS.0, YEARS.1)).unwrap_or_default();
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(millis))
}

fn begin(line: &mut Vec<u8>, time: Timestamp) {
    // Writing to memory does not fail.
    write!(line, "{{\"time\":\"{}\",", shown(time)).ok();
}

/// Appends text as it is. Formatting each part with `fmt` would cost more than the rest of the line.
fn push(line: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        line.extend_from_slice(part.as_bytes());
    }
}

fn push_number(line: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
        if number == 0 {
            break;
        }
    }
    line.extend_from_slice(&digits[at..]);
}

/// Appends the event. Names need no JSON escapes (`account.rs`, `Subject::named`), and all other texts are constants.
pub(super) fn write(line: &mut Vec<u8>, time: Timestamp, event: &Event<'_>) {
    begin(line, time);
    push_event(line, event);
    push(line, &["}\n"]);
}

/// Appends one line for several events.
pub(super) fn write_count(line: &mut Vec<u8>, event: &Event<'_>, count: &Count) {
    if count.times == 1 && !count.summary {
        return write(line, count.last, event);
    }
    begin(line, count.last);
    push_event(line, event);
    push(line, &[",\"times\":"]);
    push_number(line, count.times);
    write!(line, ",\"first_time\":\"{}\"", shown(count.first)).ok();
    push(line, &[if count.summary { ",\"summary\":true}\n" } else { "}\n" }]);
}

fn push_event(line: &mut Vec<u8>, event: &Event<'_>) {
    let facts = &event.origin.facts;
    if event.origin.peer_only {
        push(line, &[&facts.who[..facts.peer_length]]);
    } else {
        push(line, &[&facts.who, event.origin.program()]);
    }
    push(line, &[",\"operation\":\"", event.operation]);
    if let Some(account) = event.subject.account.get() {
        push(line, &["\",\"account\":\"", account]);
    }
    if let Some((kind, name)) = event.subject.named.get() {
        push(line, &["\",\"", kind.member(), "\":\"", name]);
    }
    push(line, &["\",\"outcome\":\"", event.outcome, "\""]);
    if let Some(status) = event.status {
        push(line, &[",\"status\":"]);
        push_number(line, status.into());
    }
    push(line, &[",\"latency_us\":"]);
    push_number(line, u64::try_from(event.latency.as_micros()).unwrap_or(u64::MAX));
    push(line, &[",\"provider_called\":", if event.provider_called { "true" } else { "false" }]);
}

/// Appends the line that stands for lines that were lost.
pub(super) fn write_gap(line: &mut Vec<u8>, time: Timestamp, lost: u64) {
    begin(line, time);
    writeln!(line, "\"operation\":\"audit\",\"outcome\":\"lost\",\"lost\":{lost}}}").ok();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{
        account::AccountRef,
        audit::{Kind, Subject, labels},
    };

    fn written(time: i64, event: &Event<'_>) -> Value {
        let mut line = Vec::new();
        write(&mut line, Timestamp::from_millis(time), event);
        assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn a_line_says_who_did_what_to_which_account_and_how_it_went() {
        let (origin, subject) = (Origin::of_peer("agents", 1000, None), Subject::default());
        subject.account(AccountRef::new("corp", Some("work")).unwrap());
        subject.named(Kind::Login, "0f1e");
        let event = Event {
            origin: &origin,
            operation: "getToken",
            subject: &subject,
            outcome: labels::OK,
            status: Some(200),
            latency: Duration::from_micros(1234),
            provider_called: true,
            own_line: true,
        };
        let expected = json!({
            "time": "2026-11-24T13:42:22.007Z", "socket": "agents", "uid": 1000, "operation": "getToken",
            "account": "corp/work", "login": "0f1e", "outcome": "ok", "status": 200, "latency_us": 1234,
            "provider_called": true,
        });
        assert_eq!(written(1_795_527_742_007, &event), expected);
        let nothing = Subject::default();
        let nobody = Event { subject: &nothing, status: None, ..event };
        let line = written(0, &nobody);
        assert!(["account", "login", "status"].iter().all(|member| line.get(member).is_none()), "{line}");
        for micros in [0, 9, 10, 12_345_678_901, u64::MAX] {
            let event = Event { latency: Duration::from_micros(micros), origin: &origin, subject: &nothing, ..event };
            assert_eq!(written(0, &event)["latency_us"], micros);
        }
        for time in [i64::MIN, -1, i64::MAX] {
            assert!(written(time, &nobody)["time"].as_str().unwrap().ends_with('Z'));
        }
    }

    fn members(origin: &Origin) -> Value {
        let subject = Subject::default();
        written(
            0,
            &Event {
                origin,
                operation: labels::CONNECT,
                subject: &subject,
                outcome: labels::OK,
                status: None,
                latency: Duration::ZERO,
                provider_called: false,
                own_line: true,
            },
        )
    }

    #[test]
    fn the_own_program_is_named() {
        for of in [Origin::of_peer, Origin::of_rejected] {
            let origin = of("s", 0, Some(std::process::id()));
            let line = members(&origin);
            let own = std::env::current_exe().unwrap();
            assert_eq!(line["exe"].as_str(), own.to_str());
            assert_eq!((&line["pid"], &line["uid"]), (&json!(std::process::id()), &json!(0)));
            let gone = members(&of("s", 0, Some(4_000_000_000)));
            assert!(["exe", "comm"].iter().all(|member| gone.get(member).is_none()), "{gone}");
            let alone = members(&origin.without_program());
            assert!(["exe", "comm", "pid"].iter().all(|member| alone.get(member).is_none()), "{alone}");
            assert_eq!(alone["socket"], "s");
        }
        let stranger = Origin::of_rejected("s", 7, None);
        assert!(members(&stranger.without_program()).get("uid").is_none(), "it stands for all strangers");
    }

    #[test]
    fn origins_are_equal_when_the_same_is_written_of_them() {
        let origin = |uid, pid| Origin::of_peer("s", uid, Some(pid));
        let own = std::process::id();
        assert!(origin(1, own) == origin(1, own) && origin(1, own) != origin(2, own));
        assert!(origin(1, own) != origin(1, 1) && origin(1, own).without_program() == origin(1, 1).without_program());
        assert!(
            origin(1, own) != origin(1, own).without_program() && Origin::of_peer("t", 1, Some(own)) != origin(1, own)
        );
        let stranger = |uid| Origin::of_rejected("s", uid, None);
        assert!(stranger(1) != stranger(2) && stranger(1).without_program() == stranger(2).without_program());
        assert_eq!(stranger(1).peer(), stranger(2).peer());
        assert_ne!(origin(1, 1).peer(), origin(2, 1).peer());
    }

    #[test]
    fn a_line_for_several_says_how_many_and_since_when() {
        let (origin, subject) = (Origin::of_peer("s", 0, None), Subject::default());
        let event = Event {
            origin: &origin,
            operation: labels::UNKNOWN,
            subject: &subject,
            outcome: labels::OK,
            status: Some(200),
            latency: Duration::ZERO,
            provider_called: false,
            own_line: false,
        };
        let at = Timestamp::from_millis;
        for summary in [false, true] {
            let mut line = Vec::new();
            write_count(&mut line, &event, &Count { times: 12, first: at(1000), last: at(1999), summary });
            let line: Value = serde_json::from_slice(&line).unwrap();
            assert_eq!((&line["times"], &line["time"]), (&json!(12), &json!("1970-01-01T00:00:01.999Z")));
            assert_eq!(line["first_time"], "1970-01-01T00:00:01.000Z");
            assert_eq!(line.get("summary"), summary.then_some(&json!(true)));
        }
    }

    #[test]
    fn what_is_no_name_is_not_written() {
        for bad in ["", "a b", "a\"b", "a\nb", "\u{e4}", &"x".repeat(MAX + 1)] {
            let subject = Subject::default();
            subject.named(Kind::Key, bad);
            assert!(subject.named.get().is_none(), "{bad:?}");
        }
    }

    const MAX: usize = crate::account::MAX_NAME;

    proptest! {
        #[test]
        fn no_name_of_a_program_or_socket_breaks_the_line_or_a_terminal(name in ".{0,300}|[\\x00-\\x9f\"\\\\]{0,300}") {
            let text = quoted(&name);
            prop_assert!(!text.chars().any(char::is_control), "{text:?}");
            let read: String = serde_json::from_str(&text).unwrap();
            // Nor turns it around.
            let harmful = |one: char| one.is_control() || ('\u{202a}'..='\u{202e}').contains(&one);
            prop_assert!(!read.chars().any(harmful), "{read:?}");
            prop_assert!(read.len() <= MAX_PROGRAM_CHARS * 10);
        }
    }
}
