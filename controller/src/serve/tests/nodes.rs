//! Machines join, get what they may enforce, and acknowledge it.

use postern_common::{grant::Change, protocol::Refusal, time::Deadline};

use super::*;

fn peers(change: &Change<Deadline>) -> Vec<String> {
    match change {
        Change::Snapshot { peers, .. } => peers.iter().map(|peer| peer.name.to_string()).collect(),
        Change::Delta { upsert, .. } => upsert.iter().map(|peer| peer.name.to_string()).collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_joins_with_a_token_and_gets_a_snapshot_that_verifies() {
    let controller = Controller::start(POLICY).await;
    let token = controller.token("db", "db", 1).await;
    let mut machine = Machine::new("db-1", 1);

    let joined = machine.enrol(&controller, &token).await;
    assert!(matches!(joined, ToNode::Joined { .. }), "{joined:?}");
    let (mut stream, _, verified) = machine.hello(&controller).await;

    assert!(matches!(verified.change(), Change::Snapshot { .. }));
    stream.send(&FromNode::Enforced { position: verified.position(), cut: 0 }).await;
    let mut turns = controller.running().handle.turns();
    loop {
        turns.mark_unchanged();
        let status = controller.ask(Request::Status).await.unwrap();
        if status["core"]["current"] == 1 {
            assert_eq!(status["nodes"][0]["record"]["tags"][0], "db");
            break;
        }
        timeout(PATIENCE, turns.changed()).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_learn_of_each_other_the_destination_first() {
    let controller = Controller::start(POLICY).await;
    let (mut db, mut app) = (Machine::new("db-1", 1), Machine::new("app-1", 2));
    db.enrol(&controller, &controller.token("db", "db", 1).await).await;
    app.enrol(&controller, &controller.token("app", "app", 1).await).await;

    let (mut db_stream, mut db_verifier, db_snapshot) = db.hello(&controller).await;
    assert_eq!(peers(db_snapshot.change()), ["app-1"]);
    let (mut app_stream, mut app_verifier, snapshot) = app.hello(&controller).await;
    assert!(peers(snapshot.change()).is_empty(), "the source is told after the destination has acknowledged");
    app_stream.send(&FromNode::Enforced { position: snapshot.position(), cut: 0 }).await;
    db_stream.send(&FromNode::Enforced { position: db_snapshot.position(), cut: 0 }).await;

    let grants = |message| match message {
        ToNode::Grants { signed } => Some(signed),
        _ => None,
    };
    let delta = app_verifier.verify(&app_stream.until(grants).await).unwrap();
    assert_eq!(peers(delta.change()), ["db-1"]);

    // And what was revoked is closed at the destination, which says so.
    app_stream.send(&FromNode::Enforced { position: delta.position(), cut: 0 }).await;
    let request = Request::Revoke {
        what: crate::admin::request::Revocable::Device,
        name: "app-1".into(),
        reason: "test".into(),
        wait_ms: 15_000,
    };
    let (answer, ()) = tokio::join!(controller.ask(request), async {
        loop {
            let told = db_verifier.verify(&db_stream.until(grants).await).unwrap();
            db_stream.send(&FromNode::Enforced { position: told.position(), cut: 0 }).await;
            if matches!(told.change(), Change::Delta { remove, .. } if remove.len() == 1) {
                break;
            }
        }
    });
    let view = &answer.unwrap()["revocation"];
    assert!(view["acknowledged"].as_u64() >= Some(1), "{view}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_two_machines_use_at_once_lets_one_in() {
    let controller = Controller::start(POLICY).await;
    let token = controller.token("db", "db", 1).await;
    let (mut one, mut other) = (Machine::new("db-1", 1), Machine::new("db-2", 2));
    let (first, second) = tokio::join!(one.enrol(&controller, &token), other.enrol(&controller, &token));
    let joined = [&first, &second].iter().filter(|answer| matches!(answer, ToNode::Joined { .. })).count();
    let refused = [&first, &second]
        .iter()
        .filter(|answer| matches!(answer, ToNode::Refused { refusal: Refusal::BadToken, .. }))
        .count();
    assert_eq!((joined, refused), (1, 1), "{first:?} {second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_machines_and_a_used_token_stays_used() {
    let mut controller = Controller::start(POLICY).await;
    let token = controller.token("db", "db", 1).await;
    let mut machine = Machine::new("db-1", 1);
    machine.enrol(&controller, &token).await;
    let (_, _, before) = machine.hello(&controller).await;

    controller.stop().await;
    controller.serve().await.unwrap();

    let (_, _, after) = machine.hello(&controller).await;
    assert_eq!(before.position().epoch, after.position().epoch);
    let again = Machine::new("db-2", 2).enrol(&controller, &token).await;
    assert!(matches!(again, ToNode::Refused { refusal: Refusal::BadToken, .. }), "{again:?}");
}
