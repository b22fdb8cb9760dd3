//! The courier against a real HTTP server and a real database.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU16, Ordering},
};

use axum::{Router, http::HeaderMap, http::StatusCode, routing::post};
use serde_json::Value;

use super::*;
use crate::{
    records::StoreChange,
    signals::alerts::{Alert, AlertKind},
    store::{SqliteStore, Store as _},
};

const SECRET: &str = "a secret of enough characters";

/// What the server was sent, and what it answers.
#[derive(Default)]
struct Receiver {
    taken: Mutex<Vec<(HeaderMap, String)>>,
    answer: AtomicU16,
}

async fn receiver() -> (Arc<Receiver>, String) {
    let receiver = Arc::new(Receiver { answer: AtomicU16::new(204), ..Receiver::default() });
    let state = receiver.clone();
    let route = post(move |headers: HeaderMap, body: String| async move {
        let status = StatusCode::from_u16(state.answer.load(Ordering::SeqCst)).unwrap();
        if status.is_success() {
            state.taken.lock().unwrap().push((headers, body));
        }
        status
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/alerts", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/alerts", route)).await });
    (receiver, url)
}

struct Place {
    dir: tempfile::TempDir,
    store: SqliteStore,
    url: String,
    receiver: Arc<Receiver>,
}

impl Place {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("controller.db"), 7).await.unwrap();
        crate::serve::files::write_new(&dir.path().join("secret"), SECRET.as_bytes(), crate::serve::files::SECRET)
            .unwrap();
        let (receiver, url) = receiver().await;
        Self { dir, store, url, receiver }
    }

    async fn courier(&self) -> Courier {
        let settings = AlertSettings {
            webhook: Some(self.url.clone()),
            secret_file: Some(self.dir.path().join("secret")),
            log: Some(self.dir.path().join("alerts.jsonl")),
            ..AlertSettings::default()
        };
        let pool = SqliteStore::pool(&self.dir.path().join("controller.db")).await.unwrap();
        Courier::new(pool, settings).unwrap()
    }

    async fn raise(&mut self, numbers: std::ops::Range<usize>) {
        let alert = |n| {
            StoreChange::PutAlert(Alert {
                id: format!("{n:032x}"),
                kind: AlertKind::Quarantine,
                at: WallTime::from_millis(1),
                text: format!("alert {n}"),
                subject: None,
                device: None,
                resource: None,
            })
        };
        self.store.commit(&numbers.map(alert).collect::<Vec<_>>(), &[]).await.unwrap();
    }

    fn texts(&self) -> Vec<String> {
        let taken = self.receiver.taken.lock().unwrap();
        let text = |(_, body): &(HeaderMap, String)| {
            serde_json::from_str::<Value>(body).unwrap()["text"].as_str().unwrap().to_owned()
        };
        taken.iter().map(text).collect()
    }

    fn log(&self) -> usize {
        std::fs::read_to_string(self.dir.path().join("alerts.jsonl")).unwrap_or_default().lines().count()
    }
}

#[tokio::test]
async fn alerts_come_signed_with_their_time_in_order_and_once_in_the_log() {
    let mut place = Place::new().await;
    place.raise(0..3).await;
    place.courier().await.deliver_all().await.unwrap();
    assert_eq!(place.texts(), ["alert 0", "alert 1", "alert 2"]);
    assert_eq!(place.log(), 3);
    let taken = place.receiver.taken.lock().unwrap().clone();
    for (headers, body) in &taken {
        let header = headers["postern-signature"].to_str().unwrap();
        let seconds: i64 = header.split(',').next().unwrap().strip_prefix("t=").unwrap().parse().unwrap();
        let at = WallTime::from_millis(seconds * 1_000);
        assert!(clock::now().wall.since(at) < Duration::from_secs(60));
        assert_eq!(header, signature(SECRET.as_bytes(), at, body));
        assert_ne!(header, signature(b"another secret of that length", at, body));
        assert_ne!(header, signature(SECRET.as_bytes(), WallTime::from_millis(seconds * 1_000 + 1_000), body));
    }
    place.courier().await.deliver_all().await.unwrap();
    assert_eq!(place.texts().len(), 3, "what was taken is not sent again");
}

