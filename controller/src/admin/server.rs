//! The administration socket and who may use it.

use std::{
    ffi::CString,
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    unistd::{Gid, Group, Uid, User, chown, geteuid, getgrouplist},
};
use postern_common::time::Now;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream, unix::UCred},
    sync::{Semaphore, watch},
    time::timeout,
};

use super::{
    answer,
    request::{MAX_LINE, Request, Response},
};
use crate::{
    config::Config,
    identity::{local::Accounts, sessions::WebSessions},
    serve::{
        ServeError,
        actor::Handle,
        files::{self, FileError},
        listener::{self, Limits},
        tls::Certificates,
    },
};

/// How many administrators are served at a time; further ones wait.
const AT_A_TIME: usize = 16;
/// How long a request may take to arrive.
const REQUEST: Duration = Duration::from_secs(30);
/// The bit of a folder in which people remove only what is theirs.
const STICKY: u32 = 0o1000;

/// Everything that administration works with.
#[derive(Debug)]
pub struct Office {
    /// Asks the core.
    pub handle: Handle,
    /// Local accounts.
    pub accounts: Arc<Accounts>,
    /// Held while an account is changed and the core is told: it hears of changes in their order.
    pub changing: tokio::sync::Mutex<()>,
    /// Login sessions of browsers.
    pub sessions: WebSessions,
    /// The certificate, for join links.
    pub certificates: Arc<Certificates>,
    /// Connections.
    pub limits: Arc<Limits>,
    /// The configuration.
    pub config: Arc<Config>,
    /// When the controller started.
    pub started: Now,
}

/// An administrator, as the kernel vouches for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Administrator {
    /// The operating system's name of the user.
    pub name: String,
}

/// Makes the socket, for its owner alone or for the configured group.
///
/// # Errors
/// [`ServeError`] if the folder cannot be made or written, if another process serves there, or if there is no such group.
pub fn bind(config: &Config) -> Result<UnixListener, ServeError> {
    let path = &config.admin_socket;
    let failed = |action| {
        let path = path.clone();
        move |cause| ServeError::File(FileError::Io { action, path, cause })
    };
    if let Some(dir) = path.parent() {
        let found = dir.exists();
        files::make_private_folder(dir)?;
        if !found || is_our_own(dir, path) {
            restrict(dir, config.admin_group.as_deref(), 0o700, 0o750).map_err(failed("restrict the folder of"))?;
        }
        let mode = std::fs::metadata(dir).map_err(failed("look at the folder of"))?.mode();
        if mode & 0o022 != 0 && mode & STICKY == 0 {
            return Err(failed("listen on")(io::Error::other(format!(
                "others may write in its folder (mode {:o}) and could put a socket of their own there: chmod go-w {}, or change `socket` in [admin]",
                mode & 0o7777,
                dir.display()
            ))));
        }
    }
    // The store's lock says that no other controller serves from this state, so a socket here is a left-over.
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(failed("listen on")(io::Error::other(
            "another controller answers there: change `socket` in [admin]",
        )));
    }
    drop(std::fs::remove_file(path));
    let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
    restrict(path, config.admin_group.as_deref(), 0o600, 0o660).map_err(failed("restrict"))?;
    Ok(listener)
}

/// Tells whether a folder that is there already is for the socket alone: it belongs to us, and holds nothing else. Any
/// other folder keeps its mode.
fn is_our_own(dir: &Path, socket: &Path) -> bool {
    let ours =
        std::fs::metadata(dir).is_ok_and(|found| found.uid() == geteuid().as_raw() && found.mode() & STICKY == 0);
    let alone = |mut inside: std::fs::ReadDir| inside.all(|entry| entry.is_ok_and(|entry| entry.path() == socket));
    ours && std::fs::read_dir(dir).is_ok_and(alone)
}

fn restrict(path: &Path, group: Option<&str>, alone: u32, shared: u32) -> io::Result<()> {
    let mode = match group {
        None => alone,
        Some(name) => {
            let found = Group::from_name(name).map_err(io::Error::from)?;
            let group =
                found.ok_or_else(|| io::Error::other(format!("there is no group `{name}`: groupadd {name}")))?;
            chown(path, None, Some(group.gid)).map_err(|error| match error {
                Errno::EPERM => io::Error::other(format!(
                    "the controller's own user is not in the group `{name}`: usermod -aG {name} USER, then start it again"
                )),
                other => io::Error::from(other),
            })?;
            shared
        }
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Serves administrators until `stop` changes.
pub async fn serve(listener: UnixListener, office: Arc<Office>, mut stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(AT_A_TIME));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = listener::told(&mut stop) => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
        let office = Arc::clone(&office);
        tokio::spawn(async move {
            if let Err(error) = conversation(stream, &office).await {
                tracing::debug!(%error, "administration");
            }
            drop(place);
        });
    }
    drop(std::fs::remove_file(&office.config.admin_socket));
}

async fn conversation(mut stream: UnixStream, office: &Arc<Office>) -> io::Result<()> {
    let credentials = stream.peer_cred()?;
    let (read, mut write) = stream.split();
    let response = match authorise(&credentials, office.config.admin_group.as_deref()) {
        Err(message) => {
            tracing::warn!(uid = credentials.uid(), "administration refused");
            Response::Refused { message }
        }
        Ok(who) => {
            let mut line = String::new();
            let mut reader = BufReader::new(read.take(MAX_LINE as u64));
            timeout(REQUEST, reader.read_line(&mut line))
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            match serde_json::from_str::<Request>(&line) {
                Ok(request) => answer::answer(office, &who, request).await,
                Err(error) => Response::Refused {
                    message: format!(
                        "the controller does not understand this request ({error}): is it of the same version?"
                    ),
                },
            }
        }
    };
    let mut line = serde_json::to_string(&response).map_err(io::Error::other)?;
    line.push('\n');
    write.write_all(line.as_bytes()).await?;
    write.shutdown().await
}

/// Decides whether a peer may administer: root, the controller's own user, members of the configured group.
///
/// # Errors
/// What to tell whoever may not.
fn authorise(peer: &UCred, group: Option<&str>) -> Result<Administrator, String> {
    let uid = Uid::from_raw(peer.uid());
    let user = User::from_uid(uid).ok().flatten();
    let name = user.as_ref().map_or_else(|| format!("uid {uid}"), |user| user.name.clone());
    let in_group = || {
        let group = Group::from_name(group?).ok()??;
        let user = user.as_ref()?;
        let groups = getgrouplist(&CString::new(user.name.as_str()).ok()?, user.gid).ok()?;
        (groups.contains(&group.gid) || Gid::from_raw(peer.gid()) == group.gid).then_some(())
    };
    if uid.is_root() || uid == geteuid() || in_group().is_some() {
        return Ok(Administrator { name });
    }
    Err(match group {
        Some(group) => {
            format!("{name} may not administer this controller: become root, or a member of the group {group}")
        }
        None => format!("{name} may not administer this controller: become root"),
    })
}
