use std::net::IpAddr;

use super::{super::sessions::test_pool, *};

const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const PASSWORD: &str = "correct horse battery";

fn at(seconds: i64) -> WallTime {
    WallTime::from_millis(1_700_000_000_000 + seconds * 1_000)
}

fn groups(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

async fn alice() -> Accounts {
    let accounts = Accounts::new(test_pool().await, "https://ctl.corp.example", SealingKey::from_bytes([7; 32]));
    let new = NewAccount { login: "Alice@Corp.Example".into(), groups: groups(&["staff"]), role: AccountRole::Person };
    accounts.add(new, at(0)).await.expect("adds");
    accounts.set_password("alice@corp.example", PASSWORD, at(-60)).await.expect("sets");
    accounts
}

async fn enrolled() -> (Accounts, Account, totp::Secret) {
    let accounts = alice().await;
    let enrolment = accounts.begin_enrolment(accounts.find("alice@corp.example").await.expect("is there"));
    let code = enrolment.secret.code_at(at(0));
    accounts.finish_enrolment(&enrolment, &code, at(0)).await.expect("enrols");
    (accounts, enrolment.account, enrolment.secret)
}

#[tokio::test]
async fn the_right_password_signs_in_and_names_the_account_by_its_id() {
    let accounts = alice().await;
    let step = accounts.check_password(" ALICE@corp.example ", PASSWORD, HOME, at(1)).await.expect("fits");
    let PasswordStep::Done(account) = step else { panic!("no second factor is set up") };
    let proof = accounts.prove(&account, Credential::Missing, HOME, at(1)).await.expect("proves");
    assert_eq!((proof.issuer.as_str(), &proof.subject), ("https://ctl.corp.example", &account.id));
    assert_eq!((proof.amr, proof.groups), (vec!["pwd".to_owned()], Some(groups(&["staff"]))));
}

#[tokio::test]
async fn a_wrong_password_and_a_missing_account_are_not_told_apart() {
    let accounts = alice().await;
    for (login, password) in [("alice@corp.example", "wrong horse battery"), ("nobody", PASSWORD), ("", "")] {
        let refused = accounts.check_password(login, password, HOME, at(1)).await;
        assert!(matches!(refused, Err(SignInError::Wrong)), "{login}");
    }
}

#[tokio::test]
async fn an_account_without_a_password_cannot_sign_in() {
    let accounts = alice().await;
    let new = NewAccount { login: "bob".into(), groups: groups(&[]), role: AccountRole::Person };
    accounts.add(new, at(0)).await.expect("adds");
    assert!(matches!(accounts.check_password("bob", "", HOME, at(1)).await, Err(SignInError::Wrong)));
}

#[tokio::test]
async fn a_disabled_account_is_told_so_only_with_its_password() {
    let accounts = alice().await;
    accounts.set_status("alice@corp.example", AccountStatus::Disabled).await.expect("disables");
    let right = accounts.check_password("alice@corp.example", PASSWORD, HOME, at(1)).await;
    let wrong = accounts.check_password("alice@corp.example", "wrong horse battery", HOME, at(1)).await;
    assert!(matches!((right, wrong), (Err(SignInError::Disabled), Err(SignInError::Wrong))));
}

#[tokio::test]
async fn an_account_disabled_between_the_steps_gets_no_proof() {
    let (accounts, account, secret) = enrolled().await;
    accounts.check_code(&account, &secret.code_at(at(60)), at(60)).await.expect("fits");
    accounts.set_status(&account.login, AccountStatus::Disabled).await.expect("disables");
    let refused = accounts.prove(&account, Credential::Set, HOME, at(60)).await;
    assert!(matches!(refused, Err(SignInError::Disabled)));
}

#[tokio::test]
async fn with_a_second_factor_the_password_alone_proves_nothing() {
    let (accounts, account, _) = enrolled().await;
    let step = accounts.check_password(&account.login, PASSWORD, HOME, at(1)).await.expect("fits");
    assert!(matches!(step, PasswordStep::SecondFactor(_)));
    let refused = accounts.prove(&account, Credential::Missing, HOME, at(1)).await;
    assert!(matches!(refused, Err(SignInError::Code)));
}

#[tokio::test]
async fn each_code_works_once() {
    let (accounts, account, secret) = enrolled().await;
    let enrolled_with = secret.code_at(at(0));
    assert!(matches!(accounts.check_code(&account, &enrolled_with, at(1)).await, Err(SignInError::Code)));
    let code = secret.code_at(at(60));
    accounts.check_code(&account, &code, at(60)).await.expect("the first time");
    assert!(matches!(accounts.check_code(&account, &code, at(60)).await, Err(SignInError::Code)));
    let older = secret.code_at(at(30));
    assert!(matches!(accounts.check_code(&account, &older, at(60)).await, Err(SignInError::Code)), "an older one");
}

#[tokio::test]
async fn a_code_and_a_link_count_once_even_at_the_same_moment() {
    let (accounts, account, secret) = enrolled().await;
    let code = secret.code_at(at(60));
    let (one, other) =
        tokio::join!(accounts.check_code(&account, &code, at(60)), accounts.check_code(&account, &code, at(60)));
    assert_eq!([one, other].iter().filter(|checked| checked.is_ok()).count(), 1);
    let link = accounts.password_link(&account.login, Duration::from_secs(60), at(0)).await.expect("links");
    let (one, other) = tokio::join!(
        accounts.set_password_by_link(&link, "one good password", at(1)),
        accounts.set_password_by_link(&link, "other good password", at(1))
    );
    assert_eq!([one.is_ok(), other.is_ok()].iter().filter(|set| **set).count(), 1);
}

#[tokio::test]
async fn guessing_codes_is_limited_and_a_password_reset_forgives() {
    let (accounts, account, secret) = enrolled().await;
    for _ in 0..5 {
        assert!(matches!(accounts.check_code(&account, "000000x", at(60)).await, Err(SignInError::Code)));
    }
    let right = secret.code_at(at(60));
    assert!(matches!(accounts.check_code(&account, &right, at(60)).await, Err(SignInError::TooMany(_))));
    accounts.set_password(&account.login, "another good password", at(1)).await.expect("sets");
    let account = accounts.find(&account.login).await.expect("is there");
    accounts.check_code(&account, &right, at(60)).await.expect("forgiven");
}

#[tokio::test]
async fn guessing_from_many_addresses_does_not_lock_the_owner_out() {
    let accounts = alice().await;
    let PasswordStep::Done(account) =
        accounts.check_password("alice@corp.example", PASSWORD, HOME, at(0)).await.expect("fits")
    else {
        panic!("no second factor is set up")
    };
    accounts.prove(&account, Credential::Missing, HOME, at(0)).await.expect("proves");
    let mut locked = 0;
    for host in 0..30u8 {
        let stranger = IpAddr::from([198, 51, 100, host]);
        match accounts.check_password("alice@corp.example", "guess", stranger, at(1)).await {
            Err(SignInError::Wrong) => {}
            Err(SignInError::TooMany(_)) => locked += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(locked > 5, "strangers are stopped together");
    assert!(accounts.check_password("alice@corp.example", PASSWORD, HOME, at(1)).await.is_ok(), "the owner is not");
}

#[tokio::test]
async fn guessing_from_one_address_is_stopped_soon() {
    let accounts = alice().await;
    let mut answers = Vec::new();
    for _ in 0..8 {
        answers.push(
            accounts
                .check_password("alice@corp.example", "guess", HOME, at(1))
                .await
                .is_err_and(|error| matches!(error, SignInError::TooMany(_))),
        );
    }
    assert_eq!(answers, [false, false, false, false, false, false, true, true]);
}

#[tokio::test]
async fn a_link_sets_one_password_once_and_in_time() {
    let accounts = alice().await;
    let login = "alice@corp.example";
    let link = accounts.password_link(login, Duration::from_secs(60), at(0)).await.expect("links");
    assert!(matches!(accounts.set_password_by_link(&link, "short", at(1)).await, Err(AccountError::Weak(_))));
    assert!(matches!(accounts.set_password_by_link(&link, PASSWORD, at(60)).await, Err(AccountError::Link)), "late");
    accounts.set_password_by_link(&link, "a new password here", at(59)).await.expect("in time");
    assert!(matches!(accounts.set_password_by_link(&link, PASSWORD, at(59)).await, Err(AccountError::Link)), "twice");
    assert!(accounts.check_password(login, "a new password here", HOME, at(60)).await.is_ok());
    let older = accounts.password_link(login, Duration::from_secs(60), at(0)).await.expect("links");
    let _newer = accounts.password_link(login, Duration::from_secs(60), at(0)).await.expect("links");
    assert!(matches!(accounts.look_at_link(&older, at(1)).await, Err(AccountError::Link)), "replaced");
}

#[tokio::test]
async fn what_takes_rights_away_ends_the_sessions() {
    let accounts = alice().await;
    let login = "alice@corp.example";
    let sessions = super::super::sessions::WebSessions::new(accounts.pool.clone(), Default::default());
    let sign_in = async || {
        let account = accounts.find(login).await.expect("is there");
        let proof = accounts.prove(&account, Credential::Missing, HOME, at(0)).await.expect("proves");
        sessions.open(proof, at(0)).await.expect("opens").0
    };
    let mut cookies = vec![sign_in().await];
    accounts.set_groups(login, &groups(&["other"])).await.expect("changes");
    cookies.push(sign_in().await);
    accounts.reset_totp(login, at(1)).await.expect("changes");
    cookies.push(sign_in().await);
    accounts.set_password(login, "another good password", at(1)).await.expect("changes");
    cookies.push(sign_in().await);
    accounts.set_status(login, AccountStatus::Disabled).await.expect("changes");
    accounts.set_status(login, AccountStatus::Enabled).await.expect("changes");
    cookies.push(sign_in().await);
    accounts.remove(login).await.expect("removes");
    for cookie in cookies {
        assert_eq!(sessions.find(&cookie, at(1)).await.expect("works"), None);
    }
}

#[tokio::test]
async fn a_new_account_under_an_old_login_is_another_person() {
    let accounts = alice().await;
    let old = accounts.remove("alice@corp.example").await.expect("removes");
    let new = NewAccount { login: old.login, groups: groups(&[]), role: AccountRole::Person };
    assert_ne!(accounts.add(new, at(1)).await.expect("adds").id, old.id);
}

#[tokio::test]
async fn bad_input_to_administration_is_refused_with_its_reason() {
    let accounts = alice().await;
    let add = |login: &str, group: &str| {
        let new = NewAccount { login: login.into(), groups: groups(&[group]), role: AccountRole::Person };
        accounts.add(new, at(0))
    };
    assert!(matches!(add("ALICE@corp.example", "g").await, Err(AccountError::Taken(_))));
    assert!(matches!(add("a b", "g").await, Err(AccountError::Login(_))));
    assert!(matches!(add("", "g").await, Err(AccountError::Login(_))));
    assert!(matches!(add("carol", "a\nb").await, Err(AccountError::Group(_))));
    assert!(matches!(accounts.find("carol").await, Err(AccountError::Unknown(_))), "nothing was left half made");
    assert!(matches!(accounts.set_password("alice@corp.example", "short", at(1)).await, Err(AccountError::Weak(_))));
    assert!(matches!(accounts.remove("nobody").await, Err(AccountError::Unknown(_))));
}

#[tokio::test]
async fn a_sign_in_that_waits_for_its_code_does_not_survive_a_new_password() {
    let (accounts, _, secret) = enrolled().await;
    let step = accounts.check_password("alice@corp.example", PASSWORD, HOME, at(60)).await.expect("fits");
    let PasswordStep::SecondFactor(half) = step else { panic!("a code comes next") };
    accounts.set_password("alice@corp.example", "another horse battery", at(1)).await.expect("sets");
    let code = accounts.check_code(&half, &secret.code_at(at(60)), at(60)).await;
    assert!(matches!(code, Err(SignInError::Changed)), "{code:?}");
    let proof = accounts.prove(&half, Credential::Set, HOME, at(60)).await;
    assert!(matches!(proof, Err(SignInError::Changed)), "{proof:?}");
    let step =
        accounts.check_password("alice@corp.example", "another horse battery", HOME, at(60)).await.expect("fits");
    let PasswordStep::SecondFactor(again) = step else { panic!("a code comes next") };
    accounts.check_code(&again, &secret.code_at(at(60)), at(60)).await.expect("the code was not used up");
    accounts.prove(&again, Credential::Set, HOME, at(60)).await.expect("proves");
}

#[tokio::test]
async fn whoever_knew_only_the_former_password_chooses_no_second_factor() {
    let accounts = alice().await;
    let step = accounts.check_password("alice@corp.example", PASSWORD, HOME, at(1)).await.expect("fits");
    let PasswordStep::Done(half) = step else { panic!("no second factor yet") };
    let enrolment = accounts.begin_enrolment(half);
    accounts.set_password("alice@corp.example", "another horse battery", at(1)).await.expect("sets");
    let refused = accounts.finish_enrolment(&enrolment, &enrolment.secret.code_at(at(1)), at(1)).await;
    assert!(matches!(refused, Err(SignInError::Changed)), "{refused:?}");
    let account = accounts.find("alice@corp.example").await.expect("is there");
    assert_eq!(account.second_factor, Credential::Missing);
}

const URL: &str = "https://ctl.corp.example";

/// Adds a passkey to Alice's account, as her browser would.
async fn with_passkey(accounts: &Accounts, seed: u8) -> authenticator::Authenticator {
    let account = accounts.find("alice@corp.example").await.expect("there");
    let (waiting, options) = accounts.begin_passkey(&account).await.expect("begins");
    let (made, answer) = authenticator::Authenticator::register(seed, URL, &options);
    accounts.finish_passkey(&account, waiting, &answer, "laptop", at(1)).await.expect("holds");
    made
}

async fn with(accounts: &Accounts, key: &mut authenticator::Authenticator) -> Result<Account, PasskeyError> {
    let (waiting, options) = accounts.begin_passkey_sign_in().expect("a domain");
    let answer = key.sign_in(URL, &options);
    accounts.check_passkey(waiting, &answer, HOME, at(2)).await
}

#[tokio::test]
async fn a_passkey_that_may_have_been_copied_signs_nobody_in_any_more() {
    let accounts = alice().await;
    let mut hers = with_passkey(&accounts, 1).await;
    let mut copy = hers.clone();
    let account = with(&accounts, &mut copy).await.expect("the first of the two gets in");
    let Err(PasskeyError::Copied(copied)) = with(&accounts, &mut hers).await else { panic!("its counter went back") };
    assert_eq!((copied.account.id.as_str(), copied.name.as_str(), copied.newly), (&*account.id, "laptop", true));
    for _ in 0..2 {
        let Err(PasskeyError::Copied(again)) = with(&accounts, &mut copy).await else { panic!("the copy is out too") };
        assert!(!again.newly, "one alert for one passkey");
    }
    assert!(!accounts.has_passkey(&account.id).await.expect("works"), "what nobody can use asks for nothing");
    let known = accounts.passkeys(&account.id).await.expect("works");
    assert_eq!(known.iter().map(|passkey| passkey.copied).collect::<Vec<_>>(), [Some(at(2))]);
    assert!(accounts.remove_passkey(&account.id, &known[0].id).await.expect("works"));
    let mut next = with_passkey(&accounts, 2).await;
    with(&accounts, &mut next).await.expect("another one gets in");
}

#[tokio::test]
async fn only_the_passkey_itself_marks_it_as_copied() {
    let accounts = alice().await;
    let mut hers = with_passkey(&accounts, 1).await;
    with(&accounts, &mut hers).await.expect("gets in");
    let (waiting, options) = accounts.begin_passkey_sign_in().expect("a domain");
    let mut forged: serde_json::Value = serde_json::from_str(&hers.clone().sign_in(URL, &options)).expect("JSON");
    forged["response"]["signature"] = "AA".repeat(43).into();
    let refused = accounts.check_passkey(waiting, &forged.to_string(), HOME, at(2)).await;
    assert!(matches!(refused, Err(PasskeyError::Refused(_))), "{refused:?}");
    with(&accounts, &mut hers).await.expect("still");
}

#[tokio::test]
async fn new_credentials_leave_no_passkey_and_no_registration_that_was_under_way() {
    for by in ["password", "link", "second factor"] {
        let accounts = alice().await;
        let login = "alice@corp.example";
        let mut strangers = with_passkey(&accounts, 1).await;
        let before = accounts.find(login).await.expect("there");
        let (waiting, options) = accounts.begin_passkey(&before).await.expect("begins");
        match by {
            "password" => {
                assert_eq!(accounts.set_password(login, "another good password", at(3)).await.expect("sets"), 1)
            }
            "link" => {
                let link = accounts.password_link(login, Duration::from_secs(60), at(2)).await.expect("a link");
                let (_, gone) =
                    accounts.set_password_by_link(&link, "another good password", at(3)).await.expect("sets");
                assert_eq!(gone, 1);
            }
            _ => drop(accounts.reset_totp(login, at(3)).await.expect("resets")),
        }
        assert!(matches!(with(&accounts, &mut strangers).await, Err(PasskeyError::Unknown)), "{by}");
        let (_, answer) = authenticator::Authenticator::register(2, URL, &options);
        let late = accounts.finish_passkey(&before, waiting, &answer, "mine now", at(4)).await;
        assert!(late.is_err() && accounts.passkeys(&before.id).await.expect("works").is_empty(), "{by}");
        assert_eq!(accounts.find(login).await.expect("there").secured, Some(at(3)), "{by}");
    }
}
