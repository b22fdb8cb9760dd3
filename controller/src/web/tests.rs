//! The pages as a client without good manners sees them.

mod logout;
mod nothing;
mod signals;

use std::{net::SocketAddr, sync::Mutex};

use axum::{
    body::{Body, to_bytes},
    extract::ConnectInfo,
    http::{HeaderMap, Method, Request, StatusCode, header},
};
use postern_common::time::WallTime;
use tower::ServiceExt;

use self::nothing::Nothing;
use super::{event::IdentityAction, *};
use crate::identity::{
    local::{AccountRole, AccountStatus, Credential, NewAccount, SealingKey},
    sessions::{SessionLimits, test_pool},
    system_clock,
};
use crate::signals::events::Receivers;

const OWN: &str = "https://ctl.corp.example";
const PASSWORD: &str = "correct horse battery";

struct Site {
    router: Router,
    doors: Arc<Nothing>,
    web: Arc<Web>,
    now: Arc<Mutex<WallTime>>,
}

struct Page {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Page {
    fn cookie(&self, name: &str) -> Option<String> {
        let set = self.headers.get_all(header::SET_COOKIE).iter().filter_map(|value| value.to_str().ok());
        set.filter_map(|text| text.split(';').next()).find(|pair| pair.split('=').next() == Some(name)).map(Into::into)
    }

    fn token(&self) -> String {
        let (_, rest) = self.text.split_once(r#"name="token" value=""#).expect("a form");
        rest.split('"').next().expect("a value").to_owned()
    }
}

async fn site(local: LocalAccounts) -> Site {
    site_with(local, Receivers::default()).await
}

async fn site_with(local: LocalAccounts, events: Receivers) -> Site {
    site_of(SignInWays { provider: None, local }, events).await
}

async fn site_of(ways: SignInWays, events: Receivers) -> Site {
    let pool = test_pool().await;
    let accounts = Arc::new(Accounts::new(pool.clone(), OWN, SealingKey::from_bytes([7; 32])));
    let now = Arc::new(Mutex::new(system_clock()()));
    let clock = now.clone();
    let new = NewAccount { login: "alice".into(), groups: Default::default(), role: AccountRole::Person };
    accounts.add(new, system_clock()()).await.expect("adds");
    let earlier = WallTime::from_millis(system_clock()().as_millis() - 3_600_000);
    accounts.set_password("alice", PASSWORD, earlier).await.expect("sets");
    let doors = Arc::new(Nothing::default());
    let web = Arc::new(Web {
        public_url: format!("{OWN}/").parse().expect("a URL"),
        join_link: format!("{OWN}#k=4f9a"),
        ways,
        accounts,
        sessions: WebSessions::new(pool.clone(), SessionLimits::default()),
        vouchers: Vouchers::new(pool, SealingKey::from_bytes([7; 32])),
        events,
        doors: doors.clone(),
        clock: Arc::new(move || *clock.lock().expect("not poisoned")),
    });
    Site { router: router(web.clone()), doors, web, now }
}

impl Site {
    async fn ask(&self, request: Request<Body>) -> Page {
        let mut request = request;
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([192, 0, 2, 7], 1))));
        let answer = self.router.clone().oneshot(request).await.expect("infallible");
        let (status, headers) = (answer.status(), answer.headers().clone());
        let bytes = to_bytes(answer.into_body(), 1 << 20).await.expect("a body");
        Page { status, headers, text: String::from_utf8(bytes.into()).expect("UTF-8") }
    }

    async fn get(&self, path: &str, cookie: &str) -> Page {
        self.ask(Request::get(path).header(header::COOKIE, cookie).body(Body::empty()).expect("a request")).await
    }

    async fn post_from(&self, origin: &str, path: &str, cookie: &str, form: &[(&str, &str)]) -> Page {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let request = Request::post(path)
            .header(header::COOKIE, cookie)
            .header(header::ORIGIN, origin)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        self.ask(request.body(Body::from(body)).expect("a request")).await
    }

    async fn post(&self, path: &str, cookie: &str, form: &[(&str, &str)]) -> Page {
        self.post_from(OWN, path, cookie, form).await
    }

    /// Signs in and returns the answer and the visit's cookie.
    async fn sign_in(&self, next: &str) -> (Page, String) {
        let page = self.get("/sign-in", "").await;
        let visit = page.cookie("__Host-postern-visit").expect("a visit");
        let form =
            [("token", page.token()), ("login", "alice".into()), ("password", PASSWORD.into()), ("next", next.into())];
        let form: Vec<_> = form.iter().map(|(key, value)| (*key, value.as_str())).collect();
        (self.post("/sign-in", &visit, &form).await, visit)
    }

    async fn session(&self) -> String {
        let (page, _) = self.sign_in("/").await;
        page.cookie("__Host-postern").expect("signed in")
    }

    fn reasons(&self) -> Vec<&'static str> {
        let events = self.doors.events.lock().expect("not poisoned");
        events
            .iter()
            .filter_map(|event| match event.what {
                IdentityAction::SignInRefused { reason } => Some(reason),
                _ => None,
            })
            .collect()
    }
}

