//! Where a token of the platform comes from: a file that the platform writes anew, or the token service of GitHub Actions.
//!
//! ```text
//! [platform] token_file ------------------read--> PlatformToken --> core
//! [platform] github_audience --GET ACTIONS_ID_TOKEN_REQUEST_URL&audience=..., Bearer ACTIONS_ID_TOKEN_REQUEST_TOKEN--'
//! ```
//!
//! Read by a task of its own, because a service can hang; one at a time, with a limit on time and size. Nothing of it is kept or logged.
//! A file is read by a thread of its own, because a file system can hang for ever: while one read does, there is no second, and the
//! runtime's few threads for names and programs stay free. Only a regular file is read, and opening one never waits: a pipe that
//! nobody writes to is no token.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use postern_common::protocol::{MAX_PLATFORM_TOKEN_BYTES, MachineKind, PlatformToken};
use rustls::pki_types::ServerName;
use tokio::{sync::oneshot, time::timeout};
use tokio_rustls::TlsConnector;
use url::Url;
use zeroize::Zeroizing;

use super::{Agent, dial, requests::host_name, tls};
use crate::{agent::core::PlatformSettings, config::PlatformConfig};

/// How long reading a token may take.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// The longest answer of a token service, bytes: JSON around a token.
const MAX_ANSWER: usize = MAX_PLATFORM_TOKEN_BYTES + (16 << 10);
const URL_VARIABLE: &str = "ACTIONS_ID_TOKEN_REQUEST_URL";
const TOKEN_VARIABLE: &str = "ACTIONS_ID_TOKEN_REQUEST_TOKEN";

/// Returns what the core has to know of `[platform]`.
pub(super) fn settings(config: &PlatformConfig) -> Option<PlatformSettings> {
    let used = config.token_file.is_some() || config.github_audience.is_some();
    let name = config.name.clone().or_else(|| host_name().parse().ok())?;
    let watch = config.token_file.is_some();
    used.then(|| PlatformSettings { join: config.join.clone(), name, watch })
}

/// Looks what kind of machine this is.
pub(super) fn machine_kind() -> MachineKind {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let release = read("/proc/sys/kernel/osrelease");
    MachineKind {
        system: read("/proc/sys/kernel/ostype"),
        processor: std::env::consts::ARCH.to_owned(),
        // The line of the kernel: 6.12.3-arch1 is of 6.12.
        kernel: release.splitn(3, '.').take(2).collect::<Vec<_>>().join("."),
    }
}

impl Agent {
    /// Begins to read a token; it comes by itself.
    pub(super) fn read_platform_token(&mut self) {
        let (config, answer, reader) = (self.config.platform.clone(), self.tokens.clone(), self.token_reader.clone());
        tokio::spawn(async move {
            let late = || Err(format!("no token within {} s", READ_WITHIN.as_secs()));
            let token = timeout(READ_WITHIN, read(&config, &reader)).await.unwrap_or_else(|_| late());
            let _ = answer.send(token).await; // the agent may be ending
        });
    }
}

async fn read(config: &PlatformConfig, reader: &TokenReader) -> Result<PlatformToken, String> {
    match (&config.token_file, &config.github_audience) {
        (Some(path), _) => reader.read(path).await,
        (None, Some(audience)) => from_github(audience).await,
        (None, None) => Err("[platform] in node.toml names no source of tokens any more".into()),
    }
}

/// Tells whether a text looks like a token: three parts of base 64 for URLs.
fn taken(text: &str, of: &str) -> Result<PlatformToken, String> {
    let text = text.trim();
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    match text.len() <= MAX_PLATFORM_TOKEN_BYTES && text.split('.').count() == 3 && text.bytes().all(plain) {
        true => Ok(PlatformToken::new(text)),
        false => Err(format!("{of} holds no token: it should be three parts with full stops between")),
    }
}

/// Reads files in a thread, one at a time.
#[derive(Debug, Clone, Default)]
pub(super) struct TokenReader {
    under_way: Arc<AtomicBool>,
}

impl TokenReader {
    async fn read(&self, path: &Path) -> Result<PlatformToken, String> {
        let named: PathBuf = path.to_owned();
        self.by_thread(path, move || from_file(&named)).await
    }

    async fn by_thread(
        &self,
        path: &Path,
        read: impl FnOnce() -> Result<PlatformToken, String> + Send + 'static,
    ) -> Result<PlatformToken, String> {
        let shown = path.display();
        if self.under_way.swap(true, Ordering::SeqCst) {
            return Err(format!("reading {shown} still hangs: is its file system there?"));
        }
        let (answer, told) = oneshot::channel();
        let under_way = self.under_way.clone();
        let thread = std::thread::Builder::new().name("token".into()).spawn(move || {
            let token = read();
            under_way.store(false, Ordering::SeqCst);
            let _ = answer.send(token); // nobody waits for it any more
        });
        if let Err(error) = thread {
            self.under_way.store(false, Ordering::SeqCst);
            return Err(format!("cannot read the platform's token in {shown}: {error}"));
        }
        told.await.map_err(|_| format!("reading {shown} ended without an answer"))?
    }
}

