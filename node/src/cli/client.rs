//! The command's end of the local socket.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use super::{Failure, Places};
use crate::agent::{
    api::{Reply, Request},
    state,
};

/// A request under way.
#[derive(Debug)]
pub(super) struct Exchange {
    replies: BufReader<UnixStream>,
}

/// Sends a request.
pub(super) fn ask(places: &Places, request: &Request) -> Result<Exchange, Failure> {
    let path = places.socket();
    let stream = connect(&path).map_err(|error| Failure::Failed(unreachable(places, &path, &error)))?;
    send(stream, request).map_err(|error| Failure::Failed(format!("the agent does not listen: {error}")))
}

/// Tells whether an agent answers at the socket.
pub(super) fn is_answering(places: &Places) -> bool {
    connect(&places.socket()).is_ok()
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(path)
}

fn send(mut stream: UnixStream, request: &Request) -> io::Result<Exchange> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    Ok(Exchange { replies: BufReader::new(stream) })
}

fn unreachable(places: &Places, path: &Path, error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return format!("you may not use {}: sudo postern ...", path.display());
    }
    if state::is_locked(&places.state_dir) {
        return format!("the agent runs, but not at {}: give its --socket or --runtime-dir", path.display());
    }
    "the postern agent is not running on this machine: sudo postern up".into()
}

impl Exchange {
    /// Waits for the first words of the agent; false if it ended without any: it was just about to when it was asked.
    pub(super) fn is_heard(&mut self) -> bool {
        self.replies.fill_buf().is_ok_and(|bytes| !bytes.is_empty())
    }

    /// Returns the next reply; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<Reply>, Failure> {
        let mut line = String::new();
        let ended = |why: String| Failure::Failed(format!("the agent ended before it answered{why}; see its log"));
        let length = self.replies.read_line(&mut line).map_err(|error| ended(format!(" ({error})")))?;
        if length == 0 {
            return Err(ended(String::new()));
        }
        match serde_json::from_str(&line) {
            Ok(Reply::Done) => Ok(None),
            Ok(Reply::Refused { message }) => Err(Failure::Failed(message)),
            Ok(reply) => Ok(Some(reply)),
            Err(_) => Err(Failure::Failed(
                "the agent answers in words that this command does not know: are they of one version? restart the agent".into(),
            )),
        }
    }

    /// Returns the one reply that a request has.
    pub(super) fn only(&mut self) -> Result<Reply, Failure> {
        self.next()?.ok_or_else(|| Failure::Failed("the agent answered nothing".into()))
    }
}

/// The failure of an answer to another question.
pub(super) fn confused() -> Failure {
    Failure::Failed(
        "the agent answered another question: are command and agent of one version? restart the agent".into(),
    )
}
