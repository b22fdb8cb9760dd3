//! What requests about restraints do.

use std::collections::BTreeSet;

use postern_common::{id::ResourceName, policy::Reach};
use serde_json::Value;

use super::Refusal;
use crate::{
    admin::{request::Restrainable, server::Office},
    records::Restrained,
    stream::{Core, CoreError, SignalResponse},
};

/// What an administrator wants to be taken from somebody.
pub(super) struct Wanted {
    pub(super) what: Restrainable,
    pub(super) name: String,
    /// The only resources that stay.
    pub(super) to: Option<Vec<String>>,
    pub(super) terminate: bool,
    pub(super) reason: String,
}

/// Takes something from somebody.
pub(super) async fn restrain(office: &Office, by: String, wanted: Wanted) -> Result<Value, Refusal> {
    let Wanted { what, name, to, terminate, reason } = wanted;
    let done = office.handle.call(move |turn, now| {
        let whom = restrainable(turn.core, what, &name)?;
        let response = match (to, terminate) {
            (Some(to), _) => SignalResponse::Restrict(known_resources(turn.core, &to)?),
            (None, true) => SignalResponse::Terminate,
            (None, false) => SignalResponse::Challenge(Reach::Everything),
        };
        turn.core.respond(whom, response, &reason, &by, now)
    });
    done.await??;
    Ok(Value::Null)
}

/// Gives back what was taken from somebody.
pub(super) async fn release(office: &Office, by: String, what: Restrainable, name: String) -> Result<Value, Refusal> {
    let done = office.handle.call(move |turn, now| {
        let whom = restrainable(turn.core, what, &name)?;
        turn.core.release_restraints(whom, &by, now)
    });
    done.await??;
    Ok(Value::Null)
}

fn restrainable(core: &Core, what: Restrainable, name: &str) -> Result<Restrained, CoreError> {
    match what {
        Restrainable::Subject => core.find_subject(name).map(Restrained::Subject),
        Restrainable::Device => core.find_device(name).map(Restrained::Device),
    }
}

/// Reads names of resources that the policy in force knows: a name with a typing error would leave nothing.
fn known_resources(core: &Core, names: &[String]) -> Result<BTreeSet<ResourceName>, CoreError> {
    let known = core.resource_names();
    let read = |name: &String| {
        let parsed = name.parse().ok().filter(|name| known.contains(name));
        parsed.ok_or_else(|| CoreError::NotFound { what: "resource", name: name.chars().take(80).collect() })
    };
    names.iter().map(read).collect()
}
