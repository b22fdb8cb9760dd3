//! Where the keys of a platform's issuer are: its discovery document, or a file.
//!
//! ```text
//! discovery (OpenID Connect Discovery §4) --jwks_uri--> keys
//! a file that the operator gives ---------------------> keys, for a cluster that lets nobody read them without signing in
//! ```
//!
//! An issuer that publishes no key is believed ([`keys`]); a file without one is taken for one that is being
//! written, and the keys before it stay.

use std::path::PathBuf;

use openidconnect::{AsyncHttpClient, core::CoreJsonWebKeySet};
use serde_json::Value;

use crate::{
    identity::{
        keys,
        oidc::{
            chain,
            http::{self, Http},
        },
    },
    serve::files,
};

/// Where keys come from.
#[derive(Debug)]
pub(super) enum Place {
    /// The issuer's discovery document.
    Discovery {
        /// The issuer, as tokens name it.
        issuer: String,
        /// Asks it.
        http: Http,
    },
    /// A file with a JSON Web Key Set (RFC 7517 §5).
    File(PathBuf),
}

impl keys::Source for Place {
    type Found = CoreJsonWebKeySet;

    async fn read(&self) -> Result<CoreJsonWebKeySet, String> {
        match self {
            Self::File(path) => {
                let found = keys::usable(files::read(path).map_err(|error| error.to_string())?.as_bytes())?;
                match found.keys().is_empty() {
                    true => Err(format!("there is no key in {} that can be used", path.display())),
                    false => Ok(found),
                }
            }
            Self::Discovery { issuer, http } => {
                let at = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
                let document: Value = serde_json::from_slice(&fetch(http, &at).await?)
                    .map_err(|_| "the issuer's discovery document is not JSON".to_owned())?;
                // OpenID Connect Discovery §4.3: a document of another issuer must not lend us its keys.
                if document["issuer"].as_str() != Some(issuer) {
                    return Err("the issuer's discovery document names another issuer".into());
                }
                let keys = document["jwks_uri"].as_str().ok_or("the issuer's discovery document names no keys")?;
                let may_ask = |(at, keys): (url::Url, url::Url)| http::may_lead_to(&at, &keys);
                if !url::Url::parse(&at).ok().zip(url::Url::parse(keys).ok()).is_some_and(may_ask) {
                    return Err("the issuer's keys are not at an https URL".into());
                }
                keys::usable(&fetch(http, keys).await?)
            }
        }
    }
}

async fn fetch(http: &Http, url: &str) -> Result<Vec<u8>, String> {
    let request = axum::http::Request::get(url).header("accept", "application/json").body(vec![]);
    let request = request.map_err(|_| format!("{url} cannot be asked"))?;
    let answer = http.call(request).await.map_err(|error| format!("{url}: {}", chain(&error)))?;
    if !answer.status().is_success() {
        let hint = match answer.status().as_u16() {
            401 | 403 => ": it lets nobody read that without signing in; give the keys by `keys_file`",
            _ => "",
        };
        return Err(format!("{url} answers {}{hint}", answer.status()));
    }
    Ok(answer.into_body())
}
