//! The local socket: who asks, may they, one request, its replies.
//!
//! Bounds: [`MAX_CLIENTS`] at a time, some of them kept for root, and [`PLACES_OF_ONE`] of one other user: one more is told so
//! and turned away. [`MAX_REQUEST_BYTES`]; [`REPLIES`] replies that wait for a slow reader. The main loop never waits for a client: a follower that does not read misses records, which are counted.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
    task::JoinHandle,
    time::timeout,
};

use crate::agent::api::{MAX_REQUEST_BYTES, Reply, Request, Right};

/// Clients at a time.
pub const MAX_CLIENTS: usize = 64;
/// Places that only root can take, so that no local user can keep `postern down` out by holding connections.
const ROOTS_PLACES: usize = 8;
/// Places that one other user can take, so that they do not keep the rest out: most requests are answered at once, and what
/// waits or follows takes one.
const PLACES_OF_ONE: usize = 12;
/// Replies that wait for a slow reader.
pub const REPLIES: usize = 256;
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// What reaches the main loop from a client.
#[derive(Debug)]
pub enum FromClient {
    /// A request of somebody who may ask it.
    Asked {
        /// The client.
        client: u64,
        /// The local user, as the kernel says.
        uid: u32,
        /// What they may do.
        right: Right,
        /// The request.
        request: Request,
        /// Where replies go. Dropped, the connection is closed after them.
        replies: mpsc::Sender<Reply>,
    },
    /// The client went away, before or after its answer.
    Gone {
        /// The client.
        client: u64,
    },
}

/// The listening socket. Dropped, it stops and its file is removed.
#[derive(Debug)]
pub struct LocalSocket {
    path: PathBuf,
    task: JoinHandle<()>,
    places: Arc<Semaphore>,
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        self.close();
    }
}

impl LocalSocket {
    /// Listens at `path`. The caller holds the runtime directory's lock, so a file that is there is a leftover.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn listen(path: &Path, group: Option<String>, clients: mpsc::Sender<FromClient>) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        // Everybody may connect: what each may ask is decided by who the kernel says it is.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        let places = Arc::new(Semaphore::new(MAX_CLIENTS));
        let task = tokio::spawn(accept(listener, group, clients, places.clone()));
        Ok(Self { path: path.to_owned(), task, places })
    }

    /// Takes no more clients: whoever comes now finds no agent and starts another one.
    pub fn close(&self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path); // a leftover is replaced at the next start
    }

    /// Waits until the clients that are there have read their answers, or for `patience`.
    pub async fn drain(&self, patience: Duration) {
        let everybody = self.places.acquire_many(MAX_CLIENTS as u32);
        let _ = timeout(patience, everybody).await; // a follower may stay to the end
    }
}

async fn accept(
    listener: UnixListener,
    group: Option<String>,
    clients: mpsc::Sender<FromClient>,
    places: Arc<Semaphore>,
) {
    let numbers = AtomicU64::new(1);
    let others = Arc::new(Semaphore::new(MAX_CLIENTS - ROOTS_PLACES));
    let users = Users::default();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await; // out of descriptors: let some close
            continue;
        };
        let Ok(uid) = stream.peer_cred().map(|who| who.uid()) else { continue };
        let is_root = uid == 0;
        let own_place = if is_root { Some(None) } else { users.take(uid).map(Some) };
        let others_place = (!is_root).then(|| others.clone().try_acquire_owned()).transpose();
        let (Some(own_place), Ok(others_place), Ok(place)) =
            (own_place, others_place, places.clone().try_acquire_owned())
        else {
            turn_away(&stream);
            continue;
        };
        let client = numbers.fetch_add(1, Ordering::Relaxed);
        let (group, clients) = (group.clone(), clients.clone());
        tokio::spawn(async move {
            serve(stream, client, group.as_deref(), &clients).await;
            let _ = clients.send(FromClient::Gone { client }).await; // the main loop ends only with the process
            drop((place, others_place, own_place));
        });
    }
}

/// Says that there is no place. A stream that was just opened has room for a line; one that has not is closed without.
fn turn_away(stream: &UnixStream) {
    let message = "the agent is busy with other requests: try again in a moment".into();
    let _ = stream.try_write(&line(&Reply::Refused { message }));
}

/// How many places each user has taken; users without one are not held.
#[derive(Debug, Clone, Default)]
struct Users(Arc<Mutex<BTreeMap<u32, usize>>>);

/// One user's place, until it is dropped.
#[derive(Debug)]
struct PlaceOfOne {
    users: Users,
    uid: u32,
}

impl Users {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // each change is one step
    }

    fn take(&self, uid: u32) -> Option<PlaceOfOne> {
        let mut users = self.lock();
        if users.get(&uid).is_some_and(|taken| *taken >= PLACES_OF_ONE) {
            return None;
        }
        *users.entry(uid).or_default() += 1;
        Some(PlaceOfOne { users: self.clone(), uid })
    }
}

