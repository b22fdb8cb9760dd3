//! The poll client (RFC 8936).
//!
//! One question at a time: what was taken or refused since the last one goes along (`ack`, `setErrs`), and only that. What could not be
//! decided (the keys are not there, the store failed) is left out, so the transmitter gives it again. The question asks to be held
//! until there is something; a transmitter that answers at once is asked again after `poll_interval`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::receiver::{Outcome, Receiver};
use crate::{identity::oidc::chain, serve::listener};

/// The most tokens of one answer: with the longest ones, it is within the limit of an answer.
const MAX_EVENTS: usize = 25;
/// How long a question may be held.
const HELD: Duration = Duration::from_secs(90);
/// How long is waited after a failure, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After how many answers in a row with something in them is waited nevertheless: a transmitter may hear no acknowledgement.
const EAGER: u32 = 64;
/// The longest name of a token in an answer, bytes.
const MAX_NAME: usize = 255;

/// An answer (RFC 8936 §2.3).
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default)]
    sets: Map<String, Value>,
    #[serde(default, rename = "moreAvailable")]
    more_available: bool,
}

/// What is said of tokens with the next question. Bounded by one answer: what it told is said with the next one.
#[derive(Debug, Default)]
struct Said {
    taken: Vec<String>,
    refused: BTreeMap<String, Value>,
}

impl Said {
    fn question(&self) -> Value {
        let mut question = json!({ "maxEvents": MAX_EVENTS, "returnImmediately": false });
        if !self.taken.is_empty() {
            question["ack"] = json!(self.taken);
        }
        if !self.refused.is_empty() {
            question["setErrs"] = json!(self.refused);
        }
        question
    }
}

/// Polls until the controller stops.
pub(crate) async fn poll(receiver: Arc<Receiver>, mut stop: watch::Receiver<bool>) {
    let Some(Ok(url)) = receiver.settings.poll_url.as_deref().map(url::Url::parse) else { return };
    let bearer = receiver.bearer.clone();
    let mut said = Said::default();
    let (mut pause, mut eager) = (FIRST_PAUSE, 0);
    loop {
        let begun = tokio::time::Instant::now();
        let question = said.question();
        let asked = receiver.transmitter.http.post_json(&url, bearer.as_ref().map(|b| b.as_str()), &question, HELD);
        let answered = tokio::select! {
            answered = asked => answered,
            () = listener::told(&mut stop) => return,
        };
        let answer = match answered {
            Ok((200..=299, body)) if body.is_empty() => Ok(Answer { sets: Map::new(), more_available: false }),
            Ok((200..=299, body)) => serde_json::from_slice(&body).map_err(|error| error.to_string()),
            Ok((status, _)) => Err(format!("it answers with {status}")),
            Err(error) => Err(chain(&error)),
        };
        let wait = match answer {
            Ok(answer) => {
                pause = FIRST_PAUSE;
                said = take(&receiver, &answer).await;
                let is_empty = said.taken.is_empty() && said.refused.is_empty();
                eager = if is_empty { 0 } else { eager + 1 };
                match is_empty && !answer.more_available {
                    true => receiver.settings.poll_interval.get().saturating_sub(begun.elapsed()),
                    false if is_empty || eager % EAGER == 0 => FIRST_PAUSE, // it could not be decided, or does not end
                    false => Duration::ZERO,
                }
            }
            Err(why) => {
                tracing::warn!(stream = receiver.settings.name, why, "a stream of events cannot be polled");
                let wait = pause;
                pause = (pause * 2).min(LONGEST_PAUSE);
                wait
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = listener::told(&mut stop) => return,
        }
    }
}

async fn take(receiver: &Receiver, answer: &Answer) -> Said {
    let mut said = Said::default();
    for (name, token) in answer.sets.iter().filter(|(name, _)| name.len() <= MAX_NAME).take(MAX_EVENTS) {
        match receiver.take(token.as_str().unwrap_or_default(), Some(name), None).await {
            Outcome::Taken => said.taken.push(name.clone()),
            Outcome::Refused(refused) => {
                let error = json!({ "err": refused.code.word(), "description": refused.why });
                said.refused.insert(name.clone(), error);
            }
            Outcome::Later => {}
        }
    }
    said
}
