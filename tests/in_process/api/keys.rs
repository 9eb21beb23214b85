//! `/v1/api-keys`: who gets which key, and what no key may hold.

use std::{collections::BTreeSet, sync::Arc};

use credproxy::{
    account::KeyName,
    clock::{SystemClock, Timestamp},
    item::{Item, ItemKind},
    keys::{KeyError, Keys},
    policy::{Allowed, Operation, Policy},
    secret::{ApiKey, RefreshToken},
    store::{Expect, ItemStore as _, StoreError, memory::MemoryStore},
};
use futures_util::FutureExt as _;
use serde_json::json;

use crate::api::{
    JSON,
    world::{Answer, Api, World},
};

impl Api {
    async fn set(&self, name: &str, key: &str) -> Answer {
        self.put(&format!("/v1/api-keys/{name}"), &json!({ "api_key": key })).await
    }

    async fn key(&self, name: &str) -> String {
        let answer = self.get(&format!("/v1/api-keys/{name}")).await;
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        answer.json()["api_key"].as_str().unwrap().to_owned()
    }

    async fn names(&self) -> Vec<String> {
        let list = self.get("/v1/api-keys").await.json();
        assert!(!list.to_string().contains("canary"), "{list}");
        list["api_keys"].as_array().unwrap().iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect()
    }
}

#[tokio::test]
async fn a_key_is_set_read_replaced_and_deleted() {
    let world = World::new().await;
    let host = &world.host;
    assert_eq!(host.names().await, [""; 0]);
    let made = host.set("openai", "canary-1").await;
    assert_eq!((made.status, made.header("location")), (201, Some("/v1/api-keys/openai")));
    let read = host.get("/v1/api-keys/openai").await;
    assert_eq!((read.json()["api_key"].as_str(), read.etag()), (Some("canary-1"), made.etag()));
    host.set("a+b@c.d", "canary-other").await;
    assert_eq!(host.names().await, ["a+b@c.d", "openai"]);
    let list = host.get("/v1/api-keys").await.json();
    let expected = json!({"name": "openai", "readable": true, "created_at": read.json()["created_at"]});
    assert_eq!(list["api_keys"][1], expected);

    let replaced = host.set("openai", "canary-2").await;
    assert_eq!((replaced.status, replaced.header("location")), (204, None));
    assert_eq!(host.key("openai").await, "canary-2");
    assert_ne!(replaced.etag(), made.etag());

    assert_eq!(host.delete("/v1/api-keys/openai").await.status, 204);
    for answer in [host.delete("/v1/api-keys/openai").await, host.get("/v1/api-keys/openai").await] {
        assert_eq!((answer.status, answer.code().as_str()), (404, "NOT_FOUND"));
    }
    assert_eq!(host.key("a+b@c.d").await, "canary-other");
}

#[tokio::test]
async fn a_change_is_made_to_the_key_that_was_seen() {
    let world = World::new().await;
    let host = &world.host;
    let openai = "/v1/api-keys/openai";
    let put = async |tag: &str, key: &str| {
        let body = json!({ "api_key": key }).to_string();
        host.send("PUT", openai, &[JSON, ("if-match", tag)], body.as_bytes()).await
    };
    assert_eq!(put("*", "canary-0").await.code(), "PRECONDITION_FAILED");
    let first = host.set("openai", "canary-1").await.etag();
    let other = host.set("other", "canary-1").await.etag();
    let second = put(&first, "canary-2").await;
    assert_eq!(second.status, 204);
    for stale in [first.as_str(), &other, "\"corp/default:00:1\"", "\"\""] {
        assert_eq!(put(stale, "canary-3").await.code(), "PRECONDITION_FAILED", "{stale}");
        let deleted = host.send("DELETE", openai, &[("if-match", stale)], b"").await;
        assert_eq!((deleted.status, deleted.code().as_str()), (412, "PRECONDITION_FAILED"), "{stale}");
    }
    assert_eq!(host.key("openai").await, "canary-2");

    let known = async |tag: &str| host.send("GET", openai, &[("if-none-match", tag)], b"").await;
    let unchanged = known(&format!("\"x\", W/{}", second.etag())).await;
    assert_eq!((unchanged.status, unchanged.etag()), (304, second.etag()));
    assert_eq!(known(&first).await.status, 200);
    let head = host.send("HEAD", openai, &[], b"").await;
    assert_eq!((head.status, head.etag()), (200, second.etag()));
    let deleted = host.send("DELETE", openai, &[("if-match", &format!("{first}, {}", second.etag()))], b"").await;
    assert_eq!(deleted.status, 204);
}

