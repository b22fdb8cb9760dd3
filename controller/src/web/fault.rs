//! Pages for what went wrong: what happened, and what to do.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};

use super::{doors::DoorsError, layout, visit::Next};
use crate::{
    identity::{StoreFailed, rate::TooMany},
    signals::provider::Overtaking,
};

/// Why a request did not get its page.
#[derive(Debug)]
pub(super) enum Fault {
    /// The person has to sign in and comes back then.
    SignInFirst(Next),
    NotFound,
    WrongMethod,
    /// The form came from another site.
    OtherSite,
    /// The form's token is missing or another session's.
    Stale,
    /// The form lacks a field, or is too long.
    BadForm,
    TooMany(TooMany),
    /// The join's code has expired or was used.
    CodeExpired,
    /// The page of a step-up has expired, was used, or is not needed any more.
    StepUpExpired,
    /// Another machine waits under the code than the one that was shown.
    CodeChanged,
    NotPermitted(String),
    /// The sign-in comes from before something at the provider that ended it.
    Overtaken(Overtaking),
    /// The password was changed after it was given.
    StartOver,
    /// The one-time link has expired or was used.
    LinkExpired,
    /// A sign-in at the provider came to nothing.
    Provider(ProviderFault),
    Busy,
    /// The controller or its store cannot do it now; what exactly is in the log.
    Unavailable,
    /// Cannot be.
    Bug(&'static str),
}

/// What a person can do about a failed sign-in at the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProviderFault {
    /// Wait.
    Away,
    /// Begin again.
    Restart,
    /// Ask the administrator.
    Refused,
    /// Ask the administrator, and not try again: the provider's word says what is not set up.
    NotSetUp(&'static str),
}

impl From<StoreFailed> for Fault {
    fn from(error: StoreFailed) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "a page failed");
        Self::Unavailable
    }
}

impl From<TooMany> for Fault {
    fn from(error: TooMany) -> Self {
        Self::TooMany(error)
    }
}

impl From<DoorsError> for Fault {
    fn from(error: DoorsError) -> Self {
        match error {
            DoorsError::NotFound => Self::NotFound,
            DoorsError::Expired => Self::CodeExpired,
            DoorsError::Changed => Self::CodeChanged,
            DoorsError::NotPermitted(why) => Self::NotPermitted(why),
            DoorsError::Unavailable(why) => {
                tracing::error!(error = %why, "a page failed");
                Self::Unavailable
            }
        }
    }
}