#[tokio::test]
async fn what_a_receiver_did_not_take_waits_through_a_restart_and_comes_in_order() {
    let mut place = Place::new().await;
    place.raise(0..2).await;
    place.receiver.answer.store(503, Ordering::SeqCst);
    let mut courier = place.courier().await;
    for _ in 0..3 {
        assert!(courier.deliver_all().await.is_err());
    }
    assert_eq!((place.texts().len(), place.log()), (0, 2), "a repetition is not logged again");
    drop(courier); // the controller is stopped
    place.raise(2..4).await;
    place.receiver.answer.store(302, Ordering::SeqCst);
    let mut courier = place.courier().await;
    assert!(courier.deliver_all().await.is_err(), "a redirect is followed nowhere");
    place.receiver.answer.store(200, Ordering::SeqCst);
    courier.deliver_all().await.unwrap();
    assert_eq!(place.texts(), ["alert 0", "alert 1", "alert 2", "alert 3"]);
}

#[tokio::test]
async fn a_webhook_that_is_away_holds_up_neither_the_log_nor_the_journal() {
    let mut place = Place::new().await;
    place.receiver.answer.store(503, Ordering::SeqCst);
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(place.courier().await.run(stopped));
    let begun = tokio::time::Instant::now();
    for number in 0..8 {
        place.raise(number..number + 1).await;
        while place.log() <= number {
            assert!(begun.elapsed() < Duration::from_secs(60), "alert {number} is not in the log");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // A second for each look. Waiting for the webhook's tries too, as long each as all before it, the eighth would be there
    // after two minutes.
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    assert_eq!(place.texts().len(), 0);
    stop.send_replace(true);
    running.await.unwrap();
}

#[tokio::test]
async fn what_the_log_could_not_take_is_written_once_it_can() {
    let mut place = Place::new().await;
    let log = place.dir.path().join("alerts.jsonl");
    std::fs::create_dir(&log).unwrap(); // no file can be written there
    place.raise(0..2).await;
    let mut courier = place.courier().await;
    courier.deliver_all().await.unwrap();
    assert_eq!(place.texts().len(), 2, "the webhook is told");
    std::fs::remove_dir(&log).unwrap();
    place.raise(2..3).await;
    courier.deliver_all().await.unwrap();
    assert_eq!(place.log(), 3);
}

#[tokio::test]
async fn the_spool_is_bounded_and_the_next_alert_says_how_many_were_dropped() {
    let mut place = Place::new().await;
    place.raise(0..1).await;
    let mut courier = place.courier().await;
    courier.deliver_all().await.unwrap();
    let bound = usize::try_from(MAX_SPOOLED).unwrap();
    place.raise(1..bound + 6).await;
    let left = spool::trim(&courier.pool, MAX_SPOOLED).await.unwrap();
    assert_eq!(left, 5, "the oldest five");
    let oldest = spool::oldest(&courier.pool).await.unwrap();
    assert_eq!(oldest[0].alert.text, "alert 6");
    drop(courier); // a restart does not forget what was delivered
    let mut courier = place.courier().await;
    courier.deliver_all().await.unwrap();
    let taken = place.receiver.taken.lock().unwrap().clone();
    let dropped = |index: usize| serde_json::from_str::<Value>(&taken[index].1).unwrap()["dropped_before"].clone();
    assert_eq!((dropped(0), dropped(1), dropped(2)), (0.into(), 5.into(), 0.into()));
    assert_eq!(taken.len(), bound + 1);
}

#[tokio::test]
async fn an_alert_that_is_refused_for_what_it_is_does_not_hold_back_the_others() {
    let mut place = Place::new().await;
    place.raise(0..1).await;
    let mut courier = place.courier().await;
    for (status, tries) in [(500, 5), (401, 5), (404, 5), (429, 5), (422, 2)] {
        place.receiver.answer.store(status, Ordering::SeqCst);
        for _ in 0..tries {
            assert!(courier.deliver_all().await.is_err(), "{status}: it waits");
        }
    }
    place.raise(1..2).await;
    courier.deliver_all().await.unwrap_err(); // the first is given up, the second refused once
    place.receiver.answer.store(204, Ordering::SeqCst);
    place.raise(2..3).await;
    courier.deliver_all().await.unwrap();
    assert_eq!(place.texts(), ["alert 1", "alert 2"]);
    assert_eq!(place.log(), 3, "the log has each of them");
}

#[tokio::test]
async fn a_short_secret_is_refused() {
    let place = Place::new().await;
    std::fs::write(place.dir.path().join("secret"), "short").unwrap();
    let settings = AlertSettings {
        webhook: Some(place.url.clone()),
        secret_file: Some(place.dir.path().join("secret")),
        ..AlertSettings::default()
    };
    let pool = SqliteStore::pool(&place.dir.path().join("controller.db")).await.unwrap();
    assert!(Courier::new(pool, settings).is_err_and(|why| why.contains("16")));
}
