//! The contract as a judge: holds an HTTP exchange against `openapi.yaml`.
//!
//! Owns: the reading of the document, and [`Contract::check`].
//!
//! Invariants:
//! 1. What the document does not name is refused: a status, a media type, a member, a header, and in a request that
//!    was granted a parameter.
//! 2. No answer passes with the text `refresh_token` in it (but for the document itself), none with a marked refresh
//!    token, and none that may be stored.
//! 3. A problem's code is one of those that the document shows in the examples for its status.
//!
//! Must not know: the program. The document is all that it judges by.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::panic_any,
    sync::LazyLock,
};

use jsonschema::{Draft, Validator};
use serde_json::{Map, Value};
use url::form_urlencoded;

use super::http::Response;

pub(crate) const DOCUMENT: &str = include_str!("../../openapi.yaml");

/// What refresh tokens in tests begin with.
const CANARY: &str = "canary-rt-";

/// Where the text `refresh_token` may stand: in the document itself.
const DOCUMENT_PATH: &str = "/openapi.yaml";

/// What a refusal is.
const PROBLEM: &str = "application/problem+json";

/// Headers that HTTP itself brings along, and that no document names.
const STANDARD_HEADERS: [&str; 5] = ["connection", "content-length", "content-type", "date", "transfer-encoding"];

/// The document's schemas do not nest their references deeper than this; one that does refers to itself.
const DEEPEST_REFERENCE: usize = 16;

static CONTRACT: LazyLock<Contract> = LazyLock::new(|| match Contract::read(DOCUMENT) {
    Ok(contract) => contract,
    Err(error) => panic_any(format!("openapi.yaml: {error}")),
});

/// A request and its answer, header names in any case.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exchange<'a> {
    pub(crate) method: &'a str,
    /// Path and query as sent.
    pub(crate) target: &'a str,
    pub(crate) request_headers: &'a [(String, String)],
    pub(crate) request_body: &'a [u8],
    pub(crate) status: u16,
    pub(crate) response_headers: &'a [(String, String)],
    pub(crate) response_body: &'a [u8],
}

/// `openapi.yaml`, read.
pub(crate) struct Contract {
    operations: Vec<Operation>,
    /// The answers to what no operation is there for: an unknown path, a method that a path does not have.
    elsewhere: BTreeMap<u16, Answer>,
    codes: BTreeSet<String>,
}

struct Operation {
    method: String,
    template: String,
    id: String,
    parameters: Vec<Parameter>,
    body: Option<RequestBody>,
    answers: BTreeMap<u16, Answer>,
}

struct Parameter {
    name: String,
    place: String,
    field: Field,
}

struct RequestBody {
    required: bool,
    content: Content,
}

struct Answer {
    headers: BTreeMap<String, Field>,
    content: Content,
    /// The codes of the problems among the examples.
    codes: BTreeSet<String>,
}

/// A parameter or header: text on the wire, of a type in the document.
struct Field {
    required: bool,
    kind: String,
    validator: Validator,
}

/// Media types, or ranges of them, with what belongs in them.
struct Content(BTreeMap<String, Validator>);

