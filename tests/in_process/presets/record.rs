//! What is recorded of a provider: how its preset has to ask, and what it answers. `answers/NAME.toml`, one or more
//! for each preset.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;
use serde_json::{Map, Value};

/// The record of one preset, used in one way.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// The preset, where the record is not named after it.
    #[serde(default)]
    pub(crate) preset: String,
    /// What the user's table has beside `preset`.
    pub(crate) table: String,
    /// The addresses that come of that, by their keys.
    pub(crate) endpoints: BTreeMap<String, String>,
    /// What the address that a person opens has in its query, beside what the protocol has there.
    pub(crate) authorization: Option<BTreeMap<String, String>>,
    /// Whether that has a challenge, too (RFC 7636).
    #[serde(default = "yes")]
    pub(crate) pkce: bool,
    /// Where the browser is sent back to, at port 9.
    #[serde(default = "redirect")]
    pub(crate) redirect: String,
    /// How a device login begins.
    pub(crate) device: Option<Device>,
    /// What a refresh looks like.
    pub(crate) request: Request,
    /// The answer to a login, and those to the refreshes that follow.
    pub(crate) answers: Vec<Answer>,
    /// Answers without tokens.
    pub(crate) failures: Vec<Failure>,
}

/// The beginning of a device login.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Device {
    /// All the members of the request.
    pub(crate) members: BTreeMap<String, String>,
    /// What it is answered, if not in the usual form.
    pub(crate) answer: Option<String>,
}

/// A refresh as it has to come.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    /// `form`, `json`, or `get` for a second exchange.
    pub(crate) format: Format,
    /// All the members of the body; `{token}` stands for the refresh token.
    #[serde(default)]
    pub(crate) members: BTreeMap<String, String>,
    /// Headers beside those that every request has.
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, String>,
    /// What `Authorization` says, decoded where it is of the scheme Basic.
    pub(crate) authorization: Option<String>,
}

/// The form of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    Form,
    Json,
    Get,
}

/// An answer with tokens.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Answer {
    #[serde(default = "json")]
    pub(crate) content_type: String,
    pub(crate) body: String,
    /// What the second exchange answers after a login.
    pub(crate) second: Option<String>,
    /// What a caller sees of the grant then, but for the expiry.
    pub(crate) seen: Map<String, Value>,
    /// How long the access token is known to live, in seconds.
    pub(crate) lifetime: Option<i64>,
    /// The refresh token that is good then.
    pub(crate) good: String,
    /// All of the provider's other members that are kept then.
    pub(crate) kept: Map<String, Value>,
}

/// An answer without tokens.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Failure {
    pub(crate) status: u16,
    #[serde(default = "json")]
    pub(crate) content_type: String,
    pub(crate) body: String,
    /// The class that it belongs to.
    pub(crate) outcome: String,
}

fn yes() -> bool {
    true
}

fn redirect() -> String {
    "http://127.0.0.1:9/callback".to_owned()
}

fn json() -> String {
    "application/json".to_owned()
}

/// Every record, by its name.
pub(crate) fn all() -> BTreeMap<String, Record> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/in_process/presets/answers");
    let read = |entry: fs::DirEntry| {
        let path = entry.path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let record = toml::from_str(&fs::read_to_string(&path).unwrap());
        let mut record: Record = record.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if record.preset.is_empty() {
            record.preset.clone_from(&name);
        }
        (name, record)
    };
    fs::read_dir(folder).unwrap().map(|entry| read(entry.unwrap())).collect()
}
