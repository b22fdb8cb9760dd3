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
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream, unix::UCred},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
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

/// How many administrators are served at a time; further ones wait. Root and the controller's own user have as many places of their own:
/// nobody else can keep them from putting something into quarantine.
const AT_A_TIME: usize = 16;
/// How many of each may wait for a place; further ones are told that the controller is busy.
const WAITING: usize = 128;
/// How long a request may take to arrive.
const REQUEST: Duration = Duration::from_secs(30);
/// How long a peer may take to read its answer.
const ANSWER: Duration = Duration::from_secs(30);
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
    /// What they may ask.
    pub may: May,
}

/// What an administrator may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum May {
    /// Everything.
    Administer,
    /// To import what a device management says of machines, and nothing else.
    ImportPostures,
}

impl Administrator {
    fn permit(&self, request: &Request) -> Result<(), String> {
        match (self.may, request) {
            (May::Administer, _) | (May::ImportPostures, Request::PostureImport { .. }) => Ok(()),
            (May::ImportPostures, _) => Err(format!(
                "{} may import postures (`postern-controller posture import`) and do nothing else here: become root",
                self.name
            )),
        }
    }
}

/// Who may use the socket besides root and the controller's own user.
#[derive(Debug, Clone, Copy)]
struct Groups<'a> {
    administer: Option<&'a str>,
    import_postures: Option<&'a str>,
}

impl<'a> Groups<'a> {
    fn of(config: &'a Config) -> Self {
        Self { administer: config.admin_group.as_deref(), import_postures: config.posture_group.as_deref() }
    }
}

