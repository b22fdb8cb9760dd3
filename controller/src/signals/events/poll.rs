//! The poll client (RFC 8936).
//!
//! One question at a time: what was taken or refused since the last one goes along (`ack`, `setErrs`), and only that. What could not be
//! decided (the keys are not there, the store failed) is left out, so the transmitter gives it again. The question asks to be held
//! until there is something; a transmitter that answers at once is asked again after `poll_interval`. One that has always more to tell is
//! asked at [`PACE`], and one that tells nothing that holds less and less often. What came together is taken in the order in which it
//! happened.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::{
    receiver::{Outcome, Receiver},
    set::{self, ErrorCode, Refused},
};
use crate::{
    identity::{
        oidc::chain,
        rate::{Allowance, Buckets},
    },
    serve::{clock, listener},
};

/// The most tokens of one answer: with the longest ones, it is within the limit of an answer.
const MAX_EVENTS: usize = 25;
/// How long a question may be held.
const HELD: Duration = Duration::from_secs(90);
/// How long is waited after a failure, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often a transmitter is asked that has always something to tell: it may hear no acknowledgement.
const PACE: Allowance = Allowance { burst: 64, interval: Duration::from_millis(500) };
/// The longest name of a token in an answer, bytes.
const MAX_NAME: usize = 255;
/// The longest that is told to the transmitter as a name that is too long, bytes.
const MAX_TOLD: usize = 8 << 10;

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

/// What an answer was good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    /// There was nothing to tell.
    Nothing,
    /// Something that could not be decided now, or that there is more.
    Undecided,
    /// Nothing that holds.
    Nonsense,
    /// Events.
    Events,
}

impl Said {
    fn came(&self, answer: &Answer) -> Came {
        match (self.taken.is_empty(), self.refused.is_empty()) {
            (false, _) => Came::Events,
            (true, false) => Came::Nonsense,
            (true, true) if answer.sets.is_empty() && !answer.more_available => Came::Nothing,
            (true, true) => Came::Undecided,
        }
    }

    fn refuse(&mut self, name: &str, refused: Refused) {
        let error = json!({ "err": refused.code.word(), "description": refused.why });
        self.refused.insert(name.to_owned(), error);
    }
}

/// Polls until the controller stops.
pub(crate) async fn poll(receiver: Arc<Receiver>, mut stop: watch::Receiver<bool>) {
    let Some(Ok(url)) = receiver.settings.poll_url.as_deref().map(url::Url::parse) else { return };
    let bearer = receiver.bearer.clone();
    let mut said = Said::default();
    let paces = Buckets::new(PACE, 1);
    let mut pause = FIRST_PAUSE;
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
                said = take(&receiver, &answer).await;
                let came = said.came(&answer);
                if came != Came::Nonsense {
                    pause = FIRST_PAUSE;
                }
                match came {
                    Came::Nothing => receiver.settings.poll_interval.get().saturating_sub(begun.elapsed()),
                    Came::Undecided => FIRST_PAUSE,
                    Came::Nonsense => longer(&mut pause),
                    Came::Events => {
                        paces.take(&(), clock::now().wall).err().map_or(Duration::ZERO, |error| error.retry_after)
                    }
                }
            }
            Err(why) => {
                tracing::warn!(stream = receiver.settings.name, why, "a stream of events cannot be polled");
                longer(&mut pause)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = listener::told(&mut stop) => return,
        }
    }
}

/// Returns the pause, and makes the next one longer.
fn longer(pause: &mut Duration) -> Duration {
    std::mem::replace(pause, (*pause * 2).min(LONGEST_PAUSE))
}

/// Lists the tokens of an answer in the order in which it happened of which they tell, and those whose names are too long.
fn in_order(answer: &Answer) -> (Vec<(&String, &str)>, Vec<&String>) {
    let named = answer.sets.iter().filter(|(name, _)| name.len() <= MAX_NAME).take(MAX_EVENTS);
    let mut tokens: Vec<(&String, &str)> =
        named.map(|(name, token)| (name, token.as_str().unwrap_or_default())).collect();
    tokens.sort_by_cached_key(|(_, token)| set::moments(token));
    let overlong = answer.sets.keys().filter(|name| (MAX_NAME + 1..=MAX_TOLD).contains(&name.len()));
    (tokens, overlong.take(MAX_EVENTS).collect())
}

async fn take(receiver: &Receiver, answer: &Answer) -> Said {
    let mut said = Said::default();
    let (tokens, overlong) = in_order(answer);
    for name in overlong {
        let refused = Refused { code: ErrorCode::InvalidRequest, why: "its name is too long" };
        receiver.refused(refused, None).await;
        said.refuse(name, refused);
    }
    for (name, token) in tokens {
        match receiver.take(token, Some(name), None).await {
            Outcome::Taken => said.taken.push(name.clone()),
            Outcome::Refused(refused) => said.refuse(name, refused),
            Outcome::Later => {}
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

    use super::*;

    fn answer(sets: Value) -> Answer {
        serde_json::from_value(json!({ "sets": sets })).expect("an answer")
    }

    #[test]
    fn what_came_together_is_taken_in_the_order_in_which_it_happened() {
        let token = |iat: i64, at: Value| {
            let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let claims = json!({"iat": iat, "events": {"e": {"event_timestamp": at}}});
            format!("{}.{}.c2ln", part(json!({"alg": "ES256", "typ": "secevent+jwt"})), part(claims))
        };
        let answer = answer(json!({
            "a": token(20, json!(9.25)), "b": token(20, json!(9.125)), "c": token(30, json!(null)), "d": "nonsense",
            "e": token(19, json!(9.25)),
        }));
        let (tokens, _) = in_order(&answer);
        assert_eq!(tokens.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["b", "e", "a", "c", "d"]);
    }

    #[test]
    fn names_that_are_too_long_are_refused_and_block_nothing() {
        let long = |n: usize| format!("{n:0>300}");
        let sets: Map<String, Value> =
            (0..MAX_EVENTS).map(|n| (long(n), json!("x"))).chain([("z".to_owned(), json!("y"))]).collect();
        let answer = answer(sets.into());
        let (tokens, overlong) = in_order(&answer);
        assert_eq!((tokens.len(), overlong.len()), (1, MAX_EVENTS), "each is answered");
    }

    #[test]
    fn a_transmitter_that_tells_nothing_that_holds_is_asked_less_and_less() {
        let answer = answer(json!({"a": "x"}));
        let mut said = Said::default();
        assert_eq!(said.came(&answer), Came::Undecided);
        said.refuse("a", Refused { code: ErrorCode::InvalidRequest, why: "bad" });
        assert_eq!(said.came(&answer), Came::Nonsense);
        said.taken.push("b".into());
        assert_eq!(said.came(&answer), Came::Events);
        let mut pause = FIRST_PAUSE;
        let waits: Vec<u64> = (0..8).map(|_| longer(&mut pause).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
