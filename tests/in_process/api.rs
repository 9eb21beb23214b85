//! The API as a caller meets it, in process: every exchange is held against `openapi.yaml`.

use std::{collections::BTreeSet, time::Duration};

use credproxy::{policy::Operation, problem_code::ProblemCode, server::OPERATIONS};
use serde_json::{Value, json};

use crate::support::{
    contract::Contract,
    issuer::{Answer as Scripted, Gate, Raw},
    world::JSON,
};
use world::{Api, World};

mod keys;
mod logins;
mod outcomes;
mod sandboxes;
mod world;

#[tokio::test]
async fn a_first_refresh_is_answered_a_second_rate_limited_and_a_dead_grant_needs_a_login() {
    let world = World::new().await;
    let before = world.host.get("/v1/tokens/corp").await.access_token();
    let first = world.refresh().await;
    assert_ne!(first.access_token(), before);
    let second = world.refresh().await;
    assert_eq!((second.status, second.code().as_str()), (429, "RATE_LIMITED"));
    assert_eq!(second.header("retry-after").unwrap(), second.json()["retryAfter"].to_string());
    world.log_in("corp?bucket=dead").await;
    world.issuer.script(Scripted::Raw(Raw::error(400, "invalid_grant")));
    for _ in 0..2 {
        let dead = world.host.post("/v1/tokens/corp/refresh?bucket=dead").await;
        assert_eq!((dead.status, dead.code().as_str()), (401, "REAUTH_REQUIRED"));
        let challenge = "Credproxy realm=\"corp/dead\", error=\"reauth_required\"";
        assert_eq!(dead.header("www-authenticate"), Some(challenge));
    }
    assert_eq!((world.issuer.presentations().len(), world.issuer.reused()), (2, 0));
}

#[tokio::test]
async fn three_refreshes_in_a_row_lose_nothing_of_the_grant() {
    let world = World::with(Duration::ZERO, Duration::from_secs(15)).await;
    let mut grant = world.grant();
    grant["scope"] = json!("read write admin");
    grant["account_id"] = json!("me");
    world.host.put("/v1/tokens/corp", &grant).await;
    for _ in 0..3 {
        let token = world.refresh().await.json();
        assert_eq!((&token["scope"], &token["account_id"]), (&json!("read write admin"), &json!("me")));
    }
    assert_eq!(world.issuer.reused(), 0);
}

#[tokio::test]
async fn an_entity_tag_saves_the_answer_until_the_token_changes() {
    let world = World::with(Duration::ZERO, Duration::from_secs(15)).await;
    let first = world.host.get("/v1/tokens/corp").await;
    let tag = first.etag();
    let not_modified = world.host.send("GET", "/v1/tokens/corp", &[("if-none-match", &tag)], b"").await;
    assert_eq!((not_modified.status, not_modified.body.len(), not_modified.etag()), (304, 0, tag.clone()));
    let refreshed = world.host.send("POST", "/v1/tokens/corp/refresh", &[("if-match", &tag)], b"").await;
    assert_ne!(refreshed.etag(), tag);
    let again = world.host.send("POST", "/v1/tokens/corp/refresh", &[("if-match", &tag)], b"").await;
    assert_eq!((again.access_token(), again.etag()), (refreshed.access_token(), refreshed.etag()));
    assert_eq!(world.host.send("GET", "/v1/tokens/corp", &[("if-none-match", &tag)], b"").await.status, 200);
    world.log_in("corp?bucket=other").await;
    let other = world.host.get("/v1/tokens/corp?bucket=other").await.etag();
    let mismatch = world.host.send("POST", "/v1/tokens/corp/refresh", &[("if-match", &other)], b"").await;
    assert_eq!((mismatch.status, mismatch.code().as_str()), (412, "PRECONDITION_FAILED"));
    let weak = format!("W/{}", refreshed.etag());
    for malformed in [weak.as_str(), "token", "\"garbage\"", ""] {
        let answer = world.host.send("POST", "/v1/tokens/corp/refresh", &[("if-match", malformed)], b"").await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "INVALID_REQUEST"), "{malformed}");
    }
    assert_eq!(world.issuer.presentations().len(), 1);
}

#[tokio::test]
async fn a_long_poll_is_answered_by_the_change() {
    let world = World::new().await;
    let tag = world.host.get("/v1/tokens/corp").await.etag();
    let waiting = [("if-none-match", tag.as_str()), ("prefer", "wait=30")];
    let (polled, refreshed) = tokio::join!(world.host.send("GET", "/v1/tokens/corp", &waiting, b""), async {
        tokio::task::yield_now().await;
        world.refresh().await
    });
    assert_eq!(polled.access_token(), refreshed.access_token());
    let brief = [("if-none-match", polled.etag()), ("prefer", "wait=1".to_owned())];
    let brief: Vec<_> = brief.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(world.host.send("GET", "/v1/tokens/corp", &brief, b"").await.status, 304);
}

