//! Asks the provider at an interval whether it still vouches for those who signed in there.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use postern_common::{id::SessionId, time::WallTime};
use tokio::sync::watch;

use super::Vouchers;
use crate::{
    identity::{
        StoreFailed,
        oidc::{Provider, Refusal},
        sessions::WebSessions,
    },
    serve::{actor::Handle, clock, listener},
};

/// How often is looked for whom the time has come, at most.
const ROUND: Duration = Duration::from_secs(30);
const ENDED: &str = "the identity provider has ended this sign-in";

/// How often the provider is asked, and how long it may be away.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) interval: Duration,
    pub(crate) grace: Duration,
}

/// Runs until the controller stops.
pub(crate) async fn watch(
    provider: Arc<Provider>,
    vouchers: Vouchers,
    sessions: WebSessions,
    handle: Handle,
    settings: Settings,
    mut stop: watch::Receiver<bool>,
) {
    let mut round = tokio::time::interval(ROUND.min(settings.interval));
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = round.tick() => {
                let now = clock::now().wall;
                if let Err(error) = check(&provider, &vouchers, &sessions, &handle, settings, now).await {
                    tracing::warn!(%error, "what the identity provider vouches for cannot be checked");
                }
            }
            () = listener::told(&mut stop) => return,
        }
    }
}

async fn check(
    provider: &Provider,
    vouchers: &Vouchers,
    sessions: &WebSessions,
    handle: &Handle,
    settings: Settings,
    now: WallTime,
) -> Result<(), StoreFailed> {
    if let Ok(in_use) = handle.call(|turn, _| turn.core.vouched_sessions()).await {
        vouchers.sweep(&in_use, now).await?;
    }
    let interval = i64::try_from(settings.interval.as_millis()).unwrap_or(i64::MAX);
    for due in vouchers.due(WallTime::from_millis(now.as_millis().saturating_sub(interval)), now).await? {
        match provider.still_vouches(&due.refresh_token, now).await {
            Ok(replacement) => vouchers.good(&due, replacement.as_ref().map(|t| t.as_str()), now).await?,
            // A step-up has brought another token while this one was asked about.
            Err(_) if !vouchers.stands(&due).await? => {}
            Err(Refusal::Ended) => end(vouchers, sessions, handle, due.session, ENDED.into()).await?,
            Err(Refusal::Away(why)) => {
                let since = due.failing_since.unwrap_or(now);
                tracing::warn!(why, "the identity provider cannot be asked whether a sign-in still stands");
                if now.since(since) >= settings.grace {
                    let reason =
                        "the identity provider could not be asked for too long whether this sign-in still stands";
                    end(vouchers, sessions, handle, due.session, reason.into()).await?;
                } else {
                    vouchers.failing(&due, since, now).await?;
                }
            }
        }
    }
    Ok(())
}

/// Ends what was vouched for. The row goes last: after a crash in between it is found again.
async fn end(
    vouchers: &Vouchers,
    sessions: &WebSessions,
    handle: &Handle,
    session: SessionId,
    reason: String,
) -> Result<(), StoreFailed> {
    let ended = BTreeSet::from([session]);
    sessions.end(session).await?;
    let asked = ended.clone();
    if handle.call(move |turn, now| turn.core.end_vouched(&asked, &reason, now)).await.is_ok() {
        vouchers.forget(&ended).await?;
    }
    Ok(())
}
