//! Claims about the rows.

use super::*;
use crate::identity::sessions::test_pool;

const ALICE: (&str, &str) = ("https://idp", "alice");

fn session(number: u8) -> SessionId {
    SessionId::from_bytes([number; 16])
}

fn at(ms: i64) -> WallTime {
    WallTime::from_millis(ms)
}

fn vouching(sid: Option<&str>, refresh_token: Option<&str>) -> Vouching {
    Vouching { sid: sid.map(Into::into), refresh_token: refresh_token.map(|token| Zeroizing::new(token.into())) }
}

fn logout(subject: Option<&str>, sid: Option<&str>) -> LogoutToken {
    let (subject, sid) = (subject.map(Into::into), sid.map(Into::into));
    LogoutToken { issuer: ALICE.0.into(), subject, sid, hash: [1; 32], issued: at(1), fresh_until: at(9_000) }
}

fn token_of(due: &Due) -> &str {
    due.refresh_token.as_ref().expect("it opens").as_str()
}

async fn vouchers() -> Vouchers {
    Vouchers::new(test_pool().await, SealingKey::from_bytes([7; 32]))
}

#[tokio::test]
async fn what_a_step_up_does_not_hand_over_anew_stays() {
    let vouchers = vouchers().await;
    vouchers.put(session(1), ALICE, &vouching(Some("s1"), Some("token")), at(1)).await.expect("put");
    vouchers.put(session(1), ALICE, &vouching(None, None), at(2)).await.expect("put");
    let due = vouchers.due(at(2), at(3), 64).await.expect("due");
    assert_eq!(due.iter().map(token_of).collect::<Vec<_>>(), ["token"]);
    let ends = vouchers.ends(&logout(None, Some("s1"))).await.expect("ends");
    assert_eq!(ends, Some(Ends::Sessions([session(1)].into())));
}

#[tokio::test]
async fn an_answer_about_a_token_that_was_replaced_meanwhile_changes_nothing() {
    let vouchers = vouchers().await;
    vouchers.put(session(1), ALICE, &vouching(None, Some("old")), at(1)).await.expect("put");
    let asked = vouchers.due(at(1), at(3), 64).await.expect("due").remove(0);
    vouchers.put(session(1), ALICE, &vouching(None, Some("new")), at(2)).await.expect("put");
    assert!(!vouchers.stands(&asked).await.expect("asked"));
    let again = Due { refresh_token: None, sealed: asked.sealed.clone(), ..asked };
    let rotated = Checked::Good(Some(Zeroizing::new("rotated from the old".into())));
    vouchers.note(&[(again, rotated)], at(3)).await.expect("nothing");
    vouchers.note(&[(asked, Checked::Failing(at(3)))], at(3)).await.expect("nothing");
    let now = vouchers.due(at(9), at(9), 64).await.expect("due").remove(0);
    assert_eq!((token_of(&now), now.failing_since), ("new", None));
    assert!(vouchers.stands(&now).await.expect("asked"));
}

#[tokio::test]
async fn what_a_clock_that_was_ahead_has_checked_is_due() {
    let vouchers = vouchers().await;
    vouchers.put(session(1), ALICE, &vouching(None, Some("token")), at(5_000)).await.expect("put");
    assert_eq!(vouchers.due(at(10), at(20), 64).await.expect("due").len(), 1);
    assert_eq!(vouchers.due(at(10), at(6_000), 64).await.expect("due").len(), 0);
}

#[tokio::test]
async fn a_logout_never_ends_less_than_what_it_may_mean() {
    let vouchers = vouchers().await;
    vouchers.put(session(1), ALICE, &vouching(Some("s1"), None), at(1)).await.expect("put");
    vouchers.put(session(2), ALICE, &vouching(None, None), at(1)).await.expect("put");
    vouchers.put(session(3), (ALICE.0, "bob"), &vouching(None, None), at(1)).await.expect("put");
    let alice = Ends::Person { issuer: ALICE.0.into(), subject: "alice".into() };
    for (subject, sid, expected) in [
        (Some("alice"), None, alice.clone()),
        (Some("alice"), Some("s1"), Ends::Sessions([session(1), session(2)].into())),
        (Some("alice"), Some("gone"), Ends::Sessions([session(2)].into())),
        (None, Some("s1"), Ends::Sessions([session(1)].into())),
        (None, Some("gone"), Ends::Sessions([].into())),
    ] {
        assert_eq!(vouchers.ends(&logout(subject, sid)).await.expect("ends"), Some(expected), "{subject:?} {sid:?}");
    }
    vouchers.forget(&[session(2)].into()).await.expect("forgotten");
    assert_eq!(vouchers.ends(&logout(Some("alice"), Some("gone"))).await.expect("ends"), Some(alice));
}

