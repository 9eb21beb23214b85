//! `openapi.yaml` is whole and agrees with itself, and the check of exchanges against it can fail.

use std::collections::BTreeSet;

use crate::support::contract::{Contract, Exchange, examples, parsed, resolved, valid, validator};
use credproxy::policy::Operation;
use serde_json::{Value, json};

const TEXT: &str = include_str!("../../openapi.yaml");
const PROBLEM: &str = "application/problem+json";

/// The document, references and all.
fn written() -> Value {
    parsed(TEXT).unwrap()
}

/// The document without references.
fn document() -> Value {
    resolved(&written()).unwrap()
}

/// Every value in the document with its place.
fn everything(value: &Value) -> Vec<(String, &Value)> {
    fn walk<'a>(value: &'a Value, place: &str, found: &mut Vec<(String, &'a Value)>) {
        found.push((place.to_owned(), value));
        for (name, inner) in value.as_object().into_iter().flatten() {
            walk(inner, &format!("{place}/{name}"), found);
        }
        for (index, inner) in value.as_array().into_iter().flatten().enumerate() {
            walk(inner, &format!("{place}/{index}"), found);
        }
    }
    let mut found = Vec::new();
    walk(value, "", &mut found);
    found
}

/// Every operation with its method and path; the path's parameters are among its own.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let mut item = item.as_object().unwrap().clone();
        let shared = item.remove("parameters").unwrap_or_else(|| json!([]));
        for (method, mut operation) in item {
            let own = operation["parameters"].as_array().cloned().unwrap_or_default();
            operation["parameters"] = shared.as_array().unwrap().iter().cloned().chain(own).collect();
            found.push((method.to_uppercase(), path.clone(), operation));
        }
    }
    found
}

/// Every answer of every operation: where it stands, its status, and the answer.
fn answers(document: &Value) -> Vec<(String, u16, Value)> {
    let mut found = Vec::new();
    for (method, path, operation) in operations(document) {
        for (status, answer) in operation["responses"].as_object().unwrap() {
            let status = status.parse().unwrap_or_else(|_| panic!("{method} {path} answers {status}"));
            found.push((format!("{method} {path} {status}"), status, answer.clone()));
        }
    }
    found
}

#[test]
fn the_document_is_openapi_3_0_3_and_every_reference_leads_somewhere() {
    let written = written();
    assert_eq!(written["openapi"], "3.0.3");
    let mut count = 0;
    for (place, value) in everything(&written) {
        if let Some(reference) = value.get("$ref") {
            let pointer =
                reference.as_str().unwrap().strip_prefix('#').unwrap_or_else(|| panic!("{place}: {reference}"));
            assert!(written.pointer(pointer).is_some(), "{place}: {reference}");
            assert_eq!(value.as_object().unwrap().len(), 1, "{place}: what stands beside a reference is ignored");
            count += 1;
        }
    }
    assert!(count > 100, "{count}");
}

#[test]
fn a_reference_that_leads_nowhere_or_to_itself_is_noticed() {
    assert!(resolved(&json!({"a": {"$ref": "#/b"}})).unwrap_err().contains("leads nowhere"));
    assert!(resolved(&json!({"a": {"$ref": "other.yaml#/b"}})).unwrap_err().contains("leads nowhere"));
    assert!(resolved(&json!({"a": {"$ref": "#/a"}})).unwrap_err().contains("refers to itself"));
}

#[test]
fn every_example_is_what_its_schema_asks_for() {
    let document = document();
    let mut count = 0;
    for (place, holder) in everything(&document).into_iter().filter(|(_, value)| value.get("schema").is_some()) {
        let validator = validator(&holder["schema"]).unwrap_or_else(|error| panic!("{place}: {error}"));
        let shown = examples(holder).inspect(|example| {
            valid(&validator, example).unwrap_or_else(|error| panic!("{place}: {error}"));
        });
        let shown = shown.count();
        assert!(shown > 0, "{place} has no example");
        count += shown;
    }
    assert!(count > 100, "{count}");
}

