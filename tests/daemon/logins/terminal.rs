//! `credproxy login` as a person meets it: on a terminal, on a pipe, and when something goes wrong on the way.

use std::time::Duration;

use qrcodegen::{QrCode, QrCodeEcc};
use rustix::process::{Signal, kill_process};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::support::{
    daemon::{Daemon, Home},
    issuer::{Issuer, Raw},
    terminal::{Terminal, lines},
};

const ABLE: [(&str, &str); 2] = [("TERM", "xterm-256color"), ("LANG", "C.UTF-8")];
const LARGE: (u16, u16) = (100, 60);
const CODE: &str = "WDJB-MJHT";

async fn daemon(issuer: &Issuer, more: &str) -> Daemon {
    let config = format!(
        "{more}\n[providers.op]\ntoken_endpoint = {:?}\nauthorization_endpoint = {:?}\n\
         device_authorization_endpoint = {:?}\nclient_id = \"me\"\n",
        issuer.token_endpoint(),
        issuer.authorization_endpoint(),
        issuer.device_authorization_endpoint(),
    );
    Daemon::start(&Home::new(), "a", &config, &[]).await
}

/// A person who does not decide for so many seconds.
fn undecided(issuer: &Issuer, seconds: usize) {
    issuer.decide((0..seconds).map(|_| Raw::error(400, "authorization_pending")));
}

/// The modules of the picture among what was sent, dark ones `true`, read by its colours and blocks.
fn picture(sent: &str) -> Vec<Vec<bool>> {
    let black_on_white = "\x1b[38;5;16;48;5;231m";
    let blocks = sent.split(black_on_white).skip(1).map(|line| line.split("\x1b[0m").next().unwrap());
    let row = |line: &str, dark: [char; 2]| line.chars().map(|block| dark.contains(&block)).collect();
    blocks.flat_map(|line| [row(line, ['█', '▀']), row(line, ['█', '▄'])]).collect()
}

#[tokio::test]
async fn a_person_sees_the_address_the_code_and_a_picture_of_both() {
    let issuer = Issuer::start().await;
    let daemon = daemon(&issuer, "").await;
    undecided(&issuer, 2);
    let mut terminal = daemon.on_terminal(&["login", "op", "--flow", "device"], &ABLE, LARGE);
    let sent = terminal.shows("waiting, for 9 min more").await;
    assert!(sent.contains(&format!("\r\n\r\n    \x1b[1m{CODE}\x1b[0m\r\n\r\n")), "{sent}");

    let address = format!("{}/activate?user_code={CODE}", issuer.origin());
    assert!(lines(&sent).contains(&address), "{sent}");
    let (code, read) = (QrCode::encode_text(&address, QrCodeEcc::Low).unwrap(), picture(&sent));
    let quiet = 4;
    assert_eq!(read[0].len(), usize::try_from(code.size() + 2 * quiet).unwrap());
    for (y, row) in (-quiet..).zip(&read) {
        for (x, dark) in (-quiet..).zip(row) {
            assert_eq!(*dark, code.get_module(x, y), "{x} {y}");
        }
    }

    let (exit, shown) = terminal.ends().await;
    assert_eq!((exit, shown.last().map(String::as_str)), (Some(0), Some("")));
    assert_eq!(shown[shown.len() - 2], "logged in to op/default; the token lasts 59 min");
    assert!(!shown.iter().any(|line| line.contains("waiting")), "{shown:#?}");
}