#[tokio::test]
async fn a_sandbox_gets_the_keys_on_its_list_and_learns_nothing_of_the_rest() {
    let world = World::new().await;
    for name in ["openai", "hidden", "corp"] {
        world.host.set(name, &format!("canary-{name}")).await;
    }
    let of = |operations: &[Operation], keys: &[&str]| {
        let keys = keys.iter().map(|text| text.parse().unwrap()).collect();
        let allow = vec!["corp".parse().unwrap()];
        Api::new(&world, Policy::sandbox(Allowed { allow, operations: operations.to_vec(), keys }))
    };
    let sandbox = of(&[Operation::Keys], &["openai", "absent"]);
    assert_eq!(sandbox.names().await, ["openai"]);
    assert_eq!(sandbox.key("openai").await, "canary-openai");
    assert_eq!(sandbox.get("/v1/api-keys/absent").await.code(), "NOT_FOUND");
    assert_eq!(of(&[Operation::Keys], &[]).names().await, [""; 0]);

    let mut refusals = BTreeSet::new();
    let mut refused = |answer: Answer| {
        let headers = answer.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
        refusals.insert((answer.status, headers.collect::<Vec<_>>(), answer.body));
    };
    let without = of(&[Operation::Read, Operation::Refresh, Operation::Login], &["openai"]);
    refused(without.get("/v1/api-keys").await);
    for name in ["openai", "hidden", "corp", "nowhere"] {
        let path = format!("/v1/api-keys/{name}");
        refused(without.get(&path).await);
        for api in [&without, &sandbox] {
            refused(api.set(name, "canary-mine").await);
            refused(api.delete(&path).await);
            refused(api.send("DELETE", &path, &[("if-match", "\"x\"")], b"").await);
            refused(api.send("PUT", &path, &[JSON, ("if-match", "*")], b"nothing").await);
        }
        if name != "openai" {
            refused(sandbox.get(&path).await);
            refused(sandbox.send("GET", &path, &[("if-none-match", "*")], b"").await);
        }
    }
    assert_eq!(refusals.len(), 1, "whether a key exists makes no difference: {refusals:?}");
    assert_eq!(refusals.first().unwrap().0, 403);
    assert_eq!(world.host.key("openai").await, "canary-openai");
}

#[tokio::test]
async fn every_letter_of_a_key_comes_back() {
    let world = World::new().await;
    let longest = "canary-".repeat(10_000)[..64 * 1024].to_owned();
    for key in [
        "-----BEGIN PRIVATE KEY-----\n\tcanary==\n-----END PRIVATE KEY-----\n",
        " canary with \"quotes\" \\ and spaces ",
        "Schlüssel-ß-✓-𝄞",
        "\n",
        &longest,
        "refresh token, refresh-token",
    ] {
        world.host.set("x", key).await;
        assert_eq!(world.host.key("x").await, key);
    }
}

