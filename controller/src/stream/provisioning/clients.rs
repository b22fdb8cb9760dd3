//! The provider's clients: their tokens, what they may not, and what people are told of it.
//!
//! A provider that comes no more, comes in vain, or is refused what it asks about somebody who has left is seen by nobody else: its
//! own administrator may never look. So it is an alert ([`AlertKind::Provisioning`]), the same at most once in [`APART`], and at most
//! [`MAX_TOLD`] of them in that time. Strangers cause none: only who knows a token does.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use ipnet::IpNet;
use postern_common::{
    diagnostics::HumanDuration,
    time::{Monotonic, Now, WallTime},
};

use super::{Core, CoreError, ScimClient};
use crate::{
    records::{AuditEvent, ScimId, ScimToken, StoreChange, TokenHash},
    signals::{
        alerts::{About, AlertKind},
        scim::{Refusal, described},
    },
};

/// The most tokens.
const MAX_TOKENS: usize = 16;
/// How long a token that has expired is still known as that.
const KEPT_AFTER_END: Duration = Duration::from_secs(30 * 86_400);
/// How tokens begin, so that scanners for leaked secrets find them.
const TOKEN_PREFIX: &str = "pst_scim_";
/// How exactly it is kept when a token was last heard.
const HEARD_STEP: Duration = Duration::from_secs(3_600);
/// The least time from an alert to the same one.
const APART: Duration = Duration::from_secs(6 * 3_600);
/// The most different alerts within that time.
const MAX_TOLD: usize = 32;

/// What people were told of lately.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeMap<String, Monotonic>);

impl Told {
    /// Tells whether something is to be told now.
    fn is_due(&mut self, what: &str, now: Monotonic) -> bool {
        self.0.retain(|_, at| now.since(*at) < APART);
        let due = self.0.len() < MAX_TOLD && !self.0.contains_key(what);
        if due {
            self.0.insert(what.to_owned(), now);
        }
        due
    }
}

impl Core {
    /// Makes a token for the client of the configured provider and returns its text, which is kept nowhere.
    ///
    /// # Errors
    /// [`CoreError::NotPermitted`] without `[oidc.scim]` or for no life, [`CoreError::Exhausted`].
    pub fn create_scim_token(
        &mut self,
        networks: Vec<IpNet>,
        life: Duration,
        by: &str,
        now: Now,
    ) -> Result<(String, ScimToken), CoreError> {
        let Some(issuer) = self.config.scim.as_ref().map(|settings| settings.issuer.clone()) else {
            let message = "there is no [oidc.scim] in controller.toml: add it and restart, then make a token";
            return Err(CoreError::NotPermitted(message.into()));
        };
        if life.is_zero() {
            return Err(CoreError::NotPermitted("a token needs some time to live".into()));
        }
        if self.provisioning.tokens.len() >= MAX_TOKENS {
            return Err(CoreError::Exhausted(format!("there are {MAX_TOKENS} tokens: revoke some first")));
        }
        let token = self.draw_token(TOKEN_PREFIX);
        let (expires, created_by) = (self.end_after(life, now)?, by.to_owned());
        let hash = TokenHash::of(&token);
        let record = ScimToken { hash, issuer, networks, expires, created_by, created: now.wall, last_heard: None };
        self.out.store(StoreChange::PutScimToken(record.clone()));
        let of = record.networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let detail = format!("{} for {}, until {expires}, from [{of}]", hash.short(), record.issuer);
        self.out.audit(AuditEvent::Administration { by: by.to_owned(), action: "scim token create".into(), detail });
        self.provisioning.tokens.insert(hash, record.clone());
        Ok((token, record))
    }

    /// Lists tokens, also those that have expired lately.
    pub fn list_scim_tokens(&self) -> Vec<ScimToken> {
        self.provisioning.tokens.values().cloned().collect()
    }

    /// Takes a token back, by its short name or hash.
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn delete_scim_token(&mut self, name: &str, by: &str) -> Result<TokenHash, CoreError> {
        let known = self.provisioning.tokens.keys().find(|hash| hash.short() == name || hash.to_string() == name);
        let missing = || CoreError::NotFound { what: "SCIM token", name: name.chars().take(80).collect() };
        let hash = known.copied().ok_or_else(missing)?;
        self.provisioning.tokens.remove(&hash);
        self.out.store(StoreChange::DeleteScimToken(hash));
        let action = "scim token revoke".to_owned();
        self.out.audit(AuditEvent::Administration { by: by.to_owned(), action, detail: hash.short() });
        Ok(hash)
    }

    /// Finds the client of a token, if it may be used from there and now. Every token is compared, each in constant time.
    ///
    /// # Errors
    /// [`Refusal`], the same for every reason; which one it is stands in the audit log.
    pub fn scim_client(&mut self, token: Option<TokenHash>, from: IpAddr, now: Now) -> Result<ScimClient, Refusal> {
        match self.authorized(token, from, now) {
            Ok(client) => {
                self.provider_heard(client.token, now);
                Ok(client)
            }
            Err((known, reason)) => {
                self.count_refusal(known, from, reason, now);
                if let Some(hash) = known {
                    let help = "nobody is deactivated by SCIM until it comes with one that is good";
                    let text = format!("the provider comes {reason} ({}, from {from}): {help}", hash.short());
                    self.tell_of_provisioning(&format!("{hash} {reason}"), text, About::default(), now);
                }
                Err(Refusal::unauthorized())
            }
        }
    }

