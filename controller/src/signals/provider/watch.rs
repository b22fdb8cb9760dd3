//! Asks the provider at an interval whether it still vouches for those who signed in there.
//!
//! [`AT_ONCE`] questions are under way at a time. After a time in which nobody was asked (the controller was down, the provider was)
//! everybody is due at once: a round asks so many that all are asked within half an interval ([`share`]), so that the provider is
//! not flooded, and that they are not due together the next time either.

use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use postern_common::{id::SessionId, time::WallTime};
use tokio::sync::watch;

use super::{
    Vouchers,
    store::{Checked, Due},
};
use crate::{
    identity::{
        StoreFailed,
        oidc::{Provider, Refusal},
        sessions::WebSessions,
    },
    serve::{actor::Handle, clock, listener},
};

/// How often is looked for whom the time has come, at most.
const ROUND: Duration = Duration::from_secs(30);
/// How many questions are under way at a time.
const AT_ONCE: usize = 16;
/// The least that a round asks for, if so many are due, and how many are read at a time.
const LEAST: u64 = 64;
/// How many answers are noted at a time, at most.
const NOTED: usize = 16;
const ENDED: &str = "the identity provider has ended this sign-in";

/// How often the provider is asked, and how long it may be away.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) interval: Duration,
    pub(crate) grace: Duration,
}

/// Runs until the controller stops.
pub(crate) async fn watch(
    provider: Arc<Provider>,
    vouchers: Vouchers,
    sessions: WebSessions,
    handle: Handle,
    settings: Settings,
    mut stop: watch::Receiver<bool>,
) {
    let mut round = tokio::time::interval(settings.round());
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = round.tick() => {
                let now = clock::now().wall;
                provider.freshen(now).await;
                if let Err(error) = check(&provider, &vouchers, &sessions, &handle, settings, now).await {
                    tracing::warn!(%error, "what the identity provider vouches for cannot be checked");
                }
            }
            () = listener::told(&mut stop) => return,
        }
    }
}

impl Settings {
    fn round(self) -> Duration {
        ROUND.min(self.interval)
    }
}

/// Returns how many of `all` one round asks for at most.
fn share(all: u64, settings: Settings) -> u64 {
    let rounds = settings.interval.as_millis() / settings.round().as_millis().max(1) / 2;
    all.div_ceil(u64::try_from(rounds).unwrap_or(1).max(1)).max(LEAST)
}

async fn check(
    provider: &Provider,
    vouchers: &Vouchers,
    sessions: &WebSessions,
    handle: &Handle,
    settings: Settings,
    now: WallTime,
) -> Result<(), StoreFailed> {
    if let Ok(in_use) = handle.call(|turn, _| turn.core.vouched_sessions()).await {
        vouchers.sweep(&in_use, now).await?;
    }
    let interval = i64::try_from(settings.interval.as_millis()).unwrap_or(i64::MAX);
    let before = WallTime::from_millis(now.as_millis().saturating_sub(interval));
    let mut left = share(vouchers.count().await?, settings);
    while left > 0 {
        let due = vouchers.due(before, now, left.min(LEAST)).await?;
        if due.is_empty() {
            return Ok(());
        }
        left = left.saturating_sub(due.len() as u64);
        if due.iter().any(|due| due.refresh_token.is_none()) {
            tracing::error!(
                "refresh tokens do not open under seal.key: without the key of before, who signed in with them must sign in anew after `check_grace`"
            );
        }
        let asked = stream::iter(due).map(|due| check_one(provider, vouchers, sessions, handle, settings, due, now));
        // What is ready is noted together; a token that was handed over does not wait for those who are slow.
        let mut answers = pin!(asked.buffer_unordered(AT_ONCE).ready_chunks(NOTED));
        while let Some(answers) = answers.next().await {
            let (mut checked, mut failed) = (Vec::new(), None);
            for answer in answers {
                match answer {
                    Ok(one) => checked.extend(one),
                    Err(error) => failed = Some(error),
                }
            }
            vouchers.note(&checked, now).await?;
            if let Some(error) = failed {
                return Err(error);
            }
        }
    }
    Ok(())
}

async fn check_one(
    provider: &Provider,
    vouchers: &Vouchers,
    sessions: &WebSessions,
    handle: &Handle,
    settings: Settings,
    due: Due,
    now: WallTime,
) -> Result<Option<(Due, Checked)>, StoreFailed> {
    let answer = match &due.refresh_token {
        Some(token) => provider.still_vouches(token, now).await,
        None => Err(Refusal::Away("its refresh token does not open under seal.key".into())),
    };
    match answer {
        Ok(replacement) => Ok(Some((due, Checked::Good(replacement)))),
        // A step-up has brought another token while this one was asked about.
        Err(_) if !vouchers.stands(&due).await? => Ok(None),
        Err(Refusal::Ended) => end(vouchers, sessions, handle, due.session, ENDED.into()).await.map(|()| None),
        Err(Refusal::Away(why)) => {
            // A clock that was set back makes the time short, never the grace long.
            let since = due.failing_since.map_or(now, |since| since.min(now));
            tracing::warn!(why, "the identity provider cannot be asked whether a sign-in still stands");
            if now.since(since) < settings.grace {
                return Ok(Some((due, Checked::Failing(since))));
            }
            let reason = "the identity provider could not be asked for too long whether this sign-in still stands";
            end(vouchers, sessions, handle, due.session, reason.into()).await.map(|()| None)
        }
    }
}

