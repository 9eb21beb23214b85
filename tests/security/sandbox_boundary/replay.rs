//! What was somebody else's, or is over, shown again: logins, capabilities, and connections to a sandbox that is gone.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use crate::{
    sandbox_boundary::{ALLOW, JSON, World, told},
    support::http::open,
};

/// Far less than a long poll's minute.
const AT_ONCE: Duration = Duration::from_secs(5);

const NOBODYS: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";

impl World {
    /// Begins a login to an account that all sandboxes have, and that has no grant; gives its id and where the person is
    /// sent.
    async fn begin(&self, socket: &Path) -> (String, String) {
        let bucket = socket.parent().and_then(Path::file_name).unwrap().to_str().unwrap();
        let body = json!({"provider": "pool", "bucket": format!("of-{bucket}"), "flow": "paste"}).to_string();
        let begun = self.ask(socket, "POST", "/v1/logins", &[JSON], &body).await;
        assert_eq!(begun.status, 201, "{}", begun.text());
        let text = |name: &str| begun.json()[name].as_str().unwrap().to_owned();
        (text("id"), text("authorization_url"))
    }

    /// All that can be done with a login's id.
    async fn try_login(&self, socket: &Path, id: &str, code: &str) -> Vec<(u16, String, String)> {
        let (path, body) = (format!("/v1/logins/{id}"), json!({"code": code}).to_string());
        let mut answers = Vec::new();
        for (method, target, headers, body) in [
            ("GET", path.clone(), vec![("prefer", "wait=60")], ""),
            ("POST", format!("{path}/code"), vec![JSON], body.as_str()),
            ("DELETE", path.clone(), vec![], ""),
            ("GET", path.clone(), vec![], ""),
        ] {
            let answer = timeout(AT_ONCE, self.ask(socket, method, &target, &headers, body)).await;
            answers.push(told(&answer.unwrap_or_else(|_| panic!("{method} {target} waits"))));
        }
        answers
    }

