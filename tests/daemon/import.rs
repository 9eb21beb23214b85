//! `credproxy import` and `credproxy logout` beside a daemon: grants that other programs had, and what is left of them.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use credproxy::clock::{Clock as _, SystemClock, Timestamp};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{
    daemon::{Daemon, Home},
    issuer::Issuer,
};

async fn daemon(issuer: &Issuer, more: &str) -> Daemon {
    let config = format!(
        "[refresh]\ncooldown = \"0s\"\n[providers.corp]\ntoken_endpoint = {:?}\nclient_id = \"me\"\n{more}\n",
        issuer.token_endpoint()
    );
    Daemon::start(&Home::new(), "a", &config, &[]).await
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The end of a token that begins now, in seconds since 1970.
fn in_an_hour() -> i64 {
    Timestamp::as_secs(SystemClock::new().now().plus(Duration::from_hours(1)))
}

/// Every program's file becomes a grant that lives on, and is left as it was.
#[tokio::test]
async fn the_files_that_people_have_become_grants() {
    let issuer = Issuer::start().await;
    let daemon = daemon(&issuer, "").await;
    let directory = tempfile::tempdir().unwrap();
    let expiry = in_an_hour();
    let claims = URL_SAFE_NO_PAD.encode(json!({"exp": expiry}).to_string());
    for (bucket, program) in [("plain", ""), ("codex", "Codex"), ("claude", "Claude Code"), ("gemini", "Gemini CLI")] {
        let (access_token, successor) = issuer.new_grant();
        let (source, kept, access_token) = match bucket {
            "plain" => (
                json!({"access_token": access_token, "refresh_token": successor, "expiry": expiry, "account_id": "me"}),
                json!({"account_id": "me"}),
                access_token,
            ),
            "codex" => {
                let jwt = format!("canary-e30.{claims}.c2ln");
                let tokens =
                    json!({"access_token": jwt, "refresh_token": successor, "id_token": "it", "account_id": "me"});
                let source = json!({"OPENAI_API_KEY": null, "tokens": tokens, "last_refresh": "2026-01-02T03:04:05Z"});
                (source, json!({"id_token": "it", "account_id": "me"}), jwt)
            }
            "claude" => (
                json!({"claudeAiOauth": {"accessToken": access_token, "refreshToken": successor, "scopes": ["a", "b"],
                    "expiresAt": expiry * 1000, "subscriptionType": "max"}}),
                json!({"scope": "a b"}),
                access_token,
            ),
            _ => (
                json!({"access_token": access_token, "refresh_token": successor, "token_type": "Bearer", "scope": "a b",
                    "expiry_date": expiry * 1000, "resource_url": "portal.example"}),
                json!({"scope": "a b", "resource_url": "portal.example"}),
                access_token,
            ),
        };
        daemon.watch_refresh_token(&successor);
        let file = directory.path().join(format!("{bucket}.json"));
        File::create(&file).unwrap().write_all(source.to_string().as_bytes()).unwrap();
        let before = fs::metadata(&file).unwrap();

        let output =
            daemon.command(&["import", "corp", "--bucket", bucket, "--from", file.to_str().unwrap()], "").await;
        let told = stderr(&output);
        assert!(output.status.success() && output.stdout.is_empty(), "{told}");
        for expected in ["took ", &format!("stored a grant for corp/{bucket}"), "logged out when the token rotates"] {
            assert!(told.contains(expected), "{expected}: {told}");
        }
        assert_eq!(told.contains("what the access token itself says"), bucket == "codex", "{told}");
        let program = if bucket == "gemini" { "Qwen Code" } else { program };
        assert!(told.contains(program), "{told}");

        let token = daemon.request("GET", &format!("/v1/tokens/corp?bucket={bucket}"), &[], "").await.json();
        let mut expected = kept;
        expected.as_object_mut().unwrap().extend([
            ("access_token".to_owned(), json!(access_token)),
            ("token_type".to_owned(), json!("Bearer")),
            ("expiry".to_owned(), json!(expiry)),
        ]);
        assert_eq!(token, expected);
        let refreshed = daemon.request("POST", &format!("/v1/tokens/corp/refresh?bucket={bucket}"), &[], "").await;
        assert_eq!(refreshed.status, 200, "{}", refreshed.text());
        assert_eq!(issuer.times_presented(&successor), 1);
        let after = fs::metadata(&file).unwrap();
        assert_eq!((after.modified().unwrap(), after.len()), (before.modified().unwrap(), before.len()));
    }
}

#[tokio::test]
async fn a_grant_comes_by_standard_input_too_and_replaces_the_one_before() {
    let issuer = Issuer::start().await;
    let daemon = daemon(&issuer, "").await;
    for (arguments, done) in [
        (&["import", "corp"][..], "stored a grant for corp/default"),
        (&["import", "corp", "--from", "-"], "replaced the grant of corp/default"),
    ] {
        let (access_token, successor) = issuer.new_grant();
        daemon.watch_refresh_token(&successor);
        let grant = json!({"access_token": access_token, "refresh_token": successor, "expires_in": 3600});
        let output = daemon.command(arguments, &grant.to_string()).await;
        assert!(output.status.success() && stderr(&output).contains(done), "{}", stderr(&output));
        assert_eq!(daemon.request("GET", "/v1/tokens/corp", &[], "").await.json()["access_token"], access_token);
    }
    let output = daemon.command(&["import", "corp/short"], r#"{"access_token": "canary-at"}"#).await;
    assert!(stderr(&output).contains("it has no refresh token"), "{}", stderr(&output));
}

#[tokio::test]
async fn what_is_no_file_with_a_grant_is_refused_and_nothing_is_stored() {
    let issuer = Issuer::start().await;
    let daemon = daemon(&issuer, "").await;
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    File::create(place("long")).unwrap().write_all(&vec![b' '; 256 * 1024 + 1]).unwrap();
    File::create(place("unknown")).unwrap().write_all(br#"{"oauth": {"canary-x": "canary-y"}}"#).unwrap();
    File::create(place("key")).unwrap().write_all(br#"{"OPENAI_API_KEY": "canary-key", "tokens": null}"#).unwrap();
    assert!(Command::new("mkfifo").arg(place("pipe")).status().unwrap().success());
    for (path, why, hint) in [
        (place("none"), "No such file or directory", false),
        (directory.path().to_owned(), "not a regular file", false),
        (place("pipe"), "not a regular file", false),
        ("/dev/zero".into(), "not a regular file", false),
        (place("long"), "is longer than 256 KiB", true),
        (place("unknown"), "has an unknown format\nhint: known are a token answer", true),
        (place("key"), "holds an API key and no grant", true),
    ] {
        let output = daemon.command(&["import", "corp", "--from", path.to_str().unwrap()], "").await;
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.starts_with("error: ") && told.contains(why) && told.contains("hint: ") == hint, "{told}");
    }
    assert_eq!(daemon.request("GET", "/v1/tokens", &[], "").await.json(), json!({"tokens": []}));
}

/// The lines that are printed for such a credential are a configuration that the daemon takes.
#[tokio::test]
async fn googles_own_credential_is_answered_with_a_configuration() {
    let issuer = Issuer::start().await;
    let daemon = daemon(&issuer, "").await;
    let credential: Value = json!({"type": "authorized_user", "client_id": "1-a.apps.example.com",
        "client_secret": "canary-secret", "refresh_token": "canary-rt-google"});
    let output = daemon.command(&["import", "google/work"], &credential.to_string()).await;
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("which has no access token") && told.contains("`credproxy login google/work`"), "{told}");

    let home = tempfile::tempdir().unwrap();
    let secret = home.path().join("secret");
    File::create(&secret).unwrap().write_all(b"secret").unwrap();
    let lines = told.split_once("\n\n").unwrap().1.replace("/path/to/client-secret", secret.to_str().unwrap());
    assert!(lines.contains("[providers.google]") && lines.contains("\"1-a.apps.example.com\""), "{lines}");
    let file = home.path().join("config.toml");
    File::create(&file).unwrap().write_all(lines.as_bytes()).unwrap();
    let check = checked(home.path(), &file);
    assert!(check.status.success(), "{check:?}");
}

/// `corp` can be told; the others cannot, for one reason each.
#[tokio::test]
async fn a_logout_says_whether_a_copy_may_still_be_good() {
    let issuer = Issuer::start().await;
    // Nobody listens on the port any more.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let other = |name: &str, revocation: &str| {
        format!(
            "[providers.{name}]\ntoken_endpoint = {:?}\nclient_id = \"me\"\n{revocation}\n",
            issuer.token_endpoint()
        )
    };
    let config = [
        format!("revocation_endpoint = {:?}", issuer.revocation_endpoint()),
        other("unable", ""),
        other("unwilling", &format!("revocation_endpoint = \"{}/no-such-page\"", issuer.origin())),
        other("gone", &format!("revocation_endpoint = \"http://{gone}/revoke\"")),
    ];
    let daemon = daemon(&issuer, &config.join("\n")).await;
    let reasons = "it has no way to, refused, or could not be reached (the daemon's log says which)";
    let (not, untold, nobody) = (
        format!("warning: the provider did not revoke it: {reasons}; a copy of the grant may still be good\n"),
        "warning: the provider was not told; a copy of the grant may still be good\n".to_owned(),
        "warning: no provider of this name is configured, so nobody was told; a copy of the grant may still be good\n"
            .to_owned(),
    );
    for (provider, option, warning, log) in [
        ("corp", None, "", ""),
        ("corp", Some("--local-only"), untold.as_str(), ""),
        ("unable", None, &not, "why=\"the provider has no revocation endpoint\""),
        ("unwilling", None, &not, "why=\"the provider refused\" status=404"),
        ("gone", None, &not, "why=\"no connection was made\""),
        ("nobody", None, &nobody, ""),
    ] {
        let (access_token, successor) = issuer.new_grant();
        daemon.watch_refresh_token(&successor);
        let grant = json!({"access_token": access_token, "refresh_token": successor});
        assert!(daemon.command(&["import", provider], &grant.to_string()).await.status.success());
        let arguments: Vec<&str> = ["logout", provider, "--json"].into_iter().chain(option).collect();
        let output = daemon.command(&arguments, "").await;
        let revoked = warning.is_empty();
        let first = if revoked { "; the provider has revoked the grant" } else { ": the grant is deleted here" };
        assert_eq!(stderr(&output), format!("logged out of {provider}/default{first}\n{warning}"));
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((output.status.code(), result), (Some(0), json!({"revoked": revoked})));
        assert_eq!(issuer.revocations().contains(&successor), revoked);
        assert!(daemon.output_text().contains(log), "{log}: {}", daemon.output_text());
        let again = daemon.command(&["logout", provider], "").await;
        assert_eq!(again.status.code(), Some(6));
    }
}

fn checked(home: &Path, file: &Path) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_credproxy"));
    program.arg("--config").arg(file).arg("check").env_clear().env("HOME", home).output().unwrap()
}
