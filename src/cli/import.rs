//! `credproxy import`.

use std::{
    io::{self, IsTerminal as _, Read},
    path::Path,
};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::{Exit, Failure, output};
use crate::{
    account::Account,
    client::{Client, Stored},
    private::open_trusted,
};

mod form;

use form::{Form, FormError, Found};

/// The longest source, in bytes: two secrets of 64 KiB, and twice that for the provider's own members.
const LIMIT: usize = 256 * 1024;

pub(super) async fn run(client: &Client, account: &Account, from: Option<&Path>) -> Result<Exit, Failure> {
    let source = Source(from.filter(|path| *path != Path::new("-")));
    let found = form::recognise(&source.read()?).map_err(|error| source.refused(&error, account))?;
    output::note(&taken(&found, &source));
    let Found { form, refreshable, grant, .. } = found;
    let stored = client.put(account, grant).await.map_err(|error| Failure::of(error, Some(account)))?;
    output::note(&match stored {
        Stored::Created => format!("stored a grant for {account}"),
        Stored::Replaced => format!("replaced the grant of {account}"),
    });
    output::note(&what_now(form, refreshable));
    warn_if_not_configured(client, account).await;
    Ok(Exit::Success)
}

/// Warns of a misspelt provider here rather than when the token expires. Whether the providers can be listed does not
/// matter.
pub(super) async fn warn_if_not_configured(client: &Client, account: &Account) {
    if client.providers().await.is_ok_and(|known| known.iter().all(|known| known.name != account.provider)) {
        output::note(&format!(
            "warning: no provider {0} is configured, so this token will not be refreshed; \
             add [providers.{0}] to the daemon's configuration, or `credproxy logout --local-only {account}`",
            account.provider
        ));
    }
}

fn taken(found: &Found, source: &Source) -> String {
    let hint = if found.expiry_guessed { "; the expiry is what the access token itself says" } else { "" };
    format!("{} is {}: took {}{hint}", source.name(), found.form, found.taken.join(", "))
}

/// Warns that the other holder of the refresh token must not use it any more.
fn what_now(form: Form, refreshable: bool) -> String {
    if !refreshable {
        return "it has no refresh token, and ends with its access token".to_owned();
    }
    let program = form.program().unwrap_or("the program that it came from");
    format!(
        "{program} still holds a copy: it will be logged out when the token rotates, and a logout there may end this \
         grant, too; do not use that copy any more"
    )
}

/// Where a grant is read from: a file, or standard input. It is read and never written.
struct Source<'a>(Option<&'a Path>);

impl Source<'_> {
    fn name(&self) -> String {
        self.0.map_or_else(|| "standard input".to_owned(), |path| path.display().to_string())
    }

    fn read(&self) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let read = if let Some(path) = self.0 {
            // Opening a pipe in the file's place would block. Whoever can write the file chooses whose account is
            // imported.
            let open = open_trusted(path, OFlags::NONBLOCK);
            open.and_then(|file| if file.metadata()?.is_file() { limited(file) } else { Err(irregular()) })
        } else {
            let input = io::stdin();
            if input.is_terminal() {
                output::note("type or paste the grant as JSON, then Enter and Ctrl-D");
            }
            limited(input.lock())
        };
        let text = read.map_err(|error| {
            let failure = Failure::new(Exit::Failure, format!("cannot read {}: {error}", self.name()));
            let refused = error.kind() == io::ErrorKind::PermissionDenied && error.get_ref().is_some();
            if refused { failure.hint("what you trust can come by standard input: `< FILE`") } else { failure }
        })?;
        if text.len() > LIMIT {
            return Err(Failure::new(Exit::Failure, format!("{} is longer than 256 KiB", self.name())).hint(KNOWN));
        }
        Ok(text)
    }

    fn refused(&self, error: &FormError, account: &Account) -> Failure {
        let failure = Failure::new(Exit::Failure, format!("{} {error}", self.name()));
        match error {
            FormError::Empty | FormError::NotJson { .. } | FormError::NotObject | FormError::Unknown => {
                failure.hint(KNOWN)
            }
            FormError::Lacks { .. } => failure.hint(format!("log in instead: `credproxy login {account}`")),
            FormError::ApiKey => failure.hint(format!("log in with an account: `credproxy login {account}`")),
            FormError::ApplicationDefault { client_id } => failure.hint(instead(client_id, account)),
        }
    }
}

const KNOWN: &str = r#"known are a token answer, {"access_token": "…", "refresh_token": "…", "expires_in": 3600}, Codex's auth.json, Claude Code's .credentials.json, and the oauth_creds.json of Gemini CLI and Qwen Code"#;

fn irregular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")
}

/// Reads at most one byte more than the limit.
fn limited(input: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    // Capacity for everything: a buffer that grows leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(LIMIT + 1));
    input.take(LIMIT as u64 + 1).read_to_end(&mut text)?;
    Ok(text)
}

/// How to configure the client that such a credential names.
fn instead(client_id: &str, account: &Account) -> String {
    format!(
        r#"log in as the client that it names: put its client_secret alone into a file of mode 0600, write these lines into the daemon's configuration, start the daemon again, and `credproxy login {account}`

[providers.{}]
issuer = "https://accounts.google.com"
authorization_endpoint = "https://accounts.google.com/o/oauth2/v2/auth?access_type=offline&prompt=consent"
client_id = "{client_id}"
client_secret = {{ file = "/path/to/client-secret" }}
client_auth = "post"
scopes = ["openid", "https://www.googleapis.com/auth/cloud-platform"]"#,
        account.provider
    )
}
