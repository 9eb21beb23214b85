//! Clients that sign: what they show is good for whoever has the public key, once, for this client and this provider.

use std::collections::HashSet;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use credproxy::{
    clock::{Clock as _, SystemClock},
    dialect::{Algorithm, Dialect, MemberNames, RequestForm, RequestFormat},
    provider::{
        Provider as _,
        oauth2::{Assertions, Authentication, KeyError, OAuth2, Settings},
    },
    secret::{AuthorizationCode, ClientKey, DeviceCode},
};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData as _};
use ring::signature::{
    self, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256,
    RsaKeyPair, UnparsedPublicKey, VerificationAlgorithm,
};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use url::Url;

use crate::{
    provider_wire::{
        class, discovering, grant,
        logins::{logging_in, verifier},
        provider, settings,
    },
    support::issuer::{Issuer, Raw, Seen},
};

const RSA: &str = include_str!("../../support/rsa.pem");

const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// A private key in PEM form, and how others check what it signed.
struct Signer {
    pem: String,
    public: UnparsedPublicKey<Vec<u8>>,
}

impl Signer {
    fn new(algorithm: Algorithm) -> Self {
        let made = |kind, checked: &'static dyn VerificationAlgorithm| {
            let pair = KeyPair::generate_for(kind).unwrap();
            Self { public: UnparsedPublicKey::new(checked, pair.der_bytes().to_vec()), pem: pair.serialize_pem() }
        };
        let rsa = |checked: &'static dyn VerificationAlgorithm| {
            let der = PrivatePkcs8KeyDer::from_pem_slice(RSA.as_bytes()).unwrap();
            let public = RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).unwrap().public().as_ref().to_vec();
            Self { public: UnparsedPublicKey::new(checked, public), pem: RSA.to_owned() }
        };
        match algorithm {
            Algorithm::Rs256 => rsa(&RSA_PKCS1_2048_8192_SHA256),
            Algorithm::Ps256 => rsa(&RSA_PSS_2048_8192_SHA256),
            Algorithm::Es256 => made(&PKCS_ECDSA_P256_SHA256, &ECDSA_P256_SHA256_FIXED),
            Algorithm::Es384 => made(&PKCS_ECDSA_P384_SHA384, &ECDSA_P384_SHA384_FIXED),
            Algorithm::EdDsa => made(&PKCS_ED25519, &signature::ED25519),
        }
    }

    /// Header and claims of an assertion whose signature is this key's.
    fn check(&self, assertion: &str) -> (Value, Value) {
        let (signed, signature) = assertion.rsplit_once('.').unwrap();
        self.public.verify(signed.as_bytes(), &decode(signature)).expect("another key signed this");
        let (header, claims) = signed.split_once('.').unwrap();
        let read = |part| serde_json::from_slice(&decode(part)).unwrap();
        (read(header), read(claims))
    }
}

fn decode(part: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(part).unwrap()
}

fn read(
    pem: &str,
    algorithm: Option<Algorithm>,
    id: Option<&str>,
    audience: Option<&str>,
) -> Result<Assertions, KeyError> {
    let key = ClientKey::new(pem.to_owned()).unwrap();
    Assertions::new(&key, algorithm, id.map(str::to_owned), audience.map(str::to_owned))
}

/// What signs with a key that nobody has seen.
pub(crate) fn assertions() -> Assertions {
    read(&Signer::new(Algorithm::Es256).pem, None, None, None).unwrap()
}

fn signing(assertions: Assertions, settings: Settings) -> Settings {
    Settings { authentication: Authentication::Key(Ok(Box::new(assertions))), ..settings }
}

/// The only value of a form's parameter.
#[track_caller]
fn only(seen: &Seen, name: &str) -> String {
    let values: Vec<_> = url::form_urlencoded::parse(seen.body.as_bytes())
        .filter(|(key, _)| key == name)
        .map(|(_, value)| value)
        .collect();
    let [value] = &values[..] else { panic!("{name}: {values:?}") };
    value.to_string()
}

