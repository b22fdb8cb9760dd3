//! What is remembered of streams: which tokens were taken, when something was heard, what the transmitter says of itself. Sans-IO.
//!
//! Invariants:
//! - A token that was taken is never taken again. Its name is remembered until it is too old to be taken; what is forgotten before,
//!   for want of room, and what a clock that was ahead made too old, moves a **floor** with it: a token that was not issued after
//!   the floor is refused. The floor is durable and never goes back. The life of the controller is one too, so a restored backup
//!   takes nothing from before.
//! - Silence counts on the monotonic clock, and on the wall clock while the controller was not running; a start leaves the
//!   transmitter at least [`AFTER_START`] to speak.
//!
//! **Bounded**: [`MAX_STREAMS`] streams, [`MAX_SEEN`] names a stream, [`MAX_ASKED`] verifications under way.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use postern_common::time::{Monotonic, Now, WallTime};
use serde::{Deserialize, Serialize};

use super::event::StreamStatus;
use crate::records::StoreChange;

/// The most streams that are configured.
pub const MAX_STREAMS: usize = 8;
/// The most tokens of one stream that are remembered by name.
pub(crate) const MAX_SEEN: usize = 32_768;
/// The most verifications that were asked for and did not come.
const MAX_ASKED: usize = 4;
/// The greatest age of a token that can be configured.
pub(crate) const LONGEST_AGE: Duration = Duration::from_secs(30 * 86_400);
/// How long a transmitter has to speak after the controller's start, if its limit is longer than that.
const AFTER_START: Duration = Duration::from_secs(120);

/// What is durable of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamRecord {
    /// Its name in the configuration.
    pub name: String,
    /// When an event of it was last taken.
    pub last_heard: Option<WallTime>,
    /// A token that was not issued after this is not taken.
    pub floor: WallTime,
    /// What the transmitter says that it does.
    pub status: StreamStatus,
    /// Why, as it says.
    pub why: Option<String>,
    /// Since when it counts as silent.
    pub silent_since: Option<WallTime>,
    /// When it was configured first: the silence of one that never speaks begins there.
    #[serde(default)]
    pub watched_since: Option<WallTime>,
}

/// A token that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenRecord {
    /// SHA-256 of its stream, issuer and `jti`, in hexadecimal.
    pub token: String,
    /// The stream on which it came.
    pub stream: String,
    /// When it was issued.
    pub issued: WallTime,
}

/// What the core has to know of a stream that is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// Its name.
    pub name: String,
    /// How it is delivered, for people.
    pub delivery: &'static str,
    /// After how long without an event it is silent.
    pub silent_after: Duration,
    /// For how long a token is taken after it was issued.
    pub max_age: Duration,
}

/// Whether a token may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Nobody has seen it.
    New,
    /// It was taken before.
    Replayed,
    /// It was issued before what is remembered begins.
    Forgotten,
}

/// A stream, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StreamView {
    /// Its name.
    pub name: String,
    /// How it is delivered.
    pub delivery: &'static str,
    /// When an event of it was last taken.
    pub last_heard: Option<WallTime>,
    /// Since when it is silent.
    pub silent_since: Option<WallTime>,
    /// After how long it is silent, seconds.
    pub silent_after_s: u64,
    /// What the transmitter says that it does.
    pub status: StreamStatus,
    /// Why, as it says.
    pub why: Option<String>,
    /// Events taken since the start, those without effect among them.
    pub taken: u64,
    /// Tokens that came again.
    pub replayed: u64,
    /// Tokens whose names are remembered.
    pub remembered: usize,
}

#[derive(Debug)]
struct Stream {
    watched: Option<Watched>,
    record: StreamRecord,
    heard: Monotonic,
    seen: HashMap<[u8; 32], WallTime>,
    by_age: BTreeSet<(WallTime, [u8; 32])>,
    asked: VecDeque<String>,
    taken: u64,
    replayed: u64,
}

impl Stream {
    fn new(record: StreamRecord, now: Now) -> Self {
        Self {
            watched: None,
            record,
            heard: now.monotonic,
            seen: HashMap::new(),
            by_age: BTreeSet::new(),
            asked: VecDeque::new(),
            taken: 0,
            replayed: 0,
        }
    }

    fn silent_at(&self) -> Option<Monotonic> {
        let watched = self.watched.as_ref().filter(|_| self.record.silent_since.is_none())?;
        Some(self.heard.saturating_add(watched.silent_after))
    }