impl Drop for PlaceOfOne {
    fn drop(&mut self) {
        let mut users = self.users.lock();
        if let Some(taken) = users.get_mut(&self.uid) {
            *taken -= 1;
            if *taken == 0 {
                users.remove(&self.uid);
            }
        }
    }
}

async fn serve(stream: UnixStream, client: u64, group: Option<&str>, clients: &mpsc::Sender<FromClient>) {
    let Ok(who) = stream.peer_cred() else { return };
    let may_change = may_change(who.uid(), who.gid(), group);
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read.take(MAX_REQUEST_BYTES as u64));
    let mut line = String::new();
    match timeout(REQUEST_PATIENCE, lines.read_line(&mut line)).await {
        Ok(Ok(length)) if length > 0 => {}
        Ok(Ok(_) | Err(_)) | Err(_) => return,
    }
    let request = match serde_json::from_str::<Request>(&line) {
        Ok(request) if request.right() == Right::Read || may_change => request,
        Ok(_) => {
            let group = group.map(|group| format!(" or a member of the group `{group}`")).unwrap_or_default();
            let message = format!("only root{group} may do this: sudo postern ...");
            let _ = say(&mut write, &Reply::Refused { message }).await;
            return;
        }
        Err(_) => {
            let message = "the agent does not know this request: is it of another version? restart it".into();
            let _ = say(&mut write, &Reply::Refused { message }).await;
            return;
        }
    };
    zeroize::Zeroize::zeroize(&mut line); // it may hold a token
    let (replies, mut queue) = mpsc::channel(REPLIES);
    let right = if may_change { Right::Change } else { Right::Read };
    if clients.send(FromClient::Asked { client, uid: who.uid(), right, request, replies }).await.is_err() {
        return;
    }
    let mut rest = lines.into_inner().into_inner();
    let mut nothing = [0; 16];
    loop {
        tokio::select! {
            reply = queue.recv() => match reply {
                Some(reply) => if !say(&mut write, &reply).await { return },
                None => return,
            },
            // The client has nothing more to say: this ends when it goes away.
            read = rest.read(&mut nothing) => if !matches!(read, Ok(1..)) { return },
        }
    }
}

async fn say(write: &mut (impl AsyncWriteExt + Unpin), reply: &Reply) -> bool {
    matches!(timeout(WRITE_PATIENCE, write.write_all(&line(reply))).await, Ok(Ok(())))
}

fn line(reply: &Reply) -> Vec<u8> {
    let mut line = serde_json::to_vec(reply).expect("every reply has a JSON form");
    line.push(b'\n');
    line
}

/// Tells whether a local user may change things: root, the agent's own user, or a member of the group by `/etc/group`.
fn may_change(uid: u32, gid: u32, group: Option<&str>) -> bool {
    if uid == 0 {
        return true;
    }
    let Some(group) = group else { return false };
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    is_member(uid, gid, group, &read("/etc/passwd"), &read("/etc/group"))
}

fn is_member(uid: u32, gid: u32, group: &str, passwd: &str, groups: &str) -> bool {
    let Some((number, members)) = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number = fields.nth(1)?.parse::<u32>().ok()?;
        (name == group).then(|| (number, fields.next().unwrap_or_default()))
    }) else {
        return false;
    };
    let user = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse::<u32>().ok()? == uid).then_some(name)
    });
    gid == number || user.is_some_and(|user| members.split(',').any(|member| member == user))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\nbob:x:1001:1001::/:/bin/sh\n";
    const GROUPS: &str = "root:x:0:\npostern:x:990:alice,carol\nal:x:991:\n";

    #[test]
    fn only_root_and_members_of_the_group_may_change() {
        assert!(may_change(0, 0, None));
        assert!(!may_change(1000, 1000, None));
        assert!(is_member(1000, 1000, "postern", PASSWD, GROUPS), "a listed member");
        assert!(is_member(1001, 990, "postern", PASSWD, GROUPS), "the group is the process's own");
        assert!(!is_member(1001, 1001, "postern", PASSWD, GROUPS));
        assert!(!is_member(1000, 1000, "al", PASSWD, GROUPS), "a prefix is no name");
        assert!(!is_member(1000, 1000, "nobody-has-this", PASSWD, GROUPS));
        assert!(!is_member(4242, 4242, "postern", PASSWD, GROUPS), "an unknown user");
    }

    #[test]
    fn one_user_takes_no_more_than_their_places() {
        let users = Users::default();
        let mut places: Vec<PlaceOfOne> = std::iter::from_fn(|| users.take(1000)).collect();
        assert_eq!(places.len(), PLACES_OF_ONE);
        let other = users.take(1001).expect("another user has their own");
        places.pop();
        assert!(users.take(1000).is_some(), "given back");
        drop((places, other));
        assert!(users.lock().is_empty(), "nobody is held for nothing");
    }

    #[test]
    fn what_shows_or_changes_what_others_do_is_not_for_everybody() {
        let change = [
            Request::Up { target: None, token: None, name: None },
            Request::Down,
            Request::Logout,
            Request::Flows { follow: false },
        ];
        assert!(change.iter().all(|request| request.right() == Right::Change));
    }
}