/// Everything that a provider is asked with a body.
async fn ask_everything(provider: &OAuth2) {
    provider.exchange(&AuthorizationCode::new("canary-code".into()).unwrap(), "https://p.example/", &verifier()).await;
    provider.start_device(&verifier()).await.ok();
    provider.poll_device(&DeviceCode::new("canary-device".into()).unwrap(), &verifier()).await;
    for _ in 0..2 {
        provider.refresh(&grant("canary-at", Some("canary-rt"))).await;
    }
    provider.revoke(&grant("canary-at", Some("canary-rt"))).await;
}

#[tokio::test]
async fn every_request_shows_a_new_assertion_that_others_can_check() {
    for algorithm in Algorithm::ALL {
        let issuer = Issuer::start().await;
        let signer = Signer::new(algorithm);
        let mut settings =
            signing(read(&signer.pem, Some(algorithm), Some("key-1"), None).unwrap(), logging_in(&issuer));
        settings.endpoints.revocation = Some(Url::parse(&issuer.revocation_endpoint()).unwrap());
        ask_everything(&provider(settings)).await;
        let mut ids = HashSet::new();
        let now = SystemClock::new().now().as_secs();
        for seen in issuer.requests() {
            assert_eq!(only(&seen, "client_assertion_type"), ASSERTION_TYPE);
            assert_eq!(only(&seen, "client_id"), "client-1");
            assert!(seen.header("authorization").is_none() && !seen.body.contains("client_secret"), "{seen:?}");
            let (header, claims) = signer.check(&only(&seen, "client_assertion"));
            assert_eq!(header, json!({"alg": algorithm.name(), "typ": "JWT", "kid": "key-1"}));
            let number = |name: &str| claims[name].as_i64().unwrap();
            let id = claims["jti"].as_str().unwrap();
            assert_eq!(decode(id).len(), 16, "{claims}");
            assert!(ids.insert(id.to_owned()), "{id} twice");
            assert!((now - 60..=now).contains(&number("iat")), "{claims} at {now}");
            assert_eq!(number("exp") - number("iat"), 60);
            let whole = json!({"iss": "client-1", "sub": "client-1", "aud": issuer.token_endpoint(), "jti": id,
                "iat": number("iat"), "exp": number("exp")});
            assert_eq!(claims, whole);
        }
        assert_eq!(ids.len(), 6);
    }
}

#[tokio::test]
async fn an_assertion_is_for_the_issuer_as_it_spells_itself_or_for_whom_the_configuration_names() {
    let issuer = Issuer::start().await;
    let spelled = format!("{}/", issuer.origin());
    issuer.serve("/.well-known/openid-configuration", Raw::json(200, &issuer.metadata(&spelled)));
    let signer = Signer::new(Algorithm::Es256);
    for (audience, expected) in [(None, spelled.as_str()), (Some("urn:corp"), "urn:corp")] {
        let settings = signing(read(&signer.pem, None, None, audience).unwrap(), discovering(&issuer.origin()));
        let (access, token) = issuer.new_grant();
        assert_eq!(class(&provider(settings).refresh(&grant(&access, Some(&token))).await), "200 issued");
        let (header, claims) = signer.check(&only(issuer.requests().last().unwrap(), "client_assertion"));
        assert_eq!((header, &claims["aud"]), (json!({"alg": "ES256", "typ": "JWT"}), &json!(expected)));
    }
}

#[tokio::test]
async fn an_assertion_goes_out_under_the_providers_name_and_in_json() {
    let issuer = Issuer::start().await;
    let signer = Signer::new(Algorithm::EdDsa);
    let names = MemberNames::new([("client_assertion", "clientAssertion"), ("client_id", "clientId")]).unwrap();
    let requests = RequestForm { format: RequestFormat::Json, ..RequestForm::default() };
    let dialect = Dialect { names, requests, ..Dialect::default() };
    let settings = signing(read(&signer.pem, None, None, None).unwrap(), settings(&issuer.token_endpoint()));
    provider(Settings { dialect, ..settings }).refresh(&grant("canary-at", Some("canary-rt"))).await;
    let mut body: Value = serde_json::from_str(&issuer.requests()[0].body).unwrap();
    signer.check(body["clientAssertion"].take().as_str().unwrap());
    let expected = json!({"clientAssertion": null, "client_assertion_type": ASSERTION_TYPE, "clientId": "client-1",
        "grant_type": "refresh_token", "refresh_token": "canary-rt"});
    assert_eq!(body, expected);
}