#[test]
fn every_operation_has_an_id_a_tag_and_the_refusals_that_any_may_give() {
    let document = document();
    let tags: BTreeSet<_> =
        document["tags"].as_array().unwrap().iter().map(|tag| tag["name"].clone().to_string()).collect();
    let mut used = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for (method, path, operation) in operations(&document) {
        let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path}"));
        assert!(ids.insert(id.to_owned()), "{id} is there twice");
        assert_eq!(operation["tags"].as_array().map(Vec::len), Some(1), "{id}");
        used.insert(operation["tags"][0].to_string());
        for status in ["400", "429", "500"] {
            assert!(operation["responses"].get(status).is_some(), "{id} never answers {status}");
        }
    }
    assert_eq!(used, tags);
    let expected = [
        "cancelLogin",
        "createSandbox",
        "deleteApiKey",
        "deleteSandbox",
        "deleteToken",
        "finishLogin",
        "getApiKey",
        "getLogin",
        "getSandbox",
        "getToken",
        "health",
        "listApiKeys",
        "listProviders",
        "listSandboxes",
        "listTokens",
        "openapi",
        "putApiKey",
        "putToken",
        "refreshToken",
        "renameToken",
        "startLogin",
    ];
    assert!(ids.iter().eq(expected), "{ids:?}");
}

#[test]
fn every_operation_says_who_may_ask_for_it() {
    for (method, path, operation) in operations(&document()) {
        let said = operation["x-credproxy-allow"].as_str().unwrap_or_else(|| panic!("{method} {path}"));
        let known = ["host", "any"].contains(&said) || said.parse::<Operation>().is_ok();
        assert!(known, "{method} {path}: {said}");
        // Who may be refused is told so.
        assert!(operation["responses"].get("403").is_some(), "{method} {path}");
    }
}

#[test]
fn the_parameters_of_a_path_are_those_in_its_template() {
    for (method, path, operation) in operations(&document()) {
        let parameters = operation["parameters"].as_array().unwrap();
        let declared: Vec<_> = parameters.iter().filter(|one| one["in"] == "path").collect();
        assert!(declared.iter().all(|one| one["required"] == true), "{method} {path}");
        let names: Vec<_> = declared.iter().map(|one| format!("{{{}}}", one["name"].as_str().unwrap())).collect();
        let template: Vec<_> = path.split('/').filter(|part| part.starts_with('{')).collect();
        assert_eq!(names, template, "{method} {path}");
    }
}

#[test]
fn every_refusal_is_the_one_problem_with_its_own_status() {
    let document = document();
    let problem = &document["components"]["schemas"]["Problem"];
    let mut answers = answers(&document);
    for (name, answer) in document["components"]["responses"].as_object().unwrap().clone() {
        let status = examples(&answer["content"][PROBLEM]).next().map_or(200, |one| one["status"].as_u64().unwrap());
        answers.push((name, u16::try_from(status).unwrap(), answer));
    }
    for (place, status, answer) in answers {
        // Health has an answer of its own for "not well".
        if status < 400 || place == "GET /v1/health 503" {
            assert!(answer["content"].get(PROBLEM).is_none(), "{place}");
            continue;
        }
        assert_eq!(answer["content"].as_object().unwrap().len(), 1, "{place}");
        let media = &answer["content"][PROBLEM];
        assert_eq!(media["schema"], *problem, "{place}");
        assert!(examples(media).all(|example| example["status"] == status), "{place}");
    }
}

#[test]
fn every_answer_names_its_headers() {
    for (place, status, answer) in answers(&document()) {
        let required = |name: &str| answer["headers"].get(name).map(|header| header["required"] == true);
        assert_eq!(required("Cache-Control"), Some(true), "{place}");
        assert_eq!(required("WWW-Authenticate"), (status == 401).then_some(true), "{place}");
        let login = place.contains(" /v1/logins");
        let retry = match status {
            429 => Some(true),
            // A failed login is over.
            502 if login => None,
            502..=504 if place != "GET /v1/health 503" => Some(false),
            _ => None,
        };
        assert_eq!(required("Retry-After"), retry, "{place}");
        let content = answer["content"].to_string();
        let state = content.contains("\"access_token\"") || content.contains("\"api_key\"");
        // What is gone or goes elsewhere has no state; a login and a sandbox have none that a request could ask for.
        let stateless = login
            || [" /v1/sandboxes", "/rename "].iter().any(|part| place.contains(part))
            || place.starts_with("DELETE ");
        let tagged = (state || matches!(status, 201 | 204 | 304)) && !stateless;
        assert_eq!(required("ETag"), tagged.then_some(true), "{place}");
        assert_eq!(required("Location"), (status == 201).then_some(true), "{place}");
    }
}