#[tokio::test]
async fn a_key_that_could_not_leave_is_refused_and_not_quoted() {
    let world = World::new().await;
    world.host.set("x", "canary-before").await;
    let long = "canary-".repeat(10_000);
    let far = "canary-".repeat(40_000);
    for (bad, status) in [
        (json!({"api_key": ""}), 400),
        (json!({"api_key": "canary-\r\n"}), 400),
        (json!({"api_key": "canary-\rrefresh_token"}), 400),
        (json!({"api_key": "canary-\u{0}"}), 400),
        (json!({"api_key": "canary-\u{1b}[2J"}), 400),
        (json!({"api_key": "canary-\u{85}"}), 400),
        (json!({"api_key": "canary-Refresh_Token-1"}), 400),
        (json!({"api_key": &long}), 400),
        (json!({"api_key": far}), 413),
        (json!({"api_key": null}), 400),
        (json!({"api_key": 7}), 400),
        (json!({"api_key": ["canary-"]}), 400),
        (json!({"api_key": "canary-", "name": "x"}), 400),
        (json!({"apikey": "canary-"}), 400),
        (json!("canary-"), 400),
        (json!({}), 400),
    ] {
        let answer = world.host.put("/v1/api-keys/x", &bad).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, "INVALID_REQUEST"));
        assert!(!String::from_utf8_lossy(&answer.body).contains("canary"), "{}", answer.json());
    }
    assert_eq!(world.host.key("x").await, "canary-before");
}

#[tokio::test]
async fn no_key_gives_a_refresh_token_away_whichever_comes_first() {
    let world = World::new().await;
    let grant = world.grant();
    let secret = grant["refresh_token"].as_str().unwrap().to_owned();
    world.host.put("/v1/tokens/corp?bucket=new", &grant).await;
    for key in [secret.clone(), format!("Bearer {secret}\n")] {
        let refused = world.host.set("mine", &key).await;
        assert_eq!((refused.status, refused.code().as_str()), (400, "INVALID_REQUEST"));
    }
    world.host.delete("/v1/tokens/corp?bucket=new").await;
    world.host.set("mine", "canary-key-1\"").await;
    for refresh_token in ["canary-key-1\"", "canary-key-1", "canary-key-1\\\""] {
        let grant = json!({"access_token": "canary-at-9", "refresh_token": refresh_token});
        let refused = world.host.put("/v1/tokens/corp?bucket=new", &grant).await;
        assert_eq!((refused.status, refused.code().as_str()), (400, "INVALID_REQUEST"), "{refresh_token}");
    }
    world.host.delete("/v1/api-keys/mine").await;
    let grant = json!({"access_token": "canary-at-9", "refresh_token": "canary-key-1"});
    assert_eq!(world.host.put("/v1/tokens/corp?bucket=new", &grant).await.status, 201);
}

/// A provider chooses its refresh tokens, and must not choose who can store which key.
#[tokio::test]
async fn a_short_refresh_token_keeps_nobody_from_storing_a_key() {
    let world = World::new().await;
    let grant = |refresh_token: &str| json!({"access_token": "at9", "refresh_token": refresh_token});
    for short in ["-", "e", "canary-key-"] {
        let stored = world.host.put("/v1/tokens/corp?bucket=new", &grant(short)).await;
        assert_eq!(stored.status, if short == "-" { 201 } else { 204 });
        assert!(world.host.set("mine", "canary-key-1").await.status < 300, "{short}");
        let refused = world.host.set("mine", short).await;
        assert_eq!((refused.status, refused.code().as_str()), (400, "INVALID_REQUEST"), "{short}");
    }
    let refused = world.host.put("/v1/tokens/corp?bucket=new", &grant("canary-key-1")).await;
    assert_eq!((refused.status, refused.code().as_str()), (400, "INVALID_REQUEST"));
}

