//! One line of JSON.

use std::{
    fs,
    io::Write as _,
    time::{Duration, UNIX_EPOCH},
};

use serde_json::Value;

use super::{Event, Timestamp};

/// Room for a line as most are.
pub(super) const USUAL: usize = 320;

/// The longest name of a program that is written, in characters: a path may have 4096 bytes.
const LONGEST_PROGRAM: usize = 256;

/// Who asked and where: the part of a line that is the same for a whole connection.
#[derive(Debug, Clone)]
pub struct Origin(Box<str>);

impl Origin {
    /// A peer of that socket.
    ///
    /// Its program is looked up by its process id, which is racy by nature: the peer may have become another program
    /// since it connected, or have ended and left its id to another. The executable is told where `/proc` shows it. To
    /// a daemon that is confined by Landlock it does not; then there is only the name that the program gives itself.
    #[must_use]
    pub fn of_peer(socket: &str, uid: u32, pid: Option<u32>) -> Self {
        let mut parts = vec![format!("\"socket\":{},\"uid\":{uid}", quoted(socket))];
        if let Some(pid) = pid {
            parts.push(format!("\"pid\":{pid}"));
            if let Ok(exe) = fs::read_link(format!("/proc/{pid}/exe")) {
                parts.push(format!("\"exe\":{}", quoted(&exe.to_string_lossy())));
            } else if let Ok(comm) = fs::read(format!("/proc/{pid}/comm")) {
                parts.push(format!("\"comm\":{}", quoted(String::from_utf8_lossy(&comm).trim_end_matches('\n'))));
            }
        }
        Self(parts.join(",").into())
    }
}

/// A string of JSON that does no harm on a terminal either. A peer chooses what its program is called.
fn quoted(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for one in text.chars().take(LONGEST_PROGRAM) {
        if ['"', '\'', '\\'].contains(&one) {
            harmless.push(one);
        } else {
            harmless.extend(one.escape_debug());
        }
    }
    Value::from(harmless).to_string()
}

/// The beginning and the end of the years with four digits.
const YEARS: (i64, i64) = (0, 253_402_300_799_999);

fn begin(line: &mut Vec<u8>, time: Timestamp) {
    let millis = u64::try_from(time.as_millis().clamp(YEARS.0, YEARS.1)).unwrap_or_default();
    let time = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(millis));
    // Writing to memory does not fail.
    write!(line, "{{\"time\":\"{time}\",").ok();
}

/// Appends text as it is. To go by `fmt` for each part would cost more than all the rest of a line.
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

/// Appends the event. Names have nothing in them that JSON would escape (`account.rs`, `Subject::named`), and all other
/// words are ours.
pub(super) fn write(line: &mut Vec<u8>, time: Timestamp, event: &Event<'_>) {
    begin(line, time);
    push(line, &[&event.origin.0, ",\"operation\":\"", event.operation]);
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
    push(line, &[",\"provider_called\":", if event.provider_called { "true" } else { "false" }, "}\n"]);
}

/// The line in the place of those that found no room.
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
        audit::{Kind, Subject, words},
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
            outcome: words::OK,
            status: Some(200),
            latency: Duration::from_micros(1234),
            provider_called: true,
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

    #[test]
    fn the_own_program_is_named() {
        let origin = Origin::of_peer("s", 0, Some(std::process::id()));
        let line: Value = serde_json::from_str(&format!("{{{}}}", origin.0)).unwrap();
        let own = std::env::current_exe().unwrap();
        assert_eq!(line["exe"].as_str(), own.to_str());
        assert_eq!(line["pid"], std::process::id());
        let gone = Origin::of_peer("s", 0, Some(4_000_000_000));
        assert!(!gone.0.contains("exe") && !gone.0.contains("comm"));
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
            prop_assert!(read.len() <= LONGEST_PROGRAM * 10);
        }
    }
}
