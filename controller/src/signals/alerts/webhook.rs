//! Delivering alerts: one after another, to the journal and the log, and to the webhook, again until they are taken.
//!
//! ```text
//! spool --every second: what is newer than `written`--> journal, JSON log     (a webhook that is away holds nothing up here)
//!       --oldest first, until it is taken-------------> webhook --delivered--> out of the spool
//! ```
//!
//! ```text
//! POST {webhook}
//! Postern-Signature: t=1795424400,v1=<hex HMAC-SHA-256(secret, "1795424400." + body)>
//! {"id":"..","sequence":7,"dropped_before":0,"kind":"quarantine","at":..,"text":"..","device":"dev_.."}
//! ```
//!
//! Whatever may pass (no answer, 5xx, a wrong secret or address) is waited for, and what comes later waits behind it. An alert of which
//! the receiver says three times that it is wrong in itself (400, 413, 422 and their like) is given up, so that it does not hold back
//! the others for ever: the log keeps it, and the next one counts it in `dropped_before`. What was delivered last is kept in the
//! database, so that this count is right over a restart.

use std::{collections::VecDeque, io::Write as _, path::Path, time::Duration};

use hmac::{Hmac, Mac};
use postern_common::time::WallTime;
use serde_json::json;
use sha2::Sha256;
use sqlx::SqlitePool;
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::{
    settings::AlertSettings,
    spool::{self, MAX_SPOOLED, Spooled},
};
use crate::serve::{clock, files, listener};

const CONNECT: Duration = Duration::from_secs(4);
const ANSWER: Duration = Duration::from_secs(10);
/// How often the spool is looked at while nothing waits.
const LOOK: Duration = Duration::from_secs(1);
/// The first and the longest wait after a failure; each is twice the one before.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
const LEAST_SECRET: usize = 16;
/// The most alerts that wait for a log that cannot be written; the oldest make room, and stand in the journal.
const UNLOGGED: usize = 10_000;
/// How often an alert is refused for what it is before it is given up.
const REFUSALS: u32 = 3;

/// Signs a body with its time: the value of the header `Postern-Signature`.
pub fn signature(secret: &[u8], at: WallTime, body: &str) -> String {
    let seconds = at.as_millis() / 1_000;
    let mut code = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    code.update(format!("{seconds}.{body}").as_bytes());
    format!("t={seconds},v1={}", hex::encode(code.finalize().into_bytes()))
}

/// Delivers alerts.
pub struct Courier {
    pool: SqlitePool,
    settings: AlertSettings,
    secret: Option<Zeroizing<String>>,
    client: reqwest::Client,
    /// The alert that the receiver refused last for what it is, and how often.
    refused: (i64, u32),
    /// The newest that is in the journal and, unless the log could not be written, in the log.
    written: i64,
    /// Those that the log could not take, oldest first; at most [`UNLOGGED`] of them.
    unlogged: VecDeque<String>,
    /// When the webhook is tried next, and how often in a row it was in vain.
    next: (tokio::time::Instant, u32),
}