    /// Forgets the oldest name; what was issued until then is not taken any more.
    fn forget_oldest(&mut self) -> Option<StoreChange> {
        let (issued, hash) = self.by_age.pop_first()?;
        self.seen.remove(&hash);
        self.record.floor = self.record.floor.max(issued);
        Some(StoreChange::DeleteSeenEvent(hex::encode(hash)))
    }
}

/// All streams, those of records that are not configured any more among them.
#[derive(Debug)]
pub(crate) struct Streams {
    streams: BTreeMap<String, Stream>,
    /// When this life of the controller began.
    born: WallTime,
}

impl Streams {
    /// Takes up what the store kept.
    pub(crate) fn load(
        records: impl IntoIterator<Item = StreamRecord>,
        seen: impl IntoIterator<Item = SeenRecord>,
        born: WallTime,
        now: Now,
    ) -> Self {
        let mut streams = BTreeMap::new();
        for record in records {
            streams.insert(record.name.clone(), Stream::new(record, now));
        }
        for SeenRecord { token, stream, issued } in seen {
            let mut hash = [0; 32];
            if let Some(stream) = streams.get_mut(&stream).filter(|_| hex::decode_to_slice(&token, &mut hash).is_ok()) {
                stream.seen.insert(hash, issued);
                stream.by_age.insert((issued, hash));
            }
        }
        Self { streams, born }
    }

    /// Takes over which streams are configured; returns what has to be durable for it.
    pub(crate) fn configure(&mut self, all: Vec<Watched>, now: Now) -> Vec<StoreChange> {
        let mut changes = Vec::new();
        self.streams.values_mut().for_each(|stream| stream.watched = None);
        for watched in all.into_iter().take(MAX_STREAMS) {
            let born = self.born;
            let stream = self.streams.entry(watched.name.clone()).or_insert_with(|| {
                let record = StreamRecord {
                    name: watched.name.clone(),
                    last_heard: None,
                    floor: born,
                    status: StreamStatus::Enabled,
                    why: None,
                    silent_since: None,
                    watched_since: None,
                };
                Stream::new(record, now)
            });
            if stream.record.watched_since.is_none() {
                stream.record.watched_since = Some(now.wall);
                changes.push(StoreChange::PutEventStream(stream.record.clone()));
            }
            let last = stream.record.last_heard.or(stream.record.watched_since);
            let away = last.map_or(Duration::ZERO, |heard| now.wall.since(heard));
            let left = AFTER_START.min(watched.silent_after);
            let away = away.min(watched.silent_after.saturating_sub(left));
            let away = u64::try_from(away.as_nanos()).unwrap_or(u64::MAX);
            stream.heard = Monotonic::from_nanos(now.monotonic.as_nanos().saturating_sub(away));
            stream.watched = Some(watched);
        }
        changes
    }

    /// Tells whether a token may be taken.
    pub(crate) fn look(&self, stream: &str, hash: &[u8; 32], issued: WallTime) -> Look {
        match self.streams.get(stream) {
            Some(stream) if stream.seen.contains_key(hash) => Look::Replayed,
            Some(stream) if issued <= stream.record.floor.max(self.born) => Look::Forgotten,
            Some(_) => Look::New,
            None => Look::Forgotten, // not configured
        }
    }

    /// Notes that a token is taken; returns what has to be durable for it.
    pub(crate) fn take(&mut self, name: &str, hash: [u8; 32], issued: WallTime) -> Vec<StoreChange> {
        let Some(stream) = self.streams.get_mut(name) else { return vec![] };
        let mut changes = Vec::new();
        while stream.seen.len() >= MAX_SEEN {
            changes.extend(stream.forget_oldest());
        }
        stream.taken += 1;
        stream.seen.insert(hash, issued);
        stream.by_age.insert((issued, hash));
        let record = SeenRecord { token: hex::encode(hash), stream: name.to_owned(), issued };
        changes.push(StoreChange::PutSeenEvent(record));
        changes
    }

    /// Counts a token that came again.
    pub(crate) fn replayed(&mut self, name: &str) {
        if let Some(stream) = self.streams.get_mut(name) {
            stream.replayed += 1;
        }
    }