#[tokio::test]
async fn head_shows_what_there_is_and_refreshes_nothing() {
    let world = World::new().await;
    let mut grant = world.grant();
    grant["expires_in"] = json!(0.001);
    world.host.put("/v1/tokens/corp", &grant).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let head = world.host.send("HEAD", "/v1/tokens/corp", &[], b"").await;
    assert_eq!((head.status, head.body.len(), world.issuer.presentations().len()), (200, 0, 0));
    assert!(head.header("etag").is_some());
    world.host.get("/v1/tokens/corp").await.access_token();
    assert_eq!(world.issuer.presentations().len(), 1, "an expired token is refreshed by GET");
}

#[tokio::test]
async fn min_validity_refreshes_what_would_not_last() {
    let world = World::new().await;
    let mut grant = world.grant();
    grant["expires_in"] = json!(100);
    world.host.put("/v1/tokens/corp", &grant).await;
    for (target, calls) in [
        ("/v1/tokens/corp", 0),
        ("/v1/tokens/corp?min_validity=0", 0),
        ("/v1/tokens/corp?min_validity=40", 0),
        ("/v1/tokens/corp?min_validity=18446744073709551615", 0),
    ] {
        world.host.get(target).await.access_token();
        assert_eq!(world.issuer.presentations().len(), calls, "{target}");
    }
    grant["expiry"] = json!(credproxy::clock::Clock::now(&credproxy::clock::SystemClock::new()).as_secs() + 2);
    grant.as_object_mut().unwrap().remove("expires_in");
    world.host.put("/v1/tokens/corp", &grant).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    world.host.get("/v1/tokens/corp?min_validity=1").await.access_token();
    assert_eq!(world.issuer.presentations().len(), 1);
}

#[tokio::test]
async fn put_makes_and_replaces_and_delete_ends() {
    let world = World::new().await;
    let made = world.log_in("corp?bucket=a%2Bb").await;
    assert_eq!((made.status, made.header("location")), (201, Some("/v1/tokens/corp?bucket=a%2Bb")));
    let location = made.header("location").unwrap().to_owned();
    assert_eq!(world.host.get(&location).await.etag(), made.etag());
    let replaced = world.log_in("corp?bucket=a%2Bb").await;
    assert_eq!(replaced.status, 204);
    let stale = made.etag();
    let put = world.grant().to_string();
    let conflict = world.host.send("PUT", &location, &[JSON, ("if-match", &stale)], put.as_bytes()).await;
    assert_eq!((conflict.status, conflict.code().as_str()), (412, "PRECONDITION_FAILED"));
    let conflict = world.host.send("DELETE", &location, &[("if-match", &stale)], b"").await;
    assert_eq!(conflict.status, 412);
    let gone = world.host.send("DELETE", &location, &[("if-match", &replaced.etag())], b"").await;
    assert_eq!((gone.status, gone.json()), (200, json!({"revoked": false})));
    assert_eq!(world.host.delete(&location).await.code(), "NOT_FOUND");
    assert!(world.issuer.revocations().is_empty());
    assert_eq!(world.host.delete("/v1/tokens/corp?revoke=true").await.json(), json!({"revoked": true}));
    assert_eq!(world.issuer.revocations().len(), 1);
}

#[tokio::test]
async fn a_grant_that_could_not_be_handed_out_is_refused() {
    let world = World::new().await;
    let before = world.host.get("/v1/tokens/corp").await.etag();
    for bad in [
        json!({}),
        json!([]),
        json!({"access_token": ""}),
        json!({"access_token": 5}),
        json!({"access_token": "a\nb"}),
        json!({"access_token": "canary-same", "refresh_token": "canary-same"}),
        json!({"access_token": "xx-canary-same-xx", "refresh_token": "canary-same"}),
        json!({"access_token": "my_refresh_token"}),
        json!({"access_token": "a", "refresh_token": ["r"]}),
        json!({"access_token": "a", "expires_in": -1}),
        json!({"access_token": "a", "expires_in": 0}),
        json!({"access_token": "a", "expires_in": "soon"}),
        json!({"access_token": "a", "expiry": "never"}),
        json!({"access_token": "a", "expiry": 1_795_000_000, "expires_in": 5}),
        json!({"access_token": "a", "scope": ["a"]}),
        json!({"access_token": "a", "token_type": {}}),
    ] {
        let answer = world.host.put("/v1/tokens/corp", &bad).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "INVALID_REQUEST"), "{bad}");
        assert!(!String::from_utf8_lossy(&answer.body).contains("canary"), "{bad}");
    }
    assert_eq!(world.host.get("/v1/tokens/corp").await.etag(), before);
}

