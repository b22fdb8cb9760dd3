//! What the pages ask of the core, answered through the actor.

use std::net::{IpAddr, Ipv6Addr};

use postern_common::{
    id::{DeviceId, RequestId, SessionId},
    key::DevicePublicKey,
};

use super::{
    actor::{Handle, Stopped},
    listener::REMOTE,
};
use crate::{
    identity::{SignedIn, local::CopiedPasskey, random::Token, user_code::UserCode},
    records::Person,
    signals::provider::{Ends, logout::LogoutToken},
    stream::{CoreError, Decider, Decision, RequestView, Stranger},
    web::doors::{
        Answer, Doors, DoorsError, JoinedMachine, PendingJoin, Portal, StepUpPage, SteppedUp, StockConfiguration,
        StockRequest, TurnedAway,
    },
    web::event::{IdentityAction, IdentityEvent},
};

/// Returns the address of the browser whose request this task answers.
fn browser() -> IpAddr {
    REMOTE.try_with(|remote| *remote).unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED))
}

impl From<CoreError> for DoorsError {
    fn from(error: CoreError) -> Self {
        match error {
            CoreError::NotFound { .. } | CoreError::Ambiguous { .. } | CoreError::NotHeld { .. } => Self::NotFound,
            CoreError::Expired => Self::Expired,
            CoreError::Changed => Self::Changed,
            CoreError::NotPermitted(why) | CoreError::Exhausted(why) => Self::NotPermitted(why),
        }
    }
}

