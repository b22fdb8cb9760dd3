//! Turns of the actor: expensive calls keep nobody behind them waiting for all of them.

use std::sync::mpsc;

use postern_common::key::ControllerSigningKey;

use super::*;
use crate::{
    audit::AuditLog,
    serve::actor::Actor,
    signals::place::NoMaps,
    store::{SqliteStore, Store},
    stream::{Core, CoreConfig},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_call_closed_leaves_before_expensive_calls_behind_it_have_their_turn() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(&dir.path().join("controller.db"), 1).await.unwrap();
    let loaded = store.load().await.unwrap();
    let (head, outbox) = store.audit_state().await.unwrap();
    let (audit, _) = AuditLog::open(&dir.path().join("audit"), 1 << 20, head, &outbox).unwrap();
    let config =
        CoreConfig::new("https://ctl.test", "fd00:1:2::/48".parse().unwrap(), "100.96.0.0/16".parse().unwrap());
    let policy = Arc::new(crate::serve::parse_policy(std::path::Path::new("policy.toml"), "").unwrap());
    let random = Box::new(|bytes: &mut [u8]| getrandom::fill(bytes).unwrap());
    let meta = loaded.meta.clone();
    let signing = ControllerSigningKey::from_seed(&[1; 32]);
    let core = Core::new(config, signing, policy, Arc::new(NoMaps), loaded, random, clock::now());
    let (actor, handle) = Actor::new(core, meta, store, audit, tokio::sync::mpsc::channel(1).0);
    let actor = tokio::spawn(actor.run());

    // The first call holds the actor until the other two wait for the same turn.
    let (begin, begun) = mpsc::channel::<()>();
    let (go_on, held) = mpsc::channel::<()>();
    let first = handle.clone();
    let first = tokio::spawn(async move {
        let hold = move || begin.send(()).is_ok() && held.recv().is_ok();
        first.call(move |_, _| tokio::task::block_in_place(hold)).await
    });
    tokio::task::block_in_place(|| begun.recv().unwrap());
    // The second works for longer than a turn may; the third goes on only when the second was answered.
    let second = handle.clone();
    let second = tokio::spawn(async move {
        second
            .call(|_, _| {
                let began = std::time::Instant::now();
                while began.elapsed() < Duration::from_millis(40) {
                    std::hint::spin_loop();
                }
            })
            .await
    });
    let (answered, wait) = mpsc::channel::<()>();
    let third = handle.clone();
    // In this order: each is queued when the queue has less room.
    while handle.room() > crate::serve::actor::QUEUE - 1 {
        tokio::task::yield_now().await;
    }
    let third = tokio::spawn(async move {
        third.call(move |_, _| tokio::task::block_in_place(|| wait.recv_timeout(PATIENCE).is_ok())).await
    });
    while handle.room() > crate::serve::actor::QUEUE - 2 {
        tokio::task::yield_now().await;
    }
    go_on.send(()).unwrap();
    assert!(first.await.unwrap().unwrap());
    timeout(PATIENCE, second).await.expect("the second is answered without the third").unwrap().unwrap();
    answered.send(()).unwrap();
    assert!(third.await.unwrap().unwrap(), "the third ran in a turn of its own");
    handle.stop().await;
    actor.await.unwrap().unwrap();
}
