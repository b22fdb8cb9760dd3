//! What stands behind the pages in their tests: no machines.

use std::sync::Mutex;

use postern_common::{
    id::{DeviceId, SessionId},
    key::DevicePublicKey,
};

use crate::{
    identity::{SignedIn, local::CopiedPasskey, random::Token, user_code::UserCode},
    signals::provider::{Ends, logout::LogoutToken},
    web::{
        doors::{
            Answer, Doors, DoorsError, JoinedMachine, PendingJoin, Portal, StepUpPage, SteppedUp, StockConfiguration,
            StockRequest, TurnedAway,
        },
        event::IdentityEvent,
    },
};

/// No machines; remembers what was recorded, and can fail to record.
#[derive(Default)]
pub(super) struct Nothing {
    pub(super) events: Mutex<Vec<IdentityEvent>>,
    pub(super) signed_out: Mutex<Vec<SessionId>>,
    pub(super) credentials_set: std::sync::atomic::AtomicUsize,
    pub(super) not_of_now: std::sync::atomic::AtomicUsize,
    pub(super) audit_fails: std::sync::atomic::AtomicBool,
    pub(super) turns_away: Mutex<Option<TurnedAway>>,
}

fn not_found<'a, T>() -> Answer<'a, T> {
    Box::pin(async { Err(DoorsError::NotFound) })
}

impl Doors for Nothing {
    fn pending_join<'a>(&'a self, _: UserCode, _: &'a SignedIn) -> Answer<'a, PendingJoin> {
        not_found()
    }

    fn confirm_join<'a>(&'a self, _: UserCode, _: DevicePublicKey, _: &'a SignedIn) -> Answer<'a, JoinedMachine> {
        not_found()
    }

    fn refuse_join<'a>(&'a self, _: UserCode, _: &'a SignedIn) -> Answer<'a, ()> {
        not_found()
    }

    fn portal<'a>(&'a self, _: &'a SignedIn) -> Answer<'a, Portal> {
        Box::pin(async { Ok(Portal::default()) })
    }

    fn end_session<'a>(&'a self, _: SessionId, _: &'a SignedIn) -> Answer<'a, ()> {
        not_found()
    }

    fn remove_device<'a>(&'a self, _: DeviceId, _: &'a SignedIn) -> Answer<'a, ()> {
        not_found()
    }

    fn stock_client<'a>(&'a self, _: StockRequest, _: &'a SignedIn) -> Answer<'a, StockConfiguration> {
        not_found()
    }

    fn requests<'a>(&'a self, _who: &'a SignedIn) -> Answer<'a, Vec<crate::stream::RequestView>> {
        Box::pin(async { Ok(vec![]) })
    }

    fn decide_request<'a>(
        &'a self,
        _request: postern_common::id::RequestId,
        _decision: crate::stream::Decision,
        _reason: String,
        _who: &'a SignedIn,
    ) -> Answer<'a, ()> {
        Box::pin(async { Err(DoorsError::NotFound) })
    }

    fn signed_out<'a>(&'a self, who: &'a SignedIn) -> Answer<'a, ()> {
        self.signed_out.lock().expect("not poisoned").push(who.session());
        Box::pin(async { Ok(()) })
    }

    fn credentials_set<'a>(&'a self, _: &'a str, _: &'a str) -> Answer<'a, usize> {
        self.credentials_set.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Box::pin(async { Ok(0) })
    }

    fn passkey_copied<'a>(&'a self, _: &'a str, _: &'a CopiedPasskey, _: std::net::IpAddr) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn step_up<'a>(&'a self, _: &'a Token, _: &'a SignedIn) -> Answer<'a, StepUpPage> {
        not_found()
    }

    fn confirm_step_up<'a>(&'a self, _: &'a Token, _: &'a SignedIn) -> Answer<'a, SteppedUp> {
        not_found()
    }

    fn provider_ended<'a>(&'a self, _: &'a Ends) -> Answer<'a, usize> {
        Box::pin(async { Ok(0) })
    }

    fn signal_refused(&self, _: &'static str, _: &'static str, _: std::net::IpAddr) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn logout_not_of_now(&self, _: std::net::IpAddr) -> Answer<'_, ()> {
        self.not_of_now.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Box::pin(async { Ok(()) })
    }

    fn signed_out_at_provider<'a>(&'a self, _: &'a LogoutToken) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn admit<'a>(&'a self, _: &'a SignedIn) -> Answer<'a, Option<TurnedAway>> {
        let why = self.turns_away.lock().expect("not poisoned").clone();
        Box::pin(async move { Ok(why) })
    }

    fn audit(&self, event: IdentityEvent) -> Answer<'_, ()> {
        if self.audit_fails.load(std::sync::atomic::Ordering::SeqCst) {
            return Box::pin(async { Err(DoorsError::Unavailable("the disk is full".into())) });
        }
        self.events.lock().expect("not poisoned").push(event);
        Box::pin(async { Ok(()) })
    }
}