#[tokio::test]
async fn whoever_adds_a_machine_is_given_the_link_with_what_it_pins() {
    let site = site(LocalAccounts::SecondFactorOptional).await;
    let session = site.session().await;
    for path in ["/", "/join"] {
        let page = site.get(path, &session).await;
        assert!(page.text.contains(&format!("postern up {OWN}#k=4f9a<")), "{path}: {}", page.text);
    }
}

#[tokio::test]
async fn every_answer_carries_the_headers_that_keep_others_out() {
    let site = site(LocalAccounts::SecondFactorOptional).await;
    let session = site.session().await;
    for (path, cookie) in
        [("/", ""), ("/", &*session), ("/sign-in", ""), ("/nowhere", ""), ("/sign-out", ""), (assets::style(), "")]
    {
        let page = site.get(path, cookie).await;
        let header =
            |name: &str| page.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let policy = header("content-security-policy");
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "form-action 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        ] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"));
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("referrer-policy"), "no-referrer");
        assert_eq!(header("x-frame-options"), "DENY");
        assert!(header("strict-transport-security").starts_with("max-age="));
        let cached = path.starts_with("/assets/");
        assert_eq!(
            header("cache-control"),
            if cached { "public, max-age=31536000, immutable" } else { "no-store" },
            "{path}"
        );
    }
}

#[tokio::test]
async fn pages_hold_no_inline_script_or_style() {
    let site = site(LocalAccounts::SecondFactorOptional).await;
    let session = site.session().await;
    for path in ["/", "/sign-in", "/join", "/wireguard", "/second-factor", "/nowhere"] {
        let page = site.get(path, &session).await;
        for inline in ["<style", " style=", " onclick", " onload", "javascript:", "<script>"] {
            assert!(!page.text.contains(inline), "{path} holds {inline}");
        }
    }
}

#[tokio::test]
async fn the_sessions_cookie_is_new_at_sign_in_and_safe() {
    let site = site(LocalAccounts::SecondFactorOptional).await;
    let (page, visit) = site.sign_in("/").await;
    assert_eq!(page.status, StatusCode::SEE_OTHER);
    let set: Vec<_> =
        page.headers.get_all(header::SET_COOKIE).iter().map(|value| value.to_str().expect("text")).collect();
    for flag in ["; Path=/", "; Secure", "; HttpOnly", "; SameSite=Lax"] {
        assert!(set.iter().all(|cookie| cookie.contains(flag)), "{set:?} {flag}");
    }
    let session = page.cookie("__Host-postern").expect("a session");
    assert_ne!(session.split('=').nth(1), visit.split('=').nth(1));
    assert_eq!(site.get("/", &session).await.status, StatusCode::OK);
    let (again, _) = site.sign_in("/").await;
    assert_ne!(again.cookie("__Host-postern"), Some(session), "never the same again");
    // A session's name with somebody's own value, or a visit's value, is no session.
    for forged in
        ["__Host-postern=x".to_owned(), visit.replace("-visit", ""), format!("__Host-postern={}", "A".repeat(43))]
    {
        assert_eq!(site.get("/", &forged).await.status, StatusCode::SEE_OTHER, "{forged}");
    }
}

#[tokio::test]
async fn a_session_ends_by_idleness_by_time_and_by_signing_out() {
    let site = site(LocalAccounts::SecondFactorOptional).await;
    let session = site.session().await;
    *site.now.lock().expect("not poisoned") = system_clock()().saturating_add(Duration::from_secs(3 * 3_600));
    assert_eq!(site.get("/", &session).await.status, StatusCode::SEE_OTHER, "idle");
    let session = site.session().await;
    let token = site.get("/", &session).await.token();
    let out = site.post("/sign-out", &session, &[("token", &token)]).await;
    assert_eq!(out.status, StatusCode::OK);
    assert!(
        out.headers
            .get_all(header::SET_COOKIE)
            .iter()
            .any(|cookie| cookie.to_str().is_ok_and(|c| c.contains("Max-Age=0")))
    );
    assert_eq!(site.get("/", &session).await.status, StatusCode::SEE_OTHER, "signed out");
    assert_eq!(site.doors.signed_out.lock().expect("not poisoned").len(), 1, "stock clients end with it");
}

