//! The walk: all that is tried at a server.

use credproxy::provider::Flow;
use futures_util::future::join_all;

use crate::{
    account::{Account, provider, text, visit},
    server::{Refusal, Server},
    support::{
        daemon::{Daemon, Home},
        front::Fault,
        server::{Auth, Client},
    },
    table::Row,
};

/// The provider whose client encodes its Basic credentials as its server does not.
const MISTAKEN: &str = "mistaken";

pub(crate) async fn all<S: Server>(server: &S) {
    let mut providers = Vec::new();
    for flow in Flow::ALL {
        providers.extend(S::AUTHS.iter().map(|auth| (provider(flow, *auth), server.client(flow, *auth))));
    }
    let basic = S::AUTHS.iter().copied().find(|auth| [Auth::Basic, Auth::BasicRaw].contains(auth)).unwrap();
    let other = if basic == Auth::Basic { Auth::BasicRaw } else { Auth::Basic };
    providers.push((MISTAKEN.to_owned(), Client { auth: other, ..server.client(Flow::Paste, basic) }));
    let config: String = providers.iter().map(|(name, client)| configuration(server, name, client)).collect();
    let secrets = providers.iter().filter_map(|(name, client)| Some((variable(name), client.secret?)));
    let secrets: Vec<_> = secrets.collect();
    let env: Vec<_> = secrets.iter().map(|(name, secret)| (name.as_str(), *secret)).collect();
    let daemon = Daemon::start(&Home::new(), "a", &format!("[refresh]\ncooldown = \"0s\"\n{config}"), &env).await;

    join_all(Flow::ALL.map(|flow| one(server, &daemon, flow))).await;
    a_narrowed_token_leaves_the_grants_scope(&Account::new(server, &daemon, Flow::Browser, Auth::None)).await;
    another_issuer_is_not_believed(&Account::new(server, &daemon, Flow::Browser, Auth::None)).await;
    mistaken_credentials_are_refused(&Account::new(server, &daemon, Flow::Paste, basic).named(MISTAKEN)).await;

    daemon.watch_issued(&server.front().issued());
    for exchange in server.front().exchanges() {
        for secret in ["code", "code_verifier", "device_code"] {
            exchange.member(secret).into_iter().for_each(|value| daemon.watch_refresh_token(value));
        }
    }
}

fn configuration<S: Server>(server: &S, name: &str, client: &Client) -> String {
    let scopes: Vec<&str> = S::SCOPE[0].split(' ').collect();
    let secret =
        client.secret.map_or_else(String::new, |_| format!("client_secret = {{ env = {:?} }}", variable(name)));
    format!(
        "\n[providers.{name}]\nissuer = {:?}\nclient_id = {:?}\nclient_auth = {:?}\nscopes = {scopes:?}\n{}{secret}\n",
        server.issuer(),
        client.id,
        client.auth.name(),
        server.keys(client),
    )
}

/// The variable that holds the secret of a provider's client.
fn variable(provider: &str) -> String {
    format!("SECRET_{}", provider.replace('-', "_"))
}

/// One flow, for a row of the table.
async fn one<S: Server>(server: &S, daemon: &Daemon, flow: Flow) {
    let names: Vec<&str> = S::AUTHS.iter().map(|auth| auth.name()).collect();
    let mut row = Row::new(S::NAME, flow.name(), names.join(" "));
    let accounts: Vec<_> = S::AUTHS.iter().map(|auth| Account::new(server, daemon, flow, *auth)).collect();

    let (public, confidential) = accounts.split_first().expect("a public client");
    tokio::join!(public.log_in_by_the_command_line(), join_all(confidential.iter().map(Account::log_in)));
    row.ok("login", "");

    for account in &accounts {
        for _ in 0..3 {
            let token = account.refresh_token().await;
            account.refreshed().await;
            assert_eq!(server.front().presentations(&token).len(), 1);
        }
    }
    row.ok("refresh", "");

    row.ok("reuse", reuse(public).await);
    public.log_in().await;

    row.ok("lost answer", lost_answer(public).await);
    if !S::GRACE {
        public.log_in().await;
    }

    for account in &accounts {
        revoke(account).await;
    }
    row.ok("revoke", if S::PUBLIC_REVOKES { "" } else { "not for clients without a secret, and `logout` says so" });
}

