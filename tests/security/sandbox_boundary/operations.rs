//! Every operation of the OpenAPI document, on every account and key, on every socket. What is due is the document's
//! word (`x-credproxy-allow`) and the socket's lists; a route that is new in the document is covered by that.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::atomic::Ordering,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::{
    sandbox_boundary::{ACCOUNTS, ALLOW, API_KEYS, JSON, KEYS, SOCKETS, Subject, World, told},
    support::{
        contract::{DOCUMENT, examples, parsed, resolved},
        http::Response,
    },
};

/// An id as logins and sandboxes have them, which none has.
const NOBODYS: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";

/// One operation of the document.
struct Operation {
    id: String,
    method: String,
    path: String,
    /// Who may ask for it, as the document says.
    allow: String,
    body: Value,
}

/// What one of them is asked for, with the request that does so.
struct Call {
    name: String,
    id: String,
    method: String,
    target: String,
    body: Value,
    allow: String,
    /// Whether the account or key is on the lists; true where none is named.
    listed: bool,
    /// Whether the account or key is there.
    exists: bool,
    /// Whether it names what is there and belongs to somebody else: a login, a sandbox.
    foreign: bool,
}

/// A socket, and what is asked there with.
struct Door {
    name: String,
    path: PathBuf,
    operations: &'static [&'static str],
    headers: Vec<(&'static str, String)>,
    /// Whether the one capability that it demands is shown.
    admitted: bool,
}

impl Door {
    /// What the document and the lists say.
    fn permits(&self, call: &Call) -> bool {
        let operation = call.allow == "any" || self.operations.contains(&call.allow.as_str());
        self.admitted && operation && call.listed
    }
}

fn operations() -> Vec<Operation> {
    let document = resolved(&parsed(DOCUMENT).unwrap()).unwrap();
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters") {
            let body = examples(&operation["requestBody"]["content"]["application/json"]).next();
            found.push(Operation {
                id: operation["operationId"].as_str().unwrap().to_owned(),
                method: method.to_uppercase(),
                path: path.clone(),
                allow: operation["x-credproxy-allow"].as_str().unwrap().to_owned(),
                body: body.cloned().unwrap_or_default(),
            });
        }
    }
    found
}

impl Operation {
    /// The operation as a call for what this path and body name.
    fn call(&self, path: String, body: Value, (listed, exists): (bool, bool)) -> Call {
        let (method, allow) = (self.method.clone(), self.allow.clone());
        let name = format!("{} by {method} {path} {body}", self.id);
        let id = self.id.clone();
        Call { name, id, method, target: path, body, allow, listed, exists, foreign: false }
    }

    /// All calls there are: one for each account or key, where such is named in the path or the body.
    fn calls(&self, login: &str, sandbox: &str) -> Vec<Call> {
        let Self { path, body, .. } = self;
        let with = |place: &str, value: &str| path.replace(place, value);
        let stands = |subject: &Subject| (subject.allowed, subject.exists);
        if path.contains("{provider}") {
            let target =
                |account: &Subject| format!("{}?bucket={}", with("{provider}", account.provider), account.bucket);
            ACCOUNTS.iter().map(|account| self.call(target(account), body.clone(), stands(account))).collect()
        } else if body.get("provider").is_some() {
            let of = |account: &Subject| {
                let mut body = body.clone();
                (body["provider"], body["bucket"]) = (json!(account.provider), json!(account.bucket));
                self.call(path.clone(), body, stands(account))
            };
            ACCOUNTS.iter().map(of).collect()
        } else if path.contains("{name}") {
            API_KEYS.iter().map(|key| self.call(with("{name}", key.provider), body.clone(), stands(key))).collect()
        } else if path.contains("{id}") {
            let living = if path.contains("sandboxes") { sandbox } else { login };
            let of = |id: &str| self.call(with("{id}", id), body.clone(), (true, false));
            vec![Call { foreign: true, ..of(living) }, of(NOBODYS)]
        } else {
            assert!(!path.contains('{'), "{}: what does the path name?", self.id);
            vec![self.call(path.clone(), body.clone(), (true, true))]
        }
    }
}

/// A socket for each set of operations, and one that was made at run time: with its capability, and without.
async fn doors(world: &World) -> (Vec<Door>, String) {
    let mut doors: Vec<_> = SOCKETS
        .iter()
        .map(|(name, operations)| Door {
            name: (*name).to_owned(),
            path: world.socket(name),
            operations,
            headers: Vec::new(),
            admitted: true,
        })
        .collect();
    let operations = SOCKETS[6].1;
    let wanted = json!({"allow": ALLOW, "operations": operations, "keys": KEYS, "capability": true});
    let made = world.host("POST", "/v1/sandboxes", &wanted).await.json();
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    let capability = text("capability");
    world.daemon.watch_secret(&capability);
    let of = |name: &str, shown: Option<String>| Door {
        name: name.to_owned(),
        path: text("socket").into(),
        operations,
        admitted: shown.as_ref() == Some(&capability),
        headers: shown.map(|shown| ("authorization", format!("Bearer {shown}"))).into_iter().collect(),
    };
    doors.push(of("a sandbox with its capability", Some(capability.clone())));
    doors.push(of("a sandbox without its capability", None));
    doors.push(of("a sandbox with another capability", Some(capability.chars().rev().collect())));
    (doors, text("id"))
}

