//! Input of a login's that is wrong, old, another's, there twice, or made up, and providers that lie while one is under
//! way: each with its code, its login over (or untouched, where the input was not its own), and nothing stored.

use super::*;

/// How often a code was presented.
fn exchanges(world: &World) -> usize {
    let of_code = |request: &&crate::support::issuer::Seen| request.body.contains("grant_type=authorization_code");
    world.issuer.requests().iter().filter(of_code).count()
}

fn with_code(back: &Url, code: &str) -> Url {
    let pairs: Vec<_> = back.query_pairs().into_owned().filter(|(name, _)| name != "code").collect();
    let mut url = back.clone();
    url.query_pairs_mut().clear().extend_pairs(pairs).append_pair("code", code);
    url
}

fn without(back: &Url, name: &str) -> Url {
    let pairs: Vec<_> = back.query_pairs().into_owned().filter(|(key, _)| key != name).collect();
    let mut url = back.clone();
    url.query_pairs_mut().clear().extend_pairs(pairs);
    url
}

#[tokio::test]
async fn two_answers_at_once_are_one_exchange() {
    let world = World::new().await;
    let (location, login) = world.host.begun(&browser()).await;
    let back = agreed(&world, &login);
    let made_up = with_code(&back, "made-up");
    let gate = Gate::new();
    world.issuer.script(Scripted::HoldBefore(gate.clone()));
    let (first, (second, pasted)) = tokio::join!(visit("GET", &back), async {
        gate.wait_for_arrivals(1).await;
        // The first is on its way to the provider: nothing that comes now changes that.
        let pasted = world.host.bring(&location, "another").await;
        let (page, ()) = tokio::join!(visit("GET", &made_up), async {
            tokio::task::yield_now().await;
            gate.open();
        });
        (page, pasted)
    });
    assert_eq!((pasted.status, pasted.code().as_str()), (409, "SESSION_ALREADY_USED"));
    assert_eq!((first.status, second.status, first.text()), (200, 200, second.text()));
    assert_eq!(world.host.end(&location).await.json()["status"], "complete");
    // Nor does an error that comes late.
    let mut late = without(&back, "code");
    late.query_pairs_mut().append_pair("error", "access_denied");
    assert_eq!(visit("GET", &late).await.status, 200);
    assert_eq!(world.host.get(&location).await.json()["status"], "complete");
    assert_eq!(exchanges(&world), 1);
}

#[tokio::test]
async fn a_code_that_is_pasted_twice_is_exchanged_once() {
    let world = World::new().await;
    let (location, login) = world.host.begun(&paste()).await;
    let back = agreed(&world, &login);
    let gate = Gate::new();
    world.issuer.script(Scripted::HoldBefore(gate.clone()));
    let (first, again) = tokio::join!(world.host.bring(&location, back.as_str()), async {
        gate.wait_for_arrivals(1).await;
        let again = world.host.bring(&location, back.as_str()).await;
        gate.open();
        again
    });
    assert_eq!((again.status, again.code().as_str()), (409, "SESSION_ALREADY_USED"));
    assert_eq!((first.status, &first.json()["status"]), (200, &json!("complete")));
    assert_eq!(exchanges(&world), 1);
}

#[tokio::test]
async fn the_answer_to_an_earlier_login_is_none_to_a_later_one() {
    let world = World::new().await;
    let (_, earlier) = world.host.begun(&browser()).await;
    let old = agreed(&world, &earlier);
    assert_eq!(visit("GET", &old).await.status, 200);
    let before = world.host.get("/v1/tokens/corp?bucket=new").await.access_token();

    let (location, login) = world.host.begun(&browser()).await;
    let back = agreed(&world, &login);
    let mut replayed = back.clone();
    replayed.set_query(old.query());
    let page = visit("GET", &replayed).await;
    assert!(page.status == 400 && page.text().contains("Nothing was changed"), "{}", page.text());
    page_is_safe(&page);
    assert_eq!(world.host.get(&location).await.json()["status"], "pending");

    let (second, _) = world.host.begun(&paste()).await;
    let refused = world.host.bring(&second, old.as_str()).await;
    assert_eq!((refused.status, refused.code().as_str()), (502, "EXCHANGE_FAILED"));
    assert_eq!(world.host.end(&second).await.json()["status"], "error");

    assert_eq!(exchanges(&world), 1);
    assert_eq!(world.host.get("/v1/tokens/corp?bucket=new").await.access_token(), before);
    assert_eq!(visit("GET", &back).await.status, 200);
}

#[tokio::test]
async fn a_browser_that_comes_from_another_issuer_ends_the_login_and_its_code_goes_nowhere() {
    let world = World::discovering().await;
    world.issuer.send_iss(&world.issuer.origin());
    for iss in [Some("https://evil.example"), Some(""), None] {
        let (location, login) = world.host.begun(&browser()).await;
        let mut foreign = without(&agreed(&world, &login), "iss");
        if let Some(iss) = iss {
            foreign.query_pairs_mut().append_pair("iss", iss);
        }
        let page = visit("GET", &foreign).await;
        assert!(page.status == 400 && page.text().contains("from another issuer"), "{iss:?}: {}", page.text());
        page_is_safe(&page);
        let ended = world.host.end(&location).await.json();
        assert_eq!((&ended["status"], &ended["code"]), (&json!("error"), &json!("EXCHANGE_FAILED")));
    }
    assert_eq!(exchanges(&world), 0);
    nothing_stored(&world).await;
}