#[tokio::test]
async fn what_cannot_be_refreshed_says_why() {
    let world = World::new().await;
    world.host.put("/v1/tokens/corp?bucket=alone", &json!({"access_token": "canary-at-x", "refresh_token": ""})).await;
    assert_eq!(world.host.get("/v1/tokens/corp?bucket=alone").await.access_token(), "canary-at-x");
    let mut foreign = world.grant();
    foreign["expires_in"] = json!(0.001);
    world.host.put("/v1/tokens/unknown", &foreign).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    for (method, target, status, code) in [
        ("POST", "/v1/tokens/corp/refresh?bucket=none", 404, "NOT_FOUND"),
        ("GET", "/v1/tokens/corp?bucket=none", 404, "NOT_FOUND"),
        ("POST", "/v1/tokens/corp/refresh?bucket=alone", 409, "REFRESH_NOT_AVAILABLE"),
        ("POST", "/v1/tokens/unknown/refresh", 501, "PROVIDER_NOT_CONFIGURED"),
        ("GET", "/v1/tokens/unknown", 501, "PROVIDER_NOT_CONFIGURED"),
        ("GET", "/v2/tokens", 404, "NOT_FOUND"),
        ("GET", "/", 404, "NOT_FOUND"),
    ] {
        let answer = world.host.send(method, target, &[], b"").await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{method} {target}");
    }
}

/// Method, target, headers, body, and the status of the refusal.
type Case<'a> = (&'a str, &'a str, Vec<(&'a str, &'a str)>, &'a [u8], u16);

#[tokio::test]
async fn bad_input_is_refused_and_touches_nothing() {
    let world = World::new().await;
    let before = world.host.get("/v1/tokens/corp").await.etag();
    let large = vec![b'x'; 1024 * 1024];
    let grant = world.grant().to_string();
    let cases: Vec<Case<'_>> = vec![
        ("POST", "/v1/tokens/corp/refresh?bukcet=default", vec![], b"", 400),
        ("POST", "/v1/tokens/corp/refresh?bucket=default&bucket=default", vec![], b"", 400),
        ("POST", "/v1/tokens/corp/refresh?bucket=", vec![], b"", 400),
        ("POST", "/v1/tokens/corp/refresh?bucket=..%2Fx", vec![], b"", 400),
        ("POST", "/v1/tokens/corp/refresh?min_validity=5", vec![], b"", 400),
        ("POST", "/v1/tokens/.corp/refresh", vec![], b"", 400),
        ("POST", "/v1/tokens/c%2Forp/refresh", vec![], b"", 400),
        ("POST", "/v1/tokens/%00/refresh", vec![], b"", 400),
        ("POST", "/v1/tokens/%ff/refresh", vec![], b"", 400),
        ("POST", "/v1/tokens/my_refresh_token/refresh", vec![], b"", 400),
        ("POST", "/v1/tokens/corp/refresh?bucket=none", vec![("if-match", "\"garbage\"")], b"", 400),
        ("POST", "/v1/tokens/corp/refresh", vec![JSON], b"{", 400),
        ("POST", "/v1/tokens/corp/refresh", vec![JSON], b"{\"bucket\":\"x\"}", 400),
        ("POST", "/v1/tokens/corp/refresh", vec![JSON], b"[]", 400),
        ("POST", "/v1/tokens/corp/refresh", vec![JSON], b"null", 400),
        ("POST", "/v1/tokens/corp/refresh", vec![("content-type", "text/plain")], b"{}", 415),
        ("POST", "/v1/tokens/corp/refresh", vec![JSON], &large, 413),
        ("PUT", "/v1/tokens/corp/refresh", vec![JSON], grant.as_bytes(), 405),
        ("DELETE", "/v1/tokens/corp/refresh", vec![], b"", 405),
        ("GET", "/v1/tokens/corp/refresh", vec![], b"", 405),
        ("POST", "/v1/tokens/corp", vec![], b"", 405),
        ("PATCH", "/v1/tokens/corp", vec![], b"", 405),
        ("OPTIONS", "/v1/tokens", vec![], b"", 405),
        ("GET", "/v1/tokens/corp?min_validity=-1", vec![], b"", 400),
        ("GET", "/v1/tokens/corp?min_validity=1s", vec![], b"", 400),
        ("GET", "/v1/tokens/corp?min_validity=", vec![], b"", 400),
        ("GET", "/v1/tokens/corp?min_validity=+1", vec![], b"", 400),
        ("GET", "/v1/tokens/corp?min_validity=99999999999999999999", vec![], b"", 400),
        ("GET", "/v1/tokens/corp", vec![("if-none-match", "x")], b"", 400),
        ("GET", "/v1/tokens?provider=corp", vec![], b"", 400),
        ("GET", "/v1/providers?x", vec![], b"", 400),
        ("GET", "/v1/health?x=1", vec![], b"", 400),
        ("GET", "/openapi.yaml?x=1", vec![], b"", 400),
        ("PUT", "/v1/tokens/corp", vec![JSON], b"{\"access_token\":\"a\"", 400),
        ("PUT", "/v1/tokens/corp", vec![JSON], b"", 400),
        ("PUT", "/v1/tokens/corp", vec![("content-type", "application/x-www-form-urlencoded")], grant.as_bytes(), 415),
        ("PUT", "/v1/tokens/corp", vec![JSON], &large, 413),
        ("PUT", "/v1/tokens/corp?bukcet=x", vec![JSON], grant.as_bytes(), 400),
        ("DELETE", "/v1/tokens/corp?revoke=yes", vec![], b"", 400),
        ("DELETE", "/v1/tokens/corp?revoke", vec![], b"", 400),
        ("DELETE", "/v1/tokens/corp", vec![("if-match", "x")], b"", 400),
    ];
    for (method, target, headers, body, status) in cases {
        let answer = world.host.send(method, target, &headers, body).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, "INVALID_REQUEST"), "{method} {target}");
        assert_eq!(answer.header("allow").is_some(), status == 405, "{method} {target}");
    }
    assert_eq!(world.host.get("/v1/tokens/corp").await.etag(), before);
    assert!(world.issuer.requests().is_empty());
}