impl Fault {
    /// Status, headline, what happened and what to do, where to go on.
    fn words(&self) -> (StatusCode, &'static str, String, (&'static str, &'static str)) {
        const HOME: (&str, &str) = ("/", "Go to your resources");
        const SIGN_IN: (&str, &str) = ("/sign-in", "Sign in");
        const JOIN: (&str, &str) = ("/join", "Enter a code");
        let words = |status, headline, text: &str, link| (status, headline, text.to_owned(), link);
        match self {
            Self::SignInFirst(_) => words(StatusCode::SEE_OTHER, "Sign in first", "", SIGN_IN),
            Self::NotFound => words(
                StatusCode::NOT_FOUND,
                "Nothing here",
                "There is no such page, or what it showed has ended. Check the address, or begin at your resources.",
                HOME,
            ),
            Self::WrongMethod => words(
                StatusCode::METHOD_NOT_ALLOWED,
                "Not this way",
                "This address takes a form, not a visit. Go back and use the button on the page.",
                HOME,
            ),
            Self::OtherSite => words(
                StatusCode::FORBIDDEN,
                "That came from another site",
                "Another site tried to send a form in your name. Nothing was done. If you meant it, do it from here.",
                HOME,
            ),
            Self::Stale => words(
                StatusCode::FORBIDDEN,
                "This page was out of date",
                "You signed in or out since it was shown, or this browser blocks cookies. Nothing was done. Load the \
                 page again and repeat it.",
                HOME,
            ),
            Self::BadForm => words(
                StatusCode::BAD_REQUEST,
                "That form was not complete",
                "Something was missing or too long. Nothing was done. Go back and try again.",
                HOME,
            ),
            Self::TooMany(wait) => (
                StatusCode::TOO_MANY_REQUESTS,
                "Too many attempts",
                format!(
                    "To keep guessing hopeless, this is limited. Nothing is lost: wait {} and try again.",
                    super::words::span(wait.retry_after)
                ),
                HOME,
            ),
            Self::CodeExpired => words(
                StatusCode::GONE,
                "This code has expired",
                "Codes last a few minutes and work once. On the machine, run postern up again and use the new code.",
                JOIN,
            ),
            Self::StepUpExpired => words(
                StatusCode::GONE,
                "This page has expired",
                "It works for a few minutes and once, or what it was for is open by now. On the machine, try again, or run \
                 postern step-up.",
                HOME,
            ),
            Self::CodeChanged => words(
                StatusCode::CONFLICT,
                "Another machine is asking now",
                "The machine behind this code is not the one you were shown. Nothing was confirmed. Look at it again, \
                 and refuse it if you do not know it.",
                JOIN,
            ),
            Self::NotPermitted(why) => (StatusCode::FORBIDDEN, "Not permitted", why.clone(), HOME),
            Self::Overtaken(why) => (
                StatusCode::FORBIDDEN,
                "Sign in anew",
                format!(
                    "You are not signed in: {}. Your provider is asked to have you sign in there anew; what you proved before \
                     counts no more here.",
                    why.told()
                ),
                ("/oidc/start?anew=yes", "Sign in anew"),
            ),
            Self::StartOver => words(
                StatusCode::FORBIDDEN,
                "Start over",
                "The password was changed after you gave it. Sign in with the new one.",
                SIGN_IN,
            ),
            Self::LinkExpired => words(
                StatusCode::GONE,
                "This link has expired",
                "Links to set a password work once and not for long. Ask your administrator for a new one.",
                SIGN_IN,
            ),
            Self::Provider(ProviderFault::Away) => words(
                StatusCode::BAD_GATEWAY,
                "Your provider does not answer",
                "The controller could not reach the provider that signs you in. Try again in a minute; if it goes on, \
                 tell your administrator.",
                SIGN_IN,
            ),
            Self::Provider(ProviderFault::Restart) => words(
                StatusCode::BAD_REQUEST,
                "This sign-in is no longer waiting",
                "It took too long, was used already, or began in another browser. Begin again.",
                SIGN_IN,
            ),
            Self::Provider(ProviderFault::Refused) => words(
                StatusCode::FORBIDDEN,
                "You are not signed in",
                "The provider did not confirm who you are. Try again; if it goes on, tell your administrator when this happened.",
                SIGN_IN,
            ),
            Self::Provider(ProviderFault::NotSetUp(error)) => (
                StatusCode::FORBIDDEN,
                "Sign-in is not set up",
                format!(
                    "The sign-in is not set up correctly at the provider ({error}). Trying again will not help: tell your \
                     administrator."
                ),
                HOME,
            ),
            Self::Busy => words(
                StatusCode::SERVICE_UNAVAILABLE,
                "Busy",
                "The controller has more to do than it can. Try again in a few seconds.",
                HOME,
            ),
            Self::Unavailable | Self::Bug(_) => words(
                StatusCode::SERVICE_UNAVAILABLE,
                "That did not work",
                "The controller could not do this now. Nothing was done. Try again; if it goes on, tell your \
                 administrator when this happened.",
                HOME,
            ),
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        if let Self::SignInFirst(next) = self {
            return Redirect::to(&next.sign_in()).into_response();
        }
        if let Self::Bug(what) = self {
            tracing::error!(what, "a page failed");
        }
        let (status, headline, text, link) = self.words();
        let mut answer = (status, layout::fault(status, headline, &text, link)).into_response();
        if let Self::TooMany(wait) = self {
            let seconds = wait.retry_after.as_secs().max(1);
            answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        answer
    }
}

pub(super) async fn not_found() -> Fault {
    Fault::NotFound
}

pub(super) async fn wrong_method() -> Fault {
    Fault::WrongMethod
}