/// The places of one kind of administrators.
#[derive(Debug)]
struct Places {
    at_work: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Default for Places {
    fn default() -> Self {
        Self { at_work: Arc::new(Semaphore::new(AT_A_TIME)), waiting: Arc::new(Semaphore::new(WAITING)) }
    }
}

impl Places {
    /// Lets a peer wait for its place; `None` if too many do. The permit is for waiting, the semaphore for the place.
    fn enter(&self) -> Option<(OwnedSemaphorePermit, Arc<Semaphore>)> {
        let waiting = Arc::clone(&self.waiting).try_acquire_owned().ok()?;
        Some((waiting, Arc::clone(&self.at_work)))
    }
}

/// Places for root and the controller's own user, and for everybody else.
#[derive(Debug, Default)]
struct Doors {
    own: Places,
    others: Places,
}

impl Doors {
    fn of(&self, uid: Uid) -> &Places {
        if is_own(uid) { &self.own } else { &self.others }
    }
}

fn is_own(uid: Uid) -> bool {
    uid.is_root() || uid == geteuid()
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
            restrict(dir, Groups::of(config), [0o700, 0o750, 0o755]).map_err(failed("restrict the folder of"))?;
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
    restrict(path, Groups::of(config), [0o600, 0o660, 0o666]).map_err(failed("restrict"))?;
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

/// Gives a path the mode for its owner alone, for the group that administers, or for more than one group: then everybody may connect,
/// and who asks is decided by what the kernel says of the peer, as always.
fn restrict(path: &Path, groups: Groups<'_>, [alone, shared, open]: [u32; 3]) -> io::Result<()> {
    if let Some(name) = groups.import_postures {
        find_group(name)?;
    }
    let mode = match groups.administer {
        None => alone,
        Some(name) => {
            let group = find_group(name)?;
            chown(path, None, Some(group.gid)).map_err(|error| match error {
                Errno::EPERM => io::Error::other(format!(
                    "the controller's own user is not in the group `{name}`: usermod -aG {name} USER, then start it again"
                )),
                other => io::Error::from(other),
            })?;
            shared
        }
    };
    let mode = if groups.import_postures.is_some() { open } else { mode };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

fn find_group(name: &str) -> io::Result<Group> {
    let found = Group::from_name(name).map_err(io::Error::from)?;
    found.ok_or_else(|| io::Error::other(format!("there is no group `{name}`: groupadd {name}")))
}

/// Serves administrators until `stop` changes.
pub async fn serve(listener: UnixListener, office: Arc<Office>, mut stop: watch::Receiver<bool>) {
    let doors = Doors::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = listener::told(&mut stop) => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(credentials) = stream.peer_cred() else { continue };
        // Whom a full waiting room turns away is not answered: an answer would take a place.
        let Some((waiting, at_work)) = doors.of(Uid::from_raw(credentials.uid())).enter() else { continue };
        let office = Arc::clone(&office);
        tokio::spawn(async move {
            let Ok(_place) = at_work.acquire_owned().await else { return };
            drop(waiting);
            if let Err(error) = conversation(stream, &credentials, &office).await {
                tracing::debug!(%error, "administration");
            }
        });
    }
    drop(std::fs::remove_file(&office.config.admin_socket));
}

async fn conversation(mut stream: UnixStream, credentials: &UCred, office: &Arc<Office>) -> io::Result<()> {
    let (read, write) = stream.split();
    let (uid, gid) = (Uid::from_raw(credentials.uid()), Gid::from_raw(credentials.gid()));
    let response = match authorise(uid, gid, Groups::of(&office.config)) {
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
                Ok(request) => match who.permit(&request) {
                    Ok(()) => answer::answer(office, &who, request).await,
                    Err(message) => Response::Refused { message },
                },
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
    write_within(ANSWER, write, &line).await
}

/// Writes an answer: who does not read it holds a place for so long and no longer.
async fn write_within(time: Duration, mut to: impl AsyncWrite + Unpin, line: &str) -> io::Result<()> {
    let written = timeout(time, async {
        to.write_all(line.as_bytes()).await?;
        to.shutdown().await
    });
    written.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Decides what a peer may ask: root, the controller's own user and members of the group that administers everything, members of the
/// group for postures to import those.
///
/// # Errors
/// What to tell whoever may ask nothing.
fn authorise(uid: Uid, gid: Gid, groups: Groups<'_>) -> Result<Administrator, String> {
    let user = User::from_uid(uid).ok().flatten();
    let name = user.as_ref().map_or_else(|| format!("uid {uid}"), |user| user.name.clone());
    let is_in = |group: Option<&str>| {
        let group = Group::from_name(group?).ok()??;
        let user = user.as_ref()?;
        let groups = getgrouplist(&CString::new(user.name.as_str()).ok()?, user.gid).ok()?;
        (groups.contains(&group.gid) || gid == group.gid).then_some(())
    };
    if is_own(uid) || is_in(groups.administer).is_some() {
        return Ok(Administrator { name, may: May::Administer });
    }
    if is_in(groups.import_postures).is_some() {
        return Ok(Administrator { name, may: May::ImportPostures });
    }
    Err(match groups.administer {
        Some(group) => {
            format!("{name} may not administer this controller: become root, or a member of the group {group}")
        }
        None => format!("{name} may not administer this controller: become root"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stranger() -> User {
        User::from_name("nobody").expect("a list of users").expect("every system has nobody")
    }

    #[test]
    fn the_group_for_postures_may_import_them_and_do_nothing_else() {
        let nobody = stranger();
        let group = Group::from_gid(nobody.gid).expect("a list of groups").expect("nobody's group");
        let asks = |groups| authorise(nobody.uid, nobody.gid, groups);
        let import = Request::PostureImport { lines: String::new() };
        let apply = Request::PolicyApply { file: "next.toml".into(), text: String::new() };
        assert!(asks(Groups { administer: None, import_postures: None }).is_err());
        let imports =
            asks(Groups { administer: None, import_postures: Some(&group.name) }).expect("it may ask something");
        assert_eq!(imports.may, May::ImportPostures);
        assert_eq!(imports.permit(&import), Ok(()));
        for refused in [apply.clone(), Request::Status, Request::PolicyShow] {
            assert!(imports.permit(&refused).is_err_and(|why| why.contains("nothing else")));
        }
        let both = Groups { administer: Some(&group.name), import_postures: Some(&group.name) };
        assert_eq!(asks(both).expect("it administers").permit(&apply), Ok(()));
    }

    #[tokio::test]
    async fn members_of_a_group_take_no_place_of_roots_and_none_for_long() {
        let doors = Doors::default();
        let others = doors.of(stranger().uid);
        let mut taken = Vec::new();
        for _ in 0..AT_A_TIME {
            let (_, at_work) = others.enter().expect("room");
            taken.push(at_work.try_acquire_owned().expect("a place"));
        }
        let waiting: Vec<_> = (0..WAITING).map(|_| others.enter().expect("they wait")).collect();
        assert!(others.enter().is_none() && waiting[0].1.available_permits() == 0);
        let (_, at_work) = doors.of(Uid::from_raw(0)).enter().expect("root comes in");
        assert!(at_work.try_acquire_owned().is_ok());
        // Whoever asks and does not read.
        let (ours, _theirs) = tokio::io::duplex(16);
        let written = write_within(Duration::from_millis(50), ours, &"x".repeat(1 << 20)).await;
        assert_eq!(written.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
    }
}
