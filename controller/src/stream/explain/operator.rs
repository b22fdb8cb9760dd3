//! What an operator is told beside policy's own words, and a person is not: in which groups somebody is and who says so, which
//! machine waits for approval or is missing, and the command that lets somebody in again.

use postern_common::{
    diagnostics::shell_word,
    policy::{NodeSelector, RequestContext, Subject, Targets},
    protocol::Explanation,
};

use super::Core;
use crate::{
    records::{DeviceRecord, SubjectKind, SubjectRecord},
    signals::scim::settings::GroupSource,
    stream::admin::is_removed,
};

impl Core {
    /// Says what an operator does so that somebody who is kept out may take part again; nothing if nothing here does it.
    pub(super) fn let_in_again(&self, owner: &SubjectRecord) -> Option<String> {
        let name = shell_word(&owner.name);
        match (&owner.disabled, &owner.kind) {
            (None, _) => {
                let realm = "the identity provider, which provisions people here (SCIM)";
                Some(format!(
                    "activate {} at {realm}: `postern-controller scim people --inactive` lists who is not",
                    owner.name
                ))
            }
            (Some(_), _) if is_removed(owner) => None,
            (Some(_), SubjectKind::Service { .. }) => Some(format!("postern-controller lift subject {name}")),
            (Some(_), SubjectKind::Person { .. }) => Some(format!("postern-controller user enable {name}")),
        }
    }

    /// Tells an operator in which groups a person is, and who says so: rules name groups.
    pub(super) fn groups_of(&self, context: &RequestContext, device: Option<&DeviceRecord>) -> Option<String> {
        const SHOWN: usize = 20;
        let Subject::User { groups, .. } = &context.subject else { return None };
        let Some(groups) = groups else {
            let session = device.is_none_or(|device| self.registry.session_on(device.id).is_some());
            return session.then(|| "groups of this person: unknown, nobody has said them here".to_owned());
        };
        let owner = device.and_then(|device| self.registry.subject(device.owner));
        let whence = owner.map(|owner| self.groups_come_from(owner)).unwrap_or_default();
        let mut shown: Vec<&str> = groups.iter().take(SHOWN).map(String::as_str).collect();
        let more = (groups.len() > SHOWN).then(|| format!("and {} more", groups.len() - SHOWN));
        shown.extend(more.as_deref());
        let shown = if shown.is_empty() { "none".to_owned() } else { shown.join(", ") };
        Some(format!("groups of this person: {shown}{whence}"))
    }

    fn groups_come_from(&self, owner: &SubjectRecord) -> &'static str {
        match (&owner.kind, &self.config.scim) {
            (SubjectKind::Person { issuer, .. }, _) if *issuer == self.config.url => "   (local account)",
            (SubjectKind::Person { .. }, Some(scim)) if self.is_provisioned(&owner.kind) => match scim.groups {
                GroupSource::Claims => "   (from the sign-in)",
                GroupSource::Scim => "   (from SCIM)",
                GroupSource::Both => "   (those that the sign-in and SCIM both name)",
            },
            (SubjectKind::Person { .. }, _) => "   (from the sign-in)",
            (SubjectKind::Service { .. }, _) => "",
        }
    }

    /// A machine that would be the place that is asked about if somebody approved its name; none: how one comes there.
    pub(super) fn claims(&self, asked: &str, targets: &Targets, explanation: &mut Explanation) {
        let selectors = asked.parse().ok().and_then(|name| self.policy.resource(&name)).map(|known| known.nodes());
        self.name_claims(asked, selectors, explanation);
        let stands = |selector: &NodeSelector| {
            targets.nodes().iter().any(|node| match selector {
                NodeSelector::Name(name) => node.name == *name,
                NodeSelector::Tag(tag) => node.tags.contains(tag),
            })
        };
        let selectors = selectors.unwrap_or_default();
        if explanation.allowed || selectors.iter().any(stands) {
            return;
        }
        let Some(selector) = selectors.first() else { return };
        explanation.fix.get_or_insert_with(|| match selector {
            NodeSelector::Tag(tag) => format!(
                "`postern-controller token create --tag {tag}` for a machine that joins, `postern-controller approve MACHINE {tag}` for one that has joined"
            ),
            NodeSelector::Name(name) => format!("postern-controller token create --machine {name}"),
        });
    }

    /// A machine that calls itself like the place that is asked about, and waits for approval.
    fn name_claims(&self, asked: &str, selectors: Option<&[NodeSelector]>, explanation: &mut Explanation) {
        let named: Vec<&str> = match selectors {
            Some(selectors) => selectors
                .iter()
                .filter_map(|node| match node {
                    NodeSelector::Name(name) => Some(name.as_str()),
                    NodeSelector::Tag(_) => None,
                })
                .collect(),
            None => vec![asked],
        };
        for device in self.registry.devices().filter(|device| self.name_waits(device)) {
            if named.contains(&device.name.as_str()) {
                let name = &device.name;
                explanation.because.push(format!("{name} waits for an administrator to approve its name"));
                explanation.fix.get_or_insert_with(|| format!("postern-controller approve {name} --name"));
            }
        }
    }
}