    fn authorized(
        &self,
        token: Option<TokenHash>,
        from: IpAddr,
        now: Now,
    ) -> Result<ScimClient, (Option<TokenHash>, &'static str)> {
        let Some(settings) = &self.config.scim else { return Err((None, "SCIM is not configured")) };
        let Some(presented) = token else { return Err((None, "without a token")) };
        let mut found = None;
        for record in self.provisioning.tokens.values() {
            if record.hash.is_same(&presented) {
                found = Some(record);
            }
        }
        let Some(record) = found else { return Err((None, "with a token that nobody knows")) };
        let refused = |reason| Err((Some(record.hash), reason));
        if record.expires <= now.wall || now.wall < record.created {
            return refused("with a token that has expired");
        }
        if !record.networks.is_empty() && !record.networks.iter().any(|network| network.contains(&from)) {
            return refused("from a network that the token is not for");
        }
        if record.issuer != settings.issuer || settings.issuer == self.config.url {
            return refused("with the token of another provider");
        }
        Ok(ScimClient { token: record.hash, issuer: record.issuer.clone() })
    }

    /// Records that a client with authority asked for something that was not done; `leaver` is whom it wanted out.
    pub fn scim_refused(
        &mut self,
        client: &ScimClient,
        from: IpAddr,
        refusal: &Refusal,
        leaver: Option<ScimId>,
        now: Now,
    ) {
        self.count_refusal(Some(client.token), from, refusal.word(), now);
        let realm = self.provisioning.directory.realm(&client.issuer);
        let stays = leaver.and_then(|id| realm?.active(id)).cloned();
        // Somebody may have been meant to go out, and what was full or too long says nothing about who.
        let unread = match refusal.status {
            413 => Some("a request of the provider's was too long to be read"),
            507 => Some("there is no room for what the provider provisions"),
            _ => None,
        };
        if let (None, Some(why)) = (&stays, unread) {
            let client = client.token.short();
            let text = format!("{why} ({client}, from {from}): {}; whoever it was about is as before", refusal.detail);
            self.tell_of_provisioning(&format!("unread {client} {}", refusal.status), text, About::default(), now);
        }
        let Some(user) = stays else { return };
        let who = described(&user);
        let text = format!("{who} stays in: the provider's request to put them out was refused ({})", refusal.detail);
        if self.tell_of_provisioning(&format!("stays {}", user.id), text.clone(), About::default(), now) {
            let (issuer, token) = (client.issuer.clone(), client.token.short());
            self.out.audit(AuditEvent::Provisioned { issuer, token, from, what: text });
        }
    }

    fn provider_heard(&mut self, token: TokenHash, now: Now) {
        self.provisioning.last_heard = Some(now.wall);
        if let Some(record) = self.provisioning.tokens.get_mut(&token)
            && record.last_heard.is_none_or(|at| now.wall.since(at) >= HEARD_STEP || now.wall < at)
        {
            record.last_heard = Some(now.wall);
            self.out.store(StoreChange::PutScimToken(record.clone()));
        }
        if std::mem::take(&mut self.provisioning.is_silent) {
            let text = "the provider is heard again (SCIM)".to_owned();
            self.tell_of_provisioning("heard", text, About::default(), now);
        }
    }

    /// Raises an alert unless it was told of lately; returns whether it did.
    fn tell_of_provisioning(&mut self, what: &str, text: String, about: About, now: Now) -> bool {
        let due = self.provisioning.told.is_due(what, now.monotonic);
        if due {
            self.alert(AlertKind::Provisioning, text, about, now);
        }
        due
    }

    /// Returns when the provider was last heard: with a token that is known, by what is kept, within an hour.
    pub(super) fn provider_last_heard(&self) -> Option<WallTime> {
        let kept = self.provisioning.tokens.values().filter_map(|token| token.last_heard).max();
        kept.max(self.provisioning.last_heard)
    }

    /// Raises an alert if a provider that has a token has not been heard for long.
    fn watch_provider(&mut self, now: Now) {
        let Some(settings) = &self.config.scim else { return };
        let longest = settings.silent_after;
        let since = self.provisioning.tokens.values().map(|token| token.last_heard.unwrap_or(token.created)).max();
        let Some(since) = since.max(self.provisioning.last_heard) else { return };
        if self.provisioning.tokens.is_empty() || self.provisioning.is_silent || now.wall.since(since) < longest {
            return;
        }
        let silent = HumanDuration::rounded(now.wall.since(since));
        let help = "who has left since may still be in: look at the provider's provisioning log";
        let text = format!("the provider was not heard for {silent} (SCIM): {help}");
        // If there was too much to tell lately, it is told later.
        self.provisioning.is_silent = self.tell_of_provisioning("silent", text, About::default(), now);
    }

    fn count_refusal(&mut self, token: Option<TokenHash>, from: IpAddr, reason: &'static str, now: Now) {
        self.provisioning.refused += 1;
        let source = token.map_or_else(|| "SCIM".to_owned(), |hash| format!("SCIM client {}", hash.short()));
        self.refuse_signal(&source, reason, Some(from), now);
    }

    /// Forgets tokens that expired long ago.
    pub(in crate::stream) fn sweep_provisioning(&mut self, now: Now) {
        let old = |token: &&ScimToken| token.expires.saturating_add(KEPT_AFTER_END) <= now.wall;
        let old: Vec<TokenHash> = self.provisioning.tokens.values().filter(old).map(|token| token.hash).collect();
        for hash in old {
            self.provisioning.tokens.remove(&hash);
            self.out.store(StoreChange::DeleteScimToken(hash));
        }
        self.watch_provider(now);
    }
}
