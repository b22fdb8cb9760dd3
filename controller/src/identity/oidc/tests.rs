use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Form, Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer, SigningKey};
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::*;
use crate::identity::system_clock;

const CLIENT: &str = "postern";
const SECRET: &str = "client-secret";
const CODE: &str = "the-code";

/// How the hostile provider signs.
#[derive(Clone, Copy)]
enum Sign {
    Own,
    /// By another key, under the identifier of its own.
    Stranger,
    /// Nothing, `alg: none`.
    Nothing,
    /// HMAC by the client's secret.
    ClientSecret,
    /// HMAC by the bytes of the public key (key confusion).
    PublicKey,
    /// By its own key, and then a claim is changed.
    ThenTamper,
}

/// A provider in this process that says what a test tells it to.
struct Idp {
    issuer: String,
    key: Mutex<(SigningKey, String)>,
    change: Box<dyn Fn(&mut Value) + Send + Sync>,
    sign: Sign,
    challenge_and_nonce: Mutex<(String, String)>,
    metadata_issuer: Option<String>,
    key_fetches: AtomicUsize,
    scopes: Mutex<Option<Vec<&'static str>>>,
    refuses: Mutex<Option<Value>>,
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Idp {
    async fn start(sign: Sign, change: impl Fn(&mut Value) + Send + Sync + 'static) -> Arc<Self> {
        Self::start_as(sign, change, None).await
    }

    async fn start_as(
        sign: Sign,
        change: impl Fn(&mut Value) + Send + Sync + 'static,
        metadata_issuer: Option<String>,
    ) -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let idp = Arc::new(Self {
            issuer: format!("http://{}", listener.local_addr().expect("an address")),
            key: Mutex::new((SigningKey::from_bytes(&[1; 32]), "k1".into())),
            change: Box::new(change),
            sign,
            challenge_and_nonce: Mutex::default(),
            metadata_issuer,
            key_fetches: AtomicUsize::new(0),
            scopes: Mutex::default(),
            refuses: Mutex::default(),
        });
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(Self::metadata))
            .route("/jwks", get(Self::keys))
            .route("/token", post(Self::token))
            .with_state(idp.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        idp
    }