fn from_file(path: &Path) -> Result<PlatformToken, String> {
    let shown = path.display();
    let failed = |error: std::io::Error| format!("cannot read the platform's token in {shown}: {error}");
    // A platform replaces its files by moving links, so links are followed.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => ": is the token's volume mounted (docs/machines.md)?",
            _ => "",
        };
        failed(error) + hint
    })?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(format!("cannot read the platform's token in {shown}: it is no regular file"));
    }
    let mut text = Zeroizing::new(String::new());
    let most = u64::try_from(MAX_PLATFORM_TOKEN_BYTES).unwrap_or(u64::MAX) + 64;
    file.take(most).read_to_string(&mut text).map_err(failed)?;
    taken(&text, &shown.to_string())
}

async fn from_github(audience: &str) -> Result<PlatformToken, String> {
    let variable = |name: &str| {
        std::env::var(name).map_err(|_| {
            format!("{name} is not set: give the job `permissions: id-token: write`, and pass it on: sudo --preserve-env={URL_VARIABLE},{TOKEN_VARIABLE} postern up ...")
        })
    };
    let (url, bearer) = (variable(URL_VARIABLE)?, Zeroizing::new(variable(TOKEN_VARIABLE)?));
    let mut url: Url = url.parse().map_err(|_| format!("{URL_VARIABLE} is no URL"))?;
    url.query_pairs_mut().append_pair("audience", audience);
    let body = get(&url, &bearer).await.map_err(|why| format!("GitHub gives no token: {why}"))?;
    let answer: serde_json::Value =
        serde_json::from_slice(&body).map_err(|_| "GitHub gives no token: its answer is not JSON".to_owned())?;
    taken(answer["value"].as_str().unwrap_or_default(), "GitHub's answer")
}

/// Asks one URL, by TLS with the system's roots. Redirects are not followed: the bearer token is for this host alone.
async fn get(url: &Url, bearer: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let host = url.host_str().filter(|_| url.scheme() == "https").ok_or("it is not asked for by https")?;
    let port = url.port_or_known_default().unwrap_or(443);
    let stream = dial::dial(host, port).await.map_err(|error| error.to_string())?;
    let config = tls::client_config(None).map_err(|error| error.to_string())?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    let request = hyper::Request::get(path)
        .header("host", host)
        .header("authorization", format!("Bearer {bearer}"))
        .header("accept", "application/json")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    if !answer.status().is_success() {
        connection.abort();
        return Err(format!("it answers {}", answer.status()));
    }
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|error| error.to_string());
    connection.abort();
    Ok(Zeroizing::new(body?.to_bytes().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_a_token_or_the_error_says_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let missing = from_file(&path).expect_err("missing");
        assert!(missing.contains("docs/machines.md"), "{missing}");
        for (text, good) in
            [("aGk.aGk.c2ln\n", true), ("", false), ("a.b", false), ("a b.c.d", false), ("a.b.c.d", false)]
        {
            std::fs::write(&path, text).expect("written");
            assert_eq!(from_file(&path).is_ok(), good, "{text}");
        }
        std::fs::write(&path, format!("a.{}.c", "x".repeat(MAX_PLATFORM_TOKEN_BYTES))).expect("written");
        assert!(from_file(&path).is_err(), "too long");
    }

    fn pipe(folder: &Path) -> PathBuf {
        let path = folder.join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).expect("a pipe");
        path
    }

    #[tokio::test]
    async fn a_pipe_that_nobody_writes_to_is_no_token_and_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, reader) = (pipe(folder.path()), TokenReader::default());
        let read = timeout(Duration::from_secs(5), reader.read(&path)).await.expect("at once");
        assert!(read.is_err_and(|why| why.contains("no regular file")));
    }

    #[tokio::test]
    async fn a_read_that_hangs_holds_one_thread_and_no_second_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, reader) = (pipe(folder.path()), TokenReader::default());
        let hanging = path.clone();
        let hang =
            move || std::fs::read(hanging).map(|_| PlatformToken::new("a.b.c")).map_err(|error| error.to_string());
        assert!(timeout(Duration::from_millis(50), reader.by_thread(&path, hang)).await.is_err(), "it hangs");
        for _ in 0..3 {
            let again = timeout(Duration::from_secs(5), reader.read(&path)).await.expect("at once");
            assert!(again.is_err_and(|why| why.contains("still hangs")));
        }
        drop(File::options().write(true).open(&path).expect("the file system comes back"));
        let good = folder.path().join("token");
        std::fs::write(&good, "aGk.aGk.c2ln").expect("written");
        let end = std::time::Instant::now() + Duration::from_secs(5);
        while reader.read(&good).await.is_err() && std::time::Instant::now() < end {
            tokio::task::yield_now().await;
        }
        assert!(reader.read(&good).await.is_ok());
    }

    #[test]
    fn the_kind_of_this_machine_is_a_line_of_kernels() {
        let kind = machine_kind();
        assert_eq!(kind.system, "Linux");
        assert_eq!(kind.kernel.matches('.').count(), 1, "{}", kind.kernel);
    }
}
