//! Properties of the merge and of the view, for any grant there could be. The makers of such grants serve other rooms'
//! tests as well.

use proptest::{collection::vec, prelude::*};
use serde_json::{Number, json};

use super::*;

/// Stands for the refresh token in a made-up text.
const PLACE: char = '\u{e000}';

fn refresh_tokens() -> impl Strategy<Value = String> {
    prop_oneof!["[ -~]{8,24}", "[a-z ]{8,12}", "[1-9][0-9]{7,12}", "[\"\\\\,:a]{8,10}"]
}

/// Text as a provider or a person could send it, the forbidden text and the refresh token in it.
fn texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => ".{0,6}",
        3 => "[a-z]{1,5}",
        2 => Just(" ".to_owned()),
        1 => Just(",".to_owned()),
        4 => Just(PLACE.to_string()),
        1 => Just("refresh_token".to_owned()),
        1 => Just("my_Refresh_TOKEN_id".to_owned()),
        1 => Just("refresh".to_owned()),
        1 => Just("\refresh_token".to_owned()),
        1 => Just("\r".to_owned()),
        1 => Just("_token".to_owned()),
    ];
    vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

fn names() -> impl Strategy<Value = String> {
    let known =
        ["account_id", "id_token", "resource_url", "tenant_id", "access_token", "token_type", "expiry", "scope"];
    prop_oneof![4 => proptest::sample::select(known.to_vec()).prop_map(str::to_owned), 1 => texts()]
}

fn values() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| Number::from_f64(number).map_or(Value::Null, Value::Number)),
        texts().prop_map(Value::from),
    ];
    scalar.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((names(), inner), 0..4).prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn extras() -> impl Strategy<Value = Map<String, Value>> {
    vec((names(), values()), 0..6).prop_map(|members| members.into_iter().collect())
}