/// Ends what was vouched for. The row goes last: after a crash in between it is found again.
async fn end(
    vouchers: &Vouchers,
    sessions: &WebSessions,
    handle: &Handle,
    session: SessionId,
    reason: String,
) -> Result<(), StoreFailed> {
    let ended = BTreeSet::from([session]);
    sessions.end(session).await?;
    let asked = ended.clone();
    if handle.call(move |turn, now| turn.core.end_vouched(&asked, &reason, now)).await.is_ok() {
        vouchers.forget(&ended).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::{Json, Router, extract::State, routing::get, routing::post};
    use serde_json::{Value, json};
    use tokio::sync::Barrier;
    use zeroize::Zeroizing;

    use super::*;
    use crate::{
        identity::{
            Proof,
            local::SealingKey,
            oidc::ProviderSettings,
            sessions::{SessionLimits, test_pool},
        },
        signals::provider::Vouching,
    };

    /// A provider that answers nobody before half of [`AT_ONCE`] ask.
    async fn provider() -> (Arc<Provider>, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let issuer = format!("http://{}", listener.local_addr().expect("an address"));
        let together = Arc::new(Barrier::new(AT_ONCE / 2));
        let token = async |State(together): State<Arc<Barrier>>| {
            together.wait().await;
            Json(json!({"access_token": "a", "token_type": "Bearer"}))
        };
        let at = issuer.clone();
        let metadata: Value = json!({
            "issuer": at, "authorization_endpoint": format!("{at}/auth"), "token_endpoint": format!("{at}/token"),
            "jwks_uri": format!("{at}/jwks"), "response_types_supported": ["code"],
            "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["EdDSA"],
        });
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(async move || Json(metadata.clone())))
            .route("/jwks", get(async || Json(json!({"keys": []}))))
            .route("/token", post(token))
            .with_state(together);
        tokio::spawn(async move { axum::serve(listener, router).await });
        let settings = ProviderSettings::new(issuer.parse().expect("a URL"), "postern");
        let own = "https://ctl.example".parse().expect("a URL");
        (Provider::new(settings, &own).expect("a provider"), issuer)
    }

    #[tokio::test]
    async fn questions_are_under_way_beside_each_other_and_more_than_one_batch_in_a_round() {
        let (provider, issuer) = provider().await;
        let pool = test_pool().await;
        let vouchers = Vouchers::new(pool.clone(), SealingKey::from_bytes([7; 32]));
        let sessions = WebSessions::new(pool, SessionLimits::default());
        let now = clock::now().wall;
        for number in 0..160u8 {
            let vouching = Vouching { sid: None, refresh_token: Some(Zeroizing::new(format!("t-{number}"))) };
            let session = SessionId::from_bytes([number; 16]);
            let long_ago = WallTime::from_millis(1);
            vouchers.put(session, (&issuer, &format!("p-{number}")), &vouching, long_ago).await.expect("put");
        }
        let settings = Settings { interval: Duration::from_secs(5), grace: Duration::from_secs(3_600) };
        check(&provider, &vouchers, &sessions, &Handle::ended(), settings, now).await.expect("checked");
        let left = vouchers.due(WallTime::from_millis(now.as_millis() - 1), now, 1_000).await.expect("asked");
        assert_eq!(left.len(), 0, "all were asked");
        let all = vouchers.due(now.saturating_add(ROUND), now.saturating_add(ROUND), 1_000).await.expect("asked");
        assert!(all.len() == 160 && all.iter().all(|due| due.failing_since.is_none()), "the provider answered");
    }

    /// A provider that answers every refresh with this.
    async fn answering(answer: Arc<std::sync::Mutex<(u16, Value)>>) -> (Arc<Provider>, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let at = format!("http://{}", listener.local_addr().expect("an address"));
        let metadata: Value = json!({
            "issuer": at, "authorization_endpoint": format!("{at}/auth"), "token_endpoint": format!("{at}/token"),
            "jwks_uri": format!("{at}/jwks"), "response_types_supported": ["code"],
            "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["EdDSA"],
        });
        let token = async move || {
            let (status, body) = answer.lock().expect("not poisoned").clone();
            (axum::http::StatusCode::from_u16(status).expect("a status"), Json(body))
        };
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(async move || Json(metadata.clone())))
            .route("/jwks", get(async || Json(json!({"keys": []}))))
            .route("/token", post(token));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let settings = ProviderSettings::new(at.parse().expect("a URL"), "postern");
        let own = "https://ctl.example".parse().expect("a URL");
        (Provider::new(settings, &own).expect("a provider"), at)
    }

    fn proof(issuer: &str) -> Proof {
        Proof {
            issuer: issuer.to_owned(),
            subject: "p".into(),
            name: "p@corp.example".into(),
            groups: None,
            acr: None,
            amr: vec![],
            auth_time: None,
            provisioned_as: None,
            sid: None,
        }
    }

    #[tokio::test]
    async fn the_grace_begins_with_the_first_failure_and_anew_after_a_good_answer() {
        let good = (200, json!({"access_token": "a", "token_type": "Bearer"}));
        // An operator's mistake is no word about the person.
        let failures =
            [(500, json!({})), (400, json!({"error": "invalid_client"})), (400, json!({"error": "server_error"}))];
        let answer = Arc::new(std::sync::Mutex::new(good.clone()));
        let (provider, issuer) = answering(answer.clone()).await;
        let pool = test_pool().await;
        let vouchers = Vouchers::new(pool.clone(), SealingKey::from_bytes([7; 32]));
        let sessions = WebSessions::new(pool, SessionLimits::default());
        let began = clock::now().wall;
        let at = |seconds: u64| began.saturating_add(Duration::from_secs(seconds));
        let (_, who) = sessions.open(proof(&issuer), began).await.expect("opens");
        let vouching = Vouching { sid: None, refresh_token: Some(Zeroizing::new("t".into())) };
        vouchers.put(who.session(), (&issuer, "p"), &vouching, WallTime::from_millis(1)).await.expect("put");
        let settings = Settings { interval: Duration::from_secs(60), grace: Duration::from_secs(600) };
        let failing_since = async |now: WallTime| {
            check(&provider, &vouchers, &sessions, &Handle::ended(), settings, now).await.expect("checked");
            let all = vouchers.due(WallTime::NEVER, now, 10).await.expect("asked");
            all.first().map(|due| due.failing_since)
        };
        let is_over =
            async |now: WallTime| !sessions.over(BTreeSet::from([who.session()]), now).await.expect("asked").is_empty();
        let answers = |with: &(u16, Value)| answer.lock().expect("not poisoned").clone_from(with);
        assert_eq!(failing_since(at(0)).await, Some(None));
        for (number, failure) in failures.iter().enumerate() {
            answers(failure);
            assert_eq!(failing_since(at(100 + 100 * number as u64)).await, Some(Some(at(100))), "{failure:?}");
        }
        answers(&good);
        assert_eq!(failing_since(at(600)).await, Some(None), "it vouches again");
        answers(&failures[0]);
        assert_eq!(failing_since(at(700)).await, Some(Some(at(700))), "a new failure");
        assert_eq!(failing_since(at(1_299)).await, Some(Some(at(700))));
        assert!(!is_over(at(1_299)).await, "within the grace");
        failing_since(at(1_360)).await;
        assert!(is_over(at(1_360)).await, "beyond it");
    }

    #[tokio::test]
    async fn a_sign_in_whose_refresh_token_no_key_opens_ends_after_the_grace() {
        let good = (200, json!({"access_token": "a", "token_type": "Bearer"}));
        let (provider, issuer) = answering(Arc::new(std::sync::Mutex::new(good))).await;
        let pool = test_pool().await;
        let sessions = WebSessions::new(pool.clone(), SessionLimits::default());
        let began = clock::now().wall;
        let (_, who) = sessions.open(proof(&issuer), began).await.expect("opens");
        let vouching = Vouching { sid: None, refresh_token: Some(Zeroizing::new("t".into())) };
        let lost = Vouchers::new(pool.clone(), SealingKey::from_bytes([7; 32]));
        lost.put(who.session(), (&issuer, "p"), &vouching, WallTime::from_millis(1)).await.expect("put");
        let vouchers = Vouchers::new(pool, SealingKey::from_bytes([8; 32]));
        let settings = Settings { interval: Duration::from_secs(60), grace: Duration::from_secs(600) };
        for (seconds, over) in [(0, false), (300, false), (599, false), (660, true)] {
            let now = began.saturating_add(Duration::from_secs(seconds));
            check(&provider, &vouchers, &sessions, &Handle::ended(), settings, now).await.expect("checked");
            let ended = sessions.over(BTreeSet::from([who.session()]), now).await.expect("asked");
            assert_eq!(!ended.is_empty(), over, "after {seconds} s");
        }
    }

    #[test]
    fn whoever_is_due_together_is_asked_within_half_an_interval_and_not_at_once() {
        let settings = |interval| Settings { interval: Duration::from_secs(interval), grace: Duration::ZERO };
        for (all, interval, expected) in [
            (0, 300, LEAST),
            (600, 300, 120),
            (10_000, 300, 2_000),
            (10_000, 3_600, 167),
            (10_000, 30, 10_000),
            (10_000, 5, 10_000),
        ] {
            let settings = settings(interval);
            let share = share(all, settings);
            assert_eq!(share, expected, "{all} sessions every {interval} s");
            let rounds = u128::from(all.div_ceil(share)) * settings.round().as_millis();
            assert!(rounds <= (settings.interval.as_millis() / 2).max(settings.round().as_millis()));
        }
    }
}
