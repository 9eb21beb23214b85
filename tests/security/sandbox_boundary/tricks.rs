//! Requests that say one thing and mean another: no form of a target, a header or a body reaches an account that is on
//! no list.

use std::time::Duration;

use futures_util::future::join_all;

use crate::{sandbox_boundary::World, support::http::raw};

/// Long enough for any answer, for a connection that then stays open.
const A_WHILE: Duration = Duration::from_millis(1500);

/// Ways to write `/v1/tokens/other`, and others to write `/v1/tokens/corp?bucket=work`.
fn targets() -> Vec<String> {
    let mut targets: Vec<String> = [
        "/v1/tokens/other",
        "/v1/tokens/%6fther",
        "/v1/tokens/%256fther",
        "/v1/tokens/%25%36fther",
        "/v1/tokens/Other",
        "/v1/tokens/other/",
        "/v1/tokens//other",
        "/v1/./tokens/other",
        "//v1/tokens/other",
        "/v1/tokens/corp/../other",
        "/v1/tokens/corp/%2e%2e/other",
        "/v1/tokens/corp/.%2e/other",
        "/v1/tokens/corp/%252e%252e/other",
        "/v1/tokens/corp%2f..%2fother",
        "/v1/tokens/corp%2F%2E%2E%2Fother",
        "/v1/tokens/corp%5c..%5cother",
        "/v1/tokens/corp\\..\\other",
        "/v1/tokens/..;/tokens/other",
        "/v1/tokens/corp;/../other",
        "/v1/tokens/other;corp",
        "/v1/tokens/corp;bucket=work",
        "/v1/tokens/corp%3fbucket=work",
        "/v1/tokens/corp%3fbucket%3dwork",
        "/v1/tokens/corp%23?bucket=work",
        "/v1/tokens/corp%2fwork",
        "/v1/tokens/corp%00?bucket=work",
        "/v1/tokens/other%00",
        "/v1/tokens/other%00corp",
        "/v1/tokens/corp%00/../other",
        "/v1/tokens/corp%0d%0aother",
        "/v1/tokens/other%20",
        "/v1/tokens/%20other",
        "/v1/tokens/other%0a",
        "/v1/tokens/other.",
        "/v1/tokens/other%",
        "/v1/tokens/other%6",
        // The letter o in Greek and Cyrillic, at full width, with a hook; then joiners, marks and a change of direction.
        "/v1/tokens/%ce%bfther",
        "/v1/tokens/%d0%bether",
        "/v1/tokens/%ef%bd%8fther",
        "/v1/tokens/%c6%a1ther",
        "/v1/tokens/o%cc%9bther",
        "/v1/tokens/o%e2%80%8bther",
        "/v1/tokens/other%e2%80%8d",
        "/v1/tokens/%ef%bb%bfother",
        "/v1/tokens/%e2%80%aerehto",
        "/v1/tokens/\u{3bf}ther",
        "/v1/tokens/\u{ff4f}ther",
        // The letter o in two, three and four bytes (RFC 3629 section 3 forbids it), half a character, a surrogate.
        "/v1/tokens/%c1%afther",
        "/v1/tokens/%e0%81%afther",
        "/v1/tokens/%f0%80%81%afther",
        "/v1/tokens/other%c3",
        "/v1/tokens/other%ed%a0%80",
        "/v1/tokens/corp%c0%af..%c0%afother",
        "/v1/tokens/%u006fther",
        "http://x/v1/tokens/other",
        "http://x/v1/tokens/corp?bucket=work",
        "http://x@y:1/v1/tokens/other",
        "unix:/v1/tokens/other",
        "http:///v1/tokens/other",
        "//x/v1/tokens/other",
        "?/v1/tokens/other",
        "/v1/tokens/corp?bucket=work",
        "/v1/tokens/corp?bucket=wor%6b",
        "/v1/tokens/corp?bucket=wor%256b",
        "/v1/tokens/corp?%62ucket=work",
        "/v1/tokens/corp?bucket%3Dwork",
        "/v1/tokens/corp?bucket=default&bucket=work",
        "/v1/tokens/corp?bucket=work&bucket=default",
        "/v1/tokens/corp?bucket=default&%62ucket=work",
        "/v1/tokens/corp?bucket=default&Bucket=work",
        "/v1/tokens/corp?Bucket=work",
        "/v1/tokens/corp?BUCKET=work",
        "/v1/tokens/corp?bucket=default;bucket=work",
        "/v1/tokens/corp?bucket=work;bucket=default",
        "/v1/tokens/corp?bucket=default%26bucket%3Dwork",
        "/v1/tokens/corp?bucket=default%00work",
        "/v1/tokens/corp?bucket=work%00",
        "/v1/tokens/corp?bucket=work%20",
        "/v1/tokens/corp?bucket=+work",
        "/v1/tokens/corp?bucket=WORK",
        "/v1/tokens/corp?bucket[]=work",
        "/v1/tokens/corp?bucket[0]=work",
        "/v1/tokens/corp?bucket=default,work",
        "/v1/tokens/corp?bucket=../other/default",
        "/v1/tokens/corp?bucket=default/../work",
        "/v1/tokens/corp?bucket=*",
        "/v1/tokens/corp??bucket=work",
        "/v1/tokens/corp?&bucket=work",
        "/v1/tokens/corp?bucket=%d1%88ork",
        "/v1/tokens/corp?bucket=\u{ff57}ork",
        "/v1/tokens/corp?provider=other",
        "/v1/tokens/corp#/../other",
        "/v1/tokens/corp?bucket=default#&bucket=work",
        "/v1/tokens/corp#?bucket=work",
        "/v1/tokens/pool/../corp?bucket=work",
        "/v1/tokens/pool%2fx?bucket=work",
        "/v1/tokens/pool?bucket=a/../../other",
        "/v1/tokens/*",
        "/v1/tokens/%2a",
    ]
    .map(str::to_owned)
    .into();
    targets.push(format!("/v1/tokens/{}other", "../".repeat(1000)));
    targets.push(format!("/v1/tokens/other{}", "%20".repeat(1000)));
    targets.push(format!("/v1/tokens/{}", "other".repeat(2000)));
    targets.push(format!("/v1/tokens/corp?{}bucket=work", "bucket=default&".repeat(500)));
    targets
}