/// Where the picture would not be right, or would not be whole, there is none.
#[tokio::test]
async fn a_terminal_gets_what_it_can_show() {
    let issuer = Issuer::start().await;
    let daemon = daemon(&issuer, "").await;
    for (env, size, escapes, picture, moving) in [
        (&ABLE[..], (60, 60), true, true, true),
        (&ABLE, (30, 60), true, false, true),
        (&ABLE, (100, 20), true, false, true),
        (&[("TERM", "xterm-256color"), ("LANG", "C")], LARGE, true, false, true),
        (&[ABLE[0], ABLE[1], ("NO_COLOR", "1")], LARGE, false, false, true),
        (&[("TERM", "dumb"), ABLE[1]], LARGE, false, false, false),
        (&[ABLE[1]], LARGE, false, false, false),
    ] {
        undecided(&issuer, 9);
        let mut terminal = daemon.on_terminal(&["login", "op", "--flow", "device"], env, size);
        let sent = terminal.shows("waiting, for 9 min").await;
        assert!(sent.contains(CODE), "{sent}");
        assert_eq!(sent.contains("\x1b[1m"), escapes, "{env:?}: {sent}");
        assert_eq!(sent.contains('▀'), picture, "{env:?} {size:?}: {sent}");
        assert_eq!(sent.contains("\x1b[K"), moving, "{env:?}: {sent}");
        assert!(moving || !sent.contains('\x1b'), "{env:?}: {sent}");
        // A line that breaks could not be wiped.
        let widest = lines(&sent).iter().filter(|line| line.contains("waiting")).map(|line| line.chars().count()).max();
        assert!(widest.is_some_and(|widest| !moving || widest < size.0.into()), "{size:?}: {sent}");
        terminal.types("\x03");
        assert_eq!(terminal.ends().await.0, Some(1));
        issuer.forget_decisions();
    }
}

#[tokio::test]
async fn whatever_ends_the_command_ends_the_login_and_leaves_a_clean_line() {
    let issuer = Issuer::start().await;
    let daemon = daemon(&issuer, "").await;
    for how in [None, Some(Signal::TERM), Some(Signal::HUP)] {
        let mut terminal = daemon.on_terminal(&["login", "op", "--flow", "browser"], &ABLE, LARGE);
        let sent = terminal.shows("waiting, for 9 min").await;
        let address = lines(&sent).into_iter().find(|line| line.contains("/authorize?")).unwrap();
        let port = issuer.agree(&address).port().unwrap();
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_ok(), "nobody listens");
        match how {
            None => terminal.types("\x03"),
            Some(signal) => kill_process(terminal.pid(), signal).unwrap(),
        }
        let (exit, shown) = terminal.ends().await;
        assert_eq!((exit, shown.last().map(String::as_str)), (Some(1), Some("")));
        assert_eq!(shown[shown.len() - 2], "error: cancelled", "{how:?}: {shown:#?}");
        let closed = async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(20), closed).await.expect("the login goes on at the daemon");
    }
}

#[tokio::test]
async fn a_code_that_was_begun_to_be_typed_is_wiped_with_the_login() {
    let issuer = Issuer::start().await;
    let daemon = daemon(&issuer, "").await;
    let mut terminal = daemon.on_terminal(&["login", "op", "--flow", "paste"], &ABLE, LARGE);
    terminal.shows("press Enter:\r\n").await;
    terminal.types("half a co");
    terminal.shows("half a co").await;
    terminal.types("\x03");
    let (exit, shown) = terminal.ends().await;
    assert_eq!((exit, shown[shown.len() - 2].as_str()), (Some(1), "error: cancelled"), "{shown:#?}");
    assert!(!shown.iter().any(|line| line.contains("half")), "{shown:#?}");
}

