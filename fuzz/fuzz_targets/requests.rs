//! Whole requests, one after the other, on the API in process. An input is lines:
//!
//! - `H GET /v1/tokens/corp` or `S …`: a request on the host's or the sandbox's socket, sent before the next one;
//! - `name: value`: a header of it; `%E` is the last entity tag seen;
//! - `= …`: its body; `%N` is a new refresh token;
//! - `< 200{…}`, `< lost`, `< timeout`, `< unsent`: the provider's next answer; `%P` is what was presented;
//! - `~ -3600000`: the wall clock jumps, in milliseconds.

#![no_main]

use fuzz::{
    MARK, holds,
    world::{Ask, Socket, World, run},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use libfuzzer_sys::fuzz_target;

const MOST_REQUESTS: usize = 12;

fn request(socket: Socket, line: &[u8]) -> Option<Ask> {
    let (method, target) = line.split_at(line.iter().position(|byte| *byte == b' ')?);
    Some(Ask {
        socket,
        method: Method::from_bytes(method).ok()?,
        target: Uri::try_from(target.trim_ascii()).ok()?,
        headers: HeaderMap::new(),
        body: Vec::new(),
    })
}

fn header(line: &[u8], tag: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':')?);
    let value = value[1..].trim_ascii();
    let value = match value.iter().position(|byte| *byte == b'%') {
        Some(at) if value[at..].starts_with(b"%E") => [&value[..at], tag.as_bytes(), &value[at + 2..]].concat(),
        _ => value.to_vec(),
    };
    Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(&value).ok()?))
}

async fn play(input: &[u8]) {
    let world = World::new().await;
    let mut tag = format!("\"{}\"", world.tag(&fuzz::corp()).await.unwrap());
    let mut next: Option<Ask> = None;
    let mut left = MOST_REQUESTS;
    for line in input.split(|byte| *byte == b'\n').chain([&b"H"[..]]) {
        match line {
            [b'<', b' ', answer @ ..] => world.script(answer),
            [b'~', millis @ ..] => {
                let millis = std::str::from_utf8(millis).ok().and_then(|millis| millis.trim().parse().ok());
                world.jump(millis.unwrap_or(0));
            }
            [b'=', body @ ..] => {
                if let Some(ask) = &mut next {
                    ask.body = body.trim_ascii().to_vec();
                }
            }
            [b'H' | b'S', ..] => {
                if let Some(ask) = next.take() {
                    tag = world.ask(ask).await.etag.unwrap_or(tag);
                    left -= 1;
                }
                if left == 0 {
                    break;
                }
                let socket = if line[0] == b'H' { Socket::Host } else { Socket::Sandbox };
                next = request(socket, line.get(2..).unwrap_or_default());
            }
            line => {
                if let (Some(ask), Some((name, value))) = (&mut next, header(line, &tag)) {
                    ask.headers.append(name, value);
                }
            }
        }
    }
    world.end().await;
}

fuzz_target!(|input: &[u8]| {
    // Who knows a secret can send it, and would find it in the answer.
    if !holds(input, MARK) {
        run(play(input));
    }
});
