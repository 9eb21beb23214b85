//! What a sandbox can find out of what it is not allowed: no list, no text, no header, no condition tells of it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::sandbox_boundary::{ACCOUNTS, API_KEYS, JSON, World, token, told};

/// Far less than a long poll's minute.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Nothing that names what the socket may not know of.
fn assert_silent(text: &str) {
    for name in ["work", "other", "former", "deploy", "nowhere"] {
        assert!(!text.contains(name), "{name}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lists_are_of_what_is_allowed_alone() {
    let world = World::new().await;
    let names = |list: &Value, name: &str| -> Vec<String> {
        list.as_array().unwrap().iter().map(|one| one[name].as_str().unwrap().to_owned()).collect()
    };
    for socket in ["all", "read", "both"] {
        let tokens = world.get(socket, "/v1/tokens", &[]).await;
        let list = &tokens.json()["tokens"];
        assert_eq!(
            (names(list, "provider"), names(list, "bucket")),
            (vec!["corp".into(), "pool".into()], vec!["default".into(), "a".into()],)
        );
        let providers = world.get(socket, "/v1/providers", &[]).await;
        let list = &providers.json()["providers"];
        assert_eq!(names(list, "name"), ["corp", "pool"]);
        assert_eq!((&list[0]["buckets"], &list[1]["buckets"]), (&json!(["default"]), &json!(["a"])));
    }
    for socket in ["all", "keys"] {
        let keys = world.get(socket, "/v1/api-keys", &[]).await;
        assert_eq!(names(&keys.json()["api_keys"], "name"), ["openai"]);
    }
    for socket in ["none", "login", "all"] {
        assert_eq!(world.get(socket, "/v1/health", &[]).await.text(), r#"{"status":"ok"}"#);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_error_says_more_than_that_it_may_not() {
    let world = World::new().await;
    let all = world.socket("all");
    for (method, target, body) in [
        ("GET", "/v1/tokens/other", ""),
        ("GET", "/v1/tokens/corp?bucket=work", ""),
        ("GET", "/v1/tokens/other?min_validity=x", ""),
        ("GET", "/v1/tokens/other?bukcet=work", ""),
        ("GET", "/v1/tokens/other?bucket=%00", ""),
        ("POST", "/v1/tokens/former/refresh", ""),
        ("POST", "/v1/tokens/other/refresh", "[]"),
        ("PUT", "/v1/tokens/other", "{}"),
        ("PUT", "/v1/api-keys/deploy", "{}"),
        ("GET", "/v1/api-keys/deploy", ""),
        ("GET", "/v1/api-keys/deploy?x=nowhere", ""),
        ("POST", "/v1/logins", r#"{"provider": "other", "bucket": "work", "flow": "deploy"}"#),
        ("POST", "/v1/logins", r#"{"provider": "other", "bucket": "work"}"#),
        ("POST", "/v1/logins", r#"{"provider": "other", "work": "work"}"#),
        ("GET", "/other/work", ""),
        ("PATCH", "/v1/tokens/other", ""),
    ] {
        let answer = world.ask(&all, method, target, &[JSON], body).await;
        assert!((400..500).contains(&answer.status), "{method} {target}");
        assert_silent(&format!("{:?} {}", answer.headers, answer.text()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_account_s_entity_tag_is_as_good_as_one_that_was_made_up() {
    let world = World::new().await;
    let (all, before) = (world.socket("all"), world.state().await);
    let tag_of = async |target: &str| world.host("GET", target, &Value::Null).await.header("etag").unwrap().to_owned();
    // Another's, and one with other digits in it.
    let made_up = |tag: &str| tag.chars().map(|it| if it.is_ascii_digit() { '7' } else { it }).collect::<String>();
    for account in ACCOUNTS.iter().filter(|account| account.exists && !account.allowed) {
        let tag = tag_of(&token(account)).await;
        let mut told_of = Vec::new();
        for tag in [tag.clone(), made_up(&tag)] {
            // For its own account, and for the other one itself.
            let (own, another) = ("/v1/tokens/corp".to_owned(), token(account));
            let refresh = another.replace('?', "/refresh?");
            let mut answers = Vec::new();
            for (method, target) in [("POST", "/v1/tokens/corp/refresh"), ("POST", &refresh), ("PUT", &own)] {
                let answer = world.ask(&all, method, target, &[JSON, ("if-match", &tag)], "{}").await;
                assert!([403, 412].contains(&answer.status), "{method} {target} {tag}: {}", answer.text());
                answers.push(told(&answer));
            }
            for target in [&own, &another] {
                let headers = [("if-none-match", tag.as_str()), ("prefer", "wait=60")];
                let answer = timeout(AT_ONCE, world.get("all", target, &headers)).await;
                let answer = answer.unwrap_or_else(|_| panic!("{target} waits for {tag}"));
                assert_eq!(answer.status, if *target == own { 200 } else { 403 }, "{target} {tag}");
                answers.push(told(&answer));
            }
            told_of.push(answers);
        }
        assert_eq!(told_of[0], told_of[1], "{}/{}", account.provider, account.bucket);
    }
    for key in API_KEYS.iter().filter(|key| key.exists && !key.allowed) {
        let tag = tag_of(&format!("/v1/api-keys/{}", key.provider)).await;
        for (target, status) in
            [("/v1/api-keys/openai".to_owned(), 200), (format!("/v1/api-keys/{}", key.provider), 403)]
        {
            let answers = [tag.clone(), made_up(&tag)].map(async |tag| {
                let answer = world.get("all", &target, &[("if-none-match", &tag)]).await;
                assert_eq!(answer.status, status, "{target} {tag}");
                told(&answer)
            });
            let [real, invented] = answers;
            assert_eq!(real.await, invented.await, "{target}");
        }
    }
    assert_eq!(world.state().await, before);
}
