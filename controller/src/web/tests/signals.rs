//! What servers tell, and whom it turns away.

use super::*;
use crate::{
    serve::actor::Handle,
    signals::{
        events::{Around, settings::EventStream},
        provider::Overtaking,
    },
    web::doors::TurnedAway,
};

#[tokio::test]
async fn whoever_is_turned_away_after_the_sign_in_is_told_why_and_has_no_session() {
    for (why, word, told, link) in [
        (
            TurnedAway::Overtaken(Overtaking::LoggedOut),
            "signed_out_at_provider",
            "you signed out at",
            "/oidc/start?anew=yes",
        ),
        (
            TurnedAway::Overtaken(Overtaking::SessionRevoked),
            "session_revoked",
            "has revoked this sign-in",
            "/oidc/start?anew=yes",
        ),
        (
            TurnedAway::Overtaken(Overtaking::CredentialChange),
            "credential_change",
            "credentials were changed",
            "/oidc/start?anew=yes",
        ),
        (
            TurnedAway::Overtaken(Overtaking::AssuranceLevelChange),
            "assurance_level_change",
            "counts for less",
            "/oidc/start?anew=yes",
        ),
        (
            TurnedAway::Overtaken(Overtaking::TokenClaimsChange),
            "token_claims_change",
            "has changed since",
            "/oidc/start?anew=yes",
        ),
        (TurnedAway::NotProvisioned("nobody knows you".into()), "not_provisioned", "Ask your administrator", "/"),
        (TurnedAway::Stopped("on leave".into()), "stopped", "on leave", "/"),
    ] {
        let site = site(LocalAccounts::SecondFactorOptional).await;
        *site.doors.turns_away.lock().expect("not poisoned") = Some(why);
        let (page, _) = site.sign_in("/").await;
        assert_eq!((page.status, page.cookie("__Host-postern")), (StatusCode::FORBIDDEN, None), "{word}");
        assert!(page.text.contains(told) && page.text.contains(&format!("href=\"{link}\"")), "{word}: {}", page.text);
        assert_eq!(site.reasons(), [word]);
        let left = site.web.sessions.list(system_clock()()).await.expect("works");
        assert!(left.is_empty(), "its session lives on: {word}");
        assert!(!page.text.contains(word), "the page speaks to people");
    }
}

const TOKEN: &str = "a-token-of-a-transmitter";

/// A site with two streams of events, behind which no core is left: what comes as far as that cannot be taken now.
async fn receiving(dir: &std::path::Path) -> Site {
    use std::os::unix::fs::PermissionsExt;
    let file = dir.join("token");
    std::fs::write(&file, TOKEN).expect("writes");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("sets");
    let stream = |name: &str| -> EventStream {
        toml::from_str(&format!(
            "name = \"{name}\"\nissuer = \"https://ssf.example\"\ndelivery = \"push\"\npush_token_file = {file:?}"
        ))
        .expect("settings")
    };
    let pool = test_pool().await;
    let around = Around {
        handle: Handle::ended(),
        sessions: WebSessions::new(pool.clone(), SessionLimits::default()),
        vouchers: Vouchers::new(pool, SealingKey::from_bytes([7; 32])),
        groups_claim: "groups".into(),
    };
    let receivers = Receivers::open(&[stream("corp"), stream("other")], &around).await.expect("opens");
    site_with(LocalAccounts::SecondFactorOptional, receivers).await
}

impl Site {
    async fn push(&self, from: [u8; 4], stream: &str, token: &str) -> StatusCode {
        let mut request = Request::post(format!("/events/{stream}"))
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::CONTENT_TYPE, "application/secevent+jwt")
            .body(Body::from("no token"))
            .expect("a request");
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from((from, 1))));
        self.router.clone().oneshot(request).await.expect("infallible").status()
    }

    fn later(&self, seconds: i64) {
        let mut now = self.now.lock().expect("not poisoned");
        *now = WallTime::from_millis(now.as_millis() + seconds * 1_000);
    }
}

#[tokio::test]
async fn a_stream_has_a_share_of_its_own_and_strangers_use_up_nothing_of_it() {
    const HERE: [u8; 4] = [192, 0, 2, 7];
    let dir = tempfile::tempdir().expect("a folder");
    let site = receiving(dir.path()).await;
    // Strangers: some, and then no more from that address.
    for number in 0..25 {
        let expected = if number < 20 { StatusCode::UNAUTHORIZED } else { StatusCode::TOO_MANY_REQUESTS };
        assert_eq!(site.push(HERE, "corp", "a-wrong-token").await, expected, "{number}");
    }
    assert_eq!(site.push(HERE, "nowhere", TOKEN).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(site.push([198, 51, 100, 1], "corp", "a-wrong-token").await, StatusCode::UNAUTHORIZED);
    assert_eq!(site.push([198, 51, 100, 1], "nowhere", TOKEN).await, StatusCode::NOT_FOUND);
    // The transmitter: a thousand at once, also from the strangers' address, and then a hundred in a second.
    let mut read = 0;
    while site.push(HERE, "corp", TOKEN).await == StatusCode::BAD_REQUEST {
        read += 1;
        assert!(read <= 1_000, "there is no limit");
    }
    assert_eq!(read, 1_000);
    assert_eq!(site.push(HERE, "corp", TOKEN).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(site.push(HERE, "other", TOKEN).await, StatusCode::BAD_REQUEST, "another stream's share");
    site.later(1);
    for number in 0..101 {
        let expected = if number < 100 { StatusCode::BAD_REQUEST } else { StatusCode::TOO_MANY_REQUESTS };
        assert_eq!(site.push(HERE, "corp", TOKEN).await, expected, "{number}");
    }
}