/// Somebody else presents a spent refresh token.
async fn reuse<S: Server>(account: &Account<'_, S>) -> &'static str {
    let mut spent = account.refresh_token().await;
    account.refreshed().await;
    if S::GRACE {
        let newest = account.refresh_token().await;
        let again = account.server.present(&account.client, &spent).await;
        assert_eq!((again.status, text(&again.json(), "refresh_token")), (200, newest.as_str()));
        account.refreshed().await;
        account.server.pass_grace(&newest).await;
        spent = newest;
    }
    let newest = account.refresh_token().await;
    for token in [&spent, &newest] {
        let refused = account.server.present(&account.client, token).await;
        assert!(S::refused(&refused), "{} {}", refused.status, refused.text());
    }
    let said = account.is_found_dead(&newest).await;
    assert!(!text(&said, "detail").contains("lost"), "{said}");
    match (S::GRACE, S::REFUSAL) {
        (true, _) => "the same successor within the grace, and the chain lives on; after it the family is dead",
        (false, Refusal::InvalidGrant) => "the family is dead",
        (false, Refusal::Empty) => {
            "the family is dead: known by five refusals without a reason, once the access token has expired"
        }
    }
}

/// The server has rotated, and its answer does not arrive.
async fn lost_answer<S: Server>(account: &Account<'_, S>) -> &'static str {
    let token = account.refresh_token().await;
    account.server.front().fault(&token, Fault::Lose);
    if S::GRACE {
        let answer = account.refreshed().await;
        let presented = account.server.front().presentations(&token);
        assert_eq!(presented.len(), 2);
        for exchange in presented {
            assert_eq!(exchange.answer["access_token"], answer["access_token"], "not the same successor");
        }
        account.refreshed().await;
        return "won back: the same successor again";
    }
    let said = account.is_found_dead(&token).await;
    assert!(text(&said, "detail").contains("an answer of its was lost before"), "{said}");
    match S::REFUSAL {
        Refusal::InvalidGrant => "the family is dead, and the answer is said to be lost",
        Refusal::Empty => "the family is dead: known by five refusals likewise, and the answer is said to be lost",
    }
}

/// After the logout the server refuses what the daemon had.
async fn revoke<S: Server>(account: &Account<'_, S>) {
    let token = account.refresh_token().await;
    let said = account.log_out().await;
    let answer = account.server.present(&account.client, &token).await;
    if S::PUBLIC_REVOKES || account.client.secret.is_some() {
        assert!(said.trim().ends_with("; the provider has revoked the grant"), "{said}");
        assert!(S::refused(&answer), "{} {}", answer.status, answer.text());
    } else {
        assert!(said.contains("the provider did not revoke it"), "{said}");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

async fn a_narrowed_token_leaves_the_grants_scope<S: Server>(account: &Account<'_, S>) {
    account.log_in().await;
    let [granted, part] = S::SCOPE;
    let token = account.refresh_token().await;
    account.server.front().fault(&token, Fault::Narrow(part));
    let narrowed = account.refreshed().await;
    let answered = account.server.front().presentations(&token).pop().unwrap().answer;
    assert_eq!((&answered["scope"], &narrowed["scope"]), (&S::NARROWED.into(), &granted.into()));
    assert_eq!(account.refreshed().await["scope"], granted);
}

async fn another_issuer_is_not_believed<S: Server>(account: &Account<'_, S>) {
    let login = account.begin().await;
    let mut back = account.agree(&login).await;
    let pairs: Vec<_> = back.query_pairs().into_owned().filter(|(name, _)| name != "iss").collect();
    back.query_pairs_mut().clear().extend_pairs(pairs).append_pair("iss", "https://elsewhere.example");
    let page = visit(&back).await;
    assert!(page.status == 400 && page.text().contains("Not logged in"), "{}", page.text());
    assert_eq!(account.end(&login).await["detail"], "the answer came from another issuer than the provider's");
}

async fn mistaken_credentials_are_refused<S: Server>(account: &Account<'_, S>) {
    let login = account.begin().await;
    let answer = account.paste(&login).await;
    assert_eq!(account.end(&login).await["status"], "error", "{}", answer.text());
}
