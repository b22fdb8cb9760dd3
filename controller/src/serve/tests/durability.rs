//! Nothing is answered that is not on disk.

use std::collections::BTreeSet;

use postern_common::key::ControllerSigningKey;

use super::*;
use crate::{
    audit::AuditLog,
    records::TokenHash,
    serve::actor::{Actor, ActorError},
    store::{SqliteStore, Store, StoreError},
    stream::{Core, CoreConfig, NewToken},
};

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_the_actor_ends_and_whatever_it_had_answered_is_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("controller.db");
    let mut store = SqliteStore::open(&path, 1).await.unwrap();
    let loaded = store.load().await.unwrap();
    let (head, outbox) = store.audit_state().await.unwrap();
    let (audit, _) = AuditLog::open(&dir.path().join("audit"), 1 << 20, head, &outbox).unwrap();
    store.fill_disk_after(12).await;
    let config =
        CoreConfig::new("https://ctl.test", "fd00:1:2::/48".parse().unwrap(), "100.96.0.0/16".parse().unwrap());
    let policy = Arc::new(crate::serve::parse_policy(std::path::Path::new("policy.toml"), "").unwrap());
    let random = Box::new(|bytes: &mut [u8]| getrandom::fill(bytes).unwrap());
    let meta = loaded.meta.clone();
    let core = Core::new(
        config,
        ControllerSigningKey::from_seed(&[1; 32]),
        policy,
        Arc::new(crate::signals::place::NoMaps),
        loaded,
        random,
        clock::now(),
    );
    let (actor, handle) = Actor::new(core, meta, store, audit, tokio::sync::mpsc::channel(1).0);
    let actor = tokio::spawn(actor.run());

    let mut answered = BTreeSet::new();
    loop {
        let new = NewToken {
            service: None,
            tags: ["db".parse().unwrap()].into(),
            machine: None,
            networks: vec![],
            uses: 1,
            life: Duration::from_secs(3_600),
        };
        match handle.call(move |turn, now| turn.core.create_token(new, "test", now)).await {
            Ok(made) => assert!(answered.insert(TokenHash::of(&made.unwrap().0))),
            Err(_) => break,
        }
    }

    let ended = timeout(PATIENCE, actor).await.unwrap().unwrap();
    assert!(matches!(ended, Err(ActorError::Store(StoreError::Full(_)))), "{ended:?}");
    assert!(!answered.is_empty());
    let mut store = SqliteStore::open_beside(&path).await.unwrap();
    let kept: BTreeSet<_> = store.load().await.unwrap().tokens.iter().map(|token| token.hash).collect();
    assert_eq!(kept, answered, "every answer is on disk, and nothing that was not answered");
}