    /// Notes that the transmitter spoke, at the time at which it issued what came now: what lay somewhere says nothing of today. Returns
    /// the record, to be stored, and since when the stream was silent until now, if it is not any more.
    pub(crate) fn heard(&mut self, name: &str, issued: WallTime, now: Now) -> Option<(StreamRecord, Option<WallTime>)> {
        let stream = self.streams.get_mut(name)?;
        let age = u64::try_from(now.wall.since(issued).as_nanos()).unwrap_or(u64::MAX);
        let spoken = Monotonic::from_nanos(now.monotonic.as_nanos().saturating_sub(age));
        stream.heard = stream.heard.max(spoken);
        stream.record.last_heard = stream.record.last_heard.max(Some(issued.min(now.wall)));
        let limit = stream.watched.as_ref().map_or(Duration::MAX, |watched| watched.silent_after);
        let is_news = now.wall.since(issued) < limit;
        let silent = if is_news { stream.record.silent_since.take() } else { None };
        Some((stream.record.clone(), silent))
    }

    /// Notes what the transmitter says that it does with the stream. Returns the record, to be stored, if that is new.
    pub(crate) fn update(&mut self, name: &str, status: StreamStatus, why: Option<String>) -> Option<StreamRecord> {
        let stream = self.streams.get_mut(name)?;
        let changed = (stream.record.status, &stream.record.why) != (status, &why);
        (stream.record.status, stream.record.why) = (status, why);
        changed.then(|| stream.record.clone())
    }

    /// Remembers what was given along with a request for a verification.
    pub(crate) fn ask(&mut self, name: &str, state: String) {
        if let Some(stream) = self.streams.get_mut(name) {
            stream.asked.push_back(state);
            while stream.asked.len() > MAX_ASKED {
                stream.asked.pop_front();
            }
        }
    }

    /// Tells whether a verification answers a request, which is then over. One that names no request is the transmitter's own.
    pub(crate) fn answers(&mut self, name: &str, state: Option<&str>) -> bool {
        let Some(state) = state else { return true };
        let Some(stream) = self.streams.get_mut(name) else { return false };
        let found = stream.asked.iter().position(|asked| asked == state);
        found.map(|index| stream.asked.drain(..=index)).is_some()
    }

    /// Returns when the next stream falls silent.
    pub(crate) fn next_silence(&self) -> Option<Monotonic> {
        self.streams.values().filter_map(Stream::silent_at).min()
    }

    /// Lists the streams that have just fallen silent, with their limits; they are so until they are heard.
    pub(crate) fn fall_silent(&mut self, now: Now) -> Vec<(StreamRecord, Duration)> {
        let mut silent = Vec::new();
        for stream in self.streams.values_mut() {
            if let (Some(at), Some(watched)) = (stream.silent_at(), &stream.watched)
                && at <= now.monotonic
            {
                stream.record.silent_since = Some(now.wall);
                silent.push((stream.record.clone(), watched.silent_after));
            }
        }
        silent
    }

    /// Tells whether what a stream said last still holds: while it is not silent and the transmitter has not stopped it, a change would
    /// have been told.
    pub(crate) fn vouches(&self, name: &str) -> bool {
        self.streams.get(name).is_some_and(|stream| {
            let is_on = match stream.record.status {
                StreamStatus::Enabled => true,
                StreamStatus::Paused | StreamStatus::Disabled => false,
            };
            stream.watched.is_some() && stream.record.silent_since.is_none() && is_on
        })
    }

    /// Returns when a stream was last heard.
    pub(crate) fn last_heard(&self, name: &str) -> Option<WallTime> {
        self.streams.get(name)?.record.last_heard
    }

    /// Forgets names of tokens that are too old to be taken, at most `most`. Returns what has to be durable for it.
    pub(crate) fn sweep(&mut self, now: WallTime, most: usize) -> Vec<StoreChange> {
        let mut changes = Vec::new();
        for stream in self.streams.values_mut() {
            // Of a stream that is not configured (yet), nobody knows how old its tokens may be.
            let age = stream.watched.as_ref().map_or(LONGEST_AGE, |watched| watched.max_age);
            let before = changes.len();
            while changes.len() < most
                && let Some((issued, _)) = stream.by_age.first()
                && issued.saturating_add(age.saturating_add(Duration::from_secs(120))) < now
            {
                changes.extend(stream.forget_oldest());
            }
            if changes.len() > before {
                changes.push(StoreChange::PutEventStream(stream.record.clone()));
            }
        }
        changes
    }