#[tokio::test(flavor = "multi_thread")]
async fn no_way_to_write_a_target_reaches_another_account() {
    let world = World::new().await;
    let (socket, before) = (world.socket("all"), world.state().await);
    let mut requests = Vec::new();
    for target in targets() {
        let end = target.find(['?', '#']).filter(|at| *at > 0).unwrap_or(target.len());
        let (path, rest) = target.split_at(end);
        requests.push(format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        requests.push(format!("HEAD {target} HTTP/1.0\r\n\r\n"));
        // What is cut off at a fragment is a request for the account that is allowed.
        if !rest.starts_with('#') && !rest.contains("default#") {
            requests.push(format!("POST {path}/refresh{rest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        }
        requests.push(format!("DELETE {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    }
    let sent = requests.iter().map(async |request| {
        let answer = raw(&socket, request.as_bytes(), A_WHILE).await;
        let granted = answer.starts_with(b"HTTP/1.1 2") || answer.starts_with(b"HTTP/1.0 2");
        assert!(!granted || request.contains('#'), "{request}{}", String::from_utf8_lossy(&answer));
        answer
    });
    let answers = join_all(sent).await.concat();
    world.assert_untouched(&before, &answers).await;
    println!("{} requests", requests.len());
}

/// What proxies and frameworks elsewhere take for more than it says.
const HEADERS: [&str; 28] = [
    "X-Original-URL: /v1/tokens/other",
    "X-Rewrite-URL: /v1/tokens/other",
    "X-Original-URI: /v1/tokens/other",
    "X-HTTP-Method-Override: DELETE",
    "X-HTTP-Method: PUT",
    "X-Method-Override: POST",
    "X-Forwarded-For: 127.0.0.1",
    "X-Forwarded-Host: other",
    "X-Forwarded-Prefix: /v1/tokens/other",
    "X-Forwarded-User: root",
    "X-Forwarded-Uri: /v1/tokens/other",
    "Forwarded: for=127.0.0.1;host=other;proto=https",
    "X-Real-IP: 127.0.0.1",
    "X-Remote-User: root",
    "X-Credproxy-Role: host",
    "Role: host",
    "Bucket: work",
    "Provider: other",
    "Cookie: bucket=work; role=host",
    "Authorization: Bearer host",
    "Authorization: Basic cm9vdDpyb290",
    "Connection: upgrade\r\nUpgrade: websocket",
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
    "Connection: host, bucket",
    "TE: trailers, deflate",
    "Range: bytes=0-10",
    "Content-Location: /v1/tokens/other",
    "Content-Type: application/x-www-form-urlencoded",
];

/// The first answer in these bytes: its status, and its body without what chance or time puts in it.
fn first(answer: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_header_changes_what_is_asked_for_or_who_asks() {
    let world = World::new().await;
    let (socket, before) = (world.socket("all"), world.state().await);
    let send = async |method: &str, target: &str, header: &str| {
        // The last `close` counts beside any other connection option.
        let request = format!("{method} {target} HTTP/1.1\r\nHost: x\r\n{header}Connection: close\r\n\r\n");
        raw(&socket, request.as_bytes(), A_WHILE).await
    };
    let mut all = Vec::new();
    for (method, target, due) in [
        ("GET", "/v1/tokens/corp", "HTTP/1.1 200 OK"),
        ("GET", "/v1/tokens", "HTTP/1.1 200 OK"),
        ("GET", "/v1/tokens/other", "HTTP/1.1 403 Forbidden"),
        ("DELETE", "/v1/tokens/corp", "HTTP/1.1 403 Forbidden"),
    ] {
        let plain = send(method, target, "").await;
        assert_eq!(first(&plain).0, due, "{method} {target}");
        let answers = join_all(HEADERS.iter().map(async |header| {
            let answer = send(method, target, &format!("{header}\r\n")).await;
            assert_eq!(first(&answer), first(&plain), "{method} {target} with {header}");
            answer
        }));
        all.extend(answers.await.concat());
    }
    world.assert_untouched(&before, &all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_had_by_a_request_inside_of_another() {
    let world = World::new().await;
    let (socket, before) = (world.socket("all"), world.state().await);
    let inner =
        "POST /v1/tokens/other/refresh HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/tokens/other HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = inner.len();
    let chunk = format!("{length:x}\r\n{inner}\r\n0\r\n\r\n");
    let outer = [
        format!("Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{inner}"),
        format!("Content-Length: {length}\r\nContent-Length: 0\r\n\r\n{inner}"),
        format!("Content-Length: 0, {length}\r\n\r\n{inner}"),
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{chunk}{inner}"),
        format!("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\nContent-Length: 4\r\n\r\n{chunk}"),
        format!("Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{inner}"),
        format!(
            "Transfer-Encoding: chunked\r\nTrailer: Host\r\n\r\n0\r\nHost: y\r\nX: /v1/tokens/other\r\n\r\n{inner}"
        ),
        format!("Transfer-Encoding: chunked\r\n\r\n0;x=\"\r\n\r\n{inner}"),
        format!("Transfer-Encoding: chunked\r\n\r\n0\n\n{inner}"),
        format!("Host: y\r\n\r\n{inner}"),
        format!("Connection: upgrade\r\nUpgrade: h2c\r\n\r\n{inner}"),
        format!("Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n{inner}"),
        format!("X: a\n\n{inner}"),
        format!("\r\n\r\n{inner}"),
        format!("\r\n{inner}"),
    ];
    let mut requests: Vec<String> = vec!["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned() + inner];
    for rest in outer {
        for start in ["GET /v1/tokens/corp", "POST /v1/logins", "GET /v1/health"] {
            requests.push(format!("{start} HTTP/1.1\r\nHost: x\r\n{rest}"));
        }
    }
    let answers = join_all(requests.iter().map(|request| raw(&socket, request.as_bytes(), A_WHILE))).await;
    world.assert_untouched(&before, &answers.concat()).await;
}