#[tokio::test]
async fn a_daemon_that_goes_away_in_the_middle_is_told_of() {
    let issuer = Issuer::start().await;
    let mut daemon = daemon(&issuer, "").await;
    let begin = async |daemon: &Daemon| -> Terminal {
        let mut terminal = daemon.on_terminal(&["login", "op", "--flow", "browser"], &ABLE, LARGE);
        terminal.shows("waiting, for 9 min").await;
        terminal
    };
    let terminal = begin(&daemon).await;
    daemon.kill9().await;
    let (exit, shown) = terminal.ends().await;
    let end = &shown[shown.len() - 3..];
    assert_eq!(end[0], "error: the daemon went away, and the login with it", "{shown:#?}");
    assert_eq!(end[1], "hint: start it with `credproxy serve`, and begin again: `credproxy login op/default`");
    assert_eq!(exit, Some(5));

    daemon.launch().await;
    // The question for the end comes before the daemon's own end, into it, or after it has started again.
    let terminal = begin(&daemon).await;
    daemon.restart().await;
    let (exit, shown) = terminal.ends().await;
    let end = &shown[shown.len() - 3..];
    let known = [
        (Some(1), "error: the daemon is shutting down (STORE_UNAVAILABLE)"),
        (Some(5), "error: the daemon went away, and the login with it"),
        (
            Some(1),
            "error: the daemon knows nothing of this login any more: it was started again, or the login cancelled",
        ),
    ];
    assert!(known.contains(&(exit, &end[0])), "{exit:?} {shown:#?}");
    assert!(end[1].ends_with("begin again: `credproxy login op/default`"), "{shown:#?}");
}

#[tokio::test]
async fn a_login_that_is_refused_or_too_late_says_so() {
    let issuer = Issuer::start().await;
    let daemon = daemon(&issuer, "[logins]\nlifetime = \"3s\"\n").await;
    let again = "hint: begin again: `credproxy login op/default`";
    issuer.decide([Raw::error(400, "access_denied"), Raw::error(400, "expired_token")]);
    for (flow, why) in [
        ("device", "the person refused (access_denied) (EXCHANGE_FAILED)"),
        ("device", "the code was not confirmed in time (expired_token) (EXCHANGE_FAILED)"),
        ("browser", "the login took too long: begin a new one (SESSION_EXPIRED)"),
        ("paste", "the login took too long: begin a new one (SESSION_EXPIRED)"),
    ] {
        let terminal = daemon.on_terminal(&["login", "op", "--flow", flow], &ABLE, LARGE);
        let (exit, shown) = terminal.ends().await;
        let end = &shown[shown.len() - 3..];
        assert_eq!((exit, end[0].as_str(), end[1].as_str()), (Some(1), format!("error: {why}").as_str(), again));
    }
    let stored = daemon.request("GET", "/v1/tokens", &[], "").await.json();
    assert_eq!(stored, json!({"tokens": []}));
}

#[tokio::test]
async fn a_provider_that_is_slow_to_begin_keeps_nobody() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/", silent.local_addr().unwrap());
    let config = format!(
        "[providers.op]\ntoken_endpoint = {endpoint:?}\ndevice_authorization_endpoint = {endpoint:?}\nclient_id = \"me\"\n"
    );
    let daemon = Daemon::start(&Home::new(), "a", &config, &[]).await;
    let mut terminal = daemon.on_terminal(&["login", "op", "--flow", "device"], &ABLE, LARGE);
    terminal.shows("asking op").await;
    terminal.types("\x03");
    terminal.shows("^C").await;
    // Who is impatient does not wait for the daemon either.
    kill_process(terminal.pid(), Signal::INT).unwrap();
    let (exit, shown) = terminal.ends().await;
    assert_eq!((exit, shown), (Some(1), vec!["error: cancelled".to_owned(), String::new()]));
}

/// What is no terminal gets neither colours nor a picture nor a line that moves, and standard output the result alone.
#[tokio::test]
async fn a_pipe_gets_text_and_a_program_one_line_of_json() {
    let issuer = Issuer::start().await;
    let daemon = daemon(&issuer, "").await;
    let output = daemon.command(&["login", "op/agent", "--flow", "device", "--json"], "").await;
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !text.contains(['\x1b', '\r', '▀']), "{text}");
    assert!(text.contains(&format!("\n\n    {CODE}\n\n")) && text.contains("\nlogged in to op/agent; "), "{text}");
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = json!({"provider": "op", "bucket": "agent", "flow": "device", "expiry": result["expiry"]});
    assert!(result == expected && result["expiry"].is_i64(), "{result}");
    assert_eq!(str::from_utf8(&output.stdout).unwrap().lines().count(), 1);
}
