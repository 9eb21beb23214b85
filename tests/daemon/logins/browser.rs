//! A login in a real browser: headless Chromium opens the address, and ends at the daemon's page.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{process::Command, time::timeout};
use url::Url;

use crate::support::{
    daemon::{Daemon, Home},
    oidc::Oidc,
};

/// It starts a dozen processes; a busy machine takes seconds.
const LIMIT: Duration = Duration::from_mins(1);

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// How a page is looked at: `prefers-color-scheme`, and the width of the window.
#[derive(Debug, Clone, Copy)]
struct Look {
    dark: bool,
    width: u16,
}

const LOOKS: [Look; 4] = [
    Look { dark: false, width: 1280 },
    Look { dark: true, width: 1280 },
    Look { dark: false, width: 360 },
    Look { dark: true, width: 360 },
];

/// What the browser ended with, and what it did on the network, as its own record has it.
struct Seen {
    dom: String,
    /// Every host and port that it connected to.
    connected: Vec<String>,
    /// Every page that was opened.
    opened: Vec<Url>,
    /// What the pages asked for beside themselves.
    resources: Vec<Url>,
}

/// Opens the address in a browser of its own, and keeps a picture of where it ends.
async fn browse(url: &str, name: &str, look: Look) -> Seen {
    let profile = tempfile::tempdir().unwrap();
    let log = profile.path().join("net.json");
    let picture = picture(name, look);
    // Of an earlier run.
    fs::remove_file(&picture).ok();
    let mut command = Command::new("chromium");
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync", "--dump-dom"])
        // It looks for time, updates and accounts on its own: no name of any host is found.
        .args(["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--log-net-log={}", log.display()))
        .arg(format!("--window-size={},640", look.width))
        .arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!look.dark)))
        .arg(format!("--screenshot={}", picture.display()))
        .arg(url)
        .env("HOME", profile.path())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = timeout(LIMIT, command.output()).await.expect("the browser does not end");
    let output = output.unwrap_or_else(|error| panic!("chromium: {error}: run ./scripts/test, which installs it"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert!(fs::metadata(&picture).is_ok_and(|it| it.len() > 1000), "no picture: {said}");
    let log = serde_json::from_slice(&fs::read(&log).unwrap()).unwrap();
    let (opened, resources) = requests(&log).into_iter().partition(|(_, main)| *main);
    let urls = |requests: Vec<(Url, bool)>| requests.into_iter().map(|(url, _)| url).collect();
    Seen {
        dom: String::from_utf8(output.stdout).unwrap(),
        connected: connections(&log),
        opened: urls(opened),
        resources: urls(resources),
    }
}

fn picture(name: &str, look: Look) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pages");
    fs::create_dir_all(&folder).unwrap();
    folder.join(format!("{name}-{}-{}.png", if look.dark { "dark" } else { "light" }, look.width))
}

/// The parameters of every event of that type.
fn events<'a>(log: &'a Value, kind: &str) -> impl Iterator<Item = &'a Value> {
    let kind = &log["constants"]["logEventTypes"][kind];
    assert!(kind.is_number(), "the record knows no such event");
    log["events"].as_array().unwrap().iter().filter(move |event| event["type"] == *kind).map(|event| &event["params"])
}

fn connections(log: &Value) -> Vec<String> {
    events(log, "TCP_CONNECT_ATTEMPT").filter_map(|it| it["address"].as_str().map(str::to_owned)).collect()
}

/// What pages were asked for, and what they asked for; not what the browser wants for itself.
fn requests(log: &Value) -> Vec<(Url, bool)> {
    let started = events(log, "URL_REQUEST_START_JOB").filter(|it| it["url"].is_string());
    let of_pages = started.filter(|it| it["request_type"] == "main frame" || it["initiator"] != "not an origin");
    of_pages.map(|it| (it["url"].as_str().unwrap().parse().unwrap(), it["request_type"] == "main frame")).collect()
}

async fn begin(daemon: &Daemon) -> Url {
    let body = json!({"provider": "op", "flow": "browser"}).to_string();
    let answer = daemon.request("POST", "/v1/logins", &JSON, body).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()["authorization_url"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_person_who_logs_in_ends_at_a_page_that_asks_for_nothing() {
    let oidc = Oidc::start().await;
    let config = format!(
        "[providers.op]\nissuer = {0:?}\nauthorization_endpoint = \"{0}/auth?prompt=consent\"\nclient_id = \"public\"\n\
         scopes = [\"openid\", \"offline_access\"]\n",
        oidc.issuer(),
    );
    let daemon = Daemon::start(&Home::new(), "a", &config, &[]).await;
    let pages = ["logged-in", "refused"];
    for look in LOOKS {
        let seen = browse(begin(&daemon).await.as_str(), pages[0], look).await;
        shows(&seen, "Logged in");
        let last = seen.opened.last().expect("a page");
        assert!(last.path() == "/callback" && last.query_pairs().any(|(name, _)| name == "code"), "{last}");

        let url = begin(&daemon).await;
        let redirect = url.query_pairs().find(|(name, _)| name == "redirect_uri").unwrap().1;
        let state = url.query_pairs().find(|(name, _)| name == "state").unwrap().1;
        let refused = format!("{redirect}?error=access_denied&state={state}&iss={}", oidc.issuer());
        shows(&browse(&refused, pages[1], look).await, "Not logged in");
    }
    for (name, width) in pages.into_iter().flat_map(|name| LOOKS.map(|look| (name, look.width))) {
        let [light, dark] = [false, true].map(|dark| fs::read(picture(name, Look { dark, width })).unwrap());
        assert!(light != dark, "{name} is the same in light and dark");
    }
    assert_eq!(daemon.request("GET", "/v1/tokens/op", &[], "").await.status, 200);
    daemon.watch_issued(&oidc.issued().await);
}

/// The page is ours, complete in itself, and nothing went anywhere else.
fn shows(seen: &Seen, title: &str) {
    assert!(seen.dom.contains(&format!("<h1>{title}</h1>")), "{}", seen.dom);
    for foreign in ["<script", " src=", " href=", "url(", "@import", " on"] {
        let markup = seen.dom.split("<p>").next().unwrap();
        assert!(!markup.contains(foreign), "{foreign}: {}", seen.dom);
    }
    assert!(seen.resources.is_empty(), "{:#?}", seen.resources);
    assert!(!seen.connected.is_empty(), "no connection in the record");
    assert!(seen.connected.iter().all(|address| address.starts_with("127.0.0.1:")), "{:#?}", seen.connected);
}