impl From<Stopped> for DoorsError {
    fn from(error: Stopped) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl Doors for Handle {
    fn pending_join<'a>(&'a self, code: UserCode, who: &'a SignedIn) -> Answer<'a, PendingJoin> {
        let (who, from) = (Person::from(who), browser());
        Box::pin(async move { Ok(self.call(move |turn, now| turn.core.pending_join(code, &who, from, now)).await??) })
    }

    fn confirm_join<'a>(
        &'a self,
        code: UserCode,
        shown: DevicePublicKey,
        who: &'a SignedIn,
    ) -> Answer<'a, JoinedMachine> {
        let (who, from) = (Person::from(who), browser());
        Box::pin(
            async move { Ok(self.call(move |turn, now| turn.core.confirm_join(code, shown, &who, from, now)).await??) },
        )
    }

    fn refuse_join<'a>(&'a self, code: UserCode, who: &'a SignedIn) -> Answer<'a, ()> {
        let (who, from) = (Person::from(who), browser());
        Box::pin(async move { Ok(self.call(move |turn, now| turn.core.refuse_join(code, &who, from, now)).await??) })
    }

    fn portal<'a>(&'a self, who: &'a SignedIn) -> Answer<'a, Portal> {
        let who = Person::from(who);
        Box::pin(async move { Ok(self.call(move |turn, now| turn.core.portal(&who, now)).await?) })
    }

    fn end_session<'a>(&'a self, session: SessionId, who: &'a SignedIn) -> Answer<'a, ()> {
        let who = Person::from(who);
        Box::pin(async move { Ok(self.call(move |turn, now| turn.core.end_own_session(session, &who, now)).await??) })
    }

    fn remove_device<'a>(&'a self, device: DeviceId, who: &'a SignedIn) -> Answer<'a, ()> {
        let who = Person::from(who);
        Box::pin(async move { Ok(self.call(move |turn, now| turn.core.remove_own_device(device, &who, now)).await??) })
    }

    fn stock_client<'a>(&'a self, asked: StockRequest, who: &'a SignedIn) -> Answer<'a, StockConfiguration> {
        let (who, from) = (Person::from(who), browser());
        Box::pin(async move { Ok(self.call(move |turn, now| turn.core.export(&asked, &who, from, now)).await??) })
    }

    fn requests<'a>(&'a self, who: &'a SignedIn) -> Answer<'a, Vec<RequestView>> {
        let who = Person::from(who);
        Box::pin(async move { Ok(self.call(move |turn, now| turn.core.requests_for(&who, now)).await?) })
    }

    fn decide_request<'a>(
        &'a self,
        request: RequestId,
        decision: Decision,
        reason: String,
        who: &'a SignedIn,
    ) -> Answer<'a, ()> {
        let who = Person::from(who);
        Box::pin(async move {
            let decided = self.call(move |turn, now| {
                turn.core.decide_request(request, decision, Decider::Person(&who), &reason, now).map(drop)
            });
            Ok(decided.await??)
        })
    }

    fn signed_out<'a>(&'a self, who: &'a SignedIn) -> Answer<'a, ()> {
        let session = who.session();
        Box::pin(async move { Ok(self.call(move |turn, now| turn.core.web_session_ended(session, now)).await?) })
    }

    fn credentials_set<'a>(&'a self, issuer: &'a str, subject: &'a str) -> Answer<'a, usize> {
        let (issuer, subject) = (issuer.to_owned(), subject.to_owned());
        Box::pin(
            async move { Ok(self.call(move |turn, now| turn.core.credentials_set(&issuer, &subject, now)).await?) },
        )
    }

    fn passkey_copied<'a>(&'a self, issuer: &'a str, copied: &'a CopiedPasskey, from: IpAddr) -> Answer<'a, ()> {
        let (issuer, CopiedPasskey { account, name, .. }) = (issuer.to_owned(), copied.clone());
        let raise = self.call(move |turn, now| {
            turn.core.passkey_copied(&issuer, &account.id, &account.login, &name, from, now);
        });
        Box::pin(async move { Ok(raise.await?) })
    }

    fn step_up<'a>(&'a self, token: &'a Token, who: &'a SignedIn) -> Answer<'a, StepUpPage> {
        let (token, who, from) = (token.clone(), Person::from(who), browser());
        Box::pin(async move { Ok(self.call(move |turn, now| turn.core.step_up_page(&token, &who, from, now)).await??) })
    }

    fn confirm_step_up<'a>(&'a self, token: &'a Token, who: &'a SignedIn) -> Answer<'a, SteppedUp> {
        let (token, who, from) = (token.clone(), Person::from(who), browser());
        Box::pin(
            async move { Ok(self.call(move |turn, now| turn.core.confirm_step_up(&token, &who, from, now)).await??) },
        )
    }

    fn provider_ended<'a>(&'a self, ends: &'a Ends) -> Answer<'a, usize> {
        const REASON: &str = "signed out at the identity provider";
        let ends = ends.clone();
        Box::pin(async move {
            let ended = self.call(move |turn, now| match &ends {
                Ends::Sessions(vouched) => turn.core.end_vouched(vouched, REASON, now),
                Ends::Person { issuer, subject } => turn.core.end_person(issuer, subject, REASON, now),
            });
            Ok(ended.await?)
        })
    }

    fn signal_refused(&self, source: &'static str, reason: &'static str, from: IpAddr) -> Answer<'_, ()> {
        let refuse = self.call(move |turn, now| turn.core.refuse_signal(source, reason, Some(from), now));
        Box::pin(async move { Ok(refuse.await.map(drop)?) })
    }

    fn logout_not_of_now(&self, from: IpAddr) -> Answer<'_, ()> {
        let tell = self.call(move |turn, now| turn.core.logout_not_of_now(from, now));
        Box::pin(async move { Ok(tell.await?) })
    }

    fn signed_out_at_provider<'a>(&'a self, token: &'a LogoutToken) -> Answer<'a, ()> {
        let LogoutToken { issuer, subject, sid, issued, .. } = token.clone();
        let shut = self.call(move |turn, now| {
            turn.core.signed_out_at_provider(&issuer, subject.as_deref(), sid.as_deref(), issued, now);
        });
        Box::pin(async move { Ok(shut.await?) })
    }

    fn admit<'a>(&'a self, who: &'a SignedIn) -> Answer<'a, Option<TurnedAway>> {
        let who = Person::from(who);
        let asked = self.call(move |turn, now| turn.core.admit_person(&who, now));
        Box::pin(async move { Ok(asked.await?) })
    }

    fn audit(&self, event: IdentityEvent) -> Answer<'_, ()> {
        let record = self.call(move |turn, now| {
            let by_stranger = match &event.what {
                IdentityAction::SignInRefused { .. } | IdentityAction::RateLimited { .. } => true,
                IdentityAction::SignedIn { .. }
                | IdentityAction::ProvenAnew { .. }
                | IdentityAction::ProviderLogout { .. }
                | IdentityAction::SignedOut { .. }
                | IdentityAction::SecondFactorEnrolled
                | IdentityAction::PasskeyAdded
                | IdentityAction::PasskeyRemoved
                | IdentityAction::PasswordSet { .. } => false,
            };
            if !by_stranger || turn.core.records_stranger(Stranger::Page, event.address, now) {
                turn.record(&event);
            }
        });
        Box::pin(async move { Ok(record.await?) })
    }
}