#[tokio::test]
async fn an_empty_object_is_as_good_as_no_body() {
    let world = World::new().await;
    let answer = world.host.send("POST", "/v1/tokens/corp/refresh", &[JSON], b" {} ").await;
    answer.access_token();
}

#[tokio::test]
async fn a_sandbox_reaches_what_it_is_allowed_and_learns_nothing_of_the_rest() {
    let world = World::new().await;
    world.log_in("corp?bucket=work").await;
    world.log_in("other").await;
    let sandbox = |operations: &[Operation]| Api::new(&world, world::sandbox(&["corp/work"], operations));
    let (reader, refresher) = (sandbox(&[Operation::Read]), sandbox(&[Operation::Refresh]));
    let sandbox = sandbox(&[Operation::Read, Operation::Refresh]);
    sandbox.get("/v1/tokens/corp?bucket=work").await.access_token();
    sandbox.post("/v1/tokens/corp/refresh?bucket=work").await.access_token();
    let calls = world.issuer.presentations().len();
    let mut answers = BTreeSet::new();
    for target in ["corp", "corp?bucket=none", "other", "nowhere"] {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        for (method, target) in
            [("GET", format!("/v1/tokens/{target}")), ("POST", format!("/v1/tokens/{path}/refresh?{query}"))]
        {
            let answer = sandbox.send(method, &target, &[], b"").await;
            assert_eq!((answer.status, answer.code().as_str()), (403, "UNAUTHORIZED"), "{method} {target}");
            answers.insert(answer.body);
        }
    }
    assert_eq!(answers.len(), 1, "whether an account exists makes no difference");
    for target in ["/v1/tokens/corp?bucket=work", "/v1/tokens/corp", "/v1/tokens/nowhere"] {
        assert_eq!(sandbox.put(target, &world.grant()).await.code(), "UNAUTHORIZED");
        assert_eq!(sandbox.delete(target).await.code(), "UNAUTHORIZED");
    }
    assert_eq!(world.issuer.presentations().len(), calls);
    let seen = sandbox.get("/v1/tokens").await.json();
    assert_eq!(seen["tokens"].as_array().unwrap().len(), 1);
    assert_eq!(seen["tokens"][0]["bucket"], "work");
    assert_eq!(
        sandbox.get("/v1/providers").await.json(),
        json!({"providers": [{"name": "corp", "flows": ["browser", "paste", "device"], "buckets": ["work"]}]})
    );
    assert_eq!(reader.post("/v1/tokens/corp/refresh?bucket=work").await.code(), "UNAUTHORIZED");
    for target in ["/v1/tokens/corp?bucket=work", "/v1/tokens", "/v1/providers"] {
        assert_eq!(refresher.get(target).await.code(), "UNAUTHORIZED", "{target}");
    }
    let nothing = Api::new(&world, world::sandbox(&[], &[Operation::Read]));
    assert_eq!(nothing.get("/v1/tokens").await.json(), json!({"tokens": []}));
    assert_eq!(nothing.get("/v1/providers").await.json(), json!({"providers": []}));
}