fn filled(value: Value, secret: &str) -> Value {
    let fill = |text: &str| text.replace(PLACE, secret);
    match value {
        Value::String(text) => fill(&text).into(),
        Value::Array(items) => items.into_iter().map(|item| filled(item, secret)).collect(),
        Value::Object(members) => {
            members.into_iter().map(|(name, value)| (fill(&name), filled(value, secret))).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

fn filled_extra(extra: Map<String, Value>, secret: &str) -> Map<String, Value> {
    let Value::Object(extra) = filled(extra.into(), secret) else { panic!("an object became something else") };
    extra
}

fn lifetimes() -> impl Strategy<Value = Lifetime> {
    prop_oneof![
        Just(Lifetime::Unknown),
        any::<Duration>().prop_map(Lifetime::In),
        (0..100_000_u64).prop_map(|millis| Lifetime::In(Duration::from_millis(millis))),
        any::<i64>().prop_map(|millis| Lifetime::At(Timestamp::from_millis(millis))),
    ]
}

prop_compose! {
    /// What a provider could issue: the reader of its answers lets nothing else through.
    pub(crate) fn issued()(
        access in "[!-~]{1,20}",
        refresh in proptest::option::weighted(0.8, refresh_tokens()),
        token_type in proptest::option::of(texts()),
        scope in proptest::option::weighted(0.8, texts()),
        lifetime in lifetimes(),
        extra in extras(),
    ) -> Issued {
        let secret = refresh.clone().unwrap_or_else(|| "no-secret".into());
        let fill = |text: Option<String>| text.map(|text| text.replace(PLACE, &secret));
        let access = if access.contains(&secret) || holds_forbidden_text(&access) { "at".into() } else { access };
        Issued {
            access_token: AccessToken::new(access).unwrap(),
            token_type: fill(token_type),
            lifetime,
            scope: fill(scope),
            refresh_token: refresh.map(|text| RefreshToken::new(text).unwrap()),
            extra: filled_extra(extra, &secret).into(),
        }
    }
}

prop_compose! {
    /// Any grant there could be.
    pub(crate) fn grants()(
        issued in issued(),
        id in any::<[u8; 16]>(),
        generation in prop_oneof![1..10_u64, any::<u64>()],
        now in any::<i64>(),
    ) -> Grant {
        let grant = Grant::new(GrantId::from_bytes(id), issued, Timestamp::from_millis(now));
        Grant { version: Version { generation, ..grant.version }, ..grant }
    }
}

#[expect(clippy::disallowed_methods, reason = "the test made the token up")]
fn text_of(token: &RefreshToken) -> String {
    token.expose_secret().to_owned()
}

proptest! {
    #[test]
    fn the_view_of_any_grant_gives_nothing_away(grant in grants(), expose in vec(names(), 0..6)) {
        let secret = grant.refresh_token.as_ref().map(text_of);
        let expose: Vec<String> =
            expose.iter().map(|name| name.replace(PLACE, secret.as_deref().unwrap_or("x"))).collect();
        let token = SanitizedToken::of(&grant, &expose);
        let json = String::from_utf8(token.json().to_vec()).unwrap();
        prop_assert!(!holds_forbidden_text(&json), "{json}");
        let view: Map<String, Value> = serde_json::from_str(&json).unwrap();
        prop_assert!(view.values().all(|value| !(value.is_null() || value.is_array() || value.is_object())), "{json}");
        if let Some(secret) = secret {
            prop_assert!(!json.contains(&secret), "{json} holds {secret}");
            for (name, value) in &view {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                prop_assert!(!name.contains(&secret) && !text.contains(&secret), "{name}: {text} holds {secret}");
            }
        }
        // No member stands there twice, and those of the standard mean what the grant means.
        prop_assert_eq!(Value::Object(view.clone()).to_string().len(), json.len(), "{}", json);
        prop_assert_eq!(view.get("expiry").cloned(), grant.expires_at.map(|end| json!(end.as_secs())));
        prop_assert_eq!(view.get("scope").and_then(Value::as_str), token.scope.as_deref());
        prop_assert!(view["access_token"].is_string() && view["token_type"].is_string());
        prop_assert!(token.scope.is_none_or(|scope| !scope.trim().is_empty()));
    }

    #[test]
    fn a_refresh_loses_nothing_that_was_not_given_anew(before in grants(), issued in issued(), now in any::<i64>()) {
        let now = Timestamp::from_millis(now);
        let quoted = before.refresh_token.as_ref().is_some_and(|presented| {
            let texts = [issued.token_type.clone(), issued.scope.clone()];
            let members = Value::from(issued.extra.members().clone()).to_string();
            texts.iter().flatten().any(|text| presented.occurs_in(text)) || presented.occurs_in(&members)
        });
        prop_assume!(!quoted, "what quotes the token that was presented is dropped");
        let (version, scope, extra) = (before.version, before.scope.clone(), before.extra.members().clone());
        let secret = issued.refresh_token.as_ref().or(before.refresh_token.as_ref()).map(text_of);
        let (new_scope, new_extra, lifetime) = (issued.scope.clone(), issued.extra.members().clone(), issued.lifetime);
        let token_type = issued.token_type.clone().unwrap_or_else(|| before.token_type.clone());
        let after = before.refreshed(issued, now);
        prop_assert_eq!(after.version, Version { generation: version.generation.saturating_add(1), ..version });
        prop_assert_eq!(after.refresh_token.as_ref().map(text_of), secret);
        prop_assert_eq!(after.token_type, token_type);
        for name in extra.keys().chain(new_extra.keys()) {
            let new = new_extra.get(name).filter(|value| !value.is_null());
            prop_assert_eq!(after.extra.members().get(name), new.or(extra.get(name)), "{}", name);
        }
        prop_assert!(after.extra.members().keys().all(|name| extra.contains_key(name) || new_extra.contains_key(name)));
        prop_assert_eq!(after.issued_at, now);
        prop_assert!(after.expires_at.is_none_or(|end| end > now), "a new token is never known to be expired");
        match lifetime {
            Lifetime::Unknown => prop_assert_eq!(after.expires_at, None),
            Lifetime::In(life) => prop_assert!(after.expires_at.is_none_or(|end| end == now.plus(life))),
            Lifetime::At(end) => prop_assert_eq!(after.expires_at, Some(end).filter(|end| *end > now)),
        }
        let blank = |scope: &Option<String>| scope_items(scope.as_deref().unwrap_or("")).all(|item| item.trim().is_empty());
        prop_assert_eq!(after.scope.is_none(), blank(&scope) && blank(&new_scope), "{:?}", after.scope);
        let items = |scope: &Option<String>| -> Vec<String> {
            scope.iter().flat_map(|scope| scope_items(scope)).map(str::to_owned).collect()
        };
        if scope.is_some() && items(&new_scope).iter().all(|item| items(&scope).contains(item)) {
            prop_assert_eq!(after.scope, scope, "the scope was narrowed");
        }
    }

    #[test]
    fn a_narrowed_answer_keeps_the_scope(
        scope in vec("[a-z]{1,3}", 1..6),
        chosen in vec(any::<proptest::sample::Index>(), 0..6),
        comma in any::<bool>(),
    ) {
        let granted = scope.join(" ");
        let answered: Vec<_> = chosen.iter().map(|index| index.get(&scope).as_str()).collect();
        let answered = answered.join(if comma { "," } else { " " });
        prop_assert_eq!(merge_scope(Some(granted.clone()), Some(answered)), Some(granted));
    }

    #[test]
    fn no_number_makes_a_lifetime_of_nothing_or_for_ever(number in any::<f64>(), text in ".{0,12}|[0-9.eE+-]{0,24}") {
        let longest = Duration::from_secs_f64(MAX_LIFETIME_SECS);
        for value in [json!(number), json!(number.to_string()), json!(text)] {
            match Lifetime::from_expires_in(&value) {
                None | Some(Lifetime::Unknown) => {}
                Some(Lifetime::In(life)) => prop_assert!(life <= longest, "{value}"),
                Some(at) => prop_assert!(false, "{value} is {at:?}"),
            }
            match Lifetime::from_expires_at(&value) {
                None | Some(Lifetime::Unknown) => {}
                Some(Lifetime::At(end)) => {
                    prop_assert!(end >= Timestamp::from_millis(0) && end <= Timestamp::from_millis(0).plus(longest * 2));
                }
                Some(life) => prop_assert!(false, "{value} is {life:?}"),
            }
        }
    }

    #[test]
    fn a_whole_number_of_seconds_is_that_life(seconds in 1..3_000_000_000_u64) {
        let life = Some(Lifetime::In(Duration::from_secs(seconds)));
        prop_assert_eq!(Lifetime::from_expires_in(&json!(seconds)), life);
        prop_assert_eq!(Lifetime::from_expires_in(&json!(format!(" {seconds} "))), life);
    }

    #[test]
    fn every_version_reads_back_and_other_texts_do_not(
        id in any::<[u8; 16]>(), generation in any::<u64>(), text in ".{0,60}|[0-9a-fA-F+:]{30,40}:[0-9+]{0,22}",
    ) {
        let version = Version { id: GrantId::from_bytes(id), generation };
        prop_assert_eq!(version.to_string().parse(), Ok(version));
        prop_assert_eq!(GrantId::from_bytes(version.id.to_bytes()), version.id);
        if let Ok(read) = text.parse::<Version>() {
            let (id, generation) = text.split_once(':').unwrap();
            prop_assert_eq!(read.id.to_string(), id.to_lowercase());
            prop_assert_eq!(generation.parse(), Ok(read.generation));
        }
    }
}
