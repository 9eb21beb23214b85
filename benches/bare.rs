//! The limit that credproxy is measured beside: a bare axum server on a Unix socket that knows one answer.
//!
//! `bare SOCKET ANSWER`. The file ANSWER holds the fields of the answer's head, one a line, an empty line, and the body.

use std::{env, error::Error, fs};

use axum::{Router, body::Body, response::Response, routing::get};
use http::{HeaderName, HeaderValue};
use tokio::net::UnixListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [socket, answer] = arguments.as_slice() else { return Err("usage: bare SOCKET ANSWER".into()) };
    let answer = fs::read_to_string(answer)?;
    let (head, body) = answer.split_once("\n\n").ok_or("the answer has no empty line")?;
    let head = head.lines().map(field).collect::<Result<Vec<_>, _>>()?;
    let body = axum::body::Bytes::from(body.to_owned());
    let respond = async move || {
        let mut response = Response::new(Body::from(body.clone()));
        for (name, value) in &head {
            response.headers_mut().insert(name.clone(), value.clone());
        }
        response
    };
    let router = Router::new().route("/v1/tokens/{provider}", get(respond));
    Ok(axum::serve(UnixListener::bind(socket)?, router).await?)
}

fn field(line: &str) -> Result<(HeaderName, HeaderValue), Box<dyn Error>> {
    let (name, value) = line.split_once(": ").ok_or("a field has no colon")?;
    Ok((name.parse()?, value.parse()?))
}