impl Contract {
    /// The document at the project's top.
    pub(crate) fn load() -> &'static Self {
        &CONTRACT
    }

    fn read(text: &str) -> Result<Self, String> {
        let document = resolved(&parsed(text)?)?;
        let mut operations = Vec::new();
        for (template, item) in members(&document["paths"]) {
            let shared = list(&item["parameters"]);
            for (method, operation) in members(item).filter(|(name, _)| *name != "parameters") {
                let parameters = shared.iter().chain(list(&operation["parameters"]));
                operations.push(Operation {
                    method: method.to_uppercase(),
                    template: template.clone(),
                    id: text_of(operation, "operationId")?,
                    parameters: parameters.map(Parameter::read).collect::<Result<_, _>>()?,
                    body: operation.get("requestBody").map(RequestBody::read).transpose()?,
                    answers: members(&operation["responses"])
                        .map(|(status, answer)| Ok((number(status)?, Answer::read(answer)?)))
                        .collect::<Result<_, String>>()?,
                });
            }
        }
        let shared = &document["components"]["responses"];
        // A sandbox's capability is looked at before anything else is, and a connection's rate before that.
        let elsewhere = [
            (400, "InvalidRequest"),
            (403, "WrongCapability"),
            (404, "RouteNotFound"),
            (405, "MethodNotAllowed"),
            (429, "TooManyRequests"),
        ];
        let elsewhere = elsewhere
            .into_iter()
            .map(|(status, name)| Ok((status, Answer::read(&shared[name])?)))
            .collect::<Result<_, String>>()?;
        let codes = list(&document["components"]["schemas"]["ErrorCode"]["enum"]);
        let codes = codes.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        Ok(Self { operations, elsewhere, codes })
    }

    /// Method in capitals, path template, and operation id of every operation.
    pub(crate) fn operations(&self) -> Vec<(String, String, String)> {
        let line = |operation: &Operation| {
            let Operation { method, template, id, .. } = operation;
            (method.clone(), template.clone(), id.clone())
        };
        self.operations.iter().map(line).collect()
    }

    /// Every `code` that a problem may have.
    pub(crate) fn error_codes(&self) -> BTreeSet<String> {
        self.codes.clone()
    }

    /// Panics unless the answer to this request keeps to the contract.
    #[track_caller]
    pub(crate) fn hold(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8], answer: &Response) {
        let owned = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let told = answer.headers.iter().map(|(name, value)| owned(name.as_str(), value.to_str().unwrap()));
        let exchange = Exchange {
            method,
            target,
            request_headers: &headers.iter().map(|(name, value)| owned(name, value)).collect::<Vec<_>>(),
            request_body: body,
            status: answer.status,
            response_headers: &told.collect::<Vec<_>>(),
            response_body: &answer.body,
        };
        Self::load().check(&exchange).unwrap_or_else(|fault| panic!("{fault}"));
    }

    /// Whether the exchange keeps to the contract; if not, what is wrong with it.
    pub(crate) fn check(&self, exchange: &Exchange<'_>) -> Result<(), String> {
        self.judge(exchange).map_err(|fault| {
            let Exchange { method, target, status, response_headers, response_body, .. } = exchange;
            let body = String::from_utf8_lossy(response_body);
            format!("{method} {target}: {fault}\nanswer: {status} {response_headers:?}\n{body}")
        })
    }

    fn judge(&self, exchange: &Exchange<'_>) -> Result<(), String> {
        let (path, query) = exchange.target.split_once('?').unwrap_or((exchange.target, ""));
        keeps_secrets(exchange, path)?;
        let on_path: Vec<_> =
            self.operations.iter().filter_map(|one| Some((one, path_values(&one.template, path)?))).collect();
        // HEAD is GET without the body (RFC 9110 section 9.3.2).
        let method = if exchange.method == "HEAD" { "GET" } else { exchange.method };
        let Some((operation, values)) = on_path.iter().find(|(operation, _)| operation.method == method) else {
            let refusal = if on_path.is_empty() { 404 } else { 405 };
            let answer =
                self.elsewhere.get(&exchange.status).filter(|_| [400, 403, 429, refusal].contains(&exchange.status));
            return answer.ok_or_else(|| format!("no operation is here, so {refusal} is due"))?.check(exchange);
        };
        let answer = operation.answers.get(&exchange.status);
        answer.ok_or_else(|| format!("{} does not answer {}", operation.id, exchange.status))?.check(exchange)?;
        if exchange.status < 400 { operation.check_request(exchange, values, query) } else { Ok(()) }
    }
}

impl Operation {
    /// A request that was granted must have been one that the document allows.
    fn check_request(&self, exchange: &Exchange<'_>, path: &[(String, String)], query: &str) -> Result<(), String> {
        // A plus sign stands for itself (RFC 3986), as the document says of `bucket`.
        let query = query.replace('+', "%2B");
        let query: Vec<_> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        for (name, _) in &query {
            if !self.parameters.iter().any(|parameter| parameter.place == "query" && parameter.name == *name) {
                return Err(format!("the query parameter {name:?} is not in the document, and was granted"));
            }
        }
        for Parameter { name, place, field } in &self.parameters {
            let values = match place.as_str() {
                "path" => valued(path, name),
                "query" => valued(&query, name),
                "header" => {
                    // Lines of one name are one list (RFC 9110 section 5.3).
                    let lines = valued(exchange.request_headers, name);
                    if lines.is_empty() { lines } else { vec![lines.join(", ")] }
                }
                other => return Err(format!("parameters in {other} are unheard of")),
            };
            field.check(&values).map_err(|fault| format!("the parameter {name} was granted: {fault}"))?;
        }
        match &self.body {
            None if exchange.request_body.is_empty() => Ok(()),
            None => Err("a body was sent and granted, and the document has none".to_owned()),
            Some(body) if exchange.request_body.is_empty() && !body.required => Ok(()),
            Some(body) => {
                let checked =
                    body.content.check(&valued(exchange.request_headers, "content-type"), exchange.request_body);
                checked.map(drop).map_err(|fault| format!("the body was granted: {fault}"))
            }
        }
    }
}

impl Parameter {
    fn read(parameter: &Value) -> Result<Self, String> {
        Ok(Self { name: text_of(parameter, "name")?, place: text_of(parameter, "in")?, field: Field::read(parameter)? })
    }
}

