//! The HTTP client for asking a provider: no redirects (they could be pointed inwards), limits on time and size.

use std::{future::Future, path::Path, pin::Pin, time::Duration};

use openidconnect::{AsyncHttpClient, HttpRequest, HttpResponse};

use super::SettingsError;

/// The longest answer of a provider, bytes.
const MAX_ANSWER: usize = 1 << 20;
/// How long a provider may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection to a provider may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// Tells why a provider could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// The request could not be made or answered.
    #[error("the provider does not answer")]
    Request(#[from] reqwest::Error),
    /// The answer is too long.
    #[error("the provider's answer is longer than {MAX_ANSWER} bytes")]
    TooLong,
    /// The answer has a header that cannot be.
    #[error("the provider's answer is malformed")]
    Malformed(#[from] axum::http::Error),
}

/// The client.
#[derive(Debug, Clone)]
pub(crate) struct Http(reqwest::Client);

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = HttpError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(ask(&self.0, request))
    }
}

impl Http {
    /// Posts JSON and returns the status and the answer's body. `bearer` is the whole value of the `Authorization` header.
    pub(crate) async fn post_json(
        &self,
        url: &url::Url,
        bearer: Option<&str>,
        body: &serde_json::Value,
        limit: Duration,
    ) -> Result<(u16, Vec<u8>), HttpError> {
        let mut request = self.0.post(url.clone()).timeout(limit).header("content-type", "application/json");
        request = request.header("accept", "application/json").body(body.to_string());
        if let Some(bearer) = bearer {
            request = request.header("authorization", bearer);
        }
        let mut answer = request.send().await?;
        let status = answer.status().as_u16();
        Ok((status, read(&mut answer).await?))
    }
}

/// Tells whether what is read from a URL cannot be changed on its way: HTTPS, or HTTP on this machine, by its address (a name of it
/// can be another's).
pub(crate) fn is_safe(url: &str) -> bool {
    let Ok(url) = url::Url::parse(url) else { return false };
    url.scheme() == "https" || (url.scheme() == "http" && is_loopback(&url))
}

/// Tells whether a URL that something read at `told_at` names may be asked: metadata from afar do not send us to our own machine.
pub(crate) fn may_lead_to(told_at: &url::Url, url: &url::Url) -> bool {
    url.scheme() == "https" || (url.scheme() == "http" && is_loopback(url) && url.host() == told_at.host())
}

fn is_loopback(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(_)) | None => false,
    }
}

/// Makes the client. `ca_file` holds PEM certificates that vouch for the provider beside the system's roots.
pub(crate) fn client(ca_file: Option<&Path>) -> Result<Http, SettingsError> {
    // Of several callers the first installs it; both install the same one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(ANSWER_TIMEOUT)
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(2)
        .no_proxy()
        .user_agent(concat!("postern-controller/", env!("CARGO_PKG_VERSION")));
    if let Some(path) = ca_file {
        let fault = |why: String| SettingsError::Authorities { path: path.to_owned(), why };
        let pem = std::fs::read(path).map_err(|error| fault(error.to_string()))?;
        for certificate in reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| fault(error.to_string()))? {
            builder = builder.add_root_certificate(certificate);
        }
    }
    builder.build().map(Http).map_err(|error| SettingsError::Client(error.to_string()))
}

/// Asks, and reads the answer within the limits.
async fn ask(client: &reqwest::Client, request: HttpRequest) -> Result<HttpResponse, HttpError> {
    let mut answer = client.execute(request.try_into()?).await?;
    let mut response = axum::http::Response::builder().status(answer.status());
    for (name, value) in answer.headers() {
        response = response.header(name, value);
    }
    Ok(response.body(read(&mut answer).await?)?)
}

async fn read(answer: &mut reqwest::Response) -> Result<Vec<u8>, HttpError> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(HttpError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_alone_and_by_its_address() {
        for (url, safe) in [
            ("https://idp.example/jwks", true),
            ("https://127.0.0.1/jwks", true),
            ("http://127.0.0.1:8080/jwks", true),
            ("http://127.9.9.9/jwks", true),
            ("http://[::1]:8080/jwks", true),
            ("http://localhost/jwks", false), // a name: whoever answers for it
            ("http://127.0.0.1.evil.example/jwks", false),
            ("http://idp.example/jwks", false),
            ("http://10.0.0.1/jwks", false),
            ("http://0.0.0.0/jwks", false),
            ("http://[::]/jwks", false),
            ("http://[::ffff:10.0.0.1]/jwks", false),
            ("ftp://127.0.0.1/jwks", false),
            ("file:///etc/passwd", false),
            ("127.0.0.1", false),
            ("", false),
        ] {
            assert_eq!(is_safe(url), safe, "{url}");
        }
    }

    #[test]
    fn metadata_from_afar_lead_to_no_place_on_this_machine() {
        let parse = |url: &str| url::Url::parse(url).expect("a URL");
        for (told_at, url, may) in [
            ("https://idp.example/x", "https://keys.example/jwks", true),
            ("https://idp.example/x", "http://127.0.0.1/jwks", false),
            ("https://idp.example/x", "http://[::1]/jwks", false),
            ("https://idp.example/x", "http://idp.example/jwks", false),
            ("http://127.0.0.1:1/x", "http://127.0.0.1:2/jwks", true),
            ("http://127.0.0.1:1/x", "http://127.0.0.2:2/jwks", false),
            ("http://[::1]:1/x", "http://[::1]:1/jwks", true),
        ] {
            assert_eq!(may_lead_to(&parse(told_at), &parse(url)), may, "{told_at} names {url}");
        }
    }
}
