//! What administrators ask about provisioning (SCIM), and the answers.

use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::server::Office;
use crate::{
    serve::actor::Stopped,
    signals::scim::http,
    stream::{CoreError, ScimGroupView},
};

/// What is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub enum ScimRequest {
    /// Makes a token for the provider's client.
    TokenCreate {
        /// From where it may be used; empty means from anywhere.
        networks: Vec<IpNet>,
        /// How long it works, seconds.
        ttl_s: u64,
    },
    /// Lists tokens.
    TokenList,
    /// Takes a token back.
    TokenRevoke {
        /// Its short name or hash.
        token: String,
    },
    /// Tells how provisioning stands.
    Status,
    /// Lists the people whom the provider has provisioned.
    People {
        /// Only those who are deactivated.
        inactive: bool,
    },
    /// Lists the groups that the provider has provisioned.
    Groups,
}

fn value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).expect("a view has a JSON form")
}

/// Answers.
///
/// # Errors
/// [`Stopped`], and within it what the core refuses.
pub(super) async fn respond(
    office: &Office,
    by: String,
    request: ScimRequest,
) -> Result<Result<Value, CoreError>, Stopped> {
    let handle = &office.handle;
    Ok(match request {
        ScimRequest::TokenCreate { networks, ttl_s } => {
            let life = Duration::from_secs(ttl_s);
            let made = handle.call(move |turn, now| turn.core.create_scim_token(networks, life, &by, now)).await?;
            let base_url = format!("{}{}", office.config.url, http::PATH);
            made.map(|(token, record)| json!({ "token": token, "record": value(&record), "base_url": base_url }))
        }
        ScimRequest::TokenList => {
            let tokens = handle.call(|turn, _| turn.core.list_scim_tokens()).await?;
            Ok(tokens.iter().map(|token| json!({ "short": token.hash.short(), "record": value(token) })).collect())
        }
        ScimRequest::TokenRevoke { token } => {
            let revoked = handle.call(move |turn, _| turn.core.delete_scim_token(&token, &by)).await?;
            revoked.map(|hash| json!({ "token": hash.short() }))
        }
        ScimRequest::Status => Ok(value(&handle.call(|turn, now| turn.core.scim_view(now)).await?)),
        ScimRequest::People { inactive } => {
            Ok(value(&handle.call(move |turn, _| turn.core.scim_people(inactive)).await?))
        }
        ScimRequest::Groups => {
            let groups: Vec<ScimGroupView> = handle.call(|turn, _| turn.core.scim_groups()).await?;
            Ok(value(&groups))
        }
    })
}