impl RequestBody {
    fn read(body: &Value) -> Result<Self, String> {
        Ok(Self { required: body["required"] == true, content: Content::read(body)? })
    }
}

impl Answer {
    fn read(answer: &Value) -> Result<Self, String> {
        let headers = members(&answer["headers"]);
        let media = members(&answer["content"]).filter(|(name, _)| *name == PROBLEM).map(|(_, media)| media);
        let codes = media.flat_map(examples).filter_map(|example| example["code"].as_str());
        Ok(Self {
            headers: headers
                .map(|(name, header)| Ok((name.to_lowercase(), Field::read(header)?)))
                .collect::<Result<_, String>>()?,
            content: Content::read(answer)?,
            codes: codes.map(str::to_owned).collect(),
        })
    }

    fn check(&self, exchange: &Exchange<'_>) -> Result<(), String> {
        for (name, _) in exchange.response_headers {
            let name = name.to_lowercase();
            if !self.headers.contains_key(&name) && !STANDARD_HEADERS.contains(&name.as_str()) {
                return Err(format!("the document does not name the header {name}"));
            }
        }
        for (name, field) in &self.headers {
            field.check(&valued(exchange.response_headers, name)).map_err(|fault| format!("header {name}: {fault}"))?;
        }
        let media_types = valued(exchange.response_headers, "content-type");
        if self.content.0.is_empty() || exchange.method == "HEAD" {
            if !exchange.response_body.is_empty() {
                return Err("a body where none belongs".to_owned());
            }
            return match media_types.as_slice() {
                [] => Ok(()),
                [only] => self.content.validator(only).map(drop),
                _ => Err("more than one content-type".to_owned()),
            };
        }
        let body = self.content.check(&media_types, exchange.response_body)?;
        self.check_problem(exchange, &body)
    }

    /// What holds between the parts of a refusal.
    fn check_problem(&self, exchange: &Exchange<'_>, body: &Value) -> Result<(), String> {
        let header = valued(exchange.response_headers, "retry-after");
        let member = body["retryAfter"].as_u64().map(|seconds| seconds.to_string());
        if header.first() != member.as_ref() {
            return Err(format!("the header Retry-After says {header:?}, the member retryAfter {member:?}"));
        }
        if self.codes.is_empty() {
            return Ok(());
        }
        if body["status"] != exchange.status {
            return Err(format!("the problem's status is {}", body["status"]));
        }
        if body["code"].as_str().is_none_or(|code| !self.codes.contains(code)) {
            return Err(format!("no example has the code {}; known here: {:?}", body["code"], self.codes));
        }
        Ok(())
    }
}

impl Field {
    fn read(field: &Value) -> Result<Self, String> {
        Ok(Self {
            required: field["required"] == true,
            kind: text_of(&field["schema"], "type")?,
            validator: validator(&field["schema"])?,
        })
    }

    fn check(&self, values: &[String]) -> Result<(), String> {
        match values {
            [] if self.required => Err("is missing".to_owned()),
            [] => Ok(()),
            [value] => valid(&self.validator, &self.typed(value)),
            _ => Err("is there more than once".to_owned()),
        }
    }

    /// The value that the text stands for; the text itself where it is none of its type.
    fn typed(&self, text: &str) -> Value {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match (self.kind.as_str(), text) {
            ("integer", _) if digits => text.parse().map_or_else(|_| Value::from(text), u64::into),
            ("boolean", "true") => Value::Bool(true),
            ("boolean", "false") => Value::Bool(false),
            _ => Value::from(text),
        }
    }
}

impl Content {
    fn read(holder: &Value) -> Result<Self, String> {
        let media = members(&holder["content"]);
        Ok(Self(
            media
                .map(|(name, media)| Ok((name.clone(), validator(&media["schema"])?)))
                .collect::<Result<_, String>>()?,
        ))
    }

    fn validator(&self, media_type: &str) -> Result<&Validator, String> {
        let essence = essence(media_type);
        let range = essence.split_once('/').map(|(kind, _)| format!("{kind}/*")).unwrap_or_default();
        let known = self.0.get(&essence).or_else(|| self.0.get(&range));
        known.ok_or_else(|| format!("the document has no {media_type} here"))
    }

    /// Gives the value that the body stands for: JSON where it is JSON, text elsewhere.
    fn check(&self, media_types: &[String], body: &[u8]) -> Result<Value, String> {
        let [media_type] = media_types else {
            return Err(format!("one content-type is due, not {}", media_types.len()));
        };
        let value = if essence(media_type).ends_with("json") {
            serde_json::from_slice(body).map_err(|error| format!("the body is not JSON: {error}"))?
        } else {
            Value::from(String::from_utf8_lossy(body))
        };
        valid(self.validator(media_type)?, &value)?;
        Ok(value)
    }
}