    async fn metadata(State(idp): State<Arc<Self>>) -> Json<Value> {
        let at = |path: &str| format!("{}{path}", idp.issuer);
        let mut metadata = json!({
            "issuer": idp.metadata_issuer.as_ref().unwrap_or(&idp.issuer),
            "authorization_endpoint": at("/auth"), "token_endpoint": at("/token"), "jwks_uri": at("/jwks"),
            "response_types_supported": ["code"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["EdDSA", "RS256", "HS256", "none"],
            "authorization_response_iss_parameter_supported": true,
        });
        if let Some(scopes) = &*idp.scopes.lock().expect("not poisoned") {
            metadata["scopes_supported"] = json!(scopes);
        }
        Json(metadata)
    }

    async fn keys(State(idp): State<Arc<Self>>) -> Json<Value> {
        idp.key_fetches.fetch_add(1, Ordering::SeqCst);
        let (key, kid) = &*idp.key.lock().expect("not poisoned");
        let x = base64(key.verifying_key().as_bytes());
        Json(json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": kid, "x": x}]}))
    }

    async fn token(State(idp): State<Arc<Self>>, Form(form): Form<Vec<(String, String)>>) -> Response {
        if let Some(refusal) = idp.refuses.lock().expect("not poisoned").clone() {
            return (StatusCode::BAD_REQUEST, Json(refusal)).into_response();
        }
        let field = |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let challenge = base64(Sha256::digest(field("code_verifier").unwrap_or_default()));
        if field("code") != Some(CODE) || challenge != idp.challenge_and_nonce.lock().expect("not poisoned").0 {
            return (StatusCode::BAD_REQUEST, Json(json!({"error": "invalid_grant"}))).into_response();
        }
        let mut answer = json!({"access_token": "access", "token_type": "Bearer"});
        let token = idp.id_token();
        if !token.is_empty() {
            answer["id_token"] = token.into();
        }
        Json(answer).into_response()
    }

    fn id_token(&self) -> String {
        let now = system_clock()().as_millis() / 1_000;
        let mut claims = json!({
            "iss": self.issuer, "sub": "alice-1", "aud": CLIENT, "iat": now, "exp": now + 300,
            "nonce": self.challenge_and_nonce.lock().expect("not poisoned").1,
            "email": "alice@corp.example", "groups": ["staff"], "acr": "mfa", "amr": ["pwd", "otp"], "auth_time": now - 60,
        });
        (self.change)(&mut claims);
        if claims.is_null() {
            return String::new();
        }
        let (key, kid) = &*self.key.lock().expect("not poisoned");
        let algorithm = match self.sign {
            Sign::Own | Sign::Stranger | Sign::ThenTamper => "EdDSA",
            Sign::Nothing => "none",
            Sign::ClientSecret | Sign::PublicKey => "HS256",
        };
        let head = base64(json!({"alg": algorithm, "kid": kid}).to_string());
        let text = format!("{head}.{}", base64(claims.to_string()));
        let hmac = |key: &[u8]| {
            let mac = Hmac::<Sha256>::new_from_slice(key).expect("any length").chain_update(&text);
            base64(mac.finalize().into_bytes())
        };
        let signature = match self.sign {
            Sign::Own | Sign::ThenTamper => base64(key.sign(text.as_bytes()).to_bytes()),
            Sign::Stranger => base64(SigningKey::from_bytes(&[9; 32]).sign(text.as_bytes()).to_bytes()),
            Sign::Nothing => String::new(),
            Sign::ClientSecret => hmac(SECRET.as_bytes()),
            Sign::PublicKey => hmac(key.verifying_key().as_bytes()),
        };
        if matches!(self.sign, Sign::ThenTamper) {
            claims["groups"] = json!(["staff", "admins"]);
            return format!("{head}.{}.{signature}", base64(claims.to_string()));
        }
        format!("{text}.{signature}")
    }
}

fn provider(idp: &Idp) -> Arc<Provider> {
    let mut settings = ProviderSettings::new(idp.issuer.parse().expect("a URL"), CLIENT);
    settings.client_secret = Some(SECRET.to_owned().into());
    Provider::new(settings, &"https://ctl.corp.example/".parse().expect("a URL")).expect("usable")
}

/// One person's browser on the way to the provider and back.
struct Walk {
    idp: Arc<Idp>,
    provider: Arc<Provider>,
    browser: Token,
    callback: Callback,
}

impl Walk {
    async fn begin(idp: &Arc<Idp>, provider: &Arc<Provider>) -> Self {
        Self::asking(idp, provider, Ask::SignIn).await.0
    }

    /// Begins, and returns what the provider is asked for.
    async fn asking(idp: &Arc<Idp>, provider: &Arc<Provider>, ask: Ask<'_>) -> (Self, BTreeMap<String, String>) {
        let browser = Token::draw();
        let url = provider.begin(&browser, "/join", ask, system_clock()()).await.expect("begins");
        let query = |name: &str| url.query_pairs().find(|(key, _)| key == name).expect("is there").1.into_owned();
        assert_eq!((query("response_type").as_str(), query("code_challenge_method").as_str()), ("code", "S256"));
        assert_eq!(query("redirect_uri"), "https://ctl.corp.example/oidc/callback");
        *idp.challenge_and_nonce.lock().expect("not poisoned") = (query("code_challenge"), query("nonce"));
        let callback = Callback {
            state: Some(query("state")),
            code: Some(CODE.into()),
            iss: Some(idp.issuer.clone()),
            error: None,
            error_description: None,
        };
        let asked = url.query_pairs().into_owned().collect();
        (Self { idp: idp.clone(), provider: provider.clone(), browser, callback }, asked)
    }

    async fn fresh(sign: Sign, change: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        let idp = Idp::start(sign, change).await;
        let provider = provider(&idp);
        Self::begin(&idp, &provider).await
    }

    async fn finish(&self) -> Result<Proof, OidcError> {
        let finished = self.provider.finish(self.callback.clone(), Some(&self.browser), system_clock()()).await;
        finished.map(|(proof, _, next)| {
            assert_eq!(next, "/join");
            proof
        })
    }
}

/// Asserts that a sign-in was refused because of its token, with the given words in the operator's log.
async fn token_refused(sign: Sign, words: &str, change: impl Fn(&mut Value) + Send + Sync + 'static) {
    match Walk::fresh(sign, change).await.finish().await {
        Err(OidcError::Token(why)) => assert!(why.contains(words), "`{why}` does not say `{words}`"),
        other => panic!("expected a refusal for `{words}`: {other:?}"),
    }
}

#[tokio::test]
async fn a_good_token_proves_who_signed_in_and_how() {
    let walk = Walk::fresh(Sign::Own, |_| ()).await;
    let proof = walk.finish().await.expect("verifies");
    assert_eq!((proof.issuer, proof.subject.as_str()), (walk.idp.issuer.clone(), "alice-1"));
    assert_eq!((proof.name.as_str(), proof.acr.as_deref()), ("alice@corp.example", Some("mfa")));
    assert_eq!(proof.groups.map(|groups| groups.into_iter().collect::<Vec<_>>()), Some(vec!["staff".to_owned()]));
    assert_eq!((proof.amr.len(), proof.auth_time.is_some()), (2, true));
}

/// What happened at the controller between a sign-in and a moment that the provider's clock calls the same is not answered by it.
#[tokio::test]
async fn a_sign_in_by_a_clock_that_is_ahead_is_of_no_later_than_when_it_came() {
    let now = || system_clock()().as_millis();
    let ahead = now() / 1_000 + 40;
    let proof = Walk::fresh(Sign::Own, move |claims| claims["auth_time"] = json!(ahead)).await.finish().await;
    let proven = proof.expect("verifies").auth_time.expect("a time");
    assert!(proven.as_millis() <= now(), "{proven:?}");
}

#[tokio::test]
async fn groups_missing_from_the_token_are_unknown() {
    let remove = |claims: &mut Value| drop(claims.as_object_mut().and_then(|claims| claims.remove("groups")));
    assert_eq!(Walk::fresh(Sign::Own, remove).await.finish().await.expect("verifies").groups, None);
    assert_eq!(
        Walk::fresh(Sign::Own, |claims| claims["groups"] = json!([])).await.finish().await.expect("verifies").groups,
        Some(Default::default())
    );
}

#[tokio::test]
async fn an_address_that_the_provider_calls_unverified_is_not_shown() {
    let change = |claims: &mut Value| {
        claims["email_verified"] = json!(false);
        claims["email"] = json!("ceo@corp.example");
        claims["preferred_username"] = json!("ceo@corp.example");
    };
    assert_eq!(Walk::fresh(Sign::Own, change).await.finish().await.expect("verifies").name, "alice-1");
}

#[tokio::test]
async fn a_token_for_somebody_else_is_refused() {
    token_refused(Sign::Own, "must contain", |claims| claims["aud"] = json!("other-client")).await;
    token_refused(Sign::Own, "not a trusted audience", |claims| claims["aud"] = json!([CLIENT, "other"])).await;
    token_refused(Sign::Own, "another client", |claims| claims["azp"] = json!("other-client")).await;
    token_refused(Sign::Own, "expected `http", |claims| claims["iss"] = json!("https://evil.example")).await;
}

#[tokio::test]
async fn a_token_of_another_time_or_sign_in_is_refused() {
    let now = || system_clock()().as_millis() / 1_000;
    token_refused(Sign::Own, "nonce", |claims| claims["nonce"] = json!("another")).await;
    token_refused(Sign::Own, "nonce", |claims| claims["nonce"] = Value::Null).await;
    token_refused(Sign::Own, "xpired", move |claims| claims["exp"] = json!(now() - 1)).await;
    token_refused(Sign::Own, "issued", move |claims| claims["iat"] = json!(now() - TOKEN_AGE - 5)).await;
    token_refused(Sign::Own, "issued", move |claims| claims["iat"] = json!(now() + CLOCK_SKEW + 5)).await;
}

#[tokio::test]
async fn a_token_that_the_provider_did_not_sign_is_refused() {
    token_refused(Sign::Stranger, "a key that the provider does not list", |_| ()).await;
    token_refused(Sign::ThenTamper, "a key that the provider does not list", |_| ()).await;
    token_refused(Sign::Nothing, "ignature", |_| ()).await;
    token_refused(Sign::ClientSecret, "HS256", |_| ()).await;
    token_refused(Sign::PublicKey, "HS256", |_| ()).await;
}

#[tokio::test]
async fn a_token_without_what_it_must_hold_is_refused() {
    token_refused(Sign::Own, "there is none", |claims| *claims = Value::Null).await;
    token_refused(Sign::Own, "subject", |claims| claims["sub"] = json!("")).await;
    token_refused(Sign::Own, "access token", |claims| claims["at_hash"] = json!("AAAAAAAAAAAAAAAAAAAAAA")).await;
}

#[tokio::test]
async fn an_answer_counts_once_for_its_own_browser_and_in_time() {
    let walk = Walk::fresh(Sign::Own, |_| ()).await;
    let ask = async |walk: &Walk, browser: Option<&Token>, at| {
        walk.provider.finish(walk.callback.clone(), browser, at).await.map(drop)
    };
    walk.finish().await.expect("the first time");
    assert!(matches!(walk.finish().await, Err(OidcError::State)), "reused");
    let walk = Walk::begin(&walk.idp, &walk.provider).await;
    let later = system_clock()().saturating_add(PENDING_LIFETIME); // counted from this walk's beginning
    assert!(matches!(ask(&walk, Some(&walk.browser), later).await, Err(OidcError::State)), "late");
    let walk = Walk::begin(&walk.idp, &walk.provider).await;
    assert!(matches!(ask(&walk, Some(&Token::draw()), system_clock()()).await, Err(OidcError::State)), "another's");
    let walk = Walk::begin(&walk.idp, &walk.provider).await;
    assert!(matches!(ask(&walk, None, system_clock()()).await, Err(OidcError::State)), "nobody's");
    let mut walk = Walk::begin(&walk.idp, &walk.provider).await;
    for forged in [None, Some(String::new()), Some("x".into()), Some(Token::draw().expose().to_owned())] {
        walk.callback.state = forged;
        assert!(matches!(walk.finish().await, Err(OidcError::State)), "forged");
    }
}

#[tokio::test]
async fn a_wrong_code_and_another_sign_ins_code_are_refused() {
    let mut walk = Walk::fresh(Sign::Own, |_| ()).await;
    walk.callback.code = Some("another-code".into());
    assert!(matches!(walk.finish().await, Err(OidcError::Code(_))));
    let mut walk = Walk::begin(&walk.idp, &walk.provider).await;
    walk.callback.code = None;
    assert!(matches!(walk.finish().await, Err(OidcError::Code(_))));
    let injected = Walk::begin(&walk.idp, &walk.provider).await;
    let _victims = Walk::begin(&walk.idp, &walk.provider).await; // the code belongs to this one's challenge now
    assert!(matches!(injected.finish().await, Err(OidcError::Code(_))), "PKCE");
}

#[tokio::test]
async fn an_answer_of_another_issuer_is_refused() {
    for issuer in [Some("https://evil.example".to_owned()), None] {
        let mut walk = Walk::fresh(Sign::Own, |_| ()).await;
        walk.callback.iss = issuer;
        assert!(matches!(walk.finish().await, Err(OidcError::Issuer)));
    }
    let idp = Idp::start_as(Sign::Own, |_| (), Some("https://evil.example".into())).await;
    let began = provider(&idp).begin(&Token::draw(), "/", Ask::SignIn, system_clock()()).await;
    assert!(matches!(began, Err(OidcError::Unavailable(_))), "metadata of another issuer");
}

#[tokio::test]
async fn a_refusal_of_the_provider_is_told_as_such() {
    let mut walk = Walk::fresh(Sign::Own, |_| ()).await;
    walk.callback.error = Some("access_denied\n<script>".into());
    match walk.finish().await {
        Err(OidcError::Refused(why)) => assert_eq!(why, "access_denied<script>"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_new_key_is_read_once_and_unknown_keys_do_not_become_a_flood() {
    let walk = Walk::fresh(Sign::Own, |_| ()).await;
    walk.finish().await.expect("verifies");
    assert_eq!(walk.idp.key_fetches.load(Ordering::SeqCst), 1);
    *walk.idp.key.lock().expect("not poisoned") = (SigningKey::from_bytes(&[2; 32]), "k2".into());
    let walk = Walk::begin(&walk.idp, &walk.provider).await;
    walk.finish().await.expect("verifies by the new key");
    assert_eq!(walk.idp.key_fetches.load(Ordering::SeqCst), 2);

    let walk = Walk::fresh(Sign::Stranger, |_| ()).await;
    for _ in 0..20 {
        let walk = Walk::begin(&walk.idp, &walk.provider).await;
        walk.finish().await.expect_err("a stranger's key");
    }
    let fetches = walk.idp.key_fetches.load(Ordering::SeqCst);
    assert!(fetches <= 7, "{fetches} fetches");
}

#[tokio::test]
async fn a_provider_that_is_away_refuses_and_one_in_clear_is_not_accepted() {
    let public_url = "https://ctl.corp.example/".parse().expect("a URL");
    let settings = ProviderSettings::new("http://127.0.0.1:9/".parse().expect("a URL"), CLIENT);
    let away = Provider::new(settings, &public_url).expect("usable");
    assert!(matches!(
        away.begin(&Token::draw(), "/", Ask::SignIn, system_clock()()).await,
        Err(OidcError::Unavailable(_))
    ));
    for clear in ["http://idp.corp.example/", "http://localhost/", "http://192.0.2.1/"] {
        let settings = ProviderSettings::new(clear.parse().expect("a URL"), CLIENT);
        assert!(matches!(Provider::new(settings, &public_url), Err(SettingsError::Insecure(_))), "{clear}");
    }
}

/// A provider may take `prompt`, `max_age` and `acr_values` for what they are, hints.
#[tokio::test]
async fn what_was_to_be_proven_anew_has_to_say_that_it_was() {
    let demand =
        Demand { mfa_within: Some(Duration::from_secs(900)), phishing: Phishing::Resistant, ..Demand::default() };
    let now = || system_clock()().as_millis() / 1_000;
    let walk = async |auth_time: Value| {
        let idp = Idp::start(Sign::Own, move |claims| claims["auth_time"] = auth_time.clone()).await;
        Walk::asking(&idp, &provider(&idp), Ask::Anew(&demand)).await
    };
    let (fresh, asked) = walk(json!(now())).await;
    for (name, value) in [("prompt", "login"), ("max_age", "900"), ("acr_values", "phrh phr")] {
        assert_eq!(asked.get(name).map(String::as_str), Some(value), "{name}");
    }
    let proof = fresh.finish().await.expect("proven anew");
    assert_eq!(proof.acr.as_deref(), Some("mfa"), "what came back, and not what was asked for");
    for (auth_time, why) in [(json!(now() - 120), "old"), (Value::Null, "absent"), (json!(now() + 3_600), "not yet")] {
        let refused = walk(auth_time).await.0.finish().await;
        assert!(matches!(refused, Err(OidcError::Token(_))), "{why}: {refused:?}");
    }
}

#[tokio::test]
async fn a_provider_is_asked_for_no_scope_that_it_does_not_have_unless_the_operator_chose_it() {
    for (listed, chosen, asked) in [
        (Some(vec!["openid", "profile", "email", "offline_access"]), None, "openid profile email"), // Entra
        (Some(vec!["openid", "groups", "email", "profile"]), None, "openid profile email groups"),
        (None, None, "openid profile email"),
        (Some(vec!["openid", "profile"]), Some(vec!["groups".to_owned()]), "openid groups"),
    ] {
        let idp = Idp::start(Sign::Own, |_| ()).await;
        idp.scopes.lock().expect("not poisoned").clone_from(&listed);
        let mut settings = ProviderSettings::new(idp.issuer.parse().expect("a URL"), CLIENT);
        settings.scopes.clone_from(&chosen);
        let own = "https://ctl.corp.example/".parse().expect("a URL");
        let provider = Provider::new(settings, &own).expect("usable");
        let (_, url) = Walk::asking(&idp, &provider, Ask::SignIn).await;
        assert_eq!(url["scope"], asked, "{listed:?} {chosen:?}");
    }
}

#[tokio::test]
async fn a_refusal_that_trying_again_does_not_mend_is_told_apart_with_what_the_provider_says() {
    for (error, expected) in [
        ("invalid_scope", Some("invalid_scope")),
        ("unauthorized_client", Some("unauthorized_client")),
        ("access_denied", None),
        ("login_required", None),
    ] {
        let mut walk = Walk::fresh(Sign::Own, |_| ()).await;
        walk.callback.error = Some(error.into());
        walk.callback.error_description = Some(format!("Invalid\u{7} scopes: {}", "x".repeat(1_000)));
        match (walk.finish().await, expected) {
            (Err(OidcError::NotSetUp { error, described }), Some(expected)) => {
                assert_eq!(error, expected);
                assert!(described.starts_with("Invalid scopes: x") && described.len() == 200, "{described}");
            }
            (Err(OidcError::Refused(why)), None) => assert!(why.contains("Invalid scopes") && why.len() == 200),
            other => panic!("{error}: {other:?}"),
        }
    }
    let walk = Walk::fresh(Sign::Own, |_| ()).await;
    *walk.idp.refuses.lock().expect("not poisoned") =
        Some(json!({"error": "invalid_client", "error_description": "wrong secret"}));
    let refused = walk.finish().await;
    assert!(
        matches!(&refused, Err(OidcError::NotSetUp { error: "invalid_client", described }) if described == "wrong secret"),
        "{refused:?}"
    );
}