impl std::fmt::Debug for Courier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Courier").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Courier {
    /// Makes the courier of a database's spool.
    ///
    /// # Errors
    /// What is wrong with the secret, the certificates or the client, in words.
    pub fn new(pool: SqlitePool, settings: AlertSettings) -> Result<Self, String> {
        let (secret, client) = prepare(&settings)?;
        let next = (tokio::time::Instant::now(), 0);
        Ok(Self { pool, settings, secret, client, refused: (0, 0), written: 0, unlogged: VecDeque::new(), next })
    }

    /// Delivers until `stop` changes.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = listener::told(&mut stop) => return,
            }
            if let Err(why) = self.write_down().await {
                tracing::error!(why, "alerts cannot be read");
            }
            let (at, failures) = self.next;
            if tokio::time::Instant::now() < at {
                continue;
            }
            self.next = match self.deliver_all().await {
                Ok(()) => (at, 0),
                Err(why) => {
                    let wait = WAITS.0.saturating_mul(2u32.saturating_pow(failures.min(16))).min(WAITS.1);
                    tracing::warn!(why, wait_s = wait.as_secs(), "an alert was not delivered; it is tried again");
                    (tokio::time::Instant::now() + wait, failures.saturating_add(1))
                }
            };
        }
    }

    /// Writes what is new into the journal and the log, whatever the webhook does with it.
    ///
    /// # Errors
    /// What the spool says.
    pub async fn write_down(&mut self) -> Result<(), String> {
        let database = |error: sqlx::Error| format!("the spool: {error}");
        loop {
            let new = spool::after(&self.pool, self.written).await.map_err(database)?;
            if new.is_empty() {
                break;
            }
            for spooled in new {
                // The first of this run has none before it that it could miss.
                let dropped = if self.written == 0 { 0 } else { (spooled.sequence - self.written - 1).max(0) };
                tracing::warn!(kind = ?spooled.alert.kind, text = spooled.alert.text, dropped, "alert");
                if self.settings.log.is_some() {
                    self.unlogged.push_back(body(&spooled, dropped));
                    if self.unlogged.len() > UNLOGGED {
                        self.unlogged.pop_front();
                        tracing::error!("an alert is in the journal alone: the log has not been written for long");
                    }
                }
                self.written = spooled.sequence;
            }
        }
        let Some(path) = self.settings.log.clone().filter(|_| !self.unlogged.is_empty()) else { return Ok(()) };
        let lines: String = self.unlogged.iter().flat_map(|line| [line, "\n"]).collect();
        // A full disk must not keep the webhook from being told; what was not written waits here.
        match tokio::task::spawn_blocking(move || append(&path, &lines)).await {
            Ok(Ok(())) => self.unlogged.clear(),
            Ok(Err(error)) => tracing::error!(%error, "the log of alerts cannot be written"),
            Err(error) => tracing::error!(%error, "the log of alerts was not written"),
        }
        Ok(())
    }

    /// Delivers everything that waits, in order.
    ///
    /// # Errors
    /// Why it stopped at the first that was not taken.
    pub async fn deliver_all(&mut self) -> Result<(), String> {
        let database = |error: sqlx::Error| format!("the spool: {error}");
        loop {
            spool::trim(&self.pool, MAX_SPOOLED).await.map_err(database)?;
            // Whatever leaves the spool has been written down.
            self.write_down().await?;
            let waiting = spool::oldest(&self.pool).await.map_err(database)?;
            if waiting.is_empty() {
                return Ok(());
            }
            for spooled in waiting {
                let last = spool::last_delivered(&self.pool).await.map_err(database)?;
                let dropped = last.map_or(0, |last| (spooled.sequence - last - 1).max(0));
                match self.deliver(&spooled, dropped).await? {
                    Answer::Taken => spool::delivered(&self.pool, spooled.sequence).await.map_err(database)?,
                    Answer::Refused(why) => {
                        self.refused = match self.refused {
                            (sequence, times) if sequence == spooled.sequence => (sequence, times + 1),
                            _ => (spooled.sequence, 1),
                        };
                        if self.refused.1 < REFUSALS {
                            return Err(why);
                        }
                        tracing::error!(
                            sequence = spooled.sequence,
                            why,
                            "an alert is given up: it is in the log alone"
                        );
                        spool::forget(&self.pool, spooled.sequence).await.map_err(database)?;
                    }
                }
            }
        }
    }

    async fn deliver(&self, spooled: &Spooled, dropped: i64) -> Result<Answer, String> {
        let (Some(url), Some(secret)) = (&self.settings.webhook, &self.secret) else { return Ok(Answer::Taken) };
        let body = body(spooled, dropped);
        let signature = signature(secret.as_bytes(), clock::now().wall, &body);
        let request = self
            .client
            .post(url)
            .header("Content-Type", "application/json")
            .header("Postern-Signature", signature)
            .body(body);
        let answer =
            request.send().await.map_err(|error| format!("the webhook does not answer: {}", error.without_url()))?;
        let status = answer.status();
        let why = format!("the webhook answers {status}");
        match status.as_u16() {
            200..=299 => Ok(Answer::Taken),
            // What an operator or time can mend: who may, where, how fast.
            401..=404 | 407 | 408 | 425 | 429 => Err(why),
            400..=499 => Ok(Answer::Refused(why)),
            _ => Err(why),
        }
    }
}

/// Checks what [`Courier::new`] will need, and that the log can be written, before anything is served.
///
/// # Errors
/// What is wrong, in words.
pub fn check(settings: &AlertSettings) -> Result<(), String> {
    if let Some(path) = &settings.log {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        files::check_writable(dir).map_err(|error| format!("`log` cannot be written: {error}"))?;
    }
    prepare(settings).map(drop)
}

type Prepared = (Option<Zeroizing<String>>, reqwest::Client);

fn prepare(settings: &AlertSettings) -> Result<Prepared, String> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default(); // of several callers the first installs it
    let secret = match &settings.secret_file {
        None => None,
        Some(path) => {
            let text = files::read_secret(path).map_err(|error| error.to_string())?;
            let secret = Zeroizing::new(text.trim().to_owned());
            if secret.len() < LEAST_SECRET {
                return Err(format!("{}: a secret has at least {LEAST_SECRET} characters", path.display()));
            }
            Some(secret)
        }
    };
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(ANSWER)
        .connect_timeout(CONNECT)
        .no_proxy()
        .user_agent(concat!("postern-controller/", env!("CARGO_PKG_VERSION")));
    if let Some(path) = &settings.ca_file {
        let wrong = |error: String| format!("{}: {error}", path.display());
        let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let bundle = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| wrong(error.to_string()))?;
        builder = bundle.into_iter().fold(builder, reqwest::ClientBuilder::add_root_certificate);
    }
    let client = builder.build().map_err(|error| error.to_string())?;
    Ok((secret, client))
}

/// What a receiver says of an alert.
enum Answer {
    Taken,
    /// It is wrong in itself: the same words would be refused again.
    Refused(String),
}

fn body(spooled: &Spooled, dropped: i64) -> String {
    let mut body = serde_json::to_value(&spooled.alert).expect("an alert has a JSON form");
    body["sequence"] = json!(spooled.sequence);
    body["dropped_before"] = json!(dropped);
    body.to_string()
}

/// Appends whole lines, or none.
fn append(path: &Path, lines: &str) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::File::options().append(true).create(true).mode(0o640).open(path)?;
    let before = file.metadata()?.len();
    let written = file.write_all(lines.as_bytes()).and_then(|()| file.sync_data());
    if written.is_err() {
        drop(file.set_len(before)); // a part of them would come twice
    }
    written
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