#[tokio::test]
async fn the_overview_tells_how_every_account_stands() {
    let world = World::new().await;
    let put =
        async |bucket: &str, grant: Value| world.host.put(&format!("/v1/tokens/corp?bucket={bucket}"), &grant).await;
    let mut short = world.grant();
    short["expires_in"] = json!(0.001);
    put("expired", short).await;
    put("unknown", json!({"access_token": "canary-at-u", "scope": "a b"})).await;
    put("dead", world.grant()).await;
    world.issuer.script(Scripted::Raw(Raw::error(400, "invalid_grant")));
    world.host.post("/v1/tokens/corp/refresh?bucket=dead").await;
    world.refresh().await.access_token();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let list = world.host.get("/v1/tokens").await.json();
    let line =
        |bucket: &str| list["tokens"].as_array().unwrap().iter().find(|line| line["bucket"] == bucket).unwrap().clone();
    let states: Vec<_> =
        ["dead", "default", "expired", "unknown"].iter().map(|bucket| line(bucket)["state"].clone()).collect();
    assert_eq!(states, ["reauth_required", "valid", "expired", "unknown"]);
    assert_eq!((&line("dead")["last_error"], &line("default")["last_error"]), (&json!("invalid_grant"), &Value::Null));
    assert!(line("default")["refreshed_at"].is_u64() && line("expired")["refreshed_at"].is_null());
    assert_eq!((&line("unknown")["refreshable"], &line("unknown")["scope"]), (&json!(false), &json!("a b")));
    let providers = world.host.get("/v1/providers").await.json();
    assert_eq!(providers["providers"][0]["buckets"], json!(["dead", "default", "expired", "unknown"]));
}

#[tokio::test]
async fn one_hanging_provider_stops_nobody_else() {
    let world = World::new().await;
    world.log_in("corp?bucket=other").await;
    let gate = Gate::new();
    world.issuer.script(Scripted::HoldAfter(gate.clone()));
    let hanging = world.refresh();
    let others = async {
        gate.wait_for_arrivals(1).await;
        world.host.get("/v1/tokens/corp").await.access_token();
        world.host.post("/v1/tokens/corp/refresh?bucket=other").await.access_token();
        gate.open();
    };
    let (refreshed, ()) = tokio::join!(hanging, others);
    refreshed.access_token();
}

#[tokio::test]
async fn routes_and_document_agree_both_ways() {
    let contract = Contract::load();
    let documented: BTreeSet<String> = contract.operations().into_iter().map(|(_, path, _)| path).collect();
    assert_eq!(documented, OPERATIONS.iter().map(|operation| operation.path.to_owned()).collect());
    let world = World::new().await;
    let methods = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"];
    for path in &documented {
        let target = path.replace("{provider}", "corp").replace("{id}", &"0".repeat(32)).replace("{name}", "openai");
        let allowed: BTreeSet<String> = contract
            .operations()
            .into_iter()
            .filter(|(_, of, _)| of == path)
            .map(|(method, ..)| method.to_uppercase())
            .collect();
        for method in methods {
            let status = world.host.send(method, &target, &[], b"").await.status;
            assert_eq!(status != 405, allowed.contains(method), "{method} {path}: {status}");
        }
    }
    let named: BTreeSet<_> =
        OPERATIONS.iter().map(|known| [known.method, known.path, known.id].map(str::to_owned)).collect();
    let documented = contract.operations().into_iter().map(|(method, path, id)| [method, path, id]).collect();
    assert_eq!(named, documented);
    let codes: BTreeSet<String> =
        ProblemCode::ALL.iter().map(|code| json!(code).as_str().unwrap().to_owned()).collect();
    assert_eq!(contract.error_codes(), codes);
}

#[tokio::test]
async fn the_document_is_served_as_it_is() {
    let world = World::new().await;
    let answer = world.host.get("/openapi.yaml").await;
    assert_eq!(answer.body, include_bytes!("../../openapi.yaml"));
    assert_eq!(world.host.get("/v1/health").await.json(), json!({"status": "ok"}));
}
