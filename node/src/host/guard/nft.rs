//! Runs nft with a script on its standard input and a limit on its time.

use std::{
    io::{Read, Write},
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use super::GuardError;

/// How long nft may take. It takes milliseconds; a machine that is short of memory may need longer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes of nft's answer that are taken; a longer one is refused, because its end could mean something.
const MAX_OUTPUT_BYTES: u64 = 4 << 20;

/// Runs nft and returns what it printed.
pub(super) fn run(arguments: &[&str], script: &str) -> Result<String, GuardError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut path = path.into_string().unwrap_or_default();
    path.push_str(":/usr/sbin:/sbin"); // a login shell of an ordinary user has no sbin
    let mut child = Command::new("nft")
        .args(arguments)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(GuardError::Start)?;
    let mut input = child.stdin.take().expect("standard input was asked for");
    let output = child.stdout.take().expect("standard output was asked for");
    let errors = child.stderr.take().expect("standard error was asked for");
    let script = script.to_owned();
    std::thread::spawn(move || input.write_all(script.as_bytes())); // an error shows in nft's exit status
    let (sender, receiver) = mpsc::channel();
    for (mut from, kind) in [(Box::new(output) as Box<dyn Read + Send>, 0), (Box::new(errors), 1)] {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = (&mut from).take(MAX_OUTPUT_BYTES + 1).read_to_end(&mut text);
            let _ = sender.send((kind, text));
        });
    }
    let mut texts = [vec![], vec![]];
    for _ in 0..2 {
        match receiver.recv_timeout(TIMEOUT) {
            Ok((kind, text)) => texts[kind as usize] = text,
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(GuardError::TimedOut(TIMEOUT));
            }
        }
    }
    let status = child.wait().map_err(GuardError::Start)?;
    if texts.iter().any(|text| text.len() as u64 > MAX_OUTPUT_BYTES) {
        return Err(GuardError::TooLong(MAX_OUTPUT_BYTES >> 20));
    }
    let [output, errors] = texts.map(|text| String::from_utf8_lossy(&text).into_owned());
    if status.success() { Ok(output) } else { Err(GuardError::Refused(errors.trim().chars().take(600).collect())) }
}