#[tokio::test]
async fn without_a_key_nothing_is_sent() {
    let issuer = Issuer::start().await;
    let authentication = Authentication::Key(Err("the client key could not be read"));
    let mut settings = Settings { authentication, ..logging_in(&issuer) };
    settings.endpoints.revocation = Some(Url::parse(&issuer.revocation_endpoint()).unwrap());
    let provider = provider(settings);
    let reply = provider.refresh(&grant("canary-at", Some("canary-rt"))).await;
    assert_eq!(class(&reply), "not sent: the client key could not be read");
    ask_everything(&provider).await;
    assert!(issuer.requests().is_empty());
}

const P521: &str = "-----BEGIN PRIVATE KEY-----
MIHuAgEAMBAGByqGSM49AgEGBSuBBAAjBIHWMIHTAgEBBEIAhzINTcfM6bNarvtZ
dq2EOiaTpwDN0VNaPhTk5EzACZhc0sZ0FkApfOtdloPFt2iDOuQCQLXld4wAHSRa
rSFX+nChgYkDgYYABAF8Wbrh2mb6uMrTb0JNbsfTEfT3s2fYw/JcaQ+G63eo92ik
oYWgJf8gvOm4zf2J8lkoqRuCvU5TczjlKYK5lavYdAAIM3VgXww4XvWNTn/4L/k6
W3Pd4HThy+FXAE9KGozKUdZZuenTU6Gn6FbxikAHEGJdj2BhOZSCqTSM/Nc3CstD
eA==
-----END PRIVATE KEY-----
";

const SEC1: &str = "-----BEGIN EC PRIVATE KEY-----
MHcCAQEEILO3qch66Lj+Ja2xlqAQ9BsALH+qipTHg+qbgK8LElUxoAoGCCqGSM49
AwEHoUQDQgAEJD84s36alBLZ9wcqaBwn1qlYjZla7P+EZCFckinKpJnp48BLRdiy
UzkLwuX91nUzoSV6exVJ07WIeeygn1yzmw==
-----END EC PRIVATE KEY-----
";

#[test]
fn a_key_that_signs_nothing_is_refused_without_being_shown() {
    let p256 = Signer::new(Algorithm::Es256).pem;
    let other_form = p256.replace("PRIVATE KEY", "RSA PRIVATE KEY");
    let encrypted = p256.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let (half, _) = p256.split_at(p256.len() / 2);
    let damaged = "-----BEGIN PRIVATE KEY-----\nY2FuYXJ5\n-----END PRIVATE KEY-----\n";
    for (pem, error) in [
        ("canary", KeyError::Form),
        (half, KeyError::Form),
        (other_form.as_str(), KeyError::Form),
        (encrypted.as_str(), KeyError::Form),
        (SEC1, KeyError::Form),
        (damaged, KeyError::Kind),
        (P521, KeyError::Kind),
    ] {
        let found = read(pem, None, None, None).unwrap_err();
        assert_eq!(found, error, "{pem}");
        assert!(!found.to_string().contains("canary"));
    }
    for wanted in Algorithm::ALL {
        for own in Algorithm::ALL {
            let fits =
                own == wanted || [own, wanted].iter().all(|one| [Algorithm::Rs256, Algorithm::Ps256].contains(one));
            let found = read(&Signer::new(own).pem, Some(wanted), None, None);
            assert_eq!(found.err(), (!fits).then_some(KeyError::Algorithm), "{own:?} for {wanted:?}");
        }
    }
    let shown = format!("{:?}", read(&p256, None, None, None).unwrap());
    assert!(shown.contains("REDACTED"), "{shown}");
}
