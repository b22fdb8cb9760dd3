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
#[derive(Debug)]
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