async fn make(world: &World, door: &Door, call: &Call) -> Response {
    let mut headers: Vec<_> = door.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let body = if call.body.is_null() { String::new() } else { call.body.to_string() };
    if !body.is_empty() {
        headers.push(JSON);
    }
    world.ask(&door.path, &call.method, &call.target, &headers, &body).await
}

/// Where `GET` is, there is `HEAD`.
fn with_heads(calls: Vec<Call>) -> Vec<Call> {
    let heads: Vec<_> = calls
        .iter()
        .filter(|call| call.method == "GET")
        .map(|call| Call {
            name: format!("HEAD for {}", call.name),
            id: call.id.clone(),
            method: "HEAD".to_owned(),
            target: call.target.clone(),
            body: Value::Null,
            allow: call.allow.clone(),
            ..*call
        })
        .collect();
    calls.into_iter().chain(heads).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_socket_does_what_the_document_and_its_lists_say_and_refuses_all_else_alike() {
    let world = World::new().await;
    let begun = world.host("POST", "/v1/logins", &json!({"provider": "corp", "flow": "paste"})).await.json();
    let (doors, sandbox) = doors(&world).await;
    let calls: Vec<_> =
        operations().iter().flat_map(|one| one.calls(begun["id"].as_str().unwrap(), &sandbox)).collect();
    let calls = with_heads(calls);

    // First all that is to be refused: nobody is asked, and nothing changes.
    let before = world.state().await;
    let mut refusals = 0;
    for door in &doors {
        let (mut texts, mut answers) = (BTreeSet::new(), BTreeMap::new());
        for call in calls.iter().filter(|call| !door.permits(call)) {
            let refused = make(&world, door, call).await;
            assert_eq!(refused.status, 403, "{} on {}: {}", call.name, door.name, refused.text());
            // One answer for an operation, whatever it is asked of.
            let first = answers.entry((&call.id, &call.method)).or_insert_with(|| told(&refused));
            assert_eq!(*first, told(&refused), "{} on {}", call.name, door.name);
            texts.insert(refused.text());
            refusals += 1;
        }
        // And one text for them all, that of HEAD aside.
        assert_eq!(texts.iter().filter(|text| !text.is_empty()).count(), 1, "{}: {texts:?}", door.name);
    }
    assert_eq!(world.state().await, before);

    // Then what is allowed.
    let mut granted = 0;
    for door in &doors {
        let mut unknown = None;
        for call in calls.iter().filter(|call| door.permits(call)) {
            let answer = make(&world, door, call).await;
            let due = if call.exists { 200..300 } else { 404..405 };
            // A sandbox's login begins where no grant is, and nowhere else; a document is there for all.
            let begins = call.method == "POST" && call.body.get("provider").is_some();
            let login = if call.exists { 409 } else { 201 };
            assert!(
                if begins { answer.status == login } else { due.contains(&answer.status) },
                "{} on {}: {} {}",
                call.name,
                door.name,
                answer.status,
                answer.text()
            );
            if call.target.contains("/v1/logins/") && call.method != "HEAD" {
                // Another's is as one that never was.
                assert_eq!(*unknown.get_or_insert_with(|| told(&answer)), told(&answer), "{}", call.name);
            }
            granted += 1;
        }
    }
    let foreign = calls.iter().filter(|call| call.foreign).count();
    println!("{} calls on {} sockets: {refusals} refused, {granted} granted", calls.len(), doors.len());
    assert!(foreign >= 5 && refusals > 500 && granted > 80, "{foreign} {refusals} {granted}");

    // The host's login is still there, and the host is refused nothing.
    let path = format!("/v1/logins/{}", begun["id"].as_str().unwrap());
    assert_eq!(world.host("GET", &path, &Value::Null).await.json()["status"], "pending");
    for call in calls.iter().filter(|call| call.exists || call.foreign) {
        let answer = world.host(&call.method, &call.target, &call.body).await;
        assert_ne!(answer.status, 403, "{}", call.name);
    }

    // The audit log tells of each request, and of the question whether the daemon is there.
    let asked = world.asked.load(Ordering::Relaxed) + 1;
    let written = async {
        while world.log().len() < asked {
            sleep(Duration::from_millis(10)).await;
        }
    };
    // It is the count below that fails.
    drop(timeout(Duration::from_secs(10), written).await);
    let log = world.log();
    assert_eq!(log.len(), asked);
    let refused = log.iter().filter(|line| line["outcome"] == "UNAUTHORIZED" && line["status"] == 403);
    assert_eq!(refused.count(), refusals);
}
