//! From records to the context of a decision.

use std::{collections::BTreeSet, net::IpAddr};

use postern_common::{
    id::MachineName,
    policy::{self, Place, RequestContext, Subject, UserIdentity},
};

use super::clock::Times;
use crate::{
    records::{Assurance, DeviceRecord, NameClaim, SubjectKind, SubjectRecord},
    signals::posture::Evidence,
};

/// From where a device speaks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Whence {
    /// Its outer address, as the controller sees it.
    pub(crate) address: Option<IpAddr>,
    /// Where that is.
    pub(crate) place: Place,
}

/// Returns how policy identifies a person. The controller's own URL is the issuer of local accounts, whose login names
/// are unique and are what `user:NAME` means.
fn policy_identity(own_url: &str, issuer: &str, sub: &str, name: &str) -> UserIdentity {
    if issuer == own_url {
        UserIdentity::Local { name: name.to_owned() }
    } else {
        UserIdentity::Oidc { issuer: issuer.to_owned(), sub: sub.to_owned() }
    }
}

/// Returns what policy reads of an assurance; absent parts are unknown.
pub(crate) fn policy_assurance(assurance: Option<&Assurance>) -> policy::Assurance {
    policy::Assurance {
        auth_time: assurance.and_then(|known| known.auth_time),
        acr: assurance.and_then(|known| known.acr.clone()),
        // No method named is not the same as a method denied: the issuer did not say.
        amr: assurance
            .filter(|known| !known.amr.is_empty())
            .map(|known| known.amr.iter().cloned().collect::<BTreeSet<_>>()),
    }
}

fn subject(own_url: &str, owner: &SubjectRecord, assurance: Option<&Assurance>) -> Subject {
    match &owner.kind {
        SubjectKind::Service { name } => Subject::Service { name: name.clone() },
        SubjectKind::Person { issuer, sub } => Subject::User {
            identity: policy_identity(own_url, issuer, sub, &owner.name),
            display_name: owner.name.clone(),
            groups: assurance.and_then(|known| known.groups.clone()),
            assurance: policy_assurance(assurance),
        },
    }
}

/// Makes the context of a decision about a device and, for a person, what was vouched for at their sign-in.
pub(crate) fn context(
    own_url: &str,
    device: &DeviceRecord,
    owner: &SubjectRecord,
    assurance: Option<&Assurance>,
    posture: Evidence,
    from: Whence,
    at: Times,
) -> RequestContext {
    RequestContext {
        subject: subject(own_url, owner, assurance),
        device: Some(device.id),
        machine: Some(device.name.clone()),
        tags: device.tags.clone(),
        posture: posture.own,
        attested: posture.attested,
        machine_approved: device.name_claim == NameClaim::Approved,
        approved: vec![],
        restraints: vec![],
        address: from.address,
        place: from.place,
        also: vec![],
        now: at.wall,
        instead: at.instead,
    }
}

/// Makes the context of a subject without a device, or on one that does not exist yet.
pub(crate) fn hypothetical(
    own_url: &str,
    owner: &SubjectRecord,
    assurance: Option<&Assurance>,
    machine: Option<MachineName>,
    from: Whence,
    at: Times,
) -> RequestContext {
    RequestContext {
        subject: subject(own_url, owner, assurance),
        device: None,
        machine,
        tags: BTreeSet::new(),
        posture: None,
        attested: None,
        machine_approved: false,
        approved: vec![],
        restraints: vec![],
        address: from.address,
        place: from.place,
        also: vec![],
        now: at.wall,
        instead: at.instead,
    }
}