#[tokio::test]
async fn bad_requests_are_refused_and_touch_nothing() {
    let world = World::new().await;
    let before = world.host.set("x", "canary-x").await.etag();
    let body = json!({"api_key": "canary-y"}).to_string();
    for (method, target, headers, body, status) in [
        ("GET", "/v1/api-keys?name=x", vec![], "", 400),
        ("GET", "/v1/api-keys/x?bucket=y", vec![], "", 400),
        ("GET", "/v1/api-keys/x", vec![("if-none-match", "x")], "", 400),
        ("GET", "/v1/api-keys/.x", vec![], "", 400),
        ("GET", "/v1/api-keys/a%2Fb", vec![], "", 400),
        ("GET", "/v1/api-keys/%ff", vec![], "", 400),
        ("GET", "/v1/api-keys/my_refresh_token", vec![], "", 400),
        ("PUT", "/v1/api-keys/x?if=1", vec![JSON], &body, 400),
        ("PUT", "/v1/api-keys/x", vec![JSON, ("if-match", "W/\"x\"")], &body, 400),
        ("PUT", "/v1/api-keys/x", vec![("content-type", "text/plain")], &body, 415),
        ("PUT", "/v1/api-keys/x", vec![JSON], "", 400),
        ("DELETE", "/v1/api-keys/x?revoke=true", vec![], "", 400),
        ("DELETE", "/v1/api-keys/x", vec![("if-match", "x")], "", 400),
        ("POST", "/v1/api-keys/x", vec![JSON], &body, 405),
        ("POST", "/v1/api-keys", vec![JSON], &body, 405),
    ] {
        let answer = world.host.send(method, target, &headers, body.as_bytes()).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, "INVALID_REQUEST"), "{method} {target}");
    }
    assert_eq!(world.host.get("/v1/api-keys/x").await.etag(), before);
}

/// A room of keys alone, and the store below it.
fn room() -> (Arc<MemoryStore>, Keys) {
    let store = Arc::new(MemoryStore::new().unwrap());
    let keys = Keys::new(Arc::<MemoryStore>::clone(&store), Arc::new(SystemClock::new()));
    (store, keys)
}

fn name(text: &str) -> KeyName {
    text.parse().unwrap()
}

fn secret(text: &str) -> ApiKey {
    ApiKey::new(text.into()).unwrap()
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_stop_the_change() {
    let (_, keys) = room();
    assert!(keys.put(&name("a"), secret("canary"), Expect::Whatever).now_or_never().is_none());
    keys.shut_down().await;
    assert!(keys.get(&name("a")).await.is_ok());
    assert!(keys.delete(&name("a"), Expect::Whatever).now_or_never().is_none());
    keys.shut_down().await;
    assert!(matches!(keys.get(&name("a")).await, Err(KeyError::NotFound)));
}

#[tokio::test]
async fn a_content_that_is_no_key_is_unreadable_and_hides_no_other() {
    let (store, keys) = room();
    keys.put(&name("good"), secret("canary"), Expect::Whatever).await.unwrap();
    let impossible = ("canary\r", Timestamp::from_secs(1));
    for (at, content) in [("bad", Item::new(&"canary")), ("worse", Item::new(&impossible))] {
        let (at, content) = (name(at), content.unwrap());
        store.put_item(ItemKind::ApiKey, &at.clone().into(), &content, &Expect::Whatever).await.unwrap();
        assert!(matches!(keys.get(&at).await, Err(KeyError::Store(StoreError::UnreadableItem { .. }))));
    }
    let readable: Vec<_> = keys.list().await.unwrap().iter().map(|key| key.created_at.is_some()).collect();
    assert_eq!(readable, [false, true, false]);
    keys.delete(&name("bad"), Expect::Present).await.unwrap();
}

#[tokio::test]
async fn a_refresh_token_is_found_in_the_key_and_in_what_json_makes_of_it() {
    let (_, keys) = room();
    keys.put(&name("a"), secret("one-twelve\ntwo-twelve"), Expect::Whatever).await.unwrap();
    for (text, found) in
        [("elve\\ntwo-twelve", true), (r"twelve\ntwo-t", true), ("two-twelve-more", false), ("two-twelve", false)]
    {
        let refresh_token = RefreshToken::new(text.into()).unwrap();
        assert_eq!(keys.reveal(&refresh_token).await.unwrap(), found, "{text}");
    }
}

#[tokio::test]
async fn each_change_of_another_process_is_seen_at_once() {
    let (store, keys) = room();
    let others = Keys::new(Arc::new(store.second_owner()), Arc::new(SystemClock::new()));
    others.put(&name("a"), secret("canary"), Expect::Whatever).await.unwrap();
    let tag = keys.get(&name("a")).await.unwrap().tag;
    others.put(&name("a"), secret("canary"), Expect::OneOf(vec![tag])).await.unwrap();
    assert_ne!(keys.get(&name("a")).await.unwrap().tag, tag);
}