/// The headers come while the session lives, the body when it is over.
#[tokio::test]
async fn whoever_holds_a_form_back_goes_on_with_no_session_that_has_ended() {
    let site = site(LocalAccounts::SecondFactorOptional).await;
    let session = site.session().await;
    let token = site.get("/", &session).await.token();
    let now = site.now.clone();
    let late = futures_util::stream::once(async move {
        *now.lock().expect("not poisoned") = system_clock()().saturating_add(Duration::from_secs(3 * 3_600));
        Ok::<_, std::io::Error>(format!("token={token}&code=123456"))
    });
    let request = Request::post("/second-factor")
        .header(header::COOKIE, &session)
        .header(header::ORIGIN, OWN)
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    let page = site.ask(request.body(Body::from_stream(late)).expect("a request")).await;
    // With the session it would be led on to set up a second factor.
    assert!(page.status.is_client_error(), "{}", page.status);
}

/// More requests than may be at work at once, whose bodies never come, each from another network.
#[tokio::test]
async fn bodies_that_do_not_come_hold_no_place_among_the_requests_at_work() {
    let site = site(LocalAccounts::SecondFactorOptional).await;
    for path in ["/sign-in", "/oidc/backchannel-logout"] {
        for number in 0..MAX_IN_FLIGHT + 10 {
            let never = futures_util::stream::pending::<Result<String, std::io::Error>>();
            let form = "application/x-www-form-urlencoded";
            let request = Request::post(path).header(header::ORIGIN, OWN).header(header::CONTENT_TYPE, form);
            let mut request = request.body(Body::from_stream(never)).expect("a request");
            let from =
                [198, 18, u8::try_from(number / 256).expect("small"), u8::try_from(number % 256).expect("small")];
            request.extensions_mut().insert(ConnectInfo(SocketAddr::from((from, 1))));
            tokio::spawn(site.router.clone().oneshot(request));
        }
    }
    for _ in 0..2_000 {
        tokio::task::yield_now().await; // every one of them has begun
    }
    assert_eq!(site.get("/sign-in", "").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_second_factor_is_set_up_by_a_fresh_sign_in_alone() {
    let site = site(LocalAccounts::SecondFactorOptional).await;
    let session = site.session().await;
    assert_eq!(site.get("/second-factor", &session).await.status, StatusCode::OK);
    *site.now.lock().expect("not poisoned") = system_clock()().saturating_add(Duration::from_secs(20 * 60));
    assert_eq!(site.get("/second-factor", &session).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn an_account_that_changes_during_its_sign_in_gets_no_session() {
    for change in ["removed", "disabled", "another password"] {
        let site = site(LocalAccounts::SecondFactorOptional).await;
        let now = system_clock()();
        let address = [192, 0, 2, 7].into();
        let account = site.web.accounts.find("alice").await.expect("there");
        let proof = site.web.accounts.prove(&account, Credential::Missing, address, now).await.expect("proven");
        match change {
            "removed" => drop(site.web.accounts.remove("alice").await.expect("removed")),
            "disabled" => {
                site.web.accounts.set_status("alice", AccountStatus::Disabled).await.expect("disabled");
            }
            _ => {
                site.web.accounts.set_password("alice", "another horse battery", now).await.expect("set");
            }
        }
        let pages = Arc::new(Pages::new(site.web.clone()));
        let visit = visit::Visit { pages, address, now, session: None, visit: None };
        assert!(
            sign_in::finish(&visit, proof, sign_in::Vouched::ByAccount(&account), visit::Next::Home).await.is_err(),
            "{change}"
        );
        assert_eq!(site.web.sessions.list(now).await.expect("works"), []);
        assert_eq!(site.reasons(), ["changed"]);
    }
}

#[tokio::test]
async fn forms_from_other_sites_and_with_other_tokens_change_nothing() {
    let site = site(LocalAccounts::SecondFactorOptional).await;
    let session = site.session().await;
    let others = site.session().await;
    let token = site.get("/", &session).await.token();
    let others_token = site.get("/", &others).await.token();
    assert_ne!(token, others_token);
    for origin in ["https://evil.example", "null", "http://ctl.corp.example", "https://ctl.corp.example:8443"] {
        let page = site.post_from(origin, "/sign-out", &session, &[("token", &token)]).await;
        assert_eq!(page.status, StatusCode::FORBIDDEN, "{origin}");
    }
    for wrong in ["", "x", &others_token, &token[1..]] {
        assert_eq!(site.post("/sign-out", &session, &[("token", wrong)]).await.status, StatusCode::FORBIDDEN);
    }
    assert_eq!(site.post("/sign-out", &session, &[]).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(site.get("/", &session).await.status, StatusCode::OK, "still signed in");
    for path in
        ["/join", "/join/confirm", "/join/refuse", "/wireguard", "/sessions/end", "/devices/remove", "/second-factor"]
    {
        let form = [
            ("token", "x"),
            ("code", "KTRM-4821"),
            ("key", "k"),
            ("name", "n"),
            ("public_key", "k"),
            ("session", "s"),
            ("device", "d"),
        ];
        assert_eq!(site.post(path, &session, &form).await.status, StatusCode::FORBIDDEN, "{path}");
        let unsigned = site.post(path, "", &form).await;
        assert_eq!(unsigned.status, StatusCode::FORBIDDEN, "{path} without a session");
    }
    let login = [("token", "x"), ("login", "alice"), ("password", PASSWORD)];
    assert_eq!(site.post("/sign-in", "", &login).await.status, StatusCode::FORBIDDEN, "login CSRF");
}

#[tokio::test]
async fn nobody_is_sent_to_another_site() {
    let site = site(LocalAccounts::SecondFactorOptional).await;
    for (next, to) in
        [("//evil.example", "/"), ("https://evil.example/", "/"), ("/join?code=ktrm4821", "/join?code=KTRM-4821")]
    {
        let (page, _) = site.sign_in(next).await;
        assert_eq!(page.headers.get(header::LOCATION).and_then(|value| value.to_str().ok()), Some(to));
    }
    let page = site.get("/join?code=%22%3E%3Cscript%3E", "").await;
    assert_eq!(page.headers.get(header::LOCATION).and_then(|value| value.to_str().ok()), Some("/sign-in?next=%2Fjoin"));
}

#[tokio::test]
async fn what_people_type_comes_back_as_text() {
    let site = site(LocalAccounts::SecondFactorOptional).await;
    let page = site.get("/sign-in", "").await;
    let visit = page.cookie("__Host-postern-visit").expect("a visit");
    let hostile = r#""><script>alert(1)</script>"#;
    let form = [("token", &*page.token()), ("login", hostile), ("password", "x"), ("next", hostile)];
    let page = site.post("/sign-in", &visit, &form).await;
    assert_eq!(page.status, StatusCode::FORBIDDEN);
    assert!(page.text.contains("&lt;script&gt;") && !page.text.contains("<script>"));
    let session = site.session().await;
    let page = site.get("/join?code=%3Cscript%3E", &session).await;
    assert!(page.text.contains("&lt;script&gt;") && !page.text.contains("<script>"));
}

#[tokio::test]
async fn a_sign_in_that_cannot_be_recorded_does_not_happen() {
    let site = site(LocalAccounts::SecondFactorOptional).await;
    site.doors.audit_fails.store(true, std::sync::atomic::Ordering::SeqCst);
    let (page, _) = site.sign_in("/").await;
    assert_eq!((page.status, page.cookie("__Host-postern")), (StatusCode::SERVICE_UNAVAILABLE, None));
    assert!(!page.text.contains("disk"), "nothing of the inside is told");
    assert!(site.web.sessions.list(system_clock()()).await.expect("works").is_empty());
}

#[tokio::test]
async fn where_a_second_factor_is_required_a_password_opens_no_session() {
    let site = site(LocalAccounts::SecondFactorRequired).await;
    let (page, _) = site.sign_in("/").await;
    let half = page.cookie("__Host-postern-visit").expect("half way");
    assert_eq!(page.cookie("__Host-postern").as_deref(), None);
    let step = site.get("/sign-in/code", &half).await;
    assert!(step.text.contains("Set up a second factor"));
    let wrong = site.post("/sign-in/code", &half, &[("token", &step.token()), ("code", "000000")]).await;
    assert_eq!((wrong.status, wrong.cookie("__Host-postern")), (StatusCode::FORBIDDEN, None));
    assert_eq!(site.reasons(), ["code"]);
    assert_eq!(site.get("/sign-in/code", "").await.status, StatusCode::SEE_OTHER, "only with the half-way cookie");
}

#[tokio::test]
async fn a_half_finished_sign_in_ends_with_a_new_password() {
    let site = site(LocalAccounts::SecondFactorRequired).await;
    let (page, _) = site.sign_in("/").await;
    let half = page.cookie("__Host-postern-visit").expect("half way");
    let step = site.get("/sign-in/code", &half).await;
    let key = step.text.split("class=\"secret\">").nth(1).and_then(|rest| rest.split('<').next()).expect("the key");
    let secret = crate::identity::local::totp::Secret::from_grouped(key);
    site.web.accounts.set_password("alice", "another horse battery", system_clock()()).await.expect("set");
    let code = secret.code_at(system_clock()());
    let refused = site.post("/sign-in/code", &half, &[("token", &step.token()), ("code", &code)]).await;
    assert_eq!((refused.status, refused.cookie("__Host-postern")), (StatusCode::FORBIDDEN, None));
    assert!(refused.text.contains("Start over"), "{}", refused.text);
    assert_eq!(site.reasons(), ["changed"]);
    assert_eq!(site.get("/sign-in/code", &half).await.status, StatusCode::SEE_OTHER, "it is over");
    let account = site.web.accounts.find("alice").await.expect("there");
    assert_eq!(account.second_factor, Credential::Missing, "the stranger chose no second factor");
}

#[tokio::test]
async fn guesses_are_refused_recorded_and_stopped() {
    let site = site(LocalAccounts::SecondFactorOptional).await;
    let page = site.get("/sign-in", "").await;
    let (visit, token) = (page.cookie("__Host-postern-visit").expect("a visit"), page.token());
    let mut last = StatusCode::OK;
    for _ in 0..8 {
        let form = [("token", &*token), ("login", "alice"), ("password", "guess")];
        last = site.post("/sign-in", &visit, &form).await.status;
    }
    assert_eq!(last, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(
        site.reasons(),
        ["password", "password", "password", "password", "password", "password", "too_many", "too_many"]
    );
    let session = {
        *site.now.lock().expect("not poisoned") = system_clock()().saturating_add(Duration::from_secs(600));
        site.session().await
    };
    let mut answers = Vec::new();
    for i in 0..12 {
        answers.push(site.get(&format!("/join?code=BCDF-{i:04}"), &session).await);
    }
    assert_eq!(answers[9].status, StatusCode::NOT_FOUND);
    assert_eq!(answers[10].status, StatusCode::TOO_MANY_REQUESTS);
    assert!(answers[10].headers.contains_key(header::RETRY_AFTER));
}

#[tokio::test]
async fn one_address_cannot_ask_without_end() {
    let site = site(LocalAccounts::Off).await;
    let mut refused = 0;
    for _ in 0..260 {
        refused += usize::from(site.get("/nowhere", "").await.status == StatusCode::TOO_MANY_REQUESTS);
    }
    assert_eq!(refused, 60);
}

#[tokio::test]
async fn long_and_broken_forms_are_refused() {
    let site = site(LocalAccounts::SecondFactorOptional).await;
    let session = site.session().await;
    let token = site.get("/", &session).await.token();
    let long = "x".repeat(security::MAX_BODY + 1);
    assert_eq!(
        site.post("/join", &session, &[("token", &token), ("code", &long)]).await.status,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(site.post("/join", &session, &[("token", &token)]).await.status, StatusCode::BAD_REQUEST);
    let binary = Request::post("/join")
        .header(header::COOKIE, &session)
        .header(header::ORIGIN, OWN)
        .body(Body::from(vec![0xff; 100]))
        .expect("a request");
    assert_eq!(site.ask(binary).await.status, StatusCode::BAD_REQUEST);
    for method in [Method::PUT, Method::DELETE, Method::PATCH] {
        let request = Request::builder().method(method).uri("/join").header(header::ORIGIN, OWN).body(Body::empty());
        assert_eq!(site.ask(request.expect("a request")).await.status, StatusCode::METHOD_NOT_ALLOWED);
    }
}

#[tokio::test]
async fn with_local_accounts_off_there_is_no_form_and_none_is_taken() {
    let site = site(LocalAccounts::Off).await;
    let page = site.get("/sign-in", "").await;
    assert!(!page.text.contains("<form"));
    let visit = page.cookie("__Host-postern-visit").expect("a visit");
    let token = visit::form_token_for_test(visit.split('=').nth(1).expect("a value"));
    let form = [("token", &*token), ("login", "alice"), ("password", PASSWORD)];
    assert_eq!(site.post("/sign-in", &visit, &form).await.status, StatusCode::NOT_FOUND);
}
