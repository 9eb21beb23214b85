//! Entity tags, and the headers that hold them: `%E` is the current tag with its quotes, `%T` without.

#![no_main]

use credproxy::refresh::condition::{Tag, tag};
use fuzz::{
    corp, holds,
    world::{Ask, Socket, World, run},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use libfuzzer_sys::fuzz_target;

fn ask(method: Method, name: HeaderName, values: &[HeaderValue]) -> Ask {
    let target =
        Uri::from_static(if method == Method::POST { "/v1/tokens/corp/refresh" } else { "/v1/tokens/corp" });
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(&name, value.clone());
    }
    Ask { socket: Socket::Host, method, target, headers, body: Vec::new() }
}

async fn play(text: &str) {
    let world = World::new().await;
    let current = world.tag(&corp()).await.unwrap();
    let text = text.replace("%E", &format!("\"{current}\"")).replace("%T", &current);
    match Tag::parse(&text) {
        Tag::Ours(account, version) => assert_eq!(*tag(&account, version), text),
        Tag::Foreign => assert_ne!(text, current),
    }
    let values: Vec<_> = text.split('\n').filter_map(|line| HeaderValue::from_str(line).ok()).collect();
    let sent: Vec<_> = values.iter().map(|value| value.as_bytes().trim_ascii()).collect();
    let named = values.is_empty() || sent == [b"*"] || sent.iter().any(|value| holds(value, &format!("\"{current}\"")));

    let answer = world.ask(ask(Method::GET, header::IF_NONE_MATCH, &values)).await;
    assert!([200, 304, 400].contains(&answer.status) && (answer.status != 304 || named && !values.is_empty()));
    world.script(br#"200{"access_token": "at", "refresh_token": "%N"}"#);
    let answer = world.ask(ask(Method::POST, header::IF_MATCH, &values)).await;
    assert!([200, 400, 412].contains(&answer.status), "{}", answer.status);
    let refreshed = world.tag(&corp()).await.unwrap() != current;
    assert_eq!(refreshed, answer.status == 200 && named, "{}", answer.status);
    let answer = world.ask(ask(Method::DELETE, header::IF_MATCH, &values)).await;
    assert!([200, 400, 412].contains(&answer.status), "{}", answer.status);
    let gone = world.tag(&corp()).await.is_none();
    assert_eq!(gone, answer.status == 200);
    assert!(!gone || named);
    world.end().await;
}

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = std::str::from_utf8(input) {
        run(play(text));
    }
});
