//! The command's end of the administration socket.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
};

use serde_json::Value;

use super::request::{MAX_LINE, Request, Response};

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No controller answers.
    #[error(
        "no controller answers at {socket}: {cause}\nStart it with `postern-controller serve`, or name its configuration with --config FILE."
    )]
    Away {
        /// The socket.
        socket: String,
        /// The system's answer.
        cause: io::Error,
    },
    /// The socket may not be used.
    #[error("you may not use {0}: become root, or a member of the group that [admin] names")]
    Forbidden(String),
    /// The controller said no.
    #[error("{0}")]
    Refused(String),
    /// The conversation broke off.
    #[error("the controller stopped answering ({0}): what was asked may or may not have been done")]
    Broken(String),
}

/// Asks the controller.
///
/// # Errors
/// [`ClientError`].
pub fn ask(socket: &Path, request: &Request) -> Result<Value, ClientError> {
    let shown = socket.display().to_string();
    let mut stream = UnixStream::connect(socket).map_err(|cause| match cause.kind() {
        io::ErrorKind::PermissionDenied => ClientError::Forbidden(shown),
        _ => ClientError::Away { socket: shown, cause },
    })?;
    let broken = |error: io::Error| ClientError::Broken(error.to_string());
    let mut line = serde_json::to_string(request).expect("a request has a JSON form");
    line.push('\n');
    // A peer that is refused is answered before it has asked: what was written then does not matter.
    let written = stream.write_all(line.as_bytes()).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_LINE as u64)).read_line(&mut answer).map_err(broken)?;
    if answer.is_empty() {
        written.map_err(broken)?;
        return Err(ClientError::Broken("no answer".into()));
    }
    match serde_json::from_str(&answer) {
        Ok(Response::Done { value }) => Ok(value),
        Ok(Response::Refused { message }) => Err(ClientError::Refused(message)),
        Err(error) => Err(ClientError::Broken(error.to_string())),
    }
}