#[test]
fn every_code_is_answered_somewhere() {
    let document = document();
    let shown = answers(&document).into_iter().flat_map(|(_, _, answer)| {
        examples(&answer["content"][PROBLEM]).map(|one| one["code"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    });
    assert_eq!(shown.collect::<BTreeSet<_>>(), Contract::load().error_codes());
}

#[test]
fn the_contract_lists_the_operations_of_the_document() {
    let listed: BTreeSet<_> = Contract::load().operations().into_iter().collect();
    let written = operations(&document()).into_iter().map(|(method, path, operation)| {
        let id = operation["operationId"].as_str().unwrap().to_owned();
        (method, path, id)
    });
    assert_eq!(listed, written.collect());
}

#[test]
fn every_documented_exchange_passes() {
    for (method, path, operation) in operations(&document()) {
        let request = request_of(&path, &operation);
        for (status, answer) in operation["responses"].as_object().unwrap() {
            for (headers, body) in documented(answer) {
                let talk = Talk {
                    method: method.clone(),
                    status: status.parse().unwrap(),
                    response_headers: headers,
                    response_body: body,
                    ..request.clone()
                };
                talk.check().unwrap();
            }
        }
    }
}

/// The request that the examples of an operation make.
fn request_of(path: &str, operation: &Value) -> Talk {
    let mut talk = Talk { target: path.to_owned(), ..Talk::default() };
    for parameter in operation["parameters"].as_array().unwrap() {
        let name = parameter["name"].as_str().unwrap();
        let value = plain(&parameter["example"]);
        match parameter["in"].as_str().unwrap() {
            "path" => talk.target = talk.target.replace(&format!("{{{name}}}"), &value),
            "query" => talk.target.extend([if talk.target.contains('?') { "&" } else { "?" }, name, "=", &value]),
            _ => talk.request_headers.push((name.to_owned(), value)),
        }
    }
    if let Some(example) = examples(&operation["requestBody"]["content"]["application/json"]).next() {
        talk.request_headers.push(("Content-Type".to_owned(), "application/json".to_owned()));
        talk.request_body = example.to_string();
    }
    talk
}

/// Headers and body of an answer, for each of its examples.
fn documented(answer: &Value) -> Vec<(Vec<(String, String)>, String)> {
    let headers = |example: &Value| -> Vec<_> {
        let all = answer["headers"].as_object().unwrap().iter();
        let sent = all.filter(|(name, _)| *name != "Retry-After" || example.get("retryAfter").is_some());
        sent.map(|(name, header)| {
            let value = example.get("retryAfter").filter(|_| name == "Retry-After").unwrap_or(&header["example"]);
            (name.clone(), plain(value))
        })
        .collect()
    };
    let Some((name, media)) = answer["content"].as_object().and_then(|content| content.iter().next()) else {
        return vec![(headers(&Value::Null), String::new())];
    };
    let media_type = name.replace('*', "json");
    let sent = examples(media).map(|example| {
        let mut headers = headers(example);
        headers.push(("Content-Type".to_owned(), media_type.clone()));
        (headers, plain(example))
    });
    sent.collect()
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// An exchange that owns its parts.
#[derive(Debug, Clone, Default)]
struct Talk {
    method: String,
    target: String,
    request_headers: Vec<(String, String)>,
    request_body: String,
    status: u16,
    response_headers: Vec<(String, String)>,
    response_body: String,
}

impl Talk {
    fn new(method: &str, target: &str, status: u16, media_type: &str, body: &Value) -> Self {
        let talk = Self { method: method.to_owned(), target: target.to_owned(), status, ..Self::default() };
        Self {
            response_body: body.to_string(),
            ..talk.with("Content-Type", media_type).with("Cache-Control", "no-store")
        }
    }

    /// A token, answered as it should be.
    fn token() -> Self {
        let body = json!({"access_token": "at", "token_type": "Bearer", "expiry": 1, "tenant": 7});
        Self::new("GET", "/v1/tokens/corp?bucket=a%2Bb&min_validity=60", 200, "application/json", &body)
            .with("ETag", "\"corp/a+b:0:1\"")
    }

    /// A refusal that asks to wait, answered as it should be.
    fn limited() -> Self {
        let body = json!({"type": "about:blank", "title": "Too Many Requests", "status": 429, "detail": "too soon",
            "code": "RATE_LIMITED", "retryAfter": 17});
        Self::new("POST", "/v1/tokens/corp/refresh", 429, PROBLEM, &body).with("Retry-After", "17")
    }

    /// A grant is put, and answered as it should be.
    fn put() -> Self {
        let talk =
            Self { method: "PUT".to_owned(), target: "/v1/tokens/corp".to_owned(), status: 204, ..Self::default() };
        let talk = talk.asked("Content-Type", "application/json; charset=utf-8").with("Cache-Control", "no-store");
        Self { request_body: json!({"access_token": "at", "scope": null, "x": [{}]}).to_string(), ..talk }
            .with("ETag", "\"corp/default:0:1\"")
    }

    /// A path or method that is not there, answered as it should be.
    fn elsewhere(method: &str, target: &str, status: u16, code: &str) -> Self {
        let body = json!({"type": "about:blank", "title": "x", "status": status, "detail": "x", "code": code});
        Self::new(method, target, status, PROBLEM, &body)
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.response_headers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.response_headers.retain(|(other, _)| other != name);
        self
    }

    fn asked(mut self, name: &str, value: &str) -> Self {
        self.request_headers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn member(mut self, name: &str, value: Value) -> Self {
        let mut body: Value = serde_json::from_str(&self.response_body).unwrap();
        body[name] = value;
        self.response_body = body.to_string();
        self
    }

    fn no_member(mut self, name: &str) -> Self {
        let mut body: Value = serde_json::from_str(&self.response_body).unwrap();
        body.as_object_mut().unwrap().remove(name);
        self.response_body = body.to_string();
        self
    }

    fn check(&self) -> Result<(), String> {
        Contract::load().check(&Exchange {
            method: &self.method,
            target: &self.target,
            request_headers: &self.request_headers,
            request_body: self.request_body.as_bytes(),
            status: self.status,
            response_headers: &self.response_headers,
            response_body: self.response_body.as_bytes(),
        })
    }

    #[track_caller]
    fn refused(&self, because: &str) {
        let fault = self.check().expect_err("the check let it pass");
        assert!(fault.contains(because), "{because:?} is not in {fault}");
    }
}

#[test]
fn right_exchanges_pass() {
    let head = Talk { method: "HEAD".to_owned(), response_body: String::new(), ..Talk::token() };
    let listed = Talk::elsewhere("DELETE", "/v1/tokens", 405, "INVALID_REQUEST").with("Allow", "GET,HEAD");
    for right in [
        Talk::token(),
        Talk::token().with("Date", "now").with("content-length", "1").with("connection", "close"),
        Talk::limited(),
        Talk::put(),
        head,
        listed,
        Talk::elsewhere("GET", "/", 404, "NOT_FOUND"),
        Talk::elsewhere("GET", "/v1/tokens/corp/", 404, "NOT_FOUND"),
        Talk::elsewhere("GET", "/nowhere", 400, "INVALID_REQUEST"),
    ] {
        right.check().unwrap();
    }
}

#[test]
fn an_answer_that_the_document_does_not_have_is_refused() {
    Talk { status: 202, ..Talk::token() }.refused("does not answer 202");
    Talk { status: 500, ..Talk::token() }.refused("the document does not name the header etag");
    Talk { response_body: String::new(), ..Talk::token() }.refused("is not JSON");
    Talk { response_body: "at".to_owned(), ..Talk::token() }.refused("is not JSON");
    Talk { response_body: "x".to_owned(), ..Talk::put() }.refused("a body where none belongs");
    Talk { method: "HEAD".to_owned(), ..Talk::token() }.refused("a body where none belongs");
    Talk::token().without("Content-Type").refused("one content-type is due");
    Talk::token().without("Content-Type").with("content-type", "text/html").refused("has no text/html");
    Talk::put().with("content-type", "application/json").refused("has no application/json");
    Talk::token().with("content-type", "application/json").refused("one content-type is due");
}

#[test]
fn a_header_that_is_missing_wrong_doubled_or_unknown_is_refused() {
    Talk::token().without("ETag").refused("header etag: is missing");
    Talk::token().without("ETag").with("etag", "W/\"x\"").refused("header etag");
    Talk::token().with("ETag", "\"y\"").refused("more than once");
    Talk::token().with("X-Powered-By", "us").refused("does not name the header x-powered-by");
    Talk::token().without("Cache-Control").refused("may be stored");
    Talk::token().without("Cache-Control").with("Cache-Control", "no-cache").refused("may be stored");
    Talk::elsewhere("DELETE", "/v1/tokens", 405, "INVALID_REQUEST").refused("header allow: is missing");
    let dead = Talk::elsewhere("GET", "/v1/tokens/corp", 401, "REAUTH_REQUIRED");
    dead.refused("header www-authenticate: is missing");
    let challenge = |realm: &str| format!("Credproxy realm=\"{realm}\", error=\"reauth_required\"");
    dead.clone().with("WWW-Authenticate", &challenge("corp")).refused("header www-authenticate");
    dead.with("WWW-Authenticate", &challenge("corp/default")).check().unwrap();
}

#[test]
fn a_member_that_is_missing_wrong_or_unknown_is_refused() {
    Talk::token().no_member("access_token").refused("access_token");
    Talk::token().member("expiry", json!("soon")).refused("at \"/expiry\"");
    Talk::token().member("expiry", Value::Null).refused("at \"/expiry\"");
    Talk::token().member("authed_user", json!({"id": 1})).refused("at \"/authed_user\"");
    Talk::limited().member("instance", json!("x")).refused("instance");
    Talk::limited().no_member("code").refused("code");
}

#[test]
fn a_problem_that_contradicts_itself_is_refused() {
    Talk::limited().member("retryAfter", json!(18)).refused("the header Retry-After says");
    Talk::limited().no_member("retryAfter").refused("the header Retry-After says");
    Talk::limited().without("Retry-After").refused("header retry-after: is missing");
    Talk::limited().without("Retry-After").with("Retry-After", "soon").refused("header retry-after");
    Talk::limited().without("Retry-After").with("Retry-After", "0").refused("header retry-after");
    Talk::limited().member("status", json!(503)).refused("the problem's status is 503");
    Talk::limited().member("code", json!("NOT_FOUND")).refused("no example has the code");
    Talk::limited().member("code", json!("OTHER")).refused("at \"/code\"");
    let store = Talk::elsewhere("GET", "/v1/tokens", 503, "STORE_UNAVAILABLE");
    store.check().unwrap();
    store.member("retryAfter", json!(1)).refused("the header Retry-After says");
}

#[test]
fn an_answer_that_gives_a_secret_away_is_refused() {
    Talk::token().member("Refresh_Token", json!("x")).refused("holds the text that never leaves");
    Talk::limited().member("detail", json!("bad REFRESH_TOKEN")).refused("holds the text that never leaves");
    Talk::token().with("X-Refresh_token", "x").refused("holds the text that never leaves");
    Talk::token().member("access_token", json!("at-canary-rt-1")).refused("holds a refresh token");
    Talk::token().without("ETag").with("ETag", "\"Canary-RT-1\"").refused("holds a refresh token");
    let document = Talk {
        response_body: TEXT.to_owned(),
        ..Talk::new("GET", "/openapi.yaml", 200, "application/yaml", &json!({}))
    };
    document.check().unwrap();
    Talk { response_body: "canary-rt-1".to_owned(), ..document }.refused("holds a refresh token");
}

#[test]
fn a_request_that_should_not_have_been_granted_is_refused() {
    let at = |target: &str| Talk { target: target.to_owned(), ..Talk::token() };
    at("/v1/tokens/corp?bukcet=a").refused("the query parameter \"bukcet\" is not in the document");
    at("/v1/tokens/corp?bucket=a&bucket=a").refused("more than once");
    at("/v1/tokens/corp?bucket=a%2Fb").refused("the parameter bucket was granted");
    at("/v1/tokens/corp?min_validity=1.5").refused("the parameter min_validity was granted");
    at("/v1/tokens/corp?min_validity=-1").refused("the parameter min_validity was granted");
    at("/v1/tokens/a%2Fb").refused("the parameter provider was granted");
    Talk::token().asked("if-none-match", "x").refused("the parameter If-None-Match was granted");
    Talk::put().asked("If-Match", "W/\"x\"").refused("the parameter If-Match was granted");
    Talk::put().asked("If-Match", "\"x\"").asked("if-match", "\"y\", \"z\"").check().unwrap();
    Talk { request_body: "{}".to_owned(), ..Talk::put() }.refused("the body was granted");
    Talk { request_body: String::new(), ..Talk::put() }.refused("the body was granted");
    Talk { request_headers: vec![], ..Talk::put() }.refused("the body was granted");
    Talk { request_body: "{}".to_owned(), ..Talk::token() }.refused("the document has none");
    let refused = Talk::elsewhere("GET", "/v1/tokens/corp?bukcet=a", 400, "INVALID_REQUEST");
    refused.check().unwrap();
}

#[test]
fn an_answer_where_no_operation_is_is_held_to_the_problem_alone() {
    Talk { target: "/v1/token/corp".to_owned(), ..Talk::token() }.refused("no operation is here, so 404 is due");
    Talk::elsewhere("DELETE", "/v1/tokens", 404, "NOT_FOUND").refused("no operation is here, so 405 is due");
    Talk::elsewhere("GET", "/", 404, "REFRESH_FAILED").refused("no example has the code");
    Talk { response_body: "nothing".to_owned(), ..Talk::elsewhere("GET", "/", 404, "NOT_FOUND") }
        .refused("is not JSON");
}
