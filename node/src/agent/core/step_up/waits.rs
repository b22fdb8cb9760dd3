//! Clients that wait for a step-up: each until a deadline, and what it means when that comes.

use std::{collections::BTreeMap, time::Duration};

use postern_common::{
    id::ResourceName,
    time::{Monotonic, Now},
};

use super::ANSWER_WITHIN;

/// The most clients that wait at a time.
pub(in crate::agent::core) const MAX_WAITS: usize = 48;
/// The longest that one waits, whatever the controller says of its page.
pub(super) const LONGEST: Duration = Duration::from_secs(3600);
/// How long after the end of an offer the document that opens the resource may take.
const OPENS_WITHIN: Duration = Duration::from_secs(10);

/// Why a wait ends at its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// The controller did not say whether there is a page.
    NoAnswer,
    /// Nobody has used the page.
    PageExpired,
    /// The controller offers it no more, and has not opened the resource either.
    Withdrawn,
}

impl Late {
    pub(super) fn words(self, resource: &ResourceName) -> String {
        match self {
            Self::NoAnswer => format!("the controller did not answer within {} s", ANSWER_WITHIN.as_secs()),
            Self::PageExpired => "nobody confirmed it in time: run the command again for a new page".into(),
            Self::Withdrawn => format!(
                "stronger proof of sign-in would not open {resource} to this machine any more: `postern explain {resource}` tells why"
            ),
        }
    }
}

#[derive(Debug)]
struct Wait {
    resource: ResourceName,
    late: Late,
    until: Monotonic,
}

/// At most [`MAX_WAITS`], by client.
#[derive(Debug, Default)]
pub(super) struct Waits {
    by_client: BTreeMap<u64, Wait>,
}

impl Waits {
    pub(super) fn is_full(&self) -> bool {
        self.by_client.len() >= MAX_WAITS
    }

    pub(super) fn put(&mut self, client: u64, resource: ResourceName, late: Late, until: Monotonic) {
        self.by_client.insert(client, Wait { resource, late, until });
    }

    pub(super) fn remove(&mut self, client: u64) {
        self.by_client.remove(&client);
    }

    pub(super) fn has(&self, resource: &ResourceName) -> bool {
        self.by_client.values().any(|wait| wait.resource == *resource)
    }

    pub(super) fn resources(&self) -> Vec<ResourceName> {
        self.by_client.values().map(|wait| wait.resource.clone()).collect()
    }

    pub(super) fn clients(&self, resource: &ResourceName) -> Vec<u64> {
        let wanted = self.by_client.iter().filter(|(_, wait)| wait.resource == *resource);
        wanted.map(|(client, _)| *client).collect()
    }

    /// Gives everybody who waits for a resource another deadline.
    pub(super) fn extend(&mut self, resource: &ResourceName, late: Late, until: Monotonic) {
        for wait in self.by_client.values_mut().filter(|wait| wait.resource == *resource) {
            (wait.late, wait.until) = (late, until);
        }
    }

    /// The offer is gone: what it was for comes soon, or not at all.
    pub(super) fn withdrawn(&mut self, resource: &ResourceName, now: Now) {
        let soon = now.monotonic.saturating_add(OPENS_WITHIN);
        let waiting = self.by_client.values_mut().filter(|wait| wait.resource == *resource);
        for wait in waiting.filter(|wait| wait.late != Late::Withdrawn) {
            (wait.late, wait.until) = (Late::Withdrawn, soon.min(wait.until));
        }
    }

    /// The offer is back; `page` tells until when the page works, if there is one.
    pub(super) fn offered_again(&mut self, resource: &ResourceName, page: Option<Monotonic>, now: Now) {
        let answer = now.monotonic.saturating_add(ANSWER_WITHIN);
        let (late, until) = page.map_or((Late::NoAnswer, answer), |until| (Late::PageExpired, until));
        let waiting = self.by_client.values_mut().filter(|wait| wait.resource == *resource);
        for wait in waiting.filter(|wait| wait.late == Late::Withdrawn) {
            (wait.late, wait.until) = (late, until);
        }
    }

    pub(super) fn due(&self) -> Option<Monotonic> {
        self.by_client.values().map(|wait| wait.until).min()
    }

    /// Takes those whose deadline has come.
    pub(super) fn take_late(&mut self, now: Monotonic) -> Vec<(u64, ResourceName, Late)> {
        let late = self.by_client.extract_if(.., |_, wait| wait.until <= now);
        late.map(|(client, wait)| (client, wait.resource, wait.late)).collect()
    }

    /// Takes those that wait for a resource.
    pub(super) fn take(&mut self, resource: &ResourceName) -> Vec<u64> {
        self.by_client.extract_if(.., |_, wait| wait.resource == *resource).map(|(client, _)| client).collect()
    }

    /// Takes all.
    pub(super) fn take_all(&mut self) -> Vec<(u64, ResourceName)> {
        std::mem::take(&mut self.by_client).into_iter().map(|(client, wait)| (client, wait.resource)).collect()
    }
}