#[tokio::test]
async fn an_issuer_that_lies_begins_no_login_and_is_asked_again_by_the_next() {
    let world = World::discovering().await;
    let place = "/.well-known/openid-configuration";
    let mut honest = world.issuer.metadata(&world.issuer.origin());
    honest["authorization_endpoint"] = json!(world.issuer.authorization_endpoint());
    let with = |name: &str, value: &Value| {
        let mut metadata = honest.clone();
        metadata[name] = value.clone();
        Raw::json(200, &metadata)
    };
    let another = "discovery: the issuer in the metadata is another";
    let no_token_endpoint = "discovery: the token_endpoint is not one to send secrets to";
    let none = "discovery: the issuer has no metadata";
    for (lie, detail) in [
        (with("issuer", &json!("https://evil.example")), another),
        (with("issuer", &json!(format!("{}/tenant", world.issuer.origin()))), another),
        (with("issuer", &json!(null)), another),
        (with("token_endpoint", &json!("http://evil.example/token")), no_token_endpoint),
        (with("token_endpoint", &json!("ftp://evil.example/token")), no_token_endpoint),
        (with("token_endpoint", &json!(null)), "discovery: the metadata has no token_endpoint"),
        (with("padding", &json!("x".repeat(10_000_000))), none),
        (Raw::new(200, "text/html", "<html>no</html>"), none),
        (Raw::new(302, "", "").header("Location", &world.issuer.token_endpoint()), none),
        (Raw::json(200, &json!(["issuer"])), none),
    ] {
        world.issuer.serve(place, lie);
        for body in [browser(), paste(), device()] {
            let refused = world.host.begin(&body).await;
            let told = (refused.status, refused.code(), refused.json()["detail"].clone());
            assert_eq!(told, (502, "EXCHANGE_FAILED".to_owned(), json!(detail)), "{body}");
        }
    }
    assert!(world.issuer.requests().iter().all(|request| request.method == "GET"), "a secret left");
    nothing_stored(&world).await;

    // An endpoint that a person must not be sent to is none; the rest of the document counts.
    world.issuer.serve(place, with("authorization_endpoint", &json!("http://evil.example/authorize")));
    for body in [browser(), paste(), device()] {
        let refused = world.host.begin(&body).await;
        assert_eq!((refused.status, refused.code().as_str()), (400, "INVALID_REQUEST"), "{body}");
    }
}

#[tokio::test]
async fn a_provider_that_lies_to_a_device_shows_the_person_nothing() {
    let world = World::new().await;
    let honest =
        json!({"device_code": "canary-device", "user_code": "AB-1", "verification_uri": "https://p.example/d"});
    let with = |name: &str, value: Value| {
        let mut answer = honest.clone();
        answer[name] = value;
        Raw::json(200, &answer)
    };
    for lie in [
        with("verification_uri", json!("javascript:alert(1)")),
        with("verification_uri", json!("http://evil.example/")),
        with("verification_uri", json!("https://p.example/?c=canary-device")),
        with("user_code", json!("\u{1b}]0;evil\u{7}")),
        with("user_code", json!("canary-device")),
        with("user_code", json!("x".repeat(65))),
        with("padding", json!("x".repeat(10_000_000))),
        Raw::new(200, "text/html", "<html>no</html>"),
    ] {
        world.issuer.answer_device(lie);
        let refused = world.host.begin(&device()).await;
        assert_eq!((refused.status, refused.code().as_str()), (502, "EXCHANGE_FAILED"));
        assert_eq!(refused.json()["detail"], "the provider's answer holds no device code to use");
        assert!(!String::from_utf8_lossy(&refused.body).contains("canary"));
    }
    nothing_stored(&world).await;
}

#[tokio::test]
async fn a_provider_that_answers_nonsense_instead_of_tokens_ends_the_login() {
    let world = World::new().await;
    let huge = json!({"access_token": "at", "padding": "x".repeat(10_000_000)});
    for (answer, detail) in [
        (Raw::json(200, &huge), "the provider's answer is not readable"),
        (Raw::json(200, &json!({"access_token": ""})), "the provider's answer is not readable"),
        (Raw::json(200, &json!({"access_token": "a\nb"})), "the provider's answer is not readable"),
        (Raw::new(302, "", "").header("Location", "https://evil.example/"), "the provider's answer is not readable"),
        (Raw::json(500, &json!({"access_token": "at"})), "the provider's answer is not readable"),
        (Raw::error(400, "<script>"), "the provider did not accept the code"),
        (Raw::error(400, "invalid_grant"), "the provider did not accept the code (invalid_grant)"),
    ] {
        let (location, login) = world.host.begun(&paste()).await;
        let back = agreed(&world, &login);
        world.issuer.script(Scripted::Raw(answer));
        let refused = world.host.bring(&location, back.as_str()).await;
        assert_eq!((refused.status, refused.code().as_str()), (502, "EXCHANGE_FAILED"));
        assert_eq!(refused.json()["detail"], detail);
        let ended = world.host.end(&location).await.json();
        assert_eq!((&ended["status"], &ended["detail"]), (&json!("error"), &json!(detail)));
        assert_eq!(world.host.bring(&location, back.as_str()).await.code(), "SESSION_ALREADY_USED");
    }
    nothing_stored(&world).await;
}