    /// Lists the streams that are configured.
    pub(crate) fn list(&self) -> Vec<StreamView> {
        let configured = self.streams.values().filter_map(|stream| Some((stream, stream.watched.as_ref()?)));
        let view = |(stream, watched): (&Stream, &Watched)| StreamView {
            name: watched.name.clone(),
            delivery: watched.delivery,
            last_heard: stream.record.last_heard,
            silent_since: stream.record.silent_since,
            silent_after_s: watched.silent_after.as_secs(),
            status: stream.record.status,
            why: stream.record.why.clone(),
            taken: stream.taken,
            replayed: stream.replayed,
            remembered: stream.seen.len(),
        };
        configured.map(view).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BORN: i64 = 1_000;

    fn at(seconds: u64) -> Now {
        let wall = BORN + i64::try_from(seconds).expect("small");
        Now { monotonic: Monotonic::from_millis(seconds * 1_000), wall: WallTime::from_millis(wall * 1_000) }
    }

    fn issued(seconds: u64) -> WallTime {
        at(seconds).wall
    }

    fn watched(silent_after: u64) -> Watched {
        let (silent_after, max_age) = (Duration::from_secs(silent_after), Duration::from_secs(3_600));
        Watched { name: "okta".into(), delivery: "push", silent_after, max_age }
    }

    fn streams() -> Streams {
        let mut streams = Streams::load([], [], issued(0), at(0));
        streams.configure(vec![watched(600)], at(0));
        streams
    }

    fn hash(number: u64) -> [u8; 32] {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_be_bytes());
        hash
    }

    /// What the store holds after these changes.
    fn stored(changes: Vec<StoreChange>) -> (Vec<StreamRecord>, BTreeMap<String, SeenRecord>) {
        let (mut records, mut seen) = (BTreeMap::new(), BTreeMap::new());
        for change in changes {
            match change {
                StoreChange::PutEventStream(record) => drop(records.insert(record.name.clone(), record)),
                StoreChange::PutSeenEvent(record) => drop(seen.insert(record.token.clone(), record)),
                StoreChange::DeleteSeenEvent(token) => drop(seen.remove(&token)),
                other => panic!("{other:?}"),
            }
        }
        (records.into_values().collect(), seen)
    }

    #[test]
    fn a_token_is_taken_once_also_after_a_restart() {
        let mut streams = streams();
        assert_eq!(streams.look("okta", &hash(1), issued(10)), Look::New);
        let mut changes = streams.take("okta", hash(1), issued(10));
        changes
            .extend(streams.heard("okta", issued(10), at(10)).map(|(record, _)| StoreChange::PutEventStream(record)));
        assert_eq!(streams.look("okta", &hash(1), issued(10)), Look::Replayed);
        let (records, seen) = stored(changes);
        let mut again = Streams::load(records, seen.into_values(), issued(0), at(20));
        again.configure(vec![watched(600)], at(20));
        assert_eq!(again.look("okta", &hash(1), issued(10)), Look::Replayed);
        assert_eq!(again.look("okta", &hash(2), issued(10)), Look::New);
        assert_eq!(again.look("other", &hash(2), issued(10)), Look::Forgotten);
    }

    #[test]
    fn what_is_not_remembered_any_more_is_refused_by_its_age() {
        let mut streams = streams();
        for number in 0..u64::try_from(MAX_SEEN).expect("small") + 10 {
            streams.take("okta", hash(number), issued(number + 1));
        }
        assert_eq!(streams.list()[0].remembered, MAX_SEEN);
        assert_eq!(streams.look("okta", &hash(0), issued(1)), Look::Forgotten);
        assert_eq!(streams.look("okta", &hash(9), issued(10)), Look::Forgotten);
        assert_eq!(streams.look("okta", &hash(10), issued(11)), Look::Replayed);
    }

    #[test]
    fn a_clock_that_was_ahead_lets_nothing_in_again() {
        let mut streams = streams();
        streams.take("okta", hash(1), issued(10));
        let swept = streams.sweep(at(86_400).wall, 100);
        assert!(swept.iter().any(|change| matches!(change, StoreChange::DeleteSeenEvent(_))), "{swept:?}");
        assert_eq!(streams.look("okta", &hash(1), issued(10)), Look::Forgotten, "the clock is right again");
        assert_eq!(streams.look("okta", &hash(2), issued(11)), Look::New);
    }