/// Invariant 2.
fn keeps_secrets(exchange: &Exchange<'_>, path: &str) -> Result<(), String> {
    let mut answer = String::from_utf8_lossy(exchange.response_body).to_lowercase();
    for (name, value) in exchange.response_headers {
        answer.extend(["\n", &name.to_lowercase(), ":", &value.to_lowercase()]);
    }
    if path != DOCUMENT_PATH && answer.contains("refresh_token") {
        return Err("the answer holds the text that never leaves".to_owned());
    }
    if answer.contains(CANARY) {
        return Err("the answer holds a refresh token".to_owned());
    }
    if valued(exchange.response_headers, "cache-control") != ["no-store"] {
        return Err("the answer may be stored".to_owned());
    }
    Ok(())
}

/// The values of `path` where `template` has its names, percent-encoding undone; `None` if it is another path.
fn path_values(template: &str, path: &str) -> Option<Vec<(String, String)>> {
    let (parts, segments): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
    if parts.len() != segments.len() {
        return None;
    }
    let mut values = Vec::new();
    for (part, segment) in parts.into_iter().zip(segments) {
        match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
            Some(name) if !segment.is_empty() => values.push((name.to_owned(), decoded(segment))),
            None if part == segment => {}
            Some(_) | None => return None,
        }
    }
    Some(values)
}

fn decoded(segment: &str) -> String {
    let alone = segment.replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
    form_urlencoded::parse(alone.as_bytes()).map(|(text, _)| text.into_owned()).collect()
}

fn valued(pairs: &[(String, String)], name: &str) -> Vec<String> {
    let named = pairs.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
    named.map(|(_, value)| value.clone()).collect()
}

fn essence(media_type: &str) -> String {
    media_type.split(';').next().unwrap_or_default().trim().to_lowercase()
}

/// The document as it is written, references and all.
pub(crate) fn parsed(text: &str) -> Result<Value, String> {
    serde_norway::from_str(text).map_err(|error| error.to_string())
}

/// The document with what they refer to in place of all references.
pub(crate) fn resolved(document: &Value) -> Result<Value, String> {
    fn walk(value: &Value, document: &Value, depth: usize) -> Result<Value, String> {
        match value {
            Value::Object(members) => match members.get("$ref").and_then(Value::as_str) {
                Some(reference) if depth == DEEPEST_REFERENCE => Err(format!("{reference} refers to itself")),
                Some(reference) => {
                    let target = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
                    walk(target.ok_or_else(|| format!("{reference} leads nowhere"))?, document, depth + 1)
                }
                None => members.iter().map(|(name, inner)| Ok((name.clone(), walk(inner, document, depth)?))).collect(),
            },
            Value::Array(items) => items.iter().map(|item| walk(item, document, depth)).collect(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(value.clone()),
        }
    }
    walk(document, document, 0)
}

/// Reads a schema of OpenAPI 3.0, all references resolved. Its dialect is JSON Schema's draft 4 with `nullable`.
pub(crate) fn validator(schema: &Value) -> Result<Validator, String> {
    fn translated(schema: &Value) -> Value {
        match schema {
            Value::Object(members) => {
                let mut members: Map<_, _> =
                    members.iter().map(|(name, inner)| (name.clone(), translated(inner))).collect();
                if members.remove("nullable") == Some(Value::Bool(true)) {
                    let kind = members.remove("type").unwrap_or_default();
                    members.insert("type".to_owned(), Value::from(vec![kind, Value::from("null")]));
                }
                Value::Object(members)
            }
            Value::Array(items) => items.iter().map(translated).collect(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => schema.clone(),
        }
    }
    if !schema.is_object() {
        return Err(format!("{schema} is not a schema"));
    }
    jsonschema::options().with_draft(Draft::Draft4).build(&translated(schema)).map_err(|error| error.to_string())
}

/// Whether the value is what the schema asks for; if not, where it is not and why.
pub(crate) fn valid(validator: &Validator, value: &Value) -> Result<(), String> {
    validator.validate(value).map_err(|error| format!("{error} at {:?}", error.instance_path().to_string()))
}

/// The examples of a media type, parameter or header.
pub(crate) fn examples(holder: &Value) -> impl Iterator<Item = &Value> {
    holder
        .get("example")
        .into_iter()
        .chain(members(&holder["examples"]).filter_map(|(_, example)| example.get("value")))
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text_of(holder: &Value, name: &str) -> Result<String, String> {
    holder[name].as_str().map(str::to_owned).ok_or_else(|| format!("{name} is missing in {holder}"))
}

fn number(status: &str) -> Result<u16, String> {
    status.parse().map_err(|_| format!("{status} is not a status"))
}