    async fn sandbox(&self) -> (String, PathBuf, String) {
        let wanted = json!({"allow": ALLOW, "operations": ["read"], "capability": true});
        let made = self.host("POST", "/v1/sandboxes", &wanted).await;
        assert_eq!(made.status, 201, "{}", made.text());
        let text = |name: &str| made.json()[name].as_str().unwrap().to_owned();
        self.daemon.watch_secret(&text("capability"));
        (text("id"), text("socket").into(), text("capability"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_of_the_host_s_or_another_sandbox_s_is_one_that_never_was() {
    let world = World::new().await;
    let (all, login, host) = (world.socket("all"), world.socket("login"), world.daemon.socket());
    for (owner, strangers) in [(&host, [&all, &login]), (&login, [&all, &host]), (&all, [&login, &host])] {
        let (id, address) = world.begin(owner).await;
        let back = world.issuer.agree(&address);
        let code = back.query_pairs().find(|(name, _)| name == "code").unwrap().1.into_owned();
        let before = world.state().await;
        for stranger in strangers {
            let answers = world.try_login(stranger, &id, back.as_str()).await;
            assert!(answers.iter().all(|answer| answer.0 == 404), "{answers:?}");
            assert_eq!(answers, world.try_login(stranger, NOBODYS, &code).await);
        }
        assert_eq!(world.state().await, before);

        // Its owner finishes it, once.
        let path = format!("/v1/logins/{id}/code");
        let body = json!({"code": back.as_str()}).to_string();
        let finished = world.ask(owner, "POST", &path, &[JSON], &body).await;
        assert_eq!((finished.status, &finished.json()["status"]), (200, &json!("complete")), "{}", finished.text());
        let before = world.state().await;
        for socket in [owner, strangers[0], strangers[1]] {
            let again = world.ask(socket, "POST", &path, &[JSON], &body).await;
            let due = if socket == owner { 409 } else { 404 };
            assert_eq!(again.status, due, "{}", again.text());
        }
        let answers = world.try_login(strangers[0], &id, &code).await;
        assert_eq!(answers, world.try_login(strangers[0], NOBODYS, &code).await, "it is over");
        assert_eq!(world.state().await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_capability_but_its_own_opens_a_sandbox() {
    let world = World::new().await;
    let (gone, _, of_gone) = world.sandbox().await;
    assert_eq!(world.host("DELETE", &format!("/v1/sandboxes/{gone}"), &Value::Null).await.status, 204);
    let (id, socket, own) = world.sandbox().await;
    let (_, other, of_other) = world.sandbox().await;
    let before = world.state().await;

    let swapped: String = own
        .chars()
        .map(|it| if it.is_lowercase() { it.to_ascii_uppercase() } else { it.to_ascii_lowercase() })
        .collect();
    let half = own.len() / 2;
    let bearer = |text: &str| vec![("authorization", format!("Bearer {text}"))];
    let shown = [
        vec![],
        bearer(""),
        bearer(&of_gone),
        bearer(&of_other),
        bearer(&id),
        bearer(&swapped),
        bearer(&own.to_lowercase()),
        bearer(&own[..own.len() - 1]),
        bearer(&own[..half]),
        bearer(&own[1..]),
        bearer(&format!("{own}A")),
        bearer(&format!("{own}=")),
        bearer(&format!("{own} {own}")),
        bearer(&format!("{own},{of_other}")),
        bearer(&format!("{of_other}, Bearer {own}")),
        bearer(&format!("\"{own}\"")),
        bearer(&format!("token={own}")),
        [bearer(&own), bearer(&own)].concat(),
        [bearer(&own), bearer(&of_other)].concat(),
        [bearer(&of_other), bearer(&own)].concat(),
        vec![("authorization", format!("Basic {own}"))],
        vec![("authorization", own.clone())],
        vec![("authorization", format!("Bearer\t{own}"))],
        vec![("authorization", format!("Bearer{own}"))],
        vec![("proxy-authorization", format!("Bearer {own}"))],
        vec![("x-authorization", format!("Bearer {own}"))],
        vec![("cookie", format!("authorization=Bearer {own}; access_token={own}; capability={own}"))],
    ];
    let mut first = None;
    for headers in &shown {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for target in ["/v1/tokens/corp", "/v1/tokens/other", "/v1/health", "/nowhere", "/v1/tokens?x"] {
            let refused = world.ask(&socket, "GET", target, &headers, "").await;
            assert_eq!(*first.get_or_insert_with(|| told(&refused)), told(&refused), "{target} {headers:?}");
        }
    }
    let (status, _, text) = first.unwrap();
    assert_eq!(status, 403);
    // In the target or the body (RFC 6750 sections 2.2 and 2.3).
    for name in ["access_token", "capability", "authorization"] {
        for (method, target, body) in [
            ("GET", format!("/v1/tokens/corp?{name}={own}"), String::new()),
            ("GET", format!("/v1/tokens/corp?{name}=Bearer%20{own}"), String::new()),
            ("POST", "/v1/tokens/corp/refresh".to_owned(), json!({name: own}).to_string()),
        ] {
            let refused = world.ask(&socket, method, &target, &[JSON], &body).await;
            assert_eq!((refused.status, refused.text()), (403, text.clone()), "{method} {name}");
        }
    }
    assert_eq!(world.state().await, before);
    for (socket, capability) in [(&socket, &own), (&other, &of_other)] {
        let headers = [("authorization", format!("Bearer {capability}"))];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        assert_eq!(world.ask(socket, "GET", "/v1/tokens/corp", &headers, "").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_kept_is_of_no_use_once_its_sandbox_is_deleted() {
    let world = World::new().await;
    let (id, socket, capability) = world.sandbox().await;
    let request = format!("GET /v1/tokens/corp HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {capability}\r\n\r\n");
    // One that was used, one that was not, and one in the middle of a request.
    let mut kept = [open(&socket).await, open(&socket).await, open(&socket).await];
    kept[0].write_all(request.as_bytes()).await.unwrap();
    assert!(kept[0].read(&mut [0; 8192]).await.unwrap() > 0);
    kept[2].write_all(&request.as_bytes()[..request.len() - 2]).await.unwrap();
    assert_eq!(world.host("DELETE", &format!("/v1/sandboxes/{id}"), &Value::Null).await.status, 204);
    let (_, again, _) = world.sandbox().await;
    for stream in &mut kept {
        // The other end may be closed already.
        drop(stream.write_all(b"\r\n").await);
        drop(stream.write_all(request.as_bytes()).await);
        let mut answer = Vec::new();
        drop(timeout(AT_ONCE, stream.read_to_end(&mut answer)).await.expect("the connection is closed"));
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    }
    assert!(again.exists() && !socket.exists());
}