    #[test]
    fn a_start_forgets_nothing_before_it_knows_what_is_configured() {
        let mut streams = streams();
        let mut changes = streams.take("okta", hash(1), issued(10));
        changes
            .extend(streams.heard("okta", issued(10), at(10)).map(|(record, _)| StoreChange::PutEventStream(record)));
        let (records, seen) = stored(changes);
        let mut again = Streams::load(records, seen.into_values(), issued(0), at(3_000));
        assert_eq!(again.sweep(at(3_000).wall, 100), []);
        again.configure(vec![watched(600)], at(3_000));
        assert_eq!(again.look("okta", &hash(1), issued(10)), Look::Replayed);
        assert_eq!(again.look("okta", &hash(2), issued(9)), Look::New, "what was not delivered yet is taken");
    }

    #[test]
    fn nothing_from_before_this_life_is_taken() {
        let streams = streams();
        assert_eq!(streams.look("okta", &hash(1), issued(0)), Look::Forgotten);
    }

    #[test]
    fn silence_is_told_once_and_ends_when_something_is_heard() {
        let mut streams = streams();
        streams.heard("okta", issued(100), at(100));
        assert_eq!(streams.next_silence(), Some(at(700).monotonic));
        assert!(streams.fall_silent(at(699)).is_empty());
        assert_eq!(streams.fall_silent(at(700)).len(), 1);
        assert!(streams.fall_silent(at(900)).is_empty() && streams.next_silence().is_none());
        assert!(!streams.vouches("okta"));
        let (record, silent) = streams.heard("okta", issued(1_000), at(1_000)).expect("a stream");
        assert_eq!((record.silent_since, silent), (None, Some(at(700).wall)));
        assert!(streams.vouches("okta") && streams.next_silence() == Some(at(1_600).monotonic));
    }

    #[test]
    fn a_start_leaves_the_transmitter_time_to_speak_and_does_not_forget_how_long_it_was_silent() {
        let (record, _) = streams().heard("okta", issued(10), at(10)).expect("a stream");
        let mut again = Streams::load([record.clone()], [], issued(0), at(5_000));
        again.configure(vec![watched(600)], at(5_000));
        assert_eq!(again.next_silence(), Some(at(5_120).monotonic));
        let mut soon = Streams::load([record], [], issued(0), at(70));
        soon.configure(vec![watched(600)], at(70));
        assert_eq!(soon.next_silence(), Some(at(610).monotonic));
    }

    #[test]
    fn what_lay_somewhere_does_not_end_silence() {
        let mut streams = streams();
        assert_eq!(streams.fall_silent(at(600)).len(), 1);
        let (record, silent) = streams.heard("okta", issued(50), at(5_000)).expect("a stream");
        assert_eq!((silent, record.last_heard), (None, Some(issued(50))), "it was said long ago");
        assert!(!streams.vouches("okta"));
        let (record, silent) = streams.heard("okta", issued(4_900), at(5_000)).expect("a stream");
        assert_eq!((silent.is_some(), record.last_heard), (true, Some(issued(4_900))));
        assert_eq!(streams.next_silence(), Some(at(5_500).monotonic), "its silence begins when it was issued");
        streams.heard("okta", issued(4_800), at(5_001));
        assert_eq!(streams.next_silence(), Some(at(5_500).monotonic));
    }

    #[test]
    fn a_stream_that_never_spoke_is_silent_over_restarts_too() {
        let mut first = Streams::load([], [], issued(0), at(0));
        let (records, _) = stored(first.configure(vec![watched(600)], at(0)));
        assert_eq!(records.len(), 1, "since when it is watched is durable");
        let mut again = Streams::load(records, [], issued(0), at(550));
        assert_eq!(again.configure(vec![watched(600)], at(550)), []);
        assert_eq!(again.next_silence(), Some(at(670).monotonic), "two minutes to speak, and no more");
    }

    #[test]
    fn a_stream_that_its_transmitter_stops_vouches_for_nothing() {
        let mut streams = streams();
        assert!(streams.vouches("okta"));
        for status in [StreamStatus::Paused, StreamStatus::Disabled] {
            streams.update("okta", status, None);
            assert!(!streams.vouches("okta"));
        }
        streams.update("okta", StreamStatus::Enabled, None);
        assert!(streams.vouches("okta"));
    }

    #[test]
    fn a_verification_answers_what_was_asked_once() {
        let mut streams = streams();
        for number in 0..6 {
            streams.ask("okta", format!("s{number}"));
        }
        assert!(streams.answers("okta", None), "the transmitter began");
        assert!(!streams.answers("okta", Some("s0")), "asked too long ago");
        assert!(streams.answers("okta", Some("s4")) && !streams.answers("okta", Some("s4")));
        assert!(!streams.answers("okta", Some("s3")) && streams.answers("okta", Some("s5")));
    }
}