#[tokio::test]
async fn sessions_at_the_provider_are_found_by_their_names_and_of_a_person_those_without_one() {
    let vouchers = vouchers().await;
    vouchers.put(session(1), ALICE, &vouching(Some("s1"), None), at(1)).await.expect("put");
    vouchers.put(session(2), ALICE, &vouching(None, None), at(1)).await.expect("put");
    vouchers.put(session(3), (ALICE.0, "bob"), &vouching(Some("s3"), None), at(1)).await.expect("put");
    vouchers.put(session(4), ("https://other", "alice"), &vouching(Some("s1"), None), at(1)).await.expect("put");
    let alice = BTreeSet::from(["alice".to_owned()]);
    for (sids, people, expected) in [
        (&["s1"][..], BTreeSet::new(), vec![1]),
        (&["s1", "s3"], BTreeSet::new(), vec![1, 3]),
        (&["s1"], alice.clone(), vec![1, 2]),
        (&["s3"], alice, vec![2]), // another's session is not hers, and the one without a name may be it
        (&["gone"], BTreeSet::new(), vec![]),
    ] {
        let found = vouchers.browsers_of(ALICE.0, sids.iter().copied(), &people).await.expect("found");
        assert_eq!(found, expected.into_iter().map(session).collect(), "{sids:?} {people:?}");
    }
}

#[tokio::test]
async fn a_token_that_does_not_open_is_due_as_if_the_provider_were_away_and_its_session_is_still_found() {
    let pool = test_pool().await;
    let before = Vouchers::new(pool.clone(), SealingKey::from_bytes([7; 32]));
    before.put(session(1), ALICE, &vouching(Some("s1"), Some("token")), at(1)).await.expect("put");
    let vouchers = Vouchers::new(pool, SealingKey::from_bytes([8; 32]));
    let due = vouchers.due(at(2), at(3), 64).await.expect("due").remove(0);
    assert!(due.refresh_token.is_none());
    vouchers.note(&[(due, Checked::Failing(at(3)))], at(3)).await.expect("noted");
    let due = vouchers.due(at(4), at(4), 64).await.expect("due").remove(0);
    assert_eq!(due.failing_since, Some(at(3)), "the grace has begun");
    let ends = vouchers.ends(&logout(None, Some("s1"))).await.expect("ends");
    assert_eq!(ends, Some(Ends::Sessions([session(1)].into())), "a logout finds it");
    let opens = before.due(at(4), at(4), 64).await.expect("due").remove(0);
    assert_eq!(token_of(&opens), "token", "the key of before opens it still");
}

#[tokio::test]
async fn a_logout_token_that_comes_twice_at_a_time_never_ends_more_than_it_says() {
    let vouchers = vouchers().await;
    vouchers.put(session(1), ALICE, &vouching(Some("s1"), None), at(1)).await.expect("put");
    vouchers.put(session(2), ALICE, &vouching(Some("s2"), None), at(1)).await.expect("put");
    let token = logout(Some("alice"), Some("s1"));
    let ends = vouchers.ends(&token).await.expect("ends").expect("new");
    vouchers.used(&token, &ends).await.expect("used");
    assert_eq!(
        vouchers.ends(&token).await.expect("ends"),
        None,
        "the other one of two finds no `sid`, and ends nobody"
    );
}

#[tokio::test]
async fn what_a_logout_ended_is_forgotten_only_together_with_the_token_that_is_used_up() {
    let vouchers = vouchers().await;
    vouchers.put(session(1), ALICE, &vouching(Some("s1"), None), at(1)).await.expect("put");
    let token = logout(Some("alice"), Some("s1"));
    let ends = vouchers.ends(&token).await.expect("ends").expect("new");
    let stop = "CREATE TRIGGER stop BEFORE INSERT ON logout_tokens BEGIN SELECT RAISE(ABORT, 'a crash'); END";
    sqlx::query(stop).execute(&vouchers.pool).await.expect("set");
    assert!(vouchers.used(&token, &ends).await.is_err());
    sqlx::query("DROP TRIGGER stop").execute(&vouchers.pool).await.expect("taken away");
    assert_eq!(vouchers.ends(&token).await.expect("ends"), Some(ends), "told again, it means what it meant");
}
